"""check_logger: callables and composites pass, and each check can fail. (Trackers are in test_loggers.py.)"""

import random
import re

import pytest

from descant import CompositeLogger, Logger, StdoutLogger, Table, TrackerLogger
from descant.errors import ConfigurationError
from descant.testing import check_logger


async def async_function(metrics):
    assert "progress/step" in metrics


PASSING = {
    "function": lambda: [].append,
    "async_function": lambda: async_function,
    "stdout": StdoutLogger,
    "composite": lambda: CompositeLogger(StdoutLogger(), StdoutLogger()),
}


@pytest.mark.parametrize("name", PASSING)
async def test_passes(name):
    assert (await check_logger(PASSING[name])).passed


class Kept(Logger):
    """A right one; each of its subclasses has one fault."""

    def __init__(self):
        self.step = -1
        self.is_closed = False

    def __call__(self, metrics):
        self.step = metrics["progress/step"]


class NumbersOnly(Kept):
    def __call__(self, metrics):
        for key, value in metrics.items():
            if isinstance(value, Table):
                raise TypeError(f"{key} is no number")


class InOrder(Kept):
    def __call__(self, metrics):
        if metrics["progress/step"] < self.step:
            raise ValueError(f"step {metrics['progress/step']} comes after step {self.step}")
        super().__call__(metrics)


class Pops(Kept):
    def __call__(self, metrics):
        metrics.pop("progress/step")


class FlatConfig(Kept):
    def log_config(self, config):
        self.config = {key: float(value) for key, value in config.items() if key == "nothing"}


class GivesUp(Kept):
    is_broken = False

    def __call__(self, metrics):
        if self.is_broken or "no_metric" in metrics:
            self.is_broken = True
            raise OSError("the connection is closed: no_metric")


class ClosesOnce(Kept):
    def close(self):
        if self.is_closed:
            raise ValueError("I/O operation on closed file")
        self.is_closed = True


class LinksToANumber(Kept):
    @property
    def training_monitoring_link(self):
        return 8080


class Tracker(TrackerLogger):
    """A right tracker."""

    tracker = "mine"

    def start(self, run):
        self.rows = getattr(self, "rows", [])

    def write(self, step, time_s, metrics, tables):
        self.rows.append(step)

    def finish(self, outcome):
        pass


class StartsOnce(Tracker):
    is_started = False

    def start(self, run):
        if self.is_started:
            raise RuntimeError("the run exists")
        self.is_started = True
        super().start(run)


class DrawsItsId(Tracker):
    def start(self, run):
        super().start(run)
        self.id = random.getrandbits(32)


class ForgetsThatItWasClosed(Tracker):
    def close(self):
        pass


class TakesAnything(Tracker):
    def __call__(self, metrics):
        self._start_by_hand()


class FailsInARun(Kept):
    def __call__(self, metrics):
        if "training/loss" in metrics:
            raise OSError("disk full")


BAD = {
    NumbersOnly: {
        "it takes every kind of metric": r"table = Table\(.* of step 0: TypeError: table is no number",
        "a run logs with it": "the logger failed at step 0: TypeError: ",
    },
    InOrder: {"it takes late and repeated steps": "step 1: ValueError: step 1 comes after step 2"},
    Pops: {"it takes every kind of metric": r"changes the dict that it is given, which goes to other loggers"},
    FlatConfig: {
        "it takes settings, also twice": "TypeError: float",
    },
    GivesUp: {"it goes on after a failure": "after a value that is no metric: .*OSError: the connection is closed"},
    ClosesOnce: {"closing twice is harmless": "ValueError: I/O operation on closed file"},
    LinksToANumber: {"its link is a text or None": "training_monitoring_link is 8080 before the run"},
    StartsOnce: {"it is started again": "RuntimeError: the run exists"},
    DrawsItsId: {"it draws nothing from global generators": "writing changes Python's random generator: a tracker is"},
    ForgetsThatItWasClosed: {"after closing it refuses": r"what is logged after close\(\) is lost in silence"},
    TakesAnything: {
        "it goes on after a failure": "a value that is no metric is taken in silence: leave __call__ to TrackerLogger",
    },
    FailsInARun: {"a run logs with it": "the logger failed at step 1: OSError: disk full"},
}


@pytest.mark.parametrize("kind", BAD)
async def test_a_bad_one_is_caught_and_told_why(kind):
    report = await check_logger(kind, raise_on_failure=False)
    failed = {check.name: check.details for check in report.failures}
    assert set(BAD[kind]) <= set(failed)
    for name, message in BAD[kind].items():
        assert re.search(message, failed[name]), failed[name]
    with pytest.raises(AssertionError, match=rf"^{kind.__name__}: \d+ of \d+ checks passed\n(.*\n)*  FAIL  "):
        report.conclude(raise_on_failure=True)


@pytest.mark.parametrize("kind", [Kept, Tracker])
async def test_the_right_ones_pass(kind):
    assert (await check_logger(kind)).passed


async def test_what_is_no_logger():
    with pytest.raises(ConfigurationError, match="one logger is needed"):
        await check_logger(lambda: None)
