"""What a run says and where it writes, whatever callbacks do to the process."""

import asyncio
import os

import pytest
from support import query, series

from descant import CallbackRunner, RecipeCallback, Table
from descant.runner.recorder import unused_run_dir

PAGE = "<html>" + "the proxy says no " * 10_000 + "api_key=hunter2"


class Failing(RecipeCallback):
    def __init__(self):
        super().__init__(frequency=1.0, log_key_prefix="failing", at_start=False)

    async def callback(self, current_percentage):
        raise ConnectionError(PAGE)


class Moving(RecipeCallback):
    """Changes the working directory at every step."""

    def __init__(self, folder):
        super().__init__(frequency=0.5, log_key_prefix="moving")
        self.folder = folder
        self.run_dirs = set()

    async def callback(self, current_percentage):
        folder = self.folder / str(self.run.step)
        folder.mkdir()
        os.chdir(folder)
        self.run_dirs.add(self.run.run_dir.absolute())
        return {}


class Slow(RecipeCallback):
    """Returns at once what takes long to check."""

    def __init__(self):
        super().__init__(frequency=0.5, log_key_prefix="slow")

    async def callback(self, current_percentage):
        return {"table": Table(["n"], [[1]])}


async def drive(callbacks, num_steps=2, **options):
    async with CallbackRunner(callbacks, num_steps=num_steps, **options) as runner:
        for step in range(1, num_steps + 1):
            await runner.after_step(step, {"loss": 1.0})
    return runner


async def test_an_error_of_any_length_is_short_on_the_console_and_whole_in_the_run_log(tmp_path, capsys):
    await drive([Failing()], run_dir=tmp_path)
    lines = capsys.readouterr().err.splitlines()
    assert max(map(len, lines)) < 1100
    assert "hunter2" not in "".join(lines)
    ((message, details),) = query(tmp_path, "SELECT message, details FROM events WHERE kind = 'callback_failed'")
    assert message.endswith("api_key=***")
    assert "hunter2" not in details
    assert len(details) > len(message) > 100_000


@pytest.mark.parametrize("given", ["given", None])
async def test_a_callback_that_changes_the_working_directory_scatters_nothing(tmp_path, monkeypatch, given):
    monkeypatch.chdir(tmp_path)
    moving = Moving(tmp_path)
    runner = await drive([moving], run_dir=given, name="x")
    expected = tmp_path / "given" if given else next((tmp_path / "runs").iterdir())
    assert runner.run_dir == expected
    assert moving.run_dirs == {expected}
    assert list(tmp_path.rglob("run.sqlite")) == [expected / "run.sqlite"]
    assert series(expected, "loss") == {1: 1.0, 2: 1.0}


async def test_runs_that_begin_in_the_same_second_have_a_directory_each(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("descant.runner.recorder.default_run_dir", lambda name: tmp_path / "runs" / "x-now")
    runners = await asyncio.gather(*(drive([]) for _ in range(3)))
    assert {runner.run_dir.name for runner in runners} == {"x-now", "x-now-2", "x-now-3"}


def test_a_directory_that_is_there_is_taken_only_where_it_may_be(tmp_path):
    (tmp_path / "empty").mkdir()
    assert unused_run_dir(tmp_path / "empty", may_be_there=True) == tmp_path / "empty"
    assert unused_run_dir(tmp_path / "empty") == tmp_path / "empty-2"


async def test_the_time_until_a_result_is_recorded_is_time_that_training_waits(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("descant.runner.calls.time.perf_counter", lambda: clock[0])

    async def check(function, *arguments):
        clock[0] += 8.0
        return function(*arguments)

    runner = CallbackRunner([Slow()], num_steps=2, run_dir=tmp_path)
    async with runner:
        monkeypatch.setattr("descant.runner.calls.off_loop", check)
        for step in (1, 2):
            await runner.after_step(step)
    assert series(tmp_path, "callbacks/slow/stall_s") == {0: 0.0, 1: 8.0, 2: 8.0}
    assert runner.costs["slow"].seconds == 16.0
