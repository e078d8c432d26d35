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

from descant.engine.driving import Driving
from descant.engine.forward import ForwardPass
from descant.engine.jobs import WeightedSequence
from descant.errors import NonFiniteSequenceError, NoTrainedTokensError, RequestError, SequenceTooLongError

# B rows, T positions, H hidden size, V vocabulary, N trained tokens of a micro-batch

MAX_LOGITS = 2**24
"""Logits held at a time, as float32 elements (64 MiB)."""


class TokenScorer:
    """Log-probabilities of the weighted tokens of a batch under a causal language model.

    Only positions that predict a weighted token reach the output layer, at most ``MAX_LOGITS`` logits at a time (each
    chunk's are computed again in the backward pass), so no [B, T, V] tensor exists. Models whose logits are more than
    the output layer on the last hidden state (soft-capping) are scored by their own forward pass.
    """

    def __init__(self, model: Any, driving: Driving) -> None:
        self.model = model
        self.driving = driving
        self.forward = ForwardPass(model)
        self.head: nn.Module | None = None
        if driving.head_gives_logits:
            self.head, self._hidden = model.get_output_embeddings(), ForwardPass(model.base_model)

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
            return _token_logprobs(self.logits(ids_BT, rows_N, columns_N - 1), targets_N), weights_N
        hidden_BTH = self._hidden(ids_BT).last_hidden_state
        return self._head_logprobs(hidden_BTH[rows_N, columns_N - 1], targets_N), weights_N

    def logits(self, ids_BT: Tensor, rows_N: Tensor, columns_N: Tensor) -> Tensor:
        """The logits at a few positions of a batch that is padded on the right, [N, V]."""
        if self.head is None:
            logits_BTV: Tensor = self.forward(ids_BT).logits
            return logits_BTV[rows_N, columns_N]
        logits_NV: Tensor = self.head(self._hidden(ids_BT).last_hidden_state[rows_N, columns_N])
        return logits_NV

    def _head_logprobs(self, hidden_NH: Tensor, targets_N: Tensor) -> Tensor:
        chunk_size = max(1, MAX_LOGITS // vocabulary_size(self.model))
        if len(targets_N) <= chunk_size:
            return self._chunk_logprobs(hidden_NH, targets_N)
        chunks = zip(torch.split(hidden_NH, chunk_size), torch.split(targets_N, chunk_size), strict=True)
        compute = partial(checkpoint, self._chunk_logprobs, use_reentrant=False, preserve_rng_state=False)
        return torch.cat([compute(*chunk) for chunk in chunks])

    def _chunk_logprobs(self, hidden_NH: Tensor, targets_N: Tensor) -> Tensor:
        assert self.head is not None
        return _token_logprobs(self.head(hidden_NH), targets_N)


def split_by_sequence(values_N: Tensor, sequences: Sequence[WeightedSequence]) -> list[Tensor]:
    """Per-token values of a batch, cut into those of each sequence."""
    return list(torch.split(values_N, [sum(weight > 0 for weight in sequence.weights) for sequence in sequences]))


def _token_logprobs(logits_NV: Tensor, targets_N: Tensor) -> Tensor:
    return -functional.cross_entropy(logits_NV.float(), targets_N, reduction="none")


def vocabulary_size(model: Any) -> int:
    """The tokens that a model can read."""
    return int(model.get_input_embeddings().weight.shape[0])


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
    vocabulary = vocabulary_size(model)
    unknown = next((token for token in token_ids if not 0 <= token < vocabulary), None)
    if unknown is None:
        return None
    return RequestError(f"token {unknown} is not in the model's vocabulary of {vocabulary}")
