"""The values of a config: from a TOML, JSON or YAML file, and from ``--set KEY=VALUE``."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from copy import deepcopy
from json import JSONDecodeError
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import ValidationError

from descant.data.bad_row import BadRow
from descant.data.json_rows import DECODER
from descant.errors import ConfigurationError
from descant.recipes.problems import key_of
from descant.text import did_you_mean, quoted

if TYPE_CHECKING:
    from descant.recipes.config import InputConfig

_TOML_POSITION = re.compile(r"^(.*) \(at (?:line (\d+), column (\d+)|end of document)\)$", re.DOTALL)

_Config = TypeVar("_Config", bound="InputConfig")


def read_input(config_class: type[_Config], file: Path | None, settings: Sequence[str]) -> _Config:
    """A recipe's config: the defaults of the class, over them the file, over it the ``key=value`` settings."""
    values = {} if file is None else read_config(file)
    written = dict(apply_setting(values, setting) for setting in settings)
    for parts, text in written.items():  # --set name=123 is text where the field is text
        as_text = deepcopy(values)
        _put(as_text, parts, text)
        if _is_refused(config_class, values, parts) and not _is_refused(config_class, as_text, parts):
            values = as_text
    sources = [str(file)] * (file is not None) + ["--set"] * bool(settings)
    return config_class.from_values(values, " and ".join(sources) or "the config")


def read_config(path: str | Path) -> dict[str, Any]:
    """The values of a config file, in the language of its suffix."""
    path = Path(path)
    readers = {".toml": _read_toml, ".json": _read_json, ".yaml": _read_yaml, ".yml": _read_yaml}
    if path.suffix not in readers:
        raise ConfigurationError(f"config {path}: the name must end in {', '.join(readers)}")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        there = [other.name for other in path.parent.glob("*") if other.suffix in readers]
        hint = did_you_mean(path.name, there, f"the working directory is {Path.cwd()}")
        raise ConfigurationError(f"config {path} is not there; {hint}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"config {path} cannot be read: {error}") from error
    values = readers[path.suffix](path, text)
    if not isinstance(values, dict):
        raise ConfigurationError(f"config {path} must hold keys with values, not {quoted(values)}")
    return values


def apply_setting(values: dict[str, Any], setting: str) -> tuple[tuple[str, ...], str]:
    """Put ``key=value`` or ``table.key=value`` into the values; returns the parts of the key, and the value's text."""
    key, equals, written = setting.partition("=")
    parts = tuple(part.strip() for part in key.split("."))
    if not equals or not all(parts):
        raise ConfigurationError(f"--set {quoted(setting)} must be KEY=VALUE or TABLE.KEY=VALUE")
    _put(values, parts, parse_value(written))
    return parts, written


def parse_value(written: str) -> Any:
    """The TOML value that is written, None for ``null`` or ``None``, or else the text itself."""
    if written in ("null", "None"):
        return None
    try:
        parsed = tomllib.loads(f"value = {written}")
    except tomllib.TOMLDecodeError:
        return written
    return parsed["value"] if list(parsed) == ["value"] else written


def _put(values: dict[str, Any], parts: Sequence[str], value: Any) -> None:
    for number, part in enumerate(parts[:-1], start=1):
        inner = values.setdefault(part, {})
        if not isinstance(inner, dict):
            table = ".".join(parts[:number])
            raise ConfigurationError(
                f"--set {'.'.join(parts)}: {table} is {quoted(inner)}, which has no keys; "
                f"give all of it as one table: --set '{table}={{KEY = VALUE, ...}}'"
            )
        values = inner
    values[parts[-1]] = value


def _is_refused(config_class: type[InputConfig], values: dict[str, Any], parts: Sequence[str]) -> bool:
    """Whether the config does not allow the value at a key."""
    try:
        config_class.model_validate(values)
    except ValidationError as error:
        keys = [key_of(problem["loc"], values) for problem in error.errors(include_url=False)]
        return any(key[: len(parts)] == list(parts) for key in keys)
    return False


def _read_toml(path: Path, text: str) -> Any:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        match = _TOML_POSITION.match(str(error))
        lines = text.split("\n")
        line, column = (int(match[2]), int(match[3])) if match and match[2] else (len(lines), len(lines[-1]) + 1)
        raise _syntax_error(path, line, column, match[1] if match else str(error)) from None


def _read_json(path: Path, text: str) -> Any:
    try:
        return DECODER.decode(text)
    except BadRow as error:
        raise ConfigurationError(f"config {path}: {error}") from None
    except JSONDecodeError as error:
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
            values = [key.value for key, _ in node.value]
            for index, (key, _) in enumerate(node.value):
                if key.value in values[:index]:
                    problem = f"the key {key.value!r} stands twice in one object; keep one of them"
                    raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
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
