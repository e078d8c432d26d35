"""Normal form: prompts in Unicode's compatibility form (NFKC), case folded, each white space as one space."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence

from descant.threads.thread import ROLES, StringThread, StringTurn
from descant.threads.tools import ToolCall


def prompts_of(thread: StringThread, num_turns: int = 0) -> Iterator[tuple[int, int]]:
    """The prompts that a thread is trained to answer: how many turns each has, and the hash of its normal form.

    ``num_turns`` are those of one more prompt, if it is not 0. Each turn is hashed with the hash of those before it,
    so that a long conversation costs no more than its text.
    """
    turns, weights = thread.get_turns(), thread.get_turn_weights()
    ends = {index for index, weight in enumerate(weights) if weight and turns[index].role == "assistant"}
    ends.add(num_turns)
    last = max(ends)
    calls = thread.get_tool_calls()
    counts = _roles_that_count(turns)
    hashed = 0
    for index in range(last + 1):
        if index and index in ends:
            yield index, hashed
        if index < last and turns[index].role in counts:
            hashed = hash((hashed, turns[index].role, _normalised(turns[index].content, calls[index])))


def normal_turns(thread: StringThread, max_turns: int | None = None) -> list[tuple[str, str]]:
    """Role and normalised text of the turns of a thread that count, or of the first ``max_turns`` of them."""
    turns = thread.get_turns()
    counts = _roles_that_count(turns)
    counted = [pair for pair in zip(turns, thread.get_tool_calls(), strict=True) if pair[0].role in counts]
    return [(role, _normalised(content, calls)) for (role, content), calls in counted[:max_turns]]


def _roles_that_count(turns: list[StringTurn]) -> tuple[str, ...]:
    """All but system, unless there is no other before the first answer: then the system turn is the prompt."""
    for role, _ in turns:
        if role != "system":
            return ROLES if role == "assistant" else ROLES[1:]
    return ROLES


def _normalised(text: str, calls: Sequence[ToolCall]) -> str:
    text = " ".join((text, *(f"{call.name} {call.arguments}" for call in calls)))
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return " ".join(folded.split())
