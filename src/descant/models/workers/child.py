"""The process of a ``ChildProcess``: an engine on its worker thread, and the pipe that brings its jobs.

python -m descant.models.workers.child <descriptor of the pipe>
"""

from __future__ import annotations

import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

from descant.engine.weight_files import inherit_weight_files
from descant.errors import DescantError
from descant.models.requester import PendingJob

BEAT_S = 1.0
"""Between two signs of life."""
_NICENESS = 10  # training has the cores that both want


def main() -> None:
    """Serve until the pipe ends, which it does when the parent ends, in any way."""
    for number in (signal.SIGINT, signal.SIGTERM):  # the parent decides when this process ends
        signal.signal(number, signal.SIG_IGN)
    os.nice(_NICENESS)
    connection = Connection(int(sys.argv[1]))
    send = partial(_send, connection, threading.Lock())
    pending: dict[int, PendingJob] = {}
    threading.Thread(target=_beat, args=(send, pending, os.getppid()), daemon=True).start()
    try:
        sys.path[:], files = pickle.loads(connection.recv_bytes())
        inherit_weight_files(files)
        spec = pickle.loads(connection.recv_bytes())
        spec.apply_to_process()
        from descant.engine.hf import HFEngine  # noqa: PLC0415 - once signals and path are set
        from descant.models.workers.worker_thread import WorkerThread  # noqa: PLC0415

        worker = WorkerThread("evaluation", partial(HFEngine.from_spec, spec))
        worker.wait_until_loaded()
    except (EOFError, OSError):
        os._exit(0)
    except BaseException as error:
        send("failed", None, error)
        os._exit(1)
    send("ready", None, None)
    _serve(connection, send, pending, worker.submit)


def _beat(send: Callable[..., None], pending: dict[int, PendingJob], parent: int) -> None:
    """Say that this process runs, also while it computes, and how far its jobs are."""
    while os.getppid() == parent:  # else it has ended, and a fork of it has the other end of the pipe
        send("alive", None, {number: job.num_done for number, job in list(pending.items())})
        time.sleep(BEAT_S)
    os._exit(0)


def _serve(
    connection: Connection[Any, Any],
    send: Callable[..., None],
    pending: dict[int, PendingJob],
    submit: Callable[[Any], PendingJob],
) -> None:
    while True:
        try:
            kind, number, job = pickle.loads(connection.recv_bytes())
        except (EOFError, OSError):
            os._exit(0)  # at once: no job has a caller any more
        if kind == "run":
            pending[number] = ticket = submit(job)
            ticket.future.add_done_callback(partial(_answer, send, pending, number))
        elif kind == "cancel" and (started := pending.get(number)):  # else it has just ended
            started.cancel()


def _answer(send: Callable[..., None], pending: dict[int, PendingJob], number: int, future: Future[Any]) -> None:
    pending.pop(number, None)
    try:
        send("done", number, future.result())
    except CancelledError:
        send("raised", number, DescantError("the job was cancelled: its result is not needed any more"))
    except BaseException as error:
        send("raised", number, error)


def _send(connection: Connection[Any, Any], lock: threading.Lock, kind: str, number: int | None, value: Any) -> None:
    """Write a whole message, from any thread. An exception has its traceback, and is text if it cannot be pickled."""
    is_error = isinstance(value, BaseException)
    text = "".join(traceback.format_exception(value)).rstrip() if is_error else ""
    try:
        if is_error:
            value.add_note(text)
        message = pickle.dumps((kind, number, value))
        if is_error:
            pickle.loads(message)
    except Exception as error:
        failure = DescantError(text or f"a result cannot be sent: {error!r}")
        message = pickle.dumps((kind if is_error else "raised", number, failure))
    try:
        with lock:
            connection.send_bytes(message)
    except OSError:
        os._exit(0)


if __name__ == "__main__":
    main()
