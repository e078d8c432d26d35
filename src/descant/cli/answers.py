"""The model's answers: the latest samples, and one prompt across the run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.text import Text

from descant.cli.grid import grid_lines, heading
from descant.errors import ConfigurationError
from descant.runlog.run_reader import RunReader, SampleRow
from descant.text import cell_text, printable

_COLUMNS = ("prompt", "response", "grade", "reference", "error")
_NUM_OTHER_COLUMNS = 4
_NUM_STEPS_SHOWN = 12
_NUM_OTHERS = 3


def latest_sample_lines(reader: RunReader, callbacks: Sequence[str], num_samples: int, width: int) -> Iterator[Text]:
    """The first rows of every table that the callbacks returned, at its latest step."""
    for callback, key in _tables(reader, callbacks):
        step = reader.sample_steps[callback, key][-1]
        rows = [row for row in reader.samples(callback, step) if row.key == key]
        yield heading(f"{_title(reader, callback, key)} at step {step:,}, {len(rows):,} rows", width)
        columns = _columns(rows[:num_samples])
        cells = [[cell_text(row.cells.get(column)) for column in columns] for row in rows[:num_samples]]
        yield from grid_lines(columns, cells, width, right=("grade",))


def prompt_lines(reader: RunReader, callbacks: Sequence[str], wanted: str | None, width: int) -> Iterator[Text]:
    """The same prompt at every step: the one that is wanted, or the first one of each callback."""
    for callback, examples in _wanted_examples(reader, callbacks, wanted).items():
        rows_of_key: dict[str, list[SampleRow]] = {}
        for row in reader.samples(callback, example_id=examples[0]):
            if wanted is not None or not row.cells.get("completion_index"):  # the first of several completions
                rows_of_key.setdefault(row.key, []).append(row)
        for key, rows in rows_of_key.items():
            yield from _heading_lines(rows[-1], _title(reader, callback, key), width, in_full=wanted is not None)
            if wanted is None and len(rows) > _NUM_STEPS_SHOWN:
                last = _NUM_STEPS_SHOWN - 1
                spread = [rows[index * (len(rows) - 1) // last] for index in range(_NUM_STEPS_SHOWN)]
                yield from _across_the_run(spread, width)
                yield Text(f"  {_NUM_STEPS_SHOWN} of {len(rows):,} steps; --prompt {examples[0][:8]} shows all", "dim")
            else:
                yield from _across_the_run(rows, width)
        if len(examples) > 1:
            others = ", ".join(printable(example_id) for example_id in examples[1 : 1 + _NUM_OTHERS])
            yield Text(f"  the first of {len(examples):,} prompts that contain this; others: {others}", "dim")


def _wanted_examples(reader: RunReader, callbacks: Sequence[str], wanted: str | None) -> dict[str, list[str]]:
    """The examples by callback, of which the first is shown."""
    with_samples = list(dict.fromkeys(callback for callback, _ in _tables(reader, callbacks)))
    if wanted is None:
        return {callback: reader.example_ids(callback)[:1] for callback in with_samples}
    found: dict[str, list[str]] = {callback: [] for callback in with_samples}
    for callback, example_id in reader.find_examples(wanted):
        found.get(callback, []).append(example_id)
    if not any(found.values()):
        where = ", ".join(with_samples) or "no callback"
        raise ConfigurationError(
            f"no prompt contains {wanted!r} and no example id begins with it (samples are from: {where})"
        )
    return {callback: examples for callback, examples in found.items() if examples}


def _heading_lines(row: SampleRow, title: str, width: int, *, in_full: bool) -> Iterator[Text]:
    """The callback with its prompt, and the reference if there is one; in full where they were asked for."""
    prompt, reference = row.cells.get("prompt"), row.cells.get("reference")
    line = f"{title}: {cell_text(prompt)}" if prompt is not None else f"{title}, example {row.example_id}"
    yield Text(printable(line), style="bold") if in_full else heading(line, width)
    if reference is not None:
        yield Text(printable(f"  reference: {cell_text(reference)}", None if in_full else width))


def _across_the_run(rows: Sequence[SampleRow], width: int) -> Iterator[Text]:
    columns = [column for column in _columns(rows) if column not in ("prompt", "reference")]
    cells = [[f"{row.step:,}", *(cell_text(row.cells.get(column)) for column in columns)] for row in rows]
    yield from grid_lines(["step", *columns], cells, width, right=("step", "grade"))


def _columns(rows: Sequence[SampleRow]) -> list[str]:
    """The columns of a table of samples that are not empty, or the first few of another table."""
    known = [column for column in _COLUMNS if any(row.cells.get(column) is not None for row in rows)]
    if any("response" in row.cells for row in rows):
        return known
    given = dict.fromkeys(column for row in rows for column in row.cells if column != "example_id")
    return list(given)[:_NUM_OTHER_COLUMNS]


def _tables(reader: RunReader, callbacks: Sequence[str]) -> list[tuple[str, str]]:
    """The tables of the callbacks as (callback, key), in the order of the callbacks."""
    return sorted(
        (table for table in reader.sample_steps if table[0] in callbacks), key=lambda t: callbacks.index(t[0])
    )


def _title(reader: RunReader, callback: str, key: str) -> str:
    """The callback, and which of its tables if there are several."""
    tables = [other for name, other in reader.sample_steps if name == callback]
    return callback if len(tables) == 1 else f"{callback}, {key}"
