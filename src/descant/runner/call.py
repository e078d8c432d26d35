"""Call: one call of one callback."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from descant.callbacks.base import RecipeCallback, RunView


@dataclass(eq=False, slots=True)
class Call:
    """One call of one callback, made by the mode of that callback.

    Attributes:
        callback: whose.
        run: what it sees of the run; its step is the one that its metrics belong to.
        is_final: whether it is one of the last calls of the run, which always wait for a buffer.
        is_detached: whether it runs in parallel to training, or has begun to.
        seconds: what it has cost, under the names of its cost metrics: ``stall_s`` (training waited for it), and where
            it applies ``wait_s`` (training waited for a free buffer) and ``busy_s`` (it ran in parallel, its own
            waiting for its turn not counted).
        num_tokens: tokens that models were given and have generated on its behalf.
        num_completions: of each thread, by its id: both halves of a call count on, so that it samples as in one piece.
        as_measured: from a model to the one with the weights that were measured.
    """

    callback: RecipeCallback
    run: RunView
    is_final: bool = False
    is_detached: bool = False
    seconds: dict[str, float] = field(default_factory=lambda: {"stall_s": 0.0})
    num_tokens: int = 0
    num_completions: Counter[str] = field(default_factory=Counter)
    as_measured: Callable[[Any], Any] = field(default=lambda model: model)

    def __str__(self) -> str:
        return f"{self.callback.name} (step {self.run.step})"
