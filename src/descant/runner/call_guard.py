"""CallGuard: runs a user's coroutine so that nothing it does changes training."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

from descant.errors import CallbackError
from descant.models.requester import Requester, requester_scope
from descant.process_state import preserved_process_state, with_own_modes
from descant.runner.interrupts import Terminated
from descant.runner.watchdog import Watchdog, on_behalf_of

_NUM_TURNS = 50  # of the event loop, for what takes a few of them after its time is up
GRACE_S = 1.0
"""How long a call that is cancelled may take to clean up."""


class CallGuard:
    """Runs calls. After one, random generators and torch's settings are what they were, and nothing that it has left
    behind uses a model.

    Args:
        warn: told at once, from another thread, when a call blocks the event loop.
    """

    def __init__(self, warn: Callable[[str], None]) -> None:
        self.watchdog = Watchdog(warn)
        self.lingering: dict[asyncio.Task[Any], str] = {}
        """Calls that are still running although they were cancelled, and the callback of each."""

    async def run(
        self,
        work: Callable[[], Awaitable[Any]],
        requester: Requester,
        timeout_s: float | None,
        *,
        is_detached: bool = False,
    ) -> Any:
        """What ``work`` returns; what it asks of models, it asks as ``requester``.

        Calls that training waits for run one at a time. Detached ones run in parallel; what turns the event loop for
        them preserves the process's state.

        Raises:
            TimeoutError: it took longer than ``timeout_s``; it was cancelled, and may not use models any more.
            CallbackError: it was cancelled, and not from outside; or it has raised what is no ``Exception``, such as
                ``SystemExit`` or a panic of Rust code.
            KeyboardInterrupt, Terminated: a signal has arrived meanwhile.
            Exception: what ``work`` raises.
        """
        reason = "has returned"
        with nullcontext() if is_detached else self._watching(requester.name), requester_scope(requester):
            named = partial(on_behalf_of, requester.name, work)
            task = asyncio.ensure_future(_contained(named))  # has a copy of the context: the requester is in it
            try:
                await asyncio.wait({task}, timeout=timeout_s)
                for _ in range(_NUM_TURNS if is_detached else 0):  # for what arrived while the loop stood still
                    if task.done():
                        break
                    await asyncio.sleep(0)
                if not task.done():
                    reason = f"was cancelled after its timeout_s={timeout_s:g}"
                    raise TimeoutError(f"it took longer than timeout_s={timeout_s:g} and was cancelled")
                if task.cancelled():
                    raise CallbackError("it was cancelled from within: something that it awaited was")
                value, leaving = task.result()
                if leaving is not None:
                    raise as_failure(leaving)
                return value
            except asyncio.CancelledError:
                reason = "was cancelled"
                raise
            finally:
                requester.refuse(reason)  # at once: a second cancellation may come before the rest is done
                if not task.done():
                    await self._abandon(task, requester.name)
                await requester.settle()

    @contextmanager
    def _watching(self, name: str) -> Iterator[None]:
        with preserved_process_state(), self.watchdog.watching(name):
            yield

    async def _abandon(self, task: asyncio.Task[Any], name: str) -> None:
        task.cancel()
        self.lingering[task] = name
        task.add_done_callback(self._forget)
        await asyncio.wait({task}, timeout=GRACE_S)

    def _forget(self, task: asyncio.Task[Any]) -> None:
        _ = task.cancelled() or task.exception()  # it was asked to end: how it did is of no interest
        del self.lingering[task]


def as_failure(error: BaseException) -> Exception:
    """What a user's code has raised, as a failure of that code; a signal that has arrived meanwhile is raised."""
    if isinstance(error, KeyboardInterrupt | Terminated):
        raise error
    if isinstance(error, Exception):
        return error
    failure = CallbackError(f"it raised {type(error).__name__} ({error}), which does not end a run")
    failure.__cause__ = error
    return failure


async def _contained(work: Callable[[], Awaitable[Any]]) -> tuple[Any, BaseException | None]:
    """What ``work`` returns, or what it raises that is no ``Exception``: a task that raised it would tear down the
    loop, or be taken for the end of the run."""
    try:
        return await with_own_modes(work()), None
    except (Exception, asyncio.CancelledError):
        raise
    except BaseException as leaving:
        return None, leaving
