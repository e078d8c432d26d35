"""StdoutLogger: the metrics of each step as a line on standard output."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from descant.metrics import Metric
from descant.provenance import plain_config
from descant.table import Table
from descant.text import printable
from descant.trackers.logger import STEP_KEY, Logger, named_metrics

_MAX_LENGTH = 200


class StdoutLogger(Logger):
    """Prints a line for every call: ``step 12  training/loss 0.4127  validation/samples 8 rows``."""

    def __call__(self, metrics: Mapping[str, Metric]) -> None:
        """Print the metrics; a table is told by its number of rows."""
        values = named_metrics(metrics)
        step = values.pop(STEP_KEY, None)
        parts = [] if step is None else [f"step {_shown(step)}"]
        parts += [f"{printable(key)} {_shown(value)}" for key, value in values.items()]
        print("  ".join(parts), flush=True)

    def log_config(self, config: Mapping[str, Any]) -> None:
        """Print the settings on one line, secrets masked."""
        shown = plain_config(config).items()
        print("  ".join(f"{printable(key)}={printable(str(value), _MAX_LENGTH)}" for key, value in shown))


def _shown(value: Metric) -> str:
    if isinstance(value, Table):
        return f"{len(value)} rows"
    if isinstance(value, str):
        return printable(value, _MAX_LENGTH)
    return str(value) if isinstance(value, int) else f"{value:.6g}"
