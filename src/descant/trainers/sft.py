"""SFT: supervised fine-tuning on the weighted turns of threads."""

from __future__ import annotations

import time
from collections.abc import Sequence
from difflib import get_close_matches
from fractions import Fraction
from math import isfinite, nan
from pathlib import Path
from typing import TYPE_CHECKING, Any, Never

from descant.callbacks.base import CallbackMode, RecipeCallback
from descant.errors import ConfigurationError, DatasetError, NonFiniteError, NonFiniteSequenceError
from descant.metrics import Metric
from descant.models.training import TrainingModel
from descant.notifiers import StageNotifier
from descant.progress import exact_fraction
from descant.runner.contamination_check import Policy
from descant.runner.recorder import Logger, RunRecorder
from descant.threads.thread import StringThread
from descant.trainers.data_order import DataOrder
from descant.trainers.loop import Trainer
from descant.trainers.lr_schedulers import CosineScheduler, Scheduler

if TYPE_CHECKING:
    from descant.models.evaluation_placement import EvaluationPlacement

_NOT_YET = ("checkpoint_restore_data", "checkpoint_frequency", "use_tangents")
_ARGUMENTS = (
    "dataset", "model", "logger", "callbacks", "lr", "lr_scheduler", "samples_per_batch", "max_grad_norm", "epochs",
    "weight_decay", "skip_nan_gradients", "data_seed", "seed", "strict", "run_dir", "contamination", "stage_notifier",
    "callback_mode", "callback_budget", "callback_placement",
)  # fmt: skip


class SFT(Trainer):
    """Trains a model to say what the weighted turns of a dataset say.

    A step is one update on ``samples_per_batch`` threads; its loss is the negative log-likelihood in nats, averaged
    over all trained tokens of the step (end-of-turn tokens included), however the step is cut to fit in memory. There
    are ``ceil(epochs * len(dataset) / samples_per_batch)`` steps; the last may be short.

    Metrics of each step: ``training/loss``, ``training/learning_rate``, ``training/grad_norm`` (before clipping),
    ``training/num_tokens`` (trained), ``training/num_samples``, ``training/tokens_per_s``, ``training/step_s`` (without
    callbacks), ``progress/step``, ``completion_percentage`` (a fraction); where it happens also
    ``training/num_skipped_samples`` and ``training/skipped_update``.

    Args:
        dataset: threads, each with a weighted turn; a fresh thread trains on its assistant turns.
        model: made by ``ModelBuilder.spawn_train``.
        logger: a tracker (``WandbLogger``, ``get_prod_logger()``, ...), which is fed from the run log beside training;
            or any callable that takes a dict, called once per step; or a list of them. The run log is always written.
        callbacks: run at their exact steps, in list order.
        lr: the peak learning rate of the default scheduler.
        lr_scheduler: from completed fraction after the step to learning rate; by default ``CosineScheduler(lr)``,
            which warms up over a tenth of the run and ends at a tenth of ``lr``. It takes the place of ``lr``.
        samples_per_batch: threads per step.
        max_grad_norm: the global norm that gradients are clipped to.
        epochs: passes over the dataset; may be a fraction.
        weight_decay: of AdamW, on matrices and embeddings.
        skip_nan_gradients: leave out an update whose gradient is not finite, instead of raising.
        data_seed: the order of the data.
        seed: everything else that is random in training (dropout).
        strict: stop at the first callback or logger that fails instead of recording it.
        run_dir: the directory of the run; by default ``runs/sft-<date>-<time>``.
        contamination: what follows when prompts that callbacks evaluate on stand in the dataset, too: "warn" says so at
            the start, with examples; "error" refuses to start; "ignore" does not look.
        stage_notifier: is told after every step how many samples are done.
        callback_mode: the mode of every callback that looks at a model and has none of its own: "inline", "overlap" or
            "background", see ``ModelCallback``.
        callback_budget: the share of the time that callbacks may cost training, such as 0.05; by default there is no
            limit. A call that would go beyond it is deferred to the first step at which it fits, and that is recorded.
            First and last calls are always made.
        callback_placement: where the mode "background" evaluates; by default in a process of its own.

    Raises:
        ConfigurationError: an argument that cannot work, an argument that does not exist, or callbacks that collide.
        DatasetError: an empty dataset, or threads in which nothing is weighted (all of them in ``problems``).
    """

    def __init__(
        self,
        *,
        dataset: Sequence[StringThread],
        model: TrainingModel,
        logger: Logger | None = None,
        callbacks: Sequence[RecipeCallback] = (),
        lr: float = 1e-5,
        lr_scheduler: Scheduler | None = None,
        samples_per_batch: int = 512,
        max_grad_norm: float = 1.0,
        epochs: float | Fraction = 1,
        weight_decay: float = 0.0,
        skip_nan_gradients: bool = False,
        data_seed: int = 42,
        seed: int = 0,
        strict: bool = False,
        run_dir: str | Path | None = None,
        contamination: Policy = "warn",
        stage_notifier: StageNotifier | None = None,
        callback_mode: CallbackMode = "inline",
        callback_budget: float | None = None,
        callback_placement: EvaluationPlacement | None = None,
        **unsupported: Never,
    ) -> None:
        for name in unsupported:
            raise ConfigurationError(_describe_unsupported(name))
        _check_numbers(lr=(lr, 0, True), weight_decay=(weight_decay, 0, True))
        _check_numbers(epochs=(epochs, 0, False), max_grad_norm=(max_grad_norm, 0, False))
        if not isinstance(samples_per_batch, int) or samples_per_batch < 1:
            raise ConfigurationError(f"samples_per_batch={samples_per_batch!r} must be a whole number of at least 1")
        if lr_scheduler is not None and not callable(lr_scheduler):
            raise ConfigurationError(f"lr_scheduler={lr_scheduler!r} must be callable with a fraction of the run")
        if not isinstance(model, TrainingModel):
            raise ConfigurationError(
                f"model={model!r} cannot be trained; make it with ModelBuilder(path).spawn_train(name, max_batch_size)"
            )
        for name, value in (("seed", seed), ("data_seed", data_seed)):
            if not isinstance(value, int) or value < 0:
                raise ConfigurationError(f"{name}={value!r} must be a whole number of at least 0")
        _check_dataset(dataset)
        super().__init__(
            logger=logger,
            callbacks=callbacks,
            seed=seed,
            strict=strict,
            run_dir=run_dir,
            contamination=contamination,
            stage_notifier=stage_notifier,
            callback_mode=callback_mode,
            callback_budget=callback_budget,
            callback_placement=callback_placement,
        )
        self.dataset = dataset
        self.model = model
        self.lr_scheduler = lr_scheduler or CosineScheduler(lr)
        self.max_grad_norm = max_grad_norm
        self.epochs = epochs
        self.weight_decay = weight_decay
        self.skip_nan_gradients = skip_nan_gradients
        self.data_seed = data_seed
        self.order = DataOrder(len(dataset), epochs=epochs, samples_per_batch=samples_per_batch, seed=data_seed)

    @property
    def num_steps(self) -> int:
        """Planned steps."""
        return self.order.num_steps

    def num_samples_after(self, step: int) -> int:
        """Samples of the first ``step`` steps; each epoch's count anew."""
        return self.order.num_samples_after(step)

    @property
    def trained_models(self) -> Sequence[TrainingModel]:
        """The model."""
        return [self.model]

    @property
    def training_set(self) -> Sequence[StringThread]:
        """The dataset."""
        return self.dataset

    def describe(self) -> str:
        """What will be trained on what, in one line."""
        return (
            f"{self.model.name} ({self.model.description}) on {len(self.dataset):,} threads, {self.num_steps:,} steps "
            f"of {min(self.order.samples_per_batch, len(self.dataset)):,}"
        )

    def config(self) -> dict[str, Any]:
        """The settings, as they were given or by default."""
        return {
            "model": {"name": self.model.name, "description": self.model.description},
            "dataset": {"num_samples": len(self.dataset)},
            "lr_scheduler": repr(self.lr_scheduler),
            "samples_per_batch": self.order.samples_per_batch,
            "max_grad_norm": self.max_grad_norm,
            "epochs": str(self.epochs),
            "weight_decay": self.weight_decay,
            "skip_nan_gradients": self.skip_nan_gradients,
            "contamination": self.contamination,
            "data_seed": self.data_seed,
            "num_steps": self.num_steps,
        }

    async def train_step(self, step: int, recorder: RunRecorder) -> dict[str, Metric]:
        """One update on the next samples."""
        started_at = time.perf_counter()
        threads = [self.dataset[index] for index in self.order.indices(step)]
        outcomes = await self.model.train_language_modelling_many(threads, seed=self.seed, return_exceptions=True)
        skipped = [(thread, error) for thread, error in zip(threads, outcomes, strict=True) if error is not None]
        if skipped:
            await self._record_skipped(step, skipped, len(threads), recorder)
        learning_rate = self.lr_scheduler(step / self.num_steps)
        update = await self._update(step, learning_rate, any_trained=len(skipped) < len(threads))
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
        if skipped:
            metrics["training/num_skipped_samples"] = len(skipped)
        if update["skipped_update"]:
            metrics["training/skipped_update"] = 1
            message = f"step {step} was skipped: its loss or gradient is not finite (skip_nan_gradients=True)"
            await recorder.record_event(step, "update_skipped", "trainer", message)
        return metrics

    async def _update(self, step: int, learning_rate: float, *, any_trained: bool) -> dict[str, float]:
        try:
            if any_trained:
                return await self.model.optim_step(
                    learning_rate, self.weight_decay, self.max_grad_norm, self.skip_nan_gradients
                )
            if not self.skip_nan_gradients:
                raise NonFiniteError(
                    "the loss of every thread is not finite: the weights have diverged, or were broken when they were "
                    "loaded. Lower the learning rate, or leave such updates out with skip_nan_gradients=True"
                )
        except NonFiniteError as error:
            error.add_note(f"at step {step} of {self.num_steps}")
            raise
        return {"loss": nan, "grad_norm": nan, "num_tokens": 0, "num_samples": 0, "skipped_update": 1.0}

    async def _record_skipped(
        self, step: int, skipped: Sequence[tuple[StringThread, Exception]], num_threads: int, recorder: RunRecorder
    ) -> None:
        problems = [(thread.source or f"thread {thread.uuid()}", str(error)) for thread, error in skipped]
        if len(skipped) == num_threads and not all(isinstance(error, NonFiniteSequenceError) for _, error in skipped):
            raise DatasetError(f"none of the {num_threads} threads of step {step} can be trained", problems)
        listing = "\n".join(f"{place}: {reason}" for place, reason in problems)
        message = f"{len(skipped)} of {num_threads} threads of step {step} cannot be trained, first: {problems[0][1]}"
        await recorder.record_event(step, "samples_skipped", "trainer", message, listing)


def _check_dataset(dataset: Sequence[StringThread]) -> None:
    if not len(dataset):
        raise DatasetError("dataset is empty: give at least one thread")
    problems = []
    for position, thread in enumerate(dataset):
        if not isinstance(thread, StringThread):
            raise ConfigurationError(f"dataset[{position}] is a {type(thread).__name__}, not a StringThread")
        if not any(thread.get_turn_weights()):
            roles = ", ".join(turn.role for turn in thread.get_turns()) or "no turns"
            problems.append((thread.source or f"dataset[{position}]", f"no weighted turn (turns: {roles})"))
    if problems:
        message = f"{len(problems)} of {len(dataset)} threads have nothing to train on; end each in an assistant turn"
        raise DatasetError(message, problems)


def _check_numbers(**limits: tuple[Any, float, bool]) -> None:
    """Each value must be finite and above its limit, or equal to it where that is allowed."""
    for name, (value, limit, may_be_equal) in limits.items():
        is_number = isinstance(value, float | int | Fraction) and not isinstance(value, bool)
        try:
            number = exact_fraction(value) if is_number else None
        except ValueError:  # NaN, infinity
            number = None
        if number is None or number < limit or (number == limit and not may_be_equal) or not isfinite(number):
            relation = "at least" if may_be_equal else "above"
            raise ConfigurationError(f"{name}={value!r} must be a finite number {relation} {limit}")


def _describe_unsupported(name: str) -> str:
    if name in _NOT_YET:
        return f"SFT has no argument {name!r} yet: it belongs to the recipe API and this version does not support it"
    close = get_close_matches(name, _ARGUMENTS, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"arguments are {', '.join(_ARGUMENTS)}"
    return f"SFT has no argument {name!r}; {hint}"
