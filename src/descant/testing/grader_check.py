"""check_grader: whether a grader can be trusted with evaluations that run in parallel to training."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

from descant.errors import ConfigurationError, GradingError, IgnoreGradeException
from descant.graders.base import BaseGrader, Grade, grade_many
from descant.graders.log_scope import log_scope
from descant.testing.generators import check_draws, generator_states
from descant.testing.report import Problem, Report, in_time
from descant.text import quoted
from descant.threads.thread import StringThread, StringTurn

Grades = Sequence[Grade | Exception]
_NUM_TURNS = 6  # of the event loop, after which a grading is cancelled: in the beginning, the middle, at the end
_RETURNING_S = 5.0  # of abandoned calls


async def check_grader(
    grader: BaseGrader,
    threads: Sequence[StringThread],
    *,
    is_deterministic: bool = True,
    timeout_s: float = 60.0,
    raise_on_failure: bool = True,
) -> Report:
    """Check that a grader keeps the promises that descant's own keep.

    >>> async def test_my_grader():  # doctest: +SKIP
    ...     await check_grader(MyGrader(), [StringThread().user("2+2=").assistant("4")])

    The page "Testing" of the docs lists what is compared.

    Args:
        grader: what is checked; its logs are not touched.
        threads: which it can grade, with completions; at least two of different grades show the most.
        is_deterministic: whether it gives a thread the same grade each time; a judge that samples does not.
        timeout_s: seconds that grading all threads may take.
        raise_on_failure: raise what does not hold instead of returning it.

    Raises:
        AssertionError: something does not hold: the report, which says what differs.
        ConfigurationError: an argument that cannot work.
    """
    if not isinstance(grader, BaseGrader):
        raise ConfigurationError(f"grader={grader!r} is a {type(grader).__name__}; a BaseGrader is needed")
    if not threads or not all(isinstance(thread, StringThread) for thread in threads):
        raise ConfigurationError(f"threads={quoted(threads)}: a list of at least one StringThread is needed")
    report = Report(f"{type(grader).__name__.lstrip('_')} {grader.grader_key!r}")
    with log_scope():
        await _GraderCheck(grader, threads, is_deterministic, timeout_s, report).run()
    return report.conclude(raise_on_failure)


@dataclass
class _GraderCheck:
    """The single checks; see ``check_grader`` for the arguments."""

    _grader: BaseGrader
    _threads: Sequence[StringThread]
    _is_deterministic: bool
    _timeout_s: float
    _report: Report

    async def run(self) -> None:
        before = generator_states()
        with self._report.check("it grades each thread", f"{len(self._threads)} threads") as graded:
            self._grades = await in_time(self._grade_each(), self._timeout_s)
        if not graded.passed:
            return
        check_draws(
            self._report,
            before,
            "grading changes {}: in the modes 'overlap' and 'background' a grader works in parallel to training, and a "
            "trainer that draws from that generator, as Transformers' do, is then no longer the same",
        )
        self._num_graded = sum(isinstance(grade, Grade) for grade in self._grades)
        await self._check_repeated()
        await self._check_logs()
        await self._check_among("fails", LookupError("the kit's thread that cannot be read"))
        await self._check_among("it does not apply to", IgnoreGradeException("the kit's thread that is not graded"))
        await self._check_cancelled()

    async def _grade_each(self) -> Grades:
        """The grades, one thread after another; an exception where the grader does not apply."""
        grades: list[Grade | Exception] = []
        for position, thread in enumerate(self._threads):
            place = thread.source or f"threads[{position}]"
            try:
                grade = await self._grader.grade(thread)
            except IgnoreGradeException as error:
                grades.append(error)
                continue
            except Exception as error:
                raise Problem(f"{place}: {type(error).__name__}: {error}") from error
            if not isinstance(grade, Grade):
                kind = type(grade).__name__
                raise Problem(f"{place}: grade() returned {quoted(grade)} ({kind}); a Grade is needed")
            if not isinstance(grade.value, int | float) or not isfinite(grade.value):
                problem = f"the grade is {grade.value!r}, which is no finite number; raise what has gone wrong instead"
                raise Problem(f"{place}: {problem}")
            grades.append(grade)
        if not any(isinstance(grade, Grade) for grade in grades):
            raise Problem(f"it applies to none of the {len(grades)} threads: give it some that it grades")
        return grades

    async def _check_repeated(self) -> None:
        details = "alone, together and in another order"
        if not self._is_deterministic:
            details = "not compared, since it is said not to be deterministic"
        with self._report.check("the same grade every time, in order", details):
            for order in (1, -1):
                found = await self._grade_many(self._threads[::order])
                self._compare(found[::order], "{}; a judge that samples is checked with is_deterministic=False")

    async def _check_logs(self) -> None:
        with self._report.check("its logs stay in their scope", "an evaluation's and training's"):
            outside = self._grader.get_logs()
            hint = ": record with add_log, and read with super().get_logs(); else validation gets into training's logs"
            with log_scope():
                if self._grader.get_logs():
                    raise Problem(f"a new log scope is not empty{hint}")
                await self._grade_many(self._threads)
                self._check_count(hint)
                self._grader.get_logs(clear=True)
            if self._grader.get_logs() != outside:
                raise Problem(f"what was graded within a log scope is seen, or was cleared, outside of it{hint}")

    async def _check_among(self, what: str, error: Exception) -> None:
        """One thread among the others whose reading raises."""
        middle, bad = len(self._threads) // 2, _BadThread(error)
        details = f"{type(error).__name__} in its place, {self._num_graded} grades"
        with self._report.check(f"a thread that {what} is left out alone", details) as check, log_scope():
            results = await self._grade_many([*self._threads[:middle], bad, *self._threads[middle:]])
            if not bad.was_read:
                check.details = "it does not look at the turns of a thread"
                return
            result = results[middle]
            if isinstance(result, Grade):
                problem = "what cannot be graded must raise and not become a number"
                raise Problem(f"it was graded {result.value!r}: {problem}")
            if isinstance(result, IgnoreGradeException) is not isinstance(error, IgnoreGradeException):
                kinds = f"{type(error).__name__} has become {type(result).__name__}"
                raise Problem(f"{kinds}: the two are counted apart")
            self._check_count(": log what was graded, once")
            self._compare([*results[:middle], *results[middle + 1 :]], "beside it {}")

    async def _check_cancelled(self) -> None:
        with self._report.check("cancellation is survived", "it ends, and grades as before"):
            for num_turns in range(_NUM_TURNS):
                with log_scope():
                    grading = asyncio.ensure_future(grade_many(self._grader, self._threads))
                    for _ in range(num_turns):
                        await asyncio.sleep(0)
                    grading.cancel()
                    await asyncio.wait({grading}, timeout=self._timeout_s)
                if not grading.done():
                    raise Problem(
                        f"still running {self._timeout_s:g} s after its cancellation: let CancelledError pass"
                    )
            message = "after gradings that were cancelled: {}. Release with `async with` or `finally`"
            deadline = time.monotonic() + min(_RETURNING_S, self._timeout_s)
            while True:
                grades = await self._grade_many(self._threads, message)
                has_failed = any(isinstance(grade, GradingError) for grade in grades)
                if not has_failed or time.monotonic() > deadline:
                    break
                await asyncio.sleep(0.01)  # work in worker threads cannot be cancelled, and returns a little later
            self._compare(grades, message)

    async def _grade_many(self, threads: Sequence[StringThread], message: str = "{}") -> Grades:
        return await in_time(grade_many(self._grader, threads), self._timeout_s, message)

    def _compare(self, grades: Grades, message: str) -> None:
        """Raise with this message if a thread has another grade than at first."""
        if not self._is_deterministic:
            return
        pairs = zip(map(_shown, grades), map(_shown, self._grades), strict=True)
        for position, (grade, expected) in enumerate(pairs):
            if grade != expected:
                raise Problem(message.format(f"threads[{position}] is graded {grade}, and otherwise {expected}"))

    def _check_count(self, hint: str) -> None:
        """Raise if the logs of this scope count another number of grades; a grader need not log."""
        num_logged = self._grader.get_logs().get("score/count")
        if num_logged not in (None, self._num_graded):
            raise Problem(f"{self._num_graded} threads were graded, and its logs count {num_logged}{hint}")


class _BadThread(StringThread):
    """Raises when it is read."""

    def __init__(self, error: Exception) -> None:
        super().__init__([StringTurn("user", "2+2="), StringTurn("assistant", "4")], {"reference": "4"})
        self._error = error
        self.was_read = False

    def _read(self, *_: object, **__: object) -> Any:
        self.was_read = True
        raise self._error

    get_turns = messages = completion = last_content = chat_messages = to_json = _read


def _shown(grade: Grade | Exception) -> str:
    return repr(grade.value) if isinstance(grade, Grade) else f"{type(grade).__name__}: {grade}"
