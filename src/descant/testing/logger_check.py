"""check_logger: whether a logger takes all that a run may give it, and leaves the run alone."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import inspect
import math
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from descant.callbacks.function_callback import callback
from descant.errors import ConfigurationError
from descant.runlog.run_reader import RunReader
from descant.runner.callback_runner import CallbackRunner
from descant.runner.recorder import flat_loggers
from descant.schedule import every_steps
from descant.table import Table
from descant.testing.generators import check_draws, generator_states
from descant.testing.report import Problem, Report
from descant.testing.runs import quietly
from descant.text import quoted
from descant.trackers.logger import STEP_KEY, Logger, TrackerLogger

_STEPS = (2, 2, 1, 4)  # one comes twice, one late
_NUM_STEPS = 3
_ROWS: list[list[Any]] = [["a", "<b>4</b>\n| `x`", 1.0, True], ["b", "", None, 0]]
_METRICS = {
    "float": 0.5, "integer": 3, "bool": True, "nan": math.nan, "infinity": math.inf, "string": "größer\n<b>",
    "table": Table(["example_id", "response", "grade", "passed"], _ROWS), "table_without_rows": Table(["x"]),
}  # fmt: skip
_SCALARS = {"numpy_float32": np.float32(0.5), "numpy_int64": np.int64(3), "torch_scalar": torch.tensor(0.5)}
"""What users log by hand, too; a run makes plain numbers of them."""
_CONFIG = {"lr": 1e-3, "name": "a run", "is_short": True, "nothing": None, "nested": {"steps": [1, 2]}}
_FAILURES = ("logger_failed", "tracker_failed", "tracker_incomplete")


async def check_logger(make_logger: Callable[[], Any], *, raise_on_failure: bool = True) -> Report:
    """Check that a logger keeps the promises that descant's own keep.

    >>> async def test_my_logger():  # doctest: +SKIP
    ...     await check_logger(lambda: MyLogger("a project"))

    The page "Testing" of the docs lists what it is given.

    Args:
        make_logger: makes a fresh logger, several times: a ``TrackerLogger``, another ``Logger``, or any callable that
            takes a dict. It writes for real: give it a temporary directory.
        raise_on_failure: raise what does not hold instead of returning it.

    Raises:
        AssertionError: something does not hold: the report, which says what differs.
        ConfigurationError: what was made is not a logger.
    """
    logger = make_logger()
    if len(flat_loggers("logger", logger)) == 0 or isinstance(logger, list | tuple):
        raise ConfigurationError(f"make_logger() returned {logger!r}; one logger is needed")
    report = Report(getattr(logger, "__name__", type(logger).__name__))
    before = generator_states()
    await _LoggerCheck(logger, report).run()
    if isinstance(logger, TrackerLogger):  # it writes in a worker thread, where nothing restores generators
        problem = "writing changes {}: a tracker is written to in parallel to training, which may draw from it"
        check_draws(report, before, problem)
    await _check_run(make_logger(), report)
    return report.conclude(raise_on_failure)


@dataclass
class _LoggerCheck:
    """The single checks of one logger."""

    _logger: Any
    _report: Report

    async def run(self) -> None:
        links = {"before the run": _link(self._logger)}
        await self._check_metrics()
        if isinstance(self._logger, Logger):
            with self._report.check("it takes settings, also twice", ", ".join(_CONFIG)):
                for _ in range(2):
                    await _call(lambda: self._logger.log_config(copy.deepcopy(_CONFIG)))
            await self._check_after_failure()
            links["during the run"] = _link(self._logger)
            await self._check_close()
            links["after the run"] = _link(self._logger)
            with self._report.check("its link is a text or None", ", ".join(links)):
                for when, link in links.items():
                    if not isinstance(link, str | None):
                        raise Problem(f"training_monitoring_link is {link!r} {when}")

    async def _check_metrics(self) -> None:
        given = _METRICS | (_SCALARS if isinstance(self._logger, Logger) else {})
        with self._report.check("it takes every kind of metric", ", ".join(given)) as check:
            for key, value in given.items():
                await self._log({key: value}, 0)
            await self._log(given, 0)
        if check.passed:
            with self._report.check("it takes late and repeated steps", f"in the order {', '.join(map(str, _STEPS))}"):
                for step in _STEPS:
                    await self._log({"loss": 1.0, "note": "late"}, step)

    async def _log(self, metrics: Mapping[str, Any], step: int, when: str = "") -> None:
        given = {STEP_KEY: step, **metrics}
        kept = repr(given)
        [(key, value), *more] = metrics.items()
        what = "metrics" if more else f"{key} = {quoted(value, 40)}"
        await _call(lambda: self._logger(given), f"{when}{what} of step {step}: ")
        if repr(given) != kept:
            raise Problem("it changes the dict that it is given, which goes to other loggers, too: copy it first")

    async def _check_after_failure(self) -> None:
        with self._report.check("it goes on after a failure", "a value that is no metric, then one that is"):
            try:
                await _call(lambda: self._logger({STEP_KEY: 5, "no_metric": object()}))
            except Problem as refusal:
                if "no_metric" not in str(refusal):
                    raise Problem(f"a value that is no metric is refused without its key: {refusal}") from None
            else:
                if isinstance(self._logger, TrackerLogger):
                    raise Problem("a value that is no metric is taken in silence: leave __call__ to TrackerLogger")
            await self._log({"loss": 0.5}, 6, "after a value that is no metric: ")
        if isinstance(self._logger, TrackerLogger) and (info := self._logger.run) is not None:
            with self._report.check("it is started again", "as a run does after a failure"):
                await _call(lambda: self._logger.start(info))
                await self._log({"loss": 0.5}, 7)

    async def _check_close(self) -> None:
        with self._report.check("closing twice is harmless") as check:
            for _ in range(2):
                await _call(self._logger.close)
        if isinstance(self._logger, TrackerLogger) and check.passed:
            with self._report.check("after closing it refuses") as check:
                try:
                    await _call(lambda: self._logger({STEP_KEY: 7, "loss": 0.5}))
                except Problem as refusal:
                    check.details = str(refusal)
                else:
                    raise Problem("what is logged after close() is lost in silence: leave close to TrackerLogger")


async def _check_run(logger: Any, report: Report) -> None:
    """A short run, which gives a tracker its records in a worker thread."""
    with tempfile.TemporaryDirectory(prefix="descant-testing-", ignore_cleanup_errors=True) as folder:
        with quietly():
            runner = CallbackRunner([_everything], num_steps=_NUM_STEPS, run_dir=folder, logger=logger)
            async with runner:
                for step in range(1, _NUM_STEPS + 1):
                    await runner.after_step(step, {"training/loss": 1.0 / step})
        with RunReader(Path(folder)) as reader:
            failed = [event.message for event in reader.events if event.kind in _FAILURES]
    if isinstance(logger, Logger):
        with contextlib.suppress(Exception):
            await _call(logger.close)
    with report.check("a run logs with it", f"{_NUM_STEPS} steps, metrics and tables"):
        if failed:
            raise Problem(failed[0])


@callback(every_steps(1))
async def _everything() -> dict[str, Any]:
    return _METRICS | _SCALARS


async def _call(call: Callable[[], Awaitable[None] | None], where: str = "") -> None:
    """Make a call, and raise what it raises as a problem."""
    try:
        if inspect.isawaitable(waiting := call()):
            await waiting
    except (Exception, asyncio.CancelledError) as error:
        inner = error.exceptions[0] if isinstance(error, ExceptionGroup) else error
        raise Problem(f"{where}{type(inner).__name__}: {inner}") from error


def _link(logger: Any) -> Any:
    """The link of a logger, or why it has none."""
    try:
        return logger.training_monitoring_link if isinstance(logger, Logger) else None
    except Exception as error:
        return error
