"""TBMetricsLogger: TensorBoard event files, written without TensorFlow or torch."""

from __future__ import annotations

import re
import string
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from importlib import import_module
from math import copysign, inf
from pathlib import Path
from shlex import quote
from typing import Any

from descant.errors import ConfigurationError
from descant.table import Table
from descant.text import printable, shortened
from descant.trackers.logger import OWN_GROUP, RunInfo, TrackerLogger, require_extra
from descant.trackers.rows import MAX_CELL_LENGTH, bounded, checked_cell_length, tracker_rows

_RUN_ID_FILE = "descant-run-id"
_EVENT_FILES = "events.out.tfevents.*"
_MAX_FOLDER_NAME = 200  # bytes; most file systems take 255, and a part of an id may be added
_LARGEST_FLOAT32 = 3.4028235e38
_ESCAPES = str.maketrans({character: f"&#{ord(character)};" for character in string.punctuation})


class TBMetricsLogger(TrackerLogger):
    """Writes to ``<logging_dir>/<run_name>``: numbers as scalars, strings, tables and the config as text.

    Values have the step and time that they were recorded at. Each evaluation's table is one text of that step. Nothing
    in a text is taken for Markdown or HTML. Scalars are float32, as in all of TensorBoard: a larger number is shown as
    infinity. TensorBoard keeps 10 texts per tag in memory unless it is started with ``--samples_per_plugin text=1000``.

    Args:
        run_name: the folder of the first run that the logger is given; that of the second is ``<run_name>-2``. None:
            each run's folder is called like the run directory. Where another run has that folder already, ``-`` and the
            start of the run's id are added.
        logging_dir: what ``tensorboard --logdir`` is given.
        monitoring_link: where that TensorBoard is.
        max_cell_length: characters of a string or a cell that are written.

    Raises:
        ConfigurationError: tensorboard is not installed, or the name leads out of the folder.
    """

    tracker = "tensorboard"

    def __init__(
        self,
        run_name: str | None,
        logging_dir: str | Path,
        monitoring_link: str | None = None,
        *,
        max_cell_length: int = MAX_CELL_LENGTH,
    ) -> None:
        require_extra("tensorboard", "TBMetricsLogger")
        if run_name is not None and (not run_name or Path(run_name).is_absolute() or ".." in Path(run_name).parts):
            raise ConfigurationError(f"run_name={run_name!r} is no name for a folder in {logging_dir}: use letters")
        self.run_name = run_name
        self._given_dir = logging_dir
        self.logging_dir = Path(logging_dir).absolute()  # a callback may change the working directory
        self.max_cell_length = checked_cell_length(max_cell_length)
        self._link = monitoring_link
        self._writer: Any = None
        self._file = Path()
        self._size = 0

    @property
    def training_monitoring_link(self) -> str | None:
        """The link that was given."""
        return self._link

    @property
    def viewer(self) -> str:
        """TensorBoard, with the tables of all evaluations."""
        return f"tensorboard --logdir {quote(str(self._given_dir))} --samples_per_plugin text=1000"

    def start(self, run: RunInfo) -> None:
        """Open an event file in the run's folder; a run that is continued gets another one there."""
        is_gone = self._writer is not None and self._is_gone()
        self._close_writer()
        writers = import_module("tensorboard.summary.writer.event_file_writer")
        parts = (shortened(part, _MAX_FOLDER_NAME) for part in Path(self.name_of(run)).parts)
        folder = _claim_folder(self.logging_dir.joinpath(*parts), run.run_id)
        self.starts_empty = is_gone or not any(folder.glob(_EVENT_FILES))
        self._writer = writers.EventFileWriter(str(folder))
        self._file, self._size = Path(self._writer._file_name), 0
        self.run = run
        self.write_config(run.config)

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Write the settings as a table of the text ``z_descant/config``, at step 0: behind those of evaluations."""
        if config:
            rows = [[key, bounded(str(value), self.max_cell_length)] for key, value in config.items()]
            self._add([self._text(f"{OWN_GROUP}/config", markdown_table(["setting", "value"], rows))], step=0)

    def write(self, step: int, time_s: float, metrics: Mapping[str, float | str], tables: Mapping[str, Table]) -> None:
        """Write and flush one event with everything of the step."""
        values = [self._value(key, value) for key, value in metrics.items()]
        for key, table in tables.items():
            shown = tracker_rows(table, step, self.max_cell_length)
            values.append(self._text(key, markdown_table(shown.headers, shown.rows)))
        self._add(values, step, time_s)

    def finish(self, outcome: str) -> None:
        """Write the outcome as text and close the event file."""
        if self._writer is not None:
            self._add([self._text(f"{OWN_GROUP}/outcome", _markdown(outcome))], step=0)
        self._close_writer()
        self.run = None

    def _value(self, key: str, value: float | str) -> Any:
        if isinstance(value, str):
            return self._text(key, _markdown(bounded(value, self.max_cell_length)))
        number = float(value)
        if abs(number) > _LARGEST_FLOAT32:
            number = copysign(inf, number)
        return _proto("summary").Summary.Value(tag=key, simple_value=number)

    def _text(self, key: str, markdown: str) -> Any:
        metadata = import_module("tensorboard.plugins.text.metadata").create_summary_metadata(None, None)
        tensor = _proto("tensor").TensorProto(dtype=_proto("types").DT_STRING, string_val=[markdown.encode()])
        return _proto("summary").Summary.Value(tag=key, tensor=tensor, metadata=metadata)

    def _add(self, values: Sequence[Any], step: int, time_s: float | None = None) -> None:
        self._check_file()  # or the writer's own thread would raise, and print it
        summary = _proto("summary").Summary(value=values)
        event = _proto("event").Event(wall_time=time_s or time.time(), step=step, summary=summary)
        self._writer.add_event(event)
        self._writer.flush()
        self._size += event.ByteSize()
        self._check_file()

    def _check_file(self) -> None:
        if self._is_gone():
            raise FileNotFoundError(f"{self._file} was deleted")

    def _is_gone(self) -> bool:
        """Whether the event file is not there, or has less than was written: it is made again when it was deleted."""
        return not self._file.exists() or self._file.stat().st_size < self._size

    def _close_writer(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            with suppress(FileNotFoundError) if self._is_gone() else nullcontext():
                writer.close()


def _proto(name: str) -> Any:
    return import_module(f"tensorboard.compat.proto.{name}_pb2")


def _claim_folder(folder: Path, run_id: str) -> Path:
    """The folder of a run: the one of its name, or, if that is another run's, one with a part of the run's id."""
    for end in ("", f"-{run_id[:8]}", f"-{run_id}"):
        candidate = folder.with_name(f"{folder.name}{end}")
        candidate.mkdir(parents=True, exist_ok=True)
        owner = candidate / _RUN_ID_FILE
        if not owner.exists() and not any(candidate.glob(_EVENT_FILES)):
            owner.write_text(run_id, encoding="utf-8")
        if owner.exists() and owner.read_text(encoding="utf-8") == run_id:
            return candidate
    raise ConfigurationError(f"{folder} belongs to another run: choose another run_name")


def markdown_table(headers: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table for TensorBoard's text page, in which nothing of the cells is taken for Markdown or HTML."""
    first, *others = ([_markdown("" if cell is None else str(cell)) for cell in line] for line in (headers, *rows))
    return "\n".join(f"| {' | '.join(line)} |" for line in (first, ["---"] * len(headers), *others))


def _markdown(text: str) -> str:
    """Text that Markdown shows as it is: what could be markup becomes entities, line ends become breaks."""
    shown = "<br>".join(printable(line).translate(_ESCAPES) for line in text.split("\n"))
    return re.sub("^ |(?<= ) ", "&#160;", shown)
