"""The training loop, shared by every trainer.

prepare:                         the data is rendered; what cannot be trained is refused or left out; the plan
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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, get_args

from descant.arguments import check_one_of
from descant.callbacks.base import RunMode
from descant.errors import ConfigurationError
from descant.metrics import Metric, MetricSpec
from descant.models.requester import Requester, requester_scope
from descant.models.training import TrainingModel
from descant.notifiers import StageNotifier
from descant.runner.callback_runner import CallbackRunner
from descant.runner.calls import CallbackFailure
from descant.runner.options import RunOptions, checked_by, options
from descant.runner.preview_scope import PreviewEnd, num_previewed
from descant.runner.recorder import RunRecorder
from descant.table import Table
from descant.threads.thread import StringThread
from descant.trainers.data_order import DataOrder
from descant.trainers.preview import Preview


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """What a run came to.

    Attributes:
        num_steps: steps that were made.
        stop_reason: why they are fewer than planned, if a callback has requested that.
        metrics: the latest value of every metric that is a number or a string, without those that the latest call of
            their callback did not return. (If that call failed, they are those of the one before.) ``training/loss`` is
            the mean over the last tenth of the steps, at least two, each weighted with its trained tokens: the loss of
            one batch, the last and perhaps a short one, says little. That of each step is in the run log.
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


@dataclass(frozen=True, slots=True)
class Step:
    """A step that is to be made.

    Attributes:
        number: from 1.
        progress: the completed fraction of the run after it.
        indices: the samples of its batch.
        recorder: records events of the step.
    """

    number: int
    progress: float
    indices: Sequence[int]
    recorder: RunRecorder


def _check_notifier(name: str, notifier: Any) -> None:
    if notifier is not None and not callable(getattr(notifier, "report_progress", None)):
        raise ConfigurationError(
            f"{name}={notifier!r} must have report_progress, as ctx.job.stage_notifier('train') has"
        )


@options
class Trainer(RunOptions, ABC):
    """The part that all trainers share: a trainer adds its plan, what is trained, and how one step is made.

    A subclass is a dataclass, whose fields are its arguments; everything is checked when it is constructed.
    """

    metric_specs: ClassVar[Sequence[MetricSpec]] = ()
    """The metrics that a step returns, under their full keys."""

    callback_mode: RunMode = field(default="auto", metadata=checked_by(check_one_of, allowed=get_args(RunMode)))
    """What training waits for when a callback looks at a model and has no mode of its own (see ``ModelCallback``).
    "auto" is the mode in which it waits least without a risk: "overlap", and "background" for the rest of the run once
    the first calls and steps have shown that this saves more than it costs, where there are cores or an accelerator for
    it; "inline" for what others go by. The metrics are the same in all. What was chosen is said, with the reason."""

    stage_notifier: StageNotifier | None = field(default=None, metadata=checked_by(_check_notifier))
    """Is told after every step how many samples are done."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.order = self.plan()
        self._make_runner()  # what cannot work is refused now

    @abstractmethod
    def plan(self) -> DataOrder:
        """The planned steps, and the samples of each: a pure function of the arguments."""

    @abstractmethod
    def prompts(self) -> Sequence[StringThread]:
        """What is trained on: prompts of validation sets that stand in it are reported."""

    @property
    @abstractmethod
    def trained_models(self) -> Sequence[TrainingModel]:
        """The models whose weights change; while the trainer runs, nothing else may train them."""

    @abstractmethod
    def describe(self) -> str:
        """What is trained on what, in one line."""

    @abstractmethod
    async def train_step(self, step: Step) -> dict[str, Metric]:
        """Make a step and return its metrics under their full keys."""

    @abstractmethod
    async def preview(self, num_samples: int = 3) -> Preview:
        """Print what a run would do, with some samples, and return it as data."""

    async def prepare(self) -> None:
        """Look at the data, refuse or leave out what cannot be trained, and plan the rest: before anything is made."""

    async def announce(self, recorder: RunRecorder) -> None:
        """Say what is known of the data and the plan, before the first call."""

    async def setup(self) -> None:
        """Prepare what training needs apart from the models (a reference, a value model), before the first call."""

    @property
    def num_steps(self) -> int:
        """Planned steps, at least 1."""
        return self.order.num_steps

    async def save_checkpoint(self, path: Path) -> None:
        """Write the weights of the trained models to a directory; called between steps."""
        models = self.trained_models
        for model in models:
            await model.save(path if len(models) == 1 else path / model.name)

    async def run(self) -> TrainingResult:
        """Train, and return what it came to; under ``descant preview``, preview it, and end the recipe.

        Raises:
            CallbackError: a callback failed, and ``strict`` or its ``on_error="raise"`` is on.
            ObserverError: another trainer is training the same model.
            NonFiniteError: the gradient of a step is not finite; the weights are those before it.
            RunLogError: the run log cannot be written.
            DatasetError: samples that cannot be trained, with all of their places; or prompts that callbacks evaluate
                on are trained on, and ``contamination="error"``. Nothing is written.
            KeyboardInterrupt, SystemExit: Ctrl-C or SIGTERM, after the step, the final calls and the run log are done.
            Exception: what else stops training, once callbacks and run log are closed.
        """
        if (num_samples := num_previewed.get()) is not None:
            raise PreviewEnd((await self.preview(num_samples)).refusal is not None)
        started_at = time.monotonic()
        async with self._training_alone():
            await self.prepare()
            await self.setup()
            runner = self._make_runner()
            async with runner:
                await self._report_progress(0, runner.recorder)
                for number in range(1, self.num_steps + 1):
                    if runner.should_stop:
                        break
                    step = Step(number, number / self.num_steps, self.order.indices(number), runner.recorder)
                    await runner.after_step(number, await self.train_step(step))
                    await self._report_progress(number, runner.recorder)
        return TrainingResult(
            num_steps=runner.step,
            stop_reason=runner.stop_reason,
            metrics=runner.recorder.latest,
            tables=runner.recorder.tables,
            callback_failures=runner.failures,
            callback_seconds={cost.name: cost.seconds for cost in runner.costs if cost.num_runs},
            seconds=time.monotonic() - started_at,
            run_dir=runner.recorder.run_dir,
        )

    def _make_runner(self) -> CallbackRunner:
        name = type(self).__name__
        return CallbackRunner(
            **{**self.run_options(), "progress_bar": self.progress_bar is not False},
            num_steps=self.num_steps,
            name=name.lower(),
            title=f"{name}: {self.describe()}",
            config={"trainer": name, **self.settings()},
            metric_specs=self.metric_specs,
            save_checkpoint=self.save_checkpoint,
            training_set=self.prompts(),
            models=self.trained_models,
            on_open=self.announce,
        )

    async def _report_progress(self, step: int, recorder: RunRecorder) -> None:
        """Tell the stage notifier how many samples are done; one that fails is an event, as a logger is."""
        if self.stage_notifier is None:
            return
        try:
            self.stage_notifier.report_progress(
                tot_num_samples=self.order.num_samples_after(self.num_steps),
                processed_num_samples=self.order.num_samples_after(step),
            )
        except Exception as error:
            message = f"the stage notifier failed at step {step}: {type(error).__name__}: {error}"
            await recorder.record_event(step, "notifier_failed", "stage_notifier", message, error)
            if self.strict:
                raise

    @asynccontextmanager
    async def _training_alone(self) -> AsyncIterator[None]:
        """What the trainer asks of models, it asks as itself; nothing else may train them meanwhile."""
        requester = Requester(f"a running {type(self).__name__}", self.seed, observer=False)
        with requester_scope(requester), ExitStack() as stack:
            for model in self.trained_models:
                stack.enter_context(model.trained_by(requester))
                await model.discard_gradient()  # a trainer before this one may have been interrupted within a step
            yield
