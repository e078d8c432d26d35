"""descant's callbacks in the trainers of Transformers and TRL."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from functools import wraps
from pathlib import Path
from typing import Any, cast

from transformers import (
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from descant.arguments import refuse_unknown
from descant.callbacks.base import RecipeCallback
from descant.engine.foreign_module import check_weights_are_whole
from descant.errors import ConfigurationError
from descant.integrations.ranks import Ranks
from descant.integrations.trainer_settings import trainer_settings
from descant.integrations.trainer_tables import TrainerTables
from descant.metrics import Metric, MetricSpec, find_spec
from descant.models.inference import InferenceModel
from descant.models.live_model import live_model
from descant.runner.callback_runner import TRAINING_SPECS, CallbackRunner
from descant.runner.calls import CallbackFailure
from descant.runner.options import RunOptions
from descant.runner.recorder import unused_run_dir
from descant.runner.synchronous import SynchronousRunner

_COUNTERS = ("epoch", "num_tokens", "total_flos", "train_runtime", "train_samples_per_second", "train_steps_per_second")
_EVALUATION_COUNTERS = ("num_tokens", "runtime", "samples_per_second", "steps_per_second")
_SPECS = (
    *(MetricSpec(f"training/{key}", detail=True) for key in _COUNTERS),
    *(MetricSpec(f"eval_*{key}", detail=True) for key in _EVALUATION_COUNTERS),  # of one or several datasets
    MetricSpec("eval_*loss", better="lower"),
)
_Callbacks = Sequence[RecipeCallback] | Callable[[InferenceModel], Sequence[RecipeCallback]]


def add_callbacks(trainer: Trainer, callbacks: _Callbacks, **options: Any) -> AddedCallbacks:
    """Run descant's callbacks inside a trainer of Transformers or TRL, on the model that is being trained there.

    >>> trainer = SFTTrainer(model="path/or/hub-id", train_dataset=dataset)  # doctest: +SKIP
    >>> add_callbacks(trainer, lambda model: [GraderEvalCallback(validation, model, grader, frequency=0.1)])
    ... # doctest: +SKIP

    A step is an update of the optimizer (``state.global_step``), the planned steps are ``state.max_steps``. Callbacks
    see the weights after exactly that many updates. What they return goes to ``state.log_history`` (numbers, with the
    prefix ``eval_`` by which Transformers knows evaluations) and to the trackers that the trainer reports to (numbers
    without details, see ``tracker_detail``, and tables); everything is in the run log. ``request_stop`` ends the
    training; ``request_checkpoint`` makes a checkpoint of the trainer's. Where several processes train
    (DistributedDataParallel), each of them adds the same callbacks: they run in the first, for which the others wait
    after each step.

    Args:
        trainer: not started yet.
        callbacks: a list, or a function that makes it for a model with the live weights of ``trainer.model``.
        options: the options of every run (``run_dir``, ``strict``, ``callback_mode``, ..., see ``RunOptions``; but
            ``seed``, which is the trainer's), and ``training_set``: what the trainer trains on, as
            threads, for ``contamination``. (The trainer's own dataset may be tokens by now.) Calls in flight progress
            after each step for as long as that waits for nothing, and in processes and worker threads; a synchronous
            grader that draws from the global random generators belongs into "inline", since this trainer draws from
            them too.

    Returns:
        The runner and its failures.

    Raises:
        ConfigurationError: callbacks that cannot work; a trainer whose weights are sharded (FSDP, DeepSpeed, tensor
            parallel), whose model is not made yet (``model_init``), that has no tokenizer (``processing_class``), that
            is training already, or that chooses its best model by a metric of the callbacks.
    """
    names = [each.name for each in fields(RunOptions) if each.name not in ("callbacks", "seed")]
    refuse_unknown("add_callbacks", options, [*names, "training_set"])
    if isinstance(callbacks, RecipeCallback):
        raise ConfigurationError(
            f"callbacks={callbacks!r} is a callback; give a list of them, or a function of a model"
        )
    if trainer.is_in_train:
        raise ConfigurationError(
            "the trainer is in train() already, and callbacks are planned when it begins: add them before. (After a "
            "train() that has failed, set trainer.is_in_train = False, which Transformers leaves as it was.)"
        )
    if trainer.model_init is not None:
        raise ConfigurationError(
            "the trainer makes its model anew at every train() (model_init=), so there is none to look at yet; build "
            "it with model="
        )
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        raise ConfigurationError("the weights of this trainer are sharded (FSDP or DeepSpeed): no process has them all")
    check_weights_are_whole(trainer.model)
    if callable(callbacks):
        if trainer.processing_class is None:
            raise ConfigurationError("the trainer has no tokenizer; give it one as processing_class=")
        callbacks = callbacks(live_model(trainer.model, trainer.processing_class))
    added = AddedCallbacks(trainer, callbacks, options)
    trainer.add_callback(added)
    return added


class AddedCallbacks(TrainerCallback):
    """descant's callbacks among those of a trainer, made by ``add_callbacks``; ``runner`` is that of the latest
    ``train()``, None before the first."""

    _is_logging = False  # for all that were added to a trainer: what one of them logs is not the trainer's own

    def __init__(self, trainer: Trainer, callbacks: Sequence[RecipeCallback], options: Mapping[str, Any]) -> None:
        self.runner: CallbackRunner | None = None
        self._trainer = trainer
        self._module = trainer.model
        self._callbacks = callbacks
        self._waiting: SynchronousRunner | None = None
        self._logged: dict[str, int] = {}  # key to the latest step at which the trainer has it
        self._tables = TrainerTables(trainer)
        self._failed_trackers: set[str] = set()
        self._ranks: Ranks | None = None
        options = {"progress_bar": False, **options}
        checked = CallbackRunner(callbacks, num_steps=1, **options)
        checked.check_background()  # what cannot work is refused now
        self._options = {**options, "run_dir": checked.run_dir}  # which is absolute
        _check_best_model(trainer.args, callbacks)
        trainer.train = self._closing(trainer.train)  # type: ignore[method-assign] # there is no event for a failure

    @property
    def failures(self) -> Sequence[CallbackFailure]:
        """The calls that have failed."""
        return self.runner.failures if self.runner else []

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        """Open the run log and make the calls that are due before the first step."""
        if self._trainer.model is not self._module:
            raise ConfigurationError("the trainer has another model than when add_callbacks was called; call it after")
        self._ranks = Ranks()
        if state.is_world_process_zero:
            settings = trainer_settings(self._trainer, given.get("optimizer"), given.get("lr_scheduler"))
            self._open(args, state, control, settings)
        self._agree(control)

    def _open(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, settings: Mapping[str, Any]
    ) -> None:
        self._close(RuntimeError("the training began anew"))  # with another batch size (auto_find_batch_size), say
        name = type(self._trainer).__name__
        options = dict(self._options)
        if options.get("run_dir") is not None:
            options["run_dir"] = unused_run_dir(Path(options["run_dir"]), may_be_there=True)
        self._tables, self._failed_trackers = TrainerTables(self._trainer), set()
        if self._tables.has_trackers:
            options["logger"] = [options.get("logger"), self._tables]
        self.runner = CallbackRunner(
            self._callbacks,
            num_steps=max(state.max_steps, state.global_step),  # a run may be resumed behind its end
            first_step=state.global_step,
            seed=args.seed,
            **options,
            name=name.lower(),
            title=f"{name}: {type(self._trainer.model).__name__}, {state.max_steps:,} steps",
            config=settings,
            metric_specs=(*TRAINING_SPECS, *_SPECS),
            save_checkpoint=lambda _: self._request_save(args, state, control),
        )
        self._logged = {}
        waiting = self.runner.synchronous()
        waiting.__enter__()
        self._waiting = waiting
        self._after_calls(state, control)

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """What the trainer did since the last step (evaluating, saving) is not training time."""
        if self._waiting:
            self._waiting.resume_training_time()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Make the calls that are due after this step."""
        if self._waiting:
            self._waiting.after_step(state.global_step)
            self._after_calls(state, control)
        self._agree(control)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """What the trainer logs goes into the run log too. With the last of it, which comes when the steps are over and
        before the trainer may load the weights of another step, the final calls are made."""
        if not logs or AddedCallbacks._is_logging:
            return
        if self._waiting:
            self._take_log(state, control, logs)
        if "train_runtime" in logs:
            self._agree(control)

    def _take_log(self, state: TrainerState, control: TrainerControl, logs: Mapping[str, Any]) -> None:
        assert self._waiting is not None
        numbers = {key: value for key, value in logs.items() if isinstance(value, int | float)}
        self._waiting.record({k if k.startswith("eval_") else f"training/{k}": number for k, number in numbers.items()})
        if "train_runtime" in logs:
            self._waiting.make_final_calls()
            self._after_calls(state, control)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Close the run log."""
        self._close(None)

    def _agree(self, control: TrainerControl) -> None:
        """The processes of the training end and save at the same step."""
        if self._ranks is not None:
            control.should_training_stop, control.should_save = self._ranks.agree(
                control.should_training_stop, control.should_save
            )

    def _after_calls(self, state: TrainerState, control: TrainerControl) -> None:
        assert self.runner is not None
        if self.runner.should_stop:
            control.should_training_stop = True
        late = self.runner.late_evaluations
        while late:
            self._log(state, control, *late.pop(0))
        step, evaluations = state.global_step, self.runner.evaluations
        new = {key: value for key, value in evaluations.items() if self._logged.get(key) != step}
        self._logged |= dict.fromkeys(new, step)
        self._log(state, control, step, new)
        for tracker, error in self._tables.write().items():
            if tracker not in self._failed_trackers and self._waiting:
                message = f"{tracker}, to which the trainer reports, has not got the tables of step {step}: {error}"
                self._waiting.record_event("tracker_failed", tracker, message, error)
            self._failed_trackers.add(tracker)

    def _log(self, state: TrainerState, control: TrainerControl, step: int, metrics: Mapping[str, Metric]) -> None:
        """Give metrics of a step to the trainer's history and trackers, as ``Trainer.log`` does, which subclasses
        override with what belongs to their training metrics."""
        assert self.runner is not None
        numbers = {f"eval_{key}": value for key, value in metrics.items() if isinstance(value, int | float)}
        sent = {key: numbers[key] for key in numbers if self.runner.is_for_trackers(key.removeprefix("eval_"))}
        if not numbers:
            return
        present, should_log = state.global_step, control.should_log
        epoch = state.epoch if step == present or state.epoch is None else state.epoch * step / present
        state.log_history.append(cast("Any", {**numbers, "epoch": epoch, "step": step}))
        handler = self._trainer.callback_handler
        everyone = handler.callbacks
        handler.callbacks = [each for each in everyone if not isinstance(each, PrinterCallback | ProgressCallback)]
        AddedCallbacks._is_logging, state.global_step = True, step
        try:  # not to those that print: the console has shown it in a line
            if sent:
                handler.on_log(self._trainer.args, state, control, sent)
        finally:  # the trainer's own log is still to come
            handler.callbacks = everyone
            AddedCallbacks._is_logging, state.global_step, control.should_log = False, present, should_log

    def _request_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl) -> Path:
        if state.global_step == 0:
            raise ConfigurationError("trainers of Transformers save after steps, and none has been made")
        control.should_save = True
        return Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"

    def _close(self, error: BaseException | None) -> None:
        waiting, self._waiting = self._waiting, None
        if waiting:
            waiting.close(error)

    def _closing(self, train: Callable[..., Any]) -> Callable[..., Any]:
        """``trainer.train``, which has no event for a failure."""

        @wraps(train)
        def closing_train(*args: Any, **kwargs: Any) -> Any:
            try:
                output = train(*args, **kwargs)
            except BaseException as error:
                self._close(error)
                raise
            if self.runner is not None:
                self.runner.interrupts.raise_received()
            return output

        return closing_train


def _check_best_model(args: TrainingArguments, callbacks: Sequence[RecipeCallback]) -> None:
    key = (args.metric_for_best_model or "").removeprefix("eval_")
    for callback in callbacks:
        if key.startswith(f"{callback.log_key_prefix}/") or find_spec(callback.declared_metrics(), key):
            raise ConfigurationError(
                f"metric_for_best_model={args.metric_for_best_model!r} is what callback {callback.name!r} returns, and "
                "the trainer chooses among its own evaluations only; keep the best weights of this metric with "
                f"BestModelCallback({key!r}), or stop by it with EarlyStoppingCallback({key!r}) of descant"
            )
