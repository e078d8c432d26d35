"""Sources: the rows of files, of ``datasets`` objects and of iterables, and what messages call each row."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from descant.data.arrow_rows import dataset_rows, parquet_rows
from descant.data.json_rows import is_json_list, json_lines, json_list
from descant.data.origin import Origin, file_facts
from descant.data.rows import CONVERSATION_COLUMNS
from descant.errors import ConfigurationError, DatasetError
from descant.text import did_you_mean, quoted, shown


@dataclass(frozen=True)
class Rows:
    """The rows of a source with their numbers; a ``BadRow`` for one that cannot be read.

    ``template % number`` is where a row is, as ``train.jsonl:12``; ``template_in_lists`` where the name stands above.
    """

    name: str
    template: str
    template_in_lists: str
    items: Iterator[tuple[int, Any]]


def rows_of(source: Any) -> Rows:
    """The rows of a path, a ``datasets`` object or an iterable."""
    if isinstance(source, str | PathLike):
        return _rows_of_file(Path(source))
    if isinstance(source, Mapping):
        if splits := [name for name, split in source.items() if _is_dataset(split)]:
            raise ConfigurationError(
                f"this {type(source).__name__} has the splits {', '.join(map(repr, splits))}; pass one of them, "
                f"as dataset[{splits[0]!r}]"
            )
        values = [source.get(name) for name in CONVERSATION_COLUMNS]
        if any(isinstance(each, list) and each and not isinstance(each[0], dict) for each in values):
            raise ConfigurationError(
                "the source is a dict of columns, as dataset[:2] gives; pass dataset.select(range(2)), or a list of "
                "rows"
            )
        raise ConfigurationError("the source is a single row (a dict); pass a list of rows")
    if _is_dataset(source):
        return Rows("the dataset", Origin("dataset[%d]", dataset_facts(source)), "dataset[%d]", dataset_rows(source))
    if type(source).__name__ == "DataFrame":
        raise ConfigurationError('the source is a DataFrame; pass df.to_dict("records")')
    if isinstance(source, bytes) or not isinstance(source, Iterable):
        raise ConfigurationError(
            f"the source {quoted(source)} is of type {type(source).__name__}; it must be a path, a datasets.Dataset "
            "or an iterable of rows"
        )
    return Rows("the iterable", "rows[%d]", "rows[%d]", enumerate(source))


def _is_dataset(source: Any) -> bool:
    """Whether this is a dataset of the ``datasets`` library, which need not be installed."""
    return all(hasattr(source, name) for name in ("column_names", "features", "iter"))


def dataset_facts(dataset: Any) -> dict[str, Any]:
    """What a dataset of the ``datasets`` library says of itself; its fingerprint changes with its content."""
    info: Any = getattr(dataset, "info", None)
    version, split = getattr(info, "version", None), getattr(dataset, "split", None)
    facts = {
        "dataset": getattr(info, "dataset_name", None),
        "config": getattr(info, "config_name", None),
        "version": version and str(version),
        "split": split and str(split),
        "fingerprint": getattr(dataset, "_fingerprint", None),
    }
    return {name: fact for name, fact in facts.items() if fact}


def _rows_of_file(path: Path) -> Rows:
    """The rows of a file; its first bytes decide what it is, not its name."""
    head = _first_bytes(path)
    if head.startswith(b"version https://git-lfs"):
        raise DatasetError(f"{shown(path)} is only Git LFS's pointer to the data; fetch them with: git lfs pull")
    unpack, facts = head.startswith(b"\x1f\x8b"), file_facts(path)
    if head.startswith(b"PAR1"):
        items = parquet_rows(path)
    elif is_json_list(path, unpack):
        items = json_list(path, unpack)
    else:
        template = Origin(f"{shown(path).replace('%', '%%')}:%d", facts)
        return Rows(shown(path), template, "line %d", json_lines(path, unpack))
    template = Origin(f"{shown(path).replace('%', '%%')}[%d]", facts)
    return Rows(shown(path), template, template, items)


def _first_bytes(path: Path) -> bytes:
    try:
        if path.exists() and not path.is_file():
            found = "a directory; pass one of the files in it" if path.is_dir() else "not a regular file"
            raise DatasetError(f"{shown(path)} is {found}")
        with path.open("rb") as file:
            return file.read(64)
    except (FileNotFoundError, NotADirectoryError):
        if path.is_symlink():
            raise DatasetError(f"{shown(path)} is a link to {shown(path.readlink())}, which is not there") from None
        no_directory = "" if path.parent.is_dir() else f"there is no directory {path.parent}; "
        otherwise = f"{no_directory}the working directory is {Path.cwd()}"
        hint = did_you_mean(path.name, [entry.name for entry in path.parent.glob("*")], otherwise)
        raise DatasetError(f"{shown(path)} is not there; {hint}") from None
    except OSError as error:  # no permission, a loop of links, a name that is too long
        raise DatasetError(f"{quoted(str(path), 200)} cannot be read: {error.strerror}") from None
