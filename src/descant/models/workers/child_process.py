"""ChildProcess: an engine in a process of its own."""

from __future__ import annotations

import asyncio
import itertools
import os
import pickle
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from math import inf
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import descant
from descant.engine.jobs import AttachWeights, DetachWeights, Job
from descant.engine.weight_files import weight_files
from descant.errors import ConfigurationError, DescantError, WorkerDied
from descant.models.requester import PendingJob
from descant.models.workers.engine_worker import EngineWorker

ACKNOWLEDGE_S = 10.0
"""How long a cancelled job may take to stop before its process is killed."""
SILENCE_S = 120.0
"""How long a process may give no sign of life before it is killed: importing torch from a slow disk is silent too."""
_CLOSE_S = 5.0
_POLL_S = 0.5  # between two looks at whether the process is alive and cancelled jobs have stopped


@dataclass(eq=False)
class _Ticket:
    """A job that was sent to the child."""

    number: int
    messages: queue.SimpleQueue[Any]
    future: Future[Any] = field(default_factory=Future)
    deadline: float = inf  # for stopping it
    num_done: int = 0  # as the last sign of life said

    def cancel(self) -> None:
        """Have the child stop it at its next yield point."""
        if self.deadline == inf:
            self.deadline = time.monotonic() + ACKNOWLEDGE_S
            self.messages.put(("cancel", self.number, None))


class ChildProcess(EngineWorker):
    """Runs the jobs of one engine in a process that is started with ``python -m``; weights come through shared files.

    If the process dies, or gives no sign of life for ``SILENCE_S`` and is killed, its jobs fail with ``WorkerDied``,
    and the next job starts another one, with the weights that are attached. It ends with ``close``, when the last
    handle is garbage, or when this process ends, in any way.

    Raises:
        ConfigurationError: a platform without such processes, or an ``EngineSpec`` that cannot be pickled.
    """

    def __init__(self, name: str, spec: Any, files: Iterable[str]) -> None:
        super().__init__(name)
        if sys.platform == "win32":
            raise ConfigurationError("a process of its own needs Linux or macOS; use EvaluationPlacement('thread')")
        try:
            self._spec = pickle.dumps(spec)
        except Exception as error:
            raise ConfigurationError(
                f"{name!r}: its configuration or tokenizer cannot be sent to a process of its own ({error}); use "
                "callback_placement=EvaluationPlacement('thread')"
            ) from error
        self._files = weight_files(files)
        self._attached: dict[str, AttachWeights] = {}
        self._lock = threading.Lock()
        self._closed = False
        self._child = self._start()

    @property
    def pid(self) -> int:
        """Of the running process, or of the last one."""
        return self._child.process.pid

    async def ready(self) -> None:
        """Wait until the engine is loaded; raises why it is not."""
        with self._lock:
            self._revive()
        await asyncio.shield(asyncio.wrap_future(self._child.ready))

    def submit(self, job: Job[Any]) -> PendingJob:
        """Send a job to the process, or to a new one if it has died."""
        with self._lock:
            if self._closed:
                raise DescantError(f"the process that evaluates {self.name!r} was closed")
            if isinstance(job, DetachWeights):
                self._attached.pop(job.name, None)  # which needs no new process: one that has died has freed them
            else:
                self._revive()
            if isinstance(job, AttachWeights):
                self._attached[job.name] = job
            return self._child.submit(job)

    def close(self) -> None:
        """End the process; unfinished jobs fail."""
        self._closed = True
        self._child.close(_CLOSE_S)

    def kill(self) -> None:
        """End the process at once."""
        self._closed = True
        self._child.close(0.0)

    def _revive(self) -> None:
        """Start a new process if this one has died, with the same weights attached."""
        if self._child.end is not None and not self._closed:
            self._child.close(0.0)
            self._child = self._start()
            for attached in self._attached.values():
                self._child.submit(attached)

    def _start(self) -> _Child:
        child = _Child(self.name, self._spec, self._files)
        weakref.finalize(self, child.close, 0.0)
        return child


class _Child:
    """One process, a thread that writes to it and one that reads; they do not keep the ``ChildProcess`` alive."""

    def __init__(self, name: str, spec: bytes, files: Mapping[str, int]) -> None:
        self.end: Exception | None = None
        """Why it has ended."""
        self.ready: Future[None] = Future()
        self._name = name
        self._numbers = itertools.count()
        self._pending: dict[int, _Ticket] = {}
        self._lock = threading.Lock()
        self._closing = False
        self._max_silence_s = SILENCE_S
        self._failure: BaseException | None = None
        python_path = [str(Path(descant.__file__).parent.parent), os.environ.get("PYTHONPATH")]
        ours, its = socket.socketpair()
        self._connection = Connection(ours.detach())
        with its:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "descant.models.workers.child", str(its.fileno())],
                pass_fds=(its.fileno(), *files.values()),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, python_path))},
                process_group=0,  # Ctrl-C is for the parent
            )
        self._messages: queue.SimpleQueue[tuple[str, int, Any] | bytes | None] = queue.SimpleQueue()
        self._messages.put(pickle.dumps(([path or os.getcwd() for path in sys.path], files)))
        self._messages.put(spec)
        self._threads = [
            threading.Thread(target=work, name=f"descant-{name}-{what}", daemon=True)
            for what, work in (("writer", self._write), ("reader", self._read))
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, job: Job[Any]) -> _Ticket:
        ticket = _Ticket(next(self._numbers), self._messages)
        ticket.future.set_running_or_notify_cancel()
        with self._lock:
            if self.end is None:
                self._pending[ticket.number] = ticket
                self._messages.put(("run", ticket.number, job))
            else:
                ticket.future.set_exception(self.end)
        return ticket

    def close(self, timeout_s: float) -> None:
        """Ask the process to end, and kill it after ``timeout_s``."""
        self._closing = True
        self._messages.put(None)
        if timeout_s == 0:
            self.process.kill()
        try:
            self.process.wait(timeout_s or None)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()

    def _write(self) -> None:
        try:
            while (message := self._messages.get()) is not None:
                self._connection.send_bytes(message if isinstance(message, bytes) else pickle.dumps(message))
        except OSError:
            return  # the process has died, which the reader notices
        except Exception as error:  # a job that cannot be pickled: its caller must not wait forever
            self._failure = error
            self.process.kill()
            return
        with suppress(OSError), socket.socket(fileno=os.dup(self._connection.fileno())) as pipe:
            pipe.shutdown(socket.SHUT_WR)  # which ends the process

    def _read(self) -> None:
        problem, silent_s = None, 0.0  # in looks, and not by the clock: this process may have been stopped, too
        try:
            while problem is None:
                if self._connection.poll(_POLL_S):
                    self._take(*pickle.loads(self._connection.recv_bytes()))
                    silent_s = 0.0
                else:
                    silent_s += _POLL_S
                    problem = self._problem(silent_s)
            self._failure = WorkerDied(
                f"the process {self.process.pid} that evaluates {self._name!r} {problem}, and was killed; the next "
                "evaluation starts another"
            )
            self.process.kill()
        except (EOFError, OSError):
            pass
        except Exception as error:  # an answer that cannot be read: its caller must not wait forever
            self._failure = error
            self.process.kill()
        self.process.wait()
        with self._lock:
            self.end = end = self._describe_end()
            pending, self._pending = self._pending, {}
        self._messages.put(None)
        if not self.ready.done():
            self.ready.set_exception(end)
        for ticket in pending.values():
            ticket.future.set_exception(end)
        self._connection.close()

    def _problem(self, silent_s: float) -> str | None:
        """Why the process has to be killed, if it has."""
        if silent_s > self._max_silence_s:
            return f"gave no sign of life for {silent_s:g} s (it was stopped, perhaps)"
        if any(time.monotonic() > ticket.deadline for ticket in list(self._pending.values())):
            return f"did not stop its job within {ACKNOWLEDGE_S:g} s of being asked to"
        return None

    def _take(self, kind: str, number: Any, value: Any) -> None:
        if kind == "failed":
            self._failure = value
        elif kind == "ready":
            self.ready.set_result(None)
        elif kind == "alive":
            for running, num_done in value.items():
                if ticket := self._pending.get(running):
                    ticket.num_done = num_done
        else:
            with self._lock:
                future = self._pending.pop(number).future
            (future.set_result if kind == "done" else future.set_exception)(value)

    def _describe_end(self) -> Exception:
        if self._closing:
            return DescantError(f"the process that evaluates {self._name!r} was closed")
        if isinstance(self._failure, Exception):
            return self._failure
        code = self.process.returncode
        how = f"ended with exit code {code}"
        if code is not None and code < 0:
            how = f"was killed by {signal.Signals(-code).name}"
            how += " (out of memory, perhaps)" if -code == signal.SIGKILL else ""
        return WorkerDied(
            f"the process {self.process.pid} that evaluates {self._name!r} {how}; the next evaluation starts another"
        )
