"""Console: the run as it goes, on standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from types import MappingProxyType
from typing import IO, Any, cast

from rich.console import Console as RichConsole
from rich.live import Live
from rich.table import Table as RichTable
from rich.text import Text

from descant.metrics import Metric, MetricSpec, find_spec
from descant.runner.costs import CallbackCost
from descant.runner.notebook_line import NotebookLine
from descant.schedule import Plan
from descant.table import Table
from descant.text import duration, figure, printable

_NUM_LINES_WITHOUT_TERMINAL = 20
_MAX_TEXT = 40
_BAR_WIDTH = 24
_REFRESH_S = 0.2  # as often as the live line is drawn
_IN_A_NOTEBOOK: dict[str, Any] = {
    "highlight": False,
    "soft_wrap": True,
    "force_jupyter": False,  # which would make an output of every line
    "force_terminal": True,
    "color_system": "standard",
    "width": 100,
}


class _Stream:
    """Standard error (or output), which falls silent once it cannot be written (closed, a full disk): the run
    continues. Bars that other code draws there (of tqdm or rich) make room for what is written."""

    _is_broken = False

    def __init__(self, name: str) -> None:
        self._name = name
        self.has_own_bar = False
        self.rich_proxied_file = self  # rich shall write to this, and not to what it finds beneath

    def write(self, text: str) -> int:
        """Write, if that works."""
        with _room_beside_bars(self._present()) if text else nullcontext():
            self._attempt("write", text)
        return len(text)

    def flush(self) -> None:
        """Flush, if that works."""
        self._attempt("flush")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._present(), name)

    def _present(self) -> Any:
        stream = getattr(sys, self._name)
        return getattr(stream, "rich_proxied_file", stream) if self.has_own_bar else stream  # which rich has replaced

    def _attempt(self, method: str, *arguments: str) -> None:
        if not self._is_broken:
            try:
                getattr(self._present(), method)(*arguments)
            except (OSError, ValueError, AttributeError) as error:
                self._is_broken = not isinstance(error, UnicodeError)


def _bars_of_others() -> Any:
    """tqdm's class of bars, if it is drawing any in this process."""
    bars = getattr(sys.modules.get("tqdm.std"), "tqdm", None)
    return bars if any(not bar.disable for bar in list(getattr(bars, "_instances", ()))) else None


@contextmanager
def _room_beside_bars(stream: Any) -> Iterator[None]:
    bars = _bars_of_others()
    with nullcontext() if bars is None else cast("AbstractContextManager[None]", bars.external_write_mode(file=stream)):
        yield


class Console:
    """Prints the plan, every evaluation, notes, warnings and the outcome, beneath them a live line: a progress bar,
    what is evaluated now, and the latest metrics.

    Without a terminal or notebook there is no live line; about twenty lines mark the progress instead. Text that came
    from a model is made harmless and never interpreted as markup. In a notebook it goes to standard output, since
    standard error looks like a failure there.

    Args:
        num_steps: planned steps.
        shows_progress: False where other code does: then there is neither a live line nor lines that mark the
            progress. None: from the first step on, unless the loop draws a bar of tqdm.
    """

    def __init__(self, num_steps: int, *, shows_progress: bool | None = True) -> None:
        self._num_steps = num_steps
        self._shows_progress = shows_progress
        self._specs: Mapping[str, Sequence[MetricSpec]] = {}
        self._describe_running: Callable[[], Sequence[str]] = tuple
        self._step = 0
        self._training: Sequence[str] = ()  # for the live line: the step's numbers
        self._latest: dict[str, str] = {}  # and the first number of each callback
        self._text_width = 0
        self._remaining: tuple[float, float] | None = None  # seconds, and when that was
        self._started_at = time.monotonic()
        self._evaluated_step = -1
        self._shown_at = -_REFRESH_S
        self._name_width = 0
        self._stream = _Stream("stderr")
        self._rich = RichConsole(file=cast("IO[str]", self._stream), highlight=False, soft_wrap=True)
        self._live: Live | NotebookLine | None = None
        if self._rich.is_jupyter:
            self._stream = _Stream("stdout")
            self._rich = RichConsole(file=cast("IO[str]", self._stream), **_IN_A_NOTEBOOK)
            self._live = NotebookLine(self._live_line)
        elif self._rich.is_terminal:
            self._live = Live(get_renderable=self._live_line, console=self._rich, refresh_per_second=1 / _REFRESH_S)
        if shows_progress is False:
            self._live = None

    def start(
        self,
        title: str,
        plan: Sequence[Plan],
        specs: Mapping[str, Sequence[MetricSpec]] = MappingProxyType({}),
        describe_running: Callable[[], Sequence[str]] = tuple,
    ) -> None:
        """Print what will happen, then show the live line.

        Args:
            title: what is trained on what.
            plan: when callbacks will run.
            specs: the declared metrics by callback, and "trainer".
            describe_running: says what is evaluated now, from any thread.
        """
        self._specs, self._describe_running = specs, describe_running
        self._rich.print(Text(printable(title), style="bold"))
        self._name_width = max((len(line.name) for line in plan), default=0)
        if plan:
            self._rich.print(plan_table(plan))
        self._started_at = time.monotonic()
        if self._shows_progress:
            self._start_live()

    def show_step(
        self, step: int, metrics: Mapping[str, Metric], remaining_s: Callable[[], float | None] = lambda: None
    ) -> None:
        """Move the bar and show the step's numbers, and how long the rest will take, evaluations included.

        Most steps of a fast loop are not shown, and cost nothing.
        """
        if self._shows_progress is None and step > 0:
            self._shows_progress = _bars_of_others() is None
            self._live = self._live if self._shows_progress else None
            self._start_live()
        self._step = step
        is_last = step == self._num_steps
        if self._live is not None:
            now = time.monotonic()
            if not is_last and now - self._shown_at < _REFRESH_S:
                return
            self._shown_at = now
            self._training = self._training_texts(metrics)
            left_s = remaining_s()
            self._remaining = None if left_s is None else (left_s, now)
        elif self._shows_progress and (is_last or step % max(1, self._num_steps // _NUM_LINES_WITHOUT_TERMINAL) == 0):
            left_s = None if is_last else remaining_s()
            left = "" if left_s is None else f"  {duration(left_s)} left"
            if training := self._training_texts(metrics):
                self._rich.print(Text(f"step {step}/{self._num_steps}  {'  '.join(training)}{left}", style="dim"))

    def _training_texts(self, metrics: Mapping[str, Metric]) -> list[str]:
        return [
            f"{spec.unit if spec.unit.endswith('/s') else _short(spec.key)} {_number(metrics[spec.key])}"
            for spec in self._specs.get("trainer", ())
            if spec.headline and spec.key in metrics
        ]

    def _start_live(self) -> None:
        if self._live is not None:
            self._stream.has_own_bar = True
            self._live.start()

    def _stop_live(self) -> None:
        if self._live is not None and self._stream.has_own_bar:
            self._live.stop()
            self._stream.has_own_bar = False

    def _live_line(self) -> Text:
        """Steps, a bar, times, what is evaluated now and the latest numbers: as much as fits into one line."""
        now, share = time.monotonic(), min(1.0, self._step / self._num_steps)
        left_s = 0.0 if self._remaining is None else self._remaining[0] - (now - self._remaining[1])
        left = _clock(left_s) if left_s > 0 or share == 1 else "-:--:--"
        text = "  ".join([*self._describe_running(), *self._training, *self._latest.values()])
        parts = {
            "step": Text(f"step {self._step}/{self._num_steps}", style="bold"),
            "bar": self._bar(share),
            "share": Text(f"{share:4.0%}"),
            "elapsed": Text(_clock(now - self._started_at), style="dim"),
            "left": Text(f"left {left}"),
        }
        room = self._rich.width - 1
        self._text_width = max(self._text_width, min(len(text), _MAX_TEXT))  # or parts would come and go
        for expendable, least in (("elapsed", _MAX_TEXT), ("bar", _MAX_TEXT), ("share", _MAX_TEXT), ("left", 20)):
            if sum(len(part) + 1 for part in parts.values()) + min(self._text_width, least) <= room:
                break
            del parts[expendable]
        line = Text(" ").join([*parts.values(), Text(printable(text))])
        line.no_wrap = True
        line.truncate(room, overflow="ellipsis")
        return line

    def _bar(self, share: float) -> Text:
        done = round(_BAR_WIDTH * share)
        mark = "-" if self._rich.options.ascii_only else "━"
        bar = Text(mark * done, style="bar.finished" if share == 1 else "bar.complete")
        return bar.append((" " if mark == "-" else mark) * (_BAR_WIDTH - done), style="bar.back")

    def show_evaluation(self, step: int, callback: str, metrics: Mapping[str, Metric]) -> None:
        """Print what a callback returned on one line: headlines, what is not declared, and the first of its samples."""
        if not metrics:
            return  # it has failed, or is not called for numbers
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
            if isinstance(table, Table) and table.rows and (sample := _describe_sample(table.as_dicts()[0])):
                line.append(f"  {sample}", style="dim")
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

    def show_waiting(self, message: str) -> None:
        """Print what training waits for, unless the live line says it."""
        if not self._stream.has_own_bar:
            self.note(message)

    def close(
        self,
        summary: str,
        costs: Sequence[CallbackCost] = (),
        duration_s: float = 0.0,
        problems: Sequence[str] = (),
    ) -> None:
        """End the live line, and print what the callbacks have cost, what went wrong, and how the run ended."""
        self._stop_live()
        if any(cost.num_runs for cost in costs):
            self._rich.print(_cost_table(costs, duration_s))
        for problem in problems:
            self.warn(problem)
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
    table.add_column("callback", no_wrap=True)  # where it is narrow, headers are broken before names are cut
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


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=max(0, round(seconds))))


def _number(value: Metric) -> str:
    if isinstance(value, str):
        return printable(value, _MAX_TEXT)
    if isinstance(value, Table):
        return f"{len(value)} rows"
    return figure(value)
