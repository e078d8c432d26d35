"""CallbackRunner: decides when callbacks run, runs them, and keeps training safe from them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, nullcontext, suppress
from dataclasses import replace
from functools import partial
from numbers import Integral
from pathlib import Path
from types import TracebackType
from typing import Any, Never, Self

from descant.callbacks.base import RESERVED_PREFIXES, CallbackMode, RecipeCallback, RunView
from descant.errors import CallbackError, ConfigurationError
from descant.metrics import Metric, as_metric
from descant.models.evaluation_placement import EvaluationPlacement
from descant.process_state import preserved_process_state
from descant.progress import Progress
from descant.provenance import describe_environment, masked
from descant.runner.calls import Call, CallbackFailure, Calls
from descant.runner.contamination_check import ContaminationCheck, Policy
from descant.runner.costs import Costs
from descant.runner.due_calls import DueCalls, check_budget
from descant.runner.evaluations import Evaluations
from descant.runner.interrupts import Interrupts
from descant.runner.metric_keys import MetricKeys
from descant.runner.modes import modes_of
from descant.runner.recorder import Logger, RunRecorder, new_run_dir
from descant.runner.requests import Requests, SaveCheckpoint
from descant.runner.synchronous import SynchronousRunner
from descant.schedule import Plan
from descant.seeds import derive_seed
from descant.table import Table
from descant.threads.thread import StringThread

_NUM_STEPS_BEFORE_FORECAST = 3  # the first steps are slow, and a forecast is wanted early
_LEAVING_S = 5.0  # what each on_end may take once the run is cancelled


class CallbackRunner:
    """Runs callbacks at their exact steps along with a training loop: descant's own, or yours.

    >>> async with CallbackRunner(callbacks, num_steps=1000) as runner:  # doctest: +SKIP
    ...     for step, batch in enumerate(batches, start=1):
    ...         loss = train_on(batch)
    ...         await runner.after_step(step, {"training/loss": loss})
    ...         if runner.should_stop:
    ...             break

    Entering it opens the run log, prints the plan, calls ``on_start`` and makes the calls that are due before the first
    step. ``after_step`` makes those that are due after a step, one after another in list order, while training waits;
    in the modes "overlap" and "background", only for a part of them. Leaving it makes the final calls, if they have not
    been made at this step, waits for everything that is under way, calls ``on_end`` and closes the run log; also when
    training failed. In synchronous code, ``with runner.synchronous() as runner:`` gives the same without
    ``await``.

    A callback that raises, takes too long, or returns what is not a metric, is recorded; the others and training go
    on. After every call the random generators of Python, numpy and torch and torch's settings are what they were
    before, and nothing that the call left behind may use a model. Ctrl-C and SIGTERM set ``should_stop``, and the run
    ends in order; the second time it is cancelled.

    Args:
        callbacks: what to run; names and declared keys must be distinct.
        num_steps: planned steps.
        run_dir: the directory of the run, made if needed; by default a new one under ``runs``.
        logger: a tracker (``WandbLogger``, ``get_prod_logger()``, ...), which is fed from the run log beside training;
            or any callable that takes a dict, called once per step; or a list of them. The run log is always written.
        seed: the run's seed; what callbacks sample is made from it.
        strict: raise the first failure of a callback (or of the logger) as a ``CallbackError``.
        first_step: completed steps, of a run that is continued; what was due up to there is not due again.
        title: what is trained on what, in one line, for people.
        config: settings of the run, for the run log.
        save_checkpoint: writes a checkpoint to the directory that it is given, when a callback requests one.
        training_set: the threads that are trained on, if the loop trains on threads: prompts that callbacks evaluate
            on and that stand in it, too, are reported at the start.
        contamination: "warn" about such prompts, refuse to start with an "error", or "ignore" them.
        callback_mode: the mode of every ``ModelCallback`` that has none of its own, see there.
        callback_budget: the share of the time that callbacks may cost training, such as 0.05; by default there is no
            limit. A call that would go beyond it is deferred to the first step at which it fits, and that is recorded.
            First and last calls are always made.
        callback_placement: where the mode "background" evaluates; by default in a process of its own.

    Raises:
        ConfigurationError: an argument that cannot work, something that is not a callback, or names or keys that
            collide, with the fix.
    """

    def __init__(
        self,
        callbacks: Sequence[RecipeCallback],
        *,
        num_steps: int,
        run_dir: str | Path | None = None,
        logger: Logger | None = None,
        seed: int = 0,
        strict: bool = False,
        first_step: int = 0,
        title: str = "a training loop",
        config: Mapping[str, Any] | None = None,
        save_checkpoint: SaveCheckpoint | None = None,
        training_set: Sequence[StringThread] | None = None,
        contamination: Policy = "warn",
        callback_mode: CallbackMode = "inline",
        callback_budget: float | None = None,
        callback_placement: EvaluationPlacement | None = None,
    ) -> None:
        self._keys = MetricKeys(callbacks)
        modes = modes_of(callbacks, callback_mode)
        check_budget(callback_budget)
        if not isinstance(num_steps, int) or num_steps < 1:
            raise ConfigurationError(f"num_steps={num_steps!r} must be a whole number of planned steps, at least 1")
        if not isinstance(first_step, int) or not 0 <= first_step <= num_steps:
            raise ConfigurationError(
                f"first_step={first_step!r} must be a whole number from 0 to num_steps={num_steps}"
            )
        self.callbacks = list(callbacks)
        self.num_steps = num_steps
        self.run_dir = new_run_dir("run") if run_dir is None else Path(run_dir)
        self.step = first_step
        """Completed steps."""
        self.costs = Costs(self.plan(), num_steps, modes, callback_budget)
        self.recorder = RunRecorder(self.run_dir, num_steps, logger, strict=strict)
        self._calls = Calls(self.recorder, self.costs, self._keys, seed=seed, num_steps=num_steps, strict=strict)
        placement = callback_placement or EvaluationPlacement()
        self._evaluations = Evaluations(
            self.callbacks, modes, self._calls, self.costs, self.recorder, placement, self._landed
        )
        self._due = DueCalls(self.callbacks, num_steps, self.costs, callback_budget)
        self._seed, self._title = seed, title
        self._config = {**(config or {}), "callback_mode": callback_mode, "callback_budget": callback_budget}
        self._requests = Requests(self.recorder, save_checkpoint, strict=strict)
        self._contamination = ContaminationCheck(training_set, contamination)
        self._progress = Progress(first_step, num_steps)
        self._training_metrics: Mapping[str, Metric] = {}
        self.evaluations: dict[str, Metric] = {}
        """What callbacks have returned in the loop at the latest step, under their full keys."""
        self.late_evaluations: list[tuple[int, dict[str, Metric]]] = []
        """Steps and numbers of the evaluations that went on beside training, in the order in which they arrived."""
        self._known_keys: set[str] = set()
        self._last_call: dict[str, int] = {}
        self._started: list[RecipeCallback] = []
        self._first_step = first_step
        self._is_open = self._has_forecast = False
        self._told_missing: set[str] = set()
        self.interrupts = Interrupts()

    def plan(self) -> list[Plan]:
        """When each callback will run, if training is not stopped early."""
        return [callback.plan(self.num_steps) for callback in self.callbacks]

    @property
    def failures(self) -> Sequence[CallbackFailure]:
        """The calls that have failed, and the returned values that are no metrics, in order."""
        return self._calls.failures

    @property
    def stop_reason(self) -> str | None:
        """Which callback has requested the end of the run, and why, if one has."""
        return self._requests.stop_reason

    @property
    def should_stop(self) -> bool:
        """Whether the loop should end after this step: a callback has requested it, or a signal has arrived."""
        return self.stop_reason is not None or self.interrupts.received is not None

    async def __aenter__(self) -> Self:
        with ExitStack() as stack:
            stack.enter_context(self.interrupts)
            with preserved_process_state():
                await self.open()
            stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            with preserved_process_state():
                await self.close(error)
        finally:
            self.interrupts.__exit__()
        if error is None:
            self.interrupts.raise_received()

    async def open(self) -> None:
        """What entering does, but for the signals."""
        self._started_at = time.monotonic()
        contaminations = await self._contamination.run(self.callbacks)
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self.recorder)
            settings = {"title": self._title, "num_steps": self.num_steps, "seed": self._seed, **self._config}
            settings |= {
                "callbacks": [c.settings() for c in self.callbacks],
                "environment": await asyncio.to_thread(describe_environment),
            }
            await self.recorder.announce(self._title, masked(settings), self.plan())
            for found in contaminations:
                await self.recorder.record_event(self.step, "contamination", found.name, found.describe())
            stack.push_async_exit(self._end)
            await self._evaluations.start()
            for callback in self.callbacks:
                callback.last_call = -1.0
                self._started.append(callback)
                await self._call_hook(callback, callback.on_start)
            if self.step == 0:
                await self._call_due(before=None)
            self._due.look_ahead(self.step)
            await self.recorder.publish()
            self._stack = stack.pop_all()
        self._is_open = True
        self.resume_training_time()

    async def close(self, error: BaseException | None) -> None:
        """What leaving does, but for the signals; ``error`` is what has ended the training, if it has failed."""
        self._is_open = False
        await self._stack.__aexit__(type(error) if error else None, error, error.__traceback__ if error else None)

    def kill(self) -> None:
        """End the processes that evaluate, where nothing else can be ended: something blocks the event loop."""
        self._evaluations.kill()

    def synchronous(self) -> SynchronousRunner:
        """The same for loops that are not async: ``with runner.synchronous() as runner:``."""
        return SynchronousRunner(self)

    async def after_step(self, step: int, metrics: Mapping[str, Any] | None = None) -> None:
        """Record the metrics of a step and make the calls that are due after it.

        Args:
            step: completed steps. It may jump: whatever became due in between is one call, on the weights as they are.
            metrics: what the loop has measured at this step (numbers, strings, tables), under keys of its choice.

        Raises:
            CallbackError: a callback failed, and ``strict`` or its ``on_error="raise"`` is on.
            RunLogError: the run log cannot be written.
            ConfigurationError: a step that is not after the last one, or a metric that cannot be recorded.
        """
        if not self._is_open:
            raise ConfigurationError("after_step was called outside of the runner's `with` block")
        training_s = time.perf_counter() - self._resumed_at
        before, self._progress = self._progress, self._progress_at(step)
        num_new_steps, self.step = int(step) - self.step, int(step)
        self.costs.add_steps(num_new_steps, training_s)
        self._training_metrics = {"training/step_s": training_s / num_new_steps, **self._checked(metrics or {})}
        self.evaluations = {}
        await self.recorder.record(self.step, self._training_metrics)
        is_quiet = not self._evaluations.need_a_turn and not self._requests.are_pending
        is_quiet = is_quiet and self._due.is_quiet(self.step)
        # Whenever others have a turn on the event loop, what an earlier call has left behind has one too.
        with nullcontext() if is_quiet and not self.recorder.has_logger else preserved_process_state():
            if not is_quiet:
                await self._evaluations.turn()
                await self._call_due(before)
                self._due.look_ahead(self.step)
            await self._forecast()
            await self.recorder.publish(partial(self.costs.remaining_s, self.step))
        self.resume_training_time()

    def resume_training_time(self) -> None:
        """What has passed since the last step was not training: a loop that evaluates or saves on its own says so."""
        self._resumed_at = time.perf_counter()

    async def record(self, metrics: Mapping[str, Any]) -> None:
        """Record more metrics of the latest step, such as those that a loop has only after ``after_step``."""
        checked = self._checked(metrics)
        self._training_metrics = {**self._training_metrics, **checked}
        with preserved_process_state():
            await self.recorder.record(self.step, checked)
            await self.recorder.publish(partial(self.costs.remaining_s, self.step))

    async def make_final_calls(self) -> None:
        """Make the final calls that have not been made at this step yet. Leaving does it too; a loop that changes its
        weights after its last step (to those of its best one, say) does it before."""
        if self.step == self._first_step > 0:
            return  # of a run that is continued, nothing has been trained: this was evaluated by the run before

        due = [c for c in self.callbacks if c.at_end and self._last_call.get(c.name) != self.step]
        with preserved_process_state():
            await self._call_all(due, is_final=True)
            await self._evaluations.wait()
            await self._call_all([], is_final=True)  # whoever has watched for a metric in vain

    async def _end(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """The final calls at the step that was reached; then ``on_end`` of every callback, and what there is to say.

        A cancelled run makes no more calls, and neither does one that a callback has stopped (``strict``).
        """
        first_error: BaseException | None = None
        try:
            may_call = error is None or (isinstance(error, Exception) and not isinstance(error, CallbackError))
            if may_call and len(self._started) == len(self.callbacks):  # else the run has not begun
                with suppress(Exception) if error else nullcontext():  # what stopped training is what must be raised
                    await self.make_final_calls()
        except BaseException as failure:
            error = failure
            raise
        finally:
            is_cancelled = error is not None and not isinstance(error, Exception)
            leave = [partial(self._evaluations.close, at_once=is_cancelled)]
            for callback in self._started:
                leave.append(partial(self._call_hook, callback, callback.on_end, _LEAVING_S if is_cancelled else None))
            for each in leave:  # strict, or the run log cannot be written, or cancelled: all have a turn
                try:
                    await each()
                except BaseException as failure:
                    first_error = first_error or failure
            for callback in self._started:
                callback.run = None
            for name in self._calls.guard.lingering.values():
                self.recorder.show_warning(f"{name} still goes on, although it was cancelled when its time was up")
            self.recorder.conclude(self._outcome(), list(self.costs))
        if error is None and first_error is not None:
            raise first_error

    def _outcome(self) -> str:
        """How a run that has not failed has ended, in words."""
        if (signal := self.interrupts.received) is not None:
            return f"interrupted ({signal.name})"
        return "completed" if self.step >= self.num_steps else f"stopped ({self.stop_reason or 'the loop has ended'})"

    # Which calls are due

    async def _call_due(self, before: Progress | None) -> None:
        """The calls that are due by now, ``before`` being the progress at the last time that this was asked."""
        due, deferred = self._due.take(before, self._progress)
        for callback in deferred:
            self.costs[callback.name].num_deferred += 1
            share = f"{self.costs.share_with(callback.name):.1%} of the time"
            why = f"with it, callbacks would have taken {share}, which callback_budget does not allow"
            why = f"so is {callback.same_step_key!r}, which it needs" if callback.runs_last else why
            message = f"{callback.name}: the call that is due at step {self.step} is deferred; {why}"
            await self.recorder.record_note(self.step, "callback_deferred", callback.name, message)
        await self._call_all(due)

    async def _call_all(self, due: Sequence[RecipeCallback], *, is_final: bool = False) -> None:
        """The calls that are due at this step: in list order, and those that look at what others return after these.

        Whoever has watched for a metric that nobody measures is called, once, to say so.
        """
        try:
            for callback in due:
                if not callback.runs_last:
                    await self._call(callback, is_final=is_final or self._progress.is_complete)
            last = [callback for callback in self.callbacks if callback.runs_last]
            while ready := [c for c in last if self._has_news_for(c) or (c.watched_key is None and c in due)]:
                last.remove(ready[0])  # its metrics may be news for another
                await self._call(ready[0])
            for callback in last:
                if self._watches_in_vain(callback, is_final):
                    self._told_missing.add(callback.name)
                    await self._call(callback)
        finally:
            await self._calls.record_warnings()
            await self._requests.apply(self.step)

    def _has_news_for(self, callback: RecipeCallback) -> bool:
        """Whether the metric that a callback watches was measured at this step, and it has not looked at it yet."""
        return callback.watched_key in self.evaluations and self._last_call.get(callback.name) != self.step

    def _watches_in_vain(self, callback: RecipeCallback, is_final: bool) -> bool:
        """Whether all that could measure what a callback watches have run (or run no more), and nobody has."""
        key = callback.watched_key
        if key is None or key in self._known_keys or callback.name in self._told_missing:
            return False
        if self._evaluations.are_under_way:
            return False
        return is_final or all(
            other.name in self._last_call or (bool(keys := other.declared_keys()) and key not in keys)
            for other in self.callbacks
            if other.watched_key is None
        )

    async def _forecast(self) -> None:
        """Once, what the callbacks will take of the run."""
        is_early = self.costs.num_steps_made < _NUM_STEPS_BEFORE_FORECAST and self.step < self.num_steps
        if not self._has_forecast and not is_early and (forecast := self.costs.forecast(self.step)):
            self._has_forecast = True
            await self.recorder.record_note(self.step, "forecast", "callbacks", forecast)

    def _progress_at(self, step: int) -> Progress:
        if not isinstance(step, Integral) or step <= self.step:
            raise ConfigurationError(
                f"after_step({step!r}) follows step {self.step}: steps are whole numbers that grow"
            )
        if step > self.num_steps >= self.step:
            message = f"step {step} is beyond num_steps={self.num_steps}, by which calls are planned"
            self._calls.warn("runner", int(step), message)
        return Progress(min(int(step), self.num_steps), self.num_steps, time.monotonic() - self._started_at)

    # One call

    async def _call(self, callback: RecipeCallback, *, is_final: bool = False) -> None:
        if callback.name in self._calls.disabled:
            return
        self._last_call[callback.name] = self.step
        callback.last_call = self._progress.percentage
        await self._evaluations.begin(callback, self._show_run(callback), is_final=is_final)

    async def _call_hook(
        self, callback: RecipeCallback, hook: Callable[[RunView], Awaitable[None]], timeout_s: float | None = None
    ) -> None:
        """``on_start`` or ``on_end``."""
        run = self._show_run(callback)
        started_at = time.perf_counter()
        await self._calls.make(Call(callback, run), partial(hook, run), timeout_s)
        self.costs[callback.name].seconds += time.perf_counter() - started_at

    async def _landed(self, call: Call, metrics: dict[str, Metric]) -> None:
        """The metrics of a call are recorded. If it went on beside training, those that watch them are called now."""
        self._known_keys |= metrics.keys()
        if call.started_at is None:
            self.evaluations |= metrics
            return
        numbers: dict[str, Metric] = {key: value for key, value in metrics.items() if not isinstance(value, Table)}
        self.late_evaluations.append((call.run.step, numbers))
        for watcher in self.callbacks:
            if watcher.watched_key in metrics and watcher.name not in self._calls.disabled:
                await self._call_watcher(watcher, call, metrics)

    async def _call_watcher(self, watcher: RecipeCallback, call: Call, metrics: dict[str, Metric]) -> None:
        """A call that goes by what another one has measured beside training, at the step of that one."""
        measured = call.run
        run = replace(
            self._view(watcher, measured.step),
            step=measured.step,
            progress=measured.progress,
            metrics=measured.metrics,
            evaluations=metrics,
            as_measured=call.as_measured or partial(_refuse_weights, watcher.name, call),
        )
        watching = Call(watcher, run, started_at=call.started_at)
        self.costs.add_stall(watcher.name, 0.0)
        work = partial(watcher.callback, measured.step / measured.num_steps)
        returned = await self._calls.make(watching, work, is_detached=True)
        await self._landed(watching, await self._calls.land(watching, returned))

    # What callbacks see and request

    def _show_run(self, callback: RecipeCallback) -> RunView:
        """Let the callback see the run as it is now."""
        run = callback.run = self._view(callback, self.step)
        return run

    def _view(self, callback: RecipeCallback, step: int) -> RunView:
        """The run as it is now; what is recorded and drawn by it belongs to ``step``."""
        return RunView(
            step=self.step,
            num_steps=self.num_steps,
            progress=self._progress.fraction,
            elapsed_s=time.monotonic() - self._started_at,
            metrics=dict(self._training_metrics),
            evaluations=dict(self.evaluations),
            known_keys=frozenset(self._known_keys),
            run_dir=self.run_dir,
            seed=derive_seed(self._seed, callback.name, step),
            warn=partial(self._calls.warn, callback.name, step),
            request_stop=partial(self._requests.stop, callback.name),
            request_checkpoint=partial(self._requests.checkpoint, callback.name),
            as_measured=lambda model: model,
        )

    # What is recorded

    def _checked(self, metrics: Mapping[str, Any]) -> dict[str, Metric]:
        """The loop's own metrics, as plain values."""
        checked: dict[str, Metric] = {}
        for key, value in metrics.items():
            if not isinstance(key, str) or key.startswith(RESERVED_PREFIXES[1:]):
                reserved = ", ".join(RESERVED_PREFIXES[1:])
                raise ConfigurationError(
                    f"the metric {key!r} of step {self.step}: its key must be text not in {reserved}"
                )
            try:
                checked[key] = as_metric(value)
            except TypeError as error:
                raise ConfigurationError(f"the metric {key!r} of step {self.step}: {error}") from error
            if (owner := self._keys.owner(key)) is not None:
                raise ConfigurationError(f"the metric {key!r} of step {self.step} is what callback {owner!r} returns")
        return checked


def _refuse_weights(name: str, call: Call, model: object) -> Never:
    raise ConfigurationError(
        f"callback {name!r} needs the weights that {call} has measured, and in the mode of {call.callback.name!r} no "
        "copy of them is kept: give it mode='background' or 'inline'"
    )
