"""What callbacks return reaches the trackers that a trainer of Transformers reports to, and theirs by ``logger=``."""

from functools import partial
from importlib import import_module

import pytest
import torch
from support import LengthGrader, query
from test_transformers import VALIDATION, plain_trainer, weights_of
from trackers import (  # noqa: F401 - one is a fixture
    MLFlowPlace,
    TensorBoardPlace,
    TrackioPlace,
    WandbPlace,
    need,
    trackio_dir,
)

from descant import GraderEvalCallback, TrackioLogger, ValidationLossCallback
from descant.integrations.transformers import add_callbacks
from descant.runlog.run_reader import RunReader

TRACKERS = ["wandb", "mlflow", "tensorboard", "trackio"]


def callbacks(model, mode="inline"):
    return [
        GraderEvalCallback(VALIDATION, model, LengthGrader(), 0.5, max_gen_len=4),
        ValidationLossCallback(VALIDATION, model, 0.5, mode=mode),
    ]


@pytest.fixture(autouse=True)
def environment(tmp_path, monkeypatch):
    for package in TRACKERS:
        need(package)
    monkeypatch.chdir(tmp_path)
    for name, value in {
        "WANDB_MODE": "offline",
        "WANDB_SILENT": "true",
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db",
        "MLFLOW_EXPERIMENT_NAME": str(tmp_path),
        "TENSORBOARD_LOGGING_DIR": str(tmp_path / "tb" / "mine"),
    }.items():
        monkeypatch.setenv(name, value)


def recorded(run_dir, key):
    """The rows of a table with their steps, in the order of steps."""
    with RunReader(run_dir) as reader:
        tables = [(record.step, record.tables[key]) for record in reader.records() if key in record.tables]
    return sorted([step, *row] for step, table in tables for row in table.rows)


def test_tables_and_what_matters_of_the_numbers_are_in_the_trackers_of_the_trainer(gpt2_dir, tmp_path, trackio_dir):  # noqa: F811
    alone = plain_trainer(gpt2_dir, str(tmp_path / "alone"))
    alone.train()
    trainer = plain_trainer(gpt2_dir, str(tmp_path / "out"), report_to=TRACKERS, run_name="mine", project=tmp_path.name)
    added = add_callbacks(trainer, partial(callbacks, mode="background"), run_dir=tmp_path / "run")
    trainer.train()
    import_module("wandb").finish()
    assert not added.failures
    assert query(tmp_path / "run", "SELECT message FROM events WHERE kind = 'tracker_failed'") == []
    before, after = weights_of(alone), weights_of(trainer)
    assert all(torch.equal(before[name], after[name]) for name in before)

    mlflow = MLFlowPlace(tmp_path, f"sqlite:///{tmp_path}/mlflow.db", "mine")
    places = {
        "": (WandbPlace(tmp_path, "mine"), TrackioPlace(tmp_path, "mine", tmp_path.name), mlflow),
        "/text_summary": (TensorBoardPlace(tmp_path, "mine"),),
    }
    for key in ("validation/samples", "validation/loss_samples"):
        expected = recorded(tmp_path / "run", key)
        assert {row[0] for row in expected} == {0, 3, 6}
        for suffix, of_kind in places.items():
            for place in of_kind:
                rows = place.table(f"eval/{key}{suffix}")
                assert sorted(map(str, rows)) == sorted(str(place.as_shown(row)) for row in expected), place
    trackio = places[""][1]
    assert [step for step, _ in trackio.numbers("eval/validation/loss")] == [0, 3, 6]
    assert [step for step, _ in trackio.numbers("train/loss")] == [2, 4, 6]
    names = {key for key in mlflow.run().data.metrics if key.startswith("eval_")}
    assert names == {f"eval_validation/{key}" for key in ("loss", "rewards/score/mean", "generation_length_mean")}
    logged = {key for row in trainer.state.log_history for key in row}
    assert {"eval_validation/perplexity", "eval_validation/num_samples"} <= logged


def test_a_tracker_that_fails_is_said_once_and_training_goes_on(gpt2_dir, tmp_path, monkeypatch):
    trainer = plain_trainer(gpt2_dir, str(tmp_path / "out"), report_to=["tensorboard"])
    added = add_callbacks(trainer, callbacks, run_dir=tmp_path / "run")
    writer = import_module("torch.utils.tensorboard").SummaryWriter
    works = writer.add_text

    def add_text(self, tag, *rest):
        if tag.startswith("eval/"):
            raise OSError("disk full")
        works(self, tag, *rest)

    monkeypatch.setattr(writer, "add_text", add_text)
    trainer.train()
    assert not added.failures
    ((message,),) = query(tmp_path / "run", "SELECT message FROM events WHERE kind = 'tracker_failed'")
    assert message.startswith("tensorboard, to which the trainer reports, has not got the tables of step ")
    assert "disk full" in message


def test_a_logger_of_ones_own_gets_tables_and_numbers_at_their_steps(gpt2_dir, tmp_path, trackio_dir):  # noqa: F811
    trainer = plain_trainer(gpt2_dir, str(tmp_path / "out"), eval_strategy="steps", eval_steps=3)
    add_callbacks(trainer, callbacks, run_dir=tmp_path / "run-7", logger=TrackioLogger(tmp_path.name))
    trainer.train()
    place = TrackioPlace(tmp_path, "run-7", tmp_path.name)
    expected = recorded(tmp_path / "run-7", "validation/samples")
    assert place.table("validation/samples") == [place.as_shown(row) for row in expected]
    assert set(place.curves()) == {
        "training/loss", "training/grad_norm", "training/learning_rate", "training/train_loss",
        "eval_loss", "validation/loss", "validation/rewards.score.mean", "validation/generation_length_mean",
    }  # fmt: skip
