"""field_lines: what a config can be told, as text."""

from __future__ import annotations

import textwrap
import types
from collections.abc import Iterator
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from descant.environment import MASK, is_secret

_LIMITS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<=", "multiple_of": "a multiple of"}
_LENGTHS = {"min_length": "at least {} long", "max_length": "at most {} long", "pattern": "matching {}"}


def field_lines(config_class: type[BaseModel], width: int, prefix: str = "") -> Iterator[str]:
    """Every field with its type, limits, default and description; those of nested configs with their full keys."""
    for name, field in config_class.model_fields.items():
        key = f"{prefix}{field.alias or name}"
        nested = field.annotation
        if isinstance(nested, type) and issubclass(nested, BaseModel):
            about = field.description or (nested.__doc__ if nested.__doc__ != nested.__base__.__doc__ else None)
            yield f"  {key}: table" + (" (required)" if field.is_required() else "")
            yield from _wrapped(about, width)
            yield from field_lines(nested, width, f"{key}.")
            continue
        limits = "".join(f", {limit}" for limit in _limits(field))
        yield f"  {key}: {type_text(field.annotation)}{limits} ({_default(key, field)})"
        yield from _wrapped(field.description, width)


def type_text(annotation: Any) -> str:
    """A type as people write it: ``float | None``, ``'min' | 'max'``, ``list[str]``."""
    if annotation is None or annotation is type(None):
        return "null"
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " | ".join(map(repr, arguments))
    if origin in (Union, types.UnionType):
        return " | ".join(map(type_text, arguments))
    if hasattr(annotation, "__metadata__"):  # Annotated
        return type_text(arguments[0])
    if origin is not None:
        inner = ", ".join("..." if argument is ... else type_text(argument) for argument in arguments)
        return f"{getattr(origin, '__name__', origin)}[{inner}]"
    return getattr(annotation, "__name__", str(annotation))


def _limits(field: FieldInfo) -> Iterator[str]:
    for item in field.metadata:
        for name, sign in _LIMITS.items():
            if getattr(item, name, None) is not None:
                yield f"{sign} {getattr(item, name)}"
        for name, words in _LENGTHS.items():
            if getattr(item, name, None) is not None:
                yield words.format(getattr(item, name))


def _default(key: str, field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    default = field.get_default(call_default_factory=True, validated_data={})
    if default is None:
        return "default null"
    if is_secret(key) and default != "":
        return f"default {MASK}"
    return f"default {default!r}" if isinstance(default, str) else f"default {default}"


def _wrapped(text: str | None, width: int) -> Iterator[str]:
    indent = " " * 6
    yield from textwrap.wrap(text or "", max(width, 40), initial_indent=indent, subsequent_indent=indent)
