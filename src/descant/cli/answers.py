"""The model's answers as lines: rows of tables, what changed between two evaluations, one prompt across the run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.text import Text

from descant.cli.grid import cut, grid_lines, heading
from descant.cli.samples import ChosenSamples, Selection, grade_change, number, tables_of, wanted_examples
from descant.cli.whole_samples import last_user_turn, whole_prompt_lines, whole_sample_lines
from descant.runlog.run_reader import RunReader, SampleRow
from descant.text import cell_text, figure, printable

_COLUMNS = ("prompt", "response", "reference", "grade", "error")
_NUM_OTHER_COLUMNS = 4
_NUM_STEPS_SHOWN = 12
_NUM_OTHERS = 3


def sample_lines(
    reader: RunReader, chosen: ChosenSamples, selection: Selection, limit: int, width: int, *, in_full: bool
) -> Iterator[Text]:
    """The first rows of those that were chosen: a table, or each sample whole."""
    yield from _head_lines(reader, chosen, selection, width)
    rows, before = chosen.rows[:limit], chosen.before[:limit]
    if in_full:
        yield from whole_sample_lines(rows, before, width, with_step=selection == "failed")
    elif selection == "changed":
        yield from _change_table(before, rows, chosen.steps, width)
    elif rows:
        columns = _columns(rows)
        if selection == "worst" and any(row.cells.get("reasoning") for row in rows):
            columns.append("reasoning")
        yield from _table(rows, columns, width, with_step=selection == "failed")


def rest_line(num_rows: int, limit: int, width: int) -> Text:
    """How many of the rows are shown, and what shows the others."""
    return Text(cut(f"  {limit:,} of {num_rows:,} are shown; --samples {num_rows} shows all", width), style="dim")


def prompt_lines(
    reader: RunReader, callbacks: Sequence[str], wanted: str | None, width: int, *, in_full: bool = False
) -> Iterator[Text]:
    """The same prompt at every step: the one that is wanted, or the first one of each callback."""
    with_samples = dict.fromkeys(callback for callback, _ in tables_of(reader, callbacks))
    first = {callback: reader.example_ids(callback)[:1] for callback in with_samples}
    for callback, examples in (first if wanted is None else wanted_examples(reader, callbacks, wanted)).items():
        rows_of_key: dict[str, list[SampleRow]] = {}
        for row in reader.samples(callback, example_id=examples[0]):
            if wanted is not None or not row.cells.get("completion_index"):  # the first of several completions
                rows_of_key.setdefault(row.key, []).append(row)
        for key, rows in rows_of_key.items():
            title = _title(reader, callback, key)
            if in_full:
                yield from whole_prompt_lines(rows, title, width)
                continue
            yield from _heading_lines(rows[-1], title, width, whole=wanted is not None)
            columns = [column for column in _columns(rows) if column not in ("prompt", "reference")]
            if wanted is None and len(rows) > _NUM_STEPS_SHOWN:
                last = _NUM_STEPS_SHOWN - 1
                spread = [rows[index * (len(rows) - 1) // last] for index in range(_NUM_STEPS_SHOWN)]
                yield from _table(spread, columns, width, with_step=True)
                shows_all = f"--prompt {examples[0][:8]} shows all"
                yield Text(printable(f"  {_NUM_STEPS_SHOWN} of {len(rows):,} steps; {shows_all}"), "dim")
            else:
                yield from _table(rows, columns, width, with_step=True)
        if len(examples) > 1:
            others = ", ".join(printable(example_id[:8]) for example_id in examples[1 : 1 + _NUM_OTHERS])
            yield Text(f"  the first of {len(examples):,} prompts that contain this; others: {others}", "dim")


def _head_lines(reader: RunReader, chosen: ChosenSamples, selection: Selection, width: int) -> Iterator[Text]:
    """Of which table and evaluation the rows are, and how many there are."""
    title, rows = _title(reader, chosen.callback, chosen.key), f"{chosen.num_rows:,} row{'s' * (chosen.num_rows != 1)}"
    if selection == "failed":
        yield heading(f"{title}: {len(chosen.rows):,} of {rows} failed", width)
    elif selection == "changed":
        yield heading(f"{title} from step {chosen.steps[0]:,} to step {chosen.steps[1]:,}", width)
        changes = list(map(grade_change, chosen.before, chosen.rows))
        counts = {"worse": sum(change < 0 for change in changes), "better": sum(change > 0 for change in changes)}
        graded = ", ".join(f"{count:,} {what}" for what, count in counts.items())
        has_grades = any(number(row, "grade") is not None for row in chosen.rows)
        changed = f"  {len(changes):,} of {chosen.num_rows:,} answers changed{f': {graded}' if has_grades else ''}"
        yield Text(cut(changed, width))
    else:
        order = ""
        if selection == "worst":
            order = ", highest loss first" if number(chosen.rows[0], "grade") is None else ", lowest grade first"
        yield heading(f"{title} at step {chosen.steps[0]:,}, {rows}{order}", width)


def _title(reader: RunReader, callback: str, key: str) -> str:
    """The callback, which of its tables if there are several, and the temperature of its answers."""
    tables = [other for name, other in reader.sample_steps if name == callback]
    temperatures = {of["name"]: of.get("temperature") for of in reader.config.get("callbacks", [])}
    temperature = temperatures.get(callback)
    stated = f" (temperature {figure(temperature)})" if isinstance(temperature, int | float) else ""
    return (callback if len(tables) == 1 else f"{callback}, {key}") + stated


def _table(rows: Sequence[SampleRow], columns: Sequence[str], width: int, *, with_step: bool) -> Iterator[Text]:
    headers = ["step", *columns] if with_step else columns
    cells = [[f"{row.step:,}"] * with_step + [_cell(row, column) for column in columns] for row in rows]
    yield from grid_lines(headers, cells, width, right=("step", "grade"))


def _change_table(
    before: Sequence[SampleRow], after: Sequence[SampleRow], steps: Sequence[int], width: int
) -> Iterator[Text]:
    """The old and the new answer next to each other, each with its grade."""
    if not after:
        return
    columns = [column for column in ("prompt", "reference") if any(row.cells.get(column) for row in after)]
    has_grades = any(number(row, "grade") is not None for row in (*before, *after))
    headers = list(columns)
    for step in steps:
        headers += [f"step {step:,}", *["grade"] * has_grades]
    cells = [[_cell(new, column) for column in columns] for new in after]
    for line, *pair in zip(cells, before, after, strict=True):
        for row in pair:
            line += [_answer(row), *[_cell(row, "grade")] * has_grades]
    yield from grid_lines(headers, cells, width, right=("grade",))


def _answer(row: SampleRow) -> str:
    """The response, or why there is none."""
    response, error = row.cells.get("response"), row.cells.get("error")
    return f"({cell_text(error)})" if response is None and error is not None else cell_text(response)


def _cell(row: SampleRow, column: str) -> str:
    cell = row.cells.get(column)
    return last_user_turn(cell) if column == "prompt" and isinstance(cell, str) and cell else cell_text(cell)


def _heading_lines(row: SampleRow, title: str, width: int, *, whole: bool) -> Iterator[Text]:
    """The callback with its prompt, and the reference if there is one; whole where they were asked for."""
    reference = row.cells.get("reference")
    line = f"{title}: {_cell(row, 'prompt')}" if "prompt" in row.cells else f"{title}, example {row.example_id}"
    yield Text(printable(line), style="bold") if whole else heading(line, width)
    if reference is not None:
        line = f"  reference: {cell_text(reference)}"
        yield Text(printable(line) if whole else cut(line, width))


def _columns(rows: Sequence[SampleRow]) -> list[str]:
    """The columns of a table of samples that are not empty, or the first few of another table."""
    known = [column for column in _COLUMNS if any(row.cells.get(column) is not None for row in rows)]
    if any("response" in row.cells for row in rows):
        return known
    given = dict.fromkeys(
        column for row in rows for column, cell in row.cells.items() if column != "example_id" and cell is not None
    )
    return list(given)[:_NUM_OTHER_COLUMNS]
