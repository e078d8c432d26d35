"""Rows in every format, made from turns of which it is known whether they are trained: no other turn may be.

``DESCANT_FUZZ_CASES=20000 pytest tests/unit/test_datasets_fuzz.py`` tries as many.
"""

import json
import os
from typing import NamedTuple

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from descant import load_threads
from descant.errors import DatasetError

NUM_CASES = int(os.environ.get("DESCANT_FUZZ_CASES", "300"))
CONTENT = {"messages": ("role", "content"), "conversations": ("from", "value")}
NAMES = {"user": "human", "assistant": "gpt", "system": "system"}
TRUE_FALSE = ((True, 1), (False, 0))
MARKS = {
    "weight": ((1, 1.0, 0.25, True), (0, 0.0, False)),
    "loss_weight": ((1, 2.5), (0, 0.0)),
    "loss_scale": ((1.0, 3.0), (0.0,)),
    **dict.fromkeys(
        ("loss", "train", "training", "trainable", "train_on_turn", "loss_mask", "step_loss_mask"), TRUE_FALSE
    ),
    "masked": ((False, 0), (True, 1)),
}
"""Keys of public formats, with the values that say that a turn is trained and those that say that it is not."""
UNREAD = ("mask", "ignore", "no_loss", "train_detail", "label", "lossMask", "skip_turn", "Weight", "is_trained")


class Turn(NamedTuple):
    role: str
    text: str
    mark: bool | None  # what its author says: trained, not trained, nothing


class Case(NamedTuple):
    form: str
    rows: list
    trained_turns: str
    expected: set | None  # the texts that are trained; None: the row must be refused


def marked(message, turn, key, values):
    """The message with its turn's mark, one of the values that the key has for it."""
    return message if turn.mark is None else {**message, key: values[not turn.mark]}


@st.composite
def cases(draw):
    roles = draw(st.lists(st.sampled_from(["user", "assistant", "assistant"]), min_size=1, max_size=6))
    turns = []
    for index, role in enumerate(["system"] * draw(st.booleans()) + roles):
        is_empty = role == "assistant" and draw(st.integers(0, 19)) == 0
        text = "" if is_empty else f"{index} {draw(st.sampled_from(['a', 'é', '{}', 'weight']))}"
        turns.append(Turn(role, text, draw(st.sampled_from([None, None, True, False]))))
    key = draw(st.sampled_from(sorted(MARKS)))
    values = [draw(st.sampled_from(side)) for side in MARKS[key]]
    form = draw(st.sampled_from(["messages", "input", "conversations", "prompt", "messages+completion", "weights"]))
    trained_turns = draw(st.sampled_from(["all", "last"]))
    row, num_prompt_turns = _row(draw, form, turns, key, values)
    if form == "weights":
        turns = [turn._replace(mark=bool(weight)) for turn, weight in zip(turns, row["weights"], strict=True)]
    of_row = draw(st.sampled_from([None, None, True, False]))
    if of_row is not None:
        row_key = draw(st.sampled_from(["train", "loss_mask", "trainable", "loss"]))
        row[row_key] = of_row
    answers = [i for i, turn in enumerate(turns) if turn.role == "assistant" and i >= num_prompt_turns]
    by_default = answers if trained_turns == "all" else [i for i in answers if i == _last_answer(turns)]
    trained = {i for i, turn in enumerate(turns) if (i in by_default if turn.mark is None else turn.mark)}
    trained = set() if of_row is False else trained
    is_refused = any(turns[i] == ("assistant", "", None) for i in trained)
    if draw(st.integers(0, 9)) == 0:  # a mark that is not read
        is_refused = True
        messages = next(value for value in row.values() if isinstance(value, list))
        unread = {draw(st.sampled_from(UNREAD)): draw(st.sampled_from([0, False, 1]))}
        if isinstance(messages[-1], dict):
            messages[-1] = {**messages[-1], **unread}
        else:
            row["loss_masks"] = [0] * len(turns)
    rows = [{"prompt": "before", "completion": "first"}, row] if draw(st.booleans()) else [row]
    return Case(form, rows, trained_turns, None if is_refused else {turns[i].text for i in trained})


def _last_answer(turns):
    return max((i for i, turn in enumerate(turns) if turn.role == "assistant"), default=-1)


def _row(draw, form, turns, key, values):
    """The turns as a row, and how many of them are its prompt."""
    column = "conversations" if form == "conversations" else "messages"
    role_key, text_key = CONTENT[column]
    extra = draw(st.sampled_from([{}, {"id": 7}, {"weight": None}, {"name": None, "tool_calls": None}]))
    messages = []
    for turn in turns:
        role = NAMES[turn.role] if form == "conversations" else turn.role
        text = turn.text
        if form != "conversations" and draw(st.booleans()):
            text = [{"type": "text", "text": text[:1]}, {"type": "text", "text": text[1:]}]
        message = marked({**extra, role_key: role, text_key: text}, turn, key, values)
        as_pair = form == "weights" and isinstance(text, str) and draw(st.booleans())
        messages.append([role, text] if as_pair else message)
    if form == "weights":
        weights = [draw(st.sampled_from([0, 0.0, 1, 0.5])) for _ in turns]
        messages = [m if isinstance(m, list) else {k: v for k, v in m.items() if k not in MARKS} for m in messages]
        return {draw(st.sampled_from(["messages", "input"])): messages, "weights": weights}, 0
    if form in ("prompt", "messages+completion"):
        starts = [i for i in range(1, len(turns)) if (turns[i - 1].role, turns[i].role) != ("assistant", "assistant")]
        start = next((i for i in starts if turns[i].role == "assistant"), len(turns))
        is_answered = start < len(turns) and turns[-1].role == "assistant"
        if is_answered:
            return {form.partition("+")[0]: messages[:start], "completion": messages[start:]}, start
        if form == "prompt":
            return {"prompt": messages}, len(turns)
    return {column if form != "input" else "input": messages}, 0


def _through(container, rows, path):
    """The rows as a JSON file, a list, or what Arrow makes of them: every key in every message, with nulls."""
    if container == "arrow":
        try:
            names = {name: None for row in rows for name in row}
            return pa.Table.from_pylist([{**names, **row} for row in rows]).to_pylist()
        except (pa.ArrowInvalid, pa.ArrowTypeError):  # values of two types in one column
            return rows
    if container == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path
    return rows


@pytest.mark.filterwarnings("ignore:.*messages have keys that are not read:UserWarning")
@settings(max_examples=NUM_CASES, deadline=None, suppress_health_check=list(HealthCheck))
@given(cases(), st.sampled_from(["rows", "arrow", "jsonl"]))
def test_exactly_what_the_authors_of_a_row_say_is_trained(tmp_path_factory, case, container):
    path = tmp_path_factory.getbasetemp() / "fuzz.jsonl"
    source = _through(container, case.rows, path)
    if case.expected is None:
        with pytest.raises(DatasetError):
            load_threads(source, trained_turns=case.trained_turns)
        return
    thread = load_threads(source, trained_turns=case.trained_turns)[-1]
    weights = thread.get_turn_weights()
    assert {turn.content for turn, weight in zip(thread.get_turns(), weights, strict=True) if weight} == case.expected
