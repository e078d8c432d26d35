"""CombinedGrader: several graders as one."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from math import fsum, inf
from typing import Any, Literal, get_args

from descant.arguments import check_one_of, is_finite_number
from descant.errors import ConfigurationError, GradingError, IgnoreGradeException
from descant.graders.base import AnyGrader, BaseGrader, Grade, as_grader, attempt_grades, checked_grade
from descant.stats import SCORE_KEYS, summarize_scores
from descant.threads.thread import StringThread

AggregationMethod = Literal["mean", "sum"]

_IGNORED, _FAILED = "num_ignored", "num_failed"
_WARNED = {"warned": True}  # an entry of a log whose readers have been warned


class CombinedGrader(BaseGrader):
    """The weighted mean or sum of the grades of several graders, its children, which grade concurrently.

    A child that raises ``IgnoreGradeException`` is left out of that thread's grade: the mean is over the weights of the
    others. If all children do, so does the combined grader. Any other failure of a child fails the grade: its exception
    is raised as it is, with a note that names the child; if several fail, the first in order.

    A child of weight 0 is measured and not counted.

    Metrics (``get_logs``):
        ``score/*``: the combined grades. ``score/stderr``, here and of the children, is the standard error of the mean
        with prompts as independent units; it is left out if there is only one prompt.
        ``<child key>/score/*``: all grades that the child returned, whether it logs them or not.
        ``<child key>/num_ignored``, ``<child key>/num_failed``: threads that the child did not apply to or failed on,
        if any.
        ``<child key>/...``: everything else in the child's own ``get_logs``.

    Args:
        grader_key: the grader's name.
        graders: the children, with distinct keys without "/"; functions from thread to number, too, whose keys are
            their names.
        weights: one finite number per child; None weighs all 1.
        aggregation_method: "mean" divides by the sum of the weights, "sum" does not.
        failure_rate_warning_threshold: a fraction; if a child was left out on a larger fraction of the threads,
            ``get_logs`` warns through the logger "descant", once until the logs are cleared.

    Raises:
        ConfigurationError: an argument that cannot work.
        GradingError (when grading): the weights of the children that applied sum to 0, or a child returned something
            that is not a grade.
    """

    def __init__(
        self,
        grader_key: str,
        graders: Sequence[AnyGrader],
        weights: Sequence[float] | None = None,
        aggregation_method: AggregationMethod = "mean",
        failure_rate_warning_threshold: float = 0.2,
    ) -> None:
        super().__init__(grader_key)
        self.graders = _checked_graders(grader_key, graders)
        self._keys = [child.grader_key for child in self.graders]
        check_one_of("aggregation_method", aggregation_method, allowed=get_args(AggregationMethod))
        self.aggregation_method = aggregation_method
        self.weights = _checked_weights(self.graders, weights)
        if aggregation_method == "mean" and _sum_to_zero(self.weights):
            raise ConfigurationError(
                f"weights={list(self.weights)} sum to 0, so there is no mean; aggregation_method='sum' takes them"
            )
        threshold = failure_rate_warning_threshold
        if not is_finite_number(threshold) or not 0 <= threshold <= 1:
            raise ConfigurationError(
                f"failure_rate_warning_threshold={threshold!r} must be a fraction, at least 0 and at most 1"
            )
        self.failure_rate_warning_threshold = threshold

    async def grade(self, sample: StringThread) -> Grade:
        """The combined grade; the reasoning has one line per child: its grade, weight and reasoning."""
        # all are awaited, even if one has failed, so that the counts in the children's logs do not depend on timing
        results = await attempt_grades((child, sample) for child in self.graders)
        log: dict[str, Any] = {"children": dict(zip(self._keys, map(_outcome, results), strict=True))}
        log["prompt"] = sample.without_completion().uuid()
        try:
            value = self._combined(results)
            grade = Grade(value, self.grader_key, "\n".join(map(_line, self._keys, self.weights, results)))
            log["score"] = value
        finally:
            self.add_log(log)
        return grade

    def get_logs(self, clear: bool = False, log_all_samples: bool = False) -> dict[str, Any]:
        """The statistics of the combined grades, and everything of the children under their keys."""
        graded = [log for log in self._logs if "children" in log]
        logs = _summary([(log["score"], log["prompt"]) for log in graded if "score" in log])
        for child, key in zip(self.graders, self._keys, strict=True):
            outcomes = [(log["children"][key], log["prompt"]) for log in graded]
            child_logs = child.get_logs(log_all_samples=True) if log_all_samples else child.get_logs()
            child_logs = {name: value for name, value in child_logs.items() if name not in SCORE_KEYS}
            child_logs |= _summary([(outcome, prompt) for outcome, prompt in outcomes if isinstance(outcome, float)])
            child_logs |= Counter(outcome for outcome, _ in outcomes if isinstance(outcome, str))
            logs |= {f"{key}/{name}": value for name, value in child_logs.items()}
        self._warn_of_ignored([log["children"] for log in graded])
        if clear:
            self.clear_logs()
        return logs

    def unusable(self, prompt: StringThread) -> str | None:
        """Why the first of the children that cannot grade any completion of a prompt cannot."""
        return next((reason for child in self.graders if (reason := child.unusable(prompt))), None)

    def clear_logs(self) -> None:
        """Forget what was recorded, here and in the children (inside a log scope: what was recorded there)."""
        super().clear_logs()
        for child in self.graders:
            child.clear_logs()

    def _combined(self, results: Sequence[Grade | Exception]) -> float:
        children = list(zip(self._keys, self.weights, results, strict=True))
        for key, _, result in children:
            if isinstance(result, Exception) and not isinstance(result, IgnoreGradeException):
                result.add_note(f"raised by child {key!r} of grader {self.grader_key!r}")
                raise result
        applied = [(key, weight, result.value) for key, weight, result in children if isinstance(result, Grade)]
        if not applied:
            reasons = "; ".join(f"{key}: {result}" for key, _, result in children)
            raise IgnoreGradeException(f"no child of grader {self.grader_key!r} applies ({reasons})")
        weights = [weight for _, weight, _ in applied]
        divisor = fsum(weights) if self.aggregation_method == "mean" else 1.0
        if self.aggregation_method == "mean" and _sum_to_zero(weights):
            keys = ", ".join(repr(key) for key, _, _ in applied)
            raise GradingError(
                f"grader {self.grader_key!r} has no mean here: of its children only {keys} applied, and their "
                f"weights {weights} sum to 0"
            )
        try:
            total = fsum(weight * value for _, weight, value in applied)
        except (OverflowError, ValueError):  # beyond what a float can hold
            total = inf
        return checked_grade(total / divisor, self.grader_key).value

    def _warn_of_ignored(self, samples: Sequence[dict[str, float | str]]) -> None:
        num_incomplete = sum(_IGNORED in sample.values() for sample in samples)
        if num_incomplete <= self.failure_rate_warning_threshold * len(samples) or _WARNED in self._logs:
            return
        self._logs.append(_WARNED)
        counts = Counter(key for sample in samples for key, outcome in sample.items() if outcome == _IGNORED)
        logging.getLogger("descant").warning(
            "grader %r: on %d of %d threads (%.0f%%) a child did not apply and was left out (%s), so their grades are "
            "made of fewer children than the others. If that is intended, raise failure_rate_warning_threshold=%g.",
            self.grader_key,
            num_incomplete,
            len(samples),
            100 * num_incomplete / len(samples),
            ", ".join(f"{key!r}: {count}" for key, count in counts.most_common()),
            self.failure_rate_warning_threshold,
        )


def _summary(scores_and_prompts: Sequence[tuple[float, str]]) -> dict[str, Any]:
    if not scores_and_prompts:
        return {}
    scores, prompts = zip(*scores_and_prompts, strict=True)
    return dict(summarize_scores(scores, prompts))


def _outcome(result: Grade | Exception) -> float | str:
    if isinstance(result, Grade):
        return result.value
    return _IGNORED if isinstance(result, IgnoreGradeException) else _FAILED


def _line(key: str, weight: float, result: Grade | Exception) -> str:
    value, why = (f"{result.value:g}", result.reasoning) if isinstance(result, Grade) else ("left out", str(result))
    lines = [line.strip() for line in (why or "").splitlines() if line.strip()]
    return f"{key} {value} (weight {weight:g}){': ' * bool(lines)}{'; '.join(lines)}"


def _sum_to_zero(weights: Sequence[float]) -> bool:
    return abs(fsum(weights)) <= 1e-12 * fsum(map(abs, weights))  # 0.1 + 0.2 - 0.3 is not exactly 0


def _checked_graders(grader_key: str, graders: object) -> tuple[BaseGrader, ...]:
    if not isinstance(graders, Sequence) or not graders:
        raise ConfigurationError(f"graders={graders!r} of grader {grader_key!r} must be a list of at least one grader")
    graders = [as_grader(f"graders[{i}] of grader {grader_key!r}", grader) for i, grader in enumerate(graders)]
    for position, grader in enumerate(graders):
        if "/" in grader.grader_key or grader.grader_key == "score":
            raise ConfigurationError(
                f"graders[{position}] of grader {grader_key!r} has the key {grader.grader_key!r}; metrics are named "
                "'<key>/score/mean', so the key of a child must be without '/' and not 'score'. Give it another "
                "grader_key"
            )
    counts = Counter(grader.grader_key for grader in graders)
    if twice := [key for key, count in counts.items() if count > 1]:
        raise ConfigurationError(
            f"grader {grader_key!r} has several children called {twice[0]!r}, whose metrics would collide; give each "
            "another grader_key (of a function: BaseGrader.from_function(grader_key, function))"
        )
    return tuple(graders)


def _checked_weights(graders: Sequence[BaseGrader], weights: object) -> tuple[float, ...]:
    if weights is None:
        return (1.0,) * len(graders)
    if not isinstance(weights, Sequence) or not all(map(is_finite_number, weights)):
        raise ConfigurationError(f"weights={weights!r} must be finite numbers: a list with one number per grader")
    if len(weights) != len(graders):
        raise ConfigurationError(f"weights={weights!r}: {len(weights)} weights for {len(graders)} graders")
    return tuple(map(float, weights))
