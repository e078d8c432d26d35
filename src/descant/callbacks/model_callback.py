"""ModelCallback: the base of callbacks that look at a model."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Generic, TypeVar, Unpack

from descant.callbacks.base import CallbackOptions, RecipeCallback
from descant.errors import ConfigurationError
from descant.models.inference import InferenceModel
from descant.schedule import Frequency

MeasurementT = TypeVar("MeasurementT")


class ModelCallback(RecipeCallback, Generic[MeasurementT]):
    """A callback in two halves: ``measure`` needs the model's weights, ``report`` does not.

    Training waits for both today. The halves are apart so that the second can go on while training does.

    Args:
        model: the model to look at, usually the one that is being trained; it sees the live weights.
        frequency, log_key_prefix, options: see ``RecipeCallback``.
    """

    def __init__(
        self,
        model: InferenceModel,
        frequency: Frequency,
        log_key_prefix: str | None = None,
        **options: Unpack[CallbackOptions],
    ) -> None:
        if not isinstance(model, InferenceModel):
            raise ConfigurationError(
                f"model={model!r} is a {type(model).__name__}; a model made by ModelBuilder.spawn_train or "
                "spawn_inference is needed"
            )
        super().__init__(frequency, log_key_prefix, **options)
        self.model = model

    @abstractmethod
    async def measure(self, model: InferenceModel) -> MeasurementT:
        """What the model says: completions, log-probabilities. Nothing here waits for anything but the model."""

    @abstractmethod
    async def report(self, measurement: MeasurementT) -> dict[str, Any]:
        """The metrics of a measurement: grading, statistics, tables."""

    async def callback(self, current_percentage: float) -> dict[str, Any]:
        """``report(await measure(model))``."""
        return await self.report(await self.measure(self.model))
