"""The probe: how a model can be driven, found out with a few tokens when it is loaded or handed over.

What an engine does with a model (padding, a cache, rows that leave and others that take their place) is compared with
one plain forward pass per sequence: token ids alone, no cache. The fastest way that gives the same up to rounding is
taken; a model that none fits is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import inf, isfinite
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from descant.engine.budgets import Budgets
from descant.engine.driving import GENERATION_WAYS, SCORING_WAYS, Driving, describe_generation, describe_scoring
from descant.engine.forward import ForwardPass
from descant.engine.generate import Decoder, GenerationSettings
from descant.engine.jobs import GenerationRequest, Sampling, WeightedSequence
from descant.engine.kv_cache import has_replaceable_rows
from descant.engine.precision import module_mode
from descant.engine.randomness import PrivateRandomness
from descant.engine.score import TokenScorer, vocabulary_size
from descant.errors import ModelLoadError
from descant.text import cut

# T positions of a sequence, V vocabulary

WayT = TypeVar("WayT")
_Pairs = list[tuple[Tensor, Tensor]]
"""Logits that were found and those that are expected, [T, V]."""
_Attempt = Callable[["_Sample"], _Pairs]
_PROMPT_LENGTHS, _LENGTHS = (6, 3, 3), (8, 8, 6)
"""The first prompt is longer, so that others are padded; the second row continues while the third takes its place."""
_TOLERANCES = {torch.bfloat16: 6e-2, torch.float16: 1e-2}
_TOLERANCE = {"cpu": 1e-4, "cuda": 3e-3}  # of float32, which a GPU may compute in TF32
"""What rounding makes of logits in all layers and in other orders of summation, relative to the largest."""
_TRIES = 3  # below float32, where rounding may send a token to another expert


def find_driving(model: Any) -> Driving:
    """The fastest right way to drive a model. The modes of modules and the global random generators are left alone.

    Raises:
        ModelLoadError: its weights are not loaded, it cannot be called with token ids alone, its logits are not finite,
            or it is not causal.
    """
    if any(parameter.is_meta for parameter in model.parameters()):
        raise ModelLoadError(f"{type(model).__name__} has weights on the meta device: they are not loaded")
    randomness = PrivateRandomness(torch.Generator(model.device))
    with torch.no_grad(), module_mode(model, training=False), randomness:
        return _Probe(model).driving()


class _Sample:
    """Three sequences, and their logits by a plain forward pass on each, [T, V]."""

    def __init__(self, model: Any, forward: ForwardPass, number: int) -> None:
        self.device = model.device
        self.forward = forward
        ids = iter(_ordinary_tokens(model, number * sum(_LENGTHS), sum(_LENGTHS)))
        sequences = [[next(ids) for _ in range(length)] for length in _LENGTHS]
        pad = getattr(model.config.get_text_config(), "pad_token_id", None)
        if isinstance(pad, int) and 0 <= pad < vocabulary_size(model):
            sequences[1][-4] = pad  # it may be generated too, and some models count positions without it
        self.sequences = [tuple(sequence) for sequence in sequences]
        self.logits = [self.plain_logits(sequence) for sequence in self.sequences]

    def plain_logits(self, sequence: Sequence[int]) -> Tensor:
        logits_BTV: Tensor = self.forward(torch.tensor([sequence], device=self.device)).logits
        return logits_BTV[0]


class _Probe:
    """The tries of a model."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.name = type(model).__name__
        forward = ForwardPass(model)
        try:
            first = _Sample(model, forward, 0)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # models raise all kinds
            raise ModelLoadError(
                f"{self.name} cannot be called with token ids alone: {_described(error)}; a causal language model of "
                "text is needed"
            ) from error
        if not all(logits.isfinite().all() for logits in first.logits):
            raise ModelLoadError(f"the logits of {self.name} are not finite: its weights are broken")
        self.tolerance = _tolerance(model, first.logits[0])
        is_rough = self.tolerance > max(_TOLERANCE.values())
        self.samples = [first, *(_Sample(model, forward, n) for n in range(1, _TRIES if is_rough else 1))]

    def driving(self) -> Driving:
        """The first way to score and the first way to generate that give the expected logits."""
        if found := self._problem(self._causal):
            raise ModelLoadError(
                f"{self.name} is not causal: a later token changes what it predicts before ({found}); a decoder is "
                "needed"
            )
        head_gives_logits = self._head_gives_the_logits()
        scoring = self._first_right(
            SCORING_WAYS, describe_scoring, lambda rows: partial(self._scored, Driving(head_gives_logits, rows))
        )
        replaces_rows = has_replaceable_rows(self.model.config)
        ways = [
            (cache, rows)
            for cache, rows in GENERATION_WAYS
            if (cache != "replaced rows" or replaces_rows) and (cache != "none" or rows == scoring)
        ]
        cache, rows = self._first_right(
            ways,
            lambda way: describe_generation(*way),
            lambda way: partial(self._generated, Driving(head_gives_logits, scoring, *way)),
        )
        return Driving(head_gives_logits, scoring, cache, rows)

    def _first_right(
        self, ways: Sequence[WayT], describe: Callable[[WayT], str], attempt: Callable[[WayT], _Attempt]
    ) -> WayT:
        """The first of several ways that is right."""
        problems = []
        for way in ways:
            problem = self._problem(attempt(way))
            if not problem:
                return way
            problems.append(f"\n  if {describe(way)}: {problem}")
        raise ModelLoadError(
            f"{self.name} gives other logits than one forward pass on each sequence does, however it is driven: "
            f"{''.join(problems)}"
        )

    def _problem(self, attempt: _Attempt) -> str:
        """What is wrong with what was tried, in words; empty if it gives the expected logits of a sample."""
        problem = ""
        for sample in self.samples:
            try:
                error = max(_difference(found, expected) for found, expected in attempt(sample))
            except torch.OutOfMemoryError:
                raise
            except Exception as raised:  # models raise all kinds
                return _described(raised)
            if error <= self.tolerance:
                return ""
            problem = problem or f"they differ by {error:.2g} of the largest, where rounding explains {self.tolerance}"
        return problem

    def _causal(self, sample: _Sample) -> _Pairs:
        prompt = sample.sequences[0][: _PROMPT_LENGTHS[0]]
        return [(sample.plain_logits(prompt), sample.logits[0][: len(prompt)])]

    def _scored(self, driving: Driving, sample: _Sample) -> _Pairs:
        pairs: _Pairs = []
        scorer = TokenScorer(self.model, driving)
        weighted = [WeightedSequence(sequence, (1.0,) * len(sequence)) for sequence in sample.sequences]
        budgets = Budgets(self.model, driving, sum(_LENGTHS) * 2, 0)
        for batch in budgets.micro_batches(weighted, [None] * len(weighted)):
            ids_BT = pad_sequence([torch.tensor(sample.sequences[index]) for index in batch], batch_first=True)
            rows_N = torch.tensor([row for row, index in enumerate(batch) for _ in range(_LENGTHS[index])])
            columns_N = torch.cat([torch.arange(_LENGTHS[index]) for index in batch])
            found_NV = scorer.logits(*(each.to(sample.device) for each in (ids_BT, rows_N, columns_N)))
            found = torch.split(found_NV, [_LENGTHS[index] for index in batch])
            pairs += zip(found, [sample.logits[index] for index in batch], strict=True)
        return pairs

    def _generated(self, driving: Driving, sample: _Sample) -> _Pairs:
        """Of given tokens, in two rows, with a pass of other code in between; and one pass more, which has to be as it
        was: what the model keeps in itself would change training."""
        decoder = _GivenTokens(TokenScorer(self.model, driving), sample)
        num_steps = 0

        def pass_in_between(num_done: int = 0) -> None:
            nonlocal num_steps
            num_steps += 1
            if num_steps == 3:
                sample.plain_logits(sample.sequences[2])

        decoder.run(pass_in_between)
        pairs = [(sample.plain_logits(sample.sequences[0]), sample.logits[0])]
        for request, start in enumerate(_PROMPT_LENGTHS):
            pairs.append((torch.stack(decoder.seen[request]), sample.logits[request][start - 1 : -1]))
        return pairs

    def _head_gives_the_logits(self) -> bool:
        """Whether the logits are the head's output on the last hidden state, unchanged.

        Soft-capping hardly shows on small logits, so the head's output is replaced by large known numbers once.
        """
        head, sample = self.model.get_output_embeddings(), self.samples[0]
        if head is None or self.model.base_model is self.model:
            return False
        if self._problem(partial(self._scored, Driving(True, "one at a time"))):
            return False
        logits = sample.logits[0]
        known = torch.linspace(-1000, 1000, logits.numel(), device=logits.device).view_as(logits).to(logits.dtype)
        hook = head.register_forward_hook(lambda *_: known.unsqueeze(0))
        try:
            return torch.equal(sample.plain_logits(sample.sequences[0]), known)
        finally:
            hook.remove()


class _GivenTokens(Decoder):
    """A decoder, with two rows, of completions that are given; it keeps the logits that it sees."""

    def __init__(self, scorer: TokenScorer, sample: _Sample) -> None:
        self.sequences = sample.sequences
        self.seen: list[list[Tensor]] = [[] for _ in self.sequences]
        requests = [GenerationRequest(s[:start], 0) for s, start in zip(self.sequences, _PROMPT_LENGTHS, strict=True)]
        settings = GenerationSettings((), 2 * max(_LENGTHS), sum(_LENGTHS), str)
        super().__init__(scorer, requests, Sampling(), settings)

    def choose(self, rows: Sequence[int | None], logits_BV: Tensor, uniforms_B: Tensor) -> Tensor:
        """The given token of each row."""
        tokens = [0] * len(rows)
        for place, row in enumerate(rows):
            if row is not None:
                self.seen[row].append(logits_BV[place])
                tokens[place] = self.sequences[row][len(self.prompts[row]) + len(self.outputs[row])]
        return torch.tensor(tokens, device=logits_BV.device)

    def _most_tokens(self, request: int) -> int:
        return len(self.sequences[request])


def _ordinary_tokens(model: Any, start: int, number: int) -> list[int]:
    """Tokens from all over the vocabulary, but for those that the configuration names: padding, images."""
    settings = {**model.config.to_dict(), **model.config.get_text_config().to_dict()}
    named = {
        value
        for name, value in settings.items()
        if name.endswith(("token_id", "token_index")) and isinstance(value, int)
    }
    vocabulary = min(vocabulary_size(model), settings.get("vocab_size") or vocabulary_size(model))
    ids = [i * 7919 % vocabulary for i in range(start, start + 2 * number + len(named))]
    return ([token for token in ids if token not in named] or ids)[:number]


def _tolerance(model: Any, logits: Tensor) -> float:
    """What rounding explains: of the coarsest format of the weights, or of the logits if they are rounded to it."""
    for dtype, tolerance in _TOLERANCES.items():
        has_weights = any(parameter.dtype == dtype for parameter in model.parameters())
        if has_weights or torch.equal(logits.to(dtype).to(logits.dtype), logits):
            return tolerance
    return _TOLERANCE[model.device.type]


def _difference(found: Tensor, expected: Tensor) -> float:
    """The largest difference, as a fraction of the largest logit."""
    difference = float((found.float() - expected.float()).abs().max() / expected.float().abs().max())
    return difference if isfinite(difference) else inf


def _described(error: Exception) -> str:
    return f"{type(error).__name__}: {cut(str(error), 200)}"
