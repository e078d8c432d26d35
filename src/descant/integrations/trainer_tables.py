"""TrainerTables: tables of callbacks in the trackers that a trainer of Transformers reports to itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

from transformers import Trainer
from transformers.integrations.integration_utils import (
    MLflowCallback,
    TensorBoardCallback,
    TrackioCallback,
    WandbCallback,
)

from descant.metrics import Metric
from descant.process_state import preserved_process_state
from descant.table import Table
from descant.trackers.logger import STEP_KEY
from descant.trackers.mlflow_tables import MLFlowTables
from descant.trackers.rows import MAX_CELL_LENGTH, tracker_rows
from descant.trackers.tensorboard import markdown_table
from descant.trackers.wandb import WandbTables

_Write = Callable[[str, int, Table], None]
_PREFIX = "eval/"  # as Transformers has the numbers of evaluations in trackers


class TrainerTables:
    """Collects tables, as a logger of the run, and writes them to the runs that the trainer's own trackers have open.

    In Trackio, whose steps count what is logged unless they are given, what the trainer logs is then at its steps, too.

    Args:
        trainer: whose callbacks for Weights & Biases, Trackio, MLflow and TensorBoard have begun their runs.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._collected: list[tuple[int, str, Table]] = []
        self._trainer = trainer
        self._wandb: WandbTables | None = None
        self._mlflow: MLFlowTables | None = None
        for callback in trainer.callback_handler.callbacks:
            if isinstance(callback, TrackioCallback) and not isinstance(callback._trackio, _TrackioAtSteps):
                callback._trackio = cast("Any", _TrackioAtSteps(callback._trackio))

    def __call__(self, metrics: Mapping[str, Metric]) -> None:
        """Keep the tables of a step until ``write`` is called, in the thread of the trainer."""
        tables = [(key, value) for key, value in metrics.items() if isinstance(value, Table) and value.rows]
        step = metrics[STEP_KEY]
        assert isinstance(step, int)
        self._collected += [(step, key, table) for key, table in tables]

    @property
    def has_trackers(self) -> bool:
        """Whether the trainer reports to any of the four."""
        kinds = (WandbCallback, TrackioCallback, MLflowCallback, TensorBoardCallback)
        return any(isinstance(callback, kinds) for callback in self._trainer.callback_handler.callbacks)

    def write(self) -> dict[str, Exception]:
        """Write what was collected, and return what each tracker has raised, if it has; the others have everything."""
        collected, self._collected = self._collected, []
        failures: dict[str, Exception] = {}
        with preserved_process_state():  # trackers are free to draw random numbers
            for name, write in self._trackers() if collected else ():
                try:
                    for step, key, table in collected:
                        write(f"{_PREFIX}{key}", step, tracker_rows(table, step, MAX_CELL_LENGTH))
                except Exception as error:
                    failures[name] = error
        return failures

    def _trackers(self) -> Iterator[tuple[str, _Write]]:
        for callback in self._trainer.callback_handler.callbacks:
            if isinstance(callback, WandbCallback) and callback._wandb.run is not None:
                yield "wandb", self._wandb_writer(callback._wandb)
            elif isinstance(callback, TrackioCallback):
                yield "trackio", _trackio_writer(callback._trackio)
            elif isinstance(callback, MLflowCallback) and callback._ml_flow.active_run() is not None:
                yield "mlflow", self._mlflow_writer(callback._ml_flow)
            elif isinstance(callback, TensorBoardCallback) and callback.tb_writer is not None:
                yield "tensorboard", _tensorboard_writer(callback.tb_writer)

    def _wandb_writer(self, wandb: Any) -> _Write:
        tables = self._wandb = self._wandb or WandbTables()

        def write(name: str, step: int, rows: Table) -> None:
            grown_name, grown = tables.grown(name, rows)
            wandb.run.log({grown_name: grown, "train/global_step": step})

        return write

    def _mlflow_writer(self, mlflow: Any) -> _Write:
        tables = self._mlflow = self._mlflow or MLFlowTables(mlflow.MlflowClient(), mlflow.active_run().info.run_id)
        return lambda name, step, rows: tables.append(name, rows)


class _TrackioAtSteps:
    """The module of Trackio, for a trainer that gives its step as a metric only."""

    def __init__(self, trackio: Any) -> None:
        self._trackio = trackio

    def __getattr__(self, name: str) -> Any:
        return getattr(self._trackio, name)

    def log(self, metrics: dict[str, Any]) -> None:
        self._trackio.log(metrics, step=metrics.get("train/global_step"))


def _trackio_writer(trackio: Any) -> _Write:
    def write(name: str, step: int, rows: Table) -> None:
        trackio.log({name: trackio.Table(columns=rows.headers, data=rows.rows), "train/global_step": step})

    return write


def _tensorboard_writer(writer: Any) -> _Write:
    def write(name: str, step: int, rows: Table) -> None:
        writer.add_text(name, markdown_table(rows.headers, rows.rows), step)
        writer.flush()

    return write
