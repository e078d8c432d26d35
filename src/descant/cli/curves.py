"""The metrics of a run as curves, one line each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from itertools import pairwise
from math import isfinite, isinf
from statistics import mean
from typing import Any

from rich.cells import cell_len
from rich.text import Text

from descant.cli.grid import cut, grid_lines
from descant.errors import ConfigurationError
from descant.metrics import MetricSpec, find_spec
from descant.runlog.run_reader import MetricSummary
from descant.text import cell_text, figure, printable

HIDDEN = ("callbacks/", "progress/", "completion_percentage")
"""Metrics that are shown in the table of costs, or in the head."""
_WIDEST = 40
_NARROWEST = 10
_WIDTH_WITH_UNITS = 100
_LONGEST_TEXT = 12
_NUMBERS = ("first", "last", "min", "max")


def curve_lines(
    metrics: Mapping[str, MetricSummary],
    specs: Sequence[MetricSpec],
    callbacks: Mapping[str, Any],
    pattern: str | None,
    width: int,
) -> Iterator[Text]:
    """One line per metric, grouped by prefix: training, the callbacks in their order, others; headline metrics first.

    ``specs`` is what the run declares of its metrics, ``callbacks`` has the prefix of each callback's keys by name.
    """
    groups: dict[str, list[MetricSummary]] = {}
    for metric in choose_metrics(metrics, pattern):
        groups.setdefault(_group(metric.key, callbacks), []).append(metric)
    declared = {metric.key: find_spec(specs, metric.key) or MetricSpec(metric.key) for metric in metrics.values()}
    rows: list[list[str] | str] = []
    drawn: list[tuple[list[str], MetricSummary]] = []
    for group in sorted(groups, key=lambda group: _rank(group, callbacks)):
        rows.append(_title(group, callbacks))
        calls = [metrics.get(f"callbacks/{name}/num_runs") for name, prefix in callbacks.items() if prefix == group]
        latest_step = max(metric.last[0] for metric in (*groups[group], *calls) if metric)
        for metric in sorted(groups[group], key=lambda metric: not declared[metric.key].headline):
            name = printable(metric.key.removeprefix(f"{group}/" if group else ""))
            unit = declared[metric.key].unit if width >= _WIDTH_WITH_UNITS else ""
            row = [name, "", *_numbers(metric), _note(metric, unit, latest_step)]
            rows.append(row)
            drawn.append((row, metric))
    headers = ["", "", *_NUMBERS, ""]
    columns = zip(headers, *(row for row, _ in drawn), strict=True)
    left = width - sum(2 + max(map(cell_len, column)) for column in columns)
    for row, metric in drawn:
        widest = max(_NARROWEST, min(_WIDEST, left))
        if isinstance(metric.last[1], str):
            row[1] = cut(metric.last[1], widest)
        elif metric.num_points > 1:
            row[1] = sparkline(metric.curve, widest)
    if rows:
        yield from grid_lines(headers, rows, width, right=_NUMBERS, has_keys=True)


def choose_metrics(metrics: Mapping[str, MetricSummary], pattern: str | None) -> list[MetricSummary]:
    """The metrics whose key contains the pattern, or matches it; without one those that are shown as curves."""
    if pattern is None:
        return [metric for key, metric in metrics.items() if not key.startswith(HIDDEN)]
    is_glob = bool(set(pattern) & set("*?["))
    chosen = [m for key, m in metrics.items() if (fnmatchcase(key, pattern) if is_glob else pattern in key)]
    if not chosen:
        raise ConfigurationError(f"no metric matches {pattern!r}; the keys are: {', '.join(metrics) or 'none'}")
    return chosen


def _numbers(metric: MetricSummary) -> list[str]:
    """First, last, minimum and maximum; a single point is only the last."""
    if isinstance(metric.last[1], str):
        return ["", "", "", ""]
    if metric.num_points == 1:
        return ["", figure(metric.last[1]), "", ""]
    values = (metric.first[1], metric.last[1], metric.minimum, metric.maximum)
    return [printable(cell_text(value), _LONGEST_TEXT) for value in values]


def _note(metric: MetricSummary, unit: str, latest_step: int) -> str:
    """The unit, how many values are NaN, and the last step if others of the group, or a call that failed, are newer."""
    notes = [printable(unit)] if unit else []
    notes += [f"{metric.num_nan:,} NaN"] if metric.num_nan else []
    if metric.last[0] < latest_step:
        notes.append(f"at step {metric.last[0]:,}")
    return ", ".join(notes)


def _group(key: str, callbacks: Mapping[str, Any]) -> str:
    """The longest prefix of a callback that the key has, or else what is before its first slash."""
    owned = [prefix for prefix in callbacks.values() if prefix and key.startswith(f"{prefix}/")]
    return max(owned, key=len) if owned else key.rpartition("/")[0].partition("/")[0]


def _rank(group: str, callbacks: Mapping[str, Any]) -> tuple[int, str]:
    if group == "training":
        return -1, group
    prefixes = list(callbacks.values())
    return (prefixes.index(group) if group in prefixes else len(prefixes)), group


def _title(group: str, callbacks: Mapping[str, Any]) -> str:
    names = [name for name, prefix in callbacks.items() if prefix == group]
    if not group:
        return "without a prefix"
    return group if names in ([], [group]) else f"{group} (from {', '.join(names)})"


_LEVELS = "▁▂▃▄▅▆▇█"
_NOT_FINITE = "×"


def sparkline(values: Sequence[float], width: int) -> str:
    """The values as blocks of eight heights, from their own minimum to their maximum, on at most ``width`` characters.

    More values than that are drawn as the means of ``width`` parts of about the same length. A part with a NaN or an
    infinity is a ×. Values that are all the same are a flat line.
    """
    if len(values) > width:
        borders = [part * len(values) // width for part in range(width + 1)]
        values = [mean(values[start:end]) for start, end in pairwise(borders)]
    finite = [value for value in values if isfinite(value)]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    scale = 0.5 if isinf(high - low) else 1.0  # a range beyond the largest float
    span = high * scale - low * scale
    return "".join(
        _LEVELS[min(7, int((value * scale - low * scale) / (span or 1.0) * 8))] if isfinite(value) else _NOT_FINITE
        for value in values
    )
