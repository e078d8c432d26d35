"""DaemonPool: threads for user's synchronous functions, which may never return."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from descant.errors import GradingError
from descant.graders.concurrency_limit import Places
from descant.graders.daemon_threads import DAEMON_THREADS

Outcome = tuple[Any, BaseException | None]  # as a value: a future cannot hold a StopIteration


class DaemonPool:
    """Runs functions in daemon threads, with a limit on those that run and on those that hang.

    A function cannot be stopped from outside. A call whose caller is cancelled is abandoned: it keeps its thread
    until the function returns, but not its place, so that functions that hang do not block those that come later.
    While more than ``max_abandoned`` calls hang so, others fail: threads do not grow without end.

    Args:
        owner: whose calls they are, for messages.
        max_concurrent: calls at the same time on one event loop, abandoned ones not counted; others wait for their
            turn. None is no limit, for callers that have their own.
        max_abandoned: abandoned calls that may hang while others start; None is no limit.
    """

    def __init__(self, owner: str, max_concurrent: int | None = 32, max_abandoned: int | None = 32) -> None:
        self.owner = owner
        self.max_abandoned = max_abandoned
        self._places = Places(max_concurrent)
        self._running: set[asyncio.Future[Outcome]] = set()  # of calls whose function has not returned
        self._lock = threading.Lock()

    async def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """The result of ``function(*arguments)``, called in a thread with this task's context variables.

        Raises whatever the function raises. An exception that would end more than the call (``SystemExit``,
        ``KeyboardInterrupt``, cancellation) becomes a ``RuntimeError``.

        Raises:
            GradingError: too many abandoned calls hang.
        """
        async with self._places.take():
            result, error = await self._start(function, arguments)
        if isinstance(error, Exception) and not isinstance(error, StopIteration):
            raise error
        if error is not None:
            raise RuntimeError(f"{type(error).__name__}: {error}") from error
        return result

    def _start(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> asyncio.Future[Outcome]:
        loop = asyncio.get_running_loop()
        outcome: asyncio.Future[Outcome] = loop.create_future()
        context = contextvars.copy_context()

        def settle(result: Any, error: BaseException | None) -> None:
            if not outcome.done():
                outcome.set_result((result, error))

        def call() -> None:
            result, error = None, None
            try:
                result = context.run(function, *arguments)
            except BaseException as raised:
                error = raised
            with self._lock:
                self._running.discard(outcome)
            with suppress(RuntimeError):  # the loop is closed: nobody waits
                loop.call_soon_threadsafe(settle, result, error)

        with self._lock:
            self._check_abandoned()
            self._running.add(outcome)
        DAEMON_THREADS.start(call)
        return outcome

    def _check_abandoned(self) -> None:
        if self.max_abandoned is None or len(self._running) <= self.max_abandoned:
            return
        num_abandoned = sum(outcome.cancelled() for outcome in self._running)
        if num_abandoned > self.max_abandoned:
            raise GradingError(
                f"{self.owner} has {num_abandoned} calls that were abandoned, after a timeout say, and have not "
                f"returned; above {self.max_abandoned} (max_concurrent) no other is started. A function that is not "
                "async cannot be stopped from outside: give its client a timeout of its own, shorter than timeout_s"
            )


GRADER_THREADS = DaemonPool("the pool of the graders that match patterns and schemas")
"""The threads of the graders that compute in a thread."""
