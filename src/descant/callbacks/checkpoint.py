"""CheckpointCallback: the model as it was, now and then."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite, nan
from pathlib import Path
from typing import Any, Unpack

from descant.arguments import check_whole_number
from descant.callbacks.base import CallbackOptions, RecipeCallback, RunView
from descant.callbacks.metric_watch import MetricWatch, Mode
from descant.callbacks.model_callback import check_model
from descant.directories import remove_whole
from descant.engine.model_files import check_is_model
from descant.errors import ConfigurationError, SaveError
from descant.metrics import MetricSpec
from descant.models.inference import InferenceModel
from descant.models.off_loop import off_loop
from descant.schedule import Frequency


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model that was saved.

    Attributes:
        step: completed steps.
        path: its directory.
        value: the metric by which the best are kept; None where it was not measured or is not finite.
        num_failed: samples that failed when it was measured; those with the fewest are the best, then by value.
    """

    step: int
    path: Path
    value: float | None
    num_failed: float = 0


class CheckpointCallback(RecipeCallback):
    """Saves the model as ``<run directory>/checkpoints/<checkpoint_name>-<step>``, and deletes what need not be kept.

    Weights, configuration and tokenizer, as Transformers and ``ModelBuilder`` load them; adapters as PEFT loads them.
    Each directory is written under another name and then renamed: a kill never leaves half a checkpoint under its name.
    What other code has put a file into is not deleted, with a warning. There is none before the first step and none
    after the last, unless ``at_start=True`` or ``at_end=True``.

    Metrics: ``checkpointing/step``, ``checkpointing/path``, ``checkpointing/num_kept``.

    Args:
        model: what to save, with its live weights.
        checkpoint_name: what the directories' names begin with.
        frequency: the share of the run between two checkpoints, or a schedule (``every_minutes(30)``).
        keep_last: keep the latest so many.
        keep_best: keep the so many with the best ``metric``. With ``keep_last`` too, both are kept; with neither, all.
        metric: for ``keep_best``: the full key of a metric that another callback returns at the same steps. Where it
            was not measured, the checkpoint is written and the call fails, with the keys that there are; it is not
            ranked, and without ``keep_last`` it is kept.
        mode: for ``keep_best``: "max" or "min"; by default as the metric is declared.
        options: see ``RecipeCallback``.

    Raises:
        ConfigurationError: an argument that cannot work.
    """

    is_deferrable = False
    metric_specs = (
        MetricSpec("step", "steps", headline=True, detail=True),
        MetricSpec("path", headline=True),
        MetricSpec("num_kept", headline=True, detail=True),
    )

    def __init__(
        self,
        model: InferenceModel,
        checkpoint_name: str,
        frequency: Frequency = 0.2,
        *,
        keep_last: int | None = None,
        keep_best: int | None = None,
        metric: str | None = None,
        mode: Mode | None = None,
        log_key_prefix: str = "checkpointing",
        **options: Unpack[CallbackOptions],
    ) -> None:
        options.setdefault("at_start", False)
        options.setdefault("at_end", False)
        super().__init__(frequency, log_key_prefix, **options)
        check_model(model)
        self.model = model
        self.checkpoint_name = check_checkpoint_name(checkpoint_name)
        check_whole_number("keep_last", keep_last, or_none=True)
        check_whole_number("keep_best", keep_best, or_none=True)
        if (keep_best is None) != (metric is None) or (metric is None and mode is not None):
            raise ConfigurationError(
                f"keep_best={keep_best!r}, metric={metric!r} and mode={mode!r} go together: how many to keep, by which "
                "metric of another callback, and whether 'max' or 'min' is better (by default as it is declared)"
            )
        self.keep_last, self.keep_best = keep_last, keep_best
        self.metric, self.mode = metric, mode
        if metric is not None:
            self.watches = MetricWatch(metric, mode, on_schedule=True, compares=True)
        self.kept: list[Checkpoint] = []
        """The checkpoints of this run that have not been deleted, oldest first."""

    def declared_checkpoints(self) -> frozenset[str]:
        """What its directories are called."""
        return frozenset({f"{self.checkpoint_name}-<step>"})

    async def on_start(self, run: RunView) -> None:
        """Forget an earlier run; its checkpoints stay."""
        self.kept = []

    def state_dict(self) -> dict[str, Any]:
        """The checkpoints of this run, by the names of their directories."""
        return {"kept": [[each.step, each.path.name, each.value, each.num_failed] for each in self.kept]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue with these checkpoints."""
        folder = self.running().run_dir / "checkpoints"
        self.kept = [Checkpoint(int(step), folder / name, *measured) for step, name, *measured in state["kept"]]

    async def callback(self, current_percentage: float) -> dict[str, Any]:
        """Save, then delete."""
        run = self.running()
        path = run.run_dir / "checkpoints" / f"{self.checkpoint_name}-{run.step}"
        await self.model.save(path)
        try:
            value, num_failed = (nan, 0) if self.watches is None else self.watches.measured(run)
        except ConfigurationError:
            await self._keep(Checkpoint(run.step, path, None))
            raise
        await self._keep(Checkpoint(run.step, path, value if isfinite(value) else None, num_failed))
        return {"step": run.step, "path": str(path), "num_kept": len(self.kept)}

    async def _keep(self, checkpoint: Checkpoint) -> None:
        self.kept.append(checkpoint)
        for outdated in self._outdated():
            self.kept.remove(outdated)
            try:
                await off_loop(_delete, outdated.path)
            except SaveError as error:
                self.warn(str(error))

    def _outdated(self) -> list[Checkpoint]:
        if self.keep_last is None and self.keep_best is None:
            return []
        wanted = self.kept[-self.keep_last :] if self.keep_last is not None else []
        if self.watches is not None:
            measured = [checkpoint for checkpoint in self.kept if checkpoint.value is not None]
            sign = -1 if self.watches.direction == "max" else 1
            ranked = sorted(measured, key=lambda each: (each.num_failed, sign * (each.value or 0.0)))
            wanted = [*wanted, *ranked[: self.keep_best]]
            wanted += [checkpoint for checkpoint in self.kept if checkpoint.value is None and self.keep_last is None]
        return [checkpoint for checkpoint in self.kept if checkpoint not in wanted]


def check_checkpoint_name(name: str) -> str:
    """The name of a directory in the run's own.

    Raises:
        ConfigurationError: it is a path, or nothing.
    """
    if not isinstance(name, str) or not name.strip() or Path(name).name != name or name == "..":
        raise ConfigurationError(
            f"checkpoint_name={name!r} must be a name without directories; checkpoints are in the run directory"
        )
    return name


def _delete(path: Path) -> None:
    if path.exists():
        check_is_model(path)
        remove_whole(path)
