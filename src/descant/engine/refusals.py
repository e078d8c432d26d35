"""Refusals: why an engine does not take a sequence or a prompt; the others of the list are unaffected."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from descant.engine.jobs import WeightedSequence
from descant.errors import NonFiniteSequenceError, NoTrainedTokensError, RequestError, SequenceTooLongError


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
    vocabulary = model.get_input_embeddings().num_embeddings
    unknown = next((token for token in token_ids if not 0 <= token < vocabulary), None)
    if unknown is None:
        return None
    return RequestError(f"token {unknown} is not in the model's vocabulary of {vocabulary}")
