"""What a user sees in Trackio's dashboard, in a real browser."""

import os
import re
import subprocess
import sys

import pytest
from browser import CHROMIUM, NO_CHROMIUM, chromium, trackio_dashboard
from trackers import need

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


@pytest.mark.skipif(CHROMIUM is None, reason=NO_CHROMIUM)
def test_curves_and_tables_are_on_the_pages(tmp_path):
    need("trackio")
    environment = {**os.environ, "TRACKIO_DIR": str(tmp_path / "trackio")}
    subprocess.run([sys.executable, "-c", FILL], env=environment, check=True, timeout=120)
    with trackio_dashboard(tmp_path / "trackio", tmp_path / "dashboard.log") as url, chromium() as open_page:
        page = open_page(f"{url}/?project=addition")
        page.get_by_text(re.compile(r"training \(1\)")).wait_for()
        assert page.get_by_text("first try").count()
        groups = [name for name, _ in re.findall(r"(\w+) \((\d)\)", page.inner_text("body"))]
        assert groups[-3:] == ["training", "validation", "z_descant"]  # in this order
        assert page.get_by_text("rewards.score.mean").count()
        page.goto(f"{url}/media?project=addition")
        page.get_by_text("Tables (3)").wait_for()
        assert page.get_by_text("<img src=x onerror=").count() == 3
        assert page.title() != "injected"
