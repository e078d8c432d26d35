"""The way of a new user: install the wheel, make a recipe, preview it, run it, look at it in terminal and browser."""

import io
import os
import re
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from types import SimpleNamespace

import pytest
from browser import CHROMIUM, NO_CHROMIUM, chromium, trackio_dashboard
from PIL import Image
from support import series
from trackers import need

ROOT = Path(__file__).parents[2]
FIRST_SCREEN = {"width": 1440, "height": 900}


@pytest.fixture(scope="module")
def user(tmp_path_factory):
    """A folder, and ``run`` for commands in it. descant is installed from its wheel; what it depends on is taken from
    this environment."""
    home = tmp_path_factory.mktemp("home")
    environment = {**os.environ, "COLUMNS": "120", "TRACKIO_DIR": str(home / "trackio")}
    environment.pop("PYTHONPATH", None)

    def run(*command):
        done = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
        return done.stdout + done.stderr

    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")
    run(*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", home / "dist", ROOT)
    venv.create(home / "venv", symlinks=True)
    python = home / "venv" / "bin" / "python"
    (wheel,) = (home / "dist").glob("descant-*.whl")
    run(*pip, "--python", python, "install", "--no-deps", "--no-index", wheel)
    (packages,) = (home / "venv" / "lib").glob("*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    assert str(packages) in run(python, "-c", "import descant; print(descant.__file__)")
    return SimpleNamespace(home=home, run=run, python=python, descant=python.parent / "descant")


@pytest.fixture(scope="module")
def recipe(user):
    """A new recipe with a model and data that fit it, up to the point of running it."""
    user.run(user.python, ROOT / "examples" / "addition" / "tiny_model.py", "tiny-qwen3")
    for name, count in (("train", 640), ("validation", 60)):
        lines = (ROOT / "examples" / "addition" / f"{name}.jsonl").read_text().splitlines()[:count]
        (user.home / f"{name}.jsonl").write_text("\n".join(lines))
    user.run(user.descant, "new", "recipe", "my_sft")
    config = user.home / "my_sft.toml"
    config.write_text(config.read_text().replace("trackers = []", 'trackers = ["trackio"]'))
    return ("my_sft.py", "--config", "my_sft.toml", "--set", "lr=2e-3", "--set", "max_gen_len=8")


@pytest.fixture(scope="module")
def run_dir(user, recipe):
    """The directory of a run of the recipe."""
    said = user.run(user.descant, "run", *recipe, "--name", "first")
    (run_dir,) = (user.home / "runs").glob("first-*")
    assert "completed after 20 of 20 steps" in said
    assert f"descant show {run_dir}" in said
    return run_dir


def test_the_preview_says_what_will_happen_and_trains_nothing(user, recipe):
    said = user.run(user.descant, "preview", *recipe)
    assert "20 steps of 32" in said
    assert "<|im_start|>user" in said  # a thread as it is rendered
    for callback in ("validation", "loss", "samples"):
        assert re.search(rf"^\s*{callback}\s+every 10 %", said, flags=re.MULTILINE), said
    assert not list((user.home / "runs").glob("first-*"))


def test_the_run_is_there_in_the_terminal(user, run_dir):
    losses = series(run_dir, "validation/loss")
    assert list(losses) == list(range(0, 21, 2))
    assert losses[20] < losses[0]
    shown = user.run(user.descant, "show", run_dir.name)
    assert "20 of 20 steps · completed" in shown
    assert re.search(r"^  loss .*\d", shown, flags=re.MULTILINE)
    assert "rewards/score/mean" in shown
    assert "25+60=" in shown
    assert run_dir.name in user.run(user.descant, "runs")
    for model in ("model", "checkpoints/best"):
        assert (run_dir / model / "model.safetensors").exists()


@pytest.mark.skipif(CHROMIUM is None, reason=NO_CHROMIUM)
def test_curves_and_grades_are_on_the_first_screen_of_trackio(user, run_dir, tmp_path):
    need("trackio")
    with trackio_dashboard(user.home / "trackio", tmp_path / "dashboard.log") as url, chromium() as open_page:
        page = open_page(f"{url}/?project=my_sft", viewport=FIRST_SCREEN)
        score = page.locator(".plot-container", has_text=re.compile("score.mean"))
        score.locator("canvas").wait_for()
        labels = page.locator(".plot-title, .accordion-label").all()
        seen = [label.inner_text() for label in labels if label.bounding_box()["y"] < FIRST_SCREEN["height"] * 2 / 3]
        (run_name,) = page.locator(".run-name").all_inner_texts()
        drawn = Image.open(io.BytesIO(score.locator("canvas").screenshot())).convert("RGB")
        page.goto(f"{url}/media?project=my_sft")
        page.get_by_text("validation/samples").first.wait_for()
        headers = [table.locator("th").all_text_contents() for table in page.locator("table").all()]
        tables = page.locator("body").inner_text()
    assert run_name == run_dir.name
    training = next(place for place, label in enumerate(seen) if label.startswith("training"))
    validation = next(place for place, label in enumerate(seen) if label.startswith("validation"))
    assert "loss" in seen[training:validation]
    assert {"loss", "rewards.score.mean"} <= set(seen[validation:])
    assert len(drawn.getcolors(maxcolors=100_000)) > 20  # axes, and a curve whose edges are smooth
    assert ["step", "prompt", "response", "reference", "grade"] in [columns[:5] for columns in headers]
    assert "25+60=" in tables
