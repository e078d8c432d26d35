"""Costs: what callbacks have cost a run, and what is still to come."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from descant.schedule import Plan


@dataclass(slots=True)
class CallbackCost:
    """What one callback has cost so far.

    Attributes:
        name: of the callback.
        num_runs: calls that were made, failed ones included.
        call_s: how long training waited for them.
        seconds: the same with ``on_start`` and ``on_end``.
        num_failed: failures: of its calls, its hooks, and of single values that it returned.
    """

    name: str
    num_runs: int = 0
    call_s: float = 0.0
    seconds: float = 0.0
    num_failed: int = 0

    @property
    def mean_s(self) -> float:
        """Seconds of a call; 0 before the first."""
        return self.call_s / self.num_runs if self.num_runs else 0.0


class Costs:
    """Adds up the seconds of training and of each callback, and says what a whole run will take.

    Args:
        plans: when each callback will run.
        num_steps: planned steps.
    """

    def __init__(self, plans: Sequence[Plan], num_steps: int) -> None:
        self.training_s = 0.0
        """Seconds of training alone, without callbacks."""
        self.num_steps_made = 0
        self._num_steps = num_steps
        self._plans = {plan.name: plan for plan in plans}
        self._costs = {plan.name: CallbackCost(plan.name) for plan in plans}
        self._source_of_key: dict[str, str] = {}
        self._no_more: set[str] = set()

    def __getitem__(self, name: str) -> CallbackCost:
        return self._costs[name]

    def __iter__(self) -> Iterator[CallbackCost]:
        return iter(self._costs.values())

    @property
    def callbacks_s(self) -> float:
        """Seconds that training has waited for callbacks."""
        return sum(cost.seconds for cost in self)

    def add_steps(self, num_steps: int, seconds: float) -> None:
        """Training has made so many more steps in so many seconds."""
        self.num_steps_made += num_steps
        self.training_s += seconds

    def add_call(self, name: str, seconds: float, keys: Iterable[str]) -> CallbackCost:
        """A callback has run and returned these keys; returns what it has cost so far."""
        self._source_of_key |= dict.fromkeys(keys, name)
        cost = self._costs[name]
        cost.num_runs += 1
        cost.call_s += seconds
        return cost

    def expect_no_more(self, name: str) -> None:
        """A callback makes no more calls in this run."""
        self._no_more.add(name)

    def time_fraction(self, name: str) -> float:
        """The share of the time so far that training waited for a callback."""
        total = self.training_s + self.callbacks_s
        return self._costs[name].seconds / total if total else 0.0

    def remaining_s(self, step: int) -> float | None:
        """Seconds from now, after ``step`` steps, to the end of the run, the calls still to come included.

        None before the first step. A call costs what its callback's calls cost so far on average.
        """
        if not self.num_steps_made:
            return None
        return self._training_to_come_s(step) + sum(self._calls_to_come(cost.name, step) * cost.mean_s for cost in self)

    def forecast(self, step: int) -> str | None:
        """What the callbacks will take of the whole run, in words; None while nothing is known."""
        measured = [cost for cost in self if cost.num_runs]
        remaining_s = self.remaining_s(step)
        if not measured or remaining_s is None:
            return None
        num_calls = {cost.name: cost.num_runs + self._calls_to_come(cost.name, step) for cost in measured}
        seconds = {cost.name: num_calls[cost.name] * cost.mean_s for cost in measured}
        run_s = self.training_s + self.callbacks_s + remaining_s
        parts = [
            f"{cost.name} {num_calls[cost.name]:.0f} × {describe_seconds(cost.mean_s)} "
            f"≈ {_percent(seconds[cost.name], run_s)}"
            for cost in sorted(measured, key=lambda cost: -seconds[cost.name])
        ]
        share = f", of which callbacks {_percent(sum(seconds.values()), run_s)}" if len(parts) > 1 else ""
        of_the_run = " of the run" if len(parts) == 1 else ""
        return f"forecast: {describe_seconds(run_s)} in all{share}: {', '.join(parts)}{of_the_run}"

    def _calls_to_come(self, name: str, step: int) -> float:
        """As planned; by the clock, as often as the training that is left allows; with a metric, as often as that is
        measured."""
        plan = self._plans[name]
        if name in self._no_more:
            return 0
        num_calls: float = len(plan.steps) - bisect_right(plan.steps, step)
        if plan.period_s is not None:
            num_calls += self._training_to_come_s(step) / plan.period_s
        source = self._source_of_key.get(plan.follows or "", name)
        return num_calls if source == name else num_calls + self._calls_to_come(source, step)

    def _training_to_come_s(self, step: int) -> float:
        return self.training_s / max(self.num_steps_made, 1) * max(self._num_steps - step, 0)


def describe_seconds(seconds: float) -> str:
    """A duration with two or three digits and its unit: ``"0.35 s"``, ``"42 s"``, ``"12.5 min"``, ``"3.2 h"``."""
    if seconds < 120:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.3g} min" if seconds < 7200 else f"{seconds / 3600:.3g} h"


def _percent(part: float, whole: float) -> str:
    percent = 100 * part / whole if whole else 0.0
    return f"{percent:.0f} %" if percent >= 10 else f"{percent:.2g} %"
