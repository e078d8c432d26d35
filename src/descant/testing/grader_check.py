"""check_grader: whether a grader may be trusted with an evaluation that goes on beside training."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from math import isfinite
from typing import Any, TypeVar

from descant.errors import ConfigurationError, GradingError, IgnoreGradeException
from descant.graders.base import BaseGrader, Grade, grade_many
from descant.graders.log_scope import log_scope
from descant.testing.bare_loop import generator_states
from descant.testing.report import Report, first_problem
from descant.threads.thread import StringThread, StringTurn

ResultT = TypeVar("ResultT")
_NUM_TURNS = 6  # of the event loop, after which a grading is cancelled: in the beginning, the middle, at the end
_RETURNING_S = 5.0  # of abandoned calls
_DRAWS = (
    "in the modes 'overlap' and 'background' a grader works while training goes on, and a trainer that draws from that "
    "generator, as Transformers' do, is then no longer the same; draw from a generator of your own, random.Random(seed)"
)


class UnreadableThreadError(LookupError):
    """What reading the kit's unreadable thread raises."""


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

    It grades the threads again and again, alone and together, with one among them that cannot be read and one that it
    does not apply to, and gives up in the middle; and compares the grades, its logs, and the global random generators.

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
        raise ConfigurationError(f"threads={threads!r:.60}: a list of at least one StringThread is needed")
    report = Report(f"{type(grader).__name__.lstrip('_')} {grader.grader_key!r}")
    return (await _GraderCheck(grader, threads, is_deterministic, timeout_s, report).run()).conclude(raise_on_failure)


class _GraderCheck:
    def __init__(
        self,
        grader: BaseGrader,
        threads: Sequence[StringThread],
        is_deterministic: bool,
        timeout_s: float,
        report: Report,
    ) -> None:
        self._grader, self._threads, self._timeout_s = grader, threads, timeout_s
        self._is_deterministic, self._report = is_deterministic, report

    async def run(self) -> Report:
        with log_scope():
            before = generator_states()
            found = await self._in_time(self._attempt_each)
            drawn = [name for name, value in generator_states().items() if value != before[name]]
            if not self._report.add("it grades each thread", self._ungraded(found), f"{len(self._threads)} threads"):
                return self._report
            grades: list[Grade | Exception] = found  # type: ignore[assignment]  # they were looked at
            await self._check_repeated(grades)
            problem = f"grading changes {drawn[0]}: {_DRAWS}" if drawn else None
            self._report.add("it draws nothing from global generators", problem, "Python's, numpy's, torch's")
            await self._check_among(grades, UnreadableThreadError("the thread of the kit that cannot be read"), "fails")
            await self._check_among(
                grades, IgnoreGradeException("the thread of the kit that is not to be graded"), "it does not apply to"
            )
            await self._check_logs(grades)
            await self._check_cancelled(grades)
        return self._report

    async def _in_time(self, work: Callable[[], Awaitable[ResultT]]) -> ResultT | str:
        """The result, or what to say if there is none in time."""
        try:
            return await asyncio.wait_for(work(), self._timeout_s)
        except TimeoutError:
            return f"no answer within timeout_s={self._timeout_s:g}"

    async def _attempt_each(self) -> list[Any]:
        """What ``grade`` returns or raises, one thread after another."""
        results: list[Any] = []
        for thread in self._threads:
            try:
                results.append(await self._grader.grade(thread))
            except Exception as error:
                results.append(error)
        return results

    async def _grade_many(self, threads: Sequence[StringThread]) -> list[Grade | Exception] | str:
        return await self._in_time(lambda: grade_many(self._grader, threads))

    def _ungraded(self, results: list[Any] | str) -> str | None:
        """Which thread has no grade, or one that is none."""
        if isinstance(results, str):
            return results
        for position, result in enumerate(results):
            place = self._threads[position].source or f"threads[{position}]"
            if isinstance(result, IgnoreGradeException):
                continue
            if isinstance(result, Exception):
                return f"{place}: {type(result).__name__}: {result}"
            value = getattr(result, "value", result)
            if not isinstance(result, Grade):
                return f"{place}: grade() returned {result!r:.60} ({type(result).__name__}); a Grade is needed"
            if not isinstance(value, int | float) or not isfinite(value):
                return f"{place}: the grade is {value!r}, which is no finite number; raise what has gone wrong instead"
        if all(isinstance(result, Exception) for result in results):
            return f"it applies to none of the {len(results)} threads: give it some that it grades"
        return None

    async def _check_repeated(self, grades: Sequence[Grade | Exception]) -> None:
        together = await self._grade_many(self._threads)
        backwards = await self._grade_many(self._threads[::-1])
        name = "the same grade every time, in order"
        if not self._is_deterministic:
            kinds = [isinstance(result, Grade) for result in together]
            problem = None if kinds == [isinstance(grade, Grade) for grade in grades] else "another thread is graded"
            self._report.add(name, problem, "not compared, since it is said not to be deterministic")
            return
        hint = "; a judge that samples is checked with is_deterministic=False"
        problem = first_problem([_difference(together, grades), _difference(backwards, grades[::-1])])
        self._report.add(name, problem and problem + hint, "alone, together and in another order")

    async def _check_among(self, grades: Sequence[Grade | Exception], error: Exception, what: str) -> None:
        """One thread among the others whose reading raises."""
        middle = len(self._threads) // 2
        bad = _BadThread(error)
        with log_scope():
            results = await self._grade_many([*self._threads[:middle], bad, *self._threads[middle:]])
            num_logged = self._grader.get_logs().get("score/count")
        name = f"a thread that {what} is left out alone"
        if isinstance(results, str):
            self._report.add(name, results)
            return
        result = results.pop(middle)
        problem = None
        if not bad.was_read:
            self._report.add(name, None, "it does not look at the turns of a thread")
            return
        if not isinstance(result, Exception):
            problem = f"it was graded {result.value!r}: what cannot be graded must raise and not become a number"
        elif isinstance(result, IgnoreGradeException) is not isinstance(error, IgnoreGradeException):
            problem = f"{type(error).__name__} has become {type(result).__name__}: the two are counted apart"
        num_graded = sum(isinstance(grade, Grade) for grade in grades)
        if problem is None and num_logged not in (None, num_graded):
            problem = f"{num_graded} threads were graded, and its logs count {num_logged}: log what was graded, once"
        differs = _difference(results, grades) if self._is_deterministic else None
        problem = problem or (differs and f"beside it {differs}")
        self._report.add(name, problem, f"{type(error).__name__} in its place, {num_graded} grades")

    async def _check_logs(self, grades: Sequence[Grade | Exception]) -> None:
        outside = self._grader.get_logs()
        num_graded = sum(isinstance(grade, Grade) for grade in grades)
        problems = []
        with log_scope():
            if self._grader.get_logs():
                problems.append("a new log scope is not empty")
            await self._grade_many(self._threads)
            num_logged = self._grader.get_logs().get("score/count")
            if num_logged not in (None, num_graded):
                problems.append(f"{num_graded} threads were graded, and its logs count {num_logged}")
            self._grader.get_logs(clear=True)
        if self._grader.get_logs() != outside:
            problems.append("what was graded within a log scope is seen, or was cleared, outside of it")
        hint = ": record with add_log, and read with super().get_logs(); else validation gets into training's logs"
        problem = first_problem(problems)
        self._report.add("its logs stay in their scope", problem and problem + hint, "an evaluation's and training's")

    async def _check_cancelled(self, grades: Sequence[Grade | Exception]) -> None:
        problem = None
        for num_turns in range(_NUM_TURNS):
            with log_scope():
                grading = asyncio.ensure_future(grade_many(self._grader, self._threads))
                for _ in range(num_turns):
                    await asyncio.sleep(0)
                grading.cancel()
                done, _ = await asyncio.wait({grading}, timeout=self._timeout_s)
            if not done:
                problem = f"it goes on {self._timeout_s:g} s after it was cancelled: it must let CancelledError pass"
                break
        if problem is None:
            after = await self._grade_again()
            found = after if isinstance(after, str) else _difference(after, grades) if self._is_deterministic else None
            problem = found and f"after gradings that were cancelled: {found}. Release with `async with` or `finally`"
        self._report.add("cancellation is survived", problem, "it ends, and grades as before")

    async def _grade_again(self) -> list[Grade | Exception] | str:
        """The grades; work in threads cannot be cancelled, so what was given up there may take a moment to return."""
        deadline = time.monotonic() + min(_RETURNING_S, self._timeout_s)
        while True:
            results = await self._grade_many(self._threads)
            has_failed = not isinstance(results, str) and any(isinstance(result, GradingError) for result in results)
            if not has_failed or time.monotonic() > deadline:
                return results
            await asyncio.sleep(0.01)


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


def _difference(results: Sequence[Grade | Exception] | str, expected: Sequence[Grade | Exception]) -> str | None:
    """The first thread with another grade."""
    if isinstance(results, str):
        return results
    for position, (result, other) in enumerate(zip(results, expected, strict=True)):
        if _shown(result) != _shown(other):
            return f"threads[{position}] is graded {_shown(result)}, and otherwise {_shown(other)}"
    return None


def _shown(result: Grade | Exception) -> str:
    return repr(result.value) if isinstance(result, Grade) else f"{type(result).__name__}: {result}"
