"""DaemonPool: threads for user's synchronous functions, which may never return."""

from __future__ import annotations

import asyncio
import contextvars
import queue
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from descant.graders.places import Places


class DaemonPool:
    """Runs functions in threads that neither hold up other work nor the end of the process.

    The thread pools of the standard library are joined when the interpreter exits, so that a judge that hangs would
    keep a finished run from ending; and the event loop's own pool is needed for other things.

    A function cannot be stopped from outside. A call whose caller is cancelled is abandoned: it keeps its thread
    until the function returns, but not its place, so that functions that hang do not block those that come later.

    Args:
        max_concurrent: calls at the same time on one event loop, abandoned ones not counted; others wait for their
            turn. None is no limit, for callers that have their own.
    """

    def __init__(self, max_concurrent: int | None = 32) -> None:
        self._places = Places(max_concurrent)
        self._num_free = 0  # threads that wait, less the calls that are on their way to them
        self._lock = threading.Lock()
        self._queue: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()

    async def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """The result of ``function(*arguments)``, called in a thread with this task's context variables.

        Raises whatever the function raises. An exception that would end more than the call (``SystemExit``,
        ``KeyboardInterrupt``, cancellation) becomes a ``RuntimeError``.
        """
        async with self._places.take():
            result, error = await self._start(function, arguments)
        if isinstance(error, Exception) and not isinstance(error, StopIteration):
            raise error
        if error is not None:
            raise RuntimeError(f"{type(error).__name__}: {error}") from error
        return result

    def _start(
        self, function: Callable[..., Any], arguments: tuple[Any, ...]
    ) -> asyncio.Future[tuple[Any, BaseException | None]]:
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
            with suppress(RuntimeError):  # the loop is closed: nobody waits
                loop.call_soon_threadsafe(settle, result, error)

        with self._lock:
            if self._num_free:
                self._num_free -= 1
            else:
                threading.Thread(target=self._work, name="descant-grader", daemon=True).start()
        self._queue.put(call)
        return outcome

    def _work(self) -> None:
        while True:
            self._queue.get()()
            with self._lock:
                self._num_free += 1


GRADER_THREADS = DaemonPool()
"""The threads of the graders that compute in a thread."""
