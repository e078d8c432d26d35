"""RunReader: what a run has measured so far, read from its run log without touching it."""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from descant.errors import ConfigurationError, RunLogError
from descant.runlog.journal import Record, decode_cells, point_value, read_records
from descant.runlog.parts import Part, read_parts
from descant.runlog.run_log import FORMAT
from descant.text import did_you_mean

if TYPE_CHECKING:
    import pandas  # type: ignore[import-untyped]

_REASON = re.compile(r"(?:stopped|interrupted) \((.*)\) after \d+ of \d+ steps", re.DOTALL)
_ENDS = ("completed", "stopped", "interrupted", "failed", "cancelled")
_MAX_NAMES = 8
NUM_RECORDS_AT_ONCE = 200
"""Records that are read together."""
_WHERE = ("callback", "step", "key", "position", "example_id")


@dataclass(frozen=True, slots=True)
class MetricSummary:
    """A metric over the whole run.

    Attributes:
        key: the full key.
        num_points: steps at which it was recorded; ``num_nan`` of them are NaN.
        minimum, maximum: of its numbers, None without any (NaN is not one, infinity is).
        total: the sum of its numbers.
        first, last: (step, value) of the first and the last point; a value may be a string.
        curve: its numbers in the order of steps; in runs of more than 320 steps the mean of each 320th of the
            steps. A part with a NaN or an infinity is NaN.
    """

    key: str
    num_points: int
    num_nan: int
    minimum: float | None
    maximum: float | None
    total: float
    first: tuple[int, float | str]
    last: tuple[int, float | str]
    curve: Sequence[float]


@dataclass(frozen=True, slots=True)
class SampleRow:
    """One row of a table that a callback returned at a step, with its cells by column."""

    callback: str
    step: int
    key: str
    example_id: str
    position: int
    cells: dict[str, Any]


@dataclass(frozen=True, slots=True)
class RunEvent:
    """An event of a run; ``time`` is in seconds since 1970, ``details`` a traceback or a listing."""

    time: float
    step: int
    kind: str
    source: str
    message: str
    details: str | None


@dataclass(frozen=True, slots=True)
class Sink:
    """How far a tracker was given a run, and as which of its own runs.

    Attributes:
        offset: number of the last record that it was given.
        run_id: the id under which it has the run.
        suffix: what is added to the logger's run name there: see ``RunInfo``.
    """

    offset: int
    run_id: str
    suffix: str


class RunReader:
    """Reads a run log, also while it is written: the run as it was when the reader was opened.

    No file in the run directory is created or changed, and the run does not wait. It is a context manager. See
    docs/run-log.md.

    Args:
        path: the run directory, or the ``run.sqlite`` in it.

    Raises:
        RunLogError: there is no such run (the message has the names that are close), it is not a run, another version
            of descant wrote it, or the file is damaged; the last also from every property and method.
    """

    def __init__(self, path: str | Path) -> None:
        path = Path(path)
        self.path = path / "run.sqlite" if path.is_dir() else path
        """The file of the run log."""
        self.run_dir = self.path.parent
        """The run directory."""
        if not self.path.is_file():
            raise RunLogError(_describe_missing(path))
        self._copy: TemporaryDirectory[str] | None = None
        self._connection: sqlite3.Connection | None = None
        try:
            self._connection = self._open()
            self._check_format()
        except BaseException:
            self.close()
            raise

    def __repr__(self) -> str:
        return f"RunReader({str(self.run_dir)!r})"

    def close(self) -> None:
        """Close the file."""
        if self._connection is not None:
            self._connection.close()
        if self._copy is not None:
            self._copy.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()

    @cached_property
    def config(self) -> dict[str, Any]:
        """The settings of the run; empty if it was killed before they were recorded."""
        return {key: self._from_json(value) for key, value in self._query("SELECT key, value FROM config")}

    @cached_property
    def latest_step(self) -> int:
        """The latest step with metrics; 0 without any."""
        return int(self._query("SELECT coalesce(max(step), 0) FROM points")[0][0])

    @cached_property
    def events(self) -> list[RunEvent]:
        """The events of the run, in order."""
        rows = self._query("SELECT time, step, kind, source, message, details FROM events ORDER BY id")
        return [RunEvent(*row) for row in rows]

    @property
    def started_at(self) -> float | None:
        """When the run started, in seconds since 1970, or None if that was not recorded."""
        return self.events[0].time if self.events else None

    @property
    def ended_at(self) -> float | None:
        """When the run ended, in seconds since 1970; None for a run that has not ended or was killed."""
        end = self._end()
        return None if end is None else end.time

    @property
    def outcome(self) -> str | None:
        """``completed``, ``stopped``, ``interrupted``, ``failed`` or ``cancelled``; None for a run that has not ended
        or was killed."""
        end = self._end()
        return None if end is None else end.kind.removeprefix("run_")

    @property
    def reason(self) -> str | None:
        """Why a run was stopped or interrupted, if it was."""
        match = _REASON.match("" if (end := self._end()) is None else end.message)
        return match and match[1]

    @property
    def last_written_at(self) -> float:
        """When the run last wrote to its log, in seconds since 1970; ``descant sync``, which does too, is no run."""
        times = [
            row[0]
            for table in ("events", "records")
            for row in self._query(f"SELECT time FROM {table} ORDER BY id DESC LIMIT 1")
        ]
        written_at = last_written_at(self.path)
        return min(written_at, float(max(times))) if times else written_at

    @cached_property
    def metrics(self) -> dict[str, MetricSummary]:
        """Every metric over the whole run, by key in alphabetical order."""
        parts: dict[str, list[Part]] = {}
        with self._reading() as connection:
            for part in read_parts(connection):
                parts.setdefault(part.key, []).append(part)
        return {key: self._summarize(key, of_key) for key, of_key in sorted(parts.items())}

    def keys(self) -> dict[str, int]:
        """The keys of the metrics and at how many steps each was recorded."""
        return {key: summary.num_points for key, summary in self.metrics.items()}

    def series(self, key: str) -> dict[int, float | str]:
        """A metric by step; empty if there is none of that key."""
        rows = self._query("SELECT step, number, text FROM metrics WHERE key = ? ORDER BY step", key)
        return {step: point_value(number, text) for step, number, text in rows}

    def last_value(self, key: str) -> float | str | None:
        """A metric at its latest step; None if there is none of that key."""
        rows = self._query("SELECT number, text FROM metrics WHERE key = ? ORDER BY step DESC LIMIT 1", key)
        return point_value(*rows[0]) if rows else None

    @cached_property
    def sample_steps(self) -> dict[tuple[str, str], list[int]]:
        """The tables that callbacks returned, as (callback, key), each with its steps."""
        steps: dict[tuple[str, str], list[int]] = {}
        for callback, key, step in self._query("SELECT DISTINCT callback, key, step FROM samples ORDER BY 1, 2, 3"):
            steps.setdefault((callback, key), []).append(step)
        return steps

    def samples(
        self, callback: str | None = None, step: int | None = None, example_id: str | None = None
    ) -> list[SampleRow]:
        """The rows of tables that callbacks returned, in the order of steps: all, or of one callback, step, example."""
        wanted = {"callback": callback, "step": step, "example_id": example_id}
        given = {column: value for column, value in wanted.items() if value is not None}
        where = f"WHERE {' AND '.join(f'{column} = ?' for column in given)}" if given else ""
        columns = "callback, step, key, example_id, position, cells"
        rows = self._query(
            f"SELECT {columns} FROM samples {where} ORDER BY step, callback, key, position", *given.values()
        )
        return [
            SampleRow(name, at, table, example, position, self._from_json(cells, decode_cells))
            for name, at, table, example, position, cells in rows
        ]

    def to_pandas(self, *keys: str) -> pandas.DataFrame:
        """The metrics as a DataFrame with one row per step and one column per key, all of them or those given.

        A key that was not recorded at a step is NaN there, as a value that was NaN is; ``series`` tells them apart.

        Raises:
            ConfigurationError: pandas is not installed, or there is no metric of that key.
        """
        pandas = _import_pandas()
        points: dict[str, dict[int, float | str]] = {key: {} for key in keys}
        for step, key, number, text in self._query("SELECT step, key, number, text FROM metrics ORDER BY step"):
            if not keys or key in points:
                points.setdefault(key, {})[step] = point_value(number, text)
        if missing := [key for key in keys if not points[key]]:
            hint = did_you_mean(missing[0], self.keys(), f"there are: {', '.join(self.keys()) or 'none'}")
            raise ConfigurationError(f"the run has no metric {missing[0]!r}; {hint}")
        steps = sorted({step for by_step in points.values() for step in by_step})
        columns = {key: pandas.Series(points[key]) for key in keys or sorted(points)}
        return pandas.DataFrame(columns, index=pandas.Index(steps, name="step"))

    def samples_to_pandas(
        self, callback: str | None = None, step: int | None = None, example_id: str | None = None
    ) -> pandas.DataFrame:
        """``samples`` as a DataFrame with one row per row of a table: its ``callback``, ``step``, ``key``, ``position``
        and ``example_id``, then its cells by column. A cell whose column has one of these names is ``cells.<name>``.

        Raises:
            ConfigurationError: pandas is not installed.
        """
        pandas = _import_pandas()
        rows = []
        for row in self.samples(callback, step, example_id):
            where = {name: getattr(row, name) for name in _WHERE}
            cells = {f"cells.{name}" if name in where else name: cell for name, cell in row.cells.items()}
            if cells.get("cells.example_id") == row.example_id:
                del cells["cells.example_id"]
            rows.append({**where, **cells})
        return pandas.DataFrame(rows, columns=None if rows else _WHERE)

    def records(self, offset: int = 0) -> Iterator[Record]:
        """Everything that was recorded, call by call, after record number ``offset``."""
        with self._reading() as connection:
            while records := read_records(connection, offset, NUM_RECORDS_AT_ONCE):
                yield from records
                offset = records[-1].id

    @cached_property
    def sinks(self) -> dict[str, Sink]:
        """How far each tracker was given the run."""
        return {name: Sink(*rest) for name, *rest in self._query("SELECT * FROM sinks ORDER BY name")}

    def example_ids(self, callback: str) -> list[str]:
        """The ids of a callback's examples, in the order in which they first appeared."""
        return [example_id for name, example_id in self._examples("callback = ?", callback) if name == callback]

    def find_examples(self, text: str) -> list[tuple[str, str]]:
        """(callback, example id) of what ``text`` is: an id, else a part of a prompt, else the beginning of an id."""
        return (
            self._examples("example_id = ?", text)
            or self._examples("instr(json_extract(cells, '$.prompt'), ?)", text)
            or self._examples("instr(example_id, ?) = 1", text)
        )

    def _examples(self, condition: str, argument: str) -> list[tuple[str, str]]:
        return self._query(
            f"SELECT callback, example_id FROM samples WHERE {condition} GROUP BY callback, example_id "
            "ORDER BY callback, min(step), min(position)",
            argument,
        )

    def _open(self) -> sqlite3.Connection:
        """A read-only connection that creates no file, in a transaction.

        SQLite creates the files of its write-ahead log even for a reader, unless it is told that the file is immutable
        (it is, once the run has removed them) or that they are to be taken as they are. Where that cannot work (a run
        that was killed, copied without its ``-shm`` file; a transaction to roll back), a temporary copy is read.
        """
        try:
            if not Path(f"{self.path}-wal").exists():
                return self._connect(self.path, "mode=ro&immutable=1" if self._is_in_wal_mode() else "mode=ro")
            if Path(f"{self.path}-shm").exists():
                return self._connect(self.path, "mode=ro&readonly_shm=1")
        except OSError as error:
            raise RunLogError(f"the run log {self.path} cannot be read: {error}") from error
        except sqlite3.OperationalError:
            pass  # the run has just ended, or there is something to roll back
        except sqlite3.DatabaseError as error:
            raise RunLogError(f"{self.path} is not a run log, or is damaged: {error}") from error
        return self._open_copy()

    def _is_in_wal_mode(self) -> bool:
        """Not to be called while this process writes the run log: closing the file would drop SQLite's locks on it
        (https://www.sqlite.org/howtocorrupt.html, 2.2)."""
        with self.path.open("rb") as file:
            return file.read(20)[18:19] == b"\x02"  # https://www.sqlite.org/fileformat.html, 1.3.3

    def _open_copy(self) -> sqlite3.Connection:
        self._copy = TemporaryDirectory(prefix="descant-run-log-")
        try:
            for suffix in ("", "-wal", "-journal"):
                if (part := Path(f"{self.path}{suffix}")).exists():
                    shutil.copy(part, Path(self._copy.name) / f"run.sqlite{suffix}")
            return self._connect(Path(self._copy.name) / "run.sqlite", "mode=rw")
        except (OSError, sqlite3.DatabaseError) as error:
            raise RunLogError(f"the run log {self.path} cannot be read: {error}") from error

    @staticmethod
    def _connect(path: Path, parameters: str) -> sqlite3.Connection:
        connection = sqlite3.connect(f"{path.absolute().as_uri()}?{parameters}", uri=True, isolation_level=None)
        try:
            connection.execute("BEGIN")  # so that all answers are about the same moment
            connection.execute("SELECT count(*) FROM sqlite_master").fetchall()
        except BaseException:
            connection.close()
            raise
        return connection

    def _check_format(self) -> None:
        tables = {name for (name,) in self._query("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if not tables:
            raise RunLogError(f"{self.path} is empty: its run was killed as it began, or begins just now")
        if missing := {"config", "events"} - tables:
            raise RunLogError(f"{self.path} is an SQLite file but not a run log: it has no table {min(missing)!r}")
        ((version,),) = self._query("PRAGMA user_version")
        if version != FORMAT:
            raise RunLogError(
                f"the run log {self.path} has format {version}, and this version of descant reads format {FORMAT}: "
                "read it with the version that wrote it"
            )

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        assert self._connection is not None
        try:
            yield self._connection
        except (sqlite3.DatabaseError, ValueError, KeyError) as error:
            raise self._damaged(error) from error

    def _query(self, sql: str, *arguments: Any) -> list[Any]:
        with self._reading() as connection:
            return connection.execute(sql, arguments).fetchall()

    def _damaged(self, error: Exception) -> RunLogError:
        if isinstance(error, sqlite3.ProgrammingError):
            return RunLogError(f"the reader of {self.path} is closed")
        return RunLogError(
            f"the run log {self.path} is damaged ({error}); `sqlite3 {self.path} .recover` may save the rest"
        )

    def _from_json(self, text: str, decode: Callable[[str], Any] = json.loads) -> Any:
        try:
            return decode(text)
        except ValueError as error:
            raise RunLogError(f"the run log {self.path} is damaged: {text[:60]!r} is not JSON ({error})") from error

    def _end(self) -> RunEvent | None:
        """The event that ended the run, if nothing was started after it."""
        marks = [event for event in self.events if event.kind.startswith("run_")]
        return marks[-1] if marks and marks[-1].kind.removeprefix("run_") in _ENDS else None

    def _summarize(self, key: str, parts: Sequence[Part]) -> MetricSummary:
        return MetricSummary(
            key=key,
            num_points=sum(part.num_points for part in parts),
            num_nan=sum(part.num_nan for part in parts),
            minimum=min((part.minimum for part in parts if part.minimum is not None), default=None),
            maximum=max((part.maximum for part in parts if part.maximum is not None), default=None),
            total=sum(part.sum for part in parts),
            first=self._point(key, parts[0].first_step),
            last=self._point(key, parts[-1].last_step),
            curve=[part.mean for part in parts if part.num_numbers or part.num_nan],
        )

    def _point(self, key: str, step: int) -> tuple[int, float | str]:
        (value,) = self._query("SELECT number, text FROM metrics WHERE step = ? AND key = ?", step, key)
        return step, point_value(*value)


def _import_pandas() -> Any:
    try:
        import pandas  # noqa: PLC0415
    except ImportError:
        raise ConfigurationError(
            "a DataFrame needs pandas, which is not installed: pip install 'descant[pandas]'"
        ) from None
    return pandas


def find_runs(directory: Path) -> list[Path]:
    """The runs in a directory, the one that was last written first; none if there is no such directory."""
    runs = [path.parent for path in directory.glob("*/run.sqlite")]
    return sorted(runs, key=lambda run: last_written_at(run / "run.sqlite"), reverse=True)


def last_written_at(path: Path) -> float:
    """When the file of a run log, or of its write-ahead log, was changed; 0 if it cannot be found out."""
    times = []
    for file in (path, Path(f"{path}-wal")):
        with suppress(OSError):  # it is not there, or has just gone
            times.append(file.stat().st_mtime)
    return max(times, default=0.0)


def _describe_missing(path: Path) -> str:
    if path.is_dir():
        runs = [run.name for run in find_runs(path)]
        what = f"{path} is not a run: there is no run.sqlite in it"
        return f"{what}; it has the runs {_listed(runs)}" if runs else what
    runs = [run.name for run in find_runs(path.parent)]
    what = f"there is no run {path}"
    if close := get_close_matches(path.name, runs, n=3, cutoff=0.5):
        return f"{what}; did you mean {' or '.join(str(path.parent / name) for name in close)}?"
    return f"{what}; the runs in {path.parent} are {_listed(runs)}" if runs else f"{what}, nor any other beside it"


def _listed(names: Sequence[str]) -> str:
    rest = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    return ", ".join(names[:_MAX_NAMES]) + rest
