"""EngineWorker: where an engine runs, with one queue in front of it."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from typing import Any, TypeVar

from descant.engine.jobs import LIVE, Job
from descant.errors import CallbackError
from descant.models.requester import PendingJob, Requester, current_requester

ResultT = TypeVar("ResultT")


class EngineWorker(ABC):
    """Takes the jobs of one engine, from any thread, and never makes the event loop wait for them.

    Attributes:
        name: what the engine's model is called in messages.
        trainer: who alone may train the engine at present; every view of the model sees this.
        is_trained_elsewhere: whether code of others trains the module, without asking.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.trainer: Requester | None = None
        self.is_trained_elsewhere = False

    @property
    @abstractmethod
    def closed(self) -> bool:
        """Whether the engine is gone, or about to be."""

    @abstractmethod
    async def ready(self) -> None:
        """Wait until the engine is there; raises what it could not be made for."""

    @abstractmethod
    def submit(self, job: Job[Any]) -> PendingJob:
        """Queue a job.

        Raises:
            DescantError: the placement was closed.
        """

    @abstractmethod
    def run_later(self, job: Job[Any]) -> None:
        """Run a short job before the next one, and let nobody wait for it. May be called from a finalizer."""

    @abstractmethod
    def close(self) -> None:
        """Cancel what runs, refuse what waits, and end. Blocks until that is done; closing twice is harmless."""

    async def run(self, job: Job[ResultT]) -> ResultT:
        """Queue a job and wait for its result; cancelling the wait cancels the job.

        Raises:
            DescantError: the model was closed.
            CallbackError: the caller is a callback that has returned, or whose time is up, or that looks at weights
                which are being trained meanwhile.
        """
        requester = current_requester()
        if requester is not None:
            requester.check_not_ended()
            self._check_stands_still(requester, job)
        pending = self.submit(job)
        if requester is not None:
            requester.add(pending)
        try:
            result: ResultT = await asyncio.wrap_future(pending.future)
        except asyncio.CancelledError:
            pending.cancel()
            raise
        return result

    def _check_stands_still(self, requester: Requester, job: Job[Any]) -> None:
        is_trained = self.is_trained_elsewhere or self.trainer is not None
        if requester.detached and is_trained and job.weights == LIVE:
            raise CallbackError(
                f"{requester.name} asks for the live weights of {self.name!r} while they are being trained, so they "
                "would be those of several steps; look at the model in `measure`, with the model that it is given"
            )
