"""CallbackRunner: decides when callbacks run, runs them, and keeps training safe from them."""

from __future__ import annotations

import asyncio
import time
import traceback
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from numbers import Integral
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from descant.callbacks.base import RESERVED_PREFIXES, RecipeCallback, RunView
from descant.callbacks.call_guard import CallGuard
from descant.callbacks.contamination_check import ContaminationCheck, Policy
from descant.callbacks.interrupts import Interrupts
from descant.callbacks.metric_keys import MetricKeys
from descant.callbacks.requests import Requests, SaveCheckpoint, describe
from descant.callbacks.synchronous import SynchronousRunner
from descant.costs import Costs
from descant.engine.process_state import preserved_process_state
from descant.environment import describe_environment, masked, plain_settings
from descant.errors import CallbackError, ConfigurationError, DescantError
from descant.loggers.recorder import Logger, RunRecorder, new_run_dir
from descant.metrics import Metric, as_metric
from descant.owner import Owner
from descant.progress import Progress
from descant.schedule import Plan
from descant.seeds import derive_seed
from descant.threads.thread import StringThread

_FAILED = object()
_NUM_STEPS_BEFORE_FORECAST = 3  # the first steps are slow, and a forecast is wanted early
_LEAVING_S = 5.0  # what each on_end may take once the run is cancelled


@dataclass(frozen=True, slots=True)
class CallbackFailure:
    """A call that failed, or one returned value that is not a metric: which callback, after how many steps, and why."""

    callback: str
    step: int
    message: str
    traceback: str


class CallbackRunner:
    """Runs callbacks at their exact steps along with a training loop: descant's own, or yours.

    >>> async with CallbackRunner(callbacks, num_steps=1000) as runner:  # doctest: +SKIP
    ...     for step, batch in enumerate(batches, start=1):
    ...         loss = train_on(batch)
    ...         await runner.after_step(step, {"training/loss": loss})
    ...         if runner.should_stop:
    ...             break

    Entering it opens the run log, prints the plan, calls ``on_start`` and makes the calls that are due before the first
    step. ``after_step`` makes those that are due after a step, one after another in list order, while training waits.
    Leaving it makes the final calls, if they have not been made at this step, calls ``on_end`` and closes the run log;
    also when training failed. In synchronous code, ``with runner.synchronous() as runner:`` gives the same without
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
    ) -> None:
        self._keys = MetricKeys(callbacks)
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
        self.failures: list[CallbackFailure] = []
        self.costs = Costs(self.plan(), num_steps)
        self.recorder = RunRecorder(self.run_dir, num_steps, logger, strict=strict)
        self._seed, self._strict, self._title, self._config = seed, strict, title, dict(config or {})
        self._requests = Requests(self.recorder, save_checkpoint, strict=strict)
        self._contamination = ContaminationCheck(training_set, contamination)
        self._progress = Progress(first_step, num_steps)
        self._training_metrics: Mapping[str, Metric] = {}
        self.evaluations: dict[str, Metric] = {}
        """What callbacks have returned at the latest step, under their full keys."""
        self._known_keys: set[str] = set()
        self._last_call: dict[str, int] = {}
        self._disabled: set[str] = set()
        self._started: list[RecipeCallback] = []
        self._first_step = first_step
        self._is_open = self._has_forecast = False
        self._told_missing: set[str] = set()
        self._warnings: list[tuple[str, int, str, str | None]] = []
        self.interrupts = Interrupts()
        self._guard = CallGuard(self.recorder.show_warning)

    def plan(self) -> list[Plan]:
        """When each callback will run, if training is not stopped early."""
        return [callback.plan(self.num_steps) for callback in self.callbacks]

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
            settings |= {"callbacks": self._settings(), "environment": await asyncio.to_thread(describe_environment)}
            await self.recorder.announce(self._title, masked(settings), self.plan())
            for found in contaminations:
                await self.recorder.record_event(self.step, "contamination", found.name, found.describe())
            stack.push_async_exit(self._end)
            for callback in self.callbacks:
                callback.last_call = -1.0
                self._started.append(callback)
                await self._attempt(callback, partial(callback.on_start, self._show_run(callback)))
            if self.step == 0:
                await self._call_due(before=None)
            await self.recorder.publish()
            self._stack = stack.pop_all()
        self._is_open = True
        self.resume_training_time()

    async def close(self, error: BaseException | None) -> None:
        """What leaving does, but for the signals; ``error`` is what has ended the training, if it has failed."""
        self._is_open = False
        await self._stack.__aexit__(type(error) if error else None, error, error.__traceback__ if error else None)

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
        is_due = any(callback.is_due(before, self._progress) for callback in self.callbacks)
        # Whenever others have a turn on the event loop, what an earlier call has left behind has one too.
        with preserved_process_state() if is_due or self.recorder.has_logger else nullcontext():
            if is_due:
                await self._call_due(before)
            await self._forecast()
            await self.recorder.publish(self.costs.remaining_s(self.step))
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
            await self.recorder.publish(self.costs.remaining_s(self.step))

    async def make_final_calls(self) -> None:
        """Make the final calls that have not been made at this step yet. Leaving does it too; a loop that changes its
        weights after its last step (to those of its best one, say) does it before."""
        if self.step == self._first_step > 0:
            return  # of a run that is continued, nothing has been trained: this was evaluated by the run before

        def is_due(callback: RecipeCallback) -> bool:
            return callback.at_end and self._last_call.get(callback.name) != self.step

        with preserved_process_state():
            await self._call_all(is_due, is_final=True)

    async def _end(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """The final calls at the step that was reached; then ``on_end`` of every callback, and what there is to say.

        A cancelled run makes no more calls, and neither does one that a callback has stopped (``strict``).
        """
        first_error: BaseException | None = None
        try:
            if error is None or (isinstance(error, Exception) and not isinstance(error, CallbackError)):
                with suppress(Exception) if error else nullcontext():  # what stopped training is what must be raised
                    await self.make_final_calls()
        except BaseException as failure:
            error = failure
            raise
        finally:
            is_cancelled = error is not None and not isinstance(error, Exception)
            for callback in self._started:
                work = partial(callback.on_end, self._show_run(callback))
                try:
                    await self._attempt(callback, work, _LEAVING_S if is_cancelled else callback.timeout_s)
                except (
                    BaseException
                ) as failure:  # strict, or the run log cannot be written, or cancelled: all have a turn
                    first_error = first_error or failure
                callback.run = None
            for name in self._guard.lingering.values():
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
        await self._call_all(lambda callback: callback.is_due(before, self._progress))

    async def _call_all(self, is_due: Callable[[RecipeCallback], bool], *, is_final: bool = False) -> None:
        """The calls that are due at this step: in list order, and those that look at what others return after these.

        Whoever has watched for a metric that nobody measures is called, once, to say so.
        """
        try:
            for callback in self.callbacks:
                if not callback.runs_last and is_due(callback):
                    await self._call(callback)
            last = [callback for callback in self.callbacks if callback.runs_last]
            while ready := [c for c in last if self._has_news_for(c) or (c.watched_key is None and is_due(c))]:
                last.remove(ready[0])  # its metrics may be news for another
                await self._call(ready[0])
            for callback in last:
                if self._watches_in_vain(callback, is_final):
                    self._told_missing.add(callback.name)
                    await self._call(callback)
        finally:
            await self._record_warnings()
            await self._requests.apply(self.step)

    def _has_news_for(self, callback: RecipeCallback) -> bool:
        """Whether the metric that a callback watches was measured at this step, and it has not looked at it yet."""
        return callback.watched_key in self.evaluations and self._last_call.get(callback.name) != self.step

    def _watches_in_vain(self, callback: RecipeCallback, is_final: bool) -> bool:
        """Whether all that could measure what a callback watches have run (or run no more), and nobody has."""
        key = callback.watched_key
        if key is None or key in self._known_keys or callback.name in self._told_missing:
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
            self._warn("runner", int(step), message)
        return Progress(min(int(step), self.num_steps), self.num_steps, time.monotonic() - self._started_at)

    # One call

    async def _call(self, callback: RecipeCallback) -> None:
        name = callback.name
        if name in self._disabled:
            return
        self._last_call[name] = self.step
        callback.last_call = self._progress.percentage
        self._show_run(callback)
        started_at = time.perf_counter()
        returned = await self._attempt(callback, partial(callback.callback, self._progress.percentage))
        seconds = time.perf_counter() - started_at
        metrics = {} if returned is _FAILED else await self._accept(callback, returned)
        self.evaluations |= metrics
        self._known_keys |= metrics.keys()
        cost = self.costs.add_call(name, seconds, metrics)
        await self.recorder.record_evaluation(
            self.step,
            name,
            metrics,
            {
                f"callbacks/{name}/stall_s": seconds,
                f"callbacks/{name}/num_runs": cost.num_runs,
                f"callbacks/{name}/total_s": cost.seconds,
                f"callbacks/{name}/time_fraction": self.costs.time_fraction(name),
                f"callbacks/{name}/num_failed": cost.num_failed,
            },
        )

    async def _attempt(
        self, callback: RecipeCallback, work: Callable[[], Awaitable[Any]], timeout_s: float | None = None
    ) -> Any:
        """The result of ``work``, or ``_FAILED`` once its exception has been recorded."""
        owner = Owner(f"callback {callback.name!r}", derive_seed(self._seed, callback.name), observer=True)
        started_at = time.perf_counter()
        try:
            return await self._guard.run(work, owner, timeout_s or callback.timeout_s)
        except Exception as error:
            await self._record_failure(callback, error)
            return _FAILED
        finally:
            self.costs[callback.name].seconds += time.perf_counter() - started_at
            if report := self._guard.watchdog.take_report():
                message = f"{callback.name}: it has blocked the event loop"
                await self.recorder.record_note(self.step, "callback_blocked", callback.name, message, report)
            await self._record_warnings()

    async def _accept(self, callback: RecipeCallback, returned: Any) -> dict[str, Metric]:
        """The returned metrics under their full keys; whatever is not a metric is recorded as a failure."""
        if not isinstance(returned, dict):
            error = TypeError(f"it returned {type(returned).__name__}; a dict of metrics is needed ({{}} for none)")
            await self._record_failure(callback, error)
            return {}
        accepted: dict[str, Metric] = {}
        for key, value in callback.with_prefix(returned).items():
            try:
                accepted[self._keys.claim(callback.name, key)] = as_metric(value)
            except Exception as error:  # whatever a value of the user's does when it is looked at
                error.add_note(f"in what callback {callback.name!r} returned under the key {key!a}")
                await self._record_failure(callback, error, f"key {key!a}: ")
        return accepted

    async def _record_failure(self, callback: RecipeCallback, error: Exception, place: str = "") -> None:
        name = callback.name
        says_it_all = place and isinstance(error, TypeError | DescantError)  # our own words about a returned value
        reason = place + (str(error) if says_it_all else describe(error))
        message = f"callback {name!r} failed at step {self.step} of {self.num_steps}: {reason}"
        failure = CallbackFailure(name, self.step, message, "".join(traceback.format_exception(error)))
        self.failures.append(failure)
        self.costs[name].num_failed += 1
        await self.recorder.record_event(self.step, "callback_failed", name, message, failure.traceback)
        if self._strict or callback.on_error == "raise":
            raise CallbackError(message) from error
        if callback.on_error == "disable" and name not in self._disabled:
            self._disabled.add(name)
            self.costs.expect_no_more(name)
            message = f"callback {name!r} makes no more calls in this run (on_error='disable')"
            await self.recorder.record_event(self.step, "callback_disabled", name, message)

    async def _record_warnings(self) -> None:
        warnings, self._warnings = self._warnings, []
        for source, step, message, details in warnings:
            await self.recorder.record_event(step, "callback_warning", source, f"{source}: {message}", details)

    # What callbacks see and request

    def _show_run(self, callback: RecipeCallback) -> RunView:
        """Let the callback see the run as it is now."""
        callback.run = RunView(
            step=self.step,
            num_steps=self.num_steps,
            progress=self._progress.fraction,
            elapsed_s=time.monotonic() - self._started_at,
            metrics=dict(self._training_metrics),
            evaluations=dict(self.evaluations),
            known_keys=frozenset(self._known_keys),
            run_dir=self.run_dir,
            seed=derive_seed(self._seed, callback.name, self.step),
            warn=partial(self._warn, callback.name, self.step),
            request_stop=partial(self._requests.stop, callback.name),
            request_checkpoint=partial(self._requests.checkpoint, callback.name),
        )
        return callback.run

    def _warn(self, source: str, step: int, message: str, details: str | None = None) -> None:
        self._warnings.append((source, step, message, details))

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

    def _settings(self) -> list[dict[str, Any]]:
        return [
            {**plain_settings(c), "name": c.name, "class": type(c).__name__, "prefix": c.log_key_prefix}
            | {"frequency": str(c.frequency)}
            for c in self.callbacks
        ]
