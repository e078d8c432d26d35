"""Callbacks that act on a metric of another: early stopping, the best model, the checkpoints that are kept."""

import pytest
import torch
from safetensors.torch import load_file
from support import CountingCallback, addition_threads, query, series, training_model, weights_of

from descant import (
    SFT,
    BestModelCallback,
    CallbackRunner,
    CheckpointCallback,
    EarlyStoppingCallback,
    RecipeCallback,
    ValidationLossCallback,
    every_steps,
)
from descant.callbacks.metric_watch import MetricWatch
from descant.errors import ConfigurationError
from descant.metrics import MetricSpec

NAN = float("nan")


class Scripted(RecipeCallback):
    """Returns the metric that is written for a step."""

    def __init__(self, values, frequency=0.1, prefix="scripted", **options):
        super().__init__(frequency, prefix, **options)
        self.values = values

    async def callback(self, current_percentage):
        return {"score": self.values[self.run.step]}


class ValidationKeys(Scripted):
    metric_specs = (MetricSpec("score"),)


async def drive(callbacks, run_dir, num_steps=10, **options):
    async with CallbackRunner(callbacks, num_steps=num_steps, run_dir=run_dir, **options) as runner:
        for step in range(1, num_steps + 1):
            if runner.should_stop:
                break
            await runner.after_step(step)
    return runner


class Doubles(RecipeCallback):
    """Follows a metric, and declares nothing of its own."""

    def __init__(self, metric, prefix, **options):
        super().__init__(0.5, prefix, **options)
        self.watches = MetricWatch(metric, "max")
        self.steps = []

    async def callback(self, current_percentage):
        self.steps.append(self.run.step)
        return {"score": 2 * self.run.evaluations[self.watches.metric]}


async def test_what_follows_a_metric_has_no_schedule_of_its_own(tmp_path):
    scores = Scripted([1] * 11, 0.5, at_start=False, at_end=False)
    doubles = Doubles("scripted/score", "doubles", at_start=True, at_end=True)
    stopping = EarlyStoppingCallback("scripted/score", "max", at_start=True, at_end=True)
    runner = await drive([stopping, doubles, scores], tmp_path)
    assert (doubles.steps, runner.failures) == ([5], [])
    assert doubles.plan(10).steps == []
    assert list(series(tmp_path, "early_stopping/best")) == [5]


async def test_a_metric_that_is_not_declared_is_news_for_a_callback_that_stands_before(tmp_path):
    first, second = Doubles("second/score", "first"), Doubles("scripted/score", "second")
    await drive([first, second, Scripted([1] * 11, 0.5)], tmp_path)
    assert first.steps == second.steps == [0, 5, 10]
    assert series(tmp_path, "first/score") == {0: 4, 5: 4, 10: 4}


CURVES = {
    "falls at first": ([5, 4, 3, 3, 3, 3, 1, 1, 1, 1, 1], "min", {"patience": 3}, 5),
    "rises throughout": (list(range(11)), "max", {"patience": 1}, 10),
    "max": ([0, 1, 0, 1, 2, 1, 2, 1, 0, 0, 0], "max", {"patience": 3}, 7),
    "never better": ([1] * 11, "max", {"patience": 1}, 1),
    "too little better": ([1, 1.05, 1.09, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7, 1.8], "max", {"min_delta": 0.1}, 3),
    "nan is not better": ([1, NAN, NAN, NAN, 0, 0, 0, 0, 0, 0, 0], "min", {"patience": 3}, 3),
    "nan at first": ([NAN, 1, 2, 3, 4, 4, 4, 4, 4, 4, 4], "max", {"patience": 4}, 8),
}


@pytest.mark.parametrize("case", CURVES)
async def test_early_stopping(tmp_path, case):
    values, mode, options, expected = CURVES[case]
    last = CountingCallback(1)
    stopping = EarlyStoppingCallback("scripted/score", mode, **options)
    # Its place in the list does not matter: it looks when the others are done.
    runner = await drive([stopping, Scripted(values), last], tmp_path)
    assert runner.step == expected
    assert last.steps == [0, expected]
    assert (runner.stop_reason is not None) is (expected < 10)
    assert runner.failures == []
    if runner.stop_reason:
        assert runner.stop_reason.startswith("early_stopping: scripted/score has not become better than ")


async def test_it_runs_when_the_metric_is_measured_and_starts_anew_in_the_next_run(tmp_path):
    stopping = EarlyStoppingCallback("scripted/score", "max", patience=3)
    for stage in ("one", "two"):
        runner = await drive([Scripted([1] * 11, every_steps(4)), stopping], tmp_path / stage)
        assert runner.costs["early_stopping"].num_runs == 4
        assert runner.step == 10
        assert series(tmp_path / stage, "early_stopping/num_without_improvement") == {0: 0, 4: 1, 8: 2, 10: 3}
    assert "with scripted/score" in str(stopping.plan(10))


async def test_a_metric_that_nobody_measures_is_an_error_that_lists_the_keys_there_are(tmp_path):
    stopping = EarlyStoppingCallback("scripted/scores", "max")
    late = Scripted([1] * 11, 0.5, "late", at_start=False)
    other = ValidationKeys([1] * 11, 0.9, "declared", at_start=False)  # says itself that it will not measure it
    runner = await drive([stopping, Scripted([1] * 11), late, other], tmp_path)
    assert [failure.step for failure in runner.failures] == [0]  # when all that might have run, and once
    assert runner.failures[0].message == (
        "callback 'early_stopping' failed at step 0 of 10: ConfigurationError: callback "
        "'early_stopping' watches 'scripted/scores', which was not measured by any callback; the keys that callbacks "
        "have returned are: scripted/score"
    )
    assert runner.step == 10


async def test_a_metric_that_is_no_number_is_an_error(tmp_path):
    runner = await drive([Scripted(["good"] * 11), EarlyStoppingCallback("scripted/score", "max")], tmp_path)
    assert "'scripted/score', which is a str and no number" in runner.failures[0].message


ARGUMENTS = {
    "mode": ({"mode": "maximum"}, r"mode='maximum' must be 'max' if a higher x/y is better, 'min' if a lower one is"),
    "metric": ({"metric": ""}, r"metric='' must be the key of a metric that a callback returns"),
    "patience": ({"patience": 0}, r"patience=0 must be a whole number of at least 1"),
    "of the trainer": ({"metric": "training/loss"}, r"'training/loss' is the trainer's own; the metric of a callback"),
    "min_delta": ({"min_delta": NAN}, r"min_delta=nan must be a finite number of at least 0"),
}


@pytest.mark.parametrize("case", ARGUMENTS)
def test_arguments_of_early_stopping(case):
    options, message = ARGUMENTS[case]
    with pytest.raises(ConfigurationError, match=message):
        EarlyStoppingCallback(**{"metric": "x/y", "mode": "max", **options})


async def test_early_stopping_of_a_real_run_by_its_validation_loss(qwen3_dir, tmp_path):
    validation = addition_threads(6, offset=50)
    async with training_model(qwen3_dir) as model:
        result = await SFT(
            dataset=addition_threads(40),
            model=model,
            lr=0.0,  # nothing is learnt
            samples_per_batch=2,
            callbacks=[
                ValidationLossCallback(validation, model, every_steps(1)),
                EarlyStoppingCallback("validation/loss", "min", patience=2),
            ],
            run_dir=tmp_path,
        ).run()
    assert result.num_steps == 2
    assert result.stop_reason.startswith("early_stopping: validation/loss has not become better than ")


async def test_the_best_model_is_the_one_that_was_measured(qwen3_dir, tmp_path):
    weights = {}

    class Remember(Scripted):
        async def callback(self, current_percentage):
            weights[self.run.step] = weights_of(model)
            return await super().callback(current_percentage)

    async with training_model(qwen3_dir) as model:
        callbacks = [
            Remember([1, 3, 2, 3, 0], 0.25),
            BestModelCallback(model, "scripted/score", "max"),
            BestModelCallback(model, "scripted/score", "min", "worst", log_key_prefix="worst_model"),
        ]
        await SFT(
            dataset=addition_threads(8),
            model=model,
            lr=1e-2,
            samples_per_batch=2,
            callbacks=callbacks,
            run_dir=tmp_path,
        ).run()
    for name, step in (("best", 1), ("worst", 4)):
        saved = load_file(tmp_path / "checkpoints" / name / "model.safetensors")
        assert all(torch.equal(saved[key], weights[step][key]) for key in saved), name
    assert series(tmp_path, "best_model/step") == {0: 0, 1: 1, 2: 1, 3: 1, 4: 1}
    assert series(tmp_path, "best_model/value") == {0: 1, 1: 3, 2: 3, 3: 3, 4: 3}


async def keep(model, run_dir, values=(4, 9, 1, 8, 2, 7, 3, 6, 5), **options):
    """Checkpoints after steps 1 to 8 of 9, and what is there in the end."""
    callbacks = [CheckpointCallback(model, "policy", every_steps(1), **options), Scripted([*values, 0], every_steps(1))]
    runner = await drive(callbacks, run_dir, num_steps=len(values))
    left = sorted(path.name for path in (run_dir / "checkpoints").iterdir())
    return runner, callbacks[0], left


async def test_a_watcher_of_a_watcher_comes_after_it(qwen3_dir, tmp_path):
    async with training_model(qwen3_dir) as model:
        callbacks = [
            EarlyStoppingCallback("best_model/step", "max", patience=2),
            BestModelCallback(model, "scripted/score", "max"),
            Scripted([1, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1]),
        ]
        runner = await drive(callbacks, tmp_path)
    assert runner.failures == []
    assert runner.step == 3


async def test_a_final_checkpoint_knows_what_was_measured_at_its_step(qwen3_dir, tmp_path):
    async with training_model(qwen3_dir) as model:
        checkpoint = CheckpointCallback(
            model, "policy", 0.9, keep_best=1, metric="scripted/score", mode="max", at_end=True
        )
        stopping = EarlyStoppingCallback("scripted/score", "max", patience=2)
        runner = await drive([checkpoint, Scripted([1] * 11), stopping], tmp_path)
    assert runner.step == 2
    assert runner.failures == []
    assert [(kept.step, kept.value) for kept in checkpoint.kept] == [(2, 1.0)]


async def test_a_metric_that_was_never_a_number(tmp_path):
    runner = await drive([Scripted([NAN] * 11), EarlyStoppingCallback("scripted/score", "min", patience=3)], tmp_path)
    assert runner.stop_reason == "early_stopping: scripted/score has not been a number in 3 measurements"
    assert series(tmp_path, "early_stopping/best") == {}


async def test_a_missing_metric_does_not_keep_old_checkpoints(qwen3_dir, tmp_path):
    async with training_model(qwen3_dir) as model:
        _, _, left = await keep(model, tmp_path, keep_last=2, keep_best=1, metric="scripted/typo", mode="max")
    assert left == ["policy-7", "policy-8"]


async def test_which_checkpoints_are_kept(qwen3_dir, tmp_path):
    metric = {"metric": "scripted/score", "mode": "max"}
    async with training_model(qwen3_dir) as model:
        runner, callback, left = await keep(model, tmp_path / "all")
        assert left == [f"policy-{step}" for step in range(1, 9)]
        assert str(callback.plan(9)).endswith("8 calls, after steps 1, 2, 3, 4, …, 8 of 9")
        runner, callback, left = await keep(model, tmp_path / "last", keep_last=2)
        assert left == ["policy-7", "policy-8"]
        assert [checkpoint.step for checkpoint in callback.kept] == [7, 8]
        assert series(tmp_path / "last", "checkpointing/num_kept")[8] == 2
        runner, callback, left = await keep(model, tmp_path / "best", keep_best=2, **metric)
        assert left == ["policy-1", "policy-3"]  # 9 and 8; step 0 has no checkpoint
        runner, callback, left = await keep(model, tmp_path / "both", keep_best=2, keep_last=1, **metric)
        assert left == ["policy-1", "policy-3", "policy-8"]
        runner, callback, left = await keep(
            model, tmp_path / "min", keep_best=1, keep_last=1, metric="scripted/score", mode="min"
        )
        assert left == ["policy-2", "policy-8"]
        assert runner.failures == []
        loaded = load_file(tmp_path / "min" / "checkpoints" / "policy-2" / "model.safetensors")
        assert all(torch.equal(loaded[key], weights_of(model)[key]) for key in loaded)


async def test_what_has_no_value_is_not_ranked_and_not_lost(qwen3_dir, tmp_path):
    metric = {"metric": "scripted/score", "mode": "max"}
    async with training_model(qwen3_dir) as model:
        _, _, left = await keep(model, tmp_path / "nan", [0, NAN, 5, 4], keep_best=1, **metric)
        assert left == ["policy-1", "policy-2"]
        callbacks = [
            CheckpointCallback(model, "policy", every_steps(1), keep_best=1, **metric),
            Scripted([0] * 5, every_steps(2)),
        ]
        runner = await drive(callbacks, tmp_path / "missing", num_steps=4)
    assert [failure.step for failure in runner.failures] == [1, 3]
    assert "'scripted/score', which was not measured at this step; the keys" in runner.failures[0].message
    assert "returned are: scripted/score" in runner.failures[0].message
    left = sorted(path.name for path in (tmp_path / "missing" / "checkpoints").iterdir())
    assert left == ["policy-1", "policy-2", "policy-3"]


async def test_two_callbacks_do_not_write_the_same_directory(qwen3_dir):
    async with training_model(qwen3_dir) as model:
        pairs = [
            [
                BestModelCallback(model, "a/b", "max"),
                BestModelCallback(model, "a/c", "min", log_key_prefix="other"),
            ],
            [
                CheckpointCallback(model, "policy"),
                CheckpointCallback(model, "policy", keep_last=1, log_key_prefix="other"),
            ],
            [CheckpointCallback(model, "step", log_key_prefix="other")],
        ]
        for callbacks, path in zip(pairs, ("best", "policy-<step>", "step-<step>"), strict=True):
            message = f"callback 'other' writes checkpoints/{path}, and so does .*; give it its own checkpoint_name="
            with pytest.raises(ConfigurationError, match=message):
                CallbackRunner(callbacks, num_steps=1)


async def test_a_checkpoint_that_cannot_be_written_is_recorded(qwen3_dir, tmp_path):
    tmp_path.joinpath("checkpoints").write_text("a file where the directory should be")
    async with training_model(qwen3_dir) as model:
        runner = await drive([CheckpointCallback(model, "policy", 0.5)], tmp_path)
    assert [failure.step for failure in runner.failures] == [5]
    assert query(tmp_path, "SELECT count(*) FROM events WHERE kind = 'run_completed'") == [(1,)]


CHECKPOINTS = {
    "name": ({"checkpoint_name": "a/b"}, r"checkpoint_name='a/b' must be a name without directories"),
    "no name": ({"checkpoint_name": " "}, r"checkpoint_name=' ' must be a name"),
    "parent": ({"checkpoint_name": ".."}, r"checkpoint_name='\.\.' must be a name"),
    "keep_last": ({"keep_last": 0}, r"keep_last=0 must be a whole number of at least 1"),
    "no metric": ({"keep_best": 2}, r"keep_best=2, metric=None and mode=None go together"),
    "mode alone": ({"mode": "max"}, r"keep_best=None, metric=None and mode='max' go together"),
    "no count": ({"metric": "a/b", "mode": "max"}, r"keep_best=None, metric='a/b' and mode='max' go together"),
    "mode": ({"keep_best": 2, "metric": "a/b", "mode": "up"}, r"mode='up' must be 'max' if a higher a/b is better"),
}


@pytest.mark.parametrize("case", CHECKPOINTS)
async def test_arguments_of_checkpoints(qwen3_dir, case):
    options, message = CHECKPOINTS[case]
    async with training_model(qwen3_dir) as model:
        with pytest.raises(ConfigurationError, match=message):
            CheckpointCallback(**{"model": model, "checkpoint_name": "policy", **options})
