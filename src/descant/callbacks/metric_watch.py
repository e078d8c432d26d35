"""MetricWatch: the declaration that a callback goes by a metric of another."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, isfinite, nan
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

from descant.errors import ConfigurationError
from descant.metrics import RESERVED_PREFIXES, MetricSpec

if TYPE_CHECKING:
    from descant.callbacks.base import RunView

Mode = Literal["min", "max"]
"""Whether a lower or a higher value is better."""


class Measured(NamedTuple):
    """A watched metric: its value, and how many samples failed and are not in it."""

    value: float
    num_failed: float


@dataclass(frozen=True, slots=True)
class MetricWatch:
    """What a callback with ``watches = MetricWatch(...)`` needs of the others; the runner orders calls by it.

    The callback runs after the others of a step, whenever the metric was measured, and has no schedule of its own. A
    metric that no callback can return is refused when the run is made; one that none has returned once all have run is
    a failure, with the keys that there are.

    An evaluation that failed (its call failed, or returned without the metric, or with a value that is not finite) is
    told to callbacks that compare: its value is NaN, which is never better. So is one of which more samples failed than
    of the best so far; one of which fewer failed is better for any value, since the best so far left out what
    counts now. The best is thus the best of the evaluations of which the fewest samples failed.

    Attributes:
        metric: its full key, such as ``validation/rewards/score/mean``.
        mode: "max" if a higher value is better, "min" if a lower one is; by default as the callback that returns the
            metric declares it.
        on_schedule: it runs at the steps of its own schedule instead, and needs what was measured there.
        uses_weights: it uses the weights that were measured (``run.as_measured``).
        compares: it compares values: it has to know which are better, and is told of evaluations that failed.
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
    def worst(self) -> Measured:
        """What every measurement that did not fail is better than."""
        return Measured(-inf if self.direction == "max" else inf, inf)

    def is_better(self, measured: Measured, than: Measured, by: float = 0.0) -> bool:
        """Whether a measurement is better by more than ``by``; see above for what failed."""
        if not isfinite(measured.value) or measured.num_failed != than.num_failed:
            return isfinite(measured.value) and measured.num_failed < than.num_failed
        value, best = measured.value, than.value
        return value > best + by if self.direction == "max" else value < best - by

    def measured(self, run: RunView) -> Measured:
        """The metric as it was measured at this step, and how many samples are not in it; raises as ``value`` does."""
        return Measured(self.value(run), run.num_failed.get(self.metric, 0))

    def value(self, run: RunView) -> float:
        """The metric as it was measured at this step; NaN if the evaluation failed.

        Raises:
            ConfigurationError: it was not measured, with the keys that there are; or it is not a number.
        """
        value = run.evaluations.get(self.metric)
        if value is None and self.metric in run.num_failed:
            return nan
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
