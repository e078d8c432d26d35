"""MLFlowLogger: an MLflow tracking server, or its database."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from descant.errors import ConfigurationError
from descant.settings import flattened
from descant.table import Table
from descant.text import printable, with_hash
from descant.trackers.logger import RunInfo, TrackerLogger, require_extra
from descant.trackers.mlflow_tables import MLFlowTables
from descant.trackers.rows import MAX_CELL_LENGTH, bounded, checked_cell_length, tracker_rows
from descant.trackers.server import address_of, check_answers

_MAX_METRICS, _MAX_TEXTS = 1000, 100  # of one request
_MAX_VALUE_LENGTH = 6000  # of a param; a tag has room for 8000
_MAX_NAME_LENGTH = 250
_SQLITE = "sqlite:///"
_NO_PARAMS = ("metrics", "plan", "trackers")  # they are not what a run was given; config.json has them
_RUN_ID_TAG, _GROUP_TAG = "descant.run_id", "descant.group"
_STATUS = {"completed": "FINISHED", "stopped": "FINISHED", "interrupted": "KILLED", "cancelled": "KILLED"}


class MLFlowLogger(TrackerLogger):
    """Writes to a run of an MLflow experiment.

    Numbers are metrics with the step and time that they were recorded at (MLflow keeps NaN, and infinity as the
    largest float). Strings are tags, with the value of the latest step, and a table ``strings`` of all changes. The
    tables of all evaluations are one growing table per key (artifact ``tables/<key>.json``; ``<key>-2.json`` and so
    on when it grows beyond a megabyte or its columns change). The settings are params by dotted keys (``lr``,
    ``model.path``), cut to 6,000 characters, and the artifact ``config.json``, which is whole. Names that MLflow
    refuses are mapped: ``pass@4`` becomes ``pass_at_4``, other characters become their code in hexadecimal (``_x2b_``
    for ``+``).

    Args:
        project_name: of the experiment; it is made if it is not there.
        run_name: for people, since the run is found again by the id that descant gives it; None is the name of the run
            directory. It is also the tag ``descant.group`` of all runs that the logger is given.
        tracking_uri: of the server (``http://...``), or ``sqlite:///mlflow.db``.
        monitoring_link: where people look, if it is not the tracking server.
        experiment_tags: of the experiment.
        run_tags: of the run.
        max_cell_length: characters of a string or a cell that are written.

    Raises:
        ConfigurationError: mlflow is not installed, or there is no ``tracking_uri``, or it is a folder, which MLflow
            no longer writes to unless ``MLFLOW_ALLOW_FILE_STORE`` is set.
    """

    tracker = "mlflow"

    def __init__(
        self,
        project_name: str,
        run_name: str | None,
        tracking_uri: str,
        monitoring_link: str | None = None,
        experiment_tags: Mapping[str, str] | None = None,
        run_tags: Mapping[str, str] | None = None,
        *,
        max_cell_length: int = MAX_CELL_LENGTH,
    ) -> None:
        require_extra("mlflow", "MLFlowLogger")
        _check_uri(tracking_uri)
        self.project_name = project_name
        self.run_name = run_name
        self.tracking_uri = _absolute(tracking_uri)
        self.experiment_tags = dict(experiment_tags or {})
        self.run_tags = dict(run_tags or {})
        self.max_cell_length = checked_cell_length(max_cell_length)
        self._link = monitoring_link
        self._client: Any = None
        self._run_id = ""
        self._tables: MLFlowTables | None = None
        self._written_until_s: float | None = None
        self._keys: dict[str, str] = {}
        self._strings: dict[str, tuple[int, str]] = {}

    @property
    def training_monitoring_link(self) -> str | None:
        """The link that was given, or the page of the run on the tracking server, once it has begun."""
        return self._link

    def start(self, run: RunInfo) -> None:
        """Begin an MLflow run tagged with ``run.run_id``, or continue the one that has this tag.

        Raises:
            ConfigurationError: the experiment has been deleted.
            ConnectionError: the server does not answer. MLflow itself would try for minutes before it says so.
        """
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        if self.tracking_uri.startswith("http"):
            check_answers(f"{self.tracking_uri.rstrip('/')}/health")
        self._client = import_module("mlflow").MlflowClient(self.tracking_uri)
        experiment_id = self._experiment()
        found = self._client.search_runs([experiment_id], f"tags.`{_RUN_ID_TAG}` = '{run.run_id}'", max_results=1)
        self.starts_empty = not found
        if found:
            self._run_id = found[0].info.run_id
            self._client.update_run(self._run_id, status="RUNNING")
        else:
            group = {} if self.run_name is None else {_GROUP_TAG: self.run_name}
            tags = {**group, **self.run_tags, _RUN_ID_TAG: run.run_id}
            created = self._client.create_run(experiment_id, _as_ms(run.started_at), tags, self.name_of(run))
            self._run_id = created.info.run_id
        self._tables = MLFlowTables(self._client, self._run_id)
        self._strings.clear()
        self._written_until_s = run.ended_at
        if self._link is None and self.tracking_uri.startswith("http"):
            self._link = f"{address_of(self.tracking_uri)}/#/experiments/{experiment_id}/runs/{self._run_id}"
        self.run = run
        self.write_config(run.config)

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Add settings as params and to ``config.json``; a param keeps the value that it has, with a warning."""
        if not config:
            return
        param = import_module("mlflow.entities").Param
        assert self._tables is not None
        self._tables.merge_json("config.json", config)
        there = self._client.get_run(self._run_id).data.params
        left_out = _NO_PARAMS if "run_id" in config else ()  # of a run; what else is logged by hand is the user's
        flat = flattened({key: value for key, value in config.items() if key not in left_out})
        settings = {mlflow_name(key): _text(value) for key, value in flat.items()}
        changed = [key for key, value in settings.items() if there.get(key, value) != value]
        if changed:
            logging.getLogger("descant").warning(
                "MLflow keeps the first value of params; config.json has the new one of: %s", ", ".join(changed)
            )
        new = [param(key, value) for key, value in settings.items() if key not in there]
        for start in range(0, len(new), _MAX_TEXTS):
            self._client.log_batch(self._run_id, params=new[start : start + _MAX_TEXTS])

    def write(self, step: int, time_s: float, metrics: Mapping[str, float | str], tables: Mapping[str, Table]) -> None:
        """Log metrics and tags in batches, then add to the tables; writing the same again changes nothing."""
        self._written_until_s = max(time_s, self._written_until_s or 0)
        self._check_database()
        entities = import_module("mlflow.entities")
        assert self._tables is not None
        time_ms = _as_ms(time_s)
        numbers, tags, changes = [], [], Table(["step", "key", "value"])
        for key, value in metrics.items():
            if not isinstance(value, str):
                numbers.append(entities.Metric(self._name(key), float(value), time_ms, step))
                continue
            since, latest = self._strings.get(key, (step, None))
            if value != latest:
                changes.add_row([step, key, bounded(value, self.max_cell_length)])
            if step >= since:
                tags.append(entities.RunTag(_tag_name(key), _text(value)))
        for start in range(0, len(numbers), _MAX_METRICS):
            self._client.log_batch(self._run_id, metrics=numbers[start : start + _MAX_METRICS])
        for start in range(0, len(tags), _MAX_TEXTS):
            self._client.log_batch(self._run_id, tags=tags[start : start + _MAX_TEXTS])
        if changes.rows:
            self._tables.append("strings", changes)
        for key, table in tables.items():
            self._tables.append(self._name(key), tracker_rows(table, step, self.max_cell_length))
        for key, value in metrics.items():
            if isinstance(value, str) and step >= self._strings.get(key, (step, ""))[0]:
                self._strings[key] = (step, value)

    def finish(self, outcome: str) -> None:
        """End the MLflow run: FINISHED, KILLED (interrupted, cancelled) or FAILED, with the outcome as a tag, at the
        time at which the run has ended and not now."""
        if self.run is not None:
            self._check_database()
            self._client.set_tag(self._run_id, "descant.outcome", outcome)
            ended_at = self.run.ended_at or self._written_until_s
            self._client.set_terminated(self._run_id, _STATUS.get(outcome, "FAILED"), _as_ms(ended_at))
        self.run = None

    def _check_database(self) -> None:
        """SQLite would still write to a file that was deleted."""
        if (database := _database(self.tracking_uri)) is not None and not database.exists():
            raise FileNotFoundError(f"{self.tracking_uri} was deleted")

    def _name(self, key: str) -> str:
        """The key's name in MLflow. Where two keys of a run would have the same one, the second gets a hash."""
        name = mlflow_name(key)
        if self._keys.setdefault(name, key) == key:
            return name
        return with_hash(name[: _MAX_NAME_LENGTH - 13], key)

    def _experiment(self) -> str:
        """The id of the experiment, which is made if it is not there."""
        experiment = self._client.get_experiment_by_name(self.project_name)
        if experiment is None:
            try:
                return str(self._client.create_experiment(self.project_name, tags=self.experiment_tags))
            except import_module("mlflow.exceptions").MlflowException:
                experiment = self._client.get_experiment_by_name(self.project_name)  # another client was quicker
                if experiment is None:
                    raise
        if experiment.lifecycle_stage != "active":
            command = f"mlflow experiments restore --experiment-id {experiment.experiment_id}"
            raise ConfigurationError(f"the MLflow experiment {self.project_name!r} is deleted; restore it: {command}")
        for key, value in self.experiment_tags.items():
            self._client.set_experiment_tag(experiment.experiment_id, key, value)
        return str(experiment.experiment_id)


def _as_ms(seconds: float | None) -> int | None:
    return None if seconds is None else round(seconds * 1000)


def _absolute(tracking_uri: str) -> str:
    """The same database, also if a callback changes the working directory."""
    database = _database(tracking_uri)
    return tracking_uri if database is None else f"{_SQLITE}{database.absolute()}"


def _database(tracking_uri: str) -> Path | None:
    """The file, where it is told by its path alone: not ``:memory:``, nor with options."""
    path = tracking_uri.removeprefix(_SQLITE)
    return None if path == tracking_uri or set(path) & set(":?") else Path(path)


def _check_uri(tracking_uri: str) -> None:
    """Refuse what MLflow would refuse only at the first write, or take for a database in the working directory."""
    if not tracking_uri:
        raise ConfigurationError(f"tracking_uri={tracking_uri!r} is empty: use sqlite:///mlflow.db, or http://...")
    is_folder = "://" not in tracking_uri or tracking_uri.startswith("file:")
    if is_folder and tracking_uri != "databricks" and os.environ.get("MLFLOW_ALLOW_FILE_STORE", "").lower() != "true":
        raise ConfigurationError(
            f"tracking_uri={tracking_uri!r} is a folder, which MLflow no longer writes to: use a database such "
            "as sqlite:///mlflow.db, or set MLFLOW_ALLOW_FILE_STORE=true"
        )


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return printable(text, _MAX_VALUE_LENGTH)[:_MAX_VALUE_LENGTH]


def _tag_name(key: str) -> str:
    """MLflow's own tags, one of which renames a run, cannot be set by a metric, nor can descant's."""
    return mlflow_name(f"metric.{key}" if key.startswith(("mlflow.", "descant.")) else key)


def mlflow_name(key: str) -> str:
    """The key if MLflow takes it, else a name made from it, always the same.

    MLflow takes letters, digits and ``_ - . :``, space and ``/`` between parts that are not empty, ``.`` or ``..``, 250
    in all. ``@`` becomes ``_at_``, ``%`` ``_percent_``, and other characters their code in hexadecimal. An empty part
    becomes ``_``, a part of dots only gets ``_`` at its end, and a name that begins with two dots ``_`` in front. The
    end of a name that is too long becomes a hash.

    >>> mlflow_name("validation/pass@4"), mlflow_name("a//b+c")
    ('validation/pass_at_4', 'a/_/b_x2b_c')
    """
    name = re.sub(r"[^\w.\- :/]", _spelled, key)
    name = "/".join(f"{part}_" if set(part) <= {"."} else part for part in name.split("/"))
    if name.startswith(".."):
        name = f"_{name}"
    return name if len(name) <= _MAX_NAME_LENGTH else with_hash(name[: _MAX_NAME_LENGTH - 13], key)


def _spelled(found: re.Match[str]) -> str:
    return {"@": "_at_", "%": "_percent_"}.get(found[0], f"_x{ord(found[0]):x}_")
