"""EngineWorker: runs an engine somewhere, with one queue in front of it."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from contextlib import suppress
from typing import Any, TypeVar

from descant.engine.jobs import LIVE, Job
from descant.errors import CallbackError, DescantError
from descant.models.requester import PendingJob, Requester, current_requester

ResultT = TypeVar("ResultT")


class EngineWorker(ABC):
    """Takes the jobs of one engine, from any thread, and never makes the event loop wait for them.

    Attributes:
        name: what the engine's model is called in messages.
        trainer: the one requester that may train the engine now; all views of the model share this.
        is_trained_by_others: whether other code trains the module, without asking.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.trainer: Requester | None = None
        self.is_trained_by_others = False

    @abstractmethod
    async def ready(self) -> None:
        """Wait until the engine is loaded; raises why it could not be."""

    @abstractmethod
    def submit(self, job: Job[Any]) -> PendingJob:
        """Queue a job.

        Raises:
            DescantError: the worker was closed.
        """

    def run_later(self, job: Job[Any]) -> None:
        """Run a short job soon, without a result. May be called from a finalizer."""
        with suppress(DescantError):  # it was closed
            self.submit(job)

    @abstractmethod
    def close(self) -> None:
        """Cancel the running job, refuse those that wait, and end. Blocks until that is done; twice is harmless."""

    def kill(self) -> None:
        """End at once. A thread cannot be; it ends with ``close``."""
        return

    async def run(self, job: Job[ResultT]) -> ResultT:
        """Queue a job and wait for its result; cancelling the wait cancels the job.

        Raises:
            DescantError: the model was closed.
            CallbackError: the caller is a callback that has returned, or whose time is up, or that runs in parallel to
                training and asks for the live weights.
        """
        requester = current_requester()
        if requester is not None:
            requester.check_not_ended()
            if requester.detached and self.is_trained_by_others and job.weights != LIVE:
                raise CallbackError(
                    f"{requester.name} asks for {job.weights!r} of {self.name!r} while other code trains that module, "
                    "in which copies of its weights are computed, too; look at it in `measure`, with mode='inline' or "
                    "'overlap', or load a model of its own with ModelBuilder"
                )
            is_trained = self.is_trained_by_others or self.trainer is not None
            if requester.detached and is_trained and job.weights == LIVE:
                raise CallbackError(
                    f"{requester.name} asks for the live weights of {self.name!r} while they are being trained, so "
                    "they would be those of several steps; look at the model in `measure`, with the model that it is "
                    "given"
                )
        pending = self.submit(job)
        if requester is not None:
            requester.add(pending, job.items, job.num_items)
        try:
            result: ResultT = await asyncio.wrap_future(pending.future)
        except asyncio.CancelledError:
            pending.cancel()
            raise
        return result
