"""GenerationCallback: the base of callbacks that let the model answer prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Unpack

from descant.callbacks.base import CallbackOptions, RunView
from descant.callbacks.examples import Example, make_examples
from descant.callbacks.model_callback import ModelCallback
from descant.models.inference import Attempt, InferenceModel
from descant.stats import summarize_lengths
from descant.threads.thread import StringThread
from descant.threads.tokenized import TokenizedThread

SAMPLE_COLUMNS = ("system", "prompt", "response", "example_id", "reference", "num_tokens", "finish_reason", "error")


@dataclass(frozen=True, slots=True)
class Completion:
    """The model's answer to one example, or why there is none."""

    example: Example
    result: TokenizedThread | Attempt

    def cells(self) -> dict[str, Any]:
        """The columns that every table of samples has, see ``SAMPLE_COLUMNS``."""
        turns = self.example.thread.get_turns()
        system = turns.pop(0).content if turns[0].role == "system" else ""
        prompt = turns[0].content if len(turns) == 1 else "\n\n".join(f"[{role}]\n{text}" for role, text in turns)
        generated = self.result if isinstance(self.result, TokenizedThread) else None
        return {
            "system": system,
            "prompt": prompt,
            "response": generated and generated.thread.last_content(),
            "example_id": self.example.example_id,
            "reference": self.example.reference,
            "num_tokens": generated and generated.len_last_turn(),
            "finish_reason": generated and generated.finish_reason,
            "error": None if generated else f"{type(self.result).__name__}: {self.result}",
        }


class GenerationCallback(ModelCallback[list[Completion]]):
    """Generates one completion per thread, on the live weights; a subclass says what to report of them.

    A completion at the end of a thread is taken off before generating. A thread for which generation fails is
    counted and reported; the others are not affected. At temperatures above 0 an example is sampled with the same
    random numbers at every evaluation of a run, so that evaluations can be compared.
    """

    def __init__(
        self,
        threads: Sequence[StringThread],
        model: InferenceModel,
        frequency: float | Fraction | str,
        log_key_prefix: str,
        *,
        argument: str,
        temperature: float,
        max_gen_len: int | None,
        **options: Unpack[CallbackOptions],
    ) -> None:
        super().__init__(model, frequency, log_key_prefix, **options)
        given = make_examples(threads, argument)
        self.examples = [example.as_prompt() for example in given]
        self.num_stripped = sum(example.reference is not None for example in self.examples)
        view = model.temperature(temperature)
        self.model = view if max_gen_len is None else view.max_gen_len(max_gen_len)

    async def on_start(self, run: RunView) -> None:
        """Says once that completions were taken off."""
        if self.num_stripped:
            self.warn(
                f"{self.num_stripped} of {len(self.examples)} threads end in a completion; it is taken off before "
                "generating and kept as reference"
            )

    async def measure(self, model: InferenceModel) -> list[Completion]:
        """One completion per example."""
        threads = [example.thread for example in self.examples]
        results = await model.generate_tokens_many(threads, return_exceptions=True)
        return [Completion(example, result) for example, result in zip(self.examples, results, strict=True)]

    def length_metrics(self, completions: Sequence[Completion]) -> dict[str, Any]:
        """Mean and population standard deviation of the lengths, in tokens, and the number of failures if any."""
        results = [completion.result for completion in completions]
        generated = [result for result in results if isinstance(result, TokenizedThread)]
        metrics: dict[str, Any] = {**summarize_lengths([thread.len_last_turn() for thread in generated])}
        if num_failed := len(results) - len(generated):
            metrics["num_failed"] = num_failed
            first = next(result for result in results if isinstance(result, Exception))
            self.warn(f"generation failed for {num_failed} of {len(results)} threads, first: {first}")
        return metrics
