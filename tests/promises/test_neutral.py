"""Neutral: callbacks that observe leave training bit-identical, also when they fail, block, or reseed every
generator. On a model with dropout, because that is where a borrowed random number would show."""

import asyncio
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from support import BareLoop, CountingCallback, LengthGrader, addition_threads, query, training_model, weights_of
from trackers import TensorBoardPlace, TrackioPlace, WandbPlace, need

from descant import (
    SFT,
    CallbackRunner,
    GenerateSamplesCallback,
    GraderEvalCallback,
    ModelCallback,
    RecipeCallback,
    ValidationLossCallback,
)

NUM_SAMPLES = 48


class Vandal(RecipeCallback):
    """Takes and reseeds every global generator, changes defaults, and fails every other time."""

    def __init__(self, model):
        super().__init__(0.05, "vandal")
        self.model = model
        self.calls = 0

    async def callback(self, current_percentage):
        self.calls += 1
        random.seed(self.calls)
        np.random.seed(self.calls)
        torch.manual_seed(self.calls)
        torch.rand(1000)
        await self.model.max_gen_len(6).generate_many(addition_threads(2))
        self.lingering = asyncio.create_task(self.go_on_drawing())
        if self.calls % 2:
            raise RuntimeError("on purpose")
        return {"draw": random.random()}

    async def go_on_drawing(self):
        while True:
            torch.manual_seed(random.getrandbits(31))
            torch.randperm(10)
            await asyncio.sleep(0)

    async def on_end(self, run):
        self.lingering.cancel()


class Blocker(RecipeCallback):
    """Does synchronous work on the event loop."""

    async def callback(self, current_percentage):
        time.sleep(0.01)
        return {"blocked": 1}


class ThreadsAndDtypes(RecipeCallback):
    """Changes settings of the whole process and forgets to change them back."""

    async def callback(self, current_percentage):
        torch.set_grad_enabled(False)
        torch.set_num_threads(2)
        torch.set_default_dtype(torch.float64)
        torch.set_float32_matmul_precision("medium")
        torch.backends.cuda.enable_flash_sdp(False)
        return {}

    async def on_end(self, run):
        torch.set_grad_enabled(True)
        torch.set_num_threads(1)
        torch.set_default_dtype(torch.float32)
        torch.set_float32_matmul_precision("highest")
        torch.backends.cuda.enable_flash_sdp(True)


def built_ins(model, frequency):
    validation = addition_threads(6, offset=50)
    return [
        GraderEvalCallback(validation, model, LengthGrader(), frequency, max_gen_len=6, temperature=1.0),
        ValidationLossCallback(validation, model, frequency),
        GenerateSamplesCallback(validation, model, frequency, max_gen_len=6),
    ]


SETS = {
    "built-ins at every 10 %": lambda model: built_ins(model, 0.1),
    "built-ins at every step": lambda model: built_ins(model, 0.01),
    "one that reseeds and fails": lambda model: [Vandal(model)],
    "one that blocks": lambda model: [Blocker(0.25, "blocker")],
    "one that changes the process": lambda model: [ThreadsAndDtypes(0.25)],
    "all at once": lambda model: [*built_ins(model, 0.2), Vandal(model), CountingCallback()],
}


async def train(path, run_dir, make_callbacks, logger=None):
    async with training_model(path, max_batch_size=500) as model:
        callbacks = make_callbacks(model)
        result = await SFT(
            dataset=addition_threads(NUM_SAMPLES),
            model=model,
            lr=1e-2,
            samples_per_batch=8,
            epochs=2,
            callbacks=callbacks,
            run_dir=run_dir,
            logger=logger,
        ).run()
        return weights_of(model), result


@pytest.mark.parametrize("observers", SETS)
async def test_weights_are_bit_identical_with_and_without(gpt2_dir, tmp_path, observers):
    alone, _ = await train(gpt2_dir, tmp_path / "alone", lambda model: [])
    watched, result = await train(gpt2_dir, tmp_path / "watched", SETS[observers])
    assert result.callback_seconds
    different = [name for name in alone if not torch.equal(alone[name], watched[name])]
    assert not different, f"{len(different)} of {len(alone)} parameters differ, first {different[0]}"


@pytest.mark.parametrize("is_async", [True, False], ids=["async", "synchronous"])
@pytest.mark.parametrize("observers", SETS)
async def test_in_a_bare_loop_that_draws_from_the_global_generator(gpt2_dir, tmp_path, observers, is_async):
    weights = []
    for name in ("alone", "watched"):
        loop = BareLoop(gpt2_dir)
        callbacks = SETS[observers](loop.model) if name == "watched" else []
        if is_async:
            runner = await loop.run(8, callbacks, tmp_path / name)
        else:
            runner = loop.run_synchronously(8, callbacks, tmp_path / name)
        weights.append(loop.weights())
        await loop.model.dealloc()
    assert sum(cost.num_runs for cost in runner.costs) >= 3
    different = [name for name in weights[0] if not torch.equal(weights[0][name], weights[1][name])]
    assert not different, f"{len(different)} of {len(weights[0])} parameters differ, first {different[0]}"


@pytest.fixture
def trackers(tmp_path, monkeypatch):
    """Trackers that are written to on threads of their own while training goes on."""
    for package in ("tensorboard", "trackio", "wandb"):
        need(package)
    monkeypatch.setenv("WANDB_MODE", "offline")
    places = [place(tmp_path / "places") for place in (TensorBoardPlace, TrackioPlace, WandbPlace)]
    yield [place.logger() for place in places]
    assert [len(place.numbers("vandal/draw")) >= 3 for place in places[:2]] == [True, True]  # they did have work


async def test_trackers_leave_the_weights_alone(gpt2_dir, tmp_path, trackers):
    alone, _ = await train(gpt2_dir, tmp_path / "alone", lambda model: [])
    watched, _ = await train(gpt2_dir, tmp_path / "watched", SETS["all at once"], trackers)
    different = [name for name in alone if not torch.equal(alone[name], watched[name])]
    assert not different, f"{len(different)} of {len(alone)} parameters differ, first {different[0]}"


class DrawingLoop(BareLoop):
    """Draws from Python's and numpy's generators, too."""

    def train_step(self):
        for group in self.optimizer.param_groups:
            group["lr"] = 1e-2 * (random.random() + np.random.rand())
        return super().train_step()


@pytest.mark.parametrize("is_async", [True, False], ids=["async", "synchronous"])
async def test_trackers_in_a_bare_loop_that_draws_from_every_generator(gpt2_dir, tmp_path, trackers, is_async):
    weights = []
    for name in ("alone", "watched"):
        random.seed(0), np.random.seed(0)
        loop = DrawingLoop(gpt2_dir)
        callbacks = SETS["all at once"](loop.model) if name == "watched" else []
        logger = trackers if name == "watched" else None
        if is_async:
            await loop.run(8, callbacks, tmp_path / name, logger=logger)
        else:
            loop.run_synchronously(8, callbacks, tmp_path / name, logger=logger)
        weights.append(loop.weights())
        await loop.model.dealloc()
    different = [name for name in weights[0] if not torch.equal(weights[0][name], weights[1][name])]
    assert not different, f"{len(different)} of {len(weights[0])} parameters differ, first {different[0]}"


async def test_in_a_bare_loop_modes_and_gradients_are_left_alone(gpt2_dir, tmp_path):
    loop = BareLoop(gpt2_dir)
    loop.module.transformer.h[0].eval()  # frozen parts may have another mode
    loop.module(input_ids=loop.ids, labels=loop.ids).loss.backward()
    modes = {name: module.training for name, module in loop.module.named_modules()}
    gradients = [parameter.grad.clone() for parameter in loop.module.parameters()]
    async with CallbackRunner(built_ins(loop.model, 0.5), num_steps=2, run_dir=tmp_path) as runner:
        await runner.after_step(1)
    assert {name: module.training for name, module in loop.module.named_modules()} == modes
    for before, parameter in zip(gradients, loop.module.parameters(), strict=True):
        assert torch.equal(before, parameter.grad)
        assert parameter.requires_grad
    await loop.model.dealloc()


async def test_the_comparison_can_fail(gpt2_dir, tmp_path):
    """Another run seed gives other dropout, so equal weights above are no accident."""
    alone, _ = await train(gpt2_dir, tmp_path / "alone", lambda model: [])
    async with training_model(gpt2_dir, max_batch_size=500) as model:
        await SFT(
            dataset=addition_threads(NUM_SAMPLES), model=model, lr=1e-2, samples_per_batch=8, epochs=2, seed=1,
            run_dir=tmp_path / "other",
        ).run()  # fmt: skip
        other = weights_of(model)
    assert any(not torch.equal(alone[name], other[name]) for name in alone)


class Switches(RecipeCallback):
    """Leaves every switch of torch that it can find in another position."""

    async def callback(self, current_percentage):
        torch.set_autocast_enabled("cpu", True)
        torch.set_autocast_dtype("cpu", torch.float16)
        torch.backends.mkldnn.set_flags(False)
        torch.backends.cudnn.benchmark = True
        torch.set_default_device("meta")
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.mkldnn.matmul.fp32_precision = "bf16"  # torch refuses to read the older setting from here on
        torch.backends.cuda.matmul.fp32_precision = "tf32"
        return {"switched": 1}


def switches():
    return (
        torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu"), torch._C._get_mkldnn_enabled(),
        torch.backends.cudnn.benchmark, torch.get_default_device(), torch.get_deterministic_debug_mode(),
        torch.backends.mkldnn.matmul.fp32_precision, torch.backends.cuda.matmul.fp32_precision,
        torch.get_float32_matmul_precision(),
    )  # fmt: skip


async def test_switches_of_torch_are_where_they_were(gpt2_dir, tmp_path):
    before = switches()
    loop = BareLoop(gpt2_dir)
    runner = await loop.run(4, [Switches(0.25)], tmp_path)
    assert runner.failures == []
    assert switches() == before
    await loop.model.dealloc()


class Modes(ModelCallback):
    """Holds modes of torch over awaits, in the task of its call or in one that it starts."""

    def __init__(self, model, in_a_task):
        super().__init__(model, 0.25, "modes", mode="overlap")
        self.in_a_task = in_a_task

    async def measure(self, model):
        return await model.logprobs_many(addition_threads(1))

    async def report(self, measurement):
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            torch.set_default_dtype(torch.float64)
            await (asyncio.create_task(self.wait()) if self.in_a_task else self.wait())
            found = torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")  # the dtype is all threads'
            torch.set_default_dtype(torch.float32)
        return {"found": str(found)}

    async def wait(self):
        with torch.inference_mode(), torch.no_grad():
            total = torch.zeros(2)
            for _ in range(60):  # more turns than there are after a step
                await asyncio.sleep(0)
                if not self.in_a_task:
                    total += 1  # which only inference mode allows


@pytest.mark.parametrize("in_a_task", [False, True])
async def test_modes_of_torch_that_a_report_holds_over_an_await(gpt2_dir, tmp_path, in_a_task):
    weights = []
    for name in ("alone", "watched"):
        loop = BareLoop(gpt2_dir)
        callbacks = [Modes(loop.model, in_a_task)] if name == "watched" else []
        runner = await loop.run(8, callbacks, tmp_path / name)
        assert runner.failures == []
        weights.append(loop.weights())
        await loop.model.dealloc()
    assert not torch.is_inference_mode_enabled()
    assert torch.is_grad_enabled()
    rows = query(tmp_path / "watched", "SELECT step, text FROM metrics WHERE key = 'modes/found' ORDER BY step")
    assert rows == [(step, "(True, True)") for step in (0, 2, 4, 6, 8)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


class Changes(RecipeCallback):
    """Leaves defaults of torch changed while it waits, and the generators drawn from."""

    async def callback(self, current_percentage):
        torch.set_default_dtype(torch.float64)
        torch.set_grad_enabled(False)
        torch.backends.cuda.enable_flash_sdp(False)
        random.seed(1)
        torch.manual_seed(1)
        for _ in range(10):
            await asyncio.sleep(0.001)
        return {}


async def test_two_trainers_at_once_leave_what_they_found(gpt2_dir, tmp_path):
    """Their callbacks overlap without being nested."""

    def found():
        flash = torch.backends.cuda.flash_sdp_enabled()
        return torch.get_default_dtype(), torch.is_grad_enabled(), flash, torch.random.initial_seed(), random.random()

    async with training_model(gpt2_dir) as one, training_model(gpt2_dir) as other:
        trainers = [
            SFT(
                dataset=addition_threads(12 + number), model=model, samples_per_batch=2,
                callbacks=[Changes(0.25 + number / 50, "changes")], run_dir=tmp_path / str(number),
            )
            for number, model in enumerate((one, other))
        ]  # fmt: skip
        random.seed(7)
        before = found()
        random.seed(7)
        results = await asyncio.gather(*(trainer.run() for trainer in trainers))
        assert found() == before
    assert [result.callback_failures for result in results] == [[], []]


PRECISIONS = """
import torch
torch.backends.fp32_precision = "ieee"
torch.backends.mkldnn.matmul.fp32_precision = "bf16"  # as TrainingArguments(tf32=True) does for CUDA
import asyncio, sys
from support import BareLoop, CountingCallback
loop = BareLoop(sys.argv[1])
runner = asyncio.run(loop.run(2, [CountingCallback(0.5)], sys.argv[2]))
assert runner.failures == [] and runner.step == 2
assert torch.backends.mkldnn.matmul.fp32_precision == "bf16"
"""


def test_the_newer_precision_settings_of_torch_are_no_obstacle(gpt2_dir, tmp_path):
    path = os.pathsep.join([str(Path(__file__).parents[1]), str(Path(__file__).parents[2] / "examples" / "addition")])
    command = [sys.executable, "-c", PRECISIONS, str(gpt2_dir), str(tmp_path)]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]


class RarelyVandal(Vandal):
    """Leaves its task behind for steps at which nothing is due."""

    def __init__(self, model):
        super().__init__(model)
        self.frequency = 0.5


async def test_what_is_left_behind_draws_nothing_between_calls_of_a_synchronous_loop(gpt2_dir, tmp_path):
    weights = []
    for name in ("alone", "watched"):
        loop = BareLoop(gpt2_dir)
        loop.run_synchronously(8, [RarelyVandal(loop.model)] if name == "watched" else [], tmp_path / name)
        weights.append(loop.weights())
        await loop.model.dealloc()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
