"""Schedules: when a callback is due, as small frozen objects in exact arithmetic."""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import isfinite
from numbers import Rational

from descant.errors import ConfigurationError
from descant.progress import Progress, exact_fraction


class Schedule(ABC):
    """When a callback is due. Schedules are joined with ``|``; a step at which several are due is one call.

    Made by ``every``, ``every_steps``, ``every_minutes`` and ``at``.

    >>> print((every(0.5) | every_steps(4)).plan(10))
    every 50 % or every 4 steps: 4 calls, after steps 4, 5, 8, 10 of 10
    """

    @abstractmethod
    def num_passed(self, progress: Progress) -> int:
        """How many boundaries have been reached."""

    @abstractmethod
    def __str__(self) -> str:
        """When, in words."""

    def due_steps(self, num_steps: int) -> list[int]:
        """The steps of a run of ``num_steps`` at which it is due, as far as they are known before the run.

        >>> every(0.25).due_steps(10)
        [3, 5, 8, 10]
        """

        def passed(step: int) -> int:
            return self.num_passed(Progress(step, num_steps))

        steps: list[int] = []
        step, num_before = 0, 0
        while num_before < passed(num_steps):  # in ever longer strides to beyond the next boundary, then back to it
            stride = 1
            while passed(min(step + stride, num_steps)) <= num_before:
                stride *= 2
            step = bisect_right(range(num_steps + 1), num_before, step, min(step + stride, num_steps), key=passed)
            steps.append(step)
            num_before = passed(step)
        return steps

    def crossed(self, before: Progress, after: Progress) -> bool:
        """Whether a boundary lies in (before, after]: a jump over several is one call, and none is repeated."""
        return self.num_passed(after) > self.num_passed(before)

    @property
    def follows_progress(self) -> bool:
        """Whether the progress of the run alone decides, without steps or seconds."""
        return False

    @property
    def period_s(self) -> float | None:
        """Seconds between the calls that come by the clock; None if ``due_steps`` has all calls."""
        return None

    def plan(self, num_steps: int) -> Plan:
        """When it is due in a run of ``num_steps`` steps, to print."""
        return Plan("", str(self), num_steps, self.due_steps(num_steps), self.period_s)

    def __or__(self, other: Schedule) -> Schedule:
        if not isinstance(other, Schedule):
            return NotImplemented
        parts = [part for side in (self, other) for part in (side.parts if isinstance(side, Either) else (side,))]
        return Either(tuple(dict.fromkeys(parts)))


Frequency = float | Fraction | str | Schedule
"""What a callback takes as ``frequency``: a share of the run in (0, 1], or a schedule."""


@dataclass(frozen=True, slots=True)
class Plan:
    """When calls will be made in a run, before it starts.

    Attributes:
        name: whose plan it is; may be empty.
        schedule: when, in words.
        num_steps: the length of the run.
        steps: after which steps; 0 is before the first.
        period_s: seconds between further calls that come by the clock.
        follows: the metric with which further calls come.
    """

    name: str
    schedule: str
    num_steps: int
    steps: Sequence[int]
    period_s: float | None = None
    follows: str | None = None

    @property
    def is_complete(self) -> bool:
        """Whether ``steps`` has all calls."""
        return self.period_s is None and self.follows is None

    @property
    def num_calls(self) -> str:
        """How many calls: a number, with a ``+`` if there may be more."""
        return f"{len(self.steps)}" if self.is_complete else f"{len(self.steps)}+"

    def describe_steps(self, num_shown: int = 6) -> str:
        """The steps in words, the middle left out when there are many."""
        if len(self.steps) <= num_shown:
            return ", ".join(map(str, self.steps)) or ("never" if self.is_complete else "not known before")
        head = ", ".join(map(str, self.steps[: num_shown - 2]))
        return f"{head}, …, {self.steps[-1]}"

    def __str__(self) -> str:
        name = f"{self.name}: " if self.name else ""
        plural = "" if self.num_calls == "1" else "s"
        where = f"after steps {self.describe_steps()} of {self.num_steps}" if self.steps else self.describe_steps()
        return f"{name}{self.schedule}: {self.num_calls} call{plural}, {where}"


@dataclass(frozen=True)
class Every(Schedule):
    """Due at the first step whose progress reaches k * fraction, for k = 1, 2, ... while that is at most 1."""

    fraction: Fraction
    follows_progress = True

    def num_passed(self, progress: Progress) -> int:
        """Of integers only, so that nothing can drift."""
        return (progress.step * self.fraction.denominator) // (progress.num_steps * self.fraction.numerator)

    def __str__(self) -> str:
        return f"every {_percent(self.fraction)}"


@dataclass(frozen=True)
class EverySteps(Schedule):
    """Due after every so many steps."""

    interval: int

    def num_passed(self, progress: Progress) -> int:
        """Completed intervals."""
        return progress.step // self.interval

    def __str__(self) -> str:
        return "every step" if self.interval == 1 else f"every {self.interval} steps"


@dataclass(frozen=True)
class EveryMinutes(Schedule):
    """Due at the first step that ends at or after k * minutes since the start of the run, for k = 1, 2, ..."""

    minutes: Fraction

    def num_passed(self, progress: Progress) -> int:
        """Completed intervals of wall time."""
        return int(progress.elapsed_s // self.period_s)

    @property
    def period_s(self) -> float:
        """The interval."""
        return float(self.minutes * 60)

    def __str__(self) -> str:
        return f"every {float(self.minutes):g} min"


@dataclass(frozen=True)
class At(Schedule):
    """Due at the first step whose progress reaches a point, for each of the points."""

    points: tuple[Fraction, ...]
    follows_progress = True

    def num_passed(self, progress: Progress) -> int:
        """The points that have been reached."""
        return sum(point <= progress.fraction for point in self.points)

    def __str__(self) -> str:
        return f"at {', '.join(map(_percent, self.points))}" if self.points else "never"


@dataclass(frozen=True)
class Either(Schedule):
    """Due when any of its parts is."""

    parts: tuple[Schedule, ...]

    @property
    def follows_progress(self) -> bool:
        """Whether all parts do."""
        return all(part.follows_progress for part in self.parts)

    def num_passed(self, progress: Progress) -> int:
        """Boundaries of all parts."""
        return sum(part.num_passed(progress) for part in self.parts)

    @property
    def period_s(self) -> float | None:
        """That of all parts together: their rates add up."""
        periods = [part.period_s for part in self.parts if part.period_s is not None]
        return 1 / sum(1 / period for period in periods) if periods else None

    def __str__(self) -> str:
        return " or ".join(map(str, self.parts))


NEVER = At(())
"""The schedule of callbacks that do not run by time, but for another reason."""


def every(frequency: float | Fraction | str) -> Every:
    """The schedule of a share of the run in (0, 1]. ``every(0.1)`` is every 10 %.

    Args:
        frequency: a number, see ``progress.exact_fraction``.

    Raises:
        ConfigurationError: NaN, 0, negative, above 1, or not a number; the message says what is allowed.
    """
    allowed = "a share of the run above 0 and at most 1, such as 0.1 for every 10 %"
    fraction = _exact(frequency, "frequency", allowed)
    if 1 < fraction <= 100:
        hint = f"; did you mean {float(fraction / 100):g} (every {float(fraction):g} % of the run)?"
        if isinstance(frequency, int):
            hint += f" or every_steps({frequency})?"
        raise ConfigurationError(f"frequency={frequency!r} is above 1; it must be {allowed}{hint}")
    if not 0 < fraction <= 1:
        raise ConfigurationError(f"frequency={frequency!r} is out of range; it must be {allowed}")
    return Every(fraction)


def every_steps(interval: int) -> EverySteps:
    """The schedule of every so many steps: after steps n, 2n, 3n, ...

    Raises:
        ConfigurationError: not a whole number of at least 1.
    """
    if not isinstance(interval, int) or isinstance(interval, bool) or interval < 1:
        raise ConfigurationError(f"every_steps({interval!r}): a whole number of steps, at least 1, is needed")
    return EverySteps(interval)


def every_minutes(minutes: float | Fraction | str) -> EveryMinutes:
    """The schedule of the clock: due at the first step that ends after another so many minutes.

    Which steps these are is known only when they come, so two runs differ; use it for what should not be lost
    (checkpoints), not for curves.

    Raises:
        ConfigurationError: not a number above 0.
    """
    allowed = "a number of minutes above 0"
    fraction = _exact(minutes, "minutes", allowed)
    if fraction <= 0 or not isfinite(float(fraction)):
        raise ConfigurationError(f"every_minutes({minutes!r}): {allowed} is needed")
    return EveryMinutes(fraction)


def at(*points: float | Fraction | str) -> At:
    """The schedule of single points of the run, as shares in [0, 1]: ``at(0.25, 0.5)``.

    0 and 1 are before the first step and after the last, where a callback runs anyway unless it is made with
    ``at_start=False`` or ``at_end=False``.

    Raises:
        ConfigurationError: no points, or one outside of [0, 1].
    """
    allowed = "shares of the run from 0 to 1, such as at(0.25, 0.5)"
    if not points:
        raise ConfigurationError(f"at() needs {allowed}")
    fractions = [_exact(point, "point", allowed) for point in points]
    for point, fraction in zip(points, fractions, strict=True):
        if not 0 <= fraction <= 1:
            raise ConfigurationError(f"at({point!r}) is out of range; allowed are {allowed}")
    return At(tuple(sorted(set(fractions))))


def as_schedule(frequency: Frequency) -> Schedule:
    """A schedule as it is, or ``every(frequency)``."""
    return frequency if isinstance(frequency, Schedule) else every(frequency)


def _exact(value: float | Fraction | str, name: str, allowed: str) -> Fraction:
    if isinstance(value, bool) or not isinstance(value, float | Rational | str):
        raise ConfigurationError(f"{name}={value!r} is a {type(value).__name__}; it must be {allowed}")
    try:
        return exact_fraction(value)
    except (ValueError, ZeroDivisionError):
        raise ConfigurationError(f"{name}={value!r} is not a number; it must be {allowed}") from None


def _percent(fraction: Fraction) -> str:
    percent = f"{float(fraction * 100):g}"
    return f"{percent} %" if Fraction(percent) == fraction * 100 else f"{fraction}"
