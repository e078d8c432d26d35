"""Part: a metric within one part of a run. Summaries and curves are made of parts.

A run is cut into at most 320 parts of about as many steps each. That takes about a second for 2 million values, so it
is done once when the run log is closed, and kept with the number of the last record that it covers. The parts of a run
that has not ended, or was killed, are computed when they are asked for.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from math import isfinite, nan
from typing import Any

_MAX_PARTS = 320
PARTS_SCHEMA = """
CREATE TABLE parts (  -- metrics by parts of the run, once it has ended
    key TEXT NOT NULL, first_step INTEGER NOT NULL, last_step INTEGER NOT NULL, num_points INTEGER NOT NULL,
    num_numbers INTEGER NOT NULL, num_texts INTEGER NOT NULL, minimum, maximum, total REAL,
    last_record INTEGER NOT NULL, PRIMARY KEY (key, first_step)
) WITHOUT ROWID;
"""
# One part after another, since points are stored by step and sorting a part by key is cheap: one GROUP BY of all
# points takes almost twice as long. The view `metrics` is slower, too: it looks up each point's key.
_SUMMARIZE = """
SELECT (SELECT key FROM keys WHERE id = key_id), min(step), max(step), count(*), count(number), count(text),
    min(number), max(number), total(number)
FROM (SELECT step, key_id, number, text, max(record) FROM points WHERE step >= ? AND step < ? GROUP BY step, key_id)
GROUP BY key_id
"""
_READ_SAVED = """
SELECT key, first_step, last_step, num_points, num_numbers, num_texts, minimum, maximum, total
FROM parts WHERE last_record = (SELECT max(id) FROM records) ORDER BY first_step
"""


@dataclass(frozen=True, slots=True)
class Part:
    """One metric within the steps of a part, in which it was recorded at least once."""

    key: str
    first_step: int
    last_step: int
    num_points: int
    num_numbers: int
    num_texts: int
    minimum: float | None
    maximum: float | None
    total: float | None  # None for the sum of an infinity and its opposite

    @property
    def num_nan(self) -> int:
        """Points that are NaN."""
        return self.num_points - self.num_numbers - self.num_texts

    @property
    def sum(self) -> float:
        """The sum of the numbers; 0 without any."""
        return nan if self.total is None else self.total

    @property
    def mean(self) -> float:
        """Not beyond its minimum and maximum: rounding must not make a constant look as if it moved."""
        if self.num_nan or self.minimum is None or self.maximum is None or not isfinite(self.sum):
            return nan
        return min(max(self.sum / self.num_numbers, self.minimum), self.maximum)


def read_parts(connection: sqlite3.Connection) -> Iterator[Part]:
    """All parts of all metrics, in the order of steps."""
    saved = connection.execute(_READ_SAVED).fetchall()
    yield from (Part(*row) for row in saved or _summarize(connection))


def save_parts(connection: sqlite3.Connection, last_record: int) -> None:
    """Keep the parts of a run that has ended with record number ``last_record``."""
    rows = [(*row, last_record) for row in _summarize(connection)]
    connection.executemany("INSERT INTO parts VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)


def _summarize(connection: sqlite3.Connection) -> Iterator[tuple[Any, ...]]:
    first, last = connection.execute(
        "SELECT (SELECT min(step) FROM points), (SELECT max(step) FROM points)"  # together they would read all points
    ).fetchone()
    if first is None:
        return
    num_parts = min(_MAX_PARTS, last - first + 1)
    for borders in pairwise(first + part * (last - first + 1) // num_parts for part in range(num_parts + 1)):
        yield from connection.execute(_SUMMARIZE, borders)
