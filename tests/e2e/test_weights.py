"""Which weights a handle sees: live, reference, snapshots; saved and loaded."""

import asyncio
import gc
import json

import pytest
import torch
from support import CountingCallback, addition_threads, ragged_threads, training_model, weights_of
from tiny_model import save_model
from transformers import AutoModelForCausalLM, Qwen3Config

from descant import SFT, ModelBuilder
from descant.engine.jobs import LIVE, REFERENCE
from descant.errors import DescantError, ModelLoadError, ObserverError, WeightsError

THREADS = ragged_threads(8)
PROMPTS = [thread.without_completion() for thread in addition_threads(6)]


def store_of(model):
    return model._worker._loop._engine.weights


async def train(model, num_steps=1):
    for _ in range(num_steps):
        await model.train_language_modelling_many(THREADS)
        await model.optim_step(lr=1e-2)


async def test_a_snapshot_stays_what_it_was_and_the_live_weights_go_on(model_dir):
    async with training_model(model_dir) as model:
        await train(model)
        before = await model.logprobs_many(THREADS)
        snapshot = await model.snapshot()
        assert await snapshot.logprobs_many(THREADS) == before
        await train(model)
        after = await model.logprobs_many(THREADS)
        assert after != before
        assert await snapshot.logprobs_many(THREADS) == before
        assert await model.logprobs_many(THREADS) == after
        assert (model.weights, snapshot.weights) == ("live", "snapshot-1")
        assert "snapshot-1 weights" in repr(snapshot)
        assert not hasattr(snapshot, "optim_step")


async def test_training_is_the_same_with_snapshots_generating_beside_it(gpt2_dir):
    """Training jobs pass within the generation of a snapshot: each sees its own weights."""
    async with training_model(gpt2_dir) as model:
        await train(model, 3)
        alone = weights_of(model)
    async with training_model(gpt2_dir) as model:
        snapshot = await model.snapshot()
        expected = await snapshot.max_gen_len(100).min_gen_len(100).generate_many(PROMPTS)
        again = await model.snapshot()
        beside = asyncio.create_task(again.max_gen_len(100).min_gen_len(100).generate_many(PROMPTS))
        while model._worker._loop._current is None:
            await asyncio.sleep(0)
        await train(model, 3)
        assert not beside.done(), "the training did not pass within the generation"
        assert await beside == expected
        trained = weights_of(model)
    for name, tensor in alone.items():
        assert torch.equal(trained[name], tensor), name


async def test_snapshots_between_two_updates_share_a_copy_that_goes_with_the_last(qwen3_dir):
    async with training_model(qwen3_dir) as model:
        store = store_of(model)
        first, second = await model.snapshot(), await model.snapshot()
        assert first.weights == second.weights
        assert len(store._copies) == 1
        await first.dealloc()
        await first.dealloc()  # twice is harmless
        assert len(store._copies) == 1
        assert len(await second.logprobs_many(THREADS)) == len(THREADS)
        third = (await second.snapshot()).temperature(0.5)  # of a snapshot: the same weights
        del second
        gc.collect()
        assert len(await third.logprobs_many(THREADS)) == len(THREADS)
        await third.dealloc()
        assert not store._copies
        with pytest.raises(WeightsError, match=r"'snapshot-0' are not held \(any more\); there are live"):
            await third.logprobs_many(THREADS)
        await model.generate_many(PROMPTS[:1])  # the model goes on


async def test_a_forgotten_snapshot_is_freed_before_the_next_job(qwen3_dir):
    async with training_model(qwen3_dir) as model:
        view = (await model.snapshot()).temperature(0.0)
        await train(model)
        assert len(store_of(model)._copies) == 1
        del view
        gc.collect()
        await model.logprobs_many(THREADS)
        assert not store_of(model)._copies


async def test_the_reference_is_what_the_model_was_spawned_with(qwen3_dir):
    async with training_model(qwen3_dir) as model:
        expected = await model.logprobs_many(THREADS)
        reference = await model.reference()
        await train(model, 2)
        assert await reference.logprobs_many(THREADS) == expected
        assert reference.weights == REFERENCE
        await reference.dealloc()  # it belongs to the model
        again = await model.reference()
        assert await again.logprobs_many(THREADS) == expected
        assert list(store_of(model)._copies) == [REFERENCE]
    async with training_model(qwen3_dir) as model:
        await train(model)
        with pytest.raises(WeightsError, match=r"changed 1 times .*call reference\(\) before the first optim_step"):
            await model.reference()


async def test_a_callback_may_take_snapshots_and_changes_nothing(gpt2_dir, tmp_path):
    class Remembers(CountingCallback):
        async def callback(self, current_percentage):
            self.snapshots = [*getattr(self, "snapshots", []), await model.snapshot()]
            return await super().callback(current_percentage)

    weights = {}
    for callbacks in ([], [Remembers(0.25)]):
        async with training_model(gpt2_dir) as model:
            await SFT(dataset=THREADS, model=model, samples_per_batch=2, callbacks=callbacks, run_dir=tmp_path).run()
            weights[bool(callbacks)] = weights_of(model)
            if callbacks:
                losses = [sum(await s.logprobs_many(THREADS)) for s in callbacks[0].snapshots]
                assert len(set(losses)) == 5
                assert losses[-1] == sum(await model.logprobs_many(THREADS))
        tmp_path /= "again"
    assert all(torch.equal(weights[True][name], tensor) for name, tensor in weights[False].items())


async def test_a_snapshot_is_saved_as_itself(qwen3_dir, tmp_path):
    async with training_model(qwen3_dir) as model:
        snapshot = await model.snapshot()
        await train(model)
        path = await snapshot.save(tmp_path / "earlier")
        original = AutoModelForCausalLM.from_pretrained(qwen3_dir)
        saved = AutoModelForCausalLM.from_pretrained(path)
        assert all(torch.equal(a, b) for a, b in zip(saved.parameters(), original.parameters(), strict=True))
        assert (await model.save(tmp_path / "later")).is_dir()
        later = AutoModelForCausalLM.from_pretrained(tmp_path / "later")
        assert not torch.equal(next(later.parameters()), next(original.parameters()))


async def test_a_large_model_is_saved_in_several_files_and_loads_again(qwen3_dir, tmp_path):
    async with training_model(qwen3_dir) as model:
        await train(model)
        expected = await model.logprobs_many(THREADS)
        path = await model.save(tmp_path / "sharded", max_shard_bytes=20_000)
    files = sorted(path.glob("*.safetensors"))
    index = json.loads((path / "model.safetensors.index.json").read_text())
    assert len(files) > 2
    assert set(index["weight_map"].values()) == {file.name for file in files}
    loaded = await ModelBuilder(path).spawn_inference("again")
    assert await loaded.logprobs_many(THREADS) == expected
    async with training_model(qwen3_dir) as model:
        await model.load(path)
        assert await model.logprobs_many(THREADS) == expected


async def test_load_replaces_the_weights_and_begins_anew(qwen3_dir, tmp_path):
    async with training_model(qwen3_dir) as model:
        reference = await model.reference()
        start = await model.logprobs_many(THREADS)
        await train(model, 2)
        once = weights_of(model)
        await model.train_language_modelling_many(THREADS)  # a gradient that must not survive
        await model.load(qwen3_dir)
        assert await model.logprobs_many(THREADS) == start
        await train(model, 2)
        assert all(torch.equal(once[name], tensor) for name, tensor in weights_of(model).items())
        assert await reference.logprobs_many(THREADS) == start


async def test_weights_that_do_not_fit_are_refused_with_what_differs(qwen3_dir, gpt2_dir, tmp_path):
    wider = save_model(
        tmp_path / "wider",
        Qwen3Config(
            hidden_size=32, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
            head_dim=8, max_position_embeddings=256, tie_word_embeddings=True,
        ),
    )  # fmt: skip
    async with training_model(qwen3_dir) as model:
        before = weights_of(model)
        with pytest.raises(WeightsError) as error:
            await model.load(wider)
        message = str(error.value)
        assert (
            f"{str(wider)!r} (Qwen3ForCausalLM) do not fit the model (Qwen3ForCausalLM), which is as it was" in message
        )
        assert "6 of another shape: model.layers.0.mlp.gate_proj.weight [96, 32] instead of [64, 32], " in message
        assert "11 unknown to the model: model.layers.2.self_attn.q_proj.weight, " in message
        assert "missing" not in message
        with pytest.raises(WeightsError, match=r"GPT2LMHeadModel"):
            await model.load(gpt2_dir)
        with pytest.raises(ModelLoadError, match="there is no model directory"):
            await model.load(tmp_path / "nowhere")
        assert all(torch.equal(before[name], tensor) for name, tensor in weights_of(model).items())


async def test_a_callback_may_not_load(qwen3_dir, tmp_path):
    class Loads(CountingCallback):
        async def callback(self, current_percentage):
            with pytest.raises(ObserverError, match="load"):
                await model.load(qwen3_dir)
            return await super().callback(current_percentage)

    async with training_model(qwen3_dir) as model:
        callback = Loads()
        await SFT(dataset=THREADS, model=model, callbacks=[callback], run_dir=tmp_path).run()
        assert callback.steps
        assert model.weights == LIVE


async def test_a_snapshot_whose_caller_was_cancelled_is_not_lost_in_the_engine(qwen3_dir):
    async with training_model(qwen3_dir) as model:
        for turns in range(6):
            await train(model)
            task = asyncio.create_task(model.snapshot())
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            if not task.cancelled():
                await task.result().dealloc()
            del task
            await model.logprobs_many(THREADS)  # the snapshot has been taken, if it was asked for
            gc.collect()
            await model.logprobs_many(THREADS)
            assert not store_of(model)._copies


async def test_a_snapshot_outlives_its_model_in_peace(qwen3_dir):
    async with training_model(qwen3_dir) as model:
        snapshot = await model.snapshot()
    await snapshot.dealloc()
    with pytest.raises(DescantError, match="was closed"):
        await snapshot.logprobs_many(THREADS)
