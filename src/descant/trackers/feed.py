"""Feed: delivers what a run records to one tracker, on a thread of its own, from its offset in the run log.

Trackers consume the run log, not the loop, which knows nothing of them. A feed is woken when there are new records on
disk, reads those after its offset, gives them to the tracker, and saves its offset, in the run log, too. What the
tracker refuses or misses is tried again from there, later and later (after 1 s, 2 s, ... 60 s), so a tracker that was
down catches up. A process that is killed within a batch has delivered records whose offset it could not save: at most
that batch is delivered twice by ``replay``. MLflow and Trackio recognize it and keep one.
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

from descant.errors import ConfigurationError, RunLogError
from descant.provenance import masked
from descant.runlog.journal import Record, read_records
from descant.runlog.run_log import SAVE_SINK, RunLog
from descant.runlog.run_reader import NUM_RECORDS_AT_ONCE, RunReader, Sink
from descant.trackers.logger import RunInfo, TrackerLogger
from descant.trackers.view import TrackerView

_REST_S = 0.2  # to deliver takes a third of a millisecond of the processor, for one record as for many
_FIRST_RETRY_S = 1.0
_LONGEST_RETRY_S = 60.0
_QUIET_S = 0.5  # a wait that is shorter is not announced

Report = Callable[[int, str, str, str, BaseException | None], None]
"""Takes step, kind, source, message and error of an event, on any thread."""


class Feed:
    """Feeds one tracker with what a run records, until ``end`` was called and everything is delivered.

    The second run that a logger is given is a run of its own in the tracker, in the group of the first, and is fed as
    soon as the calls that the first run made have returned.

    Args:
        tracker: the logger; nothing else calls its ``start``, ``write`` and ``finish``.
        name: what its offset is saved under, distinct within the run.
        run: what it is told of the run.
        run_log: where records come from and the offset is saved.
        report: takes events: ``tracker_started`` with its link, ``tracker_failed`` once when it begins to fail, and
            ``tracker_recovered`` when it has caught up.

    Raises:
        ConfigurationError: another run, which has not ended, feeds the logger.
    """

    def __init__(self, tracker: TrackerLogger, name: str, run: RunInfo, run_log: RunLog, report: Report) -> None:
        self.tracker, self.name = tracker, name
        self._run_log, self._report = run_log, report
        self._previous: Feed | None = tracker._feed
        if self._previous is not None and self._previous._outcome is None:
            raise ConfigurationError(
                f"the logger that {run.name} is given is in use by another run, which has not ended; "
                "give runs that overlap a logger each"
            )
        self._number: int = 1 if self._previous is None else self._previous._number + 1
        self._run = replace(run, suffix=f"-{self._number}" if self._number > 1 else "")
        self._view = TrackerView(run.config)
        tracker._feed = self
        self._offset = 0
        self._step = 0
        self._outcome: str | None = None
        self._is_started = self._is_failing = self._is_abandoned = self._has_told_link = False
        self._news = threading.Event()
        self._news.set()  # to start the tracker before there are records
        self._hurry = threading.Event()
        self.done: Future[None] = Future()
        """Has a result when everything is delivered and the tracker has finished."""
        self.done.set_running_or_notify_cancel()
        self._save_offset()
        run_log.listeners.append(self._news.set)
        self._thread = threading.Thread(target=self._deliver, name=f"descant-feed-{name}", daemon=True)
        self._thread.start()

    @property
    def num_waiting(self) -> int:
        """Records that are on disk and not delivered."""
        return self._run_log.num_records - self._offset

    def end(self, outcome: str) -> None:
        """Deliver the rest and finish: the run has ended with this outcome, and everything is on disk."""
        self._outcome = outcome
        self._news.set()
        self._hurry.set()

    def abandon(self) -> None:
        """Stop after the call of the tracker that is in progress, if it ever returns: the run does not wait for it."""
        self._is_abandoned = True
        self._news.set()
        self._hurry.set()

    def _deliver(self) -> None:
        """The thread."""
        if self._previous is not None:
            self._previous._thread.join()
            self._previous = None
        while not (self._is_abandoned or self.done.done()):
            self._news.wait()
            self._news.clear()
            retry_s = _FIRST_RETRY_S
            while not self._is_abandoned:
                before = self._offset
                try:
                    self._catch_up()
                    break
                except BaseException as error:  # trackers may well call sys.exit
                    self._is_started = False
                    self._report_failure(error)
                if self._offset > before:
                    retry_s = _FIRST_RETRY_S
                else:
                    self._pause(retry_s)
                    retry_s = min(2 * retry_s, _LONGEST_RETRY_S)
            if not self.done.done():
                self._pause(_REST_S)

    def _catch_up(self) -> None:
        """Deliver what is on disk, and finish if that is all."""
        outcome = self._outcome  # once it is known, all records are on disk
        if not self._is_started:
            self._start()
        while not self._is_abandoned and (records := self._read()):
            self._write(records)
        if self._is_abandoned:
            return
        if outcome is not None:
            self.tracker.finish(outcome)
        if self._is_failing:
            self._is_failing = False
            message = f"{self.name} works again and has everything"
            self._report(self._step, "tracker_recovered", self.name, message, None)
        if outcome is not None:
            self.done.set_result(None)

    def _start(self) -> None:
        self.tracker.start(self._run)
        self._is_started = True
        if self._offset and self.tracker.starts_empty:
            message = f"{self.name} has lost the {self._offset:,} records that it had; everything is delivered again"
            self._offset = 0
            self._report(self._step, "tracker_emptied", self.name, message, None)
        if not self._has_told_link and (link := self.tracker.training_monitoring_link):
            self._report(self._step, "tracker_started", self.name, f"{self.name}: {link}", None)
            self._has_told_link = True

    def _read(self) -> list[Record]:
        """Through a connection for each time, so that a tracker that hangs leaves none open when the run log closes.

        Only SQLite may open the file in this process: closing it in another way would drop the writer's locks on it
        (https://www.sqlite.org/howtocorrupt.html, 2.2).
        """
        uri = f"{self._run_log.path.absolute().as_uri()}?mode=ro"
        with closing(sqlite3.connect(uri, uri=True, isolation_level=None)) as connection:
            return read_records(connection, self._offset, NUM_RECORDS_AT_ONCE)

    def _write(self, records: Sequence[Record]) -> None:
        try:
            for record in records:
                if self._is_abandoned:
                    return
                self._step = record.step
                self._view.deliver(record, self.tracker)
                self._offset = record.id
        finally:
            self._save_offset()

    def _save_offset(self) -> None:
        self._run_log.save_sink_from_thread(self.name, self._offset, self._run.run_id, self._run.suffix)

    def _report_failure(self, error: BaseException) -> None:
        if self._is_failing or self._is_abandoned:
            return
        self._is_failing = True
        reason = masked(traceback.format_exception_only(error)[-1].strip())
        message = f"{self.name} failed at step {self._step}: {reason}; it is tried again, and nothing is lost"
        self._report(self._step, "tracker_failed", self.name, message, error)

    def _pause(self, seconds: float) -> None:
        self._hurry.wait(seconds)
        self._hurry.clear()


async def finish_feeds(feeds: Sequence[Feed], outcome: str, timeout_s: float, say: Callable[[str], None]) -> None:
    """End feeds and wait until they have delivered everything, for a bounded time; those that have not are abandoned.

    Args:
        feeds: all of a run.
        outcome: how the run has ended.
        timeout_s: how long to wait for all of them together.
        say: takes a line about what is waited for.
    """
    for feed in feeds:
        feed.end(outcome)
    waits = [asyncio.wrap_future(feed.done) for feed in feeds]
    quiet_s = min(_QUIET_S, timeout_s)
    try:
        if waits and (await asyncio.wait(waits, timeout=quiet_s))[1]:
            left = ", ".join(
                f"{feed.name} ({feed.num_waiting:,} records left)" for feed in feeds if not feed.done.done()
            )
            if timeout_s > quiet_s:
                say(f"waiting up to {timeout_s:g} s for {left}; Ctrl-C twice to leave at once")
            await asyncio.wait(waits, timeout=timeout_s - quiet_s)
    finally:
        for feed, wait in zip(feeds, waits, strict=True):
            if not feed.done.done():
                feed.abandon()
            wait.cancel()


def replay(run_dir: str | Path, tracker: TrackerLogger, *, everything: bool = False, name: str | None = None) -> int:
    """Deliver a run that has ended, or was killed, to a tracker, and return how many records that were.

    The tracker is given what it is missing, or everything if it says that it has nothing (``starts_empty``). Its offset
    is saved in the run log, also when it fails on the way. A run that was killed finishes as "interrupted".

    Args:
        run_dir: the run directory, or the ``run.sqlite`` in it.
        tracker: where to; nothing else may be using it.
        everything: from the first record on. If the tracker was given records before, they go to a new run in it: most
            trackers can neither replace values nor take the id of a deleted run again. What is missing later goes
            there, too.
        name: what its offset is saved under; by default the name of the tracker.

    Raises:
        RunLogError: there is no such run, its run log is damaged, or the offset cannot be saved in it.
        Exception: what the tracker raises.
    """
    name = name or tracker.tracker
    with RunReader(run_dir) as reader:
        sink = reader.sinks.get(name) or Sink(0, reader.config.get("run_id", uuid4().hex), "")
        if everything and sink.offset:
            sink = replace(sink, offset=0, run_id=uuid4().hex)
        offset, num_records, view = sink.offset, 0, TrackerView(reader.config)
        try:
            tracker.start(
                RunInfo(
                    sink.run_id,
                    reader.run_dir.resolve().name,
                    reader.run_dir,
                    reader.config,
                    sink.suffix,
                    started_at=reader.started_at,
                    ended_at=reader.ended_at,
                )
            )
            offset = 0 if tracker.starts_empty else offset
            for record in reader.records(offset):
                view.deliver(record, tracker)
                offset, num_records = record.id, num_records + 1
            tracker.finish(reader.outcome or "interrupted")
        finally:
            reader.close()  # it may take it for granted that nothing writes
            _save_sink(reader.path, name, replace(sink, offset=offset))
    return num_records


def _save_sink(path: Path, name: str, sink: Sink) -> None:
    try:
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute(SAVE_SINK, (name, sink.offset, sink.run_id, sink.suffix))
    except sqlite3.Error as error:
        raise RunLogError(
            f"{name} was given everything up to record {sink.offset}, but that cannot be saved in {path}: {error}"
        ) from error
