"""RunLog: everything that a run measured, in one SQLite file, written by its own thread."""

from __future__ import annotations

import asyncio
import json
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Mapping
from math import isfinite, isnan
from pathlib import Path
from typing import Any, NamedTuple

from descant.errors import RunLogError
from descant.metrics import clean_text
from descant.table import Table

SCHEMA = """
CREATE TABLE config (key TEXT PRIMARY KEY, value TEXT NOT NULL);  -- value: JSON
CREATE TABLE metrics (  -- a number, or a text, or NaN where both are NULL
    step INTEGER NOT NULL, key TEXT NOT NULL, number REAL, text TEXT, PRIMARY KEY (step, key)
) WITHOUT ROWID;
CREATE TABLE samples (  -- one row of a table that a callback returned; cells: a JSON object by column
    callback TEXT NOT NULL, step INTEGER NOT NULL, key TEXT NOT NULL, example_id TEXT NOT NULL,
    position INTEGER NOT NULL, cells TEXT NOT NULL, PRIMARY KEY (callback, step, key, example_id, position)
) WITHOUT ROWID;
CREATE TABLE events (
    id INTEGER PRIMARY KEY, time REAL NOT NULL, step INTEGER NOT NULL, kind TEXT NOT NULL, source TEXT NOT NULL,
    message TEXT NOT NULL, details TEXT
);
"""
_MAX_QUEUED = 100_000
_Statement = tuple[str, tuple[Any, ...]]


class _Mark(NamedTuple):
    """A point in the queue: the writer says when everything before it is on disk."""

    reached: Callable[[], object]
    closing: bool


class RunLog:
    """Writes ``run.sqlite`` in the run directory. Readers may open the file while the run goes on.

    The calls return at once; a thread writes, many rows to a transaction. When it cannot (disk full), the next call
    raises. Every row carries the step that it describes.

    Raises:
        RunLogError: the directory cannot be made or written, or already holds a run.
    """

    def __init__(self, run_dir: Path) -> None:
        self.path = run_dir / "run.sqlite"
        try:
            run_dir.mkdir(parents=True, exist_ok=True)
            if self.path.exists():
                raise RunLogError(f"{run_dir} already holds a run; choose another run_dir")
            connection = sqlite3.connect(self.path, check_same_thread=False)
            connection.execute("PRAGMA journal_mode = WAL")  # answers with another mode where WAL cannot work
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.executescript(SCHEMA)
        except (OSError, sqlite3.Error) as error:
            raise RunLogError(f"cannot write the run log {self.path}: {error}") from error
        self._queue: queue.Queue[_Statement | _Mark] = queue.Queue(_MAX_QUEUED)
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._write, args=(connection,), name="descant-run-log", daemon=True)
        self._thread.start()

    async def log_config(self, config: Mapping[str, Any]) -> None:
        """Record settings; a value that JSON cannot hold is recorded as its ``repr``."""
        for key, value in config.items():
            await self._put("INSERT OR REPLACE INTO config VALUES (?, ?)", key, json.dumps(value, default=repr))

    async def log_metrics(self, step: int, metrics: Mapping[str, float | str]) -> None:
        """Record numbers and strings at a step; the same key at the same step is replaced."""
        for key, value in metrics.items():
            number = None if isinstance(value, str) or isnan(value) else value
            text = value if isinstance(value, str) else None
            await self._put("INSERT OR REPLACE INTO metrics VALUES (?, ?, ?, ?)", step, key, number, text)

    async def log_samples(self, callback: str, step: int, key: str, table: Table) -> None:
        """Record the rows of a table, identified by their column ``example_id`` or else by their position.

        Cells are plain values (see ``metrics.as_metric``); JSON has no NaN or infinity, they are null.
        """
        for position, cells in enumerate(table.as_dicts()):
            example_id = str(cells.get("example_id", position))
            for name, cell in cells.items():
                cells[name] = None if isinstance(cell, float) and not isfinite(cell) else cell
            row = (callback, step, key, example_id, position, json.dumps(cells, ensure_ascii=False))
            await self._put("INSERT OR REPLACE INTO samples VALUES (?, ?, ?, ?, ?, ?)", *row)

    async def log_event(self, step: int, kind: str, source: str, message: str, details: str | None = None) -> None:
        """Record that something happened: a failure with its traceback, a warning, a decision."""
        columns = "(time, step, kind, source, message, details)"
        row = (time.time(), step, kind, source, clean_text(message), None if details is None else clean_text(details))
        await self._put(f"INSERT INTO events {columns} VALUES (?, ?, ?, ?, ?, ?)", *row)

    async def flush(self) -> None:
        """Wait until everything recorded so far is on disk.

        Raises:
            RunLogError: it cannot be written.
        """
        await self._reach(closing=False)

    async def close(self) -> None:
        """Write what is left and close the file.

        Raises:
            RunLogError: it cannot be written.
        """
        await self._reach(closing=True)
        self._thread.join()  # it has nothing left to do

    async def _reach(self, *, closing: bool) -> None:
        """Wait until the writer has reached this point of the queue, without a thread of the loop's pool: callbacks
        and graders may have filled it with work that never ends."""
        loop, reached = asyncio.get_running_loop(), asyncio.Event()
        await self._enqueue(_Mark(lambda: loop.call_soon_threadsafe(reached.set), closing))
        await reached.wait()
        self._check()

    async def _put(self, sql: str, *row: Any) -> None:
        self._check()
        await self._enqueue((sql, row))

    async def _enqueue(self, item: _Statement | _Mark) -> None:
        while True:
            try:
                return self._queue.put_nowait(item)
            except queue.Full:  # the disk is slower than the run: wait for it without blocking the loop
                await asyncio.sleep(0.01)

    def _check(self) -> None:
        if self._failure is not None:
            raise RunLogError(f"the run log {self.path} cannot be written: {self._failure}") from self._failure

    def _write(self, connection: sqlite3.Connection) -> None:
        """The writer thread: everything that is queued goes into one transaction."""
        closing = False
        while not closing:
            items = [self._queue.get()]
            while not self._queue.empty():
                items.append(self._queue.get())
            if self._failure is None:
                try:
                    with connection:
                        for item in items:
                            if not isinstance(item, _Mark):
                                connection.execute(*item)
                except Exception as error:
                    self._failure = error
            marks = [item for item in items if isinstance(item, _Mark)]
            closing = any(mark.closing for mark in marks)
            if closing:
                connection.close()
            for mark in marks:
                mark.reached()
