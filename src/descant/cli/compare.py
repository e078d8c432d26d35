"""``descant runs compare``: where the settings of two runs differ, and their metrics side by side."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from rich.text import Text

from descant.cli.grid import grid_lines
from descant.cli.runs import flattened
from descant.runlog.run_reader import MetricSummary, RunReader
from descant.text import figure, printable

_FOLLOWS_FROM_OTHERS = ("plan", "title", "environment", "run_id", "trackers")
_HIDDEN = ("callbacks/", "progress/", "completion_percentage")
_LOW_IS_GOOD = ("loss", "perplexity", "num_failed")
_HIGH_IS_GOOD = ("reward", "score", "accuracy", "pass@", "per_s")
_IS_NO_MEASURE = ("std", "stderr", "count", "min", "max", "samples", "tokens", "prompts", "generated", "ignored")
_ABSENT = "–"


def comparison_lines(first: RunReader, second: RunReader, width: int) -> Iterator[Text]:
    """The settings that differ, then every metric with its last and best value in each run.

    The best value is the lowest of losses, perplexities and failures, and the highest of rewards, scores, accuracies
    and speeds; of others it is not known which values are good.
    """
    names = (first.run_dir.name, second.run_dir.name)
    if names[0] == names[1]:
        names = (str(first.run_dir), str(second.run_dir))
    differences = list(_differences(first.config, second.config))
    yield Text(printable(f"A is {names[0]}, B is {names[1]}"), style="dim")
    yield Text("\nsettings that differ", style="bold underline")
    if differences:
        of_key = width // 3 - 2  # what the grid leaves a column at least
        yield from grid_lines(["", "A", "B"], [[_end(key, of_key), *shown] for key, *shown in differences], width)
    else:
        yield Text("  none")
    rows = [
        [key, *_numbers(first.metrics.get(key)), *_numbers(second.metrics.get(key))]
        for key in sorted(first.metrics.keys() | second.metrics.keys())
        if not key.startswith(_HIDDEN)
    ]
    yield Text("\nmetrics", style="bold underline")
    if not rows:
        yield Text("  none")
        return
    headers = ("A last", "A best", "B last", "B best")
    columns = zip(headers, *(numbers for _, *numbers in rows), strict=True)
    of_key = max(width - 2 - sum(2 + max(map(len, column)) for column in columns), width // 5 - 2)
    rows = [[_end(key, of_key), *numbers] for key, *numbers in rows]
    yield from grid_lines(["", *headers], rows, width, right=headers)


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


def _end(key: str, width: int) -> str:
    """The key, or its end, which tells it from others, if it is too long."""
    return key if len(key) <= width else f"…{key[1 - width :]}"


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _numbers(metric: MetricSummary | None) -> list[str]:
    """Last and best value."""
    if metric is None:
        return [_ABSENT, _ABSENT]
    last = metric.last[1]
    best = None
    if not metric.key.endswith(_IS_NO_MEASURE):
        if any(word in metric.key for word in _LOW_IS_GOOD):
            best = metric.minimum
        elif any(word in metric.key for word in _HIGH_IS_GOOD):
            best = metric.maximum
    return [last if isinstance(last, str) else figure(last), "" if best is None else figure(best)]
