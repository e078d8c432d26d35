"""The figures of the house, and the limits that they keep."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "house.py"
spec = importlib.util.spec_from_file_location("house", SCRIPT)
house = importlib.util.module_from_spec(spec)
spec.loader.exec_module(house)


def test_budgets_of_size():
    files, functions = house.sizes(ROOT)
    assert len(files) > 100
    assert [(name, lines) for name, lines in files if lines > 500] == []
    assert [(name, lines) for name, lines in functions if lines > 60] == []


def test_every_function_counts_and_docstrings_do_not():
    source = (
        'def f(\n    a,\n):\n    """One\n\n    two."""\n    b = a\n    return b\nclass C:\n    async def f(self): ...\n'
    )
    assert list(house.function_lengths(source)) == [("f", 2), ("f", 1)]


def test_limits_that_are_broken_are_named(monkeypatch):
    figures = {**house.static_figures(ROOT), **dict.fromkeys(house.LIMITS, 0), "lines": 10**9}
    assert house.broken_limits(figures) == [f"lines: 1000000000, more than {house.LIMITS['lines']}"]
    monkeypatch.setitem(house.LIMITS, "largest file, lines", 1)
    (problem,) = house.broken_limits({**figures, "lines": 0, "largest file, lines": 491, "runtime dependencies": 11})
    assert problem.startswith("largest file, lines: 491, more than 1\n  src/descant/")


def test_it_prints_before_and_now():
    done = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = {line.split("|")[1].strip(): line.split("|")[2:5] for line in done.stdout.splitlines() if "|" in line}
    assert [cell.strip() for cell in rows["src/"]] == ["0633e16", "now", "limit"]
    assert {*house.LIMITS, "public names", "layers"} <= set(rows)
    assert [cell.strip() for cell in rows["lines"]][0::2] == ["21,906", f"{house.LIMITS['lines']:,}"]


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a checkout")
def test_another_revision_is_read_from_git():
    figures = house.revision_figures("HEAD")
    assert figures.keys() == house.static_figures(ROOT).keys()
