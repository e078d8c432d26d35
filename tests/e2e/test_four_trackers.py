"""The demo, whole, with all four trackers at once: the small model learns to add, and every tracker has all of it."""

import os
import re
import struct
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import pytest
from support import query, series
from trackers import (  # noqa: F401 - two are fixtures
    MLFlowPlace,
    TensorBoardPlace,
    TrackioPlace,
    WandbPlace,
    mlflow_uri,
    need,
    trackio_dir,
)

from descant.runlog.run_reader import RunReader

SCRIPT = Path(__file__).parents[2] / "examples" / "addition" / "train.py"
NUM_STEPS = 732
TRACKERS = ["mlflow", "tensorboard", "trackio", "wandb"]
CHARTS = [  # of about fifty metrics
    "characters/first_correct", "characters/last_correct", "training/grad_norm", "training/learning_rate",
    "training/loss", "validation/generation_length_mean", "validation/loss", "validation/rewards/score/mean",
]  # fmt: skip


@pytest.fixture(scope="module")
def demo(tmp_path_factory, mlflow_uri, trackio_dir):  # noqa: F811
    """A run of the demo that finds its trackers in the environment: its folder and what it has printed."""
    need("wandb"), need("tensorboard")
    folder = tmp_path_factory.mktemp("demo")
    environment = {
        **os.environ,
        "COLUMNS": "120",
        "MLFLOW_EXPERIMENT_NAME": str(folder),
        "MLFLOW_TRACKING_URI": mlflow_uri,
        "TENSORBOARD_LOGGING_DIR": str(folder / "tb"),
        "WANDB_MODE": "offline",
    }
    command = [sys.executable, SCRIPT, "--run-dir", "run"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment, timeout=580)
    assert done.returncode == 0, done.stderr[-3000:]
    return SimpleNamespace(folder=folder, run_dir=folder / "run", stdout=done.stdout, stderr=done.stderr)


def test_the_model_learns_to_add(demo):
    exact = series(demo.run_dir, "validation/rewards/score/mean")
    assert len(exact) == 11
    assert exact[0] == 0
    assert exact[NUM_STEPS] >= 0.95
    assert re.search(rf"Exact match went from 0\.0% to (9[5-9]|100)\.\d% in {NUM_STEPS} steps", demo.stdout)
    assert f"run log  {Path('run') / 'run.sqlite'}" in demo.stdout
    for key in ("characters/last_correct", "validation/loss", "generation/num_samples", "callbacks/samples/stall_s"):
        assert list(series(demo.run_dir, key)) == list(exact)
    assert query(demo.run_dir, "SELECT count(*) FROM events WHERE kind = 'callback_failed'") == [(0,)]
    prompts = query(demo.run_dir, "SELECT count(DISTINCT example_id) FROM samples WHERE callback = 'validation'")
    assert prompts == [(300,)]


@pytest.fixture(scope="module")
def recorded(demo):
    """Of the run log, in the order in which it was recorded: curves as (step, value), tables as rows with their step;
    and the name of the run in each tracker."""
    curves, tables = defaultdict(list), defaultdict(list)
    with RunReader(demo.run_dir) as reader:
        for record in reader.records():
            for key, value in record.metrics.items():
                curves[key].append((record.step, value))
            for key, table in record.tables.items():
                assert "step" not in table.headers
                tables[key] += [[record.step, *row] for row in table.rows]
        assert reader.outcome == "completed"
        assert {event.source for event in reader.events if event.kind.startswith("tracker_")} <= {"mlflow"}  # its link
        num_records = sum(1 for _ in reader.records())
        assert {name: sink.offset for name, sink in reader.sinks.items()} == dict.fromkeys(TRACKERS, num_records)
    return SimpleNamespace(curves=curves, tables=tables, run_name=demo.run_dir.name)


def test_the_run_log_has_every_step_and_every_evaluation(recorded):
    steps = [0, *(-(-NUM_STEPS * tenth // 10) for tenth in range(1, 11))]
    assert [step for step, _ in recorded.curves["training/loss"]] == list(range(1, NUM_STEPS + 1))
    assert [step for step, _ in recorded.curves["validation/rewards/score/mean"]] == steps
    num_rows = {"validation/samples": 300, "validation/loss_samples": 300, "generation/samples": 8}
    assert {key: [row[0] for row in rows] for key, rows in recorded.tables.items()} == {
        **{key: [step for step in steps for _ in range(number)] for key, number in num_rows.items()},
        "callbacks/costs": [NUM_STEPS] * 4,
    }


def as_float32(value):
    return struct.unpack("f", struct.pack("f", value))[0]


@pytest.mark.parametrize("tracker", TRACKERS)
def test_a_tracker_has_what_the_run_log_has_row_for_row(demo, recorded, mlflow_uri, tracker):  # noqa: F811
    place = {
        "mlflow": lambda: MLFlowPlace(demo.folder, mlflow_uri, recorded.run_name),
        "tensorboard": lambda: TensorBoardPlace(demo.folder, recorded.run_name),
        "trackio": lambda: TrackioPlace(demo.folder, recorded.run_name, "descant"),
        "wandb": lambda: WandbPlace(demo.folder, recorded.run_name),
    }[tracker]()
    (says,) = re.findall("^metrics go to (.*)$", demo.stderr, flags=re.MULTILINE)
    assert re.fullmatch(r"wandb, mlflow, tensorboard \(.*\), trackio \(trackio show --project descant\)", says)
    stored = as_float32 if tracker == "tensorboard" else float
    curves, tables = place.curves(), place.tables()
    axis = {"progress/step"} if tracker == "wandb" else set()
    assert curves.keys() == {place.name(key) for key in CHARTS} | axis
    for key in CHARTS:
        assert curves[place.name(key)] == [(step, stored(value)) for step, value in recorded.curves[key]], key
    names = {key: place.name(key.replace("callbacks/", "z_descant/")) for key in recorded.tables}
    assert tables.keys() == set(names.values())
    for key, rows in recorded.tables.items():
        assert tables[names[key]] == [place.as_shown(row) for row in rows], key
    assert place.outcome() == "completed"
    assert place.num_runs() == 1
