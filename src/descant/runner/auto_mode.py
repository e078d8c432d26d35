"""AutoMode: the mode "auto", in which training waits least for callbacks without a risk."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from descant.callbacks.base import RecipeCallback
from descant.callbacks.model_callback import ModelCallback
from descant.engine.jobs import LIVE, DescribeEngine, DescribeHost, Host
from descant.errors import DescantError
from descant.models.evaluation_placement import EvaluationPlacement
from descant.models.weight_buffers import WeightBuffers
from descant.process_state import free_memory, num_cores
from descant.runner.costs import Costs
from descant.runner.evaluations import Evaluations
from descant.runner.hidden_uses import attributes_used, second_half_uses_model
from descant.runner.metric_keys import MetricKeys
from descant.runner.recorder import RunRecorder
from descant.text import duration

START_S = 7.0
"""What a process takes until it can evaluate, most of it for importing torch and Transformers: 6.3 to 7.2 s on two
cores (``python benchmarks/callbacks.py start``)."""
NUM_STEPS_TIMED = 3
"""The steps after which the rate of training is known."""
_NUM_CALLS_TIMED = 4
"""The calls of each callback after which it is known how long training waits for them in the background."""
_WORTHWHILE = 0.7
"""The share of the time before for which training may wait there at most."""
_DECISIONS = {"request_stop": "it may end the run", "request_checkpoint": "it may request a checkpoint"}


def kept_in_the_loop(callbacks: Sequence[RecipeCallback], keys: MetricKeys) -> dict[str, str]:
    """The callbacks that "auto" has training wait for, with the reason: a decision would depend on when they complete,
    or their second half uses the live weights."""
    reasons: dict[str, str] = {}
    for watcher in callbacks:
        for source in keys.sources[watcher.name]:
            reasons.setdefault(source.name, f"{watcher.name} goes by its metrics")
    readers = [c.name for c in callbacks if not attributes_used(c).isdisjoint(("evaluations", "known_keys"))]
    for callback in callbacks:
        if isinstance(callback, ModelCallback):
            attributes = attributes_used(callback)
            others = [f"{name} reads what others have returned" for name in readers if name != callback.name]
            found = [why for name, why in _DECISIONS.items() if name in attributes] + others
            if not found and second_half_uses_model(callback):
                found = ["its second half uses the model"]
            for reason in found[:1]:
                reasons.setdefault(callback.name, reason)
    return {c.name: reasons[c.name] for c in callbacks if c.name in reasons and _asks(c)}


def _asks(callback: RecipeCallback) -> bool:
    """Whether the mode of a callback is that of the run."""
    return isinstance(callback, ModelCallback) and callback.mode is None


class _Waiting(NamedTuple):
    """The calls so far of the callbacks that may move, and for how long training has waited for them."""

    num_calls: int
    seconds: float
    num_failed: int

    def worse_than(self, before: _Waiting, num_calls_timed: int) -> str | None:
        """Why the calls since ``before``, in the background, are no better than those until then, if so."""
        if self.num_failed > before.num_failed:
            return "a call has failed in the background"
        num_calls, seconds = self.num_calls - before.num_calls, self.seconds - before.seconds
        if num_calls < num_calls_timed or seconds / num_calls < _WORTHWHILE * before.seconds / before.num_calls:
            return None
        return (
            f"training waits {duration(seconds / num_calls)} for a call in the background and has waited "
            f"{duration(before.seconds / before.num_calls)} before: something else has the cores"
        )


class AutoMode:
    """Says what "auto" has chosen, and moves evaluations to the background where that pays.

    A run begins with overlap. Once the first calls and steps have been timed, it is known for how long training will
    wait for the others. If a process of its own saves more than it takes to start, one is started, and when it is
    ready the rest is evaluated there. So timing decides where a number is computed, and never what it is: the process
    has as many threads as training, and cores of its own for them. If a call fails there, or training waits nearly as
    long, all return to overlap.

    Args:
        callbacks: all of a run.
        in_the_loop: those that training waits for, with the reason.
        evaluations: begins their calls.
        costs, recorder: of the run.
        placement: where the mode "background" evaluates, as far as the user says so.
    """

    def __init__(
        self,
        callbacks: Sequence[RecipeCallback],
        in_the_loop: Mapping[str, str],
        evaluations: Evaluations,
        costs: Costs,
        recorder: RunRecorder,
        placement: EvaluationPlacement,
    ) -> None:
        self._in_the_loop, self._evaluations = in_the_loop, evaluations
        self._costs, self._recorder, self._placement = costs, recorder, placement
        models = [callback for callback in callbacks if isinstance(callback, ModelCallback)]
        self._overlapping = [c for c in models if _asks(c) and costs[c.name].mode == "overlap"]
        self._in_background = [c.name for c in models if costs[c.name].mode == "background"]
        self._may_move: list[ModelCallback[Any]] = []  # all of one model
        self._moving: WeightBuffers | None = None
        self._ready: asyncio.Task[None] | None = None
        self._before = _Waiting(0, 0.0, 0)  # until they have moved

    def has_a_turn(self) -> bool:
        """Whether there is something to decide at this step, although no call is due."""
        return bool(self._may_move) and self._costs.num_steps_made == NUM_STEPS_TIMED

    async def announce(self, step: int) -> None:
        """Say what was chosen, and why."""
        names: dict[str, list[str]] = {}
        if self._overlapping:
            reason = await self._why_not_background()
            moves = f"; a process in the background takes over once it saves more than its start, {duration(START_S)}"
            choice = f"overlap, since {reason}" if reason else f"overlap{moves}"
            names[choice] = [callback.name for callback in self._overlapping]
        for name, reason in self._in_the_loop.items():
            names.setdefault(f"inline, since {reason}", []).append(name)
        if names:
            await self._record(step, "; ".join(f"{_listed(those)} {choice}" for choice, those in names.items()))

    async def follow(self, step: int) -> None:
        """Before the calls of a step: move evaluations to a process that has become ready, or back if it fails."""
        if self._ready is None or not self._ready.done():
            return
        if error := self._ready.exception():
            await self._stay(step, f"the process that was to evaluate has not started: {error}")
        elif self._moving is not None:
            for callback in self._may_move:
                self._evaluations.move(callback)
            self._moving, self._before = None, self._waiting()
            await self._record(step, f"{self._names()} in the background from here on: the process is ready")
        elif reason := self._waiting().worse_than(self._before, _NUM_CALLS_TIMED * len(self._may_move)):
            for callback in self._may_move:
                self._evaluations.move(callback, back=True)
            await self._stay(step, reason)

    async def consider(self, step: int) -> None:
        """After the calls of a step: start a process if it pays by now."""
        if self._ready is not None or not self._may_move or self._costs.num_steps_made < NUM_STEPS_TIMED:
            return
        stall_s = sum(self._costs.stall_to_come_s(callback.name, step) for callback in self._may_move)
        if min(stall_s, self._costs.training_to_come_s(step) - START_S) <= START_S:
            return
        try:
            self._moving = await self._evaluations.prepare(self._may_move[0].model, self._placement)
        except Exception as error:  # what has changed since it was announced; no memory
            await self._stay(step, str(error))
            return
        self._ready = asyncio.ensure_future(self._moving.ready())
        found = f"training would wait {duration(stall_s)} more for {self._names()}"
        await self._record(step, f"{found}, so a process to evaluate in is being started")

    def close(self) -> None:
        """The run is over; a process that is still starting is not waited for."""
        if self._ready is not None and not self._ready.done():
            self._ready.cancel()
            if self._moving is not None:
                self._moving.kill()

    async def _why_not_background(self) -> str | None:
        """Why nothing may move to the background, if so; else the callbacks of the first live model may."""
        live = [callback for callback in self._overlapping if callback.model.weights == LIVE]
        if not live:
            return "the weights that they look at are no live ones"
        if self._in_background:
            return f"the background is that of {_listed(self._in_background)}"
        host = await live[0].model._worker.run(DescribeHost())
        reason = _obstacle(host, self._placement)
        if reason is None:
            try:
                await live[0].model._worker.run(DescribeEngine(host.device, host.num_threads, importable=True))
            except DescantError as error:  # what the background refuses: adapters, patched modules
                return str(error).partition(" (")[0].partition("; ")[0]  # without the list of parts and the advice
            on_cpu = host.device == "cpu"
            own = {"num_threads": host.num_threads} if on_cpu else {"device": host.spare_device}
            self._placement = replace(self._placement, **own)
            self._may_move = [callback for callback in live if callback.model._worker is live[0].model._worker]
        return reason

    def _waiting(self) -> _Waiting:
        costs = [self._costs[callback.name] for callback in self._may_move]
        seconds = sum(cost.stall_s + cost.wait_s for cost in costs)
        return _Waiting(sum(c.num_runs for c in costs), seconds, sum(c.num_failed for c in costs))

    def _names(self) -> str:
        return _listed([callback.name for callback in self._may_move])

    async def _stay(self, step: int, reason: str) -> None:
        names, self._may_move, self._ready = self._names(), [], None
        await self._record(step, f"{names} overlap to the end, since {reason}")

    async def _record(self, step: int, choice: str) -> None:
        await self._recorder.record_note(step, "callback_mode", "callbacks", f"callback_mode auto: {choice}")


def _obstacle(host: Host, placement: EvaluationPlacement) -> str | None:
    """Why evaluations of an engine may not move to the background without being asked to, if so."""
    num_bytes, gigabytes = placement.num_buffers * host.num_bytes, placement.num_buffers * host.num_bytes / 1e9
    on_cpu, spare = host.device == "cpu", host.spare_device
    its = "its thread" if host.num_threads == 1 else f"its {host.num_threads} threads"
    obstacles = (
        (host.num_processes > 1, f"{host.num_processes} processes train together"),
        (placement.where != "process" or sys.platform == "win32", "there is no process of its own to evaluate in"),
        (
            2 * num_bytes > free_memory(),
            f"copies of the weights would take {gigabytes:.1f} GB, over half of what is free",
        ),
        (placement.device not in (None, spare or host.device), f"{placement.device} may give other numbers"),
        (not on_cpu and spare is None, "training has the only accelerator"),
        (not on_cpu and 2 * num_bytes > host.spare_bytes, f"{spare} has no room for copies of the weights"),
        (
            on_cpu and placement.num_threads not in (None, host.num_threads),
            f"num_threads={placement.num_threads} may give other numbers than those of training, {host.num_threads}",
        ),
        (on_cpu and num_cores() < 2 * host.num_threads, f"of {num_cores()} cores training leaves too few beside {its}"),
    )
    return next((reason for is_one, reason in obstacles if is_one), None)


def _listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
