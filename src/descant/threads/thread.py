"""StringThread: a conversation as text, the unit of every dataset."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from descant.errors import ConfigurationError, DescantError
from descant.threads.weights import assistant_turn_weights

ROLES = ("system", "user", "assistant", "tool")
_ID_NAMESPACE = uuid.UUID("5f4b0a3e-7c1d-5a0e-9f39-6465736361c7")


class StringTurn(NamedTuple):
    """One turn of a conversation."""

    role: str
    content: str


class StringThread:
    """A conversation: turns, a weight for each, and metadata. Builders return a new thread.

    >>> thread = StringThread().user("2+2=").assistant("4")
    >>> thread.completion()
    '4'

    A fresh thread trains on its assistant turns: they weigh 1, all others 0. ``metadata`` is whatever the
    dataset carries beside the turns; it may be replaced and never reaches the model. ``source`` is the file and
    line that the thread was read from, if any: messages about the thread name it.

    Args:
        turns: ``(role, content)`` pairs; roles are system, user, assistant and tool.
        metadata: anything that JSON can hold, if the thread is to be written.

    Raises:
        ConfigurationError: an unknown role, or content that is not a string.
    """

    __slots__ = ("_turns", "_weights", "metadata", "source")

    def __init__(
        self, turns: Iterable[tuple[str, str]] | None = None, metadata: Any = None, *, source: str | None = None
    ) -> None:
        self._turns = tuple(_checked_turn(index, turn) for index, turn in enumerate(turns or ()))
        self._weights = assistant_turn_weights([turn.role for turn in self._turns])
        self.metadata = metadata
        self.source = source

    # Building

    def system(self, content: str) -> StringThread:
        """This thread with a system turn appended."""
        return self._append("system", content)

    def user(self, content: str) -> StringThread:
        """This thread with a user turn appended."""
        return self._append("user", content)

    def assistant(self, content: str) -> StringThread:
        """This thread with an assistant turn of weight 1 appended."""
        return self._append("assistant", content)

    def tool(self, content: str) -> StringThread:
        """This thread with a tool turn (a tool's answer) appended."""
        return self._append("tool", content)

    def without_completion(self) -> StringThread:
        """This thread without its final assistant turn, if it has one: a prompt."""
        if self.completion() is None:
            return self
        return self._replace(self._turns[:-1], self._weights[:-1])

    # Weights

    def with_weight_all_assistant_turns(self) -> StringThread:
        """This thread with weight 1 on every assistant turn and 0 elsewhere (the default of a fresh thread)."""
        return self.with_weight_assistant_turns_from_index(0)

    def with_weight_last_assistant_turn(self) -> StringThread:
        """This thread with weight 1 on the last assistant turn and 0 elsewhere."""
        return self._replace(self._turns, assistant_turn_weights(self._roles(), start=-1))

    def with_weight_assistant_turns_from_index(self, index: int) -> StringThread:
        """This thread with weight 1 on assistant turns number ``index`` (from 0) and later, 0 elsewhere."""
        return self._replace(self._turns, assistant_turn_weights(self._roles(), start=index))

    def with_turn_weights(self, weights: Sequence[float]) -> StringThread:
        """This thread with one weight per turn, each finite and at least 0.

        Raises:
            ConfigurationError: another number of weights than turns, or a negative or non-finite weight.
        """
        if len(weights) != len(self._turns):
            raise ConfigurationError(f"{len(weights)} weights for a thread of {len(self._turns)} turns")
        if not all(0 <= weight < float("inf") for weight in weights):
            raise ConfigurationError(f"turn weights must be finite and at least 0, got {list(weights)}")
        return self._replace(self._turns, tuple(float(weight) for weight in weights))

    # Reading

    def get_turns(self) -> list[StringTurn]:
        """All turns, as ``(role, content)`` named tuples."""
        return list(self._turns)

    def get_turn_weights(self) -> list[float]:
        """One weight per turn."""
        return list(self._weights)

    def messages(self) -> list[StringTurn]:
        """All turns except a final assistant turn: what the model is prompted with."""
        return list(self._turns if self.completion() is None else self._turns[:-1])

    def completion(self) -> str | None:
        """The content of the final turn if it is the assistant's, else None."""
        return self._turns[-1].content if self._turns and self._turns[-1].role == "assistant" else None

    def last_content(self) -> str:
        """The content of the last turn.

        Raises:
            DescantError: the thread is empty.
        """
        if not self._turns:
            raise DescantError("an empty thread has no last content")
        return self._turns[-1].content

    def uuid(self) -> str:
        """A UUID made from the turns: equal conversations have equal ids, in every process and version.

        Weights and metadata do not enter, so that an example keeps its id when only these change.
        """
        return str(uuid.uuid5(_ID_NAMESPACE, json.dumps(self._turns, ensure_ascii=False)))

    # JSON

    def to_json(self) -> str:
        """The thread as one line of JSON, read back by ``from_json``."""
        data: dict[str, Any] = {"messages": [turn._asdict() for turn in self._turns], "weights": self._weights}
        if self.metadata is not None:
            data["metadata"] = self.metadata
        return json.dumps(data, ensure_ascii=False)

    @staticmethod
    def from_json(text: str) -> StringThread:
        """The thread that ``to_json`` wrote."""
        data = json.loads(text)
        turns = [(message["role"], message["content"]) for message in data["messages"]]
        thread = StringThread(turns, data.get("metadata"))
        return thread.with_turn_weights(data["weights"]) if "weights" in data else thread

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, StringThread):
            return NotImplemented
        return (self._turns, self._weights, self.metadata) == (other._turns, other._weights, other.metadata)

    def __hash__(self) -> int:
        return hash((self._turns, self._weights))

    def __len__(self) -> int:
        return len(self._turns)

    def __repr__(self) -> str:
        turns = ", ".join(f"{role}: {content!r}" for role, content in self._turns)
        return f"StringThread({turns})"

    def _roles(self) -> list[str]:
        return [turn.role for turn in self._turns]

    def _append(self, role: str, content: str) -> StringThread:
        turn = _checked_turn(len(self._turns), (role, content))
        return self._replace((*self._turns, turn), (*self._weights, float(role == "assistant")))

    def _replace(self, turns: tuple[StringTurn, ...], weights: tuple[float, ...]) -> StringThread:
        thread = StringThread.__new__(StringThread)
        thread._turns, thread._weights = turns, weights
        thread.metadata, thread.source = self.metadata, self.source
        return thread


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
