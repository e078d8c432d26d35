"""Table: rows and named columns that a callback can return as a metric."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from descant.errors import ConfigurationError


class Table:
    """Rows under named columns; cells keep their types.

    >>> table = Table(["prompt", "response"])
    >>> table.add_row(["2+2=", "4"])["response"]
    ['4']

    A column named ``example_id`` identifies a row across the run; without it the position does.
    """

    def __init__(self, initial_headers: Iterable[str] = (), rows: Iterable[Sequence[Any]] = ()) -> None:
        self.headers: list[str] = list(initial_headers)
        if len(set(self.headers)) != len(self.headers):
            raise ConfigurationError(f"a table needs distinct column names, got {self.headers}")
        self.rows: list[list[Any]] = []
        self.add_rows(rows)

    def add_row(self, row: Sequence[Any]) -> Table:
        """Append one row and return the table.

        Raises:
            ConfigurationError: the row has not one cell per column.
        """
        if len(row) != len(self.headers):
            raise ConfigurationError(f"a row of {len(row)} cells does not fit the columns {self.headers}")
        self.rows.append(list(row))
        return self

    def add_rows(self, rows: Iterable[Sequence[Any]]) -> Table:
        """Append rows and return the table."""
        for row in rows:
            self.add_row(row)
        return self

    def add_column(self, header: str, values: Sequence[Any]) -> Table:
        """Append a column with one value per row (any number of values while the table has no columns).

        Raises:
            ConfigurationError: the column exists, or the number of values is not the number of rows.
        """
        if header in self.headers:
            raise ConfigurationError(f"the table already has a column {header!r}")
        if not self.headers:
            self.rows = [[] for _ in values]
        if len(values) != len(self.rows):
            raise ConfigurationError(f"column {header!r} has {len(values)} values for {len(self.rows)} rows")
        self.headers.append(header)
        for row, value in zip(self.rows, values, strict=True):
            row.append(value)
        return self

    def as_dicts(self) -> list[dict[str, Any]]:
        """The rows as dictionaries from column name to cell."""
        return [dict(zip(self.headers, row, strict=True)) for row in self.rows]

    def __getitem__(self, header: str) -> list[Any]:
        if header not in self.headers:
            raise KeyError(f"no column {header!r}; the table has {self.headers}")
        index = self.headers.index(header)
        return [row[index] for row in self.rows]

    def __contains__(self, header: object) -> bool:
        return header in self.headers

    def __len__(self) -> int:
        return len(self.rows)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Table) and (self.headers, self.rows) == (other.headers, other.rows)

    __hash__ = None  # type: ignore[assignment] # it is mutable

    def __repr__(self) -> str:
        return f"Table({self.headers}, {len(self.rows)} rows)"
