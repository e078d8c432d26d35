"""CallbackRunner: decides when callbacks run, runs them, and keeps training safe from them."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, nullcontext, suppress
from dataclasses import field
from functools import partial
from numbers import Integral
from types import TracebackType
from typing import Any, Self, TypeGuard

from descant.callbacks.base import RecipeCallback, RunView
from descant.data.datasets import threads_of
from descant.errors import CallbackError, ConfigurationError
from descant.metrics import Metric, MetricSpec, is_detail
from descant.models.evaluation_placement import EvaluationPlacement
from descant.models.inference import InferenceModel
from descant.process_state import caches_casts, preserved_process_state
from descant.progress import Progress
from descant.provenance import masked
from descant.runner.auto_mode import AutoMode, kept_in_the_loop
from descant.runner.call import Call
from descant.runner.calls import CallbackFailure, Calls, is_news
from descant.runner.contamination_check import check_contamination
from descant.runner.costs import Costs
from descant.runner.due_calls import DueCalls
from descant.runner.evaluations import Evaluations
from descant.runner.interrupts import Interrupts
from descant.runner.metric_keys import MetricKeys
from descant.runner.modes import choose_modes
from descant.runner.options import RunOptions, options
from descant.runner.preview_scope import end_with_plan, num_previewed
from descant.runner.recorder import RunRecorder
from descant.runner.requests import Requests, SaveCheckpoint
from descant.runner.run_description import describe_run
from descant.runner.run_state import RunState
from descant.runner.synchronous import SynchronousRunner
from descant.schedule import Plan

_NUM_STEPS_BEFORE_FORECAST = 3  # the first steps are slow, and a forecast is wanted early
_LEAVING_S = 5.0  # what each on_end may take once the run is cancelled
TRAINING_SPECS = (
    MetricSpec("training/loss", better="lower", headline=True),
    MetricSpec("training/tokens_per_s", "tokens/s", better="higher", headline=True, detail=True),
    MetricSpec("training/step_s", "s", better="lower", detail=True),
)


@options
class CallbackRunner(RunOptions):
    """Runs callbacks at their exact steps along with a training loop: descant's own, or yours.

    >>> async with CallbackRunner(callbacks, num_steps=1000) as runner:  # doctest: +SKIP
    ...     for step, batch in enumerate(batches, start=1):
    ...         loss = train_on(batch)
    ...         await runner.after_step(step, {"training/loss": loss})
    ...         if runner.should_stop:
    ...             break

    Entering it opens the run log, prints the plan, calls ``on_start`` and makes the calls that are due before the first
    step. ``after_step`` makes those that are due after a step, one after another in list order, while training waits;
    in the modes "overlap" and "background", only for a part of them. Leaving it makes the final calls, if they have not
    been made at this step, waits for everything in flight, calls ``on_end`` and closes the run log; also when training
    failed. In synchronous code, ``with runner.synchronous() as runner:`` gives the same without ``await``.

    A callback that raises, takes too long, or returns what is not a metric, is recorded; the others and training
    continue. After every call the random generators of Python, numpy and torch and torch's settings are what they were
    before, and nothing that the call left behind may use a model. Ctrl-C and SIGTERM set ``should_stop``, and the run
    ends in order; the second time it is cancelled.

    Raises:
        ConfigurationError: an argument that cannot work, something that is not a callback, names or keys that
            collide, or a watched metric that no callback returns, with the fix.
    """

    positional = ("callbacks", "num_steps")

    callbacks: Sequence[RecipeCallback] = field(kw_only=False)

    num_steps: int = field(kw_only=False)
    """Planned steps."""

    first_step: int = 0
    """Completed steps, of a run that is continued; what was due up to there is not due again."""

    name: str = "run"
    """What the directory of the run is called, date and time behind it, if none is given."""

    title: str = "a training loop"
    """What is trained on what, in one line, for people."""

    config: Mapping[str, Any] | None = None
    """Settings of the loop, for the run log."""

    metric_specs: Sequence[MetricSpec] = TRAINING_SPECS
    """What the loop declares of its own metrics."""

    save_checkpoint: SaveCheckpoint | None = None
    """Writes a checkpoint to the directory that it is given, when a callback requests one."""

    training_set: Any = None
    """The threads that are trained on, or what ``load_threads`` reads: see ``contamination``."""

    models: Sequence[InferenceModel] = ()
    """The models that are trained, for the settings in the run log, if no callback looks at them."""

    on_open: Callable[[RunRecorder], Awaitable[None]] | None = None
    """Records what is known of the run before its first call."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not _is_whole(self.num_steps) or self.num_steps < 1:
            raise ConfigurationError(
                f"num_steps={self.num_steps!r} must be a whole number of planned steps, at least 1"
            )
        if not _is_whole(self.first_step) or not 0 <= self.first_step <= self.num_steps:
            raise ConfigurationError(
                f"first_step={self.first_step!r} must be a whole number from 0 to num_steps={self.num_steps}"
            )
        if self.training_set is not None:
            self.training_set = threads_of("training_set", self.training_set)
        self._keys = MetricKeys(self.callbacks)
        self.callbacks = list(self.callbacks)
        ordered = self._keys.in_order(self.callbacks)
        is_auto = self.callback_mode == "auto"
        in_the_loop = kept_in_the_loop(self.callbacks, self._keys) if is_auto else {}
        modes = choose_modes(self.callbacks, self._keys, self.callback_mode, in_the_loop)
        if self.contamination == "error" and self.training_set is None:
            raise ConfigurationError('contamination="error" needs training_set=: the threads that are trained on')
        self.costs = Costs(self.plan(), self.num_steps, modes, self.callback_budget)
        self.recorder = RunRecorder(
            self.run_dir,
            self.num_steps,
            self.logger,
            strict=self.strict,
            name=self.name,
            shows_progress=self.progress_bar,
        )
        self._requests = Requests(self.recorder, self.save_checkpoint, strict=self.strict)
        self._state = RunState(self.num_steps, self.first_step, self.seed, self._requests)
        self._calls = Calls(ordered, self._state, self.recorder, self.costs, self._keys, strict=self.strict)
        placement = self.callback_placement or EvaluationPlacement()
        self._evaluations = Evaluations(ordered, modes, self._state, self._calls, placement, is_auto=is_auto)
        watched = (self.callbacks, in_the_loop, self._evaluations, self.costs, self.recorder)
        self._auto = AutoMode(*watched, placement) if is_auto else None
        self._ordered = ordered
        self._started: list[RecipeCallback] = []
        self._is_open = self._has_forecast = self._has_looked_around = False
        self.interrupts = Interrupts()

    def plan(self) -> list[Plan]:
        """When each callback will run, if training is not stopped early."""
        return [callback.plan(self.num_steps) for callback in self.callbacks]

    @property
    def step(self) -> int:
        """Completed steps."""
        return self._state.step

    @property
    def evaluations(self) -> Mapping[str, Metric]:
        """What callbacks have returned at the latest step, training waiting for them, under their full keys."""
        return self._state.evaluations

    @property
    def late_evaluations(self) -> list[tuple[int, dict[str, Metric]]]:
        """Steps and numbers of the calls that ran in parallel to training, in the order in which they completed."""
        return self._state.late_evaluations

    @property
    def failures(self) -> Sequence[CallbackFailure]:
        """The calls that have failed, and the returned values that are no metrics, in order."""
        return self._calls.failures

    @property
    def stop_reason(self) -> str | None:
        """Which callback has requested the end of the run, and why, if one has."""
        return self._requests.stop_reason

    @property
    def should_stop(self) -> bool:
        """Whether the loop should end after this step: a callback has requested it, or a signal has arrived."""
        return self.stop_reason is not None or self.interrupts.received is not None

    async def __aenter__(self) -> Self:
        with ExitStack() as stack:
            stack.enter_context(self.interrupts)
            with preserved_process_state():
                await self.open()
            stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            with preserved_process_state():
                await self.close(error)
        finally:
            self.interrupts.__exit__()
        if error is None:
            self.interrupts.raise_received()

    async def open(self) -> None:
        """What entering does, but for the signals."""
        if num_previewed.get() is not None:
            end_with_plan(self.title, self.num_steps, self.plan())
        self._state.started_at = time.monotonic()
        contaminations = await check_contamination(self.callbacks, self.training_set, self.contamination)
        async with AsyncExitStack() as stack:
            models = await self._evaluations.describe_models(self.models)
            await stack.enter_async_context(self.recorder)
            self.run_dir = self._state.run_dir = self.recorder.run_dir
            specs = {"trainer": self.metric_specs, **self._keys.specs}
            config = masked(await describe_run(self, specs, models))
            await self.recorder.announce(self.title, config, self.plan(), specs, self._calls.describe_running)
            if self._auto is not None:
                await self._auto.announce(self.step)
            for found in contaminations:
                await self.recorder.record_event(self.step, "contamination", found.name, found.describe())
            if self.on_open is not None:
                await self.on_open(self.recorder)
            stack.push_async_exit(self._end)
            await self._evaluations.start()
            for callback in self.callbacks:
                callback.note_call(None)
                self._started.append(callback)
                await self._call_hook(callback, callback.on_start)
            # From here on, schedules do not change.
            self._due = DueCalls(self._ordered, self.num_steps, self.costs, self._keys, self.callback_budget)
            if self.step == 0:
                await self._call_due(before=None)
            await self.recorder.publish()
            self._stack = stack.pop_all()
        self._is_open = True
        self.resume_training_time()

    async def close(self, error: BaseException | None) -> None:
        """What leaving does, but for the signals; ``error`` is what has ended the training, if it has failed."""
        self._is_open = False
        await self._stack.__aexit__(type(error) if error else None, error, error.__traceback__ if error else None)

    def is_for_trackers(self, key: str) -> bool:
        """Whether trackers get a metric of a callback, see ``tracker_detail``."""
        declared = [spec for specs in self._keys.specs.values() for spec in specs]
        return self.tracker_detail == "all" or not is_detail(declared, key)

    def check_background(self) -> None:
        """Refuse models that cannot be evaluated in the background now, and not when the run begins; waits for them."""
        self._evaluations.check_background()

    def kill(self) -> None:
        """End the processes that evaluate, where nothing else can be ended: something blocks the event loop."""
        self._evaluations.kill()

    def synchronous(self) -> SynchronousRunner:
        """The same for loops that are not async: ``with runner.synchronous() as runner:``."""
        return SynchronousRunner(self)

    async def after_step(self, step: int, metrics: Mapping[str, Any] | None = None) -> None:
        """Record the metrics of a step and make the calls that are due after it.

        Args:
            step: completed steps. It may jump: what became due in between is one call, on the present weights.
            metrics: what the loop has measured at this step (numbers, strings, tables), under keys of its choice.

        Raises:
            CallbackError: a callback failed, and ``strict`` or its ``on_error="raise"`` is on.
            RunLogError: the run log cannot be written.
            ConfigurationError: a step that is not after the last one, or a metric that cannot be recorded.
        """
        if not self._is_open:
            raise ConfigurationError("after_step was called outside of the runner's `with` block")
        self._check_step(step)
        self.look_around()
        state, before, training_s = self._state, self._state.progress, time.perf_counter() - self._resumed_at
        num_new_steps = int(step) - self.step
        state.advance(int(step))
        self.costs.add_steps(num_new_steps, training_s)
        state.training_metrics = {
            "training/step_s": training_s / num_new_steps,
            **self._keys.of_the_loop(metrics or {}, self.step),
        }
        await self.recorder.record(self.step, state.training_metrics)
        is_quiet = not self._evaluations.need_a_turn and not self._requests.are_pending
        is_quiet = is_quiet and self._due.is_quiet(before.step, state.progress.step)
        is_quiet = is_quiet and not (self._auto and self._auto.has_a_turn())
        # Whenever others have a turn on the event loop, what an earlier call has left behind has one too.
        with nullcontext() if is_quiet and not self.recorder.has_logger else preserved_process_state():
            if not is_quiet:
                await self._evaluations.turn()
                if self._auto:
                    await self._auto.follow(self.step)
                await self._call_due(before)
            await self._forecast()
            if self._auto and not is_quiet:
                await self._auto.consider(self.step)
            await self.recorder.publish(partial(self.costs.remaining_s, self.step))
        self.resume_training_time()

    def resume_training_time(self) -> None:
        """What has passed since the last step was not training: a loop that evaluates or saves on its own says so."""
        self._resumed_at = time.perf_counter()

    def look_around(self) -> None:
        """Say once if the loop runs within ``torch.autocast`` as a whole, on the thread of the loop."""
        if not self._has_looked_around and caches_casts():
            self._has_looked_around = True
            self._state.warn(
                "runner",
                self.step,
                "the loop runs within torch.autocast as a whole: torch keeps its casts of the weights until the "
                "context is left, so training goes on with those of its first step; enter it for each forward pass",
            )

    async def record(self, metrics: Mapping[str, Any]) -> None:
        """Record more metrics of the latest step, such as those that a loop has only after ``after_step``."""
        checked = self._keys.of_the_loop(metrics, self.step)
        self._state.training_metrics = {**self._state.training_metrics, **checked}
        with preserved_process_state():
            await self.recorder.record(self.step, checked)
            await self.recorder.publish(partial(self.costs.remaining_s, self.step))

    async def make_final_calls(self) -> None:
        """Make the final calls that have not been made at this step yet. Leaving does it too; a loop that changes its
        weights after its last step (to those of its best one, say) does it before."""
        if self.step == self.first_step > 0:
            return  # of a run that is continued, nothing has been trained: this was evaluated by the run before
        at_end = [callback for callback in self._ordered if callback.at_end and callback.follows is None]
        due = [callback for callback in at_end if self._state.last_call.get(callback.name) != self.step]
        with preserved_process_state():
            await self._call_all(due, is_final=True)
            await self._evaluations.wait()
            await self._call_all([], is_final=True)  # those that have watched for a metric in vain

    async def _end(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """The final calls at the step that was reached, ``on_end`` of every callback, and the outcome.

        A cancelled run makes no more calls, and neither does one that a callback has stopped (``strict``).
        """
        first_error: BaseException | None = None
        try:
            may_call = error is None or (isinstance(error, Exception) and not isinstance(error, CallbackError))
            if may_call and len(self._started) == len(self.callbacks):  # else the run has not begun
                with suppress(Exception) if error else nullcontext():  # what stopped training is what must be raised
                    await self.make_final_calls()
        except BaseException as failure:
            error = failure
            raise
        finally:
            is_cancelled = error is not None and not isinstance(error, Exception)
            if self._auto:
                self._auto.close()
            leave = [partial(self._evaluations.close, at_once=is_cancelled)]
            for callback in self._started:
                leave.append(partial(self._call_hook, callback, callback.on_end, _LEAVING_S if is_cancelled else None))
            for each in leave:  # strict, or the run log cannot be written, or cancelled: all have a turn
                try:
                    await each()
                except BaseException as failure:
                    first_error = first_error or failure
            for callback in self._started:
                callback.run = None
            for name in self._calls.guard.lingering.values():
                self.recorder.show_warning(f"{name} is still running, although it was cancelled when its time was up")
            self.recorder.conclude(self._outcome(), list(self.costs))
        if error is None and first_error is not None:
            raise first_error

    def _outcome(self) -> str:
        """How a run that has not failed has ended, in words."""
        if (signal := self.interrupts.received) is not None:
            return f"interrupted ({signal.name})"
        return "completed" if self.step >= self.num_steps else f"stopped ({self.stop_reason or 'the loop has ended'})"

    # Which calls are made at a step

    async def _call_due(self, before: Progress | None) -> None:
        """The calls that are due by now, ``before`` being the progress at the last time that this was asked."""
        due, deferred = self._due.take(before, self._state.progress)
        for callback, error in self._due.failed:
            await self._calls.fail(Call(callback, self._state.view(callback)), error, "is_due: ")
        for callback in deferred:
            self.costs[callback.name].num_deferred += 1
            share = f"{self.costs.share_with(callback.name):.1%} of the time"
            why = f"with it, callbacks would have taken {share}, which callback_budget does not allow"
            why = why if callback.watches is None else f"so is {callback.watches.metric!r}, which it needs"
            message = f"{callback.name}: the call that is due at step {self.step} is deferred; {why}"
            await self.recorder.record_note(self.step, "callback_deferred", callback.name, message)
        await self._call_all(due)

    async def _call_all(self, due: Sequence[RecipeCallback], *, is_final: bool = False) -> None:
        """The calls of this step, in order: those that are due, those whose watched metric was measured, and those that
        have watched in vain."""
        is_final_call, left = is_final or self._state.progress.is_complete, list(self._ordered)
        try:
            # A metric that is not declared may be followed by a callback that stands before the one that returned it.
            while ready := next((c for c in left if c in due or self._has_news_for(c)), None):
                left.remove(ready)
                await self._call(ready, is_final=is_final_call)
            for callback in left:
                if self._watches_in_vain(callback, is_final):
                    await self._call(callback, is_final=is_final_call)
        finally:
            await self._calls.record_messages()
            await self._requests.apply(self.step)

    def _has_news_for(self, callback: RecipeCallback) -> bool:
        """Whether the metric that it follows was measured at this step (or failed), and it was not called since."""
        has_news = is_news(callback, self.evaluations, self._state.num_failed)
        return has_news and self._state.last_call.get(callback.name) != self.step

    def _watches_in_vain(self, callback: RecipeCallback, is_final: bool) -> bool:
        """Whether all that might return what a callback watches have been called, and none has; it is called once, to
        fail with the keys that there are."""
        called = self._state.last_call
        if callback.follows is None or callback.follows in self._state.known_keys or callback.name in called:
            return False
        have_run = is_final or all(source.name in called for source in self._keys.sources[callback.name])
        return have_run and not self._evaluations.are_in_flight

    async def _forecast(self) -> None:
        """Once, what the callbacks will take of the run."""
        is_early = self.costs.num_steps_made < _NUM_STEPS_BEFORE_FORECAST and self.step < self.num_steps
        if not self._has_forecast and not is_early and (forecast := self.costs.forecast(self.step)):
            self._has_forecast = True
            await self.recorder.record_note(self.step, "forecast", "callbacks", forecast)

    async def _call(self, callback: RecipeCallback, *, is_final: bool) -> None:
        if not self.costs[callback.name].is_disabled:
            self._state.last_call[callback.name] = self.step
            callback.note_call(self._state.progress.percentage)
            await self._evaluations.begin(callback, is_final=is_final)

    async def _call_hook(
        self, callback: RecipeCallback, hook: Callable[[RunView], Awaitable[None]], timeout_s: float | None = None
    ) -> None:
        """``on_start`` or ``on_end``."""
        run = callback.run = self._state.view(callback)
        started_at = time.perf_counter()
        await self._calls.make(Call(callback, run), partial(hook, run), timeout_s)
        self.costs[callback.name].seconds += time.perf_counter() - started_at

    def _check_step(self, step: int) -> None:
        if not isinstance(step, Integral) or step <= self.step:
            raise ConfigurationError(
                f"after_step({step!r}) follows step {self.step}: steps are whole numbers that grow"
            )
        if step > self.num_steps >= self.step:
            message = f"step {step} is beyond num_steps={self.num_steps}, by which calls are planned"
            self._state.warn("runner", int(step), message)


def _is_whole(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)
