"""Requests: what callbacks ask of the loop, applied between steps."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Awaitable, Callable
from pathlib import Path

from descant.errors import CallbackError
from descant.runner.recorder import RunRecorder

SaveCheckpoint = Callable[[Path], Awaitable[Path | None] | Path | None]
"""Writes the weights as they are now to a directory, or to another one that it returns."""


class Requests:
    """Collects the requests of callbacks, which return at once, until they are applied and recorded.

    Args:
        recorder: where they are recorded.
        save_checkpoint: writes a checkpoint; None if the loop has not said how.
        strict: raise when a checkpoint cannot be written.
    """

    def __init__(self, recorder: RunRecorder, save_checkpoint: SaveCheckpoint | None, *, strict: bool) -> None:
        self.stop_reason: str | None = None
        """Who has asked first for the end of the run, and why."""
        self._recorder = recorder
        self._save_checkpoint = save_checkpoint
        self._strict = strict
        self._stops: list[str] = []
        self._checkpoint_source: str | None = None

    def stop(self, source: str, reason: str) -> None:
        """Ask for the end of the run after this step."""
        self._stops.append(f"{source}: {reason}")

    def checkpoint(self, source: str) -> None:
        """Ask for a checkpoint of the weights after this step."""
        self._checkpoint_source = source

    @property
    def are_pending(self) -> bool:
        """Whether there is anything to apply."""
        return bool(self._stops) or self._checkpoint_source is not None

    async def apply(self, step: int) -> None:
        """Write the checkpoint that was requested, and say why the run will stop, if it has not ended by itself.

        Raises:
            CallbackError: the checkpoint cannot be written, and ``strict`` is on.
        """
        source, self._checkpoint_source = self._checkpoint_source, None
        if source is not None:
            await self._write_checkpoint(source, step)
        stops, self._stops = self._stops, []
        num_steps = self._recorder.num_steps
        for request in stops if step < num_steps else ():
            self.stop_reason = self.stop_reason or request
            message = f"the run stops after step {step} of {num_steps} ({request})"
            await self._recorder.record_note(step, "stop_requested", request.partition(":")[0], message)

    async def _write_checkpoint(self, source: str, step: int) -> None:
        path = self._recorder.run_dir / "checkpoints" / f"step-{step}"
        if self._save_checkpoint is None:
            message = f"{source} requested a checkpoint, but this loop was not given save_checkpoint="
            await self._recorder.record_event(step, "checkpoint_failed", source, message)
            return
        try:
            written = self._save_checkpoint(path)
            if inspect.isawaitable(written):
                written = await written
        except Exception as error:
            reason = describe(error)
            message = f"the checkpoint that {source} requested at step {step} could not be written: {reason}"
            await self._recorder.record_event(step, "checkpoint_failed", source, message, error)
            if self._strict:
                raise CallbackError(message) from error
        else:
            message = f"checkpoint at step {step}: {written or path}"
            await self._recorder.record_note(step, "checkpoint_saved", source, message)


def describe(error: Exception) -> str:
    """Type and words, also of an exception that has none."""
    return traceback.format_exception_only(error)[0].strip().removeprefix(f"{type(error).__module__}.")
