"""Schedules: when something is due, as small frozen objects in exact arithmetic."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import ceil
from numbers import Rational

from descant.errors import ConfigurationError
from descant.progress import Progress, exact_fraction


@dataclass(frozen=True, slots=True)
class Every:
    """Due at the first step whose progress reaches k * fraction, for k = 1, 2, ... while that is at most 1."""

    fraction: Fraction

    def boundaries_passed(self, progress: Progress) -> int:
        """How many boundaries lie in (0, progress]. Integers only: nothing can drift."""
        return (progress.step * self.fraction.denominator) // (progress.num_steps * self.fraction.numerator)

    def crossed(self, before: Progress, after: Progress) -> bool:
        """Whether a boundary lies in (before, after]: a jump neither skips nor repeats one."""
        return self.boundaries_passed(after) > self.boundaries_passed(before)

    def due_steps(self, num_steps: int) -> list[int]:
        """Every step of a run of ``num_steps`` at which it is due; boundaries on one step are merged.

        >>> every(0.25).due_steps(10)
        [3, 5, 8, 10]
        """
        num_boundaries = int(1 / self.fraction)
        if num_boundaries >= num_steps:  # at least one boundary in every step: do not list a million of them
            return [
                step
                for step in range(1, num_steps + 1)
                if self.crossed(Progress(step - 1, num_steps), Progress(step, num_steps))
            ]
        return sorted({ceil(k * self.fraction * num_steps) for k in range(1, num_boundaries + 1)})

    def __str__(self) -> str:
        percent = f"{float(self.fraction * 100):g}"
        return f"every {percent} %" if Fraction(percent) == self.fraction * 100 else f"every {self.fraction}"


def every(frequency: float | Fraction | str) -> Every:
    """The schedule of ``frequency``: a share of the run in (0, 1]. ``every(0.1)`` is every 10 %.

    Args:
        frequency: a float (taken as the simplest rational that it stands for), a fraction, or a string
            such as ``"1/3"``.

    Raises:
        ConfigurationError: NaN, 0, negative, above 1, or not a number; the message says what is allowed.
    """
    allowed = "a share of the run above 0 and at most 1, such as 0.1 for every 10 %"
    if isinstance(frequency, bool) or not isinstance(frequency, float | Rational | str):
        raise ConfigurationError(f"frequency={frequency!r} is a {type(frequency).__name__}; it must be {allowed}")
    try:
        fraction = exact_fraction(frequency)
    except (ValueError, ZeroDivisionError):
        raise ConfigurationError(f"frequency={frequency!r} is not a number; it must be {allowed}") from None
    if 1 < fraction <= 100:
        hint = f"; did you mean {float(fraction / 100):g} (every {float(fraction):g} % of the run)?"
        raise ConfigurationError(f"frequency={frequency!r} is above 1; it must be {allowed}{hint}")
    if not 0 < fraction <= 1:
        raise ConfigurationError(f"frequency={frequency!r} is out of range; it must be {allowed}")
    return Every(fraction)
