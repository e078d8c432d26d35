"""Numbers and durations as people read them."""

from __future__ import annotations

from math import isfinite, isnan
from typing import Any


def figure(value: float) -> str:
    """A number with four significant digits; whole numbers in full."""
    if isnan(value):
        return "NaN"
    if isfinite(value) and value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:,.0f}" if 1e4 <= abs(value) < 1e15 else f"{value:.4g}"


def cell_text(value: Any) -> str:
    """A cell of a sample table: nothing for None, and quotes for a text that is empty."""
    if value is None:
        return ""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return figure(value)
    return str(value) or "''"


def duration(seconds: float) -> str:
    """Seconds up to two minutes, then minutes, then hours and minutes."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02} min"
