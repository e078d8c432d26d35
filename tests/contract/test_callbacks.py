"""What every callback does, whatever it measures. A new callback joins by being listed."""

import math

import pytest
from support import CountingCallback, LengthGrader, addition_threads, query, samples, series, training_model

from descant import (
    SFT,
    CheckpointCallback,
    GenerateSamplesCallback,
    GraderEvalCallback,
    ModelCallback,
    RecipeCallback,
    Table,
    ValidationLossCallback,
    callback,
)
from descant.errors import ConfigurationError, DatasetError
from descant.metrics import find_spec
from descant.testing import check_callback

VALIDATION = addition_threads(5, offset=40)


class TokenCount(ModelCallback):
    """A user's own ModelCallback."""

    async def measure(self, model):
        return [len(thread.token_ids) for thread in await model.tokenize_many(VALIDATION)]

    async def report(self, measurement):
        return {"total": sum(measurement), "table": Table(["count"], [[count] for count in measurement])}


async def constant(run):
    return {"one": 1}


CALLBACKS = {
    "grader_eval": lambda model, **options: GraderEvalCallback(
        VALIDATION, model, LengthGrader(), 0.5, max_gen_len=4, **options
    ),
    "validation_loss": lambda model, **options: ValidationLossCallback(VALIDATION, model, 0.5, **options),
    "generate_samples": lambda model, **options: GenerateSamplesCallback(
        VALIDATION, model, 0.5, max_gen_len=4, **options
    ),
    "checkpoint": lambda model, **options: CheckpointCallback(
        model, "policy", 0.5, **{"at_start": True, "at_end": True, **options}
    ),
    "best_of_completions": lambda model, **options: GraderEvalCallback(
        VALIDATION, model, LengthGrader(), 0.5, "best", temperature=1.0, max_gen_len=4, num_completions=3, **options
    ),
    "function": lambda model, **options: callback(0.5, "function", **options)(constant),
    "plain": lambda model, **options: CountingCallback(0.5, **options),
    "users_model_callback": lambda model, **options: TokenCount(model, 0.5, "tokens", **options),
}


@pytest.fixture(params=CALLBACKS)
def make(request):
    return CALLBACKS[request.param]


async def run(model, run_dir, callbacks, **options):
    dataset = addition_threads(8)
    trainer = SFT(
        dataset=dataset, model=model, samples_per_batch=2, callbacks=callbacks, run_dir=run_dir, **options
    )  # fmt: skip
    return await trainer.run()


async def test_runs_at_its_steps_and_returns_what_can_be_logged(qwen3_dir, tmp_path, make):
    logged = []
    async with training_model(qwen3_dir) as model:
        callback = make(model)
        result = await run(model, tmp_path / "run", [callback], logger=logged.append)
    assert result.callback_failures == []
    own = [key for key in logged[0] if not key.startswith(("training/", "callbacks/", "progress/", "completion"))]
    assert own
    for metrics, is_due in zip(logged, [True, False, True, False, True], strict=True):
        assert [key in metrics for key in own] == [is_due] * len(own)
        assert (f"callbacks/{callback.name}/stall_s" in metrics) is is_due
    if declared := callback.declared_metrics():
        assert [key for key in own if find_spec(declared, key) is None] == []
    for key in own:
        value = logged[-1][key]
        assert isinstance(value, int | float | str | Table)
        if isinstance(value, int | float):
            assert series(tmp_path / "run", key)[4] == value
            assert result.metrics[key] == value
            assert not math.isnan(value)


async def test_tables_keep_their_rows_and_example_ids_across_the_run(qwen3_dir, tmp_path, make):
    logged = []
    async with training_model(qwen3_dir) as model:
        callback = make(model)
        await run(model, tmp_path / "run", [callback], logger=logged.append)
    tables = [value for metrics in logged for value in metrics.values() if isinstance(value, Table)]
    rows = samples(tmp_path / "run", callback.name)
    num_rows = query(tmp_path / "run", "SELECT count(*) FROM samples WHERE callback = ?", callback.name)
    assert num_rows == [(sum(len(table) for table in tables),)]
    ids = {step: {example for s, example in rows if s == step} for step in (0, 2, 4)}
    assert ids[0] == ids[2] == ids[4]


async def test_can_be_used_for_one_run_after_another(qwen3_dir, tmp_path, make):
    async with training_model(qwen3_dir) as model:
        callback = make(model)
        first = await run(model, tmp_path / "first", [callback])
        second = await run(model, tmp_path / "second", [callback])
    assert first.callback_failures == second.callback_failures == []
    for directory in ("first", "second"):
        assert list(series(tmp_path / directory, f"callbacks/{callback.name}/stall_s")) == [0, 2, 4]


async def test_a_twin_is_refused_with_the_fix(qwen3_dir, tmp_path, make):
    async with training_model(qwen3_dir) as model:
        with pytest.raises(ConfigurationError, match=r"two callbacks are called .*log_key_prefix= or name="):
            await run(model, tmp_path, [make(model), make(model)])
        if make(model).declared_metrics():
            with pytest.raises(ConfigurationError, match=r"which belongs to .*log_key= or log_key_prefix="):
                await run(model, tmp_path, [make(model), make(model, name="twin")])
    assert not (tmp_path / "run.sqlite").exists()


async def test_options_reach_the_base(qwen3_dir, make):
    async with training_model(qwen3_dir) as model:
        callback = make(model, name="mine", at_start=False, at_end=False)
    assert (callback.name, callback.at_start, callback.at_end) == ("mine", False, False)
    assert callback.due_steps(4) == [2]


async def test_the_same_weights_give_the_same_numbers(qwen3_dir, tmp_path, make):
    async with training_model(qwen3_dir) as model:
        callback = make(model)
        await run(model, tmp_path / "run", [callback], lr=0.0)
    keys = [
        key
        for (key,) in query(tmp_path / "run", "SELECT DISTINCT key FROM metrics WHERE key LIKE ?", "%/%")
        if not key.startswith(("training/", "callbacks/", "progress/", "counting/"))
    ]
    for key in keys:
        if not key.startswith("checkpointing/"):  # where and when
            assert len(set(series(tmp_path / "run", key).values())) == 1, key


async def test_passes_the_conformance_kit(make):
    """Neutral, the same in every mode, restored, ... see descant.testing."""
    report = await check_callback(make)
    assert report.passed


EVALUATIONS = ["grader_eval", "validation_loss", "generate_samples"]


@pytest.mark.parametrize("kind", EVALUATIONS)
@pytest.mark.parametrize("frequency", [0, -1, float("nan"), 10, "often"])
async def test_a_frequency_that_cannot_work_is_refused(qwen3_dir, kind, frequency):
    classes = {
        "grader_eval": lambda m: GraderEvalCallback(VALIDATION, m, LengthGrader(), frequency),
        "validation_loss": lambda m: ValidationLossCallback(VALIDATION, m, frequency),
        "generate_samples": lambda m: GenerateSamplesCallback(VALIDATION, m, frequency),
    }
    async with training_model(qwen3_dir) as model:
        with pytest.raises(ConfigurationError, match="frequency="):
            classes[kind](model)


@pytest.mark.parametrize("kind", EVALUATIONS)
async def test_what_is_evaluated_is_checked_before_training(qwen3_dir, kind):
    classes = {
        "grader_eval": lambda threads, m: GraderEvalCallback(threads, m, LengthGrader(), 0.5),
        "validation_loss": ValidationLossCallback,
        "generate_samples": lambda threads, m: GenerateSamplesCallback(threads, m, 0.5),
    }
    async with training_model(qwen3_dir) as model:
        with pytest.raises(DatasetError, match="is empty"):
            classes[kind]([], model)
        with pytest.raises(ConfigurationError, match=r"\[1\] is a str, not a StringThread"):
            classes[kind]([VALIDATION[0], "text"], model)
        with pytest.raises(ConfigurationError, match="model='policy' is a str"):
            classes[kind](VALIDATION, "policy")


async def test_keys_of_the_built_in_callbacks_are_the_contract(qwen3_dir):
    scores = {f"rewards/score/{name}" for name in ("mean", "std", "min", "max", "count", "stderr")}
    lengths = {"generation_length_mean", "generation_length_std", "generation_length_stderr", "num_samples"}
    async with training_model(qwen3_dir) as model:
        grader_eval = await GraderEvalCallback(VALIDATION, model, LengthGrader(), 1, max_gen_len=2).maybe_call(0)
        other = await GraderEvalCallback(VALIDATION, model, LengthGrader(), 1, "ood", max_gen_len=2).maybe_call(0)
        loss = await ValidationLossCallback(VALIDATION, model).maybe_call(0)
        other_loss = await ValidationLossCallback(VALIDATION, model, log_key="ood").maybe_call(0)
        generated = await GenerateSamplesCallback(VALIDATION, model, 1, max_gen_len=2).maybe_call(0)
    assert set(grader_eval) == {f"validation/{key}" for key in {*scores, *lengths, "num_generated", "samples"}}
    assert set(other) == {f"ood/{key}" for key in {*scores, *lengths, "num_generated", "samples"}}
    more = ("perplexity", "num_tokens", "loss_per_sample", "loss_per_sample_stderr")
    assert set(loss) == {
        f"validation/{key}" for key in ("loss", "loss_num_samples", "loss_stderr", "loss_samples", *more)
    }
    assert set(other_loss) == {
        "validation/ood",
        *(f"validation/ood/{key}" for key in ("num_samples", "stderr", "samples", *more)),
    }
    assert set(generated) == {f"generation/{key}" for key in {*lengths, "samples"}}
    headers = generated["generation/samples"].headers
    assert headers[:3] == ["prompt", "response", "reference"]
    assert {"system", "prompt", "response"} <= {*headers}
    assert headers[-1] == "example_id"


async def test_the_default_callbacks_go_together(qwen3_dir, tmp_path):
    async with training_model(qwen3_dir) as model:
        result = await run(model, tmp_path / "run", [make(model) for make in CALLBACKS.values()])
    assert set(result.callback_seconds) == {
        "validation", "loss", "samples", "best", "function", "counting", "tokens", "checkpointing",
    }  # fmt: skip
    assert result.callback_failures == []


def test_both_positional_conventions_of_the_base_class():
    class Plain(RecipeCallback):
        async def callback(self, current_percentage):
            return {}

    assert (Plain(0.5, "x").log_key_prefix, Plain(0.5, "x").at_end, Plain(0.5, "x").name) == ("x", True, "x")
    assert (Plain(0.5, False).log_key_prefix, Plain(0.5, False).at_end, Plain(0.5).name) == (None, False, "plain")
    with pytest.raises(TypeError, match="abstract"):
        RecipeCallback(0.5)
