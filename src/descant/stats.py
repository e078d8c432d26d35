"""Statistics: means, standard deviations (each with its divisor), standard errors and pass@k."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from math import ceil, fsum, prod, sqrt
from statistics import fmean, pstdev, stdev
from typing import NamedTuple

SCORE_KEYS = frozenset(f"score/{name}" for name in ("mean", "std", "min", "max", "count", "stderr"))
"""What ``summarize_scores`` returns."""


def summarize_scores(scores: Sequence[float], groups: Sequence[Hashable] | None = None) -> dict[str, float]:
    """``score/mean``, ``score/std``, ``score/min``, ``score/max``, ``score/count`` and ``score/stderr``.

    The standard deviation is the sample's (divisor n - 1), and 0 for one score. ``score/stderr`` is the standard error
    of the mean, see ``standard_error``; it is left out if it is unknown. Without scores there is only
    ``score/count`` = 0: a mean of nothing is not a number.

    Args:
        scores: all scores.
        groups: the group of each score, such as its prompt; by default each is its own group.
    """
    if not scores:
        return {"score/count": 0}
    error = standard_error(scores, groups)
    return {
        "score/mean": fmean(scores),
        "score/std": stdev(scores) if len(scores) > 1 else 0.0,
        "score/min": min(scores),
        "score/max": max(scores),
        "score/count": len(scores),
        **({} if error is None else {"score/stderr": error}),
    }


def summarize_lengths(lengths: Sequence[int], groups: Sequence[Hashable] | None = None) -> dict[str, float]:
    """``generation_length_mean``, ``generation_length_std`` (population standard deviation, divisor n) and
    ``generation_length_stderr`` (standard error of the mean, if it is known), in tokens; empty without lengths."""
    if not lengths:
        return {}
    error = standard_error(lengths, groups)
    return {
        "generation_length_mean": fmean(lengths),
        "generation_length_std": pstdev(lengths),
        **({} if error is None else {"generation_length_stderr": error}),
    }


def standard_error(
    values: Sequence[float], groups: Sequence[Hashable] | None = None, weights: Sequence[float] | None = None
) -> float | None:
    """The standard error of a (weighted) mean of values that are alike within groups; None for fewer than two groups.

    Several completions of one prompt, or the tokens of one text, are not independent: the groups are. With residuals
    r = weight * (value - mean), summed within each of G groups, it is sqrt(G / (G - 1) * sum of squares) / sum of
    weights: the clustered standard error of Miller, "Adding error bars to evals" (arXiv:2411.00640), with the small
    sample factor. With one value per group and no weights it is the sample standard deviation over sqrt(n).
    """
    weights = [1.0] * len(values) if weights is None else weights
    groups = range(len(values)) if groups is None else groups
    num_groups = len(set(groups))
    if num_groups < 2:
        return None
    total = fsum(weights)
    mean = fsum(weight * value for weight, value in zip(weights, values, strict=True)) / total
    residuals: defaultdict[Hashable, float] = defaultdict(float)
    for group, value, weight in zip(groups, values, weights, strict=True):
        residuals[group] += weight * (value - mean)
    return sqrt(num_groups / (num_groups - 1) * fsum(r * r for r in residuals.values())) / total


def pass_at_k(num_samples: int, num_passed: int, k: int) -> float:
    """The probability that at least one of k completions passes, estimated without bias from n >= k completions.

    1 - C(n - c, k) / C(n, k), as a product (Chen et al., arXiv:2107.03374).
    """
    if num_samples - num_passed < k:
        return 1.0
    return 1.0 - prod(1.0 - k / i for i in range(num_samples - num_passed + 1, num_samples + 1))


class FinalMean(NamedTuple):
    """The mean and the population standard deviation of the last values of a curve, and how many values those are."""

    mean: float
    std: float
    num_values: int


def num_final(num_values: int) -> int:
    """How many values of a curve are its last: a tenth, and at least two, since the last batch may be short."""
    return max(2, ceil(num_values / 10))


def final_mean(values: Sequence[float], weights: Sequence[float]) -> FinalMean | None:
    """The weighted mean of values; None if none has a weight."""
    if not (total := fsum(weights)):
        return None
    mean = fsum(value * weight for value, weight in zip(values, weights, strict=True)) / total
    variance = fsum(weight * (value - mean) ** 2 for value, weight in zip(values, weights, strict=True)) / total
    return FinalMean(mean, sqrt(variance), len(values))
