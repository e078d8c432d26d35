"""What evaluations of several completions, of a part of the threads, and of few at a time give."""

import asyncio

import pytest
from support import LengthGrader, addition_threads, query, series, training_model

from descant import (
    SFT,
    BaseGrader,
    CallbackRunner,
    GenerateSamplesCallback,
    GraderEvalCallback,
    IgnoreGradeException,
    StringThread,
    ValidationLossCallback,
)
from descant.errors import ConfigurationError, DatasetError
from descant.metrics import find_spec
from descant.stats import pass_at_k, standard_error

VALIDATION = addition_threads(5, offset=40)


def shortness(limit):
    return BaseGrader.from_function("short", lambda thread: float(len(thread.last_content()) <= limit))


async def test_mean_error_and_pass_at_k_over_several_completions(qwen3_dir):
    async with training_model(qwen3_dir) as model:
        callback = GraderEvalCallback(
            VALIDATION, model, shortness(3), 1, temperature=1.0, max_gen_len=4, num_completions=5
        )
        metrics = await callback.maybe_call(0.0)
        again = await callback.maybe_call(1.0)
    assert metrics == again  # the same random numbers for an example at every evaluation
    assert [key for key in metrics if find_spec(callback.declared_metrics(), key) is None] == []
    table = metrics["validation/samples"]
    assert table["example_id"] == [thread.uuid() for thread in VALIDATION for _ in range(5)]
    assert table["completion_index"] == [0, 1, 2, 3, 4] * 5
    assert len(set(table["response"][:5])) > 1
    grades = [table["grade"][start : start + 5] for start in range(0, 25, 5)]
    assert 0 < sum(map(sum, grades)) < 25
    assert metrics["validation/rewards/score/mean"] == pytest.approx(sum(map(sum, grades)) / 25)
    assert metrics["validation/rewards/score/stderr"] == pytest.approx(standard_error([sum(g) / 5 for g in grades]))
    assert metrics["validation/num_samples"] == metrics["validation/num_generated"] == 25
    assert sorted(key for key in metrics if "pass@" in key and "_" not in key) == [
        f"validation/pass@{k}" for k in (1, 2, 4, 5)
    ]
    for k in (1, 2, 4, 5):
        estimates = [pass_at_k(5, int(sum(of_prompt)), k) for of_prompt in grades]
        assert metrics[f"validation/pass@{k}"] == pytest.approx(sum(estimates) / 5)
        assert metrics[f"validation/pass@{k}_stderr"] == pytest.approx(standard_error(estimates))
        assert metrics[f"validation/pass@{k}_num_prompts"] == 5
    assert metrics["validation/pass@1"] == pytest.approx(metrics["validation/rewards/score/mean"])
    assert metrics["validation/pass@5"] == sum(any(of_prompt) for of_prompt in grades) / 5


async def test_what_passes_is_a_setting_and_failed_grades_are_in_no_estimate(qwen3_dir):
    calls = []

    def grade(thread):
        calls.append(1)
        if thread.metadata["reference"] == VALIDATION[0].completion():
            raise ConnectionError("down")
        return 0.5

    async with training_model(qwen3_dir) as model:
        grader = BaseGrader.from_function("half", grade)
        options = {"temperature": 1.0, "max_gen_len": 2, "num_completions": 2}
        strict = await GraderEvalCallback(VALIDATION, model, grader, 1, **options).maybe_call(0)
        lenient = await GraderEvalCallback(VALIDATION, model, grader, 1, pass_threshold=0.5, **options).maybe_call(0)
    for metrics, expected in ((strict, 0.0), (lenient, 1.0)):
        assert metrics["validation/pass@2"] == expected
        assert metrics["validation/pass@2_num_prompts"] == 4
        assert metrics["validation/rewards/num_failed"] == 2
        assert metrics["validation/rewards/score/count"] == 8


async def test_what_a_grader_does_not_apply_to_is_counted_apart(qwen3_dir, tmp_path):
    def grade(thread):
        if thread.metadata["reference"] == VALIDATION[0].completion():
            raise IgnoreGradeException("no rubric for this one")
        return 1.0

    async with training_model(qwen3_dir) as model:
        grader = BaseGrader.from_function("some", grade)
        callback = GraderEvalCallback(VALIDATION, model, grader, 1, max_gen_len=2)
        result = await SFT(dataset=addition_threads(4), model=model, callbacks=[callback], run_dir=tmp_path).run()
    assert result.metrics["validation/rewards/num_ignored"] == 1
    assert "validation/rewards/num_failed" not in result.metrics
    assert result.metrics["validation/rewards/score/count"] == result.metrics["validation/num_samples"] == 4
    assert result.tables["validation/samples"]["error"] == ["not applicable: no rubric for this one", *[None] * 4]
    assert query(tmp_path, "SELECT count(*) FROM events WHERE message LIKE '%failed on%'") == [(0,)]


async def test_limit_takes_the_first_threads(qwen3_dir):
    async with training_model(qwen3_dir) as model:
        graded = await GraderEvalCallback(VALIDATION, model, LengthGrader(), 1, limit=2, max_gen_len=2).maybe_call(0)
        shown = await GenerateSamplesCallback(VALIDATION, model, 1, limit=3, max_gen_len=2).maybe_call(0)
        scored = await ValidationLossCallback(VALIDATION, model, limit=2).maybe_call(0)
        first = await ValidationLossCallback(VALIDATION[:2], model).maybe_call(0)
        more = await ValidationLossCallback(VALIDATION, model, limit=100).maybe_call(0)
    assert graded["validation/samples"]["example_id"] == [thread.uuid() for thread in VALIDATION[:2]]
    assert shown["generation/num_samples"] == 3
    assert scored == first
    assert more["validation/loss_num_samples"] == 5


async def test_at_most_so_many_samples_are_graded_at_a_time(qwen3_dir):
    running, most = 0, 0

    async def slow(thread):
        nonlocal running, most
        running += 1
        most = max(most, running)
        for _ in range(3):
            await asyncio.sleep(0)
        running -= 1
        return 1.0

    async with training_model(qwen3_dir) as model:
        for limit, expected in ((2, 2), (None, 5)):
            most = 0
            await GraderEvalCallback(
                VALIDATION, model, BaseGrader.from_function("slow", slow), 1, max_gen_len=2,
                max_concurrent_samples=limit,
            ).maybe_call(0)  # fmt: skip
            assert most == expected


async def test_the_standard_error_of_a_validation_loss(qwen3_dir):
    """Of a mean over tokens whose independent units are threads, against the definition."""
    threads = addition_threads(4)
    threads.append(threads[0].user("and?").assistant("a longer answer than the others"))
    async with training_model(qwen3_dir) as model:
        metrics = await ValidationLossCallback(threads, model).maybe_call(0)
        logprobs = await model.logprobs_per_token_many(await model.tokenize_many(threads))
    sums, counts = [-sum(values) for values in logprobs], [len(values) for values in logprobs]
    loss = sum(sums) / sum(counts)
    squares = sum((nll - loss * count) ** 2 for nll, count in zip(sums, counts, strict=True))
    assert metrics["validation/loss"] == pytest.approx(loss)
    assert metrics["validation/loss_stderr"] == pytest.approx((5 / 4 * squares) ** 0.5 / sum(counts))
    means = [nll / count for nll, count in zip(sums, counts, strict=True)]
    assert metrics["validation/loss_per_sample_stderr"] == pytest.approx(standard_error(means))


ARGUMENTS = {
    "num_completions": ({"num_completions": 0}, r"num_completions=0 must be a whole number of at least 1"),
    "greedy": ({"num_completions": 2}, r"num_completions=2 at temperature=0 would be that many equal completions"),
    "limit": ({"limit": 0}, r"limit=0 must be a whole number of at least 1, or None"),
    "limit text": ({"limit": "all"}, r"limit='all' must be a whole number of at least 1"),
    "concurrency": ({"max_concurrent_samples": 0}, r"max_concurrent_samples=0 must be a whole number of at least 1"),
    "bool": ({"max_concurrent_samples": True}, r"max_concurrent_samples=True must be a whole number"),
    "threshold": ({"pass_threshold": float("nan")}, r"pass_threshold=nan must be a finite number"),
    "threshold text": ({"pass_threshold": "x"}, r"pass_threshold='x' must be a finite number"),
    "max_gen_len": ({"max_gen_len": 0}, r"max_gen_len=0 must be a whole number of at least 1"),
    "temperature": ({"temperature": -1}, r"temperature=-1 must be a finite number of at least 0"),
}


@pytest.mark.parametrize("case", ARGUMENTS)
async def test_arguments_that_cannot_work(qwen3_dir, case):
    options, message = ARGUMENTS[case]
    async with training_model(qwen3_dir) as model:
        with pytest.raises(ConfigurationError, match=message):
            GraderEvalCallback(VALIDATION, model, LengthGrader(), 1, **options)


async def test_several_completions_of_one_prompt_have_no_known_error(qwen3_dir):
    async with training_model(qwen3_dir) as model:
        callback = GraderEvalCallback(
            VALIDATION, model, shortness(3), 1, limit=1, temperature=1.0, max_gen_len=4, num_completions=6
        )
        metrics = await callback.maybe_call(0)
    assert metrics["validation/rewards/score/count"] == 6
    assert not [key for key in metrics if key.endswith("stderr")]


async def test_the_same_prompt_twice_is_not_two_observations(qwen3_dir):
    twice = [thread for thread in VALIDATION for _ in range(2)]
    with_other_answers = [*VALIDATION, *(thread.without_completion().assistant("?") for thread in VALIDATION)]
    async with training_model(qwen3_dir) as model:
        for threads in (twice, with_other_answers):
            graded = await GraderEvalCallback(threads, model, LengthGrader(), 1, max_gen_len=3).maybe_call(0)
            once = await GraderEvalCallback(VALIDATION, model, LengthGrader(), 1, max_gen_len=3).maybe_call(0)
            for key in ("validation/rewards/score/stderr", "validation/generation_length_stderr"):
                assert graded[key] == pytest.approx(once[key])
        loss = await ValidationLossCallback(twice, model).maybe_call(0)
        once = await ValidationLossCallback(VALIDATION, model).maybe_call(0)
    assert loss["validation/loss_stderr"] == pytest.approx(once["validation/loss_stderr"])


async def test_grades_that_failed_leave_no_statistics_behind(qwen3_dir):
    class LogsAndFails(BaseGrader):
        async def grade(self, sample):
            self.add_log({"score": 0.9, "other": 1})
            raise ValueError("after all")

        def get_logs(self, clear=False):
            return {**super().get_logs(clear), "calls": 5}

    async with training_model(qwen3_dir) as model:
        metrics = await GraderEvalCallback(VALIDATION, model, LogsAndFails("x"), 1, max_gen_len=2).maybe_call(0)
    assert {key: value for key, value in metrics.items() if "rewards" in key} == {
        "validation/rewards/score/count": 0,
        "validation/rewards/num_failed": 5,
        "validation/rewards/calls": 5,
    }


async def test_kept_logs_of_a_grader_are_of_one_run(qwen3_dir, tmp_path):
    class Counting(LengthGrader):
        async def grade(self, sample):
            self.add_log({"graded": 1})
            return await super().grade(sample)

        def get_logs(self, clear=False):
            logs = {"num_graded": len(self._logs)}
            return {**super().get_logs(clear), **logs}

    async with training_model(qwen3_dir) as model:
        callback = GraderEvalCallback(VALIDATION, model, Counting(), 0.5, clear_grader_logs=False, max_gen_len=2)
        for name in ("one", "two"):
            await SFT(
                dataset=addition_threads(4), model=model, samples_per_batch=2, callbacks=[callback],
                run_dir=tmp_path / name,
            ).run()  # fmt: skip
            assert series(tmp_path / name, "validation/rewards/num_graded") == {0: 5, 1: 10, 2: 15}


async def test_the_reference_shown_is_the_one_that_is_graded(qwen3_dir):
    prompt = StringThread().user("1+1=")
    threads = [prompt.assistant("2") for _ in range(4)]
    threads[1].metadata, threads[2].metadata = {"reference": "two"}, {"reference": None}
    threads.append(StringThread([("user", "2+2=")], {"reference": "four"}))
    threads.append(StringThread([("user", "3+3=")]))
    seen = []
    async with training_model(qwen3_dir) as model:
        grader = BaseGrader.from_function(
            "see", lambda thread: seen.append((thread.metadata or {}).get("reference")) or 1
        )
        callback = GraderEvalCallback(threads, model, grader, 1, max_gen_len=2, max_concurrent_samples=1)
        metrics = await callback.maybe_call(0)
    assert metrics["validation/samples"]["reference"] == seen == ["2", "two", "2", "2", "four", None]
    assert callback.num_stripped == 4


async def test_a_validation_loss_says_which_threads_are_hard(qwen3_dir, tmp_path):
    threads = [*VALIDATION, StringThread().user("x").assistant("y" * 400)]
    async with training_model(qwen3_dir) as model:
        callback = ValidationLossCallback(threads, model, 1)
        result = await SFT(dataset=addition_threads(4), model=model, callbacks=[callback], run_dir=tmp_path).run()
    table = result.tables["validation/loss_samples"]
    assert table["example_id"] == [thread.uuid() for thread in threads]
    assert sum(table["loss"][:5]) / 5 == pytest.approx(result.metrics["validation/loss_per_sample"])
    assert sum(table["num_tokens"][:5]) == result.metrics["validation/num_tokens"]
    assert table["loss"][5] is None
    assert "SequenceTooLongError" in table["error"][5]
    assert query(tmp_path, "SELECT count(*) FROM samples WHERE key = 'validation/loss_samples'") == [(12,)]


# Contamination


async def test_prompts_that_are_trained_on_are_reported_at_the_start(qwen3_dir, tmp_path):
    train = addition_threads(6)
    shared = [train[2], *VALIDATION]
    async with training_model(qwen3_dir) as model:

        def trainer(name, **options):
            callbacks = [
                GraderEvalCallback(shared, model, LengthGrader(), 1, max_gen_len=2),
                ValidationLossCallback(shared, model, 1),
                GenerateSamplesCallback(VALIDATION, model, 1, max_gen_len=2),
            ]
            return SFT(dataset=train, model=model, callbacks=callbacks, run_dir=tmp_path / name, **options)

        await trainer("warn").run()
        await trainer("ignore", contamination="ignore").run()
        with pytest.raises(DatasetError) as error:
            await trainer("error", contamination="error").run()
        with pytest.raises(ConfigurationError, match=r"contamination='off' must be one of 'warn', 'error', 'ignore'"):
            trainer("wrong", contamination="off")
    finding = (
        "validation, loss: 1 of 6 prompts also stand in the training set (1 exactly, 0 but for case, space "
        "and system turns); first: "
    )
    warned, ignored = (
        query(tmp_path / name, "SELECT source, message FROM events WHERE kind = 'contamination'")
        for name in ("warn", "ignore")
    )
    assert [(source, message[: len(finding)]) for source, message in warned] == [("validation, loss", finding)]
    assert "'12+10='" in warned[0][1]
    assert ignored == []
    assert finding in str(error.value)
    assert not (tmp_path / "error").exists()
    with pytest.raises(ConfigurationError, match=r'contamination="error" needs training_set='):
        CallbackRunner([], num_steps=1, contamination="error")
