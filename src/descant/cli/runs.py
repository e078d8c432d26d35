"""``descant runs``: the runs of a directory, one line each."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from math import inf, isnan
from pathlib import Path
from typing import Any

from rich.text import Text

from descant.cli.grid import cut, grid_lines
from descant.errors import ConfigurationError, DescantError, RunLogError
from descant.metrics import MetricSpec
from descant.runlog.run_reader import RunReader, find_runs, last_written_at
from descant.settings import flattened
from descant.text import cell_text, did_you_mean, duration, printable

SILENT_S = 120.0
"""A run that has not ended and was not written for so long is not running any more."""
_MAX_SHOWN = 8
_WIDE = 1000
_HEADERS = ("name", "trainer", "steps", "outcome", "took", "started")
_EXPENDABLE = ("started", "trainer", "took")


@dataclass(frozen=True, slots=True)
class ListedRun:
    """A run of the list: its cells by header, its config as dotted keys, last values of metrics, why it is broken."""

    facts: Mapping[str, str]
    started_at: float
    took_s: float | None = None
    step: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    values: Mapping[str, float | str] = field(default_factory=dict)
    broken: str | None = None


def run_list_lines(
    directory: Path,
    width: int,
    *,
    filters: Sequence[str] = (),
    sort: str | None = None,
    descending: bool = False,
    metrics: Sequence[str] = (),
) -> Iterator[Text]:
    """The runs in a directory, newest first, with the last values of metrics: see the options of the command."""
    asked = list(dict.fromkeys([*metrics, *([sort] if sort else [])]))
    kept = _chosen_runs(directory, filters, sort, descending, asked)
    measured = dict.fromkeys(key for run in kept for key in run.values)
    yield from _table_lines(kept, asked or list(measured), bool(asked), width)
    for run in kept:
        if run.broken is not None:
            yield Text(printable(f"  {run.facts['name']} is broken: {run.broken}"), style="red")


def run_list(
    directory: Path,
    *,
    filters: Sequence[str] = (),
    sort: str | None = None,
    descending: bool = False,
    metrics: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """The same for programs, with all settings by dotted keys."""
    asked = list(dict.fromkeys([*metrics, *([sort] if sort else [])]))
    return [
        {
            "name": run.facts["name"],
            "path": str(directory / run.facts["name"]),
            "trainer": run.facts["trainer"] or None,
            "outcome": run.facts["outcome"],
            "step": run.step,
            "num_steps": run.settings.get("num_steps"),
            "started_at": datetime.fromtimestamp(run.started_at).astimezone().isoformat(timespec="seconds"),
            "seconds": run.took_s,
            "metrics": dict(run.values),
            "settings": dict(run.settings),
            "problem": run.broken,
        }
        for run in _chosen_runs(directory, filters, sort, descending, asked)
    ]


def _chosen_runs(
    directory: Path, filters: Sequence[str], sort: str | None, descending: bool, asked: Sequence[str]
) -> list[ListedRun]:
    """The runs of a directory that match, in order."""
    paths = find_runs(directory)
    if not paths:
        hint = "it is one: descant show shows it" if (directory / "run.sqlite").is_file() else ""
        hint = hint or "descant runs DIR lists those of another directory"
        raise ConfigurationError(f"there are no runs in {directory}; {hint}")
    runs = [read_run(path, asked) for path in paths]
    kept = [run for run in runs if all(_matches(run, wanted) for wanted in filters)]
    if not kept:
        raise _no_such_run(runs, directory, filters)
    kept.sort(key=lambda run: run.started_at, reverse=True)
    measured = dict.fromkeys(key for run in kept for key in run.values)
    for key in asked:
        if key not in measured:
            raise _no_such_metric(key, directory, paths)
    if sort is not None:
        kept.sort(key=lambda run: _sort_value(run.values.get(sort), descending=descending))
    return kept


def _table_lines(runs: Sequence[ListedRun], metrics: Sequence[str], asked: bool, width: int) -> Iterator[Text]:
    """One line per run; the keys of metrics take two lines. Where it is narrow, columns are left out, never names."""
    columns = {header: ["", *(run.facts[header] for run in runs)] for header in _HEADERS}
    columns |= {key: [_tail(key), *(cell_text(run.values.get(key)) for run in runs)] for key in metrics}
    expendable = [*_EXPENDABLE, *([] if asked else reversed(metrics)), "steps", "outcome"]
    left_out = []
    while expendable and sum(2 + max(map(len, [_head(key), *cells])) for key, cells in columns.items()) > width:
        left_out.append(expendable.pop(0))
        del columns[left_out[-1]]
    headers = [_head(key) for key in columns]
    rows = list(zip(*columns.values(), strict=True))
    right = {"steps", "took", *(_head(key) for key in metrics)}
    yield from grid_lines(headers, rows if any(key in columns for key in metrics) else rows[1:], width, right=right)
    if left_out:
        yield Text(cut(f"  a wider terminal (or COLUMNS=160) shows also: {', '.join(left_out)}", width), style="dim")


def short_lines(paths: Sequence[Path]) -> Iterator[Text]:
    """What tells some runs apart, newest first: name, steps, outcome, start, learning rate."""
    runs = sorted((read_run(path, ["training/loss"]) for path in paths), key=lambda run: run.started_at, reverse=True)
    headers = ("name", "steps", "outcome", "started", "lr")
    shown = runs[:_MAX_SHOWN]
    rows = [[*(run.facts[header] for header in headers[:-1]), cell_text(run.settings.get("lr"))] for run in shown]
    yield from grid_lines(headers, rows, _WIDE)
    if len(runs) > _MAX_SHOWN:
        yield Text(f"  and {len(runs) - _MAX_SHOWN} older ones")


def _head(key: str) -> str:
    """The header of a column; of a metric its prefix."""
    return key.partition("/")[0]


def _tail(key: str) -> str:
    """The last parts of a key behind its prefix."""
    return "/".join(key.split("/")[1:][-2:])


def read_run(path: Path, metrics: Sequence[str]) -> ListedRun:
    """A run for the list; one that cannot be read is listed as broken."""
    try:
        with RunReader(path) as reader, foreign_content_as_error(reader):
            started_at = reader.started_at or reader.last_written_at
            took_s = max(0.0, (reader.ended_at or reader.last_written_at) - started_at)
            planned = reader.config.get("num_steps")
            steps = f"{reader.latest_step:,}" + (f"/{planned:,}" if isinstance(planned, int) else "")
            trainer = str(reader.config.get("trainer", ""))
            facts = (path.name, trainer, steps, _outcome(reader), duration(took_s), date(started_at))
            keys = metrics or [spec.key for spec in declared_metrics(reader.config) if spec.headline and spec.better]
            values = {key: value for key in keys if (value := reader.last_value(key)) is not None}
            cells = dict(zip(_HEADERS, facts, strict=True))
            return ListedRun(cells, started_at, took_s, reader.latest_step, settings_of(reader), values)
    except RunLogError as error:
        written_at = last_written_at(path / "run.sqlite")
        facts = (path.name, "", "", "broken", "", date(written_at))
        return ListedRun(dict(zip(_HEADERS, facts, strict=True)), written_at, broken=str(error))


@contextmanager
def foreign_content_as_error(*readers: RunReader) -> Iterator[None]:
    """A run log may hold what no run of this version writes: that is an error of the log, and not of who reads it."""
    try:
        yield
    except (TypeError, ValueError, KeyError, AttributeError, OverflowError, IndexError) as error:
        if isinstance(error, DescantError):
            raise
        reason = f"{type(error).__name__}: {error}"
        paths = " or ".join(str(reader.path) for reader in readers)
        raise RunLogError(f"{paths} holds what a run of this version does not ({reason})") from error


def declared_metrics(config: Mapping[str, Any]) -> list[MetricSpec]:
    """What the trainer and the callbacks of a run declare, from its config: single keys, then families."""
    specs = [MetricSpec(**declared) for declared in config.get("metrics") or ()]
    return sorted(specs, key=lambda spec: "*" in spec.key)


def settings_of(reader: RunReader) -> dict[str, Any]:
    """The settings of a run by dotted keys. If the scheduler does not say its learning rate (a function), ``lr`` is the
    highest that was used so far."""
    settings = flattened({key: value for key, value in reader.config.items() if key not in ("metrics", "plan")})
    if "lr" not in settings and (used := reader.metrics.get("training/learning_rate")) and used.maximum is not None:
        settings["lr"] = used.maximum
    return settings


def _outcome(reader: RunReader) -> str:
    if reader.outcome is not None:
        return reader.outcome
    silent_s = max(0.0, time.time() - reader.last_written_at)
    return "running" if silent_s < SILENT_S else f"silent for {duration(silent_s)}"


def _matches(run: ListedRun, wanted: str) -> bool:
    """Whether a run matches ``key=value`` or a text; a key may be the end of a longer one (``batch_size``)."""
    key, equals, value = wanted.partition("=")
    if not equals:
        texts = [*(run.facts[header] for header in ("name", "trainer", "outcome")), str(run.settings.get("title", ""))]
        return any(wanted.lower() in text.lower() for text in texts)
    facts = {**run.facts, **run.settings}
    if key in facts:  # the run's own lr, and not that of something in it
        return _is_equal(facts[key], value)
    return any(_is_equal(fact, value) for name, fact in facts.items() if name.endswith(f".{key}"))


def _is_equal(fact: Any, value: str) -> bool:
    """Numbers are compared as such, texts without case; of a path the last parts are enough."""
    try:
        if float(fact) == float(value):
            return True
    except (TypeError, ValueError):
        pass
    text, wanted = str(fact).lower(), value.lower()
    return text == wanted or text.endswith(f"/{wanted}") or (fact is None and wanted == "null")


def _sort_value(value: float | str | None, *, descending: bool) -> tuple[bool, float]:
    """Runs without a number come last."""
    if value is None or isinstance(value, str) or isnan(value):
        return True, inf
    return False, -value if descending else value


def date(seconds: float) -> str:
    """The minute of a time in seconds since 1970."""
    return f"{datetime.fromtimestamp(seconds):%Y-%m-%d %H:%M}"


def _no_such_run(runs: Sequence[ListedRun], directory: Path, filters: Sequence[str]) -> ConfigurationError:
    """No run matches the filters; a key that no run has is probably misspelt."""
    keys = [key.split(".") for run in runs for key in (*run.facts, *run.settings)]
    known = {".".join(parts[start:]) for parts in keys for start in range(len(parts))}
    hint = ""
    for key in (wanted.partition("=")[0] for wanted in filters if "=" in wanted):
        if key not in known:
            within = [".".join(parts) for parts in keys if f".{key}." in f".{'.'.join(parts)}"]
            close = did_you_mean(key, known)
            close = f"it has parts: {', '.join(dict.fromkeys(within[:_MAX_SHOWN]))}" if within else close
            hint += f"; no run has the setting {key!r}" + (close and f", {close}")
    return ConfigurationError(f"none of the {len(runs)} runs in {directory} matches {' and '.join(filters)}{hint}")


def _no_such_metric(key: str, directory: Path, paths: Sequence[Path]) -> ConfigurationError:
    known: dict[str, None] = {}
    for path in paths[:10]:
        try:
            with RunReader(path) as reader:
                known |= dict.fromkeys(reader.keys())
        except RunLogError:
            continue
    hint = did_you_mean(key, known, f"there are: {', '.join(list(known)[:20]) or 'none'}")
    return ConfigurationError(f"no run in {directory} has the metric {key!r}; {hint}")
