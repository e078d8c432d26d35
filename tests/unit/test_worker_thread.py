"""The worker thread, the collector and requesters, with an engine that does what the test says."""

import asyncio
import gc
import os
import threading
import weakref

import pytest

from descant import StringThread
from descant.engine.jobs import Job, Priority
from descant.errors import DescantError
from descant.models.collector import Collector
from descant.models.requester import Requester, current_requester, requester_scope
from descant.models.workers.worker_thread import WorkerThread


class Call(Job):
    """A job that calls a function with the yield point."""

    def __init__(self, function, priority=Priority.EVALUATION):
        self.function = function
        self.priority = priority


class CallingEngine:
    def run(self, job, yield_point):
        return job.function(yield_point)


@pytest.fixture
def worker():
    worker = WorkerThread("test", CallingEngine)
    yield worker
    worker.close()


def until_cancelled(started, ended):
    def work(yield_point):
        started.set()
        try:
            while True:
                yield_point()
        finally:
            ended.set()

    return work


async def test_results_and_errors_come_back(worker):
    assert await worker.run(Call(lambda _: threading.current_thread().name)) == "descant-test"
    with pytest.raises(ZeroDivisionError):
        await worker.run(Call(lambda _: 1 / 0))
    assert await worker.run(Call(lambda _: "still working")) == "still working"


async def test_training_goes_first_and_the_rest_in_order(worker):
    release, started = threading.Event(), threading.Event()
    order = []
    first = asyncio.create_task(worker.run(Call(lambda _: (started.set(), release.wait()))))
    await asyncio.to_thread(started.wait)
    jobs = [
        ("a", Priority.EVALUATION),
        ("b", Priority.EVALUATION),
        ("t", Priority.TRAINING),
        ("c", Priority.EVALUATION),
    ]
    waiting = [
        asyncio.create_task(worker.run(Call(lambda _, name=name: order.append(name), priority)))
        for name, priority in jobs
    ]
    await asyncio.sleep(0)
    release.set()
    await asyncio.gather(first, *waiting)
    assert order == ["t", "a", "b", "c"]


async def test_a_cancelled_job_stops_before_the_next_one_starts(worker):
    started, ended = threading.Event(), threading.Event()
    task = asyncio.create_task(worker.run(Call(until_cancelled(started, ended))))
    await asyncio.to_thread(started.wait)
    following = asyncio.create_task(worker.run(Call(lambda _: ended.is_set())))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await following is True


async def test_a_waiting_job_that_is_cancelled_never_runs(worker):
    release, ran = threading.Event(), []
    first = asyncio.create_task(worker.run(Call(lambda _: release.wait())))
    waiting = asyncio.create_task(worker.run(Call(lambda _: ran.append(1))))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    release.set()
    await first
    await worker.run(Call(lambda _: None))
    assert ran == []


async def test_closing_cancels_what_runs_and_refuses_what_waits(worker):
    started, ended = threading.Event(), threading.Event()
    running = asyncio.create_task(worker.run(Call(until_cancelled(started, ended))))
    await asyncio.to_thread(started.wait)
    waiting = asyncio.create_task(worker.run(Call(lambda _: None)))
    await asyncio.sleep(0)
    await asyncio.to_thread(worker.close)
    for task in (running, waiting):
        with pytest.raises(DescantError, match="'test' was closed"):
            await task
    with pytest.raises(DescantError, match="'test' was closed"):
        await worker.run(Call(lambda _: None))
    worker.close()


async def test_closing_is_not_lost_between_looking_for_training_and_taking_it(worker):
    """The queue is closed just after a yield point has seen a training job that is gone by then."""
    worker._loop._training_waits = lambda: True
    started, ended = threading.Event(), threading.Event()
    task = asyncio.create_task(worker.run(Call(until_cancelled(started, ended))))
    await asyncio.to_thread(started.wait)
    await asyncio.to_thread(worker.close)  # joins the thread
    with pytest.raises(DescantError, match="'test' was closed"):
        await task


async def test_an_engine_that_nobody_refers_to_is_freed():
    engine = CallingEngine()
    reference = weakref.ref(engine)
    worker = WorkerThread("garbage", lambda made=[engine]: made.pop())
    await worker.run(Call(lambda _: None))
    thread = worker._loop._thread
    del engine, worker
    gc.collect()
    await asyncio.to_thread(thread.join)
    gc.collect()
    assert reference() is None


async def test_calls_made_together_are_one_list_call():
    collector, calls = Collector(), []

    async def double(items):
        calls.append(list(items))
        return [LookupError(item) if item == 3 else 2 * item for item in items]

    results = await asyncio.gather(*(collector.call("key", i, double) for i in range(5)), return_exceptions=True)
    assert results[:3] + results[4:] == [0, 2, 4, 8]
    assert isinstance(results[3], LookupError)
    assert await collector.call("key", 7, double) == 14
    await asyncio.gather(collector.call("a", 1, double), collector.call("b", 2, double))
    assert calls == [[0, 1, 2, 3, 4], [7], [1], [2]]


async def test_a_list_call_that_fails_fails_every_caller():
    async def fail(items):
        raise OSError("gone")

    collector = Collector()
    results = await asyncio.gather(*(collector.call("k", i, fail) for i in range(3)), return_exceptions=True)
    assert [type(result) for result in results] == [OSError] * 3


async def test_a_list_call_is_cancelled_with_the_last_of_its_callers():
    collector, cancelled, running = Collector(), asyncio.Event(), asyncio.Event()

    async def hang(items):
        running.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    callers = [asyncio.create_task(collector.call("k", i, hang)) for i in range(2)]
    await running.wait()
    callers[0].cancel()
    await asyncio.gather(callers[0], return_exceptions=True)
    assert not cancelled.is_set()
    callers[1].cancel()
    await asyncio.gather(callers[1], return_exceptions=True)
    await cancelled.wait()


async def test_requesters_reach_the_tasks_they_start_and_no_others():
    async def name():
        return current_requester() and current_requester().name

    async def evaluate(requester_name):
        with requester_scope(Requester(requester_name, 0, observer=True)):
            return await asyncio.gather(
                name(), asyncio.create_task(name()), asyncio.to_thread(lambda: current_requester().name)
            )

    assert await asyncio.gather(evaluate("a"), evaluate("b")) == [["a"] * 3, ["b"] * 3]
    assert await name() is None


def test_sampling_seeds_are_those_of_requester_thread_and_occurrence():
    first, second = StringThread().user("1"), StringThread().user("2")
    requester, again, other = (
        Requester("a", 1, observer=True),
        Requester("b", 1, observer=True),
        Requester("a", 2, observer=True),
    )
    seeds = [requester.next_sampling_seed(thread) for thread in (first, first, second)]
    assert len(set(seeds)) == 3
    assert [again.next_sampling_seed(thread) for thread in (second, first, first)] == [seeds[2], seeds[0], seeds[1]]
    assert other.next_sampling_seed(first) not in seeds


async def test_a_forked_process_is_told_that_it_has_no_model(worker):
    await worker.run(Call(lambda _: None))
    if (pid := os.fork()) == 0:
        try:
            worker.submit(Call(lambda _: None))
        except DescantError as error:
            os._exit(0 if "'test' was loaded by a process that this one was forked from" in str(error) else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    await worker.run(Call(lambda _: None))
