"""MetricKeys: which metric belongs to which callback, what is declared of it, and who needs whose."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import inf
from typing import Any

from descant.callbacks.base import RecipeCallback
from descant.errors import ConfigurationError
from descant.metrics import RESERVED_PREFIXES, Metric, MetricSpec, as_metric, clean_text, find_spec
from descant.text import did_you_mean


class MetricKeys:
    """The names, keys and checkpoints of the callbacks of one run, each owned by one of them.

    A key is owned by declaration, else by the first return. A callback that declares metrics is watched for these; one
    without declarations for any under its prefix.

    Args:
        callbacks: those of one run.

    Raises:
        ConfigurationError: something that is not a callback; names, declared keys or checkpoints that collide; or a
            watched metric that no callback can return, with the keys that there are.
    """

    def __init__(self, callbacks: Sequence[RecipeCallback]) -> None:
        if not isinstance(callbacks, Sequence):
            raise ConfigurationError(f"callbacks={callbacks!r} is a {type(callbacks).__name__}; a list is needed")
        for position, callback in enumerate(callbacks):
            _check_is_callback(callback, f"callbacks[{position}]")
        self.specs: dict[str, list[MetricSpec]] = {}
        """The declared metrics of each callback, under their full keys."""
        self._owners: dict[str, str] = {}
        checkpoints = {"step-<step>": "the trainer"}  # those that callbacks request
        for callback in callbacks:
            if callback.name in self.specs:
                raise ConfigurationError(
                    f"two callbacks are called {callback.name!r}; names identify a callback's rows and costs, so give "
                    "one of them its own log_key=, log_key_prefix= or name="
                )
            if wrong := [spec for spec in callback.metric_specs if not isinstance(spec, MetricSpec)]:
                raise ConfigurationError(f"callback {callback.name!r}: metric_specs has {wrong[0]!r}, not a MetricSpec")
            self.specs[callback.name] = callback.declared_metrics()
            self._claim_declared(callback.name)
            for checkpoint in sorted(callback.declared_checkpoints()):
                if checkpoint in checkpoints:
                    raise ConfigurationError(
                        f"callback {callback.name!r} writes checkpoints/{checkpoint}, and so does "
                        f"{checkpoints[checkpoint]!r}; give it its own checkpoint_name="
                    )
                checkpoints[checkpoint] = callback.name
        self.sources = {callback.name: self._sources(callback, callbacks) for callback in callbacks}
        """For each callback that watches a metric, the callbacks that may return it."""
        self._watched = {c.name: c.watches.metric for c in callbacks if c.watches is not None}

    def declares(self, callback: RecipeCallback, key: str) -> bool:
        """Whether a callback declares a key."""
        return find_spec(self.specs[callback.name], key) is not None

    def owner(self, key: str) -> str | None:
        """The callback that a key belongs to, if it does to one."""
        return self._owners.get(key)

    def claim(self, callback: str, key: object) -> str:
        """The key, if it is one and the callback's own.

        Raises:
            ConfigurationError: it is not text, or belongs to another callback or to the trainer, with the fix.
        """
        if not isinstance(key, str) or not key or key != clean_text(key):
            raise ConfigurationError("a key must be a string that is valid Unicode and not empty")
        owner = "the trainer" if key.startswith(RESERVED_PREFIXES) else self._owners.setdefault(key, callback)
        if owner != callback:
            raise ConfigurationError(
                f"the key belongs to {owner}; give {callback!r} its own log_key= or log_key_prefix="
            )
        return key

    def of_the_loop(self, metrics: Mapping[str, Any], step: int) -> dict[str, Metric]:
        """The loop's own metrics of a step, as plain values.

        Raises:
            ConfigurationError: a key that is reserved or a callback's, or a value that is not a metric.
        """
        checked: dict[str, Metric] = {}
        for key, value in metrics.items():
            place = f"the metric {key!r} of step {step}"
            if not isinstance(key, str) or key.startswith(RESERVED_PREFIXES[1:]):
                reserved = ", ".join(RESERVED_PREFIXES[1:])
                raise ConfigurationError(f"{place}: its key must be text not in {reserved}")
            try:
                checked[key] = as_metric(value)
            except TypeError as error:
                raise ConfigurationError(f"{place}: {error}") from error
            if (owner := self.owner(key)) is not None:
                raise ConfigurationError(f"{place} is what callback {owner!r} returns")
        return checked

    def num_failed(self, callback: RecipeCallback, metrics: Mapping[str, Metric], *, is_failure: bool) -> float:
        """How many samples of a call failed: what its metrics that are declared as such counts say, or ``num_failed``
        in what is not declared; infinity if the call itself failed."""
        specs = {key: find_spec(self.specs[callback.name], key) for key in metrics}
        counted = (
            float(value)
            for key, value in metrics.items()
            if isinstance(value, int | float) and value > 0
            and (spec.counts_failures if (spec := specs[key]) else key.rpartition("/")[2] == "num_failed")
        )  # fmt: skip
        return inf if is_failure else sum(counted)

    def has_measured(self, callback: RecipeCallback, metrics: Mapping[str, Metric]) -> bool:
        """Whether a call has returned what its callback is for: a headline with a direction, if it declares one, else
        anything but counts of failures."""
        specs = [spec for spec in self.specs[callback.name] if not spec.counts_failures]
        aims = [spec for spec in specs if spec.headline and spec.better is not None]
        if aims:
            return any(find_spec(aims, key) for key in metrics)
        counts = [spec for spec in self.specs[callback.name] if spec.counts_failures]
        return any(not find_spec(counts, key) for key in metrics)

    def missing(self, callback: RecipeCallback, metrics: Mapping[str, Metric], *, is_failure: bool) -> set[str]:
        """The watched metrics that a call should have returned and did not: those that belong to its callback, and if
        the call failed those that it may have returned."""
        return {
            metric
            for watcher, metric in self._watched.items()
            if metric not in metrics and callback in self.sources[watcher]
            and self.owner(metric) in (None, callback.name)
            and (is_failure or self.owner(metric) is not None or self.declares(callback, metric))
        }  # fmt: skip

    def in_order(self, callbacks: Sequence[RecipeCallback]) -> list[RecipeCallback]:
        """The callbacks in the order of their calls at a step: as listed, and who watches a metric after all that may
        return it.

        Raises:
            ConfigurationError: some watch each other in a circle.
        """
        ordered = [callback for callback in callbacks if callback.watches is None]
        left = [callback for callback in callbacks if callback.watches is not None]
        while left:
            ready = next((c for c in left if not self._declaring(c, [o for o in left if o is not c])), None)
            if ready is None:
                names = ", ".join(callback.name for callback in left)
                raise ConfigurationError(f"the callbacks {names} watch metrics of each other in a circle")
            left.remove(ready)
            ordered.append(ready)
        return ordered

    def _claim_declared(self, name: str) -> None:
        for key in sorted(spec.key for spec in self.specs[name]):
            if key.startswith(RESERVED_PREFIXES) or ("*" not in key and key in self._owners):
                raise ConfigurationError(
                    f"callback {name!r} returns the metric {key!r}, which belongs to "
                    f"{self._owners.get(key, 'the trainer')!r}; give it its own log_key= or log_key_prefix="
                )
            if "*" not in key:
                self._owners[key] = name

    def _declaring(self, watcher: RecipeCallback, others: Sequence[RecipeCallback]) -> list[RecipeCallback]:
        assert watcher.watches is not None
        return [other for other in others if self.declares(other, watcher.watches.metric)]

    def _sources(self, watcher: RecipeCallback, callbacks: Sequence[RecipeCallback]) -> list[RecipeCallback]:
        if watcher.watches is None:
            return []
        metric, others = watcher.watches.metric, [callback for callback in callbacks if callback is not watcher]
        declaring = self._declaring(watcher, others)
        sources = declaring or [other for other in others if not self.specs[other.name] and _may_return(other, metric)]
        keys = sorted(spec.key for other in others for spec in self.specs[other.name])
        if not sources:
            hint = f"{did_you_mean(metric, keys)} they return: {', '.join(keys) or 'nothing'}".lstrip()
            raise ConfigurationError(
                f"callback {watcher.name!r} watches {metric!r}, which no callback of this run returns; {hint}"
            )
        spec = next((find_spec(self.specs[source.name], metric) for source in declaring), None)
        watches = replace(watcher.watches, owner=f"callback {watcher.name!r}", declared=spec)
        if watches.compares and watches.direction is None:
            raise ConfigurationError(
                f"callback {watcher.name!r} watches {metric!r}, and no callback declares which of its values are "
                f"better: give mode='max' if a higher one is, 'min' if a lower one is. {did_you_mean(metric, keys)}"
            )
        watcher.watches = watches  # of this run; the next one declares its own
        return sources


def _may_return(callback: RecipeCallback, key: str) -> bool:
    """Whether a callback without declarations may return a key: any, or those under its prefix."""
    has_prefix = callback.log_key_prefix and type(callback).with_prefix is RecipeCallback.with_prefix
    return not has_prefix or key.startswith(f"{callback.log_key_prefix}/")


def _check_is_callback(callback: object, place: str) -> None:
    if isinstance(callback, type) and issubclass(callback, RecipeCallback):
        raise ConfigurationError(f"{place} is the class {callback.__name__}; pass an instance of it")
    if not isinstance(callback, RecipeCallback):
        raise ConfigurationError(
            f"{place}={callback!r} is a {type(callback).__name__}, not a callback; subclass RecipeCallback, or put "
            "@callback(frequency=0.1) before an async function"
        )
    class_name = type(callback).__name__
    if not hasattr(callback, "name"):
        raise ConfigurationError(f"{place}: {class_name}.__init__ must call super().__init__(frequency=...)")
    if type(callback).maybe_call is not RecipeCallback.maybe_call:
        raise ConfigurationError(
            f"{place}: {class_name}.maybe_call would not be called by a run; override `is_due(previous, current)` for "
            "when, and `callback(current_percentage)` for what"
        )
    if inspect.iscoroutinefunction(callback.is_due):
        raise ConfigurationError(f"{place}: {class_name}.is_due must not be async: it answers at once, with a bool")
    for method in ("callback", "on_start", "on_end"):
        if not inspect.iscoroutinefunction(getattr(callback, method)):
            raise ConfigurationError(f"{place}: {class_name}.{method} must be `async def`")
