"""TrackioLogger: the local dashboard, kept in a SQLite file on this machine."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import import_module
from shlex import quote
from typing import Any

from descant.table import Table
from descant.text import with_hash
from descant.trackers.logger import RunInfo, TrackerLogger, require_extra
from descant.trackers.rows import MAX_CELL_LENGTH, bounded, checked_cell_length, tracker_rows

_NUMBER_NAMES = ("NaN", "Infinity", "-Infinity")


class TrackioLogger(TrackerLogger):
    """Writes to Trackio's local database; ``trackio show --project NAME`` opens the dashboard.

    Nothing is sent anywhere: neither a Space nor a server is used, also where ``TRACKIO_SPACE_ID`` or
    ``TRACKIO_SERVER_URL`` is set. Values have the step and time that they were recorded at. Each evaluation's table is
    an entry of its step. ``TRACKIO_DIR`` says where the database is.

    It is written through Trackio's storage and not ``trackio.log``, which drops what cannot be stored, takes no time,
    and knows one run per program.

    Args:
        project_name: of the dashboard.
        run_name: for people, since the run is found again by the id that descant gives it; by default the name of the
            run directory. It is also the name of the group of all runs that the logger is given.
        max_cell_length: characters of a string or a cell that are written.

    Raises:
        ConfigurationError: trackio is not installed.
    """

    tracker = "trackio"

    def __init__(
        self, project_name: str, run_name: str | None = None, *, max_cell_length: int = MAX_CELL_LENGTH
    ) -> None:
        require_extra("trackio", "TrackioLogger")
        self.project_name = project_name
        self.run_name = run_name
        self.max_cell_length = checked_cell_length(max_cell_length)
        self._config: dict[str, Any] = {}
        self._keys: dict[str, str] = {}
        self._identity: dict[str, str] = {}
        self._fragments: Any = None
        self._first_entry: str | None = None  # that was written since the run was started
        self._is_lost = False

    @property
    def viewer(self) -> str:
        """The dashboard."""
        return f"trackio show --project {quote(self.project_name)}"

    def start(self, run: RunInfo) -> None:
        """Check the project's name; the run appears with its first values.

        Raises:
            ValueError: Trackio refuses the name of the project.
        """
        _storage().validate_project_name(self.project_name)
        self._fragments = import_module("trackio.fragments").FragmentWriter()
        self.run = run
        self._identity = {"project": self.project_name, "run": self.name_of(run), "run_id": run.run_id}
        self._config = {}
        self.starts_empty, self._first_entry = self._is_lost or self._is_empty(), None
        self._is_lost = False
        self.write_config(run.config)

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Add settings to the run's config; those that begin with ``_``, as Trackio's own do, get an ``x`` in front."""
        self._config |= {f"x{key}" if key.startswith("_") else key: value for key, value in config.items()}
        now = datetime.now(UTC)
        own = {"_Username": None, "_Created": now.isoformat(), "_Group": self.run_name}
        self._store(0, now.timestamp(), {}, {**self._config, **own})

    def write(self, step: int, time_s: float, metrics: Mapping[str, float | str], tables: Mapping[str, Table]) -> None:
        """Store one row of values."""
        values: dict[str, Any] = {}
        for key, value in metrics.items():
            values[self._name(key)] = _plain(bounded(value, self.max_cell_length)) if isinstance(value, str) else value
        for key, table in tables.items():
            shown = tracker_rows(table, step, self.max_cell_length)
            stored = import_module("trackio").Table(columns=shown.headers, data=shown.rows)
            values[self._name(key)] = stored._to_dict(project=self.project_name, run=self._identity["run"], step=step)
        self._store(step, time_s, values)

    def finish(self, outcome: str) -> None:
        """The outcome becomes part of the run's config."""
        if self.run is not None and self._was_deleted():
            self._is_lost = True
            raise FileNotFoundError(f"the run was deleted from Trackio's project {self.project_name}")
        if self.run is not None:
            self.write_config({"outcome": outcome})
        self.run = None

    def _name(self, key: str) -> str:
        """The key with dots in place of all slashes but the first, since Trackio draws what has more of them in a box
        below all other charts of its group. Names that Trackio reserves get ``__`` in front, as Trackio itself does
        it. Where two keys of a run would have one name, the second gets a hash."""
        group, slash, rest = key.partition("/")
        name = f"{group}{slash}{rest.replace('/', '.')}"
        if name in import_module("trackio.utils").RESERVED_KEYS or name.startswith("__"):
            name = f"__{name}"
        return name if self._keys.setdefault(name, key) == key else with_hash(name, key)

    def _is_empty(self) -> bool:
        """Whether Trackio has nothing of the run; on a network file system that is not known before it has collected
        its fragments."""
        is_known = import_module("trackio.utils").get_storage_mode() != "jsonl"
        return is_known and not _storage().get_log_count(**self._identity)

    def _was_deleted(self) -> bool:
        """Whether the first entry that was written is not there any more: a database is made anew by the next one."""
        if self._first_entry is None:
            return not self.starts_empty and self._is_empty()
        path = _storage().get_project_db_path(self.project_name)
        if not path.exists():
            return True
        with _storage()._get_connection(path) as connection:
            query = "SELECT count(*) FROM metrics WHERE log_id = ?"
            return not connection.execute(query, (self._first_entry,)).fetchone()[0]

    def _store(self, step: int, time_s: float, values: dict[str, Any], config: dict[str, Any] | None = None) -> None:
        timestamp = datetime.fromtimestamp(time_s, UTC).isoformat()
        entry = {**self._identity, "metrics": values, "step": step}
        # values of a step that are written again after a failure get the same id, and are not stored twice
        digest = hashlib.sha256(json.dumps(entry, sort_keys=True).encode()).hexdigest()[:32]
        if import_module("trackio.utils").get_storage_mode() == "jsonl":  # on a network file system
            entry |= {"timestamp": timestamp, "config": config, "log_id": digest}
            self._fragments.write_local([import_module("trackio.fragments").metric_record(entry)])
            return
        if values and not _storage().get_project_db_path(self.project_name).exists():
            raise FileNotFoundError(f"the database of Trackio's project {self.project_name} was deleted")
        _storage().bulk_log(
            **self._identity,
            metrics_list=[values],
            steps=[step],
            timestamps=[timestamp],
            config=config,
            log_ids=[digest],
        )
        if values:
            self._first_entry = self._first_entry or digest


def _storage() -> Any:
    return import_module("trackio.sqlite_storage").SQLiteStorage


def _plain(text: str) -> str:
    """Text that Trackio takes as text: with a space in front of what it would read as a number or as a media file."""
    return f" {text}" if text in _NUMBER_NAMES or text.startswith("{") else text
