"""FunctionCallback: a plain async function as a callback."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import Any, Unpack

from descant.callbacks.base import CallbackOptions, RecipeCallback
from descant.errors import ConfigurationError
from descant.schedule import Frequency

_PARAMETERS = ("run", "current_percentage")


class FunctionCallback(RecipeCallback):
    """What ``@callback(frequency=...)`` makes of a function; calling it calls the function."""

    def __init__(
        self,
        function: Callable[..., Awaitable[dict[str, Any]]],
        frequency: Frequency,
        log_key_prefix: str | None = None,
        **options: Unpack[CallbackOptions],
    ) -> None:
        name = getattr(function, "__name__", type(function).__name__)
        if not inspect.iscoroutinefunction(function):
            raise ConfigurationError(f"@callback: {name} must be `async def`, since it runs on the event loop")
        self._parameters = tuple(inspect.signature(function).parameters)
        if unknown := [parameter for parameter in self._parameters if parameter not in _PARAMETERS]:
            raise ConfigurationError(
                f"@callback: {name} has a parameter {unknown[0]!r}; it may take {' and '.join(_PARAMETERS)}, by name"
            )
        if options.get("name") is None:
            options["name"] = log_key_prefix or name
        super().__init__(frequency, log_key_prefix, **options)
        self._function = function
        self.__doc__ = function.__doc__

    def __call__(self, *args: Any, **kwargs: Any) -> Awaitable[dict[str, Any]]:
        """Call the function itself."""
        return self._function(*args, **kwargs)

    async def callback(self, current_percentage: float) -> dict[str, Any]:
        """What the function returns."""
        values: dict[str, Any] = {"current_percentage": current_percentage}
        if "run" in self._parameters:
            values["run"] = self.running()
        return await self._function(*(values[parameter] for parameter in self._parameters))


def callback(
    frequency: Frequency, log_key_prefix: str | None = None, **options: Unpack[CallbackOptions]
) -> Callable[[Callable[..., Awaitable[dict[str, Any]]]], FunctionCallback]:
    """Decorator: make an async function a callback, named like the function.

    The function may take ``run`` (the ``RunView``) and ``current_percentage``, by name, and returns metrics.

    >>> @callback(frequency=0.1)
    ... async def learning_rate_seen(run):
    ...     return {"learning_rate_seen": run.metrics.get("training/learning_rate", 0.0)}

    Args:
        frequency, log_key_prefix, options: see ``RecipeCallback``.

    Raises:
        ConfigurationError: a function that is not ``async def``, or with other parameters.
    """
    if callable(frequency):
        raise ConfigurationError("@callback needs a frequency: write @callback(frequency=0.1)")
    return lambda function: FunctionCallback(function, frequency, log_key_prefix, **options)
