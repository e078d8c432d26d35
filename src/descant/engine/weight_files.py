"""Weight files: anonymous memory that processes of one machine share, each under the name in a ``WeightHandle``."""

from __future__ import annotations

import itertools
import mmap
import os
import tempfile
from collections.abc import Iterable, Mapping

_descriptors: dict[str, int] = {}  # of the files that this process has created or inherited
_memory: dict[str, mmap.mmap] = {}  # the bytes of those that it has used
_numbers = itertools.count(1)


def create_weight_file(num_bytes: int) -> str:
    """The name of a new file, which ``close_weight_file`` frees."""
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("descant-weights")
    else:
        with tempfile.TemporaryFile() as file:
            fd = os.dup(file.fileno())
    os.ftruncate(fd, num_bytes)
    name = f"weights-{next(_numbers)}"
    _descriptors[name] = fd
    return name


def weight_files(names: Iterable[str]) -> Mapping[str, int]:
    """The descriptors of files, by name."""
    return {name: _descriptors[name] for name in names}


def inherit_weight_files(files: Mapping[str, int]) -> None:
    """Know files of the parent process, which this one has under the same descriptors."""
    _descriptors.update(files)


def weight_memory(name: str) -> mmap.mmap:
    """The bytes of a file, mapped into this process once: all processes that map it see the same."""
    if name not in _memory:
        _memory[name] = mmap.mmap(_descriptors[name], 0)
    return _memory[name]


def close_weight_file(name: str) -> None:
    """Close a file; its memory is freed when nothing computes with it any more."""
    _memory.pop(name, None)
    os.close(_descriptors.pop(name))
