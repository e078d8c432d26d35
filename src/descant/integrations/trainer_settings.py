"""What a trainer of Transformers or TRL was given, as settings of a run, under the names that they have in descant."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sized
from dataclasses import fields
from typing import Any

from transformers import PreTrainedModel, Trainer, TrainingArguments

from descant.data.sources import dataset_facts
from descant.engine.identity import identity
from descant.integrations.optimizer_settings import optimizer_settings, scheduler_settings

_IMMATERIAL = re.compile(r"log_.*|logging_.*|hub_.*|push_to_hub|disable_tqdm|report_to|run_name|project|trackio_.*")
"""Arguments that do not change what is trained."""


def trainer_settings(trainer: Trainer, optimizer: Any, scheduler: Any) -> dict[str, Any]:
    """The settings of a trainer whose training begins; of its arguments, under ``arguments``, those that are set.

    ``lr`` and ``weight_decay`` are those of the optimizer, which may be another one than the arguments say.
    """
    args = trainer.args
    settings = {
        "trainer": type(trainer).__name__,
        **optimizer_settings([optimizer]),
        "lr_scheduler": _scheduler_settings(trainer, scheduler),
        "samples_per_batch": args.train_batch_size * args.gradient_accumulation_steps * args.world_size,
        "epochs": None if args.max_steps > 0 else args.num_train_epochs,
        "max_grad_norm": args.max_grad_norm,
        "autocast": "bfloat16" if args.bf16 else "float16" if args.fp16 else None,
        "dataset": _dataset_settings(trainer.train_dataset),
        "validation_set": _dataset_settings(trainer.eval_dataset),
        "model": _model_settings(trainer.model),
        "arguments": _arguments(args),
    }
    return {name: value for name, value in settings.items() if value not in (None, {})}


def _scheduler_settings(trainer: Trainer, scheduler: Any) -> dict[str, Any]:
    if not getattr(trainer, "_created_lr_scheduler", True):  # it was given one
        return scheduler_settings(scheduler)
    args: Any = trainer.args
    kind = getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)
    further: Mapping[str, Any] = args.lr_scheduler_kwargs or {}
    return {"name": kind, "warmup_steps": args.get_warmup_steps(trainer.state.max_steps), **further}


def _model_settings(module: Any) -> dict[str, Any]:
    """Path, revision, adapters and weights, if it is a model of Transformers."""
    inner = module.get_base_model() if hasattr(module, "get_base_model") else module
    return identity(inner) if isinstance(inner, PreTrainedModel) else {"class": type(module).__name__}


def _dataset_settings(dataset: Any) -> dict[str, Any]:
    """How many samples a dataset has, and what it says of itself; of several, each by its name."""
    if dataset is None:
        return {}
    if isinstance(dataset, Mapping):
        return {str(name): _dataset_settings(each) for name, each in dataset.items()}
    size = {"num_samples": len(dataset)} if isinstance(dataset, Sized) else {}
    columns = getattr(dataset, "column_names", None)
    facts = {"columns": list(columns), **dataset_facts(dataset)} if columns else {"class": type(dataset).__name__}
    return {**size, **facts}


def _arguments(args: TrainingArguments) -> dict[str, Any]:
    values = {each.name: getattr(args, each.name) for each in fields(args) if each.init}
    return {
        name: value
        for name, value in values.items()
        if value not in (None, [], {}, "") and not _IMMATERIAL.fullmatch(name)
    }
