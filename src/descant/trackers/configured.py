"""get_prod_logger: every tracker that the environment configures."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator, Mapping
from datetime import datetime
from importlib.util import find_spec
from typing import Any

from descant.errors import ConfigurationError
from descant.metrics import Metric
from descant.provenance import MASK
from descant.trackers.composite import CompositeLogger
from descant.trackers.logger import Logger, TrackerLogger
from descant.trackers.mlflow import MLFlowLogger
from descant.trackers.rows import MAX_CELL_LENGTH
from descant.trackers.stdout import StdoutLogger
from descant.trackers.tensorboard import TBMetricsLogger
from descant.trackers.trackio import TrackioLogger
from descant.trackers.wandb import WandbLogger, has_wandb_login, is_online

TRACKERS = ("wandb", "mlflow", "tensorboard", "trackio")


def get_prod_logger(ctx: Any = None) -> Logger:
    """Every tracker that the environment configures, as one logger; its ``loggers`` has them.

    ============================================  ===========================================================
    Weights & Biases                              ``WANDB_API_KEY`` is set, or ``wandb login`` was done, or
                                                  ``WANDB_MODE`` is ``offline``; and it is not ``disabled``
    MLflow                                        ``MLFLOW_TRACKING_URI`` is set
    TensorBoard                                   ``TENSORBOARD_LOGGING_DIR`` is set
    Trackio                                       it is installed
    ============================================  ===========================================================

    Without any of them it is a ``StdoutLogger`` for what is logged by hand; what a trainer logs is on its console
    already, and is not printed twice. The choice is printed on standard error. A tracker that is configured and not
    installed is a warning with the command that installs it.

    Args:
        ctx: gives names: ``project`` for the project, ``recipe_name`` and ``name`` for the run. ``WANDB_PROJECT``,
            ``WANDB_NAME``, ``WANDB_ENTITY`` and ``MLFLOW_EXPERIMENT_NAME`` take precedence for their trackers, and
            ``MLFLOW_MONITORING_LINK`` and ``TENSORBOARD_MONITORING_LINK`` are the addresses for people.
    """
    trackers: list[TrackerLogger] = []
    project, run = names_of(ctx)
    for tracker in _configured():
        try:
            trackers.append(make_tracker(tracker, project, run))
        except ConfigurationError as error:
            logging.getLogger("descant").warning("metrics do not go to a tracker that is configured: %s", error)
    if not trackers:
        print("metrics go to the run log; pip install trackio for a dashboard on this machine", file=sys.stderr)
        return _WithoutTracker()
    shown = (f"{tracker.tracker} ({tracker.viewer})" if tracker.viewer else tracker.tracker for tracker in trackers)
    print(f"metrics go to {', '.join(shown)}", file=sys.stderr)
    return CompositeLogger(*trackers)


class _WithoutTracker(StdoutLogger):
    """Prints what is logged by hand, but not what a trainer logs, which is recognized by what its recorder adds."""

    def __call__(self, metrics: Mapping[str, Metric]) -> None:
        if "completion_percentage" not in metrics:
            super().__call__(metrics)

    def log_config(self, config: Mapping[str, Any]) -> None:
        if "run_id" not in config:
            super().log_config(config)


def _configured() -> Iterator[str]:
    env = os.environ
    if env.get("WANDB_MODE") != "disabled" and (not is_online() or has_wandb_login()):
        yield "wandb"
    if env.get("MLFLOW_TRACKING_URI"):
        yield "mlflow"
    if env.get("TENSORBOARD_LOGGING_DIR"):
        yield "tensorboard"
    if find_spec("trackio") is not None:
        yield "trackio"


def make_tracker(tracker: str, project: str, run: str, recorded: Mapping[str, Any] | None = None) -> TrackerLogger:
    """The logger of one tracker, configured by the environment.

    Args:
        tracker: one of ``TRACKERS``.
        project, run: its names, where neither ``recorded`` nor the environment has others.
        recorded: the settings of the tracker that a run was given (``trackers`` of its config). Their names take
            precedence over those of the environment; their address is taken where the environment has none.

    Raises:
        ConfigurationError: the tracker is not installed, or nothing says where it is.
    """
    env, given = os.environ, recorded or {}
    variables = {"wandb": ("WANDB_PROJECT", "WANDB_NAME"), "mlflow": ("MLFLOW_EXPERIMENT_NAME", "")}
    of_project, of_run = variables.get(tracker, ("", ""))
    project = given.get("project_name") or env.get(of_project) or project
    run = given.get("run_name") or env.get(of_run) or run
    options = {"max_cell_length": given.get("max_cell_length", MAX_CELL_LENGTH)}
    if tracker == "wandb":
        return WandbLogger(project, run, given.get("entity") or env.get("WANDB_ENTITY"), **options)
    if tracker == "mlflow":
        uri = _address("MLFLOW_TRACKING_URI", given.get("tracking_uri"), "http://127.0.0.1:5000")
        return MLFlowLogger(project, run, uri, env.get("MLFLOW_MONITORING_LINK"), **options)
    if tracker == "tensorboard":
        folder = _address("TENSORBOARD_LOGGING_DIR", given.get("logging_dir"), "runs/tensorboard")
        return TBMetricsLogger(run, folder, env.get("TENSORBOARD_MONITORING_LINK"), **options)
    return TrackioLogger(project, run, **options)


def _address(variable: str, recorded: str | None, example: str) -> str:
    address = os.environ.get(variable) or recorded
    if not address or MASK in address:
        raise ConfigurationError(f"{variable} is not set: it says where to write, such as {variable}={example}")
    return address


def names_of(ctx: Any) -> tuple[str, str]:
    """The names of the project and the run: ``project``, ``recipe_name`` and ``name`` of ``ctx``, if it has them."""
    recipe = getattr(ctx, "recipe_name", None)
    project = getattr(ctx, "project", None) or recipe or "descant"
    name = getattr(ctx, "name", None) or datetime.now().strftime("run-%Y%m%d-%H%M%S")
    return str(project), f"{recipe}/{name}" if recipe else str(name)
