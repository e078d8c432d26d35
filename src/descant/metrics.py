"""Metric values: what a callback may return, as plain Python values."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Literal

from descant.arguments import missing_await
from descant.errors import ConfigurationError
from descant.table import Table
from descant.text import quoted

Metric = float | str | Table
"""A number (int and bool included), a string, or a table."""

RESERVED_PREFIXES = ("training/", "progress/", "callbacks/", "completion_percentage")
"""Metrics that belong to the trainer and its runner."""
TRAINING_LOSS, NUM_TOKENS = "training/loss", "training/num_tokens"
"""The loss of a step, and the trained tokens that it is the mean over, where a trainer declares how many those are."""
NUM_SKIPPED = "training/num_skipped_samples"
"""Samples of a step that could not be trained on."""
_LARGEST_INTEGER = 2**63 - 1


@dataclass(frozen=True, slots=True)
class MetricSpec:
    """A metric as its callback or trainer declares it.

    Attributes:
        key: under which it is returned; a ``*`` in it stands for any text, so ``rewards/*`` is an open family.
        unit: for people, such as "nats per token", "s" or "tokens".
        better: which values are better; None where neither is.
        headline: whether it is what one looks at first.
        counts_failures: whether it is the number of samples that failed and are not in the other metrics of its call.
        detail: whether it is for a closer look (a count, a constant, a spread): it is recorded, but trackers get it
            only with ``tracker_detail="all"``.
    """

    key: str
    unit: str = ""
    better: Literal["lower", "higher"] | None = None
    headline: bool = False
    counts_failures: bool = False
    detail: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.key, str) or not self.key or not isinstance(self.unit, str):
            raise ConfigurationError(f"{self!r}: the key must be text that is not empty, and the unit text")
        if self.better not in ("lower", "higher", None):
            raise ConfigurationError(f"{self!r}: better={self.better!r} must be 'lower', 'higher' or None")

    def covers(self, key: str) -> bool:
        """Whether this declares ``key``."""
        if "*" not in self.key:
            return key == self.key
        return re.fullmatch(".*".join(map(re.escape, self.key.split("*"))), key, re.DOTALL) is not None


COSTS_KEY = "callbacks/costs"
"""What all callbacks of a run have cost: a table, recorded at its end."""
RUNNER_SPECS = (
    MetricSpec("progress/step", "steps", detail=True),
    MetricSpec("completion_percentage", detail=True),
    MetricSpec("callbacks/*", detail=True),
)
"""What the runner records of every run and every call; it belongs to no callback."""


def find_spec(specs: Iterable[MetricSpec], key: str) -> MetricSpec | None:
    """The first declaration of a key, if it is declared."""
    return next((spec for spec in specs if spec.covers(key)), None)


def is_detail(specs: Iterable[MetricSpec], key: str) -> bool:
    """Whether a metric is declared as a detail; one that is not declared is none."""
    spec = find_spec(specs, key)
    return spec is not None and spec.detail


def as_metric(value: Any) -> Metric:
    """A number, string or table as plain Python values; numpy and torch scalars are unpacked.

    NaN and infinity are numbers: they are recorded, not hidden. Integers beyond 64 bits become floats. Text that is
    not Unicode (unpaired surrogates) is escaped. A table is copied, with cells that are numbers, strings, None, or
    else the ``repr`` of what they were.

    Raises:
        TypeError: anything else, and integers beyond the largest float; the message says what was found and what is
            allowed.
        ConfigurationError: a table whose rows do not fit its columns.
    """
    if isinstance(value, str):
        return clean_text(value)
    if isinstance(value, Table):
        return Table(map(clean_text, value.headers), [[_as_cell(cell) for cell in row] for row in value.rows])
    if not isinstance(value, Real) and hasattr(value, "item") and getattr(value, "shape", None) in ((), (1,)):
        value = value.item()
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, Integral):
        return int(value) if abs(int(value)) <= _LARGEST_INTEGER else _as_float(int(value))
    if isinstance(value, Real):
        return _as_float(value)
    raise TypeError(
        f"{_describe(value)} is not a metric: a number, a string or a Table is needed{missing_await(value)}"
    )


def _as_float(value: Any) -> float:
    try:
        return float(value)
    except OverflowError:  # infinity would be another number
        raise TypeError("an integer beyond the largest float (1.8e308) is not a metric") from None


def clean_text(text: str) -> str:
    """The text as valid Unicode: unpaired surrogates, which no file or database takes, are escaped."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _as_cell(value: Any) -> float | str | bool | None:
    if value is None or isinstance(value, bool):
        return value
    try:
        cell = as_metric(value)
    except TypeError:
        return clean_text(repr(value))
    return repr(cell) if isinstance(cell, Table) else cell


def _describe(value: Any) -> str:
    shape = getattr(value, "shape", None)
    name = type(value).__name__
    return f"{quoted(value)} ({name})" if shape is None else f"a {name} of shape {tuple(shape)}"
