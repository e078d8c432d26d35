"""RunRecorder: one place to say what happens in a run; it reaches the run log, the console and the user's logger."""

from __future__ import annotations

import inspect
import time
import traceback
from collections.abc import Awaitable, Callable, Mapping, Sequence
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

    The run log is always written and is the truth: what it cannot write stops the run. The user's logger is asked
    once per step; when it fails, that is an event and the run goes on (unless ``strict``).
    """

    def __init__(self, run_dir: Path, num_steps: int, logger: Logger | None, *, strict: bool) -> None:
        self.run_dir = run_dir
        self.num_steps = num_steps
        self.step = 0
        """The latest step that was logged."""
        self.latest: dict[str, float | str] = {}
        """The latest value of every number and string."""
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
        """Record how the run ended and wait until everything is on disk."""
        outcome = "completed" if error is None else "failed" if isinstance(error, Exception) else "cancelled"
        duration = f"{time.monotonic() - self._started_at:.1f} s"
        summary = f"{outcome} after {self.step} of {self.num_steps} steps in {duration}; the run is in {self.run_dir}"
        self._console.close(summary)
        details = None if error is None else "".join(traceback.format_exception(error))
        try:
            await self._run_log.log_event(self.step, f"run_{outcome}", "trainer", summary, details)
        finally:
            await self._run_log.close()

    async def announce(self, title: str, config: Mapping[str, Any], plan: Sequence[PlanLine]) -> None:
        """Record the settings and the plan, and show the plan."""
        self._console.start(title, plan)
        await self._run_log.log_config({**config, "plan": {line.name: list(line.steps) for line in plan}})
        await self._run_log.log_event(0, "run_started", "trainer", title)

    async def log_step(self, step: int, metrics: Mapping[str, Metric]) -> None:
        """Record all metrics of one step: those of training and of every callback that ran after it."""
        self.step = step
        metrics = {**metrics, "progress/step": step, "completion_percentage": step / self.num_steps}
        scalars = {key: value for key, value in metrics.items() if not isinstance(value, Table)}
        self.latest |= scalars
        await self._run_log.log_metrics(step, scalars)
        self._console.show_step(step, metrics)
        if self._logger is None:
            return
        try:
            if inspect.isawaitable(waiting := self._logger(metrics)):
                await waiting
        except Exception as error:
            if self._strict:
                raise
            reason = traceback.format_exception_only(error)[0].strip()
            await self.log_event(step, "logger_failed", "logger", f"the logger failed at step {step}: {reason}", error)

    async def log_evaluation(self, step: int, callback: str, metrics: Mapping[str, Metric]) -> None:
        """Record the tables that a callback returned and show what it found; its numbers go with the step's."""
        self._console.show_evaluation(step, callback, metrics)
        for key, value in metrics.items():
            if isinstance(value, Table):
                await self._run_log.log_samples(callback, step, key, value)

    async def log_event(
        self, step: int, kind: str, source: str, message: str, details: BaseException | str | None = None
    ) -> None:
        """Record an event and show it as a warning; ``details`` is text, or an exception for its traceback."""
        if isinstance(details, BaseException):
            details = "".join(traceback.format_exception(details))
        self._console.warn(message)
        await self._run_log.log_event(step, kind, source, message, details)
