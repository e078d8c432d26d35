"""The supervised loss."""

from __future__ import annotations

from torch import Tensor

from descant.losses.loss import Columns, LossSums


def language_modelling(logprobs_N: Tensor, columns: Columns) -> LossSums:
    """The negative log-likelihood, ``-sum_i w_i * log p(token_i)`` in nats, as a mean over the trained tokens."""
    weights_N = columns["weight"].double()
    return LossSums(-(logprobs_N.double() * weights_N).sum(), weights_N.sum())
