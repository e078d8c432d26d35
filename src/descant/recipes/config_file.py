"""Config files: TOML, JSON or YAML, and the values of ``--set``."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from descant.errors import ConfigurationError
from descant.text import quoted

_TOML_PLACE = re.compile(r"^(.*) \(at (?:line (\d+), column (\d+)|end of document)\)$", re.DOTALL)


def read_config(path: str | Path) -> dict[str, Any]:
    """The values of a config file; its suffix says in which language it is written.

    Raises:
        ConfigurationError: it is not there, not text, or has a syntax error (with line and column).
    """
    path = Path(path)
    readers = {".toml": _read_toml, ".json": _read_json, ".yaml": _read_yaml, ".yml": _read_yaml}
    if path.suffix not in readers:
        raise ConfigurationError(f"config {path}: the name must end in {', '.join(readers)}")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        there = [other.name for other in path.parent.glob("*") if other.suffix in readers]
        close = get_close_matches(path.name, there, n=1)
        hint = f"; did you mean {path.parent / close[0]}?" if close else f" (the working directory is {Path.cwd()})"
        raise ConfigurationError(f"config {path} is not there{hint}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"config {path} cannot be read: {error}") from error
    values = readers[path.suffix](path, text)
    if not isinstance(values, dict):
        raise ConfigurationError(f"config {path} must hold keys with values, not {quoted(values)}")
    return values


def apply_setting(values: dict[str, Any], setting: str) -> tuple[tuple[str, ...], str]:
    """Put ``key=value`` or ``nested.key=value`` into the values, over what is there.

    The value is read as TOML (``3``, ``true``, ``[1, 2]``, ``"text"``), ``null`` or ``None``; all else is text.

    Returns:
        the parts of the key, and the value as it was written.

    Raises:
        ConfigurationError: no key, no equals sign, or a key within something that is not a table.
    """
    key, equals, written = setting.partition("=")
    parts = tuple(part.strip() for part in key.split("."))
    if not equals or not all(parts):
        raise ConfigurationError(f"--set {quoted(setting)} must be KEY=VALUE or TABLE.KEY=VALUE")
    put_value(values, parts, parse_value(written))
    return parts, written


def put_value(values: dict[str, Any], parts: Sequence[str], value: Any) -> None:
    """Put a value at a nested key.

    Raises:
        ConfigurationError: what stands on the way is not a table.
    """
    for number, part in enumerate(parts[:-1], start=1):
        inner = values.setdefault(part, {})
        if not isinstance(inner, dict):
            raise ConfigurationError(
                f"--set {'.'.join(parts)}: {'.'.join(parts[:number])} is {quoted(inner)}, which has no keys; "
                f"give all of it as one table: --set '{'.'.join(parts[:number])}={{KEY = VALUE, ...}}'"
            )
        values = inner
    values[parts[-1]] = value


def parse_value(written: str) -> Any:
    """The TOML value that is written, None for ``null`` or ``None``, or else the text itself."""
    if written in ("null", "None"):
        return None
    try:
        parsed = tomllib.loads(f"value = {written}")
    except tomllib.TOMLDecodeError:
        return written
    return parsed["value"] if list(parsed) == ["value"] else written


def _read_toml(path: Path, text: str) -> Any:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        match = _TOML_PLACE.match(str(error))
        lines = text.split("\n")
        end = (str(len(lines)), str(len(lines[-1]) + 1))
        line, column = end if match is None or match[2] is None else (match[2], match[3])
        raise _syntax_error(path, line, column, match[1] if match else str(error)) from None


def _read_json(path: Path, text: str) -> Any:
    def as_dict(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in pairs]
        if twice := [key for key in keys if keys.count(key) > 1]:
            raise ConfigurationError(f"config {path}: the key {quoted(twice[0])} stands there twice")
        return dict(pairs)

    try:
        return json.loads(text, object_pairs_hook=as_dict)
    except json.JSONDecodeError as error:
        raise _syntax_error(path, error.lineno, error.colno, error.msg) from None


def _read_yaml(path: Path, text: str) -> Any:
    try:
        import yaml  # type: ignore[import-untyped, unused-ignore]  # noqa: PLC0415
    except ImportError:
        raise ConfigurationError(
            f"config {path} is YAML, which needs PyYAML: pip install pyyaml; or write it as TOML"
        ) from None
    try:
        _refuse_repeated_keys(path, yaml.compose(text, Loader=yaml.SafeLoader))
        return yaml.safe_load(text) or {}
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        raise _syntax_error(path, line, column, error.problem or "not YAML") from None
    except yaml.YAMLError as error:
        raise ConfigurationError(f"config {path} cannot be read: {error}") from None


def _refuse_repeated_keys(path: Path, node: Any) -> None:
    """The reader would take the last of them without a word."""
    seen: set[str] = set()
    for child in getattr(node, "value", None) or () if node is not None and node.id != "scalar" else ():
        key, *others = child if isinstance(child, tuple) else (child,)
        if others and key.id == "scalar":
            if key.value in seen:
                place = key.start_mark
                raise _syntax_error(path, place.line + 1, place.column + 1, f"the key {key.value!r} stands there twice")
            seen.add(key.value)
        for inner in others or [key]:
            _refuse_repeated_keys(path, inner)


def _syntax_error(path: Path, line: int | str, column: int | str, reason: str) -> ConfigurationError:
    return ConfigurationError(f"config {path}, line {line}, column {column}: {reason}")
