"""The overhead of a run's callbacks, as a table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from rich.text import Text

from descant.cli.grid import grid_lines
from descant.runlog.run_reader import MetricSummary
from descant.text import cell_text

_HEADERS = ("callback", "runs", "failed", "s per run", "total s", "of the run")
_WHERE_ANY = {
    "num_failed_samples": "failed samples",
    "busy_s": "s async",
    "num_skipped": "skipped",
    "num_replaced": "replaced",
    "num_deferred": "deferred",
}
"""Columns of runs that have such calls: samples that failed in calls that did not, the mean seconds of an asynchronous
call, and how many were not made."""


def cost_lines(metrics: Mapping[str, MetricSummary], callbacks: Sequence[str], width: int) -> Iterator[Text]:
    """The table of runs, failures and stalls by callback, as last recorded; ``callbacks`` come first."""
    costs: dict[str, dict[str, MetricSummary]] = {}
    for key, metric in metrics.items():
        if key.startswith("callbacks/"):
            name, _, cost = key.removeprefix("callbacks/").rpartition("/")
            costs.setdefault(name, {})[cost] = metric
    others = {key: header for key, header in _WHERE_ANY.items() if any(key in cost for cost in costs.values())}
    rows = [_row(name, costs[name], others) for name in dict.fromkeys([*callbacks, *costs]) if name in costs]
    if rows:
        headers = (*_HEADERS, *others.values())
        yield from grid_lines(headers, rows, width, right=headers[1:])


def _row(name: str, cost: Mapping[str, MetricSummary], others: Mapping[str, str]) -> list[str]:
    latest = {
        key: metric.total / metric.num_points if key == "busy_s" else float(metric.last[1])
        for key, metric in cost.items()
    }
    num_runs, total_s = latest.get("num_runs", 0), latest.get("total_s", 0)
    return [
        name,
        cell_text(num_runs),
        cell_text(latest.get("num_failed", 0)),
        cell_text(total_s / num_runs if num_runs else None),
        cell_text(total_s),
        f"{latest.get('time_fraction', 0):.1%}",
        *(cell_text(latest.get(key)) for key in others),
    ]
