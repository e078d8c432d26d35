"""WeightStore: the live weights of a model, and copies of what they were."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from descant.engine.jobs import LIVE, REFERENCE, WeightHandle
from descant.engine.shared_weights import WeightLayout, named_tensors, shared_tensors
from descant.errors import WeightsError

_Copy = list[tuple[Tensor, Tensor]]
"""Parameters and buffers, each with its data in this version of the weights."""


class WeightStore:
    """The weights that a model can compute with: the live ones, the reference, snapshots, and those in shared memory.

    A version counts the changes of the live weights (parameters and buffers): two snapshots between the same
    two updates share one copy. Where other code changes them untold (``counts_changes=False``), every snapshot is a
    copy. The reference is the copy at version 0.
    """

    def __init__(self, model: nn.Module, *, counts_changes: bool = True) -> None:
        self._model = model
        self._counts_changes = counts_changes
        self._copies: dict[str, _Copy] = {}
        self._num_users: Counter[str] = Counter()
        self._in_use = [LIVE]  # by jobs within jobs; the last are active
        self._live: _Copy = []  # while other weights are active
        self._version = 0

    def changed(self) -> None:
        """Count a change of the live weights."""
        self._version += 1

    @contextmanager
    def active(self, weights: str) -> Iterator[None]:
        """Have the model compute with these weights; on the way out, with those before.

        Only the storage behind the parameters is exchanged, so it costs nothing, and the optimizer and tied layers keep
        their tensors. It nests: a training job within an evaluation of a snapshot runs on the live weights.
        """
        self._exchange(self._in_use[-1], weights)
        self._in_use.append(weights)
        try:
            yield
        finally:
            self._exchange(self._in_use.pop(), self._in_use[-1])

    def take_snapshot(self) -> str:
        """Copy the live weights, unless that version is held already; returns the name of the copy."""
        if not self._counts_changes:
            self.changed()
        snapshot = f"snapshot-{self._version}"
        if not self._num_users[snapshot]:
            self._copies[snapshot] = self._copy()
        self._num_users[snapshot] += 1
        return snapshot

    def release_snapshot(self, snapshot: str) -> None:
        """One user fewer; the last one frees the copy."""
        self._check_held(snapshot)
        self._num_users[snapshot] -= 1
        if not self._num_users[snapshot]:
            del self._copies[snapshot], self._num_users[snapshot]

    @torch.no_grad()
    def export(self, handle: WeightHandle) -> None:
        """Copy the weights that are active into shared memory, which must have the layout of the model."""
        if (layout := WeightLayout.of(self._model)) != handle.layout:
            differences = handle.layout.differences(layout) or "number formats, or which tensors require gradients"
            raise WeightsError(f"the layers of the model have changed since the run began: {differences}")
        torch._foreach_copy_(list(shared_tensors(handle).values()), list(named_tensors(self._model).values()))

    def attach(self, name: str, handle: WeightHandle) -> None:
        """Hold the weights in shared memory, on the model's device, under this name."""
        tensors, shared = named_tensors(self._model), shared_tensors(handle)
        self._copies[name] = [(tensors[key], data.to(tensors[key].device)) for key, data in shared.items()]
        self._num_users[name] = 1

    def detach(self, name: str) -> bool:
        """Forget attached weights; returns False if a job is in the middle of using them."""
        if name in self._in_use:
            return False
        self.release_snapshot(name)
        return True

    def keep_reference(self) -> None:
        """Copy the weights as they were loaded, once."""
        if REFERENCE in self._copies:
            return
        if self._version > 0:
            raise WeightsError(
                f"the weights were changed {self._version} times since the model was spawned, so its reference is "
                "gone; call reference() before the first optim_step or load"
            )
        self._copies[REFERENCE] = self._copy()

    def _copy(self) -> _Copy:
        return [(tensor, data.clone()) for tensor, data in self._live or self._read()]

    def _read(self) -> _Copy:
        """The weights of now: layers may have been added or moved since the last time."""
        return [(tensor, tensor.data) for tensor in named_tensors(self._model).values()]

    def _exchange(self, active: str, weights: str) -> None:
        if weights == active:
            return
        self._check_held(weights)
        if active == LIVE:
            self._live = self._read()
        for tensor, data in self._live if weights == LIVE else self._copies[weights]:
            tensor.data = data
        if weights == LIVE:
            self._live = []

    def _check_held(self, weights: str) -> None:
        if weights != LIVE and weights not in self._copies:
            held = ", ".join([LIVE, *self._copies])
            raise WeightsError(f"the weights {weights!r} are not held (any more); there are {held}")
