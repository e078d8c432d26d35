"""describe_run: the settings of a run, for its run log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from descant.callbacks.base import RecipeCallback
from descant.data.origin import describe_threads
from descant.metrics import MetricSpec
from descant.models.off_loop import off_loop
from descant.provenance import describe_environment
from descant.runner.options import RunOptions
from descant.settings import plain

if TYPE_CHECKING:
    from descant.runner.callback_runner import CallbackRunner


async def describe_run(
    runner: CallbackRunner, specs: Mapping[str, Sequence[MetricSpec]], models: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """What a run is made of: its options and the loop's own settings, models, data, callbacks, metrics, environment.

    Args:
        runner: the run.
        specs: the metrics that are declared, by who declares them.
        models: what is known of each model, by name; the first one is the run's.
    """
    own = {name: value for name, value in runner.settings().items() if name in RunOptions.__dataclass_fields__}
    config = {"title": runner.title, "num_steps": runner.num_steps, **own, **plain(runner.config or {})}
    (name, model), *others = [*models.items()] or [("", {})]
    if model:
        config["model"] = {"name": name, **plain(config.get("model") or {}), **model}
    if runner.training_set is not None:
        config["dataset"] = await off_loop(describe_threads, runner.training_set)
    return {
        **config,
        **({"models": dict(others)} if others else {}),
        "callbacks": [await _describe_callback(callback) for callback in runner.callbacks],
        "metrics": [asdict(spec) for declared in specs.values() for spec in declared],
        "environment": await off_loop(describe_environment),
    }


async def _describe_callback(callback: RecipeCallback) -> dict[str, Any]:
    threads = callback.validation_threads()
    found = {"validation_set": await off_loop(describe_threads, threads)} if threads else {}
    return {**callback.settings(), **found}
