"""Summaries of numbers, with the divisor of every standard deviation stated."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, pstdev, stdev


def summarize_scores(scores: Sequence[float]) -> dict[str, float]:
    """``score/mean``, ``score/std``, ``score/min``, ``score/max`` and ``score/count``.

    The standard deviation is the sample's (divisor n - 1), and 0 for one score. Without scores there is only
    ``score/count`` = 0: a mean of nothing is not a number.
    """
    if not scores:
        return {"score/count": 0}
    return {
        "score/mean": fmean(scores),
        "score/std": stdev(scores) if len(scores) > 1 else 0.0,
        "score/min": min(scores),
        "score/max": max(scores),
        "score/count": len(scores),
    }


def summarize_lengths(lengths: Sequence[int]) -> dict[str, float]:
    """``generation_length_mean`` and ``generation_length_std`` (population
    standard deviation, divisor n), in tokens; empty without lengths."""
    if not lengths:
        return {}
    return {"generation_length_mean": fmean(lengths), "generation_length_std": pstdev(lengths)}
