"""The supervised loss."""

from __future__ import annotations

from torch import Tensor

# N trained tokens of a micro-batch


def language_modelling(logprobs_N: Tensor, weights_N: Tensor) -> Tensor:
    """Raw weighted sum of negative log-likelihoods, in nats: ``-sum_i w_i * log p(token_i)``.

    It is not averaged: a step divides its gradient once, by the sum of all weights of the step, so that the loss
    is the mean over the step's trained tokens however the step was cut into micro-batches. Summed in float64.
    """
    return -(logprobs_N.double() * weights_N.double()).sum()
