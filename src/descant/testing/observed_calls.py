"""ObservedCalls: what the kit sees of the calls of a callback, and the mischief that it makes in some of them."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Future
from os import PathLike
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

from descant.callbacks.base import RecipeCallback
from descant.callbacks.model_callback import ModelCallback
from descant.errors import DescantError
from descant.models.inference import MAX_SHARD_BYTES, InferenceModel, ItemFailure
from descant.models.requester import current_requester
from descant.threads.thread import StringThread
from descant.threads.tokenized import TokenizedThread

ResultT = TypeVar("ResultT")
CallbackT = TypeVar("CallbackT", bound=RecipeCallback)
ModelT = TypeVar("ModelT", bound=InferenceModel)
Fault = Literal["raise", "hang", "skip"]
"""The model does its work and then raises; it never answers; or the call is not made at all."""
HANG_TIMEOUT_S = 0.05  # of a call that would never end


class DisturbedModelError(DescantError):
    """What a model raises that the kit disturbs."""


class Pace:
    """How far training is, to wait for: so that what could go on beside training does, in the worst order."""

    def __init__(self) -> None:
        self._step, self._is_over = 0, False
        self._changed = asyncio.Condition()

    async def trained(self, step: int) -> None:
        """A step was made."""
        async with self._changed:
            self._step = step
            self._changed.notify_all()

    async def over(self) -> None:
        """No more steps will be made."""
        async with self._changed:
            self._is_over = True
            self._changed.notify_all()

    async def wait_for(self, step: int) -> None:
        """Until that step was made, or no more will be."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._is_over or self._step >= step)


class ObservedCalls:
    """The calls of one callback in one run.

    Args:
        mischief: what befalls the calls of some steps.
        pace: if given, what goes on beside training is held up: the background's measurement until another step was
            trained, and a report until one more, so that whatever is not of its own step shows.
    """

    def __init__(self, mischief: Mapping[int, Fault] | None = None, pace: Pace | None = None) -> None:
        self.mischief = mischief or {}
        self.returned: dict[int, Any] = {}
        """What was returned, by step."""
        self.struck: set[int] = set()
        """The steps at whose calls mischief was made."""
        self.begun: set[int] = set()
        self.ended: set[int] = set()
        self.callback: RecipeCallback | None = None
        self._pace = pace

    @property
    def step(self) -> int:
        """Of the present call."""
        return -1 if self.callback is None or self.callback.run is None else self.callback.run.step

    def timeout_s(self, own: float | None) -> float | None:
        """What the present call may take."""
        return HANG_TIMEOUT_S if self.mischief.get(self.step) == "hang" else own

    async def observe(self, work: Callable[[], Awaitable[ResultT]]) -> ResultT:
        """The work of a call that asks the model, or as much of it as mischief allows."""
        step = self.step
        self.begun.add(step)
        try:
            result = await work()
            if step in self.mischief and step not in self.struck:  # it has not asked the model
                await self.disturb(_nothing())
            return result
        finally:
            self.ended.add(step)

    async def disturb(self, work: Coroutine[Any, Any, ResultT]) -> ResultT:
        """What the model answers, if it does."""
        step = self.step
        mischief = self.mischief.get(step)
        if mischief is not None:
            self.struck.add(step)
        if mischief == "hang":
            work.close()
            await _no_answer()
        result = await work
        if mischief == "raise":
            raise DisturbedModelError(f"the conformance kit lets the model fail at step {step}")
        return result

    async def hold(self, num_steps: int) -> None:
        """Until so many more steps are trained."""
        if self._pace is not None:
            await self._pace.wait_for(self.step + num_steps)


async def _nothing() -> None:
    pass


class _Unanswered:
    """A job that no engine takes up."""

    def __init__(self) -> None:
        self.future: Future[Any] = Future()

    def cancel(self) -> None:
        self.future.cancel()


async def _no_answer() -> None:
    """Wait, as for an engine that is stuck, until the call is given up."""
    job = _Unanswered()
    if (requester := current_requester()) is not None:
        requester.add(job)
    await asyncio.wrap_future(job.future)


# Models


class _DisturbedModel(InferenceModel):
    """A view of a model that answers as the kit says."""

    _calls: ObservedCalls

    async def snapshot(self) -> InferenceModel:
        return disturbed(await super().snapshot(), self._calls)

    async def save(self, path: str | PathLike[str], *, max_shard_bytes: int = MAX_SHARD_BYTES) -> Path:
        return await self._calls.disturb(super().save(path, max_shard_bytes=max_shard_bytes))

    async def tokenize_many(self, threads: Sequence[StringThread], *, return_exceptions: bool = False) -> Any:
        tokenize = cast("Any", super().tokenize_many)
        return await self._calls.disturb(tokenize(threads, return_exceptions=return_exceptions))

    async def _generate(self, threads: Sequence[StringThread | TokenizedThread]) -> list[TokenizedThread | ItemFailure]:
        return await self._calls.disturb(super()._generate(threads))

    async def _logprobs_per_token(self, threads: Sequence[TokenizedThread]) -> Any:
        return await self._calls.disturb(super()._logprobs_per_token(threads))


def disturbed(model: ModelT, calls: ObservedCalls) -> ModelT:
    """A view of a model that the calls may disturb."""
    if isinstance(model, _DisturbedModel):
        return model
    view = copy.copy(model)
    view.__class__ = cast("type[ModelT]", type(type(model).__name__, (_DisturbedModel, type(model)), {"_calls": calls}))
    return view


# Callbacks


class _Observed(RecipeCallback):
    """A callback whose calls are observed."""

    _calls: ObservedCalls

    @property
    def timeout_s(self) -> float | None:
        return self._calls.timeout_s(vars(self).get("timeout_s"))

    @timeout_s.setter
    def timeout_s(self, timeout_s: float | None) -> None:
        vars(self)["timeout_s"] = timeout_s


class _ObservedWhole(_Observed):
    async def callback(self, current_percentage: float) -> dict[str, Any]:
        step = self._calls.step
        if self._calls.mischief.get(step) == "skip":
            return {}
        whole = super().callback  # type: ignore[safe-super]  # the user's
        metrics = await self._calls.observe(lambda: whole(current_percentage))
        self._calls.returned[step] = metrics
        return metrics


class _ObservedHalves(_Observed, ModelCallback[Any]):
    async def measure(self, model: InferenceModel) -> Any:
        if self._calls.mischief.get(self._calls.step) == "skip":
            return None
        measure = super().measure  # type: ignore[safe-super]  # the user's
        if model.weights != self.model.weights:  # in the background
            await self._calls.hold(1)
        return await self._calls.observe(lambda: measure(disturbed(model, self._calls)))

    async def report(self, measurement: Any) -> dict[str, Any]:
        step = self._calls.step
        if self._calls.mischief.get(step) == "skip":
            return {}
        await self._calls.hold(2)
        metrics = await super().report(measurement)  # type: ignore[safe-super]  # the user's
        self._calls.returned[step] = metrics
        return metrics


def has_halves(callback: RecipeCallback) -> bool:
    """Whether it runs in all modes: it does nothing but measure and report."""
    return isinstance(callback, ModelCallback) and type(callback).callback is ModelCallback.callback


def is_observed(callback: RecipeCallback) -> bool:
    """Whether it is under observation already."""
    return isinstance(callback, _Observed)


def observed(callback: CallbackT, calls: ObservedCalls) -> CallbackT:
    """The same callback, from now on under observation."""
    base = _ObservedHalves if has_halves(callback) else _ObservedWhole
    kind = type(callback)
    callback.__class__ = cast("type[CallbackT]", type(kind.__name__, (base, kind), {"_calls": calls}))
    calls.callback = callback
    return callback
