"""Preview: what a run would train and what it would call, before it trains."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil
from statistics import fmean, median
from typing import TYPE_CHECKING

from descant.errors import DatasetError
from descant.schedule import Plan
from descant.text import figure, printable
from descant.trainers.trained_threads import Problem, TrainedThreads

if TYPE_CHECKING:
    from rich.text import Text

_NUM_BINS = 10
_BAR_WIDTH = 40
_NUM_PROBLEMS = 10
_HEAD, _TAIL = 600, 200  # characters of a long piece of text that are shown
_MARKS = "⟦", "⟧"  # around what is trained, where there is no colour


@dataclass(frozen=True, slots=True)
class PreviewSample:
    """A thread as it is trained.

    Attributes:
        place: where it comes from.
        pieces: the rendered text, in pieces, each with the loss weight of its tokens; 0 is not trained.
        num_tokens: of the whole thread.
        num_cut: how many of them are cut off at its end.
        num_trained: how many are trained.
    """

    place: str
    pieces: Sequence[tuple[str, float]]
    num_tokens: int
    num_cut: int
    num_trained: int


@dataclass(frozen=True, slots=True, repr=False)
class Preview:
    """What a run would train and what it would call.

    Attributes:
        title: what is trained on what.
        num_steps: planned steps.
        plan: when each callback will run.
        data: the threads that are trained, the lengths of all, and what is cut or left out.
        samples: some of the threads that are trained.
        notes: what could be better: few steps, prompts of validation sets that are trained on.
        refusal: why the run would be refused before its first step; None if it would not be.
    """

    title: str
    num_steps: int
    plan: Sequence[Plan]
    data: TrainedThreads
    samples: Sequence[PreviewSample]
    notes: Sequence[str]
    refusal: DatasetError | None

    def __repr__(self) -> str:
        return f"Preview({self.title!r}, refusal={None if self.refusal is None else str(self.refusal)!r})"

    def show(self) -> None:
        """Print it to standard output: what is trained in colour, or within brackets where there is none."""
        from descant.runner.console import plan_table  # noqa: PLC0415  # rich, which importing a trainer spares
        from descant.runner.page import Page  # noqa: PLC0415

        page = Page()
        has_colour = page.is_terminal and not page.no_color
        page.print(printable(self.title), style="bold")
        if self.samples:
            how = "in colour" if has_colour else f"between {_MARKS[0]} and {_MARKS[1]}"
            page.print(f"\nthreads as the model reads them; what is trained is {how}", style="bold")
        for sample in self.samples:
            cut = f", of which the last {sample.num_cut:,} are cut off" if sample.num_cut else ""
            counts = f"{sample.num_tokens:,} tokens{cut}, {sample.num_trained:,} trained"
            page.print(f"{printable(sample.place)}: {counts}", style="dim")
            page.print(_marked(sample, has_colour))
        page.print("\ntokens of a thread", style="bold")
        for line in (*_length_lines(self.data), *self._problem_lines()):
            page.print(line)
        steps = f"{self.num_steps:,} step{'s' * (self.num_steps != 1)}"
        page.print(f"\n{steps}{'' if self.plan else ' and no callbacks'}", style="bold")
        if self.plan:
            page.print(plan_table(self.plan))
        for note in self.notes:
            page.print(printable(note), style="yellow")
        if self.refusal is not None:
            page.print("\nthe run is refused before its first step", style="bold red")
            for line in str(self.refusal).splitlines():
                page.print(printable(line))

    def _problem_lines(self) -> Iterator[str]:
        """What is cut and what is left out; of a dataset that is refused, the refusal says it."""
        if self.data.cut:
            yield self.data.describe_cut()
            yield from _listed(self.data.cut)
        if self.data.left_out and self.refusal is None:
            yield self.data.describe_left_out()
            yield from _listed(self.data.left_out)


async def shown_samples(data: TrainedThreads, first: Sequence[int], num_samples: int) -> list[PreviewSample]:
    """Threads to show: the first ones of a list of those that are trained, and the longest."""
    if not len(data):
        return []
    samples = []
    for index in list(dict.fromkeys([*first[: max(1, num_samples - 1)], data.longest()]))[:num_samples]:
        (tokenized,) = data.batch([index])
        num_tokens, num_read = data.length(index), len(tokenized.token_ids)
        pieces = await data.model.weighted_text(tokenized.thread, num_read)
        num_trained = sum(weight > 0 for weight in tokenized.token_weights())
        samples.append(PreviewSample(data.place(index), pieces, num_tokens, num_tokens - num_read, num_trained))
    return samples


def _marked(sample: PreviewSample, has_colour: bool) -> Text:
    """Rendered text, indented, with what is trained marked, and its loss weight where that is not 1."""
    from rich.text import Text  # noqa: PLC0415

    text = Text("  ")
    opening, closing = ("", "") if has_colour else _MARKS
    for piece, weight in sample.pieces:
        lines = "\n  ".join(printable(line) for line in _shortened(piece).split("\n"))
        if weight > 0:
            text.append(f"{opening}{lines}{closing}", style="bold green")
            text.append("" if weight == 1 else f"×{weight:g}", style="dim")
        else:
            text.append(lines)
    text.rstrip()
    text.append("… (cut here)" if sample.num_cut else "", style="dim")
    return text


def _shortened(piece: str) -> str:
    num_left_out = len(piece) - _HEAD - _TAIL
    if num_left_out <= 0:
        return piece
    return f"{piece[:_HEAD]} … {num_left_out:,} more characters … {piece[-_TAIL:]}"


def _listed(problems: Sequence[Problem]) -> Iterator[str]:
    for problem in problems[:_NUM_PROBLEMS]:
        yield f"  {printable(problem.place)}: {printable(problem.reason)}"
    if len(problems) > _NUM_PROBLEMS:
        yield f"  ... and {len(problems) - _NUM_PROBLEMS:,} more"


def _length_lines(data: TrainedThreads) -> Iterator[str]:
    """The lengths of a dataset: a summary, and a histogram, whose last row is what is far longer than most."""
    lengths = sorted(length for length in data.lengths if length)
    if not lengths:
        return
    yield f"median {figure(median(lengths))}, mean {figure(fmean(lengths))}, longest {lengths[-1]:,}"
    usual = lengths[ceil(0.99 * len(lengths)) - 1]
    top = lengths[-1] if lengths[-1] <= 2 * usual else usual
    width = _round_width((top - lengths[0] + 1) / _NUM_BINS)
    end = top // width + 1
    counts = Counter(min(length // width, end) for length in lengths)
    rows = [(_range(number * width, width), counts[number]) for number in range(lengths[0] // width, end)]
    rows += [(f"{end * width:,} and more", counts[end])] if counts[end] else []
    label_width, largest = max(len(label) for label, _ in rows), max(counts.values())
    for label, count in rows:
        bar = "█" * ceil(_BAR_WIDTH * count / largest)
        yield f"  {label:>{label_width}}  {count:>{len(f'{largest:,}')},}  {bar}".rstrip()
    yield (
        f"an epoch trains {data.num_trained_tokens:,} of {data.num_tokens:,} tokens, in {len(data):,} threads of at "
        f"most {data.max_length:,} tokens ({data.limit()})"
    )


def _range(start: int, width: int) -> str:
    return f"{start:,}" if width == 1 else f"{start:,}–{start + width - 1:,}"


def _round_width(least: float) -> int:
    """The smallest of 1, 2, 5, 10, 20, ... that is at least so wide."""
    power = 1
    while True:
        for factor in (1, 2, 5):
            if factor * power >= least:
                return factor * power
        power *= 10
