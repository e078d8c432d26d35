"""Every kind of bad file in every format, and the same threads from each of them."""

import gzip
import json
import os
import subprocess
import sys

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from descant import StringThread, load_pairs, load_threads
from descant.errors import ConfigurationError, DatasetError

ROW = {"prompt": "1+1=", "completion": "2"}
FORMATS = ("jsonl", "json", "jsonl.gz", "json.gz", "parquet")


def encode(rows, suffix):
    """The bytes of a file of this format."""
    if suffix == "parquet":
        sink = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist(rows), sink)
        return sink.getvalue().to_pybytes()
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    text = "\n".join(lines) + "\n" if suffix.startswith("jsonl") else "[\n" + ",\n".join(lines) + "\n]\n"
    return pack(text.encode(), suffix)


def pack(data, suffix):
    return gzip.compress(data, mtime=0) if suffix.endswith("gz") else data


def missing(path, suffix):
    path.with_name(f"date.{suffix}").write_bytes(b"")
    return rf"data\.{suffix} is not there; did you mean 'date\.{suffix}'\?"


def empty(path, suffix):
    path.write_bytes(b"")
    return r"is empty: there is no row in it"


def empty_inside(path, suffix):
    if suffix.startswith("json"):
        path.write_bytes(pack(b"\n \n" if suffix.startswith("jsonl") else b" [ ]\n", suffix))
    else:
        pq.write_table(pa.table({"prompt": pa.array([], pa.string())}), path)
    return r"is empty: there is no row in it"


def truncated(path, suffix, answer=(("completion", "x"),)):
    data = encode([{"prompt": f"{i}+{i * 7919 % 1000}=", **dict(answer)} for i in range(3000)], suffix)
    path.write_bytes(data[: len(data) // 2 + 5])
    return {
        "jsonl": r"1 of \d+ rows.*\n  line \d+: not JSON: .*; the file ends within this line, so it seems",
        "json": r"seems to be cut off (in|after) row \[\d+\]: .* at line \d+, column \d+; copy or download it again",
        "jsonl.gz": r"seems to be cut off: its gzip data end after line \d\d+; copy or download it again",
        "json.gz": r"seems to be cut off: its gzip data end after \d[\d,]+ bytes of text; copy or download it again",
        "parquet": r"seems to be cut off: a Parquet file begins and ends with 'PAR1', this one only begins with it",
    }[suffix]


def wrong_encoding(path, suffix):
    if suffix == "parquet":
        latin = pa.array([b"1+1=", b"\xe9"], pa.binary())
        column = pa.Array.from_buffers(pa.string(), 2, latin.buffers())
        pq.write_table(pa.table({"prompt": column, "completion": ["2", "3"]}), path)
        return r"parquet\[1\]: column 'prompt' has text that is not UTF-8 \(byte 0xe9 at position 0\)"
    text = encode([ROW, {"prompt": "é"}], suffix.removesuffix(".gz")).decode()
    path.write_bytes(pack(text.encode("latin-1"), suffix))
    line = 2 if suffix.startswith("jsonl") else 3
    return rf"line {line}: not UTF-8 \(byte 0xe9 at column 13\); convert the file to UTF-8"


def utf16(path, suffix):
    text = encode([ROW], suffix.removesuffix(".gz").replace("parquet", "json")).decode()
    path.write_bytes(pack(text.encode("utf-16"), suffix))
    return r", line 1: not UTF-8 \(byte 0xff at column 1\); convert the file to UTF-8"


def wrong_type(path, suffix):
    path.write_bytes(encode([{"prompt": 1, "completion": "2"}, {"prompt": 3, "completion": "4"}], suffix))
    place = "line 1" if suffix.startswith("jsonl") else rf".*data\.{suffix}\[0\]"
    reason = "'prompt' is a JSON number, not a string or a list of messages"
    return rf"2 of 2 rows cannot be read as threads\n  {place}: {reason}"


def duplicate(path, suffix):
    if suffix == "parquet":
        table = pa.Table.from_arrays([pa.array(["x"]), pa.array(["y"])], names=["prompt", "prompt"])
        pq.write_table(table, path)
        return "has two columns of the name 'prompt'; rename one of them"
    text = '{"prompt": "x", "prompt": "y"}'
    path.write_bytes(pack((text if suffix.startswith("jsonl") else f"[{text}]").encode(), suffix))
    return "the key 'prompt' stands twice in one object; keep one of them"


DEFECTS = (missing, empty, empty_inside, truncated, wrong_encoding, utf16, wrong_type, duplicate)


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("defect", DEFECTS, ids=lambda defect: defect.__name__)
def test_bad_files(tmp_path, defect, suffix):
    path = tmp_path / f"data.{suffix}"
    message = defect(path, suffix)
    for load, rows in ((load_threads, "threads"), (load_pairs, "preference pairs")):
        if load is load_pairs and defect is wrong_type:
            path.write_bytes(encode([{"prompt": 1, "chosen": "2", "rejected": "3"}] * 2, suffix))
        if load is load_pairs and defect is truncated:
            truncated(path, suffix, (("chosen", "x"), ("rejected", "y")))
        with pytest.raises(DatasetError, match=message.replace("threads", rows)) as error:
            load(path)
        assert str(path) in str(error.value)


@pytest.mark.parametrize("suffix", FORMATS)
def test_the_same_threads_come_from_every_format(tmp_path, suffix):
    path = tmp_path / f"100%.{suffix}"
    rows = [ROW, ROW, {"prompt": "é\u2028", "completion": "x" * 10_000_000}]  # twice the same, and a huge one
    path.write_bytes(encode(rows, suffix))
    threads = load_threads(path)
    assert threads == [StringThread().user(row["prompt"]).assistant(row["completion"]) for row in rows]
    places = [f"{path}:{line}" for line in (1, 2, 3)] if "jsonl" in suffix else [f"{path}[{i}]" for i in range(3)]
    assert [thread.source for thread in threads] == places


@pytest.mark.parametrize("wrap", [list, iter, datasets.Dataset.from_list], ids=lambda wrap: wrap.__name__)
def test_the_same_threads_come_from_rows_in_memory(wrap):
    rows = [ROW, ROW, {"prompt": "é", "completion": "x" * 10_000_000}]
    threads = load_threads(wrap(rows))
    assert threads == [StringThread().user(row["prompt"]).assistant(row["completion"]) for row in rows]
    assert threads[2].source in ("rows[2]", "dataset[2]")


IN_MEMORY = {
    "missing": (None, ConfigurationError, "the source None is of type NoneType; it must be a path, a datasets.Dataset"),
    "empty list": ([], DatasetError, "the iterable is empty"),
    "empty dataset": (datasets.Dataset.from_dict({"prompt": []}), DatasetError, "the dataset is empty"),
    "truncated": ([ROW, {"prompt": "x", "completion": None}], DatasetError, r"rows\[1\]: completion is a JSON null"),
    "truncated dataset": (
        datasets.Dataset.from_list([ROW, {"prompt": "x"}]),
        DatasetError,
        r"dataset\[1\]: completion",
    ),
    "wrong encoding": ([{"prompt": "\ud83d"}], DatasetError, r"unpaired surrogate '\\ud83d' at 0"),
    "bytes": (
        [{"prompt": b"x"}],
        DatasetError,
        r"rows\[0\]: 'prompt' is bytes, which must be decoded to text, not a string or a list",
    ),
    "wrong type": (3, ConfigurationError, "the source 3 is of type int"),
    "a table": (pa.table({"x": [1]}), ConfigurationError, r"the source pyarrow\.Table\\nx: int64.* is of type Table;"),
    "rows of a wrong type": ([ROW, "x"], DatasetError, r"rows\[1\]: a JSON string, not an object"),
    "one row": (ROW, ConfigurationError, r"a single row \(a dict\); pass a list of rows"),
    "dataset of a wrong type": (datasets.Dataset.from_dict({"prompt": [1]}), DatasetError, "'prompt' is a JSON number"),
    "duplicate": ([{"prompt": "x", "tools": '[{"name": "f", "name": "g"}]'}], DatasetError, "stands twice"),
    "huge": (
        [{"prompt": 10**5000}, {"prompt": {"x" * 10**7: 1}}],
        DatasetError,
        r"2 of 2 rows.*\n.*rows\[0\]: 'prompt' is",
    ),
    "huge dataset": (datasets.Dataset.from_list([{"x" * 10**6: 1}]), DatasetError, r"dataset\[0\]: neither .{,200}$"),
    "pandas": ([{"prompt": float("nan")}], DatasetError, "'prompt' is NaN, which pandas writes"),
    "a slice": (datasets.Dataset.from_list([ROW, ROW])[:2], ConfigurationError, r"pass dataset\.select\(range\(2\)\)"),
    "one row of messages": ({"messages": [{"role": "user"}]}, ConfigurationError, "is a single row"),
    "arrays": ([{"messages": np.array([1, 2])}, ROW], DatasetError, r"rows\[0\]: 'messages' is of type ndarray"),
    "arrays as content": (
        [{"messages": [{"role": "user", "content": np.array([1, 2])}]}],
        DatasetError,
        r"rows\[0\]: ",
    ),
    "arrays as tools": ([{"prompt": "x", "tools": np.array([1, 2])}], DatasetError, r"rows\[0\]: "),
    "transform": (
        datasets.Dataset.from_list([ROW]).with_transform(lambda batch: {"prompt": ["x"], "completion": ["y", "z"]}),
        DatasetError,
        r"the dataset, from row \[0\] on: its transform gives a .*, not a dict of columns of one length",
    ),
    "splits": (
        datasets.DatasetDict(train=datasets.Dataset.from_list([ROW]), test=datasets.Dataset.from_list([ROW])),
        ConfigurationError,
        r"this DatasetDict has the splits 'train', 'test'; pass one of them, as dataset\['train'\]",
    ),
}


@pytest.mark.parametrize("case", IN_MEMORY)
def test_bad_rows_in_memory(case):
    source, kind, message = IN_MEMORY[case]
    with pytest.raises(kind, match=message):
        load_threads(source)


def test_streams_and_formats_of_datasets():
    dataset = datasets.Dataset.from_list([ROW, {"prompt": "2+2=", "completion": "4"}])
    expected = [StringThread().user("1+1=").assistant("2"), StringThread().user("2+2=").assistant("4")]
    assert load_threads(dataset.to_iterable_dataset()) == expected
    assert load_threads(dataset.select([1, 0])) == expected[::-1]
    upper = dataset.with_transform(lambda batch: {"prompt": [text + "?" for text in batch["prompt"]]})
    assert load_threads(upper)[0] == StringThread().user("1+1=?")


@pytest.mark.parametrize("name", ["numpy", "pandas", "arrow", "torch"])
@pytest.mark.parametrize("streamed", [False, True])
def test_the_formats_of_datasets_change_nothing(name, streamed):
    rows = [{"messages": [{"role": "user", "content": "x"}], "score": 1}, {"messages": [], "score": 2}]
    dataset = datasets.Dataset.from_list([rows[0], rows[0]])
    dataset = (dataset.to_iterable_dataset() if streamed else dataset).with_format(name)
    assert load_threads(dataset) == load_threads([rows[0], rows[0]])
    assert type(load_threads(dataset)[0].metadata["score"]) is int


def test_columns_that_a_format_leaves_out_stay_out():
    dataset = datasets.Dataset.from_list([{**ROW, "score": 1}]).with_format("numpy", columns=["prompt", "completion"])
    assert load_threads(dataset)[0].metadata is None


def test_what_arrow_fills_in_is_not_there(tmp_path):
    """Arrow gives each message the keys of all of them, and each call the arguments of all of them."""
    call = {"id": "1", "type": "function", "function": {"name": "add", "arguments": {"a": 2}}}
    other = {"id": "2", "type": "function", "function": {"name": "sub", "arguments": {"b": 3}}}
    messages = [
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": None, "tool_calls": [call, other]},
        {"role": "tool", "content": "4", "tool_call_id": "2", "name": "sub"},
        {"role": "assistant", "content": "It is 4.", "weight": 0.5},
    ]
    tools = [
        {"name": "add", "parameters": {"type": "object", "properties": {"a": {"type": "number"}}}},
        {"name": "sub", "parameters": {"type": "object", "properties": {"b": {"type": "number"}}}},
    ]
    rows = [{"messages": messages, "tools": tools, "metadata": None}, {"messages": messages[:1], "metadata": {"id": 1}}]
    expected = load_threads(rows)
    assert expected[0].get_tool_calls()[1][0].arguments == '{"a": 2}'
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "data.parquet")
    assert load_threads(tmp_path / "data.parquet") == expected
    assert load_threads(datasets.Dataset.from_list(rows)) == expected


def test_columns_of_two_forms_may_be_stacked(tmp_path):
    rows = [ROW, {"messages": [{"role": "user", "content": "x"}]}]
    pq.write_table(
        pa.Table.from_pylist([{"messages": None, **ROW}, {**rows[1], "prompt": None}]), tmp_path / "x.parquet"
    )
    assert load_threads(tmp_path / "x.parquet") == load_threads(rows)


BY_CONTENT = {
    "data": ("jsonl", 2, ":2"),
    "data.txt": ("json", 2, "[1]"),
    "data.v1": ("parquet", 2, "[1]"),
    "data.gz": ("jsonl.gz", 2, ":2"),
    "lines.json": ("jsonl", 2, ":2"),
    "LIST.JSON": ("json", 2, "[1]"),
    "list.jsonl": ("json", 2, "[1]"),
    "lines.parquet": ("jsonl", 2, ":2"),
    "parquet.jsonl": ("parquet", 2, "[1]"),
    "packed.jsonl": ("jsonl.gz", 2, ":2"),
    "plain.jsonl.gz": ("jsonl", 2, ":2"),
}


@pytest.mark.parametrize("name", BY_CONTENT)
def test_the_content_decides_what_a_file_is(tmp_path, name):
    suffix, num_rows, place = BY_CONTENT[name]
    (tmp_path / name).write_bytes(encode([ROW, ROW], suffix))
    threads = load_threads(str(tmp_path / name))
    assert len(threads) == num_rows
    assert threads[1].source == f"{tmp_path / name}{place}"


OTHER_FILES = {
    "table.csv": (b"prompt,completion\n", r"line 1: not JSON: .*; if this is CSV, read it with datasets\.load_dataset"),
    "table.csv.gz": (gzip.compress(b"prompt\n"), "line 1: not JSON: .*; if this is CSV"),
    "page.jsonl": (
        b"<!doctype html>",
        "line 1: not JSON: .*; this is HTML or XML, perhaps the error page",
    ),
    "image.parquet": (b"\x89PNG\r\n", r"line 1: not UTF-8 \(byte 0x89 at column 1\)"),
    "columns.jsonl": ('{"prompt": "ééééé'.encode() + b'\xe9"}', r"line 1: not UTF-8 \(byte 0xe9 at column 18\)"),
    "columns.json": ('[\n{"prompt": "ééééé'.encode() + b'\xe9"}]', r"line 2: not UTF-8 \(byte 0xe9 at column 18\)"),
    "lfs.jsonl": (
        b"version https://git-lfs.github.com/spec/v1\n",
        "only Git LFS's pointer to the data; .*git lfs pull",
    ),
    "object.json": (
        b'{\n  "data": []\n}',
        "line 1: not JSON: .*; a row must be on one line, or the file one list of rows",
    ),
    "comma.json": (b'[{"prompt": "x"},]', r"not JSON in row \[1\]: Expecting value at line 1, column 18"),
    "no comma.json": (b'[{"prompt": "x"}\n{}]', r"not JSON after row \[0\]: Expecting ',' or '\]' at line 2, column 1"),
    "more.json": (b'[{"prompt": "x"}]\n{}', "is not JSON after the list: Extra data at line 2, column 1"),
    "deep.json": (b"[" * 100_000, r"deep\.json\[0\]: not JSON that can be read: nested too deeply"),
    "digits.json": (
        b'[{"x": ' + b"9" * 5000 + b"}]",
        r"digits\.json\[0\]: not JSON that can be read: Exceeds the limit",
    ),
    "cut.jsonl": (
        '{"prompt": "é'.encode()[:-1],
        r"line 1: the file seems to be cut off within a character \(byte 0xc3",
    ),
    "damaged.jsonl.gz": (
        gzip.compress(b"{}" * 99)[:10] + b"\xff" * 99,
        "is damaged: its gzip data cannot be unpacked",
    ),
    "returns.jsonl": (
        b'{"prompt": "x"}\r{"prompt": "y"}\r',
        r"line 1: not JSON: Extra data .*; lines end in carriage returns alone; write them with line feeds",
    ),
    "padded.jsonl": (
        b'{"prompt": "x"}\n{"prompt": "y' + bytes(4096),
        r"1 of 2 rows.*\n  line 2: not JSON: .*; there are NUL bytes, so the file was not written to its end",
    ),
    "padded lines.jsonl": (
        b'{"prompt": "x"}\n' + bytes(4096),
        r"line 2: not JSON: Expecting value at column 1; there are NUL bytes, so the file was not written to its end",
    ),
    "zeros.jsonl": (bytes(4096), "line 1: not JSON: .*; there are NUL bytes, so the file was not written to its end"),
    "padded.json": (
        b'[{"prompt": "x"}]\n' + bytes(4096),
        r"padded\.json ends in NUL bytes, so the file was not written",
    ),
    "indented.jsonl": (
        json.dumps(ROW, indent=1).encode() + b"\n" + json.dumps(ROW, indent=1).encode(),
        r"indented\.jsonl, line 1: not JSON: .*; a row must be on one line, or the file one list .*\(line 2 goes on\)",
    ),
    "wrapped.jsonl": (
        b'{"prompt": "x", "completion": "y"}\n\n{"prompt": "x",\n\n  "completion": "y"}\n',
        r"wrapped\.jsonl, line 3: not JSON: .*; a row must be on one line.* \(line 5 goes on\)",
    ),
    "cut within.jsonl": (
        b'{"prompt": "x", "compl\n{"prompt": "x"}\n',
        r"1 of 2 rows.*\n  line 1: not JSON: .*; a row must be on one line, or the file one list of rows$",
    ),
    "small.parquet": (b"PAR1", "seems to be cut off"),
    "damaged.parquet": (
        encode([ROW], "parquet")[:30] + b"\0" * 99 + b"PAR1",
        "cannot be read as Parquet, it may be damag",
    ),
    "wide.jsonl": (
        '{"prompt": "x"}'.encode("utf-16-le"),
        "line 1: not JSON: Expecting property name.*; this seems to be UTF-16; convert the file to UTF-8",
    ),
    "wider.json": ("[]".encode("utf-32"), r"line 1: not UTF-8 \(byte 0xff at column 1\)"),
}


@pytest.mark.parametrize("name", OTHER_FILES)
def test_files_that_are_not_what_they_seem(tmp_path, name):
    data, message = OTHER_FILES[name]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DatasetError, match=message):
        load_threads(tmp_path / name)


def test_places_that_are_no_files(tmp_path):
    with pytest.raises(DatasetError, match=r"there is no directory .*nowhere; the working directory is"):
        load_threads(tmp_path / "nowhere" / "data.jsonl")
    with pytest.raises(DatasetError, match="is a directory; pass one of the files in it"):
        load_threads(tmp_path)
    with pytest.raises(DatasetError, match=r"cannot be read: File name too long$"):
        load_threads(tmp_path / ("x" * 5000))
    with pytest.raises(DatasetError, match=r"^'.*\\x1b\[31m' is not there") as error:
        load_threads(tmp_path / "\x1b[31m")
    assert str(error.value).isprintable()


def test_links_and_pipes_do_not_suggest_themselves(tmp_path):
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "link.jsonl").symlink_to("gone.jsonl")
    (tmp_path / "loop.jsonl").symlink_to("loop.jsonl")
    for name, reason in (
        ("pipe.jsonl", "is not a regular file"),
        ("link.jsonl", "is a link to gone.jsonl, which is not there"),
        ("loop.jsonl", "cannot be read: Too many levels of symbolic links"),
    ):
        with pytest.raises(DatasetError, match=rf"{name}'? {reason}$"):
            load_threads(tmp_path / name)


@pytest.mark.parametrize("end", ["", ', "b": 1', ', "b": tru', ', "b": "\\ud8', ', "b": "x', ', "b": -', ","])
def test_a_cut_is_named_wherever_it_is(tmp_path, end):
    (tmp_path / "cut.jsonl").write_text('{"prompt": "x"}\n{"prompt": "x"' + end)
    with pytest.raises(DatasetError, match=r"line 2: not JSON: .* so it seems to be cut off$"):
        load_threads(tmp_path / "cut.jsonl")


@pytest.mark.parametrize(
    "text", ["<html></html>", '{"prompt": "x"}\r{"prompt": "y"}', '\ufeff\ufeff{"prompt": "x"}', "{'a': 1}"]
)
def test_lines_that_are_bad_otherwise_are_not_called_cut(tmp_path, text):
    (tmp_path / "whole.jsonl").write_bytes(text.encode())
    with pytest.raises(DatasetError, match="line 1: not JSON: ") as error:
        load_threads(tmp_path / "whole.jsonl")
    assert "cut off" not in str(error.value)


def test_a_byte_order_mark_and_windows_line_ends_do_no_harm(tmp_path):
    for suffix in FORMATS[:4]:
        data = encode([ROW, ROW], suffix.removesuffix(".gz")).replace(b"\n", b"\r\n")
        (tmp_path / f"data.{suffix}").write_bytes(pack(b"\xef\xbb\xbf" + data, suffix))
        assert len(load_threads(tmp_path / f"data.{suffix}")) == 2


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz"])
def test_byte_order_marks_within_joined_files_do_no_harm(tmp_path, suffix):
    one = b"\xef\xbb\xbf" + encode([ROW, ROW], "jsonl")
    (tmp_path / "data").write_bytes(pack(one + one + b"\xef\xbb\xbf\n", suffix))
    assert load_threads(tmp_path / "data") == load_threads([ROW] * 4)


def test_columns_that_python_cannot_hold_are_named(tmp_path):
    times = pa.array([0, 2**52], pa.timestamp("ms"))
    pq.write_table(pa.table({"prompt": ["a", "b"], "time": times}), tmp_path / "data.parquet")
    with pytest.raises(DatasetError, match=r"1 of 2 rows.*\n.*data\.parquet\[1\]: column 'time' cannot be read"):
        load_threads(tmp_path / "data.parquet")


def test_parquet_without_pyarrow_says_what_to_install(tmp_path):
    (tmp_path / "data.parquet").write_bytes(encode([ROW], "parquet"))
    code = (
        "import sys; sys.modules['pyarrow'] = None\n"
        "from descant.data.datasets import load_threads\n"
        "load_threads('data.parquet')"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert "DatasetError: data.parquet: reading Parquet needs pyarrow; pip install 'descant[parquet]'" in run.stderr


def test_only_parquet_imports_pyarrow(tmp_path):
    (tmp_path / "data.jsonl").write_bytes(encode([ROW], "jsonl"))
    code = (
        "import sys; from descant.data.datasets import load_threads; load_threads('data.jsonl')\n"
        "print({'pyarrow', 'datasets', 'numpy', 'torch'} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert run.stdout == "set()\n"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["role", "content", "name", "x"]), inner)
    ),
    max_leaves=8,
)
columns = st.sampled_from(
    [
        "messages",
        "prompt",
        "completion",
        "conversations",
        "tools",
        "weights",
        "metadata",
        "system",
        "chosen",
        "rejected",
    ]
)


@given(st.dictionaries(columns, json_values))
def test_no_row_crashes_the_reader(row):
    try:
        threads = load_threads([row])
    except DatasetError:
        return
    assert all(isinstance(thread, StringThread) for thread in threads)


@given(st.lists(st.dictionaries(st.text(max_size=3), json_values), max_size=4), st.data())
def test_no_cut_of_a_list_is_read_in_silence(tmp_path_factory, rows, data):
    text = json.dumps([{**row, "prompt": "x"} for row in rows] or [{"prompt": "x"}])
    path = tmp_path_factory.mktemp("cut") / "data.json"
    path.write_text(text[: data.draw(st.integers(1, len(text) - 1))], encoding="utf-8")
    with pytest.raises(DatasetError):
        load_threads(path)
