"""The global random generators of the process, which training may draw from."""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from descant.testing.report import Problem, Report

_READ: Mapping[str, Callable[[], Any]] = {
    "Python's random generator": random.getstate,
    "numpy's random generator": lambda: pickle.dumps(np.random.get_state()),  # an array has no single ==
    "torch's random generator": lambda: torch.get_rng_state().tolist(),
}


def generator_states() -> dict[str, Any]:
    """The states of the generators, by name."""
    return {name: read() for name, read in _READ.items()}


def check_draws(report: Report, before: Mapping[str, Any], problem: str) -> None:
    """Check that no generator has changed; into the problem the name of one that has is put."""
    with report.check("it draws nothing from global generators", "Python's, numpy's, torch's"):
        for name, state in generator_states().items():
            if state != before[name]:
                own = "draw from a generator of your own, random.Random(seed)"
                raise Problem(f"{problem.format(name)}; {own}")
