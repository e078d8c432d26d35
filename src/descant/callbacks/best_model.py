"""BestModelCallback: keeps the weights that did best."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Unpack

from descant.callbacks.base import CallbackOptions, RecipeCallback, RunView
from descant.callbacks.checkpoint import check_checkpoint_name
from descant.callbacks.metric_watch import Measured, MetricWatch, Mode
from descant.callbacks.model_callback import check_model
from descant.metrics import MetricSpec
from descant.models.inference import InferenceModel
from descant.schedule import NEVER


class BestModelCallback(RecipeCallback):
    """Saves the model whenever a metric is better than ever, in ``<run directory>/checkpoints/<checkpoint_name>``.

    It saves the weights that were measured, also in the background. The directory is replaced in whole: a kill leaves
    the old or the new one. When it runs, and what happens to a metric that is not there: see ``MetricWatch``.

    Metrics: ``best_model/value``, ``best_model/step``: of the weights that are kept.

    Args:
        model: what to save.
        metric: the full key of a metric of another callback, such as ``validation/rewards/score/mean``.
        mode: "max" or "min": which values are better; by default as the metric is declared.
        checkpoint_name: the name of the directory.
        log_key_prefix: the prefix of its metrics, and its name.
        options: see ``RecipeCallback``.

    Raises:
        ConfigurationError: an argument that cannot work.
    """

    is_deferrable = False
    watches: MetricWatch
    metric_specs = (
        MetricSpec("value", headline=True, detail=True),
        MetricSpec("step", "steps", headline=True, detail=True),
    )

    def __init__(
        self,
        model: InferenceModel,
        metric: str,
        mode: Mode | None = None,
        checkpoint_name: str = "best",
        *,
        log_key_prefix: str = "best_model",
        **options: Unpack[CallbackOptions],
    ) -> None:
        options.setdefault("at_start", False)
        options.setdefault("at_end", False)
        super().__init__(NEVER, log_key_prefix, **options)
        check_model(model)
        self.model = model
        self.checkpoint_name = check_checkpoint_name(checkpoint_name)
        self.metric, self.mode = metric, mode
        self.watches = MetricWatch(metric, mode, uses_weights=True, compares=True)

    def declared_checkpoints(self) -> frozenset[str]:
        """Its directory."""
        return frozenset({self.checkpoint_name})

    async def on_start(self, run: RunView) -> None:
        """Forget an earlier run."""
        self.best, self.best_step = self.watches.worst, -1

    def state_dict(self) -> dict[str, Any]:
        """The best measurement so far, and its step."""
        return {"best": list(self.best), "best_step": self.best_step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Only what is better than that is kept."""
        self.best, self.best_step = Measured(*state["best"]), int(state["best_step"])

    async def callback(self, current_percentage: float) -> dict[str, Any]:
        """Save the model if it is the best so far."""
        run = self.running()
        measured = self.watches.measured(run)
        if self.watches.is_better(measured, self.best):
            await run.as_measured(self.model).save(run.run_dir / "checkpoints" / self.checkpoint_name)
            self.best, self.best_step = measured, run.step
        return {"value": self.best.value, "step": self.best_step} if self.best_step >= 0 else {}
