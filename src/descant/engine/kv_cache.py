"""KVCache: a key-value cache whose rows can be replaced.

It writes into buffers in place. Rows are aligned on the right: the newest token of every row stands in the
last used column, and what a row does not use on the left is masked. So a row can leave at any time, and another take
its place, without moving the others. Sliding-window layers keep all columns too and rely on their mask.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

# B rows, K key-value heads, C columns of the buffer, D head size

_FIRST_COLUMNS = 64  # allocated beyond the first forward pass, before the buffer is doubled for the first time


class _Layer(DynamicLayer):  # type: ignore[no-untyped-call]
    """Keys and values of one model layer, [B, K, C, D]; columns up to ``length`` are used."""

    keys: Tensor
    values: Tensor
    length = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate the buffers for the rows of the first forward pass."""
        columns = key_states.shape[2] + _FIRST_COLUMNS
        self.keys, self.values = (
            states.new_zeros(*states.shape[:2], columns, states.shape[3]) for states in (key_states, value_states)
        )
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Append the new columns and return all that are used."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start, self.length = self.length, self.length + key_states.shape[2]
        if self.length > self.keys.shape[2]:
            self.keys, self.values = (torch.cat([b, torch.zeros_like(b)], dim=2) for b in (self.keys, self.values))
        self.keys[:, :, start : self.length] = key_states
        self.values[:, :, start : self.length] = value_states
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]

    def get_seq_length(self) -> int:
        """Used columns."""
        return self.length


class KVCache(Cache):
    """A cache whose rows can be replaced; a ``Cache`` to Transformers' models."""

    layers: list[_Layer]  # type: ignore[assignment]

    def __init__(self, num_layers: int) -> None:
        super().__init__(layers=[_Layer() for _ in range(num_layers)])  # type: ignore[no-untyped-call]

    def drop_left(self, num_columns: int) -> None:
        """Forget the first columns, which no row uses any more."""
        for layer in self.layers:
            for buffer in (layer.keys, layer.values):
                buffer[:, :, : layer.length - num_columns] = buffer[:, :, num_columns : layer.length].clone()
            layer.length -= num_columns

    def put_rows(self, rows_B: Tensor, other: KVCache, other_rows_B: Tensor) -> None:
        """Overwrite rows with rows of another cache that has at most as many columns, aligned on the right."""
        for layer, source in zip(self.layers, other.layers, strict=True):
            for buffer, new in ((layer.keys, source.keys), (layer.values, source.values)):
                buffer[rows_B] = 0  # what is masked has to be finite
                buffer[rows_B, :, layer.length - source.length : layer.length] = new[other_rows_B, :, : source.length]


def has_replaceable_rows(config: Any) -> bool:
    """Whether all layers of the model are ordinary or sliding-window attention, so that it can use ``KVCache``."""
    layers = DynamicCache(config=config).layers
    return bool(layers) and all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)
