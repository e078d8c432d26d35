"""Private randomness: training draws from its own generator, never from the process-wide one.

Dropout in torch draws from the global generator, which every library and every callback shares. Reseeding it around
each micro-batch would not be enough: a thread of a user's grader may draw in between. So, while this mode is active on
the engine's thread, random operations get the engine's own generator.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

_TAKES_GENERATOR: frozenset[Any] = frozenset(
    {
        torch.rand,
        torch.randn,
        torch.randint,
        torch.randperm,
        torch.bernoulli,
        torch.multinomial,
        torch.normal,
        Tensor.bernoulli_,
        Tensor.exponential_,
        Tensor.normal_,
        Tensor.uniform_,
    }
)


class PrivateRandomness(TorchFunctionMode):
    """While active on a thread, dropout and other random operations of torch draw from ``generator``."""

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self.generator = generator

    def replay(self) -> PrivateRandomness:
        """A mode that draws once more what this one draws from here on, for layers that are computed twice."""
        generator = torch.Generator(self.generator.device)
        generator.set_state(self.generator.get_state())
        return PrivateRandomness(generator)

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is functional.dropout:
            return self._dropout(*args, **kwargs)
        if func is functional.scaled_dot_product_attention:
            return self._attention(*args, **kwargs)
        if func in _TAKES_GENERATOR and kwargs.get("generator") is None:
            kwargs["generator"] = self.generator
        return func(*args, **kwargs)

    def _dropout(self, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        """Dropout (Srivastava et al., JMLR 2014): zero with probability p, scale the rest by 1 / (1 - p)."""
        if not training or p == 0:
            return input
        keep = torch.empty_like(input).bernoulli_(1 - p, generator=self.generator)
        scale = 1 / (1 - p) if p < 1 else 0.0
        return input.mul_(keep).mul_(scale) if inplace else input * keep * scale

    def _attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        """Scaled dot-product attention; written out where it has dropout, because the kernels draw globally."""
        if dropout_p == 0:
            return functional.scaled_dot_product_attention(
                query, key, value, attn_mask, 0.0, is_causal, scale=scale, enable_gqa=enable_gqa
            )
        if enable_gqa:
            key = key.repeat_interleave(query.size(-3) // key.size(-3), -3)
            value = value.repeat_interleave(query.size(-3) // value.size(-3), -3)
        scores = query @ key.transpose(-2, -1) * (scale or 1 / math.sqrt(query.size(-1)))
        if is_causal:
            attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        if attn_mask is not None:
            scores = (
                scores.masked_fill(~attn_mask, float("-inf")) if attn_mask.dtype == torch.bool else scores + attn_mask
            )
        return self._dropout(torch.softmax(scores, dim=-1), dropout_p) @ value


def draws_random_numbers(model: Any) -> bool:
    """Whether the model has dropout or jitter anywhere, so that training it needs ``PrivateRandomness``."""
    settings = [model.config.to_dict(), *(vars(module) for module in model.modules())]
    layers = [module for module in model.modules() if isinstance(module, nn.modules.dropout._DropoutNd)]
    return any(layer.p > 0 for layer in layers) or any(
        isinstance(value, float) and value > 0 and any(word in name for word in ("drop", "jitter"))
        for names in settings
        for name, value in names.items()
    )
