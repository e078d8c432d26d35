"""SynchronousRunner: a CallbackRunner for training loops that are not async."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from contextvars import Context, copy_context
from queue import SimpleQueue
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from descant.errors import ConfigurationError
from descant.process_state import preserved_process_state

if TYPE_CHECKING:
    from descant.runner.callback_runner import CallbackRunner

ResultT = TypeVar("ResultT")
_LEAVING_S = 10.0  # what an interrupted call may take to end, before it is left behind


class SynchronousRunner:
    """What ``CallbackRunner.synchronous()`` gives: the same, and every call waits.

    Callbacks run on an event loop in a thread of its own, also where the caller's thread has one already (a notebook).
    That loop turns only while a call waits for it: what callbacks leave behind stands still while the model trains.
    """

    def __init__(self, runner: CallbackRunner) -> None:
        self.runner = runner
        self._loop = _LoopThread()
        self._stack = ExitStack()  # nothing to leave if it was not entered

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
        self.runner.look_around()
        self._loop.run(self.runner.after_step(step, metrics))

    def resume_training_time(self) -> None:
        """See ``CallbackRunner.resume_training_time``."""
        self.runner.resume_training_time()

    def record(self, metrics: Mapping[str, Any]) -> None:
        """See ``CallbackRunner.record``."""
        self._loop.run(self.runner.record(metrics))

    def record_event(self, kind: str, source: str, message: str, details: BaseException) -> None:
        """See ``RunRecorder.record_event``."""
        self._loop.run(self.runner.recorder.record_event(self.runner.step, kind, source, message, details))

    def make_final_calls(self) -> None:
        """See ``CallbackRunner.make_final_calls``; loggers are given what they return."""
        self._loop.run(self.runner.make_final_calls())
        self._loop.run(self.runner.recorder.publish())

    def close(self, error: BaseException | None = None) -> None:
        """Leave, ``error`` being what has ended the training, if it has failed."""
        with self._stack:
            if self._loop.is_stuck:
                self.runner.kill()
            elif self._loop.is_open:
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
        self.is_open = False
        """Whether it was started and not closed yet."""
        self.is_stuck = False
        """Whether it was interrupted and did not end: something blocks it for good."""

    def start(self) -> None:
        self._thread.start()
        self.is_open = True

    def run(self, coroutine: Coroutine[Any, Any, ResultT]) -> ResultT:
        """Its result. What interrupts the wait (Ctrl-C) cancels it, and is raised when it has ended.

        Raises:
            ConfigurationError: outside of the ``with`` block, or from a callback.
        """
        if not self.is_open or threading.current_thread() is self._thread:
            coroutine.close()
            where = "from a callback" if self.is_open else "outside of its `with` block"
            raise ConfigurationError(f"the runner was called {where}")
        call = _Call(coroutine)
        try:
            with preserved_process_state():  # what stands still between calls has a turn
                self._work.put(lambda runner: call.run_on(runner, self._context))
                result: ResultT = call.outcome.result()
                return result
        except BaseException:
            self.is_stuck = not call.cancel(_LEAVING_S)
            raise

    def close(self) -> None:
        self.is_open = False
        self._work.put(None)
        if not self.is_stuck:
            self._thread.join()

    def _serve(self) -> None:
        with asyncio.Runner() as runner:
            runner.get_loop().set_default_executor(_Threads())
            while (work := self._work.get()) is not None:
                work(runner)


class _Threads(ThreadPoolExecutor):
    """For ``asyncio.to_thread`` in callbacks; the end of the run does not wait for calls that hang there."""

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        super().shutdown(wait=False, cancel_futures=True)


class _Call:
    """A coroutine that another thread runs, and what became of it."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        self.outcome: Future[Any] = Future()
        self._coroutine = coroutine
        self._cancel: Callable[[], object] | None = None
        self._is_cancelled = False

    def run_on(self, runner: asyncio.Runner, context: Context) -> None:
        async def cancellable() -> Any:
            task, loop = asyncio.current_task(), asyncio.get_running_loop()
            assert task is not None
            self._cancel = lambda: loop.call_soon_threadsafe(task.cancel)
            if self._is_cancelled:  # before it began
                task.cancel()
            return await self._coroutine

        try:
            self.outcome.set_result(runner.run(cancellable(), context=context))
        except BaseException as error:
            self.outcome.set_exception(error)

    def cancel(self, timeout_s: float) -> bool:
        """Ask it to end, and wait; whether it has."""
        self._is_cancelled = True
        if self._cancel is not None and not self.outcome.done():
            self._cancel()
        return bool(wait([self.outcome], timeout_s).done)
