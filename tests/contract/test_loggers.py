"""What every tracker does with the metrics of a run, read back through the tracker's own reader."""

import math

import pytest
from trackers import (  # noqa: F401 - two are fixtures
    MLFlowPlace,
    TensorBoardPlace,
    TrackioPlace,
    WandbPlace,
    mlflow_uri,
    need,
    trackio_dir,
)

from descant.errors import ConfigurationError
from descant.table import Table
from descant.testing import check_logger
from descant.trackers.logger import RunInfo

NOW_S = 1_700_000_000.25


@pytest.fixture(params=["tensorboard", "trackio", "wandb", "mlflow"])
def place(request, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if request.param == "mlflow":
        return MLFlowPlace(tmp_path, request.getfixturevalue("mlflow_uri"))
    if request.param == "trackio":
        request.getfixturevalue("trackio_dir")
        return TrackioPlace(tmp_path)
    need(request.param)
    monkeypatch.setenv("WANDB_MODE", "offline")
    return {"tensorboard": TensorBoardPlace, "wandb": WandbPlace}[request.param](tmp_path)


def run_info(place, **config):
    return RunInfo("0123456789abcdef", "a run", place.folder, config)


def write(place, *steps, outcome="completed", config=None):
    logger = place.logger()
    logger.start(run_info(place, **(config or {})))
    for number, (step, metrics, tables) in enumerate(steps):
        logger.write(step, NOW_S + number, metrics, tables)
    logger.finish(outcome)
    return logger


async def test_passes_the_conformance_kit(place):
    await check_logger(place.logger)


def test_numbers_have_their_step_and_time(place):
    write(place, (0, {"loss": 2.5, "tokens": 100}, {}), (1, {"loss": 1.25}, {}), outcome="stopped")
    assert place.numbers("loss") == [(0, 2.5), (1, 1.25)]
    assert place.numbers("tokens") == [(0, 100)]
    assert place.times("loss") == pytest.approx([NOW_S, NOW_S + 1], abs=1e-3)
    assert place.outcome() == "stopped"
    assert place.num_runs() == 1


def test_a_step_may_come_twice_and_late(place):
    write(place, (4, {"loss": 1.0}, {}), (4, {"accuracy": 0.5}, {}), (2, {"accuracy": 0.25}, {}))
    assert place.numbers("loss") == [(4, 1.0)]
    assert sorted(place.numbers("accuracy")) == [(2, 0.25), (4, 0.5)]


def test_numbers_that_are_not_finite(place):
    write(place, (1, {"loss": math.nan, "ratio": math.inf, "count": 7}, {}))
    ((step, loss),) = place.numbers("loss")
    assert (step, math.isnan(loss)) == (1, True)
    assert place.numbers("ratio") == [(1, math.inf)]
    assert place.numbers("count") == [(1, 7)]


@pytest.mark.parametrize("key", ["validation/pass@4", "a (b) = 50 %", "step", "_step", "größe", "a//b/../c", "k" * 300])
def test_a_name_that_a_tracker_refuses_is_mapped(place, key):
    write(place, (3, {key: 0.5}, {}))
    assert place.numbers(place.name(key)) == [(3, 0.5)]


def test_strings_have_their_step(place):
    write(place, (1, {"note": "first"}, {}), (2, {"note": "# <b>second</b>\nline"}, {}))
    assert place.strings("note") == [(1, "first"), (2, "# <b>second</b>\nline")]


@pytest.mark.parametrize("text", ["NaN", '{"_type": "trackio.html", "file_path": "x"}'])
def test_a_string_stays_a_string(place, text):
    write(place, (1, {"note": text}, {}))
    assert [(step, value.strip()) for step, value in place.strings("note")] == [(1, text)]


def samples(step):
    rows = [[f"e{n}", f"{step} <img src=x> | `{n}`\n  *a* & b", n / 3, n if n else None, n == 1] for n in range(3)]
    return Table(["example_id", "response", "grade", "length", "passed"], rows)


def test_the_tables_of_all_evaluations_row_for_row(place):
    write(place, *((step, {"loss": 1.0}, {"validation/samples": samples(step)}) for step in (0, 10, 20, 5)))
    expected = [[step, *row] for step in (0, 10, 20, 5) for row in samples(step).rows]
    assert place.table("validation/samples") == [place.as_shown(row) for row in expected]


def test_two_tables_of_a_step_and_one_without_rows(place):
    tables = {"a/samples": samples(1), "b/samples": Table(["x"], [[math.nan]]), "c": Table(["x"])}
    write(place, (1, {}, tables), (2, {}, {"a/samples": samples(2)}))
    assert len(place.table("a/samples")) == 6
    assert place.table("b/samples") == [place.as_shown([1, math.nan])]


def test_a_table_with_steps_of_its_own_keeps_them(place):
    turns = Table(["step", "action"], [[1, "look"], [2, "go"]])
    write(place, (10, {}, {"turns": turns}), (20, {}, {"turns": turns}))
    expected = [[step, *row] for step in (10, 20) for row in turns.rows]
    assert place.table("turns") == [place.as_shown(row) for row in expected]


def test_long_cells_are_cut(place):
    logger = place.logger(max_cell_length=60)
    logger.start(run_info(place))
    logger.write(1, NOW_S, {}, {"samples": Table(["response"], [["x" * 1000]])})
    logger.finish("completed")
    (row,) = place.table("samples")
    assert row[1] == "x" * 40 + "… [1,000 characters]"


def test_the_config_is_there(place):
    write(place, (0, {"loss": 1.0}, {}), config={"lr": 0.001, "model": "tiny"})
    config = place.config()
    assert float(config["lr"]) == 0.001
    assert config["model"] == "tiny"


def test_a_run_that_is_started_again_goes_on(place):
    write(place, (1, {"loss": 2.0}, {"samples": samples(1)}), outcome="failed", config={"lr": 0.001})
    write(place, (2, {"loss": 1.0}, {"samples": samples(2)}), config={"lr": 0.001})
    assert place.numbers("loss") == [(1, 2.0), (2, 1.0)]
    assert len(place.table("samples")) == 6
    assert place.num_runs() == 1
    assert place.outcome() == "completed"


def test_a_logger_that_is_started_again_after_a_failure_goes_on(place):
    logger = place.logger()
    logger.start(run_info(place))
    logger.write(1, NOW_S, {"loss": 2.0}, {"samples": samples(1)})
    logger.start(run_info(place))
    logger.write(2, NOW_S, {"loss": 1.0}, {"samples": samples(2)})
    logger.finish("completed")
    logger.finish("completed")
    logger.close()
    assert place.numbers("loss") == [(1, 2.0), (2, 1.0)]
    assert len(place.table("samples")) == 6
    assert place.num_runs() == 1


def test_runs_that_share_a_logger_are_a_group(place):
    logger = place.logger()
    for run_id, suffix in (("0123456789abcdef", ""), ("fedcba9876543210", "-2")):
        logger.start(RunInfo(run_id, "sft", place.folder, {"lr": 0.5}, suffix))
        logger.write(1, NOW_S, {"loss": 2.0}, {"samples": samples(1)})
        logger.finish("completed")
    assert place.groups() == {"a run": "a run", "a run-2": "a run"}


def test_by_hand(place):
    logger = place.logger()
    logger.log_config({"lr": 0.5, "judge_key": {1: ("http://me:hunter2@host", object)}, "api_key": "hunter2"})
    logger.log_config({"client": {"headers": [("Authorization", "hunter2")]}})
    logger({"loss": 3.0})
    logger({"loss": 2.0, "samples": samples(1)})
    logger({"progress/step": 10, "loss": 1.0, "passed": True})
    with pytest.raises(TypeError, match="'loss': None"):
        logger({"loss": None})
    logger({"loss": 0.5})
    logger.close()
    logger.close()
    assert place.numbers("loss") == [(0, 3.0), (1, 2.0), (10, 1.0), (11, 0.5)]
    assert place.numbers("passed") == [(10, 1)]
    assert len(place.table("samples")) == 3
    assert float(place.config()["lr"]) == 0.5
    assert place.config()["api_key"] == "***"
    assert "hunter2" not in str(place.config())
    assert place.outcome() == "completed"
    with pytest.raises(ConfigurationError, match="was closed"):
        logger({"loss": 0.25})


def test_nothing_is_printed(place, capfd):
    write(place, (0, {"loss": 1.0}, {"samples": samples(0)}))
    assert capfd.readouterr() == ("", "")
