"""show_run: a run on one page of text."""

from __future__ import annotations

import io
import os
import sys
import time
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.text import Text

from descant.cli.answers import latest_sample_lines, prompt_lines
from descant.cli.costs import cost_lines
from descant.cli.curves import curve_lines
from descant.cli.events import failure_lines, note_lines, warning_lines
from descant.cli.grid import heading
from descant.cli.runs import date, declared_metrics, foreign_content_as_error
from descant.errors import ConfigurationError
from descant.runlog.run_reader import RunReader
from descant.text import did_you_mean, duration, printable

_LEAST_WIDTH = 40
_NUM_SAMPLES = 4


class Page(Console):
    """Standard output; the command ends without an error when it is closed (``| head``)."""

    def __init__(self) -> None:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")  # a terminal without block characters shows codes
        super().__init__(highlight=False, soft_wrap=True)
        self.width = max(self.width, _LEAST_WIDTH)

    def on_broken_pipe(self) -> None:
        """Discard the rest, and exit."""
        silence_output()
        raise SystemExit(0)

    def section(self, title: str, lines: Iterable[Text]) -> None:
        """A title with lines below it, if there are any."""
        for number, line in enumerate(lines):
            if number == 0 and title:
                self.print(Text(f"\n{title}", style="bold underline"))
            self.print(line)


def silence_output() -> None:
    """Discard the rest of standard output, which takes no more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def show_run(
    reader: RunReader,
    *,
    num_samples: int | None,
    callback: str | None,
    prompt: str | None,
    failures: bool,
    keys: str | None,
) -> None:
    """Print a run: head, curves, costs, samples, a prompt across the run, events; see the options of the command.

    With ``keys``, metrics alone, and what else is asked for.
    """
    page = Page()
    width = page.width
    if num_samples is None:
        num_samples = 0 if keys is not None and callback is None else _NUM_SAMPLES
    with foreign_content_as_error(reader):
        prefixes = {callback["name"]: callback.get("prefix") for callback in reader.config.get("callbacks", [])}
        callbacks = _chosen_callbacks(reader, list(prefixes), callback)
        # What cannot be shown is an error before anything is printed.
        curves = list(curve_lines(reader.metrics, declared_metrics(reader.config), prefixes, keys, width))
        prompts = list(prompt_lines(reader, callbacks, prompt, width)) if num_samples or prompt is not None else []
        page.section("", _head_lines(reader, width))
        page.section("metrics", curves)
        if keys is None:
            page.section("callbacks", cost_lines(reader.metrics, list(prefixes), width))
        if num_samples:
            page.section("latest samples", latest_sample_lines(reader, callbacks, num_samples, width))
        page.section("the same prompt across the run", prompts)
        if keys is None:
            page.section("notes", note_lines(reader.events))
            page.section("warnings", warning_lines(reader.events))
            page.section("failures", failure_lines(reader.events, tracebacks=failures))


def _chosen_callbacks(reader: RunReader, configured: Sequence[str], wanted: str | None) -> list[str]:
    """The callbacks whose samples are shown: all of them, or the one that is wanted."""
    with_samples = [callback for callback, _ in reader.sample_steps]
    known = list(dict.fromkeys([*configured, *with_samples]))
    if wanted is None:
        return known
    if wanted not in known:
        hint = did_you_mean(wanted, known, f"there are: {', '.join(known) or 'none'}")
        raise ConfigurationError(f"the run has no callback {wanted!r}; {hint}")
    if wanted not in with_samples:
        others = ", ".join(dict.fromkeys(with_samples)) or "no callback"
        raise ConfigurationError(f"callback {wanted!r} has no samples; those that have some: {others}")
    return [wanted]


def _head_lines(reader: RunReader, width: int) -> list[Text]:
    config, parts = reader.config, []
    model, dataset = config.get("model"), config.get("dataset")
    if not model:  # a loop that is not one of descant's trainers
        parts.append(str(config.get("title", "a run whose settings were not recorded")))
    if "trainer" in config:
        parts.append(str(config["trainer"]))
    if model:
        described = isinstance(model, dict) and "name" in model
        parts.append(f"{model['name']} ({model.get('description', '')})" if described else str(model))
    if isinstance(dataset, dict) and isinstance(dataset.get("num_samples"), int):
        parts.append(f"{dataset['num_samples']:,} samples")
    if "seed" in config:
        parts.append(f"seed {config['seed']}")
    planned = config.get("num_steps")
    steps = f"{reader.latest_step:,}{f' of {planned:,}' if isinstance(planned, int) else ''} steps"
    started = [f"started {date(reader.started_at)}"] if reader.started_at else []
    first, *others = _packed(parts, width)
    return [
        heading(first, width),
        *map(Text, others),
        *map(Text, _packed([steps, *_describe_outcome(reader), *started], width)),
        Text(printable(str(reader.run_dir)), style="dim"),
    ]


def _describe_outcome(reader: RunReader) -> list[str]:
    started_at = reader.started_at or reader.last_written_at
    seconds = duration(max(0.0, (reader.ended_at or reader.last_written_at) - started_at))
    if reader.outcome is None:
        silent = duration(max(0.0, time.time() - reader.last_written_at))
        return [f"running or killed, after {seconds}", f"last written {silent} ago"]
    outcome = printable(reader.outcome if reader.reason is None else f"{reader.outcome} ({reader.reason})")
    return [f"{outcome} {'in' if reader.outcome == 'completed' else 'after'} {seconds}"]


def _packed(parts: Sequence[str], width: int) -> list[str]:
    """The parts with dots between them, on as many lines as they need."""
    lines: list[str] = []
    for part in map(printable, parts):
        if lines and len(lines[-1]) + 3 + len(part) <= width:
            lines[-1] += f" · {part}"
        else:
            lines.append(part)
    return lines
