"""run_as_json: ``descant show --json``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any

from descant.cli.curves import choose_metrics
from descant.cli.json_output import json_text
from descant.cli.runs import declared_metrics, foreign_content_as_error
from descant.cli.samples import choose_samples, tables_of
from descant.cli.show import ShowOptions, chosen_callbacks
from descant.metrics import MetricSpec, find_spec
from descant.runlog.run_reader import RunEvent, RunReader

_SUMMARY = ("num_points", "num_nan", "minimum", "maximum", "first", "last")


def run_as_json(reader: RunReader, options: ShowOptions) -> str:
    """What ``show_run`` prints as one JSON document; see docs/show.md for what is in it."""
    with foreign_content_as_error(reader):
        callbacks = chosen_callbacks(reader, options.callback)
        document: dict[str, Any] = {
            "name": reader.run_dir.absolute().name,
            "path": str(reader.run_dir),
            "trainer": reader.config.get("trainer"),
            "outcome": reader.outcome,
            "reason": reader.reason,
            "step": reader.latest_step,
            "num_steps": reader.config.get("num_steps"),
            "started_at": _moment(reader.started_at),
            "ended_at": _moment(reader.ended_at),
            "last_written_at": _moment(reader.last_written_at),
        }
        if options.is_page:
            document["config"] = reader.config
        if options.is_page or options.keys is not None:
            document["metrics"] = _metrics(reader, options.keys)
        if options.shows_samples or options.follows_prompt:
            document["samples"] = list(_samples(reader, callbacks, options))
        if options.is_page:
            document["events"] = [_event(event, options) for event in reader.events]
        return json_text(document)


def _metrics(reader: RunReader, pattern: str | None) -> dict[str, Any]:
    """Every metric with its declaration and summary; those that were asked for also with all points."""
    specs = declared_metrics(reader.config)
    metrics: dict[str, Any] = {}
    for metric in choose_metrics(reader.metrics, pattern) if pattern else reader.metrics.values():
        spec = find_spec(specs, metric.key) or MetricSpec(metric.key)
        declared = {"unit": spec.unit, "better": spec.better, "headline": spec.headline}
        metrics[metric.key] = {**declared, **{name: getattr(metric, name) for name in _SUMMARY}}
        if pattern is not None:
            metrics[metric.key]["points"] = list(reader.series(metric.key).items())
    return metrics


def _samples(reader: RunReader, callbacks: Sequence[str], options: ShowOptions) -> Iterator[dict[str, Any]]:
    """All rows that were chosen, of each table the first ones if a number is given."""
    steps = options.steps
    if options.follows_prompt:
        steps = sorted({step for table in tables_of(reader, callbacks) for step in reader.sample_steps[table]})
    for chosen in choose_samples(reader, callbacks, options.selection, steps, options.prompt):
        for index, row in enumerate(chosen.rows[: options.num_samples or None]):
            before = {"before": asdict(chosen.before[index])} if chosen.before else {}
            yield {**asdict(row), **before}


def _event(event: RunEvent, options: ShowOptions) -> dict[str, Any]:
    fields = {**asdict(event), "time": _moment(event.time)}
    return fields if options.failures else {name: value for name, value in fields.items() if name != "details"}


def _moment(seconds: float | None) -> str | None:
    """A time in seconds since 1970 as ISO 8601, with the offset of the local time."""
    return None if seconds is None else datetime.fromtimestamp(seconds).astimezone().isoformat(timespec="milliseconds")
