"""Where background evaluations run: the same bits as the live model, versions that never mix, and processes that are
killed, hang, are left behind or outlive nobody."""

import asyncio
import os
import pickle
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from support import BareLoop, addition_threads, training_model
from tiny_model import save_model
from transformers import Gemma3TextConfig, LlamaConfig, MambaConfig, Phi3Config, RwkvConfig

from descant import EvaluationPlacement
from descant.engine.jobs import Generate, GenerationRequest, Sampling
from descant.errors import ConfigurationError, DescantError, RequestError, WeightsError, WorkerDied
from descant.models.weight_buffers import WeightBuffers
from descant.models.workers import child_process
from descant.models.workers.worker_thread import WorkerThread

THREADS = addition_threads(6)
PLACES = ("process", "thread")
SMALL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0, 1.2, 1.5, 2.0],
    "long_factor": [1.0, 4.0, 12.0, 32.0],
    "original_max_position_embeddings": 8,
    "factor": 4.0,
}


@pytest.fixture(scope="module")
def llama_dir(tmp_path_factory):
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=False,
    )
    return save_model(tmp_path_factory.mktemp("models") / "llama", config)


@pytest.fixture(scope="module")
def gemma_dir(tmp_path_factory):
    config = Gemma3TextConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        sliding_window=8,
        sliding_window_pattern=2,
        max_position_embeddings=256,
    )
    return save_model(tmp_path_factory.mktemp("models") / "gemma", config)


class started:
    """Weight buffers between start and close."""

    def __init__(self, model, where="process", **options):
        self.buffers = WeightBuffers(model, EvaluationPlacement(where, num_threads=torch.get_num_threads(), **options))

    async def __aenter__(self):
        await self.buffers.start()
        return self.buffers

    async def __aexit__(self, *_):
        await self.buffers.close()


async def answers(model):
    """Everything that a model says, at both temperatures, with the bits of its log-probabilities."""
    said = []
    for temperature in (0.0, 1.0):
        generated = await model.max_gen_len(6).temperature(temperature).generate_tokens_many(THREADS)
        said.append([(thread.token_ids, thread.logprobs) for thread in generated])
    return [*said, await model.logprobs_many(THREADS)]


async def seeded(model):
    """The same with seeds that do not depend on who has asked before."""
    requests = tuple(GenerationRequest((65, 66, 67, 68 + number), seed=number) for number in range(5))
    generated = [
        await model._worker.run(Generate(requests, Sampling(temperature, max_gen_len=6), model.weights))
        for temperature in (0.0, 1.0)
    ]
    return [*generated, await model.logprobs_many(THREADS)]


async def step(model):
    await model.train_language_modelling_many(THREADS)
    await model.optim_step(1e-2)


@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize("family", ["qwen3", "gpt2", "llama", "gemma"])
async def test_the_same_bits_and_versions_do_not_mix(request, family, where):
    async with training_model(request.getfixturevalue(f"{family}_dir")) as model, started(model, where) as buffers:
        before = await seeded(model)
        first = await buffers.take(0)
        await step(model)
        after = await seeded(model)
        second = await buffers.take(1)
        await step(model)
        assert await seeded(second.model(model)) == after
        assert await seeded(first.model(model)) == before
        assert before != after
        assert (await answers(first.model(model)))[2] == before[2]
        again = await buffers.take(1)
        second.release()
        assert await seeded(again.model(model)) == after
        again.release()
        first.release()


@pytest.mark.parametrize(
    ("where", "config"),
    [
        ("process", lambda: MambaConfig(hidden_size=32, num_hidden_layers=2, state_size=8)),
        ("thread", lambda: Phi3Config(**SMALL, rope_parameters=LONGROPE, pad_token_id=0)),
        ("thread", lambda: RwkvConfig(hidden_size=32, attention_hidden_size=32, num_hidden_layers=2)),
    ],
)
async def test_the_same_bits_of_models_that_are_driven_otherwise(tmp_path, where, config):
    """With a state, across the boundary of longrope, one at a time: as the probe of the live model says."""
    async with training_model(save_model(tmp_path / "model", config())) as model, started(model, where) as buffers:
        expected = await seeded(model)
        lease = await buffers.take(0)
        await step(model)
        assert await seeded(lease.model(model)) == expected
        lease.release()


@pytest.mark.parametrize("where", PLACES)
async def test_a_module_that_others_train(gpt2_dir, where):
    loop = BareLoop(gpt2_dir)
    async with started(loop.model, where) as buffers:
        lease = await buffers.take(0)
        before = await seeded(loop.model)
        loop.train_step()
        assert await seeded(lease.model(loop.model)) == before
        assert await seeded(loop.model) != before
        assert loop.module.training
        lease.release()
    await loop.model.dealloc()


async def test_room(qwen3_dir):
    async with training_model(qwen3_dir) as model, started(model, "thread", num_buffers=2) as buffers:
        first, second = await buffers.take(1), await buffers.take(2)
        assert buffers.has_room(1)
        assert buffers.has_room(2)
        assert not buffers.has_room(3)
        with pytest.raises(DescantError, match="no buffer is free for version 3 of 'policy'"):
            await buffers.take(3)

        async def wait_and_take(version):
            await buffers.wait_for_room(version)
            return await buffers.take(version)

        waiting = [asyncio.create_task(wait_and_take(number)) for number in (3, 4)]
        await asyncio.sleep(0)
        shared = await buffers.take(1)
        first.release()
        first.release()
        await asyncio.sleep(0)
        assert not any(task.done() for task in waiting)
        shared.release()
        third = await waiting[0]
        assert not waiting[1].done()
        second.release()
        fourth = await waiting[1]
        third.release()
        fourth.release()


async def test_a_waiter_that_gives_up_when_there_is_room_lets_the_next_one_in(qwen3_dir):
    async with training_model(qwen3_dir) as model, started(model, "thread", num_buffers=1) as buffers:
        lease = await buffers.take(0)
        first, second = (asyncio.create_task(buffers.wait_for_room(number)) for number in (1, 2))
        await asyncio.sleep(0)
        buffers._free(lease._buffer)  # as when it is released
        first.cancel()
        await asyncio.wait_for(second, 60)
        assert first.cancelled()


async def test_a_version_that_is_given_back_is_refused(qwen3_dir):
    async with training_model(qwen3_dir) as model, started(model, "thread") as buffers:
        lease = await buffers.take(0)
        handle = lease.model(model)
        await handle.logprobs_many(THREADS)
        lease.release()
        await buffers.wait_for_room(5)
        with pytest.raises(WeightsError, match=r"the weights 'copy-1-of-step-0' are not held"):
            await handle.logprobs_many(THREADS)


async def test_a_version_that_is_given_back_is_not_taken_again(qwen3_dir):
    """Another user of the same step comes in the moment in which it is being forgotten."""
    async with training_model(qwen3_dir) as model, started(model, "thread", num_buffers=1) as buffers:
        expected = await seeded(model)
        (await buffers.take(0)).release()
        assert not buffers.has_room(0)
        await buffers.wait_for_room(0)
        again = await buffers.take(0)
        assert await seeded(again.model(model)) == expected
        assert not buffers.has_room(1)
        again.release()


@pytest.mark.skipif(sys.platform != "linux", reason="the system says what is mapped")
async def test_its_memory_is_free_as_soon_as_it_is_closed(qwen3_dir):
    async with training_model(qwen3_dir) as model:
        before = num_mapped_files()
        async with started(model, "thread", num_buffers=2) as buffers:
            assert num_mapped_files() == before + 2
            lease = await buffers.take(0)
            await lease.model(model).logprobs_many(THREADS)
            lease.release()
        assert num_mapped_files() == before


async def test_weights_that_are_being_used_are_not_freed(qwen3_dir):
    """A generation that goes on when its lease is released ends before its memory is written again."""
    async with training_model(qwen3_dir) as model, started(model, "thread", num_buffers=1) as buffers:
        lease = await buffers.take(0)
        alone = await lease.model(model).max_gen_len(100).temperature(0.0).generate_tokens(THREADS[0])
        loop = buffers._evaluator._loop
        before = loop._current  # which may be ending still
        running = asyncio.create_task(
            lease.model(model).max_gen_len(100).temperature(0.0).generate_tokens_many(THREADS[:1])
        )
        while not running.done() and (loop._current in (None, before) or not isinstance(loop._current.job, Generate)):
            await asyncio.sleep(0)
        lease.release()
        await step(model)
        await buffers.wait_for_room(1)
        current = loop._current  # the job that has freed it, perhaps
        assert running.done() or current is None or not isinstance(current.job, Generate)
        (await buffers.take(1)).release()
        assert (await running)[0].logprobs == alone.logprobs


async def test_saved_from_there_it_is_the_same(qwen3_dir, tmp_path):
    async with training_model(qwen3_dir) as model, started(model) as buffers:
        lease = await buffers.take(0)
        await model.save(tmp_path / "live")
        await step(model)
        await lease.model(model).save(tmp_path / "copy")
        live, copy = (load_file(tmp_path / name / "model.safetensors") for name in ("live", "copy"))
        assert live.keys() == copy.keys()
        assert all(torch.equal(live[name], copy[name]) for name in live)
        assert {path.name for path in (tmp_path / "live").iterdir()} == {p.name for p in (tmp_path / "copy").iterdir()}
        lease.release()
    async with training_model(tmp_path / "copy") as model:
        await model.generate(THREADS[0])


# Processes that die, hang, and end


async def test_a_killed_process(qwen3_dir):
    async with training_model(qwen3_dir) as model, started(model) as buffers:
        lease = await buffers.take(0)
        handle = lease.model(model)
        expected = await seeded(handle)
        pid = buffers._evaluator.pid
        running = asyncio.create_task(handle.max_gen_len(200).generate_many(addition_threads(64)))
        await asyncio.to_thread(wait_until_busy, buffers._evaluator)
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(WorkerDied, match=rf"the process {pid} .*'policy.*was killed by SIGKILL \(out of memory"):
            await running
        assert await seeded(handle) == expected  # in another process, which has these weights, too
        assert buffers._evaluator.pid != pid
        lease.release()
        await buffers.wait_for_room(1)


async def test_a_frozen_process(qwen3_dir, monkeypatch):
    """While it starts, and while it answers, attaches and detaches; and it can be closed."""
    async with training_model(qwen3_dir) as model, started(model, num_buffers=3) as buffers:
        place = buffers._evaluator
        first, second = await buffers.take(0), await buffers.take(1)
        freeze(place)
        with pytest.raises(WorkerDied, match=rf"the process {place.pid} .*'policy.*gave no sign of life for"):
            await first.turn()
        await first.turn()
        handle = first.model(model)
        expected = await seeded(handle)
        running = asyncio.create_task(handle.logprobs_many(THREADS * 100))
        await asyncio.to_thread(wait_until_busy, place)
        freeze(place)
        second.release()
        third = await buffers.take(2)
        assert not buffers.has_room(3)
        await buffers.wait_for_room(3)
        with pytest.raises(WorkerDied, match="gave no sign of life"):
            await running
        assert await seeded(third.model(model)) == expected
        monkeypatch.setattr(child_process, "_CLOSE_S", 0.01)
        freeze(place)
    assert place._child.process.returncode == -signal.SIGKILL


def freeze(place):
    """Stop its process, and have it be given up soon."""
    place._child._max_silence_s = 1.0
    os.kill(place.pid, signal.SIGSTOP)


async def test_a_job_that_is_cancelled_stops_and_one_that_hangs_is_killed(qwen3_dir, monkeypatch):
    async with training_model(qwen3_dir) as model, started(model) as buffers:
        lease = await buffers.take(0)
        handle = lease.model(model)
        expected = await seeded(handle)
        place = buffers._evaluator
        pid = place.pid
        for is_stuck in (False, True):
            running = asyncio.create_task(handle.max_gen_len(240).min_gen_len(240).generate_many(addition_threads(200)))
            await asyncio.to_thread(wait_until_busy, place)
            (ticket,) = place._child._pending.values()
            if is_stuck:
                monkeypatch.setattr(child_process, "ACKNOWLEDGE_S", 0.01)
                os.kill(pid, signal.SIGSTOP)
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
            error = await asyncio.to_thread(ticket.future.exception, 60)
            assert isinstance(error, WorkerDied if is_stuck else DescantError)
            assert ("cancelled" in str(error)) is not is_stuck
            assert await seeded(handle) == expected
            assert ("did not stop its job within 0.01 s" in str(error)) is is_stuck
            assert (place.pid == pid) is not is_stuck
        lease.release()


async def test_an_answer_that_cannot_be_read_is_a_failure(qwen3_dir, monkeypatch):
    def broken(message):
        raise ValueError("unreadable")

    async with training_model(qwen3_dir) as model, started(model) as buffers:
        lease = await buffers.take(0)
        await lease.turn()
        expected = await seeded(lease.model(model))
        monkeypatch.setattr(child_process, "pickle", SimpleNamespace(dumps=pickle.dumps, loads=broken))
        with pytest.raises(ValueError, match="unreadable"):
            await asyncio.wait_for(seeded(lease.model(model)), 60)
        monkeypatch.undo()
        assert await seeded(lease.model(model)) == expected
        lease.release()


async def test_a_place_that_does_not_start_says_why(qwen3_dir):
    async with training_model(qwen3_dir) as model:
        buffers = WeightBuffers(model, EvaluationPlacement("thread", num_buffers=1))
        await buffers.start()
        buffers._evaluator = WorkerThread("elsewhere", lambda: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            await buffers._evaluator.ready()
        with pytest.raises(DescantError, match=r"'elsewhere': division by zero"):
            await buffers.take(0)
        assert buffers.has_room(0)
        await buffers.close()


async def test_what_jobs_raise_comes_back(qwen3_dir):
    async with training_model(qwen3_dir) as model, started(model) as buffers:
        lease = await buffers.take(0)
        handle = lease.model(model)
        too_long = THREADS[0].user("x" * 1000)
        (error,) = await handle.generate_many([too_long], return_exceptions=True)
        (live_error,) = await model.generate_many([too_long], return_exceptions=True)
        assert isinstance(error, RequestError)
        assert (type(error), str(error)) == (type(live_error), str(live_error))
        lease.release()


async def test_nothing_stays_behind(qwen3_dir):
    async with training_model(qwen3_dir) as model:
        await model.generate_many(THREADS[:1])
        async with started(model, "thread") as buffers:  # threads of pools that stay are there now
            (await buffers.take(0)).release()
        files, threads = open_files(), num_threads()
        for leave in ("close", "kill"):
            async with started(model) as buffers:
                lease = await buffers.take(0)
                await lease.model(model).logprobs_many(THREADS)
                process = buffers._evaluator._child.process
                if leave == "kill":
                    buffers.kill()
            assert process.returncode is not None
        await model.generate_many(THREADS[:1])  # after the finalizers' jobs
        assert open_files() <= files
        assert num_threads() <= threads


@pytest.mark.parametrize("is_frozen", [False, True])
async def test_a_process_ends_with_the_one_that_started_it(qwen3_dir, is_frozen):
    script = """
import asyncio, os, signal, sys
from descant import EvaluationPlacement, ModelBuilder
from descant.models.weight_buffers import WeightBuffers

async def main():
    model = await ModelBuilder(sys.argv[1]).spawn_train("policy", max_batch_size=4096)
    buffers = WeightBuffers(model, EvaluationPlacement(num_threads=1))
    await buffers.start()
    await (await buffers.take(0)).turn()
    print(buffers._evaluator.pid, flush=True)
    if sys.argv[2] == "True":
        os.kill(buffers._evaluator.pid, signal.SIGSTOP)
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""
    command = [sys.executable, "-c", script, qwen3_dir, str(is_frozen)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == -signal.SIGKILL
    pid = int(done.stdout)
    await asyncio.to_thread(wait_until_gone, pid)


# What cannot be evaluated elsewhere


async def test_layers_that_a_configuration_does_not_describe(qwen3_dir):
    loop = BareLoop(qwen3_dir)
    loop.module.model.layers[0].extra = torch.nn.Linear(2, 2)
    for where in PLACES:
        buffers = WeightBuffers(loop.model, EvaluationPlacement(where))
        with pytest.raises(ConfigurationError, match=r"missing there.*layers.0.extra.*mode='overlap'|2 tensors are"):
            await buffers.start()
        await buffers.close()


async def test_layers_that_only_look_the_same(qwen3_dir):
    class Squared(torch.nn.Linear):
        def forward(self, x):
            return super().forward(x) ** 2

    loop = BareLoop(qwen3_dir)
    loop.module.model.layers[1].mlp.up_proj.__class__ = Squared
    buffers = WeightBuffers(loop.model, EvaluationPlacement("thread"))
    with pytest.raises(ConfigurationError, match=r"'model.layers.1.mlp.up_proj' is a Squared, and its conf.* a Linear"):
        await buffers.start()


async def test_a_forward_that_was_replaced(qwen3_dir):
    loop = BareLoop(qwen3_dir)
    forward = loop.module.forward
    loop.module.forward = forward  # which is what it was
    async with started(loop.model, "thread"):
        pass

    def in_bfloat16(*args, **kwargs):
        with torch.autocast("cpu", torch.bfloat16):
            return forward(*args, **kwargs)

    loop.module.forward = in_bfloat16  # which the other engine computes in, too
    async with started(loop.model, "thread") as buffers:
        lease = await buffers.take(0)
        assert await seeded(lease.model(loop.model)) == await seeded(loop.model)

    def halved(*args, **kwargs):
        output = forward(*args, **kwargs)
        output.logits = output.logits / 2
        return output

    loop.module.forward = halved
    buffers = WeightBuffers(loop.model, EvaluationPlacement("thread"))
    with pytest.raises(ConfigurationError, match=r"something has changed what it computes"):
        await buffers.start()


async def test_settings_of_the_process_are_left_alone(qwen3_dir):
    loop = BareLoop(qwen3_dir)
    for where in PLACES:
        async with started(loop.model, where) as buffers:
            lease = await buffers.take(0)
            expected = await seeded(lease.model(loop.model))
            torch._C._set_mkldnn_enabled(False)  # as training of others may
            try:
                if where == "thread":
                    with pytest.raises(DescantError, match=r"a setting of torch .* is False now and was True"):
                        await lease.model(loop.model).logprobs_many(THREADS)
                else:
                    assert await seeded(lease.model(loop.model)) == expected
                assert not torch._C._get_mkldnn_enabled()
            finally:
                torch._C._set_mkldnn_enabled(True)
            lease.release()


async def test_layers_that_change_under_way(qwen3_dir):
    loop = BareLoop(qwen3_dir)
    async with started(loop.model, "thread") as buffers:
        loop.module.lm_head = torch.nn.Linear(32, loop.module.config.vocab_size, bias=True)
        with pytest.raises(WeightsError, match=r"the layers of the model have changed since the run began"):
            await buffers.take(0)
        assert buffers.has_room(0)


async def test_classes_that_another_process_cannot_import(qwen3_dir):
    loop = BareLoop(qwen3_dir)
    loop.module.__class__ = type("Mine", (type(loop.module),), {"__module__": "__main__"})
    buffers = WeightBuffers(loop.model, EvaluationPlacement())
    with pytest.raises(
        ConfigurationError, match=r"__main__.Mine cannot be evaluated in a process of its own.*'thread'"
    ):
        await buffers.start()
    async with started(loop.model, "thread") as buffers:
        lease = await buffers.take(0)
        assert await seeded(lease.model(loop.model)) == await seeded(loop.model)
        lease.release()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"where": "moon"}, r"where='moon' must be 'process' or 'thread'"),
        ({"num_threads": 0}, r"num_threads=0"),
        ({"num_buffers": 0}, r"num_buffers=0"),
        ({"device": 1}, r"device=1 must be a name"),
    ],
)
def test_placements_that_cannot_work(options, message):
    with pytest.raises(ConfigurationError, match=message):
        EvaluationPlacement(**options)


def wait_until_busy(place):
    """Until the process has used the processor for its jobs: it is in the middle of them."""
    while not place._child._pending:
        threading.Event().wait(0.001)
    used = cpu_ticks(place.pid)
    while place._child._pending and cpu_ticks(place.pid) < used + 5:
        threading.Event().wait(0.01)
    assert place._child._pending


def cpu_ticks(pid):
    return sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]))


def wait_until_gone(pid):
    while Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2][:3]:
        threading.Event().wait(0.05)


def num_mapped_files():
    """Weight files that take memory of this process."""
    return Path("/proc/self/maps").read_text().count("descant-weights")


def num_threads():
    """Threads of ours; pools of Python's may grow."""
    return sum(thread.name.startswith("descant") for thread in threading.enumerate())


def open_files():
    return len(os.listdir("/proc/self/fd"))


async def test_new_threads_have_the_threads_of_torch_that_they_had(qwen3_dir):
    def in_a_new_thread():
        found = []
        thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        return found[0]

    before = in_a_new_thread()
    async with training_model(qwen3_dir) as model:
        buffers = WeightBuffers(model, EvaluationPlacement("thread", num_threads=3))
        await buffers.start()
        lease = await buffers.take(0)
        await lease.model(model).logprobs_many(THREADS)
        assert in_a_new_thread() == before
        lease.release()
        await buffers.close()
