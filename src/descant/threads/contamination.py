"""Contamination: prompts of validation sets that are trained on."""

from __future__ import annotations

import re
import sys
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from descant.threads.quoting import quoted
from descant.threads.thread import StringThread
from descant.threads.tools import ToolCall

_NUM_EXAMPLES = 3


@dataclass(frozen=True)
class ContaminationExample:
    """A prompt of a validation set and one in the training set that is the same.

    Attributes:
        validation: the place of the one.
        training: the place of the other, the first if there are several.
        text: the last turn of the validation prompt.
        is_exact: False if they differ in case, space, punctuation or system turns.
    """

    validation: str
    training: str
    text: str
    is_exact: bool


@dataclass(frozen=True)
class Contamination:
    """What a validation set has in common with the training set.

    Attributes:
        name: of the validation set.
        num_prompts: that it has.
        num_exact: how many of them stand in the training set as they are.
        num_normalised: how many more stand there but for case, space, punctuation and system turns.
        examples: the first few.
    """

    name: str
    num_prompts: int
    num_exact: int
    num_normalised: int
    examples: tuple[ContaminationExample, ...]

    def describe(self) -> str:
        """One line for a person: how many prompts, and the examples."""
        shown = ", ".join(
            f"{example.validation} {'=' if example.is_exact else '≈'} {example.training} {quoted(example.text)}"
            for example in self.examples
        )
        return (
            f"{self.name}: {self.num_exact + self.num_normalised} of {self.num_prompts} prompts also stand in the "
            f"training set ({self.num_exact} exactly, {self.num_normalised} but for case, space and punctuation); "
            f"first: {shown}"
        )


def find_contamination(
    training_set: Sequence[StringThread], validation_sets: Mapping[str, Sequence[StringThread]]
) -> list[Contamination]:
    """The validation sets of which prompts stand in the training set, too; none for those that have no such prompt.

    A validation prompt is ``thread.messages()``. In training, every prompt counts that an answer is trained to: the
    turns before each assistant turn that carries weight. Prompts are compared as they are, and normalised: Unicode's
    compatibility form (NFKC), case folded, punctuation and white space as one space, system turns left out. Symbols
    (``+``, ``=``, ``$``) stay, and so does punctuation between digits, so that ``6/2`` and ``6*2`` differ. Prompts
    of which nothing is left are compared as they are.

    It takes time in proportion to the training set, and memory to the validation sets.
    """
    index = _Index(validation_sets)
    for position, thread in enumerate(training_set):
        index.look_up(thread, position)
    return [found for name in validation_sets if (found := index.result(name)).examples]


@dataclass
class _Prompt:
    """A validation prompt, and where the training set has it."""

    thread: StringThread
    place: str
    exactly: str | None = None
    nearly: str | None = None


class _Index:
    """Validation prompts by the hash of what they are normalised to."""

    def __init__(self, validation_sets: Mapping[str, Sequence[StringThread]]) -> None:
        self.by_set: dict[str, list[_Prompt]] = {}
        self.by_hash: dict[int, list[_Prompt]] = {}
        for name, threads in validation_sets.items():
            prompts = self.by_set[name] = []
            for position, thread in enumerate(threads):
                prompt = _Prompt(thread.without_completion(), thread.source or f"{name}[{position}]")
                if len(prompt.thread):
                    prompts.append(prompt)
                    self.by_hash.setdefault(_hash(prompt.thread), []).append(prompt)

    def look_up(self, thread: StringThread, position: int) -> None:
        """Notes the validation prompts that this training thread answers."""
        for num_turns, hashed in _prompts_of(thread):
            if hashed not in self.by_hash:
                continue
            trained = thread.first_turns(num_turns)
            for prompt in self.by_hash[hashed]:
                place = thread.source or f"training_set[{position}]"
                if _turns(trained) == _turns(prompt.thread):
                    prompt.exactly = prompt.exactly or place
                elif (normal := _normal_turns(trained)) == _normal_turns(prompt.thread) and any(n for _, n in normal):
                    prompt.nearly = prompt.nearly or place

    def result(self, name: str) -> Contamination:
        prompts = self.by_set[name]
        exact = [prompt for prompt in prompts if prompt.exactly is not None]
        nearly = [prompt for prompt in prompts if prompt.exactly is None and prompt.nearly is not None]
        examples = tuple(
            ContaminationExample(
                prompt.place, prompt.exactly or prompt.nearly or "", prompt.thread.last_content(), bool(prompt.exactly)
            )
            for prompt in (*exact, *nearly)[:_NUM_EXAMPLES]
        )
        return Contamination(name, len(prompts), len(exact), len(nearly), examples)


def _prompts_of(thread: StringThread) -> Iterator[tuple[int, int]]:
    """The prompts that a thread is trained to answer: how many turns each has, and its hash.

    The hash goes on from turn to turn, so that a long conversation costs no more than its text.
    """
    hashed = 0
    weights = thread.get_turn_weights()
    last = len(weights) - 1
    while last > 0 and weights[last] == 0:
        last -= 1
    turns = zip(thread.get_turns(), thread.get_tool_calls(), weights, strict=True)
    for index, ((role, content), calls, weight) in enumerate(turns):
        if weight and role == "assistant" and index:
            yield index, hashed
        if index == last:
            return
        if role != "system":
            hashed = hash((hashed, role, _normalised(content, calls)))


def _hash(thread: StringThread) -> int:
    hashed = 0
    for role, text in _normal_turns(thread):
        hashed = hash((hashed, role, text))
    return hashed


def _turns(thread: StringThread) -> object:
    return thread.get_turns(), thread.get_tool_calls()


def _normal_turns(thread: StringThread) -> list[tuple[str, str]]:
    turns = zip(thread.get_turns(), thread.get_tool_calls(), strict=True)
    return [(role, _normalised(content, calls)) for (role, content), calls in turns if role != "system"]


# Normalising

_ASCII_PUNCTUATION = "".join(c for c in map(chr, range(128)) if unicodedata.category(c).startswith("P"))
_ASCII_TO_SPACE = str.maketrans(dict.fromkeys(_ASCII_PUNCTUATION, " "))
_KEPT = {mark: chr(0xF0000 + ord(mark)) for mark in _ASCII_PUNCTUATION}
"""Private-use characters for punctuation between digits, while the rest of it is taken away."""
_BETWEEN_DIGITS = re.compile(rf"(?<=\d)\s*([{re.escape(_ASCII_PUNCTUATION)}]+)\s*(?=\d)")


def _normalised(text: str, calls: Sequence[ToolCall] = ()) -> str:
    if calls:
        text = " ".join((text, *(f"{call.name} {call.arguments}" for call in calls)))
    is_ascii = text.isascii()
    if not is_ascii:
        text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    if _BETWEEN_DIGITS.search(text):
        text = _BETWEEN_DIGITS.sub(lambda match: "".join(map(_KEPT.__getitem__, match[1])), text)
    if is_ascii:
        text = text.lower()
    return " ".join(text.translate(_ASCII_TO_SPACE if is_ascii else _all_to_space()).split())


@cache
def _all_to_space() -> dict[int, str]:
    """A table that makes every punctuation character of Unicode a space."""
    return {code: " " for code in range(sys.maxunicode) if unicodedata.category(chr(code)).startswith("P")}
