"""The events of a run: notes, warnings, and failures with their tracebacks."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

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
    "callback_mode",
    "tracker_started",
)
"""They are shown in the head and in the table of costs."""
_NOTES = (
    "callback_note",
    "callback_deferred",
    "callback_skipped",
    "callback_replaced",
    "waited_for_callbacks",
    "stop_requested",
    "checkpoint_saved",
    "tracker_recovered",
    "tracker_emptied",
    "samples_cut",
)
"""They are no reason to worry: a setting of the user's has led to them, or nothing was lost."""
_LONGEST_LINE = 2000


def note_lines(events: Sequence[RunEvent]) -> Iterator[Text]:
    """One line for everything that is good to know and no reason to worry; the same ones are counted."""
    for same in _grouped(event for event in events if event.kind in _NOTES):
        yield _line(same, "")


def warning_lines(events: Sequence[RunEvent]) -> Iterator[Text]:
    """One line for every warning, of any length; the same ones are counted."""
    for same in _grouped(event for event in events if event.kind not in _NOTES and not _is_failure(event)):
        yield _line(same, "yellow")


def failure_lines(events: Sequence[RunEvent], *, tracebacks: bool) -> Iterator[Text]:
    """Every failure in order, with its traceback if wanted; the same ones are counted."""
    for same in _grouped(event for event in events if _is_failure(event)):
        yield _line(same, "red")
        if tracebacks and same[0].details:
            for line in same[0].details.rstrip("\n").split("\n"):
                yield Text(f"    {printable(line, _LONGEST_LINE)}", style="dim")


def _is_failure(event: RunEvent) -> bool:
    """Whether something failed: by its kind, or because there is a traceback (of a grader, say)."""
    return event.kind.endswith("_failed") or "Traceback (most recent call last)" in (event.details or "")


def _grouped(events: Iterator[RunEvent]) -> list[list[RunEvent]]:
    """The events that are the same, numbers aside, in the order of the first of each."""
    groups: dict[tuple[str, ...], list[RunEvent]] = {}
    for event in events:
        if event.kind not in _NOT_SHOWN:
            same = (event.kind, event.source, _without_numbers(event.details or event.message))
            groups.setdefault(same, []).append(event)
    return list(groups.values())


def _without_numbers(text: str) -> str:
    """The text without steps and addresses, which differ each time; a traceback must go through the same lines."""
    lines = text.split("\n")
    return "\n".join(line if line.startswith('  File "') else re.sub(r"0x[\da-f]+|\d+", "#", line) for line in lines)


def _line(same: Sequence[RunEvent], style: str) -> Text:
    line = Text("  ")
    line.append(f"step {same[0].step:,}  ", style="dim")
    line.append(printable(same[0].message, _LONGEST_LINE), style=style)
    if len(same) > 1:
        line.append(f" ({len(same):,} times, the last at step {same[-1].step:,})")
    return line
