"""Report: what a conformance check has found."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from descant.runner.costs import describe_seconds

_WIDTH = 118


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: in a few words.
        passed: whether it holds.
        details: what was compared; or what differs, and what to do.
    """

    name: str
    passed: bool
    details: str = ""


@dataclass(frozen=True, slots=True)
class MeasuredCost:
    """What a callback has cost in one mode: a measurement on a small model, to compare modes by.

    Attributes:
        mode: "inline", "overlap" or "background".
        num_calls: calls that were made.
        seconds: of one call, on average, in the loop and beside it.
        stall_s: seconds that training waited for one.
        num_tokens: tokens that models were given and have generated for one.
    """

    mode: str
    num_calls: int
    seconds: float
    stall_s: float
    num_tokens: float


@dataclass(slots=True)
class Report:
    """What was checked, and what it came to; ``print`` it.

    Attributes:
        subject: what was checked.
        checks: one after the other.
        costs: what it has cost, by mode; of callbacks.
    """

    subject: str
    checks: list[Check] = field(default_factory=list)
    costs: list[MeasuredCost] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether all checks hold."""
        return all(check.passed for check in self.checks)

    @property
    def failures(self) -> Sequence[Check]:
        """The checks that do not hold."""
        return [check for check in self.checks if not check.passed]

    def add(self, name: str, problem: str | None, details: str = "") -> bool:
        """Add a check, which fails if there is a problem; returns whether it holds."""
        self.checks.append(Check(name, problem is None, details if problem is None else problem))
        return problem is None

    def conclude(self, raise_on_failure: bool) -> Report:
        """The report itself.

        Raises:
            AssertionError: a check does not hold, with the whole report, if that is wanted.
        """
        if raise_on_failure and not self.passed:
            raise AssertionError(str(self))
        return self

    def __str__(self) -> str:
        num_passed = len(self.checks) - len(self.failures)
        lines = [f"{self.subject}: {num_passed} of {len(self.checks)} checks passed"]
        width = max((len(check.name) for check in self.checks), default=0)
        for check in self.checks:
            head = f"  {'ok  ' if check.passed else 'FAIL'}  {check.name:<{width}}  "
            lines += _hanging(head, check.details)
        if self.costs:
            lines.append(f"  {'cost of a call':<22}{'seconds':>10}{'training waits':>18}{'tokens':>10}{'calls':>8}")
            for cost in self.costs:
                seconds, stall = describe_seconds(cost.seconds), describe_seconds(cost.stall_s)
                lines.append(f"    {cost.mode:<20}{seconds:>10}{stall:>18}{cost.num_tokens:>10,.0f}{cost.num_calls:>8}")
        return "\n".join(lines)


def first_problem(problems: Sequence[str | None]) -> str | None:
    """The first of them that is one."""
    return next((problem for problem in problems if problem is not None), None)


def _hanging(head: str, text: str) -> list[str]:
    """The text behind the head, wrapped, with all its lines aligned."""
    wrap: Callable[[str], list[str]] = textwrap.TextWrapper(
        max(_WIDTH - len(head), 40), break_long_words=False, break_on_hyphens=False, replace_whitespace=False
    ).wrap
    rows = [row for line in text.splitlines() for row in wrap(line) or [""]] or [""]
    return [(head + rows[0]).rstrip(), *(" " * len(head) + row for row in rows[1:])]
