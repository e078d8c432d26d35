"""Rows: one row of a dataset as a thread."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from typing import Any

from descant.data.bad_row import BadRow, listed, type_of
from descant.data.messages import Turns, checked_weights, leave_untrained, read_answer, read_messages, read_prompt
from descant.data.tool_rows import read_tools
from descant.text import quoted
from descant.threads.thread import StringThread

FORMS = ("messages", "prompt", "conversations")
"""Columns that each hold a conversation: a row has one of them."""
PAIRS = (("chosen", "rejected"), ("preferred_completion", "other_completion"))
"""Columns of preference pairs, the better one first."""
CONVERSATION_COLUMNS = (*FORMS, "completion", *PAIRS[0], *PAIRS[1], "tools")
"""Columns whose values are turns or tools."""
_PAIR_NAMES = frozenset((*PAIRS[0], *PAIRS[1]))
_LOST = {
    "functions": "write them as 'tools'",
    "chat_template_kwargs": "leave the column out",
    **dict.fromkeys(
        ("images", "image", "videos", "video", "audios", "audio"), "leave it out if the text makes sense without it"
    ),
}
"""Columns that other libraries train on and no thread can hold, and what to do about them."""
_REMEDIES = (
    ({"instruction", "output"}, "write instruction and input together as 'prompt', and output as 'completion'"),
    ({"question", "answer"}, "rename them 'prompt' and 'completion'"),
    (
        {"preferred_output", "non_preferred_output"},
        "rename them 'chosen' and 'rejected', write input's messages as 'prompt', and read it with load_pairs",
    ),
    ({"text"}, "text without turns cannot be read; split it into 'prompt' and 'completion', or into 'messages'"),
)
_FORM_NAMES = _PAIR_NAMES | {*FORMS, "completion"}


def thread_of_row(row: Any) -> StringThread:
    """The thread that a row is, its other columns as metadata."""
    row = columns_of(row)
    if pair := pair_columns(row):
        raise BadRow(
            f"a preference pair ({pair[0]!r} and {pair[1]!r}); read it with load_pairs, or take out these columns"
        )
    form = _form(row)
    turns = Turns(row.pop("system", None))
    if form != "prompt":
        read_messages(turns, row.pop(form), form, sharegpt=form == "conversations")
    else:
        if weighted := [name for name in ("weights", "weight") if row.get(name) is not None]:
            raise BadRow(
                f"a column {weighted[0]!r} beside 'prompt', where it is not read; give the messages of the completion "
                "a 'weight' each, or leave the column out"
            )
        read_prompt(turns, row.pop("prompt"))
        if "completion" in row:
            leave_untrained(turns)
            if row["completion"] == "":
                raise BadRow("'completion' is an empty string, which would train to say nothing; leave the column out")
            read_answer(turns, row.pop("completion"), "completion")
    weights = row.pop("weights", None)
    tools = read_tools(row.pop("tools", None))
    if weights is None:
        return turns.thread(metadata_of(row), tools)
    if turns.weights:
        raise BadRow("both a column 'weights' and messages with a 'weight'; keep one of them")
    return turns.thread(metadata_of(row), tools).with_turn_weights([0.0] * turns.num_before + checked_weights(weights))


def columns_of(row: Any) -> dict[str, Any]:
    """A copy of a row, so that the caller's is left as it is."""
    if type(row) is not dict and not isinstance(row, Mapping):
        raise BadRow(f"{type_of(row)}, not an object")
    if not _LOST.keys().isdisjoint(row):
        for name, advice in _LOST.items():
            if row.get(name) not in (None, "", [], {}):
                raise BadRow(f"a column {name!r}, which a thread cannot hold; {advice}")
    return dict(row)


def pair_columns(row: Mapping[str, Any]) -> tuple[str, str] | None:
    """The two columns that make a row a preference pair, if it has both."""
    if _PAIR_NAMES.isdisjoint(row):
        return None
    return next((names for names in PAIRS if all(row.get(name) is not None for name in names)), None)


def _form(row: dict[str, Any]) -> str:
    """Which of the forms a row has; columns of other forms that are null are taken off."""
    present = [name for name in FORMS if row.get(name) is not None]
    if len(present) > 1 or (present and present[0] != "prompt" and row.get("completion") is not None):
        kinds = ["'prompt'/'completion'" if name == "prompt" else repr(name) for name in present]
        kinds += ["'prompt'/'completion'"] * (len(present) == 1)
        raise BadRow(f"both {' and '.join(kinds)}; keep one of them (columns: {listed(row)})")
    if not present:
        if nulls := [name for name in FORMS if name in row]:
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
    inner = row.get("metadata")
    if isinstance(inner, dict):
        del row["metadata"]
        if both := [name for name in inner if name in row and row[name] != inner[name]]:
            raise BadRow(f"a column {quoted(both[0])} and another value of the same name in 'metadata'")
        row = {**inner, **row}
    elif inner is None:
        row.pop("metadata", None)
    return {sys.intern(name) if type(name) is str else name: value for name, value in row.items()} or None
