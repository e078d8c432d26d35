"""Modes: what training waits for when a callback is called; one object for each callback of a run."""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any, Never

from descant.callbacks.base import CallbackMode, RecipeCallback, RunMode
from descant.callbacks.model_callback import ModelCallback
from descant.errors import ConfigurationError
from descant.models.weight_buffers import Lease, WeightBuffers
from descant.runner.call import Call
from descant.runner.calls import FAILED, Calls
from descant.runner.in_flight import InFlight
from descant.runner.metric_keys import MetricKeys

Work = Callable[[], Awaitable[Any]]


class Mode(ABC):
    """Makes the calls of one callback.

    Args:
        calls: makes them under guard, and records what they have returned.
        in_flight: the tasks of those that run in parallel to training.
    """

    def __init__(self, calls: Calls, in_flight: InFlight) -> None:
        self._calls, self._in_flight = calls, in_flight

    @abstractmethod
    async def begin(self, call: Call) -> None:
        """Make as much of a call as training waits for; the rest runs as a task."""

    def _detach(self, call: Call, work: Work) -> asyncio.Task[None]:
        """Let the work run in parallel to training."""
        call.is_detached = True
        return self._in_flight.start(call, partial(self._finish, call, work))

    async def _finish(self, call: Call, work: Work, previous: asyncio.Task[None] | None) -> None:
        returned = await self._make_detached(call, work)
        if previous is not None:  # results of one callback arrive in the order of their steps
            await asyncio.wait({previous})
        await self._calls.complete(call, returned)

    async def _make_detached(self, call: Call, work: Work, turn: Work | None = None) -> Any:
        began_at: list[float] = []

        async def begin() -> None:
            if turn is not None:
                await turn()
            began_at.append(time.perf_counter())

        returned = await self._calls.make(call, work, turn=begin)
        call.seconds["busy_s"] = time.perf_counter() - began_at[0] if began_at else 0.0
        return returned


class Inline(Mode):
    """Training waits for the whole call."""

    async def begin(self, call: Call) -> None:
        """Make it."""
        work = partial(call.callback.callback, call.run.step / call.run.num_steps)
        await self._calls.complete(call, await self._calls.make_waiting(call, work))


class Overlap(Mode):
    """Training waits for ``measure``, on the live weights; ``report`` runs in parallel.

    Args:
        grace_s: how long training waits for a ``report``, too, so that what a quick one returns is there at its step.
    """

    def __init__(self, calls: Calls, in_flight: InFlight, grace_s: float = 0.0) -> None:
        super().__init__(calls, in_flight)
        self._grace_s = grace_s

    async def begin(self, call: Call) -> None:
        """Measure."""
        callback = _of_a_model(call)
        measurement = await self._calls.make_waiting(call, partial(callback.measure, callback.model))
        if measurement is FAILED:
            await self._calls.complete(call, FAILED)
            return
        call.as_measured = partial(_refuse_weights, call)
        task = self._detach(call, partial(callback.report, measurement))
        if self._grace_s:
            started_at = time.perf_counter()
            await asyncio.wait({task}, timeout=self._grace_s)
            self._calls.costs.add_recording(callback.name, time.perf_counter() - started_at)


class Pinned(Mode):
    """The weights of the callback's model do not change (a snapshot, another model), so training waits for nothing."""

    async def begin(self, call: Call) -> None:
        """Nothing to wait for."""
        callback = _of_a_model(call)
        self._calls.costs.add_stall(callback.name, 0.0)
        call.as_measured = partial(_refuse_weights, call)
        self._detach(call, lambda: callback.callback(call.run.step / call.run.num_steps))


class Background(Mode):
    """Training waits for a copy of the weights; both halves run in parallel, on that copy.

    Args:
        buffers: hold the copies.
        keep_until_complete: whether a copy is held until those that watch the metrics have used it, too.
    """

    def __init__(self, calls: Calls, in_flight: InFlight, buffers: WeightBuffers, keep_until_complete: bool) -> None:
        super().__init__(calls, in_flight)
        self._buffers, self._keep_until_complete = buffers, keep_until_complete
        self._measuring: dict[Call, Lease] = {}  # calls that still need their copy

    async def begin(self, call: Call) -> None:
        """Copy the weights, once there is a free buffer."""
        if await self._make_room(call) and (lease := await self._copy(call)) is not None:
            self._measuring[call] = lease
            call.as_measured = lease.model if self._keep_until_complete else partial(_refuse_weights, call)
            task = self._detach(call, partial(self._evaluate, call, lease))
            task.add_done_callback(lambda _: self._end(call, lease))  # also if it is cancelled before it has begun

    async def _evaluate(self, call: Call, lease: Lease) -> dict[str, Any]:
        """Measure and report; the buffer is free as soon as the copy is not needed."""
        callback = _of_a_model(call)
        measurement = await callback.measure(lease.model(callback.model))
        lease.end_turn()
        if not self._keep_until_complete:
            lease.release()
        return await callback.report(measurement)

    def _end(self, call: Call, lease: Lease) -> None:
        self._measuring.pop(call, None)
        lease.release()

    async def _make_detached(self, call: Call, work: Work, turn: Work | None = None) -> Any:
        lease = self._measuring[call]
        returned = await super()._make_detached(call, work, turn or lease.turn)
        if returned is FAILED:
            lease.release()
        self._measuring.pop(call, None)
        return returned

    async def _copy(self, call: Call) -> Lease | None:
        """A copy of the weights; None if it cannot be made, which is recorded as the failure of the call."""
        started_at = time.perf_counter()
        try:
            return await self._buffers.take(call.run.step)
        except Exception as error:
            failure = error
        finally:
            call.seconds["stall_s"] = time.perf_counter() - started_at
            self._calls.costs.add_stall(call.callback.name, call.seconds["stall_s"], call.seconds["wait_s"])
        await self._calls.complete(call, await self._calls.fail(call, failure))
        return None

    async def _make_room(self, call: Call) -> bool:
        """Wait for a free buffer; False if the call is skipped for want of one."""
        step, name = call.run.step, call.callback.name
        call.seconds["wait_s"] = 0.0
        if self._buffers.has_room(step):
            return True
        when_busy = "wait" if call.is_final else _of_a_model(call).when_busy
        if when_busy == "skip":
            self._calls.costs[name].num_skipped += 1
            message = f"{call} was skipped: earlier evaluations are still in flight (when_busy='skip')"
            await self._calls.recorder.record_note(step, "callback_skipped", name, message)
            return False
        started_at = time.perf_counter()
        oldest = next((other for other, lease in self._measuring.items() if not lease.is_released), None)
        if when_busy == "replace" and oldest is not None:
            try:
                await self._in_flight.cancel(oldest)
            finally:
                self._calls.costs[name].num_replaced += 1
                message = f"{oldest} was given up for that of step {step} (when_busy='replace')"
                await self._calls.recorder.record_note(oldest.run.step, "callback_replaced", name, message)
        await self._buffers.wait_for_room(step)
        call.seconds["wait_s"] = time.perf_counter() - started_at
        return True


class Moved(Mode):
    """Background for callbacks that began with overlap, and overlap again for the last calls: then nothing is trained
    any more, and no copy is needed.

    Args:
        background, overlap: make the calls.
    """

    def __init__(self, calls: Calls, in_flight: InFlight, background: Mode, overlap: Mode) -> None:
        super().__init__(calls, in_flight)
        self._background, self._overlap = background, overlap

    async def begin(self, call: Call) -> None:
        """In one of the two."""
        await (self._overlap if call.is_final else self._background).begin(call)


def choose_modes(
    callbacks: Sequence[RecipeCallback], keys: MetricKeys, callback_mode: RunMode, in_the_loop: Mapping[str, str]
) -> Mapping[str, CallbackMode]:
    """The mode of each callback, by name: its own, or else the run's where it can run in that.

    ``in_the_loop`` are the callbacks that "auto" has training wait for; the others overlap.

    Raises:
        ConfigurationError: callbacks whose modes cannot work together, with the fix.
    """
    automatic: CallbackMode = "overlap" if callback_mode == "auto" else callback_mode
    modes = {c.name: _choose_mode(c, "inline" if c.name in in_the_loop else automatic) for c in callbacks}
    for watcher in callbacks:
        for source in keys.sources[watcher.name]:
            if watcher.watches is not None and keys.declares(source, watcher.watches.metric):
                _check_pair(watcher, source, modes[source.name])
    return modes


def _choose_mode(callback: RecipeCallback, callback_mode: CallbackMode) -> CallbackMode:
    if not isinstance(callback, ModelCallback):
        return "inline"
    if type(callback).callback is ModelCallback.callback:
        return callback.mode or callback_mode
    if callback.mode not in (None, "inline"):
        raise ConfigurationError(
            f"callback {callback.name!r}: mode={callback.mode!r} runs `measure` and `report`, and "
            f"{type(callback).__name__} overrides `callback`, which would not be called; override those two instead"
        )
    return "inline"


def _check_pair(watcher: RecipeCallback, source: RecipeCallback, mode: CallbackMode) -> None:
    watches = watcher.watches
    assert watches is not None
    if watches.on_schedule and mode != "inline":
        raise ConfigurationError(
            f"callback {watcher.name!r} needs {watches.metric!r} at the step at which it runs, and {source.name!r} "
            f"measures it in parallel to training (mode={mode!r}); give {source.name!r} mode='inline', or keep the "
            "best weights with a BestModelCallback"
        )
    if watches.uses_weights and mode == "overlap":
        raise ConfigurationError(
            f"callback {watcher.name!r} needs the weights that {source.name!r} has measured, and in mode='overlap' "
            f"they are gone when its metrics are there; give {source.name!r} mode='background' (which has a copy of "
            "them) or 'inline'"
        )


def _of_a_model(call: Call) -> ModelCallback[Any]:
    assert isinstance(call.callback, ModelCallback)
    return call.callback


def _refuse_weights(call: Call, model: object) -> Never:
    raise ConfigurationError(
        f"the weights that {call} has measured are needed, and in the mode of {call.callback.name!r} no copy of them "
        "is kept: give it mode='background' or 'inline'"
    )
