"""get_prod_logger: every tracker that the environment configures."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator
from datetime import datetime
from importlib.util import find_spec
from typing import Any

from descant.errors import ConfigurationError
from descant.loggers.composite_logger import CompositeLogger
from descant.loggers.logger import Logger, TrackerLogger
from descant.loggers.mlflow_logger import MLFlowLogger
from descant.loggers.stdout_logger import StdoutLogger
from descant.loggers.tensorboard_logger import TBMetricsLogger
from descant.loggers.trackio_logger import TrackioLogger
from descant.loggers.wandb_logger import WandbLogger


def get_prod_logger(ctx: Any = None) -> Logger:
    """Every tracker that the environment configures, as one logger; its ``loggers`` has them.

    ============================================  ===========================================================
    Weights & Biases                              ``WANDB_API_KEY`` is set, or ``WANDB_MODE`` is ``offline``,
                                                  and ``WANDB_MODE`` is not ``disabled``
    MLflow                                        ``MLFLOW_TRACKING_URI`` is set
    TensorBoard                                   ``TENSORBOARD_LOGGING_DIR`` is set
    Trackio                                       it is installed
    ============================================  ===========================================================

    Without any of them it is a ``StdoutLogger``. Which it is, is printed on standard error. A tracker that is
    configured and not installed is a warning with the command that installs it.

    Args:
        ctx: gives names: ``project`` for the project, ``recipe_name`` and ``name`` for the run. ``WANDB_PROJECT``,
            ``WANDB_NAME``, ``WANDB_ENTITY`` and ``MLFLOW_EXPERIMENT_NAME`` go before them for their trackers, and
            ``MLFLOW_MONITORING_LINK`` and ``TENSORBOARD_MONITORING_LINK`` say where people look.
    """
    trackers: list[TrackerLogger] = []
    for make in _configured(*_names(ctx)):
        try:
            trackers.append(make())
        except ConfigurationError as error:
            logging.getLogger("descant").warning("metrics do not go to a tracker that is configured: %s", error)
    if not trackers:
        print("metrics go to standard output; install trackio for a dashboard on this machine", file=sys.stderr)
        return StdoutLogger()
    print(f"metrics go to {', '.join(tracker.tracker for tracker in trackers)}", file=sys.stderr)
    return CompositeLogger(*trackers)


def _configured(project: str, run: str) -> Iterator[Callable[[], TrackerLogger]]:
    env = os.environ
    wandb_mode = env.get("WANDB_MODE", "online")
    if wandb_mode == "offline" or (env.get("WANDB_API_KEY") and wandb_mode != "disabled"):
        wandb_project, wandb_run = env.get("WANDB_PROJECT") or project, env.get("WANDB_NAME") or run
        yield lambda: WandbLogger(wandb_project, wandb_run, env.get("WANDB_ENTITY"))
    if env.get("MLFLOW_TRACKING_URI"):
        experiment = env.get("MLFLOW_EXPERIMENT_NAME") or project
        link = env.get("MLFLOW_MONITORING_LINK")
        yield lambda: MLFlowLogger(experiment, run, env["MLFLOW_TRACKING_URI"], link)
    if env.get("TENSORBOARD_LOGGING_DIR"):
        board = env.get("TENSORBOARD_MONITORING_LINK")
        yield lambda: TBMetricsLogger(run, env["TENSORBOARD_LOGGING_DIR"], board)
    if find_spec("trackio") is not None:
        yield lambda: TrackioLogger(project, run)


def _names(ctx: Any) -> tuple[str, str]:
    """Of the project and of the run."""
    recipe = getattr(ctx, "recipe_name", None)
    project = getattr(ctx, "project", None) or recipe or "descant"
    name = getattr(ctx, "name", None) or datetime.now().strftime("run-%Y%m%d-%H%M%S")
    return str(project), f"{recipe}/{name}" if recipe else str(name)
