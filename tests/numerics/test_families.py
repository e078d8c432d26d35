"""Generation and scoring against Transformers, for every family and with rows that are replaced while others go on."""

import pytest
import torch
from support import training_model
from tiny_model import save_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    Qwen3Config,
    Qwen3NextConfig,
)

from descant import StringThread

NUM_NEW = 20
SIZE = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
}
FAMILIES = {
    "qwen3 tied": lambda: Qwen3Config(**SIZE, tie_word_embeddings=True),
    "qwen3 untied": lambda: Qwen3Config(**SIZE, tie_word_embeddings=False),
    "llama": lambda: LlamaConfig(**SIZE, tie_word_embeddings=False),
    "mistral, window 8": lambda: MistralConfig(**SIZE, sliding_window=8),
    "gemma3, window 8": lambda: Gemma3TextConfig(
        **SIZE, sliding_window=8, layer_types=["sliding_attention", "full_attention", "sliding_attention"]
    ),
    "gpt2": lambda: GPT2Config(n_embd=32, n_layer=3, n_head=4, n_positions=256, initializer_range=0.3),
    # linear attention: its cache cannot have rows replaced, so it decodes batch after batch
    "qwen3 next": lambda: Qwen3NextConfig(
        **SIZE,
        layer_types=["linear_attention", "full_attention", "linear_attention"],
        linear_num_key_heads=2,
        linear_num_value_heads=2,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        num_experts=2,
        num_experts_per_tok=1,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=16,
    ),
}
# lengths from a few tokens to many windows, some prompts twice
PROMPTS = [StringThread().user("ab" * n) for n in (1, 30, 3, 12, 50, 12, 7, 1, 21, 40)]


@pytest.fixture(scope="module", params=FAMILIES)
def family_dir(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("family") / "model"
    return save_model(path, FAMILIES[request.param](), seed=3)


@pytest.fixture(scope="module")
def expected(family_dir):
    """For each prompt alone: Transformers' greedy tokens, their log-probabilities, and where the first near-tie is."""
    tokenizer = AutoTokenizer.from_pretrained(family_dir)
    model = AutoModelForCausalLM.from_pretrained(family_dir, dtype=torch.float32).eval()
    results = []
    for prompt in PROMPTS:
        messages = [{"role": role, "content": content} for role, content in prompt.get_turns()]
        inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")
        output = model.generate(
            **inputs, do_sample=False, max_new_tokens=NUM_NEW, output_logits=True, return_dict_in_generate=True
        )
        tokens = output.sequences[0, inputs["input_ids"].shape[1] :]
        logits = torch.cat(output.logits)
        best = logits.topk(2).values
        ties = ((best[:, 0] - best[:, 1]) < 1e-3).nonzero()
        logprobs = logits.log_softmax(-1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
        results.append((tokens.tolist(), logprobs.tolist(), int(ties[0]) if len(ties) else len(tokens)))
    return results


@pytest.mark.parametrize("kv_cache_len", [1, 300, 700, 10**6])  # one row at a time, two, a few, all at once
async def test_greedy_tokens_and_their_logprobs(family_dir, expected, kv_cache_len):
    async with training_model(family_dir, max_batch_size=128, kv_cache_len=kv_cache_len) as model:
        generated = await model.temperature(0).max_gen_len(NUM_NEW).generate_tokens_many(PROMPTS)
    for thread, (tokens, logprobs, until) in zip(generated, expected, strict=True):
        assert len(thread.logprobs) == len(thread.token_ids) - thread.spans[-1].start
        assert list(thread.token_ids[thread.spans[-1].start :])[:until] == tokens[:until]
        tolerance = 1e-4 if "Qwen3Next" in model.description else 2e-5  # chunked linear attention rounds more
        assert thread.logprobs[:until] == pytest.approx(logprobs[:until], abs=tolerance)
    assert sum(until for _, _, until in expected) > 0.8 * sum(len(tokens) for tokens, _, _ in expected)


async def test_sampled_tokens_are_scored_as_they_were_generated(family_dir):
    async with training_model(family_dir, max_batch_size=400, kv_cache_len=400) as model:
        sampled = await model.max_gen_len(12).generate_tokens_many(PROMPTS)
        scored = await model.logprobs_per_token_many(sampled)
    for thread, logprobs in zip(sampled, scored, strict=True):
        assert thread.logprobs == pytest.approx(logprobs, abs=1e-4)


async def test_the_shortest_and_the_text_that_ends_a_completion(family_dir):
    async with training_model(family_dir, kv_cache_len=400) as model:
        view = model.max_gen_len(40)
        free = await view.generate_tokens_many(PROMPTS)
        at_least = await view.min_gen_len(25).generate_tokens_many(PROMPTS)
        stops = tuple({thread.thread.last_content()[3:5] for thread in free if len(thread.thread.last_content()) > 5})
        stopped = await view.stop_strings(*stops).generate_tokens_many(PROMPTS)
    assert all(thread.len_last_turn() >= 25 for thread in at_least)
    assert {thread.finish_reason for thread in at_least} <= {"stop", "length"}
    assert "stop_string" in {thread.finish_reason for thread in stopped}
    for thread in stopped:
        assert not any(stop in thread.thread.last_content() for stop in stops)
