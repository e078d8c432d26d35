"""Files for weights, in memory where the system allows it, and without a name: nothing stays behind."""

from __future__ import annotations

import os
import tempfile


def new_weight_file(num_bytes: int) -> int:
    """A file for one version of the weights; returns its descriptor, which is the caller's to close."""
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
    return fd
