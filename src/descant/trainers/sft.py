"""SFT: supervised fine-tuning on the weighted turns of threads."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import field
from typing import Any

from descant.data.datasets import threads_of
from descant.errors import ConfigurationError, DatasetError
from descant.metrics import Metric, MetricSpec
from descant.models.off_loop import off_loop
from descant.runner.options import checked_by, options
from descant.threads.thread import StringThread
from descant.trainers.gradient_trainer import GradientTrainer
from descant.trainers.loop import Step


def _check_dataset(name: str, dataset: Any) -> None:
    if not len(dataset):
        raise DatasetError(f"{name} is empty: give at least one thread")
    problems = []
    for position, thread in enumerate(dataset):
        if not isinstance(thread, StringThread):
            raise ConfigurationError(f"{name}[{position}] is a {type(thread).__name__}, not a StringThread")
        if not any(thread.get_turn_weights()):
            roles = ", ".join(turn.role for turn in thread.get_turns()) or "no turns"
            problems.append((thread.source or f"{name}[{position}]", f"no weighted turn (turns: {roles})"))
    if problems:
        message = (
            f"{len(problems)} of {len(dataset)} threads have nothing to train on; end each in an assistant turn of "
            "weight 1, or leave it out"
        )
        raise DatasetError(message, problems)


@options
class SFT(GradientTrainer):
    """Trains a model to say what the weighted turns of a dataset say.

    A step is one update on ``samples_per_batch`` threads; its loss is the negative log-likelihood in nats, averaged
    over all trained tokens of the step (end-of-turn tokens included), however the step is cut to fit in memory.

    Steps and metrics: see ``GradientTrainer``.

    Raises:
        ConfigurationError: an argument that cannot work, an argument that does not exist, or callbacks that collide.
        DatasetError: an empty dataset, or threads in which nothing is weighted (all of them in ``problems``).
    """

    metric_specs = (
        MetricSpec("training/loss", "nats per token", better="lower", headline=True),
        *GradientTrainer.metric_specs,
    )

    dataset: Any = field(kw_only=False, metadata=checked_by(_check_dataset))
    """Threads, each with a weighted turn (a fresh thread trains on its assistant turns); or what ``load_threads``
    reads: the path of a file, a ``datasets.Dataset``, rows; or a list of paths."""

    def __post_init__(self) -> None:
        self.dataset = threads_of("dataset", self.dataset)
        super().__post_init__()

    def prompts(self) -> Sequence[StringThread]:
        """The dataset."""
        threads: Sequence[StringThread] = self.trained.threads if self.trained else self.dataset
        return threads

    def describe(self) -> str:
        """What is trained on what, in one line."""
        num_steps, num_samples = self.num_steps, self.order.num_samples
        of_all = f" of {len(self.dataset):,}" if num_samples < len(self.dataset) else ""
        return (
            f"{self.model.name} ({self.model.description}) on {num_samples:,}{of_all} threads{self._trained_turns()}, "
            f"{num_steps:,} step{'s' * (num_steps > 1)} of {self.order.num_samples_after(1):,}"
        )

    def _trained_turns(self) -> str:
        """How many turns carry weight, unless it is the one assistant turn of each thread."""
        counts = Counter(
            (turn.role == "assistant", weight > 0)
            for thread in self.prompts()
            for turn, weight in zip(thread.get_turns(), thread.get_turn_weights(), strict=True)
        )
        trained, left_out, others = counts[True, True], counts[True, False], counts[False, True]
        if (trained, left_out, others) == (self.order.num_samples, 0, 0):
            return ""
        beside = f" and {others:,} others" if others else ""
        return f" (trains {trained:,} of {trained + left_out:,} assistant turns{beside})"

    async def train_step(self, step: Step) -> dict[str, Metric]:
        """One update on the next samples."""
        started_at = time.perf_counter()
        assert self.trained is not None
        threads = await off_loop(self.trained.batch, step.indices)
        outcomes = await self.model.accumulate_many(
            threads, "language_modelling", seed=self.seed, return_exceptions=True
        )
        failures = {place: error for place, error in enumerate(outcomes) if error is not None}
        return await self.update(step, failures, started_at)
