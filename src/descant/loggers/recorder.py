"""RunRecorder: one place to say what happens in a run; it reaches the run log, the console and the user's logger."""

from __future__ import annotations

import inspect
import time
import traceback
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from descant.loggers.console import Console, PlanLine
from descant.loggers.run_log import RunLog
from descant.metrics import Metric
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

    async def _record_end(self, error: BaseException | None) -> None:
        with suppress(Exception):  # it is an event already; what ended the run is what must be raised
            await self.publish()
        outcome = "completed" if error is None else "failed" if isinstance(error, Exception) else "cancelled"
        duration = f"{time.monotonic() - self._started_at:.1f} s"
        summary = f"{outcome} after {self.step} of {self.num_steps} steps in {duration}; the run is in {self.run_dir}"
        self._console.close(summary)
        details = None if error is None else "".join(traceback.format_exception(error))
        await self._run_log.log_event(self.step, f"run_{outcome}", "trainer", summary, details)

    async def announce(self, title: str, config: Mapping[str, Any], plan: Sequence[PlanLine]) -> None:
        """Record the settings and the plan, and show the plan."""
        self._console.start(title, plan)
        await self._run_log.log_config({**config, "plan": {line.name: list(line.steps) for line in plan}})
        await self._run_log.log_event(0, "run_started", "trainer", title)

    async def record(self, step: int, metrics: Mapping[str, Metric]) -> None:
        """Write metrics of a step to the run log at once; the logger gets them with all others of the step."""
        self.step = step
        metrics = {**metrics, "progress/step": step, "completion_percentage": step / self.num_steps}
        self._unpublished |= metrics
        scalars = {key: value for key, value in metrics.items() if not isinstance(value, Table)}
        self.latest |= scalars
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

    async def publish(self) -> None:
        """Give the logger everything that was recorded since the last time: the metrics of one step.

        Raises:
            whatever the logger raises, if ``strict``; otherwise that is an event.
        """
        metrics, self._unpublished = self._unpublished, {}
        if not metrics:
            return
        self._console.show_step(self.step, metrics)
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
        if isinstance(details, BaseException):
            details = "".join(traceback.format_exception(details))
        self._console.warn(message)
        await self._run_log.log_event(step, kind, source, message, details)
