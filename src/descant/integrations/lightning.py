"""descant's callbacks in the ``Trainer`` of (PyTorch) Lightning."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

try:
    from pytorch_lightning import Callback, LightningModule, Trainer
except ImportError:
    from lightning.pytorch import Callback, LightningModule, Trainer  # type: ignore[no-redef, import-not-found]

from descant.arguments import refuse_unknown
from descant.callbacks.base import RecipeCallback
from descant.engine.foreign_module import check_weights_are_whole
from descant.errors import ConfigurationError
from descant.integrations.optimizer_settings import optimizer_settings, scheduler_settings
from descant.integrations.ranks import Ranks
from descant.runner.callback_runner import CallbackRunner
from descant.runner.calls import CallbackFailure
from descant.runner.options import RunOptions
from descant.runner.recorder import unused_run_dir
from descant.runner.synchronous import SynchronousRunner


def add_callbacks(
    trainer: Trainer,
    callbacks: Callable[[LightningModule], Sequence[RecipeCallback]],
    *,
    num_steps: int | None = None,
    **options: Any,
) -> AddedCallbacks:
    """Run descant's callbacks inside a Lightning trainer, on the model that its ``fit`` trains.

    >>> add_callbacks(  # doctest: +SKIP
    ...     trainer,
    ...     lambda module: [ValidationLossCallback(validation, live_model(module.model, module.tokenizer))],
    ... )

    A step is an update of the optimizer (``trainer.global_step``). What callbacks return goes to the trainer's loggers
    (but for details, see ``tracker_detail``), each value at its step, and with everything else into the run log; what
    the module logs is there under ``training/``, every ``log_every_n_steps``. ``request_stop`` and the first Ctrl-C
    end the training after the step; ``request_checkpoint`` saves ``checkpoint-<step>.ckpt`` in
    ``trainer.default_root_dir``. Where several processes train (``strategy="ddp"``), callbacks run in the first, for
    which the others wait after each step.

    Args:
        trainer: not fitting yet.
        callbacks: makes them for the LightningModule; ``live_model`` of the causal language model in it is what they
            look at.
        num_steps: planned steps, where the trainer does not know (``max_time``, a dataset without a length).
        options: the options of every run (see ``RunOptions``), and ``training_set``.

    Raises:
        ConfigurationError: now an unknown option, and when ``fit`` begins, callbacks that cannot work, weights that are
            sharded (FSDP, DeepSpeed ZeRO-3, tensor parallel), or a training without a planned number of steps.
    """
    names = [each.name for each in fields(RunOptions) if each.name != "callbacks"]
    refuse_unknown("add_callbacks", options, [*names, "training_set"])
    if not callable(callbacks):
        raise ConfigurationError(
            f"callbacks={callbacks!r} must be a function that makes callbacks for the LightningModule"
        )
    added = AddedCallbacks(callbacks, num_steps, options)
    trainer.callbacks.append(added)  # type: ignore[attr-defined] # which a Trainer sets in a helper
    return added


class AddedCallbacks(Callback):
    """descant's callbacks among those of a trainer, made by ``add_callbacks``; ``runner`` is that of the latest
    ``fit``, None before the first."""

    def __init__(
        self,
        make: Callable[[LightningModule], Sequence[RecipeCallback]],
        num_steps: int | None,
        options: Mapping[str, Any],
    ) -> None:
        self.runner: CallbackRunner | None = None
        self._make, self._num_steps, self._options = make, num_steps, options
        self._waiting: SynchronousRunner | None = None
        self._wants_checkpoint = False
        self._step = 0
        self._recorded: dict[str, float] = {}
        self._logged: set[tuple[int, str]] = set()

    @property
    def failures(self) -> Sequence[CallbackFailure]:
        """The calls that have failed."""
        return self.runner.failures if self.runner else []

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the callbacks; what cannot work is refused before a step is made."""
        check_weights_are_whole(pl_module)
        self._ranks, self._step = Ranks(), trainer.global_step
        num_steps = self._planned_steps(trainer)  # which all processes find out together
        if not self._ranks.is_first:
            return
        options = {"progress_bar": False, **self._options}
        if options.get("run_dir") is not None:
            options["run_dir"] = unused_run_dir(Path(options["run_dir"]))
        self.runner = CallbackRunner(
            self._make(pl_module),
            num_steps=max(num_steps, self._step),
            first_step=self._step,
            name=type(pl_module).__name__.lower(),
            title=f"{type(pl_module).__name__}, {num_steps:,} steps",
            config=_settings(trainer, pl_module),
            save_checkpoint=lambda _: self._request_checkpoint(trainer),
            **options,
        )
        self.runner.check_background()
        self._recorded, self._logged = {}, set()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the run log and make the calls that are due before the first step."""
        if self.runner is not None:
            self._waiting = self.runner.synchronous()
            self._waiting.__enter__()
        self._after_calls(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """What the trainer did since the last step (validating, saving) is not training time."""
        if self._waiting:
            self._waiting.resume_training_time()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Make the calls that are due, if this batch has ended a step."""
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        if self._waiting:
            self._waiting.after_step(self._step)
            if self._step % max(trainer.log_every_n_steps, 1) == 0:  # type: ignore[attr-defined] # like callbacks
                self._record(trainer, outputs if isinstance(outputs, Mapping) else {})
        self._after_calls(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """What the module has logged in its own validation goes into the run log."""
        if self._waiting:
            self._record(trainer, {})

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the final calls, and close the run log."""
        if self._waiting:
            self._waiting.make_final_calls()
        self._after_calls(trainer)
        self._close(None)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Raise the Ctrl-C that has ended the training, when the trainer has saved what it saves."""
        if self.runner is not None:
            self.runner.interrupts.raise_received()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Close the run log of a training that has failed."""
        self._close(exception)

    def _planned_steps(self, trainer: Trainer) -> int:
        planned = self._num_steps or trainer.estimated_stepping_batches
        if not 0 < planned < float("inf"):
            raise ConfigurationError(
                "the trainer does not know how many steps it will make (max_time=, max_epochs=-1, or a dataset without "
                "a length), and callbacks are planned by that: give it max_steps=, or add_callbacks num_steps="
            )
        return int(planned)

    def _after_calls(self, trainer: Trainer) -> None:
        """Hand on what was returned; all processes stop and save at the same step."""
        if self.runner is not None and self._waiting:
            late, step = self.runner.late_evaluations, trainer.global_step
            for at, metrics in [*late, (step, self.runner.evaluations)]:
                sent = {key: value for key, value in metrics.items() if self.runner.is_for_trackers(key)}
                new = {k: v for k, v in sent.items() if isinstance(v, int | float) and (at, k) not in self._logged}
                self._logged |= {(at, key) for key in new}
                for logger in trainer.loggers if new else ():
                    logger.log_metrics(new, at)
            late.clear()
        should_stop = self.runner is not None and self.runner.should_stop
        should_stop, should_save = self._ranks.agree(should_stop, self._wants_checkpoint)
        trainer.should_stop = trainer.should_stop or should_stop
        self._wants_checkpoint = False
        if should_save:
            trainer.save_checkpoint(self._checkpoint(trainer))

    def _request_checkpoint(self, trainer: Trainer) -> Path:
        self._wants_checkpoint = True
        return self._checkpoint(trainer)

    def _checkpoint(self, trainer: Trainer) -> Path:
        return Path(trainer.default_root_dir) / f"checkpoint-{trainer.global_step}.ckpt"

    def _record(self, trainer: Trainer, outputs: Mapping[str, Any]) -> None:
        """What the module has logged or returned as its loss, where it has changed."""
        assert self._waiting is not None
        logged = {**{key: outputs[key] for key in ("loss",) if key in outputs}, **trainer.callback_metrics}
        values = {f"training/{key}": float(value) for key, value in logged.items()}
        self._waiting.record({key: value for key, value in values.items() if self._recorded.get(key) != value})
        self._recorded |= values

    def _close(self, error: BaseException | None) -> None:
        waiting, self._waiting = self._waiting, None
        if waiting:
            waiting.close(error)


def _settings(trainer: Trainer, module: LightningModule) -> dict[str, Any]:
    """What the trainer and the module were given, as settings of the run."""
    schedulers = [scheduler_settings(config.scheduler) for config in trainer.lr_scheduler_configs]
    norm = trainer.gradient_clip_val if trainer.gradient_clip_algorithm in (None, "norm") else None
    settings = {
        "trainer": type(trainer).__name__,
        "module": type(module).__name__,
        **optimizer_settings(trainer.optimizers),
        "lr_scheduler": schedulers[0] if schedulers else None,
        "epochs": trainer.max_epochs if trainer.max_steps < 0 else None,
        "accumulate_grad_batches": trainer.accumulate_grad_batches,
        "max_grad_norm": norm,
        "precision": trainer.precision,
        "hparams": dict(module.hparams),
    }
    return {name: value for name, value in settings.items() if value not in (None, {})}
