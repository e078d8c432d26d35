"""Report: the results of a conformance check."""

from __future__ import annotations

import asyncio
import textwrap
from collections.abc import Awaitable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

from descant.text import duration

ResultT = TypeVar("ResultT")
_WIDTH = 118


class Problem(Exception):
    """What does not hold, and what to do about it; raised within ``Report.check``."""


@dataclass(slots=True)
class Check:
    """One property that was checked.

    Attributes:
        name: the property, in a few words.
        passed: whether it holds.
        details: what was compared; or what differs, and what to do.
    """

    name: str
    passed: bool
    details: str = ""


@dataclass(frozen=True, slots=True)
class MeasuredCost:
    """The cost of a callback in one mode, measured on a small model, to compare modes by.

    Attributes:
        mode: "inline", "overlap" or "background".
        num_calls: calls that were measured.
        seconds: duration of a call, on average, whether training waited for it or not.
        stall_s: seconds that training waited for a call, on average.
        num_tokens: tokens that models were given and have generated for a call, on average.
    """

    mode: str
    num_calls: int
    seconds: float
    stall_s: float
    num_tokens: float


@dataclass(slots=True)
class Report:
    """What was checked, with the results; ``print`` it.

    Attributes:
        subject: what was checked.
        checks: one after the other.
        costs: of a callback, by mode.
    """

    subject: str
    checks: list[Check] = field(default_factory=list)
    costs: list[MeasuredCost] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether all checks hold."""
        return not self.failures

    @property
    def failures(self) -> Sequence[Check]:
        """The checks that do not hold."""
        return [check for check in self.checks if not check.passed]

    @contextmanager
    def check(self, name: str, details: str = "") -> Iterator[Check]:
        """Add a check, which fails if ``Problem`` is raised within; its details may be set there, too."""
        check = Check(name, True, details)
        self.checks.append(check)
        try:
            yield check
        except Problem as problem:
            check.passed, check.details = False, str(problem)

    def conclude(self, raise_on_failure: bool) -> Report:
        """The report itself.

        Raises:
            AssertionError: a check does not hold, and ``raise_on_failure`` is on: the whole report.
        """
        if raise_on_failure and not self.passed:
            raise AssertionError(str(self))
        return self

    def __str__(self) -> str:
        num_passed = len(self.checks) - len(self.failures)
        lines = [f"{self.subject}: {num_passed} of {len(self.checks)} checks passed"]
        width = max((len(check.name) for check in self.checks), default=0)
        for check in self.checks:
            lines += _hanging(f"  {'ok  ' if check.passed else 'FAIL'}  {check.name:<{width}}  ", check.details)
        if self.costs:
            lines.append(f"  {'cost of a call':<22}{'seconds':>10}{'training waits':>18}{'tokens':>10}{'calls':>8}")
            for cost in self.costs:
                seconds, stall = duration(cost.seconds), duration(cost.stall_s)
                lines.append(f"    {cost.mode:<20}{seconds:>10}{stall:>18}{cost.num_tokens:>10,.0f}{cost.num_calls:>8}")
        return "\n".join(lines)


async def in_time(work: Awaitable[ResultT], timeout_s: float, message: str = "{}") -> ResultT:
    """The result of work. It becomes a problem, with this message, if it fails or takes too long."""
    try:
        return await asyncio.wait_for(work, timeout_s)
    except Problem as problem:
        reason = str(problem)
    except TimeoutError:
        reason = f"no answer within timeout_s={timeout_s:g}"
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
    raise Problem(message.format(reason))


def _hanging(head: str, text: str) -> list[str]:
    """The text behind the head, wrapped, with all its lines aligned."""
    wrapper = textwrap.TextWrapper(
        max(_WIDTH - len(head), 40), break_long_words=False, break_on_hyphens=False, replace_whitespace=False
    )
    rows = [row for line in text.splitlines() for row in wrapper.wrap(line) or [""]] or [""]
    return [(head + rows[0]).rstrip(), *(" " * len(head) + row for row in rows[1:])]
