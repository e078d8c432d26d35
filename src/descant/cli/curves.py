"""The metrics of a run as curves, one line each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from itertools import pairwise
from math import isfinite, isinf, nan
from typing import Any

from rich.cells import cell_len
from rich.text import Text

from descant.cli.grid import cut, grid_lines
from descant.errors import ConfigurationError
from descant.runlog.run_reader import MetricSummary
from descant.text import figure, printable

_HIDDEN = ("callbacks/", "progress/", "completion_percentage")  # costs have a table of their own
_WIDEST = 40
_NARROWEST = 10
_LONGEST_TEXT = 12
_NUMBERS = ("first", "last", "min", "max")


def curve_lines(
    metrics: Mapping[str, MetricSummary], callbacks: Mapping[str, Any], pattern: str | None, width: int
) -> Iterator[Text]:
    """One line per metric, grouped by prefix: training, the callbacks in their order (name to prefix), others.

    ``pattern`` is a part of a key, or with ``*`` or ``?`` a pattern for a whole one.

    Raises:
        ConfigurationError: nothing matches the pattern.
    """
    groups: dict[str, list[MetricSummary]] = {}
    for metric in _choose(metrics, pattern):
        groups.setdefault(_group(metric.key, callbacks), []).append(metric)
    members: dict[str, list[_Row]] = {}
    for group in sorted(groups, key=lambda group: _rank(group, callbacks)):
        latest_step = max(metric.last[0] for metric in groups[group])
        members[group] = [_Row(metric, group, latest_step) for metric in groups[group]]
    name_width, curve_width = _share([row for of_group in members.values() for row in of_group], width)
    rows: list[Sequence[str] | str] = []
    for group, of_group in members.items():
        rows.append(_title(group, callbacks))
        rows += [row.cells(name_width, curve_width) for row in of_group]
    if rows:
        yield from grid_lines(["", "", *_NUMBERS, ""], rows, width, right=_NUMBERS)


class _Row:
    """The cells of one metric; the curve gets the width that the others leave."""

    def __init__(self, metric: MetricSummary, group: str, latest_step: int) -> None:
        self.name = printable(metric.key.removeprefix(f"{group}/" if group else ""))
        self.numbers = _numbers(metric)
        self.note = _note(metric, latest_step)
        self._metric = metric

    def cells(self, name_width: int, curve_width: int) -> list[str]:
        """Name (its end, which tells it from others, if it is too long), curve or the latest text, numbers, note."""
        name = self.name if len(self.name) <= name_width else f"…{self.name[1 - name_width :]}"
        last = self._metric.last[1]
        curve = sparkline(self._metric.curve, curve_width) if self._metric.num_points > 1 else ""
        return [name, cut(last, curve_width) if isinstance(last, str) else curve, *self.numbers, self.note]


def _choose(metrics: Mapping[str, MetricSummary], pattern: str | None) -> list[MetricSummary]:
    if pattern is None:
        return [metric for key, metric in metrics.items() if not key.startswith(_HIDDEN)]
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
    return [_value_text(value) for value in values]


def _value_text(value: float | str | None) -> str:
    if isinstance(value, str):
        return printable(value, _LONGEST_TEXT)
    return "" if value is None else figure(value)


def _note(metric: MetricSummary, latest_step: int) -> str:
    """What the numbers do not say: how many are NaN, and that the last one is older than others of its group."""
    notes = [f"{metric.num_nan:,} NaN"] if metric.num_nan else []
    if metric.last[0] < latest_step:
        notes.append(f"at step {metric.last[0]:,}")
    return ", ".join(notes)


def _share(rows: Sequence[_Row], width: int) -> tuple[int, int]:
    """The widths of names and of curves: what numbers and notes leave."""
    columns = [
        *([row.numbers[index] for row in rows] + [header] for index, header in enumerate(_NUMBERS)),
        [row.note for row in rows],
    ]
    taken = 2 + sum(2 + max(map(cell_len, column), default=0) for column in columns)
    available = width - taken - 2
    longest_name = max((len(row.name) for row in rows), default=0)
    curve_width = max(_NARROWEST, min(_WIDEST, available - longest_name))
    return max(_NARROWEST, available - curve_width), curve_width


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
        values = [_mean(values[start:end]) for start, end in pairwise(borders)]
    finite = [value for value in values if isfinite(value)]
    if not finite:
        return _NOT_FINITE * len(values)
    low, high = min(finite), max(finite)
    scale = 0.5 if isinf(high - low) else 1.0  # a range beyond the largest float
    span = high * scale - low * scale
    return "".join(
        _LEVELS[min(7, int((value * scale - low * scale) / (span or 1.0) * 8))] if isfinite(value) else _NOT_FINITE
        for value in values
    )


def _mean(values: Sequence[float]) -> float:
    """The mean, without overflow and not beyond the values, or NaN if one of them is not finite."""
    if not all(map(isfinite, values)):
        return nan
    return min(max(sum(value / len(values) for value in values), min(values)), max(values))
