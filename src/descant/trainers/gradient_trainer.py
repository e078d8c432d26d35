"""GradientTrainer: a trainer whose steps are single updates on batches of a dataset."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import field
from fractions import Fraction
from math import nan
from typing import Any, ClassVar, get_args

from descant.arguments import check_finite_number, check_flag, check_one_of, check_whole_number, missing_await
from descant.errors import ConfigurationError, DatasetError, NonFiniteError, NonFiniteSequenceError
from descant.metrics import Metric, MetricSpec
from descant.models.training import TrainingModel
from descant.progress import planned_steps
from descant.runner.contamination_check import check_contamination
from descant.runner.options import checked_by, options
from descant.runner.recorder import RunRecorder
from descant.settings import plain
from descant.trainers.data_order import DataOrder
from descant.trainers.loop import Step, Trainer
from descant.trainers.lr_schedulers import CosineScheduler, Scheduler, peak_rate
from descant.trainers.preview import Preview, shown_samples
from descant.trainers.trained_threads import OverLong, Problem, TrainedThreads

_FEW_STEPS = 10  # fewer than a callback at frequency=0.1 is meant to run between


def _check_scheduler(name: str, scheduler: Any) -> None:
    if scheduler is not None and not callable(scheduler):
        raise ConfigurationError(f"{name}={scheduler!r} must be callable with a fraction of the run")


def _check_model(name: str, model: Any) -> None:
    if not isinstance(model, TrainingModel):
        raise ConfigurationError(
            f"{name}={model!r} cannot be trained; make it with ModelBuilder(path).spawn_train(name, max_batch_size)"
            f"{missing_await(model)}"
        )


@options
class GradientTrainer(Trainer):
    """A trainer that makes one update per step, on ``samples_per_batch`` samples of a dataset.

    There are ``ceil(epochs * len(dataset) / samples_per_batch)`` steps; the last may be short. The dataset is rendered
    once, before the first step: threads that ``over_long`` leaves out are not counted.

    Metrics of each step: ``training/loss``, ``training/learning_rate``, ``training/grad_norm`` (before clipping),
    ``training/num_tokens`` (trained), ``training/num_samples``, ``training/tokens_per_s``, ``training/step_s`` (without
    callbacks), ``progress/step``, ``completion_percentage`` (a fraction); where it happens also
    ``training/num_skipped_samples`` and ``training/skipped_update``.
    """

    metric_specs: ClassVar[Sequence[MetricSpec]] = (
        MetricSpec("training/tokens_per_s", "tokens/s", better="higher", headline=True, detail=True),
        MetricSpec("training/learning_rate"),
        MetricSpec("training/grad_norm"),
        MetricSpec("training/num_tokens", "tokens", detail=True),
        MetricSpec("training/num_samples", "samples", detail=True),
        MetricSpec("training/step_s", "s", better="lower", detail=True),
        MetricSpec("training/num_skipped_samples", "samples", better="lower"),
        MetricSpec("training/skipped_update", better="lower"),
    )

    positional = ("dataset", "model", "logger", "stage_notifier", "callbacks", "epochs")

    dataset: Any = field(kw_only=False)
    """The samples: those that the list holds when the trainer is made."""

    model: TrainingModel = field(kw_only=False, metadata=checked_by(_check_model))
    """What is trained, made by ``ModelBuilder.spawn_train``."""

    lr: float = field(default=1e-5, metadata=checked_by(check_finite_number, least=0))
    """The peak learning rate of the default scheduler."""

    lr_scheduler: Scheduler | None = field(default=None, metadata=checked_by(_check_scheduler))
    """From completed fraction after the step to learning rate; by default ``CosineScheduler(lr)``, which warms up over
    a tenth of the run and ends at a tenth of ``lr``. It replaces ``lr``."""

    samples_per_batch: int = field(default=512, metadata=checked_by(check_whole_number))
    """Samples per step."""

    max_grad_norm: float = field(default=1.0, metadata=checked_by(check_finite_number, above=0))
    """The global norm that gradients are clipped to."""

    epochs: float | Fraction = field(default=1, metadata=checked_by(check_finite_number, above=0))
    """Passes over the dataset; may be a fraction."""

    weight_decay: float = field(default=0.0, metadata=checked_by(check_finite_number, least=0))
    """Of AdamW, on matrices and embeddings."""

    skip_nan_gradients: bool = field(default=False, metadata=checked_by(check_flag))
    """Leave out an update whose gradient is not finite, instead of raising."""

    data_seed: int = field(default=42, metadata=checked_by(check_whole_number, least=0))
    """The order of the data."""

    max_length: int | None = field(default=None, metadata=checked_by(check_whole_number, or_none=True))
    """The most tokens of a thread; by default what the model can train, ``max_batch_size`` or its context."""

    over_long: OverLong = field(default="error", metadata=checked_by(check_one_of, allowed=get_args(OverLong)))
    """What follows when threads have more tokens than that: "error" refuses to train, before the first step; "skip"
    leaves them out; "truncate" trains their first ``max_length`` tokens. Threads that the chat template refuses, or
    without a token to train, are refused by "error", too, and left out by the others."""

    def __post_init__(self) -> None:
        self.trained: TrainedThreads | None = None  # what remains of the dataset, once it is prepared
        self._has_skipped = False
        if hasattr(self.dataset, "__len__") and hasattr(self.dataset, "__getitem__"):
            self.dataset = tuple(self.dataset)
        super().__post_init__()
        limits = self.model.limits
        if self.max_length is not None and self.max_length > limits.trained:
            longer = self.max_length <= limits.context
            way = f"spawn_train(name, max_batch_size={self.max_length})" if longer else f"{limits.trained} or less"
            raise ConfigurationError(
                f"max_length={self.max_length} is more than {self.model.name!r} can train (max_batch_size="
                f"{limits.max_batch_size}, context {limits.context}); give {way}"
            )

    @property
    def scheduler(self) -> Scheduler:
        """``lr_scheduler``, or the default one."""
        return self.lr_scheduler or CosineScheduler(self.lr)

    def settings(self) -> dict[str, Any]:
        """The arguments, with the scheduler that is used, its learning rate (if it is known: see ``peak_rate``), and
        what is trained once that is known."""
        settings = {
            **super().settings(),
            "lr": peak_rate(self.scheduler),
            "lr_scheduler": plain(self.scheduler),
            "max_length": self.max_length or self.model.limits.trained,
            **({} if self.trained is None else {"trained": self.trained.settings()}),
        }
        return {name: value for name, value in settings.items() if name != "lr" or value is not None}

    def plan(self) -> DataOrder:
        """Shuffled epochs, cut into steps."""
        return DataOrder(
            len(self.trained or self.dataset),
            epochs=self.epochs,
            samples_per_batch=self.samples_per_batch,
            seed=self.data_seed,
        )

    async def prepare(self) -> None:
        """Render the dataset, refuse or leave out what cannot be trained, and plan what remains."""
        if refusal := (await self._rendered()).refusal():
            raise refusal

    async def _rendered(self) -> TrainedThreads:
        """What is trained of the dataset, which is rendered once; the plan is made of it."""
        if self.trained is None:
            max_length = self.max_length or self.model.limits.trained
            self.trained = await TrainedThreads.of(self.dataset, self.model, max_length, self.over_long, _say)
            self.order = self.plan()
        return self.trained

    async def announce(self, recorder: RunRecorder) -> None:
        """Say what is left out and cut, and what could be planned better."""
        assert self.trained is not None
        for hint in self.hints():
            recorder.show_note(hint)
        if left_out := self.trained.left_out:
            await recorder.record_left_out(self.trained.describe_left_out(), _listing(left_out))
        if cut := self.trained.cut:
            await recorder.record_note(0, "samples_cut", "trainer", self.trained.describe_cut(), _listing(cut))

    def hints(self) -> list[str]:
        """What could be planned better: a step that takes the whole dataset, too few steps to evaluate between."""
        num_samples, total = self.order.num_samples, self.order.num_samples_after(self.num_steps)
        smaller = 1 << max(1, total // _FEW_STEPS).bit_length() - 1
        num_steps = planned_steps(self.epochs, num_samples, smaller)
        better = "more epochs make more steps"
        if num_steps > self.num_steps:
            better = f"samples_per_batch={smaller} makes {num_steps:,}, and {better}"
        steps = f"{self.num_steps:,} step{'s' * (self.num_steps > 1)}"
        if self.samples_per_batch > num_samples:
            return [
                f"samples_per_batch={self.samples_per_batch} is more than the {num_samples:,} threads, so the run has "
                f"{steps}; {better}"
            ]
        if self.num_steps < _FEW_STEPS:
            return [
                f"a run of {steps} is short: a callback at frequency=0.1 is called {self.num_steps + 1} times, not 11; "
                f"{better}"
            ]
        return []

    async def preview(self, num_samples: int = 3) -> Preview:
        """Print what a run would train and call, and return it as data. Nothing is trained, and nothing is written.

        Args:
            num_samples: threads that are shown: the first ones of the first step, and the longest.
        """
        check_whole_number("num_samples", num_samples)
        data = await self._rendered()
        runner = self._make_runner()
        notes, refusal = self.hints(), data.refusal()
        try:
            found = await check_contamination(self.callbacks, self.prompts(), self.contamination)
            notes += [each.describe() for each in found]
        except DatasetError as error:
            refusal = refusal or error
        preview = Preview(
            title=runner.title,
            num_steps=self.num_steps,
            plan=runner.plan(),
            data=data,
            samples=await shown_samples(data, self.order.indices(1), num_samples),
            notes=notes,
            refusal=refusal,
        )
        preview.show()
        return preview

    @property
    def trained_models(self) -> Sequence[TrainingModel]:
        """The model."""
        return [self.model]

    async def update(self, step: Step, failures: Mapping[int, Exception], started_at: float) -> dict[str, Metric]:
        """Apply the accumulated gradient, and return the metrics of the step.

        Args:
            step: the step.
            failures: of samples, by their place in the batch, that could not be trained; they are recorded.
            started_at: when the step began (``time.perf_counter()``).

        Raises:
            DatasetError: none of the samples could be trained, with the reason of each.
            NonFiniteError: the gradient, or the loss of every sample, is not finite; the weights are unchanged.
        """
        if failures:
            await self._record_skipped(step, failures)
        learning_rate = self.scheduler(step.progress)
        update = await self._optim_step(step, learning_rate, any_trained=len(failures) < len(step.indices))
        seconds = time.perf_counter() - started_at
        metrics: dict[str, Metric] = {
            "training/loss": update["loss"],
            "training/learning_rate": learning_rate,
            "training/grad_norm": update["grad_norm"],
            "training/num_tokens": update["num_tokens"],
            "training/num_samples": update["num_samples"],
            "training/tokens_per_s": update["num_tokens"] / seconds,
            "training/step_s": seconds,
        }
        if failures:
            metrics["training/num_skipped_samples"] = len(failures)
        if update["skipped_update"]:
            metrics["training/skipped_update"] = 1
            message = f"step {step.number} was skipped: its loss or gradient is not finite (skip_nan_gradients=True)"
            await step.recorder.record_event(step.number, "update_skipped", "trainer", message)
        return metrics

    async def _optim_step(self, step: Step, learning_rate: float, *, any_trained: bool) -> dict[str, float]:
        try:
            if any_trained:
                return await self.model.optim_step(
                    learning_rate, self.weight_decay, self.max_grad_norm, self.skip_nan_gradients
                )
            if not self.skip_nan_gradients:
                raise NonFiniteError(
                    "the loss of every sample is not finite: the weights have diverged, or were broken when they were "
                    "loaded. Lower the learning rate, or leave such updates out with skip_nan_gradients=True"
                )
        except NonFiniteError as error:
            error.add_note(f"at step {step.number} of {self.num_steps}")
            raise
        return {"loss": nan, "grad_norm": nan, "num_tokens": 0, "num_samples": 0, "skipped_update": 1.0}

    async def _record_skipped(self, step: Step, failures: Mapping[int, Exception]) -> None:
        """Record samples that could not be trained; the first ones are shown, since there may be some at each step."""
        assert self.trained is not None
        num_samples = len(step.indices)
        problems = [(self.trained.place(step.indices[place]), str(error)) for place, error in failures.items()]
        are_finite = (not isinstance(error, NonFiniteSequenceError) for error in failures.values())
        if len(failures) == num_samples and any(are_finite):
            raise DatasetError(f"none of the {num_samples} threads of step {step.number} can be trained", problems)
        listing = "\n".join(f"{place}: {reason}" for place, reason in problems)
        message = (
            f"{len(failures)} of {num_samples} threads of step {step.number} cannot be trained, first: {problems[0][1]}"
        )
        await step.recorder.record_event(
            step.number, "samples_skipped", "trainer", message, listing, is_shown=not self._has_skipped
        )
        self._has_skipped = True


def _listing(problems: Sequence[Problem]) -> str:
    return "\n".join(f"{problem.place}: {problem.reason}" for problem in problems)


def _say(message: str) -> None:
    from descant.runner.console import Console  # noqa: PLC0415  # rich, which importing a trainer spares

    Console(1).note(message)
