"""Process state: the random generators and settings that all code of a process shares.

Importing this imports neither torch nor numpy, and what a process has not loaded has no state to preserve.
"""

from __future__ import annotations

import os
import random
import sys
import threading
import types
from collections.abc import Awaitable, Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

ResultT = TypeVar("ResultT")
Setting = tuple[Callable[[], Any], Callable[[Any], Any]]
"""How to read a setting and how to write it."""

NUM_THREADS = 0
"""Which of ``compute_settings`` is torch's number of threads."""
_DEVICES = ("cpu", "cuda")
_FP32_PRECISION = [
    ("generic", "all"), ("cuda", "all"), ("cuda", "matmul"), ("cuda", "conv"), ("cuda", "rnn"), ("mkldnn", "all"),
    ("mkldnn", "matmul"),
]  # fmt: skip


class _Found(NamedTuple):
    """The generators and settings of a process, each with what it was."""

    generators: Sequence[tuple[Setting, Any]]
    settings: Sequence[Setting]
    values: Sequence[Any]

    @classmethod
    def now(cls) -> _Found:
        settings = _torch_settings() if "torch" in sys.modules else ()
        generators = [(generator, generator[0]()) for generator in _generators()]
        return cls(generators, settings, [read() for read, _ in settings])

    def restore(self) -> None:
        apply_settings(self.settings, self.values)
        for (_, write), state in self.generators:
            write(state)


class _Preserving(threading.local):
    """What those that preserve the state in this thread now have found, in the order in which they began."""

    def __init__(self) -> None:
        self.found: list[_Found] = []


_PRESERVING = _Preserving()
_around: ContextVar[tuple[_Found, ...]] = ContextVar("_around", default=())
"""What the code around has found, that of the task that has started this one included."""


@contextmanager
def preserved_process_state() -> Iterator[None]:
    """On the way out, the generators of Python, numpy and torch and torch's settings are what they were.

    Training then continues as if the code of users that runs between two of its steps had not run. Runs on one event
    loop overlap without being nested: what the second would find, callbacks of the first may have changed, so it takes
    what the first has found.
    """
    beside = (found for found in _PRESERVING.found if not any(found is outer for outer in _around.get()))
    found = next(beside, None) or _Found.now()
    _PRESERVING.found.append(found)
    token = _around.set((*_around.get(), found))
    try:
        yield
    finally:
        _around.reset(token)
        position = next(i for i, each in enumerate(_PRESERVING.found) if each is found)
        del _PRESERVING.found[position]
        found.restore()


@types.coroutine
def with_own_modes(work: Awaitable[ResultT]) -> Generator[Any, Any, ResultT]:
    """What ``work`` comes to. Modes of torch that it holds over an await (``with torch.no_grad(): await ...``) are on
    while it runs, and not while it waits and other code of this thread runs."""
    coroutine, own = _awaited(work), None
    resume = partial(coroutine.send, None)
    while True:
        modes = _torch_modes() if "torch" in sys.modules else ()
        outside = [read() for read, _ in modes]
        if own:
            apply_settings(modes, own)
        try:
            waiting = resume()
        except StopIteration as end:
            result: ResultT = end.value
            return result
        finally:
            own = [read() for read, _ in modes]
            apply_settings(modes, outside)
        try:
            resume = partial(coroutine.send, (yield waiting))
        except BaseException as error:
            resume = partial(coroutine.throw, error)


async def _awaited(work: Awaitable[ResultT]) -> ResultT:
    return await work


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


def caches_casts() -> bool:
    """Whether this thread is within ``torch.autocast``, which keeps casts of weights until it is left."""
    torch = sys.modules.get("torch")
    return torch is not None and torch.is_autocast_cache_enabled() and any(map(torch.is_autocast_enabled, _DEVICES))


def num_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def free_memory() -> int:
    """Bytes of memory that this machine, or the container that this process is in, has free."""
    try:
        meminfo = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        free = 1024 * int(meminfo["MemAvailable"].split()[0])
    except (OSError, KeyError, ValueError):  # another system: half of all there is
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    try:
        group = Path("/sys/fs/cgroup")
        limit, used = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
        cached = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())["inactive_file"]
    except (OSError, KeyError, ValueError):  # no limit
        return free
    return min(free, limit - used + int(cached))


@cache
def compute_settings() -> Sequence[Setting]:
    """The settings of torch that change the bits of a computation."""
    import torch  # noqa: PLC0415  # the runner imports this module, and no torch

    read = getattr(torch._C, "_get_fp32_precision_getter", lambda *_: None)
    write = getattr(torch._C, "_set_fp32_precision_setter", lambda *_: None)

    def read_float32_precision() -> Any:
        try:
            legacy: Any = torch.get_float32_matmul_precision()
        except RuntimeError:  # it refuses to answer once the newer interface was used
            legacy = None
        return legacy, tuple(read(*each) for each in _FP32_PRECISION)

    def write_float32_precision(state: Any) -> None:
        legacy, precisions = state
        if legacy is not None:
            torch.set_float32_matmul_precision(legacy)
        for each, precision in zip(_FP32_PRECISION, precisions, strict=True):
            write(*each, precision)

    return (
        (torch.get_num_threads, torch.set_num_threads),
        (torch.get_default_dtype, torch.set_default_dtype),
        (read_float32_precision, write_float32_precision),
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

    settings = (torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode), *compute_settings()
    return (*_torch_modes(), *settings)


@cache
def _torch_modes() -> Sequence[Setting]:
    """Those that code of users sets for a while, most of them of the thread."""
    import torch  # noqa: PLC0415

    def read_autocast() -> Any:
        return [(device, torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)) for device in _DEVICES]

    def write_autocast(state: Any) -> None:
        for device, is_enabled, dtype in state:
            torch.set_autocast_enabled(device, is_enabled)
            torch.set_autocast_dtype(device, dtype)

    def read_default_device() -> Any:
        context = getattr(torch._GLOBAL_DEVICE_CONTEXT, "device_context", None)
        return None if context is None else context.device

    def write_inference_mode(is_on: bool) -> None:
        guards = _REPLACED.guards = getattr(_REPLACED, "guards", [])
        if guards:
            guards.pop().__exit__(None, None, None)
        if torch.is_inference_mode_enabled() != is_on:
            guards.append(torch.inference_mode(is_on))
            guards[-1].__enter__()

    return (
        (torch.is_inference_mode_enabled, write_inference_mode),
        (torch.is_grad_enabled, torch.set_grad_enabled),
        (read_autocast, write_autocast),
        (read_default_device, torch.set_default_device),
        (torch.get_default_dtype, torch.set_default_dtype),
    )


_REPLACED = threading.local()
"""``guards``: of the inference modes that were replaced, which come back when a guard is left: torch has no setter."""


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
