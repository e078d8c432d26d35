"""check_grader: each check can fail, with a message that says why. (What passes is in test_graders.py.)"""

import asyncio
import random
import re

import pytest

from descant import BaseGrader, Grade, StringThread
from descant.errors import ConfigurationError, IgnoreGradeException
from descant.testing import check_grader

THREADS = [StringThread().user("q").assistant(answer) for answer in ("a", "bbb", "cc")]


class Length(BaseGrader):
    """A right one; each of its subclasses has one fault."""

    def __init__(self):
        super().__init__("length")
        self.num_calls = 0

    def length(self, sample):
        return float(len(sample.last_content()))

    def graded(self, value):
        self.add_log({"score": value})
        return Grade(value, "length")

    async def grade(self, sample):
        return self.graded(self.length(sample))


class Raises(Length):
    async def grade(self, sample):
        raise KeyError("rubric")


class NotANumber(Length):
    async def grade(self, sample):
        return Grade(float("nan"), "length")


class APlainNumber(Length):
    async def grade(self, sample):
        return self.length(sample)


class Never(Length):
    async def grade(self, sample):
        raise IgnoreGradeException("not mine")


class Counts(Length):
    async def grade(self, sample):
        self.num_calls += 1
        return self.graded(self.length(sample) + self.num_calls)


class TakesTurns(Length):
    """Threads that are graded at the same time get the grade of the last one."""

    async def grade(self, sample):
        self.latest = self.length(sample)
        await asyncio.sleep(0)
        return self.graded(self.latest)


class Draws(Length):
    async def grade(self, sample):
        random.random()
        return self.graded(self.length(sample))


class MakesUpANumber(Length):
    async def grade(self, sample):
        try:
            return self.graded(self.length(sample))
        except LookupError:
            return Grade(0.0, "length")


class Wraps(Length):
    async def grade(self, sample):
        try:
            return self.graded(self.length(sample))
        except Exception as error:
            raise RuntimeError("could not grade") from error


class LogsFirst(Length):
    async def grade(self, sample):
        self.add_log({"score": 0.0})
        return Grade(self.length(sample), "length")


class OwnLogs(Length):
    scores = ()

    def add_log(self, log):
        self.scores = (*self.scores, log["score"])

    def get_logs(self, clear=False):
        logs = {"score/count": len(self.scores)} if self.scores else {}
        self.scores = () if clear else self.scores
        return logs


class KeepsItsPlace(Length):
    """A lock that a cancelled grading does not release."""

    is_taken = False

    async def grade(self, sample):
        while self.is_taken:
            await asyncio.sleep(0)
        self.is_taken = True
        await asyncio.sleep(0)
        value = self.length(sample)
        self.is_taken = False
        return self.graded(value)


FAILS, IGNORES = "a thread that fails is left out alone", "a thread that it does not apply to is left out alone"
BAD = {
    Raises: {"it grades each thread": r"threads\[0\]: KeyError: 'rubric'"},
    NotANumber: {"it grades each thread": r"threads\[0\]: the grade is nan, which is no finite number; raise what"},
    APlainNumber: {"it grades each thread": r"threads\[0\]: grade\(\) returned 1.0 \(float\); a Grade is needed"},
    Never: {"it grades each thread": r"it applies to none of the 3 threads: give it some that it grades"},
    Counts: {
        "the same grade every time, in order": r"threads\[0\] is graded 5.0, and otherwise 2.0; a judge",
        FAILS: r"beside it threads\[0\] is graded",
        IGNORES: r"beside it threads\[0\] is graded",
        "cancellation is survived": r"after gradings that were cancelled: threads\[0\] is graded",
    },
    TakesTurns: {
        "the same grade every time, in order": r"threads\[0\] is graded 2.0, and otherwise 1.0",
        FAILS: r"beside it threads\[0\] is graded",
        IGNORES: r"beside it threads\[0\] is graded",
        "cancellation is survived": r"after gradings that were cancelled: threads\[0\] is graded",
    },
    Draws: {
        "it draws nothing from global generators": r"grading changes Python's random generator: in the modes .*"
        r"as Transformers' do"
    },
    MakesUpANumber: {FAILS: r"it was graded 0.0: what cannot be graded must raise and not become a number"},
    Wraps: {IGNORES: r"IgnoreGradeException has become RuntimeError: the two are counted apart"},
    LogsFirst: {
        FAILS: r"3 threads were graded, and its logs count 4: log what was graded, once",
        IGNORES: r"3 threads were graded, and its logs count 4",
    },
    OwnLogs: {
        FAILS: r"3 threads were graded, and its logs count \d\d",
        IGNORES: r"3 threads were graded, and its logs count \d\d",
        "its logs stay in their scope": r"a new log scope is not empty: record with add_log, and read with super",
    },
    KeepsItsPlace: {
        FAILS: "no answer within timeout_s=0.2",
        IGNORES: "no answer within timeout_s=0.2",
        "cancellation is survived": "after gradings that were cancelled: no answer within timeout_s=0.2. Release with",
    },
}


@pytest.mark.parametrize("kind", BAD)
async def test_a_bad_one_is_caught_and_told_why(kind):
    timeout_s = 0.2 if kind is KeepsItsPlace else 60
    report = await check_grader(kind(), THREADS, timeout_s=timeout_s, raise_on_failure=False)
    failed = {check.name: check.details for check in report.failures}
    assert set(failed) == set(BAD[kind])
    for name, message in BAD[kind].items():
        assert re.search(message, failed[name]), failed[name]
    with pytest.raises(AssertionError, match=rf"^{kind.__name__} 'length': \d of \d checks passed\n(.*\n)*  FAIL  "):
        report.conclude(raise_on_failure=True)


async def test_a_judge_that_samples_says_so():
    report = await check_grader(Counts(), THREADS, is_deterministic=False)
    assert [check.details for check in report.checks if check.name.startswith("the same grade")] == [
        "not compared, since it is said not to be deterministic"
    ]


async def test_arguments_that_cannot_work():
    with pytest.raises(ConfigurationError, match="grader=3 is a int; a BaseGrader is needed"):
        await check_grader(3, THREADS)
    with pytest.raises(ConfigurationError, match=r"threads=\[\]: a list of at least one StringThread"):
        await check_grader(Length(), [])
