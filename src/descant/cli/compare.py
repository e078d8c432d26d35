"""``descant runs compare``: where the settings of two runs differ, and their metrics side by side."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from rich.text import Text

from descant.cli.curves import HIDDEN
from descant.cli.grid import grid_lines
from descant.cli.runs import declared_metrics, settings_of
from descant.cli.side_by_side import Row, side_by_side_lines
from descant.metrics import MetricSpec, find_spec
from descant.runlog.run_reader import MetricSummary, RunReader
from descant.text import cell_text, printable

_FOLLOWS_FROM_OTHERS = ("title", "run_id", "trackers", "environment.command_line", "environment.recipe.run_name")
_CONFIG = "environment.recipe.config."
_OWN_NAMES = {
    "arguments.learning_rate": "lr",
    "arguments.num_train_epochs": "epochs",
    "arguments.lr_scheduler_type": "lr_scheduler.name",
}
"""Of arguments of other trainers that are settings of the run, too."""
_MAX_MEMBERS = 4
_ABSENT = "–"
_Both = tuple[Any, Any]
_Metric = tuple[str, MetricSpec, MetricSummary | None, MetricSummary | None]


def comparison_lines(first: RunReader, second: RunReader, width: int) -> Iterator[Text]:
    """The settings that differ, then every metric with its last and best value in each run, headline metrics first."""
    names = (first.run_dir.name, second.run_dir.name)
    if names[0] == names[1]:
        names = (str(first.run_dir), str(second.run_dir))
    yield Text(printable(f"A is {names[0]}, B is {names[1]}"), style="dim")
    yield Text("\nsettings that differ", style="bold underline")
    differences = _grouped(_differences(first, second), [_settings(reader).keys() for reader in (first, second)])
    yield from side_by_side_lines(differences, width) if differences else [Text("  none")]
    yield Text("\nmetrics", style="bold underline")
    rows = [
        [key, *(cell_text(value) for of_run in (a, b) for value in _last_and_best(of_run, spec))]
        for key, spec, a, b in _metrics(first, second)
    ]
    headers = ("A last", "A best", "B last", "B best")
    yield from grid_lines(["", *headers], rows, width, right=headers, has_keys=True) if rows else [Text("  none")]


def comparison(first: RunReader, second: RunReader) -> dict[str, Any]:
    """The same for programs; what a run does not have is null."""
    return {
        **{name: {"name": run.run_dir.name, "path": str(run.run_dir)} for name, run in (("a", first), ("b", second))},
        "settings": [{"key": key, "a": a, "b": b} for key, (a, b) in _differences(first, second).items()],
        "metrics": [
            {"key": key, "unit": spec.unit, "better": spec.better, "a": _values(a, spec), "b": _values(b, spec)}
            for key, spec, a, b in _metrics(first, second)
        ],
    }


def _differences(first: RunReader, second: RunReader) -> dict[str, _Both]:
    """The settings that differ by dotted key, those of the recipe first; None is one that a run does not have."""
    one, other = (_settings(reader) for reader in (first, second))
    keys = sorted(dict.fromkeys([*one, *other]), key=lambda key: not key.startswith("config."))
    found = {key: (one.get(key), other.get(key)) for key in keys if one.get(key) != other.get(key)}
    return {key: pair for key, pair in found.items() if not _is_repeated(key, found)}


def _settings(reader: RunReader) -> dict[str, Any]:
    """The settings without what every run has of its own; those of the recipe's config under shorter names."""
    settings = {
        f"config.{key.removeprefix(_CONFIG)}" if key.startswith(_CONFIG) else key: value
        for key, value in settings_of(reader).items()
    }
    return {key: value for key, value in settings.items() if not key.startswith(_FOLLOWS_FROM_OTHERS)}


def _is_repeated(key: str, found: Mapping[str, _Both]) -> bool:
    """Whether the same difference is listed under a name that goes first: ``lr`` is in the config of the recipe and in
    the scheduler, too."""
    name = _OWN_NAMES.get(key, key).rpartition(".")[2]
    for other in (name, f"config.{name}", f"lr_scheduler.{name}"):
        if other == key:
            return False
        if found.get(other) == found[key]:
            return True
    return False


def _grouped(pairs: Mapping[str, _Both], keys: Sequence[Collection[str]]) -> list[Row]:
    """The rows to show. Many settings of something that only one of the runs has (a callback) are one row."""
    parts = [{key[:end] for key in of_run for end in _ends(key)} for of_run in keys]
    groups: dict[str, list[str]] = {}
    for key in pairs:
        alone = next((key[:end] for end in _ends(key) if (key[:end] in parts[0]) != (key[:end] in parts[1])), key)
        groups.setdefault(alone, []).append(key)
    rows: list[Row] = []
    for group, members in groups.items():
        if len(members) <= _MAX_MEMBERS:
            rows += [(key, *map(_shown, pairs[key])) for key in members]
        else:
            has = f"{len(members)} settings"
            rows.append((group, has, _ABSENT) if group in parts[0] else (group, _ABSENT, has))
    return rows


def _ends(key: str) -> list[int]:
    """Where the parts of a dotted key end."""
    return [index for index, character in enumerate(key) if character == "."] + [len(key)]


def _shown(value: Any) -> str:
    return _ABSENT if value is None else value if isinstance(value, str) else json.dumps(value)


def _metrics(first: RunReader, second: RunReader) -> list[_Metric]:
    """Every metric with its declaration and its summary in each run, headline metrics first."""
    declared = declared_metrics(first.config) + declared_metrics(second.config)
    keys = sorted(key for key in first.metrics.keys() | second.metrics.keys() if not key.startswith(HIDDEN))
    found = [
        (key, find_spec(declared, key) or MetricSpec(key), first.metrics.get(key), second.metrics.get(key))
        for key in keys
    ]
    return sorted(found, key=lambda metric: not metric[1].headline)


def _last_and_best(metric: MetricSummary | None, spec: MetricSpec) -> tuple[float | str | None, float | str | None]:
    if metric is None:
        return _ABSENT, _ABSENT
    return metric.last[1], {"lower": metric.minimum, "higher": metric.maximum, None: None}[spec.better]


def _values(metric: MetricSummary | None, spec: MetricSpec) -> dict[str, Any] | None:
    if metric is None:
        return None
    last, best = _last_and_best(metric, spec)
    return {"step": metric.last[0], "last": last, "best": best}
