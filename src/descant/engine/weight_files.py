"""Weight files: anonymous memory that processes of one machine share, each under the name in a ``WeightHandle``."""

from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import Iterable, Mapping

_descriptors: dict[str, int] = {}  # of the files that this process has created or inherited
_numbers = itertools.count(1)


def create_weight_file(num_bytes: int) -> str:
    """The name of a new file, which ``close_weight_file`` frees."""
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("descant-weights")
    else:
        with tempfile.TemporaryFile() as file:
            fd = os.dup(file.fileno())
    try:
        os.ftruncate(fd, num_bytes)
    except BaseException:
        os.close(fd)
        raise
    name = f"weights-{next(_numbers)}"
    _descriptors[name] = fd
    return name


def weight_files(names: Iterable[str]) -> Mapping[str, int]:
    """The descriptors of files, by name."""
    return {name: _descriptors[name] for name in names}


def inherit_weight_files(files: Mapping[str, int]) -> None:
    """Know files of the parent process, which this one has under the same descriptors."""
    _descriptors.update(files)


def close_weight_file(name: str) -> None:
    """Close a file; its memory is freed when nothing maps it any more."""
    os.close(_descriptors.pop(name))
