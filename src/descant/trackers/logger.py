"""Logger and TrackerLogger: where the metrics of a run go, in addition to the run log."""

from __future__ import annotations

import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

from descant.errors import ConfigurationError
from descant.metrics import Metric, as_metric
from descant.provenance import plain_config
from descant.table import Table

STEP_KEY = "progress/step"
"""The metric that says to which step the others of a call belong."""
OWN_GROUP = "z_descant"
"""Where trackers have what descant records of itself. All of them sort groups of charts by name: this one is last."""


class Logger(ABC):
    """What a trainer takes as ``logger``: called with the metrics of a step, once per step.

    Any callable that takes a dict will do; this adds settings, a link and an end.
    """

    @abstractmethod
    def __call__(self, metrics: Mapping[str, Metric]) -> None:
        """Log the metrics of one step; ``progress/step`` in them says which."""

    def log_config(self, config: Mapping[str, Any]) -> None:  # noqa: B027 - not every logger records settings
        """Log the settings of the run."""

    @property
    def training_monitoring_link(self) -> str | None:
        """The address of the run in a browser, if there is one."""
        return None

    def close(self) -> None:  # noqa: B027 - not every logger has something to close
        """Finish: nothing is logged afterwards. Closing twice is harmless."""


@dataclass(frozen=True)
class RunInfo:
    """What a tracker is told of a run when it begins.

    Attributes:
        run_id: never changes, so that a tracker can tell one run written twice from two runs.
        name: of the run directory, for people.
        run_dir: where the run log is.
        config: settings of trainer, callbacks and environment, as plain JSON values; secrets are masked.
        suffix: to be added to the logger's run name, if it has one: "" for the first run that a logger is given, "-2"
            for its second.
        started_at, ended_at: in seconds since 1970; None where it is not known, or the run has not ended.
    """

    run_id: str
    name: str
    run_dir: Path
    config: Mapping[str, Any] = field(default_factory=dict)
    suffix: str = ""
    started_at: float | None = None
    ended_at: float | None = None


class TrackerLogger(Logger):
    """Base of loggers that write to an experiment tracker.

    Given to a trainer, it is fed from the run log on a thread of its own: training does not wait for it, and what it
    could not write is tried again from its offset in the log. ``start``, ``write`` and ``finish`` are called on that
    thread, one at a time, and may block and raise. Called by hand, it writes at once.
    """

    tracker: ClassVar[str]
    """The name of the tracker: "wandb", "mlflow", "tensorboard", "trackio"."""

    @abstractmethod
    def start(self, run: RunInfo) -> None:
        """Connect and make the tracker's run, or find it again by ``run.run_id``. Called again after a failure."""

    @abstractmethod
    def write(self, step: int, time_s: float, metrics: Mapping[str, float | str], tables: Mapping[str, Table]) -> None:
        """Write what belongs to a step. Steps may be late and out of order, and come several times, with other keys.

        Args:
            step: that the values describe.
            time_s: when they were recorded, in seconds since 1970.
            metrics: numbers (NaN and infinity too) and strings.
            tables: rows of this step, in addition to those of earlier ones.
        """

    @abstractmethod
    def finish(self, outcome: str) -> None:
        """The run has ended ("completed", "stopped", "interrupted", "failed", "cancelled"): flush and close."""

    @property
    def viewer(self) -> str | None:
        """The command that shows what is written, if one is needed."""
        return None

    run_name: str | None = None
    """The name of its first run, and of the group of all its runs; None: each run is called like its directory."""

    run: RunInfo | None = None
    """The run that is written, between ``start`` and ``finish``."""

    starts_empty: bool = False
    """Set by ``start``: the tracker's run has nothing of what was written before, as far as the tracker can tell: it is
    new, or was deleted. It is given everything then."""

    _num_calls = 0
    _closed = False
    _feed: Any = None  # that fed it last, or does: see feed.py

    def __call__(self, metrics: Mapping[str, Metric]) -> None:
        """Write the metrics of one step by hand, at once; the first call starts a run of its own.

        The step is ``progress/step`` in the metrics, or else the number of earlier calls. ``close`` ends the run.

        Raises:
            TypeError: a value is not a metric; the message names its key. Nothing is written then.
            ConfigurationError: the logger was closed.
        """
        values = named_metrics(metrics)
        self._start_by_hand()
        step = values.get(STEP_KEY, self._num_calls)
        if isinstance(step, (str, Table)) or step != int(step):
            raise ConfigurationError(f"{STEP_KEY} is the number of a step, got {step!r}")
        self._num_calls = max(self._num_calls, int(step)) + 1
        tables = {key: value for key, value in values.items() if isinstance(value, Table)}
        numbers = {key: value for key, value in values.items() if not isinstance(value, Table)}
        self.write(int(step), time.time(), numbers, tables)

    def log_config(self, config: Mapping[str, Any]) -> None:
        """Write settings of the run by hand, at once, secrets masked; starts a run of its own if there is none."""
        config = plain_config(config)
        if self.run is None:
            self._start_by_hand(config)
        else:
            self.write_config(config)

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Write settings of the run that was started, in addition to those that it has."""

    def name_of(self, run: RunInfo) -> str:
        """What a run is called in the tracker."""
        return run.name if self.run_name is None else f"{self.run_name}{run.suffix}"

    def close(self) -> None:
        """Finish as "completed"; harmless if the run has ended."""
        self._closed = True
        if self.run is not None:
            self.finish("completed")
            self.run = None

    def _start_by_hand(self, config: Mapping[str, Any] | None = None) -> None:
        if self._closed:
            raise ConfigurationError(f"this {type(self).__name__} was closed; make another one to log more")
        if self.run is None:
            run_id = uuid.uuid4().hex
            now = time.time()
            name = self.run_name or datetime.fromtimestamp(now).strftime("run-%Y%m%d-%H%M%S")
            run = RunInfo(run_id, name, Path(), config or {}, started_at=now)
            self.start(run)
            self.run = run


def require_extra(package: str, user: str) -> None:
    """Refuse to continue without a package, which is looked for and not imported.

    Args:
        package: its name, which is also the name of descant's extra.
        user: what needs it, for the message.

    Raises:
        ConfigurationError: it is not installed; the message has the command that installs it.
    """
    if find_spec(package) is None:
        raise ConfigurationError(f"{user} needs {package}, which is not installed: pip install 'descant[{package}]'")


def named_metrics(metrics: Mapping[str, Any]) -> dict[str, Metric]:
    """Metrics as plain values.

    Raises:
        TypeError: a value is not a metric; the message names its key.
    """
    values = {}
    for key, value in metrics.items():
        try:
            values[key] = as_metric(value)
        except TypeError as error:
            raise TypeError(f"{key!r}: {error}") from None
    return values
