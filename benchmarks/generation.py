"""Generation against Transformers' ``generate``: tokens per second up to each row's end.

Both sides sample at temperature 1 from the same models on the same prompts. Forced lengths come from the vocabulary:
where 1/16 of all tokens end a turn, the lengths of an untrained model are geometric with mean 16.
"""

import random
import time

from models import SIZES, VOCABULARY, saved_model
from sides import compare, table

PEER_BATCH = 64


def make_prompts(count, shortest, longest):
    """Random prompts of evenly distributed lengths."""
    numbers = random.Random(1)
    return [
        tuple(numbers.randrange(1, VOCABULARY) for _ in range(numbers.randint(shortest, longest))) for _ in range(count)
    ]


STOPS = frozenset(range(1, VOCABULARY // 16 + 1))
SHORT = make_prompts(512, 8, 32)
CASES = {
    "64 prompts, every row to 64 new tokens": (SHORT[:64], 64, frozenset()),
    "64 prompts, lengths geometric with mean 16, at most 64": (SHORT[:64], 64, STOPS),
    "512 prompts, the same (peer in batches of 64)": (SHORT, 64, STOPS),
    "8 completions for each of 8 prompts of 200 tokens, 32 new": (
        [prompt for prompt in make_prompts(8, 200, 200) for _ in range(8)], 32, frozenset(),
    ),
}  # fmt: skip


def descant(_, path):
    from transformers import AutoModelForCausalLM

    from descant.engine.generate import GenerationSettings, generate
    from descant.engine.jobs import GenerationRequest, Sampling
    from descant.engine.probe import find_driving
    from descant.engine.score import TokenScorer

    model = AutoModelForCausalLM.from_pretrained(path).eval()
    scorer = TokenScorer(model, find_driving(model))

    def run(case):
        prompts, num_new, stops = CASES[case]
        started_at = time.perf_counter()
        requests = [GenerationRequest(prompt, seed) for seed, prompt in enumerate(prompts)]
        settings = GenerationSettings(stops, 131_072, 16_384, str)
        results = generate(scorer, requests, Sampling(max_gen_len=num_new), settings, lambda num_done=0: None)
        seconds = time.perf_counter() - started_at
        num_tokens = sum(len(result.token_ids) for result in results)
        return num_tokens / seconds, num_tokens

    return run


def generated_by_transformers(model, prompts, num_new, stops):
    """How many tokens ``generate`` samples up to each row's end, in batches."""
    import torch

    num_tokens = 0
    for start in range(0, len(prompts), PEER_BATCH):
        batch = prompts[start : start + PEER_BATCH]
        longest = max(map(len, batch))
        ids = torch.tensor([[0] * (longest - len(prompt)) + list(prompt) for prompt in batch])
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in batch])
        output = model.generate(
            input_ids=ids.to(model.device), attention_mask=mask.to(model.device), do_sample=True, top_k=0,
            max_new_tokens=num_new, pad_token_id=0, eos_token_id=sorted(stops) or [model.config.vocab_size],
        )  # fmt: skip
        for row in output[:, longest:].tolist():
            num_tokens += next((i for i, token in enumerate(row, start=1) if token in stops), len(row))
    return num_tokens


def transformers(_, path):
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(path).eval()
    torch.manual_seed(0)

    def run(case):
        prompts, num_new, stops = CASES[case]
        started_at = time.perf_counter()
        num_tokens = generated_by_transformers(model, prompts, num_new, stops)
        seconds = time.perf_counter() - started_at
        return num_tokens / seconds, num_tokens

    return run


SIDES = {"descant": descant, "transformers": transformers}


def main():
    print("| model | case | descant, tokens/s | Transformers | ratio |\n|---|---|---|---|---|")
    for size in SIZES:
        for case, medians in compare(__file__, SIDES, size, saved_model(size), CASES).items():
            ours, theirs = (medians[side][0] for side in SIDES)
            print(f"| {size} | {case} | {ours:,.0f} | {theirs:,.0f} | {ours / theirs:.2f} × |", flush=True)


if __name__ == "__main__":
    table(SIDES, SIZES, main)
