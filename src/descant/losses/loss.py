"""Loss: what every loss is given for a micro-batch, and what it gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from torch import Tensor

# N trained tokens of a micro-batch, S its sequences

Columns = Mapping[str, Tensor]
"""By name: ``weight`` [N] (float32), ``sequence`` [N] (to which of the S each token belongs, int64), and the sequences'
own, [N] where they have one number per token and [S] where they have one each (float64)."""


class LossSums(NamedTuple):
    """Raw sums over a micro-batch, in float64: how a step is cut into micro-batches does not change its sums.

    Attributes:
        loss: with its gradient.
        denominator: what the loss is a mean over. Sum, gradient and statistics of the whole step are divided by that of
            the whole step, once.
        statistics: further metrics of the step, by name.
    """

    loss: Tensor
    denominator: Tensor
    statistics: Mapping[str, Tensor] = {}


Loss = Callable[[Tensor, Columns], LossSums]
"""A pure function of the log-probabilities [N] of the trained tokens, and their columns."""
