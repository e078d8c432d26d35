"""ConcurrencyLimit: how many calls may be in flight at once."""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Any

from descant.arguments import check_whole_number


class ConcurrencyLimit:
    """``async with limit.hold():`` waits until fewer than ``max_concurrent`` calls are in flight, in order.

    The limit is that of one event loop: one object serves programs that run several, one after another or in threads.
    """

    def __init__(self, max_concurrent: int | None) -> None:
        check_whole_number("max_concurrent", max_concurrent, or_none=True)
        self.max_concurrent = max_concurrent
        self._semaphores: dict[asyncio.AbstractEventLoop, asyncio.Semaphore] = {}

    def hold(self) -> AbstractAsyncContextManager[Any]:
        """One of the calls that may be in flight, until the end of the ``async with``."""
        if self.max_concurrent is None:
            return nullcontext()
        for loop in [*self._semaphores]:  # a closed loop and its semaphore would keep each other alive
            if loop.is_closed():
                self._semaphores.pop(loop, None)
        return self._semaphores.setdefault(asyncio.get_running_loop(), asyncio.Semaphore(self.max_concurrent))
