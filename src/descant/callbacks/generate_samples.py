"""GenerateSamplesCallback: what the model writes, to read."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Unpack

from descant.arguments import check_text
from descant.callbacks.generation_callback import (
    LENGTH_SPECS,
    SAMPLE_COLUMNS,
    Completion,
    GenerationCallback,
    GenerationOptions,
)
from descant.data.datasets import ThreadSource
from descant.metrics import MetricSpec
from descant.models.inference import InferenceModel
from descant.schedule import Frequency
from descant.table import Table
from descant.threads.tokenized import TokenizedThread


class GenerateSamplesCallback(GenerationCallback):
    """A table of completions for a fixed set of threads.

    Metrics:
        ``generation/<log_key>``: Table with ``prompt`` (without its system turn; see ``StringThread.as_text``),
            ``response`` (None where generation failed), ``reference``, ``error``, ``num_tokens``, ``finish_reason``,
            ``system``, ``completion_index``, ``example_id`` (the same at every evaluation).
        ``generation/generation_length_mean``, ``..._std``: tokens, end-of-turn excluded; population standard deviation.
        ``generation/generation_length_stderr``: the standard error of that mean, prompts being the independent units.
        ``generation/num_samples``: completions; ``generation/num_failed``: threads without one, if any.

    Args:
        thread_set: what to answer: threads, or what ``load_threads`` reads; a completion at the end of a thread is
            taken off and shown as reference.
        model: what answers, with its weights after the step of the call.
        frequency: the share of the run between two calls.
        log_key: names the table, and the callback.
        temperature: 1 shows the variety of the model, 0 its most probable answer. By default that of ``model``: 1,
            unless it is a view with another (``model.temperature(0.0)``).
        log_key_prefix: in place of ``generation``, so that two of these callbacks do not share keys.
        options: ``max_gen_len``, ``limit``, ``num_completions``, see ``GenerationOptions``; and those of
            ``ModelCallback``.

    Raises:
        ConfigurationError: an argument that cannot work.
        DatasetError: no threads, or a thread without a prompt.
    """

    def __init__(
        self,
        thread_set: ThreadSource,
        model: InferenceModel,
        frequency: Frequency = 0.1,
        log_key: str = "samples",
        temperature: float | None = None,
        *,
        log_key_prefix: str = "generation",
        **options: Unpack[GenerationOptions],
    ) -> None:
        check_text("log_key", log_key)
        options.setdefault("name", log_key)
        super().__init__(
            thread_set, model, frequency, log_key_prefix, argument="thread_set", temperature=temperature, **options
        )
        self.log_key = log_key
        lengths = (replace(spec, detail=not spec.counts_failures) for spec in LENGTH_SPECS)  # of a few, to be read
        self.metric_specs = (MetricSpec(log_key), *lengths)

    async def report(self, measurement: list[Completion]) -> dict[str, Any]:
        """The table and the lengths."""
        rows = [list(completion.cells().values()) for completion in measurement]
        return {
            self.log_key: Table(SAMPLE_COLUMNS, rows),
            **self.length_metrics(measurement),
            "num_samples": sum(isinstance(completion.result, TokenizedThread) for completion in measurement),
        }
