"""Ranks: the processes of one training, which follow what the callbacks in the first of them decide."""

from __future__ import annotations

import itertools
from datetime import timedelta
from typing import Any

import torch
from torch import distributed as dist

from descant.errors import ConfigurationError

MEETING = timedelta(minutes=5)
"""How long the others may take to arrive when training begins."""
_EVALUATING = timedelta(days=30)
_numbers = itertools.count()  # the same in every process, if each of them adds the same callbacks


class Ranks:
    """The processes that train one model together (DistributedDataParallel); alone where there is one.

    Callbacks run in the first. After each step the others wait for what it has decided, on a connection of their own:
    so all of them end or save at the same step, and the timeout of training's own exchanges (10 minutes with NCCL, 30
    with Gloo) does not run while the first evaluates.

    Raises:
        ConfigurationError: a process that does not arrive.
    """

    def __init__(self) -> None:
        self._group: Any = None
        self.is_first = True
        if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
            return
        self.is_first = dist.get_rank() == 0
        number = next(_numbers)
        self._meet([f"descant/{number}/{rank}" for rank in range(dist.get_world_size())])
        self._group = dist.new_group(backend="gloo", timeout=_EVALUATING)

    def agree(self, *decisions: bool) -> list[bool]:
        """Which of these any process has decided: the same in all of them, which wait for each other here."""
        if self._group is None:
            return list(decisions)
        decided = torch.tensor(decisions, dtype=torch.uint8, device="cpu")
        dist.all_reduce(decided, dist.ReduceOp.MAX, group=self._group)
        return [bool(each) for each in decided]

    def _meet(self, keys: list[str]) -> None:
        store = dist.distributed_c10d._get_default_store()
        store.set(keys[dist.get_rank()], "here")
        try:
            store.wait(keys, MEETING)
        except dist.DistStoreError as error:
            missing = [rank for rank, key in enumerate(keys) if not store.check([key])]
            raise ConfigurationError(
                f"this training has {len(keys)} processes, and callbacks were not added in those of rank {missing}: "
                "add them in every process; they run in the first, and the others follow its decisions"
            ) from error
