"""Prompts of validation sets that stand in the training set are found, and no others."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from descant import StringThread, ToolCall
from descant.data.contamination import find_contamination
from descant.errors import ConfigurationError


def thread(prompt, answer="a", source=None):
    return StringThread([("user", prompt), ("assistant", answer)], source=source)


def found(training, validation):
    """(exactly, normalised) of one validation set."""
    result = find_contamination(training, {"validation": validation})
    return (result[0].num_exact, result[0].num_normalised) if result else (0, 0)


def test_what_is_reported():
    training = [thread("25+60=", source="train.jsonl:17"), thread("What is  it"), thread("25+60=", source="later")]
    sets = {
        "clean": [thread("x")],
        "validation": [thread("1+1="), thread("what is it", source="v.jsonl:2"), StringThread().user("25+60=")],
        "empty": [],
    }
    (report,) = find_contamination(training, sets)
    assert (report.name, report.num_prompts, report.num_exact, report.num_normalised) == ("validation", 3, 1, 1)
    assert [(e.validation, e.training, e.text, e.is_exact) for e in report.examples] == [
        ("validation[2]", "train.jsonl:17", "25+60=", True),
        ("v.jsonl:2", "training_set[1]", "what is it", False),
    ]
    assert report.describe() == (
        "validation: 2 of 3 prompts also stand in the training set (1 exactly, 1 but for case, space and system "
        "turns); first: validation[2] = train.jsonl:17 '25+60=', v.jsonl:2 ≈ training_set[1] 'what is it'"
    )


def test_at_most_three_examples_which_are_short_and_harmless():
    rows = [thread("\x1b[31m" * 1000 + str(i)) for i in range(5)]
    (report,) = find_contamination(rows, {"v": rows})
    assert (report.num_exact, len(report.examples)) == (5, 3)
    assert report.examples[2].text == rows[2].get_turns()[0].content
    assert len(report.describe()) < 500
    assert report.describe().isprintable()


SAME = {
    "case": ("What Is It", "what is it"),
    "space": ("a \t b\n", "a b"),
    "compatibility": ("ﬁve ＝ ５", "five = 5"),
    "sharp s": ("STRASSE", "straße"),
    "no break": ("a\u00a0b", "a b"),
    "space alone": (" ", "\n\n"),
}
DIFFERENT = {
    "plus": ("1+23=", "12+3="),
    "equals": ("a = b", "a b"),
    "operators": ("6/2", "6*2"),
    "decimals": ("1.5", "15"),
    "currency": ("$5", "5"),
    "accents": ("café", "cafe"),
    "words": ("a b", "ab"),
    "a leading minus": ("-5+3=", "5+3="),
    "a difference of letters": ("x - y", "x y"),
    "names": ("C#", "C"),
    "factorials": ("What is n!", "What is n"),
    "unequal": ("a != b", "a = b"),
    "brackets": ("2*(3+4)", "2*3+4"),
    "points": (".5", "5"),
    "only punctuation": ("?", "!"),
    "a sentence with other punctuation": ("What is 2+2?", "What is 2+2"),
    "a sum with space": ("3 - 2", "3-2"),
    "other quotes": ("“quoted”", '"quoted"'),
}
"""The last three are the same to people: what is found is a lower bound."""


@pytest.mark.parametrize("case", SAME)
def test_prompts_that_are_the_same_but_for_their_form(case):
    left, right = SAME[case]
    assert found([thread(left)], [thread(right)]) == found([thread(right)], [thread(left)]) == (0, 1)


@pytest.mark.parametrize("case", DIFFERENT)
def test_prompts_that_differ(case):
    left, right = DIFFERENT[case]
    assert found([thread(left)], [thread(right)]) == (0, 0)


def test_answers_without_a_prompt_have_nothing_in_common():
    assert found([StringThread().assistant("a")], [StringThread().assistant("b")]) == (0, 0)


def test_every_prompt_that_training_answers_counts():
    conversation = StringThread().system("s").user("u1").assistant("a1").user("u2").assistant("a2").user("u3")
    first, second, third = (StringThread().user("u1"), conversation.first_turns(4), conversation)
    assert found([conversation], [first, second, third]) == (2, 1)  # what the third was trained to, not where it ends
    assert found([conversation.with_weight_last_assistant_turn()], [first, second]) == (1, 0)
    last = conversation.assistant("a3").with_weight_last_assistant_turn()
    assert found([conversation], [last]) == (0, 0)
    assert found([conversation], [last.with_weight_all_assistant_turns()]) == (1, 0)
    assert found([conversation.with_turn_weights([0] * 6)], [first, second, third]) == (0, 0)
    assert found([conversation], [StringThread().user("u2"), StringThread().user("u1 a1 u2")]) == (0, 0)


def test_system_turns_are_left_out_when_normalised():
    with_system = StringThread().system("Be brief.").user("hi").assistant("a")
    assert found([with_system], [thread("hi")]) == (0, 1)
    assert found([with_system], [with_system]) == (1, 0)


def test_a_system_turn_before_the_first_answer_is_the_prompt():
    story = StringThread().system("Write of a cat.").assistant("a")
    assert found([story], [StringThread().system("write of  a CAT.").assistant("b")]) == (0, 1)
    assert found([story], [StringThread().system("Write of a dog.").assistant("a")]) == (0, 0)


def test_ids_of_tool_calls_are_not_part_of_a_prompt():
    def called(call_id):
        start = StringThread().user("u").assistant("", [ToolCall("f", {}, call_id)]).tool("x", call_id)
        return start.assistant("a").with_weight_last_assistant_turn()

    assert found([called("1")], [called("2")]) == (0, 1)


def test_sets_of_a_wrong_kind():
    rows = [thread("x")]
    for training, validation, message in (
        (rows, rows, r"validation_sets is a list; it must be a dict of sets by their names"),
        (rows, {"v": [(rows[0], rows[0])]}, r"validation_sets\['v'\]\[0\] is a tuple, .*; pass the chosen threads"),
        (rows, {"v": rows[0]}, r"v is a StringThread; it must be a list of threads"),
        (rows[0], {"v": rows}, r"training_set is a StringThread; it must be a list of threads"),
        ([{"prompt": "x"}], {"v": rows}, r"training_set\[0\] is a dict, not a StringThread; read rows with"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            find_contamination(training, validation)


def test_tool_calls_are_part_of_a_prompt():
    def called(city):
        return (
            StringThread()
            .user("u")
            .assistant("", [ToolCall("weather", {"city": city})])
            .tool("sunny")
            .assistant("a")
            .with_weight_last_assistant_turn()
        )

    assert found([called("Rome")], [called("Rome")]) == (1, 0)
    assert found([called("Rome")], [called("rome")]) == (0, 1)
    assert found([called("Rome")], [called("Oslo")]) == (0, 0)


@given(st.lists(st.text(max_size=4), max_size=8), st.lists(st.text(max_size=4), max_size=8))
def test_exact_matches_are_those_that_comparing_all_finds(training, validation):
    result = find_contamination([thread(text) for text in training], {"v": [thread(text) for text in validation]})
    exact = sum(text in training for text in validation)
    assert (result[0].num_exact if result else 0) == exact
    if result:
        assert exact + result[0].num_normalised <= len(validation)


@given(st.text())
def test_changes_of_form_are_always_found(text):
    changed = "".join(f" {character}\n" if character == " " else character for character in f" {text}\n")
    assert found([thread(text)], [thread(changed)]) == found([thread(changed)], [thread(text)]) == (0, 1)
