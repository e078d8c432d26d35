"""Trackers are fed from the run log: in order, off the loop, again after failures, without loss."""

import asyncio
import contextlib
import json
import math
import os
import shutil
import sqlite3
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from support import query
from trackers import TensorBoardPlace, TrackioPlace, WandbPlace, need, trackio_dir  # noqa: F401 - one is a fixture

from descant import CallbackRunner, RecipeCallback, Table
from descant.errors import ConfigurationError, RunLogError
from descant.metrics import MetricSpec
from descant.runlog.run_log import RunLog
from descant.runlog.run_reader import RunReader
from descant.runner.recorder import RunRecorder
from descant.trackers import feed as feed_module
from descant.trackers.feed import replay
from descant.trackers.logger import Logger, TrackerLogger


class MemoryTracker(TrackerLogger):
    """Keeps what it is given; fails or waits where it is told to."""

    tracker = "memory"

    def __init__(self, num_failures=0, fail_in="write"):
        self.runs, self.rows, self.outcomes = [], [], []
        self.num_failures, self.fail_in = num_failures, fail_in
        self.threads = set()
        self.failed, self.has_rows = threading.Event(), threading.Event()

    def _act(self, call):
        self.threads.add(threading.current_thread().name)
        if self.num_failures and self.fail_in == call:
            self.num_failures -= 1
            self.failed.set()
            raise ConnectionError("the server answers 500")

    def start(self, run):
        self._act("start")
        self.runs.append(run)

    def write(self, step, time_s, metrics, tables):
        self._act("write")
        assert time_s > 1e9
        self.rows.append((step, dict(metrics), dict(tables)))
        self.has_rows.set()

    def finish(self, outcome):
        self._act("finish")
        self.outcomes.append(outcome)

    def series(self, key):
        return [(step, metrics[key]) for step, metrics, _ in self.rows if key in metrics]


class HangingTracker(MemoryTracker):
    """Its first call of ``write`` does not return before the end of the test."""

    tracker = "hanging"

    def __init__(self):
        super().__init__()
        self.hangs, self.released = threading.Event(), threading.Event()

    def write(self, step, time_s, metrics, tables):
        self.hangs.set()
        self.released.wait()
        super().write(step, time_s, metrics, tables)


class Together:
    """Several loggers in one, in the way of an object that somebody has."""

    def __init__(self, *loggers):
        self.loggers = loggers

    def __call__(self, metrics):
        raise AssertionError("the loggers in it are called, or fed")


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch):
    monkeypatch.setattr(feed_module, "_FIRST_RETRY_S", 1e-3)
    monkeypatch.setattr(feed_module, "_REST_S", 0.0)


@pytest.fixture
def hanging(monkeypatch):
    monkeypatch.setenv("DESCANT_TRACKER_TIMEOUT_S", "0.05")
    monkeypatch.setattr(feed_module, "_QUIET_S", 0.0)
    tracker = HangingTracker()
    yield tracker
    tracker.released.set()


async def run(run_dir, logger, num_steps=3, callbacks=(), metrics=lambda step: {"loss": 1.0 / step}, **options):
    async with CallbackRunner(callbacks, num_steps=num_steps, run_dir=run_dir, logger=logger, **options) as runner:
        for step in range(1, num_steps + 1):
            await runner.after_step(step, metrics(step))
    return runner


@contextlib.asynccontextmanager
async def recording(run_dir, logger):
    recorder = RunRecorder(run_dir, 10, logger, strict=False)
    async with recorder:
        await recorder.announce("a run", {"lr": 0.1}, [])
        yield recorder


def events(run_dir, kind):
    return query(run_dir, "SELECT source, message, details FROM events WHERE kind = ? ORDER BY id", kind)


def offset(run_dir, name="memory"):
    with RunReader(run_dir) as reader:
        return reader.sinks[name].offset


class Answers(RecipeCallback):
    """A table with a cell of every type, and what a callback may return beside it."""

    def __init__(self):
        super().__init__(frequency=0.5, log_key_prefix="watch")

    async def callback(self, current_percentage):
        rows = [["a", self.run.step, 0.5, math.nan], ["b", True, None, -math.inf], ["c", "text", 3, math.inf]]
        return {
            "table": Table(["example_id", "any", "number", "odd"], rows),
            "empty": Table(["z", "a"]),
            "numpy": np.float32(0.5),
            "torch": torch.tensor(2),
            "nan": math.nan,
            "inf": -math.inf,
            "bool": True,
            "text": "é\n",
            "big": 2**60 + 1,
        }


async def test_a_tracker_gets_every_record_in_order_and_with_its_types(tmp_path):
    tracker = MemoryTracker()
    await run(tmp_path / "r", tracker, num_steps=2, callbacks=[Answers()])
    assert tracker.outcomes == ["completed"]
    assert tracker.threads == {"descant-feed-memory"}
    assert [step for step, *_ in tracker.rows] == [0, 1, 1, 2, 2, 2]
    assert tracker.series("loss") == [(1, 1.0), (2, 0.5)]
    for step, metrics, tables in (tracker.rows[0], tracker.rows[2], tracker.rows[4]):
        assert {key: metrics[f"watch/{key}"] for key in ("numpy", "torch", "inf", "bool", "text", "big")} == {
            "numpy": 0.5, "torch": 2, "inf": -math.inf, "bool": 1, "text": "é\n", "big": 2**60 + 1,
        }  # fmt: skip
        assert math.isnan(metrics["watch/nan"])
        assert metrics.keys() == {f"watch/{key}" for key in ("numpy", "torch", "nan", "inf", "bool", "text", "big")}
        assert list(tables) == ["watch/empty", "watch/table"]
        assert (tables["watch/empty"].headers, tables["watch/empty"].rows) == (["z", "a"], [])
        table = tables["watch/table"]
        assert table.headers == ["example_id", "any", "number", "odd"]
        assert repr(table.rows) == f"[['a', {step}, 0.5, nan], ['b', True, None, -inf], ['c', 'text', 3, inf]]"
    ((_, _, costs),) = tracker.rows[5:]
    assert list(costs) == ["z_descant/costs"]
    assert costs["z_descant/costs"]["callback"] == ["watch"]
    assert costs["z_descant/costs"]["calls"] == [3]
    with RunReader(tmp_path / "r") as reader:
        assert list(reader.sample_steps) == [("watch", "watch/table")]  # costs are no samples
        assert {row.key for row in reader.samples()} == {"watch/table"}
        assert repr([row.cells["odd"] for row in reader.samples(step=2)]) == "[nan, -inf, inf]"
        recorded = [(record.step, record.tables) for record in reader.records() if record.tables]
        assert [(step, list(tables)) for step, tables in recorded] == [
            *((step, ["watch/empty", "watch/table"]) for step in (0, 1, 2)),
            (2, ["callbacks/costs"]),
        ]
        assert repr(recorded[2][1]["watch/table"].rows) == repr(table.rows)
        assert reader.sinks["memory"].offset == 6


class Declared(RecipeCallback):
    """A metric that matters, one that is a detail, and one that is not declared."""

    metric_specs = (MetricSpec("mine", better="higher"), MetricSpec("count", detail=True))

    def __init__(self):
        super().__init__(frequency=1, log_key_prefix="declared")

    async def callback(self, current_percentage):
        return {"mine": 0.5, "count": 3, "other": 1}


@pytest.mark.parametrize("detail", ["main", "all"])
async def test_details_come_when_they_are_asked_for_by_the_run_and_by_sync(tmp_path, detail):
    fed, logged = MemoryTracker(), {}
    options = {"run_dir": tmp_path / "r", "tracker_detail": detail, "logger": [fed, logged.update]}
    async with CallbackRunner([Declared()], num_steps=1, **options) as runner:
        await runner.after_step(1, {"training/loss": 1.0})
    replay(tmp_path / "r", synced := MemoryTracker(), everything=True)
    assert synced.rows == fed.rows
    sent = {key for _, metrics, _ in fed.rows for key in metrics}
    main = {"training/loss", "declared/mine", "declared/other"}
    own = {
        "z_descant/step",
        "z_descant/completion_percentage",
        "z_descant/declared/stall_s",
        "z_descant/declared/total_s",
    }
    if detail == "main":
        assert sent == main
    else:
        assert sent >= {*main, *own, "declared/count", "training/step_s"}
        assert sorted(sent)[-1].startswith("z_descant/")
    assert logged.keys() >= {*main, "declared/count", "callbacks/declared/stall_s", "progress/step"}
    assert [name for *_, tables in fed.rows for name in tables] == ["z_descant/costs"]


async def test_the_tracker_is_told_of_the_run(tmp_path):
    tracker = MemoryTracker()
    await run(tmp_path / "r", tracker, config={"lr": 0.1, "odd": {1}}, seed=7)
    (told,) = tracker.runs
    assert (told.name, told.run_dir) == ("r", tmp_path / "r")
    assert told.config["lr"] == 0.1
    assert told.config["odd"] == [1]
    assert told.config["seed"] == 7
    assert json.loads(query(tmp_path / "r", "SELECT value FROM config WHERE key = 'run_id'")[0][0]) == told.run_id


async def test_a_tracker_is_fed_while_the_run_goes_on_and_late_rows_come_at_their_step(tmp_path):
    tracker = MemoryTracker()
    async with recording(tmp_path, tracker) as recorder:
        for step in (5, 2, 5):
            tracker.has_rows.clear()
            await recorder.record(step, {"loss": float(step)})
            await asyncio.to_thread(tracker.has_rows.wait)
    assert tracker.series("loss") == [(5, 5.0), (2, 2.0), (5, 5.0)]


async def test_tables_of_the_training_loop_are_delivered_too(tmp_path):
    tracker = MemoryTracker()
    table = Table.from_dicts([{"a": 1}, {"b": "x"}])
    await run(tmp_path, tracker, num_steps=1, metrics=lambda step: {"training/batch": table})
    assert tracker.rows[0][2] == {"training/batch": table}


async def test_a_table_that_is_recorded_again_at_its_step_replaces_the_first(tmp_path):
    log = RunLog(tmp_path)
    await log.log_metrics(1, {"t": Table(["x"], [[1], [2]])}, "c")
    await log.flush()
    await log.log_metrics(1, {"t": Table(["y"], [[3]])}, "c")
    await log.close()
    tracker = MemoryTracker()
    assert replay(tmp_path, tracker) == 2
    assert [tables for *_, tables in tracker.rows] == [{"t": Table(["y"], [[3]])}]


@pytest.mark.parametrize("fail_in", ["start", "write", "finish"])
async def test_a_tracker_that_fails_is_tried_again_and_said_once(tmp_path, fail_in, capsys):
    tracker = MemoryTracker(num_failures=4, fail_in=fail_in)
    await run(tmp_path, tracker, num_steps=20)
    assert tracker.series("loss") == [(step, 1.0 / step) for step in range(1, 21)]
    assert tracker.outcomes == ["completed"]
    assert len(tracker.runs) == (1 if fail_in == "start" else 5)  # found again after each failure
    ((source, message, details),) = events(tmp_path, "tracker_failed")
    assert source == "memory"
    assert message.startswith("memory failed at step ")
    assert message.endswith("ConnectionError: the server answers 500; it is tried again, and nothing is lost")
    assert "Traceback" in details
    assert [message for _, message, _ in events(tmp_path, "tracker_recovered")] == [
        "memory works again and has everything"
    ]
    assert capsys.readouterr().err.count("the server answers 500") == 1


async def test_a_second_failure_is_said_again(tmp_path):
    tracker = MemoryTracker()
    async with recording(tmp_path, tracker) as recorder:
        for step in (1, 2):
            tracker.has_rows.clear()
            tracker.num_failures = 2
            await recorder.record(step, {"loss": 0.0})
            await asyncio.to_thread(tracker.has_rows.wait)
            while len(query(tmp_path, "SELECT * FROM events WHERE kind = 'tracker_recovered'")) < step:
                await asyncio.sleep(0)
    assert len(events(tmp_path, "tracker_failed")) == 2
    assert [step for step, *_ in tracker.rows] == [1, 2]


async def test_a_tracker_that_is_down_leaves_a_warning_with_the_command_that_delivers(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DESCANT_TRACKER_TIMEOUT_S", "0.05")
    tracker = MemoryTracker(num_failures=10**9)
    await run(tmp_path, Together(tracker, other := MemoryTracker()))
    command = f"`descant sync {tmp_path} --to memory`"
    assert [message for _, message, _ in events(tmp_path, "tracker_incomplete")] == [
        f"memory has not got 3 of 3 records of the run; once it works again: {command}"
    ]
    assert command in capsys.readouterr().err
    assert len(other.rows) == 3
    assert (offset(tmp_path), offset(tmp_path, "memory-2")) == (0, 3)
    back = MemoryTracker()
    assert replay(tmp_path, back) == 3
    assert back.rows == other.rows
    assert back.outcomes == ["completed"]
    assert replay(tmp_path, back) == 0


async def test_a_tracker_that_hangs_holds_up_neither_the_run_nor_its_end(tmp_path, hanging, capsys):
    await run(tmp_path, Together(hanging, other := MemoryTracker()))
    assert hanging.hangs.is_set()
    assert hanging.rows == []
    assert len(other.rows) == 3
    err = capsys.readouterr().err
    assert "waiting up to 0.05 s for hanging (3 records left)" in err
    assert f"hanging has not got 3 of 3 records of the run; once it works again: `descant sync {tmp_path}" in err
    assert not (tmp_path / "run.sqlite-wal").exists()  # nothing keeps the run log open


PROGRAM = """
import asyncio, os, sys, threading
from pathlib import Path
from descant.trackers.logger import TrackerLogger
from descant.runner.recorder import RunRecorder
from descant.runlog.run_reader import RunReader

class Tracker(TrackerLogger):
    tracker, is_down, hangs = "memory", False, False
    def start(self, run): pass
    def write(self, step, time_s, metrics, tables):
        if self.is_down:
            raise ConnectionError
        print(step, flush=True)
        if self.hangs:
            threading.Event().wait()
    def finish(self, outcome): pass

def offset(run_dir):
    with RunReader(run_dir) as reader:
        return reader.sinks["memory"].offset

async def main(run_dir):
    tracker = Tracker()
    recorder = RunRecorder(run_dir, 6, tracker, strict=False)
    async with recorder:
        await recorder.announce("a run", {}, [])
        for step in range(1, 4):
            tracker.hangs = "hang" in sys.argv
            await recorder.record(step, {"loss": float(step)})
        await recorder._run_log.flush()
        if tracker.hangs:
            return
        while offset(run_dir) < 3:
            await asyncio.sleep(0)
        tracker.is_down = True
        for step in range(4, 7):
            await recorder.record(step, {"loss": float(step)})
        await recorder._run_log.flush()
        os._exit(9)  # as if killed

asyncio.run(main(Path(sys.argv[1])))
"""


def execute(*arguments):
    environment = {**os.environ, "DESCANT_TRACKER_TIMEOUT_S": "0.2", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", PROGRAM, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


def test_a_tracker_that_hangs_does_not_keep_the_process(tmp_path):
    done = execute(tmp_path, "hang")
    assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr
    assert "memory has not got 3 of 3 records of the run" in done.stderr


async def test_a_run_that_is_cancelled_while_it_waits_leaves_at_once(tmp_path, hanging, monkeypatch, capsys):
    monkeypatch.setenv("DESCANT_TRACKER_TIMEOUT_S", "1e6")
    told = asyncio.Event()
    finish = feed_module.finish_feeds

    async def telling(feeds, outcome, timeout_s, say):
        return await finish(feeds, outcome, timeout_s, lambda text: (say(text), told.set()))

    monkeypatch.setattr("descant.runner.recorder.finish_feeds", telling)
    task = asyncio.create_task(run(tmp_path, hanging))
    await told.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert "descant sync" in capsys.readouterr().err
    with RunReader(tmp_path) as reader:
        assert reader.outcome == "completed"


def test_after_a_kill_what_is_missing_is_delivered_and_nothing_twice(tmp_path):
    done = execute(tmp_path)
    assert (done.returncode, done.stdout.split()) == (9, ["1", "2", "3"]), done.stderr
    tracker = MemoryTracker()
    assert replay(tmp_path, tracker) == 3
    assert tracker.series("loss") == [(4, 4.0), (5, 5.0), (6, 6.0)]
    assert tracker.outcomes == ["interrupted"]
    assert offset(tmp_path) == 6


async def test_a_replay_that_fails_goes_on_from_where_it_failed(tmp_path):
    await run(tmp_path, None, num_steps=5)

    class Full(MemoryTracker):
        def write(self, step, time_s, metrics, tables):
            if step == 4:
                raise OSError("no space left")
            super().write(step, time_s, metrics, tables)

    with pytest.raises(OSError, match="no space left"):
        replay(tmp_path, first := Full())
    replay(tmp_path, second := MemoryTracker())
    assert [step for step, *_ in first.rows + second.rows] == [1, 2, 3, 4, 5]
    assert first.runs == second.runs


async def test_runs_that_share_a_logger_are_runs_of_their_own(tmp_path):
    tracker = MemoryTracker()
    await run(tmp_path / "sft", tracker, num_steps=3, config={"lr": 0.1})
    await run(tmp_path / "grpo", tracker, num_steps=2, config={"lr": 0.2})
    await run(tmp_path / "more", tracker, num_steps=1)
    assert [step for step, *_ in tracker.rows] == [1, 2, 3, 1, 2, 1]
    assert tracker.series("loss") == [(step, 1 / step) for step in (1, 2, 3, 1, 2, 1)]
    assert [(told.name, told.suffix) for told in tracker.runs] == [("sft", ""), ("grpo", "-2"), ("more", "-3")]
    assert len({told.run_id for told in tracker.runs}) == 3
    assert [told.config.get("lr") for told in tracker.runs] == [0.1, 0.2, None]
    assert tracker.outcomes == ["completed"] * 3
    assert replay(tmp_path / "grpo", again := MemoryTracker()) == 0
    assert [(told.run_id, told.name, told.suffix) for told in again.runs] == [(tracker.runs[1].run_id, "grpo", "-2")]
    assert replay(tmp_path / "grpo", again, everything=True) == 2
    assert [told.suffix for told in again.runs] == ["-2", "-2"]
    assert again.runs[1].run_id != again.runs[0].run_id
    assert [step for step, *_ in again.rows] == [1, 2]
    alone = MemoryTracker()
    await run(tmp_path / "alone", alone)
    assert (alone.runs[0].name, alone.runs[0].suffix) == ("alone", "")


async def test_two_runs_at_once_need_a_logger_each(tmp_path):
    tracker = MemoryTracker()
    async with recording(tmp_path / "one", tracker) as recorder:
        with pytest.raises(ConfigurationError, match="that two is given is in use by another run, which has not ended"):
            await run(tmp_path / "two", tracker)
        await recorder.record(1, {"loss": 0.0})
    assert [told.name for told in tracker.runs] == ["one"]
    assert tracker.outcomes == ["completed"]


async def test_a_run_that_fails_or_is_not_delivered_is_followed_by_the_next(tmp_path, monkeypatch):
    monkeypatch.setenv("DESCANT_TRACKER_TIMEOUT_S", "0.05")
    tracker = MemoryTracker()
    with pytest.raises(ZeroDivisionError):
        await run(tmp_path / "one", tracker, metrics=lambda step: {"loss": 1 / (2 - step)})
    tracker.num_failures = 10**9
    await run(tmp_path / "two", tracker)
    tracker.num_failures = 0
    monkeypatch.setenv("DESCANT_TRACKER_TIMEOUT_S", "60")
    await run(tmp_path / "three", tracker, num_steps=1)
    assert tracker.outcomes == ["failed", "completed"]
    assert [step for step, *_ in tracker.rows] == [1, 1]
    replay(tmp_path / "two", tracker)
    assert [step for step, *_ in tracker.rows] == [1, 1, 1, 2, 3]
    assert {(told.name, told.suffix) for told in tracker.runs} == {("one", ""), ("two", "-2"), ("three", "-3")}


async def test_the_next_run_is_delivered_once_the_calls_of_the_one_before_have_returned(tmp_path, hanging, monkeypatch):
    await run(tmp_path / "one", hanging)
    await run(tmp_path / "two", hanging)
    assert [told.name for told in hanging.runs] == ["one"]
    monkeypatch.setenv("DESCANT_TRACKER_TIMEOUT_S", "60")
    hanging.released.set()
    await run(tmp_path / "three", hanging, num_steps=1)
    assert [told.name for told in hanging.runs] == ["one", "three"]
    assert replay(tmp_path / "two", other := MemoryTracker(), name="hanging") == 3
    assert other.runs[0].suffix == "-2"


async def test_a_logger_beside_trackers_is_called_in_the_loop(tmp_path):
    logged, configs, closed = [], [], []

    class Mine(Logger):
        def __call__(self, metrics):
            logged.append((threading.current_thread(), metrics["progress/step"]))

        def log_config(self, config):
            configs.append(config)

        def close(self):
            closed.append(True)

    plain, tracker = [], MemoryTracker()
    await run(tmp_path, Together(Mine(), [plain.append, tracker], tracker), config={"lr": 0.1})
    assert logged == [(threading.main_thread(), step) for step in (1, 2, 3)]
    assert [config["lr"] for config in configs] == [0.1]
    assert closed == []  # it is the user's
    assert len(plain) == 3
    assert len(tracker.rows) == 3


async def test_one_logger_that_fails_does_not_keep_another_from_its_metrics(tmp_path):
    def broken(metrics):
        raise ValueError("full")

    logged = []
    await run(tmp_path, Together(broken, logged.append), num_steps=2)
    assert len(logged) == 2
    assert "broken" in events(tmp_path, "logger_failed")[0][1]


async def test_what_cannot_be_a_logger_or_a_timeout_is_refused(tmp_path, monkeypatch):
    with pytest.raises(ConfigurationError, match="logger='wandb' must be callable"):
        RunRecorder(tmp_path, 1, [print, "wandb"], strict=False)
    for text in ("soon", "-1", "nan", "inf"):
        monkeypatch.setenv("DESCANT_TRACKER_TIMEOUT_S", text)
        with pytest.raises(ConfigurationError, match=f"DESCANT_TRACKER_TIMEOUT_S='{text}' must be a number of seconds"):
            RunRecorder(tmp_path, 1, None, strict=False)


async def test_a_damaged_table_is_named(tmp_path):
    await run(tmp_path, None, metrics=lambda step: {"training/batch": Table(["a"], [[step]])})
    with contextlib.closing(sqlite3.connect(tmp_path / "run.sqlite")) as other, other:
        other.execute("UPDATE samples SET cells = '{' WHERE step = 2")
    tracker = MemoryTracker()
    with pytest.raises(RunLogError, match=r"is damaged"):
        replay(tmp_path, tracker)


class Deleting(RecipeCallback):
    """Deletes a folder in the middle of a run, once everything so far is in the tracker."""

    def __init__(self, folder):
        super().__init__(frequency=0.5, log_key_prefix="deleting")
        self.folder = folder

    async def callback(self, current_percentage):
        if self.run.step == 5:
            while FEEDS[0]._step < 5 or FEEDS[0].num_waiting:  # the metrics of this step are on their way, too
                await asyncio.sleep(0)
            shutil.rmtree(self.folder, ignore_errors=True)  # the tracker may just remove a file of its own
        return {}


FEEDS: list[feed_module.Feed] = []
FOLDERS = {"tensorboard": "tb", "wandb": "wandb"}


@pytest.mark.parametrize("tracker", ["tensorboard", "trackio", "wandb"])
async def test_a_tracker_whose_files_are_deleted_is_given_everything_again(tmp_path, monkeypatch, request, tracker):
    need(tracker)
    monkeypatch.setenv("WANDB_MODE", "offline")
    FEEDS.clear()
    place = {"trackio": TrackioPlace, "wandb": WandbPlace}.get(tracker, TensorBoardPlace)(tmp_path)
    folder = request.getfixturevalue("trackio_dir") if tracker == "trackio" else place.folder / FOLDERS[tracker]
    entering = feed_module.Feed.__init__
    monkeypatch.setattr(
        feed_module.Feed, "__init__", lambda self, *rest: (entering(self, *rest), FEEDS.append(self))[0]
    )
    async with CallbackRunner([Deleting(folder)], num_steps=10, run_dir=tmp_path, logger=place.logger()) as runner:
        for step in range(1, 11):
            await runner.after_step(step, {"loss": 1.0 / step})
    assert sorted(set(place.numbers("loss"))) == [(step, pytest.approx(1 / step)) for step in range(10, 0, -1)][::-1]
    (emptied,) = events(tmp_path, "tracker_emptied")
    assert "records that it had; everything is delivered again" in emptied[1]
