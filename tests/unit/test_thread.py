import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from descant import StringThread, StringTurn, Tool, ToolCall
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


CALLS = [ToolCall("add", {"a": 2, "b": "é"}, "1"), ToolCall("add", '{"a": 3}', "2")]


def test_tool_calls_and_their_answers_in_chat_form():
    thread = (
        StringThread().with_tools(Tool("add")).user("u").assistant("", CALLS).tool("5", "2").tool("4").assistant("9")
    )
    _, call, second, first, _ = thread.chat_messages()
    assert [c["function"]["arguments"] for c in call["tool_calls"]] == [{"a": 2, "b": "é"}, {"a": 3}]
    assert second == {"role": "tool", "content": "5", "name": "add", "tool_call_id": "2"}
    assert first == {"role": "tool", "content": "4", "name": "add", "tool_call_id": "1"}
    assert thread.get_tool_calls() == [(), tuple(CALLS), (), (), ()]
    assert thread.get_turns()[1] == ("assistant", "")


def test_threads_with_tools_go_through_json_and_have_their_own_ids():
    thread = StringThread().user("u").assistant("a", CALLS).tool("5", "2").tool("4")
    weighted = thread.with_tools(Tool("add", "Adds.", {"type": "object"})).with_turn_weights([0, 2, 0, 0])
    again = StringThread.from_json(weighted.to_json())
    assert again.chat_messages() == weighted.chat_messages()
    assert (again.tools, again.get_turn_weights()) == (weighted.tools, weighted.get_turn_weights())
    plain = StringThread().user("u").assistant("a").tool("5").tool("4")
    assert len({thread.uuid(), weighted.uuid(), plain.uuid()}) == 3
    assert weighted.without_completion().tools == weighted.tools


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ToolCall("add", "no json"), "the arguments of the call of 'add' are 'no json', not a JSON object"),
        (lambda: ToolCall("add", "[1]"), "not a JSON object"),
        (lambda: ToolCall("add", {"a": object()}), "not a JSON object"),
        (lambda: ToolCall("", {}), "the name of a tool call is ''"),
        (lambda: Tool(None), "the name of a tool is None"),
        (lambda: Tool("f", parameters={"a": object()}), "the parameters of tool 'f' are not JSON"),
        (lambda: StringThread().user("u").assistant("a", ["add"]), r"turn 1 \(assistant\) has tool_calls that are not"),
        (lambda: StringThread().with_tools("add"), "tools are made with Tool"),
    ],
)
def test_tools_that_cannot_work_are_refused(make, message):
    with pytest.raises(ConfigurationError, match=message):
        make()


def test_people_read_turns_and_tool_calls():
    call = ToolCall("add", {"a": 2, "b": [1, None], "c d": "x\n\x1b[31m"})
    thread = StringThread().system("You add.").user("2+2=").assistant("", [call, ToolCall("\x1b[2Jclear")])
    thread = thread.tool("4").assistant("It is 4.", [ToolCall("end")])
    shown = 'add(a=2, b=[1, null], c d="x\\n\\u001b[31m")'
    assert thread.as_text() == (
        f"[system]\nYou add.\n\n[user]\n2+2=\n\n[assistant]\n→ {shown}\n→ \\x1b[2Jclear()\n\n[tool]\n4\n\n"
        "[assistant]\nIt is 4.\n→ end()"
    )
    assert repr(thread) == (
        f"StringThread(system: 'You add.', user: '2+2=', assistant: → {shown} → \\x1b[2Jclear(), tool: '4', "
        "assistant: 'It is 4.' → end())"
    )
    system, rest = thread.split_system()
    assert (system, rest.get_tool_calls(), len(rest)) == ("You add.", thread.get_tool_calls()[1:], 4)
    assert rest.split_system() == ("", rest)
    assert StringThread().user("2+2=").as_text() == "2+2="
    assert repr(StringThread().user("2+2=").assistant("")) == "StringThread(user: '2+2=', assistant: '')"
