"""WeightBuffers: versions of a model's weights, evaluated elsewhere while the model is trained."""

from __future__ import annotations

import asyncio
import itertools
import os
import sys
import tempfile
from collections import deque
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

from descant.arguments import check_whole_number
from descant.engine.jobs import (
    LIVE,
    AttachWeights,
    DescribeEngine,
    DetachWeights,
    ExportWeights,
    Priority,
    UnmapWeights,
)
from descant.errors import ConfigurationError, DescantError, WorkerDied
from descant.models.inference import InferenceModel
from descant.models.workers.child_process import ChildProcess
from descant.models.workers.engine_worker import EngineWorker
from descant.models.workers.worker_thread import WorkerThread

Where = Literal["process", "thread"]


@dataclass(frozen=True, slots=True)
class EvaluationPlacement:
    """Where the mode "background" evaluates copies of the weights.

    Attributes:
        where: "process": one of its own, started once; "thread": a thread of this process.
        device: such as "cuda:1"; by default that of the model.
        num_threads: of torch on the CPU; by default as many as there are cores that training leaves, at least one.
        num_buffers: copies of the weights that may be under evaluation at a time; each costs the memory of the weights.

    Raises:
        ConfigurationError: an argument that cannot work.
    """

    where: Where = "process"
    device: str | None = None
    num_threads: int | None = None
    num_buffers: int = 2

    def __post_init__(self) -> None:
        if self.where not in get_args(Where):
            raise ConfigurationError(f"where={self.where!r} must be 'process' or 'thread'")
        if self.device is not None and not isinstance(self.device, str):
            raise ConfigurationError(f"device={self.device!r} must be a name such as 'cpu' or 'cuda:1', or None")
        check_whole_number("num_threads", self.num_threads, or_none=True)
        check_whole_number("num_buffers", self.num_buffers)


@dataclass(eq=False, slots=True)
class _Buffer:
    """Memory for one version of the weights."""

    fd: int
    name: str = ""
    version: int | None = None
    num_users: int = 0
    attached: Future[None] | None = None


class WeightBuffers:
    """Evaluates copies of a model's live weights elsewhere.

    A copy is written into one of a few buffers, is never written again while somebody uses it, and has a name of its
    own, which every job says: versions cannot mix.

    Args:
        model: any handle on the live weights.
        placement: where.
    """

    def __init__(self, model: InferenceModel, placement: EvaluationPlacement) -> None:
        self._source = model._placement
        self._name = model.name
        self._placement = placement
        self._buffers: list[_Buffer] = []
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._numbers = itertools.count(1)
        self._turn = asyncio.Lock()  # one evaluation after another
        self._evaluator: EngineWorker | None = None

    def serves(self, model: InferenceModel) -> bool:
        """Whether this is where the weights of a handle are evaluated."""
        return model.weights == LIVE and model._placement is self._source

    async def start(self) -> None:
        """Make the buffers, and start the place; it gets ready while training goes on.

        Raises:
            ConfigurationError: the model cannot be evaluated there, with why and what to do.
        """
        self._loop = asyncio.get_running_loop()
        if self._placement.where == "process" and sys.platform == "win32":
            raise ConfigurationError("a process of its own needs Linux or macOS; use EvaluationPlacement('thread')")
        device, where = self._placement.device, self._placement.where
        spec = await self._source.run(
            DescribeEngine(device, self._placement.num_threads, importable=where == "process")
        )
        self._layout = spec.layout
        for _ in range(self._placement.num_buffers):
            self._buffers.append(_Buffer(new_weight_file(self._layout.num_bytes)))
        for buffer in self._buffers:  # so that the first copy finds all memory in place
            await self._source.run(ExportWeights(buffer.fd, self._layout))
        name = f"{self._name} (evaluation)"
        if where == "process":
            self._evaluator = ChildProcess(name, spec, [buffer.fd for buffer in self._buffers])
        else:
            from descant.engine.hf import HFEngine  # noqa: PLC0415 - torch

            self._evaluator = WorkerThread(name, partial(HFEngine.replica, spec))

    def has_room(self, version: int) -> bool:
        """Whether a version is held already, or there is a buffer for it."""
        return self._held(version) is not None or any(buffer.version is None for buffer in self._buffers)

    async def wait_for_room(self, version: int) -> None:
        """Wait until there is; who has waited longest is next."""
        while not self.has_room(version):
            turn: asyncio.Future[None] = self._loop.create_future()
            self._waiting.append(turn)
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():  # it was called, and does not come: the next one may
                    self._call_next()
                raise

    async def take(self, version: int) -> Lease:
        """One more user of a version, which is copied from the live weights unless it is held already.

        Raises:
            DescantError: there is no room.
            and whatever the copy, or a place that does not start, fails with; there is room again.
        """
        buffer = self._held(version)
        if buffer is None:
            buffer = next((buffer for buffer in self._buffers if buffer.version is None), None)
            if buffer is None:
                raise DescantError(f"no buffer is free for version {version} of {self._name!r}")
            buffer.version, buffer.name = version, f"copy-{next(self._numbers)}-of-step-{version}"
            try:
                await self._source.run(ExportWeights(buffer.fd, self._layout))
                buffer.attached = self._place().submit(AttachWeights(buffer.name, buffer.fd, self._layout)).future
            except BaseException:
                self._free(buffer)
                raise
        buffer.num_users += 1
        return Lease(self, buffer)

    async def close(self) -> None:
        """End the place, and free the memory. What still runs is cancelled."""
        try:
            if self._evaluator is not None:
                await asyncio.to_thread(self._evaluator.close)
        finally:
            buffers, self._buffers = self._buffers, []
            unmapped: list[Future[Any]] = []
            for buffer in buffers:
                with suppress(DescantError):  # the model was closed, and let go of it
                    unmapped.append(self._source.submit(UnmapWeights(buffer.fd)).future)
                os.close(buffer.fd)
            for future in unmapped:
                with suppress(DescantError):
                    await asyncio.shield(asyncio.wrap_future(future))

    def kill(self) -> None:
        """End a process at once."""
        if isinstance(self._evaluator, ChildProcess):
            self._evaluator.kill()

    def _place(self) -> EngineWorker:
        assert self._evaluator is not None, "the replica was not started"
        return self._evaluator

    def _held(self, version: int) -> _Buffer | None:
        """Where a version is that is in use; one that nobody uses any more is about to be forgotten."""
        return next((buffer for buffer in self._buffers if buffer.version == version and buffer.num_users), None)

    def _release(self, buffer: _Buffer) -> None:
        buffer.num_users -= 1
        if not buffer.num_users:
            self._detach(buffer, Priority.TRAINING)

    def _detach(self, buffer: _Buffer, priority: Priority) -> None:
        """Free a buffer once nothing computes with it any more."""
        try:
            detached = self._place().submit(DetachWeights(buffer.name, priority)).future
        except DescantError:  # it was closed
            self._free(buffer)
            return

        def done(future: Future[Any]) -> None:
            is_used = not future.cancelled() and future.exception() is None and not future.result()
            again = partial(self._detach, buffer, Priority.EVALUATION) if is_used else partial(self._free, buffer)
            with suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(again)

        detached.add_done_callback(done)

    def _free(self, buffer: _Buffer) -> None:
        buffer.version = None
        self._call_next()

    def _call_next(self) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                break


class Lease:
    """The right to use one version of the weights, until it is released."""

    def __init__(self, replica: WeightBuffers, buffer: _Buffer) -> None:
        self._replica = replica
        self._buffer = buffer
        self._name = buffer.name
        self._has_turn = False
        self.is_released = False

    def model(self, view: InferenceModel) -> InferenceModel:
        """A handle on these weights that samples like another one; that one itself if it is of another model."""
        return view._elsewhere(self._replica._place(), self._name) if self._replica.serves(view) else view

    async def turn(self) -> None:
        """Wait until the place is ready, and evaluations that came before have been measured.

        Raises:
            DescantError: there is no such place, or it cannot take the weights, with why.
        """
        await self._replica._turn.acquire()
        self._has_turn = True
        await self._replica._place().ready()
        attached = self._buffer.attached
        if attached is not None and not isinstance(attached.exception(0) if attached.done() else None, WorkerDied):
            await asyncio.shield(asyncio.wrap_future(attached))  # by a process that has died since: another has them

    def end_turn(self) -> None:
        """Let the next evaluation begin; twice is harmless."""
        if self._has_turn:
            self._has_turn = False
            self._replica._turn.release()

    def release(self) -> None:
        """Give it back, and the turn; twice is harmless. The last user of a version frees its memory."""
        self.end_turn()
        if not self.is_released:
            self.is_released = True
            self._replica._release(self._buffer)


def new_weight_file(num_bytes: int) -> int:
    """A file for one version of the weights; returns its descriptor, which is the caller's to close."""
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("descant-weights")
    else:
        with tempfile.TemporaryFile() as file:
            fd = os.dup(file.fileno())
    try:
        os.ftruncate(fd, num_bytes)
    except BaseException:
        os.close(fd)
        raise
    return fd
