"""Messages: the turns of a row of a dataset, in each of their forms."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any, Literal

from descant.data.bad_row import BadRow, expect, listed, type_of
from descant.data.keys import MARKS, UnreadKeys, check_keys, mark_of
from descant.data.tool_rows import read_calls
from descant.text import quoted
from descant.threads.thread import ROLES, StringThread, ToolLink, assistant_turn_weights
from descant.threads.tools import Tool

TrainedTurns = Literal["all", "last"]
"""Which assistant turns of a row are trained, where the row does not say it."""

_TEXT_KEYS = (("role", "content"), ("from", "value"))  # and those of ShareGPT
_READ = [frozenset((*keys, "name", "tool_calls", "tool_call_id", *MARKS)) for keys in _TEXT_KEYS]
_READ_OF_PART = frozenset(("type", "text"))
_SHAREGPT_ROLES = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(
        ("gpt", "chatgpt", "assistant", "bard", "bing", "model", "function_call", "tool_call"), "assistant"
    ),
    **dict.fromkeys(("tool", "observation", "function_response", "tool_response"), "tool"),
    **dict.fromkeys(("system", "developer"), "system"),
}


class Turns:
    """The turns of a row while they are read, by column."""

    __slots__ = ("links", "names", "num_before", "roles", "texts", "unread", "weights")

    def __init__(self, system: Any, unread: UnreadKeys) -> None:
        """``system`` is the row's column of that name: a system prompt in front of the turns, if it says anything."""
        expect(system, str | None, "'system'", "a string")
        self.roles: list[str] = ["system"] if system else []
        self.texts: list[str] = [sys.intern(system)] if system else []
        self.num_before = len(self.roles)  # turns that are not among the row's messages
        self.weights: dict[int, float] = {}  # of the turns for which the row gives one
        self.links: dict[int, ToolLink] = {}
        self.names: dict[int, tuple[str, str]] = {}  # of the tools that answer, each with its message
        self.unread = unread

    def thread(
        self, metadata: Any, tools: Iterable[Tool] = (), trained: TrainedTurns = "all", of_row: float = 1.0
    ) -> StringThread:
        """The thread of these turns. ``trained`` are the turns that weigh 1 if the row gives them no weight, ``of_row``
        is what all weights are multiplied with."""
        if self.num_before and "system" in self.roles[1:]:
            raise BadRow("both a column 'system' and a system turn; keep one of them")
        thread = StringThread(zip(self.roles, self.texts, strict=True), metadata, tools=tools)
        if self.links:
            thread = thread.with_tool_links([self.links.get(i, ToolLink()) for i in range(len(self.roles))])
        if self.weights or trained == "last" or of_row != 1:
            weights = assistant_turn_weights(self.roles, start=-1 if trained == "last" else 0)
            weights = tuple(of_row * self.weights.get(index, weight) for index, weight in enumerate(weights))
            thread = thread.with_turn_weights(weights)
            if of_row not in (0, 1) and not any(weights):
                raise BadRow(f"the row weighs {of_row:g}, but none of its turns is trained; leave the weight out")
        if "" in self.texts:
            self._check_empty(thread.get_turn_weights())
        messages = thread.chat_messages() if self.names else []
        for index, (name, place) in self.names.items():  # a name that is not that of the call would be lost
            answered = messages[index].get("name")
            if answered != name:
                found = f"answers the call of {quoted(answered)}" if answered else "has no call left to answer"
                raise BadRow(
                    f"{place}.name is {quoted(name)}, but the turn {found}; give call and answer the same id "
                    "(tool_calls[].id and tool_call_id)"
                )
        return thread

    def _check_empty(self, weights: list[float]) -> None:
        for index, (role, text) in enumerate(zip(self.roles, self.texts, strict=True)):
            is_meant = index in self.weights or index in self.links
            if role == "assistant" and not text and weights[index] and not is_meant:
                raise BadRow(
                    f"turn {index} is an empty answer, which would train to say nothing; leave it out, or give its "
                    "message a 'weight': 0 leaves it untrained, 1 trains it as it is"
                )


def read_answer(turns: Turns, answer: Any, column: str, sharegpt: bool = False) -> None:
    """An answer to the prompt that has been read: a string, or messages that begin and end with the assistant's."""
    if isinstance(answer, str):
        turns.roles.append("assistant")
        turns.texts.append(answer)
        return
    if isinstance(answer, dict) or _is_pair(answer):
        answer = [answer]  # one message
    expect(answer, list, column, "a string or a list of messages")
    start = len(turns.roles)
    read_messages(turns, answer, column, sharegpt)
    for index in (start, len(turns.roles) - 1):
        if turns.roles[index] != "assistant":
            raise BadRow(f"{column}[{index - start}] is a turn of {quoted(turns.roles[index])}, not of 'assistant'")


def read_weights(turns: Turns, weights: Any) -> None:
    """The column ``weights`` of a row whose messages have been read."""
    if not isinstance(weights, list) or not all(map(_is_number, weights)):
        raise BadRow("'weights' is not a list of numbers, one for each message")
    if turns.weights:
        raise BadRow("both a column 'weights' and messages with a weight; keep one of them")
    if len(weights) != (num_messages := len(turns.roles) - turns.num_before):
        raise BadRow(f"'weights' has {len(weights)} numbers for {num_messages} messages")
    if not all(0 <= weight <= sys.float_info.max for weight in weights):
        raise BadRow(f"turn weights must be finite and at least 0, got {quoted(weights)}")
    turns.weights.update(enumerate(weights, start=turns.num_before))


def leave_untrained(turns: Turns) -> None:
    """Weight 0 for the assistant turns of a prompt that have no weight of their own."""
    for index, role in enumerate(turns.roles):
        if role == "assistant":
            turns.weights.setdefault(index, 0.0)


def read_messages(turns: Turns, messages: Any, column: str, sharegpt: bool = False) -> None:
    """A list of messages: ``role`` and ``content`` by key or as a pair, or ShareGPT's keys and roles."""
    expect(messages, list, repr(column), f"{'a string or ' * (column == 'prompt')}a list of messages")
    if not messages:
        raise BadRow(f"{column!r} is an empty list; one message is needed at least")
    roles, texts = turns.roles, turns.texts
    for index, message in enumerate(messages):
        if not isinstance(message, dict):
            if not _is_pair(message):
                raise BadRow(f"{column}[{index}] is {type_of(message)}, not an object with 'role' and 'content'")
            message = dict(zip(("role", "content"), message, strict=True))  # noqa: PLW2901
        role: Any = message.get("role")
        text: Any = message.get("content")
        if len(message) > 2 or role not in ROLES or not isinstance(text, str):
            role, text = _read_message(turns, message, f"{column}[{index}]", sharegpt)
        roles.append(role)
        texts.append(sys.intern(text) if role == "system" else text)  # most rows of a dataset have the same


def _read_message(turns: Turns, message: dict[str, Any], place: str, sharegpt: bool) -> tuple[str, str]:
    """Role and text of a message that has other keys as well, which are recorded in ``turns``."""
    by_from = sharegpt and message.get("role") is None
    role_key, text_key = keys = _TEXT_KEYS[by_from]
    role = message.get(role_key)
    if role is None:
        _refuse_missing(message, role_key, place)
    expect(role, str, f"{place}.{role_key}", "a string")
    index, unread = len(turns.roles), []
    if others := {key: value for key, value in message.items() if value is not None and key not in keys}:
        unread = check_keys(others, _READ[by_from], place)
        if (weight := mark_of(others, place)) is not None:
            turns.weights[index] = weight
    if sharegpt and role in ("function_call", "tool_call"):
        turns.links[index] = ToolLink(read_calls(message.get(text_key), f"{place}.{text_key}"))
        turns.unread.count(unread)
        return "assistant", ""
    if sharegpt:
        if role not in _SHAREGPT_ROLES:
            raise BadRow(f"{place}.{role_key} is {quoted(role)}; known are {', '.join(_SHAREGPT_ROLES)}")
        role = _SHAREGPT_ROLES[role]
    role = "system" if role == "developer" else role  # newer OpenAI models' name of it
    if role not in ROLES:
        raise BadRow(f"{place}.role is {quoted(role)}; roles are {', '.join(ROLES)}")
    _read_links(turns, message, role, place)
    text = message.get(text_key)
    if text is None or text == []:
        if not message.get("tool_calls"):
            _refuse_missing(message, text_key, place)
        text = ""
    elif not isinstance(text, str):
        text = _joined(text, f"{place}.{text_key}", unread)
    turns.unread.count(unread)
    return role, text


def _read_links(turns: Turns, message: dict[str, Any], role: str, place: str) -> None:
    index = len(turns.roles)
    name, call_id = message.get("name"), message.get("tool_call_id")
    if calls := message.get("tool_calls"):
        if role != "assistant":
            raise BadRow(f"{place} has 'tool_calls', but is a turn of {quoted(role)}, not of 'assistant'")
        turns.links[index] = ToolLink(read_calls(calls, f"{place}.tool_calls"))
    for key, value in (("name", name), ("tool_call_id", call_id)):
        expect(value, str | None, f"{place}.{key}", "a string")
        if value and role != "tool":
            raise BadRow(
                f"{place} has {key!r}, but is a turn of {quoted(role)}; only tool turns may have one: leave it out, or "
                "write it into the content"
            )
    if call_id is not None:
        turns.links[index] = ToolLink(call_id=call_id)
    if name:
        turns.names[index] = (name, place)


def _refuse_missing(message: dict[str, Any], key: str, place: str) -> None:
    if key in message:
        beside = ", which is allowed only beside 'tool_calls'" if key == "content" else ""
        found = "an empty list" if message[key] == [] else type_of(message[key])
        raise BadRow(f"{place}.{key} is {found}{beside}")
    raise BadRow(f"{place} has no {key!r} (it has {listed(message) if message else 'nothing'})")


def _joined(parts: Any, place: str, unread: list[str]) -> str:
    """The text of content that is given in parts, whose keys that are not read are added to ``unread``."""
    expect(parts, list, place, "a string")
    texts = []
    for index, part in enumerate(parts):
        expect(part, dict, f"{place}[{index}]", "a part like {'type': 'text', 'text': ...}")
        if part.get("type") != "text":
            raise BadRow(f"{place}[{index}] is a part of type {quoted(part.get('type'))}; only 'text' can be used")
        unread += check_keys(part, _READ_OF_PART, f"{place}[{index}]")
        expect(part.get("text"), str, f"{place}[{index}].text", "a string")
        texts.append(part["text"])
    return "".join(texts)


def _is_pair(message: Any) -> bool:
    """Whether this is a role and a content, as the recipe API writes messages."""
    is_pair = isinstance(message, list | tuple) and len(message) == 2 and isinstance(message[0], str)
    return is_pair and isinstance(message[1], str | list)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
