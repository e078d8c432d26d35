import contextlib
import json
import math
import sqlite3

import pytest
from support import query

from descant import Table
from descant.errors import RunLogError
from descant.loggers.run_log import RunLog


async def test_everything_is_read_back(tmp_path):
    log = RunLog(tmp_path / "run")
    await log.log_config({"lr": 0.1, "odd": {1, 2}.__class__})
    await log.log_metrics(3, {"loss": 0.5, "count": 7, "note": "text", "bad": math.nan, "inf": math.inf})
    await log.log_samples("watch", 3, "watch/table", Table(["example_id", "x"], [["a", 1], ["b", None]]))
    await log.log_samples("watch", 3, "watch/plain", Table(["x"], [[1], [2]]))
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
    (tmp_path / "file").write_text("")
    with pytest.raises(RunLogError, match="cannot write the run log"):
        RunLog(tmp_path / "file" / "run")


async def test_what_cannot_be_written_surfaces_at_the_next_call(tmp_path):
    log = RunLog(tmp_path)
    await log.flush()
    with contextlib.closing(sqlite3.connect(tmp_path / "run.sqlite")) as other:
        other.execute("DROP TABLE metrics")  # stands in for a disk that fails: every later write is refused
    await log.log_metrics(1, {"loss": 1.0})
    with pytest.raises(RunLogError, match="no such table: metrics"):
        await log.flush()
    with pytest.raises(RunLogError, match="no such table: metrics"):
        await log.log_metrics(2, {"loss": 1.0})
    with pytest.raises(RunLogError):
        await log.close()


async def test_more_rows_than_the_queue_holds_are_all_written(tmp_path, monkeypatch):
    monkeypatch.setattr("descant.loggers.run_log._MAX_QUEUED", 4)
    log = RunLog(tmp_path)
    for step in range(500):
        await log.log_metrics(step, {"loss": float(step)})
    await log.close()
    assert query(tmp_path, "SELECT count(*), sum(number) FROM metrics") == [(500, sum(range(500)))]
