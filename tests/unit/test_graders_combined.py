import asyncio
import logging

import pytest
from support import LengthGrader

from descant import BaseGrader, ExactMatchGrader, Grade, StringThread
from descant.errors import ConfigurationError, GradingError, IgnoreGradeException
from descant.graders.base import grade_many
from descant.graders.combined_grader import CombinedGrader
from descant.graders.log_scope import log_scope


def thread(content="four", prompt="q"):
    return StringThread([("user", prompt), ("assistant", content)], {"reference": "four"})


def constant(key, value, reasoning=None):
    return BaseGrader.from_function(key, lambda _: Grade(value, key, reasoning))


def picky(key, value=1.0, not_for=("na",)):
    """Applies to most threads only."""

    def judge(sample):
        if sample.last_content() in not_for:
            raise IgnoreGradeException(f"not for {sample.last_content()}")
        return value

    return BaseGrader.from_function(key, judge)


def failing(key):
    def judge(sample):
        raise LookupError(f"{key} is down")

    return BaseGrader.from_function(key, judge)


@pytest.mark.parametrize(
    ("method", "weights", "expected"),
    [("mean", None, 0.5), ("mean", [3, 1], 0.75), ("mean", [1, 0], 1.0), ("sum", None, 1.0), ("sum", [3, -1], 3.0)],
)
async def test_mean_and_sum_are_weighted(method, weights, expected):
    combined = CombinedGrader("all", [constant("a", 1.0), constant("b", 0.0)], weights, method)
    grade = await combined.grade(thread())
    assert (grade.value, grade.grader_key) == (expected, "all")


async def test_the_mean_of_equal_grades_is_that_grade():
    combined = CombinedGrader("all", [constant(str(i), 0.1) for i in range(10)])
    assert (await combined.grade(thread())).value == 0.1


async def test_reasoning_has_a_line_per_child():
    children = [constant("a", 0.25, "first\n\n  second"), constant("b", 1.0), picky("c")]
    grade = await CombinedGrader("all", children, [2, 1, 0.5]).grade(thread("na"))
    assert grade.reasoning.splitlines() == [
        "a 0.25 (weight 2): first; second",
        "b 1 (weight 1)",
        "c left out (weight 0.5): not for na",
    ]


async def test_children_grade_at_the_same_time():
    both = asyncio.Barrier(2)

    async def judge(sample):
        await both.wait()
        return 1.0

    combined = CombinedGrader("all", [BaseGrader.from_function(key, judge) for key in "ab"])
    assert (await combined.grade(thread())).value == 1.0


async def test_a_child_that_does_not_apply_is_left_out():
    children = [constant("a", 0.0), constant("b", 1.0), picky("c", 100.0)]
    assert (await CombinedGrader("m", children, [1, 3, 5]).grade(thread("na"))).value == 0.75
    assert (await CombinedGrader("s", children, [1, 3, 5], "sum").grade(thread("na"))).value == 3.0


async def test_a_combined_grader_does_not_apply_where_no_child_does():
    combined = CombinedGrader("all", [picky("a"), picky("b")])
    with pytest.raises(IgnoreGradeException, match=r"no child of grader 'all' applies \(a: not for na; b: not for na"):
        await combined.grade(thread("na"))
    assert combined.get_logs() == {"a/num_ignored": 1, "b/num_ignored": 1}


async def test_a_child_that_fails_fails_the_grade_with_its_own_exception():
    combined = CombinedGrader("all", [picky("a"), failing("b"), constant("c", 1.0), failing("d")])
    with pytest.raises(LookupError) as error:
        await combined.grade(thread("na"))
    assert error.value.args == ("b is down",)
    assert error.value.__notes__ == ["raised by child 'b' of grader 'all'"]
    logs = combined.get_logs()
    assert {key: value for key, value in logs.items() if "num_" in key} == {
        "a/num_ignored": 1, "b/num_failed": 1, "d/num_failed": 1,
    }  # fmt: skip
    assert logs["c/score/count"] == 1
    assert "score/count" not in logs


async def test_weights_of_those_that_apply_may_not_sum_to_zero():
    combined = CombinedGrader("all", [constant("a", 1.0), constant("b", 1.0), picky("c")], [0.1, -0.1, 1])
    assert (await combined.grade(thread())).value == 1.0
    with pytest.raises(GradingError, match=r"no mean here: .* only 'a', 'b' applied, .* \[0.1, -0.1\] sum to 0"):
        await combined.grade(thread("na"))


async def test_a_grade_beyond_all_numbers_is_an_error():
    for method in ("mean", "sum"):
        combined = CombinedGrader("all", [constant("a", 1e308), constant("b", 1e308)], [1, 1], method)
        with pytest.raises(GradingError, match="'all' returned inf"):
            await combined.grade(thread())


class Verbose(LengthGrader):
    """Never logs scores, and has metrics of its own."""

    def get_logs(self, clear=False):
        return {**super().get_logs(clear), "vocabulary": 7, "score/mean": -1.0}


async def test_logs_of_children_come_from_what_they_returned():
    combined = CombinedGrader("all", [ExactMatchGrader("exact"), Verbose("length"), picky("picky")])
    await grade_many(combined, [thread("four"), thread("na", "another")])
    statistics = {"std": 0.5**0.5, "min": 0.0, "max": 1.0, "count": 2}
    assert combined.get_logs(clear=True) == {
        **{f"score/{name}": pytest.approx(value) for name, value in
           {"mean": 1.5, "std": 0.5**0.5, "min": 1.0, "max": 2.0, "count": 2, "stderr": 0.5}.items()},
        "exact/score/mean": 0.5, "exact/score/stderr": pytest.approx(0.5),
        "length/score/stderr": pytest.approx(1.0),
        **{f"exact/score/{name}": value for name, value in statistics.items()},
        "length/score/mean": 3.0, "length/score/std": 2**0.5, "length/score/min": 2.0, "length/score/max": 4.0,
        "length/score/count": 2, "length/vocabulary": 7,
        "picky/score/mean": 1.0, "picky/score/std": 0.0, "picky/score/min": 1.0, "picky/score/max": 1.0,
        "picky/score/count": 1, "picky/num_ignored": 1,
    }  # fmt: skip
    assert combined.get_logs() == {"length/vocabulary": 7}


class LogsTwice(LengthGrader):
    """Its own statistics are of more than it was asked to grade."""

    def get_logs(self, clear=False):
        return {**super().get_logs(clear), "score/stderr": 1.0, "score/median": 1.0, "score/count": 2}


async def test_the_statistics_of_a_child_are_those_of_its_grades_and_what_else_it_logs_passes():
    combined = CombinedGrader("all", [LogsTwice("twice")])
    await combined.grade(thread())
    assert {key for key in combined.get_logs() if key.startswith("twice/")} == {
        f"twice/score/{name}" for name in ("mean", "std", "min", "max", "count", "median")
    }


async def test_completions_of_one_prompt_are_not_independent():
    combined = CombinedGrader("all", [LengthGrader("length")])
    await grade_many(combined, [thread("a", "p"), thread("a", "p"), thread("bbb", "q"), thread("bbb", "q")])
    logs = combined.get_logs()
    assert logs["score/stderr"] == logs["length/score/stderr"] == pytest.approx(1.0)  # of 1 and 3, not of four values
    with log_scope():
        await grade_many(combined, [thread("a"), thread("bbb")])
        assert not {"score/stderr", "length/score/stderr"} & combined.get_logs().keys()


async def test_a_child_whose_reasoning_is_no_text_fails_and_is_named_before_anything_is_logged():
    combined = CombinedGrader("all", [constant("a", 0.5, {"why": 1}), constant("b", 1.0)])
    with pytest.raises(GradingError, match=r"'a' returned a Grade with the reasoning \{'why': 1\}; a string or None"):
        await combined.grade(thread())
    assert set(combined.get_logs()) - {f"b/score/{name}" for name in ("mean", "std", "min", "max", "count")} == {
        "a/num_failed"
    }


async def test_clearing_reaches_the_children_and_stays_in_the_scope():
    child = ExactMatchGrader("exact")
    combined = CombinedGrader("all", [child])
    await combined.grade(thread())
    with log_scope():
        await combined.grade(thread())
        combined.clear_logs()
        assert combined.get_logs() == child.get_logs() == {}
    assert combined.get_logs()["exact/score/count"] == child.get_logs()["score/count"] == 1
    combined.get_logs(clear=True)
    assert combined.get_logs() == child.get_logs() == {}


async def test_a_combined_grader_can_be_a_child():
    inner = CombinedGrader("inner", [constant("a", 0.0), constant("b", 1.0)])
    combined = CombinedGrader("outer", [inner, constant("c", 1.0)])
    grade = await combined.grade(thread())
    assert grade.value == 0.75
    assert grade.reasoning.splitlines() == ["inner 0.5 (weight 1): a 0 (weight 1); b 1 (weight 1)", "c 1 (weight 1)"]
    logs = combined.get_logs()
    assert (logs["inner/score/mean"], logs["inner/b/score/mean"], logs["c/score/mean"]) == (0.5, 1.0, 1.0)


async def test_many_incomplete_grades_are_said_once(caplog):
    combined = CombinedGrader("all", [picky("a"), constant("b", 1.0)], failure_rate_warning_threshold=0.5)
    with caplog.at_level(logging.WARNING, "descant"):
        await grade_many(combined, [thread("na"), thread()])
        combined.get_logs()
        assert not caplog.records  # half of them are not more than the threshold
        await grade_many(combined, [thread("na")])
        combined.get_logs()
        combined.get_logs(clear=True)
    assert [record.getMessage() for record in caplog.records] == [
        "grader 'all': on 2 of 3 threads (67%) a child did not apply and was left out ('a': 2), so their grades are "
        "made of fewer children than the others. If that is intended, raise failure_rate_warning_threshold=0.5."
    ]
    caplog.clear()
    with log_scope():
        await grade_many(combined, [thread("na")])
        combined.get_logs()
    assert len(caplog.records) == 1


A = ExactMatchGrader("a")
B = ExactMatchGrader("b")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"graders": []}, r"graders=\[\] .* at least one grader"),
        ({"graders": A}, "must be a list of at least one grader"),
        ({"graders": [A, 1]}, r"graders\[1\] of grader 'all' is 1, not a grader"),
        ({"graders": [A, A]}, "several children called 'a'"),
        ({"graders": [A, ExactMatchGrader("b/c")]}, r"graders\[1\] .* key 'b/c'; .* without '/'"),
        ({"graders": [ExactMatchGrader("score")]}, "not 'score'"),
        ({"graders": [A, B], "weights": [1]}, r"weights=\[1\]: 1 weights for 2 graders"),
        ({"graders": [A, B], "weights": [1, float("nan")]}, "must be finite numbers"),
        ({"graders": [A, B], "weights": [1, "2"]}, "must be finite numbers"),
        ({"graders": [A, B], "weights": "12"}, "a list with one number per grader"),
        ({"graders": [A, B], "weights": [1, -1]}, "sum to 0, so there is no mean"),
        ({"graders": [A, B, LengthGrader()], "weights": [0.1, 0.2, -0.3]}, "sum to 0, so there is no mean"),
        ({"graders": [A], "aggregation_method": "max"}, "aggregation_method='max' must be one of 'mean', 'sum'"),
        ({"graders": [A], "failure_rate_warning_threshold": 20}, "threshold=20 must be a fraction"),
        ({"graders": [A], "failure_rate_warning_threshold": float("nan")}, "threshold=nan must be a fraction"),
    ],
)
def test_arguments_that_cannot_work_are_refused(arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        CombinedGrader("all", **arguments)


def test_a_sum_takes_weights_that_sum_to_zero():
    assert CombinedGrader("all", [A, B], [1, -1], "sum").weights == (1.0, -1.0)
