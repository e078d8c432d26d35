"""Evaluations beside training, where something ends at an awkward moment: none is lost, none waits for good."""

import asyncio

import pytest
import torch
from support import BareLoop, CountingCallback, LengthGrader, addition_threads, query, series, training_model

from descant import (
    CallbackRunner,
    EarlyStoppingCallback,
    EvaluationPlacement,
    GraderEvalCallback,
    ModelCallback,
    RecipeCallback,
    ValidationLossCallback,
    at,
    every_steps,
)
from descant.errors import CallbackError, ConfigurationError

VALIDATION = addition_threads(2, offset=40)
IN_A_THREAD = EvaluationPlacement("thread", num_threads=1)


class Scripted(ModelCallback):
    """Does at a step what a test has written for it."""

    def __init__(self, model, frequency, name, *, measure=None, report=None, **options):
        super().__init__(model, frequency, name, **options)
        self.measures, self.reports = measure or {}, report or {}

    async def measure(self, model):
        if work := self.measures.get(self.run.step):
            await work()
        return await model.logprobs_many(VALIDATION[:1])

    async def report(self, measurement):
        if work := self.reports.get(self.run.step):
            await work()
        return {"step": self.run.step}


async def fail():
    raise ValueError("on purpose")


async def run(loop, num_steps, callbacks, run_dir, **options):
    options = {"callback_placement": IN_A_THREAD, **options}
    return await asyncio.wait_for(loop.run(num_steps, callbacks, run_dir, **options), 60)


async def test_a_copy_that_cannot_be_made_is_a_failure_of_that_call(qwen3_dir, tmp_path):
    """A loop that freezes a layer under way."""
    loop = BareLoop(qwen3_dir)

    class Freeze(RecipeCallback):
        async def callback(self, current_percentage):
            next(loop.module.parameters()).requires_grad_(self.run.step != 2)
            return {}

    loss = ValidationLossCallback(VALIDATION, loop.model, 0.25, mode="background")
    runner = await run(loop, 4, [Freeze(every_steps(1), "freeze"), loss], tmp_path)
    assert [(failure.callback, failure.step) for failure in runner.failures] == [("loss", 2)]
    assert "the layers of the model have changed since the run began" in runner.failures[0].message
    assert list(series(tmp_path, "validation/loss")) == [0, 1, 3, 4]
    await loop.model.dealloc()


@pytest.mark.parametrize("is_last", [False, True])
async def test_strict_a_failure_that_nobody_is_behind(qwen3_dir, tmp_path, is_last):
    """It has ended by the time that the runner looks, and nothing else is under way."""
    loop = BareLoop(qwen3_dir)

    async def wait_until_failed():
        while runner._evaluations.are_in_flight:
            await asyncio.sleep(0)

    class Wait(RecipeCallback):
        async def callback(self, current_percentage):
            await wait_until_failed()
            return {}

    place = at(1) if is_last else at(0.25)
    failing = Scripted(loop.model, place, "failing", report={1: fail, 4: fail}, mode="overlap", at_start=False)
    failing.at_end = is_last
    callbacks = [failing, *([Wait(at(1), "wait", at_start=False)] if is_last else [])]
    runner = CallbackRunner(callbacks, num_steps=4, run_dir=tmp_path, strict=True)

    async def train():
        async with runner:
            for step in range(1, 5):
                await runner.after_step(step, loop.train_step())
                if not is_last:
                    await wait_until_failed()

    with pytest.raises(CallbackError, match=r"'failing' failed at step . of 4: ValueError: on purpose"):
        await train()
    assert runner.step == (4 if is_last else 2)
    await loop.model.dealloc()


async def test_a_measurement_that_fails_keeps_nobody_waiting(qwen3_dir, tmp_path):
    """While an earlier evaluation of its callback is still being graded, until another one has been measured."""
    loop, is_measured = BareLoop(qwen3_dir), asyncio.Event()

    async def tell():
        is_measured.set()

    callbacks = [
        Scripted(loop.model, at(0.25, 0.5), "first", report={1: is_measured.wait}, measure={2: fail}, at_end=False),
        Scripted(loop.model, at(0.75), "second", report={3: tell}, at_end=False),
    ]
    runner = await run(loop, 4, callbacks, tmp_path, callback_mode="background")
    assert [(failure.callback, failure.step) for failure in runner.failures] == [("first", 2)]
    assert list(series(tmp_path, "first/step")) == [0, 1]
    assert list(series(tmp_path, "second/step")) == [0, 3]
    await loop.model.dealloc()


async def test_replace_gives_up_nothing_that_makes_no_room(qwen3_dir, tmp_path):
    loop, is_graded, may_measure = BareLoop(qwen3_dir), asyncio.Event(), asyncio.Event()

    class Open(RecipeCallback):
        async def callback(self, current_percentage):
            if self.run.step == 2:
                asyncio.get_running_loop().call_later(0.05, may_measure.set)
            if self.run.step == 4:
                is_graded.set()
            return {}

    callbacks = [
        Open(every_steps(1), "open"),
        Scripted(loop.model, at(0.5), "graded", report={0: is_graded.wait}, at_end=False, when_busy="replace"),
        Scripted(loop.model, at(0.25), "holds", measure={1: may_measure.wait}, at_start=False, at_end=False),
    ]
    placement = EvaluationPlacement("thread", num_threads=1, num_buffers=1)
    await run(loop, 4, callbacks, tmp_path, callback_mode="background", callback_placement=placement)
    assert list(series(tmp_path, "graded/step")) == [0, 2]
    assert query(tmp_path, "SELECT message FROM events WHERE kind = 'callback_replaced'") == []
    await loop.model.dealloc()


async def test_both_halves_sample_as_one(qwen3_dir, tmp_path):
    """A report that samples what was measured, too, gets the second completion of each thread in every mode."""
    said = {}
    async with training_model(qwen3_dir) as judge:
        for mode in ("inline", "overlap", "background"):
            loop = BareLoop(qwen3_dir)

            class Twice(ModelCallback):
                async def measure(self, model):
                    return await model.max_gen_len(4).temperature(1.0).generate_many(VALIDATION)

                async def report(self, measurement):
                    again = await judge.max_gen_len(4).temperature(1.0).generate_many(VALIDATION)
                    return {"said": repr([thread.last_content() for thread in (*measurement, *again)])}

            await run(loop, 2, [Twice(loop.model, 0.5, "twice", mode=mode)], tmp_path / mode)
            said[mode] = query(tmp_path / mode, "SELECT step, text FROM metrics WHERE key = 'twice/said'")
            await loop.model.dealloc()
    assert said["overlap"] == said["background"] == said["inline"]


async def test_a_watcher_that_is_disabled_makes_no_more_calls(qwen3_dir, tmp_path):
    loop = BareLoop(qwen3_dir)

    class Watcher(EarlyStoppingCallback):
        async def callback(self, current_percentage):
            return await fail()

    callbacks = [
        Scripted(loop.model, every_steps(1), "scores", mode="overlap"),
        Watcher("scores/step", "max", on_error="disable"),
    ]
    runner = await run(loop, 4, callbacks, tmp_path)
    assert [(failure.callback, failure.step) for failure in runner.failures] == [("early_stopping", 0)]
    assert list(series(tmp_path, "scores/step")) == [0, 1, 2, 3, 4]
    await loop.model.dealloc()


async def test_a_run_that_cannot_begin_makes_no_calls(qwen3_dir, tmp_path):
    loop, counting = BareLoop(qwen3_dir), CountingCallback(0.5)
    loop.module.model.layers[0].extra = torch.nn.Linear(2, 2)
    grading = GraderEvalCallback(VALIDATION, loop.model, LengthGrader(), 0.5, mode="background")
    with pytest.raises(ConfigurationError, match="cannot be evaluated in the background"):
        await run(loop, 4, [counting, grading], tmp_path)
    assert (counting.steps, counting.hooks) == ([], [])
    await loop.model.dealloc()


async def test_a_call_that_is_given_up_before_it_begins_frees_its_copy(qwen3_dir, tmp_path):
    loop = BareLoop(qwen3_dir)
    scripted = Scripted(loop.model, at(1.0), "scripted", mode="background", when_busy="replace", at_start=False)
    placement = EvaluationPlacement("thread", num_threads=1, num_buffers=1)
    runner = CallbackRunner([scripted], num_steps=1, run_dir=tmp_path, callback_placement=placement)
    async with runner:
        await runner._evaluations.begin(scripted, is_final=False)
        for call in runner._evaluations._in_flight:
            await runner._evaluations._in_flight.cancel(call)
        await asyncio.wait_for(runner.after_step(1), 30)
    assert list(series(tmp_path, "scripted/step")) == [1]
    await loop.model.dealloc()
