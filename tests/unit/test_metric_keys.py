"""Who returns which metric, and who needs whose: resolved when a run is made."""

import pytest
from support import CountingCallback, addition_threads, training_model

from descant import (
    CallbackRunner,
    CheckpointCallback,
    EarlyStoppingCallback,
    MetricSpec,
    MetricWatch,
    ValidationLossCallback,
)
from descant.errors import ConfigurationError
from descant.runner.metric_keys import MetricKeys


class Declared(CountingCallback):
    metric_specs = (MetricSpec("score", "points", better="higher", headline=True), MetricSpec("by_level/*"))


def made(*callbacks):
    return CallbackRunner(list(callbacks), num_steps=10)


def test_a_watched_key_that_nobody_can_return_is_refused_with_the_keys_there_are():
    message = (
        r"callback 'early_stopping' watches 'counting/scores', which no callback of this run returns; did you mean "
        r"'counting/score'\? they return: counting/by_level/\*, counting/score"
    )
    with pytest.raises(ConfigurationError, match=message):
        made(Declared(0.5), EarlyStoppingCallback("counting/scores", "max"))
    with pytest.raises(ConfigurationError, match="no callback of this run returns; they return: nothing"):
        made(EarlyStoppingCallback("validation/loss", "min"))


def test_an_open_family_and_a_callback_without_declarations_may_return_it():
    made(Declared(0.5), EarlyStoppingCallback("counting/by_level/3", "max"))
    made(Declared(0.5), CountingCallback(0.5, "other"), EarlyStoppingCallback("other/scores", "max"))
    made(Declared(0.5), CountingCallback(0.5, None, name="no prefix"), EarlyStoppingCallback("anything", "max"))
    with pytest.raises(ConfigurationError, match="which no callback of this run returns"):
        made(Declared(0.5), CountingCallback(0.5, "other"), EarlyStoppingCallback("counting/scores", "max"))


async def test_the_direction_is_read_from_the_declaration(qwen3_dir):
    stopping = EarlyStoppingCallback("counting/score")
    made(Declared(0.5), stopping)
    assert stopping.watches.direction == "max"
    async with training_model(qwen3_dir) as model:
        checkpoint = CheckpointCallback(model, "policy", keep_best=1, metric="validation/loss")
        made(ValidationLossCallback(addition_threads(2), model), checkpoint)
    assert checkpoint.watches.direction == "min"
    with pytest.raises(ConfigurationError, match="no callback declares which of its values are better"):
        made(Declared(0.5), EarlyStoppingCallback("counting/by_level/3"))
    given = EarlyStoppingCallback("counting/score", "min")
    made(Declared(0.5), given)
    assert given.watches.direction == "min"


def test_calls_are_ordered_by_who_needs_whose():
    class Second(CountingCallback):
        watches = MetricWatch("counting/score")
        metric_specs = (MetricSpec("value", better="higher"),)

    second, first = Second(0.5, "second"), Declared(0.5)
    third = EarlyStoppingCallback("second/value")
    callbacks = [third, second, first]
    assert MetricKeys(callbacks).in_order(callbacks) == [first, second, third]


def test_a_circle_is_refused():
    class Other(CountingCallback):
        watches = MetricWatch("first/value", "max")
        metric_specs = (MetricSpec("value"),)

    class First(CountingCallback):
        watches = MetricWatch("other/value", "max")
        metric_specs = (MetricSpec("value"),)

    with pytest.raises(ConfigurationError, match="other, first watch metrics of each other in a circle"):
        made(Other(0.5, "other"), First(0.5, "first"))


async def test_a_frequency_does_not_change_while_a_run_is_open(tmp_path):
    callback = CountingCallback(0.5)
    async with CallbackRunner([callback], num_steps=2, run_dir=tmp_path) as runner:
        with pytest.raises(ConfigurationError, match="'counting': its frequency cannot change while a run is open"):
            callback.frequency = 0.1
        await runner.after_step(1)
    callback.frequency = 0.1


def test_a_callback_is_told_anew_in_every_run():
    class Lower(CountingCallback):
        metric_specs = (MetricSpec("score", better="lower"),)

    class Reads(CountingCallback):
        watches = MetricWatch("counting/score")

    stopping = EarlyStoppingCallback("counting/score")
    made(Declared(0.5), stopping)
    made(Lower(0.5), stopping)
    assert stopping.watches.direction == "min"
    made(CountingCallback(0.5), Reads(0.5, "reads"))  # it compares nothing, so no direction is needed
    assert Reads.watches == MetricWatch("counting/score")


@pytest.mark.parametrize("wrong", [{"key": ""}, {"key": "a", "better": "max"}, {"key": "a", "unit": None}])
def test_a_declaration_that_says_nothing_is_refused(wrong):
    with pytest.raises(ConfigurationError, match="MetricSpec"):
        MetricSpec(**wrong)


def test_what_is_no_declaration_is_refused():
    callback = CountingCallback(0.5)
    callback.metric_specs = ("score",)
    with pytest.raises(ConfigurationError, match="callback 'counting': metric_specs has 'score', not a MetricSpec"):
        made(callback)


def test_a_follower_has_no_frequency():
    with pytest.raises(ConfigurationError, match="EarlyStoppingCallback has no argument 'eval_steps'; evaluations are"):
        EarlyStoppingCallback("counting/score", eval_steps=3)
