"""Plain values: functions are graders, what load_threads reads is data, and a missing await is named."""

import asyncio
import gc
import json
import warnings
from functools import partial

import pytest
from datasets import Dataset as HFDataset
from support import addition_threads, training_model

from descant import (
    SFT,
    BestModelCallback,
    CallbackRunner,
    CombinedGrader,
    ExactMatchGrader,
    GenerateSamplesCallback,
    Grade,
    GraderEvalCallback,
    ModelBuilder,
    StringThread,
    ValidationLossCallback,
    callback,
)
from descant.errors import ConfigurationError, DatasetError
from descant.graders.base import grade_many

ROWS = [{"prompt": f"{a}+1=", "completion": str(a + 1)} for a in range(12, 18)]


def length(thread):
    return len(thread.last_content())


async def is_short(thread):
    return len(thread.last_content()) < 3


def explained(thread, most):
    return Grade(min(most, length(thread)), "inner", "counted")


FUNCTIONS = {
    "length": (length, [2, 2, 2, 2, 2, 2]),
    "is_short": (is_short, [1] * 6),
    "lambda": (lambda thread: thread.last_content() == "13", [1, 0, 0, 0, 0, 0]),
    "explained": (partial(explained, most=1.5), [1.5] * 6),
}


@pytest.mark.parametrize("key", FUNCTIONS)
async def test_a_function_is_a_grader(qwen3_dir, key):
    function, expected = FUNCTIONS[key]
    threads = [StringThread().user(row["prompt"]).assistant(row["completion"]) for row in ROWS]
    assert [grade.value for grade in await grade_many(function, threads)] == expected
    both = CombinedGrader("both", [function, ExactMatchGrader()])
    assert [child.grader_key for child in both.graders] == [key, "exact_match"]
    async with training_model(qwen3_dir) as model:
        evaluation = GraderEvalCallback(threads, model, function, max_gen_len=2)
        metrics = await evaluation.maybe_call(0.0)
    assert (evaluation.grader.grader_key, evaluation.frequency) == (key, 0.1)
    assert metrics["validation/rewards/score/count"] == 6


def test_what_is_no_grader_is_told_what_is():
    with pytest.raises(ConfigurationError, match=r"the class ExactMatchGrader; pass an instance: ExactMatchGrader\("):
        CombinedGrader("combined", [ExactMatchGrader])
    with pytest.raises(ConfigurationError, match=r"'lambda', whose metrics .* BaseGrader\.from_function"):
        CombinedGrader("combined", [lambda thread: 0, lambda thread: 1])
    with pytest.raises(ConfigurationError, match="graders\\[0\\] of grader 'combined' is 5, not a grader"):
        CombinedGrader("combined", [5])


@pytest.fixture
def sources(tmp_path):
    paths = [tmp_path / "train.jsonl", tmp_path / "more.jsonl"]
    for path, rows in zip(paths, (ROWS[:4], ROWS[4:]), strict=True):
        path.write_text("\n".join(map(json.dumps, rows)))
    whole = tmp_path / "whole.json"
    whole.write_text(json.dumps(ROWS))
    return {
        "path": whole,
        "text": str(whole),
        "paths": paths,
        "datasets": HFDataset.from_list(ROWS),
        "rows": ROWS,
        "threads": [StringThread().user(row["prompt"]).assistant(row["completion"]) for row in ROWS],
    }


async def test_what_can_be_read_is_data_wherever_threads_are(qwen3_dir, tmp_path, sources):
    async with training_model(qwen3_dir) as model:
        for name, source in sources.items():
            callbacks = [
                GraderEvalCallback(source, model, length, max_gen_len=2),
                ValidationLossCallback(source, model),
                GenerateSamplesCallback(source, model, max_gen_len=2),
            ]
            sft = SFT(dataset=source, model=model, callbacks=callbacks, samples_per_batch=6)
            for threads in (sft.prompts(), *(each.validation_threads() for each in callbacks[1:2])):
                assert [thread.messages()[0].content for thread in threads] == [row["prompt"] for row in ROWS], name
            assert len(callbacks[0].examples) == len(callbacks[2].examples) == 6
            runner = CallbackRunner(callbacks, num_steps=1, training_set=source, contamination="error")
            with pytest.raises(DatasetError, match="6 of 6 prompts also stand in the training set"):
                await runner.open()


async def test_data_that_cannot_be_read_are_answered_as_by_load_threads(qwen3_dir, tmp_path, sources):
    (tmp_path / "bad.jsonl").write_text('{"question": "a", "answer": "b"}\n')
    wrong = {
        str(tmp_path / "trian.jsonl"): "did you mean 'train.jsonl'",
        tmp_path / "bad.jsonl": "line 1: .*rename them 'prompt' and 'completion'",
        ("2+2=", "3+3="): "is text, and there is no such file; a thread is StringThread",
        5: "is a int; a list of threads is needed, the path of a file, a datasets.Dataset",
    }
    async with training_model(qwen3_dir) as model:
        for source, message in wrong.items():
            for make in (
                lambda data: SFT(dataset=data, model=model),
                lambda data: ValidationLossCallback(data, model),
                lambda data: GraderEvalCallback(data, model, length),
            ):
                with pytest.raises((ConfigurationError, DatasetError), match=f"(?s){message}"):
                    make(source)


async def test_a_missing_await_is_named(qwen3_dir, tmp_path):
    async def judged(thread):
        return is_short(thread)  # and not awaited

    @callback(frequency=1)
    async def as_metric(run):
        return {"answer": model.generate(threads[0])}

    @callback(frequency=1)
    async def as_result(run):
        return model.generate(threads[0])

    @callback(frequency=1)
    async def as_thread(run):
        return {"answer": model.generate(threads[0]).last_content()}

    def spawned():
        return ModelBuilder(qwen3_dir).spawn_train("policy")

    threads = addition_threads(2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # Python's own, for those that nothing has in hand
        async with training_model(qwen3_dir) as model:
            for make in (
                lambda: SFT(dataset=threads, model=spawned()),
                lambda: ValidationLossCallback(threads, spawned()),
                lambda: BestModelCallback(spawned(), "validation/loss"),
                lambda: GraderEvalCallback(threads, model, is_short(threads[0])),
                lambda: SFT(dataset=asyncio.sleep(0), model=model),
            ):
                with pytest.raises(ConfigurationError, match="is async: add await before it"):
                    make()
            result = await SFT(
                dataset=threads,
                model=model,
                callbacks=[as_metric, as_result, as_thread, GraderEvalCallback(threads, model, judged, max_gen_len=2)],
                run_dir=tmp_path / "run",
            ).run()
            gc.collect()
    failures = {failure.callback: failure.message for failure in result.callback_failures}
    assert "InferenceModel.generate is async: add await before it" in failures["as_metric"]
    assert "InferenceModel.generate is async: add await before it" in failures["as_result"]
    assert "an `await` is missing before it" in failures["as_thread"]
    assert "is_short is async: add await before it" in result.tables["validation/samples"]["error"][0]
