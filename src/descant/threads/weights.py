"""Turn weights: which turns of a thread are trained and counted by log-probabilities."""

from __future__ import annotations

from collections.abc import Sequence


def assistant_turn_weights(roles: Sequence[str], start: int = 0) -> tuple[float, ...]:
    """Weight 1 for every assistant turn from number ``start`` on (negative counts from the end), 0 elsewhere."""
    assistants = [index for index, role in enumerate(roles) if role == "assistant"]
    weighted = set(assistants[start:])
    return tuple(float(index in weighted) for index in range(len(roles)))
