"""The training loop, shared by every trainer.

enter the runner:                open the run log, print the plan
                                 callbacks: on_start, then the calls that are due before the first step
for each step, until one of them requests a stop:
    train_step                   the trainer's own part: a batch, an update, its metrics
    after_step                   its metrics are in the run log before anything else can fail
                                 callbacks that are due see the weights after this step
                                 checkpoints that they request are written
                                 one call of the logger, with the metrics of the step and of its callbacks
                                 the stage notifier is told how many samples are done
leave the runner:                the final calls of the callbacks, on the weights after the last whole step,
                                 if the run has failed or was stopped before its last step
                                 callbacks: on_end, in any case
                                 close the run log
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from descant.callbacks.base import CallbackMode, RecipeCallback
from descant.errors import ConfigurationError
from descant.metrics import Metric
from descant.models.requester import Requester, requester_scope
from descant.models.training import TrainingModel
from descant.notifiers import StageNotifier
from descant.runner.contamination_check import Policy, check_policy
from descant.runner.due_calls import check_budget
from descant.runner.metric_keys import MetricKeys
from descant.runner.modes import modes_of
from descant.runner.recorder import Logger, RunRecorder, flat_loggers, new_run_dir
from descant.table import Table
from descant.threads.thread import StringThread

if TYPE_CHECKING:
    from descant.models.evaluation_placement import EvaluationPlacement
    from descant.runner.calls import CallbackFailure


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """What a run came to.

    Attributes:
        num_steps: steps that were made.
        stop_reason: why they are fewer than planned, if a callback has requested that.
        metrics: the latest value of every metric that is a number or a string.
        tables: the latest table under every key: the samples of every evaluation callback, with grades and reasoning.
            Those of all steps are in the run log.
        callback_failures: calls of callbacks that failed, in order; their tracebacks are in the run log too.
        callback_seconds: seconds that training waited for each callback.
        seconds: wall time of the whole run.
        run_dir: the directory of the run; ``run_dir / "run.sqlite"`` is the run log.
    """

    num_steps: int
    stop_reason: str | None
    metrics: Mapping[str, float | str]
    tables: Mapping[str, Table]
    callback_failures: Sequence[CallbackFailure]
    callback_seconds: Mapping[str, float]
    seconds: float
    run_dir: Path


class Trainer(ABC):
    """The part that all trainers share. A trainer adds its planned steps and how one step is made.

    Args:
        logger: a tracker (``WandbLogger``, ``get_prod_logger()``, ...), which is fed from the run log beside training;
            or any callable that takes a dict, called once per step; or a list of them. The run log is always written.
        callbacks: run at their exact steps, in list order.
        seed: everything random in training, the order of the data aside, is made from it.
        strict: stop at the first callback (or logger) that fails instead of recording it.
        run_dir: the directory of the run, made if needed; by default a new one under ``runs``.
        contamination: what follows when prompts that callbacks evaluate on are trained on: "warn", "error", "ignore".
        stage_notifier: is told after every step how many samples are done.
        callback_mode: the mode of every callback that looks at a model and has none of its own: "inline", "overlap" or
            "background", see ``ModelCallback``.
        callback_budget: the share of the time that callbacks may cost training, such as 0.05; by default there is no
            limit. A call that would go beyond it is deferred to the first step at which it fits, and that is recorded.
            First and last calls are always made.
        callback_placement: where the mode "background" evaluates; by default in a process of its own.

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
        contamination: Policy,
        stage_notifier: StageNotifier | None = None,
        callback_mode: CallbackMode = "inline",
        callback_budget: float | None = None,
        callback_placement: EvaluationPlacement | None = None,
    ) -> None:
        flat_loggers(logger)
        if stage_notifier is not None and not callable(getattr(stage_notifier, "report_progress", None)):
            raise ConfigurationError(
                f"stage_notifier={stage_notifier!r} must have report_progress, as ctx.job.stage_notifier('train') has"
            )
        MetricKeys(callbacks)  # what cannot work is refused before anything is opened
        modes_of(callbacks, callback_mode)
        check_budget(callback_budget)
        self.callback_mode, self.callback_budget = callback_mode, callback_budget
        self.callback_placement = callback_placement
        check_policy(contamination)
        self.contamination: Policy = contamination
        self.logger = logger
        self.stage_notifier = stage_notifier
        self.callbacks = list(callbacks)
        self.seed = seed
        self.strict = strict
        self.run_dir = None if run_dir is None else Path(run_dir)

    @property
    @abstractmethod
    def num_steps(self) -> int:
        """Planned steps, at least 1."""

    @abstractmethod
    def num_samples_after(self, step: int) -> int:
        """Samples of the first ``step`` steps."""

    @property
    @abstractmethod
    def trained_models(self) -> Sequence[TrainingModel]:
        """The models whose weights change; while the trainer runs, nobody else may train them."""

    @property
    @abstractmethod
    def training_set(self) -> Sequence[StringThread]:
        """What is trained on: prompts of validation sets that stand in it are reported."""

    @abstractmethod
    def describe(self) -> str:
        """What will be trained on what, in one line."""

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """The trainer's settings, for the run log."""

    @abstractmethod
    async def train_step(self, step: int, recorder: RunRecorder) -> dict[str, Metric]:
        """Make step ``step`` (from 1) and return its metrics under their full keys."""

    async def save_checkpoint(self, path: Path) -> None:
        """Write the weights of the trained models to a directory; called between steps."""
        models = self.trained_models
        for model in models:
            await model.save(path if len(models) == 1 else path / model.name)

    async def run(self) -> TrainingResult:
        """Train, and return what it came to.

        Raises:
            CallbackError: a callback failed, and ``strict`` or its ``on_error="raise"`` is on.
            ObserverError: another trainer is training the same model.
            NonFiniteError: the gradient of a step is not finite; the weights are those before it.
            RunLogError: the run log cannot be written.
            DatasetError: prompts that callbacks evaluate on are trained on, and ``contamination="error"``.
            KeyboardInterrupt, SystemExit: Ctrl-C or SIGTERM, after the step, the final calls and the run log are done.
            and whatever else stops training, once callbacks and run log are closed.
        """
        from descant.runner.callback_runner import CallbackRunner  # noqa: PLC0415  # torch, which `--help` of a recipe spares

        started_at = time.monotonic()
        runner = CallbackRunner(
            self.callbacks,
            num_steps=self.num_steps,
            run_dir=self.run_dir or new_run_dir(type(self).__name__.lower()),
            logger=self.logger,
            seed=self.seed,
            strict=self.strict,
            title=f"{type(self).__name__}: {self.describe()}",
            config={"trainer": type(self).__name__, "seed": self.seed, **self.config()},
            save_checkpoint=self.save_checkpoint,
            training_set=self.training_set,
            contamination=self.contamination,
            callback_mode=self.callback_mode,
            callback_budget=self.callback_budget,
            callback_placement=self.callback_placement,
        )
        async with self._training_alone(), runner:
            await self._report_progress(0, runner.recorder)
            for step in range(1, self.num_steps + 1):
                if runner.should_stop:
                    break
                metrics = await self.train_step(step, runner.recorder)
                await runner.after_step(step, metrics)
                await self._report_progress(step, runner.recorder)
        return TrainingResult(
            num_steps=runner.step,
            stop_reason=runner.stop_reason,
            metrics=runner.recorder.latest,
            tables=runner.recorder.tables,
            callback_failures=runner.failures,
            callback_seconds={cost.name: cost.seconds for cost in runner.costs if cost.num_runs},
            seconds=time.monotonic() - started_at,
            run_dir=runner.run_dir,
        )

    async def _report_progress(self, step: int, recorder: RunRecorder) -> None:
        """Tell the stage notifier how many samples are done; one that fails is an event, as a logger is."""
        if self.stage_notifier is None:
            return
        try:
            self.stage_notifier.report_progress(
                tot_num_samples=self.num_samples_after(self.num_steps),
                processed_num_samples=self.num_samples_after(step),
            )
        except Exception as error:
            message = f"the stage notifier failed at step {step}: {type(error).__name__}: {error}"
            await recorder.record_event(step, "notifier_failed", "stage_notifier", message, error)
            if self.strict:
                raise

    @asynccontextmanager
    async def _training_alone(self) -> AsyncIterator[None]:
        """What the trainer asks of models, it asks as itself; nobody else may train them meanwhile."""
        requester = Requester(f"a running {type(self).__name__}", self.seed, observer=False)
        with requester_scope(requester), ExitStack() as stack:
            for model in self.trained_models:
                stack.enter_context(model.trained_by(requester))
                await model.discard_gradient()  # a trainer before this one may have been interrupted within a step
            yield
