"""Problems: what pydantic finds wrong with values, one line for each key."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from descant.environment import masked
from descant.errors import ConfigurationError
from descant.threads.quoting import quoted


def describe_problems(error: ValidationError, values: Any, source: str) -> ConfigurationError:
    """An error with one line per key: the key, its value, and what is allowed.

    Args:
        error: what pydantic says.
        values: what was validated.
        source: what messages call it.
    """
    lines: dict[str, str] = {}
    for problem in error.errors(include_url=False):
        key = ".".join(map(str, key_of(problem["loc"], values)))
        allowed = _allowed(problem["type"], problem["msg"])
        if key in lines:  # another member of a union
            lines[key] += "" if lines[key].endswith(allowed) else f", or {allowed}"
        elif problem["type"] == "missing":
            lines[key] = f"{key} is missing: give it in the config file, or with --set {key}=VALUE"
        else:
            shown = quoted(masked(problem["input"], key))
            lines[key] = f"{key} = {shown}: {allowed}" if key else allowed
    count = f"{len(lines)} problem{'s' if len(lines) > 1 else ''}"
    return ConfigurationError("\n".join([f"{source}: {count}", *(f"  {line}" for line in lines.values())]))


def key_of(loc: Sequence[int | str], values: Any) -> list[int | str]:
    """The part of pydantic's location that are keys of the values; the rest names members of unions."""
    key: list[int | str] = []
    for position, part in enumerate(loc):
        is_key = isinstance(values, dict) and part in values
        is_index = isinstance(values, list) and isinstance(part, int) and part < len(values)
        if is_key or is_index:
            key.append(part)
            values = values[part]
        elif isinstance(values, dict) and position == len(loc) - 1:
            key.append(part)  # missing, or a default
    return key


def _allowed(kind: str, message: str) -> str:
    """Pydantic's message, said of a key."""
    message = message.removeprefix("Value error, ").removeprefix("Assertion failed, ")
    message = (
        message.replace("Input should be", "must be").replace("String should", "must").replace("Input should", "must")
    )
    return message[:1].lower() + message[1:] if kind != "value_error" else message
