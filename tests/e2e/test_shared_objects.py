"""What users give to trainers and callbacks, and go on to use: lists, threads, graders."""

import asyncio
import random
import threading

import pytest
import torch
from support import LengthGrader, addition_threads, query, series, training_model, weights_of

from descant import (
    SFT,
    BaseGrader,
    CombinedGrader,
    ExactMatchGrader,
    GenerateSamplesCallback,
    Grade,
    GraderEvalCallback,
    RecipeCallback,
    StringThread,
    Table,
    ValidationLossCallback,
    every_steps,
)
from descant.errors import ConfigurationError, GradingError
from descant.graders.base import grade_many

VALIDATION = addition_threads(5, offset=40)


async def train(model, run_dir, dataset, callbacks, **options):
    return await SFT(
        dataset=dataset, model=model, lr=1e-2, samples_per_batch=2, callbacks=callbacks, run_dir=run_dir, **options
    ).run()


class Changes(RecipeCallback):
    """Changes the lists that the others were given."""

    def __init__(self, *lists):
        super().__init__(every_steps(1), "changes")
        self.lists = lists

    async def callback(self, current_percentage):
        for threads in self.lists:
            random.Random(self.run.step).shuffle(threads)
            threads.append(StringThread().user("new").assistant("thread"))
            for thread in threads:
                thread.metadata = {"reference": "another"}
            del threads[:2]
        return {}


async def test_a_list_that_is_changed_changes_nothing(qwen3_dir, tmp_path):
    found = {}
    for case in ("kept", "changed"):
        dataset, validation = addition_threads(12), addition_threads(5, offset=40)
        validation[1] = StringThread(validation[1].messages(), {"reference": "51"})  # shared with the prompts
        shown = addition_threads(4, offset=60)
        async with training_model(qwen3_dir) as model:
            callbacks = [
                ValidationLossCallback([validation[0], *validation[2:]], model, every_steps(1)),
                GraderEvalCallback(validation, model, ExactMatchGrader(), every_steps(1), max_gen_len=2),
                GenerateSamplesCallback(shown, model, every_steps(1), max_gen_len=2),
                *([Changes(dataset, validation, shown)] if case == "changed" else []),
            ]
            trainer = SFT(
                dataset=dataset, model=model, lr=1e-2, samples_per_batch=2, callbacks=callbacks, run_dir=tmp_path / case
            )
            if case == "changed":
                dataset.append(dataset[0])
            await trainer.run()
            rows = query(
                tmp_path / case,
                "SELECT step, callback, cells FROM samples WHERE callback <> 'runner' ORDER BY 1, 2, position",
            )
            found[case] = rows, series(tmp_path / case, "training/loss"), weights_of(model)
    assert found["changed"][:2] == found["kept"][:2]
    assert all(torch.equal(found["changed"][2][name], weight) for name, weight in found["kept"][2].items())


async def test_a_grader_that_changes_a_thread_changes_no_other_grade(qwen3_dir, tmp_path):
    def takes_it_out(thread):
        return thread.metadata.pop("reference") == thread.metadata["list"].pop()

    threads = [StringThread(t.get_turns(), {"list": [t.completion()], "lock": threading.Lock}) for t in VALIDATION]
    async with training_model(qwen3_dir) as model:
        grader = BaseGrader.from_function("takes", takes_it_out)
        callback = GraderEvalCallback(
            threads, model, grader, every_steps(1), max_gen_len=2, temperature=1.0, num_completions=2
        )
        await train(model, tmp_path, addition_threads(4), [callback])
    assert series(tmp_path, "validation/rewards/score/mean") == {0: 1, 1: 1, 2: 1}
    assert threads[0].metadata["list"] == [VALIDATION[0].completion()]


class Appends(LengthGrader):
    """Keeps its logs itself, with a table of what it has judged."""

    async def grade(self, sample):
        grade = await super().grade(sample)
        self._logs.append({"score": grade.value, "prompt": sample.messages()[0].content})
        return grade

    def get_logs(self, clear=False, log_all_samples=False):
        rows = [[log["prompt"], log["score"]] for log in self._logs]
        tables = {"score/scored_samples": Table(["Prompt", "Score"], rows), "score/scored_samples_count": len(rows)}
        return {**super().get_logs(clear, log_all_samples), **tables, "score/mean": -1.0}


@pytest.mark.parametrize("mode", ["inline", "overlap"])
async def test_what_a_grader_logs_under_score_passes_and_stays_in_its_evaluation(qwen3_dir, tmp_path, mode):
    async with training_model(qwen3_dir) as model:
        grader = Appends()
        options = {"max_gen_len": 2, "mode": mode}
        callbacks = [
            GraderEvalCallback(VALIDATION, model, grader, every_steps(1), **options),
            GraderEvalCallback(
                VALIDATION, model, CombinedGrader("all", [grader]), every_steps(1), "combined", **options
            ),
        ]
        result = await train(model, tmp_path, addition_threads(4), callbacks)
    for prefix in ("validation/rewards/score", "combined/rewards/length/score"):
        assert series(tmp_path, f"{prefix}/scored_samples_count") == dict.fromkeys(range(3), 5)
        assert len(result.tables[f"{prefix}/scored_samples"]) == 5
        assert series(tmp_path, f"{prefix}/mean").keys() == {0, 1, 2}
        assert min(series(tmp_path, f"{prefix}/mean").values()) >= 0  # of the grades, not what it says
    assert grader._logs == []


async def test_the_bound_on_grading_holds_for_all_evaluations_of_a_callback(qwen3_dir, tmp_path):
    open_now, most, release = set(), 0, asyncio.Event()

    class Slow(LengthGrader):
        async def grade(self, sample):
            nonlocal most
            mine = object()
            open_now.add(mine)
            most = max(most, len(open_now))
            await release.wait()
            open_now.discard(mine)
            return await super().grade(sample)

    class Releases(RecipeCallback):
        async def callback(self, current_percentage):
            release.set()
            return {}

    async with training_model(qwen3_dir) as model:
        evaluation = GraderEvalCallback(
            VALIDATION, model, Slow(), every_steps(1), max_gen_len=2, mode="overlap", max_concurrent_samples=2
        )
        callbacks = [evaluation, Releases(1, at_start=False)]
        await train(model, tmp_path, addition_threads(8), callbacks)
    assert most == 2
    assert series(tmp_path, "validation/num_samples") == dict.fromkeys(range(5), 5)


async def test_a_function_for_one_thread_at_a_time_runs_in_one():
    running, most = set(), 0

    def judge(thread):
        nonlocal most
        running.add(threading.get_ident())
        most = max(most, len(running))
        running.discard(threading.get_ident())
        return 1

    await grade_many(BaseGrader.from_function("one", judge, max_concurrent=1), VALIDATION * 5)
    assert most == 1


async def test_an_evaluation_of_which_every_grade_would_fail_is_refused(qwen3_dir):
    prompts = [thread.without_completion() for thread in VALIDATION]
    empty = [thread.assistant("") for thread in prompts]
    async with training_model(qwen3_dir) as model:
        for threads, grader in (
            (prompts, ExactMatchGrader()),
            (empty, ExactMatchGrader()),
            (prompts, CombinedGrader("all", [LengthGrader(), ExactMatchGrader()])),
            ([*prompts, VALIDATION[0]], ExactMatchGrader()),
        ):
            with pytest.raises(
                ConfigurationError,
                match=r"none of the 5 threads of validation_set can be graded: grader 'exact_match' needs a string "
                r"that is not empty in metadata\['reference'\], found",
            ):
                GraderEvalCallback(threads, model, grader, 0.5, limit=5)
        some = GraderEvalCallback([*prompts, VALIDATION[0]], model, ExactMatchGrader(), 0.5, max_gen_len=2)
        metrics = await some.maybe_call(0.0)
    assert (metrics["validation/rewards/num_failed"], metrics["validation/num_samples"]) == (5, 1)


class Panic(BaseException):
    """As a panic of Rust code is one."""


@pytest.mark.parametrize("error", [SystemExit(0), Panic("out of bounds"), GeneratorExit(), asyncio.CancelledError()])
@pytest.mark.parametrize("kind", ["class", "async function", "function"])
async def test_what_is_no_exception_is_that_grades_failure(error, kind):
    def judge(thread):
        if thread is VALIDATION[1]:
            raise error
        return 1.0

    async def async_judge(thread):
        return judge(thread)

    class Judge(BaseGrader):
        async def grade(self, sample):
            return Grade(judge(sample), "judge")

    graders = {"function": judge, "async function": async_judge}
    grader = Judge("judge") if kind == "class" else BaseGrader.from_function("judge", graders[kind])
    for each in (grader, CombinedGrader("all", [grader])):
        grades = await grade_many(each, VALIDATION[:3])
        assert [grade.value for grade in grades[::2]] == [1.0, 1.0]
        assert isinstance(grades[1], GradingError | RuntimeError)
        assert type(error).__name__ in str(grades[1])
