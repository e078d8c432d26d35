"""SynchronousRunner: a CallbackRunner for training loops that are not async."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import Future
from contextlib import ExitStack
from contextvars import copy_context
from queue import SimpleQueue
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from descant.engine.process_state import preserved_process_state

if TYPE_CHECKING:
    from descant.callbacks.runner import CallbackRunner

ResultT = TypeVar("ResultT")


class SynchronousRunner:
    """What ``CallbackRunner.synchronous()`` gives: the same, and every call waits.

    Callbacks run on an event loop in a thread of its own, also where the caller's thread has one already (a notebook).
    That loop turns only while a call waits for it: what callbacks leave behind stands still while the model trains.
    """

    def __init__(self, runner: CallbackRunner) -> None:
        self.runner = runner
        self._loop = _LoopThread()

    @property
    def should_stop(self) -> bool:
        """Whether the loop should end after this step: a callback has requested it, or a signal has arrived."""
        return self.runner.should_stop

    def __enter__(self) -> Self:
        self._loop.start()
        with ExitStack() as stack:
            stack.callback(self._loop.close)
            stack.enter_context(self.runner.interrupts)  # signals are a matter of this thread
            self._loop.run(self.runner.open())
            self._stack = stack.pop_all()
        return self

    def after_step(self, step: int, metrics: Mapping[str, Any] | None = None) -> None:
        """See ``CallbackRunner.after_step``."""
        self._loop.run(self.runner.after_step(step, metrics))

    def record(self, metrics: Mapping[str, Any]) -> None:
        """See ``CallbackRunner.record``."""
        self._loop.run(self.runner.record(metrics))

    def make_final_calls(self) -> None:
        """See ``CallbackRunner.make_final_calls``."""
        self._loop.run(self.runner.make_final_calls())

    def close(self, error: BaseException | None = None) -> None:
        """Leave, ``error`` being what has ended the training, if it has failed."""
        with self._stack:
            self._loop.run(self.runner.close(error))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(error)
        if error is None:
            self.runner.interrupts.raise_received()


class _LoopThread:
    """An event loop that turns only while somebody waits for a coroutine on it."""

    def __init__(self) -> None:
        self._work: SimpleQueue[Callable[[asyncio.Runner], None] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._serve, name="descant-callbacks", daemon=True)
        self._context = copy_context()
        self._task: asyncio.Task[Any] | None = None
        self._event_loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> None:
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, ResultT]) -> ResultT:
        """Its result. Whatever interrupts the wait (Ctrl-C) cancels it, and is raised when it has ended."""
        outcome: Future[ResultT] = Future()

        async def remember() -> ResultT:
            self._task, self._event_loop = asyncio.current_task(), asyncio.get_running_loop()
            return await coroutine

        def work(runner: asyncio.Runner) -> None:
            try:
                outcome.set_result(runner.run(remember(), context=self._context))
            except BaseException as error:
                outcome.set_exception(error)

        try:
            with preserved_process_state():  # whatever stands still between calls has a turn
                self._work.put(work)
                return outcome.result()
        except BaseException:
            if not outcome.done() and self._event_loop is not None and self._task is not None:
                self._event_loop.call_soon_threadsafe(self._task.cancel)
                outcome.exception()  # waits
            raise

    def close(self) -> None:
        self._work.put(None)
        self._thread.join()

    def _serve(self) -> None:
        with asyncio.Runner() as runner:
            while (work := self._work.get()) is not None:
                work(runner)
