"""Sources: where the rows of a dataset come from, and how messages call the place of each."""

from __future__ import annotations

import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from os import PathLike
from pathlib import Path
from typing import Any

from descant.data.arrow_rows import dataset_rows, parquet_rows
from descant.data.json_rows import GZIP_ERRORS, first_line_is_json, json_lines, json_list, open_bytes
from descant.data.rows import CONVERSATION_COLUMNS
from descant.errors import ConfigurationError, DatasetError
from descant.text import quoted, shown

_GZIP, _PARQUET, _LFS = b"\x1f\x8b", b"PAR1", b"version https://git-lfs"
_BY_SUFFIX = {".jsonl": "lines", ".ndjson": "lines", ".json": "json", ".parquet": "parquet"}
_FORMATS = "formats are .jsonl, .json (each also with .gz) and .parquet"
_CSV = "; read CSV with datasets.load_dataset('csv', data_files=..., split='train') and pass that"


@dataclass(frozen=True)
class Rows:
    """The rows of a source.

    Attributes:
        name: what messages call the source.
        template: the place of a row; ``template % number`` is ``train.jsonl:12`` or ``train.parquet[3]``.
        template_in_lists: the same, where the name stands above already.
        items: each row with its number; a ``BadRow`` in place of one that cannot be read.
    """

    name: str
    template: str
    template_in_lists: str
    items: Iterator[tuple[int, Any]]


def rows_of(source: Any) -> Rows:
    """The rows of a path, a ``datasets`` object or an iterable.

    Raises:
        ConfigurationError: a source of another kind.
        DatasetError: a file that is missing or not what its name says.
    """
    if isinstance(source, str | PathLike):
        return _rows_of_file(Path(source))
    if isinstance(source, Mapping):
        if splits := [name for name, split in source.items() if _is_dataset(split)]:
            raise ConfigurationError(
                f"this {type(source).__name__} has the splits {', '.join(map(repr, splits))}; pass one of them, "
                f"as dataset[{splits[0]!r}]"
            )
        if any(isinstance(source.get(name), list) and _is_column(source[name]) for name in CONVERSATION_COLUMNS):
            raise ConfigurationError(
                "the source is a dict of columns, as dataset[:2] gives; pass dataset.select(range(2)), or a list of "
                "rows"
            )
        raise ConfigurationError("the source is a single row (a dict); pass a list of rows")
    if _is_dataset(source):
        return Rows("the dataset", "dataset[%d]", "dataset[%d]", dataset_rows(source))
    if type(source).__name__ == "DataFrame":
        raise ConfigurationError('the source is a DataFrame; pass df.to_dict("records")')
    if isinstance(source, bytes) or not isinstance(source, Iterable):
        raise ConfigurationError(
            f"the source {quoted(source)} is of type {type(source).__name__}; it must be a path, a datasets.Dataset "
            "or an iterable of rows"
        )
    return Rows("the iterable", "rows[%d]", "rows[%d]", enumerate(source))


def _is_column(values: list[Any]) -> bool:
    """Whether these are a column of texts or conversations, rather than the messages of one."""
    return bool(values) and not isinstance(values[0], dict)


def _is_dataset(source: Any) -> bool:
    """Whether this is a dataset of the ``datasets`` library, which need not be installed."""
    return all(hasattr(source, name) for name in ("column_names", "features", "iter"))


def _numbered_from_0(path: Path, items: Iterator[tuple[int, Any]]) -> Rows:
    template = f"{shown(path).replace('%', '%%')}[%d]"
    return Rows(shown(path), template, template, items)


def _rows_of_file(path: Path) -> Rows:
    _check_is_file(path)
    suffixes = [suffix.lower() for suffix in path.suffixes]
    is_gzip = suffixes[-1:] == [".gz"]
    kind = _BY_SUFFIX.get("".join(suffixes[-2:-1] if is_gzip else suffixes[-1:]))
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as error:
        raise DatasetError(f"{shown(path)} cannot be read: {error.strerror}") from None
    _check_wrapping(path, head, is_gzip=is_gzip, kind=kind)
    if kind == "parquet" or (kind is None and head.startswith(_PARQUET)):
        return _numbered_from_0(path, parquet_rows(path) if head else iter(()))
    unpack = is_gzip or head.startswith(_GZIP)
    if _is_list(path, _read_head(path, unpack), kind):
        return _numbered_from_0(path, json_list(path, unpack))
    return Rows(shown(path), f"{shown(path).replace('%', '%%')}:%d", "line %d", json_lines(path, unpack))


def _check_is_file(path: Path) -> None:
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        if path.is_symlink():
            raise DatasetError(f"{shown(path)} is a link to {shown(path.readlink())}, which is not there") from None
        raise DatasetError(f"{shown(path)} is not there{_did_you_mean(path)}") from None
    except (OSError, ValueError) as error:  # no permission, a loop of links, a name that is too long or has a null byte
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise DatasetError(f"{quoted(str(path), 200)} cannot be read: {reason}") from None
    if not stat.S_ISREG(mode):
        found = "a directory; pass one of the files in it" if stat.S_ISDIR(mode) else "not a regular file"
        raise DatasetError(f"{shown(path)} is {found}")


def _read_head(path: Path, unpack: bool) -> bytes:
    try:
        with open_bytes(path, unpack) as stream:
            return stream.read1(1 << 16)  # what there is before a damage, too
    except GZIP_ERRORS:  # reading all of it will say where
        return b""


def _check_wrapping(path: Path, head: bytes, *, is_gzip: bool, kind: str | None) -> None:
    """Raises if the first bytes of a file are not what its suffixes promise."""
    if head.startswith(_LFS):
        raise DatasetError(f"{shown(path)} is only Git LFS's pointer to the data; fetch them with: git lfs pull")
    if not head or (kind is None and not is_gzip):
        return
    if is_gzip and kind == "parquet":
        raise DatasetError(f"{shown(path)} is a packed Parquet file; unpack it with: gunzip {shown(Path(path.name))}")
    if is_gzip and not head.startswith(_GZIP):
        raise DatasetError(
            f"{shown(path)} is not packed by gzip, although its name says so; name it {shown(Path(path.stem))}"
        )
    if head.startswith(_GZIP) and not is_gzip:
        raise DatasetError(f"{shown(path)} is packed by gzip; name it {shown(Path(path.name))}.gz")
    if head.startswith(_PARQUET) and kind != "parquet":
        raise DatasetError(f"{shown(path)} is a Parquet file; name it {shown(Path(path.stem))}.parquet")
    if kind == "parquet" and not head.startswith(_PARQUET):
        raise DatasetError(f"{shown(path)} is not a Parquet file: it begins with {quoted(head[:16])}, not with 'PAR1'")


def _is_list(path: Path, head: bytes, kind: str | None) -> bool:
    """Whether a JSON file is one list, rather than rows line by line.

    Raises:
        DatasetError: it is neither.
    """
    if head.startswith(_GZIP):
        raise DatasetError(
            f"{shown(path)} is packed by gzip twice; unpack it once with: gunzip {shown(Path(path.name))}"
        )
    _check_encoding(path, head)
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if kind == "lines":
        if text.startswith(b"["):
            raise DatasetError(
                f"{shown(path)} begins with '['; name it .json if it is one list, or write one object a line"
            )
        return False
    if kind is None and text and text[:1] not in (b"{", b"["):
        advice = _CSV if path.suffix.lower() in (".csv", ".tsv") else ""
        raise DatasetError(
            f"{shown(path)} is neither JSON nor Parquet: it begins with {quoted(text[:24])}; {_FORMATS}{advice}"
        )
    if text.startswith(b"{") and not first_line_is_json(text):
        raise DatasetError(
            f"{shown(path)} is one JSON object over several lines; it must be a list of rows, [...], or have one row a "
            "line"
        )
    return text.startswith(b"[")


def _check_encoding(path: Path, head: bytes) -> None:
    """Raises if a text begins as UTF-16 or UTF-32 do: with their mark, or with a character of zero bytes in part."""
    if head.startswith((b"\xff\xfe\0\0", b"\0\0\xfe\xff")) or head[:3] == b"\0\0\0" or head[1:4] == b"\0\0\0":
        name = "UTF-32"
    elif head.startswith((b"\xff\xfe", b"\xfe\xff")):
        name = "UTF-16"
    elif b"\0" in head[:2]:
        name = "UTF-16BE" if head.startswith(b"\0") else "UTF-16LE"
    else:
        return
    convert = f"iconv -f {name} -t UTF-8 {shown(Path(path.name))} > utf8-{shown(Path(path.name))}"
    if path.suffix.lower() == ".gz":
        convert = f"gunzip -c {shown(Path(path.name))} | iconv -f {name} -t UTF-8 > utf8-{shown(Path(path.stem))}"
    raise DatasetError(f"{shown(path)} is {name}, not UTF-8; convert it with: {convert}")


def _did_you_mean(path: Path) -> str:
    if not path.parent.is_dir():
        return f" (there is no directory {path.parent}; the working directory is {Path.cwd()})"
    close = get_close_matches(path.name, [entry.name for entry in path.parent.iterdir()], n=3)
    if not close:
        return f" (the working directory is {Path.cwd()})"
    return f"; did you mean {' or '.join(shown(Path(name)) for name in close)}?"
