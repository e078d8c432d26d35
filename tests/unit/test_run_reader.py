"""Reading a run back: whatever state it is in, and without touching it."""

import contextlib
import math
import os
import shutil
import sqlite3
import subprocess
import sys

import pytest

from descant import Table
from descant.errors import ConfigurationError, RunLogError
from descant.runlog.run_log import SCHEMA, RunLog
from descant.runlog.run_reader import RunReader, find_runs

WRITER = """
import asyncio, os, sys
from pathlib import Path
from descant.runlog.run_log import RunLog

async def main():
    log = RunLog(Path(sys.argv[1]))
    await log.log_metrics(1, {"loss": 0.5})
    await log.flush()
    os._exit(9)  # as if killed: nothing is closed

asyncio.run(main())
"""


async def write(run_dir, values=(1.0,), key="loss"):
    log = RunLog(run_dir)
    for step, value in enumerate(values, start=1):
        await log.log_metrics(step, {key: value})
    await log.close()
    return run_dir


@pytest.fixture
def killed(tmp_path):
    """A run that was killed: its write-ahead log is still there, and holds everything."""
    run_dir = tmp_path / "killed"
    subprocess.run([sys.executable, "-c", WRITER, run_dir])
    assert (run_dir / "run.sqlite-wal").stat().st_size > 0
    return run_dir


@contextlib.contextmanager
def nothing_touched(run_dir):
    def files():
        return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in run_dir.iterdir()}

    before = files()
    yield
    assert files() == before


async def test_everything_is_read_back(tmp_path):
    log = RunLog(tmp_path)
    await log.log_config({"trainer": "SFT", "num_steps": 4})
    await log.log_event(0, "run_started", "trainer", "SFT")
    await log.log_metrics(0, {"loss": 2.0, "note": "first"})
    await log.log_metrics(3, {"loss": math.nan, "note": "second", "high": math.inf})
    for step in (0, 3):
        rows = [["b", "1+1=", step], ["a", "2+2=", step + 1]]
        await log.log_metrics(step, {"watch/table": Table(["example_id", "prompt", "x"], rows)}, "watch")
    await log.log_event(3, "callback_failed", "watch", "it failed", "Traceback ...")
    await log.log_event(4, "run_completed", "trainer", "done")
    await log.close()

    with nothing_touched(tmp_path), RunReader(tmp_path) as reader:
        assert reader.config == {"trainer": "SFT", "num_steps": 4}
        assert reader.keys() == {"high": 1, "loss": 2, "note": 2}
        assert reader.series("loss") == pytest.approx({0: 2.0, 3: math.nan}, nan_ok=True)
        assert reader.series("note") == {0: "first", 3: "second"}
        assert reader.series("high") == {3: math.inf}
        assert reader.series("missing") == {}
        assert reader.latest_step == 3
        assert reader.outcome == "completed"
        assert reader.started_at <= reader.ended_at <= reader.last_written_at + 1
        assert [(event.step, event.kind, event.details) for event in reader.events] == [
            (0, "run_started", None),
            (3, "callback_failed", "Traceback ..."),
            (4, "run_completed", None),
        ]
        assert reader.sample_steps == {("watch", "watch/table"): [0, 3]}
        assert reader.example_ids("watch") == ["b", "a"]
        assert [(row.step, row.example_id, row.cells["x"]) for row in reader.samples()] == [
            (0, "b", 0), (0, "a", 1), (3, "b", 3), (3, "a", 4),
        ]  # fmt: skip
        assert [row.cells["x"] for row in reader.samples("watch", step=3, example_id="a")] == [4]
        assert reader.samples("other") == []
    with RunReader(tmp_path / "run.sqlite") as reader:
        assert reader.run_dir == tmp_path


async def test_examples_are_found_by_id_by_prompt_and_by_the_beginning_of_an_id(tmp_path):
    log = RunLog(tmp_path)
    for callback in ("one", "two"):
        rows = [["a1-x", "say b2"], ["b2-y", "say a1-x"], ["b2-z", "100% _"]]
        await log.log_metrics(0, {"t": Table(["example_id", "prompt"], rows)}, callback)
    await log.close()
    with RunReader(tmp_path) as reader:
        assert reader.find_examples("a1-x") == [("one", "a1-x"), ("two", "a1-x")]
        assert reader.find_examples("say") == [(c, e) for c in ("one", "two") for e in ("a1-x", "b2-y")]
        assert reader.find_examples("b2") == [("one", "a1-x"), ("two", "a1-x")]
        assert reader.find_examples("b2-") == [(c, e) for c in ("one", "two") for e in ("b2-y", "b2-z")]
        assert reader.find_examples("% _") == [("one", "b2-z"), ("two", "b2-z")]
        assert reader.find_examples("nothing") == []


async def test_a_run_that_goes_on_is_read_as_it_is_now(tmp_path):
    log = RunLog(tmp_path)
    await log.log_metrics(1, {"loss": 1.0})
    await log.flush()
    count = "import sys; from descant.runlog.run_reader import RunReader; print(RunReader(sys.argv[1]).keys())"
    files = sorted(os.listdir(tmp_path))  # to read them in the writer's process would drop its locks
    with RunReader(tmp_path) as reader:
        assert reader.keys() == {"loss": 1}
        assert reader.outcome is reader.ended_at is reader.started_at is None
        done = subprocess.run([sys.executable, "-c", count, tmp_path], capture_output=True, text=True, check=True)
        assert done.stdout == "{'loss': 1}\n"
    assert sorted(os.listdir(tmp_path)) == files
    with RunReader(tmp_path) as reader:
        await log.log_metrics(2, {"loss": 1.0})
        await log.flush()
        assert reader.latest_step == 1  # as it was when the reader was opened
    with RunReader(tmp_path) as reader:
        assert reader.latest_step == 2
    await log.close()
    with RunReader(tmp_path) as reader:
        assert reader.latest_step == 2


async def test_a_reader_in_the_process_of_the_run_does_not_give_up_its_locks(tmp_path):
    """Otherwise the next program that closes the file, thinking itself alone, deletes the log that is written to."""
    log = RunLog(tmp_path)
    await log.log_metrics(1, {"loss": 1.0})
    await log.flush()
    with RunReader(tmp_path) as reader:
        assert reader.latest_step == 1
    visit = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute('SELECT * FROM points'); c.close()"
    subprocess.run([sys.executable, "-c", visit, tmp_path / "run.sqlite"], check=True)
    assert (tmp_path / "run.sqlite-wal").exists()
    await log.log_metrics(2, {"loss": 1.0})
    await log.close()
    with RunReader(tmp_path) as reader:
        assert reader.latest_step == 2


async def test_nothing_is_created_in_a_directory_that_cannot_be_written(tmp_path):
    run_dir = await write(tmp_path / "run")
    run_dir.chmod(0o555)
    with nothing_touched(run_dir), RunReader(run_dir) as reader:
        assert reader.keys() == {"loss": 1}
    run_dir.chmod(0o755)


def test_a_run_that_was_killed_is_whole(killed, tmp_path):
    with nothing_touched(killed), RunReader(killed) as reader:
        assert reader.series("loss") == {1: 0.5}
        assert reader.outcome is None
    copied = shutil.copytree(killed, tmp_path / "copied", ignore=shutil.ignore_patterns("*-shm"))
    with nothing_touched(copied), RunReader(copied) as reader:
        assert reader.series("loss") == {1: 0.5}


def test_without_a_write_ahead_log_only_what_is_committed_is_read(tmp_path):
    """As on file systems that cannot map memory, where SQLite falls back on a journal."""
    with contextlib.closing(sqlite3.connect(tmp_path / "run.sqlite", isolation_level=None)) as writer:
        writer.executescript(SCHEMA)
        writer.execute("INSERT INTO keys VALUES (1, 'loss')")
        writer.execute("INSERT INTO points VALUES (1, 1, 1, 1.0, NULL)")
        writer.execute("BEGIN IMMEDIATE")
        writer.execute("INSERT INTO points VALUES (2, 1, 2, 1.0, NULL)")
        with nothing_touched(tmp_path), RunReader(tmp_path) as reader:
            assert reader.series("loss") == {1: 1.0}


async def test_the_summary_of_a_long_run_is_exact(tmp_path):
    values = [0.1] * 5000
    values[1234], values[4321] = -7.0, 9.0
    with RunReader(await write(tmp_path, values)) as reader:
        loss = reader.metrics["loss"]
    assert (loss.num_points, loss.num_nan, loss.minimum, loss.maximum) == (5000, 0, -7.0, 9.0)
    assert loss.total == pytest.approx(sum(values))
    assert (loss.first, loss.last) == ((1, 0.1), (5000, 0.1))
    assert len(loss.curve) == 320
    assert [value for value in loss.curve if value != 0.1] == pytest.approx([0.1 - 7.1 / 15, 0.1 + 8.9 / 16], abs=0.05)


@pytest.mark.parametrize("has_ended", [True, False])
async def test_the_last_value_is_that_of_the_latest_step(tmp_path, has_ended):
    log = RunLog(tmp_path / "run")
    for step, value in ((3, "late"), (1, 0.5), (2, math.inf)):  # steps may come late
        await log.log_metrics(step, {"loss": value})
    await log.log_metrics(2, {"other": math.nan})
    await (log.close() if has_ended else log.flush())
    with RunReader(tmp_path / "run") as reader:
        assert reader.last_value("loss") == "late"
        assert math.isnan(reader.last_value("other"))
        assert reader.last_value("nothing") is None
    if not has_ended:
        await log.close()


async def test_what_is_not_finite_is_seen_in_a_summary(tmp_path):
    values = [1.0] * 1000
    values[500], values[900] = math.nan, -math.inf
    with RunReader(await write(tmp_path, values)) as reader:
        loss = reader.metrics["loss"]
    assert (loss.num_nan, loss.minimum, loss.maximum) == (1, -math.inf, 1.0)
    assert sum(map(math.isnan, loss.curve)) == 2
    assert set(loss.curve) - {1.0} == {value for value in loss.curve if math.isnan(value)}


async def test_strings_have_a_first_and_a_last_value(tmp_path):
    with RunReader(await write(tmp_path, ["warm-up", "decay"], key="phase")) as reader:
        phase = reader.metrics["phase"]
    assert (phase.num_points, phase.num_nan, phase.minimum, list(phase.curve)) == (2, 0, None, [])
    assert (phase.first, phase.last) == ((1, "warm-up"), (2, "decay"))


async def test_a_run_that_is_not_there_names_those_that_are(tmp_path):
    for name in ("sft-1", "sft-2"):
        await write(tmp_path / name)
    with pytest.raises(RunLogError, match=r"there is no run .*sft-3; did you mean .*sft-[12] or .*sft-[12]\?"):
        RunReader(tmp_path / "sft-3")
    with pytest.raises(RunLogError, match=r"there is no run .*other; the runs in .* are sft-[12], sft-[12]$"):
        RunReader(tmp_path / "other")
    with pytest.raises(RunLogError, match=r"there is no run .*, nor any other beside it"):
        RunReader(tmp_path / "nowhere" / "run")
    with pytest.raises(RunLogError, match=r"is not a run: there is no run.sqlite in it; it has the runs sft-"):
        RunReader(tmp_path)


async def test_the_run_that_was_last_written_comes_first(tmp_path):
    for name, time in (("old", 1000), ("new", 3000), ("middle", 2000)):
        path = (await write(tmp_path / name)) / "run.sqlite"
        os.utime(path, (time, time))
    assert [run.name for run in find_runs(tmp_path)] == ["new", "middle", "old"]
    assert find_runs(tmp_path / "nowhere") == []


async def test_what_is_not_a_run_log_or_damaged_says_so(tmp_path):
    path = tmp_path / "run.sqlite"
    path.write_text("no database, but longer than the header of one, so that SQLite looks at it " * 10)
    with pytest.raises(RunLogError, match="is not a run log, or is damaged: file is not a database"):
        RunReader(tmp_path)
    path.write_bytes(b"")
    with pytest.raises(RunLogError, match="is empty: its run was killed as it began"):
        RunReader(tmp_path)
    with contextlib.closing(sqlite3.connect(path)) as other:
        other.execute("CREATE TABLE metrics (a)")
    with pytest.raises(RunLogError, match="not a run log: it has no table 'config'"):
        RunReader(tmp_path)

    run_dir = await write(tmp_path / "damaged", [float(step) for step in range(5000)])
    content = bytearray((run_dir / "run.sqlite").read_bytes())
    content[3 * 4096 : -4096] = b"\x5a" * (len(content) - 4 * 4096)
    (run_dir / "run.sqlite").write_bytes(content)
    message = r"damaged \(.*\); `sqlite3 .* \.recover` may save the rest"
    with RunReader(run_dir) as reader, pytest.raises(RunLogError, match=message):
        reader.series("loss")


async def test_a_run_log_of_another_format_is_refused(tmp_path):
    run_dir = await write(tmp_path / "other")
    with contextlib.closing(sqlite3.connect(run_dir / "run.sqlite")) as other:
        other.execute("PRAGMA user_version = 7")
    message = r"other/run\.sqlite has format 7, and this version of descant reads format 1: read it with the version"
    with pytest.raises(RunLogError, match=message):
        RunReader(run_dir)


async def test_cells_that_are_not_json_are_damage(tmp_path):
    run_dir = await write(tmp_path)
    with contextlib.closing(sqlite3.connect(run_dir / "run.sqlite")) as other, other:
        other.execute("INSERT INTO samples VALUES ('c', 0, 'k', 'e', 0, '{')")
    with RunReader(run_dir) as reader, pytest.raises(RunLogError, match=r"is damaged: '\{' is not JSON"):
        reader.samples()


async def test_a_closed_reader_says_so(tmp_path):
    with RunReader(await write(tmp_path)) as reader:
        pass
    with pytest.raises(RunLogError, match="is closed"):
        reader.series("loss")


async def write_for_pandas(run_dir):
    log = RunLog(run_dir)
    await log.log_metrics(3, {"b": 3.0, "a": math.nan})
    await log.log_metrics(1, {"a": 1, "note": "first"})
    await log.log_metrics(3, {"b": 4.0})  # it was computed again
    rows = [["x", "1+1=", 0.5, "inner"], ["y", "2+2=", math.inf, None]]
    await log.log_metrics(1, {"t": Table(["example_id", "prompt", "grade", "step"], rows)}, "watch")
    await log.log_metrics(3, {"plain": Table(["prompt"], [["3+3="]])}, "other")
    await log.close()
    return run_dir


async def test_metrics_are_a_frame_of_steps_and_keys(tmp_path):
    with nothing_touched(await write_for_pandas(tmp_path)), RunReader(tmp_path) as reader:
        frame, chosen = reader.to_pandas(), reader.to_pandas("b", "a")
        message = "the run has no metric 'nota'; did you mean 'note'"
        with pytest.raises(ConfigurationError, match=message):
            reader.to_pandas("a", "nota")
    assert (frame.index.name, list(frame.index), list(frame.columns)) == ("step", [1, 3], ["a", "b", "note"])
    assert frame["b"].dropna().to_dict() == {3: 4.0}
    assert frame["a"].to_dict() == pytest.approx({1: 1.0, 3: math.nan}, nan_ok=True)
    assert frame["note"].dropna().to_dict() == {1: "first"}
    assert list(chosen.columns) == ["b", "a"]
    assert list(chosen.index) == [1, 3]


async def test_samples_are_a_frame_of_rows(tmp_path):
    with RunReader(await write_for_pandas(tmp_path)) as reader:
        everything, watched = reader.samples_to_pandas(), reader.samples_to_pandas("watch", step=1, example_id="y")
        nothing = reader.samples_to_pandas("nothing")
    where = ["callback", "step", "key", "position", "example_id"]
    assert list(everything.columns) == [*where, "prompt", "grade", "cells.step"]
    assert everything[where].values.tolist() == [
        ["watch", 1, "t", 0, "x"], ["watch", 1, "t", 1, "y"], ["other", 3, "plain", 0, "0"],
    ]  # fmt: skip
    assert everything["cells.step"][0] == "inner"
    assert watched["grade"].tolist() == [math.inf]
    assert (list(nothing.columns), len(nothing)) == (where, 0)


async def test_a_run_without_metrics_is_an_empty_frame(tmp_path):
    await RunLog(tmp_path).close()
    with RunReader(tmp_path) as reader:
        assert reader.to_pandas().shape == (0, 0)
        with pytest.raises(ConfigurationError, match="no metric 'loss'; there are: none"):
            reader.to_pandas("loss")


async def test_without_pandas_the_command_that_installs_it_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with RunReader(await write(tmp_path)) as reader:
        for frame in (reader.to_pandas, reader.samples_to_pandas):
            with pytest.raises(ConfigurationError, match=r"needs pandas.*: pip install 'descant\[pandas\]'"):
                frame()
