"""Feed: delivers what a run records to one tracker, on a thread of its own, from its place in the run log.

The training loop writes to the run log and knows nothing of trackers. A feed is woken when records have come on disk,
reads those after its place, gives them to the tracker, and saves its place, in the run log, too. What the tracker
refuses or misses is tried again from there, later and later (1 s, 2 s, ... 60 s), so a tracker that is down catches up
when it is back. A process that is killed within a batch has delivered records whose place it could not save: at most
that batch comes twice to a tracker that is fed again with ``replay``. MLflow and Trackio know it and keep one.
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import traceback
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from uuid import NAMESPACE_URL, uuid4, uuid5

from tenacity import Retrying, retry_if_exception_type, wait_exponential

from descant.errors import ConfigurationError, RunLogError
from descant.provenance import masked
from descant.runlog.journal import Record, read_records
from descant.runlog.run_log import SAVE_SINK, SINKS, RunLog
from descant.runlog.run_reader import RunReader, SinkPlace
from descant.trackers.logger import RunInfo, TrackerLogger

_NUM_RECORDS_AT_ONCE = 200
_REST_S = 0.2  # a turn costs a third of a millisecond of the processor, for one record as for many
_FIRST_RETRY_S = 1.0
_LONGEST_RETRY_S = 60.0
_QUIET_S = 0.5  # what is done by then needs no words

Report = Callable[[int, str, str, str, BaseException | None], None]
"""Takes step, kind, source, message and error of an event, on any thread."""


@dataclass
class _Stages:
    """The run that a tracker's logger writes to: of one run of descant, or of several that share the logger."""

    first: RunInfo | None = None
    last_step: int = 0
    goes_on: bool = False

    def __post_init__(self) -> None:
        self.turn = threading.Lock()

    def enter(self, run: RunInfo) -> tuple[RunInfo, int]:
        """What the tracker is told of a run, and what is added to its steps."""
        if self.goes_on:
            raise ConfigurationError(
                f"the logger that {run.name} is given is in use by another run, which has not ended; "
                "give runs that go on at the same time a logger each"
            )
        self.goes_on = True
        if self.first is None:
            self.first = run
            return run, 0
        return _later_stage(run, self.first.run_id, self.first.name), self.last_step


_stages: dict[int, _Stages] = {}


def _stages_of(tracker: TrackerLogger) -> _Stages:
    if id(tracker) not in _stages:
        _stages[id(tracker)] = _Stages()
        weakref.finalize(tracker, _stages.pop, id(tracker))
    return _stages[id(tracker)]


def _later_stage(run: RunInfo, run_id: str, run_name: str) -> RunInfo:
    """The settings of a later stage stand under its name: most trackers do not let those of the first be changed."""
    return RunInfo(run_id, run_name, run.run_dir, {run.name: dict(run.config)})


class Feed:
    """Feeds one tracker with what a run records, until ``end`` was called and everything is delivered.

    A logger that was fed from an earlier run continues it: the same run in the tracker, with steps that go on after its
    last one, as soon as the calls that the earlier run has made have returned.

    Args:
        tracker: the logger; nobody else calls its ``start``, ``write`` and ``finish``.
        name: what its place is saved under, distinct within the run.
        run: what it is told of the run.
        run_log: where records come from and the place is saved.
        report: takes what there is to say: ``tracker_started`` with its link, ``tracker_failed`` once when it begins to
            fail, and ``tracker_recovered`` when it has caught up.

    Raises:
        ConfigurationError: another run, which has not ended, feeds the logger.
    """

    def __init__(self, tracker: TrackerLogger, name: str, run: RunInfo, run_log: RunLog, report: Report) -> None:
        self.tracker, self.name = tracker, name
        self._run_log, self._report = run_log, report
        self._stages = _stages_of(tracker)
        self._run, self._step_offset = self._stages.enter(run)
        self._place = 0
        self._step = 0
        self._outcome: str | None = None
        self._is_started = self._is_failing = self._is_abandoned = False
        self._has_told_link = False
        self._news = threading.Event()
        self._news.set()  # to start the tracker before there are records
        self._hurry = threading.Event()
        self.done: Future[None] = Future()
        """Has a result when everything is delivered and the tracker has finished."""
        self.done.set_running_or_notify_cancel()
        self._retrying = Retrying(
            retry=retry_if_exception_type(BaseException),
            wait=wait_exponential(
                _FIRST_RETRY_S, max=_LONGEST_RETRY_S
            ),  # no jitter: it draws from training's generator
            stop=lambda _: self._is_abandoned,
            sleep=self._pause,
            retry_error_callback=lambda _: True,
        )
        self._save_place()
        run_log.listeners.append(self._news.set)
        threading.Thread(target=self._deliver, name=f"descant-feed-{name}", daemon=True).start()

    @property
    def num_waiting(self) -> int:
        """Records that are on disk and not delivered."""
        return self._run_log.num_records - self._place

    def end(self, outcome: str, step: int) -> None:
        """Nothing more will be recorded, and everything is on disk: deliver it and finish.

        Args:
            outcome: how the run has ended.
            step: its last one.
        """
        self._stages.last_step = self._step_offset + step
        self._stages.goes_on = False
        self._outcome = outcome
        self._news.set()
        self._hurry.set()

    def abandon(self) -> None:
        """Nobody waits any more: stop after the call of the tracker that is under way, if it ever returns."""
        self._is_abandoned = True
        self._news.set()
        self._hurry.set()

    def _deliver(self) -> None:
        """The thread."""
        with self._stages.turn:
            while not (self._is_abandoned or self.done.done()):
                self._news.wait()
                self._news.clear()
                while not self._retrying(self._catch_up):
                    pass
                if not self.done.done():
                    self._pause(_REST_S)

    def _catch_up(self) -> bool:
        """Deliver what there is. False if the tracker has failed after it took something: to be tried again at once."""
        outcome, before = self._outcome, self._place  # an outcome that is known means that all records are on disk
        try:
            if not self._is_abandoned:
                self._start()
            while not self._is_abandoned and (records := self._read()):
                self._write(records)
            if self._is_abandoned:
                return True
            if outcome is not None:
                self.tracker.finish(outcome)
        except BaseException as error:  # trackers may well call sys.exit
            self._is_started = False
            self._begin_to_fail(error)
            if self._place == before:
                raise
            return False
        if self._is_failing:
            self._is_failing = False
            self._report(
                self._step, "tracker_recovered", self.name, f"{self.name} works again and has everything", None
            )
        if outcome is not None:
            self.done.set_result(None)
        return True

    def _start(self) -> None:
        if self._is_started:
            return
        self.tracker.start(self._run)
        self._is_started = True
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
            return read_records(connection, self._place, _NUM_RECORDS_AT_ONCE)

    def _write(self, records: Sequence[Record]) -> None:
        try:
            for record in records:
                if self._is_abandoned:
                    return
                self._step = record.step
                _write_record(self.tracker, record, self._step_offset)
                self._place = record.id
        finally:
            self._save_place()

    def _save_place(self) -> None:
        run = self._run
        self._run_log.save_sink_from_thread(self.name, self._place, run.run_id, run.name, self._step_offset)

    def _begin_to_fail(self, error: BaseException) -> None:
        if self._is_failing or self._is_abandoned:
            return
        self._is_failing = True
        reason = masked(traceback.format_exception_only(error)[-1].strip())
        message = f"{self.name} failed at step {self._step}: {reason}; it is tried again, and nothing is lost"
        self._report(self._step, "tracker_failed", self.name, message, error)

    def _pause(self, seconds: float) -> None:
        self._hurry.wait(seconds)
        self._hurry.clear()


async def finish_feeds(
    feeds: Sequence[Feed], outcome: str, step: int, timeout_s: float, say: Callable[[str], None]
) -> list[Feed]:
    """End feeds and wait until they have delivered everything, for a bounded time.

    Args:
        feeds: all of a run.
        outcome, step: how the run has ended, and after which step.
        timeout_s: how long to wait for all of them together.
        say: takes a line about what is waited for.

    Returns:
        The feeds that are not done; they are abandoned. Also when the wait is cancelled, they are.
    """
    for feed in feeds:
        feed.end(outcome, step)
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
        undone = [feed for feed in feeds if not feed.done.done()]
        for feed in undone:
            feed.abandon()
        for wait in waits:
            wait.cancel()
    return undone


def replay(run_dir: str | Path, tracker: TrackerLogger, *, everything: bool = False, name: str | None = None) -> int:
    """Deliver a run that has ended, or was killed, to a tracker, and return how many records that were.

    The tracker gets what it is missing. The place that it has got to is saved in the run log, also when it fails on the
    way. A stage that was delivered to the tracker's run of an earlier stage goes there. A run that was killed finishes
    as "interrupted".

    Args:
        run_dir: the run directory, or the ``run.sqlite`` in it.
        tracker: where to; nobody else may be using it.
        everything: from the first record on. If the tracker was given records before, they go to a new run in it: most
            trackers can neither replace values nor take the id of a deleted run again. What is missing later goes
            there, too.
        name: what its place is saved under; by default the name of the tracker.

    Raises:
        RunLogError: there is no such run, its run log is damaged, or the place cannot be saved in it.
        whatever the tracker raises.
    """
    num_records, name = 0, name or tracker.tracker
    with RunReader(run_dir) as reader:
        run, sink = _describe(reader, name, everything=everything)
        place = sink.place
        try:
            tracker.start(run)
            for record in reader.records(place):
                _write_record(tracker, record, sink.step_offset)
                place, num_records = record.id, num_records + 1
            tracker.finish(reader.outcome or "interrupted")
        finally:
            path = reader.path
            reader.close()  # it may have been told that nobody writes
            _save_sink(path, name, SinkPlace(place, sink.run_id, sink.run_name, sink.step_offset))
    return num_records


def _describe(reader: RunReader, name: str, *, everything: bool) -> tuple[RunInfo, SinkPlace]:
    """What a tracker is told of a run that is replayed, and as what and how far it knows it."""
    run_id = reader.config.get("run_id") or uuid5(NAMESPACE_URL, f"{reader.run_dir.name}/{reader.started_at}").hex
    run = RunInfo(run_id, reader.run_dir.resolve().name, reader.run_dir, reader.config)
    sink = reader.sinks.get(name, SinkPlace(0, run.run_id, run.name, 0))
    if everything and sink.place:
        run = replace(run, run_id=uuid4().hex)
        return run, SinkPlace(0, run.run_id, run.name, 0)
    return run if sink.run_id == run_id else _later_stage(run, sink.run_id, sink.run_name), sink


def _save_sink(path: Path, name: str, sink: SinkPlace) -> None:
    try:
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.executescript(SINKS)
            connection.execute(SAVE_SINK, (name, sink.place, sink.run_id, sink.run_name, sink.step_offset))
    except sqlite3.Error as error:
        raise RunLogError(
            f"{name} was given everything up to record {sink.place}, but that cannot be saved in {path}: {error}"
        ) from error


def _write_record(tracker: TrackerLogger, record: Record, step_offset: int) -> None:
    metrics = record.metrics
    if step_offset and "progress/step" in metrics:
        metrics = {**metrics, "progress/step": record.step + step_offset}
    tracker.write(record.step + step_offset, record.time_s, metrics, record.tables)
