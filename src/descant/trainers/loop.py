"""The training loop, shared by every trainer.

open the run log, print the plan
callbacks: on_start, then the calls that are due before the first step
for each step:
    train_step                   the trainer's own part: a batch, an update, its metrics
    record                       its metrics are in the run log before anything else can fail
    callbacks that are due       they see the weights after this step
    publish                      one call of the logger, with the metrics of the step and of its callbacks
if training failed: the final calls of the callbacks, on the weights after the last whole step
callbacks: on_end, in any case
close the run log
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from descant.callbacks.base import RecipeCallback
from descant.callbacks.runner import CallbackFailure, CallbackRunner, check_callbacks
from descant.errors import ConfigurationError
from descant.loggers.recorder import Logger, RunRecorder
from descant.metrics import Metric
from descant.models.training import TrainingModel
from descant.owner import Owner, owner_scope


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """What a run came to.

    Attributes:
        num_steps: steps that were made.
        metrics: the latest value of every metric that is a number or a string.
        callback_failures: calls of callbacks that failed, in order; their tracebacks are in the run log too.
        callback_seconds: seconds that training waited for each callback.
        seconds: wall time of the whole run.
        run_dir: the directory of the run; ``run_dir / "run.sqlite"`` is the run log.
    """

    num_steps: int
    metrics: Mapping[str, float | str]
    callback_failures: Sequence[CallbackFailure]
    callback_seconds: Mapping[str, float]
    seconds: float
    run_dir: Path


class Trainer(ABC):
    """The part that all trainers share. A trainer adds its planned steps and how one step is made.

    Args:
        logger: any callable that takes a dict, called once per step; the run log is written with or without it.
        callbacks: run at their exact steps, in list order.
        seed: everything random in training, the order of the data aside, is made from it.
        strict: stop at the first callback (or logger) that fails instead of recording it.
        run_dir: the directory of the run, made if needed; by default a new one under ``runs``.

    Raises:
        ConfigurationError: an argument that cannot work, or callbacks whose names or keys collide.
    """

    def __init__(
        self,
        *,
        logger: Logger | None,
        callbacks: Sequence[RecipeCallback],
        seed: int,
        strict: bool,
        run_dir: str | Path | None,
    ) -> None:
        if logger is not None and not callable(logger):
            raise ConfigurationError(f"logger={logger!r} must be callable with a dict of metrics, or None")
        check_callbacks(callbacks)
        self.logger = logger
        self.callbacks = list(callbacks)
        self.seed = seed
        self.strict = strict
        self.run_dir = None if run_dir is None else Path(run_dir)

    @property
    @abstractmethod
    def num_steps(self) -> int:
        """Planned steps, at least 1."""

    @property
    @abstractmethod
    def trained_models(self) -> Sequence[TrainingModel]:
        """The models whose weights change; while the trainer runs, nobody else may train them."""

    @abstractmethod
    def describe(self) -> str:
        """What will be trained on what, in one line."""

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """The trainer's settings, for the run log."""

    @abstractmethod
    async def train_step(self, step: int, recorder: RunRecorder) -> dict[str, Metric]:
        """Make step ``step`` (from 1) and return its metrics under their full keys."""

    async def run(self) -> TrainingResult:
        """Train, and return what it came to.

        Raises:
            CallbackError: a callback failed and ``strict`` is on.
            ObserverError: another trainer is training the same model.
            NonFiniteError: the gradient of a step is not finite; the weights are those before it.
            RunLogError: the run log cannot be written.
            and whatever else stops training, once callbacks and run log are closed.
        """
        started_at = time.monotonic()
        run_dir = self.run_dir or _new_run_dir(type(self).__name__.lower())
        recorder = RunRecorder(run_dir, self.num_steps, self.logger, strict=self.strict)
        runner = CallbackRunner(
            self.callbacks, recorder, num_steps=self.num_steps, seed=self.seed, run_dir=run_dir, strict=self.strict
        )
        async with recorder:
            await recorder.announce(f"{type(self).__name__}: {self.describe()}", self._full_config(), runner.plan())
            async with self._training_alone(), runner:
                await runner.before_first_step()
                await recorder.publish()
                for step in range(1, self.num_steps + 1):
                    metrics = await self.train_step(step, recorder)
                    await recorder.record(step, metrics)
                    await runner.after_step(step, metrics)
                    await recorder.publish()
        return TrainingResult(
            num_steps=self.num_steps,
            metrics=recorder.latest,
            callback_failures=runner.failures,
            callback_seconds=runner.seconds,
            seconds=time.monotonic() - started_at,
            run_dir=run_dir,
        )

    @asynccontextmanager
    async def _training_alone(self) -> AsyncIterator[None]:
        """What the trainer asks of models, it asks as itself; nobody else may train them meanwhile."""
        owner = Owner(f"a running {type(self).__name__}", self.seed, observer=False)
        with owner_scope(owner), ExitStack() as stack:
            for model in self.trained_models:
                stack.enter_context(model.trained_by(owner))
                await model.discard_gradient()  # a trainer before this one may have been interrupted within a step
            yield

    def _full_config(self) -> dict[str, Any]:
        callbacks = [
            {"name": c.name, "class": type(c).__name__, "frequency": str(c.frequency), "prefix": c.log_key_prefix}
            for c in self.callbacks
        ]
        return {"trainer": type(self).__name__, "seed": self.seed, **self.config(), "callbacks": callbacks}


def _new_run_dir(trainer: str) -> Path:
    """``runs/<trainer>-<date>-<time>``, with a number behind it if a run started in the same second."""
    base = Path("runs") / f"{trainer}-{datetime.now():%Y%m%d-%H%M%S}"
    candidate, number = base, 1
    while candidate.exists():
        number += 1
        candidate = base.with_name(f"{base.name}-{number}")
    return candidate
