"""A run with all four trackers at once: each has the curves and the tables of the run log, row for row."""

import math
import struct
from collections import defaultdict

from support import LengthGrader, addition_threads, training_model
from trackers import (  # noqa: F401 - two are fixtures
    MLFlowPlace,
    TensorBoardPlace,
    TrackioPlace,
    WandbPlace,
    mlflow_uri,
    need,
    trackio_dir,
)

from descant import SFT, CompositeLogger, GenerateSamplesCallback, GraderEvalCallback, ValidationLossCallback
from descant.loggers.journal import Record
from descant.loggers.run_reader import RunReader

NUM_STEPS = 10
FREQUENCY = 0.25
STEPS = [0, 3, 5, 8, 10]


async def train(path, run_dir, logger):
    async with training_model(path) as model:
        validation = addition_threads(5, offset=50)
        return await SFT(
            dataset=addition_threads(4 * NUM_STEPS),
            model=model,
            samples_per_batch=4,
            lr=1e-3,
            logger=logger,
            run_dir=run_dir,
            callbacks=[
                GraderEvalCallback(validation, model, LengthGrader(), FREQUENCY, max_gen_len=6),
                ValidationLossCallback(validation, model, FREQUENCY),
                GenerateSamplesCallback(validation, model, FREQUENCY, max_gen_len=6, temperature=1.0),
            ],
        ).run()


def of_run_log(records: list[Record]):
    """Curves as (step, value) and tables as rows with their step, in the order in which they were recorded."""
    curves, tables = defaultdict(list), defaultdict(list)
    for record in records:
        for key, value in record.metrics.items():
            curves[key].append((record.step, value))
        for key, table in record.tables.items():
            columns = [table.headers.index(name) for name in table.headers if name != "step"]
            assert len(columns) == len(table.headers) - ("step" in table.headers)
            tables[key] += [row if "step" in table.headers else [record.step, *row] for row in table.rows]
    return curves, tables


def as_float32(value):
    return struct.unpack("f", struct.pack("f", value))[0]


async def test_the_same_curves_and_tables_everywhere(qwen3_dir, tmp_path, monkeypatch, mlflow_uri, trackio_dir):  # noqa: F811
    need("wandb"), need("tensorboard")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.chdir(tmp_path)
    places = {
        "tensorboard": TensorBoardPlace(tmp_path),
        "trackio": TrackioPlace(tmp_path),
        "wandb": WandbPlace(tmp_path),
        "mlflow": MLFlowPlace(tmp_path, mlflow_uri),
    }
    await train(qwen3_dir, tmp_path / "run", CompositeLogger(*(place.logger() for place in places.values())))

    with RunReader(tmp_path / "run") as reader:
        curves, tables = of_run_log(list(reader.records()))
        assert reader.outcome == "completed"
        assert {event.source for event in reader.events if event.kind == "tracker_failed"} == set()
        num_records = sum(1 for _ in reader.records())
        assert {name: sink.place for name, sink in reader.sinks.items()} == dict.fromkeys(places, num_records)
    assert [step for step, _ in curves["training/loss"]] == list(range(1, NUM_STEPS + 1))
    assert [step for step, _ in curves["validation/rewards/score/mean"]] == STEPS
    tables_of = ("validation/samples", "validation/loss_samples", "generation/samples")
    assert {key: len(rows) for key, rows in tables.items()} == dict.fromkeys(tables_of, 25)
    for name, place in places.items():
        for key, points in curves.items():
            if any(isinstance(value, str) for _, value in points):
                assert place.strings(key) == points, (name, key)
                continue
            expected = [(step, as_float32(value) if name == "tensorboard" else float(value)) for step, value in points]
            found = place.numbers(place.name(key))
            assert [(step, value) for step, value in found if not math.isnan(value)] == expected, (name, key)
        for key, rows in tables.items():
            assert place.table(key) == [place.as_shown(row) for row in rows], (name, key)
        assert place.outcome() in ("completed", "FINISHED")
        assert place.num_runs() == 1
