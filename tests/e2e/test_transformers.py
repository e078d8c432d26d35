"""Callbacks inside the trainers of Transformers and TRL: real ones, on tiny models."""

import asyncio
import signal
import threading

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from support import CountingCallback, LengthGrader, addition_threads, query, samples, series
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    EarlyStoppingCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from trl import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

from descant import (
    EvaluationPlacement,
    GenerateSamplesCallback,
    GraderEvalCallback,
    InferenceModel,
    RecipeCallback,
    ValidationLossCallback,
    live_model,
)
from descant.errors import CallbackError, ConfigurationError, DatasetError
from descant.integrations.transformers import add_callbacks

VALIDATION = addition_threads(4, offset=50)
THREADS = addition_threads(24)
OPTIONS = {
    "per_device_train_batch_size": 4, "max_steps": 6, "learning_rate": 1e-2, "use_cpu": True, "report_to": [],
    "disable_tqdm": True, "save_strategy": "no", "logging_steps": 2, "seed": 3,
}  # fmt: skip


def plain_trainer(path, output_dir, **options):
    tokenizer = AutoTokenizer.from_pretrained(path)
    texts = [tokenizer(f"{t.messages()[0].content}{t.completion()}") for t in THREADS]
    return Trainer(
        AutoModelForCausalLM.from_pretrained(path),
        TrainingArguments(output_dir, **{**OPTIONS, **options}),
        train_dataset=Dataset.from_list([dict(text) for text in texts]),
        eval_dataset=Dataset.from_list([dict(text) for text in texts[:4]]),
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
        processing_class=tokenizer,
    )


def sft_trainer(path, output_dir, **options):
    rows = [
        {
            "prompt": [{"role": "user", "content": thread.messages()[0].content}],
            "completion": [{"role": "assistant", "content": thread.completion()}],
        }
        for thread in THREADS
    ]
    return SFTTrainer(
        str(path),
        SFTConfig(str(output_dir), bf16=False, **{**OPTIONS, **options}),
        train_dataset=Dataset.from_list(rows),
    )


def grpo_trainer(path, output_dir, **options):
    """Samples its rollouts from the global generator."""
    rows = [{"prompt": [{"role": "user", "content": thread.messages()[0].content}]} for thread in THREADS]

    def length(completions, **_):
        return [float(len(completion[0]["content"])) for completion in completions]

    arguments = {**OPTIONS, "max_steps": 3, "num_generations": 2, "max_completion_length": 6, "beta": 0.0, **options}
    return GRPOTrainer(
        str(path), length, args=GRPOConfig(str(output_dir), bf16=False, **arguments),
        train_dataset=Dataset.from_list(rows),
    )  # fmt: skip


TRAINERS = {"Trainer": plain_trainer, "SFTTrainer": sft_trainer, "GRPOTrainer": grpo_trainer}


@pytest.fixture(params=TRAINERS)
def make_trainer(request):
    return TRAINERS[request.param]


class Vandal(RecipeCallback):
    """Takes the global generator, reseeds it, and leaves a task behind that goes on with it."""

    def __init__(self, frequency=0.2):
        super().__init__(frequency, "vandal")

    async def callback(self, current_percentage):
        torch.manual_seed(self.run.step)
        torch.set_grad_enabled(False)
        torch.rand(100)
        self.lingering = asyncio.create_task(self.go_on())
        raise RuntimeError("on purpose")

    async def go_on(self):
        while True:
            torch.rand(10)
            await asyncio.sleep(0)


def callbacks(model, frequency=0.5):
    return [
        GraderEvalCallback(VALIDATION, model, LengthGrader(), frequency, max_gen_len=4),
        ValidationLossCallback(VALIDATION, model, frequency),
        GenerateSamplesCallback(VALIDATION, model, frequency, max_gen_len=4),
        CountingCallback(frequency),
        Vandal(frequency),
    ]


def weights_of(trainer):
    return {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}


def without_evaluations(log_history):
    """What the trainer itself has logged, but for the times."""
    times = ("runtime", "per_second", "step_time")
    return [
        {key: value for key, value in row.items() if not any(time in key for time in times)}
        for row in log_history
        if "eval_counting/calls" not in row
    ]


def test_exact_neutral_and_logged(gpt2_dir, tmp_path, make_trainer):
    alone = make_trainer(gpt2_dir, tmp_path / "alone")
    alone.train()
    watched = make_trainer(gpt2_dir, tmp_path / "watched")
    added = add_callbacks(watched, callbacks, run_dir=tmp_path / "run")
    watched.train()
    num_steps = watched.state.max_steps
    due = [0, -(-num_steps // 2), num_steps]

    expected, found = weights_of(alone), weights_of(watched)
    different = [name for name in expected if not torch.equal(expected[name], found[name])]
    assert not different, f"{len(different)} of {len(expected)} parameters differ, first {different[0]}"
    assert without_evaluations(alone.state.log_history) == without_evaluations(watched.state.log_history)

    assert list(series(tmp_path / "run", "validation/loss")) == due
    assert {step for step, _ in samples(tmp_path / "run", "samples")} == set(due)
    assert [failure.callback for failure in added.failures] == ["vandal"] * 3
    logged = [row for row in watched.state.log_history if "eval_validation/loss" in row]
    assert {row["step"]: row["eval_validation/loss"] for row in logged} == series(tmp_path / "run", "validation/loss")
    losses = {row["step"]: row["loss"] for row in watched.state.log_history if "loss" in row}
    assert series(tmp_path / "run", "training/loss") == losses
    assert query(tmp_path / "run", "SELECT count(*) FROM events WHERE kind = 'run_completed'") == [(1,)]


def test_callbacks_see_the_weights_after_exactly_that_many_updates(gpt2_dir, tmp_path):
    """The validation loss is what Transformers' own forward pass gives on the weights of that step."""
    expected = {}

    class Compute(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            expected[state.global_step] = loss_of(trainer)

    def loss_of(trainer):
        model, tokenizer, sums, count = trainer.model.eval(), trainer.processing_class, 0.0, 0
        with torch.no_grad():
            for thread in VALIDATION:
                messages = [{"role": role, "content": text} for role, text in thread.get_turns()]
                text = tokenizer.apply_chat_template(messages, tokenize=False)
                start = len(tokenizer(text[: text.rindex(thread.completion())]).input_ids)
                ids = torch.tensor([tokenizer(text).input_ids[:-1]])  # up to the end of the turn
                logprobs = model(ids).logits[0, :-1].log_softmax(-1)
                chosen = logprobs.gather(-1, ids[0, 1:, None])[start - 1 :]
                sums, count = sums - chosen.sum().item(), count + len(chosen)
        model.train()
        return sums / count

    trainer = sft_trainer(gpt2_dir, tmp_path / "out", dataloader_drop_last=True)
    trainer.add_callback(Compute())
    expected[0] = loss_of(trainer)
    add_callbacks(trainer, lambda model: [ValidationLossCallback(VALIDATION, model, 0.5)], run_dir=tmp_path / "run")
    trainer.train()
    for step, loss in series(tmp_path / "run", "validation/loss").items():
        assert loss == pytest.approx(expected[step], rel=1e-4)


def test_gradient_accumulation_counts_updates(gpt2_dir, tmp_path):
    counting = CountingCallback(0.5)
    trainer = plain_trainer(gpt2_dir, tmp_path / "out", gradient_accumulation_steps=3, max_steps=4)
    add_callbacks(trainer, [counting], run_dir=tmp_path / "run")
    trainer.train()
    assert counting.steps == [0, 2, 4]


def test_a_run_that_is_resumed_repeats_nothing(gpt2_dir, tmp_path):
    first, second = CountingCallback(0.5), CountingCallback(0.5)
    trainer = plain_trainer(gpt2_dir, tmp_path / "out", save_strategy="steps", save_steps=3)
    add_callbacks(trainer, [first], run_dir=tmp_path / "one")
    trainer.train()
    resumed = plain_trainer(gpt2_dir, tmp_path / "out", save_strategy="steps", save_steps=3)
    add_callbacks(resumed, [second], run_dir=tmp_path / "two")
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-3"))
    assert first.steps == [0, 3, 6]
    assert second.steps == [6]


class Requesting(CountingCallback):
    async def callback(self, current_percentage):
        if self.run.step == 3:
            self.run.request_checkpoint()
            self.run.request_stop("enough")
        return await super().callback(current_percentage)


def test_requests_reach_the_trainer(gpt2_dir, tmp_path):
    requesting, last = Requesting(0.5), CountingCallback(1, "last")
    trainer = plain_trainer(gpt2_dir, tmp_path / "out")
    added = add_callbacks(trainer, [requesting, last], run_dir=tmp_path / "run")
    trainer.train()
    assert trainer.state.global_step == 3
    assert requesting.steps == last.steps == [0, 3]
    assert (tmp_path / "out" / "checkpoint-3" / "model.safetensors").exists()
    message = query(tmp_path / "run", "SELECT message FROM events WHERE kind = 'checkpoint_saved'")[0][0]
    assert message.endswith("checkpoint-3")
    assert added.runner.stop_reason == "counting: enough"


def test_final_calls_see_the_last_weights_and_not_the_best_ones(gpt2_dir, tmp_path):
    """The trainer stops early and loads its best checkpoint; the final call has been before that."""
    seen = {}

    class Norm(CountingCallback):
        async def callback(self, current_percentage):
            seen[self.run.step] = sum(p.detach().norm().item() for p in trainer.model.parameters())
            return {}

    trainer = plain_trainer(
        gpt2_dir, tmp_path / "out", eval_strategy="steps", eval_steps=1, save_strategy="steps", save_steps=1,
        load_best_model_at_end=True, metric_for_best_model="loss", greater_is_better=True, save_total_limit=2,
    )  # fmt: skip
    trainer.add_callback(EarlyStoppingCallback(1))
    norms = {}

    class Remember(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            norms[state.global_step] = sum(p.detach().norm().item() for p in trainer.model.parameters())

    trainer.add_callback(Remember())
    add_callbacks(trainer, [Norm(1)], run_dir=tmp_path / "run")
    trainer.train()
    last = trainer.state.global_step
    assert last < 6
    assert seen[last] == norms[last]
    assert seen[last] != sum(p.detach().norm().item() for p in trainer.model.parameters())


def test_early_stopping_at_the_end_of_an_epoch_is_seen_before_the_best_weights_are_loaded(gpt2_dir, tmp_path):
    seen, norms = {}, {}

    def norm():
        return sum(p.detach().norm().item() for p in trainer.model.parameters())

    class Norm(CountingCallback):
        async def callback(self, current_percentage):
            seen[self.run.step] = norm()
            return {"norm": seen[self.run.step]}

    class Remember(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            norms[state.global_step] = norm()

    trainer = plain_trainer(
        gpt2_dir, tmp_path / "out", eval_strategy="epoch", save_strategy="epoch", load_best_model_at_end=True,
        metric_for_best_model="loss", greater_is_better=True, max_steps=-1, num_train_epochs=5, save_total_limit=2,
    )  # fmt: skip
    add_callbacks(trainer, [Norm(1)], run_dir=tmp_path / "run")
    trainer.add_callback(EarlyStoppingCallback(1))
    trainer.add_callback(Remember())
    trainer.train()
    last = trainer.state.global_step
    assert last == 12
    assert seen[last] == norms[last] != norm()
    rows = [row for row in trainer.state.log_history if row["step"] == last]
    assert [row["eval_counting/norm"] for row in rows if "eval_counting/norm" in row] == [seen[last]]


def test_a_training_that_begins_anew_closes_the_run_before(gpt2_dir, tmp_path):
    """As auto_find_batch_size does after running out of memory."""
    counting = CountingCallback(0.5)

    class OutOfMemoryOnce(TrainerCallback):
        done = False

        def on_step_begin(self, args, state, control, **_):
            if state.global_step == 1 and not self.done:
                self.done = True
                raise RuntimeError("CUDA out of memory.")

    trainer = plain_trainer(gpt2_dir, tmp_path / "out", auto_find_batch_size=True, max_steps=4)
    trainer.add_callback(OutOfMemoryOnce())
    add_callbacks(trainer, [counting], run_dir=tmp_path / "run")
    threads = threading.active_count()
    trainer.train()
    assert threading.active_count() <= threads
    assert [hook for hook, _ in counting.hooks] == ["start", "end"] * 2
    assert query(tmp_path / "run", "SELECT count(*) FROM events WHERE kind = 'run_failed'") == [(1,)]
    assert query(tmp_path / "run-2", "SELECT count(*) FROM events WHERE kind = 'run_completed'") == [(1,)]


def test_evaluating_is_not_training_time(gpt2_dir, tmp_path):
    trainer = plain_trainer(gpt2_dir, tmp_path / "out", eval_strategy="steps", eval_steps=1)
    added = add_callbacks(trainer, [], run_dir=tmp_path / "run")
    clock = [0.0]

    class Slow(TrainerCallback):
        def on_evaluate(self, args, state, control, **_):
            added.runner._resumed_at -= 100.0  # as if a hundred seconds had passed
            clock[0] += 100.0

    trainer.add_callback(Slow())
    trainer.train()
    assert clock[0] == 600.0
    assert max(series(tmp_path / "run", "training/step_s").values()) < 100


def test_two_lists_of_callbacks_do_not_record_each_other(gpt2_dir, tmp_path):
    trainer = plain_trainer(gpt2_dir, tmp_path / "out")
    add_callbacks(trainer, [CountingCallback(0.5, "one")], run_dir=tmp_path / "one")
    add_callbacks(trainer, [CountingCallback(0.5, "two")], run_dir=tmp_path / "two")
    trainer.train()
    for name, other in (("one", "two"), ("two", "one")):
        assert list(series(tmp_path / name, f"{name}/calls")) == [0, 3, 6]
        assert not query(tmp_path / name, "SELECT 1 FROM metrics WHERE key LIKE ?", f"%{other}/calls")


def test_a_training_that_fails_closes_the_run(gpt2_dir, tmp_path):
    counting = CountingCallback(0.5)

    class Fail(TrainerCallback):
        def on_step_begin(self, args, state, control, **_):
            if state.global_step == 2:
                raise RuntimeError("out of luck")

    trainer = plain_trainer(gpt2_dir, tmp_path / "out")
    trainer.add_callback(Fail())
    add_callbacks(trainer, [counting], run_dir=tmp_path / "run")
    with pytest.raises(RuntimeError, match="out of luck"):
        trainer.train()
    assert counting.steps == [0, 2]
    assert counting.hooks == [("start", 0), ("end", 2)]
    assert "out of luck" in query(tmp_path / "run", "SELECT details FROM events WHERE kind = 'run_failed'")[0][0]
    assert not list((tmp_path / "run").glob("*-wal"))


def test_ctrl_c_ends_the_training_after_the_step(gpt2_dir, tmp_path):
    counting = CountingCallback(0.5)

    class Interrupt(TrainerCallback):
        def on_step_begin(self, args, state, control, **_):
            if state.global_step == 3:
                signal.raise_signal(signal.SIGINT)

    trainer = plain_trainer(gpt2_dir, tmp_path / "out")
    trainer.add_callback(Interrupt())
    add_callbacks(trainer, [counting], run_dir=tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert trainer.state.global_step == 4
    assert counting.steps == [0, 3, 4]
    assert query(tmp_path / "run", "SELECT step FROM events WHERE kind = 'run_interrupted'") == [(4,)]


def test_two_trainings_are_two_runs(gpt2_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    counting = CountingCallback(0.5)
    trainer = plain_trainer(gpt2_dir, tmp_path / "out", max_steps=2)
    add_callbacks(trainer, [counting])
    trainer.train()
    trainer.train()
    assert counting.steps == [0, 1, 2] * 2
    assert len(list((tmp_path / "runs").glob("trainer-*"))) == 2


async def test_in_a_notebook_there_is_an_event_loop_already(gpt2_dir, tmp_path):
    trainer = plain_trainer(gpt2_dir, tmp_path / "out", max_steps=2)
    add_callbacks(trainer, callbacks, run_dir=tmp_path / "run")
    trainer.train()
    assert list(series(tmp_path / "run", "validation/loss")) == [0, 1, 2]


def test_what_cannot_work_is_said_before_training(gpt2_dir, tmp_path):
    trainer = plain_trainer(gpt2_dir, tmp_path / "out")
    with pytest.raises(ConfigurationError, match="two callbacks are called 'counting'"):
        add_callbacks(trainer, [CountingCallback(), CountingCallback()])
    with pytest.raises(ConfigurationError, match="contamination='off' must be one of"):
        add_callbacks(trainer, [], contamination="off")
    with pytest.raises(ConfigurationError, match="add_callbacks has no argument 'stict'; did you mean 'strict'"):
        add_callbacks(trainer, lambda model: pytest.fail("the callbacks were made"), stict=True)
    with pytest.raises(ConfigurationError, match="is a callback; give a list of them, or a function of a model"):
        add_callbacks(trainer, CountingCallback())
    made_anew = plain_trainer(gpt2_dir, tmp_path / "out")
    made_anew.model_init = lambda: None
    with pytest.raises(ConfigurationError, match="makes its model anew"):
        add_callbacks(made_anew, callbacks)
    trainer.processing_class = None
    with pytest.raises(ConfigurationError, match="no tokenizer; give it one as processing_class="):
        add_callbacks(trainer, callbacks)
    with pytest.raises(ConfigurationError, match="module is a Linear; a causal language model of"):
        live_model(torch.nn.Linear(2, 2), AutoTokenizer.from_pretrained(gpt2_dir))


def test_strict_and_contamination(gpt2_dir, tmp_path):
    trainer = plain_trainer(gpt2_dir, tmp_path / "out")
    add_callbacks(trainer, [Vandal(0.5)], run_dir=tmp_path / "strict", strict=True)
    with pytest.raises(CallbackError, match="callback 'vandal' failed at step 0 of 6"):
        trainer.train()
    other = plain_trainer(gpt2_dir, tmp_path / "out")
    add_callbacks(
        other, lambda model: [ValidationLossCallback(THREADS[:2], model)], training_set=THREADS, contamination="error",
        run_dir=tmp_path / "dirty",
    )  # fmt: skip
    with pytest.raises(DatasetError, match="callbacks evaluate on prompts that are trained on"):
        other.train()
    assert not any((tmp_path / "dirty").iterdir())


def test_a_live_model_sees_the_weights_as_they_are(gpt2_dir):
    module = AutoModelForCausalLM.from_pretrained(gpt2_dir)
    model = live_model(module, AutoTokenizer.from_pretrained(gpt2_dir))
    assert type(model) is InferenceModel
    thread = VALIDATION[0]

    async def look():
        before = await model.logprobs(thread)
        snapshot = await model.snapshot()
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.mul_(1.5)
        after = await model.logprobs(thread)
        another = await model.snapshot()  # nobody has told the engine that the weights have changed
        assert await snapshot.logprobs(thread) == before != after
        assert await another.logprobs(thread) == after
        assert await model.logprobs(thread) == after
        await model.dealloc()

    asyncio.run(look())
    assert not any(not parameter.requires_grad for parameter in module.parameters())


def test_callbacks_cannot_be_added_while_it_trains(gpt2_dir, tmp_path):
    said = []

    class Add(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            try:
                add_callbacks(trainer, [CountingCallback()])
            except ConfigurationError as error:
                said.append(str(error))

    trainer = plain_trainer(gpt2_dir, tmp_path / "out", max_steps=1)
    trainer.add_callback(Add())
    trainer.train()
    assert len(said) == 1
    assert said[0].startswith("the trainer is in train() already")
    add_callbacks(trainer, [counting := CountingCallback(1)], run_dir=tmp_path / "run")
    trainer.train()
    assert counting.steps == [0, 1]


def test_a_run_that_is_resumed_behind_its_end(gpt2_dir, tmp_path):
    """The trainer finishes the step that it is in and ends: so does the run, with its final call."""
    first = plain_trainer(gpt2_dir, tmp_path / "out", save_strategy="steps", save_steps=2, max_steps=2)
    first.train()
    again, counting = plain_trainer(gpt2_dir, tmp_path / "out", max_steps=1), CountingCallback(0.5)
    add_callbacks(again, [counting], run_dir=tmp_path / "run")
    again.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))
    assert again.state.global_step == 3
    assert counting.steps == [3]


def test_lora_works_in_the_loop_and_is_refused_in_the_background_before_training(gpt2_dir, tmp_path):
    lora = LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True)

    def trainer(name):
        made = plain_trainer(gpt2_dir, tmp_path / name, max_steps=2)
        made.model = made.model_wrapped = get_peft_model(made.model, lora)
        return made

    with pytest.raises(ConfigurationError, match="cannot be evaluated in the background"):
        add_callbacks(trainer("background"), callbacks, callback_mode="background")
    for mode in ("inline", "overlap"):
        adapted = trainer(mode)
        add_callbacks(
            adapted, lambda model: [ValidationLossCallback(VALIDATION, model, 1)], callback_mode=mode,
            run_dir=tmp_path / f"run-{mode}",
        )  # fmt: skip
        adapted.train()
    losses = series(tmp_path / "run-inline", "validation/loss")
    assert list(losses) == [0, 2]
    assert losses[0] > losses[2]
    assert losses == series(tmp_path / "run-overlap", "validation/loss")


@pytest.mark.parametrize("key", ["eval_validation/loss", "validation/loss", "eval_counting/calls"])
def test_a_best_model_by_a_metric_of_callbacks_is_ours_to_keep(gpt2_dir, tmp_path, key):
    trainer = plain_trainer(
        gpt2_dir, tmp_path / "out", eval_strategy="steps", eval_steps=1, save_strategy="steps", save_steps=1,
        load_best_model_at_end=True, metric_for_best_model=key,
    )  # fmt: skip
    with pytest.raises(ConfigurationError, match=r"chooses among its own evaluations only; .* BestModelCallback\("):
        add_callbacks(trainer, callbacks)


# Beside training


class Steps(TrainerCallback):
    """What the trainer's own trackers would have been told, and at which step."""

    def __init__(self):
        self.told = {}

    def on_log(self, args, state, control, logs=None, **_):
        for key in logs or ():
            self.told.setdefault(key, []).append(state.global_step)


@pytest.mark.parametrize("mode", ["overlap", "background"])
@pytest.mark.parametrize("name", ["SFTTrainer", "GRPOTrainer"])
def test_beside_training_it_is_the_same(gpt2_dir, tmp_path, name, mode):
    runs = {}
    for kind in ("alone", "inline", mode):
        trainer = TRAINERS[name](gpt2_dir, tmp_path / f"out-{kind}")
        steps = Steps()
        trainer.add_callback(steps)
        if kind != "alone":
            added = add_callbacks(
                trainer,
                callbacks,
                run_dir=tmp_path / kind,
                callback_mode=kind,
                callback_placement=EvaluationPlacement(num_threads=torch.get_num_threads()),
            )
            assert {failure.callback for failure in added.failures} <= {"vandal"}
        trainer.train()
        runs[kind] = (trainer, steps)
    alone = weights_of(runs["alone"][0])
    beside = weights_of(runs[mode][0])
    different = [key for key, tensor in alone.items() if not torch.equal(tensor, beside[key])]
    assert not different
    for key in ("validation/loss", "validation/rewards/score/mean", "validation/num_samples"):
        assert series(tmp_path / mode, key) == series(tmp_path / "inline", key)
        expected = list(series(tmp_path / "inline", key))
        assert len(expected) == 3
        is_detail = key == "validation/num_samples"  # which the trainer's trackers are spared
        assert sorted(runs[mode][1].told.get(f"eval_{key}", [])) == ([] if is_detail else expected)
        rows = [row for row in runs[mode][0].state.log_history if f"eval_{key}" in row]
        assert sorted(row["step"] for row in rows) == expected
    assert samples(tmp_path / mode, "samples") == samples(tmp_path / "inline", "samples")
