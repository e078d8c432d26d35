"""ObservedCalls: the calls of one callback in one run, as the kit sees them, with the faults that it plants."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Literal, TypeGuard, TypeVar

from descant.callbacks.base import RecipeCallback
from descant.callbacks.model_callback import ModelCallback
from descant.errors import DescantError
from descant.models.inference import InferenceModel
from descant.models.requester import PendingJob, Requester, current_requester, requester_scope
from descant.testing.differences import PlainMetrics, plain_metrics

ResultT = TypeVar("ResultT")
Fault = Literal["raise", "hang", "skip"]
"""The model fails; the call is cancelled before the model has answered; or the call is not made at all."""
GRACE_S = 1.0
"""How long a call that is cancelled may take to end."""


class PlantedError(DescantError):
    """The failure of a model that the kit plants."""


class ObservedCalls:
    """The calls of one callback in one run.

    Args:
        faults: planted in the calls at these steps.
        are_held: asynchronous work is held back: a background measurement until training has reached the next step, and
            a report until the step after that. A metric that is not of its own step then shows in every run.

    Attributes:
        returned: the metrics of the calls, by step.
        ended: of the calls with a fault, by step: whether they end when they should.
        callback: whose calls they are.
    """

    callback: RecipeCallback

    def __init__(self, faults: Mapping[int, Fault] | None = None, *, are_held: bool = False) -> None:
        self.faults = faults or {}
        self.returned: dict[int, PlainMetrics] = {}
        self.ended: dict[int, bool] = {}
        self._are_held = are_held
        self._reached = -1.0
        self._has_reached = asyncio.Condition()

    def observe(self, callback: RecipeCallback) -> None:
        """Wrap the methods of a callback that a runner calls."""
        self.callback = callback
        if not has_halves(callback):
            call = callback.callback

            async def observed_call(current_percentage: float) -> Any:
                return {} if self._skips else self._record(await self._make(lambda: call(current_percentage)))

            vars(callback)["callback"] = observed_call
            return
        measure, report = callback.measure, callback.report

        async def observed_measure(model: InferenceModel) -> Any:
            if model.weights != callback.model.weights:  # in the background
                await self._hold(1)
            return None if self._skips else await self._make(lambda: measure(model))

        async def observed_report(measurement: Any) -> Any:
            await self._hold(2)
            return {} if self._skips else self._record(await report(measurement))

        vars(callback).update(measure=observed_measure, report=observed_report)

    @property
    def _step(self) -> int:
        """The step of the current call."""
        return self.callback.running().step

    @property
    def _skips(self) -> bool:
        return self.faults.get(self._step) == "skip"

    def _record(self, metrics: Any) -> Any:
        self.returned[self._step] = plain_metrics(metrics, self.callback.running().run_dir)
        return metrics

    async def reach(self, step: float) -> None:
        """Training has reached a step, or its end: infinity."""
        async with self._has_reached:
            self._reached = step
            self._has_reached.notify_all()

    async def _hold(self, num_steps: int) -> None:
        step = self._step + num_steps
        async with self._has_reached:
            await self._has_reached.wait_for(lambda: not self._are_held or self._reached >= step)

    async def _make(self, work: Callable[[], Awaitable[ResultT]]) -> ResultT:
        """The part of a call that asks models, with the fault of its step.

        The fault strikes when a model is asked for the first time, or else at the end.
        """
        step = self._step
        if (fault := self.faults.get(step)) is None:
            return await work()
        self.ended[step] = False
        loop, caller = asyncio.get_running_loop(), current_requester()
        error = PlantedError(f"the conformance kit lets the model fail at step {step}")
        overdue = loop.create_future()

        def strike() -> None:
            if fault == "raise":
                raise error
            loop.call_soon_threadsafe(task.cancel)  # before the answer can arrive
            loop.call_soon_threadsafe(lambda: loop.call_later(GRACE_S, overdue.cancel))

        assert caller is not None, "calls are made by a runner"
        requester = _StruckRequester(caller, strike)
        with requester_scope(requester):
            task = asyncio.ensure_future(work())
        task.add_done_callback(lambda task: task.cancelled() or task.exception())  # of one that ends late
        try:
            await asyncio.wait({task, overdue}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.ended[step] = task.done()
            task.cancel()
            requester.refuse("was cancelled")
            await requester.settle()
        if task.done() and not task.cancelled():
            result = task.result()
            if requester.is_struck:  # and has returned all the same
                return result
        raise error


class _StruckRequester(Requester):
    """A call that is struck whenever it has asked a model for a job."""

    def __init__(self, caller: Requester, strike: Callable[[], None]) -> None:
        super().__init__(caller.name, caller.seed, observer=True, detached=caller.detached)
        self.is_struck = False
        self._strike = strike

    def add(self, job: PendingJob, items: str = "", num_items: int = 0) -> None:
        super().add(job, items, num_items)
        self.is_struck = True
        self._strike()


def has_halves(callback: RecipeCallback) -> TypeGuard[ModelCallback[Any]]:
    """Whether it runs in all modes: it does nothing but measure and report."""
    return isinstance(callback, ModelCallback) and type(callback).callback is ModelCallback.callback


def is_observed(callback: RecipeCallback) -> bool:
    """Whether its methods are wrapped already."""
    return not vars(callback).keys().isdisjoint(("callback", "measure"))
