"""Runs: the small trainings that callbacks are checked in."""

from __future__ import annotations

import contextlib
import copy
import io
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from math import inf
from pathlib import Path
from statistics import fmean
from typing import Any, cast

from torch import Tensor

from descant.callbacks.base import CallbackMode, RecipeCallback
from descant.callbacks.function_callback import FunctionCallback
from descant.callbacks.model_callback import ModelCallback
from descant.engine.hf import HFEngine
from descant.errors import ConfigurationError
from descant.metrics import MetricSpec
from descant.models.builder import ModelBuilder
from descant.models.evaluation_placement import EvaluationPlacement
from descant.models.inference import InferenceModel
from descant.models.workers.worker_thread import WorkerThread
from descant.process_state import preserved_process_state
from descant.runner.callback_runner import CallbackRunner
from descant.runner.calls import CallbackFailure
from descant.schedule import NEVER, every_steps
from descant.testing.differences import PlainMetrics, plain_metrics
from descant.testing.observed_calls import Fault, ObservedCalls, has_halves, is_observed
from descant.testing.report import MeasuredCost
from descant.text import quoted
from descant.threads.thread import StringThread
from descant.trainers.sft import SFT

MakeCallback = Callable[[Any], RecipeCallback]
"""Makes a fresh callback for a model."""
_MAX_BATCH_SIZE = 4096
_MAX_GEN_LEN = 16
_LR = 1e-3


@dataclass(frozen=True, slots=True)
class Run:
    """The results of a run: those of training, by step, the weights after the last one, and those of the callback."""

    num_steps: int
    training: Mapping[int, PlainMetrics]
    weights: Mapping[str, Tensor]
    calls: ObservedCalls
    failures: Sequence[CallbackFailure]
    cost: MeasuredCost | None


class _Companion(ModelCallback[float]):
    """Measures the metric that the callback watches: a log-probability, which training changes."""

    def __init__(self, model: InferenceModel, key: str, thread: StringThread) -> None:
        super().__init__(model, every_steps(1), name="companion of the conformance kit")
        self._key, self._thread = key, thread
        self.metric_specs = (MetricSpec(key, better="lower"),)

    async def measure(self, model: InferenceModel) -> float:
        return -await model.logprobs(self._thread)

    async def report(self, measurement: float) -> dict[str, Any]:
        return {self._key: measurement}


class _Pacer(RecipeCallback):
    """Tells how far training is, before the other callbacks of a step run or, as the last one, its final calls."""

    def __init__(self, calls: ObservedCalls, *, is_last: bool = False) -> None:
        name = f"{'last ' if is_last else ''}pacer of the conformance kit"
        super().__init__(NEVER if is_last else every_steps(1), name=name, at_start=False, at_end=is_last)
        self._calls = calls

    async def callback(self, current_percentage: float) -> dict[str, Any]:
        await self._calls.reach(inf if self.at_end else self.running().step)
        return {}


@dataclass
class Runs:
    """Makes runs of one model on one dataset, with and without a callback; their directories are in ``folder``."""

    make: MakeCallback
    model_path: Path
    dataset: Sequence[StringThread]
    num_steps: int
    placement: EvaluationPlacement
    folder: Path
    _alone: dict[int, Run] = field(default_factory=dict)

    async def alone(self, num_steps: int) -> Run:
        """The training without the callback, of so many steps."""
        if num_steps not in self._alone:
            self._alone[num_steps] = await self.train(None, num_steps=num_steps)
        return self._alone[num_steps]

    async def train(
        self, mode: CallbackMode | None, faults: Mapping[int, Fault] | None = None, num_steps: int | None = None
    ) -> Run:
        """A run of ``SFT`` with the callback in this mode (None: without it) and faults in its calls of these steps.

        Asynchronous work is held back where nothing else is wrong.
        """
        can_wait = mode in ("overlap", "background") and self.placement.num_buffers > 1
        calls = ObservedCalls(faults, are_held=can_wait and not faults)
        run_dir, logged, num_samples = self._run_dir(), list[dict[str, Any]](), min(2, len(self.dataset))
        with quietly():
            builder = ModelBuilder(self.model_path, tokens_to_generate=_MAX_GEN_LEN, precision="float32")
            model = await builder.spawn_train("policy", _MAX_BATCH_SIZE)
            try:
                callbacks = [] if mode is None else self.prepared(model, calls)
                result = await SFT(
                    dataset=self.dataset,
                    model=model,
                    callbacks=[_Pacer(calls), _Pacer(calls, is_last=True), *callbacks],
                    lr_scheduler=lambda _: _LR,
                    samples_per_batch=num_samples,
                    epochs=Fraction((num_steps or self.num_steps) * num_samples, len(self.dataset)),
                    run_dir=run_dir,
                    logger=logged.append,
                    contamination="ignore",
                    callback_mode=mode or "inline",
                    callback_placement=self.placement,
                ).run()
                worker = cast("WorkerThread", model._worker)
                module = cast("HFEngine", worker._loop._engine).model
                weights = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
            finally:
                await model.dealloc()
        training = {
            metrics["progress/step"]: plain_metrics(
                {key: value for key, value in metrics.items() if key.startswith("training/") and key[-2:] != "_s"},
                run_dir,
            )
            for metrics in logged
            if "training/loss" in metrics
        }
        name = callbacks[-1].name if callbacks else ""
        failures = [failure for failure in result.callback_failures if failure.callback == name]
        cost = _cost(name, mode or "", logged, calls.faults)
        return Run(result.num_steps, training, weights, calls, failures, cost)

    def runner(self, callbacks: Sequence[RecipeCallback], first_step: int = 0) -> CallbackRunner:
        """A runner for a loop of as many steps."""
        return CallbackRunner(callbacks, num_steps=self.num_steps, run_dir=self._run_dir(), first_step=first_step)

    def prepared(
        self, model: InferenceModel, calls: ObservedCalls, make: MakeCallback | None = None
    ) -> list[RecipeCallback]:
        """A fresh callback, observed and due at every step; before it what measures the metric that it watches.

        Raises:
            ConfigurationError: what was made is no callback, or not a fresh one.
        """
        callback = (make or self.make)(model)
        if isinstance(callback, FunctionCallback):  # a function has no state, and its module has it once
            callback = copy.copy(callback)
        if not isinstance(callback, RecipeCallback):
            raise ConfigurationError(
                f"make(model) returned {quoted(callback)} ({type(callback).__name__}); a callback is needed"
            )
        if is_observed(callback):
            raise ConfigurationError(f"make(model) returned the same {type(callback).__name__} again; make a fresh one")
        calls.observe(callback)
        callback.on_error = "warn"
        if callback.frequency is not NEVER:
            callback.frequency = every_steps(1)
        if has_halves(callback):
            callback.mode = None  # that of the run
        if callback.watches is None:
            return [callback]
        companion = _Companion(model, callback.watches.metric, self.dataset[0])
        if callback.watches.on_schedule:
            companion.mode = "inline"
        return [companion, callback]

    def _run_dir(self) -> Path:
        return Path(tempfile.mkdtemp(dir=self.folder))


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Without output, and afterwards the process is as it was."""
    with preserved_process_state(), contextlib.redirect_stderr(io.StringIO()):
        yield


def _cost(
    name: str, mode: str, logged: Sequence[Mapping[str, Any]], faults: Mapping[int, Fault]
) -> MeasuredCost | None:
    """Of the calls without a fault, but for the first, which is slower."""
    own = [
        {key.rpartition("/")[2]: value for key, value in metrics.items() if key.startswith(f"callbacks/{name}/")}
        for metrics in logged
        if metrics["progress/step"] > 0 and metrics["progress/step"] not in faults
    ]
    costs = [cost for cost in own if "stall_s" in cost]
    if not costs:
        return None
    seconds = fmean(cost["stall_s"] + cost.get("busy_s", 0.0) for cost in costs)
    stall_s = fmean(cost["stall_s"] + cost.get("wait_s", 0.0) for cost in costs)
    return MeasuredCost(mode, len(costs), seconds, stall_s, fmean(cost.get("num_tokens", 0) for cost in costs))
