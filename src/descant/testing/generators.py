"""The global random generators of the process, which training may draw from."""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

_READ: Mapping[str, Callable[[], Any]] = {
    "Python's random generator": random.getstate,
    "numpy's random generator": lambda: pickle.dumps(np.random.get_state()),  # an array has no single ==
    "torch's random generator": lambda: torch.get_rng_state().tolist(),
}


def generator_states() -> dict[str, Any]:
    """The states of the generators, by name."""
    return {name: read() for name, read in _READ.items()}


def drawn_since(before: Mapping[str, Any]) -> list[str]:
    """The generators whose state is not what it was."""
    return [name for name, state in generator_states().items() if state != before[name]]
