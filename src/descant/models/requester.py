"""Requesters: on whose behalf a model is called, so that no requester's numbers depend on who else is busy."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

from descant.errors import CallbackError, ObserverError
from descant.seeds import derive_seed
from descant.threads.thread import StringThread


class PendingJob(Protocol):
    """A job that an engine was asked for."""

    @property
    def future(self) -> Future[Any]:
        """Done when the engine has nothing to do with it any more."""

    def cancel(self) -> None:
        """Ask the engine to give it up at its next step."""


class Requester:
    """The trainer and its user's code, or one call of one callback.

    Single calls of one requester are collected into batches, and sampling is seeded per requester: the nth completion
    of a thread gets the seed (requester's seed, thread, n). Each call of a callback is a new requester with the same
    seed, so an example is sampled with the same random numbers at every evaluation of a run.

    Args:
        name: who it is, in messages.
        seed: what its sampling seeds are made from.
        observer: it may look at models and not train them.
        detached: it goes on while training does, and may not look at weights that are being trained.
        num_completions: of each thread, by its id, that were sampled on the same behalf before.

    Attributes:
        num_tokens: tokens that models were given and have generated on its behalf.
    """

    def __init__(
        self,
        name: str,
        seed: int,
        *,
        observer: bool,
        detached: bool = False,
        num_completions: Counter[str] | None = None,
    ) -> None:
        self.name = name
        self.seed = seed
        self.observer = observer
        self.detached = detached
        self.num_tokens = 0
        self._num_completions: Counter[str] = Counter() if num_completions is None else num_completions
        self._pending: set[PendingJob] = set()
        self._ended: str | None = None

    def check_not_ended(self) -> None:
        """Raises CallbackError if nobody waits for the requester any more."""
        if self._ended is not None:
            raise CallbackError(
                f"{self.name} {self._ended}; what it left running may not use models, whose weights are others by now"
            )

    def add(self, job: PendingJob) -> None:
        """A job that runs on behalf of the requester."""
        self._pending.add(job)
        job.future.add_done_callback(lambda _: self._pending.discard(job))

    def refuse(self, reason: str) -> None:
        """Refuse whatever the requester asks of models from here on, and ask engines to give up its jobs."""
        self._ended = reason
        for job in list(self._pending):
            job.cancel()

    async def settle(self) -> None:
        """Wait until engines have given up the requester's jobs."""
        if jobs := list(self._pending):
            await asyncio.wait([asyncio.ensure_future(_done(job.future)) for job in jobs])

    def next_sampling_seed(self, thread: StringThread) -> int:
        """The seed of this requester's next completion of ``thread``."""
        thread_id = thread.uuid()
        self._num_completions[thread_id] += 1
        return derive_seed(self.seed, thread_id, self._num_completions[thread_id])

    def check_may_train(self, method: str) -> None:
        """Raises ObserverError if the requester only observes."""
        if self.observer:
            raise ObserverError(
                f"{method} was called from {self.name}: callbacks observe and must not train the model; "
                "train in a trainer or in code of your own"
            )


async def _done(future: Future[Any]) -> None:
    """Wait for a future without its result, and without cancelling it."""
    loop, done = asyncio.get_running_loop(), asyncio.Event()
    future.add_done_callback(lambda _: loop.call_soon_threadsafe(done.set))
    await done.wait()


_current_owner: ContextVar[Requester | None] = ContextVar("descant_owner", default=None)


def current_requester() -> Requester | None:
    """The requester of the present task, or None in code that runs outside of every callback."""
    return _current_owner.get()


@contextmanager
def requester_scope(requester: Requester) -> Iterator[Requester]:
    """Everything that this task and the tasks it starts ask of models is asked on behalf of ``requester``."""
    token = _current_owner.set(requester)
    try:
        yield requester
    finally:
        _current_owner.reset(token)
