"""check_placement: whether background evaluations say what the live model would, and leave nothing behind."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import torch

from descant.models.builder import ModelBuilder
from descant.models.evaluation_placement import EvaluationPlacement
from descant.models.inference import InferenceModel
from descant.models.requester import Requester, requester_scope
from descant.models.training import TrainingModel
from descant.models.weight_buffers import WeightBuffers
from descant.models.workers.child_process import ChildProcess
from descant.testing.report import Problem, Report, in_time
from descant.testing.runs import quietly
from descant.testing.tiny_model import tiny_dataset, tiny_model_path
from descant.threads.thread import StringThread

Handle = Callable[[InferenceModel], InferenceModel]
"""Gives the settings of a view to other weights."""
_MAX_GEN_LEN = 8
_LONG_GEN_LEN = 400  # tokens: much longer than it takes to cancel
_LR = 1e-2
_MAX_BATCH_SIZE = 4096


class _Answer(NamedTuple):
    """What a model says: log-probabilities, greedy and sampled completions."""

    logprobs: Sequence[float]
    completions: Sequence[str]


async def check_placement(
    placement: EvaluationPlacement,
    *,
    model_path: str | PathLike[str] | None = None,
    timeout_s: float = 120.0,
    raise_on_failure: bool = True,
) -> Report:
    """Check that background evaluations in a placement are worth what those in the loop are.

    >>> await check_placement(EvaluationPlacement(where="process", num_threads=2))  # doctest: +SKIP

    It scores and generates with a model, copies the weights, trains on, and has the copies evaluated meanwhile;
    cancels an evaluation; kills the process of one; and looks for what is left at the end.

    Args:
        placement: where the copies are evaluated. Without ``num_threads`` it gets as many as training has, because
            another number gives other bits; on another ``device`` answers are compared to four digits.
        model_path: the model; by default a tiny one.
        timeout_s: seconds that starting the worker, or one evaluation, may take.
        raise_on_failure: raise what does not hold instead of returning it.

    Raises:
        AssertionError: something does not hold: the report, which says what differs.
        ConfigurationError: the model cannot be evaluated there.
    """
    if placement.num_threads is None and placement.device is None:
        placement = replace(placement, num_threads=torch.get_num_threads())
    path = tiny_model_path() if model_path is None else Path(model_path)
    report = Report(str(placement))
    before = _belongings()
    with quietly():
        model = await ModelBuilder(path, precision="float32").spawn_train("policy", _MAX_BATCH_SIZE)
    buffers = WeightBuffers(model, placement)
    try:
        await asyncio.wait_for(buffers.start(), timeout_s)
        await _PlacementCheck(model, buffers, placement, timeout_s, report).run()
    finally:
        await buffers.close()
        await model.dealloc()
    with report.check("nothing is left", "no process, thread or file"):
        if left := sorted(_belongings() - before):
            raise Problem(f"{', '.join(left)} after the end")
    return report.conclude(raise_on_failure)


@dataclass
class _PlacementCheck:
    """The single checks; see ``check_placement`` for the arguments."""

    _model: TrainingModel
    _buffers: WeightBuffers
    _placement: EvaluationPlacement
    _timeout_s: float
    _report: Report
    _threads: Sequence[StringThread] = field(default_factory=lambda: tiny_dataset()[:4])
    _version: int = 0

    async def run(self) -> None:
        details = f"{len(self._threads)} log-probabilities, greedy and sampled completions"
        with self._report.check("it says what the live model does", details) as same:
            message = "{}; another num_threads, and another device, computes other bits"
            await in_time(self._check_copy(), self._timeout_s, message)
        if same.passed:
            await self._check_versions()
            await self._check_cancelled()
            if self._placement.where == "process":
                await self._check_killed()

    async def _check_versions(self) -> None:
        """Copies of several steps, evaluated twice each while training continues."""
        num_copies = self._placement.num_buffers
        details = f"{num_copies} of them, evaluated at once, in parallel to training"
        with self._report.check("versions do not mix", details):
            async with AsyncExitStack() as copies:
                expected, handles = [], []
                for _ in range(num_copies):
                    await self._train()
                    expected.append(await self._answer())
                    handles.append(await copies.enter_async_context(self._copy()))
                training = asyncio.ensure_future(self._train(num_steps=3))
                answers = [self._answer(handle) for handle in [*handles, *handles[::-1]]]
                try:
                    found = await in_time(asyncio.gather(*answers), self._timeout_s)
                finally:
                    await training
            if len({tuple(answer.logprobs) for answer in expected}) < num_copies:
                raise Problem("training has not changed the model, so nothing was compared")
            for answer, other in zip(found, [*expected, *expected[::-1]], strict=True):
                self._compare(answer, other)

    async def _check_cancelled(self) -> None:
        with self._report.check("what is cancelled stops", "in the middle of a generation; the next one is right"):
            async with self._copy() as handle:
                requester, task = await self._begin_long(handle)
                jobs = [job.future for job in requester._pending]
                task.cancel()
                requester.refuse("was cancelled")
                message = "a generation that was given up is not stopped: {}"
                await in_time(requester.settle(), self._timeout_s, message)
                await asyncio.wait({task})
            if any(job.done() and not job.cancelled() and job.exception() is None for job in jobs):
                raise Problem(f"a generation of {_LONG_GEN_LEN} tokens that was given up was made to its end")
            await in_time(self._check_copy(), self._timeout_s)

    async def _check_killed(self) -> None:
        with self._report.check("a killed process is made up for") as check:
            async with self._copy() as handle:
                _, task = await self._begin_long(handle)
                evaluator = self._buffers._evaluator
                assert isinstance(evaluator, ChildProcess)
                os.kill(evaluator.pid, signal.SIGKILL)
                done, _ = await asyncio.wait({task}, timeout=self._timeout_s)
                task.cancel()
            if not done or task.exception() is None:
                raise Problem("an evaluation whose process was killed does not fail")
            check.details = f"{task.exception()}; the next evaluation is right"
            await self._train()
            await in_time(self._check_copy(), self._timeout_s)

    async def _begin_long(self, handle: Handle) -> tuple[Requester, asyncio.Task[Any]]:
        """A long generation that the worker has been asked for, with its requester."""
        model = handle(self._model).min_gen_len(_LONG_GEN_LEN).max_gen_len(_LONG_GEN_LEN)
        requester = Requester("the conformance kit", 0, observer=True, detached=True)
        with requester_scope(requester):
            task = asyncio.ensure_future(model.generate_many([StringThread().user("2+2=")]))
        while not requester._pending and not task.done():
            await asyncio.sleep(0)
        return requester, task

    @asynccontextmanager
    async def _copy(self) -> AsyncIterator[Handle]:
        """A copy of the weights as they are now."""
        self._version += 1
        await self._buffers.wait_for_room(self._version)
        lease = await self._buffers.take(self._version)
        try:
            yield lease.model
        finally:
            lease.release()

    async def _check_copy(self) -> None:
        """Raise if a copy of the weights as they are now answers otherwise than the live model."""
        async with self._copy() as handle:
            found = await self._answer(handle)
        self._compare(found, await self._answer())

    async def _answer(self, handle: Handle = lambda view: view) -> _Answer:
        with requester_scope(Requester("the conformance kit", 0, observer=True)):
            short = self._model.max_gen_len(_MAX_GEN_LEN)
            prompts = [thread.without_completion() for thread in self._threads]
            greedy = await handle(short.temperature(0.0)).generate_many(prompts)
            sampled = await handle(short.temperature(1.0)).generate_many(prompts)
            logprobs = await handle(self._model).logprobs_many(self._threads)
        return _Answer(logprobs, [thread.last_content() for thread in [*greedy, *sampled]])

    async def _train(self, num_steps: int = 1) -> None:
        for _ in range(num_steps):
            await self._model.train_language_modelling_many(self._threads)
            await self._model.optim_step(_LR)

    def _compare(self, found: _Answer, expected: _Answer) -> None:
        tolerance = 0.0 if self._placement.device is None else 1e-4
        for thread, value, other in zip(self._threads, found.logprobs, expected.logprobs, strict=True):
            if not abs(value - other) <= tolerance * abs(other):
                text = thread.last_content()
                raise Problem(f"the log-probability of {text!r} is {value!r}, and {other!r} on the live model")
        for text, other_text in zip(found.completions, expected.completions, strict=True):
            if tolerance == 0 and text != other_text:
                raise Problem(f"{text!r} is generated, and {other_text!r} by the live model")


def _belongings() -> set[str]:
    """Processes, threads and memory files that this process has."""
    gc.collect()
    found = {f"the thread {thread.name!r}" for thread in threading.enumerate() if "policy" in thread.name}
    own = Path("/proc/self")
    if not own.exists():  # not on Linux
        return found
    for number in os.listdir(own / "fd"):
        try:
            target = os.readlink(own / "fd" / number)
        except OSError:  # that of the listing itself
            continue
        if "memfd:" in target or "/dev/shm/" in target:
            found.add(f"the file {target} ({number})")
    for path in own.glob("task/*/children"):
        found |= {f"the process {pid}" for pid in path.read_text().split()}
    return found
