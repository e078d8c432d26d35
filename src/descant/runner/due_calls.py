"""DueCalls: which callbacks run at a step."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from descant.callbacks.base import RecipeCallback
from descant.progress import Progress
from descant.runner.call_guard import as_failure
from descant.runner.costs import Costs
from descant.runner.metric_keys import MetricKeys


class DueCalls:
    """Asks schedules, and the budget.

    Frequencies do not change while a run is open, so the due steps are known from its start; only callbacks that go by
    the clock, or that override ``is_due``, are asked at every step.

    Args:
        callbacks: in the order in which they run.
        num_steps: planned steps.
        costs: what callbacks have cost so far.
        keys: who needs whose metrics.
        budget: the share of the time that they may cost; None for no limit.
    """

    def __init__(
        self,
        callbacks: Sequence[RecipeCallback],
        num_steps: int,
        costs: Costs,
        keys: MetricKeys,
        budget: float | None,
    ) -> None:
        self._callbacks = callbacks
        self._costs = costs
        self._keys = keys
        self._budget = budget
        self._deferred: set[str] = set()
        self.failed: list[tuple[RecipeCallback, Exception]] = []
        """The callbacks whose ``is_due`` has raised at the latest ``take``."""
        planned = [callback for callback in callbacks if _follows_its_plan(callback)]
        self._must_ask = len(planned) < len(callbacks)
        self._due_steps = sorted({step for callback in planned for step in callback.due_steps(num_steps)})

    def is_quiet(self, before: int, step: int) -> bool:
        """Whether nothing can be due after ``step``, ``before`` being the step that was asked for last."""
        if self._must_ask or self._deferred:
            return False
        return bisect_right(self._due_steps, before) == bisect_right(self._due_steps, step)

    def take(self, before: Progress | None, current: Progress) -> tuple[list[RecipeCallback], list[RecipeCallback]]:
        """The callbacks that run now, and those that became due and have to wait until the budget allows them.

        What was deferred comes back as soon as it fits, and with it those that need what it measures at the same step.
        """
        running, deferred = [], []
        self.failed = []
        for callback in self._callbacks:
            if self._costs[callback.name].is_disabled:
                continue
            try:
                is_due = callback.is_due(before, current)
            except BaseException as error:
                self.failed.append((callback, as_failure(error)))
                continue
            if not is_due and callback.name not in self._deferred:
                continue
            if self._is_allowed(callback, current):
                self._deferred.discard(callback.name)
                running.append(callback)
            else:
                self._deferred.add(callback.name)
                if is_due:
                    deferred.append(callback)
        return running, deferred

    def _is_allowed(self, callback: RecipeCallback, current: Progress) -> bool:
        """The rule: all calls together within the budget; while others are deferred, each within an equal part of it.

        First and last calls are always allowed, and callbacks that cannot be deferred, unless they need a metric of
        one that is.
        """
        watches = callback.watches
        if watches is not None and watches.on_schedule:
            sources = [source for source in self._keys.sources[callback.name] if source.name in self._deferred]
            return not any(self._keys.declares(source, watches.metric) for source in sources)
        is_first = self._costs[callback.name].num_runs == 0
        if self._budget is None or is_first or current.is_complete or not callback.is_deferrable:
            return True
        if self._costs.share_with(callback.name) > self._budget:
            return False
        deferrable = [other for other in self._callbacks if other.is_deferrable and other.watches is None]
        others_wait = any(other.name in self._deferred for other in deferrable if other is not callback)
        return not others_wait or self._costs.share_with(callback.name, alone=True) <= self._budget / len(deferrable)


def _follows_its_plan(callback: RecipeCallback) -> bool:
    kind = type(callback)
    overrides = kind.is_due is not RecipeCallback.is_due or kind.due_steps is not RecipeCallback.due_steps
    return callback.schedule.period_s is None and not overrides
