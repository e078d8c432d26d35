"""Which turns of a row are trained: by marks of every format, by the form of the row, and by ``trained_turns``."""

import json
import warnings

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from descant import StringThread, load_threads
from descant.data.datasets import load_pairs
from descant.errors import ConfigurationError, DatasetError

USER = {"role": "user", "content": "2+2="}


def assistant(content="4", **more):
    return {"role": "assistant", "content": content, **more}


def read(**row):
    (thread,) = load_threads([row])
    return thread


def refusal(row, load=load_threads):
    with pytest.raises(DatasetError) as caught:
        load([row])
    return str(caught.value).partition("rows[0]: ")[2]


def sharegpt(**more):
    return {"conversations": [{"from": "human", "value": "2+2="}, {"from": "gpt", "value": "4", **more}]}


HONOURED = [
    ({"weight": 0}, 0), ({"weight": 1}, 1), ({"weight": 0.5}, 0.5), ({"weight": True}, 1), ({"weight": None}, 1),
    ({"loss_weight": 0}, 0), ({"loss_weight": 2.5}, 2.5), ({"loss_scale": 0.0}, 0),
    ({"loss": False}, 0), ({"loss": True}, 1), ({"loss": None}, 1),
    ({"train": False}, 0), ({"train": 0}, 0), ({"train": True}, 1), ({"training": False}, 0),
    ({"trainable": False}, 0), ({"trainable": True}, 1), ({"train_on_turn": False}, 0),
    ({"loss_mask": 0}, 0), ({"loss_mask": 1}, 1), ({"loss_mask": False}, 0), ({"step_loss_mask": 0}, 0),
    ({"masked": True}, 0), ({"masked": False}, 1), ({"masked": False, "weight": 1}, 1),
]  # fmt: skip


@pytest.mark.parametrize(("mark", "weight"), HONOURED, ids=str)
def test_marks_of_messages_are_the_weights_of_turns(tmp_path, mark, weight):
    rows = [
        {"messages": [USER, assistant(**mark)]},
        {"prompt": "2+2=", "completion": [assistant(**mark)]},
        {"prompt": [USER], "completion": assistant(**mark)},
        {"messages": [USER], "completion": [assistant(**mark)]},
        {"input": [USER, assistant(**mark)]},
        sharegpt(**mark),
    ]
    for row in rows:
        assert read(**row).get_turn_weights() == [0, weight], row
    stacked = [{"messages": [USER, assistant(**mark)]}, {"messages": [USER, assistant("5")]}]  # nulls are filled in
    pq.write_table(pa.Table.from_pylist(stacked), tmp_path / "data.parquet")
    for source in (tmp_path / "data.parquet", datasets.Dataset.from_list(stacked)):
        assert [thread.get_turn_weights() for thread in load_threads(source)] == [[0, weight], [0, 1]]


@pytest.mark.parametrize(("mark", "weight"), HONOURED, ids=str)
def test_marks_of_rows_are_factors_of_their_weights_in_every_form(mark, weight):
    for form in ({"messages": [USER, assistant()]}, {"prompt": "2+2=", "completion": "4"}, sharegpt()):
        thread = read(**form, **mark, difficulty=1)
        assert (thread.get_turn_weights(), thread.metadata) == ([0, weight], {"difficulty": 1})
    many = [USER, assistant(weight=0.5), USER, assistant(weight=0), USER, assistant()]
    assert read(messages=many, **mark).get_turn_weights() == [0, 0.5 * weight, 0, 0, 0, weight]
    assert read(messages=[USER, assistant()], weights=[0, 0.5], **mark).get_turn_weights() == [0, 0.5 * weight]


REFUSED_ON_MESSAGES = {
    "mask": 1, "mask ": True, "ignore": True, "skip": True, "exclude": True, "label": -100, "labels": [1],
    "train_detail": [{"begin_offset": 0, "end_offset": 3, "train": False}], "no_loss": True, "is_trained": False,
    "compute_loss": 0, "train_on_assistant": False, "lossWeight": 0, "Weight": 0, "Loss": False, "loss-mask": 0,
    "weights": [1], "dont_train": False,
}  # fmt: skip


@pytest.mark.parametrize("key", REFUSED_ON_MESSAGES)
def test_keys_of_messages_that_may_be_marks_are_refused_by_name(key):
    reason = refusal({"messages": [USER, assistant(**{key: REFUSED_ON_MESSAGES[key]})]})
    assert reason.startswith(f"messages[1] has {key!r}")
    assert "write 'weight'" in reason or "write 'loss" in reason
    assert read(messages=[USER, assistant(**{key: None})]).get_turn_weights() == [0, 1]


@pytest.mark.parametrize(
    ("mark", "reason"),
    [
        ({"weight": "0"}, "messages[1].weight is a JSON string ('0'), not a number from 0 on"),
        ({"weight": -1}, "messages[1].weight is a JSON number (-1), not a number from 0 on"),
        ({"weight": float("inf")}, "messages[1].weight is a JSON number (inf), not a number from 0 on"),
        ({"weight": float("nan")}, "messages[1].weight is NaN"),
        ({"weight": 10**400}, "messages[1].weight is a JSON number (1000000000"),
        ({"loss": 0.37}, "messages[1].loss is a JSON number (0.37), not true, false, 1 or 0"),
        ({"train": "no"}, "messages[1].train is a JSON string ('no'), not true, false, 1 or 0"),
        ({"masked": 0.5}, "messages[1].masked is a JSON number (0.5), not true or false (true: not trained)"),
        ({"weight": 1, "train": False}, "messages[1] has 'weight': 1 and 'train': False, which do not say the same"),
        ({"loss_mask": 1, "masked": True}, "messages[1] has 'loss_mask': 1 and 'masked': True, which do not say the"),
    ],
    ids=str,
)
def test_marks_with_another_value_are_refused(mark, reason):
    assert refusal({"messages": [USER, assistant(**mark)]}).startswith(reason)
    assert refusal(sharegpt(**mark)).startswith(reason.replace("messages[1]", "conversations[1]"))


REFUSED_ON_ROWS = {
    "loss_mask": [0, 1], "weight": "1", "weight ": 1, "mask": "User", "mask_history": True, "roles_to_train": ["gpt"],
    "train_on_inputs": False, "train_on_input": True, "completion_mask": [0, 1], "assistant_masks": [0, 1],
    "train_detail": [1], "ignore": True, "loss": 0.37, "lossMask": 0, "Weights": [0, 1], "sample_weight": 2.0,
    "token_weights": [1], "turn_weights": [0, 1], "do_not_train": True, "label": False, "kto_tag": False,
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED_ON_ROWS)
def test_columns_that_may_be_marks_are_refused_by_name_in_every_form(name):
    value = REFUSED_ON_ROWS[name]
    for form in ({"messages": [USER, assistant()]}, {"prompt": "2+2=", "completion": "4"}, sharegpt()):
        assert repr(name) in refusal({**form, name: value})
        assert read(**form, metadata={name: value}).metadata == {name: value}
        assert read(**form, **{name: None}).get_turn_weights() == [0, 1]


def test_columns_with_such_words_that_say_something_else_are_metadata():
    metadata = {"weight_kg": 70, "train_id": 3, "training_hours": 2, "label": 0, "labels": ["a"]}
    metadata |= {"kto_tag": True, "is_valid": False, "step": 3, "detail": "x"}
    assert read(prompt="x", completion="y", **metadata).metadata == metadata
    assert read(prompt="x", label=False).metadata == {"label": False}  # nothing is trained


def test_a_weight_of_a_row_that_trains_nothing_is_refused():
    assert refusal({"prompt": "x", "weight": 0.5}).startswith("the row weighs 0.5, but none of its turns is trained")
    assert read(prompt="x", train=False).get_turn_weights() == read(prompt="x", weight=1).get_turn_weights() == [0]


CARRIES_CONTENT = {
    **dict.fromkeys(("reasoning_content", "reasoning", "thinking", "thought", "thinking_blocks"), "x"),
    "reasoningContent": {"text": "x"}, "reasoning_details": [{"text": "x"}], "tool_plan": "x", "tool_results": [1],
    "tools": [{}], "function_call": {"name": "f"},
    "refusal": "x", "audio": {"id": "x"}, "images": ["x"], "image_url": "x", "videos": ["x"], "prefix": True,
    "partial": True, "parts": ["x"], "text": "x", "value": "x", "documents": ["x"],
}  # fmt: skip


@pytest.mark.parametrize("key", CARRIES_CONTENT)
def test_keys_that_templates_render_are_refused_and_not_dropped(key):
    row = {"messages": [USER, assistant(**{key: CARRIES_CONTENT[key]})]}
    assert refusal(row).startswith(f"messages[1] has {key!r}, which a thread cannot hold; ")
    for nothing in (None, "", [], {}, False):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert read(messages=[USER, assistant(**{key: nothing})]) == StringThread().user("2+2=").assistant("4")


@pytest.mark.parametrize("key", ["Role", "content ", "Content", "Tool_calls", "toolCalls", "tool-call-id", "NAME"])
def test_keys_in_another_spelling_are_refused(key):
    assert refusal({"messages": [USER, assistant(**{key: "x"})]}).startswith(f"messages[1] has {key!r}, which is not")


@pytest.mark.parametrize(
    "name", ["Tools", "tools ", "System", "Completion", "systemPrompt", "system_message", "history"]
)
def test_columns_that_hold_some_of_the_conversation_are_refused_by_name(name):
    assert refusal({"prompt": "x", name: ["y"]}).startswith(f"a column {name!r}, which")
    assert refusal({"prompt": "x", "chosen": "a", "rejected": "b", name: ["y"]}, load_pairs).startswith("a column")


def test_other_keys_of_messages_are_counted_and_named_once(tmp_path):
    rows = [{"messages": [{**USER, "id": i, "ts": None}, assistant(id=i, model="m", logprobs=[])]} for i in range(600)]
    rows.append({"messages": [USER, assistant()]})
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    with pytest.warns(UserWarning, match="keys that are not read") as caught:
        assert len(load_threads(path)) == 601
    (warning,) = caught
    assert str(warning.message) == f"{path}: 1,200 messages have keys that are not read: 'id' (1,200), 'model' (600)"
    assert warning.filename == __file__
    with pytest.warns(UserWarning, match=r"1 messages have keys that are not read: 'cache_control' \(1\)$"):
        read(messages=[USER, assistant([{"type": "text", "text": "4", "cache_control": {"type": "ephemeral"}}])])
    with pytest.warns(UserWarning, match=r"1 messages have keys that are not read: 'id' \(1\)$"):
        read(
            conversations=[
                {"from": "human", "value": "x"},
                {"from": "function_call", "value": '{"name": "f"}', "id": 1},
            ]
        )
    many = {f"\x1b[31mkey {i}": 1 for i in range(20)}
    with pytest.warns(UserWarning, match=r"1 messages have keys .* and 12 more$") as caught:
        read(messages=[USER, assistant(**many)])
    assert "\x1b" not in str(caught[0].message)


def test_marks_within_parts_and_keys_within_calls_are_not_dropped():
    part = {"type": "text", "text": "4", "train": False}
    assert refusal({"messages": [USER, assistant([part])]}).startswith("messages[1].content[0] has 'train' (False)")
    for call in (
        {"name": "f", "parameters": {"a": 1}},
        {"function": {"name": "f", "args": {}}},
        {"name": "f", "output": 1},
    ):
        reason = refusal({"messages": [USER, assistant(None, tool_calls=[call])]})
        assert reason.startswith("messages[1].tool_calls[0] has ")
        assert reason.endswith("a call has a name and 'arguments'")


EMPTY = {
    "completion": {"prompt": "x", "completion": ""},
    "completion as messages": {"prompt": "x", "completion": [assistant("")]},
    "messages": {"messages": [USER, assistant("")]},
    "parts": {"messages": [USER, assistant([{"type": "text", "text": ""}])]},
    "within": {"messages": [USER, assistant(""), USER, assistant()]},
    "sharegpt": {"conversations": [{"from": "human", "value": "x"}, {"from": "gpt", "value": ""}]},
    "pairs of roles": {"messages": [["user", "x"], ["assistant", ""]]},
    "chosen": {"prompt": "x", "chosen": "", "rejected": "b"},
    "rejected": {"prompt": "x", "chosen": "a", "rejected": [assistant("")]},
}


@pytest.mark.parametrize("case", EMPTY)
def test_empty_answers_are_refused_alike_unless_they_are_meant(case):
    row = EMPTY[case]
    load = load_pairs if "chosen" in row else load_threads
    assert refusal(row, load).startswith("turn 1 is an empty answer, which would train to say nothing; ")
    for weight in (0, 1):
        assert read(messages=[USER, assistant("", weight=weight)]).get_turn_weights() == [0, weight]
    meant = assistant("", weight=1)
    ((_, rejected),) = load_pairs([{"prompt": "x", "chosen": "a", "rejected": [meant]}])
    assert rejected.get_turn_weights() == read(prompt="x", completion=meant).get_turn_weights() == [0, 1]


def test_empty_answers_that_are_not_trained_are_part_of_the_conversation():
    assert read(prompt=[USER, assistant(""), USER], completion="4").get_turn_weights() == [0, 0, 0, 1]
    (thread,) = load_threads([{"messages": [USER, assistant(""), USER, assistant()]}], trained_turns="last")
    assert thread.get_turn_weights() == [0, 0, 0, 1]
    assert "content is a JSON null, which is allowed only beside 'tool_calls'" in refusal(
        {"messages": [assistant(None)]}
    )


TWO = [USER, assistant("3"), USER, assistant("4")]
CALLS = [USER, assistant(None, tool_calls=[{"name": "add"}]), {"role": "tool", "content": "4"}, assistant("It is 4.")]


@pytest.mark.parametrize(
    ("row", "every", "last"),
    [
        ({"messages": TWO}, [0, 1, 0, 1], [0, 0, 0, 1]),
        ({"messages": [*TWO, USER]}, [0, 1, 0, 1, 0], [0, 0, 0, 1, 0]),
        ({"messages": TWO, "system": "s"}, [0, 0, 1, 0, 1], [0, 0, 0, 0, 1]),
        ({"messages": CALLS}, [0, 1, 0, 1], [0, 0, 0, 1]),
        ({"prompt": TWO[:3], "completion": "4"}, [0, 0, 0, 1], [0, 0, 0, 1]),
        ({"prompt": "x", "completion": CALLS[1:]}, [0, 1, 0, 1], [0, 0, 0, 1]),
        ({"prompt": TWO}, [0, 0, 0, 0], [0, 0, 0, 0]),
        ({"messages": TWO[:3], "completion": "4"}, [0, 0, 0, 1], [0, 0, 0, 1]),
        ({"messages": [USER, assistant(weight=1), USER, assistant()]}, [0, 1, 0, 1], [0, 1, 0, 1]),
        ({"messages": [USER, assistant(), USER, assistant(train=False)]}, [0, 1, 0, 0], [0, 0, 0, 0]),
        ({"messages": TWO, "weights": [0, 0.5, 0, 0]}, [0, 0.5, 0, 0], [0, 0.5, 0, 0]),
        ({"messages": TWO, "weight": 0.5}, [0, 0.5, 0, 0.5], [0, 0, 0, 0.5]),
        ({"messages": [USER]}, [0], [0]),
    ],
    ids=str,
)
def test_trained_turns_chooses_where_the_row_does_not(row, every, last):
    weights = [load_threads([row], trained_turns=turns)[0].get_turn_weights() for turns in ("all", "last")]
    assert weights == [every, last]
    assert load_threads([row])[0].get_turn_weights() == every


def test_trained_turns_is_all_or_last():
    with pytest.raises(ConfigurationError, match="trained_turns='first' must be 'all' or 'last'"):
        load_threads([{"prompt": "x"}], trained_turns="first")


THREAD = StringThread().system("s").user("x").assistant("y")
PROMPT = [["system", "s"], ["user", "x"]]
MESSAGES = [{"role": "system", "content": "s"}, {"role": "user", "content": "x"}]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": PROMPT, "completion": "y"},
        {"prompt": PROMPT, "completion": ["assistant", "y"]},
        {"prompt": PROMPT, "completion": [["assistant", "y"]]},
        {"prompt": PROMPT, "completion": {"role": "assistant", "content": "y"}},
        {"messages": [*PROMPT, ["assistant", [{"type": "text", "text": "y"}]]]},
        {"input": MESSAGES, "completion": "y"},
        {"messages": MESSAGES, "completion": "y"},
        {"input": [*MESSAGES, {"role": "assistant", "content": "y"}]},
        {"input": "x", "completion": "y", "system": "s"},
        {"messages": [{"role": "developer", "content": "s"}, *MESSAGES[1:]], "completion": "y"},
        {"prompt": "x", "completion": "y", "system": "s", "input": "", "messages": None},
        {"conversations": [{"from": "developer", "value": "s"}, {"from": "human", "value": "x"}], "completion": "y"},
    ],
    ids=str,
)  # fmt: skip
def test_the_rows_of_the_recipe_api_are_read(row):
    thread = read(**row)
    assert thread.get_turns() == THREAD.get_turns()
    assert thread.get_turn_weights() == [0, 0, 1]
    metric = read(**row, feedbacks=[{"feedback_key": "csat", "value": 5}], metadata={"id": 1})
    assert metric.metadata.items() >= {"id": 1, "feedbacks": [{"feedback_key": "csat", "value": 5}]}.items()


def test_rows_of_preferences_of_the_recipe_api_and_of_rankings_are_pairs():
    human = [{"from": "human", "value": "x"}]
    rows = [
        {"input": [["user", "x"]], "preferred_completion": "a", "other_completion": ["assistant", "b"]},
        {"messages": [{"role": "user", "content": "x"}], "preferred_completion": "a", "other_completion": "b"},
        {"prompt": [["user", "x"]], "preferred_completion": [["assistant", "a"]], "other_completion": "b"},
        {"conversations": human, "chosen": {"from": "gpt", "value": "a"}, "rejected": {"from": "gpt", "value": "b"}},
        {"chosen": [["user", "x"], ["assistant", "a"]], "rejected": [["user", "x"], ["assistant", "b"]]},
    ]
    expected = (StringThread().user("x").assistant("a"), StringThread().user("x").assistant("b"))
    assert load_pairs(rows) == [expected] * len(rows)
    whole = load_pairs([{**rows[-1], "messages": [["user", "x"], ["assistant", "a"]]}])
    assert [thread.get_turns() for thread in whole[0]] == [thread.get_turns() for thread in expected]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "x", "chosen": "a", "rejected": "b", "weight": 0.5}, "a column 'weight', which is not read here"),
        ({"prompt": "x", "chosen": "a", "rejected": "b", "weights": [1]}, "a column 'weights', which is not read here"),
        ({"prompt": [USER, assistant(weight=1), USER], "chosen": "a", "rejected": "b"}, "turn 1, of the prompt, has a"),
        ({"chosen": [USER, assistant(weight=0)], "rejected": [USER, assistant("5")]}, "all turns of 'chosen' weigh 0"),
        (
            {"messages": [USER, assistant()], "chosen": "a", "rejected": "b"},
            "'messages' ends in an answer, and 'chosen'",
        ),
    ],
    ids=str,
)
def test_marks_that_make_no_sense_in_pairs_are_refused(row, reason):
    assert refusal(row, load_pairs).startswith(reason)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"instruction": "i", "input": "x", "output": "y"}, "write instruction and input together as 'prompt'"),
        ({"instruction": "i", "input": "", "output": "y", "history": []}, "write instruction and input together"),
        ({"input": "x", "output": "y"}, "rename them 'prompt' and 'completion'"),
        ({"prompt": "p", "input": "x", "completion": "y"}, "both 'prompt' and 'input'; keep one of them"),
        ({"messages": [USER, assistant()], "completion": "y"}, "'messages' ends in an answer, and 'completion' is"),
        ({"prompt": "p", "completion": "y", "history": [["a", "b"]]}, "a column 'history', which a thread cannot hold"),
        ({"messages": [USER, assistant()], "enable_thinking": False}, "a column 'enable_thinking', which a thread"),
        (
            {"messages": [USER, assistant()], "input_ids": [1, 2], "labels": [-100, 2]},
            "leave out what has been tokenised",
        ),
        ({"prompt": "x", "completion": ["a", "b"]}, "completion[0].role is 'a'; roles are"),
    ],
    ids=str,
)
def test_rows_that_could_be_misread_are_refused(row, reason):
    assert reason in refusal(row)


def test_pairs_in_the_form_of_ms_swift_are_told_how_to_be_written():
    row = {"messages": [USER, assistant()], "rejected_response": "5"}
    assert "write the last answer of 'messages' as 'chosen' and 'rejected_response' as" in refusal(row, load_pairs)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("label", False),
        ("label", "false"),
        ("kto_tag", 0),
        ("kto_tag", "False"),
        ("is_desirable", 0.0),
        ("desirable", "0"),
    ],
)
def test_undesirable_answers_are_not_trained(name, value):
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    with pytest.raises(DatasetError, match="which marks an undesirable answer"):
        load_threads([{"messages": messages, name: value}])
    assert load_threads([{"messages": messages, name: True}])[0].get_turn_weights() == [0.0, 1.0]
    assert load_threads([{"messages": messages[:1], name: value}])


def test_a_key_of_a_message_that_is_false_is_named_too():
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "is_target": False}]
    with pytest.warns(UserWarning, match=r"1 messages have keys that are not read: 'is_target'"):
        load_threads([{"messages": messages}])
    messages[1] = {"role": "assistant", "content": "a", "learnable": False}
    with pytest.raises(DatasetError, match=r"'learnable'.*may say what is trained"):
        load_threads([{"messages": messages}])


def test_columns_of_what_was_measured_are_metadata():
    row = {"messages": [{"role": "user", "content": "q"}], "label": 0, "train_loss": 2.1, "mask_token": "[MASK]"}
    assert load_threads([row])[0].metadata == {"label": 0, "train_loss": 2.1, "mask_token": "[MASK]"}
