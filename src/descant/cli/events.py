"""What happened in a run: warnings, and failures with their tracebacks."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.text import Text

from descant.runlog.run_reader import RunEvent
from descant.text import printable

_NOT_SHOWN = (
    "run_started",
    "run_completed",
    "run_stopped",
    "run_interrupted",
    "run_cancelled",
    "forecast",
    "tracker_started",
)
"""The head says so, and the table of costs."""
_LONGEST_LINE = 2000


@dataclass(slots=True)
class _Happening:
    """Events that are the same, numbers aside."""

    first: RunEvent
    count: int = 1
    last_step: int = 0


def warning_lines(events: Sequence[RunEvent]) -> Iterator[Text]:
    """One line for every warning, of any length; the same ones are counted."""
    for happening in _fold(event for event in events if not _is_failure(event)):
        yield _line(happening, "yellow")


def failure_lines(events: Sequence[RunEvent], *, tracebacks: bool) -> Iterator[Text]:
    """Every failure in order, with its traceback if wanted; the same ones are counted."""
    for happening in _fold(event for event in events if _is_failure(event)):
        yield _line(happening, "red")
        if tracebacks and happening.first.details:
            for line in happening.first.details.rstrip("\n").split("\n"):
                yield Text(f"    {printable(line, _LONGEST_LINE)}", style="dim")


def _is_failure(event: RunEvent) -> bool:
    """Whether something failed: by its kind, or because there is a traceback (of a grader, say)."""
    return event.kind.endswith("_failed") or "Traceback (most recent call last)" in (event.details or "")


def _fold(events: Iterator[RunEvent]) -> list[_Happening]:
    happenings: dict[tuple[str, ...], _Happening] = {}
    for event in events:
        if event.kind in _NOT_SHOWN:
            continue
        same = (event.kind, event.source, _without_numbers(event.details or event.message))
        if same in happenings:
            happenings[same].count += 1
        else:
            happenings[same] = _Happening(event)
        happenings[same].last_step = event.step
    return list(happenings.values())


def _without_numbers(text: str) -> str:
    """What makes two events the same: a failure that names its step or an address is not a new one each time. The
    lines of code that a traceback goes through must be the same."""
    lines = text.split("\n")
    return "\n".join(line if line.startswith('  File "') else re.sub(r"0x[\da-f]+|\d+", "#", line) for line in lines)


def _line(happening: _Happening, style: str) -> Text:
    first = happening.first
    line = Text("  ")
    line.append(f"step {first.step:,}  ", style="dim")
    line.append(printable(first.message, _LONGEST_LINE), style=style)
    if happening.count > 1:
        line.append(f" ({happening.count:,} times, the last at step {happening.last_step:,})")
    return line
