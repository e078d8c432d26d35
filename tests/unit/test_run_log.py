import asyncio
import contextlib
import json
import math
import shutil
import sqlite3
import subprocess
import sys

import pytest
from support import query

from descant import Table
from descant.errors import RunLogError
from descant.runlog.run_log import RunLog
from descant.runlog.run_reader import RunReader


async def test_everything_is_read_back(tmp_path):
    log = RunLog(tmp_path / "run")
    await log.log_config({"lr": 0.1, "odd": {1, 2}.__class__})
    await log.log_metrics(3, {"loss": 0.5, "count": 7, "note": "text", "bad": math.nan, "inf": math.inf})
    await log.log_metrics(3, {"watch/table": Table(["example_id", "x"], [["a", 1], ["b", None]])}, "watch")
    await log.log_metrics(3, {"watch/plain": Table(["x"], [[1], [2]])}, "watch")
    await log.log_event(3, "callback_failed", "watch", "it failed", "Traceback ...")
    await log.close()

    run_dir = tmp_path / "run"
    assert json.loads(query(run_dir, "SELECT value FROM config WHERE key = 'lr'")[0][0]) == 0.1
    rows = {key: (number, text) for key, number, text in query(run_dir, "SELECT key, number, text FROM metrics")}
    assert rows == {
        "loss": (0.5, None),
        "count": (7, None),
        "note": (None, "text"),
        "bad": (None, None),  # NaN has no SQL number
        "inf": (math.inf, None),
    }
    cells = query(run_dir, "SELECT key, example_id, position, cells FROM samples ORDER BY key DESC, position")
    assert [(key, example, json.loads(c)["x"]) for key, example, _, c in cells] == [
        ("watch/table", "a", 1),
        ("watch/table", "b", None),
        ("watch/plain", "0", 1),
        ("watch/plain", "1", 2),
    ]
    assert query(run_dir, "SELECT step, kind, source, message, details FROM events") == [
        (3, "callback_failed", "watch", "it failed", "Traceback ...")
    ]


async def test_the_same_row_twice_is_one_row(tmp_path):
    log = RunLog(tmp_path)
    for value in (1.0, 2.0):
        await log.log_metrics(1, {"loss": value})
    await log.close()
    assert query(tmp_path, "SELECT step, key, number FROM metrics") == [(1, "loss", 2.0)]


async def test_what_is_computed_once_more_can_be_compared_with_what_was_recorded(tmp_path):
    log = RunLog(tmp_path)
    for values in ({1: 0.5, 2: 0.25, 3: 0.125}, {2: 0.25, 3: math.nan, 4: 0.0625}):
        for step, value in values.items():
            await log.log_metrics(step, {"loss": value, "phase": "x"})
    await log.close()
    assert query(tmp_path, "SELECT step, number FROM metrics WHERE key = 'loss' ORDER BY step") == [
        (1, 0.5), (2, 0.25), (3, None), (4, 0.0625),
    ]  # fmt: skip
    assert query(tmp_path, "SELECT record, step, number FROM points JOIN keys ON id = key_id WHERE key = 'loss'") == [
        (1, 1, 0.5), (2, 2, 0.25), (4, 2, 0.25), (3, 3, 0.125), (5, 3, None), (6, 4, 0.0625),
    ]  # fmt: skip
    with RunReader(tmp_path) as reader:
        assert reader.metrics["loss"].num_points == 4
        assert (reader.metrics["loss"].num_nan, reader.metrics["loss"].total) == (1, 0.8125)
        assert [record.step for record in reader.records()] == [1, 2, 3, 2, 3, 4]


async def test_one_call_is_one_record_in_order_with_its_types(tmp_path):
    log = RunLog(tmp_path)
    odd = {
        "nan": math.nan,
        "inf": math.inf,
        "low": -math.inf,
        "zero": -0.0,
        "int": 7,
        "big": 2**63 - 1,
        "text": "\x00é",
    }
    table = Table(["z", "a"], [[1, None], [True, "x"]])
    await log.log_metrics(7, {**odd, "table": table}, "watch")
    table.add_row(["later", 0])  # what is recorded is what it was
    await log.log_metrics(2, {"late": 1.0})
    await log.log_metrics(7, {"int": 8})
    await log.close()
    with RunReader(tmp_path) as reader:
        first, *others = reader.records()
        assert [record.id for record in reader.records(offset=1)] == [2, 3]
        assert reader.series("int") == {7: 8}
    assert repr(dict(first.metrics)) == repr(odd)
    assert (first.id, first.step) == (1, 7)
    assert repr(first.tables["table"].rows) == "[[1, None], [True, 'x']]"
    assert first.tables["table"].headers == ["z", "a"]
    assert [(record.step, record.metrics, record.tables) for record in others] == [
        (2, {"late": 1.0}, {}),
        (7, {"int": 8}, {}),
    ]
    assert first.time_s <= others[0].time_s <= others[1].time_s


async def test_cells_that_json_has_not_can_still_be_queried_around(tmp_path):
    log = RunLog(tmp_path)
    await log.log_metrics(1, {"t": Table(["x", "prompt"], [[math.nan, "a"], [-math.inf, '{"float": "nan"}']])}, "watch")
    await log.close()
    assert query(tmp_path, "SELECT json_extract(cells, '$.prompt') FROM samples ORDER BY position") == [
        ("a",),
        ('{"float": "nan"}',),
    ]
    with RunReader(tmp_path) as reader:
        assert (
            repr([list(row.cells.values()) for row in reader.samples()])
            == """[[nan, 'a'], [-inf, '{"float": "nan"}']]"""
        )


async def test_a_run_that_has_ended_has_the_summary_that_it_had_while_it_went_on(tmp_path):
    log = RunLog(tmp_path)
    for step in range(0, 2000, 3):
        await log.log_metrics(
            step, {"loss": 1 / (step + 1), "odd": [math.nan, math.inf, -1.0][step % 7 % 3], "at": "x"}
        )
    await log.log_metrics(1000, {"loss": 5.0, "rare": 1.0})
    await log.flush()
    with RunReader(tmp_path) as reader:
        before = reader.metrics
    await log.close()
    assert query(tmp_path, "SELECT count(*) FROM parts WHERE key = 'loss'") == [(320,)]
    with RunReader(tmp_path) as reader:
        assert repr(reader.metrics) == repr(before)
        assert set(before) == {"loss", "odd", "at", "rare"}
    with contextlib.closing(sqlite3.connect(tmp_path / "run.sqlite")) as other, other:  # as if it had been continued
        other.execute("INSERT INTO records VALUES (1000, 0, 2001)")
        other.execute("INSERT INTO points SELECT 2001, id, 1000, 9.0, NULL FROM keys WHERE key = 'loss'")
    with RunReader(tmp_path) as reader:
        assert reader.metrics["loss"].last == (2001, 9.0)


async def test_it_can_be_read_while_it_is_written(tmp_path):
    log = RunLog(tmp_path)
    await log.log_metrics(1, {"loss": 1.0})
    await log.flush()
    assert query(tmp_path, "SELECT number FROM metrics") == [(1.0,)]
    await log.close()


async def test_a_directory_that_holds_a_run_is_refused(tmp_path):
    await RunLog(tmp_path).close()
    with pytest.raises(RunLogError, match="already holds a run; choose another run_dir"):
        RunLog(tmp_path)


async def test_a_directory_that_cannot_be_made_is_an_error(tmp_path):
    with pytest.raises(RunLogError, match="cannot write the run log"):
        RunLog(tmp_path / "a\0b")
    (tmp_path / "file").write_text("")
    with pytest.raises(RunLogError, match="cannot write the run log"):
        RunLog(tmp_path / "file" / "run")


async def test_what_cannot_be_written_surfaces_at_the_next_call(tmp_path):
    log = RunLog(tmp_path)
    await log.flush()
    with contextlib.closing(sqlite3.connect(tmp_path / "run.sqlite")) as other:
        # stands in for a disk that fails: every later write is refused
        other.executescript("DROP VIEW metrics; DROP TABLE points")
    await log.log_metrics(1, {"loss": 1.0})
    with pytest.raises(RunLogError, match="no such table: points"):
        await log.flush()
    with pytest.raises(RunLogError, match="no such table: points"):
        await log.log_metrics(2, {"loss": 1.0})
    with pytest.raises(RunLogError):
        await log.close()


async def test_more_rows_than_the_queue_holds_are_all_written(tmp_path, monkeypatch):
    monkeypatch.setattr("descant.runlog.run_log._MAX_QUEUED", 4)
    log = RunLog(tmp_path)
    for step in range(500):
        await log.log_metrics(step, {"loss": float(step)})
    await log.close()
    assert query(tmp_path, "SELECT count(*), sum(number) FROM metrics") == [(500, sum(range(500)))]


async def test_of_two_runs_that_begin_at_once_in_one_directory_one_is_refused(tmp_path):
    """The file is made before it is written, so a second run meets it however early it comes."""
    (tmp_path / "run.sqlite").touch()
    with pytest.raises(RunLogError, match="already holds a run; choose another run_dir"):
        RunLog(tmp_path)


FULL_DISK = """
import asyncio, json, resource, sys
from pathlib import Path
from descant.runlog import run_log
from descant.runlog.run_log import RunLog
from descant.errors import RunLogError

def limit(num_bytes):  # of a file: what is written beyond it fails as on a disk that is full
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, resource.RLIM_INFINITY))

async def main(run_dir, returns):
    said = []
    fails = asyncio.Event()
    loop = asyncio.get_running_loop()
    log = RunLog(run_dir, lambda line: (said.append(line), loop.call_soon_threadsafe(fails.set)))
    await log.log_metrics(1, {"loss": 1.0})
    await log.flush()
    limit(4096)
    await log.log_metrics(2, {"loss": 2.0})
    await fails.wait()
    outcome = "held"
    for step in range(3, 1003):
        try:
            await log.log_metrics(step, {"loss": float(step)})
        except RunLogError as error:
            outcome = str(error)
            break
        if returns == "never":
            await asyncio.sleep(0)
    num_on_disk = log.num_records
    if returns == "in time":
        limit(resource.RLIM_INFINITY)
        await log.flush()
    try:
        await log.close()
    except RunLogError as error:
        outcome = str(error)
    print(json.dumps([outcome, num_on_disk, said]))

if sys.argv[2] == "never":
    run_log._MAX_HELD_BYTES = 20_000
asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))
"""


def on_a_full_disk(run_dir, returns):
    script = [sys.executable, "-c", FULL_DISK, str(run_dir), returns]
    return json.loads(subprocess.run(script, capture_output=True, text=True, check=True).stdout)


def test_what_a_full_disk_refuses_is_written_when_space_returns(tmp_path):
    outcome, num_on_disk, said = on_a_full_disk(tmp_path, "in time")
    assert (outcome, num_on_disk) == ("held", 1)
    assert query(tmp_path, "SELECT count(*), sum(number) FROM metrics") == [(1002, sum(range(1003)))]
    assert "run.sqlite cannot be written" in said[0]
    assert "is held in memory" in said[0]
    ((kind, message),) = query(tmp_path, "SELECT kind, message FROM events")
    assert kind == "run_log_held"
    assert "was not writable for" in message
    assert "nothing is lost" in message


def test_a_disk_that_stays_full_ends_the_run_when_no_more_can_be_held(tmp_path):
    outcome, _, _ = on_a_full_disk(tmp_path, "never")
    assert f"the run log {tmp_path / 'run.sqlite'} cannot be written" in outcome
    assert "records are not on disk" in outcome
    assert "free space there, or choose a run_dir on another disk" in outcome


async def test_another_process_that_writes_delays_the_run_log_and_not_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr("descant.runlog.run_log._LOCKED_S", 0.01)
    fails, loop = asyncio.Event(), asyncio.get_running_loop()
    log = RunLog(tmp_path, lambda line: loop.call_soon_threadsafe(fails.set))
    with contextlib.closing(sqlite3.connect(tmp_path / "run.sqlite", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        await log.log_metrics(1, {"loss": 1.0})
        await fails.wait()
        await log.log_metrics(2, {"loss": 2.0})
        with pytest.raises(RunLogError, match=r"database is locked, for .*; 2 records are not on disk"):
            await log.flush()
        other.execute("ROLLBACK")
    await log.flush()
    await log.close()
    assert query(tmp_path, "SELECT step, number FROM metrics") == [(1, 1.0), (2, 2.0)]


async def test_a_lock_does_not_cost_the_end_of_a_run(tmp_path, monkeypatch):
    for name in ("_LOCKED_S", "_RETRY_S"):
        monkeypatch.setattr(f"descant.runlog.run_log.{name}", 0.01)
    fails, loop = asyncio.Event(), asyncio.get_running_loop()
    log = RunLog(tmp_path, lambda line: loop.call_soon_threadsafe(fails.set))
    with contextlib.closing(sqlite3.connect(tmp_path / "run.sqlite", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        await log.log_metrics(1, {"loss": 1.0})
        closing = asyncio.create_task(log.close())
        await fails.wait()
        other.execute("ROLLBACK")
    await closing
    assert query(tmp_path, "SELECT step, number FROM metrics") == [(1, 1.0)]


async def test_a_run_whose_directory_is_deleted_says_so(tmp_path):
    log = RunLog(tmp_path / "run")
    await log.log_metrics(1, {"loss": 1.0})
    await log.flush()
    shutil.rmtree(tmp_path / "run")
    await log.log_metrics(2, {"loss": 1.0})
    with pytest.raises(RunLogError, match=r"run\.sqlite cannot be written: it was deleted while the run was on"):
        await log.close()


async def test_any_name_of_a_directory_will_do(tmp_path):
    for name in ("a b", "100%41", "what?mode=ro", "a#b", "é\u202e", "x" * 250):
        log = RunLog(tmp_path / name)
        await log.log_metrics(1, {"loss": 1.0})
        await log.flush()
        with RunReader(tmp_path / name) as reader:
            assert reader.series("loss") == {1: 1.0}
        await log.close()
        with RunReader(tmp_path / name) as reader:
            assert reader.series("loss") == {1: 1.0}


async def test_errors_in_tables_have_no_secrets_and_answers_stay_as_they_are(tmp_path):
    log = RunLog(tmp_path)
    text = "401 for https://judge/?api_key=hunter2hunter2"
    await log.log_metrics(1, {"t": Table(["response", "error"], [[text, text]])}, "judge")
    await log.close()
    with RunReader(tmp_path) as reader:
        (row,) = reader.samples()
    assert row.cells == {"response": text, "error": "401 for https://judge/?api_key=***"}
