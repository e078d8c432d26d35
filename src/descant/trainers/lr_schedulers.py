"""Learning rate schedulers: functions from completed fraction of the run to learning rate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import cos, pi
from typing import Any

from descant.arguments import check_finite_number, is_finite_number
from descant.errors import ConfigurationError

Scheduler = Callable[[float], float]
"""Takes the fraction of the run that is complete once the step is done, in (0, 1]; returns the step's learning rate."""


@dataclass(frozen=True, slots=True)
class CosineSchedulerWithoutWarmup:
    """From ``lr`` down to ``lr / decay_factor`` along half a cosine (SGDR without restarts, arXiv:1608.03983):

    ``min + (lr - min) * (1 + cos(pi * p)) / 2``. Past the end of the run it stays at the minimum.
    """

    lr: float = 1e-5
    decay_factor: float = 10.0

    def __post_init__(self) -> None:
        check_finite_number("lr", self.lr, least=0)
        check_finite_number("decay_factor", self.decay_factor, above=0)

    def __call__(self, completion_percentage: float) -> float:
        """The learning rate at this fraction of the run."""
        minimum = self.lr / self.decay_factor
        return minimum + 0.5 * (cos(pi * min(completion_percentage, 1.0)) + 1) * (self.lr - minimum)


@dataclass(frozen=True, slots=True)
class CombinedSchedule:
    """``a`` over the run up to ``change_point``, a fraction from 0 to 1, then ``b``; each sees its own part as 0 to 1.

    At ``change_point=0`` it is ``b`` alone, at 1 ``a`` alone.
    """

    a: Scheduler
    b: Scheduler
    change_point: float

    def __post_init__(self) -> None:
        for name, scheduler in (("a", self.a), ("b", self.b)):
            if not callable(scheduler):
                raise ConfigurationError(
                    f"{name}={scheduler!r} must be callable with a fraction of the run; a constant is lambda _: 1e-5"
                )
        if not is_finite_number(self.change_point) or not 0 <= self.change_point <= 1:
            raise ConfigurationError(f"change_point={self.change_point!r} must be a fraction of the run, from 0 to 1")

    def __call__(self, completion_percentage: float) -> float:
        """The learning rate at this fraction of the run."""
        if completion_percentage < self.change_point or self.change_point == 1:
            return self.a(completion_percentage / self.change_point)
        return self.b((completion_percentage - self.change_point) / (1 - self.change_point))


@dataclass(frozen=True, slots=True)
class CosineScheduler:
    """Linear warm-up from 0 to ``lr`` over the first ``warmup_percentage`` (a fraction) of the run, then a cosine
    down to ``lr / decay_factor``."""

    lr: float = 1e-5
    warmup_percentage: float = 0.1
    decay_factor: float = 10.0

    def __post_init__(self) -> None:
        CosineSchedulerWithoutWarmup(self.lr, self.decay_factor)  # the same checks
        if not is_finite_number(self.warmup_percentage) or not 0 <= self.warmup_percentage < 1:
            raise ConfigurationError(
                f"warmup_percentage={self.warmup_percentage!r} is a fraction of the run, at least 0 and below 1"
            )

    def __call__(self, completion_percentage: float) -> float:
        """The learning rate at this fraction of the run."""
        cosine = CosineSchedulerWithoutWarmup(self.lr, self.decay_factor)
        if self.warmup_percentage == 0:
            return cosine(completion_percentage)
        return CombinedSchedule(lambda p: p * self.lr, cosine, self.warmup_percentage)(completion_percentage)


def peak_rate(scheduler: Any) -> float | None:
    """The highest learning rate of a scheduler, if it has it as ``lr``. It is not called: it might count its calls."""
    if isinstance(scheduler, CombinedSchedule):
        return max((rate for rate in map(peak_rate, (scheduler.a, scheduler.b)) if rate is not None), default=None)
    lr = getattr(scheduler, "lr", None)
    return float(lr) if is_finite_number(lr) else None
