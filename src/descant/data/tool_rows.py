"""Tool rows: tools and tool calls in the forms that datasets have."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import lru_cache
from typing import Any, TypeVar

from descant.data.bad_row import BadRow, expect
from descant.data.json_rows import DECODER
from descant.errors import ConfigurationError
from descant.text import quoted
from descant.threads.tools import Tool, ToolCall

_T = TypeVar("_T")
_CALL_KEYS = ("name", "arguments", "id", "type", "function", "index")


def parsed(value: Any, place: str) -> Any:
    """A value that may be given as JSON text."""
    if not isinstance(value, str):
        return value
    try:
        return DECODER.decode(value)
    except BadRow as error:
        raise BadRow(f"{place}: {error}") from None
    except (ValueError, RecursionError) as error:
        raise BadRow(f"{place} is text that is not JSON: {error}") from None


def read_tools(tools: Any) -> tuple[Tool, ...]:
    """The tools of a row: schemas in OpenAI's form, bare functions, or JSON text of either."""
    if tools is None or tools == "":
        return ()
    if not isinstance(tools, str):
        try:
            tools = json.dumps(tools, ensure_ascii=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise BadRow(f"tools cannot be written as JSON: {error}") from None
    return _tools_of_text(tools)


@lru_cache(maxsize=64)
def _tools_of_text(text: str) -> tuple[Tool, ...]:
    """Cached by their text, so that the rows of a dataset share equal tools."""
    tools = parsed(text, "tools")
    expect(tools, list, "tools", "a list of schemas")
    return tuple(_tool(schema, f"tools[{index}]") for index, schema in enumerate(tools))


def _tool(schema: Any, place: str) -> Tool:
    schema = parsed(schema, place)
    expect(schema, dict, place, "an object")
    if schema.get("type", "function") != "function":
        raise BadRow(f"{place} is a tool of type {quoted(schema['type'])}; only 'function' can be used")
    function = schema.get("function", schema)
    expect(function, dict, f"{place}.function", "an object")
    # ``strict`` tells an endpoint how to decode; templates have no use for it.
    known = ("name", "description", "parameters", "type", "strict")
    if extra := [key for key, value in function.items() if key not in known and value is not None]:
        raise BadRow(f"{place} has {quoted(extra[0])}; a tool has a name, a description and parameters")
    description, parameters = function.get("description") or "", function.get("parameters")
    expect(description, str, f"{place}.description", "a string")
    parameters = parsed(parameters, f"{place}.parameters")
    expect(parameters, dict | None, f"{place}.parameters", "an object")
    return _named(place, Tool, function.get("name"), description, parameters)


def read_calls(calls: Any, place: str) -> tuple[ToolCall, ...]:
    """The calls of a turn: in OpenAI's form, bare, or as JSON text; one or a list."""
    calls = parsed(calls, place)
    calls = calls if isinstance(calls, list) else [calls]
    if not calls:
        raise BadRow(f"{place} is an empty list, not a call")
    return tuple(_call(call, f"{place}[{index}]") for index, call in enumerate(calls))


def _call(call: Any, place: str) -> ToolCall:
    expect(call, dict, place, "an object")
    function, call_id = call.get("function", call), call.get("id")
    expect(function, dict, f"{place}.function", "an object")
    expect(call_id, str | None, f"{place}.id", "a string")
    for keys in (call, function):
        if extra := [key for key, value in keys.items() if key not in _CALL_KEYS and value is not None]:
            raise BadRow(f"{place} has {quoted(extra[0])}; a call has a name and 'arguments'")
    arguments = function.get("arguments")
    return _named(place, ToolCall, function.get("name"), "{}" if arguments in (None, "") else arguments, call_id)


def _named(place: str, make: Callable[..., _T], *arguments: Any) -> _T:
    try:
        return make(*arguments)
    except ConfigurationError as error:
        raise BadRow(f"{place}: {error}") from None
