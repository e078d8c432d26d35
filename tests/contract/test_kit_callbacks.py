"""check_callback: the callbacks of descant and its docs pass; each check can fail, with a message that says why."""

import ast
import asyncio
import re
from pathlib import Path

import pytest
import torch
from support import CountingCallback, addition_threads
from train import CharacterAccuracy

from descant import (
    BestModelCallback,
    CheckpointCallback,
    EarlyStoppingCallback,
    ModelCallback,
    RecipeCallback,
    callback,
    every_steps,
)
from descant.errors import ConfigurationError
from descant.metrics import MetricSpec
from descant.testing import check_callback

ROOT = Path(__file__).parents[2]
VALIDATION = addition_threads(3, offset=40)
PROMPTS = [thread.without_completion() for thread in VALIDATION]


def shown_in_docs(name):
    """A class or callback of a page of the docs."""
    for page in [ROOT / "README.md", ROOT / "docs" / "writing-a-callback.md", ROOT / "docs" / "testing.md"]:
        for block in re.findall(r"^```python\n(.*?)^```", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE):
            for node in ast.parse(block).body:
                if getattr(node, "name", None) == name:
                    names = {"asyncio": asyncio, "prompts": PROMPTS}
                    exec("from descant import *\n" + ast.unparse(node), names)
                    return names[name]
    raise LookupError(name)


WATCHERS = {
    "early_stopping": lambda model: EarlyStoppingCallback("validation/loss", "min"),
    "early_stopping_at_once": lambda model: EarlyStoppingCallback("validation/loss", "max", patience=1),
    "best_model": lambda model: BestModelCallback(model, "validation/loss", "min"),
    "checkpoints": lambda model: CheckpointCallback(
        model, "policy", keep_last=1, keep_best=1, metric="validation/loss", mode="min"
    ),
}
SHOWN = {
    "ResponseVariety": lambda model: shown_in_docs("ResponseVariety")(PROMPTS, model),
    "FirstTokenConfidence": lambda model: shown_in_docs("FirstTokenConfidence")(model, 0.5, "opening"),
    "loss_so_far": lambda model: shown_in_docs("loss_so_far"),
    "stop_when_learnt": lambda model: shown_in_docs("stop_when_learnt"),
    "CharacterAccuracy": lambda model: CharacterAccuracy(VALIDATION[:1], model),
}


@pytest.mark.parametrize("name", [*WATCHERS, *(name for name in SHOWN if name != "FirstTokenConfidence")])
async def test_passes(name):
    report = await check_callback((WATCHERS | SHOWN)[name])
    assert report.passed
    assert [cost.num_calls >= 1 for cost in report.costs] == [True] * len(report.costs)


async def test_a_report_says_what_was_checked_and_what_a_call_costs():
    report = await check_callback(SHOWN["FirstTokenConfidence"])
    text = str(report)
    assert text.startswith("FirstTokenConfidence: 12 of 12 checks passed\n  ok    its calls return metrics")
    assert [cost.mode for cost in report.costs] == ["inline", "overlap", "background"]
    assert all(cost.stall_s > 0 and cost.seconds > 0 for cost in report.costs)
    assert len({cost.num_tokens for cost in report.costs}) == 1
    assert report.costs[0].num_tokens > 0
    assert re.search(r"cost of a call +seconds +training waits +tokens +calls\n    inline ", text)
    assert max(map(len, text.splitlines())) <= 120


class Bad(RecipeCallback):
    """A right one; each of its subclasses has one fault."""

    def __init__(self, model, prefix="bad", **options):
        super().__init__(0.5, prefix, **options)
        self.model = model
        self.calls = 0

    def module(self):
        return self.model._worker._loop._engine.model

    async def callback(self, current_percentage):
        self.calls += 1
        return {"value": await self.model.logprobs(VALIDATION[0])}


class Trains(Bad):
    async def callback(self, current_percentage):
        with torch.no_grad():
            next(self.module().parameters()).add_(1e-3)
        return {"value": 1}


class LeavesEvaluationMode(Bad):
    async def callback(self, current_percentage):
        self.module().eval()
        return {"value": 1}


class Freezes(Bad):
    async def callback(self, current_percentage):
        next(self.module().parameters()).requires_grad_(False)
        return {"value": 1}


class SeedsWhenMade(Bad):
    def __init__(self, model):
        super().__init__(model)
        torch.manual_seed(7)


class ReturnsAList(Bad):
    async def callback(self, current_percentage):
        return {"values": [1, 2]}


class Raises(Bad):
    async def callback(self, current_percentage):
        return {"value": {}["missing"]}


class KeysOfTheStep(Bad):
    async def callback(self, current_percentage):
        return {f"value_{self.run.step}": 1}


class DeclaresAnother(Bad):
    metric_specs = (MetricSpec("other"),)


class Forgets(Bad):
    async def callback(self, current_percentage):
        self.calls += 1
        return {"calls": self.calls}


class RemembersASet(Forgets):
    def state_dict(self):
        return {"calls": {self.calls}}


class MakesUpANumber(Bad):
    async def callback(self, current_percentage):
        try:
            return await super().callback(current_percentage)
        except Exception:
            return {"value": 0.0}


class IgnoresCancellation(Bad):
    async def callback(self, current_percentage):
        try:
            return await super().callback(current_percentage)
        except asyncio.CancelledError:
            await asyncio.get_running_loop().create_future()


class StaysBusy(Bad):
    is_busy = False

    async def callback(self, current_percentage):
        if self.is_busy:
            raise RuntimeError("a call goes on")
        self.is_busy = True
        metrics = await super().callback(current_percentage)
        self.is_busy = False
        return metrics


class CountsCallsThatFail(Bad):
    """Half a call is counted: neither as if it had been made, nor as if it had not."""

    async def callback(self, current_percentage):
        self.calls += 1
        await self.model.logprobs(VALIDATION[0])
        self.calls += 1
        return {"calls": self.calls}

    def state_dict(self):
        return {"calls": self.calls}

    def load_state_dict(self, state):
        self.calls = state["calls"]


class SharesWithItsTwin(Bad):
    seen = []  # noqa: RUF012 - which is the mistake

    async def on_start(self, run):
        self.seen.clear()

    async def callback(self, current_percentage):
        self.seen.append(current_percentage)
        return {"seen": len(self.seen)}

    def state_dict(self):
        return {"seen": self.seen}

    def load_state_dict(self, state):
        self.seen[:] = state["seen"]


class HandsOverByItself(ModelCallback):
    """``report`` reads what the latest ``measure`` has stored on the callback."""

    async def measure(self, model):
        self.value = await model.logprobs(VALIDATION[0])

    async def report(self, measurement):
        return {"value": self.value}


class LooksAtItsOwnModel(ModelCallback):
    async def measure(self, model):
        return await self.model.logprobs(VALIDATION[0])

    async def report(self, measurement):
        return {"value": measurement}


BAD = {
    Trains: {
        "training is unchanged (inline)": r"step 1: training/loss is [\d.]+, and [\d.]+ without the callback",
        "a bare loop is unchanged": r"\d+ of \d+ parameters are not the same bits as without the callback, such as ",
    },
    LeavesEvaluationMode: {
        "a bare loop is unchanged": r"training or evaluation mode of a module after the call at step 0 is not"
    },
    Freezes: {
        "training is unchanged (inline)": "step 1: training/grad_norm is",
        "a bare loop is unchanged": r"requires_grad of a parameter after the call at step 0 is not what it was",
    },
    SeedsWhenMade: {
        "a bare loop is unchanged": r"making the callback has changed torch's random generator, which training may draw"
    },
    ReturnsAList: {"its calls return metrics": r"key 'bad/values': \[1, 2\] \(list\) is not a metric"},
    Raises: {
        "its calls return metrics": r"callback 'bad' failed at step 0 of 4: KeyError: 'missing'\n.*\[\"missing\"\]"
    },
    KeysOfTheStep: {
        "keys are the same at every call": r"step 0 returned bad/value_0, and step 1 bad/value_1\. A key that comes and"
    },
    DeclaresAnother: {"keys are the same at every call": r"metric_specs does not have bad/value"},
    Forgets: {
        "its state is restored": r"step 3: 'calls' is 1, and otherwise 4, .* belongs into state_dict\(\) and load_state"
    },
    RemembersASet: {
        "its state is restored": r"state_dict\(\) must be what JSON can hold.*set is not JSON serializable"
    },
    MakesUpANumber: {
        "failure and timeout are survived (inline)": r"step 1: its model has raised, and it has returned metrics"
    },
    IgnoresCancellation: {
        "failure and timeout are survived (inline)": r"step 2: its model has never answered, and it goes on although it"
    },
    StaysBusy: {"failure and timeout are survived (inline)": r"a later call has failed, too: .*a call goes on"},
    CountsCallsThatFail: {
        "failure and timeout are survived (inline)": r"'calls' is 6, and otherwise 8, if no call has failed before, nor"
    },
    SharesWithItsTwin: {
        "a twin is refused or kept apart": r"step \d: 'seen' is \d, and otherwise \d, without a twin in the run"
    },
    HandsOverByItself: {
        "metrics are the same in every mode": r"overlap, compared with inline: step \d: 'value' is .* `report` at"
    },
    LooksAtItsOwnModel: {
        "metrics are the same in every mode": r"background, compared with inline: .* asks for the live weights"
    },
}


def make(kind, model):
    return kind(model, 0.5, "bad") if issubclass(kind, ModelCallback) else kind(model)


@pytest.mark.parametrize("kind", BAD)
async def test_a_bad_one_is_caught_and_told_why(kind, monkeypatch):
    monkeypatch.setattr("descant.testing.observed_calls.GRACE_S", 0.01)
    report = await check_callback(lambda model: make(kind, model), raise_on_failure=False)
    failed = {check.name: check.details for check in report.failures}
    with pytest.raises(AssertionError, match=rf"^{kind.__name__}: \d+ of \d+ checks passed\n(.*\n)*  FAIL  "):
        report.conclude(raise_on_failure=True)
    assert set(failed) == set(BAD[kind])
    for name, message in BAD[kind].items():
        assert re.search(message, failed[name], flags=re.DOTALL), failed[name]


async def test_arguments_that_cannot_work():
    with pytest.raises(ConfigurationError, match="num_steps=2 must be at least 4"):
        await check_callback(Bad, num_steps=2)
    with pytest.raises(ConfigurationError, match=r"modes=\['overlap'\]: Bad can run in inline"):
        await check_callback(Bad, modes=["overlap"])
    with pytest.raises(ConfigurationError, match=r"make\(model\) returned 3 \(int\); a callback is needed"):
        await check_callback(lambda model: 3)
    counting = CountingCallback()
    with pytest.raises(ConfigurationError, match="returned the same CountingCallback again; make a fresh one"):
        await check_callback(lambda model: counting)


async def test_a_twin_of_ones_own_and_the_settings_of_a_user(tmp_path):
    report = await check_callback(
        lambda model: CheckpointCallback(model, "policy", every_steps(2), timeout_s=60, on_error="raise"),
        make_twin=lambda model: CheckpointCallback(model, "twin", log_key_prefix="twin"),
        modes=["inline"],
        num_steps=5,
        dataset=addition_threads(3),
    )
    twin = next(check for check in report.checks if "twin" in check.name)
    assert twin.details == "refused under the same name; with another, both return what one alone does"


async def test_a_function_that_never_asks_its_model_and_the_process_is_as_it_was():
    @callback(frequency=0.5)
    async def constant(run):
        return {"one": 1}

    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    assert (await check_callback(lambda model: constant)).passed
    assert torch.equal(torch.rand(3), expected)
