"""check_placement: whether background evaluations say what the live model would, and leave nothing behind."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import threading
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import TypeVar

import torch

from descant.models.builder import ModelBuilder
from descant.models.evaluation_placement import EvaluationPlacement
from descant.models.inference import InferenceModel
from descant.models.requester import Requester, requester_scope
from descant.models.training import TrainingModel
from descant.models.weight_buffers import Lease, WeightBuffers
from descant.models.workers.child_process import ChildProcess
from descant.testing.report import Report, first_problem
from descant.testing.runs import quietly
from descant.testing.tiny_model import tiny_dataset, tiny_model_path
from descant.threads.thread import StringThread

ResultT = TypeVar("ResultT")
_MAX_GEN_LEN = 8
_LONG_GEN_LEN = 400  # tokens: much longer than it takes to cancel
_LR = 1e-2
_MAX_BATCH_SIZE = 4096


@dataclass(frozen=True, slots=True)
class _Answer:
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
    left = sorted(_belongings() - before)
    report.add("nothing is left", f"{', '.join(left)} after the end" if left else None, "no process, thread or file")
    return report.conclude(raise_on_failure)


class _PlacementCheck:
    def __init__(
        self,
        model: TrainingModel,
        buffers: WeightBuffers,
        placement: EvaluationPlacement,
        timeout_s: float,
        report: Report,
    ) -> None:
        self._model, self._buffers, self._placement = model, buffers, placement
        self._timeout_s, self._report = timeout_s, report
        self._threads = tiny_dataset()[:4]
        self._version = 0

    async def run(self) -> None:
        if not await self._check_same():
            return
        await self._check_versions()
        await self._check_cancelled()
        if self._placement.where == "process":
            await self._check_killed()

    async def _check_same(self) -> bool:
        problem = await self._copy_differs()
        hint = "; another num_threads, and another device, computes other bits"
        details = f"{len(self._threads)} log-probabilities, greedy and sampled completions"
        return self._report.add("it says what the live model does", problem and problem + hint, details)

    async def _check_versions(self) -> None:
        """Copies of several steps, evaluated twice each while training continues."""
        expected, leases = [], []
        for _ in range(self._placement.num_buffers):
            await self._train()
            expected.append(await self._answer())
            leases.append(await self._take())
        handles = [lease.model for lease in leases]
        training = asyncio.ensure_future(self._train(num_steps=3))
        answers = [self._answer(handle) for handle in [*handles, *handles[::-1]]]
        found = await self._in_time(lambda: asyncio.gather(*answers))
        await training
        for lease in leases:
            lease.release()
        if isinstance(found, str):
            problem: str | None = found
        elif len({tuple(answer.logprobs) for answer in expected}) < len(expected):
            problem = "training has not changed the model, so nothing was compared"
        else:
            pairs = zip(found, [*expected, *expected[::-1]], strict=True)
            problem = first_problem([self._difference(one, other) for one, other in pairs])
        details = f"{len(expected)} of them, evaluated at once, in parallel to training"
        self._report.add("versions do not mix", problem, details)

    async def _check_cancelled(self) -> None:
        lease, requester, task = await self._begin_long()
        jobs = [job.future for job in requester._pending]
        task.cancel()
        requester.refuse("was cancelled")
        stopped = await self._in_time(requester.settle)
        await asyncio.wait({task})
        lease.release()
        problem = f"a generation that was given up is not stopped: {stopped}" if isinstance(stopped, str) else None
        if any(job.done() and not job.cancelled() and job.exception() is None for job in jobs):
            problem = f"a generation of {_LONG_GEN_LEN} tokens that was given up was made to its end"
        problem = problem or await self._copy_differs()
        self._report.add("what is cancelled stops", problem, "in the middle of a generation; the next one is right")

    async def _check_killed(self) -> None:
        lease, _, task = await self._begin_long()
        evaluator = self._buffers._evaluator
        assert isinstance(evaluator, ChildProcess)
        os.kill(evaluator.pid, signal.SIGKILL)
        done, _ = await asyncio.wait({task}, timeout=self._timeout_s)
        reason = task.exception() if done else None
        task.cancel()
        lease.release()
        problem = None if reason else "an evaluation whose process was killed does not fail"
        await self._train()
        problem = problem or await self._copy_differs()
        self._report.add("a killed process is made up for", problem, f"{reason}; the next evaluation is right")

    async def _begin_long(self) -> tuple[Lease, Requester, asyncio.Task[None]]:
        """A copy, and a long generation on it that the worker has been asked for, with its requester."""

        async def generate() -> None:
            model = lease.model(self._model).min_gen_len(_LONG_GEN_LEN).max_gen_len(_LONG_GEN_LEN)
            await model.generate_many([StringThread().user("2+2=")])

        lease = await self._take()
        requester = Requester("the conformance kit", 0, observer=True, detached=True)
        with requester_scope(requester):
            task = asyncio.ensure_future(generate())
        while not requester._pending and not task.done():
            await asyncio.sleep(0)
        return lease, requester, task

    async def _take(self) -> Lease:
        """A copy of the weights as they are now."""
        self._version += 1
        await self._buffers.wait_for_room(self._version)
        return await self._buffers.take(self._version)

    async def _copy_differs(self) -> str | None:
        """How the answer of a copy, as the weights are now, differs from that of the live model."""

        async def answer() -> _Answer:
            lease = await self._take()
            try:
                return await self._answer(lease.model)
            finally:
                lease.release()

        found = await self._in_time(answer)
        return found if isinstance(found, str) else self._difference(found, await self._answer())

    async def _answer(self, handle: Callable[[InferenceModel], InferenceModel] = lambda view: view) -> _Answer:
        """What the model says; ``handle`` gives a view's settings to other weights."""
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

    async def _in_time(self, work: Callable[[], Awaitable[ResultT]]) -> ResultT | str:
        """The result, or why there is none."""
        try:
            return await asyncio.wait_for(work(), self._timeout_s)
        except TimeoutError:
            return f"no answer within timeout_s={self._timeout_s:g}"
        except Exception as error:
            return f"{type(error).__name__}: {error}"

    def _difference(self, found: _Answer, expected: _Answer) -> str | None:
        tolerance = 0.0 if self._placement.device is None else 1e-4
        for thread, value, other in zip(self._threads, found.logprobs, expected.logprobs, strict=True):
            if not abs(value - other) <= tolerance * abs(other):
                return f"the log-probability of {thread.last_content()!r} is {value!r}, and {other!r} on the live model"
        for text, other_text in zip(found.completions, expected.completions, strict=True):
            if tolerance == 0 and text != other_text:
                return f"{text!r} is generated, and {other_text!r} by the live model"
        return None


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
