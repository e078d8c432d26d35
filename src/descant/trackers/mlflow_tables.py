"""MLFlowTables: tables of a run that grow, as JSON artifacts that MLflow shows as tables."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from descant.table import Table
from descant.text import shortened
from descant.trackers.rows import without_nan

_MAX_PART_LENGTH = 1_000_000
_MAX_TAG_LENGTH = 8000
_MAX_FILE_NAME = 200  # bytes of a part of a path; most file systems take 255, with the suffix
_TABLES_TAG = "mlflow.loggedArtifacts"


class MLFlowTables:
    """The tables of one run. An artifact is written as a whole, so a table continues in another one after a megabyte.

    They are written as ``MlflowClient.log_table`` writes them, but without pandas, which rounds floats and turns
    integers in a column with None into floats.

    Args:
        client: an ``MlflowClient``.
        run_id: MLflow's.
    """

    def __init__(self, client: Any, run_id: str) -> None:
        self._client = client
        self._run_id = run_id
        self._parts: dict[str, tuple[int, Table]] = {}  # of each table, the number and the rows of the last part

    def append(self, name: str, rows: Table) -> None:
        """Add rows, which have their step. Rows that are there already, from an attempt that failed or was killed after
        it had written them, are not added again."""
        new = Table(rows.headers, [[without_nan(cell) for cell in row] for row in rows.rows])
        if not new.rows:
            return
        number, table = self._parts.get(name) or self._last_part(name)
        if table.headers == new.headers and _has(table.rows, new.rows):
            return
        if table.rows and (table.headers != new.headers or len(_as_json(table)) > _MAX_PART_LENGTH):
            number, table = number + 1, Table(new.headers)
        grown = Table(new.headers, [*table.rows, *new.rows])
        path = _path(name, number)
        self._client.log_text(self._run_id, _as_json(grown), path)
        self._parts[name] = (number, grown)
        self._announce(path)

    def merge_json(self, path: str, values: Mapping[str, Any]) -> None:
        """Add to the JSON object of an artifact, which is made if it is not there."""
        text = json.dumps({**(self._read(path) or {}), **values}, indent=2, default=str)
        self._client.log_text(self._run_id, text, path)

    def _last_part(self, name: str) -> tuple[int, Table]:
        number, last = 1, Table()
        while (stored := self._read(_path(name, number))) is not None:
            last = Table(stored["columns"], stored["data"])
            number += 1
        return max(1, number - 1), last

    def _read(self, path: str) -> Any:
        folder = path.rpartition("/")[0] or None
        if all(artifact.path != path for artifact in self._client.list_artifacts(self._run_id, folder)):
            return None
        with tempfile.TemporaryDirectory() as scratch:
            return json.loads(Path(self._client.download_artifacts(self._run_id, path, scratch)).read_text("utf-8"))

    def _announce(self, path: str) -> None:
        """Tell MLflow's pages that an artifact is a table."""
        tags = self._client.get_run(self._run_id).data.tags
        known = json.loads(tags.get(_TABLES_TAG, "[]"))
        entry = {"path": path, "type": "table"}
        text = json.dumps([*known, entry])
        if entry not in known and len(text) <= _MAX_TAG_LENGTH:
            self._client.set_tag(self._run_id, _TABLES_TAG, text)


def _has(rows: list[list[Any]], wanted: list[list[Any]]) -> bool:
    """Whether rows are among others, one below the other."""
    return any(row == wanted[0] and rows[at : at + len(wanted)] == wanted for at, row in enumerate(rows))


def _path(name: str, number: int) -> str:
    name = "/".join(shortened(part, _MAX_FILE_NAME) for part in name.split("/"))
    return f"tables/{name}.json" if number == 1 else f"tables/{name}-{number}.json"


def _as_json(table: Table) -> str:
    return json.dumps({"columns": table.headers, "data": table.rows})
