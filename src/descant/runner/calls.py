"""Calls: makes the calls of callbacks, and takes each result to the run log."""

from __future__ import annotations

import asyncio
import time
import traceback
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from math import inf
from typing import Any

from descant.arguments import missing_await
from descant.callbacks.base import RecipeCallback, shown
from descant.errors import CallbackError, DescantError, WorkerDied
from descant.metrics import Metric, as_metric
from descant.models.off_loop import off_loop
from descant.models.requester import Requester
from descant.runner.call import Call
from descant.runner.call_guard import CallGuard
from descant.runner.costs import Costs
from descant.runner.metric_keys import MetricKeys
from descant.runner.recorder import RunRecorder
from descant.runner.requests import describe
from descant.runner.run_state import RunState
from descant.seeds import derive_seed
from descant.table import Table
from descant.text import duration

_SLOW_S = 10.0
_SHORT_S = 0.3  # what is over sooner is not shown
FAILED = object()
"""What a call returns that has failed: the failure has been recorded."""


@dataclass(frozen=True, slots=True)
class CallbackFailure:
    """A call that failed, or one returned value that is not a metric: which callback, after how many steps, and why."""

    callback: str
    step: int
    message: str
    traceback: str


@dataclass(slots=True)
class _Running:
    """A call that has begun and not ended; as text, how far it is."""

    call: Call
    requester: Requester
    began_at: float = field(default_factory=time.monotonic)
    timer: asyncio.TimerHandle | None = None

    def __str__(self) -> str:
        progress = self.requester.describe_progress()
        return f"{self.call.callback.name} at step {self.call.run.step:,}{f': {progress}' if progress else ''}"


class Calls:
    """Makes calls, under guard, and records their metrics, costs, failures and warnings.

    A result takes one way: what a call returned → its metrics under their full keys (``_accept``) → costs, run log and
    console → what other callbacks see of the run; if it ran in parallel to training, those that follow its metrics are
    called at once.

    Args:
        callbacks: all of the run, in the order of their calls.
        state: the run, as callbacks see it.
        recorder: where everything is recorded.
        costs: where costs are added up.
        keys: which key belongs to which callback.
        strict: raise the first failure.
    """

    def __init__(
        self,
        callbacks: Sequence[RecipeCallback],
        state: RunState,
        recorder: RunRecorder,
        costs: Costs,
        keys: MetricKeys,
        *,
        strict: bool,
    ) -> None:
        self.failures: list[CallbackFailure] = []
        self.guard = CallGuard(recorder.show_warning)
        self.recorder, self.costs = recorder, costs
        self._running: dict[Call, _Running] = {}
        self._returned: dict[str, set[str]] = {}  # the keys of each callback's latest metrics
        self._callbacks, self._state, self._keys, self._strict = callbacks, state, keys, strict

    async def make(
        self,
        call: Call,
        work: Callable[[], Awaitable[Any]],
        timeout_s: float | None = None,
        turn: Callable[[], Awaitable[Any]] | None = None,
    ) -> Any:
        """The result of ``work``, or ``FAILED`` once its exception has been recorded.

        If the process that evaluates dies, another one has the same copy of the weights, and the call is made once
        more, with the same random numbers.

        Args:
            call: on whose behalf.
            work: the user's coroutine.
            timeout_s: how long it may take; by default what the callback says.
            turn: is waited for before, in which no time is counted.

        Raises:
            CallbackError: it has failed, and ``strict`` or its ``on_error="raise"`` is on.
        """
        name, num_completions = call.callback.name, call.num_completions.copy()
        try:
            try:
                return await self._attempt(call, work, timeout_s, turn)
            except WorkerDied as died:
                message = f"{call} is made once more, with the same copy of the weights: {died}"
                await self.recorder.record_event(call.run.step, "callback_repeated", name, message)
                call.num_completions = num_completions
                return await self._attempt(call, work, timeout_s, turn)
        except Exception as error:
            return await self.fail(call, error)
        finally:
            if not call.is_detached and (report := self.guard.watchdog.take_report()):
                await self.recorder.record_shown(call.run.step, "callback_blocked", name, *report)
            await self.record_messages()

    async def _attempt(
        self,
        call: Call,
        work: Callable[[], Awaitable[Any]],
        timeout_s: float | None,
        turn: Callable[[], Awaitable[Any]] | None,
    ) -> Any:
        callback, detached = call.callback, call.is_detached
        seed = derive_seed(self._state.seed, callback.name)
        requester = Requester(
            f"callback {callback.name!r}", seed, observer=True, detached=detached, num_completions=call.num_completions
        )
        try:
            if turn is not None:
                await turn()
            running = self._running[call] = _Running(call, requester)
            if not detached:
                self._say_if_slow(running, _SLOW_S)
            with shown(callback, call.run):
                return await self.guard.run(work, requester, timeout_s or callback.timeout_s, is_detached=detached)
        finally:
            if (ended := self._running.pop(call, None)) is not None and ended.timer is not None:
                ended.timer.cancel()
            call.num_tokens += requester.num_tokens

    def describe_running(self) -> list[str]:
        """What is evaluated now, and how far that is; for people, from any thread."""
        latest = time.monotonic() - _SHORT_S
        return [str(running) for running in list(self._running.values()) if running.began_at < latest]

    def _say_if_slow(self, running: _Running, after_s: float) -> None:
        """How far a call is that training waits for, where no live line says it; again after four times as long."""

        def say() -> None:
            self.recorder.show_waiting(f"{running} after {duration(after_s)}")
            self._say_if_slow(running, 4 * after_s)

        due_s = running.began_at + after_s - time.monotonic()
        running.timer = asyncio.get_running_loop().call_later(due_s, say)

    async def make_waiting(self, call: Call, work: Callable[[], Awaitable[Any]]) -> Any:
        """``make``, while training waits."""
        started_at = time.perf_counter()
        try:
            return await self.make(call, work)
        finally:
            call.seconds["stall_s"] = time.perf_counter() - started_at
            self.costs.add_stall(call.callback.name, call.seconds["stall_s"])

    async def complete(self, call: Call, returned: Any) -> None:
        """Record what a call has returned and cost, at the step that it belongs to; then call what follows it."""
        name, step, started_at = call.callback.name, call.run.step, time.perf_counter()
        metrics = {} if returned is FAILED else await self._accept(call, returned)
        started_at = self._add_recording(call, started_at)
        is_failure = returned is FAILED or not isinstance(returned, dict)
        failed = self._keys.num_failed(call.callback, metrics, is_failure=is_failure)
        missing = self._keys.missing(call.callback, metrics, is_failure=is_failure)
        num_failed = {**dict.fromkeys(metrics, failed), **dict.fromkeys(missing, inf)}
        if not is_failure:
            self.recorder.forget(self._returned.get(name, set()) - metrics.keys())
            self._returned[name] = set(metrics)
        self.costs.add_result(name, metrics, call.num_tokens, call.seconds.get("busy_s"))
        self.costs[name].num_measured += self._keys.has_measured(call.callback, metrics)
        self.costs[name].num_failed_samples += 0 if is_failure else int(failed)
        costs = {f"callbacks/{name}/{key}": value for key, value in self._cost_metrics(call).items()}
        await self.recorder.record_evaluation(step, name, metrics, costs)
        self._add_recording(call, started_at)
        self._state.known_keys |= metrics.keys()
        if call.is_detached:
            numbers: dict[str, Metric] = {key: value for key, value in metrics.items() if not isinstance(value, Table)}
            self._state.late_evaluations.append((step, numbers))
            for callback in self._callbacks:
                if is_news(callback, metrics, num_failed) and not self.costs[callback.name].is_disabled:
                    await self._call_follower(callback, call, metrics, num_failed)
        else:
            self._state.evaluations |= metrics
            self._state.num_failed |= num_failed

    def _add_recording(self, call: Call, started_at: float) -> float:
        """Count what has passed as time that training has waited, if it has; returns the present."""
        now = time.perf_counter()
        if not call.is_detached:
            call.seconds["stall_s"] += now - started_at
            self.costs.add_recording(call.callback.name, now - started_at)
        return now

    async def record_messages(self) -> None:
        """Record what callbacks have said since the last time."""
        while self._state.messages:  # threads may add to them
            kind, source, step, message, details = self._state.messages.pop(0)
            record = self.recorder.record_note if kind == "callback_note" else self.recorder.record_event
            await record(step, kind, source, f"{source}: {message}", details)

    async def _call_follower(
        self, follower: RecipeCallback, measured: Call, metrics: dict[str, Metric], num_failed: dict[str, float]
    ) -> None:
        """Call it with what an asynchronous call has measured, at the step of that one."""
        run = replace(
            self._state.view(follower, measured.run.step),
            step=measured.run.step,
            progress=measured.run.progress,
            metrics=measured.run.metrics,
            evaluations=metrics,
            num_failed=num_failed,
            as_measured=measured.as_measured,
        )
        self._state.last_call.setdefault(follower.name, run.step)
        call = Call(follower, run, is_detached=True, as_measured=measured.as_measured)
        self.costs.add_stall(follower.name, 0.0)
        await self.complete(call, await self.make(call, partial(follower.callback, run.step / run.num_steps)))

    def _cost_metrics(self, call: Call) -> dict[str, Metric]:
        cost = self.costs[call.callback.name]
        counts = {key: getattr(cost, key) for key in ("num_skipped", "num_replaced", "num_deferred")}
        return {
            **call.seconds,
            "num_runs": cost.num_runs,
            "total_s": cost.seconds,
            "time_fraction": self.costs.time_fraction(cost.name),
            "num_failed": cost.num_failed,
            **({"num_failed_samples": cost.num_failed_samples} if cost.num_failed_samples else {}),
            **({"num_tokens": call.num_tokens} if call.num_tokens else {}),
            **{key: count for key, count in counts.items() if count},
        }

    async def _accept(self, call: Call, returned: Any) -> dict[str, Metric]:
        """The returned metrics under their full keys; what is not a metric is recorded as a failure."""
        if not isinstance(returned, dict):
            needed = f"a dict of metrics is needed ({{}} for none){missing_await(returned)}"
            error = TypeError(f"it returned {type(returned).__name__}; {needed}")
            await self.fail(call, error)
            return {}
        name = call.callback.name
        accepted: dict[str, Metric] = {}
        try:
            prefixed = call.callback.with_prefix(returned)
        except Exception as error:
            await self.fail(call, error, "with_prefix: ")
            return {}
        for key, value in prefixed.items():
            try:
                metric = await off_loop(as_metric, value) if isinstance(value, Table) else as_metric(value)
                accepted[self._keys.claim(name, key)] = metric
            except Exception as error:  # of a value of the user's, when it is looked at
                error.add_note(f"in what callback {name!r} returned under the key {key!a}")
                await self.fail(call, error, f"key {key!a}: ")
        return accepted

    async def fail(self, call: Call, error: Exception, place: str = "") -> object:
        """Record a failure of a call, and return ``FAILED``; ``place`` says where it was.

        Raises:
            CallbackError: ``strict`` or the callback's ``on_error="raise"`` is on.
        """
        name, step = call.callback.name, call.run.step
        says_it_all = place and isinstance(error, TypeError | DescantError)  # our own words about a returned value
        reason = place + (str(error) if says_it_all else describe(error))
        reason += "; an `await` is missing before it" if "'coroutine' object" in reason else ""
        message = f"callback {name!r} failed at step {step} of {self._state.num_steps}: {reason}"
        failure = CallbackFailure(name, step, message, "".join(traceback.format_exception(error)))
        self.failures.append(failure)
        self.costs[name].num_failed += 1
        await self.recorder.record_event(step, "callback_failed", name, message, failure.traceback)
        if self._strict or call.callback.on_error == "raise":
            raise CallbackError(message) from error
        if call.callback.on_error == "disable" and not self.costs[name].is_disabled:
            self.costs[name].is_disabled = True
            message = f"callback {name!r} makes no more calls in this run (on_error='disable')"
            await self.recorder.record_event(step, "callback_disabled", name, message)
        return FAILED


def is_news(callback: RecipeCallback, metrics: Mapping[str, Metric], num_failed: Mapping[str, float]) -> bool:
    """Whether the metric that a callback follows was measured; or, if it compares values, its evaluation failed."""
    watches, metric = callback.watches, callback.follows
    return metric in metrics or (watches is not None and watches.compares and metric in num_failed)
