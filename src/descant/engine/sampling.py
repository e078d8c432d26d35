"""Sampling: one uniform number per (request seed, position), and the inverse of the cumulative distribution.

The random numbers of a request are a pure function of its seed and the position, so they do not depend on the batch
that it is decoded in. (Its logits do, by rounding: matrix products of other shapes sum in another order.)
"""

from __future__ import annotations

import torch
from torch import Tensor

# B rows of a batch, V vocabulary

# Constants of 64 bits, as the int64 with the same bits
_GOLDEN_GAMMA = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX_1, _MIX_2 = 0xBF58476D1CE4E5B9 - (1 << 64), 0x94D049BB133111EB - (1 << 64)


def uniforms(seeds_B: Tensor, positions_B: Tensor) -> Tensor:
    """One float64 in [0, 1) per row, a hash of (seed, position); both int64 and of shape [B].

    SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", OOPSLA 2014), with the
    position as counter: z = mix(seed + (position + 1) * gamma), of which the top 53 bits are taken.
    """
    z_B = seeds_B + (positions_B + 1) * _GOLDEN_GAMMA
    z_B = (z_B ^ _shift_right(z_B, 30)) * _MIX_1
    z_B = (z_B ^ _shift_right(z_B, 27)) * _MIX_2
    z_B = z_B ^ _shift_right(z_B, 31)
    return _shift_right(z_B, 11).double() * 2.0**-53


def sample(logits_BV: Tensor, uniforms_B: Tensor, temperature: float, top_p: float) -> Tensor:
    """One token per row, int64 [B]: greedy at temperature 0, else by inverting the CDF at ``uniforms_B``.

    ``top_p`` below 1 keeps the most probable tokens until their probability reaches it (nucleus sampling,
    arXiv:1904.09751), at least one.
    """
    if temperature == 0:
        return logits_BV.argmax(dim=-1)
    probs_BV = torch.softmax(logits_BV.float() / temperature, dim=-1).double()
    if top_p >= 1:
        return _invert_cdf(probs_BV, uniforms_B)
    probs_BV, order_BV = probs_BV.sort(dim=-1, descending=True, stable=True)
    mass_before_BV = probs_BV.cumsum(dim=-1) - probs_BV
    kept_BV = torch.where(mass_before_BV < top_p, probs_BV, 0.0)
    kept_BV[:, 0] = probs_BV[:, 0]
    return order_BV.gather(-1, _invert_cdf(kept_BV, uniforms_B).unsqueeze(-1)).squeeze(-1)


def _invert_cdf(probs_BV: Tensor, uniforms_B: Tensor) -> Tensor:
    """The first token whose cumulative probability passes u * total; a token of probability 0 is never taken."""
    cdf_BV = probs_BV.cumsum(dim=-1)
    total_B = cdf_BV[:, -1]
    below_total_B = torch.nextafter(total_B, torch.zeros_like(total_B))
    thresholds_B = torch.minimum(uniforms_B * total_B, below_total_B)
    return torch.searchsorted(cdf_BV, thresholds_B.unsqueeze(-1), right=True).squeeze(-1)


def _shift_right(values: Tensor, bits: int) -> Tensor:
    """Logical shift: torch shifts int64 arithmetically, so the copies of the sign bit are masked away."""
    return (values >> bits) & ((1 << (64 - bits)) - 1)
