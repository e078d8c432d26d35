"""``descant runs``: the runs of a directory, one line each."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from difflib import get_close_matches
from math import inf, isnan
from pathlib import Path
from typing import Any

from rich.text import Text

from descant.cli.grid import cut, grid_lines
from descant.errors import ConfigurationError, RunLogError
from descant.runlog.run_reader import RunReader, find_runs
from descant.text import duration, figure, printable

_USUAL_METRICS = ("training/loss", "validation/loss", "validation/rewards/score/mean")
SILENT_S = 120.0
_HEADERS = ("name", "trainer", "steps", "outcome", "took", "started")
_EXPENDABLE = ("started", "trainer", "took")


@dataclass(frozen=True, slots=True)
class ListOptions:
    """Which runs to list, and how: see the options of the command."""

    filters: Sequence[str] = ()
    sort: str | None = None
    descending: bool = False
    metrics: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class ListedRun:
    """What the list says of a run; ``broken`` says why it cannot be read."""

    name: str
    started_at: float
    broken: str | None = None
    trainer: str = ""
    steps: str = ""
    outcome: str = ""
    took_s: float = 0.0
    settings: Mapping[str, Any] = field(default_factory=dict)
    values: Mapping[str, float | str] = field(default_factory=dict)


def run_list_lines(directory: Path, options: ListOptions, width: int) -> Iterator[Text]:
    """The runs in a directory, newest first, with the last values of some metrics.

    Raises:
        ConfigurationError: there are no runs, none is what is wanted, or no run has a metric that is asked for.
    """
    paths = find_runs(directory)
    if not paths:
        hint = "it is one: descant show shows it" if (directory / "run.sqlite").is_file() else ""
        hint = hint or "descant runs DIR lists those of another directory"
        raise ConfigurationError(f"there are no runs in {directory}; {hint}")
    asked = list(dict.fromkeys([*options.metrics, *([options.sort] if options.sort else [])]))
    runs = [read_run(path, asked or _USUAL_METRICS) for path in paths]
    kept = [run for run in runs if all(_matches(run, wanted) for wanted in options.filters)]
    if not kept:
        raise _no_such_run(runs, directory, options.filters)
    columns = [key for key in asked or _USUAL_METRICS if any(key in run.values for run in kept)]
    for key in asked:
        if key not in columns:
            raise _no_such_metric(key, directory, paths)
    kept.sort(key=lambda run: run.started_at, reverse=True)
    if options.sort is not None:
        kept.sort(key=lambda run: _sort_value(run.values.get(options.sort or ""), descending=options.descending))
    yield from _table_lines(kept, columns, bool(asked), width)
    for run in kept:
        if run.broken is not None:
            yield Text(printable(f"  {run.name} is broken: {run.broken}"), style="red")


def _table_lines(runs: Sequence[ListedRun], metrics: Sequence[str], asked: bool, width: int) -> Iterator[Text]:
    """One line per run; the keys of metrics take two lines. Where it is narrow, columns are left out, never names."""
    columns = {header: ["", *(_facts(run)[header] for run in runs)] for header in _HEADERS}
    columns |= {key: [_tail(key), *(_value_text(run.values.get(key)) for run in runs)] for key in metrics}
    expendable = [*_EXPENDABLE, *([] if asked else reversed(metrics)), "steps", "outcome"]
    left_out = []
    while expendable and _natural_width(columns) > width:
        left_out.append(expendable.pop(0))
        del columns[left_out[-1]]
    headers = [_head(key) for key in columns]
    rows = list(zip(*columns.values(), strict=True))
    right = {"steps", "took", *(_head(key) for key in metrics)}
    yield from grid_lines(headers, rows if any(key in columns for key in metrics) else rows[1:], width, right=right)
    if left_out:
        yield Text(cut(f"  a wider terminal (or COLUMNS=160) shows also: {', '.join(left_out)}", width), style="dim")


def _natural_width(columns: Mapping[str, Sequence[str]]) -> int:
    return sum(2 + max(map(len, [_head(key), *cells])) for key, cells in columns.items())


def _head(key: str) -> str:
    """What stands over a column; of a metric its prefix."""
    return key.partition("/")[0]


def _tail(key: str) -> str:
    """The last parts of what stands behind the prefix."""
    return "/".join(key.split("/")[1:][-2:])


def read_run(path: Path, metrics: Sequence[str]) -> ListedRun:
    """What the list says of a run; a run that cannot be read is listed as broken."""
    try:
        with RunReader(path) as reader:
            planned = reader.config.get("num_steps")
            started_at = reader.started_at or reader.last_written_at
            return ListedRun(
                name=path.name,
                started_at=started_at,
                trainer=str(reader.config.get("trainer", "")),
                steps=f"{reader.latest_step:,}" + (f"/{planned:,}" if isinstance(planned, int) else ""),
                outcome=_outcome(reader),
                took_s=max(0.0, (reader.ended_at or reader.last_written_at) - started_at),
                settings=flattened(reader.config),
                values={key: value for key in metrics if (value := reader.last_value(key)) is not None},
            )
    except RunLogError as error:
        return ListedRun(name=path.name, started_at=(path / "run.sqlite").stat().st_mtime, broken=str(error))


def flattened(settings: Any, prefix: str = "") -> dict[str, Any]:
    """Nested settings as one level of dotted keys; of lists of named things (callbacks) the names are keys."""
    if isinstance(settings, list) and settings and all(isinstance(item, dict) and "name" in item for item in settings):
        settings = {str(item["name"]): {key: item[key] for key in item if key != "name"} for item in settings}
    if not isinstance(settings, dict) or not settings:
        return {prefix: settings} if prefix else {}
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= flattened(value, f"{prefix}.{key}" if prefix else str(key))
    return flat


def _outcome(reader: RunReader) -> str:
    if reader.outcome is not None:
        return reader.outcome
    silent_s = max(0.0, time.time() - reader.last_written_at)
    return "goes on" if silent_s < SILENT_S else f"silent for {duration(silent_s)}"


def _matches(run: ListedRun, wanted: str) -> bool:
    """Whether a run is what ``key=value`` or a text asks for; a key may be the end of a longer one (``lr``)."""
    facts = {"name": run.name, "trainer": run.trainer, "outcome": run.outcome, **run.settings}
    key, equals, value = wanted.partition("=")
    if not equals:
        texts = (run.name, run.trainer, run.outcome, str(run.settings.get("title", "")))
        return any(wanted.lower() in text.lower() for text in texts)
    return any(_is_equal(fact, value) for name, fact in facts.items() if name == key or name.endswith(f".{key}"))


def _no_such_run(runs: Sequence[ListedRun], directory: Path, filters: Sequence[str]) -> ConfigurationError:
    """What the filters ask for is in no run; a key that no run has is probably misspelt."""
    known = dict.fromkeys(part for run in runs for part in ("name", "trainer", "outcome", *_ends_of_keys(run.settings)))
    hint = ""
    for key in (wanted.partition("=")[0] for wanted in filters if "=" in wanted):
        if key not in known:
            close = get_close_matches(key, known, n=1)
            hint += f"; no run has the setting {key!r}" + (f", did you mean {close[0]!r}?" if close else "")
    return ConfigurationError(f"none of the {len(runs)} runs in {directory} matches {' and '.join(filters)}{hint}")


def _ends_of_keys(settings: Mapping[str, Any]) -> Iterator[str]:
    for key in settings:
        parts = key.split(".")
        yield from (".".join(parts[start:]) for start in range(len(parts)))


def _is_equal(fact: Any, value: str) -> bool:
    if isinstance(fact, bool) or fact is None:
        return value.lower() in (str(fact).lower(), *(["null"] if fact is None else []))
    try:
        return float(fact) == float(value)
    except (TypeError, ValueError):
        return str(fact) == value


def _sort_value(value: float | str | None, *, descending: bool) -> tuple[bool, float]:
    """Runs without a number come last."""
    if value is None or isinstance(value, str) or isnan(value):
        return True, inf
    return False, -value if descending else value


def _facts(run: ListedRun) -> dict[str, str]:
    """The cells of a run by header."""
    outcome = run.outcome if run.broken is None else "broken"
    took = duration(run.took_s) if run.broken is None else ""
    cells = (run.name, run.trainer, run.steps, outcome, took, _date(run.started_at))
    return dict(zip(_HEADERS, cells, strict=True))


def _value_text(value: float | str | None) -> str:
    return "" if value is None else value if isinstance(value, str) else figure(value)


def _date(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds):%Y-%m-%d %H:%M}"


def _no_such_metric(key: str, directory: Path, paths: Sequence[Path]) -> ConfigurationError:
    known: dict[str, None] = {}
    for path in paths[:10]:
        try:
            with RunReader(path) as reader:
                known |= dict.fromkeys(reader.keys())
        except RunLogError:
            continue
    close = get_close_matches(key, known, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(list(known)[:20]) or 'none'}"
    return ConfigurationError(f"no run in {directory} has the metric {key!r}; {hint}")
