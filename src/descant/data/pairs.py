"""Pairs: a row of a preference dataset as a chosen and a rejected thread."""

from __future__ import annotations

from itertools import takewhile
from typing import Any

from descant.data.bad_row import BadRow, listed
from descant.data.keys import UnreadKeys
from descant.data.messages import Turns, leave_untrained, read_messages
from descant.data.rows import (
    FORMS,
    PAIRS,
    advice_for,
    columns_of,
    metadata_of,
    pair_columns,
    read_completion,
    read_conversation,
)
from descant.data.tool_rows import read_tools
from descant.threads.thread import StringThread

Pair = tuple[StringThread, StringThread]
"""A chosen and a rejected thread with a common prompt."""


def pair_of_row(row: Any, unread: UnreadKeys) -> Pair:
    """The preference pair that a row is, its other columns as metadata of both; only the answers carry weight."""
    row = columns_of(row)
    names = pair_columns(row)
    if names is None:
        raise BadRow(_why_no_pair(row))
    system, answers = row.pop("system", None), [row.pop(name) for name in names]
    form = next((name for name in ("prompt", *FORMS) if row.get(name) is not None), "prompt")
    if form != "prompt" and _is_conversation(answers[0]):
        form = "prompt"  # another column of the conversation that both answers have already
    prompt = row.pop(form, None)
    tools = read_tools(row.pop("tools", None))
    for name in (name for both in PAIRS for name in both if row.get(name, ()) is None):
        del row[name]
    metadata = metadata_of(row)
    both_turns = [
        _conversation(Turns(system, unread), prompt, form, answer, name)
        for answer, name in zip(answers, names, strict=True)
    ]
    chosen, rejected = (turns.thread(metadata and dict(metadata), tools) for turns in both_turns)
    num_prompt_turns = bool(system) + (1 if isinstance(prompt, str) else len(prompt or ()))
    if prompt is None:
        num_prompt_turns = _common_prompt_length(chosen, rejected)
    if num_prompt_turns == 0:
        raise BadRow(f"{names[0]!r} and {names[1]!r} have no turn in common that could be the prompt")
    for thread, name in ((chosen, names[0]), (rejected, names[1])):
        answer = thread.get_turns()[num_prompt_turns:]
        if not answer or answer[0].role != "assistant":
            found = f"continues with a {answer[0].role} turn" if answer else "ends"
            raise BadRow(f"{name!r} {found} after the prompt (turns: {num_prompt_turns}), where an answer is needed")
        if answer[-1].role != "assistant":
            raise BadRow(f"{name!r} ends in a {answer[-1].role} turn; an answer ends in an assistant turn")
    if same_turns(chosen, rejected):
        raise BadRow(f"{names[0]!r} and {names[1]!r} are equal, so neither is better")
    for turns, thread, name in zip(both_turns, (chosen, rejected), names, strict=True):
        if marked := [index for index, weight in turns.weights.items() if weight and index < num_prompt_turns]:
            raise BadRow(f"turn {marked[0]}, of the prompt, has a weight; only the answers of a pair are trained")
        if not any(thread.get_turn_weights()[num_prompt_turns:]):
            raise BadRow(f"all turns of {name!r} weigh 0, so there is nothing to compare")
    chosen, rejected = (
        thread.with_turn_weights([0.0] * num_prompt_turns + thread.get_turn_weights()[num_prompt_turns:])
        for thread in (chosen, rejected)
    )
    return chosen, rejected


def _common_prompt_length(chosen: StringThread, rejected: StringThread) -> int:
    """How many turns two conversations have in common at their beginning, final assistant turns left out."""
    prompts = [thread.without_completion() for thread in (chosen, rejected)]
    both = (zip(thread.get_turns(), thread.get_tool_calls(), strict=True) for thread in prompts)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(*both, strict=False)))


def same_turns(one: StringThread, other: StringThread) -> bool:
    """Whether two threads have equal turns and tool calls."""
    return (one.get_turns(), one.get_tool_calls()) == (other.get_turns(), other.get_tool_calls())


def _why_no_pair(row: dict[str, Any]) -> str:
    half = [(name, names[name == names[0]]) for names in PAIRS for name in names if row.get(name) is not None]
    if half:
        name, missing = half[0]
        return f"{name!r} without {missing!r} beside it (columns: {listed(row)})"
    hint = "; read such rows with load_threads" if any(row.get(name) is not None for name in FORMS) else ""
    missing = "neither 'chosen' and 'rejected' nor 'preferred_completion' and 'other_completion'"
    return f"{missing} (columns: {listed(row)}){advice_for(row.keys()) or hint}"


def _conversation(turns: Turns, prompt: Any, form: str, answer: Any, column: str) -> Turns:
    """Prompt and answer; the answer may be the whole conversation already, as in the implicit form."""
    if prompt is None:
        if isinstance(answer, str):
            raise BadRow(f"{column!r} is a string without a 'prompt'; give the prompt in a column of its own")
        read_messages(turns, answer, column)
        return turns
    whole = Turns(turns.texts[0] if turns.num_before else None, turns.unread)
    read_conversation(turns, prompt, form)
    if not _is_conversation(answer):
        leave_untrained(turns)
        read_completion(turns, answer, column, form)
        return turns
    read_messages(whole, answer, column)
    num_turns = len(turns.roles)
    if (whole.roles[:num_turns], whole.texts[:num_turns]) != (turns.roles, turns.texts):
        raise BadRow(
            f"{column!r} begins with a {whole.roles[whole.num_before]} turn, but not with the turns of 'prompt'"
        )
    return whole


def _is_conversation(answer: Any) -> bool:
    """Whether an answer begins with a prompt of its own."""
    first = answer[0] if isinstance(answer, list) and answer else None
    role = first.get("role") if isinstance(first, dict) else first and first[0]
    return role in ("system", "developer", "user")
