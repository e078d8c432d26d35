"""Sides of a comparison, each in a process of its own, measured in turn.

Separate processes are fair: a second set of OpenMP threads in a process slows the first down by a third, and no side
pays for the imports of another. A side's process prepares, and then does its work once for each line that it reads.
Models are made by the parent, since making one starts OpenMP threads, too.
"""

import argparse
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import threading
import traceback
from pathlib import Path

NUM_THREADS = os.cpu_count() or 1
REPEATS = 5
LOGS = Path(__file__).parent.parent / "runs" / "benchmarks"


class Side:
    """A process that runs one side of a benchmark: ``script --side NAME --size SIZE --model PATH``."""

    def __init__(self, script, name, size, model, num_threads=NUM_THREADS, environment=()):
        self.log = LOGS / f"{Path(script).stem}-{name}-{size}.log"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, script, "--side", name, "--size", size, "--model", model],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, "OMP_NUM_THREADS": str(num_threads), "HF_HUB_OFFLINE": "1", **dict(environment)},
            )

    def measure(self, case, timeout_s=None):
        """Do the work once: what ``run(case)`` in the side's process has returned.

        Raises:
            RuntimeError: the process has ended early, or was killed after ``timeout_s``.
        """
        watchdog = threading.Timer(timeout_s or 0, self.process.kill)
        if timeout_s is not None:
            watchdog.start()
        try:
            self.process.stdin.write(f"{case}\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            watchdog.cancel()
        if not line:
            late = "" if timeout_s is None else f", or was killed after {timeout_s:.0f} s"
            raise RuntimeError(f"the process has ended early{late}; see {self.log}")
        return json.loads(line)

    def close(self):
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()


def serve(run):
    """In a side's process: ``run(case)`` for each line on standard input, with its result as answer."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is not an answer
    for line in sys.stdin:
        print(json.dumps(run(line.strip())), file=answers, flush=True)


def serve_parts(make):
    """In a side's process: for each name on standard input, the rows that the part ``make(size, folder)`` has by that
    name yields; and, where it fails, why, behind those that it had until then."""
    parser = argparse.ArgumentParser()
    for option in ("--side", "--size", "--model"):
        parser.add_argument(option, required=True)
    arguments = parser.parse_args()
    subject = make(arguments.size, arguments.model)

    def run(name):
        rows, failure = [], None
        try:
            for row in getattr(subject, name)():
                rows.append(row)
        except Exception as error:
            traceback.print_exc()
            failure = f"{type(error).__name__}: {error}"
        return {"rows": rows, "failure": failure}

    serve(run)


def compare(script, sides, size, model, cases):
    """For each case and side the median speed and the last check; sides in turn, after a discarded warm-up."""
    processes = {side: Side(script, side, size, model) for side in sides}
    medians = {}
    try:
        for case in cases:
            answers = {side: [] for side in sides}
            for _ in range(REPEATS + 1):
                for side, process in processes.items():
                    answers[side].append(process.measure(case))
            medians[case] = {
                side: (statistics.median(speed for speed, _ in measured[1:]), measured[-1][1])
                for side, measured in answers.items()
            }
    finally:
        for process in processes.values():
            process.close()
    return medians


def table(sides, sizes, main):
    """Run ``main()`` for the whole table, or, in a side's process, that side."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--side", choices=list(sides))
    parser.add_argument("--size", choices=list(sizes))
    parser.add_argument("--model")
    arguments = parser.parse_args()
    if arguments.side:
        serve(sides[arguments.side](arguments.size, arguments.model))
    else:
        print(f"\n{platform.machine()}, {NUM_THREADS} threads, Python {platform.python_version()}\n", flush=True)
        main()
