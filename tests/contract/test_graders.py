"""What every grader does, whatever it grades. A new grader joins by being listed."""

import asyncio
import contextlib
import inspect
import math
import re
import threading

import pytest

from descant import BaseGrader, ExactMatchGrader, Grade, StringThread
from descant.errors import ConfigurationError, GradingError, IgnoreGradeException
from descant.graders.base import grade_many
from descant.graders.combined_grader import CombinedGrader
from descant.graders.contains import ContainsGrader
from descant.graders.json_schema import JSONSchemaGrader
from descant.graders.log_scope import log_scope
from descant.graders.numeric import NumericGrader
from descant.graders.regex_grader import RegexGrader
from descant.graders.remote_calls import RemoteCalls
from descant.testing import check_grader

STATISTICS = {"score/mean", "score/std", "score/min", "score/max", "score/count"}


def threads(*contents):
    return [StringThread([("user", "q"), ("assistant", content)]) for content in contents]


# Graders that run the code of a user: ``behave`` is what it does with a thread.


async def result_of(behave, sample):
    result = behave(sample)
    return await result if inspect.isawaitable(result) else result


class Judge(BaseGrader):
    """A user's own class, which returns whatever it is given."""

    def __init__(self, behave):
        super().__init__("judge")
        self.behave = behave

    async def grade(self, sample):
        result = await result_of(self.behave, sample)
        self.add_log({"score": getattr(result, "value", result)})
        return result


class SilentJudge(Judge):
    """One that never logs."""

    async def grade(self, sample):
        return await result_of(self.behave, sample)


class RemoteJudge(Judge):
    """One that calls out."""

    def __init__(self, behave):
        super().__init__(behave)
        self.calls = RemoteCalls(timeout_s=600, max_attempts=2, max_concurrent=4, backoff_s=0)

    async def grade(self, sample):
        result = await self.calls.run(lambda: result_of(self.behave, sample))
        self.add_log({"score": getattr(result, "value", result)})
        return result


def async_function(behave):
    async def judge(sample):
        return await result_of(behave, sample)

    return judge


RUN_USERS_CODE = {
    "function": lambda behave: BaseGrader.from_function("judge", behave),
    "async_function": lambda behave: BaseGrader.from_function("judge", async_function(behave)),
    "limited_function": lambda behave: BaseGrader.from_function("judge", behave, timeout_s=600, max_concurrent=2),
    "subclass": Judge,
    "silent_subclass": SilentJudge,
    "remote_subclass": RemoteJudge,
    "combined_mean": lambda behave: CombinedGrader("all", [BaseGrader.from_function("judge", behave)], [2.0]),
    "combined_sum": lambda behave: CombinedGrader("all", [SilentJudge(behave)], None, "sum"),
    "nested": lambda behave: CombinedGrader("all", [CombinedGrader("inner", [Judge(behave)])]),
}


def fails(sample):
    raise LookupError("the judge has no answer")


def ignores(sample):
    raise IgnoreGradeException("nothing to judge")


BAD_BEHAVIOUR = {
    "raises": (fails, LookupError, "^the judge has no answer$"),
    "raises_stop_iteration": (lambda _: next(iter(())), RuntimeError, "StopIteration"),
    "nan": (lambda _: math.nan, GradingError, "'judge' returned nan; a grade must be finite"),
    "infinity": (lambda _: -math.inf, GradingError, "'judge' returned -inf; a grade must be finite"),
    "too_large": (lambda _: 10**400, GradingError, "'judge' returned inf; a grade must be finite"),
    "grade_of_nan": (lambda _: Grade(math.nan, "judge"), GradingError, "'judge' returned nan; a grade must be finite"),
    "none": (lambda _: None, GradingError, "'judge' returned None; a number or a Grade is needed"),
    "text": (lambda _: "good", GradingError, "'judge' returned 'good'; a number or a Grade is needed"),
    "list": (lambda _: [1.0], GradingError, r"'judge' returned \[1.0\]; a number or a Grade is needed"),
    "complex": (lambda _: 1j, GradingError, "'judge' returned 1j; a number or a Grade is needed"),
    "grade_of_text": (
        lambda _: Grade("1", "judge"),
        GradingError,
        "'judge' returned .*; a number or a Grade is needed",
    ),
    "ignores": (ignores, IgnoreGradeException, "nothing to judge"),
}


@pytest.fixture(params=RUN_USERS_CODE)
def kind(request):
    return request.param


@pytest.mark.parametrize("behaviour", BAD_BEHAVIOUR)
async def test_bad_behaviour_stands_in_place_of_the_grade_and_nowhere_else(kind, behaviour):
    misbehave, error_type, message = BAD_BEHAVIOUR[behaviour]
    grader = RUN_USERS_CODE[kind](lambda sample: misbehave(sample) if sample.last_content() == "bad" else 0.5)
    first, bad, last = await grade_many(grader, threads("good", "bad", "good"))
    assert (first.value, last.value) == (0.5, 0.5)
    assert isinstance(bad, error_type)
    assert re.search(message, str(bad))
    logs = grader.get_logs()
    assert (logs.get("score/count"), logs.get("score/mean")) == ((None, None) if "silent" in kind else (2, 0.5))


async def test_a_grader_that_hangs_can_be_cancelled_and_leaves_nothing(kind):
    in_a_thread = kind in ("function", "limited_function", "combined_mean")
    reached, release = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def hang(sample):
        loop.call_soon_threadsafe(reached.set)
        return release.wait() if in_a_thread else asyncio.Event().wait()

    grader = RUN_USERS_CODE[kind](lambda sample: hang(sample) if sample.last_content() == "bad" else 0.5)
    grading = asyncio.ensure_future(grade_many(grader, threads("bad", "bad")))
    await reached.wait()
    grading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await grading
    assert grader.get_logs() == {}
    (after,) = await grade_many(grader, threads("good"))
    assert after.value == 0.5  # those that hang hold up nobody
    release.set()


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("combined", [False, True])
async def test_a_grader_that_takes_too_long_is_a_failure_in_its_place_and_nowhere_else(is_async, combined):
    release = threading.Event()

    def wait(sample):
        return asyncio.Event().wait() if is_async else release.wait()

    def judge(sample):
        return wait(sample) if sample.last_content() == "bad" else 0.5

    grader = BaseGrader.from_function("judge", async_function(judge) if is_async else judge, timeout_s=1.0)
    grader = CombinedGrader("all", [grader]) if combined else grader
    first, bad, last = await grade_many(grader, threads("good", "bad", "good"))
    release.set()
    assert (first.value, last.value) == (0.5, 0.5)
    assert isinstance(bad, TimeoutError)
    assert "no answer within 1 s" in str(bad)
    assert grader.get_logs()["score/count"] == 2


async def test_passes_the_conformance_kit(kind):
    grader = RUN_USERS_CODE[kind](lambda sample: Grade(float(len(sample.last_content())), "judge"))
    await check_grader(grader, threads("a", "bbb", "cc"))


async def test_logs_are_statistics_of_the_grades_inside_the_scope(kind):
    grader = RUN_USERS_CODE[kind](lambda sample: float(len(sample.last_content())))
    await grade_many(grader, threads("training"))
    before = grader.get_logs()
    with log_scope():
        assert grader.get_logs() == {}
        await grade_many(grader, threads("a", "bbb"))
        logs = grader.get_logs()
        if "silent" not in kind:
            assert {key: logs[key] for key in STATISTICS} == {
                "score/mean": 2.0, "score/std": 2**0.5, "score/min": 1.0, "score/max": 3.0, "score/count": 2,
            }  # fmt: skip
        assert grader.get_logs(clear=True) == logs
        assert grader.get_logs() == {}
    assert grader.get_logs() == before


async def test_reasoning_is_kept(kind):
    grader = RUN_USERS_CODE[kind](lambda _: Grade(1.0, "judge", "as it should be"))
    grade = await grader.grade(threads("a")[0])
    assert "as it should be" in grade.reasoning
    assert "\n" not in grade.reasoning


# Ready graders: a grader, an answer that passes, one that does not.

EVERYTHING = {
    "items": {"$ref": "#"}, "uniqueItems": True, "multipleOf": 0.1, "maximum": 1e9,
    "patternProperties": {"^a+$": {"$ref": "#"}}, "additionalProperties": {"$ref": "#"},
    "anyOf": [{"propertyNames": {"pattern": "a"}}, {"contains": {"type": "array"}}], "not": {"type": "string"},
}  # fmt: skip
READY = {
    "exact_match": (ExactMatchGrader, " 42\n", "24"),
    "contains": (ContainsGrader, "It is 42.", "It is 24."),
    "contains_text": (lambda: ContainsGrader(["It", "42"]), "It is 42.", "It is 24."),
    "numeric": (NumericGrader, "It is 42.", "It is 42 or 24."),
    "regex": (lambda: RegexGrader(r"\b42\b"), "It is 42.", "It is 142."),
    "regex_full": (lambda: RegexGrader(r"\d+", full_match=True), "42\n", "It is 42."),
    "json_schema_of_all": (lambda: JSONSchemaGrader(EVERYTHING), '{"a": [1]}', '{"a": [1, 1.0]}'),
    "json_schema": (lambda: JSONSchemaGrader({"type": "integer"}), "```json\n42\n```", '"42"'),
}
NEEDS_REFERENCE = ["exact_match", "contains", "numeric"]
HOSTILE = [
    "", " \n", "NaN", "Infinity", "-inf", "1e999999999", "1/0", "1e" + "9" * 50, "9" * 5000, "\0", "[" * 100_000,
    "```", "`" * 20_000, "```\n" + " " * 20_000, "1," * 20_000, "1,111" * 5_000, "\N{COLLISION SYMBOL}", "٣",
    "a" * 20_000, "[" * 400 + "]" * 400, "[" * 900 + "]" * 900, "1e999", "-1" + "0" * 4000, '{"' + "a" * 50 + '!": 1}',
    '[{"a": 1}, {"a": 1.0}]', "[" + "{}, " * 5000 + "1]", '[[1], {"1": true}, null]', "{" + '"a": {' * 300 + "}" * 301,
]  # fmt: skip


@pytest.fixture(params=READY)
def ready(request):
    return READY[request.param]


def answer(content, metadata=None, source=None):
    metadata = {"reference": "42"} if metadata is None else metadata
    return StringThread([("user", "q"), ("assistant", content)], metadata, source=source)


async def test_ready_graders_say_yes_or_no_and_why(ready):
    make, right, wrong = ready
    grader = make()
    passed, failed = await grade_many(grader, [answer(right), answer(wrong)])
    assert (passed.value, failed.value) == (1.0, 0.0)
    assert passed.grader_key == failed.grader_key == grader.grader_key
    assert failed.reasoning
    assert passed.reasoning or isinstance(grader, ExactMatchGrader)
    assert grader.get_logs() == {
        "score/mean": 0.5, "score/std": 0.5**0.5, "score/min": 0.0, "score/max": 1.0, "score/count": 2,
    }  # fmt: skip


async def test_ready_graders_pass_the_conformance_kit(ready):
    make, right, wrong = ready
    await check_grader(make(), [answer(right), answer(wrong), answer(right)])


async def test_no_completion_breaks_a_ready_grader(ready):
    grader = ready[0]()
    grades = await grade_many(grader, [answer(content) for content in HOSTILE])
    assert [type(grade) for grade in grades] == [Grade] * len(HOSTILE)
    assert {grade.value for grade in grades} <= {0.0, 1.0}
    assert grader.get_logs()["score/count"] == len(HOSTILE)


async def test_a_thread_without_a_completion_is_an_error_that_names_it(ready):
    prompt = StringThread([("user", "q")], {"reference": "42"}, source="validation.jsonl:3")
    grader = ready[0]()
    with pytest.raises(GradingError, match=r"ends in an assistant turn.*validation.jsonl:3 does not") as error:
        await grader.grade(prompt)
    assert repr(grader.grader_key) in str(error.value)
    assert grader.get_logs() == {}


@pytest.mark.parametrize("name", NEEDS_REFERENCE)
@pytest.mark.parametrize(
    "metadata", [[], {}, {"reference": None}, {"reference": ["42"]}, {"reference": math.nan}, {"reference": True}]
)
async def test_a_reference_that_cannot_be_used_is_an_error_that_names_the_place(name, metadata):
    grader = READY[name][0]()
    with pytest.raises(GradingError, match=rf"grader '{name}' needs .* in metadata\['reference'\] of a.jsonl:7, found"):
        await grader.grade(answer("42", metadata, source="a.jsonl:7"))
    assert grader.get_logs() == {}


@pytest.mark.parametrize("name", NEEDS_REFERENCE)
async def test_the_reference_may_have_another_name(name):
    grader = type(READY[name][0]())(reference_key="answer")
    assert (await grader.grade(answer("42", {"answer": "42"}))).value == 1.0
    with pytest.raises(ConfigurationError, match="reference_key=''"):
        type(grader)(reference_key="")


@pytest.mark.parametrize(
    "grader",
    [
        RegexGrader("(a|aa)+$", timeout_s=0.05),
        CombinedGrader("all", [RegexGrader("(a|aa)+$", timeout_s=0.05)]),
    ],
    ids=["regex", "combined"],
)
async def test_a_pattern_that_takes_for_ever_is_a_failure_and_holds_up_nobody(grader):
    turns = 0

    async def count_turns():
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.ensure_future(count_turns())
    slow, quick = await grade_many(grader, threads("a" * 100 + "c", "aaa"))
    counting.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await counting
    assert isinstance(slow, GradingError)
    assert "had no result on a text of 101 characters after 0.05 s" in str(slow)
    assert quick.value == 1.0
    assert turns > 10  # the event loop went on
