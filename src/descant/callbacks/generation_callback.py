"""GenerationCallback: the base of callbacks that let the model answer prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Unpack

from descant.arguments import check_whole_number
from descant.callbacks.base import RunView
from descant.callbacks.examples import Example, make_examples
from descant.callbacks.model_callback import ModelCallback, ModelOptions
from descant.data.datasets import ThreadSource
from descant.errors import ConfigurationError, RenderError
from descant.metrics import MetricSpec
from descant.models.inference import InferenceModel, ItemFailure
from descant.schedule import Frequency
from descant.stats import summarize_lengths
from descant.threads.thread import StringThread
from descant.threads.tokenized import TokenizedThread

LENGTH_SPECS = (
    MetricSpec("generation_length_mean", "tokens", headline=True),
    MetricSpec("generation_length_std", "tokens", detail=True),
    MetricSpec("generation_length_stderr", "tokens", detail=True),
    MetricSpec("num_failed", "samples", better="lower", headline=True, counts_failures=True),
    MetricSpec("num_samples", "samples", detail=True),
)
"""The metrics of every callback that generates."""
SAMPLE_COLUMNS = (
    "prompt", "response", "reference", "error", "num_tokens", "finish_reason", "system", "completion_index",
    "example_id",
)  # fmt: skip
"""What one reads comes first. Tables with grades have them behind the reference."""


class GenerationOptions(ModelOptions, total=False):
    """The settings that callbacks which generate take by keyword.

    ``max_gen_len``: the longest completion in tokens; by default the model's setting. ``limit``: only the first so many
    threads. ``num_completions``: completions of each thread, with random numbers of their own (the temperature must
    be above 0). The rest: see ``ModelCallback``.
    """

    max_gen_len: int | None
    limit: int | None
    num_completions: int


@dataclass(frozen=True, slots=True)
class Completion:
    """One of the model's answers to an example, or why there is none."""

    example: Example
    index: int
    result: TokenizedThread | ItemFailure

    def cells(self) -> dict[str, Any]:
        """The columns that every table of samples has, see ``SAMPLE_COLUMNS``."""
        system, prompt = self.example.thread.split_system()
        generated = self.result if isinstance(self.result, TokenizedThread) else None
        return {
            "prompt": prompt.as_text(),
            "response": generated and generated.thread.last_content(),
            "reference": self.example.reference,
            "error": None if generated else f"{type(self.result).__name__}: {self.result}",
            "num_tokens": generated and generated.len_last_turn(),
            "finish_reason": generated and generated.finish_reason,
            "system": system,
            "completion_index": self.index,
            "example_id": self.example.example_id,
        }


class GenerationCallback(ModelCallback[list[Completion]]):
    """Generates ``num_completions`` per thread; a subclass says what to report of them.

    A completion at the end of a thread is taken off before generating. A thread for which generation fails is
    counted and reported; the others are not affected. At temperatures above 0 an example is sampled with the same
    random numbers at every evaluation of a run, so that evaluations can be compared.
    """

    def __init__(
        self,
        threads: ThreadSource,
        model: InferenceModel,
        frequency: Frequency,
        log_key_prefix: str,
        *,
        argument: str,
        temperature: float | None,
        max_gen_len: int | None = None,
        limit: int | None = None,
        num_completions: int = 1,
        **options: Unpack[ModelOptions],
    ) -> None:
        super().__init__(model, frequency, log_key_prefix, **options)
        self._given = make_examples(threads, argument, limit)
        self.examples = [example.as_prompt(example.thread.completion()) for example in self._given]
        self.num_stripped = sum(example.thread.completion() is not None for example in self._given)
        check_whole_number("num_completions", num_completions)
        view = model if temperature is None else model.temperature(temperature)
        temperature = view.sampling.temperature
        if num_completions > 1 and temperature == 0:
            raise ConfigurationError(
                f"num_completions={num_completions} at temperature=0 would be that many equal completions; give a "
                "temperature above 0"
            )
        self.temperature, self.max_gen_len, self.limit = temperature, max_gen_len, limit
        self.num_completions = num_completions
        self._prompts: list[TokenizedThread | RenderError] = []
        self.model = view if max_gen_len is None else view.max_gen_len(max_gen_len)

    def validation_threads(self) -> Sequence[StringThread]:
        """The prompts."""
        return [example.thread for example in self.examples]

    async def on_start(self, run: RunView) -> None:
        """Renders the prompts, once for the run, and says once that completions were taken off."""
        self._prompts = await self._render(self.model)
        if self.num_stripped:
            self.note(
                f"{self.num_stripped} of {len(self.examples)} threads end in a completion; it is taken off before "
                "generating and kept as reference"
            )

    async def measure(self, model: InferenceModel) -> list[Completion]:
        """The completions of each example, one after another."""
        prompts = self._prompts or await self._render(model)
        wanted = [
            (example, prompt, index)
            for example, prompt in zip(self.examples, prompts, strict=True)
            for index in range(self.num_completions)
        ]
        rendered = [prompt for _, prompt, _ in wanted if isinstance(prompt, TokenizedThread)]
        results = iter(await model.generate_tokens_many(rendered, return_exceptions=True))
        return [
            Completion(example, index, next(results) if isinstance(prompt, TokenizedThread) else prompt)
            for example, prompt, index in wanted
        ]

    async def _render(self, model: InferenceModel) -> list[TokenizedThread | RenderError]:
        """The prompts, with references as the model would write them."""
        compared = [e for e in self._given if e.thread.completion() is not None and e.given_reference is None]
        written = await model.written_completions_many([e.thread for e in compared], return_exceptions=True)
        references = dict(zip(compared, written, strict=True))
        self.examples, refused = [], {}
        for position, example in enumerate(self._given):
            completion = example.thread.completion()
            reference = references.get(example, completion)
            if isinstance(reference, RenderError):
                if example.thread.get_tool_calls()[-1]:  # there is no text to compare with
                    refused[position] = reference
                else:
                    self.warn(f"a reference is kept as it was given, since it cannot be rendered: {reference}")
                reference = completion
            self.examples.append(example.as_prompt(reference))
        prompts = await model.tokenize_prompts_many(self.validation_threads(), return_exceptions=True)
        return [refused.get(position, prompt) for position, prompt in enumerate(prompts)]

    def length_metrics(self, completions: Sequence[Completion]) -> dict[str, Any]:
        """Mean, deviation and standard error of the lengths, in tokens, and the number of failures if any."""
        generated = [(c.result, c.example.prompt_id) for c in completions if isinstance(c.result, TokenizedThread)]
        lengths = [thread.len_last_turn() for thread, _ in generated]
        metrics: dict[str, Any] = {**summarize_lengths(lengths, [prompt_id for _, prompt_id in generated])}
        if num_failed := len(completions) - len(generated):
            metrics["num_failed"] = num_failed
            first = next(c.result for c in completions if isinstance(c.result, Exception))
            self.warn(f"generation failed for {num_failed} of {len(completions)} completions, first: {first}")
        return metrics
