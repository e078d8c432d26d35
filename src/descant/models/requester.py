"""Requesters: on whose behalf a model is called, so that no requester's numbers depend on the others."""

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
    """A job that was submitted to an engine."""

    @property
    def future(self) -> Future[Any]:
        """Done when the engine has ended the job, in any way."""

    @property
    def num_done(self) -> int:
        """How many of its items have their result, as far as is known."""

    def cancel(self) -> None:
        """Ask the engine to stop it at its next yield point."""


class Count:
    """How many of some items are done."""

    def __init__(self) -> None:
        self.num_done = 0

    def add(self) -> None:
        """One more is."""
        self.num_done += 1


class Requester:
    """The trainer and its user's code, or one call of one callback.

    Single calls of one requester are collected into batches. The nth completion of a thread is sampled with the seed
    (requester's seed, thread, n); each call of a callback is a new requester with the same seed, so an example is
    sampled with the same random numbers at every evaluation of a run.

    Args:
        name: who it is, in messages.
        seed: what its sampling seeds are made from.
        observer: it may look at models and not train them.
        detached: it runs in parallel to training, and may not look at weights that are being trained.
        num_completions: sampled before on the same behalf, by id of the thread.

    Attributes:
        num_tokens: tokens that models were given and have generated for it.
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
        self._counted: dict[PendingJob | Count, tuple[str, int]] = {}  # what it has many of, and how many
        self._ended: str | None = None

    def check_not_ended(self) -> None:
        """Raises CallbackError if the requester has ended."""
        if self._ended is not None:
            raise CallbackError(
                f"{self.name} {self._ended}; what it left running may not use models, whose weights are others by now"
            )

    def add(self, job: PendingJob, items: str = "", num_items: int = 0) -> None:
        """Note a job of the requester, and what it has many of."""
        self._pending.add(job)
        self._counted[job] = items, num_items

        def end(_: Future[Any]) -> None:
            self._pending.discard(job)
            self._counted.pop(job, None)

        job.future.add_done_callback(end)

    @contextmanager
    def counting(self, items: str, num_items: int) -> Iterator[Count]:
        """Counts work of the requester's own that has many items."""
        count = Count()
        self._counted[count] = items, num_items
        try:
            yield count
        finally:
            del self._counted[count]

    def describe_progress(self) -> str:
        """How far its present work is, such as "120 of 300 answers"; empty if that cannot be counted."""
        parts = [f"{work.num_done:,} of {n:,} {items}" for work, (items, n) in list(self._counted.items()) if n > 1]
        return ", ".join(parts[-1:])

    def refuse(self, reason: str) -> None:
        """End the requester: its further calls of models are refused, and its jobs cancelled."""
        self._ended = reason
        for job in list(self._pending):
            job.cancel()

    async def settle(self) -> None:
        """Wait until engines have ended the requester's jobs."""
        futures = [asyncio.wrap_future(job.future) for job in list(self._pending)]
        await asyncio.gather(*futures, return_exceptions=True)

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


_current_requester: ContextVar[Requester | None] = ContextVar("descant_requester", default=None)


def current_requester() -> Requester | None:
    """The requester of the current task; None in code outside of callbacks and trainers."""
    return _current_requester.get()


@contextmanager
def requester_scope(requester: Requester) -> Iterator[Requester]:
    """The calls of models by this task, and by tasks that it starts, are on behalf of ``requester``."""
    token = _current_requester.set(requester)
    try:
        yield requester
    finally:
        _current_requester.reset(token)
