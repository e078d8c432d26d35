"""StringThread: a conversation as text, the unit of every dataset."""

from __future__ import annotations

import json
import sys
import uuid
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from descant.errors import ConfigurationError, DescantError
from descant.text import quoted
from descant.threads.tools import Tool, ToolCall, check_unicode

ROLES = ("system", "user", "assistant", "tool")
_ID_NAMESPACE = uuid.UUID("5f4b0a3e-7c1d-5a0e-9f39-6465736361c7")


class StringTurn(NamedTuple):
    """One turn of a conversation."""

    role: str
    content: str


class ToolLink(NamedTuple):
    """How a turn takes part in calling tools: the calls that it makes, or the id of the call that it answers."""

    tool_calls: tuple[ToolCall, ...] = ()
    call_id: str | None = None


_NO_LINK = ToolLink()


@lru_cache(maxsize=4096)
def _fresh(roles: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[float, ...]]:
    """Roles and default loss weights, shared by all threads of these roles: a dataset may have a million."""
    return roles, tuple(float(role == "assistant") for role in roles)


class StringThread:
    """A conversation: turns, a loss weight for each, and metadata. Builders return a new thread.

    >>> thread = StringThread().user("2+2=").assistant("4")
    >>> thread.completion()
    '4'

    A fresh thread trains on its assistant turns: they weigh 1, all others 0. ``metadata`` is what else the dataset has
    for the thread; it may be replaced and never reaches the model. ``source`` is the file and line that the thread was
    read from, if any: messages about the thread name it. ``tools`` are the tools that the model is told about.

    Args:
        turns: ``(role, content)`` pairs; roles are system, user, assistant and tool.
        metadata: anything that JSON can hold, if the thread is to be written.
        source: where the thread comes from, for messages.
        tools: the tools that the model may call.

    Raises:
        ConfigurationError: an unknown role, or content that is not a string.
    """

    # Turns are columns, not objects, which halves the memory of a dataset of short threads.
    __slots__ = ("_contents", "_links", "_roles", "_row", "_source", "_weights", "metadata", "tools")

    def __init__(
        self,
        turns: Iterable[tuple[str, str]] | None = None,
        metadata: Any = None,
        *,
        source: str | None = None,
        tools: Iterable[Tool] = (),
    ) -> None:
        pairs = tuple(turns or ())
        for index, (role, content) in enumerate(pairs):
            check_turn(index, role, content)
        self._roles, self._weights = _fresh(tuple([role for role, _ in pairs]))
        self._contents = tuple([content for _, content in pairs])
        self._links: tuple[ToolLink, ...] = ()  # one for each turn, or none at all
        self.metadata = metadata
        self.source = source
        self.tools = _checked_tools(tools)

    @property
    def source(self) -> str | None:
        """Where the thread was read, as ``train.jsonl:12`` or ``train.parquet[3]``."""
        return self._source if self._row is None or self._source is None else self._source % self._row

    @source.setter
    def source(self, source: str | None) -> None:
        self._source = source
        self._row: int | None = None

    def read_from(self, template: str, row: int) -> StringThread:
        """This thread itself, with the source ``template % row``, which is formatted when it is read."""
        self._source, self._row = template, row
        return self

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
        """This thread with these tools instead of those that it had."""
        thread = self._copy()
        thread.tools = _checked_tools(tools)
        return thread

    def with_tool_links(self, links: Sequence[ToolLink]) -> StringThread:
        """This thread with the tool calls and call ids of all its turns, one link for each."""
        if len(links) != len(self):
            raise ConfigurationError(f"{len(links)} tool links for a thread of {len(self)} turns")
        for index, link in enumerate(links):
            _check_link(index, self._roles[index], link)
        thread = self._copy()
        thread._links = tuple(links) if any(link != _NO_LINK for link in links) else ()
        return thread

    def without_completion(self) -> StringThread:
        """This thread without its final assistant turn, if it has one: a prompt."""
        if self.completion() is None:
            return self
        return self.first_turns(len(self) - 1)

    def first_turns(self, num_turns: int) -> StringThread:
        """This thread up to and without turn number ``num_turns``."""
        thread = self._copy()
        thread._roles, thread._contents = self._roles[:num_turns], self._contents[:num_turns]
        thread._weights = self._weights[:num_turns]
        links = self._links[:num_turns]
        thread._links = links if any(link != _NO_LINK for link in links) else ()
        return thread

    def split_system(self) -> tuple[str, StringThread]:
        """The content of the system turn that it begins with ("" without one), and the thread without it."""
        if not self._roles or self._roles[0] != "system":
            return "", self
        thread = self._copy()
        thread._roles, thread._contents, thread._weights = self._roles[1:], self._contents[1:], self._weights[1:]
        thread._links = self._links[1:]
        return self._contents[0], thread

    # Loss weights

    def with_weight_all_assistant_turns(self) -> StringThread:
        """This thread with weight 1 on every assistant turn and 0 on all others (the default of a fresh thread)."""
        return self.with_weight_assistant_turns_from_index(0)

    def with_weight_last_assistant_turn(self) -> StringThread:
        """This thread with weight 1 on the last assistant turn and 0 on all others."""
        return self.with_weight_assistant_turns_from_index(-1)

    def with_weight_assistant_turns_from_index(self, index: int) -> StringThread:
        """This thread with weight 1 on assistant turns number ``index`` (from 0) and later, 0 on all others."""
        return self.with_turn_weights(assistant_turn_weights(self._roles, start=index))

    def with_turn_weights(self, weights: Sequence[float]) -> StringThread:
        """This thread with one loss weight per turn, each finite and at least 0.

        Raises:
            ConfigurationError: another number of weights than turns, or a negative or non-finite weight.
        """
        if len(weights) != len(self):
            raise ConfigurationError(f"{len(weights)} weights for a thread of {len(self)} turns")
        if not all(0 <= weight <= sys.float_info.max for weight in weights):
            raise ConfigurationError(f"turn weights must be finite and at least 0, got {quoted(list(weights))}")
        thread = self._copy()
        thread._weights = tuple(map(float, weights))
        return thread

    # Reading

    def get_turns(self) -> list[StringTurn]:
        """All turns, as ``(role, content)`` named tuples."""
        return list(map(StringTurn, self._roles, self._contents))

    def get_turn_weights(self) -> list[float]:
        """One loss weight per turn."""
        return list(self._weights)

    def get_tool_calls(self) -> list[tuple[ToolCall, ...]]:
        """The tool calls of each turn; only assistant turns have any."""
        return [link.tool_calls for link in self._all_links()]

    def messages(self) -> list[StringTurn]:
        """All turns except a final assistant turn: what the model is prompted with."""
        return self.without_completion().get_turns()

    def completion(self) -> str | None:
        """The content of the final turn if it is the assistant's, else None."""
        return self._contents[-1] if self._roles and self._roles[-1] == "assistant" else None

    def last_content(self) -> str:
        """The content of the last turn.

        Raises:
            DescantError: the thread is empty.
        """
        if not self._contents:
            raise DescantError("an empty thread has no last content")
        return self._contents[-1]

    def as_text(self) -> str:
        """The turns as people read them, each below its role in brackets; a single user turn is just its content.

        >>> print(StringThread().user("2+2=").assistant("", [ToolCall("add", {"a": 2, "b": 2})]).as_text())
        [user]
        2+2=
        <BLANKLINE>
        [assistant]
        → add(a=2, b=2)
        """
        if self._roles == ("user",):
            return self._contents[0]
        return "\n\n".join(f"[{role}]\n{text}" for role, text in zip(self._roles, self.turn_texts(), strict=True))

    def turn_texts(self) -> list[str]:
        """Each turn as people read it: its content, and below it a line for each of its tool calls."""
        return [
            _with_calls(content, link, "\n") for content, link in zip(self._contents, self._all_links(), strict=True)
        ]

    def chat_messages(self) -> list[dict[str, Any]]:
        """The turns as chat templates and chat-completion endpoints expect them: role, content, ``tool_calls``.

        A tool turn carries the name and the id of the call that it answers: the one of its ``call_id``, else the first
        call of the last assistant turn that no tool turn has answered yet.
        """
        messages: list[dict[str, Any]] = []
        unanswered: list[ToolCall] = []
        for role, content, link in zip(self._roles, self._contents, self._all_links(), strict=True):
            tool_calls, call_id = link
            message: dict[str, Any] = {"role": role, "content": content}
            if tool_calls:
                message["tool_calls"] = [call.as_message() for call in tool_calls]
                unanswered = list(tool_calls)
            if role == "tool":
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

        Loss weights and metadata do not count, so that an example keeps its id when only these change.
        """
        content: Any = self.get_turns()
        if self.tools or any(link.tool_calls or link.call_id for link in self._links):
            content = [self.chat_messages(), [tool.as_schema() for tool in self.tools]]
        return str(uuid.uuid5(_ID_NAMESPACE, json.dumps(content, ensure_ascii=False)))

    # JSON

    def to_json(self) -> str:
        """The thread as one line of JSON, read back by ``from_json``.

        It is ASCII if the metadata have characters that UTF-8 cannot encode (unpaired surrogates).
        """
        data: dict[str, Any] = {"messages": self.chat_messages(), "weights": self.get_turn_weights()}
        if self.tools:
            data["tools"] = [tool.as_schema() for tool in self.tools]
        if self.metadata is not None:
            data["metadata"] = self.metadata
        text = json.dumps(data, ensure_ascii=False)
        try:
            text.encode()
        except UnicodeEncodeError:
            return json.dumps(data)
        return text

    @staticmethod
    def from_json(text: str) -> StringThread:
        """The thread that ``to_json`` wrote."""
        data = json.loads(text)
        tools = [Tool(**schema["function"]) for schema in data.get("tools", ())]
        messages = data["messages"]
        turns = [(message["role"], message["content"]) for message in messages]
        thread = StringThread(turns, data.get("metadata"), tools=tools)
        if any("tool_calls" in message or "tool_call_id" in message for message in messages):
            calls = [tuple(map(ToolCall.from_message, message.get("tool_calls", ()))) for message in messages]
            ids = [message.get("tool_call_id") for message in messages]
            thread = thread.with_tool_links(list(map(ToolLink, calls, ids)))
        return thread.with_turn_weights(data["weights"]) if "weights" in data else thread

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, StringThread):
            return NotImplemented
        mine = (self._roles, self._contents, self._weights, self._links, self.tools, self.metadata)
        theirs = (other._roles, other._contents, other._weights, other._links, other.tools, other.metadata)
        return mine == theirs

    def __hash__(self) -> int:
        return hash((self._roles, self._contents))

    def __len__(self) -> int:
        return len(self._roles)

    def __repr__(self) -> str:
        turns = ", ".join(
            f"{role}: {_with_calls(repr(content) if content or not link.tool_calls else '', link, ' ')}"
            for role, content, link in zip(self._roles, self._contents, self._all_links(), strict=True)
        )
        return f"StringThread({turns})"

    def _append(
        self, role: str, content: str, tool_calls: tuple[ToolCall, ...] = (), call_id: str | None = None
    ) -> StringThread:
        check_turn(len(self), role, content)
        _check_link(len(self), role, ToolLink(tool_calls, call_id))
        thread = self._copy()
        thread._roles, thread._contents = (*self._roles, role), (*self._contents, content)
        thread._weights = (*self._weights, float(role == "assistant"))
        if self._links or tool_calls or call_id is not None:
            thread._links = (*self._all_links(), ToolLink(tool_calls, call_id))
        return thread

    def _all_links(self) -> tuple[ToolLink, ...]:
        return self._links or (_NO_LINK,) * len(self)

    def _copy(self) -> StringThread:
        thread = StringThread.__new__(StringThread)
        thread._roles, thread._contents, thread._weights = self._roles, self._contents, self._weights
        thread._links, thread._source, thread._row = self._links, self._source, self._row
        thread.metadata, thread.tools = self.metadata, self.tools
        return thread


def _with_calls(content: str, link: ToolLink, separator: str) -> str:
    """The content of a turn, if it has any, and its tool calls."""
    return separator.join([*([content] if content else []), *(f"→ {call}" for call in link.tool_calls)])


def _checked_tools(tools: Iterable[Tool]) -> tuple[Tool, ...]:
    checked = tuple(tools)
    if wrong := [tool for tool in checked if not isinstance(tool, Tool)]:
        raise ConfigurationError(f"{wrong[0]!r} is not a tool; tools are made with Tool(name, description, parameters)")
    return checked


def _check_link(index: int, role: str, link: ToolLink) -> None:
    if not all(isinstance(call, ToolCall) for call in link.tool_calls):
        raise ConfigurationError(f"turn {index} ({role}) has tool_calls that are not of type ToolCall")
    check_unicode(link.call_id or "", f"the call id of turn {index} ({role})")


def check_turn(index: int, role: str, content: str) -> None:
    """Raises a ``ConfigurationError`` if this cannot be turn number ``index`` of a thread."""
    if role not in ROLES:
        raise ConfigurationError(f"turn {index} has role {quoted(role)}; roles are {', '.join(ROLES)}")
    if not isinstance(content, str):
        raise ConfigurationError(f"turn {index} ({role}) has content of type {type(content).__name__}, not a string")
    if not content.isascii():  # the text for the message costs time in a million rows
        check_unicode(content, f"the content of turn {index} ({role})")


def assistant_turn_weights(roles: Sequence[str], start: int = 0) -> tuple[float, ...]:
    """Weight 1 for assistant turns from number ``start`` on (negative counts from the end), 0 for all others."""
    assistants = [index for index, role in enumerate(roles) if role == "assistant"]
    weighted = set(assistants[start:])
    return tuple(float(index in weighted) for index in range(len(roles)))
