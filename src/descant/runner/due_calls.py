"""DueCalls: which callbacks run at a step."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from math import inf

from descant.callbacks.base import RecipeCallback
from descant.errors import ConfigurationError
from descant.progress import Progress
from descant.runner.costs import Costs


class DueCalls:
    """Asks schedules, and the budget.

    Args:
        callbacks: in the order in which they run.
        num_steps: planned steps.
        costs: what callbacks have cost so far.
        budget: the share of the time that they may cost; None for no limit.
    """

    def __init__(self, callbacks: Sequence[RecipeCallback], num_steps: int, costs: Costs, budget: float | None) -> None:
        self._callbacks = callbacks
        self._num_steps = num_steps
        self._costs = costs
        self._budget = budget
        self._deferred: set[str] = set()
        self._planned: list[Sequence[int] | None] = []
        self._num_changes = -1
        self._next_step: float = 0

    def is_quiet(self, step: int) -> bool:
        """Whether nothing can be due by now. It costs the same however many callbacks there are."""
        return step < self._next_step and self._num_changes == RecipeCallback.num_schedule_changes

    def look_ahead(self, step: int) -> None:
        """Note the next step after this one at which something may be due."""
        if self._num_changes != RecipeCallback.num_schedule_changes:
            self._num_changes = RecipeCallback.num_schedule_changes
            self._planned = [self._due_steps(callback) for callback in self._callbacks]
        if self._deferred or None in self._planned:
            self._next_step = step + 1
        else:
            self._next_step = min((_next(steps, step) for steps in self._planned if steps is not None), default=inf)

    def take(self, before: Progress | None, current: Progress) -> tuple[list[RecipeCallback], list[RecipeCallback]]:
        """The callbacks that run now, and those that are due and have to wait until the budget allows them.

        What was deferred comes back as soon as it fits, and with it those that need what it measures at the same step.
        The first and the last call are never deferred, and neither are those that go by the metrics of others. While
        another one waits, each has an equal part of the budget: a cheap call that is due often starves no dear one.
        """
        running, deferred = [], []
        for callback in self._callbacks:
            is_due = callback.is_due(before, current)
            if not is_due and callback.name not in self._deferred:
                continue
            if self._is_allowed(callback, current):
                self._deferred.discard(callback.name)
                running.append(callback)
            elif is_due:
                self._deferred.add(callback.name)
                deferred.append(callback)
        missing = {key for c in self._callbacks if c.name in self._deferred for key in c.declared_keys()}
        for callback in [callback for callback in running if callback.same_step_key in missing]:
            running.remove(callback)
            self._deferred.add(callback.name)
            if callback.is_due(before, current):
                deferred.append(callback)
        return running, deferred

    def _is_allowed(self, callback: RecipeCallback, current: Progress) -> bool:
        is_first = self._costs[callback.name].num_runs == 0
        if self._budget is None or is_first or current.is_complete or callback.runs_last:
            return True
        if self._costs.share_with(callback.name) > self._budget:
            return False
        others_wait = any(
            other.name in self._deferred
            and other is not callback
            and other.same_step_key not in callback.declared_keys()
            for other in self._callbacks
        )
        return not others_wait or self._costs.own_share_with(callback.name) <= self._budget / len(self._callbacks)

    def _due_steps(self, callback: RecipeCallback) -> Sequence[int] | None:
        """All its steps, in order; None if it has to be asked at every step."""
        kind = type(callback)
        follows_schedule = kind.is_due is RecipeCallback.is_due and kind.due_steps is RecipeCallback.due_steps
        return callback.due_steps(self._num_steps) if callback.schedule.is_planned and follows_schedule else None


def check_budget(callback_budget: float | None) -> None:
    """Raises ConfigurationError if that is no share of the time."""
    if callback_budget is not None and not (isinstance(callback_budget, int | float) and 0 < callback_budget < 1):
        raise ConfigurationError(
            f"callback_budget={callback_budget!r} must be the share of the time that callbacks may cost, above 0 and "
            "below 1 (0.05 is 5 %), or None for no limit"
        )


def _next(steps: Sequence[int], step: int) -> float:
    index = bisect_right(steps, step)
    return steps[index] if index < len(steps) else inf
