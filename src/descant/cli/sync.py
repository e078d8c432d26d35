"""``descant sync``: delivers a run that has ended, or was killed, to a tracker."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from descant.cli.runs import SILENT_S, foreign_content_as_error
from descant.errors import ConfigurationError, DescantError
from descant.runlog.run_reader import RunReader
from descant.text import did_you_mean, duration
from descant.trackers.configured import TRACKERS, make_tracker
from descant.trackers.feed import replay
from descant.trackers.logger import TrackerLogger


class SyncError(DescantError):
    """The tracker has failed."""


def sync_lines(run_dir: Path, name: str, *, everything: bool) -> Iterator[str]:
    """Deliver a run to a tracker, ``everything`` or what it lacks; yields lines to print."""
    tracker = _tracker(run_dir, name)
    offset = _offset(run_dir, name)
    yield f"delivering {run_dir} to {name}"
    try:
        num_records = replay(run_dir, tracker, everything=everything, name=name)
    except DescantError:
        raise
    except (Exception, SystemExit) as error:  # trackers may well call sys.exit
        reason = str(error).strip() or "without a reason"
        raise SyncError(
            f"{name} failed ({type(error).__name__}: {reason}); it has {_offset(run_dir, name):,} records of "
            f"{run_dir}. The same command continues from there"
        ) from error
    had = "they are a new run there, beside the former one" if everything else f"it had {offset:,} before"
    if tracker.starts_empty and not everything:
        had = f"it had lost the {offset:,} that it had before"
    has_had = f"; {had}" if offset else ""
    yield f"{num_records:,} {'record' if num_records == 1 else 'records'} delivered to {name}{has_had}"
    if link := tracker.training_monitoring_link or tracker.viewer:
        yield f"look at it: {link}"


def _offset(run_dir: Path, name: str) -> int:
    """The number of the last record that the tracker has."""
    with RunReader(run_dir) as reader:
        return reader.sinks[name].offset if name in reader.sinks else 0


def _tracker(run_dir: Path, name: str) -> TrackerLogger:
    with RunReader(run_dir) as reader, foreign_content_as_error(reader):
        kind = name.partition("-")[0]
        if kind not in TRACKERS or (kind != name and name not in reader.sinks):
            known = list(dict.fromkeys([*TRACKERS, *reader.sinks]))
            hint = did_you_mean(name, known, f"trackers are {', '.join(known)}")
            raise ConfigurationError(f"--to {name!r} is not a tracker; {hint}")
        silent_s = time.time() - reader.last_written_at
        if reader.outcome is None and silent_s < SILENT_S:
            raise ConfigurationError(
                f"{run_dir} is running: it was written {duration(max(0.0, silent_s))} ago and has not ended. Until it "
                f"ends, it delivers by itself; if it was killed, it can be delivered {duration(SILENT_S)} later"
            )
        recipe = (reader.config.get("environment") or {}).get("recipe") or {}
        recorded = (reader.config.get("trackers") or {}).get(name)
    return make_tracker(kind, recipe.get("name") or "descant", recorded)
