"""Arguments: what a user gives, checked in the same words everywhere."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from inspect import isawaitable, iscoroutine, signature
from math import isfinite
from numbers import Real
from typing import Any, TypeGuard

from descant.errors import ConfigurationError
from descant.text import did_you_mean

_OWN_NAMES = {
    "lr": "learning_rate",
    "epochs": "num_train_epochs num_epochs",
    "dataset train dataset_key": "train_dataset datasets train_file dataset_name dataset_path",
    "validation": "eval_dataset test_datasets val_dataset validation_set",
    "model model_key": "base_model model_name_or_path model_name model_id pretrained_model_name_or_path",
    "samples_per_batch": "per_device_train_batch_size batch_size train_batch_size global_batch_size",
    "max_batch_size": "max_tokens_per_batch",
    "lr_scheduler": "lr_scheduler_type",
    "num_steps": "max_steps",
    "run_dir": "output_dir logging_dir",
    "logger": "report_to",
    "stage_notifier": "job_notifier",
    "max_gen_len": "max_new_tokens max_completion_length eval_max_new_tokens generation_max_length max_tokens",
    "frequency": "eval_steps evals_per_epoch saves_per_epoch save_steps",
    "grader": "compute_metrics reward_funcs reward_func",
    "patience": "early_stopping_patience",
    "max_length": "sequence_len max_seq_length max_seq_len model_max_length",
    "precision": "torch_dtype dtype",
    "num_completions": "num_generations num_return_sequences",
}
"""The names here, and those that Transformers, TRL and axolotl have for the same."""
_BY_CALLBACKS = "are callbacks: callbacks="
_ADVICE = {
    "max_steps": "the number of steps is ceil(epochs * len(dataset) / samples_per_batch): give epochs=, which may be a "
    "fraction, or a slice of the dataset",
    "gradient_accumulation_steps micro_batch_size auto_find_batch_size": "samples_per_batch is the whole step: it is "
    "cut into micro-batches of the model's max_batch_size tokens, which does not change the result",
    "gradient_checkpointing*": "it belongs to the model: ModelBuilder(path, gradient_checkpointing=True)",
    "flash_attention attn_implementation sdp_attention": "it belongs to the model: ModelBuilder(path, "
    "attn_implementation='flash_attention_2')",
    "bf16 fp16 tf32 torch_dtype dtype": "precision belongs to the model: ModelBuilder(path, precision='mixed')",
    "tokenizer* processing_class chat_template* special_tokens model_type": "the model has its own: ModelBuilder(path) "
    "loads both",
    "base_model* model_name* model_id": "the model comes first: model = await ModelBuilder(path).spawn_train('policy')",
    "warmup_* lr_scheduler_kwargs cosine_min_lr_ratio": "CosineScheduler warms up over a tenth of the run; give "
    "another lr_scheduler=",
    "val_set_size test_size": "hold threads out: train, validation = train_validation_split(threads, 0.1), and "
    "evaluate with callbacks=[ValidationLossCallback(validation, model)]",
    "max_new_tokens max_completion_length eval_max_new_tokens generation_*": "callbacks that generate take it as "
    "max_gen_len=",
    "save_* saves_per_epoch": f"checkpoints {_BY_CALLBACKS}[CheckpointCallback(model, 'policy', frequency=0.2)]",
    "metric_for_best_model load_best_model_at_end greater_is_better": "the best weights are kept by a callback: "
    "callbacks=[BestModelCallback(model, 'validation/loss')]",
    "early_stopping_*": "a callback stops early: callbacks=[EarlyStoppingCallback('validation/loss', patience=3)]",
    "eval_* evals_per_epoch evaluation_strategy do_eval per_device_eval_batch_size test_datasets val_dataset "
    "validation_set compute_metrics": f"evaluations {_BY_CALLBACKS}[ValidationLossCallback(validation, model, "
    "frequency=0.1)]",
    "wandb_* use_wandb mlflow_* use_mlflow trackio_* use_tensorboard": "trackers are loggers: logger=get_prod_logger() "
    "takes those that the environment configures, logger=[WandbLogger(...)] those that you name",
    "run_name": "the directory of a run is its name: run_dir='runs/NAME'",
    "logging_* disable_tqdm": "every step is logged; the console shows as many as one can read",
    "max_length sequence_len max_seq_* model_max_length": "the longest thread has max_batch_size tokens: "
    "spawn_train(name, max_batch_size=...)",
    "packing sample_packing pad_to_* group_by_length data_collator dataloader_*": "not needed: micro-batches are cut "
    "where padding costs least",
    "*_only_loss train_on_* train_on_responses_only roles_to_train": "assistant turns are trained, and the weights of "
    "turns say which: docs/data.md",
    "dataset_text_field formatting_func dataset_kwargs dataset_prepared_path field_messages": "rows are read by "
    "load_threads, whose forms are in docs/data.md",
    "peft_* adapter lora_* load_in_?bit quantization_config": "adapters are not trained here yet: TRL trains them, and "
    "add_callbacks(trainer, callbacks) runs these callbacks there",
    "optim optim_* optimizer adam_*": "it trains with AdamW in this version",
    "deepspeed* fsdp* ddp_*": "it trains on one device in this version",
    "resume_from_checkpoint auto_resume_*": "a run is not continued yet; model.load(path) takes the weights of a "
    "checkpoint",
}
"""What to do instead of what Transformers, TRL and axolotl have under these names, where there is no counterpart."""
_NOT_YET = ("checkpoint_restore_data", "checkpoint_frequency", "use_tangents")


def check_whole_number(name: str, value: Any, *, least: int = 1, or_none: bool = False) -> None:
    """Raises ConfigurationError if the value is not a whole number of at least ``least``; a bool is not one.

    None is allowed if ``or_none``.
    """
    if value is None and or_none:
        return
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        alternative = ", or None" if or_none else ""
        raise ConfigurationError(f"{name}={value!r} must be a whole number of at least {least}{alternative}")


def check_flag(name: str, value: Any) -> None:
    """Raises ConfigurationError if the value is not True or False."""
    if not isinstance(value, bool):
        raise ConfigurationError(f"{name}={value!r} must be True or False")


def check_finite_number(name: str, value: Any, *, least: float | None = None, above: float | None = None) -> None:
    """Raises ConfigurationError unless the value is a finite number, of at least ``least``, above ``above``."""
    if not is_finite_number(value) or (least is not None and value < least) or (above is not None and value <= above):
        limit = "" if least is None else f" of at least {least:g}"
        limit += "" if above is None else f" above {above:g}"
        raise ConfigurationError(f"{name}={value!r} must be a finite number{limit}")


def check_text(name: str, value: Any) -> None:
    """Raises ConfigurationError if the value is not text, or empty."""
    if not isinstance(value, str) or not value:
        raise ConfigurationError(f"{name}={value!r} must be a string that is not empty")


def is_finite_number(value: object) -> TypeGuard[float]:
    """Whether the value is a number that a float can hold, neither NaN nor infinite; a bool is not one."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return False
    try:
        return isfinite(value)
    except OverflowError:  # an integer that is too large
        return False


def check_one_of(name: str, value: Any, *, allowed: Sequence[str | None]) -> None:
    """Raises ConfigurationError if the value is not one of those that are allowed."""
    if value not in allowed:
        raise ConfigurationError(f"{name}={value!r} must be one of {', '.join(map(repr, allowed))}")


def argument_names(kind: type) -> list[str]:
    """The arguments of a class's constructors, its bases' too."""
    constructors = [vars(base)["__init__"] for base in kind.__mro__[:-1] if "__init__" in vars(base)]
    parameters = [each for init in constructors for each in list(signature(init).parameters.values())[1:]]
    named = (each.name for each in parameters if each.kind not in (each.VAR_KEYWORD, each.VAR_POSITIONAL))
    return list(dict.fromkeys(named))


def refuse_unknown(function: str, arguments: Iterable[str], known: Sequence[str]) -> None:
    """Raises ConfigurationError for the arguments that are not known, each with the one that was meant, on a line."""
    problems = []
    for name in arguments:
        if name in _NOT_YET and name not in known:
            problems.append(
                f"{function} has no argument {name!r} yet: it belongs to the recipe API and this version does not "
                "support it"
            )
        elif name not in known:
            problems.append(f"{function} has no argument {name!r}; {what_was_meant(name, known, 'arguments')}")
    if problems:
        raise ConfigurationError("\n".join(problems))


def what_was_meant(name: str, known: Iterable[str], kind: str) -> str:
    """What to write in place of a name that is not known: the one that was meant, or how it is done here."""
    known = list(known)
    for own, theirs in _OWN_NAMES.items():
        if name in theirs.split() and (meant := next((each for each in own.split() if each in known), None)):
            return f"did you mean {meant!r}?"
    theirs = next((names for names in _ADVICE if any(fnmatchcase(name, each) for each in names.split())), "")
    return _ADVICE.get(theirs) or did_you_mean(name, known, f"{kind} are {', '.join(known) or 'none'}")


def missing_await(value: object) -> str:
    """The end of a message about a value that is wrong because an ``await`` is missing before it; else nothing."""
    if not isawaitable(value):
        return ""
    if iscoroutine(value):
        value.close()  # else Python says so, too, in other words and at another time
    return f"; {getattr(value, '__qualname__', type(value).__name__)} is async: add await before it"


def as_path(path: str | os.PathLike[str]) -> str:
    """A directory or hub id as it was given, with ``~`` expanded."""
    return os.path.expanduser(os.fspath(path))


def as_model_path(path: str | os.PathLike[str]) -> str:
    """A directory or hub id as ``as_path``; a directory that exists becomes absolute, so that a change of the working
    directory means no other."""
    given = as_path(path)
    return os.path.abspath(given) if given and os.path.isdir(given) else given
