import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from descant import StringThread, load_threads
from descant.errors import DatasetError

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
    '{"text": "x"}': "line 2: neither 'messages' nor 'prompt' (columns: 'text')",
    '{"messages": [], "prompt": "x"}': "line 2: both 'messages' and 'prompt'/'completion'",
    '{"messages": []}': "line 2: 'messages' is an empty list",
    '{"messages": "hi"}': "line 2: 'messages' is a JSON string, not a list of messages",
    '{"messages": ["hi"]}': "line 2: messages[0] is a JSON string",
    '{"messages": [{"role": "user"}]}': "line 2: messages[0] has no 'content' (it has 'role')",
    '{"messages": [{"role": "bot", "content": "x"}]}': "line 2: turn 0 has role 'bot'",
    '{"messages": [{"role": "user", "content": 3}]}': "line 2: messages[0].content is a JSON number, not a string",
    '{"prompt": "x", "completion": null}': "line 2: completion is a JSON null, not a string",
    '{"prompt": "\\ud83d"}': "line 2: turn 0 (user) has content that is not valid Unicode",
    '{"prompt": ' + "9" * 5000 + "}": "line 2: not JSON that can be read",
    "[" * 100_000: "line 2: not JSON",
    '{"messages": [{"role": "tool", "content": "x", "tool_call_id": "1"}]}': "line 2: messages[0] has 'tool_call_id'",
    '{"messages": [{"role": "user", "content": "x"}], "weights": [1, 2]}': "line 2: 2 weights for a thread of 1 turns",
    '{"messages": [{"role": "user", "content": "x"}], "weights": "1"}': "line 2: 'weights' is not a list of numbers",
    '{"prompt": true}': "line 2: 'prompt' is a JSON boolean",
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


def test_missing_files_get_a_suggestion(tmp_path):
    path = write(tmp_path, GOOD)
    with pytest.raises(DatasetError, match=r"dat\.jsonl is not there; did you mean data\.jsonl\?"):
        load_threads(path.with_name("dat.jsonl"))
    with pytest.raises(DatasetError, match="there is no directory"):
        load_threads(tmp_path / "nowhere" / "data.jsonl")
    with pytest.raises(DatasetError, match="is a directory"):
        load_threads(tmp_path)


def test_empty_files_and_other_encodings_are_refused(tmp_path):
    with pytest.raises(DatasetError, match="is empty"):
        load_threads(write(tmp_path, "", "  "))
    path = tmp_path / "latin.jsonl"
    path.write_bytes((GOOD + "\n" + '{"prompt": "é"}').encode("latin-1"))
    with pytest.raises(DatasetError, match=r"line 2: not UTF-8 \(byte 0xe9 at column 13\)"):
        load_threads(path)


def test_a_byte_order_mark_and_windows_line_ends_do_no_harm(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + GOOD.encode() + b"\r\n" + GOOD.encode())
    assert len(load_threads(path)) == 2


@given(st.text())
def test_no_line_crashes_the_reader(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("fuzz") / "data.jsonl"
    path.write_text(text, encoding="utf-8", errors="surrogateescape")
    with contextlib.suppress(DatasetError):
        assert all(isinstance(thread, StringThread) for thread in load_threads(path))
