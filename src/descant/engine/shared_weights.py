"""Shared weights: the tensors of a model in memory that several workers share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from math import prod

import torch
from torch import Tensor, nn

from descant.engine.jobs import WeightHandle
from descant.engine.weight_files import weight_memory

_ALIGNMENT = 64  # bytes, as for torch's own tensors: so kernels give the same bits
_NUM_SHOWN = 3


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """A tensor in the file. Torch chooses kernels by ``requires_grad``, also where no gradient is computed."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int
    requires_grad: bool


@dataclass(frozen=True, slots=True)
class WeightLayout:
    """The offset of each parameter and buffer of a module in a file, tied ones once."""

    entries: tuple[TensorEntry, ...]
    num_bytes: int

    @classmethod
    def of(cls, model: nn.Module) -> WeightLayout:
        """The layout of a module's tensors as they are now."""
        entries, offset = [], 0
        for name, tensor in named_tensors(model).items():
            entries.append(TensorEntry(name, tensor.dtype, tuple(tensor.shape), offset, tensor.requires_grad))
            offset += -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT
        return cls(tuple(entries), max(offset, _ALIGNMENT))

    def differences(self, other: WeightLayout) -> str:
        """How another layout differs in names and shapes, in words; empty if it does not."""
        mine, its = ({entry.name: entry.shape for entry in layout.entries} for layout in (self, other))
        return "; ".join(shape_differences(mine, its))


def shared_tensors(handle: WeightHandle) -> dict[str, Tensor]:
    """Views of a weight file, by name."""
    memory = torch.frombuffer(weight_memory(handle.name), dtype=torch.uint8)
    return {
        entry.name: memory[entry.offset : entry.offset + entry.dtype.itemsize * prod(entry.shape)]
        .view(entry.dtype)
        .view(entry.shape)
        for entry in handle.layout.entries
    }


def shape_differences(expected: Mapping[str, Sequence[int]], found: Mapping[str, Sequence[int]]) -> list[str]:
    """How the shapes of tensors differ, in words; empty if they do not."""
    kinds = {
        "of another shape": [
            f"{name} {list(found[name])} instead of {list(shape)}"
            for name, shape in expected.items()
            if name in found and found[name] != shape
        ],
        "missing there": [name for name in expected if name not in found],
        "unknown to the model": [name for name in found if name not in expected],
    }
    return [
        f"{len(names)} {kind}: {', '.join(names[:_NUM_SHOWN])}{', ...' if len(names) > _NUM_SHOWN else ''}"
        for kind, names in kinds.items()
        if names
    ]


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers, those that are not saved with the weights too; tied ones once."""
    return dict(chain(model.named_parameters(), model.named_buffers()))
