"""What a user sees in Trackio's dashboard, in a real browser."""

import os
import re
import shutil
import socket
import subprocess
import sys

import pytest
from trackers import need, wait_for_port

CHROMIUM = shutil.which("chromium")
SHOW = "import sys, trackio; trackio.show(open_browser=False, host='127.0.0.1', server_port=int(sys.argv[1]))"
FILL = """
from pathlib import Path
from descant.trackers.logger import RunInfo
from descant.trackers.trackio import TrackioLogger
from descant.table import Table
logger = TrackioLogger("addition", "first try")
logger.start(RunInfo("0123", "first try", Path(), {"lr": 0.001}))
for step in range(3):
    table = Table(["prompt", "response"], [["2+2=", "<img src=x onerror=document.title='injected'>"]])
    metrics = {"training/loss": 1.0 / (1 + step), "validation/rewards/score/mean": 0.5, "z_descant/a/stall_s": 1.0}
    logger.write(step, 1.7e9 + step, metrics, {"validation/samples": table})
logger.finish("completed")
"""


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def page(url, folder):
    """The document as it stands when the page has been drawn."""
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder}"]
    command = [CHROMIUM, *options, "--virtual-time-budget=20000", "--dump-dom", url]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed (Debian: apt-get install chromium)")
def test_curves_and_tables_are_on_the_pages(tmp_path):
    need("trackio")
    environment = {**os.environ, "TRACKIO_DIR": str(tmp_path / "trackio")}
    subprocess.run([sys.executable, "-c", FILL], env=environment, check=True, timeout=120)
    port = free_port()
    log = tmp_path / "dashboard.log"
    with log.open("wb") as file:
        server = subprocess.Popen([sys.executable, "-c", SHOW, str(port)], env=environment, stdout=file, stderr=file)
        try:
            wait_for_port(port, server, log)
            metrics = page(f"http://127.0.0.1:{port}/?project=addition", tmp_path / "browser")
            tables = page(f"http://127.0.0.1:{port}/media?project=addition", tmp_path / "browser")
        finally:
            server.terminate()
            server.wait(30)
    assert "first try" in metrics
    assert re.findall(r"(\w+) \(1\)", metrics)[-3:] == [
        "training",
        "validation",
        "z_descant",
    ]  # in this order, no boxes
    assert "rewards.score.mean" in metrics
    assert "Tables (3)" in tables
    assert tables.count("&lt;img src=x onerror=") == 3
    assert "<title>injected" not in tables
