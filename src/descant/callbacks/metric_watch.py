"""MetricWatch: the declaration that a callback goes by a metric of another."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, Literal, get_args

from descant.errors import ConfigurationError
from descant.metrics import RESERVED_PREFIXES, MetricSpec

if TYPE_CHECKING:
    from descant.callbacks.base import RunView

Mode = Literal["min", "max"]
"""Whether a lower or a higher value is better."""


@dataclass(frozen=True, slots=True)
class MetricWatch:
    """What a callback with ``watches = MetricWatch(...)`` needs of the others; the runner orders calls by it.

    The callback runs after the others of a step, whenever the metric was measured, and has no schedule of its own. A
    metric that no callback can return is refused when the run is made; one that none has returned once all have run is
    a failure, with the keys that there are.

    Attributes:
        metric: its full key, such as ``validation/rewards/score/mean``.
        mode: "max" if a higher value is better, "min" if a lower one is; by default as the callback that returns the
            metric declares it.
        on_schedule: it runs at the steps of its own schedule instead, and needs what was measured there.
        uses_weights: it uses the weights that were measured (``run.as_measured``).
        compares: it cannot do without knowing which values are better.
        owner, declared: the callback that watches, and the metric's declaration; filled in when a run is made.

    Raises:
        ConfigurationError: a key that is not text or is the trainer's, or an unknown mode.
    """

    metric: str
    mode: Mode | None = None
    on_schedule: bool = False
    uses_weights: bool = False
    compares: bool = False
    owner: str = "a callback"
    declared: MetricSpec | None = None

    def __post_init__(self) -> None:
        metric, owner = self.metric, self.owner
        if not isinstance(metric, str) or not metric:
            raise ConfigurationError(f"{owner}: metric={metric!r} must be the key of a metric that a callback returns")
        if metric.startswith(RESERVED_PREFIXES):
            raise ConfigurationError(
                f"{owner}: metric={metric!r} is the trainer's own; the metric of a callback is needed, such as "
                "'validation/loss' of ValidationLossCallback"
            )
        if self.mode is not None and self.mode not in get_args(Mode):
            raise ConfigurationError(
                f"{owner}: mode={self.mode!r} must be 'max' if a higher {metric} is better, 'min' if a lower one is"
            )

    @property
    def direction(self) -> Mode | None:
        """``mode``, or as the metric is declared; None if neither says which values are better."""
        if self.mode is not None or self.declared is None or self.declared.better is None:
            return self.mode
        return "max" if self.declared.better == "higher" else "min"

    @property
    def worst(self) -> float:
        """A value that every number is better than."""
        return -inf if self.direction == "max" else inf

    def is_better(self, value: float, than: float, by: float = 0.0) -> bool:
        """Whether a value is better by more than ``by``. NaN never is."""
        return value > than + by if self.direction == "max" else value < than - by

    def value(self, run: RunView) -> float:
        """The metric as it was measured at this step.

        Raises:
            ConfigurationError: it was not, with the keys that there are; or it is not a number.
        """
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
