"""GraderEvalCallback: how good the model's answers are, by a grader."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from statistics import fmean
from typing import Any, Unpack

from descant.arguments import check_finite_number, check_flag, check_whole_number
from descant.callbacks.base import RunView
from descant.callbacks.examples import Example, own_copy
from descant.callbacks.generation_callback import (
    LENGTH_SPECS,
    SAMPLE_COLUMNS,
    Completion,
    GenerationCallback,
    GenerationOptions,
)
from descant.data.datasets import ThreadSource
from descant.errors import NOT_APPLICABLE, ConfigurationError, IgnoreGradeException
from descant.graders.base import AnyGrader, BaseGrader, Grade, as_grader, attempt_grades
from descant.graders.combined_grader import CombinedGrader
from descant.graders.concurrency_limit import ConcurrencyLimit
from descant.graders.log_scope import LogScope, log_scope
from descant.metrics import MetricSpec
from descant.models.inference import InferenceModel
from descant.models.requester import Count, current_requester
from descant.schedule import Frequency
from descant.settings import plain, plain_settings
from descant.stats import SCORE_KEYS, pass_at_k, standard_error, summarize_scores
from descant.table import Table
from descant.threads.tokenized import TokenizedThread

_SPREAD = ("std", "min", "max", "count", "stderr")
_SPECS = (
    MetricSpec("rewards/score/mean", better="higher", headline=True),
    *(MetricSpec(f"rewards/{part}score/{key}", detail=True) for part in ("", "*/") for key in _SPREAD),
    MetricSpec("rewards/num_failed", "samples", better="lower", headline=True, counts_failures=True),
    MetricSpec("rewards/num_ignored", "samples", headline=True),
    MetricSpec("rewards/*/score/mean", better="higher", headline=True),  # of the graders in a CombinedGrader
    MetricSpec("rewards/*"),  # what else the grader logs
    *LENGTH_SPECS,
    MetricSpec("num_generated", "samples", detail=True),
    MetricSpec("samples"),
)


class GraderEvalCallback(GenerationCallback):
    """Generates an answer to every validation thread and grades it.

    Metrics:
        ``<log_key>/rewards/*``: everything in ``grader.get_logs()``, tables too. ``score/mean``, ``score/std`` (sample
        standard deviation), ``score/min``, ``score/max`` and ``score/count`` are made from the grades that the grader
        returned.
        ``<log_key>/rewards/score/stderr``: the standard error of the mean, prompts being the independent units.
        ``<log_key>/rewards/num_failed``: samples that the grader failed on, if any; ``<log_key>/rewards/num_ignored``:
        those that it does not apply to (``IgnoreGradeException``). They are in no mean.
        ``<log_key>/pass@<k>``, with several completions, for k = 1, 2, 4, ... and all of them: the share of prompts of
        which one of k completions passes, without bias (arXiv:2107.03374); ``..._stderr`` its standard error over
        prompts, ``..._num_prompts`` how many have k grades.
        ``<log_key>/generation_length_mean``, ``..._std``: tokens, end-of-turn excluded; population standard deviation.
        ``<log_key>/generation_length_stderr``: the standard error of that mean.
        ``<log_key>/num_samples``: graded samples; ``<log_key>/num_generated``: completions, which the lengths are of;
        ``<log_key>/num_failed``: threads without a completion, if any.
        ``<log_key>/samples``: Table of all samples: ``prompt``, ``response``, ``reference``, ``grade``, ``reasoning``,
            and what ``GenerateSamplesCallback`` has besides.

    The grader may be the one that training uses: an evaluation reads and clears its own logs only. It is given copies
    of the threads: what it does to their metadata is not seen by the next evaluation.

    Args:
        validation_set: what to answer: threads, or what ``load_threads`` reads (the path of a file, a
            ``datasets.Dataset``, rows); a completion at the end of a thread is taken off and becomes
            ``metadata["reference"]``.
        model: what answers, with its weights after the step of the call.
        grader: grades the threads with their completions: a grader, or a function from thread to number (async or not).
        frequency: the share of the run between two calls.
        log_key: the prefix of all metrics, and the callback's name.
        clear_grader_logs: forget the grader's logs after each evaluation. Without, what ``get_logs`` gives except
            these statistics covers all evaluations of the run so far. (Training's logs are separate either way.)
        temperature: 0 is greedy and gives the most comparable numbers. (That of ``model``, a view perhaps, is not used;
            its other settings are.)
        max_concurrent_samples: how many samples are graded at a time, those of evaluations that are still in flight
            included; by default all.
        pass_threshold: the grade from which on a completion passes, for ``pass@<k>``.
        options: ``max_gen_len``, ``limit``, ``num_completions``, see ``GenerationOptions``; and those of
            ``ModelCallback``.

    Raises:
        ConfigurationError: an argument that cannot work, or a grader that can compare with none of the references.
        DatasetError: no threads, or a thread without a prompt.
    """

    def __init__(
        self,
        validation_set: ThreadSource,
        model: InferenceModel,
        grader: AnyGrader,
        frequency: Frequency = 0.1,
        log_key: str = "validation",
        clear_grader_logs: bool = True,
        temperature: float = 0.0,
        *,
        max_concurrent_samples: int | None = None,
        pass_threshold: float = 1.0,
        **options: Unpack[GenerationOptions],
    ) -> None:
        self.grader = as_grader("grader", grader)
        if "log_key_prefix" in options:
            raise ConfigurationError(f"{type(self).__name__} has no argument 'log_key_prefix'; did you mean 'log_key'?")
        super().__init__(
            validation_set, model, frequency, log_key, argument="validation_set", temperature=temperature, **options
        )
        self.log_key = log_key
        self.clear_grader_logs = clear_grader_logs
        check_flag("clear_grader_logs", clear_grader_logs)
        check_whole_number("max_concurrent_samples", max_concurrent_samples, or_none=True)
        check_finite_number("pass_threshold", pass_threshold)
        self.max_concurrent_samples = max_concurrent_samples
        self.pass_threshold = pass_threshold
        self.metric_specs = (*_SPECS, *self._pass_specs())
        self._kept_logs = LogScope()
        self._limit = ConcurrencyLimit(max_concurrent_samples)
        self._check_can_grade()

    async def on_start(self, run: RunView) -> None:
        """Forget what the grader has logged in an earlier run."""
        await super().on_start(run)
        self._kept_logs = LogScope()

    def settings(self) -> dict[str, Any]:
        """Its plain arguments, and the grader with those of its own."""
        return {**super().settings(), "grader": _grader_settings(self.grader)}

    async def report(self, measurement: list[Completion]) -> dict[str, Any]:
        """Grade the completions and summarise the grades."""
        generated = [completion for completion in measurement if isinstance(completion.result, TokenizedThread)]
        attempts = [(self.grader, own_copy(completion.result.thread)) for completion in generated]  # type: ignore[union-attr]
        requester = current_requester()
        counting = nullcontext(Count()) if requester is None else requester.counting("grades", len(attempts))
        with log_scope(LogScope() if self.clear_grader_logs else self._kept_logs), counting as count:
            graded = await attempt_grades(attempts, self._limit, count.add)
            logs = self.grader.get_logs(clear=self.clear_grader_logs)
        of_example: dict[Example, list[float]] = {completion.example: [] for completion in generated}
        for completion, grade in zip(generated, graded, strict=True):
            if isinstance(grade, Grade):
                of_example[completion.example].append(grade.value)
        grades = [(example.prompt_id, grade) for example, values in of_example.items() for grade in values]
        scores = summarize_scores([grade for _, grade in grades], [prompt_id for prompt_id, _ in grades])
        # The grader's own statistics may be of what it has logged and not of what it has returned.
        others = {key: value for key, value in logs.items() if key not in SCORE_KEYS}
        rewards = {**others, **scores, **self._count_ungraded(graded)}
        return {
            **{f"rewards/{key}": value for key, value in rewards.items()},
            **self._pass_metrics(of_example),
            **self.length_metrics(measurement),
            "num_samples": len(grades),
            "num_generated": len(generated),
            "samples": _sample_table(measurement, graded),
        }

    def _check_can_grade(self) -> None:
        """Refuse an evaluation of which it is known that every grade fails."""
        reasons = [
            None if any(given.thread.get_tool_calls()[-1:]) else self.grader.unusable(example.thread)
            for given, example in zip(self._given, self.examples, strict=True)
        ]
        if all(reasons):
            raise ConfigurationError(
                f"none of the {len(reasons)} threads of validation_set can be graded: {reasons[0]}"
            )

    def _count_ungraded(self, graded: Sequence[Grade | Exception]) -> dict[str, int]:
        """How many samples have no grade, and why."""
        num_ignored = sum(isinstance(grade, IgnoreGradeException) for grade in graded)
        failures = [g for g in graded if isinstance(g, Exception) and not isinstance(g, IgnoreGradeException)]
        if failures:
            self.warn(
                f"grader {self.grader.grader_key!r} failed on {len(failures)} of {len(graded)} samples, which are left "
                f"out of the mean; first: {_describe(failures[0])}",
                details="".join(traceback.format_exception(failures[0])),
            )
        counts = {"num_failed": len(failures), "num_ignored": num_ignored}
        return {key: count for key, count in counts.items() if count}

    def _ks(self) -> list[int]:
        """1, 2, 4, ... below the number of completions, and that number; nothing for a single one."""
        powers = [2**i for i in range(self.num_completions.bit_length()) if 2**i < self.num_completions]
        return [*powers, self.num_completions] if self.num_completions > 1 else []

    def _pass_specs(self) -> Iterator[MetricSpec]:
        for k in self._ks():
            yield MetricSpec(f"pass@{k}", "fraction of prompts", better="higher", headline=True)
            yield MetricSpec(f"pass@{k}_stderr", "fraction of prompts", detail=True)
            yield MetricSpec(f"pass@{k}_num_prompts", "prompts", detail=True)

    def _pass_metrics(self, grades_of_example: Mapping[Example, Sequence[float]]) -> dict[str, float]:
        metrics: dict[str, float] = {}
        for k in self._ks():
            usable = {example: grades for example, grades in grades_of_example.items() if len(grades) >= k}
            estimates = [
                pass_at_k(len(grades), sum(grade >= self.pass_threshold for grade in grades), k)
                for grades in usable.values()
            ]
            metrics[f"pass@{k}_num_prompts"] = len(estimates)
            if estimates:
                metrics[f"pass@{k}"] = fmean(estimates)
            if (error := standard_error(estimates, [example.prompt_id for example in usable])) is not None:
                metrics[f"pass@{k}_stderr"] = error
        return metrics


def _grader_settings(grader: BaseGrader) -> dict[str, Any]:
    """The arguments of a grader, those of the graders that it combines, and the function that it was made of."""
    settings = {**plain_settings(grader), "class": type(grader).__name__, "key": grader.grader_key}
    if isinstance(grader, CombinedGrader):
        settings["graders"] = [{**_grader_settings(child), "name": child.grader_key} for child in grader.graders]
    function = getattr(grader, "function", None)
    return {**settings, "function": plain(function)} if callable(function) else settings


def _sample_table(completions: Sequence[Completion], graded: Sequence[Grade | Exception]) -> Table:
    """One row per completion; ``graded`` holds, in order, what became of those that could be generated."""
    behind = SAMPLE_COLUMNS.index("reference") + 1
    table = Table([*SAMPLE_COLUMNS[:behind], "grade", "reasoning", *SAMPLE_COLUMNS[behind:]])
    remaining = iter(graded)
    for completion in completions:
        cells = completion.cells()
        grade = next(remaining) if isinstance(completion.result, TokenizedThread) else None
        if isinstance(grade, Exception):
            cells["error"] = _describe(grade)
        cells |= {"grade": getattr(grade, "value", None), "reasoning": getattr(grade, "reasoning", None)}
        table.add_row([cells[header] for header in table.headers])
    return table


def _describe(error: Exception) -> str:
    """Its type and words, with the notes that say where it arose."""
    if isinstance(error, IgnoreGradeException):
        return f"{NOT_APPLICABLE}{error}"
    return "; ".join([f"{type(error).__name__}: {error}", *getattr(error, "__notes__", ())])
