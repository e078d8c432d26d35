"""Reading threads from files: every bad row is named, by line and reason, before anything is loaded."""

from __future__ import annotations

import json
from collections.abc import Iterator
from difflib import get_close_matches
from os import PathLike
from pathlib import Path
from typing import Any

from descant.errors import ConfigurationError, DatasetError
from descant.threads.thread import StringThread


def load_threads(path: str | PathLike[str]) -> list[StringThread]:
    """The threads of a JSONL file, in the order of its lines.

    Each line is an object with either ``messages`` (a list of ``{"role", "content"}``) or ``prompt`` (a string, or
    a list of messages) and, for training, ``completion`` (a string). Beside ``messages``, ``weights`` may give one
    number for each. Other columns become the thread's metadata; a column ``metadata`` that is an object is merged
    into it. Blank lines are ignored.

    Raises:
        DatasetError: the file is missing, empty, not UTF-8, or has bad rows; ``problems`` has all of them, the
            message the first ten, by line and reason.
    """
    path = Path(path)
    threads: list[StringThread] = []
    problems: list[tuple[str, str]] = []
    for number, line in _lines(path):
        try:
            threads.append(_parse_row(line, source=f"{path}:{number}"))
        except (_BadRow, ConfigurationError) as error:
            problems.append((f"line {number}", str(error)))
    if problems:
        num_rows = len(threads) + len(problems)
        raise DatasetError(f"{path}: {len(problems)} of {num_rows} rows cannot be read as threads", problems)
    if not threads:
        raise DatasetError(f"{path} is empty: a JSONL file with one thread a line is needed")
    return threads


_NOT_YET = ("tool_calls", "tool_call_id", "function_call", "reasoning_content", "thinking", "name", "weight")
"""Keys of messages that some templates render: leaving them out silently would train something else."""


class _BadRow(Exception):
    """Why a row is not a thread."""


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a file that are not blank, numbered from 1."""
    if not path.is_file():
        raise DatasetError(f"{path} is {'a directory' if path.is_dir() else 'not there'}{_did_you_mean(path)}")
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip()
            except UnicodeDecodeError as error:
                byte = f"byte 0x{raw[error.start]:02x} at column {error.start + 1}"
                raise DatasetError(f"{path}, line {number}: not UTF-8 ({byte}); convert the file to UTF-8") from None
            if line:
                yield number, line


def _did_you_mean(path: Path) -> str:
    if not path.parent.is_dir():
        return f" (there is no directory {path.parent}; the working directory is {Path.cwd()})"
    close = get_close_matches(path.name, [entry.name for entry in path.parent.iterdir()], n=3)
    return f"; did you mean {' or '.join(close)}?" if close else f" (the working directory is {Path.cwd()})"


def _parse_row(line: str, source: str) -> StringThread:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise _BadRow(f"not JSON: {error.msg} at column {error.colno}") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets without end
        raise _BadRow(f"not JSON that can be read: {error}") from None
    if not isinstance(row, dict):
        raise _BadRow(f"a JSON {_json_type(row)}, not an object")
    columns = ", ".join(map(repr, row)) or "none"
    has_messages = "messages" in row
    if has_messages and ("prompt" in row or "completion" in row):
        raise _BadRow(f"both 'messages' and 'prompt'/'completion'; keep one of them (columns: {columns})")
    if has_messages:
        turns = _parse_messages(row.pop("messages"), "messages")
    elif "prompt" in row:
        turns = _parse_prompt(row.pop("prompt"))
        if "completion" in row:
            turns.append(("assistant", _parse_text(row.pop("completion"), "completion")))
    else:
        raise _BadRow(f"neither 'messages' nor 'prompt' (columns: {columns})")
    if isinstance(row.get("metadata"), dict):
        row = {**row.pop("metadata"), **row}
    weights = row.pop("weights", None) if has_messages else None
    thread = StringThread(turns, row or None, source=source)
    return thread if weights is None else thread.with_turn_weights(_parse_weights(weights))


def _parse_weights(weights: Any) -> list[float]:
    if not isinstance(weights, list) or not all(
        isinstance(w, int | float) and not isinstance(w, bool) for w in weights
    ):
        raise _BadRow("'weights' is not a list of numbers, one for each message")
    return weights


def _parse_prompt(prompt: Any) -> list[tuple[str, str]]:
    return [("user", prompt)] if isinstance(prompt, str) else _parse_messages(prompt, "prompt")


def _parse_messages(messages: Any, column: str) -> list[tuple[str, str]]:
    if not isinstance(messages, list) or not messages:
        found = "an empty list" if messages == [] else f"a JSON {_json_type(messages)}"
        raise _BadRow(f"{column!r} is {found}, not a list of messages")
    turns = []
    for index, message in enumerate(messages):
        place = f"{column}[{index}]"
        if not isinstance(message, dict):
            raise _BadRow(f"{place} is a JSON {_json_type(message)}, not an object with 'role' and 'content'")
        for key in ("role", "content"):
            if key not in message:
                raise _BadRow(f"{place} has no {key!r} (it has {', '.join(map(repr, message)) or 'nothing'})")
        if unusable := [key for key in _NOT_YET if message.get(key)]:
            raise _BadRow(f"{place} has {unusable[0]!r}, which this version cannot render")
        role = _parse_text(message["role"], f"{place}.role")
        turns.append((role, _parse_text(message["content"], f"{place}.content")))
    return turns


def _parse_text(value: Any, place: str) -> str:
    if not isinstance(value, str):
        raise _BadRow(f"{place} is a JSON {_json_type(value)}, not a string")
    return value


def _json_type(value: Any) -> str:
    names = {dict: "object", list: "list", str: "string", bool: "boolean", int: "number", float: "number"}
    return names.get(type(value), "null")
