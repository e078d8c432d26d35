"""Arrow rows: those of Parquet files and of ``datasets`` objects."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from descant.data.bad_row import BadRow
from descant.data.rows import CONVERSATION_COLUMNS
from descant.errors import DatasetError
from descant.text import quoted, shown

_BATCH_SIZE = 4096


def parquet_rows(path: Path) -> Iterator[tuple[int, Any]]:
    """The rows of a Parquet file, numbered from 0."""
    try:
        import pyarrow as pa  # type: ignore[import-untyped]  # noqa: PLC0415
        import pyarrow.parquet as pq  # type: ignore[import-untyped]  # noqa: PLC0415
    except ImportError:
        raise DatasetError(f"{shown(path)}: reading Parquet needs pyarrow; pip install 'descant[parquet]'") from None
    number = -1
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if repeated := [name for name in names if names.count(name) > 1]:
                raise DatasetError(
                    f"{shown(path)} has two columns of the name {quoted(repeated[0])}; rename one of them"
                )
            for batch in file.iter_batches(batch_size=_BATCH_SIZE):
                for row in _rows_of_batch(batch):
                    number += 1
                    yield number, row
    except (pa.ArrowException, OSError) as error:
        raise _bad_parquet(path, number, error) from None


def dataset_rows(dataset: Any) -> Iterator[tuple[int, Any]]:
    """The rows of a ``datasets.Dataset`` or ``IterableDataset``, numbered from 0; transforms apply to them."""
    number = -1
    for batch in _without_format(dataset).iter(batch_size=_BATCH_SIZE):
        try:
            rows = list(zip(*batch.values(), strict=True))
        except (AttributeError, TypeError, ValueError) as error:
            raise DatasetError(
                f"the dataset, from row [{number + 1}] on: its transform gives a {type(batch).__name__}, not a dict of "
                f"columns of one length ({error})"
            ) from None
        names = list(batch)
        for values in rows:
            number += 1
            yield number, _without_filling(dict(zip(names, values, strict=True)))


def _without_format(dataset: Any) -> Any:
    """The dataset with plain values in place of arrays, tensors or frames; transforms and columns stay."""
    form = getattr(dataset, "format", None)
    if form is None:  # an IterableDataset, whose transforms are no format
        return dataset.with_format(None)
    if form["type"] in (None, "custom"):
        return dataset
    return dataset.with_format(None, columns=form["columns"], output_all_columns=form["output_all_columns"])


def _rows_of_batch(batch: Any) -> Iterable[Any]:
    try:
        rows = batch.to_pylist()
    except (ValueError, OverflowError):  # a cell that Python cannot hold; find it
        return [_row_of_slice(batch.slice(index, 1)) for index in range(batch.num_rows)]
    return map(_without_filling, rows)


def _row_of_slice(batch: Any) -> Any:
    row = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            row[name] = column.to_pylist()[0]
        except UnicodeDecodeError as error:
            byte = f"byte 0x{error.object[error.start]:02x} at position {error.start}"
            return BadRow(f"column {quoted(name)} has text that is not UTF-8 ({byte}); convert it to UTF-8")
        except (ValueError, OverflowError) as error:
            return BadRow(f"column {quoted(name)} cannot be read: {error}")
    return _without_filling(row)


def _without_filling(row: dict[str, Any]) -> dict[str, Any]:
    """A row whose tools and calls are without the nulls that Arrow fills in; in other keys they count as absent."""
    for name in CONVERSATION_COLUMNS:
        value = row.get(name)
        if type(value) is list and (
            name == "tools" or any(type(message) is dict and message.get("tool_calls") for message in value)
        ):
            row[name] = _without_nulls(value)
    return row


def _without_nulls(value: Any) -> Any:
    if type(value) is dict:
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    return [_without_nulls(inner) for inner in value] if type(value) is list else value


def _bad_parquet(path: Path, number: int, error: Exception) -> DatasetError:
    with path.open("rb") as file:
        begins = file.read(4) == b"PAR1"
        size = file.seek(0, 2)
        file.seek(max(4, size - 4))
        ends = file.read(4) == b"PAR1"
    if begins and not ends:
        return DatasetError(
            f"{shown(path)} seems to be cut off: a Parquet file begins and ends with 'PAR1', this one only begins with "
            "it; copy or download it again"
        )
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    where = f" after row [{number}]" if number >= 0 else ""
    return DatasetError(f"{shown(path)} cannot be read as Parquet{where}, it may be damaged: {reason}")
