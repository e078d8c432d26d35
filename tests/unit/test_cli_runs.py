"""``descant runs``, ``descant new``, ``descant run``: what the commands print, and their exit codes."""

import asyncio
import contextlib
import json
import os
import re
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from rich.cells import cell_len
from typer.testing import CliRunner

from descant.cli.app import app
from descant.errors import ConfigurationError
from descant.recipes import RecipeContext
from descant.runlog.run_log import RunLog
from descant.runlog.run_reader import RunReader
from descant.runner.recorder import RunRecorder

RECIPE = """
import helper
from pydantic import Field
from descant.recipes import InputConfig, RecipeContext, recipe_main

class Config(InputConfig):
    \"\"\"What the recipe is told.\"\"\"
    fail: str = Field("", description="how it ends")
    api_token: str = "hf_secret"
    lr: float | None = Field(1e-3, gt=0, le=1, description="the learning rate")

@recipe_main
async def main(ctx: RecipeContext, config: Config):
    \"\"\"Does as it is told.\"\"\"
    print(ctx.name, ctx.run_dir)
    helper.act(config.fail)
"""
HELPER = """
import asyncio, sys
def act(fail):
    if fail == "within a library":
        sys.path.append("library")
        from caller import call
        call(lambda: 1 / 0)
    if fail == "cancel":
        raise asyncio.CancelledError
    if fail == "exit":
        sys.exit(7)
    if fail:
        raise {"interrupt": KeyboardInterrupt}.get(fail, ValueError)(f"{fail}\\x1b[2J")
"""


METRICS = [
    {"key": "training/loss", "unit": "nats", "better": "lower", "headline": True},
    {"key": "validation/rewards/score/mean", "unit": "", "better": "higher", "headline": True},
    {"key": "validation/loss", "unit": "nats", "better": "lower", "headline": False},
]


def write_config(path, config, metrics=None):
    async def write():
        log = RunLog(path)
        await log.log_config(config)
        for key, values in (metrics or {"training/loss": [1.0]}).items():
            for step, value in enumerate(values, start=1):
                await log.log_metrics(step, {key: value})
        await log.close()

    asyncio.run(write())


async def write_run(path, *, outcome="completed", num_steps=10, lr=1e-3, loss=1.0, at=0):
    log = RunLog(path)
    recipe = {"name": "mine", "run_name": path.name, "config": {"lr": lr}}
    environment = {"python": "3.11", "command_line": [path.name], "recipe": recipe}
    callbacks = [{"name": "loss", "frequency": "1/10"}]
    config = {"trainer": "SFT", "num_steps": num_steps, "environment": environment, "callbacks": callbacks}
    await log.log_config(config | {"metrics": METRICS})
    await log.log_event(0, "run_started", "trainer", "SFT")
    for step in range(1, num_steps + 1):
        await log.log_metrics(step, {"training/loss": loss + num_steps - step, "validation/rewards/score/mean": step})
        await log.log_metrics(step, {"training/phase": "late", "progress/step": step})
    if outcome:
        await log.log_event(num_steps, f"run_{outcome}", "trainer", f"{outcome} after all")
    await log.close()
    if outcome is None:
        os.utime(log.path, (at or 1e9, at or 1e9))
    return path


@pytest.fixture
async def runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    await write_run(tmp_path / "runs" / "first", loss=0.5)
    await write_run(tmp_path / "runs" / "second", lr=1e-4, loss=0.25, outcome="failed")
    await write_run(tmp_path / "runs" / "third", loss=2.0, outcome=None)
    (tmp_path / "runs" / "fourth").mkdir()
    (tmp_path / "runs" / "fourth" / "run.sqlite").write_text("not a run")
    return tmp_path / "runs"


def invoke(*arguments, columns="160"):
    return CliRunner().invoke(app, list(map(str, arguments)), env={"COLUMNS": columns})


def listed(*arguments, **options):
    done = invoke("runs", *arguments, **options)
    assert done.exit_code == 0, done.stderr
    return done.stdout.splitlines()


def names(lines):
    rows = [line.split() for line in lines if " is broken: " not in line]
    return [row[0] for row in rows if row[0] in ("first", "second", "third", "fourth")]


def test_runs_are_listed_with_what_they_came_to(runs):
    lines = listed()
    assert set(names(lines)) == {"first", "second", "third", "fourth"}
    row = {line.split()[0]: line.split() for line in lines[:-1]}
    assert row["first"][1:4] == ["SFT", "10/10", "completed"]
    assert row["first"][-2:] == ["1", "10"]  # the loss of a run that has ended is the mean of its last two
    assert row["second"][3] == "failed"
    assert row["third"][3:5] == ["silent", "for"]
    assert row["fourth"][1] == "broken"
    assert "fourth is broken: runs/fourth/run.sqlite is not a run log" in lines[-1]


def test_names_are_never_cut(runs):
    assert set(names(listed(columns="40"))) == {"first", "second", "third", "fourth"}
    lines = listed(columns="60")
    assert set(names(lines)) == {"first", "second", "third", "fourth"}
    assert any("a wider terminal" in line for line in lines)
    assert any(line.split()[:1] == ["training"] or "training" in line for line in lines)


def test_newest_first(runs):
    order = names(listed("--filter", "SFT"))
    assert [name for name in order if name != "third"] == ["second", "first"] or order == ["third", "second", "first"]


def test_filter_and_sort(runs):
    assert names(listed("--filter", "FIR")) == ["first"]
    assert names(listed("--filter", "lr=1e-4")) == names(listed("--filter", "outcome=failed")) == ["second"]
    assert names(listed("--filter", "config.lr=0.0001")) == ["second"]
    assert names(listed("--filter", "trainer=SFT", "--filter", "name=first")) == ["first"]
    assert names(listed("--filter", "loss.frequency=1/10", "--sort", "training/loss")) == ["second", "first", "third"]
    assert names(listed("--sort", "training/loss", "--descending")) == ["third", "first", "second", "fourth"]
    assert "late" in "".join(listed("--metric", "training/phase"))


def test_numbers_are_compared_as_numbers_and_the_runs_own_setting_goes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = {
        "lr": 2e-3, "lr_scheduler": {"name": "Mine", "a": {"lr": 7.0}}, "model": {"path": "/models/tiny", "name": "p"},
        "files": [{"path": "/data/train.jsonl"}], "skip": True, "unset": None,
    }  # fmt: skip
    write_config(tmp_path / "runs" / "a", settings)
    for wanted in ("lr=2e-3", "lr=0.0020", "a.lr=7", "lr_scheduler.name=mine", "model.path=tiny", "path=train.jsonl",
                   "files.1.path=/data/train.jsonl", "skip=true", "unset=null"):  # fmt: skip
        assert listed("--filter", wanted)[-1].split()[0] == "a", wanted
    for wanted in ("lr=7", "lr=2e-4", "path=iny"):
        assert invoke("runs", "--filter", wanted).exit_code == 1, wanted
    assert "it has parts: lr_scheduler.name, lr_scheduler.a.lr" in invoke("runs", "--filter", "lr_scheduler=x").stderr


def test_a_learning_rate_that_nobody_says_is_the_highest_that_was_used(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rates = [1e-4, 3e-4, 2e-4]
    write_config(tmp_path / "runs" / "a", {"lr_scheduler": {"name": "f"}}, {"training/learning_rate": rates})
    assert listed("--filter", "lr=3e-4")[-1].split()[0] == "a"
    assert invoke("runs", "--filter", "lr=2e-4").exit_code == 1


def test_json_is_one_document_with_numbers_as_numbers(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, lr in (("a", 1e-3), ("b", 2e-3)):
        values = [1.0, float("nan") if name == "a" else float("-inf")]
        settings = {"lr": lr, "num_steps": 2, "metrics": METRICS, "title": "\x1b[2J"}
        write_config(tmp_path / "runs" / name, settings, {"training/loss": values})
    (tmp_path / "runs" / "c").mkdir()
    (tmp_path / "runs" / "c" / "run.sqlite").touch()
    done = invoke("runs", "--json")
    found = json.loads(done.stdout, parse_constant=pytest.fail)
    assert found["directory"] == "runs"
    runs = {run["name"]: run for run in found["runs"]}
    assert {name: run["settings"].get("lr") for name, run in runs.items()} == {"a": 1e-3, "b": 2e-3, "c": None}
    assert runs["a"]["metrics"] == {"training/loss": "NaN"}
    assert runs["b"]["metrics"] == {"training/loss": "-Infinity"}
    assert (runs["a"]["path"], runs["a"]["step"], runs["a"]["num_steps"], runs["a"]["problem"]) == (
        "runs/a",
        2,
        2,
        None,
    )
    assert (runs["c"]["outcome"], runs["c"]["step"]) == ("broken", None)
    assert "runs/c/run.sqlite is empty" in runs["c"]["problem"]
    assert {frozenset(run) for run in runs.values()} == {frozenset(runs["a"])}
    assert "\x1b" not in done.stdout
    assert [run["name"] for run in json.loads(invoke("runs", "--json", "--filter", "lr=1e-3").stdout)["runs"]] == ["a"]
    compared = json.loads(invoke("runs", "compare", "a", "b", "--json").stdout, parse_constant=pytest.fail)
    assert compared["settings"] == [{"key": "lr", "a": 1e-3, "b": 2e-3}]
    assert (compared["a"], compared["b"]["path"]) == ({"name": "a", "path": "runs/a"}, "runs/b")
    loss = {"key": "training/loss", "unit": "nats", "better": "lower", "a": {"step": 2, "last": "NaN", "best": 1.0}}
    assert compared["metrics"][0].items() >= loss.items()


def test_what_cannot_be_listed(runs):
    for arguments, reason in {
        ("nowhere",): "there are no runs in nowhere",
        ("--filter", "nothing"): "none of the 4 runs in runs matches nothing\n",
        ("--filter", "config.lr=3"): "none of the 4 runs in runs matches config.lr=3\n",
        ("--filter", "trainr=SFT"): "; no run has the setting 'trainr', did you mean 'trainer'?",
        ("--sort", "training/los"): "did you mean 'training/loss'?",
    }.items():
        done = invoke("runs", *arguments)
        assert done.exit_code == 1
        assert reason in done.stderr
        assert done.stdout == ""
    assert "it is one: descant show" in invoke("runs", "runs/first").stderr
    assert "--sort METRIC" in invoke("runs", "--descending").stderr
    assert "options are for lists" in invoke("runs", "compare", "first", "second", "--sort", "x").stderr
    assert invoke("runs", "a", "b").exit_code == 2
    assert invoke("runs", "compare", "first").exit_code == 2
    assert "did you mean" in invoke("runs", "compare", "first", "secnd").stderr


def test_two_runs_side_by_side(runs):
    lines = listed("compare", "first", "runs/second")
    text = "\n".join(lines)
    assert ["config.lr", "0.001", "0.0001"] in [line.split() for line in lines]
    assert "python" not in text  # it is the same
    assert "command_line" not in text
    rows = {line.split()[0]: line.split()[1:] for line in lines if line.split()}
    assert rows["training/loss"] == ["1", "0.5", "0.75", "0.25"]
    assert rows["validation/rewards/score/mean"] == ["10", "10", "10", "10"]
    assert rows["training/phase"] == ["late", "late"]
    assert "progress/step" not in rows
    assert "none" in listed("compare", "first", "first")[3]


def settings_that_differ(*arguments, **options):
    lines = listed("compare", *arguments, **options)
    return lines[lines.index("settings that differ") + 1 : lines.index("metrics") - 1]


@pytest.mark.parametrize("columns", ["40", "60", "80", "120"])
def test_what_differs_is_never_cut_off(tmp_path, columns):
    common = "/a/rather/long/directory/that/all/of/them/are/in/" * 2
    pairs = {
        "path": (f"{common}first/train.jsonl", f"{common}second/train.jsonl"),
        "callbacks.with_a_long_name.a_setting_with_a_long_name_of_its_own": (0.25, 0.5),
        "text": ("x" * 90, "y" * 90),
        "wide": ("漢字" * 30 + "一", "漢字" * 30 + "二"),
        "lr": (1e-5, 2e-3),
    }
    for index, name in enumerate("ab"):
        write_config(tmp_path / name, {key: values[index] for key, values in pairs.items()})
    lines = settings_that_differ(tmp_path / "a", tmp_path / "b", columns=columns)
    assert all(cell_len(line) <= int(columns) for line in lines)
    shown = re.sub(r"\s+", "", "".join(lines))
    assert all(key in shown for key in pairs)
    for part in ("first/", "second/", "x" * 90, "y" * 90, "一", "二", "0.25", "0.5", "1e-05", "0.002"):
        assert part in shown
    assert common not in shown


def test_a_difference_that_stands_under_several_names_is_listed_once(tmp_path):
    for name, lr, frequency in (("a", 1e-3, 0.1), ("b", 2e-3, 0.5)):
        recipe = {"name": "mine", "run_name": name, "config": {"lr": lr, "frequency": frequency, "model": None}}
        settings = {
            "lr": lr, "lr_scheduler": {"name": "CosineScheduler", "lr": lr}, "arguments": {"learning_rate": lr},
            "callbacks": [{"name": "loss", "frequency": frequency}, {"name": "other", "patience": int(lr * 1e3)}],
            "environment": {"recipe": recipe, "command_line": [name]}, "epochs": 1 if name == "a" else 1.0,
        }  # fmt: skip
        write_config(tmp_path / name, settings)
    rows = [line.split() for line in settings_that_differ(tmp_path / "a", tmp_path / "b")]
    assert rows == [
        ["A", "B"],
        ["config.frequency", "0.1", "0.5"],
        ["lr", "0.001", "0.002"],
        ["callbacks.other.patience", "1", "2"],
    ]


def test_what_only_one_run_has_is_one_line(tmp_path):
    few, many = {"name": "few", "x": 1}, {"name": "many", **{f"setting_{number}": number for number in range(9)}}
    write_config(tmp_path / "a", {"callbacks": [{"name": "loss", "x": 2}]})
    write_config(tmp_path / "b", {"callbacks": [{"name": "loss", "x": 2}, few, many]})
    rows = [line.split(maxsplit=2) for line in settings_that_differ(tmp_path / "a", tmp_path / "b")]
    assert rows[1:] == [["callbacks.few.x", "–", "1"], ["callbacks.many", "–", "9 settings"]]


async def test_long_keys_are_shown_whole_since_their_beginnings_or_ends_tell_them_apart(tmp_path):
    for name in ("a", "b"):
        log = RunLog(tmp_path / name)
        await log.log_config({"callbacks": [{"name": "validation", "temperature": name, "max_gen_len": name * 40}]})
        keys = [f"{group}/rewards/quality/{kind}" for group in ("easy", "hard") for kind in ("mean", "stderr")]
        await log.log_metrics(1, dict.fromkeys(keys, 1e12))
        await log.close()
    text = "\n".join(listed("compare", tmp_path / "a", tmp_path / "b", columns="60"))
    for key in ("callbacks.validation.temperature", "callbacks.validation.max_gen_len", *keys):
        assert re.search(rf"^  {key}( |$)", text, re.MULTILINE)


async def test_what_every_run_has_of_its_own_is_no_difference(tmp_path):
    for name in ("a", "b"):
        async with RunRecorder(tmp_path / name, 1, None, strict=False) as recorder:
            await recorder.announce("SFT", {"lr": 0.1}, [])
            await recorder.record(1, {"loss": 1.0})
    lines = [line.strip() for line in listed("compare", tmp_path / "a", tmp_path / "b")]
    assert lines[:4] == ["A is a, B is b", "", "settings that differ", "none"]


async def test_a_metric_that_fell_has_its_best_value(tmp_path):
    for name in ("a", "b"):
        log = RunLog(tmp_path / name)
        await log.log_config({"metrics": METRICS})
        for step, score in enumerate((0.1, 0.9, 0.5)):
            await log.log_metrics(step, {"validation/rewards/score/mean": score, "validation/loss": score})
            await log.log_metrics(step, {"training/grad_norm": score, "validation/loss_num_samples": step})
            await log.log_metrics(step, {"training/note": "a long text " * 20})
        await log.close()
    rows = {line.split()[0]: line.split()[1:] for line in listed("compare", tmp_path / "a", tmp_path / "b") if line}
    assert rows["validation/rewards/score/mean"] == ["0.5", "0.9", "0.5", "0.9"]
    assert rows["validation/loss"] == ["0.5", "0.1", "0.5", "0.1"]
    assert rows["training/grad_norm"] == ["0.5", "0.5"]  # it is not declared which values are better
    assert rows["validation/loss_num_samples"] == ["2", "2"]


async def test_a_run_that_declares_nothing_has_no_best_values_and_no_columns(tmp_path):
    for name in ("a", "b"):
        log = RunLog(tmp_path / name)
        await log.log_metrics(1, {"validation/loss": 0.5})
        await log.close()
    rows = {line.split()[0]: line.split()[1:] for line in listed("compare", tmp_path / "a", tmp_path / "b") if line}
    assert rows["validation/loss"] == ["0.5", "0.5"]
    assert "validation" not in listed(tmp_path)[0]
    assert "0.5" in "".join(listed(tmp_path, "--metric", "validation/loss"))


async def test_a_family_of_metrics_is_declared_with_a_star(tmp_path):
    log = RunLog(tmp_path / "a")
    metrics = [{"key": "v/*", "better": "higher"}, {"key": "v/loss", "better": "lower", "headline": True}]
    await log.log_config({"metrics": metrics})
    for step, value in enumerate((1.0, 3.0, 2.0)):
        await log.log_metrics(step, {"v/loss": value, "v/a": value, "w": value})
    await log.close()
    lines = [line.split() for line in listed("compare", tmp_path / "a", tmp_path / "a")]
    assert lines[-3:] == [["v/loss", "2", "1", "2", "1"], ["v/a", "2", "3", "2", "3"], ["w", "2", "2"]]


# new


def test_new_writes_two_files_and_overwrites_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = invoke("new", "recipe", "mine")
    assert done.exit_code == 0
    assert "descant run mine.py --config mine.toml" in done.stdout
    assert "RECIPE_NAME" not in Path("mine.py").read_text() + Path("mine.toml").read_text()
    Path("mine.py").write_text("# changed")
    again = invoke("new", "recipe", "mine.py")
    assert again.exit_code == 1
    assert "mine.py and mine.toml would be overwritten" in again.stderr
    assert Path("mine.py").read_text() == "# changed"
    assert invoke("new", "recipe", "deep/er/mine").exit_code == 0
    assert Path("deep/er/mine.toml").exists()
    for name in ("my-recipe", "class", ""):
        assert "cannot be a recipe's name" in invoke("new", "recipe", name).stderr
    for name in ("json", "torch", "descant"):
        assert f"'{name}' is the name of a library" in invoke("new", "recipe", name).stderr


# run


@pytest.fixture
def recipe(tmp_path):
    (tmp_path / "helper.py").write_text(HELPER)
    (tmp_path / "task.py").write_text(RECIPE)
    return tmp_path / "task.py"


def run(recipe, *arguments):
    command = [sys.executable, "-m", "descant.cli", "run", "task.py", *arguments]
    return subprocess.run(command, cwd=recipe.parent, capture_output=True, text=True, timeout=60)


def test_a_recipe_runs(recipe):
    done = run(recipe, "--name", "try", "--run-dir", "here")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"try {recipe.parent / 'here'}\njob try is complete\n"


def test_a_recipe_that_fails_shows_its_own_part_of_the_traceback(recipe):
    done = run(recipe, "--set", "fail=badly")
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert 'task.py", line 16, in main' in lines[1]
    assert lines[-1] == "ValueError: badly\\x1b[2J"
    assert "descant/recipes" not in done.stderr


def test_the_cause_of_a_failure_is_shown_from_the_recipes_own_part_on_too(recipe):
    (recipe.parent / "library").mkdir()
    text = """
def call(f):
    try:
        f()
    except Exception as error:
        raise RuntimeError("called") from error
"""
    (recipe.parent / "library" / "caller.py").write_text(text)
    lines = run(recipe, "--set", "fail=within a library").stderr.splitlines()
    assert 'helper.py", line 7, in <lambda>' in lines[1]  # and not the line of the library that has called it
    assert lines[-1] == "RuntimeError: called"


def test_exit_codes(recipe):
    assert run(recipe, "--set", "fail=interrupt").returncode == 130
    assert run(recipe, "--set", "fail=exit").returncode == 7
    cancelled = run(recipe, "--set", "fail=cancel")
    assert (cancelled.returncode, "typer" in cancelled.stderr) == (1, False)
    assert cancelled.stdout.splitlines()[-1] == "job task failed: asyncio.exceptions.CancelledError"
    wrong = run(recipe, "--set", "lr=2", "--set", "fial=x")
    assert wrong.returncode == 2
    assert wrong.stderr.splitlines() == [
        "descant: --set: 2 problems",
        "  lr = 2: must be less than or equal to 1",
        "  fial = 'x': there is no such key; did you mean 'fail'?",
    ]
    recipe.write_text(RECIPE.replace("import helper", "import helper, missing_module"))
    broken = run(recipe)
    assert broken.returncode == 1
    assert "No module named 'missing_module'" in broken.stderr
    assert "importlib" not in broken.stderr


def test_a_directory_that_holds_a_run_and_a_recipe_without_config(recipe):
    (recipe.parent / "old").mkdir()
    (recipe.parent / "old" / "run.sqlite").touch()
    done = run(recipe, "--run-dir", "old")
    assert (done.returncode, "already holds a run" in done.stderr) == (2, True)
    assert "--run-dir task.py is a file" in run(recipe, "--run-dir", "task.py").stderr
    recipe.write_text("from descant.recipes import recipe_main\n@recipe_main\ndef main(): print('ran')\n")
    assert run(recipe).stdout == "ran\njob task is complete\n"
    refused = run(recipe, "--set", "a=1")
    assert (refused.returncode, "takes no config" in refused.stderr) == (2, True)
    assert "It takes no config." in run(recipe, "--help").stdout


def test_help_is_made_from_the_recipes_config(recipe):
    done = run(recipe, "--help")
    assert done.returncode == 0
    assert "Does as it is told." in done.stdout
    assert "  lr: float | null, > 0, <= 1 (default 0.001)\n      the learning rate\n" in done.stdout
    assert "  fail: str (default '')\n      how it ends\n" in done.stdout
    assert "hf_secret" not in done.stdout


def test_every_command_has_help_with_an_example():
    for command in ([], ["run"], ["runs"], ["new", "recipe"], ["show"], ["sync"]):
        done = invoke(*command, "--help")
        assert done.exit_code == 0
        assert "\n    descant " in done.stdout, command
    assert "--install-completion" in invoke("--help").stdout
    assert invoke("run").exit_code == 2
    assert "which recipe?" in invoke("run").stderr


def test_completion(tmp_path):
    """Of the shell's word: its options are what the command accepts."""
    environment = {**os.environ, "_DESCANT_COMPLETE": "complete_bash", "COMP_CWORD": "2"}
    for words, expected in {"descant runs --f": {"--filter"}, "descant run --c": {"--config"}}.items():
        command = [sys.executable, "-m", "descant.cli"]
        done = subprocess.run(
            command, env={**environment, "COMP_WORDS": words}, cwd=tmp_path, capture_output=True, text=True, timeout=60
        )
        assert set(done.stdout.split()) == expected, done.stderr


def test_commands_work_without_torch(tmp_path):
    script = (
        "import sys; sys.modules['torch'] = sys.modules['transformers'] = sys.modules['numpy'] = None\n"
        "from descant.cli.app import app; app(prog_name='descant')"
    )
    for arguments, code in {("--version",): 0, ("new", "recipe", "a"): 0, ("run", "b.py"): 2, ("runs",): 1}.items():
        command = [sys.executable, "-c", script, *arguments]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr


BROKEN = {
    "config that is a list": "UPDATE config SET value = '[1]' WHERE key = 'metrics'",
    "metrics of another version": """UPDATE config SET value = '[{"name": "loss"}]' WHERE key = 'metrics'""",
    "a time that is text": "UPDATE events SET time = 'noon'",
    "a time beyond all years": "UPDATE events SET time = 1e300",
    "not JSON": "UPDATE config SET value = '{'",
    "no points": "DROP VIEW metrics; DROP TABLE points",
    "another format": "PRAGMA user_version = 99",
    "a foreign file": "DROP TABLE config",
}


@pytest.mark.parametrize("how", [*BROKEN, "an empty file", "a folder", "a link to nothing"])
async def test_a_run_that_cannot_be_read_is_listed_with_the_reason_beside_the_others(tmp_path, monkeypatch, how):
    monkeypatch.chdir(tmp_path)
    await write_run(tmp_path / "runs" / "good")
    bad = tmp_path / "runs" / "bad" / "run.sqlite"
    if how in BROKEN:
        await write_run(bad.parent)
        with contextlib.closing(sqlite3.connect(bad)) as connection:
            connection.executescript(BROKEN[how])
    else:
        bad.parent.mkdir()
        {"an empty file": bad.touch, "a folder": bad.mkdir, "a link to nothing": lambda: bad.symlink_to("x")}[how]()
    lines = listed()
    assert any(line.split()[:4] == ["good", "SFT", "10/10", "completed"] for line in lines)
    if how != "a link to nothing":  # which may or may not be seen, as Python's glob has it
        assert "  bad is broken: " in lines[-1]
    assert invoke("show", "bad").exit_code == 1
    compared = invoke("runs", "compare", "good", "bad")  # times are no part of it
    assert isinstance(compared.exception, SystemExit | None)


async def test_a_run_is_found_by_the_name_that_it_was_given(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("baseline-20261127-235553", "higher-lr-20261128-000202-2", "higher-20261128-000303"):
        await write_run(tmp_path / "runs" / name)
    done = invoke("runs", "compare", "baseline", "higher-lr")
    assert done.stdout.startswith("A is baseline-20261127-235553, B is higher-lr-20261128-000202-2\n")
    assert "runs/higher-20261128-000303" in invoke("show", "higher").stdout
    await write_run(tmp_path / "runs" / "baseline-20261128-000000")
    done = invoke("show", "baseline")
    assert done.exit_code == 1
    lines = done.stderr.splitlines()
    assert lines[0] == "descant: 2 runs under runs/ are named baseline; give the whole name of one:"
    assert [line.split()[:3] for line in lines[2:]] == [
        ["baseline-20261128-000000", "10/10", "completed"],
        ["baseline-20261127-235553", "10/10", "completed"],
    ]
    assert (
        "2 runs under runs/ have names that begin with basel; give" in invoke("sync", "basel", "--to", "mlflow").stderr
    )
    assert "there is no run runs/bassel" in invoke("show", "bassel").stderr
    assert "runs/higher-lr-20261128-000202-2" in invoke("show", "higher-l").stdout  # the only one that begins so
    Path("higher-l").mkdir()  # which is no run
    assert "runs/higher-lr-20261128-000202-2" in invoke("show", "higher-l").stdout
    await write_run(Path("higher-l"))
    assert invoke("show", "higher-l").stdout.splitlines()[-1] != ""
    assert "runs/higher-lr" not in invoke("show", "higher-l").stdout


def test_two_contexts_in_the_same_second_have_a_directory_each(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("descant.recipes.context.default_run_dir", lambda name: Path("runs") / f"{name}-now")
    contexts = [RecipeContext("a") for _ in range(3)]
    with contexts[0], contexts[1], contexts[2]:
        monkeypatch.chdir("/")
        assert [ctx.run_dir for ctx in contexts] == [tmp_path / "runs" / f"a-now{end}" for end in ("", "-2", "-3")]
        (contexts[1].run_dir / "something").touch()
    assert list((tmp_path / "runs").iterdir()) == [contexts[1].run_dir]  # empty ones are not left behind
    with pytest.raises(ConfigurationError, match="cannot be made: File name too long"):
        RecipeContext("x" * 300).__enter__()


def test_one_huge_line_of_an_error_does_not_fill_the_terminal(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = "from descant.recipes import recipe_main\n@recipe_main\ndef main():\n    raise ValueError('x' * 100_000)\n"
    Path("r.py").write_text(text)
    done = invoke("run", "r.py")
    assert done.exit_code == 1
    assert len(done.stderr) < 4000


SECRET_RECIPE = """
from pydantic import BaseModel, SecretStr
from descant import CallbackRunner, RecipeCallback
from descant.recipes import InputConfig, RecipeContext, recipe_main

class Judge(BaseModel):
    key: SecretStr
    api_key: str

class Config(InputConfig):
    judge: Judge

class Asks(RecipeCallback):
    async def callback(self, current_percentage):
        raise ConnectionError(f"the judge refused {self.key}")

@recipe_main
async def main(ctx: RecipeContext, config: Config):
    asks = Asks(1.0, "asks", name="asks")
    asks.key = config.judge.key.get_secret_value()
    async with CallbackRunner([asks], num_steps=1, run_dir="run") as runner:
        await runner.after_step(1)
"""


def test_a_secret_of_the_command_line_is_nowhere_in_the_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("r.py").write_text(SECRET_RECIPE)
    arguments = ["run", "r.py", "--set=judge.key=hunter2 hunter2", "--set=judge.api_key=hunter2"]
    monkeypatch.setattr(sys, "argv", ["descant", *arguments])
    done = invoke(*arguments)
    assert done.exit_code == 0, done.stderr
    assert "hunter2" not in done.stdout + done.stderr
    assert [path for path in Path("run").iterdir() if b"hunter2" in path.read_bytes()] == []
    with RunReader("run") as reader:
        shown = ["--set=judge.key=***", "--set=judge.api_key=***"]
        assert reader.config["environment"]["command_line"] == ["descant", "run", "r.py", *shown]
        assert "callback 'asks' failed at step 1 of 1: ConnectionError: the judge refused ***" in {
            event.message for event in reader.events
        }
