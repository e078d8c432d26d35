"""ModelCallback: the base of callbacks that look at a model."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Generic, Literal, TypeVar, Unpack, get_args

from descant.arguments import check_one_of, missing_await
from descant.callbacks.base import CallbackMode, CallbackOptions, RecipeCallback
from descant.errors import ConfigurationError
from descant.models.inference import InferenceModel
from descant.schedule import Frequency

MeasurementT = TypeVar("MeasurementT")
WhenBusy = Literal["wait", "skip", "replace"]
"""What a background evaluation does that finds no room for its snapshot."""


def check_model(model: object) -> None:
    """Raises ConfigurationError if a callback cannot look at it."""
    if not isinstance(model, InferenceModel):
        raise ConfigurationError(
            f"model={model!r} is a {type(model).__name__}; a model made by ModelBuilder.spawn_train or "
            f"spawn_inference is needed{missing_await(model)}"
        )


class ModelOptions(CallbackOptions, total=False):
    """The settings that every ``ModelCallback`` takes by keyword; see there."""

    mode: CallbackMode | None
    when_busy: WhenBusy


class ModelCallback(RecipeCallback, Generic[MeasurementT]):
    """A callback in two halves: ``measure`` needs the model's weights, ``report`` does not.

    ========== ===================================== ============================ ===========================
    mode       ``measure``                           ``report``                   training waits for
    ========== ===================================== ============================ ===========================
    inline     in the loop, on the live weights      in the loop                  all of it
    overlap    in the loop, on the live weights      in parallel to training      ``measure``
    background in parallel, on a copy of the weights in parallel to training      the copy
    ========== ===================================== ============================ ===========================

    The metrics are the same, and belong to the step whose weights were measured, whenever they arrive. Several calls of
    one callback may be in flight at a time, so ``measure`` hands over to ``report`` by what it returns.

    Args:
        model: the model to look at, usually the one that is being trained.
        frequency, log_key_prefix, options: see ``RecipeCallback``. In the
            background ``timeout_s`` counts from the moment that its copy of the weights begins to be measured.
        mode: see above; by default the trainer's ``callback_mode``.
        when_busy: in the background, when all copies that there is room for are still being evaluated: "wait" for one
            of them (nothing is lost; the time is reported as ``wait_s``), "skip" this evaluation, or let it "replace"
            the oldest one of this callback that still needs its copy. The last two are recorded. The final call waits
            in any case.
    """

    modes = get_args(CallbackMode)

    def __init__(
        self,
        model: InferenceModel,
        frequency: Frequency,
        log_key_prefix: str | None = None,
        *,
        mode: CallbackMode | None = None,
        when_busy: WhenBusy = "wait",
        **options: Unpack[CallbackOptions],
    ) -> None:
        check_model(model)
        super().__init__(frequency, log_key_prefix, mode=mode, **options)
        check_one_of(f"callback {self.name!r}: when_busy", when_busy, allowed=get_args(WhenBusy))
        self.model = model
        self.mode = mode
        self.when_busy = when_busy

    def settings(self) -> dict[str, Any]:
        """Its plain arguments, and which model it looks at."""
        return {**super().settings(), "model": self.model.name}

    @abstractmethod
    async def measure(self, model: InferenceModel) -> MeasurementT:
        """What the model says: completions, log-probabilities. Nothing here waits for anything but the model.

        Args:
            model: the weights to look at; ``self.model``, or a copy of it as it was at this step.
        """

    @abstractmethod
    async def report(self, measurement: MeasurementT) -> dict[str, Any]:
        """The metrics of a measurement: grading, statistics, tables."""

    async def callback(self, current_percentage: float) -> dict[str, Any]:
        """``report(await measure(model))``."""
        return await self.report(await self.measure(self.model))
