"""Optimizers and learning rate schedulers of torch, as settings of a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from descant.settings import plain


def optimizer_settings(optimizers: Sequence[Any]) -> dict[str, Any]:
    """The highest learning rate (before a scheduler changes it) and weight decay of optimizers' parameter groups, and
    the settings of the first optimizer."""
    if not optimizers or not getattr(optimizers[0], "param_groups", None):
        return {}
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    first = getattr(optimizers[0], "optimizer", optimizers[0])  # accelerate's is around another one
    defaults = {name: value for name, value in first.defaults.items() if name not in ("lr", "weight_decay")}
    found = {"lr": max(float(group.get("initial_lr", group["lr"])) for group in groups)}
    if decays := [group["weight_decay"] for group in groups if "weight_decay" in group]:
        found["weight_decay"] = max(map(float, decays))
    return {**found, "optimizer": {"name": type(first).__name__, **defaults}}


def scheduler_settings(scheduler: Any) -> dict[str, Any]:
    """The class of a scheduler and the arguments that it keeps."""
    settings = plain(getattr(scheduler, "scheduler", scheduler))  # accelerate's is around another one
    left_out = ("optimizer", "last_epoch")
    return {name: value for name, value in settings.items() if name not in left_out}
