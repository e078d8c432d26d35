"""Arguments: what a user gives, checked in the same words everywhere."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from inspect import signature
from math import isfinite
from numbers import Real
from typing import Any, TypeGuard

from descant.errors import ConfigurationError
from descant.text import did_you_mean

_OWN_NAMES = {
    "learning_rate": "lr",
    "num_train_epochs": "epochs",
    "train_dataset": "dataset",
    "per_device_train_batch_size": "samples_per_batch",
    "lr_scheduler_type": "lr_scheduler",
    "max_steps": "num_steps",
    "output_dir": "run_dir",
    "report_to": "logger",
    "job_notifier": "stage_notifier",
    "batch_size": "samples_per_batch",
    "train_batch_size": "samples_per_batch",
    "max_new_tokens": "max_gen_len",
    "eval_steps": "frequency",
}
"""The names that arguments of Transformers and TRL have here."""
_MODEL = "the model has its own: ModelBuilder(path) loads both"
_PRECISION = "precision belongs to the model: ModelBuilder(path, precision='mixed')"
_WARMUP = "CosineScheduler warms up over a tenth of the run; give another lr_scheduler="
_EVALUATIONS = "evaluations are callbacks: callbacks=[ValidationLossCallback(validation, model, frequency=0.1)]"
_ADVICE = {
    "max_steps": "the number of steps is ceil(epochs * len(dataset) / samples_per_batch): give epochs=, which may be a "
    "fraction, or a slice of the dataset",
    "gradient_accumulation_steps": "samples_per_batch is the whole step: it is cut into micro-batches of the model's "
    "max_batch_size tokens, which does not change the result",
    "gradient_checkpointing": "it belongs to the model: ModelBuilder(path, gradient_checkpointing=True)",
    "bf16": _PRECISION,
    "fp16": _PRECISION,
    "tokenizer": _MODEL,
    "processing_class": _MODEL,
    "warmup_ratio": _WARMUP,
    "warmup_steps": _WARMUP,
    "eval_dataset": _EVALUATIONS,
    "eval_strategy": _EVALUATIONS,
    "eval_steps": _EVALUATIONS,
    "save_steps": "checkpoints are a callback: callbacks=[CheckpointCallback(model, 'policy', frequency=0.2)]",
    "logging_steps": "every step is logged; the console shows as many as one can read",
    "max_length": "the longest thread has max_batch_size tokens: spawn_train(name, max_batch_size=...)",
    "packing": "not needed: micro-batches are cut where padding costs least",
    "max_new_tokens": "callbacks that generate take it as max_gen_len=",
}
"""What to do for arguments of Transformers and TRL that have no counterpart."""
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
    """Raises ConfigurationError for the first argument that is not known, with the one that was meant."""
    for name in arguments:
        if name not in known:
            if name in _NOT_YET:
                raise ConfigurationError(
                    f"{function} has no argument {name!r} yet: it belongs to the recipe API and this version does not "
                    "support it"
                )
            meant = _OWN_NAMES.get(name, name)
            hint = did_you_mean(meant, known, f"arguments are {', '.join(known)}")
            hint = hint if meant in known else _ADVICE.get(name, hint)
            raise ConfigurationError(f"{function} has no argument {name!r}; {hint}")


def as_path(path: str | os.PathLike[str]) -> str:
    """A directory or hub id as it was given, with ``~`` expanded."""
    return os.path.expanduser(os.fspath(path))


def as_model_path(path: str | os.PathLike[str]) -> str:
    """A directory or hub id as ``as_path``; a directory that exists becomes absolute, so that a change of the working
    directory means no other."""
    given = as_path(path)
    return os.path.abspath(given) if given and os.path.isdir(given) else given
