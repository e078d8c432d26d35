"""Budgets: how many tokens an engine computes on at a time, and the micro-batches that lists are cut into."""

from __future__ import annotations

import gc
import warnings
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from descant.engine.driving import Driving, length_boundaries, side_of
from descant.engine.jobs import WeightedSequence

OVERHEAD_TOKENS = {"cpu": 96, "cuda": 1024}
"""The cost of starting a forward and backward pass, as tokens, which decides where a micro-batch is worth cutting.
Measured on CPUs (half or twice as much costs 5 %); on a GPU estimated from kernel launches."""


@dataclass(slots=True)
class Budgets:
    """The tokens that bound the memory of an engine; see ``HFEngine``. They change results by rounding only.

    To halve them is a decision of one engine on one device. Engines that compute one model together share its
    micro-batches: they cannot cut them anew one by one, and have to try the largest one at the start.
    """

    model: Any
    driving: Driving
    max_batch_tokens: int
    max_cached_tokens: int
    are_halved: bool = False

    def micro_batches(self, sequences: Sequence[WeightedSequence], results: Sequence[object]) -> list[list[int]]:
        """Indices of the sequences that have no result yet, in micro-batches of those that may share one."""
        groups: defaultdict[Hashable, list[int]] = defaultdict(list)
        boundaries = length_boundaries(self.model.config)
        for index, result in enumerate(results):
            if result is None:
                length = len(sequences[index].token_ids)
                apart = {"of any lengths": 0, "of equal lengths": length, "one at a time": index}[self.driving.scoring]
                groups[side_of(length, boundaries), apart].append(index)
        batches = []
        for group in groups.values():
            lengths = [len(sequences[index].token_ids) for index in group]
            plan = plan_batches(lengths, self.max_batch_tokens, OVERHEAD_TOKENS[self.model.device.type])
            batches += [[group[i] for i in batch] for batch in plan]
        return batches

    def halve(self) -> None:
        """Compute on half as much at a time, with a warning."""
        before = (self.max_batch_tokens, self.max_cached_tokens)
        device, self.are_halved = self.model.device, True
        self.max_batch_tokens, self.max_cached_tokens = (max(1, tokens // 2) for tokens in before)
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
        warnings.warn(
            f"out of memory on {device}: micro-batches now have {self.max_batch_tokens:,} tokens (max_batch_size "
            f"is {before[0]:,}), the key-value cache {self.max_cached_tokens:,} (kv_cache_len is {before[1]:,}); "
            "results are the same up to rounding",
            stacklevel=2,
        )

    def describe_out_of_memory(self, job: str) -> str:
        """What a job had when it was out of memory, and what to do."""
        halved = ", halved already" if self.are_halved else ""
        return (
            f"{job} is out of memory on {self.model.device} with {self.max_batch_tokens:,} tokens per micro-batch and "
            f"{self.max_cached_tokens:,} in the key-value cache{halved}; lower max_batch_size or kv_cache_len, or use "
            "gradient_checkpointing=True or precision='bfloat16'"
        )


def plan_batches(lengths: Sequence[int], max_tokens: int, overhead_tokens: int = 0) -> list[list[int]]:
    """Indices of ``lengths`` in batches of similar length, each at most ``max_tokens`` when padded.

    Sequences are sorted, longest first (so that a budget that is too large fails in the first batch), and cut into the
    runs of least total cost, by dynamic programming: a run costs ``rows * longest`` padded tokens and
    ``overhead_tokens``. A sequence longer than the budget gets a batch of its own.
    """
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
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
