"""Driving: how a model's forward pass is used in scoring, training and generation, so that its numbers are right."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

Rows = Literal["of any lengths", "of equal lengths", "one at a time"]
"""Which sequences share a forward pass: any, padded; those that need no padding; none."""
CacheKind = Literal["replaced rows", "its own", "none"]
"""What generation keeps of the tokens that were read: a ``KVCache``, in which waiting prompts take the place of
finished rows; the cache that the model makes for itself, batch after batch; or nothing: each token is a whole pass."""


@dataclass(frozen=True, slots=True)
class Driving:
    """The fastest way to drive a model of those that give what a plain forward pass on each sequence gives.

    Attributes:
        head_gives_logits: whether the logits are the output layer's on the last hidden state, unchanged.
        scoring: which sequences share a pass in scoring and training.
        cache: what generation keeps of what was read.
        generation: which prompts are decoded together.
    """

    head_gives_logits: bool = False
    scoring: Rows = "of any lengths"
    cache: CacheKind = "replaced rows"
    generation: Rows = "of any lengths"

    @property
    def is_slow(self) -> bool:
        """Whether sequences of different lengths are kept apart, or read again for each token."""
        return self.cache == "none" or (self.scoring, self.generation) != ("of any lengths", "of any lengths")

    def __str__(self) -> str:
        return f"{describe_scoring(self.scoring)}; {describe_generation(self.cache, self.generation)}"


SCORING_WAYS: tuple[Rows, ...] = ("of any lengths", "of equal lengths", "one at a time")
GENERATION_WAYS: tuple[tuple[CacheKind, Rows], ...] = (
    ("replaced rows", "of any lengths"),
    ("its own", "of any lengths"),
    ("its own", "of equal lengths"),
    ("its own", "one at a time"),
    ("none", "of any lengths"),
    ("none", "of equal lengths"),
    ("none", "one at a time"),
)
"""Both from the fastest to the one that is a plain forward pass."""


def describe_scoring(rows: Rows) -> str:
    """A way to score, in words."""
    return f"it scores sequences {rows}"


def describe_generation(cache: CacheKind, rows: Rows) -> str:
    """A way to generate, in words."""
    kept = {"replaced rows": "with rows that are replaced", "its own": "with its own cache", "none": "without a cache"}
    return f"it generates for prompts {rows}, {kept[cache]}"


def length_boundaries(config: Any) -> tuple[int, ...]:
    """Lengths beyond which a model computes otherwise on all of a batch, by its configuration.

    With rotary embeddings of the type "longrope" (arXiv:2402.13753; Phi-3, Phi-4-mini, MiniCPM) a pass with more tokens
    than ``original_max_position_embeddings`` has other frequencies at all positions. ("dynamic" ones differ beyond
    ``max_position_embeddings`` only, which is where the context ends.)
    """
    settings = getattr(config.get_text_config(), "rope_parameters", None) or {}
    found = {
        each.get("original_max_position_embeddings") for each in _dicts(settings) if each.get("rope_type") == "longrope"
    }
    return tuple(sorted(length for length in found if length))


def side_of(length: int, boundaries: tuple[int, ...]) -> int:
    """How many of the boundaries a sequence of this length is beyond."""
    return bisect_left(boundaries, length)


def _dicts(settings: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Settings, and those of each kind of layer within them."""
    yield settings
    for each in settings.values():
        if isinstance(each, dict):
            yield from _dicts(each)
