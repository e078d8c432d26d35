"""Precision: the number formats of a model's weights and of what it computes; and the mode that it computes in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any, Literal

import torch
from torch import nn

from descant.engine.forward import ForwardPass

Precision = Literal["float32", "mixed", "bfloat16"]
"""Weights and products in float32; float32 weights with products in bfloat16 (autocast); or all in bfloat16."""


def device_type() -> str:
    """Where engines run: the GPU if there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def default_precision() -> Precision:
    """Mixed on a GPU, where it is several times faster; float32 on a CPU."""
    return "mixed" if device_type() == "cuda" else "float32"


def weights_dtype(precision: Precision) -> torch.dtype:
    """The format of the weights, the gradient and the optimizer's state."""
    return torch.bfloat16 if precision == "bfloat16" else torch.float32


def products_dtype(precision: Precision) -> torch.dtype | None:
    """The format of matrix products if it is not that of the weights."""
    return torch.bfloat16 if precision == "mixed" else None


@torch.no_grad()
def own_products_dtype(model: Any) -> torch.dtype | None:
    """The format of products that the module's own forward sets, as mixed precision of accelerate has it do."""
    device, found = model.device.type, []
    hook = model.get_input_embeddings().register_forward_pre_hook(
        lambda *_: found.append(torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None)
    )
    try:
        with suppress(Exception):  # of which the probe tells
            ForwardPass(model)(torch.zeros(1, 1, dtype=torch.long, device=model.device))
    finally:
        hook.remove()
    return found[0] if found else None


def computes_in(products: torch.dtype | None, device: str) -> AbstractContextManager[Any]:
    """The context of a forward pass on a type of device. Casts are cached until it ends."""
    return nullcontext() if products is None else torch.autocast(device, products)


@contextmanager
def module_mode(model: nn.Module, *, training: bool) -> Iterator[None]:
    """Training or evaluation mode for one job; each module gets its own mode back, also after a failure."""
    modes = [(module, module.training) for module in model.modules()]
    model.train(training)
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
