import asyncio
import threading

import pytest
import torch

from descant import BaseGrader, ExactMatchGrader, Grade, StringThread
from descant.errors import ConfigurationError, GradingError
from descant.graders.base import grade_many
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
    expected = {"score/mean": 1.0, "score/std": 1.0, "score/min": 0.0, "score/max": 2.0, "score/count": 3}
    expected["score/stderr"] = pytest.approx(3**-0.5)
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
    with pytest.raises(GradingError, match=r"needs a string in metadata\['reference'\], found None"):
        await grader.grade(StringThread().user("q").assistant("5"))
    with pytest.raises(GradingError, match="ends in an assistant turn"):
        await grader.grade(StringThread([("user", "q")], {"reference": "four"}))


def test_a_grader_needs_a_key_and_a_function():
    with pytest.raises(ConfigurationError, match="grader_key=''"):
        BaseGrader.from_function("", len)
    with pytest.raises(ConfigurationError, match="needs a function"):
        BaseGrader.from_function("x", 3)
