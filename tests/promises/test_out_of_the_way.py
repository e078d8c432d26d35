"""Out of the way: training waits for a part of an evaluation, or for a copy of the weights; the numbers are the same,
at the same steps, and training is bit-identical, whatever happens to the evaluation."""

import asyncio
import os
import signal
import sys
import threading
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support import (
    BareLoop,
    CountingCallback,
    LengthGrader,
    addition_threads,
    query,
    samples,
    series,
    training_model,
    weights_of,
)

from descant import (
    SFT,
    BaseGrader,
    BestModelCallback,
    CallbackRunner,
    CheckpointCallback,
    EarlyStoppingCallback,
    EvaluationPlacement,
    GenerateSamplesCallback,
    Grade,
    GraderEvalCallback,
    ModelCallback,
    RecipeCallback,
    ValidationLossCallback,
    at,
    every_steps,
)
from descant.errors import CallbackError, ConfigurationError

MODES = ("inline", "overlap", "background")
VALIDATION = addition_threads(6, offset=40)
ONE_THREAD = EvaluationPlacement(num_threads=1)  # as training in these tests: the same bits


def built_ins(model, **options):
    return [
        ValidationLossCallback(VALIDATION, model, 0.25, **options),
        GraderEvalCallback(VALIDATION, model, LengthGrader(), 0.25, max_gen_len=4, **options),
        GenerateSamplesCallback(VALIDATION, model, 0.25, max_gen_len=4, num_completions=2, **options),
    ]


async def train(path, run_dir, make_callbacks, num_steps=8, **options):
    """A run of SFT; returns its result and the weights after it."""
    async with training_model(path) as model:
        result = await SFT(
            dataset=addition_threads(2 * num_steps),
            model=model,
            lr=1e-2,
            samples_per_batch=2,
            callbacks=make_callbacks(model),
            run_dir=run_dir,
            callback_placement=ONE_THREAD,
            **options,
        ).run()
        return result, weights_of(model)


def assert_same_weights(some, others):
    assert some.keys() == others.keys()
    different = [name for name in some if not torch.equal(some[name], others[name])]
    assert not different


def recorded(run_dir):
    """Everything but times: metrics of callbacks and rows of samples, by step."""
    metrics = query(run_dir, "SELECT step, key, number, text FROM metrics ORDER BY step, key")
    metrics = [row for row in metrics if not row[1].endswith("_s") and not row[1].startswith("callbacks/")]
    return metrics, [samples(run_dir, name) for name in ("loss", "validation", "samples")]


class Gate(BaseGrader):
    """Grades when somebody opens it."""

    def __init__(self):
        super().__init__("gate")
        self.is_open = asyncio.Event()

    async def grade(self, sample):
        await self.is_open.wait()
        return Grade(1.0, "gate")


class Opener(RecipeCallback):
    """Opens a gate after a step of training."""

    def __init__(self, gate, step):
        super().__init__(every_steps(1), "opener", at_start=False)
        self.gate, self.step = gate, step
        self.was_waiting = None

    async def callback(self, current_percentage):
        if self.run.step == self.step:
            self.was_waiting = "validation/rewards/score/mean" not in self.run.known_keys
            self.gate.is_open.set()
        return {}


# The same numbers


async def test_the_modes_agree(gpt2_dir, tmp_path):
    runs = {}
    for mode in (None, *MODES, "auto"):
        make = (lambda model: []) if mode is None else built_ins
        options = {} if mode is None else {"callback_mode": mode}
        result, weights = await train(gpt2_dir, tmp_path / str(mode), make, **options)
        assert not result.callback_failures
        runs[mode] = weights
    for mode in (*MODES, "auto"):
        assert_same_weights(runs[None], runs[mode])
        assert recorded(tmp_path / mode) == recorded(tmp_path / "inline")
        assert list(series(tmp_path / mode, "validation/loss")) == [0, 2, 4, 6, 8]


# Training goes on


@pytest.mark.parametrize("mode", ["overlap", "background"])
async def test_training_goes_on_while_a_grader_waits(qwen3_dir, tmp_path, mode):
    gate = Gate()
    opener = Opener(gate, 5)

    def make(model):
        options = {"max_gen_len": 2, "at_start": False, "at_end": False, "mode": mode}
        return [opener, GraderEvalCallback(VALIDATION, model, gate, at(0.25), **options)]

    result, _ = await train(qwen3_dir, tmp_path, make)
    assert opener.was_waiting
    assert series(tmp_path, "validation/rewards/score/mean") == {2: 1.0}
    assert result.metrics["progress/step"] == 8
    assert series(tmp_path, "callbacks/validation/busy_s")[2] > 0


@pytest.mark.parametrize("mode", ["overlap", "background"])
async def test_at_the_end_everything_is_awaited_and_said(qwen3_dir, tmp_path, capsys, mode):
    gate = Gate()

    class OpenAtTheEnd(CountingCallback):
        async def callback(self, current_percentage):
            asyncio.get_running_loop().call_later(0.05, gate.is_open.set)
            return {}

    def make(model):
        return [
            GraderEvalCallback(VALIDATION[:2], model, gate, 0.5, max_gen_len=2, mode=mode),
            OpenAtTheEnd(1, at_start=False),
        ]

    await train(qwen3_dir, tmp_path, make)
    assert series(tmp_path, "validation/rewards/score/mean") == {0: 1.0, 4: 1.0, 8: 1.0}
    shown = capsys.readouterr().err
    assert "waiting for evaluations in flight: validation (step 0), validation (step 4), validation (step 8)" in shown
    assert "ms for validation (step 0), validation (step 4), validation (step 8)" in shown
    ((message,),) = query(tmp_path, "SELECT message FROM events WHERE kind = 'waited_for_callbacks'")
    assert message.startswith("waited ")


@pytest.mark.parametrize("mode", ["overlap", "background"])
@pytest.mark.parametrize("how", ["run", "run_synchronously"])
async def test_in_a_loop_that_never_awaits(gpt2_dir, tmp_path, mode, how):
    async def run(callbacks, run_dir, **options):
        torch.manual_seed(0)
        loop = BareLoop(gpt2_dir)
        outcome = getattr(loop, how)(12, callbacks(loop.model), run_dir, **options)
        runner = await outcome if how == "run" else outcome
        return runner, loop.weights()

    _, without = await run(lambda model: [], tmp_path / "without")
    options = {"callback_mode": mode, "callback_placement": ONE_THREAD}
    runner, weights = await run(built_ins, tmp_path / mode, **options)
    assert not runner.failures
    assert_same_weights(without, weights)
    await run(built_ins, tmp_path / "inline")
    assert recorded(tmp_path / mode) == recorded(tmp_path / "inline")


async def test_a_logger_finds_the_step_of_what_comes_late(qwen3_dir, tmp_path):
    gate, told = Gate(), []

    def make(model):
        grading = GraderEvalCallback(
            VALIDATION[:2], model, gate, at(0.25), max_gen_len=2, at_start=False, at_end=False, mode="overlap"
        )
        return [grading, Opener(gate, 5)]

    await train(qwen3_dir, tmp_path, make, logger=told.append)
    late = [metrics for metrics in told if "validation/rewards/score/mean" in metrics]
    assert [metrics["progress/step"] for metrics in late] == [2]
    assert late[0]["completion_percentage"] == 0.25
    assert "training/loss" not in late[0]
    steps = [metrics["progress/step"] for metrics in told if "training/loss" in metrics]
    assert steps == [1, 2, 3, 4, 5, 6, 7, 8]


# Failures


@pytest.mark.parametrize("mode", ["overlap", "background"])
async def test_failures_and_timeouts_beside_training_are_recorded_at_their_step(qwen3_dir, tmp_path, mode):
    class Breaks(ModelCallback):
        async def measure(self, model):
            return await model.generate_many(VALIDATION[:1])

        async def report(self, measurement):
            if self.run.step == 2:
                raise ValueError("on purpose")
            if self.run.step == 4:
                await asyncio.Event().wait()
            self.warn("looked at")
            return {"value": self.run.step, "object": object()} if self.run.step == 6 else {"value": self.run.step}

    def make(model):
        return [Breaks(model.max_gen_len(2), 0.25, "breaks", mode=mode, timeout_s=6.0)]

    result, weights = await train(qwen3_dir, tmp_path / "run", make)
    _, without = await train(qwen3_dir, tmp_path / "without", lambda model: [])
    assert_same_weights(weights, without)
    assert series(tmp_path / "run", "breaks/value") == {0: 0, 6: 6, 8: 8}
    failed = {failure.step: failure.message for failure in result.callback_failures}
    assert failed.keys() == {2, 4, 6}
    assert "ValueError: on purpose" in failed[2]
    assert "longer than timeout_s=6" in failed[4]
    assert "key 'breaks/object'" in failed[6]
    warned = query(tmp_path / "run", "SELECT step FROM events WHERE kind = 'callback_warning' ORDER BY step")
    assert warned == [(0,), (6,), (8,)]


async def test_a_failure_beside_training_ends_a_strict_run(qwen3_dir, tmp_path):
    class Fails(GraderEvalCallback):
        async def report(self, measurement):
            raise ValueError("on purpose")

    def make(model):
        return [Fails(VALIDATION[:1], model, LengthGrader(), 0.5, max_gen_len=2, mode="overlap")]

    with pytest.raises(CallbackError, match=r"'validation' failed at step 0 of 8: ValueError: on purpose"):
        await train(qwen3_dir, tmp_path, make, strict=True)


async def test_disabled_by_a_late_failure(qwen3_dir, tmp_path):
    class Fails(GraderEvalCallback):
        async def report(self, measurement):
            raise ValueError("on purpose")

    def make(model):
        options = {"max_gen_len": 2, "mode": "overlap", "on_error": "disable"}
        return [Fails(VALIDATION[:1], model, LengthGrader(), 0.125, **options), CountingCallback(0.125)]

    result, _ = await train(qwen3_dir, tmp_path, make)
    assert 1 <= len(result.callback_failures) < 9
    assert query(tmp_path, "SELECT COUNT(*) FROM events WHERE kind = 'callback_disabled'") == [(1,)]


async def test_live_weights_are_refused_beside_training(qwen3_dir, tmp_path):
    class Peeks(ModelCallback):
        async def measure(self, model):
            return None

        async def report(self, measurement):
            refused = 0
            for ask in (self.model.snapshot, partial(self.model.save, tmp_path / "peeked")):
                try:
                    await ask()
                except CallbackError:
                    refused += 1
            self.warn(f"{refused} were refused")
            return {"answer": (await self.model.generate(VALIDATION[0])).last_content()}

    result, _ = await train(qwen3_dir, tmp_path, lambda model: [Peeks(model, 1, "peeks", mode="overlap")])
    assert [failure.step for failure in result.callback_failures] == [0, 8]
    assert "look at the model in `measure`" in result.callback_failures[0].message
    assert query(tmp_path, "SELECT COUNT(*) FROM events WHERE message LIKE '%2 were refused'") == [(2,)]


# Who goes by the metrics of others


class Scores(ModelCallback):
    """A score per step, measured on the weights that it is given."""

    def __init__(self, model, scores, **options):
        super().__init__(model, 1 / (len(scores) - 1), "scores", **options)
        self.scores = scores

    async def measure(self, model):
        return await model.logprobs_many(VALIDATION[:1])

    async def report(self, measurement):
        return {"value": self.scores[self.run.step], "logprob": measurement[0]}


@pytest.mark.parametrize("mode", ["overlap", "background"])
async def test_early_stopping_goes_by_what_comes_late(qwen3_dir, tmp_path, mode):
    def make(model):
        return [
            Scores(model, [5, 4, 3, 3, 3, 3, 3, 3, 3], mode=mode),
            EarlyStoppingCallback("scores/value", "min", patience=2),
        ]

    result, _ = await train(qwen3_dir, tmp_path, make)
    assert "scores/value has not become better than 3 (step 2) in 2 measurements" in (result.stop_reason or "")
    assert result.num_steps >= 4
    best = series(tmp_path, "early_stopping/best_step")
    assert {step: best[step] for step in range(5)} == {0: 0, 1: 1, 2: 2, 3: 2, 4: 2}  # by step, not by arrival


@pytest.mark.parametrize("where", ["process", "thread"])
async def test_the_best_model_is_the_one_that_was_measured(qwen3_dir, tmp_path, where):
    class Keep(CountingCallback):
        async def callback(self, current_percentage):
            kept[self.run.step] = weights_of(self.model)
            return {}

    kept = {}

    def make(model):
        keep = Keep(0.125)
        keep.model = model
        return [
            keep,
            Scores(model, [1, 2, 3, 9, 4, 5, 6, 7, 8], mode="background"),
            BestModelCallback(model, "scores/value", "max"),
        ]

    async with training_model(qwen3_dir) as model:
        result = await SFT(
            dataset=addition_threads(16),
            model=model,
            lr=1e-2,
            samples_per_batch=2,
            callbacks=make(model),
            run_dir=tmp_path,
            callback_placement=EvaluationPlacement(where, num_threads=1),
        ).run()
    assert not result.callback_failures
    assert result.metrics["best_model/step"] == 3
    saved = load_file(tmp_path / "checkpoints" / "best" / "model.safetensors")
    assert all(torch.equal(saved[name], tensor) for name, tensor in kept[3].items())
    assert not all(torch.equal(saved[name], tensor) for name, tensor in kept[8].items())


# What cannot work is refused


async def test_modes_that_cannot_work_are_refused(qwen3_dir, tmp_path):
    async with training_model(qwen3_dir) as model:
        loss = ValidationLossCallback(VALIDATION, model, mode="background")
        overlapping = ValidationLossCallback(VALIDATION, model, mode="overlap")
        by_loss = {"keep_best": 1, "metric": "validation/loss", "mode": "min"}

        class Whole(ValidationLossCallback):
            async def callback(self, current_percentage):
                return {}

        cases = {
            r"mode='background' needs a ModelCallback": lambda: CountingCallback(0.1, mode="background"),
            r"mode='async' must be one of 'inline', 'overlap', 'background'": lambda: ValidationLossCallback(
                VALIDATION, model, mode="async"
            ),
            r"when_busy='drop' must be one of 'wait', 'skip', 'replace'": lambda: ValidationLossCallback(
                VALIDATION, model, when_busy="drop"
            ),
            r"callback_mode='late' must be one of": lambda: runner([], callback_mode="late"),
            r"callback_budget=5 must be the share": lambda: runner([], callback_budget=5),
            r"Whole overrides `callback`": lambda: runner([Whole(VALIDATION, model, mode="overlap")]),
            r"needs 'validation/loss' at the step at which it runs": lambda: runner(
                [loss, CheckpointCallback(model, "c", 0.5, **by_loss)]
            ),
            r"in mode='overlap' they are gone": lambda: runner(
                [overlapping, BestModelCallback(model, "validation/loss", "min")]
            ),
        }

        def runner(callbacks, **options):
            return CallbackRunner(callbacks, num_steps=10, run_dir=tmp_path / "never", **options)

        for message, build in cases.items():
            with pytest.raises(ConfigurationError, match=message):
                build()
        runner([Whole(VALIDATION, model)], callback_mode="background")  # inline, as it has always been
        runner([CountingCallback(0.1)], callback_mode="background")

    assert not (tmp_path / "never").exists()


async def test_a_budget_puts_off_all_but_the_first_and_the_last(qwen3_dir, tmp_path):
    def make(model):
        return [ValidationLossCallback(VALIDATION, model, 0.25), CountingCallback(0.25, "counting")]

    await train(qwen3_dir, tmp_path, make, callback_budget=1e-9)
    assert list(series(tmp_path, "validation/loss")) == [0, 8]
    assert list(series(tmp_path, "counting/calls")) == [0, 8]
    assert series(tmp_path, "callbacks/loss/num_deferred") == {8: 3}
    deferred = query(tmp_path, "SELECT step, message FROM events WHERE kind = 'callback_deferred' AND source = 'loss'")
    assert [step for step, _ in deferred] == [2, 4, 6]
    assert "loss: the call that is due at step 2 is deferred" in deferred[0][1]


# No room, and workers that die


class Gated(ModelCallback):
    """Is measured when somebody opens its gate."""

    def __init__(self, model, mode="background", **options):
        super().__init__(model, 0.125, "gated", mode=mode, **options)
        self.is_open = asyncio.Event()

    async def measure(self, model):
        await self.is_open.wait()
        return await model.logprobs_many(VALIDATION[:1])

    async def report(self, measurement):
        return {"logprob": measurement[0], "step": self.run.step}


class OpenAfter(RecipeCallback):
    """Opens the gate of another callback at a step, a while after it was asked to."""

    def __init__(self, gated, step):
        super().__init__(every_steps(1), "open_after")
        self.gated, self.step = gated, step

    async def callback(self, current_percentage):
        if self.run.step == self.step:
            asyncio.get_running_loop().call_later(0.05, self.gated.is_open.set)
        return {}


@pytest.mark.parametrize(
    ("when_busy", "opened_at", "landed", "count"),
    [
        ("wait", 2, list(range(9)), {}),
        ("skip", 8, [0, 1, 8], {"num_skipped": 6}),
        ("replace", 8, [6, 7, 8], {"num_replaced": 6}),
    ],
)
async def test_when_there_is_no_room(qwen3_dir, tmp_path, when_busy, opened_at, landed, count):
    def make(model):
        gated = Gated(model, when_busy=when_busy)
        return [OpenAfter(gated, opened_at), gated]

    result, weights = await train(qwen3_dir, tmp_path / "run", make)
    inline = await train(qwen3_dir, tmp_path / "inline", lambda model: [Open(model)])
    assert not result.callback_failures
    assert_same_weights(weights, inline[1])
    assert series(tmp_path / "run", "gated/step") == {step: step for step in landed}
    expected = series(tmp_path / "inline", "gated/logprob")
    assert series(tmp_path / "run", "gated/logprob") == {step: expected[step] for step in landed}
    costs = {key: series(tmp_path / "run", f"callbacks/gated/{key}") for key in ("num_skipped", "num_replaced")}
    assert {key: max(values.values()) for key, values in costs.items() if values} == count
    events = dict(query(tmp_path / "run", "SELECT kind, COUNT(*) FROM events WHERE source = 'gated' GROUP BY kind"))
    assert events == {f"callback_{key.removeprefix('num_')}": number for key, number in count.items()}
    waits = series(tmp_path / "run", "callbacks/gated/wait_s")
    assert (waits[2 if when_busy == "wait" else 8]) > 0
    assert waits.get(0, 0) == 0


class Open(Gated):
    """The same in the loop, with nothing to wait for."""

    def __init__(self, model):
        super().__init__(model, mode="inline")
        self.is_open.set()


class Samples(Gated):
    """Samples, and then scores; its process is killed in between at these steps, at the last of them twice."""

    def __init__(self, model, *steps, **options):
        super().__init__(model, **options)
        self.steps = [*steps, *steps[-1:]]
        self.is_open.set()

    async def measure(self, model):
        sampled = await model.temperature(1.0).max_gen_len(5).generate_many(VALIDATION[:1])
        scoring = asyncio.ensure_future(super().measure(model))
        if self.run.step in self.steps:
            self.steps.remove(self.run.step)
            os.kill(model._worker.pid, signal.SIGSTOP)  # so that it does not answer before
            while not (model._worker._child._pending or scoring.done()):
                await asyncio.sleep(0.001)
            os.kill(model._worker.pid, signal.SIGKILL)
        return sampled[0].last_content(), *await scoring

    async def report(self, measurement):
        return {"sampled": measurement[0], "logprob": measurement[1]}


async def test_an_evaluation_whose_process_dies_is_made_once_more(gpt2_dir, tmp_path):
    """Only if that dies, too, it is a failure: of that step alone."""

    def found(name):
        sql = "SELECT step, key, number, text FROM metrics WHERE key LIKE 'gated/%' ORDER BY step, key"
        return query(tmp_path / name, sql)

    result, weights = await train(gpt2_dir, tmp_path / "run", lambda model: [Samples(model, 3, 8)])
    _, without = await train(gpt2_dir, tmp_path / "without", lambda model: [Samples(model, mode="inline")])
    assert_same_weights(weights, without)
    assert [failure.step for failure in result.callback_failures] == [8]
    assert "was killed by SIGKILL (out of memory, perhaps)" in result.callback_failures[0].message
    assert found("run") == [row for row in found("without") if row[0] < 8]
    repeated = query(tmp_path / "run", "SELECT step, message FROM events WHERE kind = 'callback_repeated'")
    assert [step for step, _ in repeated] == [3, 8]
    assert repeated[0][1].startswith("gated (step 3) is made once more, with the same copy of the weights: the process")


async def test_tokens_are_counted(qwen3_dir, tmp_path):
    runs = {}
    for mode in MODES:
        await train(qwen3_dir, tmp_path / mode, built_ins, callback_mode=mode)
        names = ("loss", "validation", "samples")
        runs[mode] = [series(tmp_path / mode, f"callbacks/{name}/num_tokens") for name in names]
    assert runs["inline"] == runs["overlap"] == runs["background"]
    loss, validation, samples_ = runs["inline"]
    async with training_model(qwen3_dir) as model:
        lengths = [len(thread.token_ids) for thread in await model.tokenize_many(VALIDATION)]
        assert set(loss.values()) == {sum(lengths)}
    assert list(validation) == [0, 2, 4, 6, 8]
    assert samples_[0] > validation[0]


# Leaving


@pytest.mark.parametrize("num_signals", [1, 2])
async def test_ctrl_c_ends_in_order_and_twice_at_once(qwen3_dir, tmp_path, num_signals):
    program = f"""
import asyncio, os, signal, sys
sys.path[:0] = {[str(Path(__file__).parent.parent), str(Path(__file__).parent)]!r}
from functools import partial
from pathlib import Path
from support import addition_threads
from test_out_of_the_way import Gated
from descant import SFT, ModelBuilder, RecipeCallback, every_steps

class Interrupt(RecipeCallback):
    async def callback(self, current_percentage):
        if self.run.step == 1:
            loop = asyncio.get_running_loop()
            if {num_signals} == 1:
                gated.is_open.set()
            print(gated.pid.result(), flush=True)
            for number in range({num_signals}):
                loop.call_later(0.1 * number, os.kill, os.getpid(), signal.SIGINT)
        return {{}}

class Waits(Gated):
    async def measure(self, model):
        await model._worker.ready()
        self.pid.done() or self.pid.set_result(model._worker.pid)
        return await super().measure(model)

async def main():
    global gated
    model = await ModelBuilder({str(qwen3_dir)!r}).spawn_train("policy", max_batch_size=4096)
    gated = Waits(model)
    gated.pid = asyncio.get_running_loop().create_future()
    class Ready(RecipeCallback):
        async def callback(self, current_percentage):
            await gated.pid
            return {{}}
    await SFT(
        dataset=addition_threads(16), model=model, samples_per_batch=2,
        callbacks=[Interrupt(every_steps(1), "interrupt"), gated, Ready(1, "ready", at_end=False)],
        run_dir=Path({str(tmp_path / "run")!r}),
    ).run()

asyncio.run(main())
"""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        out, err = await asyncio.wait_for(process.communicate(), 60)
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode == -signal.SIGINT or b"KeyboardInterrupt" in err, err.decode()
    assert not is_alive(int(out)), err.decode()
    if num_signals == 1:
        landed = series(tmp_path / "run", "gated/step")
        assert landed.keys() == set(range(max(landed) + 1))
        assert max(landed) < 8
    else:
        given_up = query(tmp_path / "run", "SELECT step FROM events WHERE kind = 'callback_given_up'")
        assert given_up


def is_alive(pid):
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2][:3]
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("mode", ["overlap", "background"])
async def test_a_report_that_exits_has_failed_and_the_run_goes_on(qwen3_dir, tmp_path, mode):
    class Exits(GraderEvalCallback):
        async def report(self, measurement):
            raise SystemExit(0)

    counting = CountingCallback(0.5)

    def make(model):
        return [Exits(VALIDATION[:1], model, LengthGrader(), 1, max_gen_len=2, mode=mode), counting]

    result, _ = await train(qwen3_dir, tmp_path, make)
    assert len(counting.steps) == 3
    assert {failure.callback for failure in result.callback_failures} == {"validation"}
    assert query(tmp_path, "SELECT kind FROM events ORDER BY rowid DESC LIMIT 1") == [("run_completed",)]


async def test_results_that_have_arrived_by_the_time_that_time_is_up_are_taken(gpt2_dir, tmp_path):
    """In a loop that stands still while it trains, what took no time at all may be looked at late."""

    class Slow(BareLoop):
        def train_step(self):
            threading.Event().wait(0.3)  # while the evaluation is done elsewhere
            return super().train_step()

    loop = Slow(gpt2_dir)
    callback = ValidationLossCallback(VALIDATION, loop.model, 0.5, mode="overlap", timeout_s=0.2)
    runner = loop.run_synchronously(4, [callback], tmp_path)
    assert not runner.failures
    assert list(series(tmp_path, "validation/loss")) == [0, 2, 4]
