"""Settings: ``--set KEY=VALUE`` on the command line, over the values of the config file."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from descant.errors import ConfigurationError
from descant.recipes.config import InputConfig
from descant.recipes.config_file import read_config
from descant.recipes.problems import key_of
from descant.text import quoted

_Config = TypeVar("_Config", bound=InputConfig)


def read_input(config_class: type[_Config], file: Path | None, settings: Sequence[str]) -> _Config:
    """A recipe's config: the defaults of the class, over them the file, over it ``key=value`` settings in their order.

    Raises:
        ConfigurationError: the file or a setting cannot be read, or values are not allowed, all of them listed.
    """
    values = {} if file is None else read_config(file)
    written = dict(apply_setting(values, setting) for setting in settings)
    for parts, text in written.items():  # --set name=123 is text where the field is text
        as_text = deepcopy(values)
        _put(as_text, parts, text)
        if _is_refused(config_class, values, parts) and not _is_refused(config_class, as_text, parts):
            values = as_text
    sources = [str(file)] * (file is not None) + ["--set"] * bool(settings)
    return config_class.from_values(values, " and ".join(sources) or "the config")


def apply_setting(values: dict[str, Any], setting: str) -> tuple[tuple[str, ...], str]:
    """Put ``key=value`` or ``table.key=value`` into the values, over what is there.

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
