"""WorkerThread: an engine in a thread of this process, with one queue in front of it."""

from __future__ import annotations

import asyncio
import itertools
import queue
import threading
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from descant.engine.jobs import Engine, Job, Priority
from descant.errors import DescantError
from descant.models.requester import PendingJob
from descant.models.workers.engine_worker import EngineWorker

_CLOSE_PRIORITY = -1


class _Cancelled(Exception):
    """Unwinds a job that was cancelled."""


@dataclass(eq=False)
class _Ticket:
    """A queued job: by priority, then in order of arrival."""

    priority: int
    number: int
    job: Job[Any] | None = field(default=None)
    future: Future[Any] = field(default_factory=Future)
    cancelled: threading.Event = field(default_factory=threading.Event)
    num_done: int = 0

    def __lt__(self, other: _Ticket) -> bool:
        return (self.priority, self.number) < (other.priority, other.number)

    def cancel(self) -> None:
        """Take it out of the queue, or stop it at its next yield point."""
        self.cancelled.set()
        self.future.cancel()


class WorkerThread(EngineWorker):
    """Runs the jobs of one engine on one thread, training jobs first.

    A cancelled job stops at its next yield point, before the next job starts. The thread ends, and the engine is freed,
    with ``close``, when the last handle is garbage, or when the interpreter exits.
    """

    def __init__(self, name: str, load: Callable[[], Engine]) -> None:
        """Start the thread; ``load`` makes the engine, on this thread.

        (The OpenMP threads of torch's CPU kernels belong to the thread that first uses them. A second set in the
        process, which a thread for loading would leave, makes OpenMP throttle both.)
        """
        super().__init__(name)
        self._loop = _WorkLoop(name, load)
        self._close = weakref.finalize(self, self._loop.close)

    async def ready(self) -> None:
        """Wait until the engine is loaded; raises what ``load`` raised."""
        await asyncio.shield(asyncio.wrap_future(self._loop.loaded))

    def wait_until_loaded(self) -> None:
        """Block until the engine is loaded; raises what ``load`` raised."""
        self._loop.loaded.result()

    def submit(self, job: Job[Any]) -> PendingJob:
        """Queue a job."""
        return self._loop.put(job)

    def run_later(self, job: Job[Any]) -> None:
        """Run a short job before the next one."""
        self._loop.chores.append(job)

    def close(self) -> None:
        """Cancel the running job, refuse those that wait, and end the thread."""
        self._close()


class _WorkLoop:
    """The part that the thread refers to; it does not keep the ``WorkerThread`` alive."""

    def __init__(self, name: str, load: Callable[[], Engine]) -> None:
        self.loaded: Future[None] = Future()
        self.chores: deque[Job[Any]] = deque()
        """A deque, because a finalizer may run in the middle of ``put`` and must not wait for its lock."""
        self._name = name
        self._engine: Engine | None = None
        self._numbers = itertools.count()
        self._queue: queue.PriorityQueue[_Ticket] = queue.PriorityQueue()
        self._current: _Ticket | None = None
        self._thread = threading.Thread(target=self._work, args=(load,), name=f"descant-{name}", daemon=True)
        self._closed = False
        self._lock = threading.Lock()  # nothing is queued behind the ticket that closes the queue
        self._thread.start()

    def put(self, job: Job[Any]) -> _Ticket:
        ticket = _Ticket(int(job.priority), next(self._numbers), job)
        with self._lock:
            if self._closed:
                failure = self.loaded.exception() if self.loaded.done() else None
                raise DescantError(
                    f"model {self._name!r} was closed" if failure is None else f"model {self._name!r}: {failure}"
                ) from failure
            if not self._thread.is_alive():
                raise DescantError(
                    f"model {self._name!r} was loaded by a process that this one was forked from, and only there is a "
                    "thread that runs it; load it here, or ask it there"
                )
            self._queue.put(ticket)
        return ticket

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._queue.put(_Ticket(_CLOSE_PRIORITY, next(self._numbers)))
        if current := self._current:
            current.cancelled.set()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _work(self, load: Callable[[], Engine]) -> None:
        try:
            self._engine = load()
        except BaseException as error:
            self.loaded.set_exception(error)
            with self._lock:
                self._closed = True
            self._refuse_waiting()
            return
        self.loaded.set_result(None)
        del load
        while (ticket := self._queue.get()).job is not None:
            self._current = ticket
            if self._closed:
                ticket.cancelled.set()
            if ticket.future.set_running_or_notify_cancel():
                self._run(ticket, ticket.job)
            self._current = None
            del ticket  # its result may be large
        self._refuse_waiting()
        self._engine = None

    def _run(self, ticket: _Ticket, job: Job[Any]) -> None:
        assert self._engine is not None
        try:
            while self.chores:
                self._engine.run(self.chores.popleft(), lambda num_done=0: None)
            result = self._engine.run(job, partial(self._yield_point, ticket))
        except _Cancelled:
            reason = f"model {self._name!r} was closed" if self._closed else "its result is not needed any more"
            ticket.future.set_exception(DescantError(f"the job was cancelled: {reason}"))
        except BaseException as error:
            ticket.future.set_exception(error)
        else:
            ticket.future.set_result(result)

    def _yield_point(self, running: _Ticket, num_done: int = 0) -> None:
        """Stop the running job if it was cancelled, and run the training jobs that wait."""
        running.num_done = num_done
        if running.cancelled.is_set():
            raise _Cancelled
        while running.priority > Priority.TRAINING and self._training_waits():
            ticket = self._queue.get()
            if ticket.job is None:  # the queue was closed in between: ``_work`` must find this ticket again
                self._queue.put(ticket)
                raise _Cancelled
            if ticket.future.set_running_or_notify_cancel():
                self._run(ticket, ticket.job)

    def _training_waits(self) -> bool:
        with self._queue.mutex:
            return bool(self._queue.queue) and self._queue.queue[0].priority == Priority.TRAINING

    def _refuse_waiting(self) -> None:
        while not self._queue.empty():
            ticket = self._queue.get()
            if ticket.future.set_running_or_notify_cancel():
                ticket.future.set_exception(DescantError(f"model {self._name!r} was closed"))
