"""Table: rows and named columns that a callback can return as a metric."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Sized
from typing import Any, Self

from descant.errors import ConfigurationError
from descant.text import quoted


class Table:
    """Rows under named columns; cells keep their types.

    >>> table = Table(["prompt", "response"])
    >>> table.add_row(["2+2=", "4"])["response"]
    ['4']

    A column ``example_id`` identifies a row across the run; without one, its position does.

    Raises:
        ConfigurationError: from all methods: a column name that is not text or occurs twice, a row that is no list or
            dictionary of cells, or another number of cells than there are columns or rows.
    """

    def __init__(self, initial_headers: Iterable[str] = (), rows: Iterable[Sequence[Any]] = ()) -> None:
        self.headers: list[str] = list(initial_headers)
        if isinstance(initial_headers, str):
            raise ConfigurationError(f"a table needs a list of column names, got {initial_headers!r}")
        if not all(isinstance(header, str) for header in self.headers):
            raise ConfigurationError(f"a table needs column names that are text, got {self.headers}")
        if len(set(self.headers)) != len(self.headers):
            raise ConfigurationError(f"a table needs distinct column names, got {self.headers}")
        self.rows: list[list[Any]] = []
        self.add_rows(rows)

    @classmethod
    def from_columns(cls, columns: Mapping[str, Sequence[Any]]) -> Self:
        """A table of columns by name, in their order.

        Raises:
            ConfigurationError: columns of different lengths.
        """
        cells = {header: _cells(header, values) for header, values in columns.items()}
        if len({len(values) for values in cells.values()}) > 1:
            lengths = ", ".join(f"{header!r} has {len(values)}" for header, values in cells.items())
            raise ConfigurationError(f"the columns of a table need the same number of cells: {lengths}")
        return cls(cells, list(zip(*cells.values(), strict=True)))

    @classmethod
    def from_dicts(cls, rows: Iterable[Mapping[str, Any]]) -> Self:
        """A table of rows as dictionaries: its columns are all keys, as they first appear; missing cells are None."""
        rows = list(rows)
        for number, row in enumerate(rows):
            if not isinstance(row, Mapping):
                raise ConfigurationError(f"row {number} (from 0) is {quoted(row)}; a dict of cells is needed")
        headers = list(dict.fromkeys(header for row in rows for header in row))
        return cls(headers, [[row.get(header) for header in headers] for row in rows])

    def add_row(self, row: Sequence[Any]) -> Table:
        """Append one row, with one cell per column, and return the table."""
        if isinstance(row, str | bytes | Mapping) or not isinstance(row, Sized):
            hint = "; Table.from_dicts takes dictionaries" if isinstance(row, Mapping) else ""
            raise ConfigurationError(f"row {len(self)} (from 0) is {quoted(row)}; a list of its cells is needed{hint}")
        if len(row) != len(self.headers):
            fit = f"{len(row)} cells and does not fit the {len(self.headers)} columns {self.headers}"
            raise ConfigurationError(f"row {len(self)} (from 0) has {fit}")
        self.rows.append(list(row))
        return self

    def add_rows(self, rows: Iterable[Sequence[Any]]) -> Table:
        """Append rows and return the table."""
        for row in rows:
            self.add_row(row)
        return self

    def add_column(self, header: str, values: Sequence[Any]) -> Table:
        """Append a new column with one value per row (any number of values while the table has no columns)."""
        if not isinstance(header, str):
            raise ConfigurationError(f"a table needs column names that are text, got {header!r}")
        if header in self.headers:
            raise ConfigurationError(f"the table already has a column {header!r}")
        values = _cells(header, values)
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


def _cells(header: str, values: Any) -> list[Any]:
    if isinstance(values, str | bytes) or not isinstance(values, Iterable):
        raise ConfigurationError(f"column {header!r} is {quoted(values)}; a list of its cells is needed")
    return list(values)
