"""off_loop: work of descant's own, in threads of its own.

The event loop's default threads belong to its users: calls of theirs that hang fill them for good, and so does a slow
resolution of host names for its time.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import TypeVar

from descant.models.requester import current_requester

ResultT = TypeVar("ResultT")
_threads: dict[bool, ThreadPoolExecutor] = {}  # of training, and of callbacks


async def off_loop(function: Callable[..., ResultT], *arguments: object) -> ResultT:
    """``function(*arguments)``, whose time does not depend on users: rendering, arithmetic, closing.

    What is asked on behalf of a callback never makes training wait for a thread.
    """
    requester = current_requester()
    threads = _threads[requester is not None and requester.observer]
    return await asyncio.get_running_loop().run_in_executor(threads, copy_context().run, function, *arguments)


def _make_threads() -> None:
    _threads[False], _threads[True] = (ThreadPoolExecutor(4, f"off-loop-{who}") for who in ("training", "callbacks"))


_make_threads()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_make_threads)  # which has none of its parent's threads
