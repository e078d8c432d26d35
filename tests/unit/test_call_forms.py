"""The call forms of the recipe API: each works, or is refused with the form that does."""

import re
from fractions import Fraction

import pytest
from support import CountingCallback, addition_threads, training_model

from descant import (
    SFT,
    BaseGrader,
    CallbackRunner,
    CheckpointCallback,
    CombinedGrader,
    CombinedSchedule,
    CompositeLogger,
    CosineScheduler,
    ExactMatchGrader,
    GenerateSamplesCallback,
    Grade,
    GraderEvalCallback,
    ModelBuilder,
    RecipeCallback,
    StdoutJobNotifier,
    StdoutLogger,
    StdoutStageNotifier,
    StringThread,
    callback,
)
from descant.errors import ConfigurationError
from descant.notifiers import StageNotifier

THREAD = StringThread().user("q").assistant("a")


class Plain(RecipeCallback):
    async def callback(self, current_percentage):
        return {}


def with_last_call(value):
    class FromLastCall(CountingCallback):
        def __init__(self):
            super().__init__(0.25)
            self.last_call = value

    return FromLastCall()


# RecipeCallback(frequency, force_run_on_exit, log_key_prefix)

FORMS = {
    "frequency alone": (lambda: Plain(0.1), True, None),
    "prefix second": (lambda: Plain(0.1, "p"), True, "p"),
    "a bool second": (lambda: Plain(0.1, False), False, None),
    "three": (lambda: Plain(0.1, False, "p"), False, "p"),
    "three, of which the first is true": (lambda: Plain(0.1, True, "p"), True, "p"),
    "a bool and a keyword": (lambda: Plain(0.1, False, log_key_prefix="p"), False, "p"),
    "keywords": (lambda: Plain(frequency=0.1, force_run_on_exit=False, log_key_prefix="p"), False, "p"),
    "no prefix": (lambda: Plain(0.1, None), True, None),
    "both names": (lambda: Plain(0.1, at_end=True, force_run_on_exit=False), False, None),
}


@pytest.mark.parametrize("case", FORMS)
def test_a_callback_takes_both_orders(case):
    make, at_end, prefix = FORMS[case]
    made = make()
    assert (made.at_end, made.force_run_on_exit, made.log_key_prefix) == (at_end, at_end, prefix)


async def test_what_is_set_on_a_callback_takes_effect(tmp_path):
    """As in the recipe API's own CheckpointCallback, which sets both."""
    no_end = CountingCallback(0.5, "no_end")
    no_end.force_run_on_exit = False
    callbacks = [with_last_call(0.0), no_end]
    assert [each.plan(8).steps for each in callbacks] == [[2, 4, 6, 8], [0, 4]]
    for stage in ("one", "two"):
        async with CallbackRunner(callbacks, num_steps=8, run_dir=tmp_path / stage) as runner:
            for step in range(1, 9):
                await runner.after_step(step)
    assert callbacks[0].steps == [2, 4, 6, 8] * 2
    assert no_end.steps == [0, 4] * 2


@pytest.mark.parametrize(("value", "expected"), [(-1.0, [0, 2, 4, 6, 8]), (0.5, [6, 8]), (Fraction(1, 4), [4, 6, 8])])
async def test_a_last_call_counts_as_made(tmp_path, value, expected):
    counting = with_last_call(value)
    async with CallbackRunner([counting], num_steps=8, run_dir=tmp_path) as runner:
        for step in range(1, 9):
            await runner.after_step(step)
    assert counting.steps == counting.plan(8).steps == expected


async def test_a_last_call_counts_as_made_by_hand_too():
    made, plain = [], Plain(0.25)
    plain.callback = lambda progress: judged(made.append(progress))
    plain.with_prefix = lambda returned: {}
    plain.last_call = 0.5
    for step in range(1, 9):
        await plain.maybe_call(step / 8)
    assert made == [0.75, 1.0]


class OwnMaybe(Plain):
    async def maybe_call(self, current_percentage):
        return {}


class AsyncIsDue(Plain):
    async def is_due(self, previous, current):
        return True


# Graders


class Judge(BaseGrader[dict]):
    """Generic over its logs, to which it appends itself."""

    async def grade(self, sample):
        self._logs.append({"score": 0.5, "prompt": "q"})
        return Grade(0.5, self.grader_key)

    def get_logs(self, clear=False, log_all_samples=False):
        logs = super().get_logs(clear=False, log_all_samples=log_all_samples)
        logs |= {"score/scored_samples_count": len(self._logs), "all": float(log_all_samples)}
        if clear:
            self._logs = []
        return logs


async def judged(thread):
    return 0.25


async def test_graders_of_the_recipe_api():
    judge = Judge("judge")
    await judge.score_float_value(THREAD)
    assert judge.get_logs(True, True).items() >= {"score/count": 1, "score/scored_samples_count": 1, "all": 1}.items()
    assert judge.get_logs() == {"score/scored_samples_count": 0, "all": 0}
    judge.add_log(log_data={"score": 1})
    assert judge.get_logs()["score/mean"] == 1
    assert CombinedGrader("all", [judge]).get_logs(False, True)["judge/all"] == 1
    for grader in (
        BaseGrader.from_function(grader_key="f", async_fn=judged),
        BaseGrader.from_function("f", judged),
        BaseGrader.from_function("f", function=judged),
    ):
        assert await grader.score_float_value(THREAD) == 0.25


# Notifiers, loggers, schedules


def test_notifiers_of_the_recipe_api(capsys):
    job = StdoutJobNotifier("job7")
    notifier = StdoutStageNotifier(job, "train")
    assert (notifier.stage_name, notifier.job_notifier) == ("train", job)
    assert StdoutStageNotifier(notifier=job, stage="train").stage_name == "train"
    assert StdoutStageNotifier("merge").stage_name == "merge"
    notifier.report_progress(tot_num_samples=2, processed_num_samples=1)
    assert capsys.readouterr().out == "train: 1 of 2 samples (50%)\n"


def test_loggers_of_the_recipe_api():
    main, second, third = StdoutLogger(), StdoutLogger(), StdoutLogger()
    assert CompositeLogger(main_logger=main, second_logger=second).loggers == (main, second)
    assert CompositeLogger(main, second_logger=second).loggers == (main, second)
    assert CompositeLogger(main, second, third).loggers == (main, second, third)


def test_schedules_of_the_recipe_api():
    def rising(p):
        return p

    def falling(p):
        return 1 - p

    assert [CombinedSchedule(a=rising, b=falling, change_point=0)(p) for p in (0.0, 0.5, 1.0)] == [1, 0.5, 0]
    assert [CombinedSchedule(rising, falling, 1)(p) for p in (0.0, 0.5, 1.0)] == [0, 0.5, 1]
    assert CombinedSchedule(rising, falling, change_point=0.25)(0.125) == 0.5


# Trainers and models


async def test_a_trainer_takes_its_arguments_by_position(qwen3_dir):
    dataset, seen, counting = addition_threads(4), [], CountingCallback(0.5)
    notifier = StdoutStageNotifier(StdoutJobNotifier(), "train")
    async with training_model(qwen3_dir) as model:
        trainer = SFT(dataset, model, seen.append, notifier, [counting], 2, samples_per_batch=2)
        assert (list(trainer.dataset), trainer.model, trainer.stage_notifier) == (dataset, model, notifier)
        assert (trainer.logger, trainer.callbacks, trainer.epochs, trainer.num_steps) == (seen.append, [counting], 2, 4)
        assert SFT(dataset, model=model).num_steps == 1
        with pytest.raises(
            ConfigurationError, match="SFT takes dataset, model, logger, stage_notifier, callbacks, epochs"
        ):
            SFT(dataset, model, None, None, [], 1, 1e-5)
        with pytest.raises(ConfigurationError, match="SFT: model is given by position and by keyword"):
            SFT(dataset, model, model=model)
    with pytest.raises(ConfigurationError, match="SFT needs model="):
        SFT(dataset)
    assert CallbackRunner([counting], 4).num_steps == 4


async def test_a_model_is_made_without_a_batch_size(qwen3_dir):
    model = await ModelBuilder(qwen3_dir).spawn_train("policy")
    await model.dealloc()


async def test_a_view_samples_as_it_says(qwen3_dir):
    threads = addition_threads(2)
    async with training_model(qwen3_dir) as model:
        view = model.temperature(0.0).top_p(0.5).max_gen_len(3)
        assert GenerateSamplesCallback(threads, view, 0.5).model.sampling == view.sampling
        given = GenerateSamplesCallback(threads, view, 0.5, temperature=0.7, max_gen_len=2)
        assert (given.temperature, given.model.sampling.temperature, given.model.sampling.max_gen_len) == (0.7, 0.7, 2)
        assert given.model.sampling.top_p == 0.5
        assert GenerateSamplesCallback(threads, model, 0.5).temperature == 1.0
        grading = GraderEvalCallback(threads, model.temperature(0.9).top_p(0.5).max_gen_len(3), ExactMatchGrader(), 0.5)
        sampling = grading.model.sampling
        assert (sampling.temperature, sampling.top_p, sampling.max_gen_len) == (0.0, 0.5, 3)
        with pytest.raises(ConfigurationError, match="num_completions=2 at temperature=0 would be that many equal"):
            GenerateSamplesCallback(threads, view, 0.5, num_completions=2)
        checkpoint = CheckpointCallback(model, "policy", 0.5, force_run_on_exit=True)
        assert checkpoint.plan(4).steps == [2, 4]


REFUSED = {
    "two prefixes": (
        lambda: Plain(0.1, "p", log_key_prefix="q"),
        "behind the frequency stand 'p'; by position it takes",
    ),
    "another order": (lambda: Plain(0.1, "p", True), "behind the frequency stand 'p', True; by position it"),
    "four": (lambda: Plain(0.1, True, "p", "q"), "log_key_prefix, or force_run_on_exit"),
    "a number": (lambda: Plain(0.1, 1), "log_key_prefix=1 is a int; a string is needed"),
    "no flag": (lambda: Plain(0.1, at_start=1), "at_start=1 must be True or False"),
    "last_call": (lambda: with_last_call(1.5), "last_call=1.5 must be a progress from 0 to below 1, or -1 for none"),
    "last_call of True": (lambda: with_last_call(True), "last_call=True must be a progress"),
    "maybe_call": (
        lambda: CallbackRunner([OwnMaybe(0.1)], num_steps=1),
        "OwnMaybe.maybe_call would not be called by a run; override `is_due(previous, current)`",
    ),
    "is_due": (lambda: CallbackRunner([AsyncIsDue(0.1)], num_steps=1), "AsyncIsDue.is_due must not be async"),
    "a decorator's flag": (lambda: callback(0.1, "p", at_end=0)(judged_by_run), "at_end=0 must be True or False"),
    "two functions": (lambda: BaseGrader.from_function("f", judged, async_fn=judged), "async_fn is another name of"),
    "no function": (lambda: BaseGrader.from_function("f"), "grader 'f' needs a function of a thread, got None"),
    "names only": (lambda: StdoutStageNotifier("train", "job7"), "first comes the notifier of the job, then the stage"),
    "swapped": (lambda: StageNotifier(StdoutJobNotifier(), "train"), "stage_name=<descant.notifiers.StdoutJobNotifier"),
    "no notifier": (lambda: StdoutStageNotifier(3, "train"), "job_notifier=3 is a int; a JobNotifier is needed"),
    "a list of loggers": (lambda: CompositeLogger([StdoutLogger()]), "give a list as *loggers"),
    "a constant schedule": (
        lambda: CombinedSchedule(0, CosineScheduler(), 0.5),
        "a=0 must be callable with a",
    ),
    "change_point": (
        lambda: CombinedSchedule(abs, abs, 1.5),
        "change_point=1.5 must be a fraction of the",
    ),
    "change_point of True": (lambda: CombinedSchedule(abs, abs, True), "change_point=True must be a fraction"),
    "lr of True": (lambda: CosineScheduler(lr=True), "lr=True must be a finite number of at least 0"),
    "decay_factor": (lambda: CosineScheduler(decay_factor=0), "decay_factor=0 must be a finite number above 0"),
    "warmup of True": (lambda: CosineScheduler(warmup_percentage=False), "warmup_percentage=False is a fraction"),
    "num_steps of True": (lambda: CallbackRunner([], num_steps=True), "num_steps=True must be a whole number"),
    "first_step of True": (lambda: CallbackRunner([], 3, first_step=True), "first_step=True must be a whole number"),
    "frequency of True": (lambda: Plain(True), "frequency=True is a bool"),
    "timeout of True": (lambda: Plain(0.1, timeout_s=True), "timeout_s=True must be a number of seconds above 0"),
    "too many": (
        lambda: CallbackRunner([], 3, 4),
        "CallbackRunner takes callbacks, num_steps by position",
    ),
    "too few": (lambda: CallbackRunner([]), "CallbackRunner needs num_steps="),
    "notifier of another name": (lambda: SFT(dataset=[], model=None, job_notifier=1), "did you mean 'stage_notifier'"),
}


async def judged_by_run(run):
    return {}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_says_what_to_write(case):
    make, message = REFUSED[case]
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        make()


NO_NUMBERS = {"num_completions": 1, "limit": 1, "max_gen_len": 1, "temperature": 1, "max_concurrent_samples": 1}


@pytest.mark.parametrize("name", [*NO_NUMBERS, "pass_threshold"])
async def test_true_is_no_number_of_an_evaluation(qwen3_dir, name):
    async with training_model(qwen3_dir) as model:
        with pytest.raises(ConfigurationError, match=f"{name}=True must be"):
            GraderEvalCallback(addition_threads(2), model, ExactMatchGrader(), 0.5, **{name: True})
        with pytest.raises(ConfigurationError, match="top_p=True must be"):
            model.top_p(True)
