"""choose_samples: which rows of the tables that callbacks returned are shown."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import inf, isnan
from typing import Any, Literal

from descant.errors import NOT_APPLICABLE, ConfigurationError
from descant.runlog.run_reader import RunReader, SampleRow

Selection = Literal["all", "failed", "worst", "changed"]
_MAX_STEPS_NAMED = 12
_OUTCOME = ("response", "grade", "error")


@dataclass(frozen=True, slots=True)
class ChosenSamples:
    """Rows of one table.

    Attributes:
        callback, key: the table.
        steps: the evaluations that the rows are from; of rows that changed the earlier and the later one.
        rows: in the order in which they are shown.
        before: of rows that changed, the same ones at the earlier evaluation.
        num_rows: the rows among which they were chosen.
    """

    callback: str
    key: str
    steps: Sequence[int]
    rows: Sequence[SampleRow]
    num_rows: int
    before: Sequence[SampleRow] = ()


def choose_samples(
    reader: RunReader, callbacks: Sequence[str], selection: Selection, steps: Sequence[int], prompt: str | None
) -> list[ChosenSamples]:
    """The rows of the callbacks' tables, by table.

    Args:
        selection: all rows of an evaluation; those that failed, of all evaluations, the latest first; those that have a
            grade or a loss, the worst first; or those that changed from one evaluation to another, those that got worse
            first.
        steps: of the evaluations; by default the latest, and for changes the first and the latest one. With a single
            step, changes are from that to the latest.
        prompt: only rows of prompts that contain this, or whose example id begins with it.

    Raises:
        ConfigurationError: there is no evaluation at a step, no such prompt, or nothing that could be chosen from.
    """
    tables = tables_of(reader, callbacks)
    _check_steps(reader, tables, steps)
    examples = None if prompt is None else wanted_examples(reader, callbacks, prompt)
    chosen: list[ChosenSamples] = []
    for table in tables:
        if examples is None or table[0] in examples:
            of_callback = None if examples is None else examples[table[0]]
            chosen += _choose(reader, table, selection, steps, of_callback)
    if not chosen and selection == "worst" and tables:
        raise ConfigurationError("no sample has a grade or a loss that says which are the worst")
    if not chosen and selection == "changed" and tables:
        raise ConfigurationError("there are no answers at two evaluations whose changes could be shown")
    return chosen


def wanted_examples(reader: RunReader, callbacks: Sequence[str], wanted: str) -> dict[str, list[str]]:
    """The examples whose prompt contains a text, or whose id begins with it, by callback."""
    with_samples = list(dict.fromkeys(callback for callback, _ in tables_of(reader, callbacks)))
    found: dict[str, list[str]] = {callback: [] for callback in with_samples}
    for callback, example_id in reader.find_examples(wanted):
        found.get(callback, []).append(example_id)
    if not any(found.values()):
        where = ", ".join(with_samples) or "no callback"
        raise ConfigurationError(
            f"no prompt contains {wanted!r} and no example id begins with it (samples are from: {where})"
        )
    return {callback: examples for callback, examples in found.items() if examples}


def tables_of(reader: RunReader, callbacks: Sequence[str]) -> list[tuple[str, str]]:
    """The tables of the callbacks as (callback, key), in the order of the callbacks."""
    return sorted(
        (table for table in reader.sample_steps if table[0] in callbacks), key=lambda t: callbacks.index(t[0])
    )


def number(row: SampleRow, column: str) -> float | None:
    """A cell if it is a number."""
    cell = row.cells.get(column)
    return cell if isinstance(cell, int | float) and not isinstance(cell, bool) else None


def grade_change(before: SampleRow, after: SampleRow) -> float:
    """By how much the grade of an answer grew; 0 where one of the two has none."""
    old, new = number(before, "grade"), number(after, "grade")
    return 0.0 if old is None or new is None else new - old


def _check_steps(reader: RunReader, tables: Collection[tuple[str, str]], steps: Sequence[int]) -> None:
    known = sorted({step for table in tables for step in reader.sample_steps[table]})
    for step in steps:
        if step not in known:
            named = ", ".join(f"{step:,}" for step in known[-_MAX_STEPS_NAMED:]) or "none"
            latest = f"the latest of {len(known):,} are" if len(known) > _MAX_STEPS_NAMED else "there are"
            raise ConfigurationError(f"there are no samples of step {step:,}; {latest}: {named}")


def _choose(
    reader: RunReader,
    table: tuple[str, str],
    selection: Selection,
    wanted: Sequence[int],
    examples: Collection[str] | None,
) -> Iterator[ChosenSamples]:
    measured = reader.sample_steps[table]
    steps = [step for step in measured if step in wanted] if wanted else measured
    if selection == "changed":
        pair = (steps[0], measured[-1] if len(wanted) < 2 else steps[-1]) if steps else (0, 0)
        if pair[0] != pair[1]:
            yield from _changed(table, pair, *(_rows(reader, table, step, examples) for step in pair))
    elif selection == "failed":
        failed, num_rows = [], 0
        for step in reversed(steps):
            rows = [row for row in _rows(reader, table, step, examples) if "error" in row.cells]
            num_rows += len(rows)
            failed += [row for row in rows if _has_failed(row.cells)]
        if num_rows:
            yield ChosenSamples(*table, steps, failed, num_rows)
    else:
        for step in steps if wanted else steps[-1:]:
            rows = _rows(reader, table, step, examples)
            num_rows = len(rows)
            if selection == "worst":
                rows = _worst_first(rows)
            if rows or selection == "all":
                yield ChosenSamples(*table, [step], rows, num_rows)


def _rows(reader: RunReader, table: tuple[str, str], step: int, examples: Collection[str] | None) -> list[SampleRow]:
    callback, key = table
    rows = [row for row in reader.samples(callback, step) if row.key == key]
    return rows if examples is None else [row for row in rows if row.example_id in examples]


def _has_failed(cells: Mapping[str, Any]) -> bool:
    """Whether there is an error; that a grader does not apply is none."""
    error = cells.get("error")
    return error is not None and not str(error).startswith(NOT_APPLICABLE)


def _worst_first(rows: Sequence[SampleRow]) -> list[SampleRow]:
    """Those with a grade, the lowest first, or else those with a loss, the highest first."""
    graded = [(grade, row) for row in rows if (grade := number(row, "grade")) is not None]
    scored = graded or [(-loss, row) for row in rows if (loss := number(row, "loss")) is not None]
    return [row for _, row in sorted(scored, key=lambda pair: -inf if isnan(pair[0]) else pair[0])]


def _changed(
    table: tuple[str, str], steps: Sequence[int], before: Sequence[SampleRow], after: Sequence[SampleRow]
) -> Iterator[ChosenSamples]:
    """The answers that both have and that differ: those that got worse, those that got better, the others."""
    earlier = {_identity(row): row for row in before}
    both = [(earlier[_identity(row)], row) for row in after if _identity(row) in earlier and "response" in row.cells]
    pairs = [pair for pair in both if len({tuple(map(row.cells.get, _OUTCOME)) for row in pair}) > 1]
    pairs.sort(key=lambda pair: _worse_first(grade_change(*pair)))
    if both:
        yield ChosenSamples(*table, steps, [row for _, row in pairs], len(both), [row for row, _ in pairs])


def _worse_first(change: float) -> tuple[int, float]:
    """The order of grades that fell, grades that grew, and others; each with the greatest change first."""
    return (0, change) if change < 0 else (1, -change) if change > 0 else (2, 0.0)


def _identity(row: SampleRow) -> tuple[str, Any]:
    return row.example_id, row.cells.get("completion_index")
