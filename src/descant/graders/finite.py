"""Which settings are finite numbers."""

from __future__ import annotations

from math import inf
from numbers import Real
from typing import TypeGuard


def is_finite_number(value: object) -> TypeGuard[float]:
    """Whether ``value`` is a number that is neither NaN nor infinite; a bool is none, for it is a mistake."""
    return isinstance(value, Real) and not isinstance(value, bool) and bool(-inf < value < inf)
