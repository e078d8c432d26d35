"""Which settings are finite numbers."""

from __future__ import annotations

from math import isfinite
from numbers import Real
from typing import TypeGuard


def is_finite_number(value: object) -> TypeGuard[float]:
    """Whether ``value`` is a number that a float can hold, neither NaN nor infinite; a bool is none."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return False
    try:
        return isfinite(value)
    except OverflowError:  # an integer that is too large
        return False
