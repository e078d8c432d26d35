"""DaemonCalls: calls of synchronous functions, which may never return, in daemon threads."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from descant.errors import GradingError


class DaemonCalls:
    """Calls each function in a daemon thread of its own, and bounds how many calls hang.

    A function cannot be stopped from outside. A call whose caller is cancelled is abandoned: it keeps its thread until
    the function returns. The thread pools of the standard library are joined when the interpreter exits, so that a
    judge that hangs would keep a finished run from ending; daemon threads are not. While more than ``max_abandoned``
    calls hang, others raise a ``GradingError``.
    """

    def __init__(self, owner: str, max_abandoned: int | None = None) -> None:
        self.owner = owner
        self.max_abandoned = max_abandoned
        self._abandoned: set[threading.Thread] = set()

    async def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """The result of ``function(*arguments)``, called in a thread with this task's context variables.

        Raises what the function raises. An exception that would end more than the call (``SystemExit``,
        ``KeyboardInterrupt``, cancellation) becomes a ``RuntimeError``.
        """
        self._abandoned -= {thread for thread in [*self._abandoned] if not thread.is_alive()}
        if self.max_abandoned is not None and len(self._abandoned) > self.max_abandoned:
            raise GradingError(
                f"{self.owner} has {len(self._abandoned)} calls that were abandoned, for example after a timeout, "
                f"and have not returned; above {self.max_abandoned} (max_concurrent) no other is started. A function "
                "that is not async cannot be stopped from outside: give its client a timeout shorter than timeout_s"
            )
        future: Future[Any] = Future()
        context = contextvars.copy_context()

        def call() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(context.run(function, *arguments))
            except BaseException as error:
                if not isinstance(error, Exception) or isinstance(error, StopIteration):
                    wrapped = RuntimeError(f"{type(error).__name__}: {error}")
                    wrapped.__cause__ = error
                    error = wrapped
                future.set_exception(error)

        thread = threading.Thread(target=call, name="descant-grader", daemon=True)
        thread.start()
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            self._abandoned.add(thread)
            raise
