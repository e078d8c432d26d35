"""show_run: a run on one page of text."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.text import Text

from descant.cli.answers import prompt_lines, rest_line, sample_lines
from descant.cli.costs import cost_lines
from descant.cli.curves import curve_lines
from descant.cli.events import failure_lines, note_lines, warning_lines
from descant.cli.grid import heading
from descant.cli.runs import date, declared_metrics, foreign_content_as_error
from descant.cli.samples import Selection, choose_samples
from descant.errors import ConfigurationError
from descant.runlog.run_reader import RunReader
from descant.runner.page import Page
from descant.text import did_you_mean, duration, printable

_NUM_SAMPLES = 4
_NUM_SAMPLES_ALONE = 10
_SAMPLES = {
    "all": "latest samples",
    "failed": "failed samples",
    "worst": "worst samples",
    "changed": "changed answers",
}
_PROMPT = "the same prompt across the run"


@dataclass(frozen=True, slots=True, kw_only=True)
class ShowOptions:
    """The options of ``descant show``, see there."""

    num_samples: int | None = None
    samples_alone: bool = False
    callback: str | None = None
    prompt: str | None = None
    selection: Selection = "all"
    steps: Sequence[int] = ()
    in_full: bool = False
    failures: bool = True
    keys: str | None = None

    @property
    def has_samples_alone(self) -> bool:
        """Whether samples are all that is asked for."""
        return self.samples_alone or self.in_full or self.selection != "all" or bool(self.steps)

    @property
    def is_page(self) -> bool:
        """Whether everything is shown."""
        return self.keys is None and not self.has_samples_alone

    @property
    def follows_prompt(self) -> bool:
        """Whether the samples are one prompt at every step."""
        return self.prompt is not None and self.selection == "all" and not self.steps

    @property
    def shows_samples(self) -> bool:
        """Whether there are samples on the page."""
        if self.num_samples is None:
            return self.is_page or self.has_samples_alone or self.callback is not None
        return self.num_samples > 0


def show_run(reader: RunReader, options: ShowOptions) -> None:
    """Print a run: head, curves, costs, samples, a prompt across the run, events; or what the options ask for."""
    page = Page()
    width = page.width
    with foreign_content_as_error(reader):
        prefixes = {callback["name"]: callback.get("prefix") for callback in reader.config.get("callbacks", [])}
        callbacks = chosen_callbacks(reader, options.callback)
        # What cannot be shown is an error before anything is printed.
        curves: list[Text] = []
        if options.is_page or options.keys is not None:
            curves = list(curve_lines(reader.metrics, declared_metrics(reader.config), prefixes, options.keys, width))
        samples = list(_sample_sections(reader, callbacks, options, width))
        page.section("", _head_lines(reader, width))
        page.section("metrics", curves)
        if options.is_page:
            page.section("callbacks", cost_lines(reader.metrics, list(prefixes), width))
        for title, lines in samples:
            page.section(title, lines)
        if options.is_page:
            page.section("notes", note_lines(reader.events))
            page.section("warnings", warning_lines(reader.events))
            page.section("failures", failure_lines(reader.events, tracebacks=options.failures))


def _sample_sections(
    reader: RunReader, callbacks: Sequence[str], options: ShowOptions, width: int
) -> Iterator[tuple[str, list[Text]]]:
    """The samples that are asked for, and one prompt across the run on a page that has everything."""
    alone = options.has_samples_alone
    if options.shows_samples and not (alone and options.follows_prompt):
        limit = options.num_samples or (_NUM_SAMPLES_ALONE if alone else _NUM_SAMPLES)
        prompt = options.prompt if alone else None
        lines: list[Text] = []
        for chosen in choose_samples(reader, callbacks, options.selection, options.steps, prompt):
            if options.in_full and lines:
                lines.append(Text())
            lines += sample_lines(reader, chosen, options.selection, limit, width, in_full=options.in_full)
            if alone and limit < len(chosen.rows):
                lines += [*[Text()] * options.in_full, rest_line(len(chosen.rows), limit, width)]
        if alone and not lines:
            lines.append(Text("  none so far", style="dim"))
        yield "samples" if options.steps and options.selection == "all" else _SAMPLES[options.selection], lines
    if options.follows_prompt or (options.shows_samples and not alone):
        yield _PROMPT, list(prompt_lines(reader, callbacks, options.prompt, width, in_full=options.in_full))


def chosen_callbacks(reader: RunReader, wanted: str | None) -> list[str]:
    """The callbacks whose samples are shown: all of them, or the one that is wanted."""
    configured = [callback["name"] for callback in reader.config.get("callbacks", [])]
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
    if "trainer" in config and not "".join(parts).startswith(f"{config['trainer']}: "):
        parts.append(str(config["trainer"]))
    if isinstance(model, dict) and "name" in model:
        parts.append(f"{model['name']} ({model['description']})" if "description" in model else str(model["name"]))
    elif model:
        parts.append(str(model))
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
