"""``descant sync``: what a run has recorded arrives in a tracker, from where that has got to."""

import contextlib
import os
import re
import shutil
import sqlite3
from importlib import import_module
from pathlib import Path

import pytest
from test_cli_runs import invoke
from test_feed import MemoryTracker
from trackers import TensorBoardPlace, TrackioPlace, need, trackio_dir  # noqa: F401 - one is a fixture

from descant.runlog.run_log import RunLog
from descant.runlog.run_reader import RunReader
from descant.runner.recorder import RunRecorder
from descant.table import Table
from descant.trackers.feed import replay
from descant.trackers.tensorboard import TBMetricsLogger

SAMPLES = Table(["example_id", "response"], [["a", "4"], ["b", "5"]])


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("MLFLOW_TRACKING_URI", "TENSORBOARD_LOGGING_DIR"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


async def record(run_dir, num_steps=3, logger=None):
    async with RunRecorder(run_dir, num_steps, logger, strict=False) as recorder:
        await recorder.announce("SFT", {"lr": 0.1, "environment": {"recipe": {"name": "mine"}}}, [])
        for step in range(1, num_steps + 1):
            await recorder.record(step, {"loss": 1 / step})
        await recorder.record(num_steps, {"validation/samples": SAMPLES}, "validation")


async def test_a_run_arrives_in_tensorboard(folder, monkeypatch):
    need("tensorboard")
    await record(folder / "runs" / "first")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", "tb")
    done = invoke("sync", "first", "--to", "tensorboard")
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "delivering runs/first to tensorboard",
        "4 records delivered to tensorboard",
        "look at it: tensorboard --logdir tb --samples_per_plugin text=1000",
    ]
    place = TensorBoardPlace(folder, "first")
    assert place.numbers("loss") == [(1, 1.0), (2, 0.5), (3, pytest.approx(1 / 3))]
    assert place.table("validation/samples") == [["3", "a", "4"], ["3", "b", "5"]]
    assert place.outcome() == "completed"
    again = invoke("sync", "first", "--to", "tensorboard")
    assert again.stdout.splitlines()[1] == "0 records delivered to tensorboard; it had 4 before"
    assert len(place.numbers("loss")) == 3
    for _ in range(2):
        again = invoke("sync", "first", "--to", "tensorboard", "--all")
        assert again.stdout.splitlines()[1] == (
            "4 records delivered to tensorboard; they are a new run there, beside the former one"
        )
    folders = [path.name for path in (folder / "tb").iterdir()]
    assert len(folders) == 3
    for name in folders:
        assert len(TensorBoardPlace(folder, name).numbers("loss")) == 3


async def test_a_run_arrives_in_trackio(folder, trackio_dir):  # noqa: F811
    await record(folder / "runs" / "first")
    done = invoke("sync", folder / "runs" / "first" / "run.sqlite", "--to", "trackio", "--all")
    assert (done.exit_code, done.stderr) == (0, "")
    assert "look at it: trackio show --project mine" in done.stdout
    place = TrackioPlace(folder, "first")
    place._project = lambda: "mine"
    assert place.numbers("loss") == [(1, 1.0), (2, 0.5), (3, 1 / 3)]
    assert place.table("validation/samples") == [[3, "a", "4"], [3, "b", "5"]]


async def test_what_a_tracker_has_missed_goes_where_the_run_has_put_the_rest(folder, monkeypatch):
    need("tensorboard")
    works = TBMetricsLogger.write

    def write(self, step, *rest):
        if step > 1:
            raise OSError("disk full")
        works(self, step, *rest)

    monkeypatch.setenv("DESCANT_TRACKER_TIMEOUT_S", "0")
    monkeypatch.setattr(TBMetricsLogger, "write", write)
    await record(folder / "runs" / "first", logger=[TBMetricsLogger("a", "other"), TBMetricsLogger("b", "here")])
    failed = invoke("sync", "first", "--to", "tensorboard-2")
    assert failed.exit_code == 1
    message = failed.stderr.strip()
    assert message == (
        "descant: tensorboard-2 failed (OSError: disk full); it has 1 records of runs/first. "
        "The same command continues from there"
    )
    monkeypatch.setattr(TBMetricsLogger, "write", works)
    done = invoke("sync", "first", "--to", "tensorboard-2")
    assert "3 records delivered to tensorboard-2; it had 1 before" in done.stdout
    (event_folder,) = (folder / "here").iterdir()
    assert event_folder.name == "b"
    place = TensorBoardPlace(folder, "b")
    (folder / "here").rename(folder / "tb")
    # a feed that nobody waits for may not save the offset of what it has just delivered, so that it comes twice
    assert sorted(set(place.numbers("loss"))) == [(1, 1.0), (2, 0.5), (3, pytest.approx(1 / 3))]
    with RunReader(folder / "runs" / "first") as reader:
        assert {name: sink.offset for name, sink in reader.sinks.items()}["tensorboard-2"] == 4
        assert reader.config["trackers"]["tensorboard"]["logging_dir"] == str(folder / "other")


async def test_everything_once_more_is_a_new_run_and_goes_on_there(folder):
    tracker = MemoryTracker()
    await record(folder / "r", logger=tracker)
    replay(folder / "r", tracker, everything=True)
    assert tracker.rows[4:] == tracker.rows[:4]
    replay(folder / "r", tracker)
    first, second, third = (told.run_id for told in tracker.runs)
    assert first != second == third
    assert {told.name for told in tracker.runs} == {"r"}
    never = MemoryTracker()
    replay(folder / "r", never, everything=True, name="other")
    assert never.runs[0].run_id == first


async def test_a_run_that_shared_its_logger_goes_to_its_own_name(folder, monkeypatch):
    need("tensorboard")
    logger = TBMetricsLogger("addition", "tb")
    for name in ("sft", "grpo"):
        await record(folder / "runs" / name, logger=logger)
    assert sorted(path.name for path in (folder / "tb").iterdir()) == ["addition", "addition-2"]
    (folder / "tb").rename(folder / "lost")
    assert invoke("sync", "grpo", "--to", "tensorboard", "--all").exit_code == 0
    assert [path.name for path in (folder / "tb").iterdir()] == ["addition-2"]
    for tb in ("tb", "lost"):
        place = TensorBoardPlace(folder, f"../{tb}/addition-2")
        assert place.numbers("loss") == [(1, 1.0), (2, 0.5), (3, pytest.approx(1 / 3))]


async def test_what_cannot_be_delivered(folder):
    await record(folder / "runs" / "first")
    log = RunLog(folder / "runs" / "going")
    await log.log_metrics(1, {"loss": 1.0})
    for arguments, reason in {
        ("first", "--to", "trakio"): "--to 'trakio' is not a tracker; did you mean 'trackio'?",
        ("first", "--to", "wandb-2"): "--to 'wandb-2' is not a tracker",
        ("first", "--to", "mlflow"): "MLFLOW_TRACKING_URI is not set: it says where to write",
        ("frist", "--to", "trackio"): "did you mean",
        ("going", "--to", "trackio"): "runs/going is running",
    }.items():
        done = invoke("sync", *arguments)
        assert (done.exit_code, done.stdout) == (1, ""), done.stdout
        assert reason in done.stderr
        assert len(done.stderr.splitlines()) == 1
    assert invoke("sync", "first").exit_code == 2
    await log.close()
    os.utime(log.path, (1e9, 1e9))
    assert "is running" not in invoke("sync", "going", "--to", "mlflow").stderr


PAGE = (Path(__file__).parents[2] / "docs" / "trackers.md").read_text(encoding="utf-8")
COMMANDS = [line.split() for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]


def test_every_command_of_the_page_is_tested():
    assert [command[0] for command in COMMANDS] == ["descant", "trackio", "tensorboard", "mlflow"]


async def test_the_page_delivers_a_run(folder, trackio_dir):  # noqa: F811
    _, *arguments = COMMANDS[0]
    await record(folder / arguments[1])
    done = invoke(*arguments)
    assert (done.exit_code, done.stderr) == (0, "")
    assert "4 records delivered to trackio" in done.stdout


def test_the_page_starts_the_servers_as_they_are_started(monkeypatch, trackio_dir):  # noqa: F811
    """With options that they have: servers that run, with the same ones, are in other tests."""
    shown = []
    monkeypatch.setattr("trackio.cli.show", lambda **options: shown.append(options))
    monkeypatch.setattr("sys.argv", COMMANDS[1])
    import_module("trackio.cli").main()
    assert shown[0]["project"] == "addition"
    need("tensorboard")
    board = import_module("tensorboard.program").TensorBoard()
    board.configure(argv=COMMANDS[2])
    assert (board.flags.logdir, board.flags.samples_per_plugin) == ("runs/tensorboard", {"text": 1000})
    need("mlflow")
    server = import_module("mlflow.cli").cli.commands["server"].make_context("server", COMMANDS[3][2:])
    assert (server.params["backend_store_uri"], server.params["port"]) == ("sqlite:///mlflow.db", 5000)


async def test_a_run_that_was_killed_goes_to_one_tracker_right_after_another(folder, monkeypatch, trackio_dir):  # noqa: F811
    need("tensorboard")
    log = RunLog(folder / "runs" / "killed")
    await log.log_metrics(1, {"loss": 1.0})
    await log.close()
    with contextlib.closing(sqlite3.connect(log.path)) as connection, connection:  # it was written an hour ago
        connection.execute("UPDATE records SET time = time - 3600")
    os.utime(log.path, (1e9, 1e9))
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", "tb")
    for tracker in ("tensorboard", "trackio"):
        done = invoke("sync", "killed", "--to", tracker)
        assert (done.exit_code, done.stderr) == (0, "")
        assert f"1 record delivered to {tracker}" in done.stdout


@pytest.mark.parametrize("tracker", ["tensorboard", "trackio", "mlflow", "wandb"])
async def test_a_tracker_that_was_emptied_is_given_everything(folder, monkeypatch, request, tracker):
    need(tracker)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", "tb")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
    database = {"tensorboard": folder / "tb", "wandb": folder / "runs" / "first" / "wandb"}.get(tracker)
    if tracker == "trackio":
        database = request.getfixturevalue("trackio_dir")
    await record(folder / "runs" / "first")
    with contextlib.closing(sqlite3.connect("runs/first/run.sqlite")) as connection, connection:
        connection.execute("UPDATE records SET time = time - 3600")
        connection.execute("UPDATE events SET time = time - 3600 + 60 * (kind = 'run_completed')")
    with RunReader(folder / "runs" / "first") as reader:
        lasted = (round(reader.started_at * 1000), round(reader.ended_at * 1000))
    assert 60_000 <= lasted[1] - lasted[0] < 120_000
    assert "4 records delivered" in invoke("sync", "first", "--to", tracker).stdout
    assert "0 records delivered" in invoke("sync", "first", "--to", tracker).stdout
    if tracker == "mlflow":
        client = import_module("mlflow").MlflowClient(f"sqlite:///{folder}/mlflow.db")
        (run,) = client.search_runs([client.get_experiment_by_name("mine").experiment_id])
        assert (run.info.run_name, run.info.start_time, run.info.end_time) == ("first", *lasted)
        client.delete_run(run.info.run_id)
    else:
        shutil.rmtree(database)
        database.mkdir()
    again = invoke("sync", "first", "--to", tracker)
    assert again.stdout.splitlines()[1] == (
        f"4 records delivered to {tracker}; it had lost the 4 that it had before"
    ), again.stderr
    assert "0 records delivered" in invoke("sync", "first", "--to", tracker).stdout
