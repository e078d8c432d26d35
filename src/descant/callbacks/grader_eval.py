"""GraderEvalCallback: how good the model's answers are, by a grader."""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, Unpack

from descant.callbacks.base import CallbackOptions
from descant.callbacks.generation_callback import SAMPLE_COLUMNS, Completion, GenerationCallback
from descant.errors import ConfigurationError
from descant.graders.base import BaseGrader, Grade, grade_many
from descant.graders.log_scope import LogScope, log_scope
from descant.models.inference import InferenceModel
from descant.stats import summarize_scores
from descant.table import Table
from descant.threads.thread import StringThread
from descant.threads.tokenized import TokenizedThread


class GraderEvalCallback(GenerationCallback):
    """Generates an answer to every validation thread and grades it.

    Metrics:
        ``<log_key>/rewards/*``: everything in ``grader.get_logs()``. ``score/mean``, ``score/std`` (sample standard
        deviation), ``score/min``, ``score/max`` and ``score/count`` are made from the grades that the grader returned.
        ``<log_key>/rewards/num_failed``: samples that the grader failed on, if any. They are in no mean.
        ``<log_key>/generation_length_mean``, ``..._std``: tokens, end-of-turn excluded; population standard deviation.
        ``<log_key>/num_samples``: graded samples; ``<log_key>/num_generated``: completions, which the lengths are of;
        ``<log_key>/num_failed``: threads without a completion, if any.
        ``<log_key>/samples``: Table of all samples with their ``grade``, ``reasoning`` and ``error``.

    The grader may be the one that training uses: an evaluation reads and clears its own logs only.

    Args:
        validation_set: what to answer; a completion at the end of a thread is taken off and becomes
            ``metadata["reference"]``.
        model: sees the live weights.
        grader: grades the threads with their completions.
        frequency: the share of the run between two calls.
        log_key: the prefix of all metrics, and the callback's name.
        clear_grader_logs: forget the grader's logs after each evaluation. Without, what ``get_logs`` gives beside
            ``score/*`` covers all evaluations so far. (Training's logs are separate either way.)
        temperature: 0 is greedy and gives the most comparable numbers.
        max_gen_len: the longest completion in tokens; by default the model's setting.
        options: see ``RecipeCallback``.

    Raises:
        ConfigurationError: an argument that cannot work.
        DatasetError: no threads, or a thread without a prompt.
    """

    def __init__(
        self,
        validation_set: Sequence[StringThread],
        model: InferenceModel,
        grader: BaseGrader,
        frequency: float | Fraction | str,
        log_key: str = "validation",
        clear_grader_logs: bool = True,
        temperature: float = 0.0,
        *,
        max_gen_len: int | None = None,
        **options: Unpack[CallbackOptions],
    ) -> None:
        if not isinstance(grader, BaseGrader):
            raise ConfigurationError(
                f"grader={grader!r} is a {type(grader).__name__}; subclass BaseGrader, or wrap a function of a thread "
                "with BaseGrader.from_function(key, function)"
            )
        super().__init__(
            validation_set,
            model,
            frequency,
            log_key,
            argument="validation_set",
            temperature=temperature,
            max_gen_len=max_gen_len,
            **options,
        )
        self.grader = grader
        self.clear_grader_logs = clear_grader_logs
        self._kept_logs = LogScope()

    def declared_keys(self) -> frozenset[str]:
        """The keys that do not depend on the grader."""
        rewards = [f"rewards/{key}" for key in summarize_scores([0.0])]
        counts = ("num_samples", "num_generated", "num_failed", "rewards/num_failed")
        keys = ("generation_length_mean", "generation_length_std", "samples", *counts, *rewards)
        return frozenset(self.with_prefix(dict.fromkeys(keys)))

    async def report(self, measurement: list[Completion]) -> dict[str, Any]:
        """Grade the completions and summarise the grades."""
        threads = [c.result.thread for c in measurement if isinstance(c.result, TokenizedThread)]
        with log_scope(LogScope() if self.clear_grader_logs else self._kept_logs):
            graded = await grade_many(self.grader, threads)
            logs = self.grader.get_logs(clear=self.clear_grader_logs)
        grades = [grade.value for grade in graded if isinstance(grade, Grade)]
        rewards = {**logs, **summarize_scores(grades)}
        failures = [error for error in graded if isinstance(error, Exception)]
        if failures:
            rewards["num_failed"] = len(failures)
            self.warn(
                f"grader {self.grader.grader_key!r} failed on {len(failures)} of {len(graded)} samples, which are left "
                f"out of the mean; first: {type(failures[0]).__name__}: {failures[0]}",
                details="".join(traceback.format_exception(failures[0])),
            )
        return {
            **{f"rewards/{key}": value for key, value in rewards.items()},
            **self.length_metrics(measurement),
            "num_samples": len(grades),
            "num_generated": len(threads),
            "samples": _sample_table(measurement, graded),
        }


def _sample_table(completions: Sequence[Completion], graded: Sequence[Grade | Exception]) -> Table:
    """One row per completion; ``graded`` holds, in order, what became of those that could be generated."""
    table = Table([*SAMPLE_COLUMNS, "grade", "reasoning"])
    remaining = iter(graded)
    for completion in completions:
        cells = completion.cells()
        grade = next(remaining) if isinstance(completion.result, TokenizedThread) else None
        if isinstance(grade, Exception):
            cells["error"] = f"{type(grade).__name__}: {grade}"
        cells |= {"grade": getattr(grade, "value", None), "reasoning": getattr(grade, "reasoning", None)}
        table.add_row([cells[header] for header in table.headers])
    return table
