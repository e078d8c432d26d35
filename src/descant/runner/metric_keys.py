"""MetricKeys: which callback of a run a metric belongs to."""

from __future__ import annotations

import inspect
from collections.abc import Sequence

from descant.callbacks.base import RESERVED_PREFIXES, RecipeCallback
from descant.errors import ConfigurationError
from descant.metrics import clean_text


class MetricKeys:
    """The keys that callbacks return, each owned by one of them: by declaration, else by the first return.

    Args:
        callbacks: those of one run.

    Raises:
        ConfigurationError: something that is not a callback, or names, declared keys or checkpoints that collide.
    """

    def __init__(self, callbacks: Sequence[RecipeCallback]) -> None:
        if not isinstance(callbacks, Sequence):
            raise ConfigurationError(f"callbacks={callbacks!r} is a {type(callbacks).__name__}; a list is needed")
        self._owners: dict[str, str] = {}
        names: set[str] = set()
        checkpoints = {"step-<step>": "the trainer"}  # those that callbacks request
        for position, callback in enumerate(callbacks):
            _check_is_callback(callback, f"callbacks[{position}]")
            if callback.name in names:
                raise ConfigurationError(
                    f"two callbacks are called {callback.name!r}; names identify a callback's rows and costs, so give "
                    "one of them its own log_key=, log_key_prefix= or name="
                )
            names.add(callback.name)
            for key in sorted(callback.declared_keys()):
                if key in self._owners or key.startswith(RESERVED_PREFIXES):
                    raise ConfigurationError(
                        f"callback {callback.name!r} returns the metric {key!r}, which belongs to "
                        f"{self._owners.get(key, 'the trainer')!r}; give it its own log_key= or log_key_prefix="
                    )
                self._owners[key] = callback.name
            for checkpoint in sorted(callback.declared_checkpoints()):
                if checkpoint in checkpoints:
                    raise ConfigurationError(
                        f"callback {callback.name!r} writes checkpoints/{checkpoint}, and so does "
                        f"{checkpoints[checkpoint]!r}; give it its own checkpoint_name="
                    )
                checkpoints[checkpoint] = callback.name

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
            raise ConfigurationError(f"the key belongs to {owner}; give {callback!r} its own log_key_prefix=")
        return key


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
    for method in ("callback", "on_start", "on_end"):
        if not inspect.iscoroutinefunction(getattr(callback, method)):
            raise ConfigurationError(f"{place}: {class_name}.{method} must be `async def`")
