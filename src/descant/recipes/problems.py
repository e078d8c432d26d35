"""Problems: errors of pydantic as one line for each key, in the words of a config file."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from descant.errors import ConfigurationError
from descant.provenance import masked
from descant.text import quoted

_PHRASES = (
    (r"^(Value error|Assertion failed), ", ""),
    (r"^Extra inputs are not permitted$", "there is no such key"),  # of a config that contains itself
    (r"^Input should be ", "must be "),
    (r"^(String|Input|List|Tuple|Set|Dictionary|Value) should ", "must "),
    (r"a valid dictionary or instance of (\w+)", r"a table (\1)"),
    (r"a valid (dictionary|mapping)", "a table"),
    (r"a valid (list|tuple|set)$", 'a list, such as ["a", "b"] or [1, 2]'),
    (
        r"^Input tag (.+) found using '(\w+)' does not match any of the expected tags: (.+)$",
        r"\2 is \1 and must be one of \3",
    ),
    (r"^Unable to extract tag using discriminator ('\w+')$", r"the key \1 is missing, which says what the others are"),
)
"""Pydantic's messages as words about a key."""


def describe_problems(error: ValidationError, values: Any, source: str) -> ConfigurationError:
    """An error with one line per key of the validated values: the key, its value, and what is allowed."""
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
    """The keys of the values in a location of pydantic's, whose other parts name members of unions."""
    keys: list[int | str] = []
    for position, part in enumerate(loc):
        is_key = isinstance(values, dict) and part in values
        is_index = isinstance(values, list) and isinstance(part, int) and part < len(values)
        if is_key or is_index:
            keys.append(part)
            values = values[part]
        elif position == len(loc) - 1 and (isinstance(values, dict) or isinstance(part, int)):
            keys.append(part)  # missing, or a default
    return keys


def _allowed(kind: str, message: str) -> str:
    """Pydantic's message as words about a key."""
    for pattern, words in _PHRASES:
        message = re.sub(pattern, words, message)
    return message[:1].lower() + message[1:] if kind != "value_error" else message
