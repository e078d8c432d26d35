"""MetricWatch: a metric of another callback, and which values of it are better."""

from __future__ import annotations

from math import inf
from typing import Literal, get_args

from descant.callbacks.base import RESERVED_PREFIXES, RecipeCallback
from descant.errors import ConfigurationError

Mode = Literal["min", "max"]
"""Whether a lower or a higher value is better."""


class MetricWatch:
    """Reads one metric of the other callbacks of a step.

    Args:
        metric: its full key, such as ``validation/rewards/score/mean``.
        mode: "max" if a higher value is better, "min" if a lower one is.
        owner: the callback that watches, for messages.

    Raises:
        ConfigurationError: a key that is not text, or an unknown mode.
    """

    def __init__(self, metric: str, mode: Mode, owner: str) -> None:
        if not isinstance(metric, str) or not metric:
            raise ConfigurationError(f"{owner}: metric={metric!r} must be the key of a metric that a callback returns")
        if metric.startswith(RESERVED_PREFIXES):
            raise ConfigurationError(
                f"{owner}: metric={metric!r} is the trainer's own; the metric of a callback is needed, such as "
                "'validation/loss' of ValidationLossCallback"
            )
        if mode not in get_args(Mode):
            raise ConfigurationError(
                f"{owner}: mode={mode!r} must be 'max' if a higher {metric} is better, 'min' if a lower one is"
            )
        self.metric, self.mode, self.owner = metric, mode, owner

    @property
    def worst(self) -> float:
        """What every number is better than."""
        return -inf if self.mode == "max" else inf

    def is_better(self, value: float, than: float, by: float = 0.0) -> bool:
        """Whether a value is better by more than ``by``. NaN never is."""
        return value > than + by if self.mode == "max" else value < than - by

    def value(self, watcher: RecipeCallback) -> float:
        """The metric as it was measured at this step.

        Raises:
            ConfigurationError: it was not, with the keys that there are; or it is not a number.
        """
        run = watcher.running()
        value = run.evaluations.get(self.metric)
        if value is None:
            keys = ", ".join(sorted(run.known_keys)) or "none yet"
            when = "at this step" if self.metric in run.known_keys else "by any callback"
            raise ConfigurationError(
                f"{self.owner} watches {self.metric!r}, which was not measured {when}; the keys that callbacks have "
                f"returned are: {keys}"
            )
        if not isinstance(value, int | float):
            raise ConfigurationError(
                f"{self.owner} watches {self.metric!r}, which is a {type(value).__name__} and no number"
            )
        return float(value)
