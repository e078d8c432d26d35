"""Samples as blocks: all texts of each, wrapped, with their labels."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence

from rich.text import Text

from descant.cli.grid import heading, labelled_lines
from descant.runlog.run_reader import SampleRow
from descant.text import cell_text, figure

_TURN = re.compile(r"(?:\A|\n\n)\[(system|user|assistant|tool)\]\n")
"""The head of a turn in the prompt of a conversation of several."""
_QUESTION = ("system", "prompt", "reference")
_TEXTS = ("system", "prompt", "response", "reference", "reasoning", "error")
_IN_TITLE = ("example_id", "completion_index", "num_tokens", "finish_reason")
_LEN_ID = 8
_AS_ABOVE = "(as above)"


def last_user_turn(prompt: str) -> str:
    """What the user said last; an ellipsis stands for the turns before it."""
    turns = _turns(prompt)
    asked = [text for role, text in turns if role == "user"] or [turns[-1][1]]
    return asked[-1] if len(turns) == 1 else f"… {asked[-1]}"


def whole_sample_lines(
    rows: Sequence[SampleRow], before: Sequence[SampleRow], width: int, *, with_step: bool
) -> Iterator[Text]:
    """Each sample as a block; of samples that changed, the old answer (of ``before``) above the new one."""
    several = any(row.cells.get("completion_index") for row in rows)
    system: str | None = None
    for index, row in enumerate(rows):
        facts = [row.example_id[:_LEN_ID], *[f"step {row.step:,}"] * with_step]
        facts += [f"completion {row.cells.get('completion_index')}"] * several
        yield Text()
        yield heading(" · ".join([*facts, *([] if before else _numbers(row))]), width)
        yield from labelled_lines(_texts(row, system, _QUESTION if before else ()), width)
        for answer in (before[index], row) if before else ():
            yield from _answer_lines(answer, width)
        system = row.cells.get("system")


def whole_prompt_lines(rows: Sequence[SampleRow], title: str, width: int) -> Iterator[Text]:
    """A prompt, and below it the answer at every step."""
    yield heading(f"{title}, {rows[-1].example_id}", width)
    yield from labelled_lines(_texts(rows[-1], None, _QUESTION), width)
    for row in rows:
        yield from _answer_lines(row, width)


def _answer_lines(row: SampleRow, width: int) -> Iterator[Text]:
    """An answer of a prompt that is shown already."""
    index = row.cells.get("completion_index")
    facts = [f"step {row.step:,}", *([f"completion {index}"] if index else []), *_numbers(row)]
    yield Text()
    yield heading(f"  {' · '.join(facts)}", width)
    answer = [column for column in (*_TEXTS, *row.cells) if column not in _QUESTION]
    yield from labelled_lines(_texts(row, None, answer), width)


def _numbers(row: SampleRow) -> list[str]:
    """The cells that are numbers, for the title of a block: the grade first, the length last."""
    columns = sorted(row.cells, key=lambda column: column != "grade")
    cells = {column: row.cells[column] for column in columns if column not in _IN_TITLE}
    facts = [f"{column} {cell_text(cell)}" for column, cell in cells.items() if isinstance(cell, int | float)]
    num_tokens = row.cells.get("num_tokens")
    if isinstance(num_tokens, int):
        cut_off = "cut off at " if row.cells.get("finish_reason") == "length" else ""
        facts.append(f"{cut_off}{figure(num_tokens)} token{'s' * (num_tokens != 1)}")
    return facts


def _texts(row: SampleRow, system: str | None, columns: Collection[str] = ()) -> list[tuple[str, str]]:
    """The cells that are texts, by label: those of the columns, or all. A system prompt that is the same as in the
    sample above it is not repeated, and a prompt of several turns has a label for each."""
    texts: list[tuple[str, str]] = []
    for column in dict.fromkeys(columns or (*_TEXTS, *row.cells)):
        cell = row.cells.get(column)
        if not isinstance(cell, str) or column in _IN_TITLE or (column == "system" and not cell):
            continue
        if column == "prompt":
            texts += _turns(cell)
        else:
            texts.append((column, _AS_ABOVE if column == "system" and cell == system else cell))
    return texts


def _turns(prompt: str) -> list[tuple[str, str]]:
    """The turns of a prompt as (role, text); a prompt of a single turn has the role "prompt"."""
    heads = list(_TURN.finditer(prompt))
    if not heads or heads[0].start():
        return [("prompt", prompt)]
    ends = [*(head.start() for head in heads[1:]), len(prompt)]
    return [(head[1], prompt[head.end() : end]) for head, end in zip(heads, ends, strict=True)]
