"""InFlight: the calls that run in parallel to training."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

from descant.runner.call import Call

_NUM_TURNS = 10  # of the event loop after a step: enough for what has arrived, without waiting
_SWITCH_INTERVAL_S = 0.0005  # how long training waits for other threads' Python, each time that torch returns
_LEAVING_S = 5.0  # what cancelled evaluations may take to end

Work = Callable[[asyncio.Task[None] | None], Coroutine[Any, Any, None]]
"""The rest of a call, given the previous call of the same callback: their results complete in order."""


class InFlight:
    """The calls that are not complete yet, each in a task of its own.

    In a user's loop, which trains without awaiting, they progress in the turns after each step.
    """

    def __init__(self) -> None:
        self._tasks: dict[Call, asyncio.Task[None]] = {}
        self._failure: BaseException | None = None

    def __len__(self) -> int:
        return len(self._tasks)

    def __iter__(self) -> Iterator[Call]:
        return iter(list(self._tasks))

    @property
    def has_failed(self) -> bool:
        """Whether ``check`` would raise; a call that has failed is not in flight any more."""
        return self._failure is not None

    def start(self, call: Call, work: Work) -> asyncio.Task[None]:
        """Let a call run in parallel to training."""
        if not self._tasks:
            _PYTHON.begin()
        same = [task for other, task in self._tasks.items() if other.callback is call.callback]
        task = asyncio.ensure_future(self._contained(work, same[-1] if same else None))
        self._tasks[call] = task
        task.add_done_callback(lambda task: self._end(call, task))
        return task

    async def turn(self) -> None:
        """Let them process what has arrived; raises as ``check`` does."""
        for _ in range(_NUM_TURNS):
            await asyncio.sleep(0)
        self.check()

    def check(self) -> None:
        """Raises what a call has failed with, if that ends the run (``strict``, or the run log cannot be written)."""
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    async def wait(self) -> None:
        """Wait for all, also for those that begin meanwhile."""
        while self._tasks:
            await asyncio.wait(self._tasks.values())
        self.check()

    async def wait_at_most(self, timeout_s: float) -> None:
        """Wait for those that there are."""
        if self._tasks and timeout_s:
            await asyncio.wait(self._tasks.values(), timeout=timeout_s)

    async def cancel(self, call: Call) -> None:
        """Give one up, and wait until it has ended."""
        if task := self._tasks.get(call):
            task.cancel()
            await asyncio.wait({task}, timeout=_LEAVING_S)

    async def cancel_all(self) -> list[Call]:
        """Give up all of them; returns which."""
        calls, tasks = list(self._tasks), list(self._tasks.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=_LEAVING_S)
        return calls

    async def _contained(self, work: Work, previous: asyncio.Task[None] | None) -> None:
        try:
            await work(previous)
        except (KeyboardInterrupt, SystemExit) as leaving:  # which would tear down the event loop
            self._failure = self._failure or leaving

    def _end(self, call: Call, task: asyncio.Task[None]) -> None:
        del self._tasks[call]
        if not self._tasks:
            _PYTHON.end()
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failure = self._failure or error


class _SwitchInterval:
    """Python's switch interval, short while any run of this process has calls in flight."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._num_busy = 0
        self._found_s = 0.0

    def begin(self) -> None:
        with self._lock:
            if not self._num_busy:
                self._found_s = sys.getswitchinterval()
                sys.setswitchinterval(min(_SWITCH_INTERVAL_S, self._found_s))
            self._num_busy += 1

    def end(self) -> None:
        with self._lock:
            self._num_busy -= 1
            if not self._num_busy:
                sys.setswitchinterval(self._found_s)


_PYTHON = _SwitchInterval()
