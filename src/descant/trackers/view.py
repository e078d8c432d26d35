"""TrackerView: what a tracker is given of what a run records."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from descant.metrics import RUNNER_SPECS, MetricSpec, find_spec, is_detail
from descant.runlog.journal import Record
from descant.trackers.logger import OWN_GROUP, TrackerLogger


class TrackerView:
    """Leaves out the details of a run, unless they were asked for, and gives what descant records of itself one group.

    Args:
        config: the settings of the run: ``tracker_detail``, and what is declared of its ``metrics``.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        declared = (MetricSpec(spec["key"], detail=spec.get("detail", False)) for spec in config.get("metrics") or ())
        self._specs = [*RUNNER_SPECS, *declared]
        self._has_details = config.get("tracker_detail") == "all"
        self._names: dict[str, str | None] = {}

    def deliver(self, record: Record, tracker: TrackerLogger) -> None:
        """Write what is left of a record, if anything is."""
        named = {key: self._name(key) for key in record.metrics}
        metrics = {name: record.metrics[key] for key, name in named.items() if name is not None}
        tables = {_name_of_group(key): table for key, table in record.tables.items()}
        if metrics or tables:
            tracker.write(record.step, record.time_s, metrics, tables)

    def _name(self, key: str) -> str | None:
        """The metric's name in trackers; None if it is left out."""
        if key not in self._names:
            self._names[key] = _name_of_group(key) if self._has_details or not is_detail(self._specs, key) else None
        return self._names[key]


def _name_of_group(key: str) -> str:
    """The key, with ``OWN_GROUP`` in place of what stands before descant's own names."""
    if find_spec(RUNNER_SPECS, key) is None:
        return key
    return f"{OWN_GROUP}/{key.removeprefix('callbacks/').removeprefix('progress/')}"
