"""What users' code and machines do to a run, and what must not happen to the run."""

import asyncio
import concurrent.futures
import json
import math
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support import CountingCallback, addition_threads, query, series, training_model, weights_of
from tiny_model import byte_tokenizer, save_model
from transformers import BertConfig, Gemma2Config

from descant import (
    SFT,
    BaseGrader,
    EvaluationPlacement,
    GraderEvalCallback,
    ModelBuilder,
    ModelCallback,
    RecipeCallback,
    StringThread,
    Table,
    ValidationLossCallback,
)
from descant.errors import CallbackError, ModelLoadError, RunLogError
from descant.runner import recorder

THREADS = addition_threads(12)


class Returning(RecipeCallback):
    def __init__(self, metrics):
        super().__init__(1, "odd")
        self.metrics = metrics

    async def callback(self, current_percentage):
        return self.metrics()


class Unprintable:
    def __repr__(self):
        raise RuntimeError("no words")


def table_with_a_long_row():
    table = Table(["a"], [[1]])
    table.rows.append([1, 2, 3])
    return table


ODD = {
    "huge": lambda: {"x": 10**400},
    "unprintable": lambda: {"x": Unprintable()},
    "unprintable cell": lambda: {"x": Table(["a"], [[Unprintable()]])},
    "long row": lambda: {"x": table_with_a_long_row()},
    "meta tensor": lambda: {"x": torch.zeros((), device="meta")},
    "surrogate key": lambda: {"\ud800": 1},
}


@pytest.mark.parametrize("case", ODD)
async def test_whatever_a_callback_returns_the_run_goes_on(qwen3_dir, tmp_path, case):
    async with training_model(qwen3_dir) as model:
        result = await SFT(
            dataset=THREADS, model=model, callbacks=[Returning(ODD[case]), CountingCallback()], run_dir=tmp_path
        ).run()  # fmt: skip
    assert [failure.callback for failure in result.callback_failures] == ["odd", "odd"]
    assert result.metrics["counting/calls"] == 2


async def test_cells_keep_their_types_and_rows_are_never_lost(qwen3_dir, tmp_path):
    rows = [["same", np.float32(0.5), np.int64(3), math.nan, {"a": 1}, "\ud800 é", None, True], ["same"] + [0] * 7]
    table = Table(["example_id", "f", "i", "nan", "dict", "text", "none", "bool"], rows)
    logged = []
    async with training_model(qwen3_dir) as model:
        await SFT(
            dataset=THREADS, model=model, logger=logged.append, callbacks=[Returning(lambda: {"t": table})],
            run_dir=tmp_path,
        ).run()  # fmt: skip
    assert math.isnan(logged[0]["odd/t"]["nan"][0])
    stored = [json.loads(cells) for (cells,) in query(tmp_path, "SELECT cells FROM samples WHERE step = 0")]
    assert len(stored) == 2  # two rows with one id
    assert stored[0] == {
        "example_id": "same", "f": 0.5, "i": 3, "nan": {"float": "nan"},
        "dict": "{'a': 1}", "text": "\\ud800 é", "none": None,
        "bool": True,
    }  # fmt: skip
    assert query(tmp_path, "SELECT cells ->> 'f' FROM samples WHERE step = 0 AND position = 0") == [(0.5,)]


def raise_stop_iteration(thread):
    return next(iter([]))


def leave(thread):
    sys.exit(3)


def cancelled_future(thread):
    raise concurrent.futures.CancelledError


async def cancelled_task(thread):
    raise asyncio.CancelledError


@pytest.mark.parametrize("function", [raise_stop_iteration, leave, cancelled_future, cancelled_task])
async def test_a_grader_that_ends_oddly_is_a_failed_grade(qwen3_dir, tmp_path, function):
    async with training_model(qwen3_dir) as model:
        grader = BaseGrader.from_function("odd", function)
        callback = GraderEvalCallback(THREADS[:3], model, grader, 1, max_gen_len=2)
        result = await SFT(dataset=THREADS, model=model, callbacks=[callback], run_dir=tmp_path).run()
    assert not result.callback_failures
    assert series(tmp_path, "validation/rewards/num_failed") == {0: 3, 1: 3}


async def test_a_grader_that_logs_no_number_fails_that_grade_alone(qwen3_dir):
    class Logging(BaseGrader):
        async def grade(self, sample):
            self.add_log({"score": "good" if sample.metadata["reference"] == THREADS[0].completion() else 1.0})
            return 1.0

    async with training_model(qwen3_dir) as model:
        metrics = await GraderEvalCallback(THREADS[:3], model, Logging("x"), 1, max_gen_len=2).maybe_call(0)
    assert metrics["validation/rewards/score/count"] == 2
    assert metrics["validation/rewards/num_failed"] == 1


async def test_graders_that_hang_do_not_hold_up_the_end_of_a_cancelled_run(qwen3_dir, tmp_path):
    release, started = threading.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def hang(thread):
        loop.call_soon_threadsafe(started.set)
        release.wait()

    async with training_model(qwen3_dir) as model:
        grader = BaseGrader.from_function("slow", hang)
        callback = GraderEvalCallback(addition_threads(60), model, grader, 1, max_gen_len=1)
        task = asyncio.create_task(SFT(dataset=THREADS, model=model, callbacks=[callback], run_dir=tmp_path).run())
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task  # would wait for ever if the run log needed a thread of the graders
    release.set()
    assert query(tmp_path, "SELECT kind FROM events ORDER BY id")[-1] == ("run_cancelled",)


async def test_calls_that_fill_the_threads_of_the_loop_do_not_hold_up_training(qwen3_dir, tmp_path):
    """Judges that hang, slow host names: training, evaluations and their end have threads of their own."""
    release = threading.Event()

    class Hangs(ModelCallback):
        async def measure(self, model):
            return await model.logprobs_many(THREADS[:1])

        async def report(self, measurement):
            waiting = [asyncio.to_thread(release.wait) for _ in range(100)]
            await asyncio.wait_for(asyncio.gather(*waiting), 0.01)

    try:
        async with training_model(qwen3_dir) as model:
            callbacks = [Hangs(model, 1, "hangs"), ValidationLossCallback(THREADS[:2], model, 0.25)]
            trainer = SFT(
                dataset=THREADS, model=model, samples_per_batch=3, callbacks=callbacks, callback_mode="background",
                callback_placement=EvaluationPlacement("thread"), run_dir=tmp_path,
            )  # fmt: skip
            result = await asyncio.wait_for(trainer.run(), 60)
    finally:
        release.set()
    assert {failure.callback for failure in result.callback_failures} == {"hangs"}
    assert series(tmp_path, "validation/loss").keys() == {0, 1, 2, 3, 4}


async def test_a_grader_may_run_a_loop_of_its_own(qwen3_dir, tmp_path):
    async with training_model(qwen3_dir) as model:
        view = model.max_gen_len(2)

        def ask_again(thread):
            return len(asyncio.run(view.generate(StringThread(thread.messages()))).last_content())

        grader = BaseGrader.from_function("again", ask_again)
        callback = GraderEvalCallback(addition_threads(20), model, grader, 1, max_gen_len=2)
        metrics = await callback.maybe_call(0)
    assert metrics["validation/rewards/score/count"] == 20


async def test_an_interrupted_step_leaves_no_gradient_to_the_next_run(qwen3_dir, tmp_path):
    def fails_once(_, calls=[]):  # noqa: B006 - it remembers on purpose
        calls.append(1)
        if len(calls) == 1:
            raise ValueError("no rate")
        return 1e-3

    async with training_model(qwen3_dir) as model:
        with pytest.raises(ValueError, match="no rate"):
            await SFT(dataset=THREADS, model=model, lr_scheduler=fails_once, run_dir=tmp_path / "a").run()
        result = await SFT(dataset=THREADS[:5], model=model, lr_scheduler=fails_once, run_dir=tmp_path / "b").run()
    assert result.metrics["training/num_samples"] == 5


class Failing(CountingCallback):
    def __init__(self, where, error=RuntimeError):
        super().__init__(1, "failing")
        self.where, self.error = where, error

    async def on_start(self, run):
        await super().on_start(run)
        if self.where == "on_start":
            raise self.error

    async def callback(self, current_percentage):
        if self.where == "callback":
            raise self.error
        return await super().callback(current_percentage)


@pytest.mark.parametrize("where", ["on_start", "callback"])
@pytest.mark.parametrize("error", [RuntimeError, asyncio.CancelledError])
async def test_on_end_is_called_whatever_happens(qwen3_dir, tmp_path, where, error):
    good = CountingCallback()
    async with training_model(qwen3_dir) as model:
        trainer = SFT(
            dataset=THREADS, model=model, callbacks=[good, Failing(where, error)], strict=True, run_dir=tmp_path
        )
        with pytest.raises((CallbackError, asyncio.CancelledError)):
            await trainer.run()
    assert good.hooks == [("start", 0), ("end", 0)]
    assert good.run is None


async def test_on_end_is_called_when_the_disk_is_full(qwen3_dir, tmp_path, monkeypatch):
    good = CountingCallback(0.25)

    class DiskFull(CountingCallback):
        async def callback(self, current_percentage):
            if self.run.step:
                trainer.log._failure = OSError(28, "No space left on device")
            return {}

    async with training_model(qwen3_dir) as model:
        trainer = SFT(
            dataset=THREADS, model=model, samples_per_batch=3, callbacks=[good, DiskFull(0.25, "full")],
            run_dir=tmp_path,
        )  # fmt: skip

        class Remembered(recorder.RunLog):  # a failure of its writer thread is what a full disk looks like
            def __init__(self, *arguments):
                super().__init__(*arguments)
                trainer.log = self

        monkeypatch.setattr(recorder, "RunLog", Remembered)
        with pytest.raises(RunLogError, match="No space left on device"):
            await trainer.run()
    assert good.hooks == [("start", 0), ("end", 1)]


async def test_the_counts_of_the_built_in_callbacks_do_not_collide(qwen3_dir, tmp_path):
    threads = [*THREADS[:2], StringThread().user("x" * 300).assistant("y")]
    async with training_model(qwen3_dir) as model:
        grader = BaseGrader.from_function("one", lambda _: 1.0)
        callbacks = [
            GraderEvalCallback(threads, model, grader, 1, max_gen_len=2),
            ValidationLossCallback(threads, model, 1),
        ]
        result = await SFT(dataset=THREADS, model=model, callbacks=callbacks, strict=True, run_dir=tmp_path).run()
    assert result.metrics["validation/num_failed"] == result.metrics["validation/loss_num_failed"] == 1
    assert result.metrics["validation/loss_num_samples"] == result.metrics["validation/num_generated"] == 2


async def test_logits_that_are_capped_are_found_also_when_the_cap_does_not_show(tmp_path):
    config = Gemma2Config(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        head_dim=8, max_position_embeddings=256, final_logit_softcapping=30.0,
    )  # fmt: skip
    async with training_model(save_model(tmp_path / "m", config)) as model:
        assert model._worker._loop._engine.scorer.head is None


async def test_what_is_no_whole_causal_model_is_refused(tmp_path, qwen3_dir):
    bert = BertConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
    with pytest.raises(ModelLoadError, match="BertLMHeadModel is not causal"):
        await ModelBuilder(save_model(tmp_path / "bert", bert)).spawn_inference("x")
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in Path(qwen3_dir).iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelLoadError, match="cannot load"):
        await ModelBuilder(broken).spawn_inference("x")
    tensors = load_file(Path(qwen3_dir) / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(
        ModelLoadError,
        match=r"is not a whole causal language model: 1 weights .* missing keys, first model.norm.weight",
    ):
        await ModelBuilder(broken).spawn_inference("x")


async def test_a_template_that_ends_no_turn_is_warned_of(qwen3_dir, tmp_path):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"
    for file in Path(qwen3_dir).iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "chat_template.jinja").unlink()
    tokenizer.save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="writes no end-of-turn token"):
        model = await ModelBuilder(tmp_path).spawn_inference("x")
    await model.dealloc()


async def test_a_training_job_passes_an_evaluation_at_its_next_step(gpt2_dir):
    """It need not wait for a long generation to end, and trains as it would have alone."""
    async with training_model(gpt2_dir) as alone:
        await alone.train_language_modelling_many(THREADS)
        await alone.optim_step(lr=1e-2)
        expected = weights_of(alone)
    async with training_model(gpt2_dir) as model:
        order, begun = [], threading.Event()
        engine = model._worker._loop._engine
        dispatch = engine._dispatch
        engine._dispatch = lambda job, yield_point: (begun.set(), dispatch(job, yield_point))[1]
        view = model.temperature(0).min_gen_len(200).max_gen_len(200)
        generating = asyncio.create_task(view.generate_many(THREADS))
        generating.add_done_callback(lambda _: order.append("generation"))
        await asyncio.to_thread(begun.wait)
        await model.train_language_modelling_many(THREADS)
        await model.optim_step(lr=1e-2)
        order.append("training")
        await generating
        assert all(torch.equal(expected[name], weights) for name, weights in weights_of(model).items())
    assert order == ["training", "generation"]


PROGRAM = """
import asyncio, sys
from support import CountingCallback, addition_threads, training_model
from descant import SFT

class Ready(CountingCallback):
    async def callback(self, current_percentage):
        if self.run.step == 3:
            print("ready", flush=True)
        return await super().callback(current_percentage)
    async def on_end(self, run):
        print("ended", flush=True)

async def main():
    async with training_model(sys.argv[1]) as model:
        await SFT(dataset=addition_threads(6000), model=model, samples_per_batch=2, callbacks=[Ready(1 / 3000)],
                  run_dir=sys.argv[2]).run()

asyncio.run(main())
"""


def start(qwen3_dir, run_dir, **options):
    path = os.pathsep.join([str(Path(__file__).parents[1]), str(Path(__file__).parents[2] / "examples" / "addition")])
    environment = {**os.environ, "PYTHONPATH": path}
    command = [sys.executable, "-c", PROGRAM, str(qwen3_dir), str(run_dir)]
    return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, **options)


def test_ctrl_c_ends_a_run_in_order(qwen3_dir, tmp_path):
    """After the step, with the final calls; tests/e2e/test_runner.py has more on signals."""
    process = start(qwen3_dir, tmp_path, stderr=subprocess.PIPE)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert output == "ended\n"
    assert "KeyboardInterrupt" in errors
    kind, step = query(tmp_path, "SELECT kind, step FROM events ORDER BY id")[-1]
    assert kind == "run_interrupted"
    assert max(series(tmp_path, "training/loss")) == max(series(tmp_path, "counting/calls")) == step >= 3
    assert not list(tmp_path.glob("*-wal"))
