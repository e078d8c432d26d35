"""Calls: the calls of callbacks, one by one or side by side, and what becomes of them."""

from __future__ import annotations

import asyncio
import traceback
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from descant.callbacks.base import RecipeCallback, RunView, shown
from descant.errors import CallbackError, DescantError
from descant.metrics import Metric, as_metric
from descant.models.requester import Requester
from descant.runner.call_guard import CallGuard
from descant.runner.costs import Costs
from descant.runner.metric_keys import MetricKeys
from descant.runner.recorder import RunRecorder
from descant.runner.requests import describe
from descant.seeds import derive_seed
from descant.table import Table

FAILED = object()
"""What a call returns that has failed: the failure has been recorded."""


@dataclass(frozen=True, slots=True)
class CallbackFailure:
    """A call that failed, or one returned value that is not a metric: which callback, after how many steps, and why."""

    callback: str
    step: int
    message: str
    traceback: str


@dataclass(eq=False, slots=True)
class Call:
    """One call of one callback.

    Attributes:
        callback: whose.
        run: what it sees of the run: its step is the one that its metrics belong to.
        stall_s: how long training waited for it.
        wait_s: how long training waited for room for a copy of the weights; None if it needs none.
        started_at: when it began to go on beside training (``time.perf_counter()``); None if it does not.
        busy_s: how long it did so, without the time that it has waited behind others; None until it has ended.
        num_tokens: tokens that models were given and have generated on its behalf.
        num_completions: of each thread, by its id: both halves of a call count on, so that it samples as in one piece.
        as_measured: gives the weights that it has measured, where they are a copy that is still there.
    """

    callback: RecipeCallback
    run: RunView
    stall_s: float = 0.0
    wait_s: float | None = None
    started_at: float | None = None
    busy_s: float | None = None
    num_tokens: int = 0
    num_completions: Counter[str] = field(default_factory=Counter)
    as_measured: Callable[[Any], Any] | None = None

    def __str__(self) -> str:
        return f"{self.callback.name} (step {self.run.step})"


class Calls:
    """Makes calls, under guard, and records their metrics, costs, failures and warnings.

    Args:
        recorder: where everything is recorded.
        costs: where costs are added up.
        keys: whose key is whose.
        seed: the run's.
        num_steps: planned steps, for messages.
        strict: raise the first failure.
    """

    def __init__(
        self, recorder: RunRecorder, costs: Costs, keys: MetricKeys, *, seed: int, num_steps: int, strict: bool
    ) -> None:
        self.failures: list[CallbackFailure] = []
        self.disabled: set[str] = set()
        """The callbacks that make no more calls."""
        self.guard = CallGuard(recorder.show_warning)
        self._recorder, self._costs, self._keys = recorder, costs, keys
        self._seed, self._num_steps, self._strict = seed, num_steps, strict
        self._warnings: list[tuple[str, int, str, str | None]] = []

    def warn(self, source: str, step: int, message: str, details: str | None = None) -> None:
        """Record a warning as soon as the event loop allows it."""
        self._warnings.append((source, step, message, details))

    async def make(
        self,
        call: Call,
        work: Callable[[], Awaitable[Any]],
        timeout_s: float | None = None,
        *,
        is_detached: bool = False,
    ) -> Any:
        """The result of ``work``, or ``FAILED`` once its exception has been recorded.

        Args:
            call: on whose behalf.
            work: the user's coroutine.
            timeout_s: how long it may take; by default what the callback says.
            is_detached: whether it goes on while training does.

        Raises:
            CallbackError: it has failed, and ``strict`` or its ``on_error="raise"`` is on.
        """
        callback = call.callback
        name = f"callback {callback.name!r}"
        seed = derive_seed(self._seed, callback.name)
        requester = Requester(name, seed, observer=True, detached=is_detached, num_completions=call.num_completions)
        try:
            with shown(callback, call.run):
                return await self.guard.run(work, requester, timeout_s or callback.timeout_s, is_detached=is_detached)
        except Exception as error:
            await self._record_failure(call, error)
            return FAILED
        finally:
            call.num_tokens += requester.num_tokens
            if not is_detached and (report := self.guard.watchdog.take_report()):
                message = f"{callback.name}: it has blocked the event loop"
                await self._recorder.record_note(call.run.step, "callback_blocked", callback.name, message, report)
            await self.record_warnings()

    async def land(self, call: Call, returned: Any) -> dict[str, Metric]:
        """Record what a call has returned and cost, at the step that it belongs to; returns its metrics."""
        name, step = call.callback.name, call.run.step
        metrics = {} if returned is FAILED else await self._accept(call, returned)
        self._costs.add_result(name, metrics, call.num_tokens, call.busy_s)
        await self._recorder.record_evaluation(step, name, metrics, self._cost_metrics(call))
        return metrics

    async def record_warnings(self) -> None:
        """Record what callbacks have warned of since the last time."""
        warnings, self._warnings = self._warnings, []
        for source, step, message, details in warnings:
            await self._recorder.record_event(step, "callback_warning", source, f"{source}: {message}", details)

    def _cost_metrics(self, call: Call) -> dict[str, Metric]:
        name = call.callback.name
        cost = self._costs[name]
        metrics: dict[str, Metric] = {
            "stall_s": call.stall_s,
            "num_runs": cost.num_runs,
            "total_s": cost.seconds,
            "time_fraction": self._costs.time_fraction(name),
            "num_failed": cost.num_failed,
        }
        if call.wait_s is not None:
            metrics["wait_s"] = call.wait_s
        if call.busy_s is not None:
            metrics["busy_s"] = call.busy_s
        if call.num_tokens:
            metrics["num_tokens"] = call.num_tokens
        for key in ("num_skipped", "num_replaced", "num_deferred"):
            if number := getattr(cost, key):
                metrics[key] = number
        return {f"callbacks/{name}/{key}": value for key, value in metrics.items()}

    async def _accept(self, call: Call, returned: Any) -> dict[str, Metric]:
        """The returned metrics under their full keys; whatever is not a metric is recorded as a failure."""
        if not isinstance(returned, dict):
            error = TypeError(f"it returned {type(returned).__name__}; a dict of metrics is needed ({{}} for none)")
            await self._record_failure(call, error)
            return {}
        name = call.callback.name
        accepted: dict[str, Metric] = {}
        for key, value in call.callback.with_prefix(returned).items():
            try:
                metric = await asyncio.to_thread(as_metric, value) if isinstance(value, Table) else as_metric(value)
                accepted[self._keys.claim(name, key)] = metric
            except Exception as error:  # whatever a value of the user's does when it is looked at
                error.add_note(f"in what callback {name!r} returned under the key {key!a}")
                await self._record_failure(call, error, f"key {key!a}: ")
        return accepted

    async def _record_failure(self, call: Call, error: Exception, place: str = "") -> None:
        name, step = call.callback.name, call.run.step
        says_it_all = place and isinstance(error, TypeError | DescantError)  # our own words about a returned value
        reason = place + (str(error) if says_it_all else describe(error))
        message = f"callback {name!r} failed at step {step} of {self._num_steps}: {reason}"
        failure = CallbackFailure(name, step, message, "".join(traceback.format_exception(error)))
        self.failures.append(failure)
        self._costs[name].num_failed += 1
        await self._recorder.record_event(step, "callback_failed", name, message, failure.traceback)
        if self._strict or call.callback.on_error == "raise":
            raise CallbackError(message) from error
        if call.callback.on_error == "disable" and name not in self.disabled:
            self.disabled.add(name)
            self._costs.expect_no_more(name)
            message = f"callback {name!r} makes no more calls in this run (on_error='disable')"
            await self._recorder.record_event(step, "callback_disabled", name, message)
