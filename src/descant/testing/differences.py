"""Differences: what is not the same in two runs, in words."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from descant.metrics import as_metric
from descant.table import Table
from descant.testing.runs import Run

_SHOWN_LENGTH = 60


def training_difference(run: Run, alone: Run) -> str | None:
    """What of the training is not bit-identical."""
    for step, (metrics, expected) in enumerate(zip(run.training, alone.training, strict=True), start=1):
        for key, value in expected.items():
            if repr(metrics.get(key)) != repr(value):
                return f"step {step}: {key} is {metrics.get(key)!r}, and {value!r} without the callback"
    return weights_difference(run.weights, alone.weights)


def weights_difference(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str | None:
    """Which weights are not the same bits."""
    names = [name for name, value in expected.items() if not torch.equal(weights[name], value)]
    if not names:
        return None
    gap = max(float((weights[name] - expected[name]).abs().max()) for name in names)
    return (
        f"{len(names)} of {len(expected)} parameters are not the same bits as without the callback, such as {names[0]} "
        f"(by up to {gap:.1g})"
    )


def metrics_difference(
    found: Mapping[int, Any], expected: Mapping[int, Any], steps: Collection[int], run_dirs: Sequence[Path] = ()
) -> str | None:
    """The first metric of these steps that is another one.

    Durations (``..._s``) may differ, and so may the directory of the run in a text.
    """
    for step in sorted(steps):
        if (step in found) != (step in expected):
            return f"step {step}: {'it has' if step in found else 'nothing was'} returned, and otherwise not so"
        values, others = plain(found.get(step, {}), run_dirs), plain(expected.get(step, {}), run_dirs)
        for key in {**others, **values}:
            value, other = values.get(key, "not there"), others.get(key, "not there")
            if value != other:
                return f"step {step}: {key!r} is {_around(value, other)}, and otherwise {_around(other, value)}"
    return None


def plain(metrics: Any, run_dirs: Sequence[Path]) -> dict[str, str]:
    """Metrics as texts that are equal where they are the same bits."""
    if not isinstance(metrics, dict):
        return {"returned": repr(metrics)}
    return {
        str(key): _plain(value, run_dirs) for key, value in metrics.items() if not str(key).endswith("_s")
    }  # fmt: skip


def _plain(value: Any, run_dirs: Sequence[Path]) -> str:
    try:
        metric = as_metric(value)
    except TypeError:
        return f"no metric but {value!r:.200}"
    text = repr([metric.headers, *metric.rows]) if isinstance(metric, Table) else repr(metric)
    for run_dir in run_dirs:
        text = text.replace(str(run_dir), "<run directory>")
    return text


def _around(text: str, other: str) -> str:
    """The text where it begins to be another one."""
    if len(text) <= _SHOWN_LENGTH:
        return text
    at = next((n for n, (a, b) in enumerate(zip(text, other, strict=False)) if a != b), min(len(text), len(other)))
    start = max(at - _SHOWN_LENGTH // 3, 0)
    return f"{'…' if start else ''}{text[start : start + _SHOWN_LENGTH]}…"
