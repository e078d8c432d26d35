"""Summaries of numbers, with the divisor of every standard deviation stated."""

from __future__ import annotations

from collections.abc import Sequence
from math import fsum, sqrt


def mean(values: Sequence[float]) -> float:
    """The arithmetic mean. ``values`` must not be empty."""
    return fsum(values) / len(values)


def population_std(values: Sequence[float]) -> float:
    """The standard deviation with divisor n, used for lengths."""
    center = mean(values)
    return sqrt(fsum((value - center) ** 2 for value in values) / len(values))


def sample_std(values: Sequence[float]) -> float:
    """The standard deviation with divisor n - 1, used for grades; 0 for a single value."""
    if len(values) < 2:
        return 0.0
    return population_std(values) * sqrt(len(values) / (len(values) - 1))


def summarize_scores(scores: Sequence[float]) -> dict[str, float]:
    """``score/mean``, ``score/std`` (sample), ``score/min``, ``score/max`` and ``score/count``.

    Without scores there is only ``score/count`` = 0: a mean of nothing is not a number.
    """
    if not scores:
        return {"score/count": 0}
    return {
        "score/mean": mean(scores),
        "score/std": sample_std(scores),
        "score/min": min(scores),
        "score/max": max(scores),
        "score/count": len(scores),
    }


def summarize_lengths(lengths: Sequence[int]) -> dict[str, float]:
    """``generation_length_mean`` and ``generation_length_std`` (population), in tokens; empty without lengths."""
    if not lengths:
        return {}
    return {"generation_length_mean": mean(lengths), "generation_length_std": population_std(lengths)}
