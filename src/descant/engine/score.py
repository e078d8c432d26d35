"""Scoring: log-probabilities of chosen tokens, without the logits of all others; and the sequences that have none."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint

from descant.engine.jobs import WeightedSequence
from descant.errors import (
    ModelLoadError,
    NonFiniteSequenceError,
    NoTrainedTokensError,
    RequestError,
    SequenceTooLongError,
)

# B rows, T positions, H hidden size, V vocabulary, N trained tokens of a micro-batch

MAX_LOGITS = 2**24
"""Logits held at a time, as float32 elements (64 MiB)."""


class TokenScorer:
    """Log-probabilities of the weighted tokens of a batch under a causal language model.

    Only positions that predict a weighted token reach the output layer, at most ``MAX_LOGITS`` logits at a time (each
    chunk's are computed again in the backward pass), so no [B, T, V] tensor exists. Models whose logits are more than
    the output layer on the last hidden state (soft-capping) are found by a probe, and scored by their own forward pass.
    """

    def __init__(self, model: Any, head_gives_logits: bool | None = None) -> None:
        self.model = model
        self.head: nn.Module | None = model.get_output_embeddings()
        if head_gives_logits is None:
            self.check_causal()
            head_gives_logits = self._head_gives_the_logits()
        if not head_gives_logits:
            self.head = None

    def logprobs(self, sequences: Sequence[WeightedSequence]) -> tuple[Tensor, Tensor]:
        """Log-probabilities (float32) and weights of all weighted tokens, both [N], in order of sequence and position.

        Rows are padded on the right, without a mask: with causal attention no token sees the padding behind it.
        """
        ids_BT = pad_sequence([torch.tensor(s.token_ids) for s in sequences], batch_first=True)
        weights_BT = pad_sequence([torch.tensor(s.weights, dtype=torch.float64) for s in sequences], batch_first=True)
        rows_N, columns_N = (weights_BT > 0).nonzero(as_tuple=True)
        weights_N = weights_BT[rows_N, columns_N].float()
        ids_BT, weights_N, rows_N, columns_N = (
            tensor.to(self.model.device) for tensor in (ids_BT, weights_N, rows_N, columns_N)
        )
        targets_N = ids_BT[rows_N, columns_N]
        if self.head is None:
            logits_BTV = self.model(input_ids=ids_BT, use_cache=False).logits
            return _token_logprobs(logits_BTV[rows_N, columns_N - 1], targets_N), weights_N
        hidden_BTH = self.model.base_model(input_ids=ids_BT, use_cache=False).last_hidden_state
        return self._head_logprobs(hidden_BTH[rows_N, columns_N - 1], targets_N), weights_N

    def _head_logprobs(self, hidden_NH: Tensor, targets_N: Tensor) -> Tensor:
        chunk_size = max(1, MAX_LOGITS // self.model.get_input_embeddings().weight.shape[0])
        if len(targets_N) <= chunk_size:
            return self._chunk_logprobs(hidden_NH, targets_N)
        chunks = zip(torch.split(hidden_NH, chunk_size), torch.split(targets_N, chunk_size), strict=True)
        compute = partial(checkpoint, self._chunk_logprobs, use_reentrant=False, preserve_rng_state=False)
        return torch.cat([compute(*chunk) for chunk in chunks])

    def _chunk_logprobs(self, hidden_NH: Tensor, targets_N: Tensor) -> Tensor:
        assert self.head is not None
        return _token_logprobs(self.head(hidden_NH), targets_N)

    @torch.no_grad()
    def _head_gives_the_logits(self) -> bool:
        """Whether the logits are the head's output on the last hidden state, unchanged.

        Soft-capping hardly shows on small logits, so the head's output is replaced by large known numbers once.
        """
        if self.head is None or self.model.base_model is self.model:
            return False
        probe = torch.arange(4, device=self.model.device).unsqueeze(0)
        logits = self.model(input_ids=probe, use_cache=False).logits
        hidden = self.model.base_model(input_ids=probe, use_cache=False).last_hidden_state
        if not torch.allclose(self.head(hidden).float(), logits.float(), rtol=1e-3, atol=1e-5):
            return False
        known = torch.linspace(-1000, 1000, logits.numel(), device=logits.device).view_as(logits).to(logits.dtype)
        hook = self.head.register_forward_hook(lambda *_: known)
        try:
            return torch.equal(self.model(input_ids=probe, use_cache=False).logits, known)
        finally:
            hook.remove()

    @torch.no_grad()
    def check_causal(self) -> None:
        """Raises ModelLoadError if a token changes what is predicted before it: the model reads both ways."""
        probe = torch.arange(5, device=self.model.device).unsqueeze(0)
        whole, cut = (self.model(input_ids=ids, use_cache=False).logits[:, :4] for ids in (probe, probe[:, :4]))
        is_exact = whole.dtype == torch.float32 and not torch.is_autocast_enabled(whole.device.type)
        tolerance = 1e-4 if is_exact else 5e-2
        if (whole - cut).abs().max() > tolerance * whole.abs().max():
            raise ModelLoadError(
                f"{type(self.model).__name__} is not causal: a later token changes what it predicts before; a "
                "decoder is needed"
            )


def split_by_sequence(values_N: Tensor, sequences: Sequence[WeightedSequence]) -> list[Tensor]:
    """Per-token values of a batch, cut into those of each sequence."""
    return list(torch.split(values_N, [sum(weight > 0 for weight in sequence.weights) for sequence in sequences]))


def _token_logprobs(logits_NV: Tensor, targets_N: Tensor) -> Tensor:
    return -functional.cross_entropy(logits_NV.float(), targets_N, reduction="none")


def context_length(model: Any) -> int:
    """The most tokens that a model can read; very large where its configuration sets no bound."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None) or 2**31


def refused_sequence(model: Any, sequence: WeightedSequence, longest: int | None = None) -> RequestError | None:
    """Why a sequence cannot be scored, or trained with at most ``longest`` tokens; None if it can."""
    length, context = len(sequence.token_ids), context_length(model)
    if unknown := _unknown_token(model, sequence.token_ids):
        return unknown
    if not any(sequence.weights):
        return NoTrainedTokensError("no token of the sequence carries weight")
    if longest is not None and length > longest:
        return SequenceTooLongError(f"the sequence has {length} tokens, more than max_batch_size={longest} (tokens)")
    if length > context:
        return SequenceTooLongError(f"the sequence has {length} tokens; the model's context is {context}")
    return None


def refused_prompt(model: Any, prompt_ids: Sequence[int]) -> RequestError | None:
    """Why nothing can be generated for a prompt; None if it can."""
    length, context = len(prompt_ids), context_length(model)
    if length == 0:
        return RequestError("the prompt has no tokens")
    if unknown := _unknown_token(model, prompt_ids):
        return unknown
    if length >= context:
        return SequenceTooLongError(f"the prompt has {length} tokens; the model's context is {context}")
    return None


def not_finite() -> NonFiniteSequenceError:
    """Why a sequence has no result that was computed."""
    return NonFiniteSequenceError("the log-probabilities of the sequence are not finite")


def _unknown_token(model: Any, token_ids: Sequence[int]) -> RequestError | None:
    vocabulary = model.get_input_embeddings().weight.shape[0]
    unknown = next((token for token in token_ids if not 0 <= token < vocabulary), None)
    if unknown is None:
        return None
    return RequestError(f"token {unknown} is not in the model's vocabulary of {vocabulary}")
