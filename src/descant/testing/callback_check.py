"""check_callback: whether a callback does to training what it should, nothing, and says the same in every mode."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import get_args

from descant.callbacks.base import CallbackMode, RecipeCallback
from descant.errors import ConfigurationError
from descant.metrics import find_spec
from descant.models.evaluation_placement import EvaluationPlacement
from descant.runner.callback_runner import CallbackRunner
from descant.testing.bare_loop import bare_loop, generator_states
from descant.testing.differences import metrics_difference, training_difference, weights_difference
from descant.testing.observed_calls import Fault, ObservedCalls, has_halves
from descant.testing.report import Report, first_problem
from descant.testing.runs import MakeCallback, Run, Runs
from descant.testing.tiny_model import tiny_dataset, tiny_model_path
from descant.threads.thread import StringThread

_LEAST_NUM_STEPS = 4
_MISCHIEF: dict[int, Fault] = {1: "raise", 2: "hang"}
_FIXES = ("name=", "log_key", "checkpoint_name=")
_TWIN_STEPS = 2


async def check_callback(
    make: MakeCallback,
    *,
    model_path: str | PathLike[str] | None = None,
    dataset: Sequence[StringThread] | None = None,
    num_steps: int = _LEAST_NUM_STEPS,
    modes: Sequence[CallbackMode] | None = None,
    make_twin: MakeCallback | None = None,
    placement: EvaluationPlacement | None = None,
    raise_on_failure: bool = True,
) -> Report:
    """Check that a callback keeps the promises that descant's own keep.

    >>> async def test_my_callback():  # doctest: +SKIP
    ...     print(await check_callback(lambda model: ResponseVariety(PROMPTS, model)))

    It trains a tiny model with dropout for a few steps, again and again, with the callback at every step, and compares:
    training with the callback and without, in ``SFT`` and in a plain PyTorch loop that draws from the global random
    generators; the metrics in all modes; a run in two halves, the second by a new callback with the state of the first;
    a run in which the model once fails and once never answers; two of them in one run; the keys of its calls.

    A callback that goes by a metric of another (``watches``) gets one that measures it. One that requests the end
    of the run is compared with a training that ends there.

    Args:
        make: makes a fresh callback for a model; called often. The callback must ask the model that it is given.
        model_path: trained instead of the tiny model.
        dataset: threads to train on.
        num_steps: of a run.
        modes: in which it is checked; by default all that it can run in.
        make_twin: makes a second one for the same run; by default it is made by ``make`` and gets another name and
            ``log_key_prefix``.
        placement: where background evaluations run; by default on a thread, since a process takes seconds to start.
        raise_on_failure: raise what does not hold instead of returning it.

    Returns:
        what was checked, and what a call costs.

    Raises:
        AssertionError: something does not hold: the report, which says what differs.
        ConfigurationError: an argument that cannot work.
    """
    if num_steps < _LEAST_NUM_STEPS:
        raise ConfigurationError(f"num_steps={num_steps} must be at least {_LEAST_NUM_STEPS}, to have calls to compare")
    with tempfile.TemporaryDirectory(prefix="descant-testing-", ignore_cleanup_errors=True) as folder:
        path = tiny_model_path() if model_path is None else Path(model_path)
        threads = tiny_dataset() if dataset is None else dataset
        place = placement or EvaluationPlacement(where="thread")
        runs = Runs(make, path, threads, num_steps, place, Path(folder))
        return (await _CallbackCheck(runs, modes, make_twin).run()).conclude(raise_on_failure)


class _CallbackCheck:
    def __init__(self, runs: Runs, modes: Sequence[CallbackMode] | None, make_twin: MakeCallback | None) -> None:
        self._runs, self._modes, self._make_twin = runs, modes, make_twin
        self._not_neutral: set[CallbackMode] = set()
        self._modes_differ = False

    async def run(self) -> Report:
        inline = await self._runs.train("inline")
        callback = inline.calls.callback
        assert callback is not None
        self._report = Report(type(callback).__name__)
        modes = self._modes_of(callback)
        if self._check_returns(callback, inline):
            plain = [inline, *[await self._runs.train(mode, is_held=True) for mode in modes if mode != "inline"]]
            await self._check_neutral(plain, modes)
            self._check_modes(plain, modes)
            await self._check_loop()
            await self._check_mischief(inline, modes)
        return self._report

    def _modes_of(self, callback: RecipeCallback) -> list[CallbackMode]:
        """The modes that it can run in; for one that goes by the metric of another, those of that one."""
        possible = [mode for mode in get_args(CallbackMode) if has_halves(callback) or mode == "inline"]
        if callback.watches is not None and not callback.watches.on_schedule:
            lacks = "overlap" if callback.watches.uses_weights else None
            possible = [mode for mode in get_args(CallbackMode) if mode != lacks]
        for mode in self._modes or ():
            if mode not in possible:
                raise ConfigurationError(
                    f"modes={list(self._modes or ())!r}: {type(callback).__name__} can run in {', '.join(possible)}; "
                    "the others need a ModelCallback with `measure` and `report`"
                )
        return list(self._modes or possible)

    # Single checks

    def _check_returns(self, callback: RecipeCallback, run: Run) -> bool:
        """Whether calls succeed, and return metrics under stable keys."""
        report, returned = self._report, run.calls.returned
        failed = [f"{failure.message}\n{_last_lines(failure.traceback)}" for failure in run.failures]
        problem = failed[0] if failed else None if returned else "it has not been called"
        if not report.add("its calls return metrics", problem, f"{len(returned)} calls"):
            return False
        keys = {step: list(callback.with_prefix(metrics)) for step, metrics in sorted(returned.items()) if metrics}
        first = next(iter(keys), 0)
        unstable = [
            f"step {first} returned {_listed(keys[first])}, and step {step} {_listed(names)}. A key that comes and "
            "goes leaves holes in its curve"
            for step, names in keys.items()
            if set(names) != set(keys[first])
        ]
        declared = callback.declared_metrics()
        all_keys = {key for names in keys.values() for key in names}
        unknown = sorted(key for key in all_keys if declared and find_spec(declared, key) is None)
        undeclared = (
            f"metric_specs does not have {_listed(unknown)}: a collision is then found late" if unknown else None
        )
        details = _listed(sorted(all_keys)) if all_keys else "it returns none"
        report.add("keys are the same at every call", first_problem([*unstable, undeclared]), details)
        return True

    async def _check_neutral(self, runs: Sequence[Run], modes: Sequence[CallbackMode]) -> None:
        for mode, run in zip(modes, runs, strict=True):
            alone = await self._runs.alone(run.num_steps)
            details = f"weights and {len(alone.training)} × {len(alone.training[0])} metrics are the same bits"
            if not self._report.add(f"training is unchanged ({mode})", training_difference(run, alone), details):
                self._not_neutral.add(mode)

    def _check_modes(self, runs: Sequence[Run], modes: Sequence[CallbackMode]) -> None:
        if len(modes) == 1:
            return
        first, problems = runs[0], []
        for mode, run in zip(modes[1:], runs[1:], strict=True):
            problem = first_problem([failure.message for failure in run.failures]) or _difference(run, first)
            problems.append(
                problem
                and f"{mode}, compared with {modes[0]}: {problem}. `measure` may look at nothing but the model "
                "that it is given, and `report` at nothing but what it has measured: other calls are under way by then"
            )
        details = f"{', '.join(modes)}: the same at {len(first.calls.returned)} steps"
        self._modes_differ = not self._report.add(
            "metrics are the same in every mode", first_problem(problems), details
        )

    async def _check_loop(self) -> None:
        """In a plain PyTorch loop: neutral, restored in the middle, and beside a twin."""
        runs = self._runs
        with bare_loop(runs.model_path, runs.dataset) as loop:
            calls = ObservedCalls()
            before = generator_states()
            callbacks = runs.with_companion(runs.prepared(loop.model, calls), loop.model, "inline")
            drawn = [name for name, value in generator_states().items() if value != before[name]]
            whole_dir = runs.run_dir()
            await loop.run(callbacks, runs.num_steps, whole_dir)
            num_steps, weights, changed = len(loop.losses), loop.weights(), loop.changed
        with bare_loop(runs.model_path, runs.dataset) as alone:
            await alone.run([], runs.num_steps, runs.run_dir(), last_step=num_steps)
        problems = [f"making the callback has changed {name}, which training may draw from" for name in drawn]
        problems += [f"{change} is not what it was" for change in changed]
        difference = weights_difference(weights, alone.weights())
        details = "weights, generators, torch's settings, module modes are the same"
        self._report.add("a bare loop is unchanged", first_problem([*problems, difference]), details)
        await self._check_restored(calls, whole_dir, num_steps)
        await self._check_twin(calls)

    async def _check_restored(self, whole: ObservedCalls, whole_dir: Path, num_steps: int) -> None:
        runs, half = self._runs, max(1, num_steps // 2)
        halves = [ObservedCalls(), ObservedCalls()]
        run_dirs = [runs.run_dir(), runs.run_dir()]
        problem = None
        with bare_loop(runs.model_path, runs.dataset) as loop:
            first, second = (
                runs.with_companion(runs.prepared(loop.model, calls), loop.model, "inline") for calls in halves
            )
            try:
                state = await loop.run(first, runs.num_steps, run_dirs[0], last_step=half, wants_state=True)
                await loop.run(second, runs.num_steps, run_dirs[1], first_step=half, state=state)
            except Exception as error:
                problem = f"state_dict() must be what JSON can hold, and load_state_dict() take it: {error!r}"
        if problem is None:
            steps = [step for step in whole.returned if step > half]
            problem = metrics_difference(halves[1].returned, whole.returned, steps, [whole_dir, *run_dirs])
            problem = problem and (
                f"{problem}, in a run that was not interrupted. What it remembers from call to call belongs into "
                f"state_dict() and load_state_dict(); the state was {state!r:.100}"
            )
        details = f"after a new start at step {half} it goes on with the same metrics"
        self._report.add("its state is restored", problem, details)

    async def _check_twin(self, alone: ObservedCalls) -> None:
        name = "a twin is refused or kept apart"
        runs, calls = self._runs, [ObservedCalls() for _ in range(3)]
        with bare_loop(runs.model_path, runs.dataset) as loop:
            try:
                same = [runs.prepared(loop.model, ObservedCalls()) for _ in range(2)]
                CallbackRunner(same, num_steps=runs.num_steps, run_dir=runs.run_dir())
                refused = "two of one name are taken"
            except ConfigurationError as error:
                refused = str(error)
            if not any(fix in refused for fix in _FIXES):
                self._report.add(name, f"two of them in one run are refused, and the message has no fix: {refused}")
                return
            first, twin = runs.prepared(loop.model, calls[0]), self._twin(loop.model, calls[1])
            try:
                callbacks = [*runs.with_companion(first, loop.model, "inline"), twin]
                await loop.run(callbacks, runs.num_steps, runs.run_dir(), last_step=_TWIN_STEPS)
            except ConfigurationError as error:
                has_fix = any(fix in str(error) for fix in _FIXES)
                self._report.add(name, None if has_fix else f"the message has no fix: {error}", f"refused: {error}")
                return
        with bare_loop(runs.model_path, runs.dataset) as loop:
            callbacks = runs.with_companion(self._twin(loop.model, calls[2]), loop.model, "inline")
            await loop.run(callbacks, runs.num_steps, runs.run_dir(), last_step=_TWIN_STEPS)
        steps = range(_TWIN_STEPS + 1)
        problem = first_problem(
            [
                metrics_difference(calls[0].returned, alone.returned, steps, runs.run_dirs),
                metrics_difference(calls[1].returned, calls[2].returned, steps, runs.run_dirs),
            ]
        )
        problem = problem and f"{problem}, without a twin in the run: they share something"
        self._report.add(name, problem, "refused under the same name; with another, both return what one alone does")

    def _twin(self, model: object, calls: ObservedCalls) -> RecipeCallback:
        twin = self._runs.prepared(model, calls, self._make_twin)
        if self._make_twin is None:
            twin.name = f"{twin.name}_twin"
            twin.log_key_prefix = f"{twin.log_key_prefix}_twin" if twin.log_key_prefix else "twin"
        return twin

    async def _check_mischief(self, inline: Run, modes: Sequence[CallbackMode]) -> None:
        """A model that fails, and one that never answers; and the costs of the calls around."""
        for mode in modes:
            if mode != "inline" and self._modes_differ:
                continue  # it has been said that it does not work in this mode
            run = await self._runs.train(mode, ObservedCalls(_MISCHIEF))
            alone = await self._runs.alone(run.num_steps)
            problem = first_problem(
                [
                    _unrecorded(run),
                    None if mode in self._not_neutral else training_difference(run, alone),
                    await self._later_difference(run, inline),
                ]
            )
            details = "recorded as failed, training unchanged, later calls return the same"
            self._report.add(f"failure and timeout are survived ({mode})", problem, details)
            if run.cost is not None:
                self._report.costs.append(run.cost)

    async def _later_difference(self, run: Run, undisturbed: Run) -> str | None:
        """What later calls return otherwise than if nothing had happened, or than if the calls had not been made."""
        later = range(max(_MISCHIEF) + 1, min(run.num_steps, undisturbed.num_steps) + 1)
        run_dirs = self._runs.run_dirs
        problem = metrics_difference(run.calls.returned, undisturbed.calls.returned, later, run_dirs)
        if problem is None:
            return None
        skipped = await self._runs.train("inline", ObservedCalls(dict.fromkeys(_MISCHIEF, "skip")))
        later = range(later.start, min(run.num_steps, skipped.num_steps) + 1)
        if metrics_difference(run.calls.returned, skipped.calls.returned, later, run_dirs) is None:
            return None
        return f"{problem}, if no call has failed before, nor as if those had not been made"


def _difference(run: Run, other: Run) -> str | None:
    steps = range(min(run.num_steps, other.num_steps) + 1)
    return metrics_difference(run.calls.returned, other.calls.returned, steps, [run.run_dir, other.run_dir])


def _unrecorded(run: Run) -> str | None:
    """What of the mischief was not recorded as the failure that it is."""
    failed = {failure.step for failure in run.failures}
    for step, mischief in _MISCHIEF.items():
        if step not in run.calls.begun:
            continue
        what = "its model has raised" if mischief == "raise" else "its model has never answered"
        if step in run.calls.returned:
            return f"step {step}: {what}, and it has returned metrics: a failure must not become a number"
        if step not in failed:
            return f"step {step}: {what}, and that is not among the failures of the run"
        if step not in run.calls.ended:
            return f"step {step}: {what}, and it goes on although it was cancelled: it must let CancelledError pass"
    unexpected = [failure.message for failure in run.failures if failure.step not in _MISCHIEF]
    return f"a later call has failed, too: {unexpected[0]}" if unexpected else None


def _last_lines(traceback: str) -> str:
    return "\n".join(traceback.rstrip().splitlines()[-3:-1])


def _listed(keys: Sequence[str]) -> str:
    shown = sorted(keys)[:6]
    return ", ".join(shown) + (f" and {len(keys) - len(shown)} more" if len(keys) > len(shown) else "")
