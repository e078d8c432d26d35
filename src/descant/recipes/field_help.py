"""field_lines: the help text of a config."""

from __future__ import annotations

import textwrap
import types
from collections.abc import Iterator
from enum import Enum
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from descant.provenance import MASK, is_secret

_LIMITS = {
    **{"gt": "> {}", "ge": ">= {}", "lt": "< {}", "le": "<= {}", "multiple_of": "a multiple of {}"},
    **{"min_length": "at least {} long", "max_length": "at most {} long", "pattern": "matching {}"},
}


def field_lines(
    config_class: type[BaseModel], width: int, prefix: str = "", above: tuple[type[BaseModel], ...] = ()
) -> Iterator[str]:
    """Every field with its type, limits, default and description; those of nested configs with their full keys.

    A config that is nested in itself (``above``) is not repeated.
    """
    above = (*above, config_class)
    for name, field in config_class.model_fields.items():
        key = f"{prefix}{field.alias or name}"
        nested = list(_nested(field.annotation))
        if [field.annotation] == [kind for _, kind in nested]:
            kind = nested[0][1]
            about = field.description or (kind.__doc__ if kind.__doc__ != kind.__base__.__doc__ else None)
            yield f"  {key}: table" + (" (required)" if field.is_required() else "")
            yield from _wrapped(about, width)
        else:
            limits = "".join(f", {limit}" for limit in _limits(field))
            yield f"  {key}: {type_text(field.annotation)}{limits} ({_default(key, field)})"
            yield from _wrapped(field.description, width)
        for path, kind in nested:
            if len(nested) > 1:
                yield f"  {key}{path}, if {kind.__name__}:"
            if kind not in above:
                yield from field_lines(kind, width, f"{key}{path}.", above)


def _nested(annotation: Any) -> Iterator[tuple[str, type[BaseModel]]]:
    """The configs within a type, each with the path from the key of the type to its keys."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield "", annotation
    step = {Annotated: "", Union: "", types.UnionType: "", dict: ".NAME"}.get(get_origin(annotation), "[]")
    for argument in get_args(annotation):
        yield from ((f"{step}{path}", kind) for path, kind in _nested(argument))


def type_text(annotation: Any) -> str:
    """A type as people write it: ``float | null``, ``'min' | 'max'``, ``list[str]``."""
    if annotation is type(None):
        return "null"
    origin, arguments = get_origin(annotation), get_args(annotation)
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        origin, arguments = Literal, tuple(member.value for member in annotation)
    if origin is Literal:
        return " | ".join(map(repr, arguments))
    if origin in (Union, types.UnionType):
        return " | ".join(map(type_text, arguments))
    if origin is Annotated:
        return type_text(arguments[0])
    if origin is not None:
        inner = ", ".join("..." if argument is ... else type_text(argument) for argument in arguments)
        return f"{getattr(origin, '__name__', origin)}[{inner}]"
    return getattr(annotation, "__name__", str(annotation))


def _limits(field: FieldInfo) -> Iterator[str]:
    for item in field.metadata:
        for name, words in _LIMITS.items():
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
    if isinstance(default, bool):
        return f"default {str(default).lower()}"
    shown = default.value if isinstance(default, Enum) else default
    return f"default {shown!r}" if isinstance(shown, str) else f"default {shown}"


def _wrapped(text: str | None, width: int) -> Iterator[str]:
    indent = " " * 6
    yield from textwrap.wrap(text or "", max(width, 40), initial_indent=indent, subsequent_indent=indent)
