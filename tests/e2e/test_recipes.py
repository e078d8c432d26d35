"""Recipes as people run them: the template unchanged, Ctrl-C, and the commands that the docs show."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support import addition_threads, query, series, training_model
from tiny_model import save_tiny_qwen3

from descant import SFT
from descant.errors import CallbackError, ConfigurationError
from descant.notifiers import JobNotifier
from descant.recipes.recipe import load_recipe
from descant.runlog.run_reader import RunReader

ROOT = Path(__file__).parents[2]
PAGES = ("recipes.md", "cli.md", "quickstart.md")
ENVIRONMENT = {**os.environ, "COLUMNS": "100"}


def descant(cwd, *arguments, code=0, **environment):
    command = [sys.executable, "-m", "descant.cli", *arguments]
    done = subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, env={**ENVIRONMENT, **environment}, timeout=300
    )
    assert done.returncode == code, done.stderr[-3000:]
    return done


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A directory with a model and data, and a recipe from the template that has run once."""
    path = tmp_path_factory.mktemp("workplace")
    save_tiny_qwen3(path / "tiny-qwen3")
    for name, count in (("train", 60), ("validation", 12)):
        lines = (ROOT / "examples" / "addition" / f"{name}.jsonl").read_text().splitlines()[:count]
        (path / f"{name}.jsonl").write_text("\n".join(lines))
    descant(path, "new", "recipe", "my_sft")
    done = descant(path, "run", "my_sft.py", "--config", "my_sft.toml", "--run-dir", "runs/template")
    (path / "printed").write_text(done.stdout + done.stderr)
    return path


def test_the_template_runs_unchanged(workplace):
    run_dir = workplace / "runs" / "template"
    assert list(series(run_dir, "validation/loss")) == [0, 1, 2]
    assert (run_dir / "model" / "model.safetensors").is_file()
    assert (run_dir / "checkpoints" / "best" / "model.safetensors").is_file()
    printed = (workplace / "printed").read_text()
    assert "Writing model shards" not in printed  # a bar for every checkpoint, beside the trainer's own
    assert f"look at the run: descant show {run_dir}" in printed
    with RunReader(run_dir) as reader:
        assert reader.outcome == "completed"
        environment = reader.config["environment"]
        assert environment["recipe"]["config"]["model"]["model_key"] == "tiny-qwen3"
        assert environment["packages"]["torch"]
        assert environment["command_line"][1:3] == ["run", "my_sft.py"]
        best = reader.config["callbacks"][-1]
        assert (best["class"], best["checkpoint_name"], best["metric"]) == (
            "BestModelCallback",
            "best",
            "validation/loss",
        )
        assert reader.config["callbacks"][0]["max_gen_len"] == 64


def test_two_runs_of_a_recipe_are_compared(workplace):
    descant(workplace, "run", "my_sft.py", "--config", "my_sft.toml", "--set", "lr=1e-3", "--run-dir", "runs/faster")
    done = descant(workplace, "runs", "compare", "template", "faster")
    assert ["lr", "1e-05", "0.001"] in [line.split() for line in done.stdout.splitlines()]
    listed = descant(workplace, "runs", "--sort", "validation/loss").stdout
    assert listed.index("faster") < listed.index("template")


def test_a_config_that_cannot_work_fails_before_a_model_loads(workplace):
    done = descant(
        workplace, "run", "my_sft.py", "--config", "my_sft.toml", "--set", "train=trian.jsonl", "--set", "lr=0", code=2
    )
    assert "train = 'trian.jsonl': there is no file" in done.stderr
    assert "did you mean 'train.jsonl'?" in done.stderr
    assert "lr = 0: must be greater than 0" in done.stderr
    assert "Loading" not in done.stderr


def test_ctrl_c_ends_a_run_in_order(workplace):
    command = [sys.executable, "-m", "descant.cli", "run", "my_sft.py", "--config", "my_sft.toml"]
    command += ["--set", "epochs=200", "--set", "frequency=1", "--run-dir", "runs/interrupted"]
    process = subprocess.Popen(command, cwd=workplace, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for line in process.stderr:
        if re.match(r"step [1-9]\d*/", line.replace(",", "")):
            process.send_signal(signal.SIGINT)
            break
    else:
        pytest.fail("the run has ended before it was interrupted")
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert "descant: interrupted" in errors
    assert "Traceback" not in errors
    with RunReader(workplace / "runs" / "interrupted") as reader:
        assert reader.outcome == "interrupted"


def test_the_template_is_a_recipe(workplace):
    recipe = load_recipe(workplace / "my_sft.py")
    assert set(recipe.config_class.model_fields) >= {"model", "train", "validation", "grader", "lr"}


class Recording(JobNotifier):
    def __init__(self, fails=False):
        super().__init__()
        self.calls, self.fails = [], fails

    def report_progress(self, stage, tot, processed, link, checkpoints):
        self.calls.append((stage, tot, processed))
        if self.fails:
            raise OSError("the control plane is down")

    def report_error(self, error): ...

    def complete(self): ...


async def train(model_dir, run_dir, notifier, **options):
    async with training_model(model_dir) as model:
        return await SFT(
            dataset=addition_threads(10), model=model, samples_per_batch=4, epochs=1.5, run_dir=run_dir,
            stage_notifier=notifier, **options,
        ).run()  # fmt: skip


async def test_sft_tells_its_stage_how_many_samples_are_done(qwen3_dir, tmp_path):
    job = Recording()
    await train(qwen3_dir, tmp_path / "run", job.stage_notifier("train"))
    assert job.calls == [("train", 15, done) for done in (0, 4, 8, 12, 15)]


async def test_a_notifier_that_fails_is_recorded_and_training_goes_on(qwen3_dir, tmp_path):
    result = await train(qwen3_dir, tmp_path / "run", Recording(fails=True).stage_notifier("train"))
    assert result.num_steps == 4
    events = query(tmp_path / "run", "SELECT step, message FROM events WHERE kind = 'notifier_failed'")
    assert [step for step, _ in events] == [0, 1, 2, 3, 4]
    assert "OSError: the control plane is down" in events[0][1]
    with pytest.raises((OSError, CallbackError)):
        await train(qwen3_dir, tmp_path / "strict", Recording(fails=True).stage_notifier("train"), strict=True)


async def test_what_is_not_a_notifier(qwen3_dir, tmp_path):
    with pytest.raises(ConfigurationError, match="stage_notifier='train' must have report_progress"):
        await train(qwen3_dir, tmp_path / "run", "train")


# The docs


def blocks(page, language):
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def without_numbers(text):
    return re.sub(r"\d+", "#", text)


@pytest.mark.parametrize("page", PAGES)
def test_the_commands_of_a_page_work(workplace, tmp_path, page):
    """Every ``descant`` command in a bash block, in order, in a directory with a model, data and two runs."""
    for name in ("tiny-qwen3", "train.jsonl", "validation.jsonl"):
        (tmp_path / name).symlink_to(workplace / name)
    for name in ("baseline", "higher-lr"):
        shutil.copytree(workplace / "runs" / "template", tmp_path / "runs" / name)
    for name, text in re.findall(
        r"`(\w+\.(?:py|toml))`:\n\n```(?:python|toml)\n(.*?)^```",
        (ROOT / "docs" / page).read_text(encoding="utf-8"),
        flags=re.DOTALL | re.MULTILINE,
    ):
        (tmp_path / name).write_text(text)
    commands = [line for block in blocks(page, "bash") for line in block.splitlines() if "descant " in line]
    assert commands
    for command in commands:
        line, _, comment = command.partition("  #")
        line = line.partition(" | ")[0]
        words = shlex.split(line)
        name = words.index("descant")
        environment, arguments = dict(word.split("=") for word in words[:name]), words[name + 1 :]
        code = int(re.findall(r"exit code (\d+)", comment)[0]) if "exit code" in comment else 0
        done = descant(tmp_path, *arguments, code=code, **environment)
        if arguments[0] == "sync":
            assert without_numbers(done.stdout) in map(without_numbers, blocks(page, "text"))


def test_the_toml_that_new_writes_is_the_one_the_quickstart_shows(workplace):
    assert (workplace / "my_sft.toml").read_text() in blocks("quickstart.md", "toml")
