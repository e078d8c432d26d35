"""Modes: in which mode each callback of a run runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import get_args

from descant.callbacks.base import CallbackMode, RecipeCallback
from descant.callbacks.model_callback import ModelCallback
from descant.errors import ConfigurationError


def modes_of(callbacks: Sequence[RecipeCallback], callback_mode: CallbackMode) -> Mapping[str, CallbackMode]:
    """The mode of each callback, by name: its own, or else the run's where it can run in that.

    Raises:
        ConfigurationError: an unknown mode, or callbacks whose modes cannot work together, with the fix.
    """
    if callback_mode not in get_args(CallbackMode):
        allowed = ", ".join(map(repr, get_args(CallbackMode)))
        raise ConfigurationError(f"callback_mode={callback_mode!r} must be one of {allowed}")
    modes = {callback.name: _mode(callback, callback_mode) for callback in callbacks}
    for watcher in callbacks:
        for source in callbacks:
            _check_pair(watcher, source, modes[source.name])
    return modes


def _mode(callback: RecipeCallback, callback_mode: CallbackMode) -> CallbackMode:
    if not isinstance(callback, ModelCallback):
        return "inline"
    if type(callback).callback is ModelCallback.callback:
        return callback.mode or callback_mode
    if callback.mode not in (None, "inline"):
        raise ConfigurationError(
            f"callback {callback.name!r}: mode={callback.mode!r} runs `measure` and `report`, and "
            f"{type(callback).__name__} overrides `callback`, which would not be called; override those two instead"
        )
    return "inline"


def _check_pair(watcher: RecipeCallback, source: RecipeCallback, mode: CallbackMode) -> None:
    keys = source.declared_keys()
    key = watcher.same_step_key
    if key in keys and mode != "inline":
        raise ConfigurationError(
            f"callback {watcher.name!r} needs {key!r} at the step at which it runs, and {source.name!r} measures it "
            f"while training goes on (mode={mode!r}); give {source.name!r} mode='inline', or keep the best weights "
            "with a BestModelCallback"
        )
    if watcher.needs_measured_weights and watcher.watched_key in keys and mode == "overlap":
        raise ConfigurationError(
            f"callback {watcher.name!r} needs the weights that {source.name!r} has measured, and in mode='overlap' "
            f"they are gone when its metrics are there; give {source.name!r} mode='background' (which has a copy of "
            "them) or 'inline'"
        )
