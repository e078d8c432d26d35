"""check_callback: whether a callback leaves training as it is, and returns the same metrics in every mode."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import get_args

from descant.callbacks.base import CallbackMode, RecipeCallback
from descant.errors import ConfigurationError
from descant.metrics import find_spec
from descant.models.evaluation_placement import EvaluationPlacement
from descant.models.inference import InferenceModel
from descant.testing.bare_loop import bare_loop
from descant.testing.differences import metrics_difference, weights_difference
from descant.testing.observed_calls import Fault, ObservedCalls, has_halves
from descant.testing.report import Problem, Report
from descant.testing.runs import MakeCallback, Run, Runs
from descant.testing.tiny_model import tiny_dataset, tiny_model_path
from descant.text import quoted
from descant.threads.thread import StringThread

_LEAST_NUM_STEPS = 4
_FAULTS: Mapping[int, Fault] = {1: "raise", 2: "hang"}
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

    A tiny model with dropout is trained for a few steps, several times, with the callback at every step and without
    it. The page "Testing" of the docs lists what is compared.

    Args:
        make: makes a fresh callback for a model; called often. The callback must ask the model that it is given.
        model_path: trained instead of the tiny model.
        dataset: threads to train on.
        num_steps: of a run.
        modes: in which it is checked; by default all that it can run in. All are compared with ``inline``.
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
        runs = Runs(make, path, threads, num_steps, placement or EvaluationPlacement(where="thread"), Path(folder))
        inline = await runs.train("inline")
        report = Report(type(inline.calls.callback).__name__)
        await _CallbackCheck(runs, inline, make_twin, report).run(_modes_of(inline.calls.callback, modes))
    return report.conclude(raise_on_failure)


def _modes_of(callback: RecipeCallback, wanted: Sequence[CallbackMode] | None) -> Sequence[CallbackMode]:
    """The modes in which it is checked; one that watches a metric runs in those of the callback that measures it."""
    possible: Sequence[CallbackMode] = get_args(CallbackMode)
    if (watches := callback.watches) is not None and not watches.on_schedule:
        possible = [mode for mode in possible if mode != "overlap" or not watches.uses_weights]
    elif not has_halves(callback):
        possible = ["inline"]
    if not set(wanted or ()) <= set(possible):
        raise ConfigurationError(
            f"modes={list(wanted or ())!r}: {type(callback).__name__} can run in {', '.join(possible)}; "
            "the others need a ModelCallback with `measure` and `report`"
        )
    return wanted or possible


@dataclass
class _CallbackCheck:
    """The single checks. ``_inline`` is the run that others are compared with."""

    _runs: Runs
    _inline: Run
    _make_twin: MakeCallback | None
    _report: Report

    async def run(self, modes: Sequence[CallbackMode]) -> None:
        if not self._check_returns():
            return
        self._check_keys()
        by_mode: dict[CallbackMode, Run] = {"inline": self._inline}
        by_mode |= {mode: await self._runs.train(mode) for mode in modes if mode != "inline"}
        is_neutral = {mode: await self._check_neutral(mode, run) for mode, run in by_mode.items()}
        are_same = self._check_modes(by_mode)
        calls = await self._check_loop()
        await self._check_restored(calls)
        await self._check_twin(calls)
        for mode in by_mode:
            if mode == "inline" or are_same:  # else it has been said that it does not work in this mode
                await self._check_faults(mode, is_neutral=is_neutral[mode])

    def _check_returns(self) -> bool:
        failures, returned = self._inline.failures, self._inline.calls.returned
        with self._report.check("its calls return metrics", f"{len(returned)} calls") as check:
            if failures:
                lines = failures[0].traceback.rstrip().splitlines()[-3:-1]
                raise Problem("\n".join([failures[0].message, *lines]))
            if not returned:
                raise Problem("it has not been called")
        return check.passed

    def _check_keys(self) -> None:
        callback, returned = self._inline.calls.callback, self._inline.calls.returned
        keys = {step: sorted(callback.with_prefix(found)) for step, found in sorted(returned.items()) if found}
        all_keys, declared = sorted(set().union(*keys.values())), callback.declared_metrics()
        with self._report.check("keys are the same at every call", _listed(all_keys) or "it returns none"):
            first = next(iter(keys), 0)
            for step, names in keys.items():
                if names != keys[first]:
                    raise Problem(
                        f"step {first} returned {_listed(keys[first])}, and step {step} {_listed(names)}. A key that "
                        "comes and goes leaves holes in its curve"
                    )
            if declared and (unknown := [key for key in all_keys if find_spec(declared, key) is None]):
                raise Problem(f"metric_specs does not have {_listed(unknown)}: a collision is then found late")

    async def _check_neutral(self, mode: CallbackMode, run: Run) -> bool:
        alone = await self._runs.alone(run.num_steps)
        details = f"weights and {len(alone.training)} × {len(alone.training[1])} metrics are the same bits"
        with self._report.check(f"training is unchanged ({mode})", details) as check:
            _check_training(run, alone)
        return check.passed

    def _check_modes(self, by_mode: Mapping[CallbackMode, Run]) -> bool:
        if len(by_mode) == 1:
            return True
        details = f"{', '.join(by_mode)}: the same at {len(self._inline.calls.returned)} steps"
        with self._report.check("metrics are the same in every mode", details) as check:
            for mode, run in by_mode.items():
                if problem := run.failures[0].message if run.failures else _difference(run, self._inline):
                    raise Problem(
                        f"{mode}, compared with inline: {problem}. `measure` may look at nothing but the model that it "
                        "is given, and `report` at nothing but what it has measured: by then other calls are in flight"
                    )
        return check.passed

    async def _check_loop(self) -> ObservedCalls:
        """In a plain PyTorch loop; returns the calls of the callback there."""
        runs, calls = self._runs, ObservedCalls()
        details = "weights, generators, torch's settings, module modes are the same"
        async with bare_loop(runs.model_path, runs.dataset) as loop:
            callbacks = runs.prepared(loop.model, calls)
            loop.note_changes("making the callback has changed {}, which training may draw from")
            async with runs.runner(callbacks) as runner:
                await loop.train(runner, runs.num_steps)
            loop.note_changes(f"{{}} after the call at step {runner.step} is not what it was")
            async with bare_loop(runs.model_path, runs.dataset) as alone:
                async with runs.runner([]) as runner_alone:
                    await alone.train(runner_alone, runner.step)
                weights, expected = (dict(each.module.named_parameters()) for each in (loop, alone))
                with self._report.check("a bare loop is unchanged", details):
                    if problem := [*loop.changed, weights_difference(weights, expected)][0]:
                        raise Problem(problem)
        return calls

    async def _check_restored(self, whole: ObservedCalls) -> None:
        runs, calls, half = self._runs, ObservedCalls(), max(1, max(whole.returned, default=0) // 2)
        details = f"after a new start at step {half} it returns the same metrics"
        with self._report.check("its state is restored", details):
            async with bare_loop(runs.model_path, runs.dataset) as loop:
                first, second = runs.prepared(loop.model, ObservedCalls()), runs.prepared(loop.model, calls)
                try:
                    async with runs.runner(first) as runner:
                        await loop.train(runner, half)
                        state = json.loads(json.dumps(first[-1].state_dict()))
                    async with runs.runner(second, half) as runner:
                        second[-1].load_state_dict(state)
                        await loop.train(runner, runs.num_steps)
                except Exception as error:
                    raise Problem(
                        f"state_dict() must be what JSON can hold, and load_state_dict() take it: {error!r}"
                    ) from error
            steps = [step for step in whole.returned if step > half]
            if problem := metrics_difference(calls.returned, whole.returned, steps):
                raise Problem(
                    f"{problem}, in a run that was not interrupted. What it remembers from call to call belongs into "
                    f"state_dict() and load_state_dict(); the state was {quoted(state, 100)}"
                )

    async def _check_twin(self, alone: ObservedCalls) -> None:
        runs, first, twin, twin_alone = self._runs, ObservedCalls(), ObservedCalls(), ObservedCalls()
        details = "refused under the same name; with another, both return what one alone does"
        with self._report.check("a twin is refused or kept apart", details) as check:
            async with bare_loop(runs.model_path, runs.dataset) as loop:
                same = [runs.prepared(loop.model, ObservedCalls())[-1] for _ in range(2)]
                try:
                    runs.runner(same)
                    raise Problem("two of one name are taken in one run")
                except ConfigurationError as error:
                    _check_fix(error)
                both = [*runs.prepared(loop.model, first), self._twin(loop.model, twin)[-1]]
                try:
                    async with runs.runner(both) as runner:
                        await loop.train(runner, _TWIN_STEPS)
                except ConfigurationError as error:
                    _check_fix(error)
                    check.details = f"refused: {error}"
                    return
            async with bare_loop(runs.model_path, runs.dataset) as loop:
                callbacks = self._twin(loop.model, twin_alone)
                async with runs.runner(callbacks) as runner:
                    await loop.train(runner, _TWIN_STEPS)
            for calls, expected in ((first, alone), (twin, twin_alone)):
                if problem := metrics_difference(calls.returned, expected.returned, range(_TWIN_STEPS + 1)):
                    raise Problem(f"{problem}, without a twin in the run: they share something")

    def _twin(self, model: InferenceModel, calls: ObservedCalls) -> list[RecipeCallback]:
        callbacks = self._runs.prepared(model, calls, self._make_twin)
        if self._make_twin is None:
            twin = callbacks[-1]
            twin.name = f"{twin.name}_twin"
            twin.log_key_prefix = f"{twin.log_key_prefix}_twin" if twin.log_key_prefix else "twin"
        return callbacks

    async def _check_faults(self, mode: CallbackMode, *, is_neutral: bool) -> None:
        """A model that fails, and a call that is cancelled; and the costs of the calls around."""
        run = await self._runs.train(mode, _FAULTS)
        details = "recorded as failed, training unchanged, later calls return the same"
        with self._report.check(f"failure and timeout are survived ({mode})", details):
            _check_recorded(run)
            if is_neutral:
                _check_training(run, await self._runs.alone(run.num_steps))
            first_step = max(_FAULTS) + 1
            if problem := _difference(run, self._inline, first_step):
                skipped = await self._runs.train("inline", dict.fromkeys(_FAULTS, "skip"))
                if _difference(run, skipped, first_step):
                    raise Problem(f"{problem}, if no call has failed before, nor as if those had not been made")
        if run.cost is not None:
            self._report.costs.append(run.cost)


def _difference(run: Run, other: Run, first_step: int = 0) -> str | None:
    """What the calls of two runs return otherwise."""
    steps = range(first_step, min(run.num_steps, other.num_steps) + 1)
    return metrics_difference(run.calls.returned, other.calls.returned, steps)


def _check_training(run: Run, alone: Run) -> None:
    for step, expected in alone.training.items():
        for key, value in expected.items():
            if (found := run.training[step].get(key)) != value:
                raise Problem(f"step {step}: {key} is {found}, and {value} without the callback")
    if problem := weights_difference(run.weights, alone.weights):
        raise Problem(problem)


def _check_fix(error: ConfigurationError) -> None:
    if not any(fix in str(error) for fix in _FIXES):
        raise Problem(f"two of them in one run are refused, and the message has no fix: {error}")


def _check_recorded(run: Run) -> None:
    failed = {failure.step for failure in run.failures}
    for step, has_ended in run.calls.ended.items():
        what = "its model has raised" if _FAULTS[step] == "raise" else "its model has never answered"
        if step in run.calls.returned:
            raise Problem(f"step {step}: {what}, and it has returned metrics: a failure must not become a number")
        if step not in failed:
            raise Problem(f"step {step}: {what}, and that is not among the failures of the run")
        if not has_ended:
            raise Problem(f"step {step}: {what}, and it goes on although it was cancelled: let CancelledError pass")
    if unexpected := [failure.message for failure in run.failures if failure.step not in _FAULTS]:
        raise Problem(f"a later call has failed, too: {unexpected[0]}")


def _listed(keys: Sequence[str]) -> str:
    return ", ".join(keys[:6]) + (f" and {len(keys) - 6} more" if len(keys) > 6 else "")
