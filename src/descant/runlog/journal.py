"""Record: what was recorded in one call. The journal is all of them, in order, as the run log keeps them.

``metrics`` and ``samples`` in the run log are made for queries: one value per step and key, the latest. They do not
tell in which order rows came, nor what is new since a certain moment, which a tracker that is fed along the way has to
know, since a value may come late for a step that is long past. The journal tells, in one row per call, numbered from 1.
Its metrics are one JSON object: numbers keep their types, and NaN and infinity are read back as they were (in the way
of Python's ``json``, which JSON itself does not know). Rows of tables are not written twice: ``tables`` says which
record a table belongs to and which columns it has, also when it has no rows; its rows are in ``samples``. A table that
is recorded once more at the same step replaces the earlier one and belongs to the later record.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import isfinite, nan
from typing import Any

from descant.table import Table

_NOT_FINITE = "float"


@dataclass(frozen=True, slots=True)
class Record:
    """What was recorded in one call.

    Attributes:
        id: its number in the run log, from 1.
        time_s: when, in seconds since 1970.
        step: that it describes.
        metrics: numbers and strings by key.
        tables: tables by key.
    """

    id: int
    time_s: float
    step: int
    metrics: Mapping[str, float | str]
    tables: Mapping[str, Table] = field(default_factory=dict)


def read_records(connection: sqlite3.Connection, place: int, limit: int) -> list[Record]:
    """The next records after number ``place``, at most ``limit``.

    Raises:
        sqlite3.DatabaseError, ValueError: the run log is damaged.
    """
    rows = connection.execute(
        "SELECT id, time, step, metrics FROM journal WHERE id > ? ORDER BY id LIMIT ?", (place, limit)
    ).fetchall()
    if not rows:
        return []
    tables: dict[int, dict[str, Table]] = {}
    described = connection.execute(
        "SELECT record, callback, step, key, columns FROM tables WHERE record > ? AND record <= ? ORDER BY record, key",
        (place, rows[-1][0]),
    ).fetchall()
    for record, callback, step, key, columns in described:
        tables.setdefault(record, {})[key] = read_table(connection, callback, step, key, json.loads(columns))
    return [Record(id_, time, step, json.loads(metrics), tables.get(id_, {})) for id_, time, step, metrics in rows]


def records_without_journal(connection: sqlite3.Connection) -> Iterator[Record]:
    """What a run log of a version without a journal has, as one record per step, from 1 on. The time of all is that of
    the first event: such a run log has no other."""
    (time,) = connection.execute("SELECT coalesce(min(time), 0.0) FROM events").fetchone()
    steps = connection.execute("SELECT step FROM metrics UNION SELECT step FROM samples ORDER BY step").fetchall()
    for number, (step,) in enumerate(steps, start=1):
        values = connection.execute("SELECT key, number, text FROM metrics WHERE step = ?", (step,)).fetchall()
        metrics = {
            key: nan if number is text is None else number if text is None else text for key, number, text in values
        }
        keys = connection.execute("SELECT DISTINCT callback, key FROM samples WHERE step = ?", (step,)).fetchall()
        tables = {key: read_table(connection, callback, step, key) for callback, key in keys}
        yield Record(number, time, step, metrics, tables)


def read_table(
    connection: sqlite3.Connection, callback: str, step: int, key: str, columns: list[str] | None = None
) -> Table:
    """The rows of one table at one step, in their order. Without ``columns`` they are those of the rows."""
    cells = connection.execute(
        "SELECT cells FROM samples WHERE callback = ? AND step = ? AND key = ? ORDER BY position", (callback, step, key)
    ).fetchall()
    rows = [decode_cells(text) for (text,) in cells]
    return (
        Table.from_dicts(rows) if columns is None else Table(columns, [[row[name] for name in columns] for row in rows])
    )


def encode_cells(cells: Mapping[str, Any]) -> str:
    """A row as a JSON object that SQLite's functions for JSON can read: NaN and infinity, which JSON has not, are
    objects like ``{"float": "nan"}``. Cells are plain values (see ``metrics.as_metric``), so nothing else is one."""
    plain = {
        name: {_NOT_FINITE: repr(cell)} if isinstance(cell, float) and not isfinite(cell) else cell
        for name, cell in cells.items()
    }
    return json.dumps(plain, ensure_ascii=False)


def decode_cells(text: str) -> dict[str, Any]:
    """The row that ``encode_cells`` has made the text of."""
    cells: dict[str, Any] = json.loads(text)
    if f'{{"{_NOT_FINITE}":' in text:
        return {name: float(cell[_NOT_FINITE]) if isinstance(cell, dict) else cell for name, cell in cells.items()}
    return cells
