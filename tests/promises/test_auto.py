"""callback_mode="auto": what is chosen and said, and that the choice changes neither a number nor a decision."""

import asyncio
import signal

import pytest
import torch
from support import BareLoop, CountingCallback, LengthGrader, addition_threads, query, training_model
from test_out_of_the_way import VALIDATION, assert_same_weights, built_ins, recorded, train

from descant import (
    SFT,
    BaseGrader,
    BestModelCallback,
    CallbackRunner,
    CheckpointCallback,
    EarlyStoppingCallback,
    EvaluationPlacement,
    Grade,
    GraderEvalCallback,
    ModelCallback,
    ValidationLossCallback,
    callback,
)
from descant.process_state import num_cores
from descant.runner import auto_mode

needs_cores = pytest.mark.skipif(num_cores() < 2, reason="a second core is what the background needs")


def said(run_dir):
    return [
        text for (text,) in query(run_dir, "SELECT message FROM events WHERE kind = 'callback_mode' ORDER BY rowid")
    ]


def modes(callbacks, **options):
    runner = CallbackRunner(callbacks, num_steps=4, callback_mode="auto", **options)
    return {cost.name: cost.mode for cost in runner.costs}


# What is chosen


async def test_trainers_choose_it_and_loops_of_others_do_not(qwen3_dir):
    async with training_model(qwen3_dir) as model:
        assert SFT(dataset=addition_threads(2), model=model).callback_mode == "auto"
        assert CallbackRunner([], num_steps=1).callback_mode == "inline"
        own = ValidationLossCallback(VALIDATION, model, mode="inline")
        others = built_ins(model)[1:]
        assert modes([own, *others, CountingCallback()]) == {
            "loss": "inline", "validation": "overlap", "samples": "overlap", "counting": "inline"
        }  # fmt: skip


class Decides(ModelCallback):
    """Ends the run by what it has measured."""

    async def measure(self, model):
        return await model.logprobs_many(VALIDATION[:1])

    async def report(self, measurement):
        if self.run.step > 2:
            self.run.request_stop("enough")
        return {"logprob": measurement[0]}


class Looks(Decides):
    """Has its second half look at the model."""

    async def report(self, measurement):
        return {"answer": (await self.model.generate(VALIDATION[0])).last_content()}


@callback(frequency=0.5)
async def reader(run):
    return {"seen": run.evaluations.get("validation/loss", -1.0)}


class JudgeOfItself(BaseGrader):
    """Asks the policy, which it knows by a helper, what it thinks of the answer."""

    def __init__(self, ask):
        super().__init__("judge")
        self.helpers = {"ask": ask}

    async def grade(self, sample):
        return Grade(await self.helpers["ask"](sample), "judge")


async def test_what_a_decision_hangs_on_stays_in_the_loop(qwen3_dir):
    async with training_model(qwen3_dir) as model:
        loss, grading = (lambda: ValidationLossCallback(VALIDATION, model)), LengthGrader()

        async def ask(thread):
            return await model.logprobs(thread)

        def judged(thread):
            return ask(thread)

        for watcher in (
            EarlyStoppingCallback("validation/loss"),
            BestModelCallback(model, "validation/loss"),
            CheckpointCallback(model, "policy", 0.5, keep_best=1, metric="validation/loss"),
            reader,
        ):
            found = modes([loss(), watcher, GraderEvalCallback(VALIDATION, model, grading)])
            assert found["loss"] == "inline", watcher
            assert found["validation"] == ("inline" if watcher is reader else "overlap")
        for own in (
            Decides(model, 0.5),
            Looks(model, 0.5),
            GraderEvalCallback(VALIDATION, model, judged),
            GraderEvalCallback(VALIDATION, model, JudgeOfItself(ask)),
        ):
            assert set(modes([own]).values()) == {"inline"}, own


async def test_the_choice_and_its_reason_are_said(gpt2_dir, tmp_path, capsys):
    def make(model):
        return [*built_ins(model), EarlyStoppingCallback("validation/loss", patience=9)]

    await train(gpt2_dir, tmp_path / "run", make)
    (choice,) = said(tmp_path / "run")
    assert "loss inline, since early_stopping goes by its metrics" in choice
    assert "validation and samples overlap" in choice
    assert choice in capsys.readouterr().err


# What background needs


HOST = {
    "device": "cpu",
    "num_threads": 1,
    "num_bytes": 1000,
    "spare_device": None,
    "spare_bytes": 0,
    "num_processes": 1,
}
GPU = {"device": "cuda:0", "spare_device": "cuda:1", "spare_bytes": 8000}
OBSTACLES = [
    ({"num_threads": num_cores()}, {}, "cores training leaves too few"),
    ({"num_bytes": 10**15}, {}, "over half of what is free"),
    ({"num_processes": 2}, {}, "2 processes train together"),
    ({}, {"where": "thread"}, "no process of its own"),
    ({}, {"num_threads": 3}, "num_threads=3 may give other numbers"),
    ({}, {"device": "cuda:0"}, "cuda:0 may give other numbers"),
    ({**GPU, "spare_device": None}, {}, "training has the only accelerator"),
    ({**GPU, "spare_bytes": 3000}, {}, "cuda:1 has no room"),
    (GPU, {}, None),
    pytest.param({}, {}, None, marks=needs_cores),
]


@pytest.mark.parametrize(("host", "placement", "reason"), OBSTACLES)
def test_background_needs_what_training_leaves(host, placement, reason):
    found = auto_mode._obstacle(auto_mode.Host(**{**HOST, **host}), EvaluationPlacement(**placement))
    assert found == reason or reason in found


# Moving


async def follow(path, run_dir, mode, num_steps=12, *, make=built_ins, patch=None):
    """A loop that waits after its sixth step until the process, if there is one, is ready."""
    torch.manual_seed(0)
    loop = BareLoop(path)
    if patch:
        patch(loop.module)
    runner = CallbackRunner(make(loop.model), num_steps=num_steps, run_dir=run_dir, callback_mode=mode)
    async with runner:
        for step in range(1, num_steps + 1):
            if step == 7 and mode == "auto" and runner._auto._ready is not None:
                await asyncio.wait({runner._auto._ready})
            await runner.after_step(step, loop.train_step())
    assert not runner.failures
    await loop.model.dealloc()
    return loop.weights(), runner


@needs_cores
async def test_a_run_that_moves_to_the_background_has_the_numbers_of_one_that_does_not(gpt2_dir, tmp_path, monkeypatch):
    inline, _ = await follow(gpt2_dir, tmp_path / "inline", "inline")
    monkeypatch.setattr(auto_mode, "START_S", 1e-9)
    monkeypatch.setattr(auto_mode, "_WORTHWHILE", 1e9)  # other tests may have the cores
    moved, runner = await follow(gpt2_dir, tmp_path / "auto", "auto")
    assert_same_weights(inline, moved)
    assert recorded(tmp_path / "auto") == recorded(tmp_path / "inline")
    choice, started, ready = said(tmp_path / "auto")
    assert "a process in the background takes over once it saves more than its start" in choice
    assert "loss, validation and samples, so a process to evaluate in is being started" in started
    assert "loss, validation and samples in the background from here on: the process is ready" in ready
    assert {cost.mode for cost in runner.costs} == {"background"}


@needs_cores
async def test_a_process_that_is_still_starting_at_the_end_is_killed(gpt2_dir, tmp_path, monkeypatch):
    """Asked to end, it would first import torch, and the run would wait."""
    monkeypatch.setattr(auto_mode, "START_S", 1e-9)
    _, runner = await follow(gpt2_dir, tmp_path, "auto", num_steps=5)
    (buffers,) = runner._evaluations._buffers
    assert "is being started" in said(tmp_path)[-1]
    assert buffers._evaluator._child.process.returncode == -signal.SIGKILL


async def test_a_short_run_starts_no_process(gpt2_dir, tmp_path):
    await follow(gpt2_dir, tmp_path / "inline", "inline")
    _, runner = await follow(gpt2_dir, tmp_path / "auto", "auto")
    assert recorded(tmp_path / "auto") == recorded(tmp_path / "inline")
    assert len(said(tmp_path / "auto")) == 1
    assert {cost.mode for cost in runner.costs} == {"overlap"}


@needs_cores
async def test_what_the_background_refuses_overlaps_to_the_end(gpt2_dir, tmp_path, monkeypatch):
    def patch(module):
        module.lm_head.register_forward_hook(lambda module, inputs, output: 2 * output)

    monkeypatch.setattr(auto_mode, "START_S", 1e-9)
    _, runner = await follow(gpt2_dir, tmp_path, "auto", patch=patch)
    (choice,) = said(tmp_path)  # before the first step
    assert "samples overlap, since GPT2LMHeadModel cannot be evaluated in the background" in choice
    assert {cost.mode for cost in runner.costs} == {"overlap"}


WAITING = [
    ((20, 2.0, 0), None),
    ((13, 1.6, 0), None),  # too few to tell
    ((20, 1.1, 1), "a call has failed"),
    ((20, 9.0, 0), "something else has the cores"),
]


@pytest.mark.parametrize(("now", "reason"), WAITING)
def test_who_waits_as_long_in_the_background_returns(now, reason):
    found = auto_mode._Waiting(*now).worse_than(auto_mode._Waiting(10, 1.0 * 3, 0), num_calls_timed=4)
    assert found == reason or reason in found
