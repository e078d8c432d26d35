"""CallbackRunner: policies, requests, timeouts, costs and signals, on a loop that is not descant's own."""

import asyncio
import ctypes
import errno
import io
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from support import CountingCallback, addition_threads, query, series, training_model

import descant.runner.watchdog as watchdog_module
from descant import SFT, CallbackRunner, RecipeCallback, at, callback, every, every_minutes, every_steps
from descant.callbacks.metric_watch import MetricWatch
from descant.errors import CallbackError, ConfigurationError, RunLogError
from descant.runner.recorder import RunRecorder
from descant.schedule import NEVER


async def drive(callbacks, run_dir, num_steps=10, steps=None, **options):
    async with CallbackRunner(callbacks, num_steps=num_steps, run_dir=run_dir, **options) as runner:
        for step in range(1, num_steps + 1) if steps is None else steps:
            if runner.should_stop:
                break
            await runner.after_step(step, {"training/loss": 1 / step})
    return runner


def drive_synchronously(callbacks, run_dir, num_steps=10, steps=None, **options):
    runner = CallbackRunner(callbacks, num_steps=num_steps, run_dir=run_dir, **options)
    with runner.synchronous() as waiting:
        for step in range(1, num_steps + 1) if steps is None else steps:
            if waiting.should_stop:
                break
            waiting.after_step(step, {"training/loss": 1 / step})
    return runner


@pytest.fixture(params=["async", "synchronous"])
def run(request):
    """The same loop, async and not; the latter from a thread that has an event loop already, as in a notebook."""

    async def run(*args, **options):
        if request.param == "async":
            return await drive(*args, **options)
        return drive_synchronously(*args, **options)

    return run


def events(run_dir, *kinds):
    marks = ", ".join("?" * len(kinds))
    return query(run_dir, f"SELECT step, source, message FROM events WHERE kind IN ({marks}) ORDER BY id", *kinds)


class Act(RecipeCallback):
    """Does what its function does; the nth call gets n."""

    def __init__(self, function, frequency=0.1, prefix="act", **options):
        super().__init__(frequency, prefix, **options)
        self.function, self.num_calls, self.steps = function, 0, []

    async def callback(self, current_percentage):
        self.num_calls += 1
        self.steps.append(self.run.step)
        result = self.function(self)
        return (await result if asyncio.iscoroutine(result) else result) or {}


def fail(_):
    raise RuntimeError("on purpose")


# When


SCHEDULES = {
    "share": (0.25, [0, 3, 5, 8, 10]),
    "string": ("1/3", [0, 4, 7, 10]),
    "fraction": (Fraction(1, 2), [0, 5, 10]),
    "every": (every(0.5), [0, 5, 10]),
    "every_steps": (every_steps(4), [0, 4, 8, 10]),
    "at": (at(0.1, "1/3", 1), [0, 1, 4, 10]),
    "joined": (every(0.5) | every_steps(4) | at(0.9), [0, 4, 5, 8, 9, 10]),
}


@pytest.mark.parametrize("case", SCHEDULES)
async def test_schedules_in_a_run_are_what_their_plan_says(run, tmp_path, case):
    schedule, expected = SCHEDULES[case]
    counting = CountingCallback(schedule)
    await run([counting], tmp_path)
    assert counting.steps == counting.due_steps(10) == expected
    text = str(counting.plan(10))
    assert text.startswith("counting: ")
    assert f"{len(expected)} calls, after steps" in text


async def test_a_jump_is_one_call_and_nothing_is_repeated(run, tmp_path):
    counting = CountingCallback(0.1)
    await run([counting], tmp_path, num_steps=100, steps=[1, 9, 35, 36, 40, 99, 100])
    assert counting.steps == [0, 35, 40, 99, 100]


async def test_a_run_that_is_continued_repeats_nothing_and_skips_nothing(run, tmp_path):
    counting = CountingCallback(0.25)
    await run([counting], tmp_path, num_steps=20, first_step=10, steps=range(11, 21))
    assert counting.steps == [15, 20]


async def test_a_callback_starts_anew_in_the_next_run(run, tmp_path):
    counting = CountingCallback(0.5)
    for stage in ("one", "two"):
        await run([counting], tmp_path / stage)
        assert counting.last_call == 1.0
    assert counting.steps == [0, 5, 10] * 2


async def test_every_minutes_goes_by_the_clock(tmp_path, monkeypatch):
    now = 0.0
    monkeypatch.setattr("descant.runner.callback_runner.time.monotonic", lambda: now)
    counting = CountingCallback(every_minutes(1), at_start=False, at_end=False)
    async with CallbackRunner([counting], num_steps=10, run_dir=tmp_path) as runner:
        for step, now in enumerate([30, 59, 60, 61, 200, 239, 240], start=1):  # noqa: B007 - the clock reads it
            await runner.after_step(step)
    assert counting.steps == [3, 5, 7]
    assert "0+ calls" in str(counting.plan(10))


async def test_steps_that_cannot_be(tmp_path):
    async with CallbackRunner([], num_steps=4, run_dir=tmp_path) as runner:
        await runner.after_step(2)
        for step in (2, 1, 2.5):
            with pytest.raises(ConfigurationError, match=rf"after_step\({step}\) follows step 2: steps .* that grow"):
                await runner.after_step(step)


async def test_more_steps_than_planned_are_warned_of_and_do_not_end_the_training(run, tmp_path):
    counting = CountingCallback(0.5)
    await run([counting], tmp_path, num_steps=4, steps=range(1, 8))
    assert counting.steps == [0, 2, 4, 7]  # the last one is on the weights that came out
    assert [message for _, _, message in events(tmp_path, "callback_warning")] == [
        "runner: step 5 is beyond num_steps=4, by which calls are planned"
    ]


ARGUMENTS = {
    "num_steps": ({"num_steps": 0}, r"num_steps=0 must be a whole number of planned steps"),
    "num_steps text": ({"num_steps": "10"}, r"num_steps='10' must be a whole number"),
    "num_steps true": ({"num_steps": True}, r"num_steps=True must be a whole number"),
    "first_step true": ({"first_step": True}, r"first_step=True must be a whole number from 0 to num_steps=10"),
    "first_step": ({"first_step": 11}, r"first_step=11 must be a whole number from 0 to num_steps=10"),
    "logger": ({"logger": "wandb"}, r"logger='wandb' must be callable"),
    "callbacks": ({"callbacks": [print]}, r"not a callback; subclass RecipeCallback, or put @callback"),
}


@pytest.mark.parametrize("case", ARGUMENTS)
def test_arguments_that_cannot_work(tmp_path, case):
    options, message = ARGUMENTS[case]
    with pytest.raises(ConfigurationError, match=message):
        CallbackRunner(**{"callbacks": [], "num_steps": 10, "run_dir": tmp_path / "run", **options})
    assert not (tmp_path / "run").exists()


async def test_metrics_of_the_loop_that_cannot_be_recorded(tmp_path):
    async with CallbackRunner([], num_steps=10, run_dir=tmp_path) as runner:
        with pytest.raises(ConfigurationError, match=r"'loss' of step 1: a Tensor of shape \(2,\) is not a metric"):
            await runner.after_step(1, {"loss": torch.zeros(2)})
        with pytest.raises(ConfigurationError, match="'callbacks/x' of step 2: its key must be text not in progress/"):
            await runner.after_step(2, {"callbacks/x": 1})
        await runner.after_step(3, {"loss": torch.tensor(2.0, requires_grad=True)})
    assert series(tmp_path, "loss") == {3: 2.0}


# Failures


async def test_warn_records_and_goes_on(run, tmp_path):
    act, counting = Act(fail), CountingCallback(0.1)
    runner = await run([act, counting], tmp_path)
    assert act.steps == counting.steps == list(range(11))
    assert len(runner.failures) == runner.costs["act"].num_failed == 11
    assert "RuntimeError: on purpose" in runner.failures[0].traceback
    assert series(tmp_path, "callbacks/act/num_failed")[10] == 11
    assert events(tmp_path, "callback_failed")[3] == (
        3, "act", "callback 'act' failed at step 3 of 10: RuntimeError: on purpose",
    )  # fmt: skip


async def test_disable_makes_no_more_calls_after_the_first_failure(run, tmp_path):
    act = Act(lambda act: fail(act) if act.num_calls == 3 else None, on_error="disable")
    runner = await run([act], tmp_path)
    assert act.steps == [0, 1, 2]
    assert len(runner.failures) == 1
    assert events(tmp_path, "callback_disabled") == [
        (2, "act", "callback 'act' makes no more calls in this run (on_error='disable')")
    ]


@pytest.mark.parametrize("options", [{"on_error": "raise"}, {}], ids=["on_error", "strict"])
async def test_raise_ends_the_run(run, tmp_path, options):
    counting = CountingCallback(0.5)
    act = Act(lambda act: fail(act) if act.num_calls == 3 else None, **options)
    with pytest.raises(CallbackError, match="callback 'act' failed at step 2 of 10: RuntimeError: on purpose") as error:
        await run([act, counting], tmp_path, strict=not options)
    assert isinstance(error.value.__cause__, RuntimeError)
    assert counting.hooks == [("start", 0), ("end", 2)]
    assert counting.steps == [0]
    assert events(tmp_path, "run_failed")[0][0] == 2


async def test_a_training_that_fails_gets_its_final_calls(run, tmp_path):
    counting = CountingCallback(0.5)

    def steps():
        yield 1
        raise ZeroDivisionError("the loop's own")

    with pytest.raises(ZeroDivisionError):
        await run([counting], tmp_path, steps=steps())
    assert counting.steps == [0, 1]
    assert "the loop's own" in query(tmp_path, "SELECT details FROM events WHERE kind = 'run_failed'")[0][0]


async def test_a_hanging_call_is_cancelled_and_recorded(run, tmp_path):
    cleaned_up = []

    async def hang(act):
        try:
            await asyncio.Event().wait()
        finally:
            cleaned_up.append(act.run.step)

    act, counting = Act(hang, 0.5, timeout_s=0.05), CountingCallback(0.5)
    runner = await run([act, counting], tmp_path)
    assert cleaned_up == [0, 5, 10]
    assert counting.steps == [0, 5, 10]
    assert len(runner.failures) == 3
    assert runner.failures[0].message.endswith("TimeoutError: it took longer than timeout_s=0.05 and was cancelled")


async def test_a_call_that_ignores_its_cancellation_is_left_behind_and_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("descant.runner.call_guard.GRACE_S", 0.01)
    release = asyncio.Event()

    async def stubborn(act):
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue

    counting = CountingCallback(0.5)
    await drive([Act(stubborn, 1, timeout_s=0.01), counting], tmp_path)
    assert counting.steps == [0, 5, 10]
    assert "callback 'act' is still running, although it was cancelled when its time was up" in capsys.readouterr().err
    release.set()
    await asyncio.sleep(0)


async def test_after_its_time_is_up_a_call_cannot_use_a_model(qwen3_dir, tmp_path, monkeypatch):
    """Its job in the engine is given up, and what goes on is refused: the weights are others by then."""
    monkeypatch.setattr("descant.runner.call_guard.GRACE_S", 0.01)
    outcomes, ended = [], asyncio.Event()
    async with training_model(qwen3_dir) as model:
        view = model.min_gen_len(200).max_gen_len(200)
        begun = asyncio.Event()
        engine = model._worker._loop._engine
        dispatch, event_loop = engine._dispatch, asyncio.get_running_loop()

        def announce(job, yield_point):
            event_loop.call_soon_threadsafe(begun.set)
            return dispatch(job, yield_point)

        engine._dispatch = announce

        async def go_on():
            for _ in range(2):
                try:
                    await view.generate_many(addition_threads(4))
                except Exception as error:
                    outcomes.append(str(error))
            ended.set()

        async def call(act):
            act.going_on = asyncio.create_task(go_on())  # not cancelled with the call
            await begun.wait()
            await asyncio.Event().wait()

        act = Act(call, 1, at_end=False, timeout_s=0.05)
        await SFT(dataset=addition_threads(4), model=model, callbacks=[act], run_dir=tmp_path).run()
        await ended.wait()
    assert outcomes[0] == "the job was cancelled: its result is not needed any more"
    assert re.search(r"callback 'act' was cancelled after its timeout_s=0.05; .* may not use models", outcomes[1])


async def test_a_call_that_blocks_the_loop_is_named_with_the_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(watchdog_module, "LIMIT_S", 0.04)
    warned = threading.Event()
    show = RunRecorder.show_warning

    def show_and_release(recorder, message):
        show(recorder, message)
        warned.set()

    monkeypatch.setattr("descant.runner.callback_runner.RunRecorder.show_warning", show_and_release)

    def block(act):
        warned.wait()  # the watchdog's own words end the block

    await drive([Act(block, 1, at_end=False)], tmp_path, num_steps=2)
    message = capsys.readouterr().err
    assert re.search(
        r"callback 'act' has blocked the event loop for [\d.]+ s, at \S*test_runner.py:\d+ \(warned.wait\(\)", message
    )
    assert "await asyncio.to_thread(function)" in message
    events = query(tmp_path, "SELECT message, details FROM events WHERE kind = 'callback_blocked'")
    assert re.search(r"for [\d.]+ s, at \S*test_runner.py:\d+ \(warned.wait\(\)", events[0][0])
    assert "warned.wait()" in events[0][1]


async def test_a_call_that_waits_is_not_blamed_for_a_thread_that_holds_the_interpreter(tmp_path, monkeypatch):
    monkeypatch.setattr(watchdog_module, "LIMIT_S", 0.04)
    library = ctypes.PyDLL(None)  # whose functions keep the interpreter
    begun, interval = threading.Event(), sys.getswitchinterval()

    def keep_the_interpreter():
        begun.wait()
        sys.setswitchinterval(interval)
        for _ in range(10):
            library.usleep(100_000)

    class Waits(CountingCallback):
        async def callback(self, current_percentage):
            thread = threading.Thread(target=keep_the_interpreter)
            thread.start()
            sys.setswitchinterval(60.0)  # so that the thread has it once the loop waits, and not within a line of this
            begun.set()
            while thread.is_alive():
                await asyncio.sleep(0.01)
            return {}

    await drive([Waits(1, at_end=False)], tmp_path, num_steps=1)
    for (message,) in query(tmp_path, "SELECT message FROM events WHERE kind = 'callback_blocked'"):
        assert re.match(r"the event loop has stood still for [\d.]+ s during callback 'counting', and nothing", message)


async def test_a_call_is_not_blamed_for_what_another_task_does_meanwhile(tmp_path, monkeypatch):
    monkeypatch.setattr(watchdog_module, "LIMIT_S", 0.04)
    begun, warned = asyncio.Event(), threading.Event()
    show = RunRecorder.show_warning
    monkeypatch.setattr(RunRecorder, "show_warning", lambda recorder, text: (show(recorder, text), warned.set()))

    async def users_own_task():
        await begun.wait()
        warned.wait()

    task = asyncio.create_task(users_own_task())

    async def wait_for_it(act):
        begun.set()
        await task

    await drive([Act(wait_for_it, 1, at_end=False)], tmp_path, num_steps=1)
    ((message,),) = query(tmp_path, "SELECT message FROM events WHERE kind = 'callback_blocked'")
    assert re.match(
        r"the event loop was blocked for [\d.]+ s during callback 'act', at \S*test_runner.py:\d+ \(warned.wait\(\)\)",
        message,
    )


async def test_tasks_that_a_synchronous_loop_leaves_behind_stand_still_between_calls(tmp_path):
    turns = []

    class Lingering(RecipeCallback):
        async def callback(self, current_percentage):
            self.task = asyncio.create_task(self.linger())
            return {}

        async def linger(self):
            while True:
                turns.append(1)
                await asyncio.sleep(0)

    runner = CallbackRunner([Lingering(1)], num_steps=2, run_dir=tmp_path)
    with runner.synchronous() as waiting:
        before = len(turns)
        sum(range(200_000))
        assert len(turns) == before
        waiting.after_step(1)
        assert len(turns) > before


# Requests


async def test_request_stop_ends_the_run_with_the_final_calls(run, tmp_path):
    act = Act(lambda act: act.run.request_stop("enough") if act.num_calls == 4 else None)
    counting = CountingCallback(0.5)
    runner = await run([act, counting], tmp_path)
    assert act.steps == [0, 1, 2, 3]  # not a second time at the step at which it has been already
    assert counting.steps == [0, 3]
    assert counting.percentages == [0.0, 0.3]
    assert counting.hooks == [("start", 0), ("end", 3)]
    assert runner.stop_reason == "act: enough"
    assert events(tmp_path, "stop_requested") == [(3, "act", "the run stops after step 3 of 10 (act: enough)")]
    assert "stopped (act: enough) after 3 of 10 steps" in events(tmp_path, "run_stopped")[0][2]


async def test_request_stop_before_the_first_step(qwen3_dir, tmp_path):
    async with training_model(qwen3_dir) as model:
        callbacks = [Act(lambda act: act.run.request_stop("no need"))]
        result = await SFT(dataset=addition_threads(4), model=model, callbacks=callbacks, run_dir=tmp_path).run()
    assert (result.num_steps, result.stop_reason) == (0, "act: no need")


async def test_request_checkpoint_saves_the_weights_of_that_step(qwen3_dir, tmp_path):
    act = Act(lambda act: act.run.request_checkpoint() if act.run.step == 2 else None, 0.25)
    async with training_model(qwen3_dir) as model:
        await SFT(
            dataset=addition_threads(8), model=model, lr=1e-2, samples_per_batch=2, callbacks=[act], run_dir=tmp_path
        ).run()  # fmt: skip
    checkpoint = tmp_path / "checkpoints" / "step-2"
    assert (checkpoint / "model.safetensors").exists()
    assert [path.name for path in checkpoint.parent.iterdir()] == ["step-2"]
    assert events(tmp_path, "checkpoint_saved") == [(2, "act", f"checkpoint at step 2: {checkpoint}")]


async def test_request_checkpoint_in_other_loops(run, tmp_path):
    written = []
    act = Act(lambda act: act.run.request_checkpoint(), 0.5)
    await run([act], tmp_path / "with", save_checkpoint=written.append)
    assert written == [tmp_path / "with" / "checkpoints" / f"step-{step}" for step in (0, 5, 10)]
    await run([act], tmp_path / "without")
    assert "this loop was not given save_checkpoint=" in events(tmp_path / "without", "checkpoint_failed")[0][2]

    def full(path):
        raise OSError(28, "No space left on device")

    await run([act], tmp_path / "full", save_checkpoint=full)
    assert "requested at step 5 could not be written: OSError: [Errno 28]" in events(
        tmp_path / "full", "checkpoint_failed"
    )[1][2]  # fmt: skip


# A function as a callback


async def test_an_async_function_is_a_callback(run, tmp_path):
    @callback(frequency=0.5)
    async def doubled(run, current_percentage):
        """Twice the loss."""
        return {"loss": 2 * run.metrics.get("training/loss", 0.0), "at": current_percentage}

    @callback(0.5, "plain", on_error="disable")
    async def nothing():
        return {"x": 1}

    await run([doubled, nothing], tmp_path)
    assert series(tmp_path, "loss") == {0: 0.0, 5: 0.4, 10: 0.2}
    assert series(tmp_path, "at") == {0: 0.0, 5: 0.5, 10: 1.0}
    assert series(tmp_path, "plain/x") == {0: 1, 5: 1, 10: 1}
    assert (doubled.name, nothing.name, doubled.__doc__) == ("doubled", "plain", "Twice the loss.")


def test_functions_that_cannot_be_callbacks():
    with pytest.raises(ConfigurationError, match=r"@callback needs a frequency: write @callback\(frequency=0\.1\)"):

        @callback
        async def bare():
            return {}

    with pytest.raises(ConfigurationError, match="sync must be `async def`"):

        @callback(frequency=0.1)
        def sync():
            return {}

    with pytest.raises(ConfigurationError, match="odd has a parameter 'model'; it may take run and current_percentage"):

        @callback(frequency=0.1)
        async def odd(model):
            return {}


# Costs


async def test_costs_are_metrics_and_a_table_at_the_end(run, tmp_path, capsys):
    act, counting = Act(lambda act: fail(act) if act.num_calls == 2 else None, 0.5), CountingCallback(0.1)
    runner = await run([act, counting], tmp_path)
    stalls = series(tmp_path, "callbacks/act/stall_s")
    assert list(stalls) == [0, 5, 10]
    assert series(tmp_path, "callbacks/act/num_runs") == {0: 1, 5: 2, 10: 3}
    assert series(tmp_path, "callbacks/act/num_failed") == {0: 0, 5: 1, 10: 1}
    assert series(tmp_path, "callbacks/act/total_s")[10] >= sum(stalls.values()) * 0.9  # hooks are in it, too
    assert 0 < series(tmp_path, "callbacks/act/time_fraction")[10] < 1
    assert runner.costs["counting"].num_runs == 11
    shown = capsys.readouterr().err
    assert re.search(r"callback +runs +each +in all +of the run +failures", shown)
    assert re.search(r"act +3 .* 1\n", shown)
    assert re.search(r"counting +11 .* 0\n", shown)
    assert re.search(r"forecast: .* in all, of which callbacks [\d.]+ %: .*counting 11 × [\d.]+ m?s ≈ [\d.]+ %", shown)
    assert len(events(tmp_path, "forecast")) == 1


async def test_the_throughput_of_training_is_without_evaluation_time(tmp_path, monkeypatch):
    """A clock that only callbacks and steps move."""
    now = 0.0
    monkeypatch.setattr("descant.runner.callback_runner.time.perf_counter", lambda: now)

    def evaluate(act):
        nonlocal now
        now += 42.0

    async with CallbackRunner([Act(evaluate, 0.1)], num_steps=100, run_dir=tmp_path) as runner:
        for step in range(1, 101):
            now += 30.0
            await runner.after_step(step)
            if step == 3:
                early = runner.costs.remaining_s(3)
    assert set(series(tmp_path, "training/step_s").values()) == {30.0}
    assert set(series(tmp_path, "callbacks/act/stall_s").values()) == {42.0}
    assert early == 97 * 30 + 10 * 42  # the evaluations still to come are in it
    assert runner.costs.remaining_s(100) == 0
    assert events(tmp_path, "forecast")[0][2] == "forecast: 57.7 min in all: act 11 × 42 s ≈ 13 % of the run"
    assert series(tmp_path, "callbacks/act/time_fraction")[100] == pytest.approx(11 * 42 / (11 * 42 + 3000))


# Signals

PROGRAM = """
import asyncio, sys, time
from descant import CallbackRunner, RecipeCallback

class Watch(RecipeCallback):
    async def callback(self, current_percentage):
        print("call", self.run.step, flush=True)
        if self.run.step == 3 and "hang" in sys.argv:
            print("hanging", flush=True)
            await asyncio.Event().wait()
        if self.run.step == 3 and "block" in sys.argv:
            print("blocking", flush=True)
            time.sleep(600)
        return {"x": self.run.step}
    async def on_end(self, run):
        print("ended", flush=True)

def steps():
    for step in range(1, 100_001):
        if step == 2:
            print("ready", flush=True)
            sys.stdin.readline()
        yield step

async def main(runner):
    async with runner:
        for step in steps():
            await runner.after_step(step)
            if runner.should_stop:
                break
    print("not reached")

def synchronous(runner):
    with runner.synchronous() as waiting:
        for step in steps():
            waiting.after_step(step)
            if waiting.should_stop:
                break
    print("not reached")

runner = CallbackRunner([Watch(0.00003)], num_steps=100_000, run_dir=sys.argv[1])
asyncio.run(main(runner)) if "async" in sys.argv else synchronous(runner)
"""


def start(run_dir, *arguments):
    command = [sys.executable, "-c", PROGRAM, str(run_dir), *arguments]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, text=True, env=dict(os.environ), **pipes)
    assert process.stdout.readline() == "call 0\n"
    assert process.stdout.readline() == "ready\n"
    return process


def wait_for_notice(process, number):
    for line in process.stderr:
        if f"! {number.name}: the run ends after this step" in line:
            return
    pytest.fail("the program ended without a notice")


@pytest.mark.parametrize("kind", ["async", "synchronous"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_after_the_step_with_the_final_calls(tmp_path, kind, number):
    process = start(tmp_path, kind)
    process.send_signal(number)
    wait_for_notice(process, number)
    output, errors = process.communicate("go on\n", timeout=60)
    assert output == "call 2\nended\n"
    assert ("KeyboardInterrupt" in errors) is (number == signal.SIGINT)
    assert process.returncode == (143 if number == signal.SIGTERM else -signal.SIGINT)
    assert series(tmp_path, "x") == {0: 0, 2: 2}
    step, _, message = events(tmp_path, "run_interrupted")[0]
    assert (step, message.partition(" after")[0]) == (2, f"interrupted ({number.name})")
    assert not list(Path(tmp_path).glob("*-wal"))


@pytest.mark.parametrize("kind", ["async", "synchronous"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_it_at_once(tmp_path, kind, number):
    process = start(tmp_path, kind, "hang")
    process.stdin.write("go on\n")
    process.stdin.flush()
    assert process.stdout.readline() == "call 3\n"
    assert process.stdout.readline() == "hanging\n"
    process.send_signal(number)
    wait_for_notice(process, number)
    process.send_signal(number)
    output, errors = process.communicate(timeout=60)
    assert output == "ended\n"
    assert ("KeyboardInterrupt" in errors) is (number == signal.SIGINT)
    assert process.returncode == (143 if number == signal.SIGTERM else -signal.SIGINT)
    assert series(tmp_path, "x") == {0: 0}
    assert events(tmp_path, "run_cancelled")[0][0] == 3


def test_a_second_signal_also_ends_a_call_that_blocks(tmp_path):
    process = start(tmp_path, "async", "block")
    process.stdin.write("go on\n")
    process.stdin.flush()
    assert process.stdout.readline() == "call 3\n"
    assert process.stdout.readline() == "blocking\n"
    process.send_signal(signal.SIGINT)
    wait_for_notice(process, signal.SIGINT)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert output == "ended\n"
    assert events(tmp_path, "run_cancelled")[0][0] == 3


async def test_handlers_are_what_they_were_whatever_the_order_in_which_runs_end(tmp_path):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    first = CallbackRunner([], num_steps=1, run_dir=tmp_path / "first")
    second = CallbackRunner([], num_steps=1, run_dir=tmp_path / "second")
    await first.__aenter__()
    await second.__aenter__()
    assert signal.getsignal(signal.SIGINT) != before[0]
    await first.__aexit__(None, None, None)
    signal.raise_signal(signal.SIGINT)
    assert second.should_stop
    assert not first.should_stop
    second.interrupts.received = None
    await second.__aexit__(None, None, None)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


async def test_all_open_runs_hear_of_a_signal_and_the_last_one_raises_it(tmp_path):
    first = CallbackRunner([], num_steps=1, run_dir=tmp_path / "first")
    second = CallbackRunner([], num_steps=1, run_dir=tmp_path / "second")
    await first.__aenter__()
    await second.__aenter__()
    signal.raise_signal(signal.SIGINT)
    assert first.should_stop
    assert second.should_stop
    await first.__aexit__(None, None, None)
    with pytest.raises(KeyboardInterrupt):
        await second.__aexit__(None, None, None)
    assert events(tmp_path / "first", "run_interrupted")
    assert events(tmp_path / "second", "run_interrupted")


async def test_a_cancellation_from_within_is_a_failure_of_the_callback(run, tmp_path):
    async def cancels_what_it_awaits(act):
        task = asyncio.ensure_future(asyncio.Event().wait())
        asyncio.get_running_loop().call_soon(task.cancel)
        await task

    counting = CountingCallback(0.5)
    runner = await run([Act(cancels_what_it_awaits, 1), counting], tmp_path)
    assert counting.steps == [0, 5, 10]
    assert [failure.step for failure in runner.failures] == [0, 10]
    assert "it was cancelled from within" in runner.failures[0].message


async def test_ctrl_c_in_a_callback_ends_the_run_in_order(run, tmp_path):
    def leave(act):
        if act.run.step == 5:
            raise KeyboardInterrupt

    counting = CountingCallback(0.5)
    with pytest.raises(KeyboardInterrupt):
        await run([Act(leave, 0.5), counting], tmp_path)
    assert counting.hooks == [("start", 0), ("end", 5)]
    assert events(tmp_path, "run_cancelled")[0][0] == 5


class Panic(BaseException):
    """As a panic of Rust code is one, out of tokenizers for example."""


@pytest.mark.parametrize(
    "error", [SystemExit(0), Panic("index out of bounds"), GeneratorExit(), asyncio.CancelledError()]
)
async def test_what_is_no_exception_is_that_callbacks_failure(run, tmp_path, error):
    def leave(act):
        raise error

    class Hooks(CountingCallback):
        async def on_start(self, run):
            raise error

        on_end = on_start

    counting = CountingCallback(0.5)
    runner = await run([Act(leave, 0.5), Hooks(1, "hooks"), counting], tmp_path)
    assert counting.steps == [0, 5, 10]
    failed = [(failure.callback, failure.step) for failure in runner.failures]
    assert failed == [("hooks", 0), ("act", 0), ("act", 5), ("act", 10), ("hooks", 10)]
    what = "was cancelled from within" if isinstance(error, asyncio.CancelledError) else type(error).__name__
    assert all(what in failure.message for failure in runner.failures)
    assert events(tmp_path, "run_completed")


def test_a_synchronous_runner_says_where_it_cannot_be_called(tmp_path):
    runner = CallbackRunner([], num_steps=3, run_dir=tmp_path)
    waiting = runner.synchronous()
    with pytest.raises(ConfigurationError, match="the runner was called outside of its `with` block"):
        waiting.after_step(1)
    refused = []

    async def calls_back(act):
        try:
            waiting.after_step(2)
        except ConfigurationError as error:
            refused.append(str(error))

    runner = CallbackRunner([Act(calls_back, 1)], num_steps=3, run_dir=tmp_path)
    waiting = runner.synchronous()
    with waiting:
        waiting.after_step(1)
    assert refused == ["the runner was called from a callback"] * 2
    with pytest.raises(ConfigurationError, match="outside of its `with` block"):
        waiting.after_step(2)


async def test_a_runner_that_was_not_entered_says_so(tmp_path):
    with pytest.raises(ConfigurationError, match="after_step was called outside of the runner's `with` block"):
        await CallbackRunner([], num_steps=3, run_dir=tmp_path).after_step(1)


async def test_a_frequency_may_change_until_the_run_is_open(tmp_path):
    counting = CountingCallback(0.5)
    runner = CallbackRunner([counting], num_steps=4, run_dir=tmp_path)
    counting.frequency = 0.25
    async with runner:
        for step in range(1, 5):
            await runner.after_step(step)
    assert counting.steps == [0, 1, 2, 3, 4]


async def test_the_time_that_is_left_knows_watchers_clocks_and_those_that_are_disabled(tmp_path, monkeypatch):
    now = 0.0
    for clock in ("perf_counter", "monotonic"):
        monkeypatch.setattr(f"descant.runner.callback_runner.time.{clock}", lambda: now)

    def takes(seconds, result=None):
        def function(act):
            nonlocal now
            now += seconds
            if result == "fail":
                raise RuntimeError("on purpose")
            return {"score": 1.0}

        return function

    class Watch(Act):
        watches = MetricWatch("scores/score", "max")

    callbacks = [
        Watch(takes(20.0), NEVER, "watch", at_start=False, at_end=False),
        Act(takes(42.0), 0.1, "scores"),
        Act(takes(5.0), every_minutes(2), "clock", at_start=True, at_end=False),
        Act(takes(9.0, "fail"), 0.1, "disabled", on_error="disable"),
    ]
    async with CallbackRunner(callbacks, num_steps=1000, run_dir=tmp_path) as runner:
        for step in (1, 2, 3):
            now += 1.0
            await runner.after_step(step)
        assert runner.costs.remaining_s(3) == pytest.approx(997 + 10 * (42 + 20) + 997 / 120 * 5)
        now += 997.0
        await runner.after_step(1000)
    assert runner.costs["watch"].num_runs == runner.costs["scores"].num_runs == 2
    assert "scores 11 × 42 s" in events(tmp_path, "forecast")[0][2]


async def test_a_forecast_is_given_also_after_a_jump_and_in_a_run_that_is_continued(run, tmp_path):
    await run([CountingCallback(0.1)], tmp_path / "jump", num_steps=100, steps=range(10, 101, 10))
    await run([CountingCallback(0.1)], tmp_path / "resumed", num_steps=100, first_step=50, steps=range(51, 101))
    assert [len(events(tmp_path / name, "forecast")) for name in ("jump", "resumed")] == [1, 1]


async def test_a_run_that_is_complete_already_repeats_nothing(run, tmp_path):
    counting = CountingCallback(0.25)
    await run([counting], tmp_path, num_steps=20, first_step=20, steps=[])
    await run([counting], tmp_path / "half", num_steps=20, first_step=10, steps=[])
    assert counting.steps == []
    assert counting.hooks == [("start", 20), ("end", 20), ("start", 10), ("end", 10)]


async def test_hooks_are_in_the_costs(run, tmp_path, monkeypatch):
    now = 0.0
    monkeypatch.setattr("descant.runner.callback_runner.time.perf_counter", lambda: now)

    class Slow(Act):
        async def on_start(self, run):
            nonlocal now
            now += 7.0

    def call(act):
        nonlocal now
        now += 2.0

    runner = await run([Slow(call, 0.5)], tmp_path)
    assert runner.costs["act"].seconds == 13.0
    assert runner.costs["act"].mean_s == 2.0


async def test_a_metric_of_the_loop_under_the_key_of_a_callback(tmp_path):
    async with CallbackRunner([CountingCallback(1)], num_steps=3, run_dir=tmp_path) as runner:
        with pytest.raises(ConfigurationError, match="'counting/calls' of step 1 is what callback 'counting' returns"):
            await runner.after_step(1, {"counting/calls": 3})


async def test_a_request_to_stop_at_the_last_step_cuts_nothing(run, tmp_path):
    act = Act(lambda act: act.run.request_stop("done") if act.run.step == 10 else None, 1)
    runner = await run([act], tmp_path)
    assert runner.stop_reason is None
    assert events(tmp_path, "stop_requested") == []
    assert events(tmp_path, "run_completed")


async def test_every_request_to_stop_is_recorded(run, tmp_path):
    callbacks = [Act(lambda act: act.run.request_stop("enough"), 0.5, name, at_start=False) for name in ("one", "two")]
    runner = await run(callbacks, tmp_path)
    assert runner.stop_reason == "one: enough"
    assert [source for _, source, _ in events(tmp_path, "stop_requested")] == ["one", "two"]


async def test_by_hand_what_needs_a_run_says_so():
    @callback(frequency=0.5)
    async def needs_the_run(run):
        return {}

    with pytest.raises(ConfigurationError, match="'needs_the_run' was called by hand, and needs a run"):
        await needs_the_run.maybe_call(0.0)
    with pytest.raises(ConfigurationError, match=r"maybe_call\(nan\): a number from 0 to 1 is needed"):
        await CountingCallback(0.5).maybe_call(float("nan"))


class UsesAPool(CountingCallback):
    """Has processes of its own at every step, as data loaders do, and forks that end as programs do."""

    async def callback(self, current_percentage):
        with multiprocessing.get_context("fork").Pool(1) as pool:  # which is ended with SIGTERM
            assert pool.map(abs, [-1]) == [1]
        child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(1000,))
        child.start()
        child.terminate()
        child.join(60)
        assert child.exitcode == -signal.SIGTERM
        if (pid := os.fork()) == 0:
            handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
            os._exit(0 if handlers == (signal.default_int_handler, signal.SIG_DFL) else 1)
        assert os.waitpid(pid, 0)[1] == 0
        return await super().callback(current_percentage)


def test_processes_that_a_callback_forks_end_when_they_are_asked_to(tmp_path):
    callback = UsesAPool(0.25)
    runner = CallbackRunner([callback], num_steps=4, run_dir=tmp_path)
    with runner.synchronous() as waiting:
        for step in range(1, 5):
            waiting.after_step(step)
    assert runner.failures == []
    assert callback.steps == [0, 1, 2, 3, 4]


class Full(io.StringIO):
    def write(self, text):
        raise OSError(errno.ENOSPC, "No space left on device")


async def test_a_run_whose_standard_error_cannot_be_written_is_recorded_to_its_end(run, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr("sys.stderr", Full())
        runner = await run([CountingCallback(0.5)], tmp_path)
    assert runner.failures == []
    assert query(tmp_path, "SELECT kind FROM events ORDER BY id")[-1] == ("run_completed",)
    assert series(tmp_path, "counting/calls") == {0: 1, 5: 2, 10: 3}


async def test_a_synchronous_runner_that_could_not_be_entered_can_be_closed(tmp_path):
    """In a ``finally``, say: what is raised is why it could not be."""
    run_dir = tmp_path / "file"
    run_dir.write_text("")
    waiting = CallbackRunner([], num_steps=4, run_dir=run_dir).synchronous()
    waiting.close()
    with pytest.raises(RunLogError):
        waiting.__enter__()
    waiting.close()
    waiting.close(ValueError("twice"))


def test_a_synchronous_loop_ends_although_a_thread_of_a_callback_hangs(tmp_path):
    release = threading.Event()

    class Hangs(CountingCallback):
        async def callback(self, current_percentage):
            await asyncio.to_thread(release.wait, 240)
            return {}

    runner = drive_synchronously([Hangs(1, timeout_s=0.01, at_end=False)], tmp_path)
    was_waited_for = release.is_set() or not any(t.name.startswith("ThreadPool") for t in threading.enumerate())
    release.set()
    assert len(runner.failures) == 1
    assert not was_waited_for


DETAILS = {
    "dict": ({"a": 1}, "{'a': 1}"),
    "exception": (ValueError("no answer"), "ValueError: no answer\n"),
    "number": (3, "3"),
    "text": ("as it is\ud800", "as it is\\ud800"),
    "none": (None, None),
}


@pytest.mark.parametrize("case", DETAILS)
async def test_the_details_of_a_warning_are_recorded_as_text(run, tmp_path, case):
    details, recorded = DETAILS[case]
    runner = await run([Act(lambda act: act.warn("careful", details=details), 1, at_end=False)], tmp_path)
    assert runner.failures == []
    assert query(tmp_path, "SELECT message, details FROM events WHERE kind = 'callback_warning'") == [
        ("act: careful", recorded)
    ]


class Unprintable:
    def __repr__(self):
        raise OSError("the object is gone")


WORDS = {
    "details": lambda act: act.warn("x", Unprintable()),
    "message": lambda act: act.warn(Unprintable()),
    "reason": lambda act: act.run.request_stop(Unprintable()),
}


@pytest.mark.parametrize("case", WORDS)
async def test_what_cannot_be_said_is_a_failure_of_the_callback_that_says_it(run, tmp_path, case):
    runner = await run([Act(WORDS[case], 1, at_end=False)], tmp_path)
    assert [failure.message for failure in runner.failures] == [
        "callback 'act' failed at step 0 of 10: OSError: the object is gone"
    ]
    assert runner.step == 10


CHANGES = {"name": "other", "frequency": 0.3, "last_call": 0.2}


@pytest.mark.parametrize("attribute", CHANGES)
async def test_what_a_run_goes_by_cannot_change_while_it_is_open(run, tmp_path, attribute):
    act = Act(lambda act: setattr(act, attribute, CHANGES[attribute]), 0.5)
    counting = CountingCallback(0.5)
    runner = await run([act, counting], tmp_path)
    assert counting.steps == [0, 5, 10]
    assert [failure.callback for failure in runner.failures] == ["act"] * 3
    assert f"callback 'act': its {attribute} cannot change while a run is open" in runner.failures[0].message
    setattr(act, attribute, CHANGES[attribute])  # afterwards it can


@pytest.mark.parametrize("error", [ZeroDivisionError("of nothing"), SystemExit(0)])
async def test_an_is_due_that_raises_is_that_callbacks_failure(run, tmp_path, error):
    class Asked(CountingCallback):
        def is_due(self, previous, current):
            if current.step in (3, 4):
                raise error
            return super().is_due(previous, current)

    asked, disabled = Asked(0.5, "asked"), Asked(0.5, "disabled", on_error="disable")
    runner = await run([asked, disabled], tmp_path)
    assert (asked.steps, disabled.steps) == ([0, 5, 10], [0])
    assert [(failure.callback, failure.step) for failure in runner.failures] == [
        ("asked", 3), ("disabled", 3), ("asked", 4)
    ]  # fmt: skip
    assert type(error).__name__ in runner.failures[0].message


async def test_a_prefix_that_raises_is_that_callbacks_failure(run, tmp_path):
    class Prefixed(CountingCallback):
        def with_prefix(self, metrics):
            if self.run:
                raise LookupError("no prefix")
            return dict(metrics)

    runner = await run([Prefixed(1)], tmp_path)
    assert [failure.message for failure in runner.failures] == [
        f"callback 'counting' failed at step {step} of 10: with_prefix: LookupError: no prefix" for step in (0, 10)
    ]
