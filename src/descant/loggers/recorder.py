"""RunRecorder: one place to say what happens in a run; it reaches the run log, the console and the user's logger."""

from __future__ import annotations

import inspect
import time
import traceback
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from descant.costs import CallbackCost
from descant.loggers.console import Console
from descant.loggers.run_log import RunLog
from descant.metrics import Metric
from descant.schedule import Plan
from descant.table import Table

Logger = Callable[[dict[str, Any]], Awaitable[None] | None]
"""Takes the metrics of one step as a dict, with ``progress/step`` in it; may be async."""


class RunRecorder:
    """Records metrics, samples and events of a run, between entering and leaving it as an async context.

    The run log is always written, at once, and is the truth: what it cannot write stops the run. The user's logger is
    asked once per step; when it fails, that is an event and the run goes on (unless ``strict``).
    """

    def __init__(self, run_dir: Path, num_steps: int, logger: Logger | None, *, strict: bool) -> None:
        self.run_dir = run_dir
        self.num_steps = num_steps
        self.step = 0
        """The latest step that has metrics."""
        self.latest: dict[str, float | str] = {}
        """The latest value of every number and string."""
        self.tables: dict[str, Table] = {}
        """The latest table under every key."""
        self._outcome = "completed"
        self._costs: Sequence[CallbackCost] = ()
        self._kinds_of_events: set[str] = set()
        self._unpublished: dict[str, Metric] = {}
        self._console = Console(num_steps)
        self._logger = logger
        self._strict = strict

    async def __aenter__(self) -> Self:
        self._started_at = time.monotonic()
        self._run_log = RunLog(self.run_dir)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        """Publish what is left, record how the run ended, and wait until everything is on disk."""
        try:
            await self._record_end(error)
        finally:
            await self._run_log.close()

    def conclude(self, outcome: str, costs: Sequence[CallbackCost]) -> None:
        """How the run has ended if it has not failed ("completed", "stopped (why)"), and what its callbacks cost."""
        self._outcome, self._costs = outcome, costs

    async def _record_end(self, error: BaseException | None) -> None:
        with suppress(Exception):  # it is an event already; what ended the run is what must be raised
            await self.publish()
        outcome = self._outcome if error is None else "failed" if isinstance(error, Exception) else "cancelled"
        duration_s = time.monotonic() - self._started_at
        duration = f"{duration_s:.1f} s"
        summary = f"{outcome} after {self.step} of {self.num_steps} steps in {duration}; the run is in {self.run_dir}"
        self._console.close(summary, self._costs, duration_s)
        details = None if error is None else "".join(traceback.format_exception(error))
        await self._run_log.log_event(self.step, f"run_{outcome.partition(' ')[0]}", "trainer", summary, details)

    async def announce(self, title: str, config: Mapping[str, Any], plan: Sequence[Plan]) -> None:
        """Record the settings and the plan, and show the plan."""
        self._console.start(title, plan)
        await self._run_log.log_config({**config, "plan": {line.name: list(line.steps) for line in plan}})
        await self._run_log.log_event(0, "run_started", "trainer", title)

    async def record(self, step: int, metrics: Mapping[str, Metric]) -> None:
        """Write metrics of a step to the run log at once; the logger gets them with all others of the step."""
        self.step = step
        metrics = {**metrics, "progress/step": step, "completion_percentage": min(1.0, step / self.num_steps)}
        self._unpublished |= metrics
        scalars = {key: value for key, value in metrics.items() if not isinstance(value, Table)}
        self.latest |= scalars
        self.tables |= {key: value for key, value in metrics.items() if isinstance(value, Table)}
        await self._run_log.log_metrics(step, scalars)

    async def record_evaluation(
        self, step: int, callback: str, metrics: Mapping[str, Metric], costs: Mapping[str, Metric]
    ) -> None:
        """Write what a callback returned and what it cost to the run log, and show what it found."""
        await self.record(step, {**metrics, **costs})
        for key, value in metrics.items():
            if isinstance(value, Table):
                await self._run_log.log_samples(callback, step, key, value)
        self._console.show_evaluation(step, callback, metrics)

    async def publish(self, remaining_s: float | None = None) -> None:
        """Give the logger everything that was recorded since the last time: the metrics of one step.

        Args:
            remaining_s: seconds to the end of the run, for the console.

        Raises:
            whatever the logger raises, if ``strict``; otherwise that is an event.
        """
        metrics, self._unpublished = self._unpublished, {}
        if not metrics:
            return
        self._console.show_step(self.step, metrics, remaining_s)
        if self._logger is None:
            return
        try:
            if inspect.isawaitable(waiting := self._logger(metrics)):
                await waiting
        except Exception as error:
            reason = traceback.format_exception_only(error)[0].strip()
            message = f"the logger failed at step {self.step}: {reason}"
            await self.record_event(self.step, "logger_failed", "logger", message, error)
            if self._strict:
                raise

    async def record_event(
        self, step: int, kind: str, source: str, message: str, details: BaseException | str | None = None
    ) -> None:
        """Record an event and show it as a warning; ``details`` is text, or an exception for its traceback."""
        self._console.warn(message)
        await self._log_event(step, kind, source, message, details)

    async def record_note(self, step: int, kind: str, source: str, message: str, details: str | None = None) -> None:
        """Record an event that is no reason to worry, and show it."""
        self._console.note(message)
        await self._log_event(step, kind, source, message, details)

    @property
    def has_logger(self) -> bool:
        """Whether the user's logger is asked, which may be async."""
        return self._logger is not None

    def show_warning(self, message: str) -> None:
        """Show a warning at once, from any thread, without recording it."""
        self._console.warn(message)

    def has_event(self, kind: str) -> bool:
        """Whether an event of this kind was recorded."""
        return kind in self._kinds_of_events

    async def _log_event(
        self, step: int, kind: str, source: str, message: str, details: BaseException | str | None
    ) -> None:
        if isinstance(details, BaseException):
            details = "".join(traceback.format_exception(details))
        self._kinds_of_events.add(kind)
        await self._run_log.log_event(step, kind, source, message, details)


def new_run_dir(name: str) -> Path:
    """``runs/<name>-<date>-<time>``, with a number behind it if a run started in the same second."""
    return unused_run_dir(Path("runs") / f"{name}-{datetime.now():%Y%m%d-%H%M%S}")


def unused_run_dir(path: Path) -> Path:
    """The path, with a number behind it if there is something already."""
    candidate, number = path, 1
    while candidate.exists() and any(candidate.iterdir()):
        number += 1
        candidate = path.with_name(f"{path.name}-{number}")
    return candidate
