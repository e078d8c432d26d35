"""What the callbacks of a run cost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from rich.text import Text

from descant.cli.grid import grid_lines
from descant.runlog.run_reader import MetricSummary
from descant.text import figure

_HEADERS = ("callback", "runs", "failed", "s per run", "total s", "of the run")
_WHERE_ANY = {"busy_s": "s beside", "num_skipped": "skipped", "num_replaced": "replaced", "num_deferred": "deferred"}
"""Columns of runs that have such calls: seconds that one takes beside training, and those that were not made."""


def cost_lines(
    metrics: Mapping[str, MetricSummary], callbacks: Sequence[str], run_s: float, width: int
) -> Iterator[Text]:
    """The table of runs, failures and seconds that training waited, by callback; ``callbacks`` come first, in order.

    Where calls went on beside training, or were not made, there are columns for that.
    """
    costs: dict[str, dict[str, MetricSummary]] = {}
    for key, metric in metrics.items():
        if key.startswith("callbacks/"):
            name, _, cost = key.removeprefix("callbacks/").rpartition("/")
            costs.setdefault(name, {})[cost] = metric
    order = [name for name in callbacks if name in costs] + [name for name in costs if name not in callbacks]
    others = {key: header for key, header in _WHERE_ANY.items() if any(key in cost for cost in costs.values())}
    rows = [[name, *_row(costs[name], run_s), *(_other(costs[name], key) for key in others)] for name in order]
    if rows:
        headers = (*_HEADERS, *others.values())
        yield from grid_lines(headers, rows, width, right=headers[1:])


def _row(cost: Mapping[str, MetricSummary], run_s: float) -> list[str]:
    stall = cost.get("stall_s")
    num_runs = _latest(cost, "num_runs", stall.num_points if stall else 0)
    total_s = _latest(cost, "total_s", stall.total if stall else 0.0)
    share = _latest(cost, "time_fraction", total_s / run_s if run_s > 0 else 0.0)
    num_failed = _latest(cost, "num_failed", 0)
    mean_s = figure(total_s / num_runs) if num_runs else ""
    return [figure(num_runs), figure(num_failed), mean_s, figure(total_s), f"{share:.1%}"]


def _other(cost: Mapping[str, MetricSummary], key: str) -> str:
    """A count so far, or the mean of seconds; nothing where there are none."""
    metric = cost.get(key)
    if metric is None or isinstance(metric.last[1], str):
        return ""
    return figure(metric.total / metric.num_points if key == "busy_s" else metric.last[1])


def _latest(cost: Mapping[str, MetricSummary], key: str, otherwise: float) -> float:
    """The latest value that the runner has recorded, or what follows from the single calls."""
    value = cost[key].last[1] if key in cost else otherwise
    return otherwise if isinstance(value, str) else value
