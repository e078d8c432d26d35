import asyncio
import contextvars
import functools
import subprocess
import sys
import threading

import pytest
import torch

from descant import BaseGrader, ExactMatchGrader, Grade, StringThread
from descant.errors import ConfigurationError, GradingError, IgnoreGradeException
from descant.graders.base import grade_many
from descant.graders.combined_grader import CombinedGrader
from descant.graders.concurrency_limit import ConcurrencyLimit
from descant.graders.daemon_calls import DaemonCalls
from descant.graders.log_scope import log_scope

THREAD = StringThread([("user", "q"), ("assistant", "four")], {"reference": "four"})


async def test_from_function_takes_sync_functions_into_a_thread():
    threads = []
    grader = BaseGrader.from_function("length", lambda t: threads.append(threading.current_thread()) or len(t))
    assert await grader.grade(THREAD) == Grade(2.0, "length")
    assert threads[0] is not threading.main_thread()


async def test_from_function_takes_async_functions_on_the_loop():
    async def judge(thread):
        await asyncio.sleep(0)
        return Grade(0.5, "judge", "half right")

    grader = BaseGrader.from_function("judge", judge)
    assert await grader.grade(THREAD) == Grade(0.5, "judge", "half right")
    assert await grader.score_float_value(THREAD) == 0.5


async def test_logs_are_statistics_of_what_was_graded():
    values = iter([0.0, 1.0, 2.0])
    grader = BaseGrader.from_function("counting", lambda _: next(values))
    assert grader.get_logs() == {}
    for _ in range(3):
        await grader.grade(THREAD)
    # no score/stderr: all three are of the same prompt, which a log does not say
    expected = {"score/mean": 1.0, "score/std": 1.0, "score/min": 0.0, "score/max": 2.0, "score/count": 3}
    assert grader.get_logs() == expected
    assert grader.get_logs(clear=True) == expected
    assert grader.get_logs() == {}


async def test_a_scope_keeps_an_evaluation_apart_from_training():
    grader = BaseGrader.from_function("one", lambda _: 1.0)
    await grader.grade(THREAD)
    with log_scope():
        assert grader.get_logs() == {}
        await asyncio.gather(*(grader.grade(THREAD) for _ in range(3)))  # in threads of their own
        assert grader.get_logs(clear=True)["score/count"] == 3
    assert grader.get_logs()["score/count"] == 1


async def test_concurrent_scopes_do_not_mix():
    grader = BaseGrader.from_function("one", lambda _: 1.0)

    async def evaluate(count):
        with log_scope():
            for _ in range(count):
                await grader.grade(THREAD)
            return grader.get_logs()["score/count"]

    assert await asyncio.gather(*map(evaluate, range(1, 6))) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (float("nan"), "must be finite"),
        (float("inf"), "must be finite"),
        (Grade(float("nan"), "x"), "must be finite"),
        (None, "a number or a Grade is needed"),
        ("good", "a number or a Grade is needed"),
        ([1.0], "a number or a Grade is needed"),
        (torch.zeros(2), "a number or a Grade is needed"),
        (Grade(0.5, "x", {"a": 1}), r"the reasoning \{'a': 1\}; a string or None is needed"),
        ("x" * 10**6, "^.{,400}$"),
        (Grade(0.5, "x", ["x" * 10**6]), "^.{,400}$"),
    ],
)
async def test_what_is_not_a_grade_is_an_error_and_no_score(returned, message):
    grader = BaseGrader.from_function("odd", lambda _: returned)
    with pytest.raises(GradingError, match=message) as error:
        await grader.grade(THREAD)
    assert "'odd'" in str(error.value)
    assert grader.get_logs() == {}


async def test_scalars_of_torch_are_numbers():
    assert (await BaseGrader.from_function("t", lambda _: torch.tensor(0.5)).grade(THREAD)).value == 0.5


async def test_grade_many_keeps_order_and_puts_failures_in_their_place():
    def grade(thread):
        if thread.last_content() == "bad":
            raise LookupError("no judge")
        return len(thread.last_content())

    threads = [StringThread().user(text) for text in ("a", "bad", "ccc")]
    first, failure, third = await grade_many(BaseGrader.from_function("g", grade), threads)
    assert (first.value, third.value) == (1, 3)
    assert isinstance(failure, LookupError)


async def test_exact_match():
    grader = ExactMatchGrader()
    assert (await grader.grade(THREAD)).value == 1.0
    assert (
        await grader.grade(StringThread([("user", "q"), ("assistant", " four\n")], {"reference": "four"}))
    ).value == 1
    wrong = await grader.grade(StringThread([("user", "q"), ("assistant", "5")], {"reference": "four"}))
    assert wrong == Grade(0.0, "exact_match", "expected 'four', got '5'")
    assert grader.get_logs()["score/count"] == 3
    with pytest.raises(GradingError, match=r"needs a string that is not empty in metadata\['reference'\], found None"):
        await grader.grade(StringThread().user("q").assistant("5"))
    with pytest.raises(GradingError, match="ends in an assistant turn"):
        await grader.grade(StringThread([("user", "q")], {"reference": "four"}))


def test_a_grader_needs_a_key_and_a_function():
    with pytest.raises(ConfigurationError, match="grader_key=''"):
        BaseGrader.from_function("", len)
    with pytest.raises(ConfigurationError, match="needs a function"):
        BaseGrader.from_function("x", 3)


class Two:
    def __call__(self, thread, model):
        return 1.0


@pytest.mark.parametrize(
    ("function", "shown"),
    [
        (lambda: 1.0, r"<lambda>\(\)"),
        (lambda thread, model: 1.0, r"<lambda>\(thread, model\)"),
        (lambda thread, *, model: 1.0, r"<lambda>\(thread, \*, model\)"),
        (Two(), r"Two object at .*\(thread, model\)"),
    ],
)
def test_a_function_that_cannot_be_called_with_a_thread_is_refused(function, shown):
    with pytest.raises(ConfigurationError, match=f"grader 'x' needs a function of one argument, the thread; .*{shown}"):
        BaseGrader.from_function("x", function)


async def test_what_can_be_called_with_a_thread_is_taken():
    def judge(thread, model="m", *more, level=1):
        return len(model)

    for function in (judge, functools.partial(judge, model="m"), lambda *threads: 1.0, len):
        assert (await BaseGrader.from_function("x", function).grade(THREAD)).value in (1.0, 2.0)


def test_a_class_whose_grade_is_not_async_is_refused_where_it_is_defined():
    with pytest.raises(ConfigurationError, match="class Mine must be async: write 'async def grade"):

        class Mine(BaseGrader):
            def grade(self, sample):
                return 1.0


async def test_a_decorated_async_grade_is_taken():
    def logged(method):
        @functools.wraps(method)
        def wrapper(self, sample):
            return method(self, sample)

        return wrapper

    class Mine(BaseGrader):
        @logged
        async def grade(self, sample):
            return Grade(1.0, self.grader_key)

    assert (await Mine("mine").grade(THREAD)).value == 1.0


async def test_grade_many_keeps_to_its_limit_and_its_order():
    running = most = 0

    async def judge(thread):
        nonlocal running, most
        running += 1
        most = max(most, running)
        for _ in range(len(thread.last_content())):  # the first are the slowest
            await asyncio.sleep(0)
        running -= 1
        return len(thread.last_content())

    grader = BaseGrader.from_function("judge", judge)
    threads = [StringThread().user("x" * length) for length in (9, 7, 5, 3, 1)]
    for limit, expected in ((1, 1), (2, 2), (None, 5)):
        most = 0
        grades = await grade_many(grader, threads, max_concurrent=limit)
        assert [grade.value for grade in grades] == [9, 7, 5, 3, 1]
        assert most == expected
    for limit in (0, -1, 1.5, True, "2"):
        with pytest.raises(ConfigurationError, match=r"max_concurrent=.* whole number of at least 1, or None"):
            await grade_many(grader, threads, max_concurrent=limit)


def test_ignoring_says_why():
    assert str(IgnoreGradeException()) == "not applicable"
    assert str(IgnoreGradeException("no tools in this thread")) == "no tools in this thread"


async def test_abandoned_calls_keep_their_thread_but_count_no_longer_as_concurrent():
    release = threading.Event()
    started = asyncio.Queue()
    loop = asyncio.get_running_loop()

    def grade(thread):
        if thread is THREAD:
            loop.call_soon_threadsafe(started.put_nowait, threading.get_ident())
            release.wait()
        return threading.get_ident()

    grader = BaseGrader.from_function("x", grade, max_concurrent=2)
    hanging = [asyncio.ensure_future(grader.grade(THREAD)) for _ in range(2)]
    waiting = asyncio.ensure_future(grader.grade(StringThread().user("other")))
    hung = {await started.get(), await started.get()}
    await asyncio.sleep(0)
    assert not waiting.done()  # both calls are in flight
    for task in hanging:
        task.cancel()
    assert (await waiting).value not in hung
    release.set()


async def test_calls_see_the_context_of_their_task():
    variable = contextvars.ContextVar("variable", default="outside")
    variable.set("inside")
    assert await DaemonCalls("grader 'x'").run(variable.get) == "inside"


def test_a_call_that_hangs_does_not_keep_the_process_alive():
    code = """
import asyncio, time
from descant import BaseGrader, StringThread
grader = BaseGrader.from_function("hangs", lambda thread: time.sleep(10**6), timeout_s=0.01)
try:
    asyncio.run(grader.grade(StringThread().user("q").assistant("a")))
except TimeoutError:
    print("ended")
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300).stdout == "ended\n"


async def test_calls_that_hang_are_bounded_and_those_beyond_fail_at_once():
    release, reached = threading.Event(), []

    def hang(thread):
        reached.append(thread)
        release.wait()
        return 1.0

    grader = BaseGrader.from_function("judge", hang, timeout_s=0.01, max_concurrent=2)
    grades = await grade_many(grader, [THREAD] * 50)
    assert {type(grade) for grade in grades} == {TimeoutError, GradingError}
    assert len(reached) <= 4  # twice the limit
    with pytest.raises(GradingError, match=r"^grader 'judge' has [34] calls that were abandoned.* above 2 \(max_conc"):
        await grader.grade(THREAD)
    assert (await BaseGrader.from_function("other", len, max_concurrent=1).grade(THREAD)).value == 2
    release.set()
    for thread in [*grader._daemon_calls._abandoned]:
        thread.join()
    assert (await grader.grade(THREAD)).value == 1.0  # once they have returned, calls start again


async def cancel_and_wait(_):
    asyncio.current_task().cancel()
    await asyncio.sleep(0)


async def cancel_and_return(_):
    asyncio.current_task().cancel()
    return 0.5


async def raise_cancelled(_):
    raise asyncio.CancelledError


@pytest.mark.parametrize("judge", [cancel_and_wait, cancel_and_return, raise_cancelled])
@pytest.mark.parametrize("combined", [False, True])
async def test_a_judge_that_cancels_its_own_task_fails_and_ends_nothing_else(judge, combined):
    grader = BaseGrader.from_function("judge", judge)
    grader = CombinedGrader("all", [grader]) if combined else grader
    for error in await grade_many(grader, [THREAD, THREAD]):
        assert isinstance(error, GradingError)
        assert "grader 'judge' was cancelled from within" in str(error)
    assert not asyncio.current_task().cancelling()


async def test_a_cancellation_from_outside_passes_whatever_the_judge_does_with_it():
    started = asyncio.Event()

    async def swallow(thread):
        started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return 1.0

    for grader in (g := BaseGrader.from_function("judge", swallow), CombinedGrader("all", [g])):
        started.clear()
        grading = asyncio.ensure_future(grade_many(grader, [THREAD]))
        await started.wait()
        grading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await grading


def test_limits_serve_one_event_loop_after_another():
    limit = ConcurrencyLimit(1)

    async def use(number):
        async with limit.hold():
            await asyncio.sleep(0)
        return number

    async def use_many():
        return await asyncio.gather(*map(use, range(3)))

    assert asyncio.run(use_many()) == asyncio.run(use_many()) == [0, 1, 2]
    assert len(limit._semaphores) == 1  # that of the closed loop is gone
