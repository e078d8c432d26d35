"""JSON rows: one object a line, or one list of objects."""

from __future__ import annotations

import gzip
import io
import json
import re
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from string import ascii_letters
from typing import Any, cast

from descant.data.bad_row import BadRow
from descant.errors import DatasetError
from descant.text import quoted, shown

_GZIP_ERRORS = (EOFError, zlib.error, gzip.BadGzipFile)
_SPACE = re.compile(r"[ \t\n\r]*")
_NOT_JSON = {
    "{'": "; this is a dict as Python prints it; write rows with json.dumps",
    "<": "; this is HTML or XML, perhaps the error page of a download",
    **dict.fromkeys(
        (*ascii_letters, '"'), "; if this is CSV, read it with datasets.load_dataset('csv', ...) and pass that"
    ),
}
"""What lines that are not JSON may be, by what they begin with."""
_AGAIN = "copy or download it again"
_ONE_LINE = "a row must be on one line, or the file one list of rows"
_BOM = b"\xef\xbb\xbf"
_PADDING = "\0" * 4
_NOT_WRITTEN = "NUL bytes, so the file was not written to its end (a crash, a full disk); write or copy it again"


class _Unfinished(BadRow):
    """A line that begins an object and ends within it."""


def is_json_list(path: Path, unpack: bool) -> bool:
    """Whether a file begins as a JSON list, and not as one object a line."""
    try:
        with _open(path, unpack) as stream:
            return stream.read1(1 << 16).removeprefix(_BOM).lstrip().startswith(b"[")
    except _GZIP_ERRORS:  # reading all of it will say where
        return False


def json_lines(path: Path, unpack: bool) -> Iterator[tuple[int, Any]]:
    """The rows of a file that has one a line, numbered from 1 as editors do; blank lines are ignored."""
    number = 0
    unfinished: tuple[int, BadRow] | None = None
    try:
        # The buffer is for GzipFile, whose own lines cost a call of Python each.
        with io.BufferedReader(cast("io.RawIOBase", _open(path, unpack))) as stream:
            for number, raw in enumerate(stream, start=1):
                try:
                    line = raw.removeprefix(_BOM).decode()  # files that were joined have it within
                except UnicodeDecodeError as error:
                    raise _not_utf8(f"{shown(path)}, line {number}", error) from None
                if not line or line.isspace():
                    continue
                if unfinished and not line.lstrip().startswith("{"):
                    raise DatasetError(f"{shown(path)}, line {unfinished[0]}: {unfinished[1]} (line {number} goes on)")
                row = _row_of_line(line, is_last=not raw.endswith(b"\n"))
                unfinished = (number, row) if type(row) is _Unfinished else None
                yield number, row
    except _GZIP_ERRORS as error:
        where = f"after line {number}" if number else "among its first lines"  # as near as the buffer lets us see
        raise _bad_gzip(path, where, error) from None


def json_list(path: Path, unpack: bool) -> Iterator[tuple[int, Any]]:
    """The rows of a file that is one JSON list, numbered from 0 as in Python; decoded as they are asked for."""
    text = _text(path, unpack)
    position = _after_space(text, _after_space(text, 0) + 1)
    number, separator = 0, text[position : position + 1]
    while separator != "]":
        try:
            row, position = _row_at(text, position)
        except json.JSONDecodeError as error:
            raise _bad_list(path, f"in row [{number}]", error) from None
        except (ValueError, RecursionError) as error:
            raise DatasetError(f"{shown(path)}[{number}]: {_unreadable(error)}") from None
        yield number, row
        position = _after_space(text, position)
        separator = text[position : position + 1]
        if separator not in (",", "]"):
            missing = json.JSONDecodeError("Expecting ',' or ']'", text, position)
            raise _bad_list(path, f"after row [{number}]", missing)
        if separator == ",":
            position = _after_space(text, position + 1)
        number += 1
    position = _after_space(text, position + 1)
    if position < len(text):
        raise _bad_list(path, "after the list", json.JSONDecodeError("Extra data", text, position))


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) != len(pairs):
        ((repeated, _),) = Counter(key for key, _ in pairs).most_common(1)
        raise BadRow(f"the key {quoted(repeated)} stands twice in one object; keep one of them")
    return row


DECODER = json.JSONDecoder(object_pairs_hook=_object)
"""Raises a ``BadRow`` for a repeated key, of which Python's decoder would keep the last value."""


def _row_at(text: str, position: int) -> tuple[Any, int]:
    """The row that begins at a position, or a ``BadRow``, and where it ends."""
    try:
        return DECODER.raw_decode(text, position)
    except BadRow as error:
        return error, json.JSONDecoder().raw_decode(text, position)[1]


def _open(path: Path, unpack: bool) -> io.BufferedReader | gzip.GzipFile:
    return gzip.GzipFile(path) if unpack else path.open("rb")


def _row_of_line(line: str, *, is_last: bool) -> Any:
    try:
        return DECODER.decode(line.strip())
    except BadRow as error:
        return error
    except json.JSONDecodeError as error:
        kind, is_early = BadRow, _ended_early(error)
        if _PADDING in line:
            advice = f"; there are {_NOT_WRITTEN}"
        elif "\0" in line:
            advice = "; this seems to be UTF-16; convert the file to UTF-8"
        elif is_early and is_last:
            advice = "; the file ends within this line, so it seems to be cut off"
        elif is_early and error.doc.startswith("{"):
            kind, advice = _Unfinished, f"; {_ONE_LINE}"
        elif "\r" in error.doc:
            advice = "; lines end in carriage returns alone; write them with line feeds (tr '\\r' '\\n')"
        else:
            advice = next((text for begin, text in _NOT_JSON.items() if error.doc.startswith(begin)), "")
        column = error.pos + len(line) - len(line.lstrip()) + 1
        return kind(f"not JSON: {_reason(error)} at column {column}{advice}")
    except (ValueError, RecursionError) as error:
        return BadRow(_unreadable(error))


def _unreadable(error: ValueError | RecursionError) -> str:
    reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)  # a number of many digits
    return f"not JSON that can be read: {reason}"


def _text(path: Path, unpack: bool) -> str:
    chunks: list[bytes] = []
    try:
        with _open(path, unpack) as stream:
            chunks.extend(iter(lambda: stream.read1(1 << 16), b""))
    except _GZIP_ERRORS as error:
        raise _bad_gzip(path, f"after {sum(map(len, chunks)):,} bytes of text", error) from None
    data = b"".join(chunks)
    if data.endswith(_PADDING.encode()):
        raise DatasetError(f"{shown(path)} ends in {_NOT_WRITTEN}")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _not_utf8(f"{shown(path)}, line {error.object.count(10, 0, error.start) + 1}", error) from None


def _after_space(text: str, position: int) -> int:
    return match.end() if (match := _SPACE.match(text, position)) else position


def _not_utf8(place: str, error: UnicodeDecodeError) -> DatasetError:
    line_start = error.object.rfind(b"\n", 0, error.start) + 1
    column = len(error.object[line_start : error.start].decode()) + 1  # in characters, as editors count
    byte = f"byte 0x{error.object[error.start]:02x} at column {column}"
    if error.reason == "unexpected end of data":
        return DatasetError(f"{place}: the file seems to be cut off within a character ({byte}); {_AGAIN}")
    return DatasetError(f"{place}: not UTF-8 ({byte}); convert the file to UTF-8")


def _bad_gzip(path: Path, where: str, error: Exception) -> DatasetError:
    if isinstance(error, EOFError):
        return DatasetError(f"{shown(path)} seems to be cut off: its gzip data end {where}; {_AGAIN}")
    return DatasetError(f"{shown(path)} is damaged: its gzip data cannot be unpacked {where} ({error}); {_AGAIN}")


def _bad_list(path: Path, where: str, error: json.JSONDecodeError) -> DatasetError:
    reason = f"{_reason(error)} at line {error.lineno}, column {error.colno}"
    if _ended_early(error):
        return DatasetError(f"{shown(path)} seems to be cut off {where}: {reason}; {_AGAIN}")
    return DatasetError(f"{shown(path)} is not JSON {where}: {reason}")


def _ended_early(error: json.JSONDecodeError) -> bool:
    """Whether only the end is missing: within a string, an escape or a word, or between tokens."""
    rest = error.doc[error.pos :].rstrip()
    within_escape = error.msg.startswith("Invalid \\u") and len(rest) < 6
    within_word = any(word.startswith(rest) for word in ("true", "false", "null", "NaN", "Infinity", "-Infinity"))
    return not rest or error.msg.startswith("Unterminated string") or within_escape or within_word


def _reason(error: json.JSONDecodeError) -> str:
    return error.msg.removesuffix(" at")  # "Unterminated string starting at"
