"""Evaluations that fail, wholly or in part: never best, measurements without improvement, and shown as failures."""

import json

import pytest
import torch
from safetensors.torch import load_file
from support import BareLoop, addition_threads, query, series, training_model, weights_of

from descant import (
    SFT,
    BaseGrader,
    BestModelCallback,
    CallbackRunner,
    CheckpointCallback,
    EarlyStoppingCallback,
    GraderEvalCallback,
    MetricSpec,
    ModelCallback,
    RecipeCallback,
    ValidationLossCallback,
    every_steps,
)
from descant.callbacks.metric_watch import Measured, MetricWatch

NAN, INF = float("nan"), float("inf")
VALIDATION = addition_threads(5, offset=40)


class Scripted(RecipeCallback):
    """Returns, or raises, what is written for a step; a number is the score."""

    def __init__(self, values, frequency=0.1, prefix="scripted", **options):
        super().__init__(frequency, prefix, **options)
        self.values = values

    async def callback(self, current_percentage):
        value = self.values[self.run.step]
        if isinstance(value, Exception):
            raise value
        return value if isinstance(value, dict) else {"score": value}


class Declared(Scripted):
    metric_specs = (MetricSpec("score", better="lower"), MetricSpec("lost", counts_failures=True))


class Measuring(ModelCallback):
    """The same in two halves, for every mode."""

    def __init__(self, model, values, **options):
        super().__init__(model, every_steps(1), "scripted", **options)
        self.values = values

    async def measure(self, model):
        value = self.values[self.run.step]
        if value is FAILS:
            raise value
        return value

    async def report(self, measurement):
        return measurement if isinstance(measurement, dict) else {"score": measurement}


async def drive(callbacks, run_dir, num_steps=10, **options):
    async with CallbackRunner(callbacks, num_steps=num_steps, run_dir=run_dir, **options) as runner:
        for step in range(1, num_steps + 1):
            if runner.should_stop:
                break
            await runner.after_step(step)
    return runner


FAILS = ValueError("no answer")
MISSING = {"other": 1}
PARTLY = {"score": 0, "num_failed": 2}
CURVES = {
    # values at steps 0, 1, ...; patience; the step at which the run stops; that of the best
    "the call fails": ([5, FAILS, FAILS, 1, 1], 2, 2, 0),
    "the key is absent": ([5, MISSING, MISSING, 1, 1], 2, 2, 0),
    "nothing is returned": ([5, {}, {}, 1, 1], 2, 2, 0),
    "no metric is returned": ([5, {"score": []}, {"score": None}, 1, 1], 2, 2, 0),
    "not a number": ([5, NAN, INF, 1, 1], 2, 2, 0),
    "minus infinity is not best": ([5, -INF, -INF, 1, 1], 2, 2, 0),
    "some samples fail": ([5, PARTLY, PARTLY, 1, 1], 2, 2, 0),
    "a failure and a better value": ([5, FAILS, 4, FAILS, FAILS], 2, 4, 2),
    "from the beginning": ([FAILS, FAILS, FAILS, 1, 1], 3, 2, None),
    "the same samples always fail": ([{"score": 5, "num_failed": 1}, {"score": 4, "num_failed": 1}, 3, 2, 1], 2, 4, 4),
    "more fail than before": ([{"score": 5, "num_failed": 1}, PARTLY, PARTLY, 1, 1], 2, 2, 0),
    "what is whole replaces what is not": ([PARTLY, 5, PARTLY, 4, 4], 4, 4, 3),
}


@pytest.mark.parametrize("case", CURVES)
async def test_an_evaluation_that_failed_is_never_best_and_counts_for_patience(tmp_path, case):
    values, patience, stops_at, best_step = CURVES[case]
    stopping = EarlyStoppingCallback("scripted/score", "min", patience=patience)
    runner = await drive([stopping, Scripted(values, every_steps(1))], tmp_path, num_steps=4)
    assert runner.step == stops_at
    assert list(series(tmp_path, "early_stopping/best_step").values())[-1:] == (
        [] if best_step is None else [best_step]
    )
    assert {failure.callback for failure in runner.failures} <= {"scripted"}  # those that watch have not failed


async def test_what_is_declared_to_count_failures_does_so(tmp_path):
    values = [3, {"score": 1, "lost": 2}, 2, 4, 4]
    stopping = EarlyStoppingCallback("scripted/score", patience=9)
    runner = await drive([stopping, Declared(values, every_steps(1))], tmp_path, num_steps=4)
    assert series(tmp_path, "early_stopping/best") == {0: 3, 1: 3, 2: 2, 3: 2, 4: 2}
    assert runner.costs["scripted"].num_failed_samples == 2


@pytest.mark.parametrize("mode", ["inline", "overlap", "background"])
async def test_in_every_mode(qwen3_dir, tmp_path, mode):
    async with training_model(qwen3_dir) as model:
        stopping = EarlyStoppingCallback("scripted/score", "min", patience=3)
        values = [5, PARTLY, FAILS, {}, 1, 1, 1]
        runner = await drive([stopping, Measuring(model, values, mode=mode)], tmp_path, num_steps=6)
    assert series(tmp_path, "early_stopping/num_without_improvement").items() >= {0: 0, 1: 1, 2: 2, 3: 3}.items()
    assert [failure.callback for failure in runner.failures] == ["scripted"]
    assert "has not become better than 5 (step 0) in 3 measurements" in str(
        query(tmp_path, "SELECT message FROM events")
    )


async def test_that_was_skipped_is_no_measurement(tmp_path):
    """Nor one that is not due, or deferred: only a call that was made counts."""
    stopping = EarlyStoppingCallback("scripted/score", "min", patience=2)
    runner = await drive([stopping, Scripted([3] * 11, every_steps(5))], tmp_path)
    assert runner.step == 10
    assert series(tmp_path, "early_stopping/num_without_improvement") == {0: 0, 5: 1, 10: 2}


def test_a_loop_whose_weights_are_no_numbers_stops_when_patience_is_over(qwen3_dir, tmp_path):
    loop = BareLoop(qwen3_dir)

    def break_weights():
        with torch.no_grad():
            next(loop.module.parameters()).fill_(NAN)
        return {}

    loop.train_step = break_weights
    callbacks = [
        ValidationLossCallback(VALIDATION, loop.model, every_steps(1)),
        EarlyStoppingCallback("validation/loss"),
    ]
    runner = loop.run_synchronously(20, callbacks, tmp_path)
    assert runner.step == 3
    assert runner.stop_reason.startswith("early_stopping: validation/loss has not become better than ")
    assert runner.costs["loss"].num_failed_samples == 15
    assert runner.failures == []


async def test_the_mean_over_the_threads_that_did_not_fail_is_no_best(qwen3_dir, tmp_path, monkeypatch):
    lost = []

    class OneFails(ValidationLossCallback):
        async def report(self, measurement):
            if self.run.step == 2:
                measurement = [
                    min((each for each in measurement), key=lambda loss: loss.nll_sum),
                    *[ValueError("x")] * 4,
                ]
                lost.append(measurement[0])
            return await super().report(measurement)

    async with training_model(qwen3_dir) as model:
        callbacks = [
            OneFails(VALIDATION, model, every_steps(1)),
            BestModelCallback(model, "validation/loss"),
            CheckpointCallback(
                model, "policy", every_steps(1), keep_best=1, metric="validation/loss", at_start=True, at_end=True
            ),
        ]
        result = await SFT(
            dataset=addition_threads(4), model=model, lr=0.0, samples_per_batch=2, callbacks=callbacks, run_dir=tmp_path
        ).run()  # fmt: skip
    assert lost[0].mean < series(tmp_path, "validation/loss")[0]
    assert series(tmp_path, "best_model/step") == {0: 0, 1: 0, 2: 0}
    assert [path.name for path in (tmp_path / "checkpoints").iterdir() if path.name != "best"] == ["policy-0"]
    assert result.metrics["validation/loss_num_failed"] == 4


async def test_a_count_of_failures_is_not_carried_on(qwen3_dir, tmp_path):
    async with training_model(qwen3_dir) as model:
        grader = BaseGrader.from_function("judge", lambda thread: 1 / (judge.run.step > 0))
        judge = GraderEvalCallback(VALIDATION, model, grader, every_steps(2), max_gen_len=2)
        result = await SFT(
            dataset=addition_threads(4), model=model, samples_per_batch=2, callbacks=[judge], run_dir=tmp_path
        ).run()  # fmt: skip
    assert series(tmp_path, "validation/rewards/num_failed") == {0: 5}
    assert "validation/rewards/num_failed" not in result.metrics
    assert result.metrics["validation/rewards/score/mean"] == 1


class Bookkeeper(RecipeCallback):
    """A user's own, which does not compare."""

    watches = MetricWatch("scripted/score")

    async def callback(self, current_percentage):
        self.seen.append(self.watches.value(self.run))
        return {}


async def test_callbacks_that_do_not_compare_are_called_with_numbers_only(tmp_path):
    keeper = Bookkeeper(0.5, "keeper")
    keeper.seen = []
    runner = await drive([keeper, Scripted([5, FAILS, {}, PARTLY, 4], every_steps(1))], tmp_path, num_steps=4)
    assert keeper.seen == [5, 0, 4]
    assert len(runner.failures) == 1


async def test_what_watches_continues_with_what_it_has_saved(tmp_path):
    stopping = EarlyStoppingCallback("scripted/score", "min", patience=9)
    await drive([stopping, Scripted([PARTLY, 5, 4], every_steps(1))], tmp_path, num_steps=2)
    state = json.loads(json.dumps(stopping.state_dict()))
    again = EarlyStoppingCallback("scripted/score", "min", patience=9)
    again.load_state_dict(state)
    assert (again.best, again.best_step) == (Measured(4, 0), 2)


async def test_the_summary_and_show_say_that_grades_failed(qwen3_dir, tmp_path, capsys, monkeypatch):
    from descant.cli.show import ShowOptions, show_run
    from descant.runlog.run_reader import RunReader

    async with training_model(qwen3_dir) as model:
        grader = BaseGrader.from_function("judge", lambda thread: 1 / 0)
        callbacks = [GraderEvalCallback(VALIDATION, model, grader, 0.5, max_gen_len=2), Scripted([1, FAILS], 1)]
        await SFT(
            dataset=addition_threads(2), model=model, samples_per_batch=2, callbacks=callbacks, run_dir=tmp_path
        ).run()  # fmt: skip
    table = capsys.readouterr().err.partition("failures\n")[2]
    rows = {line.split()[0]: line.split() for line in table.splitlines() if line}
    assert rows["validation"][-2:] == ["10", "samples"]
    assert rows["scripted"][-1] == "1"
    monkeypatch.setenv("COLUMNS", "120")
    with RunReader(tmp_path) as reader:
        show_run(reader, ShowOptions(num_samples=0, failures=False))
    page = capsys.readouterr().out
    assert "failed samples" in page
    score = next(line for line in page.splitlines() if line.split()[:1] == ["score"])
    assert score.rstrip().endswith("at step 0")  # the latest evaluation has none


async def test_the_best_weights_are_still_those_of_the_best_evaluation(qwen3_dir, tmp_path):
    async with training_model(qwen3_dir) as model:
        weights = {}

        class Remember(Scripted):
            async def callback(self, current_percentage):
                weights[self.run.step] = weights_of(model)
                return await super().callback(current_percentage)

        callbacks = [
            Remember([5, 4, {"score": 1, "num_failed": 1}, FAILS, 6], every_steps(1)),
            BestModelCallback(model, "scripted/score", "min"),
        ]
        await SFT(
            dataset=addition_threads(8),
            model=model,
            lr=1e-2,
            samples_per_batch=2,
            callbacks=callbacks,
            run_dir=tmp_path,
        ).run()
    saved = load_file(tmp_path / "checkpoints" / "best" / "model.safetensors")
    assert all(torch.equal(saved[key], weights[1][key]) for key in saved)
