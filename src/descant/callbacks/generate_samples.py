"""GenerateSamplesCallback: what the model writes, to read."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any, Unpack

from descant.callbacks.base import CallbackOptions
from descant.callbacks.generation_callback import SAMPLE_COLUMNS, Completion, GenerationCallback
from descant.models.inference import InferenceModel
from descant.table import Table
from descant.threads.thread import StringThread
from descant.threads.tokenized import TokenizedThread


class GenerateSamplesCallback(GenerationCallback):
    """A table of completions for a fixed set of threads.

    Metrics:
        ``generation/<log_key>``: Table with ``system``, ``prompt``, ``response`` (None where generation failed),
        ``example_id`` (the same at every evaluation), ``reference``, ``num_tokens``, ``finish_reason``, ``error``.
        ``generation/generation_length_mean``, ``..._std``: tokens, end-of-turn excluded; population standard deviation.
        ``generation/num_samples``: completions; ``generation/num_failed``: threads without one, if any.

    Args:
        thread_set: what to answer; a completion at the end of a thread is taken off and shown as reference.
        model: sees the live weights.
        frequency: the share of the run between two calls.
        log_key: names the table, and the callback.
        temperature: 1 shows the variety of the model, 0 its most probable answer.
        max_gen_len: the longest completion in tokens; by default the model's setting.
        log_key_prefix: in place of ``generation``, so that two of these callbacks do not share keys.
        options: see ``RecipeCallback``.

    Raises:
        ConfigurationError: an argument that cannot work.
        DatasetError: no threads, or a thread without a prompt.
    """

    def __init__(
        self,
        thread_set: Sequence[StringThread],
        model: InferenceModel,
        frequency: float | Fraction | str,
        log_key: str = "samples",
        temperature: float = 1.0,
        *,
        max_gen_len: int | None = None,
        log_key_prefix: str = "generation",
        **options: Unpack[CallbackOptions],
    ) -> None:
        options.setdefault("name", log_key)
        super().__init__(
            thread_set,
            model,
            frequency,
            log_key_prefix,
            argument="thread_set",
            temperature=temperature,
            max_gen_len=max_gen_len,
            **options,
        )
        self.log_key = log_key

    def declared_keys(self) -> frozenset[str]:
        """The keys above."""
        keys = (self.log_key, "generation_length_mean", "generation_length_std", "num_samples", "num_failed")
        return frozenset(self.with_prefix(dict.fromkeys(keys)))

    async def report(self, measurement: list[Completion]) -> dict[str, Any]:
        """The table and the lengths."""
        rows = [list(completion.cells().values()) for completion in measurement]
        return {
            self.log_key: Table(SAMPLE_COLUMNS, rows),
            **self.length_metrics(measurement),
            "num_samples": sum(isinstance(completion.result, TokenizedThread) for completion in measurement),
        }
