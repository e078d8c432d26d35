"""A module that other code trains: what of it must hold before each job, and how it is run beside that training."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from descant.errors import ConfigurationError

_in_use: WeakKeyDictionary[nn.Module, threading.Lock] = WeakKeyDictionary()


def check_weights_are_whole(model: nn.Module) -> None:
    """Raises ConfigurationError if this process has a part of the weights only, or none: it cannot compute alone."""
    dtensor = getattr(sys.modules.get("torch.distributed.tensor"), "DTensor", ())  # not imported: there are none
    for name, tensor in model.named_parameters():
        if tensor.is_meta:
            raise ConfigurationError(
                f"{type(model).__name__} has no weights in this process: its parameter {name!r} is on the meta device "
                "(not loaded yet, or offloaded); load the weights first, all of them onto this process's device"
            )
        if isinstance(tensor, dtensor) or hasattr(tensor, "ds_id"):
            raise _sharded(model, f"its parameter {name!r} is a {type(tensor.data).__name__}")
    for name, module in model.named_modules():
        if getattr(module, "_is_fsdp_managed_module", False):
            raise _sharded(model, f"FSDP manages its part {name!r}" if name else "FSDP manages it")


def _sharded(model: nn.Module, found: str) -> ConfigurationError:
    return ConfigurationError(
        f"the weights of {type(model).__name__} are sharded over processes ({found}), so none can compute alone, and "
        "callbacks that look at the model are not supported yet; what is: one process, and DistributedDataParallel, "
        "where every process has all weights"
    )


def computation(model: nn.Module) -> list[Any]:
    """What decides which function of its weights a module computes: equal as long as no forward was patched, no part
    exchanged and no hook added."""
    return [
        (type(part), type(part).forward, vars(part).get("forward"), *part._forward_pre_hooks, *part._forward_hooks)
        for part in model.modules()
    ]


@contextmanager
def alone(model: nn.Module) -> Iterator[None]:
    """Wait for other engines that run the same module (two live models of it), whose mode they exchange."""
    with _in_use.setdefault(model, threading.Lock()):
        yield


@contextmanager
def eagerly(model: nn.Module) -> Iterator[None]:
    """Run parts that were compiled as they are written: their graphs are for the shapes of training, and each job
    would add others to them. (torch keeps the stance for the whole process, where training waits meanwhile.)"""
    is_compiled = any(part._compiled_call_impl is not None or hasattr(part, "_orig_mod") for part in model.modules())
    if not is_compiled:
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield
