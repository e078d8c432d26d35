"""Batch plans: how a list of sequences is cut into micro-batches. A pure function of the lengths."""

from __future__ import annotations

from collections.abc import Sequence


def plan_batches(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Indices of ``lengths`` in batches of similar length, each at most ``max_tokens`` when padded.

    Sequences are sorted, longest first (so that a budget that is too large fails in the first batch, not in the
    last), and cut where ``rows * longest`` would pass the budget. A sequence longer than the budget gets a batch
    of its own. Empty sequences are placed like any other.
    """
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= max_tokens:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches
