"""``make gpu``: every part runs in a dry run on the CPU; it keeps its time, and says what it has not done."""

import json
import subprocess
import sys
import tomllib
import zipfile
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "gpu.py"


@pytest.fixture
def benchmark(monkeypatch):
    """Imports a module of ``benchmarks``."""
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    return import_module


def test_a_dry_run_of_every_part(benchmark, tmp_path):
    report_path = tmp_path / "report.json"
    command = [sys.executable, SCRIPT, "--dry", "--json", report_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(report_path.read_text())
    assert report["passed"]
    assert report["machine"]["device"] == "cpu"
    rows = report["rows"]
    parts = benchmark("gpu").PARTS
    assert list(dict.fromkeys(row["part"] for row in rows)) == [part.name.replace("_", " ") for part in parts]
    checks = [row for row in rows if row["value"] is None]
    assert {row["outcome"] for row in checks} == {"holds", "information"}
    assert sum(row["outcome"] == "holds" for row in checks) == 19
    figures = [row for row in rows if row["value"] is not None]
    assert len(figures) == 10
    for row in figures:
        assert row["value"] > 0
        assert row["reference"] > 0
        assert row["outcome"].endswith("×")
        assert row["what"] in done.stdout
    peers = ("bare torch loop", "SFTTrainer", "generate", "Trainer.evaluate", "the same step without", "two copies")
    assert all(any(peer in row["details"] for row in figures) for peer in peers)


class Told:
    """Processes that answer as told, each after ten seconds."""

    def __init__(self, **answers):
        self.answers, self.now, self.asked = answers, 0.0, []

    def measure(self, part, timeout_s):
        self.now += 10
        self.asked.append((part.name, timeout_s))
        return self.answers[part.name]


def test_parts_that_no_longer_fit_are_skipped_by_name(benchmark):
    gpu = benchmark("gpu")
    checks = [["a check", True, "fine"], ["another", False, "not fine"], ["a note", None, ""]]
    speed = {"what": "speed", "value": 2.0, "against": "a peer", "reference": 1.0, "note": None}
    told = Told(neutral={"rows": checks, "failure": None}, sft={"rows": [speed], "failure": None})
    parts = [gpu.Part("gpu_promises", "neutral", 5), gpu.Part("gpu_figures", "generation", 90)]
    parts.append(gpu.Part("gpu_figures", "sft", 20))
    rows = list(gpu.measure_all(parts, told, deadline=60, clock=lambda: told.now))
    assert [(row["part"], row["what"], row["outcome"]) for row in rows] == [
        ("neutral", "a check", "holds"),
        ("neutral", "another", "FAILED"),
        ("neutral", "a note", "information"),
        ("generation", "the whole part", "skipped"),
        ("sft", "speed", "2.00 ×"),
    ]
    assert rows[3]["details"] == "it takes about 90 s, and 45 s are left"
    assert told.asked == [("neutral", 55), ("sft", 45)]


def test_a_part_that_fails_is_a_row_behind_what_it_had_measured(benchmark, capsys):
    gpu = benchmark("gpu")
    speed = {"what": "speed", "value": 2.0, "against": "TRL", "reference": None, "note": "trl not installed"}
    told = Told(
        modes={"rows": [["a check", True, ""]], "failure": "RuntimeError: on purpose"},
        sft={"rows": [speed], "failure": "OutOfMemoryError: too large"},
    )
    parts = [gpu.Part("gpu_promises", "modes", 5), gpu.Part("gpu_figures", "sft", 5)]
    rows = list(gpu.measure_all(parts, told, deadline=600, clock=lambda: told.now))
    outcomes = [row["outcome"] for row in rows]
    assert outcomes == ["holds", "FAILED", "not compared", "not measured"]
    assert [row["details"] for row in rows[1:]] == [
        "RuntimeError: on purpose",
        "TRL: trl not installed",
        "OutOfMemoryError: too large",
    ]
    assert gpu.conclude(rows, {}, 1.0, None) == 1
    assert gpu.conclude([rows[0], rows[3]], {}, 1.0, None) == 0  # a figure is no promise
    assert "1 checks hold, 1 failed" in capsys.readouterr().out


def test_a_part_that_takes_too_long_is_killed(benchmark, tmp_path):
    gpu = benchmark("gpu")
    processes = gpu.Processes("dry", str(tmp_path))
    answer = processes.measure(gpu.PARTS[0], 0.2)
    assert answer["rows"] == []
    assert "was killed after 0 s" in answer["failure"]
    assert processes.side is None


def test_comparisons_can_fail(benchmark):
    promises = benchmark("gpu_promises")
    one, other = (SimpleNamespace(weights={"w": torch.tensor([1.0, value])}) for value in (2.0, 2.5))
    assert promises.same_bits(one, one) == (True, "the same bits")
    assert promises.same_bits(one, other) == (False, "1 of 1 parameters differ, by up to 0.5")
    expected = {(0, "loss"): 2.0, (0, "busy_s"): 1.0}
    assert promises.close({(0, "loss"): 2.0, (0, "busy_s"): 7.0}, expected, 0.0)[0]
    assert promises.close({(0, "loss"): 2.0001}, expected, 1e-3)[0]
    assert not promises.close({(0, "loss"): 2.0001}, expected, 1e-5)[0]
    assert not promises.close({(1, "loss"): 2.0}, expected, 1.0)[0]
    assert not promises.close({}, {}, 1.0)[0]


def test_the_requirements_are_those_of_descant(benchmark):
    packages = benchmark("gpu_packages")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    of_the_machine = ("torch>", "transformers>", "numpy>")
    assert packages.required() == [name for name in project["dependencies"] if not name.startswith(of_the_machine)]
    assert [line for line in [*packages.required(), *packages.NEEDED] if packages.problem(line) is not None] == []
    assert packages.problem("torch>=999.1").startswith("torch>=999.1 is needed, ")
    assert packages.problem("no-such-package>=1") == "no-such-package>=1 is not installed"


def test_what_is_missing_is_installed_from_wheels_alone(benchmark, tmp_path, monkeypatch):
    packages = benchmark("gpu_packages")
    info = "carried_along-1.2.dist-info"
    files = {
        "carried_along.py": "answer = 42\n",
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: carried-along\nVersion: 1.2\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{name},,\n" for name in [*files, f"{info}/RECORD"])
    (tmp_path / "wheels").mkdir()
    with zipfile.ZipFile(tmp_path / "wheels" / "carried_along-1.2-py3-none-any.whl", "w") as wheel:
        for name, text in files.items():
            wheel.writestr(name, text)
    target = tmp_path / "packages"
    packages.install(["carried-along>=1.1"], tmp_path / "wheels", target)
    monkeypatch.syspath_prepend(str(target))
    assert packages.problem("carried-along>=1.1") is None
    assert import_module("carried_along").answer == 42
    with pytest.raises(subprocess.CalledProcessError):
        packages.install(["not-carried>=1"], tmp_path / "wheels", target)
