"""All pictures of README and docs, from real runs as Chromium shows them: about five minutes on two cores.

The demo runs at two learning rates, and then LoRA inside TRL on the model that the first has trained. Trackio,
TensorBoard and MLflow are given these runs as any other; each page is drawn as it opens. With a folder as argument the
runs are kept there, and taken from there the next time.
"""

import io
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from browser import CHROMIUM, NO_CHROMIUM, chromium, tensorboard, trackio_dashboard
from trackers import start_mlflow_server

ROOT = Path(__file__).parent.parent
IMAGES = ROOT / "docs" / "images"
LEARNING_RATES = ("2e-3", "5e-4")
SIZE = {"width": 1440, "height": 940}
MAX_BYTES = 250_000


def main():
    if CHROMIUM is None:
        sys.exit(NO_CHROMIUM)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(sys.argv[1] if len(sys.argv) > 1 else temporary).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        mlflow, stop_mlflow = start_mlflow_server(folder)
        try:
            make_runs(folder, mlflow)
            with chromium() as open_page:
                draw_trackio(open_page, folder)
                draw_tensorboard(open_page, folder)
                draw_mlflow(open_page, mlflow)
        finally:
            stop_mlflow()
    subprocess.run([sys.executable, ROOT / "benchmarks" / "timeline.py"], check=True)


def make_runs(folder, mlflow):
    """The demo at both learning rates, at the same time, and then LoRA on its model."""
    environment = {
        **os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "120", "WANDB_MODE": "disabled",
        "MLFLOW_TRACKING_URI": mlflow, "MLFLOW_EXPERIMENT_NAME": "addition",
        "TENSORBOARD_LOGGING_DIR": str(folder / "tensorboard"),
    }  # fmt: skip
    demos = [["addition/train.py", "--lr", lr, "--run-dir", f"lr-{lr}"] for lr in LEARNING_RATES]
    model = f"lr-{LEARNING_RATES[0]}/model"
    lora = [
        "trl_lora/train.py",
        "--model",
        model,
        "--lr",
        "5e-3",
        "--max-steps",
        "600",
        "--use-cpu",
        "--run-dir",
        "lora",
    ]
    for programs, trackio in ((demos, "trackio"), ([[*lora, "--run-dir", "lora"]], "trackio-trl")):
        started = []
        for program, *arguments in programs:
            if (folder / arguments[-1]).exists():
                continue
            command = [sys.executable, ROOT / "examples" / program, *arguments]
            with (folder / f"{arguments[-1]}.log").open("wb") as log:
                options = {"cwd": folder, "env": {**environment, "TRACKIO_DIR": str(folder / trackio)}}
                started.append((log.name, subprocess.Popen(command, stdout=log, stderr=log, **options)))
        for log, process in started:
            if process.wait() != 0:
                sys.exit(f"{' '.join(map(str, process.args))} failed:\n{Path(log).read_text()[-3000:]}")


def save(png, name):
    """A PNG of at most 256 colours, which pages of charts hardly have more of."""
    picture = Image.open(io.BytesIO(png)).convert("RGB")
    picture.quantize(256, dither=Image.Dither.NONE).save(IMAGES / name, optimize=True)
    size = (IMAGES / name).stat().st_size
    print(f"{name}: {size / 1000:.0f} kB")
    assert size <= MAX_BYTES, f"{name} has {size} bytes; {MAX_BYTES} are allowed"


def draw_trackio(open_page, folder):
    """Curves, and tables of the demo."""
    for data in ("trackio", "trackio-trl"):
        with trackio_dashboard(folder / data, folder / "dashboard.log") as url:
            page = open_page(f"{url}/?project=descant", viewport=SIZE, color_scheme="light")
            page.locator("canvas.marks").nth(3).wait_for()
            settle(page)
            save(page.screenshot(), f"{data}.png")
            page.close()
            if data == "trackio":
                page = open_page(f"{url}/media?project=descant", viewport=SIZE, color_scheme="light")
                page.get_by_text(re.compile(r"^Tables \(\d+\)")).wait_for()
                settle(page)
                save(page.screenshot(), "trackio-tables.png")
                page.close()


def draw_tensorboard(open_page, folder):
    """Curves and tables."""
    with tensorboard(folder / "tensorboard", folder / "tensorboard.log") as url:
        for tab, name in (("scalars", "tensorboard.png"), ("text", "tensorboard-tables.png")):
            page = open_page(f"{url}/#{tab}", viewport=SIZE, color_scheme="light")
            page.get_by_text("validation", exact=False).first.wait_for()
            settle(page)
            save(page.screenshot(), name)
            page.close()


def draw_mlflow(open_page, url):
    """Curves and the table of an evaluation, of the first run."""
    from mlflow import MlflowClient

    client = MlflowClient(url)
    experiment = client.get_experiment_by_name("addition").experiment_id
    runs = {run.info.run_name: run.info.run_id for run in client.search_runs([experiment])}
    run = runs[f"lr-{LEARNING_RATES[0]}"]
    address = f"{url}/#/experiments/{experiment}/runs/{run}"
    pages = {"model-metrics": "mlflow.png", "artifacts/tables/validation/samples.json": "mlflow-tables.png"}
    for path, name in pages.items():
        page = open_page(f"{address}/{path}", viewport=SIZE, color_scheme="light")
        page.get_by_role("button", name="Close", exact=True).click()  # an assistant, on a third of the page
        page.get_by_text("response" if "tables" in name else f"lr-{LEARNING_RATES[0]} (").first.wait_for()
        settle(page)
        save(page.screenshot(), name)
        page.close()


def settle(page):
    """Wait until the page has stopped to change: pages draw their charts one after another."""
    before, now = b"", page.screenshot()
    for _ in range(30):
        if before == now:
            return
        page.wait_for_timeout(700)
        before, now = now, page.screenshot()


if __name__ == "__main__":
    main()
