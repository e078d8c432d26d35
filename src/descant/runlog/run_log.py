"""RunLog: everything that a run measured, in one SQLite file, written by its own thread.

Nothing is written twice: ``points`` has every value that was recorded, and is only appended to. Its primary key puts
the values of a step and key next to each other, in the order of arrival, so the latest of them, which the view
``metrics`` gives, is a matter of the index, and a step that is computed once more (by a run that is resumed) can be
compared with what was recorded before. ``record`` is the number of the call that recorded a value: ``records`` has its
time, and a tracker's offset (``sinks``) is the number of the last record that it was given. Keys are numbers in
``points``, which makes it half as large. A value is a ``number``, or a ``text``, or NaN where both are NULL.

Rows of tables that callbacks return are in ``samples``; there, a table that is recorded again at its step replaces the
earlier one. ``tables`` has their columns, also when there are no rows, and the record that they belong to.

``PRAGMA user_version`` is the version of this schema; readers refuse others.
"""

from __future__ import annotations

import asyncio
import json
import queue
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from descant.errors import RunLogError
from descant.metrics import Metric, clean_text
from descant.provenance import masked, masked_text, plain_config
from descant.runlog.journal import encode_cells
from descant.runlog.parts import PARTS_SCHEMA, save_parts
from descant.table import Table
from descant.text import duration

FORMAT = 1
"""The version of the schema."""
SCHEMA = f"""
BEGIN;
CREATE TABLE config (key TEXT PRIMARY KEY, value TEXT NOT NULL);  -- value: JSON
CREATE TABLE records (  -- one call that recorded something, numbered in the order of arrival
    id INTEGER PRIMARY KEY, time REAL NOT NULL, step INTEGER NOT NULL
);
CREATE TABLE keys (id INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE);
CREATE TABLE points (  -- a number (no type: integers stay integers), or a text, or NaN where both are NULL
    step INTEGER NOT NULL, key_id INTEGER NOT NULL, record INTEGER NOT NULL, number, text TEXT,
    PRIMARY KEY (step, key_id, record)
) WITHOUT ROWID;
CREATE VIEW metrics AS  -- the latest value by step and key
    SELECT step, key, number, text FROM points JOIN keys ON keys.id = key_id WHERE NOT EXISTS (
        SELECT 1 FROM points AS later
        WHERE later.step = points.step AND later.key_id = points.key_id AND later.record > points.record
    );
CREATE TABLE samples (  -- one row of a table that a callback returned; cells: a JSON object by column
    callback TEXT NOT NULL, step INTEGER NOT NULL, key TEXT NOT NULL, example_id TEXT NOT NULL,
    position INTEGER NOT NULL, cells TEXT NOT NULL, PRIMARY KEY (callback, step, key, example_id, position)
) WITHOUT ROWID;
CREATE TABLE tables (  -- the record that a table in samples belongs to; columns: a JSON list
    callback TEXT NOT NULL, step INTEGER NOT NULL, key TEXT NOT NULL, record INTEGER NOT NULL, columns TEXT NOT NULL,
    PRIMARY KEY (callback, step, key)
) WITHOUT ROWID;
CREATE INDEX tables_by_record ON tables (record);
CREATE TABLE events (
    id INTEGER PRIMARY KEY, time REAL NOT NULL, step INTEGER NOT NULL, kind TEXT NOT NULL, source TEXT NOT NULL,
    message TEXT NOT NULL, details TEXT
);
CREATE TABLE sinks (  -- of each tracker the last record that it was given, and as which run it has this one
    name TEXT PRIMARY KEY, offset INTEGER NOT NULL, run_id TEXT NOT NULL, suffix TEXT NOT NULL
);
{PARTS_SCHEMA}
PRAGMA user_version = {FORMAT};
COMMIT;
"""
SAVE_SINK = "INSERT OR REPLACE INTO sinks VALUES (?, ?, ?, ?)"
_INSERT_EVENT = "INSERT INTO events (time, step, kind, source, message, details) VALUES (?, ?, ?, ?, ?, ?)"
_MAX_QUEUED = 10_000
_MAX_HELD_BYTES = 256 * 2**20  # of rows that cannot be written
_ROW_BYTES = 200  # of a row in memory, but for its texts
_RETRY_S = 1.0
_CLOSING_S = 30.0  # how long the end of a run waits for what may pass
_LOCKED_S = 1.0  # how long SQLite itself waits for another process that writes
_PASSING = frozenset(
    (
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_IOERR,  # also a quota, or a network file system that is away
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_PROTOCOL,
        sqlite3.SQLITE_READONLY,  # also a disk that was mounted again after an error
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_NOMEM,
    )
)
"""Reasons why nothing can be written that may pass; others (a damaged file) do not."""
_Row = tuple[Any, ...]
_Statement = tuple[str, _Row]


class _Unwritten(NamedTuple):
    """A record on its way to the writer."""

    time_s: float
    step: int
    source: str
    metrics: dict[str, float | str]
    tables: dict[str, Table]


class _Mark(NamedTuple):
    """A mark in the queue: the writer says when everything before it is on disk."""

    reached: Callable[[], object]
    closing: bool


class _Batch(NamedTuple):
    """Rows that are written in one transaction."""

    statements: dict[str, list[_Row]]
    last_record: int

    @property
    def num_bytes(self) -> int:
        """About as much memory as the rows take."""
        rows = (row for of_statement in self.statements.values() for row in of_statement)
        return sum(_ROW_BYTES + sum(len(value) for value in row if isinstance(value, str)) for row in rows)


class RunLog:
    """Writes ``run.sqlite`` in the run directory; readers may open the file meanwhile.

    The calls return at once; a thread encodes and writes, many rows per transaction. While it cannot (the disk is full,
    another process has locked the file), it holds the rows, up to 256 MB, and tries again every second; neither
    training nor the event loop waits, but for at most 30 s in ``close``. When it can again, everything is written, and
    an event says for how long it was held. Once it holds more, or if the reason is none that may pass, the next call
    raises.

    Args:
        run_dir: the run directory, which is made.
        say: takes a line for people, on the writer thread, when writing begins to fail and when it works again.

    Raises:
        RunLogError: the directory cannot be made or written, or already holds a run.
    """

    def __init__(self, run_dir: Path, say: Callable[[str], object] = lambda line: None) -> None:
        self.path = run_dir / "run.sqlite"
        try:
            run_dir.mkdir(parents=True, exist_ok=True)
            self.path.touch(exist_ok=False)  # of two runs that begin at once, one has it
        except FileExistsError as error:
            what = "already holds a run" if run_dir.is_dir() else "is a file"
            raise RunLogError(f"cannot write the run log: {run_dir} {what}; choose another run_dir") from error
        except (OSError, ValueError) as error:  # a name that the file system's encoding does not have, say
            raise RunLogError(f"cannot write the run log {self.path}: {error}") from error
        try:
            connection = sqlite3.connect(self.path, timeout=_LOCKED_S, check_same_thread=False)
            connection.execute("PRAGMA journal_mode = WAL")  # answers with another mode where WAL cannot work
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.executescript(SCHEMA)
        except sqlite3.Error as error:
            self.path.unlink(missing_ok=True)
            raise RunLogError(f"cannot write the run log {self.path}: {error}") from error
        self._queue: queue.Queue[_Unwritten | _Statement | _Mark] = queue.Queue(_MAX_QUEUED)
        self._say = say
        self._failure: Exception | None = None
        self._held: deque[_Batch] = deque()
        self._held_bytes = 0
        self._trouble: tuple[sqlite3.Error, float] | None = None  # why nothing can be written, and since when
        self._num_records = self._num_numbered = 0
        self._step = 0
        self._key_ids: dict[str, int] = {}
        self._is_closed = False
        self.listeners: list[Callable[[], None]] = []
        """Called on the writer thread whenever there are new records on disk; to return at once."""
        self._thread = threading.Thread(target=self._write, args=(connection,), name="descant-run-log", daemon=True)
        self._thread.start()

    @property
    def num_records(self) -> int:
        """Records that are on disk."""
        return self._num_records

    async def log_config(self, config: Mapping[str, Any]) -> None:
        """Record settings; what JSON cannot hold is recorded as its ``repr``, and secrets are masked."""
        for key, value in plain_config(config).items():
            await self._put("INSERT OR REPLACE INTO config VALUES (?, ?)", key, json.dumps(value))

    async def log_metrics(self, step: int, metrics: Mapping[str, Metric], source: str = "trainer") -> None:
        """Record numbers, strings and tables at a step, as one record.

        Args:
            step: the step that they describe; what was recorded under the same keys at this step is superseded.
            metrics: plain values (see ``metrics.as_metric``). The rows of a table are identified by their column
                ``example_id``, or else by their position.
            source: the callback that returned them, or "trainer".
        """
        tables = {key: value for key, value in metrics.items() if isinstance(value, Table)}
        scalars = {key: value for key, value in metrics.items() if not isinstance(value, Table)}
        for key, table in tables.items():
            tables[key] = Table(table.headers, table.rows)  # others have the original, and may change it
        self._check()
        await self._enqueue(_Unwritten(time.time(), step, source, scalars, tables))

    async def log_event(self, step: int, kind: str, source: str, message: str, details: str | None = None) -> None:
        """Record an event: a failure with its traceback, a warning, a decision."""
        await self._put(_INSERT_EVENT, *_event(step, kind, source, message, details))

    def log_event_from_thread(
        self, step: int, kind: str, source: str, message: str, details: str | None = None
    ) -> None:
        """The same from another thread than the event loop's; it may block. Ignored once the run log is closed."""
        self._put_from_thread((_INSERT_EVENT, _event(step, kind, source, message, details)))

    def save_sink_from_thread(self, name: str, offset: int, run_id: str, suffix: str) -> None:
        """Save a tracker's offset, from another thread than the event loop's."""
        self._put_from_thread((SAVE_SINK, (name, offset, run_id, suffix)))

    async def flush(self) -> None:
        """Try to bring everything recorded so far to disk, and wait until that is done.

        Raises:
            RunLogError: it cannot be written.
        """
        await self._reach(closing=False)

    async def close(self) -> None:
        """Write what is left and close the file.

        Raises:
            RunLogError: it cannot be written.
        """
        self._is_closed = True
        await self._reach(closing=True)
        self._thread.join()  # it has nothing left to do

    async def _reach(self, *, closing: bool) -> None:
        """Wait until the writer has reached this point of the queue, without a thread of the loop's pool, which
        callbacks and graders may have filled with work that never ends."""
        loop, reached = asyncio.get_running_loop(), asyncio.Event()
        await self._enqueue(_Mark(lambda: loop.call_soon_threadsafe(reached.set), closing))
        await reached.wait()
        self._check()
        if self._trouble is not None:
            raise RunLogError(f"the run log {self.path} cannot be written: {self._describe_trouble()}")

    async def _put(self, sql: str, *row: Any) -> None:
        self._check()
        await self._enqueue((sql, row))

    def _put_from_thread(self, statement: _Statement) -> None:
        if not self._is_closed:
            self._queue.put(statement)

    async def _enqueue(self, item: _Unwritten | _Statement | _Mark) -> None:
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
        retry_at = 0.0
        while not closing:
            items = self._next_items(None if self._trouble is None else max(0.0, retry_at - time.monotonic()))
            num_before = self._num_records
            marks = [item for item in items if isinstance(item, _Mark)]
            closing = any(mark.closing for mark in marks)
            if self._failure is None:
                self._hold(items)
            if self._trouble is None or marks or time.monotonic() >= retry_at:
                self._write_held(connection)
                retry_at = time.monotonic() + _RETRY_S
            if closing:
                self._finish(connection)
            for mark in marks:
                mark.reached()
            if self._num_records > num_before:
                for listener in self.listeners:
                    listener()

    def _next_items(self, timeout_s: float | None) -> list[_Unwritten | _Statement | _Mark]:
        """Everything that is queued, after a wait for the first of it."""
        try:
            first = self._queue.get(timeout=timeout_s)
        except queue.Empty:
            return []
        return [first, *(self._queue.get() for _ in range(self._queue.qsize()))]

    def _hold(self, items: Sequence[_Unwritten | _Statement | _Mark]) -> None:
        """Encode what is to be written, as far as there is room for it if it cannot be written now."""
        try:
            statements = self._statements(items)
        except Exception as error:
            self._failure = error
            return
        if any(statements.values()):
            self._held.append(_Batch(statements, self._num_numbered))
            if self._trouble is not None:
                self._held_bytes += self._held[-1].num_bytes
                if self._held_bytes > _MAX_HELD_BYTES:
                    self._failure = RunLogError(self._describe_trouble())

    def _write_held(self, connection: sqlite3.Connection) -> None:
        """Write what is held, the oldest first. What has failed for a reason that may pass stays, to be tried again;
        also after the bound was reached: it is tried once more when the run log is closed."""
        try:
            while self._held:
                with connection:
                    for sql, rows in self._held[0].statements.items():
                        connection.executemany(sql, rows)
                self._check_file()
                self._num_records = self._held.popleft().last_record
            if self._trouble is not None:
                held_s = time.monotonic() - self._trouble[1]
                message = f"the run log was not writable for {duration(held_s)} ({self._trouble[0]}); nothing is lost"
                self._say(message)
                self._trouble, self._held_bytes = None, 0
                with connection:
                    connection.execute(_INSERT_EVENT, _event(self._step, "run_log_held", "run log", message, None))
        except Exception as error:
            if not (isinstance(error, sqlite3.Error) and error.sqlite_errorcode & 0xFF in _PASSING):
                self._failure = self._failure or error
                self._held.clear()
                self._trouble = None
            elif self._trouble is None:
                self._trouble = error, time.monotonic()
                self._say(f"the run log {self.path} cannot be written: {error}; what is recorded is held in memory")
            self._held_bytes = sum(batch.num_bytes for batch in self._held)

    def _check_file(self) -> None:
        """SQLite would still write to a file that was deleted, which is never read."""
        if not self.path.exists():
            raise RunLogError("it was deleted while the run was on")

    def _describe_trouble(self) -> str:
        assert self._trouble is not None
        error, since = self._trouble
        num_held = self._num_numbered - self._num_records
        return (
            f"{error}, for {duration(time.monotonic() - since)}; {num_held:,} records are not on disk and "
            f"take {self._held_bytes / 2**20:,.0f} MB of memory: free space there, or choose a run_dir on another disk"
        )

    def _finish(self, connection: sqlite3.Connection) -> None:
        give_up_at = time.monotonic() + _CLOSING_S
        while self._held and self._failure is None and time.monotonic() < give_up_at:
            time.sleep(_RETRY_S)
            self._write_held(connection)
        if self._held and self._failure is None:
            self._failure = RunLogError(self._describe_trouble())
        if self._failure is None:
            with suppress(sqlite3.Error), connection:  # they are computed when they are asked for
                save_parts(connection, self._num_records)
        connection.close()

    def _statements(self, items: Sequence[_Unwritten | _Statement | _Mark]) -> dict[str, list[_Row]]:
        """The statements to execute, each with all of its rows; rows of one statement keep their order."""
        keys: list[_Row] = []
        records: list[_Row] = []
        points: list[_Row] = []
        tables: list[tuple[str, int, str, int, Table]] = []
        statements: dict[str, list[_Row]] = {}
        for item in items:
            if isinstance(item, _Unwritten):
                self._num_numbered = record = self._num_numbered + 1
                time_s, step, source, values, its_tables = item
                self._step = step
                records.append((record, time_s, step))
                for key, value in values.items():
                    if (key_id := self._key_ids.get(key)) is None:
                        key_id = self._key_ids[key] = len(self._key_ids) + 1
                        keys.append((key_id, key))
                    is_text = isinstance(value, str)  # sqlite3 writes NaN as NULL
                    points.append((step, key_id, record, None if is_text else value, value if is_text else None))
                tables += [(source, step, key, record, table) for key, table in its_tables.items()]
            elif not isinstance(item, _Mark):
                statements.setdefault(item[0], []).append(item[1])
        return {
            "INSERT INTO keys VALUES (?, ?)": keys,
            "INSERT INTO records VALUES (?, ?, ?)": records,
            "INSERT INTO points VALUES (?, ?, ?, ?, ?)": points,
            **_statements_of_tables(tables),
            **statements,
        }


def _statements_of_tables(tables: Sequence[tuple[str, int, str, int, Table]]) -> dict[str, list[_Row]]:
    """The last of the tables with one source, step and key replaces the earlier ones."""
    latest = {(source, step, key): (record, table) for source, step, key, record, table in tables}
    rows: list[_Row] = []
    for identity, (_, table) in latest.items():
        for position, cells in enumerate(table.as_dicts()):
            if isinstance(error := cells.get("error"), str):  # of a server, which may well quote a key
                cells["error"] = masked_text(error)
            rows.append((*identity, str(cells.get("example_id", position)), position, encode_cells(cells)))
    return {
        "DELETE FROM samples WHERE callback = ? AND step = ? AND key = ?": [*latest],
        "INSERT OR REPLACE INTO samples VALUES (?, ?, ?, ?, ?, ?)": rows,
        "INSERT OR REPLACE INTO tables VALUES (?, ?, ?, ?, ?)": [
            (*identity, record, json.dumps(table.headers)) for identity, (record, table) in latest.items()
        ],
    }


def _event(step: int, kind: str, source: str, message: str, details: str | None) -> _Row:
    """Errors of servers may well quote an address with a password."""
    shown, more = (None if text is None else clean_text(masked(text)) for text in (message, details))
    return time.time(), step, kind, source, shown, more
