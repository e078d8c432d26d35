"""What people are told during a run, and what it came to."""

import asyncio

import pytest
from support import addition_threads, query, series, training_model

import descant.engine.generate as generate_module
import descant.runner.calls as calls_module
from descant import SFT, BaseGrader, GraderEvalCallback, RecipeCallback, ValidationLossCallback
from descant.runlog.run_reader import RunReader
from descant.runner.recorder import RunRecorder

THREADS = addition_threads(20)


async def test_an_evaluation_says_how_many_answers_and_grades_are_done(qwen3_dir, tmp_path, monkeypatch):
    said, running = {"answers": [], "grades": []}, []
    step, announce = generate_module.Decoder.step, RunRecorder.announce

    def watched_step(decoder):
        said["answers"] += describe()
        step(decoder)

    async def watched_announce(recorder, *arguments):
        running.append(arguments[-1])
        await announce(recorder, *arguments)

    def describe():
        return running[0]() if running else []

    async def grade(thread):
        said["grades"] += describe()
        return 1.0

    monkeypatch.setattr(calls_module, "_SHORT_S", -1.0)
    monkeypatch.setattr(generate_module.Decoder, "step", watched_step)
    monkeypatch.setattr(generate_module, "MAX_STEP_LOGITS", 1)  # so that one row is decoded at a time
    monkeypatch.setattr(RunRecorder, "announce", watched_announce)
    async with training_model(qwen3_dir, max_batch_size=256) as model:
        judge = BaseGrader.from_function("judge", grade)
        evaluation = GraderEvalCallback(THREADS, model, judge, 1, max_gen_len=6, max_concurrent_samples=1, at_end=False)
        await SFT(dataset=THREADS[:4], model=model, callbacks=[evaluation], run_dir=tmp_path).run()
    assert said["grades"] == [f"validation at step 0: {done} of 20 grades" for done in range(20)]
    numbers = [int(text.removeprefix("validation at step 0: ").split(" of 20 answers")[0]) for text in said["answers"]]
    assert numbers == sorted(numbers)
    assert numbers[0] == 0 < numbers[-1] < 20
    assert running[0]() == []


async def test_without_a_terminal_a_slow_evaluation_is_told_of_in_a_line(qwen3_dir, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(calls_module, "_SLOW_S", 0.01)
    told = asyncio.Event()
    show = RunRecorder.show_waiting
    monkeypatch.setattr(RunRecorder, "show_waiting", lambda recorder, text: (show(recorder, text), told.set()))

    async def grade(thread):
        await told.wait()
        return 1.0

    async with training_model(qwen3_dir) as model:
        judge = BaseGrader.from_function("judge", grade)
        evaluation = GraderEvalCallback(THREADS, model, judge, 1, max_gen_len=2, at_end=False)
        await SFT(dataset=THREADS[:4], model=model, callbacks=[evaluation], run_dir=tmp_path).run()
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("validation at step 0")]
    assert lines[0].endswith(" after 10 ms")


async def test_the_training_loss_of_a_run_is_the_mean_over_its_last_tokens(qwen3_dir, tmp_path, capsys):
    async with training_model(qwen3_dir) as model:
        result = await SFT(dataset=THREADS, model=model, lr=1e-2, samples_per_batch=9, run_dir=tmp_path).run()
    losses, tokens = series(tmp_path, "training/loss"), series(tmp_path, "training/num_tokens")
    assert tokens[3] < tokens[2] / 3  # the last batch is short
    mean = sum(losses[step] * tokens[step] for step in (2, 3)) / (tokens[2] + tokens[3])
    assert result.metrics["training/loss"] == pytest.approx(mean)
    with RunReader(tmp_path) as reader:
        assert reader.last_value("training/loss") == result.metrics["training/loss"]
        assert reader.metrics["training/loss"].last == (3, result.metrics["training/loss"])
        assert reader.series("training/loss") == losses
    assert f"; training loss {mean:.4g} ± " in capsys.readouterr().err


async def test_the_end_of_a_run_names_what_never_measured_and_what_was_not_trained_on(qwen3_dir, tmp_path, capsys):
    def no_judge(thread):
        raise ConnectionError("no judge")

    class Noted(RecipeCallback):
        async def callback(self, current_percentage):
            self.note("good to know")
            return {}

    async with training_model(qwen3_dir, max_batch_size=40) as model:
        callbacks = [
            GraderEvalCallback(THREADS[:3], model, BaseGrader.from_function("judge", no_judge), 1, max_gen_len=2),
            ValidationLossCallback(THREADS[:3], model, 1),
            Noted(1, at_end=False),
        ]
        long = addition_threads(1)[0].user("1" * 100).assistant("2")
        await SFT(dataset=[*THREADS, long], model=model, over_long="skip", callbacks=callbacks, run_dir=tmp_path).run()
    lines = capsys.readouterr().err.splitlines()
    assert lines[-2] == "! validation has never measured anything: all 6 samples failed"
    assert lines[-3].startswith(
        '! 1 of 21 threads are left out of training (over_long="skip"): 1 has more than 40 tokens'
    )
    assert "noted: good to know" in lines
    kinds = query(tmp_path, "SELECT kind, source FROM events WHERE kind IN ('callback_note', 'never_measured')")
    assert ("callback_note", "noted") in kinds
    assert ("never_measured", "validation") in kinds
    assert ("never_measured", "loss") not in kinds
