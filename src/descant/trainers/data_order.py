"""DataOrder: which samples make up each step, as a pure function of the step."""

from __future__ import annotations

from fractions import Fraction
from functools import lru_cache
from math import ceil
from typing import Any

from descant.progress import exact_fraction, planned_steps


class DataOrder:
    """Shuffled epochs, one after another, cut into steps of ``samples_per_batch``; the last step may be short.

    Each epoch is its own permutation, made from (seed, epoch). Nothing is consumed and no state is kept: any step can
    be asked for at any time.
    """

    def __init__(self, num_samples: int, *, epochs: float | Fraction, samples_per_batch: int, seed: int) -> None:
        self.num_samples = num_samples
        self.samples_per_batch = samples_per_batch
        self.num_steps = planned_steps(epochs, num_samples, samples_per_batch)
        self._total = ceil(exact_fraction(epochs) * num_samples)
        self._permutation = lru_cache(maxsize=2)(lambda epoch: _shuffled(num_samples, (seed, epoch)))

    def indices(self, step: int) -> list[int]:
        """The samples of step ``step``, counted from 1."""
        first = (step - 1) * self.samples_per_batch
        positions = range(first, min(first + self.samples_per_batch, self._total))
        epochs = (divmod(position, self.num_samples) for position in positions)
        return [int(self._permutation(epoch)[offset]) for epoch, offset in epochs]

    def num_samples_after(self, step: int) -> int:
        """How many samples the first ``step`` steps have."""
        return min(step * self.samples_per_batch, self._total)


def _shuffled(num_samples: int, seed: tuple[int, int]) -> Any:
    import numpy as np  # noqa: PLC0415  # a file that names a trainer is imported without it: see recipes

    return np.random.default_rng(seed).permutation(num_samples)
