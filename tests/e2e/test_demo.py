"""The demo, whole: the small model learns to add."""

import os
import re
import subprocess
import sys
from pathlib import Path

from support import query, series

SCRIPT = Path(__file__).parents[2] / "examples" / "addition" / "train.py"


def test_the_model_learns_to_add(tmp_path):
    environment = {**os.environ, "COLUMNS": "120"}
    command = [sys.executable, SCRIPT, "--run-dir", "run"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment, timeout=580)
    assert done.returncode == 0, done.stderr[-3000:]
    exact = series(tmp_path / "run", "validation/rewards/score/mean")
    assert len(exact) == 11
    assert exact[0] == 0
    assert exact[732] >= 0.95
    assert re.search(r"Exact match went from 0\.0% to (9[5-9]|100)\.\d% in 732 steps", done.stdout)
    assert "metrics go to trackio (trackio show --project descant)" in done.stderr
    assert f"run log  {Path('run') / 'run.sqlite'}" in done.stdout
    for key in ("characters/last_correct", "validation/loss", "generation/num_samples", "callbacks/samples/stall_s"):
        assert list(series(tmp_path / "run", key)) == list(exact)
    assert query(tmp_path / "run", "SELECT count(*) FROM events WHERE kind = 'callback_failed'") == [(0,)]
    prompts = query(tmp_path / "run", "SELECT count(DISTINCT example_id) FROM samples WHERE callback = 'validation'")
    assert prompts == [(300,)]
