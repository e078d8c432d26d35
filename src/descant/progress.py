"""Progress: completed over planned steps, as an exact rational."""

from __future__ import annotations

from fractions import Fraction
from math import ceil, isfinite
from numbers import Rational, Real
from typing import NamedTuple


def exact_fraction(value: float | Fraction | str) -> Fraction:
    """The simplest rational that a number stands for: 0.1 is 1/10, so that ``exact_fraction(0.28) * 25 == 7``.

    A float is the closest fraction with a denominator of at most 10**6, if that rounds back to the very same float;
    otherwise the decimal that Python prints for it. Strings ("1/3", "0.1") and fractions are taken as they are.

    Raises:
        ValueError: NaN, infinity, or a string that is not a number.
    """
    if isinstance(value, Real) and not isinstance(value, Rational):
        value = float(str(value))  # numpy's floats by the digits that they print
        if not isfinite(value):
            raise ValueError(f"{value!r} is not a finite number")
        simplest = Fraction(value).limit_denominator(10**6)
        return simplest if float(simplest) == value else Fraction(str(value))
    return Fraction(value)


def planned_steps(epochs: float | Fraction, num_samples: int, samples_per_batch: int) -> int:
    """The number of steps of a run: ``ceil(epochs * num_samples / samples_per_batch)``, in exact arithmetic."""
    return ceil(exact_fraction(epochs) * num_samples / samples_per_batch)


class Progress(NamedTuple):
    """Completed steps out of planned steps, and the seconds since the run started."""

    step: int
    num_steps: int
    elapsed_s: float = 0.0

    @classmethod
    def from_percentage(cls, current_percentage: float) -> Progress:
        """The progress that a number in [0, 1] stands for."""
        fraction = exact_fraction(current_percentage)
        return cls(fraction.numerator, fraction.denominator)

    @property
    def fraction(self) -> Fraction:
        """The exact progress: 0 before the first step, 1 after the last."""
        return Fraction(self.step, self.num_steps)

    @property
    def percentage(self) -> float:
        """The progress as a float in [0, 1]. (The name is historic: it is a fraction.)"""
        return self.step / self.num_steps

    @property
    def is_complete(self) -> bool:
        """Whether the last step is done."""
        return self.step >= self.num_steps
