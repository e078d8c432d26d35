"""Interrupts: Ctrl-C and SIGTERM end a run in order; the second time at once."""

from __future__ import annotations

import os
import signal
import sys
import threading
from contextlib import suppress
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """While entered, the first signal is only noted; the second does what Ctrl-C did before (and is the last noted).

    Signals are a matter of the main thread: elsewhere this does nothing.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        """The first signal."""
        self._previous: dict[signal.Signals, Any] = {}
        self._left: dict[signal.Signals, Any] = {}

    def __enter__(self) -> None:
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                if signal.getsignal(number) not in (None, signal.SIG_IGN):  # set by C, or ignored on purpose (nohup)
                    self._previous[number] = signal.signal(number, self._note)

    def __exit__(self, *_: object) -> None:
        previous, self._previous = self._previous, {}
        for number, handler in previous.items():
            if signal.getsignal(number) == self._note:  # else another run has put its own on top of it
                signal.signal(number, handler)
        self._left = previous

    def raise_received(self) -> None:
        """End the program as the signal would have: ``KeyboardInterrupt``, or ``SystemExit`` with 128 + its number."""
        if self.received == signal.SIGINT:
            raise KeyboardInterrupt
        if self.received is not None:
            raise SystemExit(128 + self.received)

    def _note(self, number: int, frame: FrameType | None) -> None:
        is_first = self._previous and self.received is None
        if is_first:
            self.received = signal.Signals(number)
            _say(
                f"{self.received.name}: the run ends after this step, with the final calls of its callbacks; once more "
                "to leave at once"
            )
            return
        handlers = self._previous or self._left
        interrupt = handlers[signal.SIGINT] if self._previous else handlers[signal.Signals(number)]
        self.__exit__()
        if callable(interrupt):
            interrupt(number, frame)
        else:
            os.kill(os.getpid(), number)  # the handler is the system's again


def _say(message: str) -> None:
    """Print from a signal handler, which may have interrupted a print."""
    with suppress(OSError, ValueError):
        os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, f"\n! {message}\n".encode())
