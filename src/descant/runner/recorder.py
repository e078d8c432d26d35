"""RunRecorder: one place to say what happens in a run; it reaches the run log, the console and the user's logger."""

from __future__ import annotations

import inspect
import os
import time
import traceback
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from functools import partial
from math import inf, isnan
from pathlib import Path
from shlex import quote
from types import MappingProxyType, TracebackType
from typing import Any, Self
from uuid import uuid4

from descant.errors import ConfigurationError
from descant.metrics import COSTS_KEY, NUM_SKIPPED, NUM_TOKENS, TRAINING_LOSS, Metric, MetricSpec
from descant.provenance import masked_text, plain_config
from descant.runlog.run_log import RunLog
from descant.runner.costs import CallbackCost, cost_table
from descant.schedule import Plan
from descant.settings import plain_settings
from descant.stats import final_mean, num_final
from descant.table import Table
from descant.text import cut, figure, quoted
from descant.trackers.feed import Feed, finish_feeds
from descant.trackers.logger import Logger, RunInfo, TrackerLogger

LoggerFunction = Callable[[dict[str, Any]], Awaitable[None] | None]
"""Takes the metrics of one step as a dict, with ``progress/step`` in it; may be async."""

Loggers = LoggerFunction | Sequence[LoggerFunction]
"""What ``logger=`` takes: one of them, or several."""

_LEAVING_S = 1.0  # for trackers, once the run is cancelled
_MAX_SHOWN = 1000  # characters of a message on the console; the run log has all of it


class RunRecorder:
    """Records metrics, samples and events of a run, between entering and leaving it as an async context.

    The run log is always written, at once, and is the truth: what it cannot write stops the run. The user's logger is
    asked once per step; when it fails, that is an event and the run continues (unless ``strict``). Loggers of trackers
    are not asked but fed from the run log (see ``feed.py``); their failures never stop a run, also if ``strict``,
    and at the end they are waited for, at most 60 s or ``DESCANT_TRACKER_TIMEOUT_S``.

    A ``Logger`` object gets the settings of the run by ``log_config``. It is not closed: it is the user's, who may give
    it to the next trainer, too. Trackers finish the run at its end and take it up again when they are given to another.

    Raises:
        ConfigurationError: a logger that cannot be called, or a timeout that is no number of seconds.
    """

    def __init__(
        self,
        run_dir: str | Path | None,
        num_steps: int,
        logger: Loggers | None,
        *,
        strict: bool,
        name: str = "run",
        shows_progress: bool | None = True,
    ) -> None:
        self._started_in, self._name = Path.cwd(), name  # a callback may change the working directory
        self._given_run_dir = None if run_dir is None else self._started_in / run_dir
        self.num_steps = num_steps
        self.step = 0
        """The latest step that has metrics."""
        self.latest: dict[str, float | str] = {}
        """The latest value of every number and string."""
        self.tables: dict[str, Table] = {}
        """The latest table under every key."""
        self._outcome = "completed"
        self._costs: Sequence[CallbackCost] = ()
        self._said: set[str] = set()  # what was shown
        self._unpublished: dict[int, dict[str, Metric]] = {}
        self._final_losses: deque[tuple[float, float]] = deque(maxlen=num_final(num_steps))  # with their tokens
        self._num_losses, self._weights_losses = 0, False
        self._num_skipped = 0  # samples that could not be trained on
        self._left_out: list[str] = []  # of the dataset, in words
        from descant.runner.console import Console  # noqa: PLC0415  # rich, which importing a trainer spares

        self._console = Console(num_steps, shows_progress=shows_progress)
        loggers = flat_loggers("logger", logger)
        self._trackers = [logger for logger in loggers if isinstance(logger, TrackerLogger)]
        self._loggers = [logger for logger in loggers if not isinstance(logger, TrackerLogger)]
        self._feeds: list[Feed] = []
        self._tracker_timeout_s = _tracker_timeout_s()
        self._strict = strict

    @property
    def _shown_run_dir(self) -> Path:
        """The run directory as people would type it where the run was started."""
        is_below = self.run_dir.is_relative_to(self._started_in)
        return self.run_dir.relative_to(self._started_in) if is_below else self.run_dir

    async def __aenter__(self) -> Self:
        self._started_at = time.monotonic()
        self.run_dir = self._given_run_dir or unused_run_dir(self._started_in / default_run_dir(self._name))
        self._run_log = RunLog(self.run_dir, self.show_warning)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        """Publish what is left, record how the run ended, and wait until everything is on disk and in the trackers."""
        try:
            try:
                await self._record_end(error)
            finally:
                await self._finish_feeds(error)
        finally:
            await self._run_log.close()

    def conclude(self, outcome: str, costs: Sequence[CallbackCost]) -> None:
        """How the run has ended if it has not failed ("completed", "stopped (why)"), and what its callbacks cost."""
        self._outcome, self._costs = outcome, costs

    async def _record_end(self, error: BaseException | None) -> None:
        with suppress(Exception):  # it is an event already; what ended the run is what must be raised
            await self.publish()
        outcome = self._describe_outcome(error)
        duration_s = time.monotonic() - self._started_at
        steps = f"{self.step} of {self.num_steps} steps in {duration_s:.1f} s{self._conclude_loss()}"
        summary = f"{outcome} after {steps}; the run is in {self._shown_run_dir}"
        self._console.close(summary, self._costs, duration_s, await self._record_problems())
        if any(cost.num_runs for cost in self._costs):
            await self._run_log.log_metrics(self.step, {COSTS_KEY: cost_table(self._costs, duration_s)}, "runner")
        details = None if error is None else "".join(traceback.format_exception(error))
        await self._run_log.log_event(self.step, f"run_{outcome.partition(' ')[0]}", "trainer", summary, details)

    async def _record_problems(self) -> list[str]:
        """What of the whole run should not be overlooked, in words."""
        failed = [(cost.name, reason) for cost in self._costs if (reason := cost.failed_in_all) is not None]
        for name, reason in failed:
            await self._run_log.log_event(self.step, "never_measured", name, reason)
        problems = [*self._left_out, *(reason for _, reason in failed)]
        if self._num_skipped:
            samples = f"{self._num_skipped:,} sample{'s were' if self._num_skipped > 1 else ' was'}"
            problems.append(f"{samples} not trained on; `descant show` says which and why")
        return problems

    async def record_left_out(self, message: str, details: str) -> None:
        """Threads of the dataset are not trained: a warning now and in the summary."""
        self._left_out.append(message)
        await self.record_event(0, "samples_left_out", "trainer", message, details)

    def _conclude_loss(self) -> str:
        """The training loss that the run came to, which is its latest from now on, in words."""
        if not (last := list(self._final_losses)[-num_final(self._num_losses) :]):
            return ""
        losses, num_tokens = zip(*last, strict=True)
        if (final := final_mean(losses, num_tokens if self._weights_losses else [1.0] * len(last))) is None:
            return ""
        self.latest[TRAINING_LOSS] = final.mean
        if final.num_values == 1:
            return f"; training loss {figure(final.mean)}"
        return f"; training loss {figure(final.mean)} ± {final.std:.2g} over its last {final.num_values:,} values"

    def _describe_outcome(self, error: BaseException | None) -> str:
        return self._outcome if error is None else "failed" if isinstance(error, Exception) else "cancelled"

    async def _finish_feeds(self, error: BaseException | None) -> None:
        """Wait until the trackers have everything; what they have not got is a warning with what to do."""
        if not self._feeds:
            return
        with suppress(Exception):  # what cannot be written is raised when the run log is closed
            await self._run_log.flush()
        is_cancelled = error is not None and not isinstance(error, Exception)
        timeout_s = min(_LEAVING_S, self._tracker_timeout_s) if is_cancelled else self._tracker_timeout_s
        outcome = self._describe_outcome(error).partition(" ")[0]
        try:
            await finish_feeds(self._feeds, outcome, timeout_s, self.show_note)
        finally:
            for feed in self._feeds:
                if not feed.done.done():
                    records = f"{feed.num_waiting:,} of {self._run_log.num_records:,} records"
                    what = records if feed.num_waiting else "the end"
                    message = (
                        f"{feed.name} has not got {what} of the run; once it works again: "
                        f"`descant sync {quote(str(self._shown_run_dir))} --to {feed.name}`"
                    )
                    with suppress(Exception):
                        await self.record_event(self.step, "tracker_incomplete", feed.name, message)

    async def announce(
        self,
        title: str,
        config: Mapping[str, Any],
        plan: Sequence[Plan],
        specs: Mapping[str, Sequence[MetricSpec]] = MappingProxyType({}),
        describe_running: Callable[[], Sequence[str]] = tuple,
    ) -> None:
        """Record the settings and the plan, show the plan, and tell the loggers.

        ``specs`` are the declared metrics of each callback, and of the loop under the name "trainer";
        ``describe_running`` says what is evaluated at a moment, from any thread.
        """
        self._console.start(title, plan, specs, describe_running)
        self._weights_losses = any(spec.key == NUM_TOKENS for spec in specs.get("trainer", ()))
        run_id = uuid4().hex
        trackers = self._named_trackers()
        settings = {name: plain_settings(tracker) for name, tracker in trackers.items()}
        plans = {line.name: list(line.steps) for line in plan}
        own = {"run_id": run_id, "plan": plans, **({"trackers": settings} if settings else {})}
        plain = {**plain_config(config), **own}
        await self._run_log.log_config(plain)
        await self._run_log.log_event(0, "run_started", "trainer", title)
        for logger in self._loggers:
            if isinstance(logger, Logger):
                await self._ask(logger, partial(logger.log_config, plain))
        run = RunInfo(run_id, self.run_dir.resolve().name, self.run_dir, plain, started_at=time.time())
        for name, tracker in trackers.items():
            self._feeds.append(Feed(tracker, name, run, self._run_log, self._report_from_thread))

    def _named_trackers(self) -> dict[str, TrackerLogger]:
        """The trackers under distinct names: the second one of Trackio is ``trackio-2``."""
        named: dict[str, TrackerLogger] = {}
        for number, tracker in enumerate(self._trackers):
            same = sum(other.tracker == tracker.tracker for other in self._trackers[:number])
            named[f"{tracker.tracker}-{same + 1}" if same else tracker.tracker] = tracker
        return named

    async def record(self, step: int, metrics: Mapping[str, Metric], source: str = "trainer") -> None:
        """Write metrics of a step to the run log at once; the logger gets them with all others of the step.

        The step may be an earlier one, of an evaluation that has arrived late.
        """
        place: dict[str, Metric] = {"progress/step": step, "completion_percentage": min(1.0, step / self.num_steps)}
        self._unpublished.setdefault(step, {}).update({**metrics, **place})
        if isinstance(loss := metrics.get(TRAINING_LOSS), int | float) and not isnan(loss):
            num_tokens = metrics.get(NUM_TOKENS)
            self._final_losses.append((loss, num_tokens if isinstance(num_tokens, int | float) else 1.0))
            self._num_losses += 1
        if isinstance(num_skipped := metrics.get(NUM_SKIPPED), int | float):
            self._num_skipped += int(num_skipped)
        if step >= self.step:
            self.step = step
            self.latest |= {key: value for key, value in place.items() if not isinstance(value, Table)}
        self.latest |= {key: value for key, value in metrics.items() if not isinstance(value, Table)}
        self.tables |= {key: value for key, value in metrics.items() if isinstance(value, Table)}
        await self._run_log.log_metrics(step, {**metrics, **place}, source)

    def forget(self, keys: Iterable[str]) -> None:
        """Metrics that the latest call of their callback has not returned: what it said before is not the latest."""
        for key in keys:
            self.latest.pop(key, None)
            self.tables.pop(key, None)

    async def record_evaluation(
        self, step: int, callback: str, metrics: Mapping[str, Metric], costs: Mapping[str, Metric]
    ) -> None:
        """Write what a callback returned and what it cost to the run log, and show what it found."""
        await self.record(step, {**metrics, **costs}, callback)
        self._console.show_evaluation(step, callback, metrics)

    async def publish(self, remaining_s: Callable[[], float | None] = lambda: None) -> None:
        """Give the logger everything that was recorded since the last time: once for each step that it is of.

        Args:
            remaining_s: tells the seconds to the end of the run, for the console.

        Raises:
            Exception: what the logger raises, if ``strict``; otherwise that is an event.
        """
        unpublished, self._unpublished = self._unpublished, {}
        for step, metrics in sorted(unpublished.items()):
            if step == self.step:
                self._console.show_step(step, metrics, remaining_s)
            for logger in self._loggers:
                await self._ask(logger, partial(logger, metrics))

    async def _ask(self, logger: LoggerFunction, work: Callable[[], Awaitable[None] | None]) -> None:
        """Let a logger of the user's do something, here in the loop."""
        try:
            if inspect.isawaitable(waiting := work()):
                await waiting
        except Exception as error:
            reason = traceback.format_exception_only(error)[0].strip()
            name = "" if len(self._loggers) == 1 else f" {getattr(logger, '__name__', type(logger).__name__)}"
            message = f"the logger{name} failed at step {self.step}: {reason}"
            await self.record_event(self.step, "logger_failed", "logger", message, error)
            if self._strict:
                raise

    async def record_event(
        self,
        step: int,
        kind: str,
        source: str,
        message: str,
        details: BaseException | str | None = None,
        *,
        is_shown: bool = True,
    ) -> None:
        """Record an event and show it as a warning, once if it is the same again; ``details`` is text, or an exception
        for its traceback."""
        if is_shown and message not in self._said:
            self._said.add(message)
            self.show_warning(message)
        await self._run_log.log_event(step, kind, source, message, _as_text(details))

    async def record_shown(self, step: int, kind: str, source: str, message: str, details: str) -> None:
        """Record a warning that was shown when it arose."""
        await self._run_log.log_event(step, kind, source, message, details)

    async def record_note(self, step: int, kind: str, source: str, message: str, details: str | None = None) -> None:
        """Record an event that is no reason to worry, and show it, once if it is the same again."""
        if message not in self._said:
            self._said.add(message)
            self.show_note(message)
        await self._run_log.log_event(step, kind, source, message, details)

    @property
    def has_logger(self) -> bool:
        """Whether a logger of the user's is asked in the loop, which may be async."""
        return bool(self._loggers)

    def show_warning(self, message: str) -> None:
        """Show a warning at once, from any thread, without recording it."""
        self._console.warn(cut(masked_text(message), _MAX_SHOWN))

    def show_waiting(self, message: str) -> None:
        """Show what training waits for, where no live line does."""
        self._console.show_waiting(message)

    def show_note(self, message: str) -> None:
        """Show what is good to know, without recording it."""
        self._console.note(cut(masked_text(message), _MAX_SHOWN))

    def _report_from_thread(self, step: int, kind: str, source: str, message: str, error: BaseException | None) -> None:
        """What a feed has to say: a warning if there is an error."""
        (self.show_note if error is None else self.show_warning)(message)
        self._run_log.log_event_from_thread(step, kind, source, message, _as_text(error))


def flat_loggers(name: str, logger: Any) -> list[LoggerFunction]:
    """The loggers in an argument: None, one, a list or tuple of them, or an object that has them as ``loggers``.

    Raises:
        ConfigurationError: something that cannot be called.
    """
    if logger is None:
        return []
    several = logger if isinstance(logger, list | tuple) else getattr(logger, "loggers", None)
    if isinstance(several, list | tuple) and (several or several is logger):
        found = [each for one in several for each in flat_loggers(name, one)]
        return list({id(each): each for each in found}.values())
    if not callable(logger):
        needed = "must be callable with a dict of metrics, or a list of such, or None"
        hint = (
            f"; for trackers by name: {name}=get_prod_logger(trackers=[{logger!r}])" if isinstance(logger, str) else ""
        )
        raise ConfigurationError(f"{name}={logger!r} {needed}{hint}")
    return [logger]


def _tracker_timeout_s() -> float:
    text = os.environ.get("DESCANT_TRACKER_TIMEOUT_S", "60")
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < inf:
        raise ConfigurationError(f"DESCANT_TRACKER_TIMEOUT_S={text!r} must be a number of seconds, at least 0")
    return seconds


def _as_text(details: BaseException | str | None) -> str | None:
    return "".join(traceback.format_exception(details)) if isinstance(details, BaseException) else details


def default_run_dir(name: str) -> Path:
    """``runs/<name>-<date>-<time>``."""
    return Path("runs") / f"{name}-{datetime.now():%Y%m%d-%H%M%S}"


def unused_run_dir(path: Path, *, may_be_there: bool = False) -> Path:
    """The path, with a number behind it if there is something already. It is made, so that no other run gets it.

    ``may_be_there``: an empty directory is taken, too.

    Raises:
        ConfigurationError: it cannot be made.
    """
    candidate, number = path, 1
    while True:
        try:
            candidate.mkdir(parents=True)
            return candidate
        except FileExistsError:
            if may_be_there and candidate.is_dir() and not any(candidate.iterdir()):
                return candidate
            number += 1
            candidate = path.with_name(f"{path.name}-{number}")
        except (OSError, ValueError) as error:  # a name that is too long, say, or has what the file system has not
            reason = getattr(error, "strerror", None) or error
            raise ConfigurationError(f"the run directory {quoted(str(path))} cannot be made: {reason}") from error
