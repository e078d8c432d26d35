"""What the callbacks of a run cost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from rich.text import Text

from descant.cli.figures import figure
from descant.cli.grid import grid_lines
from descant.loggers.run_reader import MetricSummary

_HEADERS = ("callback", "runs", "failed", "s per run", "total s", "of the run")


def cost_lines(
    metrics: Mapping[str, MetricSummary], callbacks: Sequence[str], run_s: float, width: int
) -> Iterator[Text]:
    """The table of runs, failures and seconds that training waited, by callback; ``callbacks`` come first, in order."""
    costs: dict[str, dict[str, MetricSummary]] = {}
    for key, metric in metrics.items():
        if key.startswith("callbacks/"):
            name, _, cost = key.removeprefix("callbacks/").rpartition("/")
            costs.setdefault(name, {})[cost] = metric
    order = [name for name in callbacks if name in costs] + [name for name in costs if name not in callbacks]
    rows = [[name, *_row(costs[name], run_s)] for name in order]
    if rows:
        yield from grid_lines(_HEADERS, rows, width, right=_HEADERS[1:])


def _row(cost: Mapping[str, MetricSummary], run_s: float) -> list[str]:
    stall = cost.get("stall_s")
    num_runs = _latest(cost, "num_runs", stall.num_points if stall else 0)
    total_s = _latest(cost, "total_s", stall.total if stall else 0.0)
    share = _latest(cost, "time_fraction", total_s / run_s if run_s > 0 else 0.0)
    num_failed = _latest(cost, "num_failed", 0)
    mean_s = figure(total_s / num_runs) if num_runs else ""
    return [figure(num_runs), figure(num_failed), mean_s, figure(total_s), f"{share:.1%}"]


def _latest(cost: Mapping[str, MetricSummary], key: str, otherwise: float) -> float:
    """The latest value that the runner has recorded, or what follows from the single calls."""
    value = cost[key].last[1] if key in cost else otherwise
    return otherwise if isinstance(value, str) else value
