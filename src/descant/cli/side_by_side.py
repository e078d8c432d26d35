"""side_by_side_lines: pairs of values under their keys, of which what differs is never cut off."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import takewhile
from operator import eq

from rich.cells import cell_len, chop_cells
from rich.text import Text

from descant.cli.grid import grid_lines
from descant.text import printable

_HEADERS = ("A", "B")
_KEY_SHARES = (0.4, 0.5, 0.6)  # of the width; the one with which most rows fit is taken
_CONTEXT = 8  # characters of what two long values share that are shown next to what differs
Row = tuple[str, ...]
"""A key and its two values."""


def side_by_side_lines(rows: Sequence[Row], width: int) -> Iterator[Text]:
    """Rows of a key and two values, at most ``width`` cells wide.

    Of two values that are too long for a column, the beginning and the end that they share are left out. Where a key or
    what differs is still too long, the values follow below the key, on as many lines as they need.
    """
    whole = [tuple(map(printable, row)) for row in rows]
    splits = [_split(whole, round(width * share), width) for share in _KEY_SHARES]
    short, long = max(splits, key=lambda split: len(split[0]))
    if short:
        yield from grid_lines(["", *_HEADERS], short, width)
    for key, *cells in long:
        for line in chop_cells(key, width - 2):
            yield Text(f"  {line}")
        for header, text in zip(_HEADERS, cells, strict=True):
            for number, line in enumerate(chop_cells(text, width - 7) or [""]):
                yield Text(f"    {header if number == 0 else ' '}  {line}")


def _split(rows: Sequence[Row], most_of_key: int, width: int) -> tuple[list[Row], list[Row]]:
    """The rows that fit one line each, with keys of so many cells, and the others."""
    short: list[Row] = []
    long: list[Row] = []
    most = (width - 2 - most_of_key - 4) // 2
    for key, *values in rows:
        cells = values if max(map(cell_len, values)) <= most else _apart(*values)
        fits = cell_len(key) <= most_of_key and max(map(cell_len, cells)) <= most
        (short if fits else long).append((key, *cells))
    return short, long


def _apart(one: str, other: str) -> tuple[str, str]:
    """Two texts without most of what they share at their beginning and at their end."""
    start = _num_equal(one, other)
    end = _num_equal(one[start:][::-1], other[start:][::-1])
    first, last = max(0, start - _CONTEXT), max(0, end - _CONTEXT)

    def without(text: str) -> str:
        return f"{'…' if first else ''}{text[first : len(text) - last]}{'…' if last else ''}"

    return without(one), without(other)


def _num_equal(one: str, other: str) -> int:
    return sum(1 for _ in takewhile(bool, map(eq, one, other)))
