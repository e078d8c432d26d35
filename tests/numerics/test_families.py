"""Generation and scoring against Transformers, for every family and with rows that are replaced while others go on."""

import contextlib

import pytest
import torch
from support import check_against_plain_passes, training_model
from tiny_model import byte_tokenizer, save_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BartConfig,
    BloomConfig,
    DeepseekV3Config,
    FalconMambaConfig,
    Gemma3TextConfig,
    GPT2Config,
    GPTBigCodeConfig,
    JambaConfig,
    Llama4TextConfig,
    LlamaConfig,
    Mamba2Config,
    MambaConfig,
    MistralConfig,
    MixtralConfig,
    OpenAIGPTConfig,
    Phi3Config,
    Qwen3Config,
    Qwen3NextConfig,
    RecurrentGemmaConfig,
    RwkvConfig,
)

from descant import StringThread, live_model

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
BOUNDARY = 64
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10_000.0,
    "short_factor": [1.0, 1.2, 1.5, 2.0],
    "long_factor": [1.0, 4.0, 12.0, 32.0],
    "original_max_position_embeddings": BOUNDARY,
    "factor": 4.0,
}
STATE = {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}
MORE_FAMILIES = {  # the configuration, and how it is driven
    "mixtral": (lambda: MixtralConfig(**SIZE, num_local_experts=4, output_router_logits=True), "replaced rows"),
    "bloom: alibi": (lambda: BloomConfig(hidden_size=32, n_layer=2, n_head=4, initializer_range=0.3), "replaced rows"),
    "gpt bigcode: multi-query": (
        lambda: GPTBigCodeConfig(n_embd=32, n_layer=2, n_head=4, n_positions=256, initializer_range=0.3),
        "replaced rows",
    ),
    "deepseek v3: latent attention, experts": (
        lambda: DeepseekV3Config(
            **{**SIZE, "num_key_value_heads": 4}, q_lora_rank=16, kv_lora_rank=16, qk_rope_head_dim=8,
            qk_nope_head_dim=8, v_head_dim=8, n_routed_experts=4, num_experts_per_tok=2, n_group=1, topk_group=1,
            moe_intermediate_size=16, first_k_dense_replace=1,
        ),
        "replaced rows",
    ),
    "llama 4: chunks of 16": (
        lambda: Llama4TextConfig(
            **SIZE, intermediate_size_mlp=64, attention_chunk_size=16, num_local_experts=2, use_qk_norm=False,
            no_rope_layers=[1, 1, 0],
        ),
        "replaced rows",
    ),
    "gemma 3: window and rope by layer": (
        lambda: Gemma3TextConfig(
            **SIZE, sliding_window=8, layer_types=["sliding_attention", "full_attention", "sliding_attention"],
            rope_parameters={
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
                "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
            },
        ),
        "replaced rows",
    ),
    "phi 3: longrope": (
        lambda: Phi3Config(
            **SIZE, rope_parameters=LONGROPE, original_max_position_embeddings=BOUNDARY, pad_token_id=0,
        ),
        "replaced rows",
    ),
    "mamba": (lambda: MambaConfig(**STATE), "its own"),
    "mamba 2": (lambda: Mamba2Config(**STATE, num_heads=8, head_dim=8, expand=2, n_groups=1, chunk_size=8), "its own"),
    "falcon mamba": (lambda: FalconMambaConfig(**STATE), "its own"),
    "jamba: mamba, attention, experts": (
        lambda: JambaConfig(
            **{**SIZE, "num_hidden_layers": 4}, attn_layer_period=2, attn_layer_offset=1, expert_layer_period=2,
            num_experts=2, mamba_d_state=8, mamba_dt_rank=4, use_mamba_kernels=False,
        ),
        "its own",
    ),
    "bart: no padding": (
        lambda: BartConfig(
            d_model=32, decoder_layers=2, encoder_layers=2, decoder_attention_heads=4, encoder_attention_heads=4,
            decoder_ffn_dim=64, max_position_embeddings=256, init_std=0.3,
        ),
        "its own, of equal lengths",
    ),
    "rwkv: states in a list": (
        lambda: RwkvConfig(hidden_size=32, attention_hidden_size=32, num_hidden_layers=2, intermediate_size=64),
        "its own, one at a time",
    ),
    "recurrent gemma: states in the module": (
        lambda: RecurrentGemmaConfig(
            hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, lru_width=32,
            attention_window_size=16,
        ),
        "none",
    ),
    "gpt: no cache": (
        lambda: OpenAIGPTConfig(n_embd=32, n_layer=2, n_head=4, n_positions=256, initializer_range=0.3), "none",
    ),
}  # fmt: skip
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


@pytest.mark.parametrize("family", MORE_FAMILIES)
async def test_a_family_is_driven_so_that_its_numbers_are_those_of_plain_passes(family):
    """Prompts of many lengths, in five rows, on both sides of the boundaries that the configuration names."""
    make, way = MORE_FAMILIES[family]
    module = built(make())
    said = pytest.warns(UserWarning, match="is driven more slowly") if way == "none" or "," in way else None
    with said or contextlib.nullcontext():
        model = live_model(module, byte_tokenizer(), kv_cache_len=500)
    driving = model._worker._loop._engine.driving
    found = driving.cache if driving.generation == "of any lengths" else f"{driving.cache}, {driving.generation}"
    assert (driving.scoring, found) == ("of any lengths", way)
    generated = await check_against_plain_passes(model, module, PROMPTS[2:9], 8, tolerance=5e-4)
    if "longrope" in family:
        lengths = [(thread.spans[-1].start, len(thread.token_ids)) for thread in generated]
        assert any(start <= BOUNDARY < end - 1 for start, end in lengths)
    await model.dealloc()


async def test_a_value_does_not_depend_on_longer_sequences_beside_it(tmp_path):
    """Where a model computes otherwise beyond a length, in scoring, training and generation."""
    path = save_model(tmp_path / "phi3", MORE_FAMILIES["phi 3: longrope"][0](), seed=1)
    short, long = ([StringThread().user("u" * n).assistant("a" * 9) for n in ns] for ns in ((5, 16, 30), (40, 60)))
    async with training_model(path) as model:
        lengths = [len(thread.token_ids) for thread in await model.tokenize_many([*short, *long])]
        assert max(lengths[:3]) <= BOUNDARY < min(lengths[3:])
        alone = [await model.logprobs(thread) for thread in short]
        assert await model.logprobs_many([*short, *long]) == pytest.approx([*alone, *await model.logprobs_many(long)])
        prompts = [StringThread().user("u" * n) for n in (3, 44, 60)]
        view = model.temperature(0).max_gen_len(8)
        assert [await view.generate(prompt) for prompt in prompts] == await view.generate_many(prompts)
    losses = []
    for max_batch_size in (100, 4096):
        async with training_model(path, max_batch_size=max_batch_size) as model:
            await model.train_language_modelling_many([*short, *long])
            losses.append((await model.optim_step(lr=1e-3))["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def built(config):
    """A module of this configuration for the byte-level tokenizer."""
    tokenizer = byte_tokenizer()
    config.vocab_size, config.pad_token_id = len(tokenizer), tokenizer.pad_token_id
    config.bos_token_id, config.eos_token_id = tokenizer.eos_token_id, tokenizer.eos_token_id
    torch.manual_seed(3)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
