"""Preference pairs, and the split of threads and of pairs."""

import json
import re
from collections import Counter

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from descant import StringThread, Tool, ToolCall, load_threads
from descant.data.contamination import find_contamination
from descant.data.datasets import load_pairs
from descant.data.split import train_validation_split
from descant.errors import ConfigurationError, DatasetError


def user(content):
    return {"role": "user", "content": content}


def assistant(content, **more):
    return {"role": "assistant", "content": content, **more}


PROMPT = StringThread().user("2+2=")
CHOSEN, REJECTED = PROMPT.assistant("4"), PROMPT.assistant("5")
FORMS = {
    "strings": {"prompt": "2+2=", "chosen": "4", "rejected": "5"},
    "messages": {"prompt": [user("2+2=")], "chosen": [assistant("4")], "rejected": [assistant("5")]},
    "implicit": {"chosen": [user("2+2="), assistant("4")], "rejected": [user("2+2="), assistant("5")]},
    "both": {"prompt": "2+2=", "chosen": [user("2+2="), assistant("4")], "rejected": [user("2+2="), assistant("5")]},
    "preferred": {"prompt": "2+2=", "preferred_completion": "4", "other_completion": "5", "chosen": None},
}


@pytest.mark.parametrize("form", FORMS)
def test_pairs_of_every_form(tmp_path, form):
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps({**FORMS[form], "score": 3, "tools": [{"name": "add"}]}))
    ((chosen, rejected),) = load_pairs(path)
    assert chosen.get_turns() == CHOSEN.get_turns()
    assert rejected.get_turns() == REJECTED.get_turns()
    for thread in (chosen, rejected):
        assert thread.get_turn_weights() == [0, 1]
        assert thread.metadata == {"score": 3}
        assert thread.tools == (Tool("add"),)
        assert thread.source == f"{path}:1"
    chosen.metadata["score"] = 4
    assert rejected.metadata == {"score": 3}


def test_only_the_answers_of_a_conversation_carry_weight():
    start = [user("a"), assistant("b"), user("c")]
    more = [assistant("", tool_calls=[{"name": "f"}]), {"role": "tool", "content": "x"}, assistant("d")]
    implicit = {"chosen": [*start, *more], "rejected": [*start, assistant("e")]}
    explicit = {"prompt": start, "chosen": more, "rejected": "e"}
    assert load_pairs([implicit]) == load_pairs([explicit])
    ((chosen, rejected),) = load_pairs([implicit])
    assert chosen.get_turn_weights() == [0, 0, 0, 1, 0, 1]
    assert rejected.get_turn_weights() == [0, 0, 0, 1]
    assert chosen.get_tool_calls()[3] == (ToolCall("f"),)


BROKEN = {
    "no pair": (
        {"prompt": "x", "completion": "y"},
        r"nor 'preferred_completion' and .*; read such rows with load_threads",
    ),
    "nothing": ({"text": "x"}, r"neither 'chosen' and 'rejected' nor .* \(columns: 'text'\); text without turns"),
    "half": ({"prompt": "x", "chosen": "a", "rejected": None}, "'chosen' without 'rejected' beside it"),
    "equal": (
        {"prompt": "x", "chosen": "a", "rejected": "a"},
        "'chosen' and 'rejected' are equal, so neither is better",
    ),
    "strings": ({"chosen": "a", "rejected": "b"}, "'chosen' is a string without a 'prompt'"),
    "number": ({"prompt": "x", "chosen": 4, "rejected": "b"}, "chosen is a JSON number, not a string"),
    "no prompt": ({"chosen": [user("x")], "rejected": [user("y")]}, "have no turn in common that could be the prompt"),
    "no answer": ({"chosen": [user("x"), assistant("a")], "rejected": [user("x")]}, "'rejected' ends after the prompt"),
    "user": (
        {"chosen": [user("x"), user("y")], "rejected": [user("x"), assistant("a")]},
        r"'chosen' continues with a user turn after the prompt \(turns: 1\), where an answer is needed",
    ),
    "ends in user": (
        {"chosen": [user("x"), assistant("a"), user("y")], "rejected": [user("x"), assistant("b")]},
        "'chosen' ends in a user turn; an answer ends in an assistant turn",
    ),
    "openai": (
        {"input": {}, "preferred_output": [], "non_preferred_output": []},
        "rename them 'chosen' and 'rejected', write input's messages as 'prompt'",
    ),
    "images": ({"prompt": "x", "chosen": "a", "rejected": "b", "images": ["i"]}, "a column 'images', which a thread"),
    "other prompt": (
        {"prompt": "z", "chosen": [user("x"), assistant("a")], "rejected": "b"},
        "'chosen' begins with a user turn, but not with the turns of 'prompt'",
    ),
}


def test_a_system_prompt_of_a_pair_stands_in_both_threads():
    for form in FORMS.values():
        ((chosen, rejected),) = load_pairs([{**form, "system": "s"}])
        assert chosen.get_turns() == StringThread().system("s").user("2+2=").assistant("4").get_turns()
        assert chosen.messages() == rejected.messages()
        assert chosen.get_turn_weights() == [0, 0, 1]


@pytest.mark.parametrize("case", BROKEN)
def test_rows_that_are_no_pairs(case):
    row, message = BROKEN[case]
    with pytest.raises(DatasetError, match=r"1 of 2 rows cannot be read as preference pairs") as error:
        load_pairs([FORMS["strings"], row])
    ((place, reason),) = error.value.problems
    assert place == "rows[1]"
    assert re.search(message, reason)
    with pytest.warns(UserWarning, match="1 of 2 rows cannot be read as preference pairs and are left out"):
        assert len(load_pairs([FORMS["strings"], row], on_bad_row="skip")) == 1


def test_threads_and_pairs_name_each_other():
    with pytest.raises(DatasetError, match=r"a preference pair .*; read it with load_pairs"):
        load_threads([FORMS["implicit"]])


# Splitting


def thread(prompt, answer=""):
    return StringThread().user(prompt).assistant(answer)


datasets = st.lists(st.integers(0, 12).map(str), min_size=2, max_size=40).filter(lambda prompts: len(set(prompts)) > 1)


@given(datasets, st.floats(0.01, 0.99), st.integers(0, 3), st.booleans(), st.randoms(use_true_random=False))
def test_a_split_keeps_equal_prompts_together(prompts, fraction, seed, as_pairs, random):
    rows = [thread(prompt, str(i)) for i, prompt in enumerate(prompts)]
    if as_pairs:
        rows = [(row, thread(row.get_turns()[0].content, "other")) for row in rows]

    def prompt(row):
        return (row[0] if as_pairs else row).get_turns()[0].content

    training, validation = train_validation_split(rows, fraction, seed=seed)
    assert training
    assert validation
    assert not {*map(prompt, training)} & {*map(prompt, validation)}
    position = {id(row): index for index, row in enumerate(rows)}
    places = [[position[id(row)] for row in side] for side in (training, validation)]
    assert all(side == sorted(side) for side in places)
    assert sorted(places[0] + places[1]) == list(range(len(rows)))
    shuffled = random.sample(rows, len(rows))
    assert {*map(prompt, train_validation_split(shuffled, fraction, seed=seed)[1])} == {*map(prompt, validation)}
    target = min(max(1, int(len(rows) * fraction + 0.5)), len(rows) - 1)
    small, large = (validation, training) if target <= len(rows) - target else (training, validation)
    groups, left = Counter(map(prompt, small)), Counter(map(prompt, large))
    if len(groups) > 1 and len(left) > 1:  # else there was no choice, since neither side is empty
        assert abs(len(validation) - target) <= min(left.values()) / 2


@pytest.mark.parametrize(
    ("num_rows", "fraction", "expected"), [(10, 0.1, 1), (1000, 0.25, 250), (3, 0.01, 1), (3, 0.99, 2)]
)
def test_the_size_is_exact_if_prompts_differ(num_rows, fraction, expected):
    training, validation = train_validation_split([thread(str(i)) for i in range(num_rows)], fraction)
    assert (len(training), len(validation)) == (num_rows - expected, expected)


def test_the_size_is_as_near_as_whole_groups_come():
    rows = [thread(str(i // 4), str(i)) for i in range(40)]
    assert len(train_validation_split(rows, 0.1)[1]) == 4
    assert len(train_validation_split(rows, 0.14)[1]) == 4
    assert len(train_validation_split(rows, 0.17)[1]) == 8
    assert len(train_validation_split([*rows[:4], thread("x")], 0.8)[1]) == 4
    assert len(train_validation_split(rows[:8], 0.01)[1]) == len(train_validation_split(rows[:8], 0.99)[1]) == 4


def test_a_split_is_the_same_everywhere_and_another_with_another_seed():
    rows = [thread(str(i)) for i in range(100)]
    validation = [row.get_turns()[0].content for row in train_validation_split(rows, 0.05)[1]]
    assert validation == ["18", "32", "45", "68", "71"]
    assert train_validation_split(rows, 0.05, seed=1)[1] != train_validation_split(rows, 0.05)[1]


def test_threads_that_begin_alike_stay_together_whatever_else_they_have():
    plain, other = thread("x"), StringThread().user("y").assistant("a").user("x").assistant("b")
    same = StringThread([("user", "x"), ("assistant", "z")], {"id": 1})
    alike = [plain, same, plain.with_tools(Tool("f")), thread(" X"), thread("x").user("more").assistant("b")]
    alike.append(StringThread().system("s").user("x").assistant("c"))
    for rows in (alike, [(row.assistant("a"), row.assistant("b")) for row in alike]):
        rest = other if rows is alike else (other, other.assistant("c"))
        assert [rest] in train_validation_split([*rows, rest], 0.5)


turns = st.tuples(
    st.sampled_from(["system", "user", "assistant", "tool"]), st.sampled_from(["", "a", "A ", "?", "!", "b"])
)
call_ids = st.none() | st.sampled_from(["1", "2"])


@st.composite
def conversations(draw):
    made = StringThread()
    for role, text in draw(st.lists(turns, max_size=5)):
        if role == "assistant":
            made = made.assistant(text, draw(st.sampled_from([(), (ToolCall("f", {}, draw(call_ids)),)])))
        elif role == "tool":
            made = made.tool(text, draw(call_ids))
        else:
            made = made.system(text) if role == "system" else made.user(text)
    return made


@given(st.lists(conversations(), min_size=2, max_size=12), st.floats(0.1, 0.9))
def test_a_split_has_no_contamination(rows, fraction):
    try:
        training, held_out = train_validation_split(rows, fraction)
    except DatasetError:
        assume(False)
    assert find_contamination(training, {"v": held_out}) == []
    assert find_contamination(held_out, {"v": training}) == []


def test_pairs_with_answers_that_begin_alike_are_split_by_their_prompt():
    rows = [
        {
            "prompt": f"{i // 4}",
            "chosen": [assistant(f"same {i}"), user("u"), assistant(f"{i}")],
            "rejected": f"same {i}",
        }
        for i in range(48)
    ]
    training, held_out = train_validation_split(load_pairs(rows), 0.25)
    for side in (0, 1):
        assert find_contamination([pair[side] for pair in training], {"v": [pair[side] for pair in held_out]}) == []
    with pytest.raises(ConfigurationError, match=r"threads\[1\] is a pair without a common prompt"):
        train_validation_split([training[0], (thread("x"), thread("y"))])


def test_a_split_takes_any_iterable_and_only_whole_numbers_as_seed():
    rows = [thread("x"), thread("y")]
    assert train_validation_split(iter(rows)) == train_validation_split(rows)
    for seed in (None, [1], True, 1.5):
        with pytest.raises(ConfigurationError, match=r"seed=.* must be a whole number"):
            train_validation_split(rows, seed=seed)


def test_splits_that_cannot_be_made():
    rows = [thread("x"), thread("y")]
    for fraction in (0, 1, 1.5, -0.1, float("nan"), "0.1", True, None):
        with pytest.raises(ConfigurationError, match="validation_fraction="):
            train_validation_split(rows, fraction)
    with pytest.raises(DatasetError, match="all 2 threads begin alike; a split needs two different beginnings"):
        train_validation_split([thread("x", "a"), thread("x", "b")])
    with pytest.raises(DatasetError, match="there are no threads; a split needs"):
        train_validation_split([])
    with pytest.raises(ConfigurationError, match=r"threads\[1\] is a dict, not a StringThread or a pair of them"):
        train_validation_split([*rows[:1], {"prompt": "x"}])
