"""Exact: a callback runs at the first step whose progress reaches k * f, for every k; before the first step; and
after the last. Never twice, never skipped, no float drift."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support import BareLoop, CountingCallback, addition_threads, query, series, training_model

from descant import SFT
from descant.progress import Progress

FREQUENCIES = [
    *(1 / n for n in (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 16, 20, 25, 33, 50, 64, 100, 128, 333, 1000, 4096)),
    *(0.3, 0.6, 0.7, 0.15, 0.35, 0.99, 0.28, 2 / 3, 5 / 7, 0.123),
]


def due_by_definition(frequency, num_steps, at_start=True, at_end=True):
    """The definition, in rationals, with no cleverness: walk through the steps, and through the boundaries."""
    due = [0] if at_start else []
    boundary = frequency
    for step in range(1, num_steps + 1):
        reached = False
        while boundary <= Fraction(step, num_steps):
            reached = True
            boundary += frequency
        if (reached and step < num_steps) or (step == num_steps and at_end):
            due.append(step)
    return due


def driven_by_runner(callback, num_steps):
    """Where the runner's rule finds the callback due, asked after every step."""
    steps = [0] if callback.at_start else []
    for step in range(1, num_steps + 1):
        if callback.is_due(Progress(step - 1, num_steps), Progress(step, num_steps)):
            steps.append(step)
    return steps


@pytest.mark.parametrize("frequency", FREQUENCIES)
def test_every_length_of_run_up_to_2000(frequency):
    exact = Fraction(frequency).limit_denominator(10**6)
    assert float(exact) == frequency
    callback = CountingCallback(frequency)
    for num_steps in range(1, 2001):
        boundaries = np.arange(
            1, int(1 / exact) + 1
        )  # the first step with step / N >= k * p / q is ceil(k * p * N / q)
        reached = np.unique(-(-boundaries * exact.numerator * num_steps // exact.denominator)).tolist()
        assert callback.due_steps(num_steps) == sorted({0, *reached, num_steps}), f"{num_steps} steps"


@pytest.mark.parametrize("frequency", FREQUENCIES)
def test_step_by_step_the_runner_finds_them(frequency):
    callback = CountingCallback(frequency)
    exact = Fraction(frequency).limit_denominator(10**6)
    for num_steps in [*range(1, 100), *range(100, 2001, 97), 2000]:
        expected = due_by_definition(exact, num_steps)
        assert callback.due_steps(num_steps) == expected, f"{num_steps} steps"
        assert driven_by_runner(callback, num_steps) == expected, f"{num_steps} steps"


@given(
    st.integers(1, 2000),
    st.fractions(Fraction(1, 3000), 1, max_denominator=3000),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
@example(11, Fraction(1, 11), True, True, True)
@example(25, Fraction(7, 25), True, True, True)
def test_any_frequency(num_steps, frequency, as_float, at_start, at_end):
    callback = CountingCallback(float(frequency) if as_float else frequency, at_start=at_start, at_end=at_end)
    expected = due_by_definition(frequency, num_steps, at_start, at_end)
    assert callback.due_steps(num_steps) == driven_by_runner(callback, num_steps) == expected


@given(st.integers(1, 2000), st.sampled_from(FREQUENCIES))
async def test_by_hand_on_floats_it_is_the_same(num_steps, frequency):
    callback = CountingCallback(frequency)
    called = []
    for step in range(num_steps + 1):
        callback.run = type("Run", (), {"step": step})
        if await callback.maybe_call(step / num_steps):
            called.append(step)
    assert called == callback.due_steps(num_steps)
    assert await callback.maybe_call(1.0) == {}


@pytest.mark.parametrize(
    ("num_samples", "epochs", "frequency"),
    [(22, 1, 1 / 11), (7, 3, 0.1), (40, 1, 0.1), (9, 1, 0.3), (3, 1, 1.0), (2, 1, 0.05), (30, 0.5, 0.25)],
)
async def test_counted_calls_in_real_runs(qwen3_dir, tmp_path, num_samples, epochs, frequency):
    watching = CountingCallback(frequency)
    silent_at_the_ends = CountingCallback(frequency, "inner", at_start=False, at_end=False)
    seen = []
    async with training_model(qwen3_dir) as model:
        trainer = SFT(
            dataset=addition_threads(num_samples),
            model=model,
            logger=seen.append,
            epochs=epochs,
            samples_per_batch=2,
            callbacks=[watching, silent_at_the_ends],
            run_dir=tmp_path / "run",
        )
        await trainer.run()
    num_steps = trainer.num_steps
    exact = Fraction(frequency).limit_denominator(10**6)
    expected = due_by_definition(exact, num_steps)
    assert watching.steps == expected
    assert watching.percentages == [step / num_steps for step in expected]
    assert watching.hooks == [("start", 0), ("end", num_steps)]
    assert silent_at_the_ends.steps == due_by_definition(exact, num_steps, False, False)
    assert list(series(tmp_path / "run", "counting/calls")) == expected
    assert [m["progress/step"] for m in seen if "counting/calls" in m] == expected
    assert len(seen) == num_steps + 1
    assert query(tmp_path / "run", "SELECT count(*) FROM events WHERE kind = 'callback_failed'") == [(0,)]


@pytest.mark.parametrize("is_async", [True, False], ids=["async", "synchronous"])
@pytest.mark.parametrize(("num_steps", "frequency"), [(11, 1 / 11), (11, 0.1), (5, 0.3), (2, 1.0), (7, 0.25)])
async def test_counted_calls_in_a_bare_loop(qwen3_dir, tmp_path, num_steps, frequency, is_async):
    watching = CountingCallback(frequency)
    silent_at_the_ends = CountingCallback(frequency, "inner", at_start=False, at_end=False)
    loop = BareLoop(qwen3_dir)
    callbacks = [watching, silent_at_the_ends]
    if is_async:
        await loop.run(num_steps, callbacks, tmp_path)
    else:
        loop.run_synchronously(num_steps, callbacks, tmp_path)
    await loop.model.dealloc()
    exact = Fraction(frequency).limit_denominator(10**6)
    expected = due_by_definition(exact, num_steps)
    assert watching.steps == expected
    assert watching.percentages == [step / num_steps for step in expected]
    assert watching.hooks == [("start", 0), ("end", num_steps)]
    assert silent_at_the_ends.steps == due_by_definition(exact, num_steps, False, False)
    assert list(series(tmp_path, "counting/calls")) == expected


async def test_a_callback_starts_anew_in_the_next_trainer(qwen3_dir, tmp_path):
    callback = CountingCallback(0.5)
    async with training_model(qwen3_dir) as model:
        for stage in ("one", "two"):
            await SFT(
                dataset=addition_threads(8),
                model=model,
                samples_per_batch=2,
                callbacks=[callback],
                run_dir=tmp_path / stage,
            ).run()
    assert callback.steps == [0, 2, 4] * 2
