"""Places: a limit of calls at the same time."""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Any

from descant.errors import ConfigurationError


class Places:
    """``async with places.take():`` holds one of ``max_concurrent`` places and waits for it, first come first served.

    Every event loop has its own places, so that one object serves programs that run several loops, one after another
    or in threads.

    Args:
        max_concurrent: how many; None is no limit.

    Raises:
        ConfigurationError: not a whole number of at least 1, nor None.
    """

    def __init__(self, max_concurrent: int | None) -> None:
        if max_concurrent is not None and (type(max_concurrent) is not int or max_concurrent < 1):
            raise ConfigurationError(
                f"max_concurrent={max_concurrent!r} must be a whole number of at least 1, or None for no limit"
            )
        self.max_concurrent = max_concurrent
        self._semaphores: dict[asyncio.AbstractEventLoop, asyncio.Semaphore] = {}

    def take(self) -> AbstractAsyncContextManager[Any]:
        """A place on the running event loop, given back at the end of the ``async with``."""
        if self.max_concurrent is None:
            return nullcontext()
        loop = asyncio.get_running_loop()
        if loop not in self._semaphores:
            for known in list(self._semaphores):  # a loop and its semaphore would keep each other alive
                if known.is_closed():
                    self._semaphores.pop(known, None)
            self._semaphores[loop] = asyncio.Semaphore(self.max_concurrent)
        return self._semaphores[loop]
