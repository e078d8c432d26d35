"""RecipeCallback: the contract of everything that runs along with training."""

from __future__ import annotations

import logging
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar, Literal, Never, Protocol, TypedDict, get_args

from descant.arguments import argument_names, check_flag, check_one_of, is_finite_number, refuse_unknown
from descant.callbacks.metric_watch import MetricWatch
from descant.errors import ConfigurationError
from descant.metrics import Metric, MetricSpec
from descant.models.requester import Requester, requester_scope
from descant.progress import Progress, exact_fraction
from descant.schedule import NEVER, Frequency, Plan, as_schedule
from descant.seeds import derive_seed
from descant.settings import plain_settings
from descant.threads.thread import StringThread

logger = logging.getLogger("descant")


class WarningSink(Protocol):
    """Takes a warning of a callback: it goes to the run log's events and to the console."""

    def __call__(self, message: str, details: object = None) -> None:
        """Record the warning; ``details`` may be a traceback, an exception, or anything else that has a ``repr``."""


@dataclass(frozen=True, slots=True)
class RunView:
    """What a callback sees of the run it belongs to, at one moment.

    Attributes:
        step: completed steps; the weights are those after this many steps.
        num_steps: planned steps.
        progress: ``step / num_steps``, exact.
        elapsed_s: seconds since the run started.
        metrics: what the trainer logged for its latest step (empty at step 0).
        evaluations: what callbacks have returned at this step so far, under their full keys.
        num_failed: of these, and of metrics that are missing because their evaluation failed, how many samples failed
            in the same call; infinity where the metric is missing.
        known_keys: the keys of everything that callbacks have returned in this run so far.
        run_dir: the directory of the run.
        seed: a seed made from the run's seed, the callback's name and the step.
        warn: records a warning, of something that is wrong, in the run log and shows it on the console.
        note: likewise what is good to know and no reason to worry.
        request_stop: asks for the end of the run after this step, with a reason; final calls are made as usual. It
            returns at once and is recorded.
        request_checkpoint: likewise for a checkpoint of the weights as they are after this step, in
            ``run_dir / "checkpoints" / "step-<step>"``. (An asynchronous call gets it after the step
            at which it asks.)
        as_measured: the model with the weights that ``evaluations`` were measured on: the model itself, or, when the
            evaluation ran in the background, a handle on its snapshot.
    """

    step: int
    num_steps: int
    progress: Fraction
    elapsed_s: float
    metrics: Mapping[str, Any]
    evaluations: Mapping[str, Metric]
    num_failed: Mapping[str, float]
    known_keys: Collection[str]
    run_dir: Path
    seed: int
    warn: WarningSink
    note: Callable[[str], None]
    request_stop: Callable[[str], None]
    request_checkpoint: Callable[[], None]
    as_measured: Callable[[Any], Any]


CallbackMode = Literal["inline", "overlap", "background"]
"""What training waits for: all of a call; the work of the model; or a copy of the weights."""
RunMode = Literal["auto", "inline", "overlap", "background"]
"""The mode of a run's callbacks that have none of their own; "auto" is the one in which training waits least."""
OnError = Literal["warn", "raise", "disable"]
"""What a failure of a callback leads to."""


class CallbackOptions(TypedDict, total=False):
    """The settings that every callback takes by keyword; see ``RecipeCallback``."""

    name: str | None
    at_start: bool
    at_end: bool
    on_error: OnError
    timeout_s: float | None


class RecipeCallback(ABC):
    """Async logic that runs at exact fractions of a training run and returns metrics.

    Override ``callback``. It runs on the trainer's event loop, before the first step, at the first step whose
    progress reaches k * frequency for k = 1, 2, ..., and after the last step; never twice at one step. It sees the
    weights after exactly that many steps. What it raises is recorded and training continues (``strict=True`` on the
    trainer raises it instead). Nothing that it does to global random generators changes training.

    Args:
        frequency: the share of the run between two calls, in (0, 1]: 0.1 is every 10 %. Or a schedule: ``every_steps``,
            ``every_minutes``, ``at``, and those joined with ``|``.
        log_key_prefix: put before every returned key, as ``<prefix>/<key>``. By position it comes second, or third
            behind ``force_run_on_exit``.
        name: what the callback is called in events and in ``callbacks/<name>/...`` metrics, unique in a run. By
            default the prefix, else the class name in snake case.
        at_start: run before the first step.
        at_end: run after the last step, also when training fails or is stopped before it (on the weights of its last
            whole step). ``force_run_on_exit`` is the recipe API's name of it.
        on_error: what a failure leads to: "warn" records it, "raise" ends the run with a
            ``CallbackError``, "disable" records it and makes no more calls of this callback in this run.
        timeout_s: seconds that a call may take. One that takes longer is cancelled and recorded as failed, and what it
            still asks of models is refused. (Synchronous work cannot be cancelled; it is named in a warning.)

    Raises:
        ConfigurationError: an argument that cannot work, with what is allowed.
    """

    modes: ClassVar[tuple[CallbackMode, ...]] = ("inline",)
    """The modes that it can run in: of what cannot be taken apart, training waits for all."""
    metric_specs: Sequence[MetricSpec] = ()
    """The metrics that it returns, by the keys that ``callback`` uses. Without any, nothing is known of them before."""
    watches: MetricWatch | None = None
    """The metric of another callback that it goes by."""
    is_deferrable: ClassVar[bool] = True
    """Whether ``callback_budget`` may put off its calls."""
    _run: RunView | None = None
    _last_call = -1.0
    _called_before = Fraction(-1)

    def __init__(
        self,
        frequency: Frequency,
        *order: bool | str | None,
        log_key_prefix: str | None = None,
        force_run_on_exit: bool | None = None,
        name: str | None = None,
        at_start: bool = True,
        at_end: bool = True,
        on_error: OnError = "warn",
        timeout_s: float | None = None,
        mode: CallbackMode | None = None,
        **unknown: Never,
    ) -> None:
        known = [name for name in argument_names(type(self)) if name != "frequency" or frequency is not NEVER]
        refuse_unknown(type(self).__name__, unknown, known)
        force_run_on_exit, log_key_prefix = _by_position(self, order, force_run_on_exit, log_key_prefix)
        at_end = at_end if force_run_on_exit is None else force_run_on_exit
        for argument, flag in (("at_start", at_start), ("at_end", at_end)):
            check_flag(argument, flag)
        self.frequency = frequency
        self.log_key_prefix = log_key_prefix
        for argument, value in (("name", name), ("log_key_prefix", log_key_prefix)):
            if value is not None and not isinstance(value, str):
                raise ConfigurationError(f"{argument}={value!r} is a {type(value).__name__}; a string is needed")
        self.name = name or log_key_prefix or _snake_case(type(self).__name__)
        check_one_of(f"callback {self.name!r}: on_error", on_error, allowed=get_args(OnError))
        if timeout_s is not None and not (is_finite_number(timeout_s) and timeout_s > 0):
            raise ConfigurationError(
                f"callback {self.name!r}: timeout_s={timeout_s!r} must be a number of seconds above 0, or None for none"
            )
        if mode is not None:
            check_one_of(f"callback {self.name!r}: mode", mode, allowed=get_args(CallbackMode))
            if mode not in self.modes:
                raise ConfigurationError(
                    f"callback {self.name!r}: mode={mode!r} needs a ModelCallback, whose `measure` can look at a copy "
                    f"of the weights; {type(self).__name__} holds its own model and does all in `callback`, so it is "
                    "inline"
                )
        self.at_start = at_start
        self.at_end = at_end
        self.on_error = on_error
        self.timeout_s = timeout_s

    @property
    def run(self) -> RunView | None:
        """The run as it was when the present call began; None outside of a run.

        Of two calls in flight, each sees its own.
        """
        shown = _shown_run.get()
        return shown[1] if shown is not None and shown[0] is self else self._run

    @run.setter
    def run(self, run: RunView | None) -> None:
        self._run = run

    @property
    def name(self) -> str:
        """What the callback is called in events and in ``callbacks/<name>/...`` metrics."""
        return self._name

    @name.setter
    def name(self, name: str) -> None:
        self._refuse_in_a_run("name")
        self._name = name

    @property
    def force_run_on_exit(self) -> bool:
        """``at_end``, under the recipe API's name."""
        return self.at_end

    @force_run_on_exit.setter
    def force_run_on_exit(self, force_run_on_exit: bool) -> None:
        self.at_end = force_run_on_exit

    @property
    def last_call(self) -> float:
        """Progress of the latest call as a float, -1 before the first.

        Set to a progress before a run, as in the recipe API, it counts as the latest call of that run: 0.0 leaves out
        the call before the first step.
        """
        return self._last_call

    @last_call.setter
    def last_call(self, progress: float) -> None:
        self._refuse_in_a_run("last_call")
        if not is_finite_number(progress) or not -1 <= progress < 1:
            raise ConfigurationError(
                f"callback {self.name!r}: last_call={progress!r} must be a progress from 0 to below 1, or -1 for none"
            )
        self._last_call, self._called_before = float(progress), exact_fraction(progress)

    def note_call(self, progress: float | None) -> None:
        """What drives the callback has called it at this progress; None: a run begins."""
        self._last_call = float(self._called_before if progress is None else progress)

    def _refuse_in_a_run(self, attribute: str) -> None:
        if self._run is not None:
            raise ConfigurationError(f"callback {self.name!r}: its {attribute} cannot change while a run is open")

    @property
    def frequency(self) -> Frequency:
        """The share of the run between two calls, or the schedule, as it was given."""
        return self._frequency

    @frequency.setter
    def frequency(self, frequency: Frequency) -> None:
        self._refuse_in_a_run("frequency")
        self.schedule = as_schedule(frequency)
        self._frequency = frequency

    @property
    def follows(self) -> str | None:
        """The metric of another callback with which it is called, in place of a schedule of its own."""
        return None if self.watches is None or self.watches.on_schedule else self.watches.metric

    @abstractmethod
    async def callback(self, current_percentage: float) -> dict[str, Any]:
        """Do the work and return metrics: numbers (numpy and torch scalars too), strings or ``Table``.

        Args:
            current_percentage: progress of the run as a float in [0, 1]. (The name is historic.)
        """

    async def on_start(self, run: RunView) -> None:  # noqa: B027 - every hook is optional
        """Called once before the first call of a run."""

    async def on_end(self, run: RunView) -> None:  # noqa: B027 - every hook is optional
        """Called once after the last call of a run, also when training failed."""

    def state_dict(self) -> dict[str, Any]:
        """What a continued run needs of it, as plain data; a new callback is given it."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: B027
        """Continue from what ``state_dict`` of another process returned. Called after ``on_start``."""

    async def maybe_call(self, current_percentage: float) -> dict[str, Any]:
        """Drive the callback by hand: run it if it is due at this progress, and return its prefixed metrics.

        The arithmetic is that of a run: call it before the first step with 0.0, then after every step; it is due
        when a boundary lies between the previous call of ``maybe_call`` that ran and this one. Returns an empty
        dictionary when it is not due. What ``callback`` raises passes through. As in a run, it may not train a model,
        and an example is sampled with the same random numbers at every call.

        Raises:
            ConfigurationError: the schedule counts steps or minutes, which a percentage does not tell.
        """
        if not self.schedule.follows_progress:
            raise ConfigurationError(
                f"callback {self.name!r} runs {self.schedule}, and maybe_call knows the progress only; use a "
                "CallbackRunner, or a frequency that is a share of the run"
            )
        try:
            progress = Progress.from_percentage(current_percentage)
        except (ValueError, TypeError):
            raise ConfigurationError(f"maybe_call({current_percentage!r}): a number from 0 to 1 is needed") from None
        previous = Progress.from_percentage(self.last_call) if self.last_call >= 0 else None
        if not self.is_due(previous, progress):
            return {}
        self.note_call(current_percentage)
        with requester_scope(Requester(f"callback {self.name!r}", derive_seed(0, self.name), observer=True)):
            return self.with_prefix(await self.callback(current_percentage))

    def is_due(self, previous: Progress | None, current: Progress) -> bool:
        """Whether a call is due at ``current``, the last one having been at ``previous`` (None: there was none)."""
        if self.follows is not None or current.fraction <= self._called_before:
            return False
        if previous is None:
            if self.at_start and self._called_before < 0:
                return True
            previous = Progress(0, 1)
        if current.is_complete:
            return self.at_end and not previous.is_complete
        return self.schedule.crossed(previous, current)

    def due_steps(self, num_steps: int) -> list[int]:
        """The steps of a run of ``num_steps`` after which the callback runs; 0 is before the first step."""
        if self.follows is not None:
            return []
        before = self._called_before
        inner = [
            step for step in self.schedule.due_steps(num_steps) if 0 < step < num_steps and step > before * num_steps
        ]
        return [0] * (self.at_start and before < 0) + inner + [num_steps] * self.at_end

    def plan(self, num_steps: int) -> Plan:
        """When the callback runs in a run of ``num_steps`` steps, to print."""
        schedule = str(self.schedule) if self.follows is None else f"with {self.follows}"
        return Plan(self.name, schedule, num_steps, self.due_steps(num_steps), self.schedule.period_s, self.follows)

    def running(self) -> RunView:
        """The run that the callback is in.

        Raises:
            ConfigurationError: it is driven by hand, and needs a run.
        """
        if self.run is None:
            raise ConfigurationError(
                f"callback {self.name!r} was called by hand, and needs a run: give it to a trainer or a CallbackRunner"
            )
        return self.run

    def with_prefix(self, metrics: Mapping[str, Any]) -> dict[str, Any]:
        """The metrics under the callback's prefix."""
        if not self.log_key_prefix:
            return dict(metrics)
        return {f"{self.log_key_prefix}/{key}": value for key, value in metrics.items()}

    def declared_metrics(self) -> list[MetricSpec]:
        """``metric_specs`` under their full keys; two callbacks of one run must not share any."""
        specs = {spec.key: spec for spec in self.metric_specs}
        return [replace(spec, key=key) for key, spec in self.with_prefix(specs).items()]

    def declared_checkpoints(self) -> frozenset[str]:
        """The names of directories that it writes under the run's ``checkpoints``; no two callbacks may share one."""
        return frozenset()

    def validation_threads(self) -> Sequence[StringThread]:
        """The threads that the callback evaluates on; a trainer compares their prompts with those it trains on."""
        return ()

    def settings(self) -> dict[str, Any]:
        """What the run log and trackers keep of its arguments, as plain data: numbers and text that it has as
        attributes of the same names. (The run adds what ``validation_threads`` are.) Override it for objects of yours.
        """
        frequency = self.frequency
        return {
            **plain_settings(self),
            "name": self.name,
            "class": type(self).__name__,
            "prefix": self.log_key_prefix,
            "frequency": float(frequency) if isinstance(frequency, float | int | Fraction) else str(frequency),
        }

    def warn(self, message: str, details: object = None) -> None:
        """Record that something is wrong, in the run log, or in Python's log when the callback is driven by hand;
        ``details`` may be a traceback, an exception, or anything else that has a ``repr``."""
        if self.run is None:
            logger.warning("%s: %s", self.name, message)
        else:
            self.run.warn(message, details)

    def note(self, message: str) -> None:
        """Record what is good to know and no reason to worry, as ``warn`` does."""
        if self.run is None:
            logger.info("%s: %s", self.name, message)
        else:
            self.run.note(message)


_shown_run: ContextVar[tuple[RecipeCallback, RunView] | None] = ContextVar("descant_run", default=None)


@contextmanager
def shown(callback: RecipeCallback, run: RunView) -> Iterator[None]:
    """In this task and those that it starts, ``callback.run`` is this view."""
    token = _shown_run.set((callback, run))
    try:
        yield
    finally:
        _shown_run.reset(token)


def _by_position(
    callback: RecipeCallback, order: Sequence[Any], force_run_on_exit: bool | None, log_key_prefix: str | None
) -> tuple[bool | None, str | None]:
    """``force_run_on_exit`` and ``log_key_prefix``, either of which may stand behind the frequency."""
    rest = list(order)
    if rest and isinstance(rest[0], bool) and force_run_on_exit is None:
        force_run_on_exit = rest.pop(0)
    if rest and log_key_prefix is None:
        log_key_prefix = rest.pop(0)
    if rest:
        raise ConfigurationError(
            f"{type(callback).__name__}: behind the frequency stand {', '.join(map(repr, order))}; by position it "
            "takes log_key_prefix, or force_run_on_exit (True or False) and then log_key_prefix, each once"
        )
    return force_run_on_exit, log_key_prefix


def _snake_case(class_name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", class_name).lower()
