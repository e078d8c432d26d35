"""Which calls are due: found without asking every callback at every step, and within a budget."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import CountingCallback

from descant import MetricSpec, MetricWatch, at, every, every_steps
from descant.errors import ConfigurationError
from descant.progress import Progress
from descant.runner.costs import Costs
from descant.runner.due_calls import DueCalls
from descant.runner.metric_keys import MetricKeys
from descant.runner.options import RunOptions

SCHEDULES = st.one_of(
    st.integers(1, 30).map(lambda k: every(f"1/{k}")),
    st.integers(1, 30).map(every_steps),
    st.lists(st.integers(0, 20).map(lambda k: k / 20), min_size=1, max_size=3).map(lambda points: at(*points)),
)


def due_calls(callbacks, num_steps, budget=None):
    costs = Costs([callback.plan(num_steps) for callback in callbacks], num_steps)
    return DueCalls(callbacks, num_steps, costs, MetricKeys(callbacks), budget), costs


def names(callbacks):
    return [callback.name for callback in callbacks]


@given(
    st.lists(st.tuples(SCHEDULES, st.booleans(), st.booleans()), max_size=4),
    st.integers(1, 60),
    st.data(),
)
def test_a_quiet_step_is_one_at_which_nothing_is_due(drawn, num_steps, data):
    callbacks = [
        CountingCallback(schedule, f"c{number}", at_start=at_start, at_end=at_end)
        for number, (schedule, at_start, at_end) in enumerate(drawn)
    ]
    due, _ = due_calls(callbacks, num_steps)
    before = Progress(data.draw(st.integers(0, num_steps)), num_steps)
    while before.step < num_steps:
        now = Progress(data.draw(st.integers(before.step + 1, num_steps)), num_steps)
        expected = [callback.name for callback in callbacks if callback.is_due(before, now)]
        if due.is_quiet(before.step, now.step):
            assert not expected
        else:
            assert names(due.take(before, now)[0]) == expected
        before = now


def test_quiet_steps_ask_nobody():
    callbacks = [CountingCallback(0.5, f"c{number}") for number in range(10)]
    due, _ = due_calls(callbacks, 100)
    for callback in callbacks:
        callback.is_due = None  # asking it fails
    assert [step for step in range(1, 101) if due.is_quiet(0, step)] == list(range(1, 50))
    assert [step for step in range(51, 101) if not due.is_quiet(step - 1, step)] == [100]


def test_who_overrides_is_due_is_asked_at_every_step():
    class AtPrimes(CountingCallback):
        def is_due(self, previous, current):
            return current.step in (2, 3, 5, 7)

    due, _ = due_calls([AtPrimes(1)], 10)
    made = []
    for step in range(1, 11):
        assert not due.is_quiet(step - 1, step)
        if due.take(Progress(step - 1, 10), Progress(step, 10))[0]:
            made.append(step)
    assert made == [2, 3, 5, 7]


def test_the_budget_defers_until_it_fits():
    callback = CountingCallback(0.1)
    due, costs = due_calls([callback], 100, budget=0.1)

    def step_to(step, seconds=1.0):
        costs.add_steps(1, seconds)
        running, deferred = due.take(Progress(step - 1, 100), Progress(step, 100))
        return len(running), len(deferred)

    assert names(due.take(None, Progress(0, 100))[0]) == ["counting"]  # the first
    costs.add_stall("counting", 2.0)  # seconds; the next one will take as long, they think
    for step in range(1, 10):
        assert step_to(step) == (0, 0)
    assert step_to(10) == (0, 1)  # 4 s of 14 s are too many
    assert not due.is_quiet(10, 11)
    for step in range(11, 36):
        expected = (0, 1) if step in (20, 30) else (0, 0)
        assert step_to(step) == expected
    assert step_to(36) == (1, 0)  # 4 s of 40 s are allowed
    costs.add_stall("counting", 2.0)
    assert due.is_quiet(36, 39)
    assert step_to(100) == (1, 0)  # the last


def test_a_cheap_call_that_is_due_often_starves_no_dear_one():
    cheap, dear = CountingCallback(0.001, "cheap"), CountingCallback(0.1, "dear")
    due, costs = due_calls([cheap, dear], 4000, budget=0.05)
    seconds, made = {"cheap": 1.0, "dear": 30.0}, {"cheap": [], "dear": []}
    for step in range(4000):
        costs.add_steps(1, 1.0)
        before = Progress(step - 1, 4000) if step else None
        for callback in due.take(before, Progress(step, 4000))[0]:
            costs.add_stall(callback.name, seconds[callback.name])
            made[callback.name].append(step)
    assert len(made["dear"]) >= 2
    assert len(made["cheap"]) >= 30
    assert costs.callbacks_s <= 0.05 * (costs.training_s + costs.callbacks_s) + 31


def test_the_budget_knows_that_a_copy_is_cheap():
    callback = CountingCallback(0.1)
    due, costs = due_calls([callback], 100, budget=0.1)
    due.take(None, Progress(0, 100))
    costs.add_stall("counting", 0.001)
    costs.add_steps(10, 10.0)
    assert names(due.take(Progress(9, 100), Progress(10, 100))[0]) == ["counting"]


@pytest.mark.parametrize("budget", [0, 1, -0.1, 5, float("nan"), "5 %", True])
def test_a_budget_that_is_no_share_is_refused(budget):
    with pytest.raises(ConfigurationError, match=r"callback_budget=.*above 0 and below 1"):
        RunOptions(callback_budget=budget)


def test_what_needs_a_metric_at_its_own_step_is_put_off_with_it():
    class Source(CountingCallback):
        metric_specs = (MetricSpec("calls"),)

    source, follower = Source(0.1), CountingCallback(0.1, "follower", at_start=False, at_end=False)
    follower.watches = MetricWatch("counting/calls", "max", on_schedule=True)  # as a CheckpointCallback with keep_best
    due, costs = due_calls([source, follower], 10, budget=0.1)
    made, put_off, before = {}, {}, None
    for step in range(11):
        now = Progress(step, 10)
        costs.add_steps(int(step > 0), float(step > 0))
        running, deferred = due.take(before, now)
        if source in running:
            costs.add_stall("counting", 0.4)
        made[step], put_off[step] = names(running), names(deferred)
        before = now
    assert made[0] == ["counting"]
    assert {step for step in range(1, 10) if made[step]} == {8}
    assert made[8] == ["counting", "follower"]
    assert put_off[3] == ["counting", "follower"]
