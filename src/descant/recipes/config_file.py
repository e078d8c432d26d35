"""read_config: the values of a TOML, JSON or YAML file."""

from __future__ import annotations

import json
import re
import tomllib
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from descant.errors import ConfigurationError
from descant.text import quoted

_TOML_POSITION = re.compile(r"^(.*) \(at (?:line (\d+), column (\d+)|end of document)\)$", re.DOTALL)


def read_config(path: str | Path) -> dict[str, Any]:
    """The values of a config file, in the language of its suffix.

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


def _read_toml(path: Path, text: str) -> Any:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        match = _TOML_POSITION.match(str(error))
        lines = text.split("\n")
        line, column = (int(match[2]), int(match[3])) if match and match[2] else (len(lines), len(lines[-1]) + 1)
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

    class Loader(yaml.SafeLoader):  # type: ignore[misc, unused-ignore]
        """Refuses a repeated key, of which PyYAML would take the last silently."""

        def compose_mapping_node(self, anchor: Any) -> Any:
            node = super().compose_mapping_node(anchor)
            seen: list[Any] = []
            for key, _ in node.value:
                if key.value in seen:
                    problem = f"the key {key.value!r} stands there twice"
                    raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
                seen.append(key.value)
            return node

    try:
        return yaml.load(text, Loader) or {}  # it is a safe loader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        raise _syntax_error(path, line, column, error.problem or "not YAML") from None
    except yaml.YAMLError as error:
        raise ConfigurationError(f"config {path} cannot be read: {error}") from None


def _syntax_error(path: Path, line: int, column: int, reason: str) -> ConfigurationError:
    return ConfigurationError(f"config {path}, line {line}, column {column}: {reason}")
