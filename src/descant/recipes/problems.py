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
_OF_ANOTHER_MEMBER = ("unknown_key", "literal_error", "missing")
"""Problems that show that a value was meant for another member of a union."""


def describe_problems(error: ValidationError, values: Any, source: str) -> ConfigurationError:
    """An error with one line per key: the key, its value, and what is allowed.

    Args:
        error: of pydantic.
        values: those that were validated.
        source: how messages call the values.
    """
    lines: dict[str, str] = {}
    for problem in _of_fitting_members(error.errors(include_url=False), values):
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
    return [loc[position] for position in _key_positions(loc, values)]


def _key_positions(loc: Sequence[int | str], values: Any) -> list[int]:
    positions: list[int] = []
    for position, part in enumerate(loc):
        is_key = isinstance(values, dict) and part in values
        is_index = isinstance(values, list) and isinstance(part, int) and part < len(values)
        if is_key or is_index:
            positions.append(position)
            values = values[part]
        elif position == len(loc) - 1 and (isinstance(values, dict) or isinstance(part, int)):
            positions.append(position)  # missing, or a default
    return positions


def _of_fitting_members(problems: Sequence[Any], values: Any) -> list[Any]:
    """The problems; of a union only those of the members that fit the value best."""
    misfits: dict[Any, dict[Any, int]] = {}  # by the location of a union, and its member
    members: list[Any] = []
    for problem in problems:
        loc = problem["loc"]
        in_key = set(_key_positions(loc, values))
        at = next((position for position in range(len(loc)) if position not in in_key), None)
        members.append(None if at is None else (loc[:at], loc[at]))
        if at is not None:
            of_union = misfits.setdefault(loc[:at], {})
            weight = 2 if problem["type"] in _OF_ANOTHER_MEMBER and "did you mean" not in problem["msg"] else 1
            of_union[loc[at]] = of_union.get(loc[at], 0) + weight
    return [
        problem
        for problem, member in zip(problems, members, strict=True)
        if member is None or misfits[member[0]][member[1]] == min(misfits[member[0]].values())
    ]


def _allowed(kind: str, message: str) -> str:
    """Pydantic's message as words about a key."""
    for pattern, words in _PHRASES:
        message = re.sub(pattern, words, message)
    return message[:1].lower() + message[1:] if kind != "value_error" else message
