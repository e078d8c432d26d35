"""What the documentation shows is what happens: snippets run, and print what they are said to print."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_model import save_tiny_qwen3

from descant.runlog.run_reader import RunReader

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PROGRAMS = {"README.md"}  # whole programs; the snippets of the others are cells of a notebook
NOTEBOOKS = [page for page in PAGES if page.name not in PROGRAMS and "```python" in page.read_text(encoding="utf-8")]
NOTEBOOK_RUNNER = """
import ast, asyncio, contextlib, gc, os, sys, traceback

async def main(page, cells):
    names = {"__name__": "__main__"}
    for number, cell in enumerate(cells, start=1):
        code = compile(cell, f"{page}, snippet {number}", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        result = eval(code, names)
        if result is not None:
            await result

for folder in sys.argv[1:]:
    os.chdir(folder)
    with open("errors", "w") as errors, contextlib.redirect_stderr(errors):
        try:
            asyncio.run(main(os.path.basename(folder), open("cells").read().split("\\0")))
            open("done", "w").close()
        except BaseException:
            traceback.print_exc()
        gc.collect()  # a task whose failure nobody has asked for says so now
"""


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def masked(text):
    """Lines without numbers, paths' dates and padding, which differ from machine to machine."""
    return [
        re.sub(r"\s+", " ", re.sub(r"# ms\b", "# s", re.sub(r"[\d.,:]*\d", "#", line))).strip()
        for line in text.splitlines()
    ]


def run(arguments, cwd, **variables):
    environment = {**os.environ, "PYTHONPATH": "", "COLUMNS": "200", **variables}
    done = subprocess.run(arguments, cwd=cwd, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def test_every_page_is_tested():
    assert [page.name for page in NOTEBOOKS] == [
        "callbacks.md", "data.md", "graders.md", "integrations.md", "modes.md", "quickstart.md", "recipes.md",
        "run-log.md", "testing.md", "trackers.md", "writing-a-callback.md",
    ]  # fmt: skip
    assert {page.name: len(blocks(page, "python")) for page in PAGES if page.name in PROGRAMS} == {"README.md": 2}


@pytest.fixture(scope="module")
def notebooks(tmp_path_factory):
    """A folder for each page, in which its snippets have run, one page after another in one process."""
    home = tmp_path_factory.mktemp("notebooks")
    save_tiny_qwen3(home / "tiny-qwen3")
    folders = [home / page.name for page in NOTEBOOKS]
    for folder, page in zip(folders, NOTEBOOKS, strict=True):
        shutil.copytree(home / "tiny-qwen3", folder / "tiny-qwen3")
        write_small_data(folder)
        (folder / "cells").write_text("\0".join(blocks(page, "python")), encoding="utf-8")
    run([sys.executable, "-c", NOTEBOOK_RUNNER, *folders], home)
    return home


@pytest.mark.parametrize("page", NOTEBOOKS, ids=lambda page: page.stem)
def test_the_snippets_of_a_page_run_from_top_to_bottom(notebooks, page):
    errors = (notebooks / page.name / "errors").read_text(encoding="utf-8")
    assert (notebooks / page.name / "done").exists(), errors[-3000:]
    assert "Task exception was never retrieved" not in errors


def test_the_first_screen_of_the_readme_runs_inside_the_trainer_of_trl(tmp_path):
    save_tiny_qwen3(tmp_path / "tiny-qwen3")
    write_small_data(tmp_path)
    (tmp_path / "program.py").write_text(blocks(ROOT / "README.md", "python")[0])
    done = run([sys.executable, "program.py"], tmp_path, TRACKIO_DIR=str(tmp_path / "trackio"))
    assert "completed after 24 of 24 steps" in done.stderr
    (directory,) = (tmp_path / "runs").iterdir()
    with RunReader(directory) as reader:
        assert [*reader.series("validation/rewards/score/mean")][::5] == [0, 12, 24]
        assert len(reader.series("validation/loss")) == 11
    assert list((tmp_path / "trackio").glob("*.db"))


def test_the_whole_program_of_the_readme(tmp_path):
    save_tiny_qwen3(tmp_path / "tiny-qwen3")
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    (tmp_path / "program.py").write_text(blocks(ROOT / "README.md", "python")[1])
    done = run([sys.executable, "program.py"], tmp_path)
    printed = masked(done.stderr + done.stdout)
    shown = masked(next(text for text in blocks(ROOT / "README.md", "text") if text.startswith("SFT: policy")))
    quoted = re.compile(r"'[^']*' → '[^']*'$")  # a sample differs in the last digits of a machine
    lines = {quoted.sub("SAMPLE", line) for line in printed}
    missing = [line for line in shown if quoted.sub("SAMPLE", line) not in lines and "forecast" not in line]
    assert any(line.startswith("forecast: # s in all, of which callbacks # %: ") for line in printed)
    assert not missing, f"the README shows {missing}, but the program printed\n" + "\n".join(printed)


def test_commands_and_files_that_the_pages_name_exist():
    makefile = (ROOT / "Makefile").read_text()
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for target in re.findall(r"`make (\w+)", text):
            assert f"\n{target}:" in makefile, f"{page.name}: make {target}"
        for path in re.findall(r"(?<!\.\w\w/)(?<!\.com/)\b(?:tests|docs|examples)/[\w/.-]+\w", text):
            assert (ROOT / path).exists(), f"{page.name}: {path}"
        for test in re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", text.replace("\n", " ")):
            assert f"def {test[1]}" in (ROOT / test[0]).read_text()


def write_small_data(folder):
    for name, count in (("train", 60), ("validation", 12)):
        lines = (ROOT / "examples" / "addition" / f"{name}.jsonl").read_text().splitlines()[:count]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))


def test_the_demo_with_a_model_and_data_of_ones_own(qwen3_dir, tmp_path):
    write_small_data(tmp_path)
    script = ROOT / "examples" / "addition" / "train.py"
    options = ["--model", qwen3_dir, "--train", "train.jsonl", "--validation", "validation.jsonl"]
    options += ["--epochs", "0.4", "--samples-per-batch", "6", "--run-dir", "run"]
    done = run([sys.executable, script, *options], tmp_path)
    assert "What was learnt" in done.stdout
    assert re.search(r"Exact match went from [\d.]+% to [\d.]+% in 4 steps", done.stdout)
    assert "run/run.sqlite" in done.stdout
    assert (tmp_path / "run" / "model" / "model.safetensors").exists()
    assert (tmp_path / "run" / "run.sqlite").exists()
    assert not (tmp_path / "runs").exists()


def test_the_bare_loop(tmp_path):
    script = ROOT / "examples" / "addition" / "bare_loop.py"
    done = run([sys.executable, script, "--num-steps", "4"], tmp_path)
    assert re.search(r"Look at it again: descant show .*runs/run-\d+-\d+", done.stdout)
    shown = masked(done.stderr)
    assert "early_stopping with validation/loss #+ not known before" in shown
    assert sum(line.startswith("validation rewards/score/mean") for line in shown) == 5
    assert "failed" not in done.stderr


def test_the_data_of_the_demo_is_what_its_script_generates(tmp_path):
    folder = shutil.copytree(ROOT / "examples" / "addition", tmp_path / "addition")
    names = ["train.jsonl", "validation.jsonl"]
    for name in names:
        (folder / name).unlink()
    run([sys.executable, folder / "generate_data.py"], tmp_path)
    rows = {}
    for name in names:
        assert (folder / name).read_text() == (ROOT / "examples" / "addition" / name).read_text()
        rows[name] = set((folder / name).read_text().splitlines())
    assert not rows["train.jsonl"] & rows["validation.jsonl"]
