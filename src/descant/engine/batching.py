"""Batch plans: how a list of sequences is cut into micro-batches. A pure function of the lengths."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def plan_batches(lengths: Sequence[int], max_tokens: int, overhead_tokens: int = 0) -> list[list[int]]:
    """Indices of ``lengths`` in batches of similar length, each at most ``max_tokens`` when padded.

    Sequences are sorted, longest first (so that a budget that is too large fails in the first batch, not in the
    last), and cut into the runs of least total cost, where a run costs ``rows * longest`` padded tokens and
    ``overhead_tokens`` (what starting a forward pass takes, as tokens): the optimum, by dynamic programming over the
    cuts. A sequence longer than the budget gets a batch of its own. Empty sequences are placed like any other.
    """
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    if not order:
        return []
    sizes = np.maximum([lengths[index] for index in order], 1)
    num = len(sizes)
    # costs[i]: of the best plan for the sequences from i on; ends[i]: where its first batch ends. From the short end.
    costs = np.zeros(num + 1)
    ends = np.zeros(num, dtype=int)
    for start in range(num - 1, -1, -1):
        rows = np.arange(1, min(num - start, max(1, max_tokens // int(sizes[start]))) + 1)
        totals = rows * sizes[start] + costs[start + rows]
        best = int(np.argmin(totals))
        costs[start] = totals[best] + overhead_tokens
        ends[start] = start + rows[best]
    batches, start = [], 0
    while start < num:
        batches.append(order[start : ends[start]])
        start = int(ends[start])
    return batches
