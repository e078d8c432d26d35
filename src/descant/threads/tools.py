"""Tools that a model may call, and its calls of them, as data of a thread."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from descant.errors import ConfigurationError
from descant.text import printable, quoted


@dataclass(frozen=True)
class Tool:
    """A function that the model is told about.

    Attributes:
        name: how it is called.
        description: what it does, for the model.
        parameters: the JSON schema of its arguments; None if it takes none.

    Raises:
        ConfigurationError: no name, or parameters that JSON cannot hold.
    """

    name: str
    description: str = ""
    parameters: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        _check_name(self.name, "tool")
        check_unicode(self.description, f"the description of tool {quoted(self.name)}")
        try:
            _check_json(self.parameters)
        except (TypeError, ValueError, RecursionError) as error:
            raise ConfigurationError(f"the parameters of tool {quoted(self.name)} are not JSON: {error}") from None

    def as_schema(self) -> dict[str, Any]:
        """The tool as chat templates and chat-completion endpoints expect it."""
        parameters = self.parameters or {"type": "object", "properties": {}}
        function = {"name": self.name, "description": self.description, "parameters": dict(parameters)}
        return {"type": "function", "function": function}


@dataclass(frozen=True)
class ToolCall:
    """A call that an assistant turn makes.

    Attributes:
        name: of the tool.
        arguments: a JSON object as text; a mapping is written as such.
        call_id: connects the answer to the call; needed where a turn makes several.

    Raises:
        ConfigurationError: no name, or arguments that are not a JSON object.
    """

    name: str
    arguments: str | Mapping[str, Any] = "{}"
    call_id: str | None = None

    def __post_init__(self) -> None:
        _check_name(self.name, "tool call")
        check_unicode(self.call_id or "", f"the id of the call of {quoted(self.name)}")
        text, reason = self.arguments, ""
        try:
            text = text if isinstance(text, str) else json.dumps(text, ensure_ascii=False)
            value = json.loads(text)
            _check_json(value)
            is_object = isinstance(value, dict)
        except (TypeError, ValueError, RecursionError) as error:
            is_object, reason = False, f": {error}"
        if not is_object:
            raise ConfigurationError(
                f"the arguments of the call of {quoted(self.name)} are {quoted(self.arguments)}, not a JSON object"
                f"{reason}"
            )
        object.__setattr__(self, "arguments", text)

    def __str__(self) -> str:
        """The call as people read it, on one line: ``add(a=2, b=2)``."""
        values = json.loads(str(self.arguments)).items()
        arguments = ", ".join(f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in values)
        return printable(f"{self.name}({arguments})")

    def as_message(self) -> dict[str, Any]:
        """The call as chat templates expect it, its arguments as an object."""
        message: dict[str, Any] = {
            "type": "function",
            "function": {"name": self.name, "arguments": json.loads(str(self.arguments))},
        }
        return message if self.call_id is None else {"id": self.call_id, **message}

    @staticmethod
    def from_message(message: Mapping[str, Any]) -> ToolCall:
        """The call that ``as_message`` wrote, or that a chat-completion endpoint did."""
        function = message.get("function", message)
        return ToolCall(function["name"], function.get("arguments", "{}"), message.get("id"))


def _check_name(name: Any, what: str) -> None:
    if not isinstance(name, str) or not name:
        raise ConfigurationError(f"the name of a {what} is {quoted(name)}; it must be a string that is not empty")
    check_unicode(name, f"the name of a {what}")


def check_unicode(text: str, what: str) -> None:
    """Raises a ``ConfigurationError`` if UTF-8 cannot encode this text."""
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError as error:
        surrogate = f"unpaired surrogate {text[error.start]!a} at {error.start}"
        raise ConfigurationError(f"{what} is not valid Unicode ({surrogate})") from None


def _check_json(value: Any) -> None:
    """Raises a ``ValueError``, ``TypeError`` or ``RecursionError`` if a value cannot be written as JSON in UTF-8."""
    json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
