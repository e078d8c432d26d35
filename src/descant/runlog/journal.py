"""Journal: what a run recorded, in the order of arrival, as trackers are given it.

A record is what one call recorded. Records are numbered from 1, and a value may come late, for a step that is long
past, so the number of the last record that a tracker has is its offset. A table that is recorded once more at its step
replaces the earlier one and belongs to the later record.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite, nan
from typing import Any

from descant.table import Table

_NOT_FINITE = "float"
_READ_POINTS = """
SELECT records.id, key, number, text
FROM records CROSS JOIN points ON points.step = records.step AND record = records.id JOIN keys ON keys.id = key_id
WHERE records.id > ? AND records.id <= ? ORDER BY records.id, key_id
"""
_READ_CELLS = "SELECT cells FROM samples WHERE callback = ? AND step = ? AND key = ? ORDER BY position"


@dataclass(frozen=True, slots=True)
class Record:
    """What was recorded in one call.

    Attributes:
        id: its number in the run log, from 1.
        time_s: when, in seconds since 1970.
        step: the step that it describes.
        metrics: numbers and strings by key.
        tables: tables by key.
    """

    id: int
    time_s: float
    step: int
    metrics: dict[str, float | str] = field(default_factory=dict)
    tables: dict[str, Table] = field(default_factory=dict)


def read_records(connection: sqlite3.Connection, offset: int, limit: int) -> list[Record]:
    """The next records after number ``offset``, at most ``limit``.

    Raises:
        sqlite3.DatabaseError, ValueError: the run log is damaged.
    """
    rows = connection.execute("SELECT id, time, step FROM records WHERE id > ? ORDER BY id LIMIT ?", (offset, limit))
    records = {row[0]: Record(*row) for row in rows}
    span = (offset, max(records, default=offset))
    for record, key, number, text in connection.execute(_READ_POINTS, span):
        records[record].metrics[key] = point_value(number, text)
    described = "SELECT record, callback, step, key, columns FROM tables WHERE record > ? AND record <= ? ORDER BY 1, 4"
    for record, callback, step, key, headers in connection.execute(described, span).fetchall():
        columns = json.loads(headers)
        rows_of_table = [decode_cells(cells) for (cells,) in connection.execute(_READ_CELLS, (callback, step, key))]
        records[record].tables[key] = Table(columns, [[row[name] for name in columns] for row in rows_of_table])
    return list(records.values())


def point_value(number: float | None, text: str | None) -> float | str:
    """A point's value; NaN, which SQL does not have, is neither a number nor a text there."""
    return text if text is not None else nan if number is None else number


def encode_cells(cells: Mapping[str, Any]) -> str:
    """A row as a JSON object that SQLite's functions for JSON can read: NaN and infinity, which JSON does not have, are
    objects like ``{"float": "nan"}``. Cells are plain values (see ``metrics.as_metric``), so nothing else is one."""
    plain = {
        name: {_NOT_FINITE: repr(cell)} if isinstance(cell, float) and not isfinite(cell) else cell
        for name, cell in cells.items()
    }
    return json.dumps(plain, ensure_ascii=False)


def decode_cells(text: str) -> dict[str, Any]:
    """The row of which ``encode_cells`` made the text."""
    cells: dict[str, Any] = json.loads(text)
    if f'{{"{_NOT_FINITE}":' in text:
        return {name: float(cell[_NOT_FINITE]) if isinstance(cell, dict) else cell for name, cell in cells.items()}
    return cells
