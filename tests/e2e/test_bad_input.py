"""What bad input gets, before any training: what is wrong, where, and what to do."""

import pytest
from support import CountingCallback, addition_threads, training_model
from tiny_model import byte_tokenizer

from descant import SFT, GraderEvalCallback, ModelBuilder, RecipeCallback, StringThread
from descant.errors import ConfigurationError, DatasetError, ModelLoadError

THREADS = addition_threads(4)


class Synchronous(RecipeCallback):
    def callback(self, current_percentage):
        return {}


class Uninitialised(RecipeCallback):
    def __init__(self):
        pass

    async def callback(self, current_percentage):
        return {}


TRAINER = {
    "lr": ({"lr": -1}, r"lr=-1 must be a finite number of at least 0"),
    "lr text": ({"lr": "fast"}, r"lr='fast' must be a finite number"),
    "epochs": ({"epochs": 0}, r"epochs=0 must be a finite number above 0"),
    "epochs nan": ({"epochs": float("nan")}, r"epochs=nan must be a finite number above 0"),
    "norm": ({"max_grad_norm": 0}, r"max_grad_norm=0 must be a finite number above 0"),
    "batch": ({"samples_per_batch": 0}, r"samples_per_batch=0 must be a whole number of at least 1"),
    "scheduler": ({"lr_scheduler": 1e-3}, r"lr_scheduler=0\.001 must be callable"),
    "logger": ({"logger": "wandb"}, r"logger='wandb' must be callable with a dict of metrics"),
    "not yet": ({"checkpoint_frequency": 0.2}, r"no argument 'checkpoint_frequency' yet: it belongs to the recipe API"),
    "notifier": ({"stage_notifier": print}, r"stage_notifier=.* must have report_progress"),
    "typo": ({"sample_per_batch": 3}, r"no argument 'sample_per_batch'; did you mean 'samples_per_batch'\?"),
    "unknown": ({"warmup": 3}, r"no argument 'warmup'; arguments are dataset, model, .*lr, "),
    "callbacks": ({"callbacks": CountingCallback()}, r"is a CountingCallback; a list is needed"),
    "a class": ({"callbacks": [CountingCallback]}, r"callbacks\[0\] is the class CountingCallback; pass an instance"),
    "a function": ({"callbacks": [print]}, r"not a callback; subclass RecipeCallback"),
    "sync": ({"callbacks": [Synchronous(0.1)]}, r"Synchronous\.callback must be `async def`"),
    "no init": ({"callbacks": [Uninitialised()]}, r"Uninitialised\.__init__ must call super\(\)\.__init__"),
    "duplicate": ({"callbacks": [CountingCallback(), CountingCallback()]}, r"two callbacks are called 'counting'"),
}


@pytest.mark.parametrize("case", TRAINER)
async def test_arguments_of_the_trainer(qwen3_dir, tmp_path, case):
    options, message = TRAINER[case]
    async with training_model(qwen3_dir) as model:
        with pytest.raises(ConfigurationError, match=message):
            SFT(**{"dataset": THREADS, "model": model, "run_dir": tmp_path / "run", **options})
    assert not (tmp_path / "run").exists()


async def test_the_model_must_be_one_that_trains(qwen3_dir):
    model = await ModelBuilder(qwen3_dir).spawn_inference("judge")
    with pytest.raises(ConfigurationError, match=r"cannot be trained; make it with ModelBuilder\(path\)\.spawn_train"):
        SFT(dataset=THREADS, model=model)
    await model.dealloc()


async def test_datasets(qwen3_dir):
    no_answer = StringThread([("user", "q")], source="train.jsonl:2")
    async with training_model(qwen3_dir) as model:
        with pytest.raises(DatasetError, match="dataset is empty"):
            SFT(dataset=[], model=model)
        with pytest.raises(DatasetError, match="text is not there"):  # a path
            SFT(dataset="text", model=model)
        with pytest.raises(DatasetError) as error:
            SFT(dataset=[THREADS[0], no_answer, THREADS[1].with_turn_weights([0, 0])], model=model)
    assert str(error.value) == (
        "2 of 3 threads have nothing to train on; end each in an assistant turn of weight 1, or leave it out\n"
        "  train.jsonl:2: no weighted turn (turns: user)\n"
        "  dataset[2]: no weighted turn (turns: user, assistant)"
    )


async def test_a_grader_must_be_a_grader(qwen3_dir):
    async with training_model(qwen3_dir) as model:
        with pytest.raises(
            ConfigurationError, match="grader is 'exact match', not a grader; subclass BaseGrader, or give"
        ):
            GraderEvalCallback(THREADS, model, "exact match", 0.1)


MODELS = {
    "missing path": ("./no/such/model", r"there is no model directory '\./no/such/model' \(the working directory is"),
    "missing nested": ("runs/no/model", r"there is no model directory 'runs/no/model'"),
    "empty": ("", r"there is no model directory ''"),
    "hub": ("no-such-org/no-such-model", r"neither a directory here nor loadable as hub id"),
}


@pytest.mark.parametrize("case", MODELS)
async def test_models_that_are_not_there(case):
    path, message = MODELS[case]
    with pytest.raises(ModelLoadError, match=message):
        await ModelBuilder(path).spawn_train("policy", max_batch_size=64)


async def test_directories_that_hold_no_model(tmp_path):
    with pytest.raises(ModelLoadError, match=r"has no config\.json: it is not a saved model"):
        await ModelBuilder(tmp_path).spawn_inference("x")
    (tmp_path / "config.json").write_text('{"model_type": "qwen3"}')
    byte_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ModelLoadError, match=r"AutoModelForCausalLM cannot load"):
        await ModelBuilder(tmp_path).spawn_inference("x")
    (tmp_path / "config.json").write_text("{broken")
    with pytest.raises(ModelLoadError, match=r"cannot load"):
        await ModelBuilder(tmp_path).spawn_inference("x")


async def test_a_tokenizer_without_a_chat_template_is_refused_before_weights_are_loaded(tmp_path):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "qwen3"}')  # there are no weights to load
    with pytest.raises(ModelLoadError, match=r"has no chat template.*tokenizer\.chat_template"):
        await ModelBuilder(tmp_path).spawn_train("policy", max_batch_size=64)


@pytest.mark.parametrize("budget", [0, -5, 1.5, "4096", True])
async def test_budgets_are_whole_numbers_of_tokens(qwen3_dir, budget):
    with pytest.raises(ConfigurationError, match="must be a whole number of tokens, at least 1"):
        await ModelBuilder(qwen3_dir).spawn_train("policy", max_batch_size=budget)
    with pytest.raises(ConfigurationError, match="kv_cache_len="):
        ModelBuilder(qwen3_dir, kv_cache_len=budget)


async def test_steps_without_a_gradient_and_closed_models_are_named(qwen3_dir):
    async with training_model(qwen3_dir) as model:
        with pytest.raises(Exception, match="optim_step without a gradient"):
            await model.optim_step(lr=1e-3)
        with pytest.raises(ConfigurationError, match="lr >= 0"):
            await model.optim_step(lr=float("nan"))
    with pytest.raises(Exception, match="model 'policy' was closed"):
        await model.generate(StringThread().user("x"))
    await model.dealloc()
