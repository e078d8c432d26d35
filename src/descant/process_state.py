"""Process state: the random generators and settings that all code of a process shares.

Importing this imports neither torch nor numpy, and what a process has not loaded has no state to preserve.
"""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

Setting = tuple[Callable[[], Any], Callable[[Any], Any]]
"""How to read a setting and how to write it."""

NUM_THREADS = 0
"""Which of ``compute_settings`` is torch's number of threads."""
_FP32_PRECISION = [
    (backend, op)
    for backend, ops in (
        ("generic", ("all",)),
        ("cuda", ("all", "matmul", "conv", "rnn")),
        ("mkldnn", ("all", "matmul")),
    )
    for op in ops
]


@contextmanager
def preserved_process_state() -> Iterator[None]:
    """On the way out, the generators of Python, numpy and torch and torch's settings are what they were.

    For code of users that runs between two training steps: whatever it draws, reseeds or switches, training continues
    as if it had not run.
    """
    generators = _generators()
    states = [read() for read, _ in generators]
    try:
        with restored(_torch_settings() if "torch" in sys.modules else ()):
            yield
    finally:
        for (_, write), state in zip(generators, states, strict=True):
            write(state)


@contextmanager
def restored(settings: Sequence[Setting]) -> Iterator[None]:
    """On the way out, each setting has the value that it had; those that did not change are not written."""
    found = [read() for read, _ in settings]
    try:
        yield
    finally:
        apply_settings(settings, found)


def apply_settings(settings: Sequence[Setting], values: Sequence[Any]) -> None:
    """Write the settings that have other values."""
    for (read, write), value in zip(settings, values, strict=True):
        if read() != value:
            write(value)


def num_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def compute_settings() -> Sequence[Setting]:
    """The settings of torch that change the bits of a computation."""
    import torch  # noqa: PLC0415  # the runner imports this module, and no torch

    return (
        (torch.get_num_threads, torch.set_num_threads),
        (torch.get_default_dtype, torch.set_default_dtype),
        (_read_float32_precision, _write_float32_precision),
        (torch._C._get_mkldnn_enabled, torch._C._set_mkldnn_enabled),
        (torch._C._get_cudnn_enabled, torch._C._set_cudnn_enabled),
        (torch._C._get_cudnn_benchmark, torch._C._set_cudnn_benchmark),
        (torch.backends.cuda.flash_sdp_enabled, torch.backends.cuda.enable_flash_sdp),
        (torch.backends.cuda.mem_efficient_sdp_enabled, torch.backends.cuda.enable_mem_efficient_sdp),
        (torch.backends.cuda.math_sdp_enabled, torch.backends.cuda.enable_math_sdp),
        (torch.backends.cuda.cudnn_sdp_enabled, torch.backends.cuda.enable_cudnn_sdp),
    )


@cache
def _torch_settings() -> Sequence[Setting]:
    import torch  # noqa: PLC0415

    return (
        (torch.is_grad_enabled, torch.set_grad_enabled),
        (_read_autocast, _write_autocast),
        (_read_default_device, torch.set_default_device),
        (torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode),
        *compute_settings(),
    )


def _generators() -> list[Setting]:
    """The global generators of what is loaded."""
    generators: list[Setting] = [(random.getstate, random.setstate)]
    if "numpy" in sys.modules:
        import numpy as np  # noqa: PLC0415

        generators.append((np.random.get_state, np.random.set_state))
    if "torch" in sys.modules:
        import torch  # noqa: PLC0415

        generators.append((torch.get_rng_state, torch.set_rng_state))
        if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            generators.append((torch.cuda.get_rng_state_all, torch.cuda.set_rng_state_all))
    return generators


def _read_float32_precision() -> Any:
    """How float32 products are computed, by torch's older interface and, where there is one, its newer.

    The older one refuses to answer once the newer was used.
    """
    import torch  # noqa: PLC0415

    try:
        legacy: Any = torch.get_float32_matmul_precision()
    except RuntimeError:
        legacy = None
    read = getattr(torch._C, "_get_fp32_precision_getter", None)
    return legacy, tuple(read(backend, op) for backend, op in _FP32_PRECISION) if read else ()


def _write_float32_precision(state: Any) -> None:
    import torch  # noqa: PLC0415

    legacy, precisions = state
    write = getattr(torch._C, "_set_fp32_precision_setter", None)
    if legacy is not None:
        torch.set_float32_matmul_precision(legacy)
    if write:
        for (backend, op), precision in zip(_FP32_PRECISION, precisions, strict=True):
            write(backend, op, precision)


def _read_autocast() -> Any:
    import torch  # noqa: PLC0415

    return tuple(
        (device, torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)) for device in ("cpu", "cuda")
    )


def _write_autocast(state: Any) -> None:
    import torch  # noqa: PLC0415

    for device, is_enabled, dtype in state:
        torch.set_autocast_enabled(device, is_enabled)
        torch.set_autocast_dtype(device, dtype)


def _read_default_device() -> Any:
    import torch  # noqa: PLC0415

    context = getattr(torch._GLOBAL_DEVICE_CONTEXT, "device_context", None)
    return None if context is None else context.device
