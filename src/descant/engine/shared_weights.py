"""SharedWeights: the weights of a model in memory that several processes map."""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from math import prod

import torch
from torch import Tensor, nn

from descant.errors import WeightsError

_ALIGNMENT = 64  # bytes, as torch's own tensors have it: kernels give the same bits
_NUM_SHOWN = 3


@dataclass(frozen=True, slots=True)
class TensorPlace:
    """Where a tensor stands in the file.

    Whether it ``requires_grad`` belongs to it, since torch chooses kernels by that, also where no gradient is wanted.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int
    requires_grad: bool


@dataclass(frozen=True, slots=True)
class WeightLayout:
    """Where each parameter and buffer of a module stands; those that are tied stand there once."""

    places: tuple[TensorPlace, ...]
    num_bytes: int

    @classmethod
    def of(cls, model: nn.Module) -> WeightLayout:
        """The layout of a module's tensors as they are now."""
        return cls._of_tensors(named_tensors(model))

    @classmethod
    def _of_tensors(cls, tensors: Mapping[str, Tensor]) -> WeightLayout:
        places, offset = [], 0
        for name, tensor in tensors.items():
            places.append(TensorPlace(name, tensor.dtype, tuple(tensor.shape), offset, tensor.requires_grad))
            offset += -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT
        return cls(tuple(places), max(offset, _ALIGNMENT))

    def differences(self, other: WeightLayout) -> str:
        """How another layout differs in names and shapes, in words; empty if it does not."""
        mine, its = ({place.name: list(place.shape) for place in layout.places} for layout in (self, other))
        kinds = {
            "of another shape": [f"{n} {mine[n]} and {its[n]}" for n in mine if its.get(n, mine[n]) != mine[n]],
            "only there": [name for name in its if name not in mine],
            "missing there": [name for name in mine if name not in its],
        }
        return "; ".join(
            f"{len(names)} tensors are {kind}: {', '.join(names[:_NUM_SHOWN])}{', ...' * (len(names) > _NUM_SHOWN)}"
            for kind, names in kinds.items()
            if names
        )


class SharedWeights:
    """A file of weights, mapped into this process.

    Args:
        fd: the open file. It is named by its number, which child processes are given to inherit.
        layout: what stands where in it.
    """

    def __init__(self, fd: int, layout: WeightLayout) -> None:
        self.layout = layout
        memory = torch.frombuffer(mmap.mmap(fd, layout.num_bytes), dtype=torch.uint8)
        self.tensors: Mapping[str, Tensor] = {
            place.name: memory[place.offset : place.offset + place.dtype.itemsize * prod(place.shape)]
            .view(place.dtype)
            .view(place.shape)
            for place in layout.places
        }
        """Views of the file: whatever is written to one is read in all processes."""

    @torch.no_grad()
    def copy_from(self, model: nn.Module) -> None:
        """Overwrite the file by the weights of a module.

        Raises:
            WeightsError: the module has other tensors than the layout, with what differs.
        """
        live = named_tensors(model)
        if (layout := WeightLayout._of_tensors(live)) != self.layout:
            differences = self.layout.differences(layout) or "number formats, or who requires gradients"
            raise WeightsError(f"the layers of the model have changed since the run began: {differences}")
        torch._foreach_copy_(list(self.tensors.values()), list(live.values()))


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers, those that are not saved with the weights too; tied ones once."""
    return dict(chain(model.named_parameters(), model.named_buffers()))
