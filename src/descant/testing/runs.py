"""Runs: the small trainings that callbacks are checked in."""

from __future__ import annotations

import contextlib
import copy
import io
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, cast

from torch import Tensor

from descant.callbacks.base import CallbackMode, RecipeCallback
from descant.callbacks.function_callback import FunctionCallback
from descant.callbacks.model_callback import ModelCallback
from descant.engine.hf import HFEngine
from descant.errors import ConfigurationError
from descant.metrics import Metric, MetricSpec
from descant.models.builder import ModelBuilder
from descant.models.evaluation_placement import EvaluationPlacement
from descant.models.inference import InferenceModel
from descant.models.workers.worker_thread import WorkerThread
from descant.process_state import preserved_process_state
from descant.runner.calls import CallbackFailure
from descant.schedule import NEVER, every_steps
from descant.testing.observed_calls import ObservedCalls, Pace, disturbed, has_halves, is_observed, observed
from descant.testing.report import MeasuredCost
from descant.threads.thread import StringThread
from descant.trainers.loop import Step
from descant.trainers.sft import SFT

MakeCallback = Callable[[Any], RecipeCallback]
"""Makes a fresh callback for a model."""
_MAX_BATCH_SIZE = 4096
_MAX_GEN_LEN = 16
_LR = 1e-3


@dataclass(slots=True)
class Run:
    """What a run came to.

    Attributes:
        num_steps: steps that were made.
        training: the metrics of training, by step, without durations.
        weights: after the last step, by name.
        calls: what the kit has seen of the callback's calls.
        failures: of its calls.
        cost: what they have cost.
        run_dir: where the run was.
    """

    num_steps: int
    training: list[Mapping[str, Any]]
    weights: Mapping[str, Tensor]
    calls: ObservedCalls
    failures: Sequence[CallbackFailure]
    run_dir: Path
    cost: MeasuredCost | None = None


class Companion(ModelCallback[float]):
    """Measures the metric that the callback goes by: a log-probability, which training changes."""

    def __init__(self, model: InferenceModel, key: str, thread: StringThread) -> None:
        super().__init__(model, every_steps(1), name="companion of the conformance kit")
        self._key, self._thread = key, thread
        self.metric_specs = (MetricSpec(key, better="lower"),)

    async def measure(self, model: InferenceModel) -> float:
        """How improbable a thread is."""
        return -await model.logprobs(self._thread)

    async def report(self, measurement: float) -> dict[str, Any]:
        """Just that."""
        return {self._key: measurement}


class _End(RecipeCallback):
    """Is called when training is over, before whatever is still under way is waited for; or asks for the end."""

    def __init__(self, pace: Pace, stop_at: int | None) -> None:
        super().__init__(every_steps(1) if stop_at else NEVER, name="end of the conformance kit", at_start=False)
        self._pace, self._stop_at = pace, stop_at

    async def callback(self, current_percentage: float) -> dict[str, Any]:
        if self._stop_at is None:
            await self._pace.over()
        elif self.running().step == self._stop_at:
            self.running().request_stop("so far and no further")
        return {}


class _PacedSFT(SFT):
    """Tells how far it is."""

    pace: Pace
    steps: list[Mapping[str, Any]]

    async def train_step(self, step: Step) -> dict[str, Metric]:
        metrics = await super().train_step(step)
        self.steps.append({key: value for key, value in metrics.items() if not key.endswith("_s")})
        await self.pace.trained(step.number)
        return metrics


class Runs:
    """Makes runs of one model on one dataset, with and without a callback.

    Args:
        make: makes the callback.
        model_path: the model.
        dataset: what is trained on.
        num_steps: of a run.
        placement: where background evaluations run.
        folder: the runs' directories are in it.
    """

    def __init__(
        self,
        make: MakeCallback,
        model_path: Path,
        dataset: Sequence[StringThread],
        num_steps: int,
        placement: EvaluationPlacement,
        folder: Path,
    ) -> None:
        self._make, self._placement = make, placement
        self.model_path, self.dataset = model_path, dataset
        self.num_steps = num_steps
        self.run_dirs: list[Path] = []
        self._folder = folder
        self._alone: dict[int, Run] = {}

    async def alone(self, num_steps: int) -> Run:
        """The training without the callback, up to a step."""
        if num_steps not in self._alone:
            self._alone[num_steps] = await self.train(None, stop_at=num_steps)
        return self._alone[num_steps]

    async def train(
        self,
        mode: CallbackMode | None,
        calls: ObservedCalls | None = None,
        *,
        is_held: bool = False,
        stop_at: int | None = None,
    ) -> Run:
        """A run of ``SFT``; the mode None is without the callback."""
        pace = Pace()
        calls = calls or ObservedCalls(
            pace=pace if is_held and mode != "inline" and self._placement.num_buffers > 1 else None
        )
        run_dir = self.run_dir()
        logged: list[Mapping[str, Any]] = []
        with quietly():
            builder = ModelBuilder(self.model_path, tokens_to_generate=_MAX_GEN_LEN, precision="float32")
            model = await builder.spawn_train("policy", _MAX_BATCH_SIZE)
            try:
                callback = None if mode is None else self.prepared(model, calls)
                callbacks = [] if callback is None else self.with_companion(callback, model, mode or "inline")
                num_samples = min(2, len(self.dataset))
                trainer = _PacedSFT(
                    dataset=self.dataset,
                    model=model,
                    callbacks=[_End(pace, stop_at if stop_at != self.num_steps else None), *callbacks],
                    lr=_LR,
                    samples_per_batch=num_samples,
                    epochs=self.num_steps * num_samples / len(self.dataset),
                    run_dir=run_dir,
                    logger=logged.append,
                    contamination="ignore",
                    callback_mode=mode or "inline",
                    callback_placement=self._placement,
                )
                trainer.pace, trainer.steps = pace, []
                result = await trainer.run()
                placement = cast("WorkerThread", model._worker)
                weights = copies_of(cast("HFEngine", placement._loop._engine).model)
            finally:
                await model.dealloc()
        name = None if callback is None else callback.name
        failures = [failure for failure in result.callback_failures if failure.callback == name]
        cost = None if name is None else _cost(name, mode or "inline", logged, calls)
        return Run(result.num_steps, trainer.steps, weights, calls, failures, run_dir, cost)

    def prepared(self, model: Any, calls: ObservedCalls, make: MakeCallback | None = None) -> RecipeCallback:
        """A fresh callback, which runs at every step.

        Raises:
            ConfigurationError: what was made is no callback, or not a fresh one.
        """
        callback = (make or self._make)(disturbed(model, calls))
        if isinstance(callback, FunctionCallback):  # a function has no state, and its module has it once
            callback = copy.copy(callback)
        if not isinstance(callback, RecipeCallback):
            raise ConfigurationError(
                f"make(model) returned {callback!r:.60} ({type(callback).__name__}); a callback is needed"
            )
        if is_observed(callback):
            raise ConfigurationError(f"make(model) returned the same {type(callback).__name__} again; make a fresh one")
        if callback.frequency is not NEVER:
            callback.frequency = every_steps(1)
        callback.on_error = "warn"
        if has_halves(callback):
            callback.mode = None  # type: ignore[attr-defined]  # that of the run
        return observed(callback, calls)

    def with_companion(self, callback: RecipeCallback, model: Any, mode: str) -> list[RecipeCallback]:
        """The callback, and what measures the metric that it goes by."""
        if callback.watches is None:
            return [callback]
        companion = Companion(model, callback.watches.metric, self.dataset[0])
        if callback.watches.on_schedule:
            companion.mode = "inline"
        return [companion, callback]

    def run_dir(self) -> Path:
        """A new one."""
        self.run_dirs.append(Path(tempfile.mkdtemp(dir=self._folder)))
        return self.run_dirs[-1]


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Runs that nobody wants to read of, and which leave the process as it was."""
    with preserved_process_state(), contextlib.redirect_stderr(io.StringIO()):
        yield


def copies_of(module: Any) -> dict[str, Tensor]:
    """The weights of a module."""
    return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}


def _cost(name: str, mode: str, logged: Sequence[Mapping[str, Any]], calls: ObservedCalls) -> MeasuredCost | None:
    """Of the calls that nothing has befallen; the first is left out, which is slower."""
    stalls, seconds, tokens = [], [], []
    for metrics in logged:
        step = metrics["progress/step"]
        stall_s = metrics.get(f"callbacks/{name}/stall_s")
        if stall_s is not None and step > 0 and step not in calls.mischief:
            stalls.append(stall_s + metrics.get(f"callbacks/{name}/wait_s", 0.0))
            seconds.append(stall_s + metrics.get(f"callbacks/{name}/busy_s", 0.0))
            tokens.append(metrics.get(f"callbacks/{name}/num_tokens", 0))
    return MeasuredCost(mode, len(stalls), fmean(seconds), fmean(stalls), fmean(tokens)) if stalls else None
