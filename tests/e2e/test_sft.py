"""SFT from data to result, on tiny models."""

import asyncio
import json
import math
import threading

import pytest
import torch
from support import CountingCallback, addition_threads, query, samples, series, training_model, weights_of
from transformers import AutoModelForCausalLM, AutoTokenizer

from descant import (
    SFT,
    CosineScheduler,
    ExactMatchGrader,
    GraderEvalCallback,
    ModelBuilder,
    RecipeCallback,
    StringThread,
    Table,
    load_threads,
)
from descant.errors import CallbackError, NonFiniteError, ObserverError, RunLogError

THREADS = addition_threads(24)
TALK = StringThread().user("a").assistant("b").user("c").assistant("d")


async def test_the_plan_says_which_turns_are_trained_where_it_is_not_one_answer_of_each_thread(model_dir):
    plans = {
        "on 24 threads, ": THREADS,
        "on 2 threads (trains 4 of 4 assistant turns), ": [TALK, TALK],
        "on 2 threads (trains 2 of 4 assistant turns), ": [TALK.with_weight_last_assistant_turn()] * 2,
        "on 1 threads (trains 1 of 2 assistant turns and 1 others), ": [TALK.with_turn_weights([1, 0.5, 0, 0])],
    }
    async with training_model(model_dir) as model:
        for plan, threads in plans.items():
            assert plan in SFT(dataset=threads, model=model).describe()


async def test_a_model_learns_and_can_be_loaded_back(model_dir, tmp_path):
    path = tmp_path / "train.jsonl"
    rows = [{"prompt": thread.messages()[0].content, "completion": thread.completion()} for thread in THREADS]
    path.write_text("\n".join(map(json.dumps, rows)))
    logged = []
    async with training_model(model_dir) as model:
        result = await SFT(
            dataset=load_threads(path),
            model=model,
            logger=logged.append,
            lr=1e-2,
            samples_per_batch=8,
            epochs=5,
            run_dir=tmp_path / "run",
        ).run()
        saved = await model.save(result.run_dir / "model")
        expected = weights_of(model)
        generated = await model.temperature(0).max_gen_len(8).generate(THREADS[0].without_completion())
    assert result.num_steps == 15
    assert result.metrics["training/loss"] < 0.6 * logged[0]["training/loss"]
    assert list(series(tmp_path / "run", "training/loss")) == list(range(1, 16))
    assert set(logged[1]) == {
        "training/loss", "training/learning_rate", "training/grad_norm", "training/num_tokens",
        "training/num_samples", "training/tokens_per_s", "training/step_s", "progress/step", "completion_percentage",
    }  # fmt: skip
    assert [metrics["progress/step"] for metrics in logged] == list(range(1, 16))  # no callback, nothing at step 0
    assert logged[-1]["completion_percentage"] == 1.0
    assert logged[3]["training/learning_rate"] == pytest.approx(CosineScheduler(1e-2)(4 / 15))

    again = AutoModelForCausalLM.from_pretrained(saved, dtype=torch.float32)
    assert all(torch.equal(parameter, expected[name]) for name, parameter in again.named_parameters())
    assert AutoTokenizer.from_pretrained(saved).chat_template
    loaded = await ModelBuilder(saved).spawn_inference("again")
    assert await loaded.temperature(0).max_gen_len(8).generate(THREADS[0].without_completion()) == generated
    await loaded.dealloc()


async def test_the_same_seeds_make_the_same_run(gpt2_dir, tmp_path):
    async def train(name, **options):
        async with training_model(gpt2_dir) as model:
            await SFT(
                dataset=THREADS, model=model, lr=1e-2, samples_per_batch=8, run_dir=tmp_path / name, **options
            ).run()  # fmt: skip
            return series(tmp_path / name, "training/loss"), weights_of(model)

    losses, weights = await train("first")
    again_losses, again_weights = await train("again")
    assert losses == again_losses
    assert all(torch.equal(weights[name], again_weights[name]) for name in weights)
    assert (await train("seed", seed=1))[0] != losses
    assert (await train("data", data_seed=1))[0] != losses


async def test_saving_replaces_a_directory_in_whole(qwen3_dir, tmp_path):
    target = tmp_path / "checkpoints" / "policy"
    async with training_model(qwen3_dir) as model:
        await model.save(target)
        (target / "model-00001-of-00002.safetensors").write_text("of a larger model that was there before")
        assert await model.save(target) == target
    assert not (target / "model-00001-of-00002.safetensors").exists()
    assert [entry.name for entry in target.parent.iterdir()] == ["policy"]


async def test_the_run_log_has_config_plan_samples_and_costs(qwen3_dir, tmp_path):
    async with training_model(qwen3_dir) as model:
        callbacks = [
            GraderEvalCallback(THREADS[:3], model, ExactMatchGrader(), 0.5, max_gen_len=3),
            CountingCallback(0.25),
        ]
        result = await SFT(
            dataset=THREADS, model=model, samples_per_batch=6, seed=5, callbacks=callbacks, run_dir=tmp_path
        ).run()  # fmt: skip
    config = {key: json.loads(value) for key, value in query(tmp_path, "SELECT key, value FROM config")}
    assert config["trainer"] == "SFT"
    assert config["seed"] == 5
    assert config["plan"] == {"validation": [0, 2, 4], "counting": [0, 1, 2, 3, 4]}
    assert config["callbacks"][0]["class"] == "GraderEvalCallback"
    assert "Qwen3ForCausalLM" in config["model"]["description"]
    rows = samples(tmp_path, "validation")
    assert sorted(rows) == sorted((step, thread.uuid()) for step in (0, 2, 4) for thread in THREADS[:3])
    row = rows[0, THREADS[0].uuid()]
    assert row["prompt"] == THREADS[0].messages()[0].content
    assert row["reference"] == THREADS[0].completion()
    assert row["grade"] in (0.0, 1.0)
    assert row["finish_reason"] in ("stop", "length")
    events = query(tmp_path, "SELECT kind, source FROM events ORDER BY id")
    assert events == [
        ("run_started", "trainer"),
        ("callback_mode", "callbacks"),
        ("contamination", "validation"),
        ("callback_note", "validation"),
        ("forecast", "callbacks"),
        ("run_completed", "trainer"),
    ]
    assert result.tables["validation/samples"]["example_id"] == [thread.uuid() for thread in THREADS[:3]]
    assert result.callback_seconds["validation"] > 0


async def test_equal_validation_prompts_keep_rows_of_their_own(qwen3_dir, tmp_path):
    async with training_model(qwen3_dir) as model:
        twice = [THREADS[0], THREADS[0]]
        callback = GraderEvalCallback(twice, model, ExactMatchGrader(), 1, max_gen_len=3)
        await SFT(dataset=THREADS, model=model, callbacks=[callback], run_dir=tmp_path).run()
    assert {example for _, example in samples(tmp_path, "validation")} == {
        THREADS[0].uuid(),
        f"{THREADS[0].uuid()}#2",
    }


class Misbehaving(RecipeCallback):
    """Does at every call what its function does."""

    def __init__(self, function, **options):
        super().__init__(0.5, "odd", **options)
        self.function = function

    async def callback(self, current_percentage):
        return self.function()


def failing():
    raise ZeroDivisionError("on purpose")


RETURNS = {
    "raises": (failing, "ZeroDivisionError: on purpose"),
    "list": (lambda: [1, 2], "it returned list; a dict of metrics is needed"),
    "none": (lambda: None, "it returned NoneType; a dict of metrics is needed"),
    "odd value": (lambda: {"x": [1.0]}, "key 'odd/x': [1.0] (list) is not a metric"),
    "tensor": (lambda: {"x": torch.zeros(3)}, "key 'odd/x': a Tensor of shape (3,) is not a metric"),
    "cell": (lambda: {"x": object()}, "is not a metric"),
}


@pytest.mark.parametrize("case", RETURNS)
async def test_a_callback_that_fails_is_recorded_and_the_run_goes_on(qwen3_dir, tmp_path, case):
    function, message = RETURNS[case]
    good = CountingCallback(0.5)
    async with training_model(qwen3_dir) as model:
        result = await SFT(
            dataset=THREADS, model=model, samples_per_batch=6, run_dir=tmp_path, callbacks=[Misbehaving(function), good]
        ).run()  # fmt: skip
    assert result.num_steps == 4
    assert good.steps == [0, 2, 4]
    assert [(failure.callback, failure.step) for failure in result.callback_failures] == [
        ("odd", 0),
        ("odd", 2),
        ("odd", 4),
    ]
    events = query(tmp_path, "SELECT step, message, details FROM events WHERE kind = 'callback_failed'")
    assert [step for step, _, _ in events] == [0, 2, 4]
    assert f"callback 'odd' failed at step 2 of 4: {message}" in events[1][1] or message in events[1][1]
    if case == "raises":
        assert "in failing" in events[1][2]  # the traceback leads to the line
    assert series(tmp_path, "callbacks/odd/num_failed") == {0: 1, 2: 2, 4: 3}


@pytest.mark.parametrize("case", RETURNS)
async def test_strict_raises_the_first_failure(qwen3_dir, tmp_path, case):
    function, message = RETURNS[case]
    good, logged = CountingCallback(0.5), []
    odd = Misbehaving(function, at_start=False)
    async with training_model(qwen3_dir) as model:
        trainer = SFT(
            dataset=THREADS, model=model, logger=logged.append, run_dir=tmp_path, callbacks=[good, odd], strict=True
        )
        with pytest.raises(CallbackError) as error:
            await trainer.run()
    assert message in str(error.value)
    assert error.value.__cause__ is not None
    assert good.hooks == [("start", 0), ("end", 1)]
    assert query(tmp_path, "SELECT kind FROM events ORDER BY id")[-1] == ("run_failed",)
    assert logged[-1]["training/loss"] == series(tmp_path, "training/loss")[1]  # the step itself is not lost,
    assert logged[-1]["counting/calls"] == series(tmp_path, "counting/calls")[1] == 2  # nor what came before


async def test_what_is_a_metric_is_kept_when_something_beside_it_is_not(qwen3_dir, tmp_path):
    callback = Misbehaving(lambda: {"good": 1.5, "bad": None, "note": "text", "rows": Table(["a"], [[1]])})
    async with training_model(qwen3_dir) as model:
        result = await SFT(dataset=THREADS, model=model, callbacks=[callback], run_dir=tmp_path).run()
    assert result.metrics["odd/good"] == 1.5
    assert result.metrics["odd/note"] == "text"
    assert len(samples(tmp_path, "odd")) == 2
    assert len(result.callback_failures) == 2


async def test_keys_that_collide_at_run_time_are_refused_with_the_fix(qwen3_dir, tmp_path):
    class Same(RecipeCallback):
        async def callback(self, current_percentage):
            return {"shared": 1, "training/loss": 0.0, "mine_" + self.name: 2}

    async with training_model(qwen3_dir) as model:
        callbacks = [Same(1, name="first"), Same(1, name="second")]
        result = await SFT(dataset=THREADS, model=model, callbacks=callbacks, run_dir=tmp_path).run()
    messages = [failure.message for failure in result.callback_failures if failure.step == 0]
    assert len(messages) == 3
    assert "key 'training/loss': the key belongs to the trainer" in messages[0]
    assert "key 'shared': the key belongs to first; give 'second' its own log_key= or log_key_prefix=" in messages[1]
    assert result.metrics["mine_first"] == result.metrics["mine_second"] == 2
    assert result.metrics["training/loss"] > 1


async def test_hooks_and_the_view_of_the_run(qwen3_dir, tmp_path):
    views = []

    class Looking(RecipeCallback):
        async def on_start(self, run):
            views.append(run)

        async def callback(self, current_percentage):
            views.append(self.run)
            self.warn("something odd", "details")
            return {}

    async with training_model(qwen3_dir) as model:
        await SFT(
            dataset=THREADS, model=model, samples_per_batch=12, callbacks=[Looking(0.5)], run_dir=tmp_path
        ).run()  # fmt: skip
    assert [(view.step, view.num_steps, float(view.progress)) for view in views] == [
        (0, 2, 0.0),
        (0, 2, 0.0),
        (1, 2, 0.5),
        (2, 2, 1.0),
    ]
    assert views[0].metrics == views[1].metrics == {}
    assert views[2].metrics["training/loss"] == series(tmp_path, "training/loss")[1]
    assert views[2].run_dir == tmp_path
    assert len({view.seed for view in views[1:]}) == 3
    assert 0 <= views[1].elapsed_s <= views[2].elapsed_s
    with pytest.raises(AttributeError):
        views[0].step = 3
    warnings = query(tmp_path, "SELECT step, source, message, details FROM events WHERE kind = 'callback_warning'")
    assert warnings[0] == (0, "looking", "looking: something odd", "details")


async def test_a_callback_cannot_train(qwen3_dir, tmp_path):
    refused = []

    class Trainer(RecipeCallback):
        def __init__(self, model):
            super().__init__(1)
            self.model = model

        async def callback(self, current_percentage):
            for attempt in (
                lambda: self.model.train_language_modelling(THREADS[0]),
                lambda: self.model.train_language_modelling_many(THREADS),
                lambda: self.model.optim_step(lr=1.0),
            ):
                try:
                    await asyncio.create_task(attempt())
                except ObserverError as error:
                    refused.append(str(error))
            return {}

    async with training_model(qwen3_dir) as model:
        before = weights_of(model)
        await SFT(dataset=THREADS, model=model, lr=0.0, callbacks=[Trainer(model)], run_dir=tmp_path).run()
        assert all(torch.equal(before[name], after) for name, after in weights_of(model).items())
    assert len(refused) == 6
    assert "callback 'trainer': callbacks observe and must not train the model" in refused[0]


async def test_neither_can_a_thread_of_its_making_nor_another_trainer(qwen3_dir, tmp_path):
    refused = []

    class Sly(RecipeCallback):
        async def callback(self, current_percentage):
            loop = asyncio.get_running_loop()

            def from_a_thread():  # threads do not inherit the context that says who is asking
                return asyncio.run_coroutine_threadsafe(model.train_language_modelling_many(THREADS), loop).exception()

            refused.append(await loop.run_in_executor(None, from_a_thread))
            try:
                await SFT(dataset=THREADS, model=model.temperature(0), run_dir=tmp_path / "other").run()
            except ObserverError as error:
                refused.append(error)
            return {}

    async with training_model(qwen3_dir) as model:
        await SFT(dataset=THREADS, model=model, callbacks=[Sly(1, at_end=False)], run_dir=tmp_path / "run").run()
        assert [type(error) for error in refused] == [ObserverError, ObserverError]
        assert "'policy' is being trained by a running SFT" in str(refused[0])
        await model.train_language_modelling_many(THREADS)  # afterwards it is free again
        assert (await model.optim_step(lr=0.0))["num_samples"] == len(THREADS)


async def test_a_logger_that_fails_is_recorded_and_strict_raises(qwen3_dir, tmp_path):
    async def broken(metrics):
        raise ConnectionError("tracker is down")

    async with training_model(qwen3_dir) as model:
        result = await SFT(dataset=THREADS, model=model, logger=broken, run_dir=tmp_path / "a").run()
        assert result.num_steps == 1
        events = query(tmp_path / "a", "SELECT step, message FROM events WHERE kind = 'logger_failed'")
        assert [step for step, _ in events] == [1]
        assert "ConnectionError: tracker is down" in events[0][1]
        with pytest.raises(ConnectionError):
            await SFT(dataset=THREADS, model=model, logger=broken, strict=True, run_dir=tmp_path / "b").run()


def poison(model):
    """Make the next gradients NaN."""
    with torch.no_grad():
        next(model._worker._loop._engine.model.parameters())[0, 0] = float("nan")


async def test_a_gradient_that_is_not_finite_stops_training_and_final_calls_are_made(qwen3_dir, tmp_path):
    class Poison(CountingCallback):
        async def callback(self, current_percentage):
            if self.run.step == 2:
                poison(model)
            return await super().callback(current_percentage)

    async with training_model(qwen3_dir) as model:
        callback = Poison(0.25)
        only_at_the_end = CountingCallback(1, "end")
        trainer = SFT(
            dataset=THREADS, model=model, samples_per_batch=6, callbacks=[callback, only_at_the_end], run_dir=tmp_path
        )
        with pytest.raises(
            NonFiniteError, match=r"the loss of every sample is not finite.*skip_nan_gradients=True"
        ) as error:
            await trainer.run()
    assert error.value.__notes__ == ["at step 3 of 4"]
    assert callback.steps == [0, 1, 2]  # step 2 was evaluated already
    assert only_at_the_end.steps == [0, 2]
    assert only_at_the_end.hooks == [("start", 0), ("end", 2)]
    kind, step, details = query(tmp_path, "SELECT kind, step, details FROM events ORDER BY id")[-1]
    assert (kind, step) == ("run_failed", 2)
    assert "NonFiniteError" in details


async def test_such_updates_can_be_left_out(qwen3_dir, tmp_path):
    async with training_model(qwen3_dir) as model:
        poison(model)
        before = weights_of(model)
        result = await SFT(
            dataset=THREADS, model=model, samples_per_batch=12, skip_nan_gradients=True, run_dir=tmp_path
        ).run()  # fmt: skip
        after = weights_of(model)
    assert all(torch.equal(before[name].nan_to_num(7), after[name].nan_to_num(7)) for name in before)
    assert series(tmp_path, "training/skipped_update") == {1: 1, 2: 1}
    assert math.isnan(result.metrics["training/loss"])
    assert query(tmp_path, "SELECT count(*) FROM events WHERE kind = 'update_skipped'") == [(2,)]


async def test_cancelling_a_run_ends_it_and_closes_everything(qwen3_dir, tmp_path):
    class Slow(CountingCallback):
        async def callback(self, current_percentage):
            started.set()
            await asyncio.sleep(3600)

    started = asyncio.Event()
    callback = Slow(1)
    async with training_model(qwen3_dir) as model:
        trainer = SFT(dataset=THREADS, model=model, callbacks=[callback], run_dir=tmp_path)
        task = asyncio.create_task(trainer.run())
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert callback.hooks == [("start", 0), ("end", 0)]
    assert query(tmp_path, "SELECT kind FROM events ORDER BY id")[-1] == ("run_cancelled",)


async def test_the_event_loop_stays_free_while_the_model_works(qwen3_dir, tmp_path):
    """Rendering and the engine wait until a task of the loop has had its turn: on the loop they would wait forever."""
    loop = asyncio.get_running_loop()

    def after_a_turn_of_the_loop(function):
        def wrapped(*arguments):
            turn = threading.Event()
            loop.call_soon_threadsafe(turn.set)
            assert turn.wait(timeout=60), f"the event loop is blocked by {function}"
            return function(*arguments)

        return wrapped

    async with training_model(qwen3_dir) as model:
        engine = model._worker._loop._engine
        engine.run = after_a_turn_of_the_loop(engine.run)
        model._renderer.render = after_a_turn_of_the_loop(model._renderer.render)
        model._renderer.render_prompt = after_a_turn_of_the_loop(model._renderer.render_prompt)
        callback = GraderEvalCallback(THREADS[:3], model, ExactMatchGrader(), 0.5, max_gen_len=3)
        result = await SFT(dataset=THREADS, model=model, callbacks=[callback], run_dir=tmp_path).run()
    assert not result.callback_failures


async def test_a_run_directory_is_never_overwritten(qwen3_dir, tmp_path):
    async with training_model(qwen3_dir) as model:
        await SFT(dataset=THREADS, model=model, run_dir=tmp_path).run()
        with pytest.raises(RunLogError, match="already holds a run"):
            await SFT(dataset=THREADS, model=model, run_dir=tmp_path).run()


async def test_run_directories_get_names_of_their_own(qwen3_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    async with training_model(qwen3_dir) as model:
        results = [await SFT(dataset=THREADS, model=model).run() for _ in range(2)]
    assert results[0].run_dir != results[1].run_dir
    assert all(result.run_dir.parent.name == "runs" and (result.run_dir / "run.sqlite").exists() for result in results)
