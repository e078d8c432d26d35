"""Honest: a failed generation or grade is counted and reported, never dropped and never a 0. Every mean carries its
n. Validation loss does not depend on batch size (tests/numerics/test_loss.py). Rewards come from the grades."""

import pytest
from support import BareLoop, LengthGrader, addition_threads, query, samples, series, training_model

from descant import SFT, BaseGrader, ExactMatchGrader, Grade, GraderEvalCallback, StringThread, ValidationLossCallback


class FailsOnAQuarter(BaseGrader):
    """Grades 3 for most samples and fails, in four ways, on every fourth."""

    failures = ("raises", "nan", "none", "wrong type")

    def __init__(self):
        super().__init__("quarter")
        self.calls = 0

    async def grade(self, sample):
        number = int(sample.metadata["number"])
        if number % 4:
            return Grade(3.0, "quarter")
        self.calls += 1
        match self.failures[number // 4 % 4]:
            case "raises":
                raise TimeoutError("the judge did not answer")
            case "nan":
                return Grade(float("nan"), "quarter")
            case "none":
                return None
            case _:
                return "great"


def numbered(count):
    threads = addition_threads(count)
    for number, thread in enumerate(threads):
        thread.metadata = {"number": number}
    return threads


async def fails_in_a_trainer(path, run_dir, make_callbacks):
    async with training_model(path) as model:
        trainer = SFT(
            dataset=addition_threads(4),
            model=model,
            samples_per_batch=2,
            run_dir=run_dir,
            callbacks=make_callbacks(model),
        )
        return (await trainer.run()).callback_failures


async def fails_in_a_bare_loop(path, run_dir, make_callbacks):
    loop = BareLoop(path)
    runner = await loop.run(2, make_callbacks(loop.model), run_dir)
    await loop.model.dealloc()
    return runner.failures


@pytest.mark.parametrize("run", [fails_in_a_trainer, fails_in_a_bare_loop])
async def test_a_grader_that_fails_on_a_quarter_leaves_the_mean_of_the_rest_and_a_count(qwen3_dir, tmp_path, run):
    def make_callbacks(model):
        return [GraderEvalCallback(numbered(16), model, FailsOnAQuarter(), frequency=1, max_gen_len=3)]

    failures = await run(qwen3_dir, tmp_path, make_callbacks)
    for step in (0, 2):
        values = {
            key: series(tmp_path, f"validation/{key}")[step]
            for key in ("rewards/score/mean", "rewards/score/count", "rewards/num_failed", "num_samples")
        }
        assert values == {
            "rewards/score/mean": 3.0,
            "rewards/score/count": 12,
            "rewards/num_failed": 4,
            "num_samples": 12,
        }
    assert not failures  # the callback itself did its work
    warnings = query(tmp_path, "SELECT message, details FROM events WHERE kind = 'callback_warning' AND step = 2")
    assert "failed on 4 of 16 samples" in warnings[0][0]
    assert "the judge did not answer" in warnings[0][1]
    errors = [cells["error"] for (step, _), cells in samples(tmp_path, "validation").items() if step == 2]
    assert sum(error is None for error in errors) == 12
    assert sum(error == "TimeoutError: the judge did not answer" for error in errors) == 1
    assert sum("GradingError" in (error or "") for error in errors) == 3


async def test_a_grader_that_always_fails_gives_counts_and_no_mean(qwen3_dir):
    def fail(thread):
        raise ConnectionError("down")

    async with training_model(qwen3_dir) as model:
        grader = BaseGrader.from_function("down", fail)
        metrics = await GraderEvalCallback(numbered(4), model, grader, 1, max_gen_len=3).maybe_call(0.0)
    assert metrics["validation/rewards/num_failed"] == 4
    assert metrics["validation/rewards/score/count"] == 0
    assert "validation/rewards/score/mean" not in metrics
    assert metrics["validation/generation_length_mean"] > 0


async def test_a_generation_that_fails_is_counted_and_the_rest_is_graded(qwen3_dir):
    threads = [StringThread().user("short").assistant("x"), StringThread().user("long" * 100).assistant("x")]
    async with training_model(qwen3_dir) as model:
        callback = GraderEvalCallback(threads, model, LengthGrader(), frequency=1, max_gen_len=3)
        metrics = await callback.maybe_call(0.0)
    assert metrics["validation/num_failed"] == 1
    assert metrics["validation/num_samples"] == 1
    assert metrics["validation/rewards/score/count"] == 1
    rows = metrics["validation/samples"].as_dicts()
    assert rows[1]["response"] is None
    assert rows[1]["grade"] is None
    assert "SequenceTooLongError: the prompt has" in rows[1]["error"]


async def test_a_thread_that_cannot_be_scored_is_counted_and_in_no_mean(qwen3_dir):
    good = addition_threads(3)
    async with training_model(qwen3_dir) as model:
        alone = await ValidationLossCallback(good, model).maybe_call(0.0)
        bad = StringThread().user("x").assistant("y" * 400)
        metrics = await ValidationLossCallback([*good, bad], model).maybe_call(0.0)
    assert metrics.pop("validation/loss_num_failed") == 1
    assert metrics.pop("validation/loss_samples")["loss"][:3] == alone.pop("validation/loss_samples")["loss"]
    assert metrics == pytest.approx(alone)


async def test_rewards_come_from_the_grades_themselves(qwen3_dir):
    """One grader never logs, one logs something else than it returns: the metrics are the grades."""

    class Boaster(LengthGrader):
        async def grade(self, sample):
            grade = await super().grade(sample)
            self.add_log({"score": 1000.0})
            return grade

    async with training_model(qwen3_dir) as model:
        for grader in (LengthGrader(), Boaster()):
            metrics = await GraderEvalCallback(addition_threads(5), model, grader, 1, max_gen_len=3).maybe_call(0.0)
            grades = metrics["validation/samples"]["grade"]
            assert metrics["validation/rewards/score/mean"] == sum(grades) / 5
            assert metrics["validation/rewards/score/max"] == max(grades)


async def test_an_evaluation_does_not_touch_the_logs_of_training(qwen3_dir):
    grader = ExactMatchGrader()
    await grader.grade(StringThread([("user", "q"), ("assistant", "4")], {"reference": "4"}))
    async with training_model(qwen3_dir) as model:
        await GraderEvalCallback(addition_threads(5), model, grader, 1, max_gen_len=3).maybe_call(0.0)
    assert grader.get_logs()["score/count"] == 1
    assert grader.get_logs()["score/mean"] == 1.0


async def test_the_model_never_sees_the_answer(qwen3_dir):
    """The completions of validation threads are taken off before generating, and are there as references."""
    threads = addition_threads(4)
    prompts = []

    def look(thread):
        prompts.append(thread.messages())
        return float(thread.metadata["reference"])

    async with training_model(qwen3_dir) as model:
        grader = BaseGrader.from_function("look", look)
        callback = GraderEvalCallback(threads, model, grader, frequency=1, max_gen_len=3)
        metrics = await callback.maybe_call(0.0)
    assert sorted(prompts) == sorted(thread.messages() for thread in threads)
    assert metrics["validation/samples"]["reference"] == [thread.completion() for thread in threads]
    assert metrics["validation/samples"]["grade"] == [float(thread.completion()) for thread in threads]
    assert [thread.metadata for thread in threads] == [None] * 4  # the user's threads are as they were
