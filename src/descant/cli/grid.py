"""Untrusted text that fits the width: grid_lines for rows and columns, labelled_lines for texts of any length."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from rich.cells import cell_len, chop_cells
from rich.console import Console
from rich.text import Text

from descant.text import printable

_INDENT = 2
_GAP = 2
_NARROWEST_LABEL, _WIDEST_LABEL = 9, 16


def grid_lines(
    headers: Sequence[str],
    rows: Sequence[Sequence[str] | str],
    width: int,
    *,
    right: Collection[str] = (),
    has_keys: bool = False,
) -> Iterator[Text]:
    """The header and one line per row, at most ``width`` cells wide, without spaces at the end.

    Texts are made printable, and cut where the columns do not fit, the widest first. Columns named in ``right`` are
    aligned on the right. A row that is a string is a heading. If the first column has keys, none is cut: one that does
    not fit its column stands on lines of its own, above the rest of its row.
    """
    table: list[list[str] | str] = [list(headers)]
    for row in rows:
        first = list(map(printable, row[:1])) if has_keys else []
        table.append(row if isinstance(row, str) else first + [printable(cell, width) for cell in row[len(first) :]])
    natural = [max(cell_len(row[index]) for row in table if not isinstance(row, str)) for index in range(len(headers))]
    widths = fit(natural, width - _INDENT - _GAP * (len(headers) - 1))
    for row in table if any(headers) else table[1:]:
        if isinstance(row, str):
            yield heading(row, width)
            continue
        line = Text(" " * _INDENT, style="dim" if row is table[0] else "")
        is_long = has_keys and cell_len(row[0]) > widths[0]
        if is_long:
            yield from (Text(" " * _INDENT + piece) for piece in chop_cells(row[0], width - _INDENT))
        for text, header, cells in zip(["", *row[1:]] if is_long else row, headers, widths, strict=True):
            cell = cut(text, cells)
            padding = " " * (cells - cell_len(cell))
            line.append(padding if header in right else cell)
            line.append(cell if header in right else padding)
            line.append(" " * _GAP)
        line.rstrip()
        yield line


def labelled_lines(fields: Sequence[tuple[str, str]], width: int) -> Iterator[Text]:
    """Untrusted texts of any length behind their labels, wrapped at words, at most ``width`` cells wide."""
    label_width = min(max([_NARROWEST_LABEL, *(cell_len(label) for label, _ in fields)]), _WIDEST_LABEL)
    room = max(1, width - _INDENT - label_width - _GAP)
    console = Console(width=width)
    for label, text in fields:
        shown = cut(label, label_width)
        for written in (text if text.strip() else repr(text)).replace("\r\n", "\n").split("\n"):
            for piece in Text(printable(written.expandtabs(4))).wrap(console, room, overflow="fold"):
                piece.rstrip()
                line = Text(" " * _INDENT).append(shown, "dim")
                line.append(" " * (label_width + _GAP - cell_len(shown))).append_text(piece)
                line.rstrip()
                yield line
                shown = ""


def heading(text: str, width: int) -> Text:
    """One line in bold, cut to the width."""
    return Text(cut(text, width).rstrip(), style="bold")


def cut(text: str, width: int) -> str:
    """The text, printable, and cut to a number of terminal cells (of which some characters take two)."""
    line = Text(printable(text, width))
    line.truncate(width, overflow="ellipsis")
    return line.plain


def fit(natural: Sequence[int], available: int) -> list[int]:
    """Widths of columns that share ``available`` cells: each gets what it needs, or an equal part of what is left by
    those that need less; at least 1 if it needs any."""
    widths = list(natural)
    order = sorted(range(len(natural)), key=natural.__getitem__)
    for position, index in enumerate(order):
        widths[index] = min(natural[index], max(1, available // (len(order) - position)))
        available -= widths[index]
    return widths
