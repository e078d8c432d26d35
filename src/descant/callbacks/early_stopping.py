"""EarlyStoppingCallback: ends a run that does not get better any more."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from typing import Any, Unpack

from descant.arguments import check_finite_number, check_whole_number
from descant.callbacks.base import CallbackOptions, RecipeCallback, RunView
from descant.callbacks.metric_watch import Measured, MetricWatch, Mode
from descant.metrics import MetricSpec
from descant.schedule import NEVER


class EarlyStoppingCallback(RecipeCallback):
    """Requests the end of the run when a metric has not become better for ``patience`` measurements in a row.

    Not an observer: it shortens training. When it runs, and what happens to a metric that is not there: see
    ``MetricWatch``. An evaluation that failed is a measurement without improvement.

    Metrics: ``early_stopping/best`` (value), ``early_stopping/best_step``, ``early_stopping/num_without_improvement``.

    Args:
        metric: the full key of a metric of another callback, such as ``validation/loss``.
        mode: "min" or "max": which values are better; by default as the metric is declared.
        patience: measurements without improvement that end the run.
        min_delta: how much better counts as better.
        log_key_prefix: the prefix of its metrics, and its name.
        options: see ``RecipeCallback``.

    Raises:
        ConfigurationError: an argument that cannot work.
    """

    is_deferrable = False
    watches: MetricWatch
    metric_specs = (
        MetricSpec("best", headline=True, detail=True),
        MetricSpec("best_step", "steps", headline=True, detail=True),
        MetricSpec("num_without_improvement", headline=True, detail=True),
    )

    def __init__(
        self,
        metric: str,
        mode: Mode | None = None,
        patience: int = 3,
        *,
        min_delta: float = 0.0,
        log_key_prefix: str = "early_stopping",
        **options: Unpack[CallbackOptions],
    ) -> None:
        options.setdefault("at_start", False)
        options.setdefault("at_end", False)
        super().__init__(NEVER, log_key_prefix, **options)
        self.metric, self.mode = metric, mode
        self.watches = MetricWatch(metric, mode, compares=True)
        check_whole_number("patience", patience)
        check_finite_number("min_delta", min_delta, least=0)
        self.patience, self.min_delta = patience, min_delta

    async def on_start(self, run: RunView) -> None:
        """Forget an earlier run."""
        self.best, self.best_step, self.num_without_improvement = self.watches.worst, run.step, 0

    def state_dict(self) -> dict[str, Any]:
        """The best measurement so far, its step, and the measurements since."""
        return {
            "best": list(self.best), "best_step": self.best_step,
            "num_without_improvement": self.num_without_improvement,
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue to count."""
        self.best, self.best_step = Measured(*state["best"]), int(state["best_step"])
        self.num_without_improvement = int(state["num_without_improvement"])

    async def callback(self, current_percentage: float) -> dict[str, Any]:
        """Compare the metric of this step with the best so far."""
        run = self.running()
        measured = self.watches.measured(run)
        if self.watches.is_better(measured, self.best, by=self.min_delta):
            self.best, self.best_step, self.num_without_improvement = measured, run.step, 0
        else:
            self.num_without_improvement += 1
        best = self.best.value
        if self.num_without_improvement >= self.patience:
            better = f"become better than {best:.4g} (step {self.best_step})" if isfinite(best) else "been a number"
            run.request_stop(f"{self.metric} has not {better} in {self.num_without_improvement} measurements")
        best_so_far = {"best": best, "best_step": self.best_step} if isfinite(best) else {}
        return {**best_so_far, "num_without_improvement": self.num_without_improvement}
