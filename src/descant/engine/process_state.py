"""Process state: the random generators and settings that all code of a process shares."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

Setting = tuple[Callable[[], Any], Callable[[Any], Any]]
"""How to read a setting and how to write it."""

_FP32_PRECISION = [
    (backend, op)
    for backend, ops in (
        ("generic", ("all",)),
        ("cuda", ("all", "matmul", "conv", "rnn")),
        ("mkldnn", ("all", "matmul")),
    )
    for op in ops
]


def _read_float32_precision() -> Any:
    """How float32 products are computed, by torch's older interface and, where there is one, its newer.

    The older one refuses to answer once the newer was used.
    """
    try:
        legacy: Any = torch.get_float32_matmul_precision()
    except RuntimeError:
        legacy = None
    read = getattr(torch._C, "_get_fp32_precision_getter", None)
    return legacy, tuple(read(backend, op) for backend, op in _FP32_PRECISION) if read else ()


def _write_float32_precision(state: Any) -> None:
    legacy, precisions = state
    write = getattr(torch._C, "_set_fp32_precision_setter", None)
    if legacy is not None:
        torch.set_float32_matmul_precision(legacy)
    if write:
        for (backend, op), precision in zip(_FP32_PRECISION, precisions, strict=True):
            write(backend, op, precision)


COMPUTE_SETTINGS: Sequence[Setting] = (
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
"""Settings that change the bits of a computation."""
NUM_THREADS = 0
"""Which of them is the number of threads."""


def num_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _read_autocast() -> Any:
    return tuple(
        (device, torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)) for device in ("cpu", "cuda")
    )


def _write_autocast(state: Any) -> None:
    for device, is_enabled, dtype in state:
        torch.set_autocast_enabled(device, is_enabled)
        torch.set_autocast_dtype(device, dtype)


def _read_default_device() -> Any:
    context = getattr(torch._GLOBAL_DEVICE_CONTEXT, "device_context", None)
    return None if context is None else context.device


_SETTINGS: Sequence[Setting] = (
    (torch.is_grad_enabled, torch.set_grad_enabled),
    (_read_autocast, _write_autocast),
    (_read_default_device, torch.set_default_device),
    (torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode),
    *COMPUTE_SETTINGS,
)
_GENERATORS: Sequence[Setting] = (
    (random.getstate, random.setstate),
    (np.random.get_state, np.random.set_state),
    (torch.get_rng_state, torch.set_rng_state),
)
_CUDA_GENERATORS: Setting = (torch.cuda.get_rng_state_all, torch.cuda.set_rng_state_all)


@contextmanager
def preserved_process_state() -> Iterator[None]:
    """On the way out, the generators of Python, numpy and torch and torch's settings are what they were.

    For code of users that runs between two steps of somebody's training: whatever it draws, reseeds or switches, the
    training goes on as if it had not been there.
    """
    uses_cuda = torch.cuda.is_available() and torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    generators = [*_GENERATORS, _CUDA_GENERATORS] if uses_cuda else _GENERATORS
    states = [read() for read, _ in generators]
    try:
        with restored(_SETTINGS):
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
        for (read, write), value in zip(settings, found, strict=True):
            if read() != value:
                write(value)
