"""Generation: batched decoding in which waiting requests take the rows of finished ones."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from descant.engine.driving import length_boundaries, side_of
from descant.engine.jobs import FinishReason, GeneratedTokens, GenerationRequest, Sampling, YieldPoint
from descant.engine.memory import MEMORIES, Memory
from descant.engine.sampling import sample, uniforms
from descant.engine.score import TokenScorer, context_length, refused_prompt, vocabulary_size
from descant.errors import RequestError

# B rows of the running batch, P distinct prompts of one prefill, T columns of the cache, V vocabulary

MAX_STEP_LOGITS = 2**26
"""Logits of one decode step, so that short rows and a large vocabulary do not fill the memory (256 MiB as float32)."""


@dataclass(frozen=True, slots=True)
class GenerationSettings:
    """What all generation of an engine has in common."""

    stop_ids: Collection[int]  # tokens that end a turn
    max_cached_tokens: int  # columns times rows of the key-value cache
    max_prefill_tokens: int  # padded tokens of the prompts that are read in one forward pass
    decode: Callable[[list[int]], str]  # tokens to text, for stop strings


@torch.no_grad()
def generate(
    scorer: TokenScorer,
    requests: Sequence[GenerationRequest],
    sampling: Sampling,
    settings: GenerationSettings,
    yield_point: YieldPoint,
) -> list[GeneratedTokens | RequestError]:
    """One completion per request, in order; a request that fails has its error in its place.

    A row ends at the first token of ``stop_ids`` (included in the result), at a stop string, after ``max_gen_len``
    tokens, or where the model's context ends. As many rows are decoded together as the cache budget (and
    ``MAX_STEP_LOGITS``) allows, longest prompts first; identical prompts are prefilled once. Where the model computes
    otherwise beyond a length (``length_boundaries``), the rows that pass it wait for those that do not, and are then
    read again as longer prompts.
    """
    decoder = Decoder(scorer, requests, sampling, settings)
    decoder.run(yield_point)
    return [result for result in decoder.results if result is not None]


class Decoder:
    """The running batch: ``rows[r]`` is the request decoded in row r of the tensors, None where it has finished."""

    def __init__(
        self,
        scorer: TokenScorer,
        requests: Sequence[GenerationRequest],
        sampling: Sampling,
        settings: GenerationSettings,
    ) -> None:
        model = scorer.model
        self.scorer = scorer
        self.driving = scorer.driving
        self.device = model.device
        self.boundaries = length_boundaries(model.config)
        self.requests = requests
        self.prompts = [request.prompt_ids for request in requests]
        """What is read of each request before its rows are decoded."""
        self.sampling = sampling
        self.settings = settings
        self.context = context_length(model)
        self.results: list[GeneratedTokens | RequestError | None] = [
            refused_prompt(model, request.prompt_ids) for request in requests
        ]
        self.num_done = sum(result is not None for result in self.results)
        self.groups: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
        """The requests that may share a batch and have not been in one, by side of the boundaries and length."""
        self.waiting: deque[int] = deque()  # those of the group that is decoded now
        self.limit = self.context  # the most tokens that a row of it may have
        accepted = [index for index, refusal in enumerate(self.results) if refusal is None]
        for index in accepted:
            self._put_into_group(index)
        longest = max((self._most_tokens(index) for index in accepted), default=1)
        self.max_rows = max(1, min(settings.max_cached_tokens // longest, MAX_STEP_LOGITS // vocabulary_size(model)))
        if scorer.driving.generation == "one at a time":
            self.max_rows = 1
        self.replaces_rows = scorer.driving.cache == "replaced rows"
        self.outputs: list[list[int]] = [[] for _ in requests]
        self.logprobs: list[list[float]] = [[] for _ in requests]
        self.stop_ids = torch.tensor(sorted(settings.stop_ids), dtype=torch.long, device=model.device)
        self.rows: list[int | None] = []
        self.memory: Memory
        self.mask_BT = self.positions_B = self.tokens_B = torch.empty(0, dtype=torch.long)
        """Of each row: what the memory holds of it, and its next token with its position."""

    def run(self, yield_point: YieldPoint) -> None:
        """Decode until every request has its result."""
        while self.waiting or self.rows or self.groups:
            if not self.waiting and not self.rows:
                self._take_next_group()
            yield_point(self.num_done)
            if self.wants_more_rows():
                self.admit()
            else:
                self.step()

    def _put_into_group(self, request: int) -> None:
        length = len(self.prompts[request])
        exact = length if self.driving.generation == "of equal lengths" else 0
        self.groups[side_of(length, self.boundaries), exact].append(request)

    def _take_next_group(self) -> None:
        """Longest prompts first, so that a new prompt always fits into the used columns; equal prompts side by side."""
        side, exact = min(self.groups)
        group = self.groups.pop((side, exact))
        self.limit = self.boundaries[side] if side < len(self.boundaries) else self.context
        self.waiting.extend(sorted(group, key=lambda index: (-len(self.prompts[index]), self.prompts[index])))

    def wants_more_rows(self) -> bool:
        """Whether to prefill now: at once when nothing runs, else when an eighth of the rows is free."""
        num_free = self.max_rows - sum(row is not None for row in self.rows)
        if not self.waiting or not self.rows:
            return bool(self.waiting)
        return self.replaces_rows and num_free >= max(1, self.max_rows // 8)

    def admit(self) -> None:
        """Prefill waiting prompts, sample their first tokens, and give rows to those that are not finished."""
        admitted, prompts = self._next_requests()
        prompt_of = {prompt: number for number, prompt in enumerate(prompts)}
        ids_PT, mask_PT = (  # so that every prompt ends in the last column
            pad_sequence(rows, batch_first=True, padding_side="left").to(self.device)
            for rows in ([torch.tensor(p) for p in prompts], [torch.ones(len(p), dtype=torch.long) for p in prompts])
        )
        positions_PT = (mask_PT.cumsum(-1) - 1).clamp(min=0)
        memory: Memory = MEMORIES[self.driving.cache](self.scorer)
        logits_PV = memory.read(ids_PT, mask_PT, positions_PT)
        source = [prompt_of[self.prompts[index]] for index in admitted]
        tokens_B = self._accept(admitted, logits_PV[torch.tensor(source, device=self.device)])
        unfinished = [place for place, index in enumerate(admitted) if not self._leaves(index)]
        if unfinished:
            places = torch.tensor(unfinished, device=self.device)
            sources = [source[place] for place in unfinished]
            state = (tokens_B[places], mask_PT[sources], positions_PT[sources, -1] + 1)
            self._give_rows([admitted[place] for place in unfinished], memory, sources, state)

    def _next_requests(self) -> tuple[list[int], list[tuple[int, ...]]]:
        """The waiting requests that fit into free rows and one prefill, and their distinct prompts."""
        num_free = self.max_rows - sum(row is not None for row in self.rows)
        longest = len(self.prompts[self.waiting[0]])
        max_prompts = max(1, self.settings.max_prefill_tokens // longest)
        admitted: list[int] = []
        prompts: dict[tuple[int, ...], None] = {}
        while self.waiting and len(admitted) < num_free:
            prompt = self.prompts[self.waiting[0]]
            if prompt not in prompts and len(prompts) == max_prompts:
                break
            prompts[prompt] = None
            admitted.append(self.waiting.popleft())
        return admitted, list(prompts)

    def step(self) -> None:
        """Decode one token for every row."""
        self.mask_BT = torch.cat([self.mask_BT, self.mask_BT.new_ones(len(self.rows), 1)], dim=-1)
        logits_BV = self.memory.read(self.tokens_B.unsqueeze(-1), self.mask_BT, self.positions_B.unsqueeze(-1))
        self.positions_B = (self.positions_B + 1).clamp(max=self.limit - 1)  # of finished rows, too
        self.tokens_B = self._accept(self.rows, logits_BV)
        self.rows = [None if row is None or self._leaves(row) else row for row in self.rows]
        self._give_up_space()

    def _leaves(self, request: int) -> bool:
        """Whether a request that has a new token is not decoded on in this group: it is finished, or beyond a boundary,
        where all of it has to be read again."""
        if self.results[request] is not None:
            return True
        length = len(self.requests[request].prompt_ids) + len(self.outputs[request])
        if length - 1 not in self.boundaries:
            return False
        self.prompts[request] = (*self.requests[request].prompt_ids, *self.outputs[request])
        self._put_into_group(request)
        return True

    def _give_rows(
        self, requests: list[int], memory: Memory, sources: list[int], state: tuple[Tensor, Tensor, Tensor]
    ) -> None:
        """Put prefilled requests into the running batch: in place of finished rows first, then behind the others."""
        tokens_B, mask_BT, positions_B = state
        if not self.rows:
            memory.take_rows(sources)
            self.memory, self.rows = memory, list(requests)
            self.tokens_B, self.mask_BT, self.positions_B = tokens_B, mask_BT, positions_B
            return
        free = [row for row, request in enumerate(self.rows) if request is None]
        if (num_more := len(requests) - len(free)) > 0:
            free += range(len(self.rows), len(self.rows) + num_more)
            self._take_rows([*range(len(self.rows)), *[0] * num_more])  # the new ones are overwritten below
        rows_B = torch.tensor(free[: len(requests)], device=self.device)
        self.memory.put_rows(rows_B, memory, torch.tensor(sources, device=self.device))
        self.mask_BT[rows_B] = 0
        self.mask_BT[rows_B, -mask_BT.shape[1] :] = mask_BT
        self.tokens_B[rows_B], self.positions_B[rows_B] = tokens_B, positions_B
        for row, request in zip(free, requests, strict=False):
            self.rows[row] = request

    def _give_up_space(self) -> None:
        """Drop finished rows that no request waits for, and columns that no row uses."""
        kept = [row for row, request in enumerate(self.rows) if request is not None]
        num_finished = len(self.rows) - len(kept)
        if not kept:
            self.rows = []
            return
        is_costly = num_finished * 8 >= len(self.rows) or self.driving.cache == "none"
        if num_finished and is_costly and not (self.waiting and self.replaces_rows):
            self._take_rows(kept)
        used = max(
            len(self.requests[row].prompt_ids) + len(self.outputs[row]) - 1 for row in self.rows if row is not None
        )
        num_columns = self.mask_BT.shape[1]
        if self.replaces_rows and (num_columns - used) * 4 >= num_columns:
            self.memory.drop_left(num_columns - used)
            self.mask_BT = self.mask_BT[:, num_columns - used :].contiguous()

    def _take_rows(self, rows: list[int]) -> None:
        """Make these the rows of the running batch; one may be named more than once."""
        self.memory.take_rows(rows)
        rows_B = torch.tensor(rows, device=self.device)
        self.rows = [self.rows[row] for row in rows]
        self.tokens_B, self.positions_B = self.tokens_B[rows_B], self.positions_B[rows_B]
        self.mask_BT = self.mask_BT[rows_B]

    def _accept(self, rows: Sequence[int | None], logits_BV: Tensor) -> Tensor:
        """Sample one token for each row (int64 [B]) and settle the requests that end with it."""
        seeds = [0 if row is None else self.requests[row].seed for row in rows]
        counts = [0 if row is None else len(self.outputs[row]) for row in rows]
        counts_B = torch.tensor(counts, device=logits_BV.device)
        uniforms_B = uniforms(torch.tensor(seeds, device=logits_BV.device), counts_B)
        total_B = logits_BV.float().logsumexp(-1)
        if self.sampling.min_gen_len:
            too_early_B = counts_B < self.sampling.min_gen_len
            stops_BV = torch.zeros_like(logits_BV, dtype=torch.bool).index_fill_(1, self.stop_ids, True)
            logits_BV = logits_BV.masked_fill(stops_BV & too_early_B.unsqueeze(-1), float("-inf"))
        tokens_B = self.choose(rows, logits_BV, uniforms_B)
        logprobs_B = logits_BV.gather(-1, tokens_B.unsqueeze(-1)).squeeze(-1).float() - total_B
        finite = torch.isfinite(total_B).tolist()
        for row, token, logprob, is_finite in zip(rows, tokens_B.tolist(), logprobs_B.tolist(), finite, strict=True):
            if row is not None:
                self.outputs[row].append(token)
                self.logprobs[row].append(logprob)
                self.results[row] = result = self._result(row, is_finite)
                self.num_done += result is not None
        return tokens_B

    def choose(self, rows: Sequence[int | None], logits_BV: Tensor, uniforms_B: Tensor) -> Tensor:
        """The next token of each row."""
        return sample(logits_BV, uniforms_B, self.sampling.temperature, self.sampling.top_p)

    def _result(self, request: int, is_finite: bool) -> GeneratedTokens | RequestError | None:
        """The result of a request if its last token ends it."""
        output = self.outputs[request]
        if not is_finite:
            return RequestError(f"the logits of token {len(output)} are not finite")
        reason: FinishReason | None = None
        if output[-1] in self.settings.stop_ids:
            reason = "stop"
        elif self._ends_in_stop_string(output):
            reason = "stop_string"
        elif len(output) >= self._most_tokens(request) - len(self.requests[request].prompt_ids):
            reason = "length"
        return None if reason is None else GeneratedTokens(tuple(output), tuple(self.logprobs[request]), reason)

    def _ends_in_stop_string(self, output: list[int]) -> bool:
        if not self.sampling.stop_strings:
            return False
        longest = max(map(len, self.sampling.stop_strings))
        tail = self.settings.decode(output[-4 * longest - 4 :])  # a character has at most four tokens
        return any(string in tail for string in self.sampling.stop_strings)

    def _most_tokens(self, request: int) -> int:
        """Prompt and longest completion, in tokens."""
        return min(len(self.requests[request].prompt_ids) + self.sampling.max_gen_len, self.context)
