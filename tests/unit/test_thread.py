import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from descant import StringThread, StringTurn
from descant.errors import ConfigurationError, DescantError

roles = st.sampled_from(["system", "user", "assistant", "tool"])
threads = st.builds(
    StringThread,
    st.lists(st.tuples(roles, st.text()), max_size=6),
    st.none() | st.dictionaries(st.text(), st.integers()),
)


def conversation():
    return StringThread().system("s").user("u1").assistant("a1").user("u2").assistant("a2")


def test_builders_return_new_threads():
    start = StringThread().user("2+2=")
    answered = start.assistant("4")
    assert start.get_turns() == [("user", "2+2=")]
    assert answered.get_turns() == [StringTurn("user", "2+2="), StringTurn(role="assistant", content="4")]
    assert answered.get_turns()[1].content == "4"


def test_reading():
    thread = conversation()
    assert thread.completion() == "a2"
    assert thread.last_content() == "a2"
    assert [turn.content for turn in thread.messages()] == ["s", "u1", "a1", "u2"]
    assert thread.without_completion().completion() is None
    assert thread.without_completion().last_content() == "u2"
    assert StringThread().user("x").without_completion() == StringThread().user("x")
    with pytest.raises(DescantError, match="empty thread"):
        StringThread().last_content()


def test_a_fresh_thread_trains_on_its_assistant_turns():
    assert conversation().get_turn_weights() == [0, 0, 1, 0, 1]
    assert StringThread([("user", "u"), ("assistant", "a")]).get_turn_weights() == [0, 1]
    assert conversation().tool("t").get_turn_weights() == [0, 0, 1, 0, 1, 0]


def test_weights():
    thread = conversation()
    assert thread.with_weight_last_assistant_turn().get_turn_weights() == [0, 0, 0, 0, 1]
    assert thread.with_weight_assistant_turns_from_index(1).get_turn_weights() == [0, 0, 0, 0, 1]
    assert thread.with_weight_assistant_turns_from_index(2).get_turn_weights() == [0, 0, 0, 0, 0]
    assert thread.with_turn_weights([0, 0.5, 0, 0, 2]).get_turn_weights() == [0, 0.5, 0, 0, 2]
    assert thread.with_turn_weights([0, 1, 0, 0, 0]).with_weight_all_assistant_turns() == thread
    for weights in ([1], [0, 0, 0, 0, -1], [0, 0, 0, 0, float("nan")]):
        with pytest.raises(ConfigurationError):
            thread.with_turn_weights(weights)


@pytest.mark.parametrize(
    ("turn", "message"),
    [
        (("robot", "x"), "role 'robot'; roles are system, user, assistant, tool"),
        (("user", None), r"turn 0 \(user\) has content of type NoneType"),
        (("user", 3), "int"),
    ],
)
def test_a_turn_that_cannot_be_rendered_is_refused(turn, message):
    with pytest.raises(ConfigurationError, match=message):
        StringThread([turn])


@given(threads)
def test_json_round_trip(thread):
    weighted = thread.with_turn_weights([0.25 * i for i in range(len(thread))])
    text = weighted.to_json()
    assert "\n" not in text
    assert StringThread.from_json(text) == weighted


def test_json_without_weights_is_a_fresh_thread():
    text = json.dumps({"messages": [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]})
    assert StringThread.from_json(text) == StringThread().user("u").assistant("a")


def test_the_id_is_made_from_the_content_and_nothing_else():
    thread = conversation()
    assert thread.uuid() == StringThread.from_json(thread.to_json()).uuid()
    assert thread.with_weight_last_assistant_turn().uuid() == thread.uuid()
    other = conversation()
    other.metadata = {"a": 1}
    assert other.uuid() == thread.uuid()
    assert thread.user("x").uuid() != thread.uuid()
    assert StringThread().user("ab").user("c").uuid() != StringThread().user("a").user("bc").uuid()


def test_the_id_is_the_same_in_another_process():
    code = "from descant import StringThread; print(StringThread().user('é').assistant('4').uuid())"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert printed == StringThread().user("é").assistant("4").uuid()
