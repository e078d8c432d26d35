"""check_placement: whether background evaluations of a placement say what the live model would, and leave nothing."""

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
_LONG_GEN_LEN = 400  # tokens: long enough that nobody waits for it
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

    It scores and generates with a model, copies the weights, trains on, and lets the copies be evaluated meanwhile;
    gives an evaluation up; kills the process of one; and looks for what is left at the end.

    Args:
        placement: where the copies are evaluated. Without ``num_threads`` it gets as many as training has, because
            another number gives other bits; on another ``device`` answers are compared to four digits.
        model_path: the model; by default a tiny one.
        timeout_s: seconds that starting the place, or one evaluation, may take.
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
    replica = WeightBuffers(model, placement)
    try:
        await asyncio.wait_for(replica.start(), timeout_s)
        await _PlacementCheck(model, replica, placement, timeout_s, report).run()
    finally:
        await replica.close()
        await model.dealloc()
    left = sorted(_belongings() - before)
    report.add("nothing is left", f"{', '.join(left)} after the end" if left else None, "no process, thread or file")
    return report.conclude(raise_on_failure)


class _PlacementCheck:
    def __init__(
        self,
        model: TrainingModel,
        replica: WeightBuffers,
        placement: EvaluationPlacement,
        timeout_s: float,
        report: Report,
    ) -> None:
        self._model, self._replica, self._placement = model, replica, placement
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
        expected = await self._answer()
        problem = self._difference(await self._elsewhere(), expected)
        hint = "; another num_threads, and another device, computes other bits"
        details = f"{len(self._threads)} log-probabilities, greedy and sampled completions"
        return self._report.add("it says what the live model does", problem and problem + hint, details)

    async def _check_versions(self) -> None:
        """Copies of several steps, evaluated while training goes on, twice each."""
        expected, leases = [], []
        for _ in range(self._placement.num_buffers):
            await self._train()
            expected.append(await self._answer())
            leases.append(await self._take())
        handles = [lease.model for lease in leases]
        training = asyncio.ensure_future(self._train_on(3))
        answers = [self._answer(handle) for handle in [*handles, *handles[::-1]]]
        found = await self._in_time(lambda: asyncio.gather(*answers))
        await training
        for lease in leases:
            lease.release()
        both = [*expected, *expected[::-1]]
        problem = (
            found
            if isinstance(found, str)
            else first_problem([self._difference(one, other) for one, other in zip(found, both, strict=True)])
        )
        are_distinct = len({tuple(answer.logprobs) for answer in expected}) == len(expected)
        problem = problem or (None if are_distinct else "training has not changed the model, so nothing was compared")
        details = f"{len(expected)} of them, evaluated at once while training goes on"
        self._report.add("versions do not mix", problem, details)

    async def _check_cancelled(self) -> None:
        lease = await self._take()
        requester = Requester("the conformance kit", 0, observer=True, detached=True)
        with requester_scope(requester):
            task = asyncio.ensure_future(self._generate_long(lease.model(self._model)))
        await self._begun(requester, task)
        jobs = [job.future for job in requester._pending]
        task.cancel()
        requester.refuse("was cancelled")
        stopped = await self._in_time(requester.settle)
        await asyncio.wait({task})
        lease.release()
        problem = f"a generation that was given up goes on: {stopped}" if isinstance(stopped, str) else None
        if any(job.done() and not job.cancelled() and job.exception() is None for job in jobs):
            problem = f"a generation of {_LONG_GEN_LEN} tokens that was given up was made to its end"
        problem = problem or self._difference(await self._elsewhere(), await self._answer())
        self._report.add("what is cancelled stops", problem, "in the middle of a generation; the next one is right")

    async def _check_killed(self) -> None:
        lease = await self._take()
        requester = Requester("the conformance kit", 0, observer=True, detached=True)
        with requester_scope(requester):
            task = asyncio.ensure_future(self._generate_long(lease.model(self._model)))
        await self._begun(requester, task)
        evaluator = self._replica._evaluator
        assert isinstance(evaluator, ChildProcess)
        os.kill(evaluator.pid, signal.SIGKILL)
        done, _ = await asyncio.wait({task}, timeout=self._timeout_s)
        reason = task.exception() if done else None
        task.cancel()
        lease.release()
        problem = None if reason else "an evaluation whose process was killed does not fail"
        await self._train()
        problem = problem or self._difference(await self._elsewhere(), await self._answer())
        self._report.add("a killed process is made up for", problem, f"{reason}; the next evaluation is right")

    async def _begun(self, requester: Requester, task: asyncio.Task[None]) -> None:
        """Until the place has been asked."""
        while not requester._pending and not task.done():
            await asyncio.sleep(0)

    async def _take(self) -> Lease:
        """A copy of the weights as they are now."""
        self._version += 1
        await self._replica.wait_for_room(self._version)
        return await self._replica.take(self._version)

    async def _elsewhere(self) -> _Answer | str:
        """What a copy of the weights says, as they are now."""

        async def answer() -> _Answer:
            lease = await self._take()
            try:
                return await self._answer(lease.model)
            finally:
                lease.release()

        return await self._in_time(answer)

    async def _answer(self, handle: Callable[[InferenceModel], InferenceModel] = lambda view: view) -> _Answer:
        """What the model says; ``handle`` gives a view's settings to other weights."""
        with requester_scope(Requester("the conformance kit", 0, observer=True)):
            short = self._model.max_gen_len(_MAX_GEN_LEN)
            prompts = [thread.without_completion() for thread in self._threads]
            greedy = await handle(short.temperature(0.0)).generate_many(prompts)
            sampled = await handle(short.temperature(1.0)).generate_many(prompts)
            logprobs = await handle(self._model).logprobs_many(self._threads)
        return _Answer(logprobs, [thread.last_content() for thread in [*greedy, *sampled]])

    async def _generate_long(self, model: InferenceModel) -> None:
        prompt = StringThread().user("2+2=")
        await model.min_gen_len(_LONG_GEN_LEN).max_gen_len(_LONG_GEN_LEN).generate_many([prompt])

    async def _train(self) -> None:
        await self._model.train_language_modelling_many(self._threads)
        await self._model.optim_step(_LR)

    async def _train_on(self, num_steps: int) -> None:
        for _ in range(num_steps):
            await self._train()

    async def _in_time(self, work: Callable[[], Awaitable[ResultT]]) -> ResultT | str:
        """The result, or why there is none."""
        try:
            return await asyncio.wait_for(work(), self._timeout_s)
        except TimeoutError:
            return f"no answer within timeout_s={self._timeout_s:g}"
        except Exception as error:
            return f"{type(error).__name__}: {error}"

    def _difference(self, found: _Answer | str, expected: _Answer) -> str | None:
        if isinstance(found, str):
            return found
        tolerance = 0.0 if self._placement.device is None else 1e-4
        for thread, value, other in zip(self._threads, found.logprobs, expected.logprobs, strict=True):
            if not abs(value - other) <= tolerance * abs(other):
                return f"the log-probability of {thread.last_content()!r} is {value!r}, and {other!r} on the live model"
        if tolerance == 0 and found.completions != expected.completions:
            pairs = zip(found.completions, expected.completions, strict=True)
            text, other_text = next(pair for pair in pairs if pair[0] != pair[1])
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
