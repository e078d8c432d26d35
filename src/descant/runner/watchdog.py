"""Watchdog: names the callback that keeps the event loop from running, and the line where it does."""

from __future__ import annotations

import asyncio
import selectors
import sys
import sysconfig
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

LIMIT_S = 1.0
"""How long one turn of the event loop may take before it is worth a warning."""
_LIBRARIES = (sysconfig.get_path("stdlib"), sysconfig.get_path("purelib"), "<frozen")


class Watchdog:
    """Watches over calls that run on an event loop, from a thread of its own.

    Args:
        warn: gets a message while the loop is still blocked, in the watching thread.
    """

    def __init__(self, warn: Callable[[str], None]) -> None:
        self._warn = warn
        self._limit_s = LIMIT_S
        self._last_turn = 0.0
        self._report: str | None = None

    @contextmanager
    def watching(self, name: str) -> Iterator[None]:
        """Watch the running loop until this ends; then ``take_report`` has what was seen."""
        loop = asyncio.get_running_loop()
        ended = threading.Event()
        loop_thread = threading.get_ident()
        self._report = None

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

    def take_report(self) -> str | None:
        """What was seen in the latest call, if it was something: a line to read, and the stack of the loop."""
        report, self._report = self._report, None
        return report

    def _watch(self, name: str, loop_thread: int, ended: threading.Event) -> None:
        while not ended.wait(self._limit_s / 4):
            blocked_s = time.monotonic() - self._last_turn
            if self._report is None and blocked_s > self._limit_s:
                frame = sys._current_frames().get(loop_thread)
                stack = traceback.extract_stack(frame)
                message = (
                    f"{name} has blocked the event loop for {blocked_s:.1f} s{_place(stack)}: other callbacks, "
                    "graders and clients wait for it; use `await asyncio.to_thread(function)` for synchronous work"
                )
                if stack[-1].filename == selectors.__file__:  # it waits for its turn to run Python
                    message = (
                        f"the event loop has stood still for {blocked_s:.1f} s during {name}: another thread holds the "
                        "interpreter, in compiled code that does not release it"
                    )
                self._report = "\n".join([message, *traceback.format_list(stack)])
                self._warn(message)


def _place(stack: traceback.StackSummary) -> str:
    """Where the innermost frame stands that is neither the standard library's nor an installed package's."""
    own = [frame for frame in stack if not frame.filename.startswith(_LIBRARIES)]
    return f", at {own[-1].filename}:{own[-1].lineno} ({own[-1].line})" if own else ""
