"""Costs: what callbacks have cost a run, and what is still to come."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from descant.callbacks.base import CallbackMode
from descant.schedule import Plan
from descant.table import Table
from descant.text import duration


@dataclass(slots=True)
class CallbackCost:
    """What one callback has cost so far.

    Attributes:
        name: of the callback.
        mode: what training waits for.
        num_runs: calls that were begun, failed ones included.
        stall_s: how long training waited for these, and until what they returned was recorded.
        wait_s: how long training waited for room for a copy of the weights.
        seconds: both, and the time in ``on_start`` and ``on_end``.
        busy_s: of asynchronous calls, how long the evaluation itself took.
        num_measured: calls that returned what the callback is for, see ``MetricKeys.has_measured``.
        num_landed: asynchronous calls that are complete, failed ones included.
        num_tokens: tokens of prompts, completions and scored sequences.
        num_failed: failures: of its calls, its hooks, and of single values that it returned.
        num_failed_samples: samples (or grades) that failed in calls that did not.
        num_skipped: calls that were not made because there was no room (``when_busy="skip"``).
        num_replaced: calls that were given up for a newer one (``when_busy="replace"``).
        num_deferred: calls that were put off by ``callback_budget``.
        is_disabled: it makes no more calls in this run.
    """

    name: str
    mode: CallbackMode = "inline"
    num_runs: int = 0
    stall_s: float = 0.0
    wait_s: float = 0.0
    seconds: float = 0.0
    busy_s: float = 0.0
    num_measured: int = 0
    num_landed: int = 0
    num_tokens: int = 0
    num_failed: int = 0
    num_failed_samples: int = 0
    num_skipped: int = 0
    num_replaced: int = 0
    num_deferred: int = 0
    is_disabled: bool = False

    @property
    def mean_s(self) -> float:
        """Seconds that training waits for a call; 0 before the first."""
        return (self.stall_s + self.wait_s) / self.num_runs if self.num_runs else 0.0

    @property
    def failed_in_all(self) -> str | None:
        """Why it never measured anything, if that is a failure, in words."""
        if self.num_measured or not (self.num_failed or self.num_failed_samples):
            return None
        calls = f"{self.num_failed} of {self.num_runs} calls failed"
        samples = f"all {self.num_failed_samples:,} samples failed"
        causes = [calls] * bool(self.num_failed) + [samples] * bool(self.num_failed_samples)
        return f"{self.name} has never measured anything: {', and '.join(causes)}"

    @property
    def mean_busy_s(self) -> float:
        """Seconds that an asynchronous evaluation takes; 0 before the first is complete."""
        return self.busy_s / self.num_landed if self.num_landed else 0.0


class Costs:
    """Adds up the seconds of training and of each callback, and says what a whole run will take.

    Args:
        plans: when each callback will run.
        num_steps: planned steps.
        modes: the mode of each callback, by name; "inline" for those that are not in it.
        budget: the share of the time that callbacks may cost, if there is a limit.
    """

    def __init__(
        self,
        plans: Sequence[Plan],
        num_steps: int,
        modes: Mapping[str, CallbackMode] | None = None,
        budget: float | None = None,
    ) -> None:
        self.training_s = 0.0
        """Seconds of training alone, without callbacks."""
        self.num_steps_made = 0
        self._num_steps = num_steps
        self._budget = budget
        self._plans = {plan.name: plan for plan in plans}
        self._costs = {plan.name: CallbackCost(plan.name, (modes or {}).get(plan.name, "inline")) for plan in plans}
        self._source_of_key: dict[str, str] = {}

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

    def add_stall(self, name: str, stall_s: float, wait_s: float = 0.0) -> None:
        """A call has begun, and training has waited for it."""
        cost = self._costs[name]
        cost.num_runs += 1
        cost.stall_s += stall_s
        cost.wait_s += wait_s
        cost.seconds += stall_s + wait_s

    def add_recording(self, name: str, seconds: float) -> None:
        """Training has also waited until what a call returned was checked and recorded."""
        cost = self._costs[name]
        cost.stall_s += seconds
        cost.seconds += seconds

    def add_result(self, name: str, keys: Iterable[str], num_tokens: int, busy_s: float | None = None) -> None:
        """A call has returned these keys; ``busy_s`` is how long it took in parallel to training, if it was."""
        self._source_of_key |= dict.fromkeys(keys, name)
        cost = self._costs[name]
        cost.num_tokens += num_tokens
        if busy_s is not None:
            cost.busy_s += busy_s
            cost.num_landed += 1

    def time_fraction(self, name: str) -> float:
        """The share of the time so far that training waited for a callback."""
        total = self.training_s + self.callbacks_s
        return self._costs[name].seconds / total if total else 0.0

    def share_with(self, name: str, *, alone: bool = False) -> float:
        """The share of the time that callbacks (``alone``: this one) will have cost after one more call of this one."""
        cost = self._costs[name]
        total = self.training_s + self.callbacks_s + cost.mean_s
        return ((cost.seconds if alone else self.callbacks_s) + cost.mean_s) / total if total else 0.0

    def remaining_s(self, step: int) -> float | None:
        """Seconds from now, after ``step`` steps, to the end of the run, the calls still to come included.

        None before the first step. A call costs what its callback's calls cost so far on average. Evaluations in the
        background make the run longer only if they are not complete when training is.
        """
        if not self.num_steps_made:
            return None
        in_the_way = self.training_to_come_s(step) + self._callbacks_to_come_s(step)
        return max(in_the_way, sum(self._background_to_come_s(cost, step) for cost in self))

    def stall_to_come_s(self, name: str, step: int) -> float:
        """Seconds for which training will wait for a callback from now, after ``step`` steps, its last call aside."""
        num_calls = self._calls_to_come(name, step) - (self._num_steps in self._plans[name].steps)
        return max(0.0, num_calls) * self._costs[name].mean_s

    def training_to_come_s(self, step: int) -> float:
        """Seconds of training alone from now, after ``step`` steps, to the end."""
        return self.training_s / max(self.num_steps_made, 1) * max(self._num_steps - step, 0)

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
            f"{cost.name} {num_calls[cost.name]:.0f} × {duration(cost.mean_s)} "
            f"≈ {_percent(seconds[cost.name], run_s)}{_in_parallel(cost)}"
            for cost in sorted(measured, key=lambda cost: -seconds[cost.name])
        ]
        share = f", of which callbacks {_percent(sum(seconds.values()), run_s)}" if len(parts) > 1 else ""
        of_the_run = " of the run" if len(parts) == 1 else ""
        text = f"forecast: {duration(run_s)} in all{share}: {', '.join(parts)}{of_the_run}"
        if self._budget is not None and sum(seconds.values()) > self._budget * run_s:
            text += f"; calls will be deferred to keep within callback_budget={self._budget:g}"
        return text

    def _callbacks_to_come_s(self, step: int) -> float:
        """How long training will wait for calls, within the budget if there is one, but for the final calls."""
        to_come = sum(self._calls_to_come(cost.name, step) * cost.mean_s for cost in self)
        if self._budget is None:
            return to_come
        training_s = self.training_s + self.training_to_come_s(step)
        allowed = max(0.0, training_s * self._budget / (1 - self._budget) - self.callbacks_s)
        return min(to_come, allowed + sum(cost.mean_s for cost in self))

    def _background_to_come_s(self, cost: CallbackCost, step: int) -> float:
        if cost.mode != "background":
            return 0.0
        num_under_way = cost.num_runs - cost.num_landed - cost.num_replaced
        return (self._calls_to_come(cost.name, step) + num_under_way) * cost.mean_busy_s

    def _calls_to_come(self, name: str, step: int) -> float:
        """As planned; by the clock, as often as the training that is left allows; with a metric, as often as that is
        measured."""
        plan = self._plans[name]
        if self._costs[name].is_disabled:
            return 0
        num_calls: float = len(plan.steps) - bisect_right(plan.steps, step)
        if plan.period_s is not None:
            num_calls += self.training_to_come_s(step) / plan.period_s
        source = self._source_of_key.get(plan.follows or "", name)
        return num_calls if source == name else num_calls + self._calls_to_come(source, step)


def cost_table(costs: Iterable[CallbackCost], run_s: float) -> Table:
    """What each callback has cost a run of ``run_s`` seconds, and how many of its calls and samples failed."""
    return Table.from_dicts(
        {
            "callback": cost.name,
            "mode": cost.mode,
            "calls": cost.num_runs,
            "seconds": round(cost.seconds, 3),
            "seconds_per_call": round(cost.mean_s, 3),
            "share_of_run": round(cost.seconds / run_s, 4) if run_s else None,
            "seconds_in_parallel": round(cost.busy_s, 3),
            "tokens": cost.num_tokens,
            "failed_calls": cost.num_failed,
            "failed_samples": cost.num_failed_samples,
            "skipped_calls": cost.num_skipped,
            "replaced_calls": cost.num_replaced,
            "deferred_calls": cost.num_deferred,
        }
        for cost in costs
    )


def _in_parallel(cost: CallbackCost) -> str:
    if cost.mode == "inline":
        return ""
    return f" ({cost.mode}{f', {duration(cost.mean_busy_s)} in parallel' if cost.num_landed else ''})"


def _percent(part: float, whole: float) -> str:
    percent = 100 * part / whole if whole else 0.0
    return f"{percent:.0f} %" if percent >= 10 else f"{percent:.2g} %"
