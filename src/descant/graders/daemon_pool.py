"""DaemonPool: threads for user's synchronous functions, which may never return."""

from __future__ import annotations

import asyncio
import contextvars
import queue
import threading
from collections.abc import Callable
from typing import Any


class DaemonPool:
    """Runs functions in at most ``max_threads`` threads that neither hold up other work nor the end of the process.

    The thread pools of the standard library are joined when the interpreter exits, so that a judge that hangs would
    keep a finished run from ending; and the event loop's own pool is needed for other things.
    """

    def __init__(self, max_threads: int = 32) -> None:
        self._max_threads = max_threads
        self._num_threads = 0
        self._num_calls = 0  # running or waiting
        self._lock = threading.Lock()
        self._queue: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()

    async def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """The result of ``function(*arguments)``, called in a thread with this task's context variables.

        Raises whatever the function raises. An exception that would end more than the call (``SystemExit``,
        ``KeyboardInterrupt``, cancellation) becomes a ``RuntimeError``.
        """
        loop = asyncio.get_running_loop()
        outcome: asyncio.Future[tuple[Any, BaseException | None]] = loop.create_future()
        context = contextvars.copy_context()

        def settle(result: Any, error: BaseException | None) -> None:
            if not outcome.done():
                outcome.set_result((result, error))  # as a value: a future cannot hold a StopIteration

        def call() -> None:
            result, error = None, None
            try:
                result = context.run(function, *arguments)
            except BaseException as raised:
                error = raised
            if not loop.is_closed():
                loop.call_soon_threadsafe(settle, result, error)

        self._submit(call)
        result, error = await outcome
        if isinstance(error, Exception) and not isinstance(error, StopIteration):
            raise error
        if error is not None:
            raise RuntimeError(f"{type(error).__name__}: {error}") from error
        return result

    def _submit(self, call: Callable[[], None]) -> None:
        with self._lock:
            self._num_calls += 1
            if self._num_threads < min(self._num_calls, self._max_threads):
                self._num_threads += 1
                threading.Thread(target=self._work, name="descant-grader", daemon=True).start()
        self._queue.put(call)

    def _work(self) -> None:
        while True:
            self._queue.get()()
            with self._lock:
                self._num_calls -= 1


GRADER_THREADS = DaemonPool()
"""The threads of all synchronous graders."""
