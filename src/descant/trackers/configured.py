"""get_prod_logger: trackers by name, or every one that the environment configures."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from descant.errors import ConfigurationError
from descant.metrics import Metric
from descant.provenance import MASK
from descant.text import did_you_mean
from descant.trackers.composite import CompositeLogger
from descant.trackers.logger import Logger, TrackerLogger
from descant.trackers.mlflow import MLFlowLogger
from descant.trackers.rows import MAX_CELL_LENGTH
from descant.trackers.stdout import StdoutLogger
from descant.trackers.tensorboard import TBMetricsLogger
from descant.trackers.trackio import TrackioLogger
from descant.trackers.wandb import WandbLogger, has_wandb_login, is_online

TRACKERS = ("wandb", "mlflow", "tensorboard", "trackio")


def get_prod_logger(ctx: Any = None, trackers: Sequence[str] | None = None) -> Logger:
    """The trackers that are named, or every one that the environment configures, as one logger; ``loggers`` has them.

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

    A run is called like its directory; ``WANDB_NAME`` takes precedence for W&B. ``WANDB_PROJECT``, ``WANDB_ENTITY`` and
    ``MLFLOW_EXPERIMENT_NAME`` do so for their trackers, and ``MLFLOW_MONITORING_LINK`` and
    ``TENSORBOARD_MONITORING_LINK`` are the addresses for people.

    Args:
        ctx: gives the name of the project: its ``project``, or else its ``recipe_name``.
        trackers: "trackio", "wandb", "mlflow", "tensorboard": these, and no others.

    Raises:
        ConfigurationError: a tracker that is named is none, is not installed, or nothing says where it is; the message
            has what to write.
    """
    found: list[TrackerLogger] = []
    for tracker in _configured() if trackers is None else _checked(trackers):
        try:
            found.append(make_tracker(tracker, project_of(ctx)))
        except ConfigurationError as error:
            if trackers is not None:
                raise
            logging.getLogger("descant").warning("metrics do not go to a tracker that is configured: %s", error)
    if not found:
        hint = "; pip install trackio for a dashboard on this machine" if trackers is None else ""
        print(f"metrics go to the run log{hint}", file=sys.stderr)
        return _WithoutTracker()
    shown = (f"{tracker.tracker} ({tracker.viewer})" if tracker.viewer else tracker.tracker for tracker in found)
    print(f"metrics go to {', '.join(shown)}", file=sys.stderr)
    return CompositeLogger(*found)


class _WithoutTracker(StdoutLogger):
    """Prints what is logged by hand, but not what a trainer logs, which is recognized by what its recorder adds."""

    def __call__(self, metrics: Mapping[str, Metric]) -> None:
        if "completion_percentage" not in metrics:
            super().__call__(metrics)

    def log_config(self, config: Mapping[str, Any]) -> None:
        if "run_id" not in config:
            super().log_config(config)


def _checked(trackers: Sequence[str]) -> list[str]:
    """The names, in the order of ``TRACKERS``."""
    names = [trackers] if isinstance(trackers, str) else list(trackers)
    for name in names:
        if name not in TRACKERS:
            hint = did_you_mean(str(name), TRACKERS, f"they are {', '.join(TRACKERS)}")
            raise ConfigurationError(f"trackers={trackers!r}: {name!r} is not a tracker; {hint}")
    return [name for name in TRACKERS if name in names]


def _is_wandb_configured() -> bool:
    return os.environ.get("WANDB_MODE") != "disabled" and (not is_online() or has_wandb_login())


def _configured() -> Iterator[str]:
    env = os.environ
    if _is_wandb_configured():
        yield "wandb"
    if env.get("MLFLOW_TRACKING_URI"):
        yield "mlflow"
    if env.get("TENSORBOARD_LOGGING_DIR"):
        yield "tensorboard"
    if find_spec("trackio") is not None:
        yield "trackio"


def make_tracker(tracker: str, project: str, recorded: Mapping[str, Any] | None = None) -> TrackerLogger:
    """The logger of one tracker, configured by the environment.

    Args:
        tracker: one of ``TRACKERS``.
        project: its project, where neither ``recorded`` nor the environment has another one.
        recorded: the settings of the tracker that a run was given (``trackers`` of its config). Their names take
            precedence over those of the environment; their address is taken where the environment has none.

    Raises:
        ConfigurationError: the tracker is not installed, or nothing says where it is.
    """
    env, given = os.environ, recorded or {}
    variables = {"wandb": ("WANDB_PROJECT", "WANDB_NAME"), "mlflow": ("MLFLOW_EXPERIMENT_NAME", "")}
    of_project, of_run = variables.get(tracker, ("", ""))
    project = given.get("project_name") or env.get(of_project) or project
    run = given.get("run_name") or env.get(of_run)
    options = {"max_cell_length": given.get("max_cell_length", MAX_CELL_LENGTH)}
    if tracker == "wandb":
        if not _is_wandb_configured():
            raise ConfigurationError(
                "nothing says which account of W&B is meant: run `wandb login`, or set WANDB_API_KEY; or set "
                "WANDB_MODE=offline, which writes files only"
            )
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


def project_of(ctx: Any) -> str:
    """The name of the project: ``project`` or ``recipe_name`` of ``ctx``, if it has one of them."""
    return str(getattr(ctx, "project", None) or getattr(ctx, "recipe_name", None) or "descant")
