"""StringThread: a conversation as text, the unit of every dataset."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from descant.errors import ConfigurationError, DescantError
from descant.threads.tools import Tool, ToolCall
from descant.threads.weights import assistant_turn_weights

ROLES = ("system", "user", "assistant", "tool")
_ID_NAMESPACE = uuid.UUID("5f4b0a3e-7c1d-5a0e-9f39-6465736361c7")


class StringTurn(NamedTuple):
    """One turn of a conversation."""

    role: str
    content: str


class _Entry(NamedTuple):
    """A turn and what belongs to it."""

    turn: StringTurn
    weight: float = 0.0
    tool_calls: tuple[ToolCall, ...] = ()
    call_id: str | None = None


class StringThread:
    """A conversation: turns, a weight for each, and metadata. Builders return a new thread.

    >>> thread = StringThread().user("2+2=").assistant("4")
    >>> thread.completion()
    '4'

    A fresh thread trains on its assistant turns: they weigh 1, all others 0. ``metadata`` is whatever the
    dataset carries beside the turns; it may be replaced and never reaches the model. ``source`` is the file and
    line that the thread was read from, if any: messages about the thread name it. ``tools`` are what the model is
    told that it may call.

    Args:
        turns: ``(role, content)`` pairs; roles are system, user, assistant and tool.
        metadata: anything that JSON can hold, if the thread is to be written.
        source: where the thread comes from, for messages.
        tools: what the model may call.

    Raises:
        ConfigurationError: an unknown role, or content that is not a string.
    """

    __slots__ = ("_entries", "metadata", "source", "tools")

    def __init__(
        self,
        turns: Iterable[tuple[str, str]] | None = None,
        metadata: Any = None,
        *,
        source: str | None = None,
        tools: Iterable[Tool] = (),
    ) -> None:
        checked = [_checked_turn(index, turn) for index, turn in enumerate(turns or ())]
        self._entries = tuple(_Entry(turn, float(turn.role == "assistant")) for turn in checked)
        self.metadata = metadata
        self.source = source
        self.tools = _checked_tools(tools)

    # Building

    def system(self, content: str) -> StringThread:
        """This thread with a system turn appended."""
        return self._append("system", content)

    def user(self, content: str) -> StringThread:
        """This thread with a user turn appended."""
        return self._append("user", content)

    def assistant(self, content: str, tool_calls: Iterable[ToolCall] = ()) -> StringThread:
        """This thread with an assistant turn of weight 1 appended, which may call tools."""
        return self._append("assistant", content, tool_calls=tuple(tool_calls))

    def tool(self, content: str, call_id: str | None = None) -> StringThread:
        """This thread with a tool turn appended: the answer to the call of this id, or to the next one in order."""
        return self._append("tool", content, call_id=call_id)

    def with_tools(self, *tools: Tool) -> StringThread:
        """This thread with these tools, in place of those that it had."""
        thread = self._replace(self._entries)
        thread.tools = _checked_tools(tools)
        return thread

    def without_completion(self) -> StringThread:
        """This thread without its final assistant turn, if it has one: a prompt."""
        if self.completion() is None:
            return self
        return self._replace(self._entries[:-1])

    # Weights

    def with_weight_all_assistant_turns(self) -> StringThread:
        """This thread with weight 1 on every assistant turn and 0 elsewhere (the default of a fresh thread)."""
        return self.with_weight_assistant_turns_from_index(0)

    def with_weight_last_assistant_turn(self) -> StringThread:
        """This thread with weight 1 on the last assistant turn and 0 elsewhere."""
        return self.with_weight_assistant_turns_from_index(-1)

    def with_weight_assistant_turns_from_index(self, index: int) -> StringThread:
        """This thread with weight 1 on assistant turns number ``index`` (from 0) and later, 0 elsewhere."""
        roles = [entry.turn.role for entry in self._entries]
        return self.with_turn_weights(assistant_turn_weights(roles, start=index))

    def with_turn_weights(self, weights: Sequence[float]) -> StringThread:
        """This thread with one weight per turn, each finite and at least 0.

        Raises:
            ConfigurationError: another number of weights than turns, or a negative or non-finite weight.
        """
        if len(weights) != len(self._entries):
            raise ConfigurationError(f"{len(weights)} weights for a thread of {len(self._entries)} turns")
        if not all(0 <= weight < float("inf") for weight in weights):
            raise ConfigurationError(f"turn weights must be finite and at least 0, got {list(weights)}")
        return self._replace(
            tuple(entry._replace(weight=float(weight)) for entry, weight in zip(self._entries, weights, strict=True))
        )

    # Reading

    def get_turns(self) -> list[StringTurn]:
        """All turns, as ``(role, content)`` named tuples."""
        return [entry.turn for entry in self._entries]

    def get_turn_weights(self) -> list[float]:
        """One weight per turn."""
        return [entry.weight for entry in self._entries]

    def get_tool_calls(self) -> list[tuple[ToolCall, ...]]:
        """The tool calls of each turn: none but in assistant turns."""
        return [entry.tool_calls for entry in self._entries]

    def messages(self) -> list[StringTurn]:
        """All turns except a final assistant turn: what the model is prompted with."""
        return self.without_completion().get_turns()

    def completion(self) -> str | None:
        """The content of the final turn if it is the assistant's, else None."""
        turn = self._entries[-1].turn if self._entries else None
        return turn.content if turn is not None and turn.role == "assistant" else None

    def last_content(self) -> str:
        """The content of the last turn.

        Raises:
            DescantError: the thread is empty.
        """
        if not self._entries:
            raise DescantError("an empty thread has no last content")
        return self._entries[-1].turn.content

    def chat_messages(self) -> list[dict[str, Any]]:
        """The turns as chat templates and chat-completion endpoints expect them: role, content, ``tool_calls``.

        A tool turn carries the name and the id of the call that it answers: the one of its ``call_id``, else the first
        call of the last assistant turn that no tool turn has answered yet.
        """
        messages: list[dict[str, Any]] = []
        unanswered: list[ToolCall] = []
        for turn, _, tool_calls, call_id in self._entries:
            message: dict[str, Any] = {"role": turn.role, "content": turn.content}
            if tool_calls:
                message["tool_calls"] = [call.as_message() for call in tool_calls]
                unanswered = list(tool_calls)
            if turn.role == "tool":
                call = next((call for call in unanswered if call_id in (None, call.call_id)), None)
                if call is not None:
                    unanswered.remove(call)
                    message["name"] = call.name
                answered_id = call_id or (call and call.call_id)
                if answered_id is not None:
                    message["tool_call_id"] = answered_id
            messages.append(message)
        return messages

    def uuid(self) -> str:
        """A UUID made from turns and tools: equal conversations have equal ids, in every process and version.

        Weights and metadata do not enter, so that an example keeps its id when only these change.
        """
        content: Any = self.get_turns()
        if self.tools or any(entry.tool_calls or entry.call_id for entry in self._entries):
            content = [self.chat_messages(), [tool.as_schema() for tool in self.tools]]
        return str(uuid.uuid5(_ID_NAMESPACE, json.dumps(content, ensure_ascii=False)))

    # JSON

    def to_json(self) -> str:
        """The thread as one line of JSON, read back by ``from_json``."""
        data: dict[str, Any] = {"messages": self.chat_messages(), "weights": self.get_turn_weights()}
        if self.tools:
            data["tools"] = [tool.as_schema() for tool in self.tools]
        if self.metadata is not None:
            data["metadata"] = self.metadata
        return json.dumps(data, ensure_ascii=False)

    @staticmethod
    def from_json(text: str) -> StringThread:
        """The thread that ``to_json`` wrote."""
        data = json.loads(text)
        tools = [Tool(**schema["function"]) for schema in data.get("tools", ())]
        thread = StringThread(metadata=data.get("metadata"), tools=tools)
        for message in data["messages"]:
            calls = tuple(map(ToolCall.from_message, message.get("tool_calls", ())))
            thread = thread._append(message["role"], message["content"], calls, message.get("tool_call_id"))
        return thread.with_turn_weights(data["weights"]) if "weights" in data else thread

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, StringThread):
            return NotImplemented
        return (self._entries, self.tools, self.metadata) == (other._entries, other.tools, other.metadata)

    def __hash__(self) -> int:
        return hash(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __repr__(self) -> str:
        turns = ", ".join(f"{role}: {content!r}" for role, content in self.get_turns())
        return f"StringThread({turns})"

    def _append(
        self, role: str, content: str, tool_calls: tuple[ToolCall, ...] = (), call_id: str | None = None
    ) -> StringThread:
        turn = _checked_turn(len(self._entries), (role, content))
        if not all(isinstance(call, ToolCall) for call in tool_calls):
            raise ConfigurationError(f"turn {len(self._entries)} ({role}) has tool_calls that are not of type ToolCall")
        return self._replace((*self._entries, _Entry(turn, float(role == "assistant"), tool_calls, call_id)))

    def _replace(self, entries: tuple[_Entry, ...]) -> StringThread:
        thread = StringThread.__new__(StringThread)
        thread._entries = entries
        thread.metadata, thread.source, thread.tools = self.metadata, self.source, self.tools
        return thread


def _checked_tools(tools: Iterable[Tool]) -> tuple[Tool, ...]:
    checked = tuple(tools)
    if wrong := [tool for tool in checked if not isinstance(tool, Tool)]:
        raise ConfigurationError(f"{wrong[0]!r} is not a tool; tools are made with Tool(name, description, parameters)")
    return checked


def _checked_turn(index: int, turn: tuple[str, str]) -> StringTurn:
    role, content = turn
    if role not in ROLES:
        raise ConfigurationError(f"turn {index} has role {role!r}; roles are {', '.join(ROLES)}")
    if not isinstance(content, str):
        raise ConfigurationError(f"turn {index} ({role}) has content of type {type(content).__name__}, not a string")
    try:
        content.encode()
    except UnicodeEncodeError as error:
        reason = f"content that is not valid Unicode (unpaired surrogate {content[error.start]!a} at {error.start})"
        raise ConfigurationError(f"turn {index} ({role}) has {reason}") from None
    return StringTurn(role, content)
