"""BaseGrader and Grade: the contract between graders and whatever uses them."""

from __future__ import annotations

import asyncio
import inspect
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from math import isfinite
from numbers import Real
from typing import Any

from descant.errors import ConfigurationError, GradingError
from descant.graders.daemon_pool import GRADER_THREADS
from descant.graders.log_scope import current_scope
from descant.stats import summarize_scores
from descant.threads.thread import StringThread

GradeFunction = Callable[[StringThread], "Awaitable[float | Grade] | float | Grade"]


@dataclass(frozen=True, slots=True)
class Grade:
    """What a grader says of one thread.

    Attributes:
        value: the grade, a finite number.
        grader_key: which grader gave it.
        reasoning: why, if the grader says so.
    """

    value: float
    grader_key: str
    reasoning: str | None = None


class BaseGrader(ABC):
    """Base of every grader: override ``grade``.

    A grader that cannot grade raises; whoever uses it counts the failure and goes on. It never returns a
    made-up number. ``add_log({"score": value})`` adds to the statistics of ``get_logs``; a grader that does not
    log is still measured, by the grades that it returns.

    Args:
        grader_key: the grader's name in metrics and grades.
    """

    def __init__(self, grader_key: str) -> None:
        if not isinstance(grader_key, str) or not grader_key:
            raise ConfigurationError(f"grader_key={grader_key!r} must be a string that is not empty")
        self.grader_key = grader_key
        self._logs: list[dict[str, Any]] = []

    @abstractmethod
    async def grade(self, sample: StringThread) -> Grade:
        """The grade of a thread, whose last turn is the completion to judge."""

    async def score_float_value(self, sample: StringThread) -> float:
        """The value of the grade alone."""
        return (await self.grade(sample)).value

    def add_log(self, log: dict[str, Any]) -> None:
        """Record one graded sample; the key ``score`` enters the statistics.

        Raises:
            GradingError: the score is not a finite number.
        """
        if "score" in log:
            log = {**log, "score": checked_grade(log["score"], self.grader_key).value}
        self._scoped_logs().append(log)

    def get_logs(self, clear: bool = False) -> dict[str, Any]:
        """Statistics of the recorded scores since the last clearing: ``score/mean``, ``score/std`` (sample, 0 for
        one), ``score/min``, ``score/max``, ``score/count``; empty if nothing was recorded.

        Inside a log scope (every evaluation has one) only what was recorded in that scope is seen and cleared.
        """
        scores = [log["score"] for log in self._scoped_logs() if "score" in log]
        if clear:
            self.clear_logs()
        return dict(summarize_scores(scores)) if scores else {}

    def clear_logs(self) -> None:
        """Forget what was recorded (inside a log scope: what was recorded there)."""
        self._scoped_logs().clear()

    @staticmethod
    def from_function(grader_key: str, function: GradeFunction) -> BaseGrader:
        """A grader from a function of a thread that returns a number or a ``Grade``.

        Async functions run on the trainer's event loop; others run in a thread, so that they do not block it.
        """
        return _FunctionGrader(grader_key, function)

    def _scoped_logs(self) -> list[dict[str, Any]]:
        scope = current_scope()
        return self._logs if scope is None else scope.entries(self)


class _FunctionGrader(BaseGrader):
    def __init__(self, grader_key: str, function: GradeFunction) -> None:
        super().__init__(grader_key)
        if not callable(function):
            raise ConfigurationError(f"grader {grader_key!r} needs a function of a thread, got {function!r}")
        self.function = function

    async def grade(self, sample: StringThread) -> Grade:
        is_async = inspect.iscoroutinefunction(self.function) or inspect.iscoroutinefunction(
            getattr(self.function, "__call__", None)  # noqa: B004 - an object with an async __call__
        )
        result = self.function(sample) if is_async else await GRADER_THREADS.run(self.function, sample)
        if inspect.isawaitable(result):
            result = await result
        grade = checked_grade(result, self.grader_key)
        self.add_log({"score": grade.value})
        return grade


def checked_grade(result: object, grader_key: str) -> Grade:
    """``result`` as a grade.

    Raises:
        GradingError: it is neither a number nor a ``Grade``, or its value is not finite.
    """
    grade = result if isinstance(result, Grade) else None
    value = result if grade is None else grade.value
    if not isinstance(value, Real):
        item = getattr(value, "item", None)  # a torch scalar
        value = item() if callable(item) else value
    if not isinstance(value, Real):
        raise GradingError(f"grader {grader_key!r} returned {result!r}; a number or a Grade is needed")
    if not isfinite(value):
        raise GradingError(f"grader {grader_key!r} returned {float(value)}; a grade must be finite")
    if grade is None:
        return Grade(float(value), grader_key)
    return Grade(float(value), grade.grader_key, grade.reasoning)


async def grade_many(grader: BaseGrader, threads: Sequence[StringThread]) -> list[Grade | Exception]:
    """One grade per thread, in order, graded concurrently; where the grader failed, its exception."""

    async def attempt(thread: StringThread) -> Grade | Exception:
        try:
            return checked_grade(await grader.grade(thread), grader.grader_key)
        except Exception as error:
            return error
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            return GradingError(f"grader {grader.grader_key!r} was cancelled from within: {error!r}")

    return list(await asyncio.gather(*map(attempt, threads)))
