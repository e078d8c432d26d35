"""BadRow: why a row of a dataset cannot be used."""

from __future__ import annotations

import math
from collections.abc import Iterable
from types import UnionType
from typing import Any

from descant.text import quoted


class BadRow(Exception):
    """Why a row cannot be used."""


def expect(value: Any, kind: type | UnionType, place: str, what: str) -> None:
    """Raises a ``BadRow`` if the value at this place is not of this kind, ``what`` in words."""
    if not isinstance(value, kind):
        raise BadRow(f"{place} is {type_of(value)}, not {what}")


def listed(columns: Iterable[str]) -> str:
    """The names of columns or keys, at most a dozen of them."""
    names = [quoted(name, 40) for name in columns]
    return ", ".join(names[:12] + [f"and {len(names) - 12} more"] * (len(names) > 12)) or "none"


def type_of(value: Any) -> str:
    """The type of a value, in the words of JSON if JSON has it."""
    names = {dict: "object", list: "list", str: "string", bool: "boolean", int: "number", float: "number"}
    if value is None:
        return "a JSON null"
    if type(value) is float and math.isnan(value):
        return "NaN, which pandas writes where a value is missing"
    if isinstance(value, bytes):
        return "bytes, which must be decoded to text"
    return f"a JSON {names[type(value)]}" if type(value) in names else f"of type {type(value).__name__}"
