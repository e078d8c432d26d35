"""check_logger: whether a logger takes all that a run may give it, and leaves the run alone."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import inspect
import io
import math
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from descant.callbacks.base import RecipeCallback
from descant.errors import ConfigurationError
from descant.runlog.run_reader import RunReader
from descant.runner.callback_runner import CallbackRunner
from descant.runner.recorder import flat_loggers
from descant.schedule import every_steps
from descant.table import Table
from descant.testing.bare_loop import generator_states
from descant.testing.report import Report, first_problem
from descant.trackers.logger import STEP_KEY, Logger, TrackerLogger

_STEPS = (0, 2, 2, 1, 4)  # some come twice, some late
_NUM_STEPS = 3
_CONFIG = {"lr": 1e-3, "name": "a run", "is_short": True, "nothing": None, "nested": {"steps": [1, 2]}}
_FAILURES = ("logger_failed", "tracker_failed", "tracker_incomplete")


async def check_logger(make_logger: Callable[[], Any], *, raise_on_failure: bool = True) -> Report:
    """Check that a logger keeps the promises that descant's own keep.

    >>> async def test_my_logger():  # doctest: +SKIP
    ...     await check_logger(lambda: MyLogger("a project"))

    It gives a logger numbers of every kind, strings and tables, for late and repeated steps; settings; a value that is
    no metric; closes it twice; and lets a short run write to another one.

    Args:
        make_logger: makes a fresh logger, several times: a ``TrackerLogger``, another ``Logger``, or any callable that
            takes a dict. It writes for real, so give it a temporary place.
        raise_on_failure: raise what does not hold instead of returning it.

    Raises:
        AssertionError: something does not hold: the report, which says what differs.
        ConfigurationError: what was made is not a logger.
    """
    logger = make_logger()
    if len(flat_loggers("logger", logger)) == 0 or isinstance(logger, list | tuple):
        raise ConfigurationError(f"make_logger() returned {logger!r}; one logger is needed")
    report = Report(getattr(logger, "__name__", type(logger).__name__))
    return (await _LoggerCheck(make_logger, logger, report).run()).conclude(raise_on_failure)


class _LoggerCheck:
    def __init__(self, make_logger: Callable[[], Any], logger: Any, report: Report) -> None:
        self._make_logger, self._logger, self._report = make_logger, logger, report

    async def run(self) -> Report:
        before = generator_states()
        link = _link_problem(self._logger, "before the run")
        await self._check_metrics()
        if isinstance(self._logger, Logger):
            await self._check_config()
            await self._check_goes_on()
            link = link or _link_problem(self._logger, "during the run")
            await self._check_close()
            link = link or _link_problem(self._logger, "after the run")
            self._report.add("its link is a text or None", link, "before, during and after the run")
        if isinstance(self._logger, TrackerLogger):  # on a thread of its own, where nothing puts generators back
            drawn = [name for name, value in generator_states().items() if value != before[name]]
            problem = drawn and (
                f"writing changes {drawn[0]}: a tracker is written to while training goes on, which may draw from it; "
                "draw from a generator of your own, random.Random()"
            )
            self._report.add("it draws nothing from global generators", problem or None, "Python's, numpy's, torch's")
        await self._check_run()
        return self._report

    async def _check_metrics(self) -> None:
        given = _plain_metrics() | (_scalars() if isinstance(self._logger, Logger) else {})
        problem = await self._problem_of(given, _STEPS[0])
        if problem is not None:  # one by one, so that the message has the one that is refused
            problem = (
                first_problem([await self._problem_of({key: value}, 0) for key, value in given.items()]) or problem
            )
        if self._report.add("it takes every kind of metric", problem, ", ".join(given)):
            late = [await self._problem_of({"loss": 1.0, "note": "late"}, step) for step in _STEPS[1:]]
            order = f"in the order {', '.join(map(str, _STEPS))}"
            self._report.add("it takes late and repeated steps", first_problem(late), order)

    async def _problem_of(self, metrics: Mapping[str, Any], step: int) -> str | None:
        given = {STEP_KEY: step, **metrics}
        kept = copy.deepcopy(given)
        names = (
            ", ".join(f"{key} = {value!r:.40}" for key, value in metrics.items()) if len(metrics) == 1 else "metrics"
        )
        if error := await _error_of(lambda: self._logger(given)):
            return f"{names} of step {step}: {error}"
        if {key: repr(value) for key, value in given.items()} != {key: repr(value) for key, value in kept.items()}:
            return (
                "it changes the dict that it is given, which goes to other loggers, too: copy it first, dict(metrics)"
            )
        return None

    async def _check_config(self) -> None:
        errors = [await _error_of(lambda: self._logger.log_config(copy.deepcopy(_CONFIG))) for _ in range(2)]
        self._report.add("it takes settings, also twice", first_problem(errors), ", ".join(_CONFIG))

    async def _check_goes_on(self) -> None:
        refused = await _error_of(lambda: self._logger({STEP_KEY: 5, "no_metric": object()}))
        problem = await self._problem_of({"loss": 0.5}, 6)
        problem = problem and f"after a value that is no metric: {problem}"
        if isinstance(self._logger, TrackerLogger) and refused is None:
            problem = "a value that is no metric is taken in silence: leave __call__ to TrackerLogger"
        if refused is not None and "no_metric" not in refused:
            problem = problem or f"a value that is no metric is refused without its key, 'no_metric': {refused}"
        self._report.add("it goes on after a failure", problem, "a value that is no metric, then one that is")
        if isinstance(self._logger, TrackerLogger) and (info := self._logger.run) is not None:
            tracker = self._logger
            again = await _error_of(lambda: tracker.start(info)) or await self._problem_of({"loss": 0.5}, 7)
            self._report.add("it is started again", again, "after a failure a run does that, and goes on")

    async def _check_close(self) -> None:
        errors = [await _error_of(self._logger.close) for _ in range(2)]
        problem = first_problem(errors)
        self._report.add("closing twice is harmless", problem)
        if isinstance(self._logger, TrackerLogger) and problem is None:
            after = await _error_of(lambda: self._logger({STEP_KEY: 7, "loss": 0.5}))
            silent = None if after else "what is logged after close() is lost in silence: leave close to TrackerLogger"
            self._report.add("after closing it refuses", silent, str(after))

    async def _check_run(self) -> None:
        """A short run, which gives a tracker its records on a thread of its own."""
        with tempfile.TemporaryDirectory(prefix="descant-testing-", ignore_cleanup_errors=True) as folder:
            logger = self._make_logger()
            runner = CallbackRunner([_Everything()], num_steps=_NUM_STEPS, run_dir=Path(folder), logger=logger)
            with contextlib.redirect_stderr(io.StringIO()):
                async with runner:
                    for step in range(1, _NUM_STEPS + 1):
                        await runner.after_step(step, {"training/loss": 1.0 / step})
            with RunReader(Path(folder)) as reader:
                failed = [event.message for event in reader.events if event.kind in _FAILURES]
        if isinstance(logger, Logger):
            await _error_of(logger.close)
        self._report.add("a run logs with it", first_problem(failed), f"{_NUM_STEPS} steps, metrics and tables")


class _Everything(RecipeCallback):
    """Returns metrics of all kinds."""

    def __init__(self) -> None:
        super().__init__(every_steps(1), "everything")

    async def callback(self, current_percentage: float) -> dict[str, Any]:
        return {**_plain_metrics(), **_scalars()}


def _plain_metrics() -> dict[str, Any]:
    """What a run gives to loggers."""
    table = Table(
        ["example_id", "response", "grade", "passed"], [["a", "<b>4</b>\n| `x`", 1.0, True], ["b", "", None, 0]]
    )
    return {
        "float": 0.5, "integer": 3, "bool": True, "nan": math.nan, "infinity": math.inf, "string": "größer\n<b>",
        "table": table, "table_without_rows": Table(["x"]),
    }  # fmt: skip


def _scalars() -> dict[str, Any]:
    """What users log by hand, too."""
    return {"numpy_float32": np.float32(0.5), "numpy_int64": np.int64(3), "torch_scalar": torch.tensor(0.5)}


async def _error_of(call: Callable[[], Awaitable[None] | None]) -> str | None:
    """What a call raises, in words."""
    try:
        if inspect.isawaitable(waiting := call()):
            await waiting
    except Exception as error:
        inner = error.exceptions[0] if isinstance(error, ExceptionGroup) else error
        return f"{type(inner).__name__}: {inner}"
    except asyncio.CancelledError as error:
        return repr(error)
    return None


def _link_problem(logger: Any, when: str) -> str | None:
    try:
        link = logger.training_monitoring_link if isinstance(logger, Logger) else None
    except Exception as error:
        return f"training_monitoring_link raises {type(error).__name__} {when}: {error}"
    return None if isinstance(link, str | None) else f"training_monitoring_link is {link!r} {when}"
