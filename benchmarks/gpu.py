"""The promises and the figures on a GPU, in eight minutes at the most: ``make gpu``.

It runs on a bare machine: torch and Transformers are the machine's, nothing is downloaded, models are random. Promises
come first; a part that no longer fits into the time is reported as skipped. The exit status is 1 if a promise does not
hold, and 2 if this machine cannot run it.

python benchmarks/gpu.py                    on the first GPU
python benchmarks/gpu.py --wheels folder    first install what descant lacks here from these wheels
python benchmarks/gpu.py --dry              every part on the CPU at the smallest size, to see that it runs
"""

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from gpu_packages import NEEDED, install, problem, required
from sides import Side

HERE = Path(__file__).parent
PACKAGES = HERE.parent / "runs" / "gpu-packages"
SECONDS = 480
CLOSING_S = 5  # of the time, kept for ending processes and for the report


class Part(NamedTuple):
    """A method of a script, which measures something and answers with rows."""

    script: str
    name: str
    seconds: int
    """About how long it takes at the full size; it is skipped where less time is left."""


PARTS = (
    Part("gpu_promises", "neutral", 50),
    Part("gpu_promises", "modes", 60),
    Part("gpu_promises", "out_of_memory", 25),
    Part("gpu_promises", "precision", 25),
    Part("gpu_promises", "gradient_checkpointing", 15),
    Part("gpu_figures", "sft", 80),
    Part("gpu_figures", "generation", 50),
    Part("gpu_figures", "validation_loss", 30),
    Part("gpu_figures", "background", 60),
)


class Processes:
    """The process of one script at a time, started when a part of it is due, and again after one that was killed."""

    def __init__(self, size, folder):
        self.size, self.folder = size, folder
        self.side = self.script = None

    def measure(self, part, timeout_s):
        """The answer of a part: its rows, and why there are no more of them."""
        try:
            if self.script != part.script:
                self.close()
                environment = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"} if part.script == "gpu_promises" else {}
                threads = {"num_threads": 1} if self.size == "dry" else {}
                path = str(HERE / f"{part.script}.py")
                self.side = Side(path, "gpu", self.size, self.folder, environment=environment, **threads)
                self.script = part.script
            return self.side.measure(part.name, timeout_s)
        except RuntimeError as error:
            self.close()
            return {"rows": [], "failure": str(error)}

    def close(self):
        """End the process at once: all that it has found it has said."""
        if self.side is not None:
            self.side.process.kill()
            self.side.close()
        self.side = self.script = None


def measure_all(parts, processes, deadline, clock=time.monotonic, dry=False):
    """The rows of all parts, each as soon as there are any, within the time."""
    for part in parts:
        started_at = clock()
        left = deadline - clock() - CLOSING_S
        if left < (1 if dry else part.seconds):
            yield skipped(part, left)
            continue
        answer = processes.measure(part, left)
        to_row = promise_row if part.script == "gpu_promises" else figure_row
        rows = [to_row(part, row) for row in answer["rows"]]
        if answer["failure"]:
            outcome = "FAILED" if part.script == "gpu_promises" else "not measured"
            rows.append(table_row(part, "the rest of it", outcome=outcome, details=answer["failure"]))
        seconds = clock() - started_at
        yield from ({**row, "part_s": seconds} for row in rows)


def table_row(part, what, *, outcome, value=None, reference=None, details=""):
    return {
        "part": part.name.replace("_", " "), "what": what, "outcome": outcome, "value": value, "reference": reference,
        "details": details,
    }  # fmt: skip


def skipped(part, left):
    details = f"it takes about {part.seconds} s, and {max(left, 0):.0f} s are left"
    return table_row(part, "the whole part", outcome="skipped", details=details)


def promise_row(part, row):
    what, holds, details = row
    outcome = "information" if holds is None else "holds" if holds else "FAILED"
    return table_row(part, what, outcome=outcome, details=details)


def figure_row(part, row):
    """A figure as a ratio to that of a peer, or to a limit."""
    value, reference = row["value"], row["reference"]
    details, outcome = row["against"], "not compared"
    if reference:
        details, outcome = f"{row['against']}: {figure(reference)}", f"{value / reference:.2f} ×"
    if row["note"]:
        details = f"{row['against']}: {row['note']}"
    return table_row(part, row["what"], outcome=outcome, value=value, reference=reference, details=details)


def figure(value):
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def show(row):
    value = "" if row["value"] is None else figure(row["value"])
    details = str(row["details"]).replace("|", "/").replace("\n", " ")
    print(f"| {row['part']} | {row['what']} | {value} | {row['outcome']} | {details} |", flush=True)


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheels", type=Path, help="a folder of wheels for what gpu-requirements.txt lists")
    parser.add_argument("--json", type=Path, help="where the rows are written, too")
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"the time for everything (default {SECONDS})")
    parser.add_argument("--dry", action="store_true", help="on the CPU, at the smallest size")
    return parser.parse_args()


def prepare_packages(wheels):
    """Install what is missing, if there are wheels; returns what is wrong in the end."""
    sys.path.insert(0, str(PACKAGES))  # an earlier call may have installed some there
    missing = [requirement for requirement in required() if problem(requirement)]
    if missing and wheels:
        install(missing, wheels, PACKAGES)
    paths = [str(HERE.parent / "src"), str(PACKAGES), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)
    return [reason for requirement in [*NEEDED, *required()] if (reason := problem(requirement))]


def main():
    arguments = parse_arguments()
    deadline = time.monotonic() + arguments.seconds
    if problems := prepare_packages(arguments.wheels):
        hint = "see benchmarks/gpu-requirements.txt and docs/benchmarks.md for WHEELS=folder"
        print("\n".join([*problems, hint]), file=sys.stderr)
        return 2
    first_gpu = os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0]
    os.environ["CUDA_VISIBLE_DEVICES"] = "" if arguments.dry else first_gpu
    rows = []
    with tempfile.TemporaryDirectory(prefix="descant-gpu-", ignore_cleanup_errors=True) as folder:
        processes = Processes("dry" if arguments.dry else "0.5B", folder)
        with contextlib.closing(processes):
            answer = processes.measure(Part("gpu_promises", "machine", 0), arguments.seconds - CLOSING_S)
            if answer["failure"]:
                print(answer["failure"], file=sys.stderr)
                return 2
            (machine,) = answer["rows"]
            if machine["device"] == "cpu" and not arguments.dry:
                print("torch finds no GPU here; --dry runs every part on the CPU", file=sys.stderr)
                return 2
            print("\n" + ", ".join(f"{name} {value}" for name, value in machine.items()))
            print("\n| part | what | measured | outcome | details |\n|---|---|---|---|---|", flush=True)
            for row in measure_all(PARTS, processes, deadline, dry=arguments.dry):
                show(row)
                rows.append(row)
    seconds = arguments.seconds - (deadline - time.monotonic())
    return conclude(rows, machine, seconds, arguments.json)


def conclude(rows, machine, seconds, path):
    """The last line, the JSON, and the exit status."""
    held, failed, not_run = (sum(row["outcome"] == one for row in rows) for one in ("holds", "FAILED", "skipped"))
    print(f"\n{held} checks hold, {failed} failed; {not_run} parts were skipped; {seconds:.0f} s")
    if path:
        report = {"machine": machine, "seconds": seconds, "passed": not failed, "rows": rows}
        path.write_text(json.dumps(report, indent=2) + "\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
