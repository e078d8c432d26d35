"""``descant runs compare``: where the settings of two runs differ, and their metrics side by side."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from rich.text import Text

from descant.cli.curves import HIDDEN
from descant.cli.grid import grid_lines
from descant.cli.runs import declared_metrics, flattened
from descant.metrics import MetricSpec, find_spec
from descant.runlog.run_reader import MetricSummary, RunReader
from descant.text import cell_text, printable

_FOLLOWS_FROM_OTHERS = ("plan", "title", "environment", "run_id", "trackers", "metrics")
_ABSENT = "–"


def comparison_lines(first: RunReader, second: RunReader, width: int) -> Iterator[Text]:
    """The settings that differ, then every metric with its last and best value in each run, headline metrics first."""
    names = (first.run_dir.name, second.run_dir.name)
    if names[0] == names[1]:
        names = (str(first.run_dir), str(second.run_dir))
    yield Text(printable(f"A is {names[0]}, B is {names[1]}"), style="dim")
    yield Text("\nsettings that differ", style="bold underline")
    differences = list(_differences(first.config, second.config))
    yield from grid_lines(["", "A", "B"], differences, width, has_keys=True) if differences else [Text("  none")]
    yield Text("\nmetrics", style="bold underline")
    rows = _metric_rows(first, second)
    headers = ("A last", "A best", "B last", "B best")
    yield from grid_lines(["", *headers], rows, width, right=headers, has_keys=True) if rows else [Text("  none")]


def _metric_rows(first: RunReader, second: RunReader) -> list[list[str]]:
    declared = declared_metrics(first.config) + declared_metrics(second.config)
    keys = sorted(first.metrics.keys() | second.metrics.keys())
    specs = {key: find_spec(declared, key) or MetricSpec(key) for key in keys}
    return [
        [key, *_numbers(first.metrics.get(key), spec), *_numbers(second.metrics.get(key), spec)]
        for key, spec in sorted(specs.items(), key=lambda item: not item[1].headline)
        if not key.startswith(HIDDEN)
    ]


def _differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> Iterator[list[str]]:
    flat = [flattened(_chosen(config)) for config in (first, second)]
    for key in dict.fromkeys([*flat[0], *flat[1]]):
        shown = [_shown(settings[key]) if key in settings else _ABSENT for settings in flat]
        if shown[0] != shown[1]:
            yield [key, *shown]


def _chosen(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings, those of the recipe first; of the environment what is not different in every run."""
    environment = dict(config.get("environment") or {})
    recipe = environment.pop("recipe", None) or {}
    environment.pop("command_line", None)
    others = {key: value for key, value in config.items() if key not in _FOLLOWS_FROM_OTHERS}
    chosen = {"recipe": recipe.get("name"), "config": recipe.get("config"), **others, "environment": environment}
    return {key: value for key, value in chosen.items() if value is not None}


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _numbers(metric: MetricSummary | None, spec: MetricSpec) -> list[str]:
    """Last and best value."""
    if metric is None:
        return [_ABSENT, _ABSENT]
    best = {"lower": metric.minimum, "higher": metric.maximum, None: None}[spec.better]
    return [cell_text(metric.last[1]), cell_text(best)]
