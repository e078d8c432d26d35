"""CallbackRunner: decides when callbacks run, runs them, and keeps training safe from them."""

from __future__ import annotations

import inspect
import time
import traceback
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from descant.callbacks.base import RecipeCallback, RunView
from descant.errors import CallbackError, ConfigurationError, DescantError
from descant.loggers.console import PlanLine
from descant.loggers.recorder import RunRecorder
from descant.metrics import Metric, as_metric, clean_text
from descant.owner import Owner, owner_scope
from descant.progress import Progress
from descant.seeds import derive_seed

_FAILED = object()
RESERVED_PREFIXES = ("training/", "progress/", "callbacks/", "completion_percentage")


@dataclass(frozen=True, slots=True)
class CallbackFailure:
    """A call that failed, or one returned value that is not a metric: which callback, after how many steps, and why."""

    callback: str
    step: int
    message: str
    traceback: str


class CallbackRunner:
    """Runs callbacks at their exact steps, one after another in list order, while training waits.

    A callback runs before the first step, at every boundary of its schedule and after the last step, at most once
    per step. One that raises, or returns what is not a metric, is recorded; the others and training go on. It is an
    async context: entering it calls ``on_start``, leaving it ``on_end``, also when training fails in between.

    Args:
        callbacks: what to run; names and declared keys must be distinct.
        recorder: where metrics, tables and failures go.
        num_steps: planned steps.
        seed: the run's seed.
        run_dir: the run's directory, for callbacks that write files.
        strict: raise the first failure as a ``CallbackError``.

    Raises:
        ConfigurationError: something that is not a callback, or names or keys that collide, with the fix.
    """

    def __init__(
        self,
        callbacks: Sequence[RecipeCallback],
        recorder: RunRecorder,
        *,
        num_steps: int,
        seed: int,
        run_dir: Path,
        strict: bool,
    ) -> None:
        self.callbacks = list(callbacks)
        self.num_steps = num_steps
        self.failures: list[CallbackFailure] = []
        self.seconds: dict[str, float] = {}
        """Seconds that training waited for each callback so far."""
        self._recorder = recorder
        self._seed = seed
        self._run_dir = run_dir
        self._strict = strict
        self._key_owner = check_callbacks(self.callbacks)
        self._last_call: dict[str, int] = {}
        self._warnings: list[tuple[str, int, str, str | None]] = []
        self._step = 0

    def plan(self) -> list[PlanLine]:
        """When each callback will run, if training is not stopped early."""
        return [PlanLine(c.name, str(c.schedule), c.due_steps(self.num_steps)) for c in self.callbacks]

    async def __aenter__(self) -> Self:
        """``on_start`` of every callback; if that fails (``strict``) or is cancelled, ``on_end`` of every callback."""
        self._started_at = time.monotonic()
        try:
            for callback in self.callbacks:
                view = self._show_run(callback, {})
                await self._attempt(callback, partial(callback.on_start, view))
        except BaseException:
            await self._end_all()
            raise
        return self

    async def before_first_step(self) -> None:
        """Make the calls that are due before the first step."""
        await self._call_all([callback for callback in self.callbacks if callback.at_start], {})

    async def after_step(self, step: int, training_metrics: Mapping[str, Metric]) -> None:
        """Make the calls that are due after ``step`` steps."""
        self._step = step
        before, after = Progress(step - 1, self.num_steps), Progress(step, self.num_steps)
        await self._call_all([c for c in self.callbacks if c.is_due(before, after)], training_metrics)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        """If training failed, the final calls at the step that was reached; then ``on_end`` of every callback.

        A cancelled run makes no more calls, and neither does one that a callback has stopped (``strict``).
        """
        try:
            if isinstance(error, Exception) and not isinstance(error, CallbackError):
                due = [c for c in self.callbacks if c.at_end and self._last_call.get(c.name) != self._step]
                with suppress(Exception):  # recorded if it can be; what stopped training is what must be raised
                    await self._call_all(due, {})
        finally:
            first_error = await self._end_all()
        if error is None and first_error is not None:
            raise first_error

    async def _end_all(self) -> Exception | None:
        """``on_end`` of every callback, also when one fails; the first failure that must be raised."""
        first_error: Exception | None = None
        for callback in self.callbacks:
            view = self._show_run(callback, {})
            try:
                await self._attempt(callback, partial(callback.on_end, view))
            except Exception as error:  # strict, or the run log cannot be written
                first_error = first_error or error
            callback.run = None
        return first_error

    async def _call_all(self, due: Sequence[RecipeCallback], training_metrics: Mapping[str, Metric]) -> None:
        for callback in due:
            await self._call(callback, training_metrics)

    async def _call(self, callback: RecipeCallback, training_metrics: Mapping[str, Metric]) -> None:
        percentage = Progress(self._step, self.num_steps).percentage
        self._last_call[callback.name] = self._step
        callback.last_call = percentage
        self._show_run(callback, training_metrics)
        started_at = time.perf_counter()
        returned = await self._attempt(callback, partial(callback.callback, percentage))
        seconds = time.perf_counter() - started_at
        self.seconds[callback.name] = self.seconds.get(callback.name, 0.0) + seconds
        metrics = {} if returned is _FAILED else await self._accept(callback, returned)
        costs: dict[str, Metric] = {f"callbacks/{callback.name}/stall_s": seconds}
        if num_failed := sum(failure.callback == callback.name for failure in self.failures):
            costs[f"callbacks/{callback.name}/num_failed"] = num_failed
        await self._recorder.record_evaluation(self._step, callback.name, metrics, costs)

    async def _attempt(self, callback: RecipeCallback, work: Callable[[], Awaitable[Any]]) -> Any:
        """The result of ``work``, or ``_FAILED`` once its exception has been recorded."""
        owner = Owner(f"callback {callback.name!r}", derive_seed(self._seed, callback.name), observer=True)
        try:
            with owner_scope(owner):
                return await work()
        except Exception as error:
            await self._record_failure(callback, error)
            return _FAILED
        finally:
            await self._record_warnings()

    async def _record_warnings(self) -> None:
        warnings, self._warnings = self._warnings, []
        for source, step, message, details in warnings:
            await self._recorder.record_event(step, "callback_warning", source, f"{source}: {message}", details)

    async def _accept(self, callback: RecipeCallback, returned: Any) -> dict[str, Metric]:
        """The returned metrics under their full keys; whatever is not a metric is recorded as a failure."""
        if not isinstance(returned, dict):
            error = TypeError(f"it returned {type(returned).__name__}; a dict of metrics is needed ({{}} for none)")
            await self._record_failure(callback, error)
            return {}
        accepted: dict[str, Metric] = {}
        for key, value in callback.with_prefix(returned).items():
            try:
                accepted[self._claim_key(callback, key)] = as_metric(value)
            except Exception as error:  # whatever a value of the user's does when it is looked at
                error.add_note(f"in what callback {callback.name!r} returned under the key {key!a}")
                await self._record_failure(callback, error, f"key {key!a}: ")
        return accepted

    def _claim_key(self, callback: RecipeCallback, key: object) -> str:
        if not isinstance(key, str) or not key or key != clean_text(key):
            raise ConfigurationError("a key must be a string that is valid Unicode and not empty")
        owner = "the trainer" if key.startswith(RESERVED_PREFIXES) else self._key_owner.setdefault(key, callback.name)
        if owner != callback.name:
            raise ConfigurationError(f"the key belongs to {owner}; give {callback.name!r} its own log_key_prefix=")
        return key

    async def _record_failure(self, callback: RecipeCallback, error: Exception, place: str = "") -> None:
        says_it_all = place and isinstance(error, TypeError | DescantError)  # our own words about a returned value
        reason = place + (str(error) if says_it_all else traceback.format_exception_only(error)[0].strip())
        message = f"callback {callback.name!r} failed at step {self._step} of {self.num_steps}: {reason}"
        failure = CallbackFailure(callback.name, self._step, message, "".join(traceback.format_exception(error)))
        self.failures.append(failure)
        await self._recorder.record_event(self._step, "callback_failed", callback.name, message, failure.traceback)
        if self._strict:
            raise CallbackError(message) from error

    def _warn(self, source: str, step: int, message: str, details: str | None = None) -> None:
        self._warnings.append((source, step, message, details))

    def _show_run(self, callback: RecipeCallback, training_metrics: Mapping[str, Metric]) -> RunView:
        """Let the callback see the run as it is now."""
        callback.run = RunView(
            step=self._step,
            num_steps=self.num_steps,
            progress=Progress(self._step, self.num_steps).fraction,
            elapsed_s=time.monotonic() - self._started_at,
            metrics=dict(training_metrics),
            run_dir=self._run_dir,
            seed=derive_seed(self._seed, callback.name, self._step),
            warn=partial(self._warn, callback.name, self._step),
        )
        return callback.run


def check_callbacks(callbacks: Sequence[RecipeCallback]) -> dict[str, str]:
    """Which callback declares which metric key.

    Raises:
        ConfigurationError: something that is not a callback, or names or keys that collide, with the fix.
    """
    if not isinstance(callbacks, Sequence):
        raise ConfigurationError(f"callbacks={callbacks!r} is a {type(callbacks).__name__}; a list is needed")
    owner_of_key: dict[str, str] = {}
    names: set[str] = set()
    for position, callback in enumerate(callbacks):
        _check_is_callback(callback, f"callbacks[{position}]")
        if callback.name in names:
            raise ConfigurationError(
                f"two callbacks are called {callback.name!r}; names identify a callback's rows and costs, so give "
                "one of them its own log_key=, log_key_prefix= or name="
            )
        names.add(callback.name)
        for key in sorted(callback.declared_keys()):
            if key in owner_of_key or key.startswith(RESERVED_PREFIXES):
                raise ConfigurationError(
                    f"callback {callback.name!r} returns the metric {key!r}, which belongs to "
                    f"{owner_of_key.get(key, 'the trainer')!r}; give it its own log_key= or log_key_prefix="
                )
            owner_of_key[key] = callback.name
    return owner_of_key


def _check_is_callback(callback: object, place: str) -> None:
    if isinstance(callback, type) and issubclass(callback, RecipeCallback):
        raise ConfigurationError(f"{place} is the class {callback.__name__}; pass an instance of it")
    if not isinstance(callback, RecipeCallback):
        raise ConfigurationError(
            f"{place}={callback!r} is a {type(callback).__name__}, not a callback; subclass RecipeCallback"
        )
    class_name = type(callback).__name__
    if not hasattr(callback, "name"):
        raise ConfigurationError(f"{place}: {class_name}.__init__ must call super().__init__(frequency=...)")
    for method in ("callback", "on_start", "on_end"):
        if not inspect.iscoroutinefunction(getattr(callback, method)):
            raise ConfigurationError(f"{place}: {class_name}.{method} must be `async def`")
