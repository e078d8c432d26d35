"""Rows of a table as trackers take them: with the step that they belong to, and cells of bounded length."""

from __future__ import annotations

from math import isfinite, isnan
from typing import Any

from descant.errors import ConfigurationError
from descant.table import Table
from descant.trackers.logger import STEP_KEY

MAX_CELL_LENGTH = 10_000
"""Characters of a cell that a tracker is given by default. The run log has all of them."""


def tracker_rows(table: Table, step: int, max_cell_length: int) -> Table:
    """The table with a first column ``step``, and long texts cut; numbers stay numbers.

    A column ``step`` of its own may be another thing, such as the steps of an agent: the first is called
    ``progress/step`` then.
    """
    rows = [[step, *(bounded(cell, max_cell_length) for cell in row)] for row in table.rows]
    return Table([STEP_KEY if "step" in table else "step", *table.headers], rows)


def bounded(cell: Any, max_length: int) -> Any:
    """A text of at most ``max_length`` characters, cut at its end, with the number of characters that it had."""
    if not isinstance(cell, str) or len(cell) <= max_length:
        return cell
    note = f"… [{len(cell):,} characters]"
    return cell[: max(0, max_length - len(note))] + note


def checked_cell_length(max_cell_length: int) -> int:
    """The option, if it can work.

    Raises:
        ConfigurationError: it leaves no room for text and the note that text was cut.
    """
    if max_cell_length < 50:
        raise ConfigurationError(f"max_cell_length={max_cell_length} is too short: at least 50 characters are needed")
    return max_cell_length


def without_nan(cell: Any) -> Any:
    """The cell, with NaN and infinity, which JSON does not have, as the strings "NaN", "Infinity" and "-Infinity"."""
    if not isinstance(cell, float) or isfinite(cell):
        return cell
    return "NaN" if isnan(cell) else "Infinity" if cell > 0 else "-Infinity"
