"""Modules that their own loop changes: mixed precision, patched forwards, compiled parts, weights in parts."""

import asyncio
import json
import types

import pytest
import torch
from support import BareLoop, addition_threads, query, series
from test_transformers import plain_trainer
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, T5Config, T5ForConditionalGeneration

from descant import ModelCallback, ValidationLossCallback, live_model
from descant.errors import ConfigurationError, ModelLoadError
from descant.integrations.transformers import add_callbacks

VALIDATION = addition_threads(3, offset=50)


class Both(ModelCallback):
    """The largest difference between the log-probabilities of tokens as generated and as scored."""

    def __init__(self, model, frequency=0.5, **options):
        super().__init__(model, frequency, "both", **options)

    async def measure(self, model):
        generated = await model.temperature(0.0).max_gen_len(6).generate_tokens_many(VALIDATION)
        scored = await model.logprobs_per_token_many(generated)
        pairs = [
            (one, other)
            for thread, values in zip(generated, scored, strict=True)
            for one, other in zip(thread.logprobs, values[-len(thread.logprobs) :], strict=True)
        ]
        return max(abs(one - other) for one, other in pairs)

    async def report(self, measurement):
        return {"difference": measurement}


def both(model):
    return [Both(model), ValidationLossCallback(VALIDATION, model, 0.5)]


@pytest.mark.parametrize("mode", ["inline", "background"])
def test_mixed_precision_of_a_trainer_is_one_precision(gpt2_dir, tmp_path, mode):
    """Its autocast comes when training starts; generation, scoring and the copy in the background all compute in it."""
    alone = plain_trainer(gpt2_dir, tmp_path / "alone", bf16=True, max_steps=2)
    alone.train()
    trainer = plain_trainer(gpt2_dir, tmp_path / "out", bf16=True, max_steps=2)
    added = add_callbacks(trainer, both, run_dir=tmp_path / "run", callback_mode=mode)
    trainer.train()
    assert not added.failures
    differences = series(tmp_path / "run", "both/difference")
    assert list(differences) == [0, 1, 2]
    assert max(differences.values()) < 2e-3 * 5  # rounding of the cache's shapes; it was 0.1 where the two differed
    (model,) = query(tmp_path / "run", "SELECT value FROM config WHERE key = 'model'")
    assert "float32 with bfloat16 products" in json.loads(model[0])["description"]
    for one, other in zip(alone.model.parameters(), trainer.model.parameters(), strict=True):
        assert torch.equal(one, other)
    if mode == "background":
        inline = plain_trainer(gpt2_dir, tmp_path / "inline", bf16=True, max_steps=2)
        add_callbacks(inline, both, run_dir=tmp_path / "waited")
        inline.train()
        assert series(tmp_path / "waited", "validation/loss") == series(tmp_path / "run", "validation/loss")


async def test_a_forward_that_is_patched_later_is_what_is_scored(gpt2_dir):
    """Soft-capped logits: the head alone does not give them any more."""
    module = AutoModelForCausalLM.from_pretrained(gpt2_dir).eval()
    model = live_model(module, AutoTokenizer.from_pretrained(gpt2_dir))
    thread = VALIDATION[0]
    plain = await model.logprobs(thread)

    def capped(self, *args, **kwargs):
        output = type(self).forward(self, *args, **kwargs)
        output.logits = 0.1 * torch.tanh(output.logits / 0.1)
        return output

    module.forward = types.MethodType(capped, module)
    tokens = await model.tokenize_thread(thread)
    with torch.no_grad():
        logprobs = module(torch.tensor([tokens.token_ids])).logits[0].log_softmax(-1)
    expected = [
        logprobs[position - 1, tokens.token_ids[position]].item()
        for position, weight in enumerate(tokens.token_weights())
        if weight
    ]
    assert await model.logprobs_per_token(tokens) == pytest.approx(expected, abs=1e-5)
    assert await model.logprobs(thread) != pytest.approx(plain, abs=1e-3)
    del module.forward
    assert await model.logprobs(thread) == plain
    await model.dealloc()


def test_what_a_loop_has_made_of_a_module_is_refused_when_the_run_begins(gpt2_dir, tmp_path):
    loop = BareLoop(gpt2_dir)

    def forward(self, pixel_values):
        raise TypeError("no pictures")

    loop.module.forward = types.MethodType(forward, loop.module)
    with pytest.raises(ModelLoadError, match="GPT2LMHeadModel cannot be called with token ids alone"):
        loop.run_synchronously(2, [ValidationLossCallback(VALIDATION, loop.model, 0.5)], tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.filterwarnings("ignore:.*")
def test_parts_that_are_compiled_in_place_keep_the_graphs_of_training(gpt2_dir, tmp_path):
    from torch._dynamo.utils import counters

    def graphs(watched, nested=False):
        torch._dynamo.reset()
        counters.clear()
        loop = BareLoop(gpt2_dir)
        if nested:
            for place, block in enumerate(loop.module.transformer.h):
                loop.module.transformer.h[place] = torch.compile(block, backend="eager")
        else:
            loop.module.compile(backend="eager")
        callbacks = both(loop.model) if watched else []
        runner = loop.run_synchronously(2, callbacks, tmp_path / f"run-{watched}-{nested}")
        assert not runner.failures
        return counters["stats"]["unique_graphs"], loop.weights()

    for nested in (False, True):
        (alone, weights), (watched, weights_watched) = graphs(False, nested), graphs(True, nested)
        assert watched == alone > 0
        assert all(torch.equal(weights[name], weights_watched[name]) for name in weights)


def test_an_autocast_around_a_whole_loop(gpt2_dir, tmp_path):
    """torch keeps its casts of the weights until it is left, so such a loop trains on the first ones; that is said, and
    is not changed."""

    def train(callbacks, name):
        loop = BareLoop(gpt2_dir)
        with torch.autocast("cpu", torch.bfloat16):
            runner = loop.run_synchronously(3, callbacks(loop.model), tmp_path / name)
        assert not runner.failures
        return loop.weights()

    alone, watched = train(lambda _: [], "alone"), train(both, "watched")
    assert all(torch.equal(alone[name], watched[name]) for name in alone)
    warnings = query(tmp_path / "watched", "SELECT message FROM events WHERE message LIKE '%torch.autocast%'")
    assert len(warnings) == 1


def test_models_that_are_not_causal_or_have_no_weights_here(gpt2_dir, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(gpt2_dir)
    config = T5Config(d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, vocab_size=len(tokenizer))
    with pytest.raises(ConfigurationError, match="module is a T5ForConditionalGeneration, which has an encoder"):
        live_model(T5ForConditionalGeneration(config), tokenizer)
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(gpt2_dir))
    with pytest.raises(ConfigurationError, match=r"'transformer.wte.weight' is on the meta device"):
        live_model(empty, tokenizer)
    partitioned = AutoModelForCausalLM.from_pretrained(gpt2_dir)
    partitioned.transformer.ln_f.weight.ds_id = 0  # as DeepSpeed ZeRO-3 marks its parameters
    with pytest.raises(
        ConfigurationError, match=r"are sharded over processes \(its parameter 'transformer.ln_f.weight'"
    ):
        live_model(partitioned, tokenizer)
    with pytest.raises(ConfigurationError, match="tokenizer=None"):
        live_model(AutoModelForCausalLM.from_pretrained(gpt2_dir), None)
    trainer = plain_trainer(gpt2_dir, tmp_path / "out")
    trainer.model = T5ForConditionalGeneration(config)
    with pytest.raises(ConfigurationError, match="has an encoder"):
        add_callbacks(trainer, both)


def test_wrappers_are_opened_however_they_are_nested(gpt2_dir):
    peft = pytest.importorskip("peft")
    tokenizer = AutoTokenizer.from_pretrained(gpt2_dir)
    inner = AutoModelForCausalLM.from_pretrained(gpt2_dir)
    adapted = peft.get_peft_model(inner, peft.LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True))
    wrapped = torch.nn.DataParallel(torch.compile(torch.nn.DataParallel(torch.compile(adapted))))
    assert "GPT2LMHeadModel" in live_model(wrapped, tokenizer).description
    prompts = peft.get_peft_model(
        AutoModelForCausalLM.from_pretrained(gpt2_dir), peft.PromptTuningConfig("CAUSAL_LM", num_virtual_tokens=2)
    )
    with pytest.raises(ConfigurationError, match="learned prompts"):
        live_model(torch.nn.DataParallel(prompts), tokenizer)


async def test_a_snapshot_of_a_live_model_is_not_computed_while_its_module_is_trained(gpt2_dir, tmp_path):
    """It is computed in the same module, which would train on the snapshot meanwhile."""
    loop = BareLoop(gpt2_dir)
    snapshot = await loop.model.snapshot()
    background = ValidationLossCallback(VALIDATION, snapshot, 0.5, mode="background")
    with pytest.raises(ConfigurationError, match=r"mode='background' with 'snapshot-1' of a live model"):
        await loop.run(2, [background], tmp_path / "background")

    class Comparing(ModelCallback):
        async def measure(self, model):
            return await snapshot.logprobs(VALIDATION[0])

        async def report(self, measurement):
            return {"difference": await snapshot.logprobs(VALIDATION[0]) - measurement}

    runner = await loop.run(2, [Comparing(loop.model, 0.5, "comparing", mode="overlap")], tmp_path / "overlap")
    assert len(runner.failures) == 3
    assert all("while other code trains that module" in failure.message for failure in runner.failures)
    waited = await loop.run(2, [Comparing(loop.model, 0.5, "comparing")], tmp_path / "inline")
    assert not waited.failures
    assert set(series(tmp_path / "inline", "comparing/difference").values()) == {0.0}
    await loop.model.dealloc()


async def test_two_live_models_of_one_module_take_turns(gpt2_dir):
    """Each sets evaluation mode for its job, and would restore it while the other computes."""
    loop = BareLoop(gpt2_dir)
    threads = addition_threads(60, offset=50)
    small = {"max_batch_size": 64, "kv_cache_len": 256}
    models = [live_model(loop.module, loop.tokenizer, name=name, **small) for name in ("one", "two")]
    expected = await models[0].logprobs_many(threads)
    for _ in range(3):
        several = await asyncio.gather(*(model.logprobs_many(threads) for model in models))
        assert several == [expected, expected]
        assert all(part.training for part in loop.module.modules())
