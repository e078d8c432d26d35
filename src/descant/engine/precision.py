"""Precision: the number formats of a model's weights and of what it computes; and the mode that it computes in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal

import torch
from torch import nn

Precision = Literal["float32", "mixed", "bfloat16"]
"""Weights and products in float32; float32 weights with products in bfloat16 (autocast); or all in bfloat16."""
PRECISION_NAMES = {"float32": "float32", "mixed": "float32 with bfloat16 products", "bfloat16": "bfloat16"}


def device_type() -> str:
    """Where engines run: the GPU if there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def default_precision() -> Precision:
    """Mixed on a GPU, where it is several times faster; float32 on a CPU."""
    return "mixed" if device_type() == "cuda" else "float32"


def weights_dtype(precision: Precision) -> torch.dtype:
    """The format of the weights, the gradient and the optimizer's state."""
    return torch.bfloat16 if precision == "bfloat16" else torch.float32


def computes_in(precision: Precision, device: str) -> AbstractContextManager[Any]:
    """The context of a forward pass on a type of device. Casts are cached until it ends."""
    return torch.autocast(device, torch.bfloat16) if precision == "mixed" else nullcontext()


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
