"""WeightBuffers: copies of a model's weights, which are evaluated while the model is trained."""

from __future__ import annotations

import asyncio
import itertools
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from descant.engine import jobs
from descant.engine.weight_files import close_weight_file, create_weight_file
from descant.errors import DescantError, WorkerDied
from descant.models.evaluation_placement import EvaluationPlacement, start_evaluation_worker
from descant.models.inference import InferenceModel
from descant.models.off_loop import off_loop
from descant.models.workers.engine_worker import EngineWorker


@dataclass(eq=False, slots=True)
class _Buffer:
    """Memory for one version of the weights."""

    handle: jobs.WeightHandle
    name: str = ""
    version: int | None = None
    num_users: int = 0
    attached: Future[None] = field(default_factory=Future)


class WeightBuffers:
    """A few copies of a model's live weights, and the worker that evaluates them.

    A copy is not overwritten while it has users, and has a name that is never used again, which every job says: so
    versions cannot mix.
    """

    def __init__(self, model: InferenceModel, placement: EvaluationPlacement) -> None:
        self._source = model._worker
        self._name = model.name
        self._placement = placement
        self._buffers: list[_Buffer] = []
        self._freed = asyncio.Event()
        self._numbers = itertools.count(1)
        self._turn = asyncio.Lock()  # one evaluation after another
        self._evaluator: EngineWorker | None = None

    def serves(self, model: InferenceModel) -> bool:
        """Whether a handle is on the weights that are copied here."""
        return model.weights == jobs.LIVE and model._worker is self._source

    def check(self) -> None:
        """Wait for whether ``start`` would refuse the model; for callers without an event loop."""
        self._source.submit(self._describe()).future.result()

    def _describe(self) -> jobs.DescribeEngine:
        placement = self._placement
        return jobs.DescribeEngine(placement.device, placement.num_threads, importable=placement.where == "process")

    async def start(self) -> None:
        """Allocate the buffers, and start the worker, which loads in parallel to training.

        Raises:
            ConfigurationError: the model cannot be evaluated there, with why and what to do.
        """
        self._loop = asyncio.get_running_loop()
        spec = await self._source.run(self._describe())
        for _ in range(self._placement.num_buffers):
            self._buffers.append(_Buffer(jobs.WeightHandle(create_weight_file(spec.layout.num_bytes), spec.layout)))
        for buffer in self._buffers:  # all memory is allocated now, and not while training waits for a copy
            await self._source.run(jobs.ExportWeights(buffer.handle))
        files = [buffer.handle.name for buffer in self._buffers]
        self._evaluator = start_evaluation_worker(self._placement.where, f"{self._name} (evaluation)", spec, files)

    async def ready(self) -> None:
        """Wait until the worker can evaluate; raises why it cannot."""
        await self._worker().ready()

    def has_room(self, version: int) -> bool:
        """Whether a version is held already, or a buffer is free."""
        return self._held(version) is not None or any(buffer.version is None for buffer in self._buffers)

    async def wait_for_room(self, version: int) -> None:
        """Wait for room, which the caller has to take before it awaits anything else."""
        while not self.has_room(version):
            self._freed.clear()
            await self._freed.wait()

    async def take(self, version: int) -> Lease:
        """One more user of a version, which is copied from the live weights unless it is held already.

        Raises:
            DescantError: there is no room.
            Exception: of the copy, or of a worker that does not start; there is room again.
        """
        buffer = self._held(version)
        if buffer is None:
            buffer = next((buffer for buffer in self._buffers if buffer.version is None), None)
            if buffer is None:
                raise DescantError(f"no buffer is free for version {version} of {self._name!r}")
            buffer.version, buffer.name = version, f"copy-{next(self._numbers)}-of-step-{version}"
            try:
                await self._source.run(jobs.ExportWeights(buffer.handle))
                buffer.attached = self._worker().submit(jobs.AttachWeights(buffer.name, buffer.handle)).future
            except BaseException:
                self._free(buffer)
                raise
        buffer.num_users += 1
        return Lease(self, buffer)

    async def close(self) -> None:
        """End the worker, whose jobs are cancelled, and free the memory."""
        try:
            if self._evaluator is not None:
                await off_loop(self._evaluator.close)
        finally:
            buffers, self._buffers = self._buffers, []
            for buffer in buffers:
                close_weight_file(buffer.handle.name)

    def kill(self) -> None:
        """End the worker at once, if it is a process."""
        if self._evaluator is not None:
            self._evaluator.kill()

    def _worker(self) -> EngineWorker:
        assert self._evaluator is not None, "the weight buffers were not started"
        return self._evaluator

    def _held(self, version: int) -> _Buffer | None:
        """The buffer of a version that has users; one without is about to be freed."""
        return next((buffer for buffer in self._buffers if buffer.version == version and buffer.num_users), None)

    def _release(self, buffer: _Buffer) -> None:
        buffer.num_users -= 1
        if not buffer.num_users:
            self._detach(buffer, jobs.Priority.TRAINING)

    def _detach(self, buffer: _Buffer, priority: jobs.Priority) -> None:
        """Free a buffer once no job computes with it any more."""
        try:
            detached = self._worker().submit(jobs.DetachWeights(buffer.name, priority)).future
        except DescantError:  # it was closed
            self._free(buffer)
            return

        def done(future: Future[Any]) -> None:
            is_used = not future.cancelled() and future.exception() is None and not future.result()
            again = partial(self._detach, buffer, jobs.Priority.EVALUATION) if is_used else partial(self._free, buffer)
            with suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(again)

        detached.add_done_callback(done)

    def _free(self, buffer: _Buffer) -> None:
        buffer.version = None
        self._freed.set()


class Lease:
    """The right to use one version of the weights, until it is released."""

    def __init__(self, buffers: WeightBuffers, buffer: _Buffer) -> None:
        self._buffers = buffers
        self._buffer = buffer
        self._name = buffer.name
        self._has_turn = False
        self.is_released = False

    def model(self, view: InferenceModel) -> InferenceModel:
        """A handle on these weights with the sampling of a view; the view itself if it is of another model."""
        return view._handle(self._name, worker=self._buffers._worker()) if self._buffers.serves(view) else view

    async def turn(self) -> None:
        """Wait until the worker is ready and has measured earlier evaluations; raises why it cannot evaluate."""
        if not self._has_turn:
            await self._buffers._turn.acquire()
            self._has_turn = True
        await self._buffers._worker().ready()
        with suppress(WorkerDied):  # its successor has attached them
            await asyncio.shield(asyncio.wrap_future(self._buffer.attached))

    def end_turn(self) -> None:
        """Let the next evaluation begin; twice is harmless."""
        if self._has_turn:
            self._has_turn = False
            self._buffers._turn.release()

    def release(self) -> None:
        """End the use, and the turn; twice is harmless. The last user of a version frees its memory."""
        self.end_turn()
        if not self.is_released:
            self.is_released = True
            self._buffers._release(self._buffer)
