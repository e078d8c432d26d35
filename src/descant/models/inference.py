"""InferenceModel: an async handle that generates and scores."""

from __future__ import annotations

import asyncio
import copy
import weakref
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any, Self, TypeVar

from descant.arguments import as_path, check_finite_number, check_whole_number, is_finite_number
from descant.engine import jobs
from descant.errors import ConfigurationError, DescantError, ObserverError, RenderError, RequestError
from descant.models.chat_template import Renderer
from descant.models.collector import Collector
from descant.models.off_loop import off_loop
from descant.models.requester import Requester, current_requester
from descant.models.workers.engine_worker import EngineWorker
from descant.threads.thread import StringThread
from descant.threads.tokenized import TokenizedThread

ItemT = TypeVar("ItemT")
RenderedT = TypeVar("RenderedT")
ResultT = TypeVar("ResultT")
ItemFailure = RenderError | RequestError
"""Why one thread of a list failed; the others are unaffected."""
Settled = list[ResultT | Any]
"""Results in order. With ``return_exceptions=True`` an ``ItemFailure`` stands in the place of each thread that failed:
to type checkers ``Any``, so that code which has failures raised need not narrow, and code which asks for them can."""
MAX_SHARD_BYTES = 5 * 10**9
"""The size of a file of weights; larger models are saved as several."""


class _HeldSnapshot:
    """A snapshot in an engine; freed by ``release``, or when the last handle on it is garbage."""

    def __init__(self, worker: EngineWorker, weights: str) -> None:
        self.weights = weights
        self._worker = worker
        self._finalizer = weakref.finalize(self, worker.run_later, jobs.ReleaseSnapshot(weights))

    async def release(self) -> None:
        """Free it now; twice is harmless."""
        if self._finalizer.detach():
            with suppress(DescantError):  # the model was closed, which has freed it
                released = self._worker.submit(jobs.ReleaseSnapshot(self.weights)).future
                await asyncio.shield(asyncio.wrap_future(released))


class InferenceModel:
    """A handle on a model, with which it generates and scores on one version of its weights.

    Methods have a list form, ``..._many``, whose batches are a pure function of the list and whose results are in its
    order. If threads fail, it raises the first failure once all others are done; with ``return_exceptions=True`` each
    failure stands in the place of its thread. Single calls that are made together (``asyncio.gather``) are collected
    into one list call.

    Made by ``ModelBuilder.spawn_inference``, or by ``snapshot``.

    Attributes:
        name: what the model is called in messages.
        description: architecture, size, device and precision, in a few words.
        weights: "live" (as they are when a call runs), "reference" (as they were loaded), or the name of a snapshot.
        sampling: how it samples; the views below have others.
        limits: the most tokens of a sequence.
    """

    def __init__(
        self,
        name: str,
        description: str,
        worker: EngineWorker,
        renderer: Renderer,
        sampling: jobs.Sampling,
        limits: jobs.SequenceLimits,
    ) -> None:
        self.name = name
        self.description = description
        self.sampling = sampling
        self.limits = limits
        self.weights = jobs.LIVE
        self._snapshot: _HeldSnapshot | None = None
        self._worker = worker
        self._renderer = renderer
        self._collector = Collector()
        self._default_requester = Requester(name, seed=0, observer=False)

    # Views; each raises ConfigurationError for a value that cannot be

    def temperature(self, temperature: float) -> Self:
        """A view on the same weights that samples at this temperature, finite and at least 0; 0 is greedy."""
        check_finite_number("temperature", temperature, least=0)
        return self._view(replace(self.sampling, temperature=float(temperature)))

    def top_p(self, top_p: float) -> Self:
        """A view on the same weights that samples from the most probable tokens of total probability in (0, 1]."""
        if not is_finite_number(top_p) or not 0 < top_p <= 1:
            raise ConfigurationError(f"top_p={top_p!r} must be above 0 and at most 1")
        return self._view(replace(self.sampling, top_p=float(top_p)))

    def max_gen_len(self, max_gen_len: int) -> Self:
        """A view on the same weights that generates at most this many tokens, at least 1."""
        check_whole_number("max_gen_len", max_gen_len)
        return self._view(replace(self.sampling, max_gen_len=max_gen_len))

    def min_gen_len(self, min_gen_len: int) -> Self:
        """A view on the same weights that does not end a turn before this many tokens."""
        check_whole_number("min_gen_len", min_gen_len, least=0)
        return self._view(replace(self.sampling, min_gen_len=min_gen_len))

    def stop_strings(self, *stop_strings: str) -> Self:
        """A view on the same weights that also ends a turn before one of these texts."""
        if not all(isinstance(string, str) and string for string in stop_strings):
            raise ConfigurationError(f"stop_strings={stop_strings!r} must be strings that are not empty")
        return self._view(replace(self.sampling, stop_strings=stop_strings))

    # Weights

    async def snapshot(self) -> InferenceModel:
        """A handle on a copy of the weights as they are now: training does not change it.

        It takes the memory of the weights, in the same precision, until ``dealloc`` or until nothing refers to it;
        snapshots between the same two updates share one copy. A snapshot of a snapshot is the same weights.
        """
        if self.weights != jobs.LIVE:
            return self._handle(self.weights, self._snapshot)

        async def take() -> _HeldSnapshot:  # shielded: if the caller is cancelled, the snapshot is garbage and not lost
            return _HeldSnapshot(self._worker, await self._worker.run(jobs.TakeSnapshot()))

        held = await asyncio.shield(take())
        return self._handle(held.weights, held)

    async def save(self, path: str | PathLike[str], *, max_shard_bytes: int = MAX_SHARD_BYTES) -> Path:
        """Write weights, configuration and tokenizer as a directory that Transformers and descant load.

        If PEFT has added adapters (LoRA) to a ``live_model``, the active one is written as PEFT does, and
        ``PeftModel.from_pretrained(base, path)`` loads it.

        A saved model that is there is replaced as a whole: a kill leaves the old or the new one. Links are followed.
        What was written first is tried, by loading it as far as takes no memory, before it counts.

        Args:
            path: the directory.
            max_shard_bytes: the size of a file of weights; a larger model is written as several, with an index.

        Returns:
            its absolute path.

        Raises:
            SaveError: the directory has anything that is not a saved model's, cannot be written, or would not load
                again; it is as it was.
        """
        return await self._worker.run(jobs.Save(Path(as_path(path)).absolute(), max_shard_bytes, self.weights))

    # Generating

    async def generate(self, thread: StringThread) -> StringThread:
        """The thread with a generated assistant turn appended.

        Raises:
            RenderError: the chat template refuses the thread.
            RequestError: the prompt does not fit the model, or the logits are not finite.
        """
        return (await self.generate_tokens(thread)).thread

    async def generate_many(
        self, threads: Sequence[StringThread], *, return_exceptions: bool = False
    ) -> Settled[StringThread]:
        """``generate`` for a list of threads."""
        generated = await self._generate(threads)
        return settled([item if isinstance(item, Exception) else item.thread for item in generated], return_exceptions)

    async def generate_tokens(self, thread: StringThread) -> TokenizedThread:
        """Like ``generate``, with the exact tokens of the prompt and of the generated turn."""
        key = (current_requester(), "generate", self.sampling)
        return await self._collector.call(key, thread, self._generate)

    async def generate_tokens_many(
        self, threads: Sequence[StringThread | TokenizedThread], *, return_exceptions: bool = False
    ) -> Settled[TokenizedThread]:
        """``generate_tokens`` for a list of threads, or of prompts from ``tokenize_prompts_many``."""
        return settled(await self._generate(threads), return_exceptions)

    # Tokens

    async def tokenize_thread(self, thread: StringThread) -> TokenizedThread:
        """The thread rendered through the chat template, with its assistant turns located.

        Raises:
            RenderError: the template refuses the thread, or changes a turn so that it cannot be located.
        """
        return (await self.tokenize_many([thread]))[0]

    async def tokenize_many(
        self, threads: Sequence[StringThread], *, return_exceptions: bool = False
    ) -> Settled[TokenizedThread]:
        """``tokenize_thread`` for a list of threads."""
        return settled(await render_each(threads, self._renderer.render, _unchanged), return_exceptions)

    async def tokenize_prompts_many(
        self, threads: Sequence[StringThread], *, return_exceptions: bool = False
    ) -> Settled[TokenizedThread]:
        """The threads rendered up to the opening of an assistant turn: prompts for ``generate_tokens_many``, which need
        be rendered once only.

        Raises:
            RenderError: the template refuses a thread.
        """
        return settled(await render_each(threads, self._renderer.render_prompt, _unchanged), return_exceptions)

    async def written_completions_many(
        self, threads: Sequence[StringThread], *, return_exceptions: bool = False
    ) -> Settled[str]:
        """The final assistant turn of each thread as the model would write it, tool calls and reasoning included: a
        generation of exactly these tokens has this as its last content.

        Raises:
            RenderError: as for ``tokenize_thread``.
        """
        return settled(await render_each(threads, self._renderer.written_completion, _unchanged), return_exceptions)

    async def weighted_text(self, thread: StringThread, num_tokens: int | None = None) -> list[tuple[str, float]]:
        """The rendered text of a thread in pieces, each with the loss weight of its tokens; 0 is not trained.

        Args:
            thread: the thread.
            num_tokens: only so many tokens of it.

        Raises:
            RenderError: as for ``tokenize_thread``.
        """
        return await off_loop(self._renderer.weighted_text, thread, num_tokens)

    async def detokenize_thread(self, thread: TokenizedThread) -> StringThread:
        """The text of a tokenized thread."""
        return thread.thread

    # Scoring

    async def logprobs(self, thread: StringThread) -> float:
        """The sum of the log-probabilities, in nats, of all weighted tokens (end-of-turn tokens included).

        Raises:
            RenderError: the chat template refuses the thread.
            RequestError: it does not fit the model or the batch budget, or no token carries weight.
        """
        return sum(await self.logprobs_per_token(await self.tokenize_thread(thread)))

    async def logprobs_many(
        self, threads: Sequence[StringThread], *, return_exceptions: bool = False
    ) -> Settled[float]:
        """``logprobs`` for a list of threads."""

        async def score(tokenized: Sequence[TokenizedThread]) -> list[float | RequestError]:
            values = await self._logprobs_per_token(tokenized)
            return [value if isinstance(value, Exception) else sum(value) for value in values]

        return settled(await render_each(threads, self._renderer.render, score), return_exceptions)

    async def logprobs_per_token(self, thread: TokenizedThread) -> list[float]:
        """The log-probability, in nats, of each weighted token, in order."""
        return await self._collector.call((current_requester(), "logprobs"), thread, self._logprobs_per_token)

    async def logprobs_per_token_many(
        self, threads: Sequence[TokenizedThread], *, return_exceptions: bool = False
    ) -> Settled[list[float]]:
        """``logprobs_per_token`` for a list of threads."""
        return settled(await self._logprobs_per_token(threads), return_exceptions)

    async def dealloc(self) -> None:
        """Free the model and end its thread, for all views of it. Running calls are cancelled; twice is harmless.

        Of a snapshot: free its copy of the weights, for all views of this handle; the model stays. (The reference is
        freed with its model.) Models and snapshots that nothing refers to are freed without this.

        Raises:
            ObserverError: called from a callback, of a model that is being trained.
        """
        if self._snapshot is not None:
            await self._snapshot.release()
        elif self.weights == jobs.LIVE:
            requester = current_requester()
            is_trained = self._worker.trainer is not None or self._worker.is_trained_by_others
            if requester is not None and requester.observer and is_trained:
                raise ObserverError(
                    f"dealloc was called from {requester.name}, and {self.name!r} is trained: free it after the run"
                )
            await off_loop(self._worker.close)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, {self.weights} weights, {self.sampling})"

    def _handle(
        self, weights: str, snapshot: _HeldSnapshot | None = None, worker: EngineWorker | None = None
    ) -> InferenceModel:
        """A handle on other weights, of this engine or of another worker's, with the same sampling; it cannot train."""
        worker = worker or self._worker
        handle = InferenceModel(self.name, self.description, worker, self._renderer, self.sampling, self.limits)
        handle.weights, handle._snapshot = weights, snapshot
        return handle

    def _view(self, sampling: jobs.Sampling) -> Self:
        view = copy.copy(self)
        view.sampling = sampling
        return view

    async def _generate(self, threads: Sequence[StringThread | TokenizedThread]) -> list[TokenizedThread | ItemFailure]:
        requester, sampling = current_requester() or self._default_requester, self.sampling
        seeded = [
            (item, requester.next_sampling_seed(item.thread if isinstance(item, TokenizedThread) else item))
            for item in threads
        ]

        def render(item: tuple[StringThread | TokenizedThread, int]) -> tuple[TokenizedThread, int]:
            prompt, seed = item
            return prompt if isinstance(prompt, TokenizedThread) else self._renderer.render_prompt(prompt), seed

        async def decode(prompts: Sequence[tuple[TokenizedThread, int]]) -> list[TokenizedThread | RequestError]:
            requests = tuple(jobs.GenerationRequest(prompt.token_ids, seed) for prompt, seed in prompts)
            results = await self._worker.run(jobs.Generate(requests, sampling, self.weights))
            requester.num_tokens += sum(len(request.prompt_ids) for request in requests)
            requester.num_tokens += sum(len(r.token_ids) for r in results if not isinstance(r, RequestError))

            def append() -> list[TokenizedThread | RequestError]:
                return [
                    result
                    if isinstance(result, RequestError)
                    else self._renderer.append_generated(prompt, result, sampling.stop_strings)
                    for (prompt, _), result in zip(prompts, results, strict=True)
                ]

            return await off_loop(append)

        return await render_each(seeded, render, decode)

    async def _logprobs_per_token(self, threads: Sequence[TokenizedThread]) -> list[list[float] | RequestError]:
        def weighted() -> tuple[jobs.WeightedSequence, ...]:
            return tuple(jobs.WeightedSequence(thread.token_ids, tuple(thread.token_weights())) for thread in threads)

        sequences = await off_loop(weighted)
        logprobs = await self._worker.run(jobs.Logprobs(sequences, self.weights))
        (current_requester() or self._default_requester).num_tokens += sum(len(thread.token_ids) for thread in threads)
        return logprobs


async def _unchanged(rendered: Sequence[RenderedT]) -> Sequence[RenderedT]:
    return rendered


async def render_each(
    items: Sequence[ItemT],
    render: Callable[[ItemT], RenderedT],
    list_call: Callable[[Sequence[RenderedT]], Awaitable[Sequence[ResultT | RequestError]]],
) -> list[ResultT | ItemFailure]:
    """The results of one list call on rendered items, in order; an item that cannot be rendered has its error.

    Rendering runs in a thread, off the event loop.
    """

    def attempt(item: ItemT) -> RenderedT | RenderError:
        try:
            return render(item)
        except RenderError as error:
            return error

    rendered = await off_loop(lambda: [attempt(item) for item in items])
    results = iter(await list_call([item for item in rendered if not isinstance(item, RenderError)]))
    return [item if isinstance(item, RenderError) else next(results) for item in rendered]


def settled(results: Sequence[ResultT | Exception], return_exceptions: bool) -> Settled[ResultT]:
    """The results; raises the first exception among them unless they are returned in place."""
    if not return_exceptions:
        for result in results:
            if isinstance(result, Exception):
                raise result
    return list(results)
