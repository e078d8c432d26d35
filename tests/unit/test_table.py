"""Tables from rows, columns and dictionaries, and what does not fit."""

import asyncio
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from descant import Table
from descant.errors import ConfigurationError
from descant.metrics import as_metric
from descant.runlog.run_log import RunLog
from descant.runlog.run_reader import RunReader

CELLS = st.none() | st.booleans() | st.integers(-(2**63) + 1, 2**63 - 1) | st.floats() | st.text()
HEADERS = st.lists(st.text(), unique=True, min_size=1, max_size=4)
TABLES = HEADERS.flatmap(
    lambda headers: st.lists(st.lists(CELLS, min_size=len(headers), max_size=len(headers)), max_size=4).map(
        lambda rows: Table(headers, rows)
    )
)


def test_rows_columns_and_dictionaries_make_the_same_table():
    table = Table(["a", "b"], [[1, "x"], [2, None]])
    assert Table.from_columns({"a": [1, 2], "b": ("x", None)}) == table
    assert Table.from_dicts([{"a": 1, "b": "x"}, {"a": 2}]) == table
    assert Table.from_dicts(table.as_dicts()) == table


def test_columns_of_dictionaries_come_in_the_order_of_their_first_appearance():
    table = Table.from_dicts([{"b": 1}, {"c": 2, "a": 3}, {"a": 4, "b": 5}])
    assert table.headers == ["b", "c", "a"]
    assert table.rows == [[1, None, None], [None, 2, 3], [5, None, 4]]


def test_nothing_makes_an_empty_table():
    assert Table.from_columns({}) == Table.from_dicts([]) == Table()
    assert Table.from_columns({"a": []}) == Table(["a"])


REFUSED = {
    "ragged columns": (
        lambda: Table.from_columns({"a": [1, 2], "b": [1]}),
        "need the same number of cells: 'a' has 2, 'b' has 1",
    ),
    "a column that is text": (lambda: Table.from_columns({"a": "xy"}), "column 'a' is 'xy'; a list of its cells"),
    "a column that is a number": (lambda: Table.from_columns({"a": 1}), "column 'a' is 1; a list of its cells"),
    "a ragged row": (
        lambda: Table(["a", "b"], [[1, 2], [3]]),
        r"row 1 \(from 0\) has 1 cells and does not fit the 2 columns \['a', 'b'\]",
    ),
    "a row that is text": (lambda: Table(["a", "b"], ["xy"]), r"row 0 \(from 0\) is 'xy'; a list of its cells"),
    "a row that is a dictionary": (lambda: Table(["a"], [{"a": 1}]), "Table.from_dicts takes dictionaries"),
    "a dictionary that is none": (lambda: Table.from_dicts([{}, [1]]), r"row 1 \(from 0\) is \[1\]; a dict"),
    "a name that is no text": (lambda: Table.from_columns({1: [2]}), r"names that are text, got \[1\]"),
    "an added name that is no text": (lambda: Table().add_column(1, [2]), "names that are text, got 1"),
    "names that are one text": (lambda: Table("abc"), "a list of column names, got 'abc'"),
    "a row that is a number": (lambda: Table(["a"], [1]), r"row 0 \(from 0\) is 1; a list of its cells"),
    "an added column that is text": (lambda: Table().add_column("a", "xy"), "column 'a' is 'xy'; a list of its cells"),
    "a name twice": (lambda: Table(["a", "a"]), "distinct column names"),
    "a column of the wrong length": (lambda: Table(["a"], [[1]]).add_column("b", []), "'b' has 0 values for 1 rows"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_named(case):
    make, message = REFUSED[case]
    with pytest.raises(ConfigurationError, match=message):
        make()


@settings(deadline=None, max_examples=50)
@given(TABLES)
def test_cells_come_back_from_the_run_log_as_they_were(table):
    table = as_metric(table)

    async def write(run_dir):
        log = RunLog(run_dir)
        await log.log_metrics(1, {"t": table}, "watch")
        await log.close()

    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(write(Path(directory)))
        with RunReader(directory) as reader:
            (record,) = reader.records()
            cells = [list(row.cells.values()) for row in reader.samples("watch", step=1)]
    assert record.tables["t"].headers == table.headers
    assert repr(record.tables["t"].rows) == repr(cells) == repr(table.rows)
