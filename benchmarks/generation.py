"""Generation against Transformers' ``generate``, in one process: tokens per second, median of five, sides in turn.

    make bench

Both sides sample at temperature 1 from the same models on the same prompts. Forced lengths come from the vocabulary:
where a 1/16 of all tokens end a turn, the lengths of an untrained model are geometric with mean 16.
"""

import os
import platform
import statistics
import sys
import time

import torch
from transformers import AutoModelForCausalLM, Qwen3Config

from descant.engine.generate import GenerationSettings, generate
from descant.engine.jobs import GenerationRequest, Sampling

NUM_THREADS = os.cpu_count() or 1
REPEATS = 5
PEER_BATCH = 64
VOCABULARY = 1024
SIZES = {
    "0.9M": {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 3, "num_attention_heads": 4},
    "5.2M": {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 5, "num_attention_heads": 8},
}


def build_model(size):
    """An untrained Qwen3 in memory."""
    config = Qwen3Config(
        **SIZES[size],
        num_key_value_heads=SIZES[size]["num_attention_heads"] // 2,
        head_dim=32,
        vocab_size=VOCABULARY,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval()


def make_prompts(count, shortest, longest):
    """Random prompts of evenly distributed lengths."""
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(shortest, longest + 1, (count,), generator=generator).tolist()
    return [tuple(torch.randint(1, VOCABULARY, (length,), generator=generator).tolist()) for length in lengths]


def descant_tokens(model, prompts, num_new, stop_ids, repeat):
    """Generates with descant and returns how many tokens came."""
    requests = [GenerationRequest(prompt, 10_000 * repeat + index) for index, prompt in enumerate(prompts)]
    settings = GenerationSettings(frozenset(stop_ids), 131_072, 16_384, str)
    results = generate(model, requests, Sampling(max_gen_len=num_new), settings, lambda: None)
    return sum(len(result.token_ids) for result in results)


@torch.no_grad()
def transformers_tokens(model, prompts, num_new, stop_ids, repeat):
    """Generates with Transformers, in batches, and returns how many tokens came before each row's end."""
    torch.manual_seed(repeat)
    total = 0
    for start in range(0, len(prompts), PEER_BATCH):
        batch = prompts[start : start + PEER_BATCH]
        longest = max(map(len, batch))
        ids = torch.tensor([[0] * (longest - len(prompt)) + list(prompt) for prompt in batch])
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in batch])
        output = model.generate(
            input_ids=ids, attention_mask=mask, do_sample=True, top_k=0, max_new_tokens=num_new, pad_token_id=0,
            eos_token_id=sorted(stop_ids) or None,
        )  # fmt: skip
        for row in output[:, longest:].tolist():
            ends = [position for position, token in enumerate(row, start=1) if token in stop_ids]
            total += ends[0] if ends else len(row)
    return total


def tokens_per_second(function, *arguments):
    started_at = time.perf_counter()
    return function(*arguments) / (time.perf_counter() - started_at)


def compare(model, prompts, num_new, stop_ids):
    """Median tokens per second of both sides."""
    speeds = {descant_tokens: [], transformers_tokens: []}
    for repeat in range(REPEATS + 1):
        for function, values in speeds.items():
            speed = tokens_per_second(function, model, prompts, num_new, stop_ids, repeat)
            if repeat > 0:  # the first is warm-up
                values.append(speed)
    return [statistics.median(values) for values in speeds.values()]


def main():
    torch.set_num_threads(NUM_THREADS)
    stop_ids = set(range(1, VOCABULARY // 16 + 1))
    cases = {
        "64 prompts, every row to 64 new tokens": (make_prompts(64, 8, 32), 64, set()),
        "64 prompts, lengths geometric with mean 16, at most 64": (make_prompts(64, 8, 32), 64, stop_ids),
        "512 prompts, the same (peer in batches of 64)": (make_prompts(512, 8, 32), 64, stop_ids),
        "8 completions for each of 8 prompts of 200 tokens, 32 new": (
            [prompt for prompt in make_prompts(8, 200, 200) for _ in range(8)], 32, set(),
        ),
    }  # fmt: skip
    print(
        f"{platform.machine()}, {NUM_THREADS} threads, Python {platform.python_version()}, torch {torch.__version__}\n"
    )
    print("| model | case | descant, tokens/s | Transformers, tokens/s | ratio |\n|---|---|---|---|---|")
    for size in SIZES:
        model = build_model(size)
        for case, (prompts, num_new, stops) in cases.items():
            ours, theirs = compare(model, prompts, num_new, stops)
            print(f"| {size} | {case} | {ours:,.0f} | {theirs:,.0f} | {ours / theirs:.2f} × |")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
