"""Normal form: prompts without what people vary when they write the same one again."""

from __future__ import annotations

import re
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from functools import cache

from descant.threads.thread import ROLES, StringThread, StringTurn
from descant.threads.tools import ToolCall


def prompts_of(thread: StringThread, num_turns: int = 0) -> Iterator[tuple[int, int]]:
    """The prompts that a thread is trained to answer: how many turns each has, and the hash of its normal form.

    ``num_turns`` are those of one more prompt, if it is not 0. The hash goes on from turn to turn, so that a long
    conversation costs no more than its text.
    """
    turns, weights = thread.get_turns(), thread.get_turn_weights()
    ends = {index for index, weight in enumerate(weights) if weight and turns[index].role == "assistant"}
    ends.add(num_turns)
    last = max(ends)
    calls = thread.get_tool_calls()
    counts = _roles_that_count(turns)
    hashed = 0
    for index in range(last + 1):
        if index and index in ends:
            yield index, hashed
        if index < last and turns[index].role in counts:
            hashed = hash((hashed, turns[index].role, _normalised(turns[index].content, calls[index])))


def normal_turns(thread: StringThread, max_turns: int | None = None) -> list[tuple[str, str]]:
    """Role and normalised text of the turns of a thread that count, or of the first ``max_turns`` of them."""
    turns = thread.get_turns()
    counts = _roles_that_count(turns)
    counted = [pair for pair in zip(turns, thread.get_tool_calls(), strict=True) if pair[0].role in counts]
    return [(role, _normalised(content, calls)) for (role, content), calls in counted[:max_turns]]


def _roles_that_count(turns: list[StringTurn]) -> tuple[str, ...]:
    """All but system, unless nothing else stands before the first answer: then the system turn is the prompt."""
    for role, _ in turns:
        if role != "system":
            return ROLES if role == "assistant" else ROLES[1:]
    return ROLES


_OPERAND_BEFORE, _OPERAND_AFTER = r"(?:(?<=[\d)\]])|(?<=\b\w))", r"(?=[\d(\[]|\w\b)"
_CALCULATES = re.compile(
    rf"""
    (?=[ ]?[!-/:-@\[-_{{-~])(?:                         # nothing else is looked at
      (?<=\d)[ ]?([!-/:;?@\[-\]_{{}}]+?)[ ]?(?=\d)        # between digits
    | {_OPERAND_BEFORE}[ ]?(-)[ ]?{_OPERAND_AFTER}       # x - y
    | (?<!\w)(-){_OPERAND_AFTER} | (?<!\w)(\.)(?=\d)   # -5 and .5
    | (?:(?<=\d)|(?<=\b\w))(!) | (!)(?==)             # n! and !=
    | [ ]?([+*/=<>^|~]+)[ ]?                            # operators, without the space around them
    )
    """,
    re.VERBOSE,
)
_SENTENCE = ".,;:?!\"'()[]{}-"
_KEPT = {ord(mark): 0xF0000 + ord(mark) for mark in map(chr, range(33, 127))}
"""Private-use characters for punctuation that calculates, while the rest of it is taken away."""
_ASCII_TO_SPACE = dict.fromkeys(map(ord, _SENTENCE), " ")


def _normalised(text: str, calls: Sequence[ToolCall] = ()) -> str:
    if calls:
        text = " ".join((text, *(f"{call.name} {call.arguments}" for call in calls)))
    is_ascii = text.isascii()
    if is_ascii:
        text = text.lower()
    else:
        text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold()).translate(_dashes())
    text = " ".join(text.split())
    text = _CALCULATES.sub(lambda match: match[match.lastindex or 0].translate(_KEPT), text)
    return " ".join(text.translate(_ASCII_TO_SPACE if is_ascii else _all_to_space()).split()) or text


@cache
def _dashes() -> dict[int, str]:
    """A table that makes every dash of Unicode, and its minus sign, an ASCII one."""
    return {code: "-" for code in range(128, sys.maxunicode) if unicodedata.category(chr(code)) == "Pd"} | {0x2212: "-"}


@cache
def _all_to_space() -> dict[int, str]:
    """A table that makes sentence punctuation, and every punctuation character that is not ASCII, a space."""
    others = (code for code in range(128, sys.maxunicode) if unicodedata.category(chr(code)).startswith("P"))
    return {**_ASCII_TO_SPACE, **dict.fromkeys(others, " ")}
