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


class Terminated(SystemExit):
    """The second SIGTERM, as an exception: no program has called ``sys.exit``."""


class Interrupts:
    """While entered, the first signal is only noted; the second is raised where the main thread is.

    All runs of the process that are open hear of a signal. The handlers are there as long as a run of the main thread
    is open, whatever the order in which runs end; a signal that is ignored on purpose (``nohup``) stays ignored.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        """The first signal."""

    def __enter__(self) -> None:
        _RUNS.open(self)

    def __exit__(self, *_: object) -> None:
        _RUNS.close(self)

    def raise_received(self) -> None:
        """End the program as the signal would have: ``KeyboardInterrupt``, or ``SystemExit`` with 128 + its number.

        Not while other runs are still ending in order, and not in another than the main thread.
        """
        if self.received is not None and _is_main_thread() and not _RUNS.are_open():
            raise _as_exception(self.received)


class _OpenRuns:
    """The runs of the process that listen to signals."""

    def __init__(self) -> None:
        self._of_thread: dict[Interrupts, bool] = {}  # whether the run was entered in the main thread
        self._previous: dict[signal.Signals, Any] = {}
        self._forking = threading.local()

    def open(self, run: Interrupts) -> None:
        self._of_thread[run] = _is_main_thread()
        if self._of_thread[run] and not self._previous:
            for number in _SIGNALS:
                if signal.getsignal(number) not in (None, signal.SIG_IGN):  # None: set by C
                    self._previous[number] = signal.signal(number, self._hear)

    def close(self, run: Interrupts) -> None:
        if self._of_thread.pop(run, False) and not any(self._of_thread.values()):
            self._restore()

    def are_open(self) -> bool:
        return bool(self._of_thread)

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            if signal.getsignal(number) == self._hear:
                signal.signal(number, handler)
        self._previous = {}

    def _hear(self, number: int, frame: FrameType | None) -> None:
        received = signal.Signals(number)
        if all(run.received for run in self._of_thread):
            self._restore()
            raise _as_exception(received)
        for run in self._of_thread:
            run.received = run.received or received
        _say(
            f"{received.name}: the run ends after this step, with the final calls of its callbacks; once more to leave "
            "at once"
        )

    def before_fork(self) -> None:
        """Hold signals back: one that arrives while the child still has the handlers of this process would be lost."""
        self._forking.mask = signal.pthread_sigmask(signal.SIG_BLOCK, self._previous)

    def after_fork(self) -> None:
        """Let them through."""
        signal.pthread_sigmask(signal.SIG_SETMASK, self._forking.mask)

    def forget(self) -> None:
        """In a forked child, which no run is in, signals do what they did before there was one."""
        self._of_thread = {}
        self._restore()
        self.after_fork()


_RUNS = _OpenRuns()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_RUNS.before_fork, after_in_parent=_RUNS.after_fork, after_in_child=_RUNS.forget)


def _is_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _as_exception(received: signal.Signals) -> BaseException:
    return KeyboardInterrupt() if received == signal.SIGINT else Terminated(128 + received)


def _say(message: str) -> None:
    """Print from a signal handler, which may have interrupted a print."""
    with suppress(OSError, ValueError):
        os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, f"\n! {message}\n".encode())
