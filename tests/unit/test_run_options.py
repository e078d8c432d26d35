"""Options: declared once, checked where they are given, and answered with the name that was meant."""

import inspect
import json
import re
from dataclasses import fields

import pytest
from support import CountingCallback, addition_threads, query, training_model

from descant import SFT, CallbackRunner, GenerateSamplesCallback, ModelBuilder, RunOptions
from descant.errors import ConfigurationError
from descant.runner.options import options


class Notifier:
    def report_progress(self, tot_num_samples, processed_num_samples):
        pass


FOREIGN = {
    "learning_rate": "did you mean 'lr'",
    "num_train_epochs": "did you mean 'epochs'",
    "per_device_train_batch_size": "did you mean 'samples_per_batch'",
    "gradient_accumulation_steps": "samples_per_batch is the whole step",
    "max_steps": "the number of steps is ceil",
    "train_dataset": "did you mean 'dataset'",
    "output_dir": "did you mean 'run_dir'",
    "report_to": "did you mean 'logger'",
    "eval_strategy": "evaluations are callbacks",
    "lr_schedular": "did you mean 'lr_scheduler'",
    "bf16": "precision belongs to the model",
    "max_new_tokens": "callbacks that generate take it as max_gen_len=",
    "eval_dataset": "evaluations are callbacks",
    "num_epochs": "did you mean 'epochs'",
    "micro_batch_size": "samples_per_batch is the whole step",
    "base_model": "did you mean 'model'",
    "datasets": "did you mean 'dataset'",
    "val_set_size": "hold threads out: train, validation = train_validation_split",
    "warmup_ratio": "CosineScheduler warms up",
    "wandb_project": "trackers are loggers",
    "eval_sample_packing": "evaluations are callbacks",
    "sample_packing": "not needed",
    "lora_r": "adapters are not trained here yet: TRL trains them, and add_callbacks",
    "save_strategy": "checkpoints are callbacks",
    "load_best_model_at_end": "the best weights are kept by a callback",
    "optimizer": "it trains with AdamW",
    "deepspeed": "it trains on one device",
    "train_on_inputs": "assistant turns are trained",
}
NO_NUMBERS = [
    "seed",
    "data_seed",
    "samples_per_batch",
    "epochs",
    "lr",
    "weight_decay",
    "max_grad_norm",
    "callback_budget",
]


@pytest.mark.parametrize("name", FOREIGN)
def test_names_of_others_are_answered_with_ours(name):
    with pytest.raises(ConfigurationError, match=f"SFT has no argument '{name}'; {FOREIGN[name]}"):
        SFT(dataset=[], model=None, **{name: 1})


def test_the_builder_of_models_answers_too():
    with pytest.raises(ConfigurationError, match="no argument 'torch_dtype'; did you mean 'precision'"):
        ModelBuilder("tiny", torch_dtype="bfloat16")


CALLBACK_ARGUMENTS = {"max_new_tokens": "max_gen_len", "num_completion": "num_completions", "on_errors": "on_error"}


@pytest.mark.parametrize("name", CALLBACK_ARGUMENTS)
async def test_arguments_of_callbacks_are_answered_too(qwen3_dir, name):
    message = f"GenerateSamplesCallback has no argument '{name}'; did you mean '{CALLBACK_ARGUMENTS[name]}'"
    async with training_model(qwen3_dir) as model:
        with pytest.raises(ConfigurationError, match=message):
            GenerateSamplesCallback(addition_threads(2), model, 0.5, **{name: 4})
    with pytest.raises(ConfigurationError, match="no argument 'timeout'; did you mean 'timeout_s'"):
        CountingCallback(0.5, timeout=3)


@pytest.mark.parametrize("name", NO_NUMBERS)
async def test_true_is_no_number(qwen3_dir, name):
    async with training_model(qwen3_dir) as model:
        with pytest.raises(ConfigurationError, match=f"{name}=True must be"):
            SFT(**{"dataset": addition_threads(2), "model": model, name: True})


def test_the_runner_takes_the_same_words_and_refuses_the_same():
    with pytest.raises(ConfigurationError, match="CallbackRunner has no argument 'callbacks_mode'; did you mean"):
        CallbackRunner([], num_steps=1, callbacks_mode="inline")
    with pytest.raises(ConfigurationError, match="contamination='maybe' must be one of 'warn', 'error', 'ignore'"):
        CallbackRunner([], num_steps=1, contamination="maybe")
    options = RunOptions(callbacks=[CountingCallback(0.5)], seed=3, strict=True)
    runner = CallbackRunner(**options.run_options(), num_steps=4)
    assert [(each.name, getattr(runner, each.name)) for each in fields(RunOptions)] == [
        (each.name, getattr(options, each.name)) for each in fields(RunOptions)
    ]


def test_a_subclass_may_have_a_constructor_of_its_own():
    class Named(CallbackRunner):
        def __init__(self, callbacks, *, nickname, **options):
            super().__init__(callbacks, **options)
            self.nickname = nickname

    assert Named([], nickname="it", num_steps=3).num_steps == 3
    with pytest.raises(ConfigurationError, match="Named has no argument 'nickame'; did you mean 'nickname'"):
        Named([], nickame="it", num_steps=3)


def test_a_name_of_others_is_answered_by_what_the_function_has():
    with pytest.raises(
        ConfigurationError, match="CallbackRunner has no argument 'max_steps'; did you mean 'num_steps'"
    ):
        CallbackRunner([], max_steps=3)


async def test_what_is_changed_before_the_run_holds_for_the_run(qwen3_dir, tmp_path):
    counting = CountingCallback(0.5)
    async with training_model(qwen3_dir) as model:
        sft = SFT(dataset=addition_threads(4), model=model, callbacks=[counting], samples_per_batch=1)
        counting.frequency, sft.run_dir = 0.25, tmp_path / "run"
        result = await sft.run()
    assert (counting.steps, result.run_dir) == ([0, 1, 2, 3, 4], tmp_path / "run")


async def test_a_new_option_is_one_declaration(tmp_path):
    """It is an argument, has a name that can be guessed at, and is one of the settings."""

    @options
    class WithPatience(CallbackRunner):
        patience: int = 3

    async with WithPatience([], num_steps=1, run_dir=tmp_path, patience=5) as runner:
        await runner.after_step(1)
    assert runner.settings()["patience"] == 5
    with pytest.raises(ConfigurationError, match="did you mean 'patience'"):
        WithPatience([], num_steps=1, patients=5)


WRONG_KINDS = {
    "callback_placement": ("thread", "is a str; EvaluationPlacement is needed"),
    "strict": ("no", "must be True or False"),
    "run_dir": (5, "is a int; str | pathlib.Path is needed"),
}


@pytest.mark.parametrize("name", WRONG_KINDS)
def test_kinds_are_checked(name):
    value, message = WRONG_KINDS[name]
    with pytest.raises(ConfigurationError, match=f"{name}={value!r} {re.escape(message)}"):
        CallbackRunner([], num_steps=1, **{name: value})


async def test_everything_about_a_run_is_checked_when_the_trainer_is_made(qwen3_dir, tmp_path):
    async with training_model(qwen3_dir) as model:
        arguments = {"dataset": addition_threads(2), "model": model, "run_dir": tmp_path / "run"}
        for wrong, message in (
            (
                {"callback_mode": "parallel"},
                "callback_mode='parallel' must be one of 'auto', 'inline', 'overlap', 'background'",
            ),
            ({"callback_budget": 5}, "above 0 and below 1"),
            ({"callbacks": [CountingCallback(), CountingCallback()]}, "two callbacks are called 'counting'"),
        ):
            with pytest.raises(ConfigurationError, match=message):
                SFT(**arguments, **wrong)
    assert not (tmp_path / "run").exists()


async def test_settings_are_in_the_run_log_as_values(qwen3_dir, tmp_path):
    async with training_model(qwen3_dir) as model:
        sft = SFT(dataset=addition_threads(4), model=model, lr=2e-3, samples_per_batch=2, run_dir=tmp_path)
        sft.stage_notifier = Notifier()
        await sft.run()
    config = {key: json.loads(value) for key, value in query(tmp_path, "SELECT key, value FROM config")}
    assert (config["trainer"], config["lr"], config["samples_per_batch"]) == ("SFT", 0.002, 2)
    assert config["stage_notifier"] == {"name": "Notifier"}  # and not where it is in memory
    assert config["dataset"]["num_samples"] == 4
    cosine = {"name": "CosineScheduler", "lr": 0.002, "warmup_percentage": 0.1, "decay_factor": 10.0}
    assert config["lr_scheduler"] == cosine
    spec = {"key": "training/loss", "unit": "nats per token", "better": "lower", "headline": True}
    assert any(found.items() >= spec.items() for found in config["metrics"])


def test_help_shows_every_argument():
    """Each option of every trainer is documented where it is declared; ``help(SFT)`` has it."""
    for kind in (RunOptions, CallbackRunner, SFT):
        described = inspect.getdoc(kind)
        missing = [each.name for each in fields(kind) if f"\n    {each.name}: " not in described]
        assert missing == [], kind
    assert "lr: The peak learning rate of the default scheduler." in inspect.getdoc(SFT)
    assert list(inspect.signature(SFT).parameters)[:3] == ["dataset", "model", "callbacks"]
