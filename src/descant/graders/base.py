"""BaseGrader and Grade: the contract of graders."""

from __future__ import annotations

import asyncio
import inspect
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import starmap
from math import inf, isfinite
from numbers import Real
from typing import Any, Self, Union

from descant.arguments import check_text, missing_await
from descant.errors import ConfigurationError, GradingError
from descant.graders.concurrency_limit import ConcurrencyLimit
from descant.graders.daemon_calls import DaemonCalls
from descant.graders.log_scope import current_scope
from descant.graders.remote_calls import RemoteCalls
from descant.stats import summarize_scores
from descant.text import quoted
from descant.threads.thread import StringThread

MAX_CONCURRENT_THREADS = 32
SHOWN_LENGTH = 200  # characters of a value of unknown size in messages and reasonings

GradeFunction = Callable[[StringThread], "Awaitable[float | Grade] | float | Grade"]

AnyGrader = Union["BaseGrader", GradeFunction]
"""What is taken wherever a grader is: a plain function is one, too (``as_grader``)."""


@dataclass(frozen=True, slots=True)
class Grade:
    """A grader's result for one thread.

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

    A grader that cannot grade raises; the failure is counted, and other threads are graded. It never returns a made-up
    number. One that does not apply to a thread raises ``IgnoreGradeException``, which is counted separately.
    ``add_log({"score": value})`` adds to the statistics of ``get_logs``; evaluations use the returned grades.

    One object may serve training and several evaluations at once: what it logs is kept apart for each (also what it
    appends to ``_logs`` itself), other attributes are shared by them. ``BaseGrader[dict]`` is ``BaseGrader``.

    Args:
        grader_key: the grader's name in metrics and grades.

    Raises:
        ConfigurationError: no key; or, where the subclass is defined, a ``grade`` that is not async.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if not inspect.iscoroutinefunction(inspect.unwrap(cls.grade)):
            raise ConfigurationError(
                f"grade of grader class {cls.__name__} must be async: write 'async def grade(self, sample)'. For a "
                "function that is not async there is BaseGrader.from_function(key, function), which runs it in a thread"
            )

    def __class_getitem__(cls, log_type: object) -> type[Self]:
        """The class itself: the recipe API's graders are generic over the type of their logs."""
        return cls

    def __init__(self, grader_key: str) -> None:
        check_text("grader_key", grader_key)
        self.grader_key = grader_key
        self._logs_outside: list[dict[str, Any]] = []

    @property
    def _logs(self) -> list[dict[str, Any]]:
        """What was logged: inside a log scope, there; outside, outside."""
        scope = current_scope.get()
        return self._logs_outside if scope is None else scope[self]

    @_logs.setter
    def _logs(self, logs: list[dict[str, Any]]) -> None:
        self._logs[:] = logs

    @abstractmethod
    async def grade(self, sample: StringThread) -> Grade:
        """The grade of a thread, whose last turn is the completion to judge."""

    async def score_float_value(self, sample: StringThread) -> float:
        """The value of the grade alone."""
        return (await self.grade(sample)).value

    def add_log(self, log_data: dict[str, Any]) -> None:
        """Record one graded sample; the key ``score`` enters the statistics.

        Raises:
            GradingError: the score is not a finite number.
        """
        if "score" in log_data:
            log_data = {**log_data, "score": checked_grade(log_data["score"], self.grader_key).value}
        self._logs.append(log_data)

    def get_logs(self, clear: bool = False, log_all_samples: bool = False) -> dict[str, Any]:
        """Statistics of the recorded scores since the last clearing: ``score/mean``, ``score/std`` (sample, 0 for
        one), ``score/min``, ``score/max``, ``score/count``; empty if nothing was recorded.

        There is no ``score/stderr``: several completions of one prompt are not independent, and a log does not name its
        prompt. Inside a log scope (every evaluation has one) only what was recorded there is seen and cleared.
        ``log_all_samples`` is for graders that add tables of what they judged; an evaluation has a table of all.
        """
        scores = [log["score"] for log in self._logs if "score" in log]
        if clear:
            self.clear_logs()
        statistics = summarize_scores(scores) if scores else {}
        statistics.pop("score/stderr", None)
        return dict(statistics)

    def clear_logs(self) -> None:
        """Forget what was recorded (inside a log scope: what was recorded there)."""
        self._logs.clear()

    def unusable(self, prompt: StringThread) -> str | None:
        """Why no completion of a prompt can be graded, if that is known beforehand; None if nothing is known."""
        return None

    @staticmethod
    def from_function(
        grader_key: str,
        function: GradeFunction | None = None,
        *,
        async_fn: GradeFunction | None = None,
        timeout_s: float | None = None,
        max_attempts: int = 1,
        max_concurrent: int | None = None,
    ) -> BaseGrader:
        """A grader from a function of a thread that returns a number or a ``Grade``, whose reasoning is kept.

        Async functions run on the trainer's event loop; others run in a thread, so that they do not block it. The
        settings are those of ``RemoteCalls``, for functions that leave the process, such as a judge over HTTP.

        Args:
            grader_key: the grader's name in metrics and grades.
            function: is called with the thread. One that is not async cannot be stopped: after a timeout it is
                abandoned, and keeps its thread until it returns. It runs in several threads at once:
                ``max_concurrent=1`` for one that must not.
            async_fn: the recipe API's name of ``function``.
            timeout_s: seconds for one attempt; None is no timeout.
            max_attempts: attempts in all; pauses between them begin at half a second.
            max_concurrent: calls in flight on one event loop; None is no limit for async functions and 32 for others.
                Abandoned calls are not counted, but while there are more of them than this, every call fails.

        Raises:
            ConfigurationError: not a function of one thread, or a number that cannot work.
            GradingError (when grading): no grade was returned, or too many abandoned calls have not ended.
        """
        if function is not None and async_fn is not None:
            raise ConfigurationError(f"grader {grader_key!r}: async_fn is another name of function; give one of them")
        function = _checked_function(grader_key, async_fn if function is None else function)
        call = getattr(function, "__call__", None)  # noqa: B004 - of an object, it may be async
        is_async = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(call)
        if max_concurrent is None and not is_async:
            max_concurrent = MAX_CONCURRENT_THREADS
        calls = RemoteCalls(timeout_s, max_attempts, max_concurrent)
        return _FunctionGrader(grader_key, function, is_async, calls)


class _FunctionGrader(BaseGrader):
    def __init__(self, grader_key: str, function: GradeFunction, is_async: bool, calls: RemoteCalls) -> None:
        super().__init__(grader_key)
        self.function = function
        self._is_async = is_async
        self._calls = calls
        self._daemon_calls = DaemonCalls(f"grader {grader_key!r}", calls.max_concurrent)

    async def grade(self, sample: StringThread) -> Grade:
        grade = checked_grade(await self._calls.run(lambda: self._call(sample)), self.grader_key)
        self.add_log({"score": grade.value})
        return grade

    async def _call(self, sample: StringThread) -> object:
        result = self.function(sample) if self._is_async else await self._daemon_calls.run(self.function, sample)
        return await result if inspect.isawaitable(result) else result


def _checked_function(grader_key: str, function: GradeFunction | None) -> GradeFunction:
    if not callable(function):
        raise ConfigurationError(f"grader {grader_key!r} needs a function of a thread, got {function!r}")
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some functions that are not written in Python
        return function
    try:
        signature.bind(None)
    except TypeError as error:
        name = getattr(function, "__qualname__", repr(function))
        raise ConfigurationError(
            f"grader {grader_key!r} needs a function of one argument, the thread; {name}{signature} cannot be called "
            f"with one ({error}). Bind other arguments with functools.partial or a lambda"
        ) from None
    return function


def as_grader(name: str, grader: object) -> BaseGrader:
    """A grader as it is, or one from a function of a thread, whose key is the name of the function.

    Raises:
        ConfigurationError: neither; ``name`` is what it is called in the message.
    """
    if isinstance(grader, BaseGrader):
        return grader
    if isinstance(grader, type) or not callable(grader):
        if isinstance(grader, type) and issubclass(grader, BaseGrader):
            raise ConfigurationError(f"{name} is the class {grader.__name__}; pass an instance: {grader.__name__}(...)")
        raise ConfigurationError(
            f"{name} is {quoted(grader)}, not a grader; subclass BaseGrader, or give a function "
            f"from thread to number{missing_await(grader)}"
        )
    function = grader.func if isinstance(grader, partial) else grader
    key = getattr(function, "__name__", type(function).__name__)
    return BaseGrader.from_function(key.strip("<>"), grader)


def checked_grade(result: object, grader_key: str) -> Grade:
    """``result`` as a grade; a ``GradingError`` if it is none, its value not finite, or its reasoning not a text."""
    grade = result if isinstance(result, Grade) else Grade(result, grader_key)  # type: ignore[arg-type]
    value: Any = grade.value
    try:
        value = value if isinstance(value, Real) else value.item()  # of a torch scalar
        number = float(value)
    except OverflowError:
        number = inf
    except Exception:
        number = None
    if number is None or not isinstance(value, Real):
        raise GradingError(
            f"grader {grader_key!r} returned {quoted(result, SHOWN_LENGTH)}; a number or a Grade is needed"
            f"{missing_await(result)}"
        )
    if not isfinite(number):
        raise GradingError(f"grader {grader_key!r} returned {number}; a grade must be finite")
    if not isinstance(grade.reasoning, str | None):
        raise GradingError(
            f"grader {grader_key!r} returned a Grade with the reasoning {quoted(grade.reasoning, SHOWN_LENGTH)}; a "
            "string or None is needed"
        )
    return Grade(number, grade.grader_key, grade.reasoning)


async def attempt_grades(
    attempts: Iterable[tuple[BaseGrader, StringThread]],
    limit: ConcurrencyLimit | None = None,
    done: Callable[[], None] = lambda: None,
) -> list[Grade | Exception]:
    """One result per grader and thread, in order: the grade, or the exception that was raised instead.

    A ``limit`` bounds all that are attempted under it, also by other calls. ``done`` is called after each.
    """
    limit = limit or ConcurrencyLimit(None)

    async def attempt(grader: BaseGrader, thread: StringThread) -> Grade | Exception:
        async with limit.hold():
            try:
                return checked_grade(await grader.grade(thread), grader.grader_key)
            except Exception as error:
                return error
            except (KeyboardInterrupt, asyncio.CancelledError):
                raise
            except BaseException as error:  # SystemExit, a panic of Rust code: a task that raised it would end more
                failure = GradingError(f"grader {grader.grader_key!r} raised {type(error).__name__}: {error}")
                failure.__cause__ = error
                return failure
            finally:
                done()

    # gather raises CancelledError if this task itself is cancelled. As a result, it comes from a grader that raised it
    # or cancelled the task that it runs in.
    attempts, graded = list(attempts), list[Grade | Exception]()
    results = await asyncio.gather(*starmap(attempt, attempts), return_exceptions=True)
    for (grader, _), result in zip(attempts, results, strict=True):
        if isinstance(result, asyncio.CancelledError):
            graded.append(GradingError(f"grader {grader.grader_key!r} was cancelled from within: {result!r}"))
        elif isinstance(result, Grade | Exception):
            graded.append(result)
        else:
            raise result
    return graded


async def grade_many(
    grader: AnyGrader, threads: Sequence[StringThread], max_concurrent: int | None = None
) -> list[Grade | Exception]:
    """One result per thread, in order, graded concurrently: a grade, or the exception that was raised instead.

    The exception is an ``IgnoreGradeException`` if the grader does not apply to the thread, else the failure.

    Args:
        grader: the grader, or a function from thread to number.
        threads: what to grade; the last turn of each is the completion.
        max_concurrent: how many threads are graded at once; None is no limit.

    Raises:
        ConfigurationError: ``max_concurrent`` is not a whole number of at least 1, nor None.
    """
    grader = as_grader("grader", grader)
    return await attempt_grades([(grader, thread) for thread in threads], ConcurrencyLimit(max_concurrent))
