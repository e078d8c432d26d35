"""What logging costs: microseconds of the training loop per step, rows per second into the run log, `descant show`.

(Not ``logging.py``: a script's directory comes first on the path, and all of Python would import it.)
"""

import asyncio
import contextlib
import io
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from descant.runlog.run_log import RunLog
from descant.runner.recorder import RunRecorder
from descant.trackers.logger import TrackerLogger

KEYS = [f"training/metric_{number:02}" for number in range(20)]
NUM_STEPS = 100_000
NUM_TIMED = 1000
STEP_S = 0.005
RUNS_OF_SHOW = 5


class MemoryTracker(TrackerLogger):
    """Keeps what it is given."""

    tracker = "memory"

    def __init__(self):
        self.rows = []

    def start(self, run):
        """Nothing to do."""

    def write(self, step, time_s, metrics, tables):
        """Keep it."""
        self.rows.append((step, metrics))

    def finish(self, outcome):
        """Nothing to do."""


def metrics_of(step):
    return {key: step * 0.37 + number for number, key in enumerate(KEYS)}


async def loop_costs(run_dir, trackers):
    """Microseconds of each step's awaited calls, while a model in another thread takes 5 ms per step."""
    costs = []
    recorder = RunRecorder(run_dir, NUM_TIMED, trackers, strict=False)
    async with recorder:
        await recorder.announce("benchmark", {}, [])
        for step in range(1, NUM_TIMED + 1):
            await asyncio.to_thread(time.sleep, STEP_S)
            metrics = metrics_of(step)
            started_at = time.perf_counter()
            await recorder.record(step, metrics)
            await recorder.publish()
            costs.append(1e6 * (time.perf_counter() - started_at))
    for tracker in trackers:
        assert len(tracker.rows) == NUM_TIMED
    return costs


async def write_run(run_dir):
    """Rows per second until 100,000 steps of 20 metrics are on disk."""
    log = RunLog(run_dir)
    started_at = time.perf_counter()
    for step in range(NUM_STEPS):
        await log.log_metrics(step, metrics_of(step))
    await log.close()
    return NUM_STEPS * len(KEYS) / (time.perf_counter() - started_at)


def show_seconds(run_dir):
    """Seconds of the whole process, which prints the page."""
    code = "from descant.cli.app import app; app()"
    started_at = time.perf_counter()
    subprocess.run([sys.executable, "-c", code, "show", run_dir], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started_at


def row(what, measured, unit, limit, *, at_least=False):
    share = limit / measured if at_least else measured / limit
    print(f"| {what} | {measured:,.2f} {unit} | {'≥' if at_least else '≤'} {limit:,} {unit} | {share:.2f} |")


def main():
    with tempfile.TemporaryDirectory() as directory:
        runs = Path(directory)
        costs = {}
        with contextlib.redirect_stderr(io.StringIO()):
            for name, num_trackers in (("no tracker", 0), ("4 trackers", 4)):
                trackers = [MemoryTracker() for _ in range(num_trackers)]
                costs[name] = asyncio.run(loop_costs(runs / name, trackers))
            rows_per_s = asyncio.run(write_run(runs / "long"))
        megabytes = os.path.getsize(runs / "long" / "run.sqlite") / 1e6
        seconds = [show_seconds(runs / "long") for _ in range(RUNS_OF_SHOW)]
    print("\n| 20 metrics per step | measured | limit | share of the limit |\n|---|---|---|---|")
    for name, measured in costs.items():
        row(f"in the loop, per step, {name}: mean", statistics.mean(measured), "µs", 100)
        row(f"in the loop, per step, {name}: median", statistics.median(measured), "µs", 100)
    row(f"into the run log, {NUM_STEPS:,} steps ({megabytes:.0f} MB)", rows_per_s, "rows/s", 50_000, at_least=True)
    row("`descant show` of it, whole process, median", statistics.median(seconds), "s", 1)


if __name__ == "__main__":
    main()
