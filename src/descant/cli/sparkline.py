"""sparkline: a curve in one line of text."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import isfinite, isinf, nan

_LEVELS = "▁▂▃▄▅▆▇█"
_NOT_FINITE = "×"


def sparkline(values: Sequence[float], width: int) -> str:
    """The values as blocks of eight heights, from their own minimum to their maximum, on at most ``width`` characters.

    More values than that are drawn as the means of ``width`` parts of about the same length. A part with a NaN or an
    infinity is a ×. Values that are all the same are a flat line.
    """
    if len(values) > width:
        borders = [part * len(values) // width for part in range(width + 1)]
        values = [_mean(values[start:end]) for start, end in pairwise(borders)]
    finite = [value for value in values if isfinite(value)]
    if not finite:
        return _NOT_FINITE * len(values)
    low, high = min(finite), max(finite)
    scale = 0.5 if isinf(high - low) else 1.0  # a range beyond the largest float
    span = high * scale - low * scale
    return "".join(
        _LEVELS[min(7, int((value * scale - low * scale) / (span or 1.0) * 8))] if isfinite(value) else _NOT_FINITE
        for value in values
    )


def _mean(values: Sequence[float]) -> float:
    """The mean, without overflow and not beyond the values, or NaN if one of them is not finite."""
    if not all(map(isfinite, values)):
        return nan
    return min(max(sum(value / len(values) for value in values), min(values)), max(values))
