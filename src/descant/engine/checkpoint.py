"""Checkpoints: models as directories in Transformers' format, read and compared."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from descant.engine.model_files import ADAPTER_CONFIG, has_vocabulary
from descant.engine.shared_weights import shape_differences
from descant.errors import ModelLoadError, WeightsError

LOADING = threading.Lock()
"""Held while a model is loaded or made: Transformers exchanges functions of its classes meanwhile, for all threads."""

_IMMATERIAL = re.compile(
    r".*(dtype|token_ids?|dropout.*|drop|pdrop|initializer.*|_name_or_path|version)|architectures|use_cache|id2label"
    r"|label2id|output_.*|return_dict|tie_word_embeddings|max_position_embeddings|task_specific_params|_.*"
)
"""Settings of a configuration that do not decide what given weights compute in evaluation."""


def read_tokenizer(path: str) -> Any:
    """The tokenizer of a directory or hub id.

    Raises:
        ModelLoadError: it cannot be loaded, with the reason.
    """
    _check_path(path)
    is_missing = Path(path).is_dir() and not has_vocabulary(Path(path))
    try:
        tokenizer = _from_pretrained(AutoTokenizer, path)
    except ModelLoadError:
        if not is_missing:
            raise
        tokenizer = None
    if is_missing and (tokenizer is None or type(tokenizer).vocab_files_names):  # Transformers may make an empty one
        raise ModelLoadError(
            f"the directory {path!r} has no tokenizer (such as a tokenizer.json); save it beside the model: "
            "tokenizer.save_pretrained(path)"
        )
    return tokenizer


def read_model(path: str, dtype: torch.dtype, attn_implementation: str | None = None, *, trainable: bool) -> Any:
    """The causal language model of a directory or hub id, on the CPU. Code that comes with a model is never run.

    Raises:
        ModelLoadError: it cannot be loaded, or not all of its weights are there, or they are quantized and shall be
            trained.
    """
    _check_path(path)
    config = _from_pretrained(AutoConfig, path)
    if trainable and (quantization := getattr(config, "quantization_config", None)):
        raise ModelLoadError(
            f"the weights of {path!r} are quantized ({quantization.get('quant_method', 'unknown')}) and "
            "cannot be trained; train a model that is not, or adapters (LoRA) of this one in a trainer of TRL"
        )
    options = {} if attn_implementation is None else {"attn_implementation": attn_implementation}
    model, loading = _from_pretrained(AutoModelForCausalLM, path, dtype=dtype, output_loading_info=True, **options)
    if getattr(model, "_hf_peft_config_loaded", False):
        raise _adapter_error(path, next(iter(model.peft_config.values())).base_model_name_or_path)
    if problem := loading_problem(model, loading, "missing_keys", "mismatched_keys"):
        raise ModelLoadError(f"{path!r} is not a whole causal language model: {problem}")
    return model


def loading_problem(model: nn.Module, loading: Mapping[str, Any], *problems: str) -> str:
    """What Transformers says about how a model was loaded, in words; empty if there are none of these problems."""
    for problem in problems:
        if names := sorted(map(str, loading[problem])):
            return f"{len(names)} weights of {type(model).__name__} have {problem.replace('_', ' ')}, first {names[0]}"
    return ""


@torch.no_grad()
def copy_weights(source: nn.Module, target: nn.Module, source_name: str) -> None:
    """Overwrite the weights of ``target`` in place with those of ``source``, all or none.

    Raises:
        WeightsError: names, shapes or settings of the architecture differ, with what differs; nothing is changed.
    """
    new, old = source.state_dict(), target.state_dict()
    shapes, expected = ({name: tensor.shape for name, tensor in tensors.items()} for tensors in (new, old))
    differences = shape_differences(expected, shapes)
    if differences := differences or _untied(new, old) or _other_settings(source, target):
        raise WeightsError(
            f"the weights of {source_name!r} ({type(source).__name__}) do not fit the model ({type(target).__name__}), "
            "which is as it was:\n  " + "\n  ".join(differences)
        )
    for name, tensor in old.items():
        tensor.copy_(new[name])


def _untied(new: Mapping[str, Tensor], old: Mapping[str, Tensor]) -> list[str]:
    """Which weights are one tensor in the model, and two that differ in what is loaded; empty if none are."""
    first: dict[int, str] = {}
    for name, tensor in old.items():
        tied_to = first.setdefault(tensor.data_ptr(), name)
        if name != tied_to and not torch.equal(new[tied_to], new[name]):
            return [f"{tied_to} and {name} are one tensor in the model and differ there"]
    return []


def _other_settings(source: Any, target: Any) -> list[str]:
    """Which settings have other values, of those that decide what weights compute; empty if none have."""
    new, old = _settings(source.config.to_dict()), _settings(target.config.to_dict())
    differing = sorted(name for name in new.keys() | old.keys() if new.get(name) != old.get(name))
    return [f"{name} is {new.get(name)!r} instead of {old.get(name)!r}" for name in differing]


def _settings(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, dict):
            found |= _settings(value, f"{prefix}{name}.")
        elif not _IMMATERIAL.fullmatch(str(name)):
            found[f"{prefix}{name}"] = value
    return found


def _check_path(name: str) -> None:
    """Refuse a name that can be neither a directory nor a hub id, before Transformers takes it for one of them."""
    path = Path(name)
    if name and path.is_dir():
        if (path / ADAPTER_CONFIG).is_file():
            with suppress(ValueError, AttributeError):  # it is no JSON object
                base = json.loads((path / ADAPTER_CONFIG).read_bytes()).get("base_model_name_or_path")
                raise _adapter_error(name, base)
            raise _adapter_error(name, None)
        if not (path / "config.json").is_file():
            raise ModelLoadError(f"the directory {name!r} has no config.json: it is not a saved model")
        return
    looks_like_a_path = name.startswith((".", "/")) or name.count("/") > 1 or path.exists()
    if looks_like_a_path or not name:
        raise ModelLoadError(
            f"there is no model directory {name!r} (the working directory is {Path.cwd()}); give a directory "
            "that Transformers has saved, or a hub id such as 'Qwen/Qwen3-0.6B'"
        )


def _adapter_error(path: str, base: str | None) -> ModelLoadError:
    base = repr(base) if base else "its base model, which it does not name"
    return ModelLoadError(
        f"{path!r} is an adapter (PEFT, such as LoRA) for {base}, not a model: load both with "
        f"PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained({base}), {path!r}) and give that to "
        "live_model, or make them one model with its merge_and_unload().save_pretrained(...) and save the tokenizer too"
    )


def _from_pretrained(auto_class: Any, path: str, **options: Any) -> Any:
    try:
        with LOADING:
            return auto_class.from_pretrained(path, **options)
    except Exception as error:  # Transformers, safetensors and the hub's client raise all kinds
        where = "the directory" if Path(path).is_dir() else "neither a directory here nor loadable as hub id"
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelLoadError(f"{auto_class.__name__} cannot load {path!r} ({where}): {reason}") from error
