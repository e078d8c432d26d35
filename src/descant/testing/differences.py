"""Differences: what is not the same in two runs, in words."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from descant.metrics import as_metric
from descant.table import Table
from descant.text import cut

PlainMetrics = Mapping[str, str]
"""Metrics as texts, which are equal where the values are the same bits."""
_SHOWN_LENGTH = 60


def plain_metrics(metrics: Any, run_dir: Path) -> PlainMetrics:
    """Metrics as texts. Durations (``..._s``) are all the same, and so are the directories of the runs of a check."""
    if not isinstance(metrics, dict):
        return {"returned": repr(metrics)}
    return {str(key): "a duration" if str(key).endswith("_s") else _plain(metrics[key], run_dir) for key in metrics}


def _plain(value: Any, run_dir: Path) -> str:
    try:
        metric = as_metric(value)
    except TypeError:
        return f"no metric but {value!r:.200}"
    text = repr([metric.headers, *metric.rows]) if isinstance(metric, Table) else repr(metric)
    return re.sub(rf"{re.escape(str(run_dir.parent))}/\w+", "<run directory>", text)


def metrics_difference(
    found: Mapping[int, PlainMetrics], expected: Mapping[int, PlainMetrics], steps: Iterable[int]
) -> str | None:
    """The first metric of these steps that is another one."""
    for step in steps:
        if (step in found) != (step in expected):
            return f"step {step}: {'it has' if step in found else 'nothing was'} returned, and otherwise not so"
        values, others = found.get(step, {}), expected.get(step, {})
        for key in {**others, **values}:
            value, other = values.get(key, "not there"), others.get(key, "not there")
            if value != other:
                return f"step {step}: {key!r} is {_around(value, other)}, and otherwise {_around(other, value)}"
    return None


def weights_difference(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str | None:
    """The weights that are not the same bits."""
    names = [name for name, value in expected.items() if not torch.equal(weights[name], value)]
    if not names:
        return None
    gap = max((weights[name] - expected[name]).detach().abs().max().item() for name in names)
    count = f"{len(names)} of {len(expected)} parameters"
    return f"{count} are not the same bits as without the callback, such as {names[0]} (by up to {gap:.1g})"


def _around(text: str, other: str) -> str:
    """The text near its first character that is another one in ``other``."""
    if len(text) <= _SHOWN_LENGTH:
        return text
    at = next((n for n, (a, b) in enumerate(zip(text, other, strict=False)) if a != b), min(len(text), len(other)))
    start = max(at - _SHOWN_LENGTH // 3, 0)
    return f"{'…' if start else ''}{cut(text[start:], _SHOWN_LENGTH)}"
