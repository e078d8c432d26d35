"""Memory: what a model has read of the rows of a running batch, and how it reads on."""

from __future__ import annotations

from typing import Any, Self, cast

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import Cache, DynamicCache

from descant.engine.kv_cache import KVCache
from descant.engine.score import TokenScorer

# B rows, T new columns, C columns read so far with the new ones, V vocabulary


class Memory:
    """The rows of a running batch, aligned on the right."""

    def __init__(self, scorer: TokenScorer) -> None:
        self.scorer = scorer

    def read(self, ids_BT: Tensor, mask_BC: Tensor, positions_BT: Tensor) -> Tensor:
        """Read the next tokens of every row; returns the logits behind the last, [B, V]."""
        raise NotImplementedError

    def take_rows(self, rows: list[int]) -> None:
        """Make these the rows; one may be named more than once."""
        raise NotImplementedError

    def put_rows(self, rows_B: Tensor, other: Self, other_rows_B: Tensor) -> None:
        """Overwrite rows with those of another memory of this kind that has read at most as many columns."""
        raise NotImplementedError

    def drop_left(self, num_columns: int) -> None:
        """Forget the first columns, which no row uses any more."""
        raise NotImplementedError


class ReplaceableRows(Memory):
    """Keys and values in a ``KVCache``, in which rows can be replaced."""

    def __init__(self, scorer: TokenScorer) -> None:
        super().__init__(scorer)
        self._cache = KVCache(len(DynamicCache(config=scorer.model.config).layers))

    def read(self, ids_BT: Tensor, mask_BC: Tensor, positions_BT: Tensor) -> Tensor:
        """Read the next tokens of every row; returns the logits behind the last, [B, V]."""
        output = self.scorer.forward(
            ids_BT,
            use_cache=True,
            attention_mask=mask_BC,
            position_ids=positions_BT,
            logits_to_keep=1,
            **{self.scorer.forward.cache_name: self._cache},
        )
        logits_BV: Tensor = output.logits[:, -1]
        return logits_BV

    def take_rows(self, rows: list[int]) -> None:
        """Make these the rows."""
        self._cache.reorder_cache(cast("torch.LongTensor", torch.tensor(rows, device=self.scorer.model.device)))

    def put_rows(self, rows_B: Tensor, other: ReplaceableRows, other_rows_B: Tensor) -> None:
        """Overwrite rows with those of another one."""
        self._cache.put_rows(rows_B, other._cache, other_rows_B)

    def drop_left(self, num_columns: int) -> None:
        """Forget the first columns."""
        self._cache.drop_left(num_columns)


class OwnCache(Memory):
    """What the model itself makes and returns: states of any kind, under the name that it has for them."""

    def __init__(self, scorer: TokenScorer) -> None:
        super().__init__(scorer)
        self._cache: Any = None
        self._num_rows = 0

    def read(self, ids_BT: Tensor, mask_BC: Tensor, positions_BT: Tensor) -> Tensor:
        """Read the next tokens of every row; returns the logits behind the last, [B, V]."""
        forward = self.scorer.forward
        inputs: dict[str, Any] = {} if self._cache is None else {forward.cache_name: self._cache}
        if self.scorer.driving.generation == "of any lengths":
            num_masked = mask_BC.shape[1] if self._has_columns() else ids_BT.shape[1]
            inputs |= {"attention_mask": mask_BC[:, -num_masked:], "position_ids": positions_BT}
        output = forward(ids_BT, use_cache=True, logits_to_keep=1, **inputs)
        self._cache = forward.cache_in(output)
        if self._cache is None:
            raise NotImplementedError("its forward pass returns no cache")
        self._num_rows = len(ids_BT)
        logits_BV: Tensor = output.logits[:, -1]
        return logits_BV

    def _has_columns(self) -> bool:
        """Whether a mask is for all that was read: a state has no columns, so one says which new tokens enter it."""
        if self.scorer.forward.cache_name != "cache":
            return self.scorer.forward.cache_name == "past_key_values"
        return isinstance(self._cache, Cache) and not all(self._cache.is_linear)

    def take_rows(self, rows: list[int]) -> None:
        """Make these the rows; one may be named more than once."""
        if rows != [*range(self._num_rows)]:  # some caches cannot be reordered
            self._cache.reorder_cache(torch.tensor(rows, device=self.scorer.model.device))


class NoCache(Memory):
    """The tokens themselves, which are all read again for each new one."""

    def __init__(self, scorer: TokenScorer) -> None:
        super().__init__(scorer)
        self._rows: list[Tensor] = []

    def read(self, ids_BT: Tensor, mask_BC: Tensor, positions_BT: Tensor) -> Tensor:
        """Read the next tokens of every row; returns the logits behind the last, [B, V]."""
        num_new = ids_BT.shape[1]
        new = [ids[mask.bool()] for ids, mask in zip(ids_BT, mask_BC[:, -num_new:], strict=True)]
        self._rows = [torch.cat(parts) for parts in zip(self._rows, new, strict=True)] if self._rows else new
        last_B = torch.tensor([len(row) - 1 for row in self._rows], device=ids_BT.device)
        ids_BC = pad_sequence(self._rows, batch_first=True)  # on the right, as in scoring
        return self.scorer.logits(ids_BC, torch.arange(len(self._rows), device=ids_BT.device), last_B)

    def take_rows(self, rows: list[int]) -> None:
        """Make these the rows."""
        self._rows = [self._rows[row] for row in rows]


MEMORIES = {"replaced rows": ReplaceableRows, "its own": OwnCache, "none": NoCache}
