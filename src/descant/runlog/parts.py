"""Part: a metric within one part of a run. Summaries and curves are made of them.

A run is cut into at most 320 parts of about as many steps each. That takes about a second for 2 million rows, so the
run log does it once when it is closed, and keeps the answer beside the number of the last record that it holds for. Of
a run that goes on, or was killed, the parts are made when they are asked for.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from math import isfinite, nan

_MAX_PARTS = 320
PARTS_SCHEMA = """
CREATE TABLE parts (  -- metrics by parts of the run, once it has ended: a part has the steps from start to before stop
    key TEXT NOT NULL, start INTEGER NOT NULL, stop INTEGER NOT NULL, first_step INTEGER NOT NULL,
    last_step INTEGER NOT NULL, num_points INTEGER NOT NULL, num_numbers INTEGER NOT NULL, num_texts INTEGER NOT NULL,
    minimum REAL, maximum REAL, total REAL, last_record INTEGER NOT NULL, PRIMARY KEY (key, start)
) WITHOUT ROWID;
"""
# Rows are stored by step, so one part of the run after another is read, and sorting a part by key is cheap. One GROUP
# BY for the whole table takes almost twice as long, and more when Python adds up.
_SUMMARIZE = """
SELECT key, ?1, ?2, min(step), max(step), count(*), count(number), count(text), min(number), max(number), sum(number)
FROM metrics WHERE step >= ?1 AND step < ?2 GROUP BY key
"""
_READ_SAVED = """
SELECT key, start, stop, first_step, last_step, num_points, num_numbers, num_texts, minimum, maximum, total
FROM parts WHERE last_record = (SELECT max(id) FROM journal) ORDER BY start
"""
HAS_SAVED_PARTS = "SELECT EXISTS (SELECT 1 FROM parts WHERE last_record = (SELECT max(id) FROM journal))"
LAST_STEP_IN_PARTS = "SELECT max(last_step) FROM parts WHERE key = ?"


@dataclass(frozen=True, slots=True)
class Part:
    """One metric within the steps from ``start`` to before ``stop``, in which it was recorded at least once."""

    key: str
    start: int
    stop: int
    first_step: int
    last_step: int
    num_points: int
    num_numbers: int
    num_texts: int
    minimum: float | None
    maximum: float | None
    total: float | None  # also None for the sum of an infinity and its opposite

    @property
    def num_nan(self) -> int:
        """Points that are NaN."""
        return self.num_points - self.num_numbers - self.num_texts

    @property
    def sum(self) -> float:
        """Of the numbers; 0 without any."""
        return self.total if self.total is not None else nan if self.num_numbers else 0.0

    @property
    def mean(self) -> float:
        """Not beyond its minimum and maximum: rounding must not make a constant look as if it moved."""
        if self.num_nan or self.minimum is None or self.maximum is None or not isfinite(self.sum):
            return nan
        return min(max(self.sum / self.num_numbers, self.minimum), self.maximum)


def read_parts(connection: sqlite3.Connection, *, may_be_saved: bool) -> Iterator[Part]:
    """All parts of all metrics, in the order of steps."""
    saved = connection.execute(_READ_SAVED).fetchall() if may_be_saved else []
    if saved:
        yield from (Part(*row) for row in saved)
        return
    for start, stop in _borders(connection):
        yield from (Part(*row) for row in connection.execute(_SUMMARIZE, (start, stop)))


def save_parts(connection: sqlite3.Connection, last_record: int) -> None:
    """Keep the parts of a run that has ended with record number ``last_record``."""
    connection.executemany(
        f"INSERT INTO parts SELECT *, {last_record:d} FROM ({_SUMMARIZE})", list(_borders(connection))
    )


def _borders(connection: sqlite3.Connection) -> Iterator[tuple[int, int]]:
    """The parts of the run, as steps from one to before another."""
    first, last = connection.execute("SELECT min(step), max(step) FROM metrics").fetchone()
    if first is None:
        return
    num_parts = min(_MAX_PARTS, last - first + 1)
    yield from pairwise(first + part * (last - first + 1) // num_parts for part in range(num_parts + 1))
