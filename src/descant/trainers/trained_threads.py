"""TrainedThreads: a dataset as the tokens that are trained, found before the first step, and what cannot be trained."""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple

from descant.errors import DatasetError
from descant.models.inference import ItemFailure
from descant.models.off_loop import off_loop
from descant.models.training import TrainingModel
from descant.text import duration
from descant.threads.thread import StringThread
from descant.threads.tokenized import TokenizedThread, TurnSpan

OverLong = Literal["error", "skip", "truncate"]
"""What follows when threads cannot be trained as they are."""

_Turns = tuple[tuple[str, ...], tuple[float, ...]]  # roles and loss weights of the located turns
_CHUNK = 256  # threads that are rendered at a time: an interrupted run ends soon
_SILENT_S = 3.0


class Problem(NamedTuple):
    """A thread that is not trained as it is: where it comes from, and why."""

    kind: Literal["over-long", "refused", "nothing trained"]
    place: str
    reason: str


class TrainedThreads:
    """The threads of a dataset that are trained, each rendered once, and what is cut or left out of it.

    Training reads its tokens from here, so that no step waits for a chat template. A token takes four bytes, a thread
    about a hundred more.

    Attributes:
        model, max_length, over_long: as they were given.
        threads: those that are trained, in the order of the dataset.
        lengths: the tokens of every thread of the dataset, before it is cut; 0 if it cannot be rendered.
        num_tokens, num_trained_tokens: of the threads that are trained, together.
        cut: the threads of which only the first ``max_length`` tokens are trained.
        left_out: those that are not trained.
    """

    def __init__(self, model: TrainingModel, max_length: int, over_long: OverLong) -> None:
        self.model, self.max_length, self.over_long = model, max_length, over_long
        self.threads: list[StringThread] = []
        # Of each thread: its number in the dataset, three bounds for each located turn, its tokens.
        self._packed: list[array[int]] = []
        self._turns: list[_Turns] = []
        self._shared: dict[_Turns, _Turns] = {}
        self.lengths = array("i")
        self.num_tokens = self.num_trained_tokens = 0
        self.cut: list[Problem] = []
        self.left_out: list[Problem] = []

    @classmethod
    async def of(
        cls,
        dataset: Sequence[StringThread],
        model: TrainingModel,
        max_length: int,
        over_long: OverLong,
        say: Callable[[str], object],
    ) -> TrainedThreads:
        """Render a dataset, off the event loop; ``say`` is told once how long it takes, if it takes long."""
        found, started_at, has_said = cls(model, max_length, over_long), time.monotonic(), False
        for start in range(0, len(dataset), _CHUNK):
            chunk = dataset[start : start + _CHUNK]
            rendered = await model.tokenize_many(chunk, return_exceptions=True)
            await off_loop(found._add, chunk, rendered)
            passed_s, num_left = time.monotonic() - started_at, len(dataset) - len(found.lengths)
            if not has_said and num_left and passed_s > _SILENT_S:
                has_said, left = True, duration(passed_s * num_left / len(found.lengths))
                say(f"rendering {len(dataset):,} threads, once, before the first step: about {left} more")
        return found

    def __len__(self) -> int:
        """The threads that are trained."""
        return len(self._packed)

    def batch(self, indices: Sequence[int]) -> list[TokenizedThread]:
        """Threads that are trained, by their numbers among them."""
        return [self._tokenized(index) for index in indices]

    def _tokenized(self, index: int) -> TokenizedThread:
        packed, (roles, weights) = self._packed[index], self._turns[index]
        first = 1 + 3 * len(roles)
        spans = [TurnSpan(role, *packed[3 * turn + 1 : 3 * turn + 4]) for turn, role in enumerate(roles)]
        return TokenizedThread(self.threads[index], tuple(packed[first:]), tuple(spans), weights)

    def place(self, index: int) -> str:
        """Where a thread that is trained comes from: file and line, or its place in the dataset."""
        return _place(self.threads[index], self._packed[index][0])

    def length(self, index: int) -> int:
        """The tokens of a thread that is trained, before it is cut."""
        return int(self.lengths[self._packed[index][0]])

    def longest(self) -> int:
        """The number of the longest one."""
        return max(range(len(self)), key=self.length)

    def settings(self) -> dict[str, Any]:
        """What is trained, in numbers."""
        return {
            "num_threads": len(self),
            "num_tokens": self.num_tokens,
            "num_trained_tokens": self.num_trained_tokens,
            "longest": max(self.lengths, default=0),
            "num_cut": len(self.cut),
            "num_left_out": len(self.left_out),
        }

    def refusal(self) -> DatasetError | None:
        """Why the dataset cannot be trained; None if it can."""
        if not self.left_out or (len(self) and self.over_long != "error"):
            return None
        subject = f"{len(self.left_out):,} of {len(self.lengths):,} threads cannot"
        message = f"{subject if len(self) else 'no thread can'} be trained: {self._reasons()}{self._advice()}"
        return DatasetError(message, [(problem.place, problem.reason) for problem in self.left_out])

    def describe_left_out(self) -> str:
        """How many threads are left out, and why."""
        return (
            f"{len(self.left_out):,} of {len(self.lengths):,} threads are left out of training "
            f'(over_long="{self.over_long}"): {self._reasons()}'
        )

    def describe_cut(self) -> str:
        """How many threads are cut."""
        return (
            f"{len(self.cut):,} of {len(self.lengths):,} threads are cut at {self.max_length:,} tokens "
            f'(over_long="truncate"); the longest has {max(self.lengths):,}'
        )

    def _reasons(self) -> str:
        kinds = [problem.kind for problem in self.left_out]
        parts = []
        if num := kinds.count("over-long"):
            longest = f"the longest has {max(self.lengths):,}"
            parts.append(f"{num:,} {_have(num)} more than {self.max_length:,} tokens ({self.limit()}; {longest})")
        if num := kinds.count("refused"):
            parts.append(f"{num:,} cannot be rendered")
        if num := kinds.count("nothing trained"):
            within = f" among the first {self.max_length:,}" if self.over_long == "truncate" else ""
            parts.append(f"{num:,} {_have(num)} no token to train{within}")
        return ", ".join(parts)

    def limit(self) -> str:
        """What bounds the length of a thread."""
        limits = self.model.limits
        if self.max_length < limits.trained:
            return "max_length"
        return "the model's max_batch_size" if self.max_length == limits.max_batch_size else "the model's context"

    def _advice(self) -> str:
        """What to write in place of ``over_long="error"``."""
        ways = ['over_long="skip" leaves them out'] if len(self) else []
        if any(problem.kind == "over-long" for problem in self.left_out):
            ways.append(f'over_long="truncate" trains the first {self.max_length:,} tokens of those that are too long')
            limits, longest = self.model.limits, max(self.lengths)
            if longest <= limits.trained:
                ways.append(f"max_length={longest} trains them whole")
            elif longest <= limits.context:
                ways.append(f"spawn_train(name, max_batch_size={longest}) loads a model that trains them whole")
        return f". {'; '.join(ways)}" if ways else ""

    def _add(self, threads: Sequence[StringThread], rendered: Sequence[TokenizedThread | ItemFailure]) -> None:
        for thread, tokenized in zip(threads, rendered, strict=True):
            index = len(self.lengths)
            place = _place(thread, index)
            if isinstance(tokenized, Exception):
                self.lengths.append(0)
                self.left_out.append(Problem("refused", place, str(tokenized)))
                continue
            length = len(tokenized.token_ids)
            self.lengths.append(length)
            too_long = Problem("over-long", place, f"it has {length:,} tokens") if length > self.max_length else None
            if too_long and self.over_long != "truncate":
                self.left_out.append(too_long)
                continue
            trained = first_tokens(tokenized, self.max_length)
            num_trained = sum(weight > 0 for weight in trained.token_weights())
            if not num_trained:
                where = f" among its first {self.max_length:,}" if too_long else ""
                self.left_out.append(Problem("nothing trained", place, f"no token{where} carries weight"))
                continue
            self.cut += [too_long] if too_long else []
            self.num_tokens += len(trained.token_ids)
            self.num_trained_tokens += num_trained
            turns = tuple(span.role for span in trained.spans), trained.turn_weights
            bounds = [bound for span in trained.spans for bound in span[1:]]
            self.threads.append(thread)
            self._turns.append(self._shared.setdefault(turns, turns))
            self._packed.append(array("i", [index, *bounds, *trained.token_ids]))


def first_tokens(tokenized: TokenizedThread, num_tokens: int) -> TokenizedThread:
    """A tokenized thread of only so many tokens, with the part of its turns that stands there."""
    if len(tokenized.token_ids) <= num_tokens:
        return tokenized
    kept = [
        (TurnSpan(role, start, min(content_end, num_tokens), min(end, num_tokens)), weight)
        for (role, start, content_end, end), weight in zip(tokenized.spans, tokenized.turn_weights, strict=True)
        if start < num_tokens
    ]
    return replace(
        tokenized,
        token_ids=tokenized.token_ids[:num_tokens],
        spans=tuple(span for span, _ in kept),
        turn_weights=tuple(weight for _, weight in kept),
    )


def _place(thread: StringThread, index: int) -> str:
    return thread.source or f"dataset[{index}]"


def _have(num: int) -> str:
    return "has" if num == 1 else "have"
