"""Evaluations: begins calls, each in the mode of its callback, and sees to it that each of them ends."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Any

from descant.callbacks.base import CallbackMode, RecipeCallback
from descant.callbacks.model_callback import ModelCallback
from descant.engine.jobs import LIVE, DescribeModel
from descant.errors import ConfigurationError, DescantError, ModelLoadError
from descant.models.evaluation_placement import EvaluationPlacement
from descant.models.inference import InferenceModel
from descant.models.weight_buffers import WeightBuffers
from descant.runner.call import Call
from descant.runner.calls import Calls
from descant.runner.in_flight import InFlight
from descant.runner.modes import Background, Inline, Mode, Moved, Overlap, Pinned
from descant.runner.run_state import RunState
from descant.text import duration

_GRACE_S = 0.01  # of overlap that was not asked for: what takes less is there with the metrics of its step
_QUIET_S = 0.5  # at the end of a run: what takes less of that is not worth a line


class Evaluations:
    """The calls of a run, from their beginning to their end.

    Args:
        callbacks: all of a run, in the order of their calls.
        modes: the mode of each, by name.
        state: the run, as callbacks see it.
        calls: makes and records them.
        placement: where background evaluations run.
        is_auto: whether the mode of callbacks without one is for the runner to choose.
    """

    def __init__(
        self,
        callbacks: Sequence[RecipeCallback],
        modes: Mapping[str, CallbackMode],
        state: RunState,
        calls: Calls,
        placement: EvaluationPlacement,
        *,
        is_auto: bool,
    ) -> None:
        self._state, self._calls, self._recorder = state, calls, calls.recorder
        self._in_flight = InFlight()
        self._grace_s, self._quiet_s = (_GRACE_S, _QUIET_S) if is_auto else (0.0, 0.0)
        self._buffers: list[WeightBuffers] = []
        models = [callback.model for callback in callbacks if isinstance(callback, ModelCallback)]
        self._models = {(model._worker, model.weights): model for model in models}
        self._keeps_copies = any(c.watches is not None and c.watches.uses_weights for c in callbacks)
        self._modes = {c.name: self._mode(c, modes[c.name], placement) for c in callbacks}

    @property
    def are_in_flight(self) -> bool:
        """Whether there are calls whose results are not recorded."""
        return len(self._in_flight) > 0

    @property
    def need_a_turn(self) -> bool:
        """Whether any call is in flight, or has ended with something to raise."""
        return self.are_in_flight or self._in_flight.has_failed

    async def prepare(self, model: InferenceModel, placement: EvaluationPlacement) -> WeightBuffers:
        """Start a worker for background evaluations of a model, to which callbacks may be moved once it is ready.

        Raises:
            Exception: why the model cannot be evaluated there; nothing is left of it.
        """
        buffers = WeightBuffers(model, placement)
        try:
            await buffers.start()
        except BaseException:
            await buffers.close()
            raise
        self._buffers.append(buffers)
        return buffers

    def move(self, callback: RecipeCallback, *, back: bool = False) -> None:
        """Have the later calls of a callback, which overlaps, made in the background; or ``back``, the other way."""
        parts, name = (self._calls, self._in_flight), callback.name
        background = self._mode(callback, "background", EvaluationPlacement())  # where its model was prepared
        overlap = Overlap(*parts, self._grace_s)
        self._modes[name] = Moved(*parts, background, overlap) if not back else overlap
        self._calls.costs[name].mode = "overlap" if back else "background"

    def check_background(self) -> None:
        """Raises ConfigurationError if ``start`` would; waits for the models, so not on an event loop that they use."""
        for buffers in self._buffers:
            buffers.check()

    async def start(self) -> None:
        """Prepare for background evaluations.

        Raises:
            ConfigurationError: a model cannot be evaluated there.
        """
        for buffers in self._buffers:
            await buffers.start()

    async def describe_models(self, trained: Sequence[InferenceModel]) -> dict[str, dict[str, Any]]:
        """The models of the run as settings, by name, as they are now: those that are trained first, also where other
        code does it, then others that callbacks look at.

        Raises:
            ConfigurationError, ModelLoadError: other code has made something of its model that cannot be run.
        """
        known = {(model._worker, model.weights): model for model in trained} | self._models
        in_order = sorted(
            known.values(), key=lambda model: not (model in trained or model._worker.is_trained_by_others)
        )
        described: dict[str, dict[str, Any]] = {}
        for model in in_order:
            name = model.name if model.weights == LIVE else f"{model.name} ({model.weights})"
            try:
                described.setdefault(name, await model._worker.run(DescribeModel(model.weights)))
            except (ConfigurationError, ModelLoadError):
                raise
            except DescantError:  # it was closed: a failure of the callbacks that use it
                continue
        return described

    async def begin(self, callback: RecipeCallback, *, is_final: bool) -> None:
        """Make a call, or as much of it as training waits for."""
        run = callback.run = self._state.view(callback)
        await self._modes[callback.name].begin(Call(callback, run, is_final))

    async def turn(self) -> None:
        """Let the calls in flight process what has arrived; raises what one of them failed with, if strict."""
        await self._in_flight.turn()

    async def wait(self) -> None:
        """Wait for everything in flight, and say for what and how long; raises as ``turn`` does."""
        was_asked_for = any(getattr(call.callback, "mode", None) for call in self._in_flight)
        await self._in_flight.wait_at_most(0.0 if was_asked_for else self._quiet_s)
        if not self.are_in_flight:
            self._in_flight.check()
            return
        names = ", ".join(map(str, self._in_flight))
        self._recorder.show_note(f"waiting for evaluations in flight: {names}")
        started_at = time.perf_counter()
        await self._in_flight.wait()
        message = f"waited {duration(time.perf_counter() - started_at)} for {names}"
        await self._recorder.record_note(self._recorder.step, "waited_for_callbacks", "callbacks", message)

    def kill(self) -> None:
        """End the processes that evaluate, at once."""
        for buffers in self._buffers:
            buffers.kill()

    async def close(self, *, at_once: bool) -> None:
        """Give up what is still in flight, which is recorded, and end what was started for it."""
        if at_once:
            self.kill()
        try:
            for call in await self._in_flight.cancel_all():
                message = f"{call} was given up, since the run has ended"
                await self._recorder.record_event(call.run.step, "callback_given_up", call.callback.name, message)
        finally:
            await asyncio.gather(*(buffers.close() for buffers in self._buffers))

    def _mode(self, callback: RecipeCallback, mode: CallbackMode, placement: EvaluationPlacement) -> Mode:
        parts = (self._calls, self._in_flight)
        if mode == "inline" or not isinstance(callback, ModelCallback):
            return Inline(*parts)
        if mode == "overlap":
            return Overlap(*parts, self._grace_s if callback.mode is None else 0.0)
        if callback.model.weights != LIVE:
            if callback.model._worker.is_trained_by_others:
                raise ConfigurationError(
                    f"callback {callback.name!r}: mode='background' with {callback.model.weights!r} of a live model: "
                    "it is computed in the module that your loop trains meanwhile, so that one of them would have the "
                    "weights of the other; use mode='inline' or 'overlap', or load a model of its own with ModelBuilder"
                )
            return Pinned(*parts)
        buffers = next((buffers for buffers in self._buffers if buffers.serves(callback.model)), None)
        if buffers is None:
            buffers = WeightBuffers(callback.model, placement)
            self._buffers.append(buffers)
        return Background(*parts, buffers, self._keeps_copies)
