"""Evaluations: calls in their modes, of which training waits for all, for a part, or for a copy of the weights."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any, Never

from descant.callbacks.base import CallbackMode, RecipeCallback, RunView
from descant.callbacks.model_callback import ModelCallback, WhenBusy
from descant.engine.jobs import LIVE
from descant.metrics import Metric
from descant.models.evaluation_placement import EvaluationPlacement
from descant.models.inference import InferenceModel
from descant.models.weight_buffers import Lease, WeightBuffers
from descant.runner.calls import FAILED, Call, Calls
from descant.runner.costs import Costs, describe_seconds
from descant.runner.in_flight import InFlight
from descant.runner.recorder import RunRecorder

Landed = Callable[[Call, dict[str, Metric]], Awaitable[None]]
"""Is told of a call, once its metrics are recorded."""


class Evaluations:
    """Begins calls, each in the mode of its callback, and sees to it that each of them comes to an end.

    Args:
        callbacks: all of a run.
        modes: the mode of each, by name.
        calls: makes and records them.
        costs: where they are added up.
        recorder: where it is recorded what is skipped, replaced, given up or waited for.
        placement: where background evaluations run.
        landed: is told of a call whose metrics have been recorded.
    """

    def __init__(
        self,
        callbacks: Sequence[RecipeCallback],
        modes: Mapping[str, CallbackMode],
        calls: Calls,
        costs: Costs,
        recorder: RunRecorder,
        placement: EvaluationPlacement,
        landed: Landed,
    ) -> None:
        self._modes, self._calls, self._costs, self._recorder = modes, calls, costs, recorder
        self._landed = landed
        self._in_flight = InFlight()
        self._holds_snapshots = any(callback.needs_measured_weights for callback in callbacks)
        self._replicas: list[WeightBuffers] = []
        self._leases: dict[Call, Lease] = {}  # of the calls that are under way
        for callback in callbacks:
            if isinstance(callback, ModelCallback) and modes[callback.name] == "background":
                self._add_replica(callback.model, placement)

    @property
    def are_under_way(self) -> bool:
        """Whether there are calls whose results have not landed."""
        return len(self._in_flight) > 0

    @property
    def need_a_turn(self) -> bool:
        """Whether there is anything to go on with, or to raise."""
        return self.are_under_way or self._in_flight.has_failed

    async def start(self) -> None:
        """Prepare the places of background evaluations.

        Raises:
            ConfigurationError: a model cannot be evaluated there.
        """
        for replica in self._replicas:
            await replica.start()

    async def begin(self, callback: RecipeCallback, run: RunView, *, is_final: bool) -> None:
        """Make a call, or as much of it as training waits for; the rest goes on by itself."""
        call = Call(callback, run)
        mode = self._modes[callback.name]
        if mode == "inline" or not isinstance(callback, ModelCallback):
            returned = await self._stalled(call, partial(callback.callback, run.step / run.num_steps))
            await self._land(call, returned)
        elif mode == "overlap":
            measurement = await self._stalled(call, partial(callback.measure, callback.model))
            if measurement is FAILED:
                await self._land(call, FAILED)
            else:
                self._go_on(call, partial(callback.report, measurement))
        elif (replica := self._replica_of(callback.model)) is None:  # its weights do not change
            self._costs.add_stall(callback.name, 0.0)
            self._go_on(call, partial(self._evaluate, callback, callback.model, None))
        elif await self._make_room(call, replica, "wait" if is_final else callback.when_busy):
            lease = await self._copy(call, replica)
            if lease is not None:
                self._go_on(call, partial(self._evaluate, callback, lease.model(callback.model), lease), lease)

    async def turn(self) -> None:
        """Let what is under way go on with what has arrived; raises what one of them has failed with, if strict."""
        await self._in_flight.turn()

    async def wait(self) -> None:
        """Wait for everything that is under way, and say for what and how long; raises as ``turn`` does."""
        if not self.are_under_way:
            self._in_flight.check()
            return
        names = ", ".join(map(str, self._in_flight))
        self._recorder.show_note(f"waiting for what is under way: {names}")
        started_at = time.perf_counter()
        await self._in_flight.wait()
        message = f"waited {describe_seconds(time.perf_counter() - started_at)} for {names}"
        await self._recorder.record_note(self._recorder.step, "waited_for_callbacks", "callbacks", message)

    def kill(self) -> None:
        """End the processes that evaluate, at once."""
        for replica in self._replicas:
            replica.kill()

    async def close(self, *, at_once: bool) -> None:
        """Give up what is still under way, which is recorded, and end what was started for it."""
        if at_once:
            self.kill()
        try:
            for call in await self._in_flight.cancel_all():
                message = f"{call} was given up, since the run has ended"
                await self._recorder.record_event(call.run.step, "callback_given_up", call.callback.name, message)
        finally:
            await asyncio.gather(*(replica.close() for replica in self._replicas))

    # One call

    async def _stalled(self, call: Call, work: Callable[[], Awaitable[Any]]) -> Any:
        """The result of ``work``, while training waits."""
        started_at = time.perf_counter()
        try:
            return await self._calls.make(call, work)
        finally:
            call.stall_s = time.perf_counter() - started_at
            self._costs.add_stall(call.callback.name, call.stall_s)

    def _go_on(self, call: Call, work: Callable[[], Awaitable[Any]], lease: Lease | None = None) -> None:
        """Let a call go on while training does."""
        call.started_at = time.perf_counter()
        if lease is not None:
            self._leases[call] = lease
        self._in_flight.start(call, partial(self._finish, call, work, lease))

    async def _finish(
        self,
        call: Call,
        work: Callable[[], Awaitable[Any]],
        lease: Lease | None,
        previous: asyncio.Task[None] | None,
    ) -> None:
        try:
            if lease is not None:
                work = await _in_turn(lease, work)
            began_at = time.perf_counter()
            returned = await self._calls.make(call, work, is_detached=True)
            call.busy_s = time.perf_counter() - began_at
            if lease is not None and returned is FAILED:  # nobody looks at these weights any more
                lease.release()
            if previous is not None:  # results of one callback land in the order of their steps
                await asyncio.wait({previous})
            if lease is not None and not lease.is_released:
                call.as_measured = lease.model
            await self._land(call, returned)
        finally:
            self._leases.pop(call, None)
            if lease is not None:
                lease.release()

    async def _evaluate(
        self, callback: ModelCallback[Any], model: InferenceModel, lease: Lease | None
    ) -> dict[str, Any]:
        """What a callback reports of a copy of the weights, whose room is free as soon as nobody needs them."""
        measurement = await callback.measure(model)
        if lease is not None:
            lease.end_turn()
            if not self._holds_snapshots:
                lease.release()
        return await callback.report(measurement)

    async def _land(self, call: Call, returned: Any) -> None:
        metrics = await self._calls.land(call, returned)
        await self._landed(call, metrics)

    # Room for copies of the weights

    def _add_replica(self, model: InferenceModel, placement: EvaluationPlacement) -> None:
        if model.weights == LIVE and self._replica_of(model) is None:
            self._replicas.append(WeightBuffers(model, placement))

    def _replica_of(self, model: InferenceModel) -> WeightBuffers | None:
        """Where the weights of a model are evaluated that change; None for a handle on weights that do not."""
        return next((replica for replica in self._replicas if replica.serves(model)), None)

    async def _copy(self, call: Call, replica: WeightBuffers) -> Lease | None:
        """A copy of the weights; None if it cannot be made, which is recorded as the failure of the call."""
        started_at = time.perf_counter()
        try:
            return await replica.take(call.run.step)
        except Exception as error:
            failure = error
        finally:
            call.stall_s = time.perf_counter() - started_at
            self._costs.add_stall(call.callback.name, call.stall_s, call.wait_s or 0.0)
        await self._land(call, await self._calls.make(call, partial(_raise, failure)))
        return None

    async def _make_room(self, call: Call, replica: WeightBuffers, when_busy: WhenBusy) -> bool:
        """See to room for a copy of the weights; False if the call is skipped for want of it."""
        step, name = call.run.step, call.callback.name
        call.wait_s = 0.0
        if replica.has_room(step):
            return True
        if when_busy == "skip":
            self._costs[name].num_skipped += 1
            message = f"{call} was skipped: earlier evaluations still go on (when_busy='skip')"
            await self._recorder.record_note(step, "callback_skipped", name, message)
            return False
        started_at = time.perf_counter()
        oldest = self._oldest_in_the_way(call)
        if when_busy == "replace" and oldest is not None:
            try:
                await self._in_flight.cancel(oldest)
            finally:
                self._costs[name].num_replaced += 1
                message = f"{oldest} was given up for that of step {step} (when_busy='replace')"
                await self._recorder.record_note(oldest.run.step, "callback_replaced", name, message)
        await replica.wait_for_room(step)
        call.wait_s = time.perf_counter() - started_at
        return True

    def _oldest_in_the_way(self, call: Call) -> Call | None:
        """The oldest call of the same callback whose end makes room: it has a copy, and is not about to land."""
        for other in self._in_flight:
            lease = self._leases.get(other)
            if other.callback is call.callback and other.busy_s is None and lease is not None and not lease.is_released:
                return other
        return None


async def _in_turn(lease: Lease, work: Callable[[], Awaitable[Any]]) -> Callable[[], Awaitable[Any]]:
    """The work, once it is its turn; or why that will never be, to be recorded as its failure."""
    try:
        await lease.turn()
    except Exception as error:
        return partial(_raise, error)
    return work


async def _raise(error: Exception) -> Never:
    raise error
