"""Generation: batched decoding with a key-value cache, in which finished rows leave the batch."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from descant.engine.batching import plan_batches
from descant.engine.jobs import GeneratedTokens, GenerationRequest, Sampling, YieldPoint
from descant.engine.sampling import sample, uniforms
from descant.errors import RequestError, SequenceTooLongError

# B rows still decoding, T cached positions, V vocabulary

Results = list[GeneratedTokens | RequestError]


@torch.no_grad()
def generate(
    model: Any,
    requests: Sequence[GenerationRequest],
    sampling: Sampling,
    stop_ids: Collection[int],
    max_cached_tokens: int,
    yield_point: YieldPoint,
) -> Results:
    """One completion per request, in order; a request that fails has its error in its place.

    A row ends at the first token of ``stop_ids`` (included in the result) or after ``max_gen_len`` tokens, or where
    the model's context ends. Rows are decoded together while ``rows * (longest prompt + tokens to generate)`` stays
    within ``max_cached_tokens``.

    Raises:
        whatever ``yield_point`` raises, between two decode steps.
    """
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None) or 2**31
    results: list[GeneratedTokens | RequestError | None] = [_refusal(request, context) for request in requests]
    accepted = [index for index, refusal in enumerate(results) if refusal is None]
    cached = [min(len(requests[i].prompt_ids) + sampling.max_gen_len, context) for i in accepted]
    for batch in plan_batches(cached, max_cached_tokens):
        indices = [accepted[i] for i in batch]
        decoded = _decode([requests[i] for i in indices], model, sampling, stop_ids, context, yield_point)
        for index, result in zip(indices, decoded, strict=True):
            results[index] = result
    return [result for result in results if result is not None]


def _refusal(request: GenerationRequest, context: int) -> RequestError | None:
    num_tokens = len(request.prompt_ids)
    if num_tokens == 0:
        return RequestError("the prompt has no tokens")
    if num_tokens >= context:
        return SequenceTooLongError(f"the prompt has {num_tokens} tokens; the model's context is {context}")
    return None


def _decode(
    requests: Sequence[GenerationRequest],
    model: Any,
    sampling: Sampling,
    stop_ids: Collection[int],
    context: int,
    yield_point: YieldPoint,
) -> Results:
    """Decode one batch until every row has finished; ``alive`` maps rows of the tensors to requests."""
    device = model.device
    ids_BT, mask_BT = _pad_left([request.prompt_ids for request in requests])
    ids_BT, mask_BT = ids_BT.to(device), mask_BT.to(device)
    positions_BT = (mask_BT.cumsum(-1) - 1).clamp(min=0)
    seeds_B = torch.tensor([request.seed for request in requests], device=device)
    budgets = [min(sampling.max_gen_len, context - len(request.prompt_ids)) for request in requests]
    outputs: list[list[int]] = [[] for _ in requests]
    results: list[GeneratedTokens | RequestError | None] = [None] * len(requests)
    alive = list(range(len(requests)))
    cache = DynamicCache(config=model.config)
    while alive:
        yield_point()
        logits_BV = model(
            input_ids=ids_BT,
            attention_mask=mask_BT,
            position_ids=positions_BT,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        step_B = torch.full_like(seeds_B, len(outputs[alive[0]]))
        next_B = sample(logits_BV, uniforms(seeds_B, step_B), sampling.temperature, sampling.top_p)
        finite = torch.isfinite(logits_BV.amax(-1)).tolist()
        for row, token in enumerate(next_B.tolist()):
            request = alive[row]
            outputs[request].append(token)
            if not finite[row]:
                results[request] = RequestError(f"the logits of token {len(outputs[request])} are not finite")
            elif token in stop_ids:
                results[request] = GeneratedTokens(tuple(outputs[request]), "stop")
            elif len(outputs[request]) >= budgets[request]:
                results[request] = GeneratedTokens(tuple(outputs[request]), "length")
        kept = [row for row, request in enumerate(alive) if results[request] is None]
        if len(kept) < len(alive):
            rows = torch.tensor(kept, dtype=torch.long, device=device)
            cache.batch_select_indices(rows)
            alive = [alive[row] for row in kept]
            next_B, seeds_B, mask_BT, positions_BT = next_B[rows], seeds_B[rows], mask_BT[rows], positions_BT[rows]
        ids_BT = next_B.unsqueeze(-1)
        mask_BT = torch.cat([mask_BT, mask_BT.new_ones(len(alive), 1)], dim=-1)
        positions_BT = positions_BT[:, -1:] + 1
    return [result for result in results if result is not None]


def _pad_left(prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask, both int64 [B, T], so that every prompt ends in the last column."""
    longest = max(map(len, prompts))
    ids_BT = torch.zeros(len(prompts), longest, dtype=torch.long)
    mask_BT = torch.zeros_like(ids_BT)
    for row, prompt in enumerate(prompts):
        ids_BT[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask_BT[row, longest - len(prompt) :] = 1
    return ids_BT, mask_BT
