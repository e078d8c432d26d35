"""Watchdog: names the code that keeps the event loop from running, and the line where it does."""

from __future__ import annotations

import asyncio
import sys
import sysconfig
import threading
import time
import traceback
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TypeVar

ResultT = TypeVar("ResultT")
LIMIT_S = 1.0
"""How long one turn of the event loop may take before it is worth a warning."""
_STANDARD_LIBRARY = (sysconfig.get_path("stdlib"), "<frozen")
_PACKAGES = ("site-packages", "dist-packages")  # which may stand within the directory of the standard library
_ADVICE = (
    "other callbacks, graders and clients wait for it; use `await asyncio.to_thread(function)` for synchronous work"
)
_MAX_THREADS = 3
_ASYNCIO = str(Path(asyncio.__file__).parent)
_LOOP = ("run", "run_until_complete", "run_forever", "_run_once", "_run")
"""Functions of asyncio: frames outside of them have started the loop, frames within them run on it."""


async def on_behalf_of(name: str, work: Callable[[], Awaitable[ResultT]]) -> ResultT:
    """What ``work`` returns. While this frame is on the stack, what runs is code of the call that has this name."""
    return await work()


@dataclass(slots=True)
class _Block:
    """A turn of the event loop that took too long, as it was seen while it did."""

    turn: float  # when it began
    seconds: float
    what: str
    where: str
    stack: traceback.StackSummary

    def __str__(self) -> str:
        return f"{self.what} for {self.seconds:.1f} s{self.where}"


class Watchdog:
    """Watches over calls that run on an event loop, from a thread of its own.

    Args:
        warn: gets a message while the loop is still blocked, in the watching thread.
    """

    def __init__(self, warn: Callable[[str], None]) -> None:
        self._warn = warn
        self._limit_s = LIMIT_S
        self._last_turn = 0.0
        self._block: _Block | None = None

    @contextmanager
    def watching(self, name: str) -> Iterator[None]:
        """Watch the running loop until this ends; then ``take_report`` has what was seen."""
        loop = asyncio.get_running_loop()
        ended = threading.Event()
        loop_thread = threading.get_ident()
        self._block = None

        def turn() -> None:
            self._last_turn = time.monotonic()
            if not ended.is_set():
                loop.call_later(self._limit_s / 4, turn)

        turn()
        watcher = threading.Thread(target=self._watch, args=(name, loop_thread, ended), name="descant-watchdog")
        watcher.daemon = True
        watcher.start()
        try:
            yield
        finally:
            ended.set()
            watcher.join()

    def take_report(self) -> tuple[str, str] | None:
        """The first block of the latest call, if there was one: in words, with its seconds in all, and the stack."""
        block, self._block = self._block, None
        return None if block is None else (str(block), "".join(block.stack.format()))

    def _watch(self, name: str, loop_thread: int, ended: threading.Event) -> None:
        is_over = False
        while not is_over:
            is_over = ended.wait(self._limit_s / 4)
            turn = self._last_turn
            blocked_s = time.monotonic() - turn
            if self._block is not None:
                if self._block.turn == turn:
                    self._block.seconds = blocked_s
            elif blocked_s > self._limit_s and not is_over:
                self._block = _look(name, loop_thread, turn, blocked_s)
                self._warn(str(self._block))


def _look(name: str, loop_thread: int, turn: float, blocked_s: float) -> _Block:
    """What a loop that stands still during a call is seen to do: only code that runs on it can be to blame."""
    frames = sys._current_frames()
    stack = traceback.extract_stack(frames.get(loop_thread))
    running = _running_on_loop(stack)
    if running and _is_call(frames.get(loop_thread), name):
        where = f", at {_place(running)}: {_ADVICE}"
        return _Block(turn, blocked_s, f"{name} has blocked the event loop", where, stack)
    if running:
        where = f" during {name}, at {_place(running)}: {_ADVICE}"
        return _Block(turn, blocked_s, "the event loop was blocked", where, stack)
    own = (loop_thread, threading.get_ident())
    others = [traceback.extract_stack(frame) for ident, frame in frames.items() if ident not in own]
    busy = [f"at {_place(other)}" for other in others if not _is_standard(other[-1])]  # the others wait
    where = (
        f" during {name}, and nothing that runs on it was seen: another thread held the interpreter (compiled code "
        "that does not release it), or the process was stopped"
    )
    where += f"; other threads are {', '.join(busy[:_MAX_THREADS])}" if busy else ""
    return _Block(turn, blocked_s, "the event loop has stood still", where, stack)


def _running_on_loop(stack: Sequence[traceback.FrameSummary]) -> Sequence[traceback.FrameSummary]:
    """The frames of what a loop runs; none while it waits for something to run."""
    of_loop = [i for i, frame in enumerate(stack) if frame.filename.startswith(_ASYNCIO) and frame.name in _LOOP]
    running = stack[max(of_loop, default=-1) + 1 :]
    return [] if all(_is_standard(frame) for frame in running) else running


def _is_call(frame: FrameType | None, name: str) -> bool:
    """Whether the code that runs is that of a call, and not of a task that something else has started."""
    while frame is not None:
        if frame.f_code is on_behalf_of.__code__ and frame.f_locals["name"] == name:
            return True
        frame = frame.f_back
    return False


def _place(stack: Sequence[traceback.FrameSummary]) -> str:
    """Where the innermost frame stands that is a user's own; without any, that of a package."""
    packages = [frame for frame in stack if not _is_standard(frame)]
    own = [frame for frame in packages if not _is_package(frame)]
    frame = (own or packages)[-1]
    return f"{frame.filename}:{frame.lineno} ({frame.line})"


def _is_standard(frame: traceback.FrameSummary) -> bool:
    return frame.filename.startswith(_STANDARD_LIBRARY) and not _is_package(frame)


def _is_package(frame: traceback.FrameSummary) -> bool:
    return any(name in frame.filename for name in _PACKAGES)
