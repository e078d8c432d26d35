"""Rows: one row of a dataset as a thread."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from typing import Any

from descant.data.bad_row import BadRow, listed, type_of
from descant.data.keys import MARKS, UnreadKeys, check_columns, mark_of
from descant.data.messages import TrainedTurns, Turns, leave_untrained, read_answer, read_messages, read_weights
from descant.data.tool_rows import read_tools
from descant.text import quoted
from descant.threads.thread import StringThread

FORMS = ("messages", "prompt", "conversations", "input")
_DESIRABLE = ("label", "kto_tag", "kto_label", "desirable", "is_desirable")
"""Columns of KTO that say whether an answer is a good one."""
"""Columns that each hold a conversation: a row has one of them."""
PAIRS = (("chosen", "rejected"), ("preferred_completion", "other_completion"))
"""Columns of preference pairs, the better one first."""
CONVERSATION_COLUMNS = (*FORMS, "completion", *PAIRS[0], *PAIRS[1], "tools")
"""Columns whose values are turns or tools."""
_PAIR_NAMES = frozenset((*PAIRS[0], *PAIRS[1]))
_COLUMNS = frozenset((*CONVERSATION_COLUMNS, "system", "weights", "metadata"))
_REMEDIES = (
    ({"instruction", "output"}, "write instruction and input together as 'prompt', and output as 'completion'"),
    ({"input", "output"}, "rename them 'prompt' and 'completion'"),
    ({"question", "answer"}, "rename them 'prompt' and 'completion'"),
    (
        {"preferred_output", "non_preferred_output"},
        "rename them 'chosen' and 'rejected', write input's messages as 'prompt', and read it with load_pairs",
    ),
    (
        {"rejected_response"},
        "write the last answer of 'messages' as 'chosen' and 'rejected_response' as 'rejected', for load_pairs",
    ),
    ({"text"}, "text without turns cannot be read; split it into 'prompt' and 'completion', or into 'messages'"),
)
_FORM_NAMES = _PAIR_NAMES | {*FORMS, "completion"}


def thread_of_row(row: Any, unread: UnreadKeys, trained: TrainedTurns = "all") -> StringThread:
    """The thread that a row is, its other columns as metadata."""
    row = columns_of(row)
    if pair := pair_columns(row):
        raise BadRow(
            f"a preference pair ({pair[0]!r} and {pair[1]!r}); read it with load_pairs, or take out these columns"
        )
    form = _form(row)
    turns = Turns(row.pop("system", None), unread)
    read_conversation(turns, row.pop(form), form)
    is_prompt = form == "prompt" or "completion" in row
    if is_prompt:
        leave_untrained(turns)
    if "completion" in row:
        read_completion(turns, row.pop("completion"), "completion", form)
    if not is_prompt and (weights := row.pop("weights", None)) is not None:
        read_weights(turns, weights)
    tools = read_tools(row.pop("tools", None))
    if not row:
        return turns.thread(None, tools, trained)
    of_row = mark_of(row)
    row = {name: value for name, value in row.items() if name not in MARKS}
    thread = turns.thread(metadata_of(row), tools, trained, 1.0 if of_row is None else of_row)
    undesirable = [name for name in _DESIRABLE if name in row and _is_false(name, row[name])]
    if undesirable and any(thread.get_turn_weights()):
        name = undesirable[0]
        raise BadRow(
            f"{name!r} is {quoted(row[name])}, which marks an undesirable answer (KTO) that would be trained; "
            "leave the row out, or move the column into a column 'metadata' if it says something else"
        )
    return thread


def _is_false(name: str, value: Any) -> bool:
    """Whether a column says no, also as Parquet and CSV do; a label that is 0 may well be that of a class."""
    return value is False or str(value).lower() == "false" or (name != "label" and value in (0, "0"))


def columns_of(row: Any) -> dict[str, Any]:
    """A copy of a row, so that the caller's is left as it is."""
    if type(row) is not dict and not isinstance(row, Mapping):
        raise BadRow(f"{type_of(row)}, not an object")
    return dict(row)


def read_conversation(turns: Turns, conversation: Any, form: str) -> None:
    """What stands in the column of a form."""
    if isinstance(conversation, str) and form in ("prompt", "input"):
        turns.roles.append("user")
        turns.texts.append(conversation)
    else:
        read_messages(turns, conversation, form, sharegpt=form == "conversations")


def read_completion(turns: Turns, answer: Any, column: str, form: str) -> None:
    """The answer to a conversation that has been read from the column of a form."""
    if form != "prompt" and turns.roles[-1] == "assistant":
        raise BadRow(f"{form!r} ends in an answer, and {column!r} is another one; keep one of them")
    read_answer(turns, answer, column, sharegpt=form == "conversations")


def pair_columns(row: Mapping[str, Any]) -> tuple[str, str] | None:
    """The two columns that make a row a preference pair, if it has both."""
    if _PAIR_NAMES.isdisjoint(row):
        return None
    return next((names for names in PAIRS if all(row.get(name) is not None for name in names)), None)


def _form(row: dict[str, Any]) -> str:
    """Which of the forms a row has; columns of other forms that are null are taken off."""
    present = [name for name in FORMS if row.get(name) is not None]
    if len(present) > 1 and isinstance(row.get("input"), str) and not row["input"]:
        present.remove("input")  # that of an instruction without one
    if len(present) > 1:
        raise BadRow(f"both {' and '.join(map(repr, present))}; keep one of them (columns: {listed(row)})")
    if present == ["input"] and not (isinstance(row["input"], list) or row.get("completion") is not None):
        present = []  # the input of an instruction, or an object
    if not present:
        if nulls := [name for name in FORMS if row.get(name, "") is None]:
            raise BadRow(f"{' and '.join(map(repr, nulls))} {'are' if len(nulls) > 1 else 'is'} null")
        if "completion" in row:
            raise BadRow(f"a 'completion' without a 'prompt' (columns: {listed(row)})")
        raise BadRow(
            f"neither 'messages' nor 'prompt' nor 'conversations' (columns: {listed(row)}){advice_for(row.keys())}"
        )
    form = present[0]
    for name in _FORM_NAMES & row.keys():
        if row[name] is None and not (form == "prompt" and name == "completion"):
            del row[name]
    return form


def advice_for(columns: Iterable[Any]) -> str:
    """What to do about the columns of usual rows that have none of the forms."""
    for names, advice in _REMEDIES:
        if names <= set(columns):
            return f"; {advice}"
    return ""


def metadata_of(row: dict[str, Any]) -> dict[str, Any] | None:
    """The columns that are left of a row, those within ``metadata`` among them."""
    if not row:
        return None
    check_columns(row, _COLUMNS)
    inner = row.get("metadata")
    if isinstance(inner, dict):
        del row["metadata"]
        if both := [name for name in inner if name in row and row[name] != inner[name]]:
            raise BadRow(f"a column {quoted(both[0])} and another value of the same name in 'metadata'")
        row = {**inner, **row}
    elif inner is None:
        row.pop("metadata", None)
    return {sys.intern(name) if type(name) is str else name: value for name, value in row.items()} or None
