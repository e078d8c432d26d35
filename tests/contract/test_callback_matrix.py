"""The message for each kind of bad input and every callback: {frequency, schedule, name, key, return value, exception,
timeout, blocking call} x callbacks. A new callback joins by being listed in test_callbacks.CALLBACKS."""

import asyncio
import threading

import pytest
import torch
from contract.test_callbacks import CALLBACKS
from support import CountingCallback, addition_threads, query, training_model

import descant.runner.watchdog as watchdog_module
from descant import SFT, CallbackRunner, Table, at, every, every_minutes, every_steps
from descant.errors import CallbackError, ConfigurationError


@pytest.fixture(params=CALLBACKS)
def kind(request):
    return request.param


@pytest.fixture
async def model(qwen3_dir):
    async with training_model(qwen3_dir) as model:
        yield model


def remade(callback, frequency):
    """The callback with another frequency, through the setter that its constructor uses."""
    callback.frequency = frequency


FREQUENCIES = {
    "zero": (0, r"frequency=0 is out of range; it must be a share of the run above 0 and at most 1"),
    "negative": (-0.1, r"frequency=-0\.1 is out of range"),
    "nan": (float("nan"), r"frequency=nan is not a number"),
    "infinity": (float("inf"), r"frequency=inf is not a number"),
    "percent": (10, r"frequency=10 is above 1; .* did you mean 0\.1 .* or every_steps\(10\)\?"),
    "words": ("often", r"frequency='often' is not a number"),
    "none": (None, r"frequency=None is a NoneType"),
    "bool": (True, r"frequency=True is a bool"),
    "list": ([0.1], r"frequency=\[0\.1\] is a list"),
}


@pytest.mark.parametrize("case", FREQUENCIES)
async def test_frequency(model, kind, case):
    value, message = FREQUENCIES[case]
    with pytest.raises(ConfigurationError, match=message):
        remade(CALLBACKS[kind](model), value)


SCHEDULES = {
    "no points": (at, (), r"at\(\) needs shares of the run from 0 to 1"),
    "point beyond": (at, (0.5, 2), r"at\(2\) is out of range"),
    "point text": (at, ("half",), r"point='half' is not a number"),
    "no steps": (every_steps, (0,), r"every_steps\(0\): a whole number of steps, at least 1, is needed"),
    "part of a step": (every_steps, (0.5,), r"every_steps\(0\.5\): a whole number of steps"),
    "no minutes": (every_minutes, (0,), r"every_minutes\(0\): a number of minutes above 0 is needed"),
    "minutes text": (every_minutes, ("soon",), r"minutes='soon' is not a number"),
    "percent": (every, (25,), r"did you mean 0\.25"),
}


@pytest.mark.parametrize("case", SCHEDULES)
async def test_schedule(case):
    make, arguments, message = SCHEDULES[case]
    with pytest.raises(ConfigurationError, match=message):
        make(*arguments)


async def test_a_schedule_that_is_joined_with_what_is_none(model, kind):
    with pytest.raises(TypeError, match="unsupported operand"):
        remade(CALLBACKS[kind](model), every(0.5) | 0.1)


async def test_schedules_of_every_kind_are_taken(model, kind, tmp_path):
    callback = CALLBACKS[kind](model)
    remade(callback, every_steps(3) | at(0.5) | every_minutes(60))
    async with CallbackRunner([callback], num_steps=4, run_dir=tmp_path) as runner:
        for step in range(1, 5):
            await runner.after_step(step)
    stalls = query(tmp_path, "SELECT step FROM metrics WHERE key = ?", f"callbacks/{callback.name}/stall_s")
    assert [step for (step,) in stalls] == [0, 2, 3, 4]
    assert runner.failures == []


@pytest.mark.parametrize("name", [3, ["x"], b"x"])
async def test_name(model, kind, name):
    with pytest.raises(ConfigurationError, match=r"name=.* is a \w+; a string is needed"):
        CALLBACKS[kind](model, name=name)


OPTIONS = {
    "on_error": (
        {"on_error": "ignore"},
        r"'\w+': on_error='ignore' must be one of 'warn', 'raise', 'disable'",
    ),
    "timeout": ({"timeout_s": 0}, r"callback '\w+': timeout_s=0 must be a number of seconds above 0, or None"),
    "timeout text": ({"timeout_s": "1m"}, r"timeout_s='1m' must be a number of seconds above 0"),
    "timeout nan": ({"timeout_s": float("nan")}, r"timeout_s=nan must be a number of seconds"),
}


@pytest.mark.parametrize("case", OPTIONS)
async def test_options(model, kind, case):
    options, message = OPTIONS[case]
    with pytest.raises(ConfigurationError, match=message):
        CALLBACKS[kind](model, **options)


def broken(callback, method):
    """The callback with another ``callback`` method, as in a subclass."""

    class Broken(type(callback)):
        async def callback(self, current_percentage):
            result = method(self)
            return await result if asyncio.iscoroutine(result) else result

    callback.__class__ = Broken
    return callback


async def outcome(callback, run_dir, **options):
    """The messages of the failures, which must not affect a healthy neighbour."""
    neighbour = CountingCallback(0.5, "neighbour")
    async with CallbackRunner([neighbour, callback], num_steps=2, run_dir=run_dir, **options) as runner:
        for step in (1, 2):
            await runner.after_step(step)
    assert neighbour.steps == [0, 1, 2]
    events = query(run_dir, "SELECT message FROM events WHERE kind = 'callback_failed' ORDER BY id")
    assert [(failure.message,) for failure in runner.failures] == events
    return [failure.message.partition(": ")[2] for failure in runner.failures]


RETURNED = {
    "none": (lambda _: None, "it returned NoneType; a dict of metrics is needed ({} for none)"),
    "a number": (lambda _: 1.0, "it returned float; a dict of metrics is needed"),
    "a list": (lambda _: [("a", 1)], "it returned list; a dict of metrics is needed"),
    "a list inside": (lambda _: {"x": [1, 2]}, "x': [1, 2] (list) is not a metric: a number, a string or a Table"),
    "none inside": (lambda _: {"x": None}, "x': None (NoneType) is not a metric"),
    "a tensor": (lambda _: {"x": torch.zeros(3)}, "x': a Tensor of shape (3,) is not a metric"),
    "a dict inside": (lambda _: {"x": {"y": 1}}, "is not a metric"),
    "a lambda": (lambda _: {"x": lambda: 1}, "is not a metric"),
}


@pytest.mark.parametrize("case", RETURNED)
async def test_return_value(model, kind, case, tmp_path):
    method, expected = RETURNED[case]
    messages = await outcome(broken(CALLBACKS[kind](model), method), tmp_path)
    assert len(messages) >= 2
    assert all(expected in message for message in messages), messages


async def test_the_good_values_of_a_return_are_kept(model, kind, tmp_path):
    callback = broken(CALLBACKS[kind](model), lambda _: {"good": 2, "bad": object(), "rows": Table(["a"], [[1]])})
    assert len(await outcome(callback, tmp_path)) >= 2
    rows = query(tmp_path, "SELECT number FROM metrics WHERE key LIKE '%good'")
    assert rows
    assert set(rows) == {(2.0,)}


async def test_key(model, kind, tmp_path):
    callback = CALLBACKS[kind](model)
    prefix = callback.log_key_prefix
    callback.log_key_prefix = None
    is_no_text = "a key must be a string that is valid Unicode and not empty"
    fix = f"give {callback.name!r} its own log_key= or log_key_prefix="
    cases = {
        3: f"key 3: {is_no_text}",
        "": f"key '': {is_no_text}",
        "\ud800": f"key '\\ud800': {is_no_text}",
        "training/loss": f"key 'training/loss': the key belongs to the trainer; {fix}",
        "neighbour/calls": f"key 'neighbour/calls': the key belongs to neighbour; {fix}",
    }
    messages = await outcome(broken(callback, lambda _: dict.fromkeys(cases, 1)), tmp_path)
    for expected in cases.values():
        assert expected in messages
    callback.log_key_prefix = prefix


def error_in_words(_):
    raise KeyError("it")


@pytest.mark.parametrize("on_error", ["warn", "disable", "raise"])
async def test_exception(model, kind, tmp_path, on_error):
    callback = broken(CALLBACKS[kind](model, on_error=on_error), error_in_words)
    if on_error == "raise":
        with pytest.raises(CallbackError, match=rf"callback '{callback.name}' failed at step \d of 2: KeyError: 'it'"):
            await outcome(callback, tmp_path)
    else:
        messages = await outcome(callback, tmp_path)
        assert messages
        assert set(messages) == {"KeyError: 'it'"}
        assert (len(messages) == 1) is (on_error == "disable")


async def test_timeout(model, kind, tmp_path):
    async def hang(callback):
        await asyncio.Event().wait()

    messages = await outcome(broken(CALLBACKS[kind](model, timeout_s=0.02), hang), tmp_path)
    assert len(messages) >= 2
    assert set(messages) == {"TimeoutError: it took longer than timeout_s=0.02 and was cancelled"}


async def test_blocking_call(model, kind, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(watchdog_module, "LIMIT_S", 0.02)
    warned = threading.Event()

    class Recorder(CallbackRunner.__post_init__.__globals__["RunRecorder"]):
        def show_warning(self, message):
            super().show_warning(message)
            if "blocked" in message:
                warned.set()

    monkeypatch.setattr("descant.runner.callback_runner.RunRecorder", Recorder)

    def block(callback):
        warned.wait()
        return {}

    callback = broken(CALLBACKS[kind](model), block)
    assert await outcome(callback, tmp_path) == []
    assert f"callback '{callback.name}' has blocked the event loop for " in capsys.readouterr().err
    rows = query(tmp_path, "SELECT source, details FROM events WHERE kind = 'callback_blocked'")
    assert rows[0][0] == callback.name
    assert "warned.wait()" in rows[0][1]


async def test_the_same_in_a_trainer(model, kind, tmp_path):
    """One case of the matrix in descant's own loop, which is the same runner."""
    callback = broken(CALLBACKS[kind](model), error_in_words)
    dataset = addition_threads(4)
    result = await SFT(
        dataset=dataset, model=model, samples_per_batch=2, callbacks=[callback], run_dir=tmp_path
    ).run()  # fmt: skip
    assert result.num_steps == 2
    assert {failure.callback for failure in result.callback_failures} == {callback.name}
