"""Settings: what a run was given, as plain values. Numbers stay numbers; an object is its name and its arguments."""

from __future__ import annotations

import inspect
import linecache
import re
from collections.abc import Mapping, Set
from contextlib import suppress
from enum import Enum
from functools import partial
from inspect import getattr_static
from numbers import Integral, Real
from pathlib import Path
from textwrap import dedent
from types import MemberDescriptorType
from typing import Any

from descant.arguments import argument_names
from descant.provenance import masked
from descant.text import cut

_MAX_DEPTH = 8
_MAX_ITEMS = 50
_MAX_TEXT = 1000  # characters of source, or of what an object says of itself
_ABSENT = object()


def plain(value: Any, depth: int = _MAX_DEPTH) -> Any:  # noqa: PLR0911 - one for each kind
    """A setting as data that JSON can hold.

    An object is the ``name`` of its class with the arguments that it keeps; a function its name, the values that it has
    from around it, and its source. Of more than 50 items, such as those of a dataset, the number is kept.
    """
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, Real):  # also of numpy, and fractions
        return _number(value)
    if isinstance(value, Path | Enum | re.Pattern):
        return str(value) if isinstance(value, Path) else value.value if isinstance(value, Enum) else value.pattern
    if isinstance(getattr_static(value, "description", None), str):  # a model
        return {"name": getattr(value, "name", type(value).__name__), "description": value.description}
    if isinstance(value, list | tuple | Set) and len(value) > _MAX_ITEMS:
        return {"num_items": len(value)}
    if depth <= 0:
        return _repr(value)
    if isinstance(value, Mapping):
        return {str(name): plain(item, depth - 1) for name, item in value.items()}
    if isinstance(value, list | tuple | Set):
        return [plain(item, depth - 1) for item in (sorted(value, key=repr) if isinstance(value, Set) else value)]
    if isinstance(value, partial):
        given = {"arguments": list(value.args)} if value.args else {}
        return {"name": _name(value.func), **plain({**given, **value.keywords}, depth - 1)}
    if inspect.isclass(value):
        return _name(value)
    if inspect.isroutine(value):
        return {"name": _name(value), **_closure(value), **_source(value)}
    kept = {name: plain(item, depth - 3) for name, item in _kept(value).items() if name != "name"}
    says_nothing = getattr_static(type(value), "__repr__") is getattr_static(object, "__repr__")
    return {"name": _name(type(value)), **kept} if kept or says_nothing else _repr(value)


def plain_settings(configured: object) -> dict[str, Any]:
    """Arguments of an object's constructors, its bases' too, that it keeps under their names, as far as they are plain:
    numbers, text, paths, and lists and mappings of such."""
    kept = {name: value.absolute() if isinstance(value, Path) else value for name, value in _kept(configured).items()}
    return {name: masked(plain(value), name) for name, value in kept.items() if value is not None and _is_plain(value)}


def flattened(settings: Any, prefix: str = "") -> dict[str, Any]:
    """Nested settings as one level of dotted keys. In lists of mappings, the names of named ones (callbacks) are keys,
    and otherwise their positions, from 1."""
    if isinstance(settings, list) and settings and all(isinstance(item, dict) for item in settings):
        settings = {
            str(item.get("name", position)): {key: item[key] for key in item if key != "name"}
            for position, item in enumerate(settings, start=1)
        }
    if not isinstance(settings, Mapping) or not settings:
        return {prefix: settings} if prefix else {}
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= flattened(value, f"{prefix}.{key}" if prefix else str(key))
    return flat


def _number(value: Any) -> int | float | str:
    try:
        return int(value) if isinstance(value, Integral) else float(value)
    except OverflowError:  # a fraction that is too large
        return str(value)


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(map(_is_plain, value.values()))
    if isinstance(value, list | tuple | Set):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, str | Real | Path | Enum | re.Pattern)


def _kept(configured: object) -> dict[str, Any]:
    """The arguments of an object's constructors that it keeps as attributes; nothing of it is run."""
    try:
        names = argument_names(type(configured))
    except (TypeError, ValueError):  # written in C, some say nothing of their arguments
        return {}
    kept = {}
    for name in names:
        value = getattr_static(configured, name, _ABSENT)
        if isinstance(value, MemberDescriptorType):  # of slots
            value = getattr(configured, name, _ABSENT)
        if value is not _ABSENT and not isinstance(value, property):
            kept[name] = value
    return kept


def _name(named: Any) -> str:
    return str(getattr(named, "__qualname__", None) or type(named).__name__)


def _closure(function: Any) -> dict[str, Any]:
    """The numbers and texts that a function has from around it."""
    held = {}
    code, cells = getattr(function, "__code__", None), getattr(function, "__closure__", None)
    for name, cell in zip(getattr(code, "co_freevars", ()), cells or (), strict=False):
        with suppress(ValueError):  # it is empty
            held[name] = cell.cell_contents
    return {name: plain(value) for name, value in held.items() if isinstance(value, str | Real) and name != "name"}


def _source(function: Any) -> dict[str, str]:
    """The text of a function, of a lambda its line; nothing if it was not written in Python, or is no longer there."""
    code = getattr(function, "__code__", None)
    if code is None:
        return {}
    if code.co_name == "<lambda>":
        text = linecache.getline(code.co_filename, code.co_firstlineno)
    else:
        try:
            text = inspect.getsource(code)
        except OSError:
            text = ""
    text = dedent(text).strip()[:_MAX_TEXT]
    return {"source": text} if text else {}


def _repr(value: Any) -> str:
    return re.sub(" at 0x[0-9a-f]+", "", cut(repr(value), _MAX_TEXT))  # where it is in memory is no setting
