import contextlib
import copy
import json
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from descant import StringThread, Tool, ToolCall, load_threads
from descant.errors import ConfigurationError, DatasetError

GOOD = '{"prompt": "1+1=", "completion": "2"}'


def write(tmp_path, *lines):
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def test_both_shapes_of_rows(tmp_path):
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "u", "name": None}]
    path = write(
        tmp_path,
        json.dumps({"messages": [*messages, {"role": "assistant", "content": "a"}]}),
        GOOD,
        "",
        json.dumps({"prompt": messages, "completion": "a"}),
        json.dumps({"prompt": "only", "difficulty": 3, "metadata": {"id": 7}}),
    )
    whole, plain, with_messages, prompt = load_threads(path)
    assert whole == StringThread().system("s").user("u").assistant("a")
    assert plain == StringThread().user("1+1=").assistant("2")
    assert with_messages == whole
    assert prompt.metadata == {"id": 7, "difficulty": 3}
    assert whole.metadata is None
    assert [thread.source.rpartition(":")[2] for thread in (whole, plain, with_messages, prompt)] == list("1245")


def test_threads_that_were_written_come_back(tmp_path):
    threads = [
        StringThread([("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")], {"id": 1}),
        StringThread().user("é").assistant("x").with_turn_weights([0, 0.5]),
    ]
    threads[0] = threads[0].with_weight_last_assistant_turn()
    assert load_threads(write(tmp_path, *(thread.to_json() for thread in threads))) == threads


BROKEN = {
    '{"prompt": "x", ': "line 2: not JSON: Expecting property name",
    "[1, 2]": "line 2: a JSON list, not an object",
    "null": "line 2: a JSON null, not an object",
    '{"text": "x"}': "line 2: neither 'messages' nor 'prompt' nor 'conversations' (columns: 'text')",
    '{"messages": [], "prompt": "x"}': "line 2: both 'messages' and 'prompt'; keep one",
    '{"messages": []}': "line 2: 'messages' is an empty list",
    '{"messages": "hi"}': "line 2: 'messages' is a JSON string, not a list of messages",
    '{"messages": ["hi"]}': "line 2: messages[0] is a JSON string",
    '{"messages": [{"role": "user"}]}': "line 2: messages[0] has no 'content' (it has 'role')",
    '{"messages": [{"role": "bot", "content": "x"}]}': "line 2: messages[0].role is 'bot'; roles are system, user, assistant, tool",  # noqa: E501
    '{"messages": [{"role": "user", "content": 3}]}': "line 2: messages[0].content is a JSON number, not a string",
    '{"prompt": "x", "completion": null}': "line 2: completion is a JSON null, not a string",
    '{"prompt": "\\ud83d"}': "line 2: the content of turn 0 (user) is not valid Unicode",
    '{"prompt": ' + "9" * 5000 + "}": "line 2: not JSON that can be read",
    "[" * 100_000: "line 2: not JSON",
    '{"messages": [{"role": "user", "content": "x"}], "weights": [1, 2]}': "'weights' has 2 numbers for 1 messages",
    '{"messages": [{"role": "user", "content": "x"}], "weights": "1"}': "line 2: 'weights' is not a list of numbers",
    '{"prompt": true}': "line 2: 'prompt' is a JSON boolean",
    '{"prompt": null}': "line 2: 'prompt' is null",
    '{"completion": "x"}': "line 2: a 'completion' without a 'prompt'",
    '{"prompt": "x", "completion": [{"role": "user", "content": "x"}]}': "completion[0] is a turn of 'user'",
    '{"prompt": "x", "chosen": "a", "rejected": "b"}': "a preference pair ('chosen' and 'rejected'); read it",
    '{"prompt": "x", "conversations": []}': "line 2: both 'prompt' and 'conversations'; keep one",
    '{"prompt": "x", "a": {"b": 1, "b": 2}}': "line 2: the key 'b' stands twice in one object; keep one of them",
    '{"prompt": "x", "metadata": {"id": 1}, "id": 2}': "a column 'id' and another value of the same name in 'metadata'",
    '{"messages": [{"role": "user", "content": "x"}], "weights": [NaN]}': "turn weights must be finite",
    '{"messages": [{"role": "user", "content": "x"}], "weights": [1' + "0" * 400 + "]}": "turn weights must be finite",
    '{"messages": [{"role": "user", "content": "x", "weight": "1"}]}': "messages[0].weight is a JSON string",
    '{"messages": [{"role": "user", "content": "x", "weight": 1}], "weights": [1]}': "keep one of them",
    '{"messages": [{"role": "user", "content": null}]}': "messages[0].content is a JSON null, which is allowed only",
    '{"messages": [{"role": "user", "content": []}]}': "messages[0].content is an empty list, which is",
    '{"messages": [{"role": "user", "content": [{"type": "image"}]}]}': "messages[0].content[0] is a part of type",
    '{"messages": [{"role": "user", "content": ["x"]}]}': "messages[0].content[0] is a JSON string, not a part like",
    '{"messages": [{"role": "user", "content": [{"type": "text"}]}]}': "content[0].text is a JSON null, not a string",
    '{"messages": [{"role": "assistant", "content": "x", "thinking": "y"}]}': "has 'thinking', which a thread cannot",
    '{"messages": [{"role": "user", "content": "x", "name": "Ann"}]}': "has 'name', but is a turn of 'user'; only tool",
    '{"messages": [{"role": "user", "content": "x", "tool_calls": [{}]}]}': "has 'tool_calls', but is a turn of",
    '{"messages": [{"role": "assistant", "tool_calls": [{"name": "f", "arguments": "{"}]}]}': "tool_calls[0]: the ",
    '{"messages": [{"role": "tool", "content": "x", "name": "f"}]}': "messages[0].name is 'f', but the turn has no",
    '{"messages": [{"from": "human", "value": "x"}]}': "messages[0] has no 'role' (it has 'from', 'value')",
    '{"conversations": [{"from": "alien", "value": "x"}]}': "conversations[0].from is 'alien'; known are human, user",
    '{"conversations": [{"from": "system", "value": "x"}], "system": 3}': "'system' is a JSON number, not a string",
    '{"conversations": [{"from": "function_call", "value": "[]"}]}': "conversations[0].value is an empty list, not a",
    '{"messages": [{"role": "user", "content": "x"}], "images": ["a"]}': "a column 'images', which a thread cannot hold",  # noqa: E501
    '{"messages": [{"role": "user", "content": "x"}], "functions": [{"name": "f"}]}': "write them as 'tools'",
    '{"prompt": "x", "completion": "y", "weights": [1]}': "a column 'weights', which is not read here but may say",
    '{"prompt": "x", "system": ["s"]}': "'system' is a JSON list, not a string",
    '{"messages": [{"role": "system", "content": "x"}], "system": "s"}': "both a column 'system' and a system turn",
    '{"prompt": "x", "completion": ""}': "turn 1 is an empty answer, which would train to say nothing",
    '{"prompt": []}': "'prompt' is an empty list; one message is needed at least",
    '{"prompt": "x", "completion": 3}': "completion is a JSON number, not a string or a list of messages",
    '{"instruction": "x", "input": "", "output": "y"}': "write instruction and input together as 'prompt'",
    '{"question": "x", "answer": "y"}': "rename them 'prompt' and 'completion'",
    "{'prompt': 'x'}": "line 2: not JSON: Expecting property name enclosed in double quotes at column 2; this is a dict",  # noqa: E501
    "<html>": "line 2: not JSON: Expecting value at column 1; this is HTML or XML",
    "prompt,completion": "line 2: not JSON: Expecting value at column 1; if this is CSV, read it with datasets",
    '          {"prompt": "x",, }': "at column 26",
    '{"messages": [{"role": "tool", "content": "", "tool_call_id": "\\ud83d"}]}': "the call id of turn 0 (tool) is not valid",  # noqa: E501
    '{"messages": [{"role": "assistant", "tool_calls": [{"name": "f", "arguments": {"a": "\\ud83d"}}]}]}': "not a JSON obj",  # noqa: E501
    '{"messages": [{"role": "assistant", "tool_calls": [{"name": "f", "arguments": "{\\"a\\": \\"\\\\ud83d\\"}"}]}]}': "not a J",  # noqa: E501
    '{"messages": [{"role": "assistant", "tool_calls": [{"name": "f", "id": "\\ud83d"}]}]}': "the id of the call of 'f' is",  # noqa: E501
    '{"messages": [{"role": "assistant", "tool_calls": [{"name": "f", "arguments": {"a": NaN}}]}]}': "not a JSON object: Out",  # noqa: E501
    '{"prompt": "x", "tools": [{"name": "f", "description": "\\ud83d"}]}': "the description of tool 'f' is not valid Unicode",  # noqa: E501
    '{"prompt": "x", "tools": [{"name": "f", "parameters": {"\\ud83d": 1}}]}': "parameters of tool 'f' are not JSON",
    '{"prompt": "x", "tools": "[{\\"name\\": \\"f\\", \\"name\\": \\"g\\"}]"}': "tools: the key 'name' stands twice in one",  # noqa: E501
    '{"prompt": "x", "tools": "add"}': "tools is text that is not JSON",
    '{"prompt": "x", "tools": {"name": "f"}}': "tools is a JSON object, not a list of schemas",
    '{"prompt": "x", "tools": [{"type": "web_search"}]}': "tools[0] is a tool of type 'web_search'",
    '{"prompt": "x", "tools": [{"name": "f", "returns": {}}]}': "tools[0] has 'returns'; a tool has a name, a",
    '{"prompt": "x", "tools": [{"function": {"name": ""}}]}': "tools[0]: the name of a tool is ''",
}


@pytest.mark.parametrize("line", BROKEN)
def test_a_bad_row_is_named_by_line_and_reason(tmp_path, line):
    with pytest.raises(DatasetError, match=r"1 of 3 rows cannot be read as threads") as error:
        load_threads(write(tmp_path, GOOD, line, GOOD))
    assert BROKEN[line] in str(error.value)


def test_the_first_ten_bad_rows_are_listed_and_all_are_kept(tmp_path):
    path = write(tmp_path, GOOD, *["{"] * 25)
    with pytest.raises(DatasetError) as error:
        load_threads(path)
    message = str(error.value)
    assert "25 of 26 rows" in message
    assert message.count("line ") == 10
    assert "line 2:" in message
    assert "line 11:" in message
    assert "... and 15 more" in message
    assert len(error.value.problems) == 25


@given(st.text())
def test_no_line_crashes_the_reader(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("fuzz") / "data.jsonl"
    path.write_text(text, encoding="utf-8", errors="surrogateescape")
    with contextlib.suppress(DatasetError):
        assert all(isinstance(thread, StringThread) for thread in load_threads(path))


CALL = {"id": "1", "type": "function", "function": {"name": "add", "arguments": '{"a": 2}'}}
ADD = {"name": "add", "description": "Adds.", "parameters": {"type": "object", "properties": {"a": {"type": "number"}}}}
ADD_TOOL = Tool(**ADD)


def read(**row):
    (thread,) = load_threads([row])
    return thread


def user(content):
    return {"role": "user", "content": content}


def assistant(content, **more):
    return {"role": "assistant", "content": content, **more}


def test_completions_may_be_messages_and_only_they_are_trained():
    prompt = [user("1+1="), assistant("2"), user("2+2=")]
    expected = StringThread().user("1+1=").assistant("2").user("2+2=").assistant("4").with_weight_last_assistant_turn()
    assert read(prompt=prompt, completion="4") == expected
    assert read(prompt=prompt, completion=[assistant("4")]) == expected
    prompt[1]["weight"] = 1
    assert read(prompt=prompt, completion="4").get_turn_weights() == [0, 1, 0, 1]
    assert read(messages=prompt).get_turn_weights() == [0, 1, 0]
    assert read(prompt=prompt[:2]).get_turn_weights() == [0, 1]


def test_content_in_parts_is_joined():
    parts = [{"type": "text", "text": "1+"}, {"type": "text", "text": "1=", "image": None}]
    assert read(messages=[user(parts)]) == StringThread().user("1+1=")
    assert read(prompt=[user(parts)], completion="2") == StringThread().user("1+1=").assistant("2")


def test_weights_of_messages():
    messages = [user("a"), assistant("b", weight=0), user("c"), assistant("d", weight=0.5), assistant("e", weight=None)]
    assert read(messages=messages).get_turn_weights() == [0, 0, 0, 0.5, 1]


def test_sharegpt_conversations():
    turns = [
        ("system", "s"),
        ("human", "1+1="),
        ("gpt", "2"),
        ("function_call", '{"name": "add", "arguments": {"a": 2}}'),
    ]
    turns += [("observation", "4"), ("chatgpt", "It is 4.")]
    expected = StringThread().system("s").user("1+1=").assistant("2").assistant("", [ToolCall("add", {"a": 2})])
    expected = expected.tool("4").assistant("It is 4.")
    conversation = [{"from": role, "value": text} for role, text in turns]
    assert read(conversations=conversation) == expected
    assert read(conversations=conversation[1:], system="s", tools=json.dumps([ADD])) == expected.with_tools(ADD_TOOL)
    assert read(conversations=[user("x"), assistant("y")], system="") == StringThread().user("x").assistant("y")
    with pytest.raises(DatasetError, match="both a column 'system' and a system turn"):
        read(conversations=[*conversation], system="s")


@pytest.mark.parametrize("as_text", [False, True])
@pytest.mark.parametrize("schema", [ADD, {"type": "function", "function": {**ADD, "strict": True}}])
def test_tools_of_a_row(schema, as_text):
    tools = json.dumps([schema]) if as_text else [schema]
    assert read(prompt="x", tools=tools) == StringThread().user("x").with_tools(ADD_TOOL)
    assert read(prompt="x", tools=None).tools == read(prompt="x", tools="").tools == ()


def test_tool_calls_and_their_answers():
    answers = [{"role": "tool", "content": "4", "name": "add", "tool_call_id": "1"}, assistant("It is 4.")]
    expected = (
        StringThread().user("x").assistant("", [ToolCall("add", '{"a": 2}', "1")]).tool("4", "1").assistant("It is 4.")
    )
    bare = {"id": "1", "name": "add", "arguments": {"a": 2}}
    for calls in ([CALL], [bare], json.dumps([CALL])):
        for message in ({"role": "assistant", "tool_calls": calls}, assistant(None, tool_calls=calls)):
            assert read(messages=[user("x"), message, *answers]) == expected
    other = {**CALL, "id": "2", "function": {"name": "sub", "arguments": None}}
    with pytest.raises(
        DatasetError, match="name is 'add', but the turn answers the call of 'sub'; give call and answer"
    ):
        read(
            messages=[
                user("x"),
                assistant("", tool_calls=[other, CALL]),
                {"role": "tool", "content": "", "name": "add"},
            ]
        )


names = st.sampled_from(["add", "sub"])
tool_calls = st.builds(
    ToolCall, names, st.dictionaries(st.text(), st.integers()), st.none() | st.sampled_from(["1", "2"])
)
steps = st.one_of(
    st.builds(lambda text: lambda thread: thread.user(text), st.text()),
    st.builds(
        lambda text, calls: lambda thread: thread.assistant(text, calls), st.text(), st.lists(tool_calls, max_size=2)
    ),
    st.builds(
        lambda text, call_id: lambda thread: thread.tool(text, call_id), st.text(), st.sampled_from([None, "1", "2"])
    ),
)


@given(st.lists(steps, min_size=1, max_size=6), st.none() | st.dictionaries(st.text(), st.integers(), min_size=1))
def test_every_thread_that_was_written_comes_back(builders, metadata):
    thread = StringThread(metadata=metadata, tools=[ADD_TOOL])
    for build in builders:
        thread = build(thread)
    (again,) = load_threads([json.loads(thread.to_json())])
    assert again.chat_messages() == thread.chat_messages()
    assert (again.tools, again.metadata) == (thread.tools, thread.metadata)
    assert again.get_turn_weights() == thread.get_turn_weights()


def test_a_system_prompt_may_stand_in_a_column():
    expected = StringThread().system("s").user("x").assistant("y")
    assert read(prompt="x", completion="y", system="s") == expected
    assert read(messages=[user("x"), assistant("y")], system="s") == expected
    weighted = read(messages=[user("x"), assistant("y")], system="s", weights=[0, 0.5])
    assert weighted == expected.with_turn_weights([0, 0, 0.5])
    assert (
        read(prompt="x", completion="y", system="", images=[], functions=None).get_turns() == expected.get_turns()[1:]
    )


@pytest.mark.parametrize("on_bad_row", ["error", "skip"])
def test_rows_that_are_nested_too_deeply_are_bad_rows(on_bad_row):
    deep = {}
    for _ in range(5000):
        deep = {"a": deep}
    call = {"role": "assistant", "tool_calls": [{"name": "f", "arguments": '{"a":' * 5000 + "1" + "}" * 5000}]}
    rows = [
        {"messages": [call]},
        {"prompt": "x", "metadata": {"b": deep}, "b": copy.copy(deep)},
        {"prompt": "x", "tools": [deep]},
        {"messages": [{"role": "assistant", "tool_calls": [{"name": "f", "arguments": deep}]}]},
        {"prompt": "fine"},
    ]
    if on_bad_row == "skip":
        with pytest.warns(UserWarning, match="of 5 rows cannot be read"):
            assert load_threads(rows, on_bad_row="skip")[-1] == StringThread().user("fine")
        return
    with pytest.raises(DatasetError) as error:
        load_threads(rows)
    assert {"rows[0]", "rows[2]", "rows[3]"} <= {place for place, _ in error.value.problems}


def test_metadata_that_no_utf8_can_be_written_of_are_escaped():
    thread = read(prompt="x", note="\ud83d")
    assert thread.to_json().isascii()
    assert StringThread.from_json(thread.to_json()) == thread
    assert thread.uuid() == StringThread().user("x").uuid()


def test_metadata_is_kept_as_it_is():
    assert read(prompt="x", score=float("inf"), none=None).metadata == {
        "score": float("inf"), "none": None,
    }  # fmt: skip
    row = {"prompt": "x", "metadata": {"id": 1}, "id": 1}
    before = copy.deepcopy(row)
    assert load_threads([row])[0].metadata == {"id": 1}
    assert row == before


def test_the_constants_of_pythons_json_are_read_in_metadata(tmp_path):
    (thread,) = load_threads(write(tmp_path, '{"prompt": "x", "score": -Infinity, "other": NaN}'))
    assert thread.metadata["score"] == float("-inf")
    assert thread.metadata["other"] != thread.metadata["other"]


def test_the_source_of_a_thread_can_be_replaced_and_copied(tmp_path):
    (thread,) = load_threads(write(tmp_path, GOOD))
    for again in (
        thread,
        copy.copy(thread),
        copy.deepcopy(thread),
        pickle.loads(pickle.dumps(thread)),
        thread.user("x"),
    ):
        assert again.source == f"{tmp_path / 'data.jsonl'}:1"
    thread.source = "elsewhere"
    assert thread.source == "elsewhere"
    assert StringThread().user("x").source is None


def test_bad_rows_can_be_skipped_and_are_counted(tmp_path):
    path = write(tmp_path, GOOD, *["{", '{"prompt": 3}'] * 3, GOOD)
    with pytest.warns(UserWarning, match=r"data\.jsonl: 6 of 8 rows cannot be read as threads and are left") as caught:
        threads = load_threads(path, on_bad_row="skip")
    assert [thread.source.rpartition(":")[2] for thread in threads] == ["1", "8"]
    assert caught[0].filename == __file__
    lines = str(caught[0].message).splitlines()[1:]
    assert [line.partition(": ")[0] for line in lines] == ["  line 2", "  line 3", "  line 4", "  ... and 3 more"]
    with pytest.raises(DatasetError, match="2 of 2 rows cannot be read"):
        load_threads(write(tmp_path, "{", "{"), on_bad_row="skip")


def test_rows_that_are_good_warn_of_nothing(tmp_path, recwarn):
    assert len(load_threads(write(tmp_path, GOOD), on_bad_row="skip")) == 1
    assert not recwarn.list
    with pytest.raises(ConfigurationError, match="on_bad_row='ignore' must be 'error' or 'skip'"):
        load_threads(write(tmp_path, GOOD), on_bad_row="ignore")


def test_messages_about_rows_stay_short_and_harmless(tmp_path):
    loud = "\x1b[31m" * 100_000
    rows = [
        {loud: 1},
        {f"{loud}{number}": 1 for number in range(100)},
        {"messages": [{"role": loud, "content": "x"}]},
        {"messages": [{"role": "user", loud: "x"}]},
        {"conversations": [{"from": loud, "value": "x"}]},
        {"messages": [{"role": "assistant", "tool_calls": [{"name": loud, "arguments": loud}]}]},
        {"messages": [{"role": "user", "content": [{"type": loud}]}]},
        {"prompt": "x", "tools": [{"type": loud}]},
    ]
    with pytest.raises(DatasetError) as error:
        load_threads(rows)
    assert len(error.value.problems) == len(rows)
    assert len(str(error.value)) < 3000
    assert "\x1b" not in str(error.value)
