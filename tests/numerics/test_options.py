"""Options of the model that save memory or time: what they leave as it is, and what they change by how much."""

import asyncio

import pytest
import torch
from support import CountingCallback, addition_threads, ragged_threads, training_model, weights_of
from transformers import AutoModelForCausalLM

from descant import SFT, ModelBuilder
from descant.errors import ConfigurationError, DescantError, ModelLoadError

THREADS = ragged_threads(12)


def engine_of(model):
    return model._worker._loop._engine


async def gradients_and_loss(path, **options):
    """The raw summed gradient of one step, and its mean loss."""
    async with training_model(path, **options) as model:
        await model.train_language_modelling_many(THREADS, seed=3)
        gradients = {n: p.grad.float().clone() for n, p in engine_of(model).model.named_parameters()}
        return gradients, (await model.optim_step(lr=0.0))["loss"]


async def test_gradient_checkpointing_gives_the_same_gradient_with_dropout(model_dir):
    """GPT-2 has dropout in every layer: the second computation has to draw what the first one drew."""
    state = torch.get_rng_state()
    plain, plain_loss = await gradients_and_loss(model_dir, max_batch_size=512)
    again, loss = await gradients_and_loss(model_dir, max_batch_size=512, gradient_checkpointing=True)
    assert loss == plain_loss
    for name, gradient in plain.items():
        assert torch.equal(again[name], gradient), name
    assert torch.equal(torch.get_rng_state(), state), "training touched the global generator"


async def test_gradient_checkpointing_computes_layers_twice(qwen3_dir):
    async with training_model(qwen3_dir, gradient_checkpointing=True) as model:
        calls = []
        engine_of(model).model.model.layers[0].input_layernorm.register_forward_hook(lambda *_: calls.append(1))
        await model.train_language_modelling_many(THREADS[:1])
    assert len(calls) == 2


async def test_precisions_agree_as_closely_as_their_formats_allow(model_dir):
    """bfloat16 has 8 bits of mantissa: products are exact to about 2**-8."""
    exact, exact_loss = await gradients_and_loss(model_dir, precision="float32")
    norm = torch.sqrt(sum((g**2).sum() for g in exact.values()))
    for precision in ("mixed", "bfloat16"):
        gradients, loss = await gradients_and_loss(model_dir, precision=precision)
        assert loss != exact_loss, f"{precision} computed in float32"
        assert loss == pytest.approx(exact_loss, rel=2e-2)
        if "gpt2" not in str(model_dir):  # dropout draws for other formats
            error = torch.sqrt(sum(((gradients[n] - exact[n]) ** 2).sum() for n in exact))
            assert error / norm < 0.1, precision


@pytest.mark.parametrize(
    ("precision", "dtype"), [("float32", torch.float32), ("mixed", torch.float32), ("bfloat16", torch.bfloat16)]
)
async def test_weights_and_saved_files_have_the_format_of_the_precision(qwen3_dir, tmp_path, precision, dtype):
    async with training_model(qwen3_dir, precision=precision) as model:
        await model.train_language_modelling_many(THREADS)
        await model.optim_step(lr=1e-2)
        assert {tensor.dtype for tensor in weights_of(model).values()} == {dtype}
        live = weights_of(model)
        saved = AutoModelForCausalLM.from_pretrained(await model.save(tmp_path / "saved"), dtype="auto")
        assert {tensor.dtype for tensor in saved.parameters()} == {dtype}
        assert all(torch.equal(tensor, live[name]) for name, tensor in saved.named_parameters())
        threads = await model.max_gen_len(6).generate_many([t.without_completion() for t in addition_threads(4)])
        assert len(threads) == 4


async def test_training_that_passes_within_an_evaluation_uses_no_stale_casts(qwen3_dir):
    """In mixed precision casts of the weights are cached; a generation job goes on around a training job."""
    prompts = [thread.without_completion() for thread in addition_threads(8)]

    async def train(model):
        for _ in range(3):
            await model.train_language_modelling_many(THREADS)
            await model.optim_step(lr=1e-2)

    async with training_model(qwen3_dir, precision="mixed") as model:
        await train(model)
        alone = weights_of(model)
    async with training_model(qwen3_dir, precision="mixed") as model:
        generation = asyncio.create_task(model.max_gen_len(150).min_gen_len(150).generate_many(prompts))
        while engine_of(model) is None or model._worker._loop._current is None:
            await asyncio.sleep(0)
        await train(model)
        assert not generation.done(), "the training did not pass within the generation"
        await generation
        beside = weights_of(model)
    for name, tensor in alone.items():
        assert torch.equal(beside[name], tensor), name


async def test_attention_is_the_one_asked_for(qwen3_dir):
    _, sdpa = await gradients_and_loss(qwen3_dir, attn_implementation="sdpa")
    _, eager = await gradients_and_loss(qwen3_dir, attn_implementation="eager")
    assert eager == pytest.approx(sdpa, rel=1e-6)
    async with training_model(qwen3_dir, attn_implementation="eager") as model:
        assert engine_of(model).model.config._attn_implementation == "eager"


async def test_options_that_cannot_work_are_refused(qwen3_dir):
    with pytest.raises(ConfigurationError, match=r"precision='fp16' must be one of 'float32', 'mixed', 'bfloat16'"):
        ModelBuilder(qwen3_dir, precision="fp16")
    with pytest.raises(ModelLoadError, match=r"AutoModelForCausalLM cannot load .*flash_paged"):
        await ModelBuilder(qwen3_dir, attn_implementation="flash_paged").spawn_inference("x")


def fail_beyond(model, max_tokens):
    """What a full GPU does: forward passes of more than ``max_tokens`` padded tokens find no memory."""
    sizes = []

    def hook(module, args, kwargs):
        size = kwargs["input_ids"].numel()
        sizes.append(size)
        if size > max_tokens:
            raise torch.OutOfMemoryError("tried to allocate 1 EiB")

    engine_of(model).model.base_model.register_forward_pre_hook(hook, with_kwargs=True)
    return sizes


async def test_out_of_memory_halves_the_budgets_once_and_says_so(qwen3_dir, tmp_path):
    async with training_model(qwen3_dir, max_batch_size=512) as model:
        expected = await model.logprobs_many(THREADS)
        await SFT(dataset=THREADS, model=model, run_dir=tmp_path / "a").run()
        trained = weights_of(model)
    async with training_model(qwen3_dir, max_batch_size=512) as model:
        sizes = fail_beyond(model, 300)
        with pytest.warns(UserWarning, match=r"micro-batches now have 256 tokens \(max_batch_size is 512\)"):
            assert await model.logprobs_many(THREADS) == pytest.approx(expected, rel=1e-5)
        assert max(sizes) > 300
        sizes.clear()
        result = await SFT(dataset=THREADS, model=model, callbacks=[CountingCallback()], run_dir=tmp_path / "b").run()
        assert max(sizes) <= 300
        assert "training/num_skipped_samples" not in result.metrics
        for name, tensor in weights_of(model).items():
            assert torch.allclose(tensor, trained[name], atol=1e-5), name
    async with training_model(qwen3_dir, max_batch_size=512) as model:
        fail_beyond(model, 100)
        with (
            pytest.warns(UserWarning, match="out of memory"),
            pytest.raises(DescantError, match=r"Accumulate is out of memory .* halved already; lower max_batch_size"),
        ):
            await model.train_language_modelling_many(THREADS)
        assert all(p.grad is None for p in engine_of(model).model.parameters())
    async with training_model(qwen3_dir, max_batch_size=512) as model:
        await model.train_language_modelling_many(THREADS[:1])
        fail_beyond(model, 300)
        with pytest.raises(DescantError, match="Accumulate is out of memory"):  # a gradient was there: no second try
            await model.train_language_modelling_many(THREADS)
