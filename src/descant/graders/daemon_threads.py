"""DaemonThreads: threads that a function which never returns may keep."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable


class DaemonThreads:
    """Threads that call what they are given and are used again; none holds up the end of the process.

    The thread pools of the standard library are joined when the interpreter exits, so that a judge that hangs would
    keep a finished run from ending; and the event loop's own pool is needed for other things.
    """

    def __init__(self) -> None:
        self._num_free = 0  # threads that wait, less the calls that are on their way to them
        self._lock = threading.Lock()
        self._queue: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()

    def start(self, call: Callable[[], None]) -> None:
        """Call it in a thread that is free, or else a new one."""
        with self._lock:
            if self._num_free:
                self._num_free -= 1
            else:
                threading.Thread(target=self._work, name="descant-grader", daemon=True).start()
        self._queue.put(call)

    def _work(self) -> None:
        while True:
            self._queue.get()()
            with self._lock:
                self._num_free += 1


DAEMON_THREADS = DaemonThreads()
"""Those of all graders."""
