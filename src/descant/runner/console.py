"""Console: the run as it goes, on standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from types import MappingProxyType
from typing import IO, Any, cast

from rich.console import Console as RichConsole
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Column
from rich.table import Table as RichTable
from rich.text import Text

from descant.metrics import Metric, MetricSpec, find_spec
from descant.runner.costs import CallbackCost
from descant.schedule import Plan
from descant.table import Table
from descant.text import duration, figure, printable

_NUM_LINES_WITHOUT_TERMINAL = 20
_MAX_TEXT = 40
_BAR_WIDTH = 76
_REFRESH_S = 0.1  # as often as the bar is drawn


class _StandardError:
    """Standard error, which falls silent once it cannot be written (closed, a full disk): the run continues."""

    _is_broken = False

    def write(self, text: str) -> int:
        """Write, if that works."""
        self._attempt("write", text)
        return len(text)

    def flush(self) -> None:
        """Flush, if that works."""
        self._attempt("flush")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._present(), name)

    def _present(self) -> Any:
        return getattr(sys.stderr, "rich_proxied_file", sys.stderr)  # beneath what a progress bar puts in its place

    def _attempt(self, method: str, *arguments: str) -> None:
        if not self._is_broken:
            try:
                getattr(self._present(), method)(*arguments)
            except (OSError, ValueError, AttributeError) as error:
                self._is_broken = not isinstance(error, UnicodeError)


class Console:
    """Prints the plan, a progress bar with the latest metrics, every evaluation, warnings and the outcome.

    Without a terminal there is no bar; about twenty lines mark the progress instead. Text that came from a model is
    made harmless and never interpreted as markup.
    """

    def __init__(self, num_steps: int) -> None:
        self._rich = RichConsole(file=cast("IO[str]", _StandardError()), highlight=False, soft_wrap=True)
        self._num_steps = num_steps
        self._specs: Mapping[str, Sequence[MetricSpec]] = {}
        self._latest: dict[str, str] = {}  # for the bar: the first number of each callback
        self._evaluated_step = -1
        self._shown_at = -_REFRESH_S
        self._name_width = 0
        self._bar = Progress(
            TextColumn("[bold]step[/bold]"),
            MofNCompleteColumn(),
            BarColumn(bar_width=24),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TextColumn("{task.fields[left]}"),
            TextColumn("{task.fields[latest]}", markup=False, table_column=Column(no_wrap=True)),
            console=self._rich,
            disable=not self._rich.is_terminal,
        )
        self._task = self._bar.add_task("", total=num_steps, latest="", left="-:--:--")

    def start(
        self, title: str, plan: Sequence[Plan], specs: Mapping[str, Sequence[MetricSpec]] = MappingProxyType({})
    ) -> None:
        """Print what will happen, then show the bar. ``specs`` are the declared metrics by callback, and "trainer"."""
        self._specs = specs
        self._rich.print(Text(printable(title), style="bold"))
        self._name_width = max((len(line.name) for line in plan), default=0)
        if plan:
            self._rich.print(plan_table(plan))
        self._bar.start()

    def show_step(
        self, step: int, metrics: Mapping[str, Metric], remaining_s: Callable[[], float | None] = lambda: None
    ) -> None:
        """Move the bar and show the step's numbers, and how long the rest will take, evaluations included.

        Most steps of a fast loop are not shown, and cost nothing.
        """
        is_last = step == self._num_steps
        if self._rich.is_terminal:
            now = time.monotonic()
            is_shown = is_last or now - self._shown_at >= _REFRESH_S
            self._shown_at = now if is_shown else self._shown_at
        else:
            is_shown = is_last or step % max(1, self._num_steps // _NUM_LINES_WITHOUT_TERMINAL) == 0
        if is_shown:
            self._show_step(step, metrics, remaining_s())

    def _show_step(self, step: int, metrics: Mapping[str, Metric], remaining_s: float | None) -> None:
        training = [
            f"{spec.unit if spec.unit.endswith('/s') else _short(spec.key)} {_number(metrics[spec.key])}"
            for spec in self._specs.get("trainer", ())
            if spec.headline and spec.key in metrics
        ]
        if self._rich.is_terminal:
            latest = "  ".join([*training, *self._latest.values()])
            left = "-:--:--" if remaining_s is None else str(timedelta(seconds=round(remaining_s)))
            shown = printable(latest, max(8, self._rich.width - _BAR_WIDTH))
            self._bar.update(self._task, completed=step, latest=shown, left=left)
            return
        if training:
            eta = "" if remaining_s is None or step == self._num_steps else f"  {duration(remaining_s)} left"
            self._rich.print(Text(f"step {step}/{self._num_steps}  {'  '.join(training)}{eta}", style="dim"))

    def show_evaluation(self, step: int, callback: str, metrics: Mapping[str, Metric]) -> None:
        """Print what a callback returned on one line: headlines, what is not declared, and the first of its samples."""
        if step != self._evaluated_step:
            self._evaluated_step = step
            self._rich.print(Text(f"step {step} · {step / self._num_steps:.1%}", style="bold"))
        specs = self._specs.get(callback, ())
        numbers = {key: _number(value) for key, value in metrics.items() if not isinstance(value, Table)}
        declared = {key: find_spec(specs, key) for key in numbers}
        main = {key: number for key, number in numbers.items() if (spec := declared[key]) is None or spec.headline}
        line = Text("  ")
        line.append(f"{printable(callback):<{self._name_width}}  ", style="cyan")
        line.append("  ".join(f"{printable(_short(key))} {number}" for key, number in main.items()))
        for table in metrics.values():
            if isinstance(table, Table) and table.rows:
                line.append(f"  {_describe_sample(table.as_dicts()[0])}", style="dim")
        self._rich.print(line)
        if main:
            key, number = next(iter(main.items()))
            self._latest[key] = f"{printable(key)} {number}"

    def warn(self, message: str) -> None:
        """Print a warning."""
        self._rich.print(Text(f"! {printable(message)}", style="yellow"))

    def note(self, message: str) -> None:
        """Print what is good to know."""
        self._rich.print(Text(printable(message), style="dim"))

    def close(self, summary: str, costs: Sequence[CallbackCost] = (), duration_s: float = 0.0) -> None:
        """Remove the bar and print what the callbacks have cost and how the run ended."""
        self._bar.stop()
        if any(cost.num_runs for cost in costs):
            self._rich.print(_cost_table(costs, duration_s))
        self._rich.print(Text(printable(summary), style="bold"))


def plan_table(plan: Sequence[Plan]) -> RichTable:
    """When callbacks run, one in each row."""
    table = RichTable(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for header in ("callback", "runs", "calls", "after steps (0 is before the first)"):
        table.add_column(header)
    for line in plan:
        cells = (line.name, line.schedule, line.num_calls, line.describe_steps())
        table.add_row(*(Text(printable(cell)) for cell in cells))
    return table


def _cost_table(costs: Sequence[CallbackCost], duration_s: float) -> RichTable:
    table = RichTable(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    has_detached = any(cost.num_landed for cost in costs)
    left_out = [
        name for name in ("skipped", "replaced", "deferred") if any(getattr(cost, f"num_{name}") for cost in costs)
    ]
    headers = ["runs", "each", *(["in parallel"] * has_detached), "in all", "of the run", "failures"]
    table.add_column("callback")
    for header in (*headers, *left_out):
        table.add_column(header, justify="right")
    for cost in costs:
        beside = [duration(cost.mean_busy_s) if cost.num_landed else ""] * has_detached
        table.add_row(
            Text(printable(cost.name)),
            str(cost.num_runs),
            duration(cost.mean_s),
            *beside,
            duration(cost.seconds),
            f"{cost.seconds / duration_s:.1%}" if duration_s else "",
            _failures(cost),
            *(str(getattr(cost, f"num_{name}")) for name in left_out),
        )
    return table


def _failures(cost: CallbackCost) -> Text:
    """Failed calls, and samples that failed in others: 0 only where nothing has failed."""
    samples = f"{cost.num_failed_samples:,} sample{'s' * (cost.num_failed_samples != 1)}"
    parts = [str(cost.num_failed)] * bool(cost.num_failed) + [samples] * bool(cost.num_failed_samples)
    return Text(" + ".join(parts) or "0", style="yellow" if parts else "")


def _short(key: str) -> str:
    """A metric key without its prefix, which the name of the callback stands for."""
    return key.rpartition("/")[2] if key.count("/") < 2 else key.partition("/")[2]


def _describe_sample(row: Mapping[str, object]) -> str:
    """A row of a sample table, as prompt and response."""
    if "prompt" not in row or "response" not in row:
        return ""
    prompt, response = (printable(repr(row[key]), _MAX_TEXT) for key in ("prompt", "response"))
    return f"{prompt} → {response}"


def _number(value: Metric) -> str:
    if isinstance(value, str):
        return printable(value, _MAX_TEXT)
    if isinstance(value, Table):
        return f"{len(value)} rows"
    return figure(value)
