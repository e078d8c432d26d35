"""Before the first step: threads that cannot be trained are found, the plan is exact, and a preview shows both."""

import asyncio
import io
import json
import re
import sys

import pytest
import torch
import typer
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from support import addition_threads, query, ragged_threads, training_model, weights_of

from descant import SFT, StringThread, ValidationLossCallback
from descant.cli.preview import preview_recipe
from descant.errors import ConfigurationError, DatasetError
from descant.runner.preview_scope import num_previewed
from descant.threads.tokenized import TokenizedThread, TurnSpan
from descant.trainers.data_order import DataOrder
from descant.trainers.trained_threads import TrainedThreads, first_tokens

SUMS = addition_threads(20)
LONG = StringThread([("user", "x"), ("assistant", "y" * 100)], source="data.jsonl:9")
LONGER = StringThread([("user", "x" * 150), ("assistant", "y")], source="data.jsonl:12")
REFUSED = StringThread([("user", "x"), ("assistant", "a<|im_end|>b")], source="data.jsonl:14")
MIXED = [*SUMS[:5], LONG, *SUMS[5:9], LONGER, REFUSED, *SUMS[9:]]


async def trained_weights(path, run_dir, dataset, is_previewed=False, **options):
    options = {"samples_per_batch": 4, "lr": 1e-2, "epochs": 2, **options}
    async with training_model(path) as model:
        trainer = SFT(dataset=dataset, model=model, run_dir=run_dir, **options)
        if is_previewed:
            await trainer.preview()
        result = await trainer.run()
        return weights_of(model), result


def equal(some, others):
    return all(torch.equal(tensor, others[name]) for name, tensor in some.items())


async def test_threads_that_cannot_be_trained_are_refused_together_and_nothing_is_written(qwen3_dir, tmp_path):
    async with training_model(qwen3_dir) as model:
        before = weights_of(model)
        trainer = SFT(dataset=MIXED, model=model, max_length=64, samples_per_batch=1, run_dir=tmp_path / "run")
        with pytest.raises(DatasetError) as error:
            await trainer.run()
        assert equal(before, weights_of(model))
    assert not (tmp_path / "run").exists()
    message = str(error.value).splitlines()[0]
    assert message.startswith(
        "3 of 23 threads cannot be trained: 2 have more than 64 tokens (max_length; the longest has"
    )
    assert "1 cannot be rendered" in message
    longest = max(int(reason.split()[2]) for _, reason in error.value.problems if reason.startswith("it has"))
    assert 'over_long="skip" leaves them out; over_long="truncate" trains the first 64' in message
    assert message.endswith(f"max_length={longest} trains them whole")
    assert [place for place, _ in error.value.problems] == ["data.jsonl:9", "data.jsonl:12", "data.jsonl:14"]


async def test_what_is_skipped_is_as_if_it_were_not_there(qwen3_dir, tmp_path, capsys):
    without, plain = await trained_weights(qwen3_dir, tmp_path / "without", SUMS)
    capsys.readouterr()
    with_them, result = await trained_weights(
        qwen3_dir, tmp_path / "with", MIXED, max_length=64, over_long="skip", callbacks=[]
    )
    assert equal(without, with_them)
    assert result.num_steps == plain.num_steps == 10
    printed = capsys.readouterr().err
    assert printed.count("! 3 of 23 threads are left out of training") == 2  # before the first step, and at the end
    assert printed.index("3 of 23 threads are left out of training") < printed.index("step 1/10")
    (details,) = query(tmp_path / "with", "SELECT details FROM events WHERE kind = 'samples_left_out'")[0]
    assert [line.partition(": ")[0] for line in details.splitlines()] == [
        "data.jsonl:9",
        "data.jsonl:12",
        "data.jsonl:14",
    ]
    ((config,),) = query(tmp_path / "with", "SELECT value FROM config WHERE key = 'trained'")
    assert json.loads(config)["num_threads"] == 20
    assert json.loads(config)["num_left_out"] == 3
    assert query(tmp_path / "with", "SELECT count(*) FROM events WHERE kind = 'samples_skipped'") == [(0,)]


async def test_one_step_at_a_time_is_what_a_loop_by_hand_does(qwen3_dir, tmp_path):
    """Rendering before the first step, and a preview, change no bit of what is trained."""
    weights, _ = await trained_weights(qwen3_dir, tmp_path, SUMS, True, lr_scheduler=lambda _: 1e-2, seed=3)
    order = DataOrder(20, epochs=2, samples_per_batch=4, seed=42)
    async with training_model(qwen3_dir) as model:
        for step in range(1, order.num_steps + 1):
            await model.train_language_modelling_many([SUMS[i] for i in order.indices(step)], seed=3)
            await model.optim_step(1e-2)
        assert equal(weights, weights_of(model))


async def test_what_is_truncated_trains_its_first_tokens(qwen3_dir, tmp_path):
    dataset = [LONG, LONGER, *SUMS[:2]]
    weights, result = await trained_weights(
        qwen3_dir, tmp_path, dataset, max_length=64, over_long="truncate", epochs=1, lr_scheduler=lambda _: 1e-2
    )
    assert result.num_steps == 1
    assert result.metrics["training/num_samples"] == 3  # the answer of the longer one is beyond its first 64 tokens
    async with training_model(qwen3_dir) as model:
        whole = await model.tokenize_many([LONG, *SUMS[:2]])
        span = whole[0].spans[0]
        assert span.start < 64 < span.end
        cut = TokenizedThread(LONG, whole[0].token_ids[:64], (TurnSpan("assistant", span.start, 64, 64),), (1.0,))
        order = DataOrder(3, epochs=1, samples_per_batch=4, seed=42)
        by_hand = [cut, *whole[1:]]
        await model.accumulate_many([by_hand[i] for i in order.indices(1)], "language_modelling")
        await model.optim_step(1e-2)
        assert equal(weights, weights_of(model))
    kinds = dict(query(tmp_path, "SELECT kind, message FROM events"))
    assert kinds["samples_cut"].startswith("1 of 4 threads are cut at 64 tokens")
    assert "1 has no token to train among the first 64" in kinds["samples_left_out"]


async def test_a_dataset_that_takes_long_to_render_is_said_once(qwen3_dir, monkeypatch):
    monkeypatch.setattr("descant.trainers.trained_threads._SILENT_S", 0)
    said = []
    async with training_model(qwen3_dir) as model:
        data = await TrainedThreads.of(addition_threads(600), model, 64, "error", said.append)
        expected = await model.tokenize_many(addition_threads(600))
    assert data.batch(range(600)) == expected
    assert len(said) == 1
    assert said[0].startswith("rendering 600 threads, once, before the first step: about ")


@pytest.fixture(scope="module")
def tokenized(tmp_path_factory, qwen3_dir):
    async def tokenize():
        async with training_model(qwen3_dir) as model:
            weighted = [t.with_turn_weights([0.5 * (i % 3) for i in range(len(t))]) for t in ragged_threads(12)]
            return await model.tokenize_many([*ragged_threads(12), *weighted])

    return asyncio.run(tokenize())


@given(number=st.integers(0, 23), num_tokens=st.integers(1, 200))
def test_cutting_keeps_the_weights_of_what_remains(tokenized, number, num_tokens):
    whole = tokenized[number]
    cut = first_tokens(whole, num_tokens)
    assert cut.token_ids == whole.token_ids[:num_tokens]
    assert cut.token_weights() == whole.token_weights()[:num_tokens]
    assert all(0 <= s.start <= s.content_end <= s.end <= len(cut.token_ids) for s in cut.spans)
    assert len(cut.spans) == len(cut.turn_weights)


async def test_lengths_that_no_model_can_train_are_refused_when_the_trainer_is_made(qwen3_dir):
    async with training_model(qwen3_dir, max_batch_size=100) as model:
        with pytest.raises(ConfigurationError, match=r"max_length=200 .*give spawn_train\(name, max_batch_size=200\)"):
            SFT(dataset=SUMS, model=model, max_length=200)
        with pytest.raises(ConfigurationError, match=r"max_length=300 .*context 256\); give 100 or less"):
            SFT(dataset=SUMS, model=model, max_length=300)
        with pytest.raises(ConfigurationError, match="over_long='cut' must be one of 'error', 'skip', 'truncate'"):
            SFT(dataset=SUMS, model=model, over_long="cut")
        with pytest.raises(DatasetError, match="no thread can be trained: 2 have more than 8 tokens"):
            await SFT(dataset=SUMS[:2], model=model, max_length=8, over_long="skip").run()
        with pytest.raises(
            DatasetError, match=r"spawn_train\(name, max_batch_size=122\) loads a model that trains them"
        ):
            await SFT(dataset=[*SUMS, LONG], model=model).run()


async def test_threads_that_fail_at_every_step_are_said_once(qwen3_dir, tmp_path, capsys):
    """Losses that are not finite are found in training only."""
    huge = StringThread().user("x").assistant("y").with_turn_weights([0, 1.7e308])
    long = StringThread().user("x").assistant("y" * 300)
    async with training_model(qwen3_dir) as model:
        loss = ValidationLossCallback([*SUMS[:3], long], model, frequency=0.25)
        await SFT(
            dataset=[*SUMS[:3], huge], model=model, samples_per_batch=4, epochs=4, callbacks=[loss], run_dir=tmp_path
        ).run()
    printed = capsys.readouterr().err
    assert printed.count("cannot be trained") == 1
    assert printed.count("1 of 4 threads could not be scored") == 1
    for kind in ("samples_skipped", "callback_warning"):
        assert query(tmp_path, "SELECT count(*) FROM events WHERE kind = ?", kind)[0][0] >= 4, kind


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        (
            {},
            "samples_per_batch=512 is more than the 20 threads, so the run has 1 step; samples_per_batch=2 makes 10,",
        ),
        ({"samples_per_batch": 4}, "a run of 5 steps is short: a callback at frequency=0.1 is called 6 times, not 11"),
        ({"samples_per_batch": 2}, None),
        (
            {"samples_per_batch": 1, "epochs": 0.2},
            "a run of 4 steps is short: a callback at frequency=0.1 is called 5 times, not 11; more epochs",
        ),
        (
            {"samples_per_batch": 30, "epochs": 20},
            "samples_per_batch=30 is more than the 20 threads, so the run has 14",
        ),
    ],
)
async def test_plans_that_could_be_better_have_one_hint(qwen3_dir, options, hint, capsys):
    async with training_model(qwen3_dir) as model:
        preview = await SFT(dataset=SUMS, model=model, **options).preview()
    assert [hint] * bool(hint) == [note[: len(hint)] for note in preview.notes]
    assert hint is None or hint in capsys.readouterr().out


async def test_a_preview_is_data_and_a_page_and_trains_nothing(qwen3_dir, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    weighted = StringThread().user("b").assistant("c").user("d").assistant("e").with_turn_weights([0, 0.5, 0, 0])
    hostile = StringThread([("user", "\x1b[2J[bold]\u202e"), ("assistant", "é😀")], source="data.jsonl:100")
    async with training_model(qwen3_dir) as model:
        before = weights_of(model)
        loss = ValidationLossCallback(SUMS[:3], model, frequency=0.5)
        trainer = SFT(dataset=[weighted, hostile, LONG], model=model, max_length=64, callbacks=[loss])
        preview = await trainer.preview(num_samples=5)
        assert equal(before, weights_of(model))
        whole = await SFT(dataset=[*SUMS, LONG], model=model, max_length=64, over_long="truncate").preview(1)
    assert list(tmp_path.iterdir()) == []
    assert [step for plan in preview.plan for step in plan.steps] == [0, 1]
    assert preview.data.lengths[2] == 122
    assert str(preview.refusal).startswith("1 of 3 threads cannot be trained")
    shown = {sample.place: sample for sample in preview.samples}
    assert set(shown) == {"dataset[0]", "data.jsonl:100"}
    assert [piece for piece in shown["dataset[0]"].pieces if piece[1]] == [("c<|im_end|>", 0.5)]
    assert [piece for piece in shown["data.jsonl:100"].pieces if piece[1]] == [("é😀<|im_end|>", 1.0)]
    text = "".join(piece for piece, _ in shown["data.jsonl:100"].pieces)
    assert text == "<|im_start|>user\n\x1b[2J[bold]\u202e<|im_end|>\n<|im_start|>assistant\né😀<|im_end|>\n"
    assert whole.refusal is None
    assert whole.samples[0].num_cut == 0
    printed = capsys.readouterr().out
    assert "  \\x1b[2J[bold]\\u202e<|im_end|>\n" in printed
    assert "⟦c<|im_end|>⟧×0.5" in printed
    assert "data.jsonl:100: " in printed  # and not an emoji
    assert "\x1b" not in printed
    assert "the run is refused before its first step\n1 of 3 threads" in printed
    assert "1 of 21 threads are cut at 64 tokens" in printed


async def test_every_thread_is_in_the_histogram(qwen3_dir, capsys):
    """Lengths that are far beyond most are one row, so that the others are not."""
    async with training_model(qwen3_dir) as model:
        await SFT(dataset=[*addition_threads(150), LONG], model=model).preview(1)
    page = capsys.readouterr().out
    rows = re.findall(r"^ +([\d,–]+(?: and more)?) +(\d+)  █*$", page, flags=re.MULTILINE)
    assert rows == [("29", "150"), ("30 and more", "1")]


async def test_what_is_trained_is_in_colour_on_a_terminal(qwen3_dir, monkeypatch):
    page = io.StringIO()
    monkeypatch.setattr("sys.stdout", page)
    monkeypatch.setattr(page, "isatty", lambda: True, raising=False)
    for name, value in {"TERM": "xterm-256color", "COLORTERM": "truecolor"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert Console().is_terminal
    async with training_model(qwen3_dir) as model:
        await SFT(dataset=SUMS, model=model).preview(1)
    assert "\x1b[1;32m" in page.getvalue()
    assert "⟦" not in page.getvalue()


HEADER = """
import asyncio
from descant import SFT, CallbackRunner, ModelBuilder, StringThread, ValidationLossCallback
from descant.recipes import InputConfig, RecipeContext, recipe_main
THREADS = [StringThread().user(f"{i}+{i}=").assistant(str(2 * i)) for i in range(20)]
class Config(InputConfig):
    max_length: int | None = None
"""
BODIES = {
    "trainer": """
    (ctx.run_dir / "note").write_text("written by the recipe itself")
    model = await ModelBuilder(MODEL).spawn_train("policy")
    try:
        await SFT(dataset=THREADS, model=model, max_length=config.max_length, run_dir=ctx.run_dir).run()
    except Exception as error:
        print("caught", error)
    finally:
        await model.dealloc()
    print("RAN ON")
""",
    "loop": """
    async with CallbackRunner([], num_steps=7, title="my loop", run_dir=ctx.run_dir):
        print("RAN ON")
""",
    "synchronous": """
    with CallbackRunner([], num_steps=7, title="my loop", run_dir=ctx.run_dir).synchronous():
        print("RAN ON")
""",
    "tasks": """
    async def train():
        async with CallbackRunner([], num_steps=7, title="my loop"):
            print("RAN ON")
    async with asyncio.TaskGroup() as group:
        group.create_task(train())
""",
    "neither": """
    print("ended")
""",
    "broken": """
    raise ValueError("broken")
""",
}


def write_recipe(path, name, model_dir):
    source = HEADER + f"MODEL = {str(model_dir)!r}\n@recipe_main\nasync def main(ctx: RecipeContext, config: Config):\n"
    (path / f"previewed_{name}.py").write_text(source + BODIES[name])
    return path / f"previewed_{name}.py"


@pytest.mark.parametrize(
    ("name", "settings", "code", "printed"),
    [
        ("trainer", [], 0, "on 20 threads, 1 step of 20"),
        ("trainer", ["max_length=28"], 1, "of 20 threads cannot be trained"),
        ("trainer", ["max_lengt=30"], 2, ""),
        ("loop", [], 0, "my loop\n7 steps\n"),
        ("tasks", [], 0, "my loop\n7 steps\n"),
        ("synchronous", [], 0, "my loop\n7 steps\n"),
        ("neither", [], 0, "ended\nthe recipe has ended without a trainer or callbacks of descant"),
        ("broken", [], 1, ""),
    ],
)
def test_a_recipe_is_run_up_to_what_it_would_train(
    name, settings, code, printed, qwen3_dir, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    recipe = write_recipe(tmp_path, name, qwen3_dir)
    there = sorted(tmp_path.iterdir())
    ended = 0
    try:
        preview_recipe(recipe, None, settings, None, tmp_path / "run", 2)
    except typer.Exit as error:
        ended = error.exit_code
    out = capsys.readouterr().out
    assert ended == code, out
    assert printed in out
    assert "RAN ON" not in out
    assert "caught" not in out
    assert "job" not in out
    assert sorted(path for path in tmp_path.iterdir() if path.name != "__pycache__") == there
    assert num_previewed.get() is None
