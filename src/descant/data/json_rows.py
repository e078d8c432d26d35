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

GZIP_ERRORS = (EOFError, zlib.error, gzip.BadGzipFile)
_SPACE = re.compile(r"[ \t\n\r]*")
_NOT_JSON = {
    "{'": "; this is a dict as Python prints it; write rows with json.dumps",
    "<": "; this is HTML or XML, perhaps the error page of a download",
    **dict.fromkeys(
        (*ascii_letters, '"'), "; if this is CSV, read it with datasets.load_dataset('csv', ...) and pass that"
    ),
}
"""What lines that are no JSON may be, by what they begin with."""
_AGAIN = "copy or download it again"


def open_bytes(path: Path, unpack: bool) -> io.BufferedReader | gzip.GzipFile:
    """The bytes of a file, unpacked by gzip if it is packed so."""
    return gzip.GzipFile(path) if unpack else path.open("rb")


def json_lines(path: Path, unpack: bool) -> Iterator[tuple[int, Any]]:
    """The rows of a file that has one a line, numbered from 1 as editors do; blank lines are none.

    Raises:
        DatasetError: the file is not UTF-8, or its gzip data are damaged.
    """
    decoder = Decoder()
    number = 0
    try:
        # The buffer is for GzipFile, whose own lines cost a call of Python each.
        with io.BufferedReader(cast("io.RawIOBase", open_bytes(path, unpack))) as stream:
            for number, raw in enumerate(stream, start=1):
                try:
                    line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    raise _not_utf8(f"{shown(path)}, line {number}", error) from None
                if line and not line.isspace():
                    yield number, _row_of_line(decoder, line, is_cut_off=not raw.endswith(b"\n"))
    except GZIP_ERRORS as error:
        where = f"after line {number}" if number else "among its first lines"  # as near as the buffer lets us see
        raise _bad_gzip(path, where, error) from None


def json_list(path: Path, unpack: bool) -> Iterator[tuple[int, Any]]:
    """The rows of a file that is one JSON list, numbered from 0 as in Python. They are decoded one by one.

    Raises:
        DatasetError: the file is not UTF-8 or not JSON, or its gzip data are damaged.
    """
    text = _text(path, unpack)
    decoder = Decoder()
    position = _skip_space(text, _skip_space(text, 0) + 1)
    number = 0
    while text[position : position + 1] != "]" or number:
        try:
            row, position = decoder.decode_at(text, position)
        except json.JSONDecodeError as error:
            raise _bad_list(path, f"in row [{number}]", error) from None
        except (ValueError, RecursionError) as error:
            raise DatasetError(f"{shown(path)}[{number}]: {_unreadable(error)}") from None
        yield number, row
        number += 1
        position = _skip_space(text, position)
        separator = text[position : position + 1]
        if separator == "]":
            break
        if separator != ",":
            raise _bad_list(
                path, f"after row [{number - 1}]", json.JSONDecodeError("Expecting ',' or ']'", text, position)
            )
        position = _skip_space(text, position + 1)
    position = _skip_space(text, position + 1)
    if position < len(text):
        line, column = text.count("\n", 0, position) + 1, position - text.rfind("\n", 0, position)
        raise DatasetError(f"{shown(path)} is not JSON: the list is followed by more, at line {line}, column {column}")


class Decoder:
    """A JSON decoder that notices keys that stand twice in an object, of which Python's would keep the last."""

    def __init__(self) -> None:
        self._decoder = json.JSONDecoder(object_pairs_hook=self._object)
        self._repeated: str | None = None

    def decode(self, text: str) -> Any:
        """The value that ``text`` is, or a ``BadRow`` if it repeats a key."""
        self._repeated = None
        return self._checked(self._decoder.decode(text))

    def decode_at(self, text: str, position: int) -> tuple[Any, int]:
        """The value that begins at ``position``, or a ``BadRow``, and where it ends."""
        self._repeated = None
        value, end = self._decoder.raw_decode(text, position)
        return self._checked(value), end

    def _checked(self, value: Any) -> Any:
        if self._repeated is None:
            return value
        return BadRow(f"the key {quoted(self._repeated)} stands twice in one object; keep one of them")

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        row = dict(pairs)
        if len(row) != len(pairs):
            ((self._repeated, _),) = Counter(key for key, _ in pairs).most_common(1)
        return row


def _row_of_line(decoder: Decoder, line: str, *, is_cut_off: bool) -> Any:
    try:
        return decoder.decode(line.strip())
    except json.JSONDecodeError as error:
        if is_cut_off and _ended_early(error):
            advice = "; the file ends within this line, so it seems to be cut off"
        else:
            advice = next((text for begin, text in _NOT_JSON.items() if error.doc.startswith(begin)), "")
        column = error.pos + len(line) - len(line.lstrip()) + 1
        return BadRow(f"not JSON: {_reason(error)} at column {column}{advice}")
    except (ValueError, RecursionError) as error:
        return BadRow(_unreadable(error))


def _unreadable(error: ValueError | RecursionError) -> str:
    reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)  # a number of many digits
    return f"not JSON that can be read: {reason}"


def _text(path: Path, unpack: bool) -> str:
    chunks: list[bytes] = []
    try:
        with open_bytes(path, unpack) as stream:
            while chunk := stream.read1(1 << 16):
                chunks.append(chunk)
    except GZIP_ERRORS as error:
        raise _bad_gzip(path, f"after {sum(map(len, chunks)):,} bytes of text", error) from None
    data = b"".join(chunks)
    chunks.clear()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _not_utf8(f"{shown(path)}, line {error.object.count(10, 0, error.start) + 1}", error) from None


def _skip_space(text: str, position: int) -> int:
    match = _SPACE.match(text, position)
    return match.end() if match else position


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
    """Whether all is well but for what is missing: within a text, an escape, a word or between tokens."""
    rest = error.doc[error.pos :].rstrip()
    within_escape = error.msg.startswith("Invalid \\u") and len(rest) < 6
    within_word = any(word.startswith(rest) for word in ("true", "false", "null", "NaN", "Infinity", "-Infinity"))
    return not rest or error.msg.startswith("Unterminated string") or within_escape or within_word


def _reason(error: json.JSONDecodeError) -> str:
    return error.msg.removesuffix(" at")  # "Unterminated string starting at"


def first_line_is_json(head: bytes) -> bool:
    """Whether the first line of a file, of which ``head`` is the beginning, is a row by itself."""
    line, end, _ = head.lstrip().partition(b"\n")
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return not end  # a long line, of which head has only the beginning
    return True
