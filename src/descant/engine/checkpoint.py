"""Checkpoints: models as directories in Transformers' format, read, written and compared."""

from __future__ import annotations

import shutil
import uuid
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from descant.engine.shared_weights import shape_differences
from descant.errors import ModelLoadError, WeightsError


def read_tokenizer(path: str) -> Any:
    """The tokenizer of a directory or hub id.

    Raises:
        ModelLoadError: it cannot be loaded, with the reason.
    """
    _check_path(path)
    return _from_pretrained(AutoTokenizer, path)


def read_model(path: str, dtype: torch.dtype, attn_implementation: str | None = None) -> Any:
    """The causal language model of a directory or hub id, on the CPU. Code that comes with a model is never run.

    Raises:
        ModelLoadError: it cannot be loaded, or not all of its weights are there.
    """
    _check_path(path)
    options = {} if attn_implementation is None else {"attn_implementation": attn_implementation}
    model, loading = _from_pretrained(AutoModelForCausalLM, path, dtype=dtype, output_loading_info=True, **options)
    for problem in ("missing_keys", "mismatched_keys"):
        if names := sorted(map(str, loading[problem])):
            raise ModelLoadError(
                f"{path!r} is not a whole causal language model: {len(names)} weights of {type(model).__name__} have "
                f"{problem.replace('_', ' ')}, first {names[0]}"
            )
    return model


@torch.no_grad()
def copy_weights(source: nn.Module, target: nn.Module, source_name: str) -> None:
    """Overwrite the weights of ``target`` in place with those of ``source``, all or none.

    Raises:
        WeightsError: names or shapes differ, with what differs; nothing is changed.
    """
    new, old = source.state_dict(), target.state_dict()
    shapes, expected = ({name: tensor.shape for name, tensor in tensors.items()} for tensors in (new, old))
    if differences := shape_differences(expected, shapes):
        raise WeightsError(
            f"the weights of {source_name!r} ({type(source).__name__}) do not fit the model ({type(target).__name__}), "
            "which is as it was:\n  " + "\n  ".join(differences)
        )
    for name, tensor in old.items():
        tensor.copy_(new[name])


def write_model(model: Any, tokenizer: Any, path: Path, max_shard_bytes: int) -> Path:
    """Write a directory, then rename it to ``path``: a kill leaves the old or the new one whole, never a mixture."""
    path = path.absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    written = path.with_name(f".{path.name}-{uuid.uuid4().hex[:8]}")
    had_progress_bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # within the output of the trainer
    try:
        model.save_pretrained(written, max_shard_size=max_shard_bytes)
        tokenizer.save_pretrained(written)
        if path.exists():
            replaced = written.with_name(written.name + "-replaced")
            path.rename(replaced)
            written.rename(path)
            shutil.rmtree(replaced)
        else:
            written.rename(path)
    finally:
        if had_progress_bars:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]
        shutil.rmtree(written, ignore_errors=True)
    return path


def _check_path(name: str) -> None:
    """Refuse a name that can be neither a directory nor a hub id, before Transformers takes it for one of them."""
    path = Path(name)
    if name and path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelLoadError(f"the directory {name!r} has no config.json: it is not a saved model")
        return
    looks_like_a_path = name.startswith((".", "/")) or name.count("/") > 1 or path.exists()
    if looks_like_a_path or not name:
        raise ModelLoadError(
            f"there is no model directory {name!r} (the working directory is {Path.cwd()}); give a directory "
            "that Transformers has saved, or a hub id such as 'Qwen/Qwen3-0.6B'"
        )


def _from_pretrained(auto_class: Any, path: str, **options: Any) -> Any:
    try:
        return auto_class.from_pretrained(path, **options)
    except Exception as error:  # Transformers, safetensors and the hub's client raise all kinds
        where = "the directory" if Path(path).is_dir() else "neither a directory here nor loadable as hub id"
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelLoadError(f"{auto_class.__name__} cannot load {path!r} ({where}): {reason}") from error
