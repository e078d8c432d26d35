"""Identity: what a model is, as settings of a run: where it comes from, its adapters, and a hash of its weights."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from torch import Tensor, nn

from descant.arguments import as_model_path
from descant.settings import plain

_SAMPLED = 4096  # values of a tensor
_MAX_SAMPLED = 2**22  # of all tensors together
_HASH_LENGTH = 16
_SNAPSHOT = re.compile(r"/snapshots/([0-9a-f]{40})(?=/|$)")  # the cache of the hub's client
_WRAPPED = re.compile(r"\.(base_layer|original_module)(?=\.)")  # what PEFT puts around a layer


def identity(module: Any, *, is_of_main: bool = False) -> dict[str, Any]:
    """Where a causal language model of Transformers comes from, its numbers, and what its weights are now.

    Those of the model itself have one hash, which adapters (PEFT) do not change, and each adapter has its own.
    ``is_of_main``: whether it was loaded from the branch that the hub gives without a ``revision``.
    """
    config, adapters = module.config, getattr(module, "peft_config", None) or {}
    path = getattr(config, "_name_or_path", None)
    quantization = getattr(config, "quantization_config", None)
    of_adapters: dict[str, dict[str, Tensor]] = {name: {} for name in adapters}
    of_model: dict[str, Tensor] = {}
    for name, tensor in _saved_tensors(module):
        adapter = next((part for part in name.split(".") if part in of_adapters), None)
        (of_model if adapter is None else of_adapters[adapter])[_WRAPPED.sub("", name)] = tensor
    found = {
        "class": type(module).__name__,
        "path": as_model_path(path) if path else None,
        "revision": getattr(config, "_commit_hash", None) or _commit(path or "", is_of_main),
        "num_parameters": sum(tensor.numel() for tensor in of_model.values() if isinstance(tensor, nn.Parameter)),
        "dtype": str(module.dtype).removeprefix("torch."),
        "attn_implementation": getattr(config, "_attn_implementation", None),
        "gradient_checkpointing": _checkpoints_activations(module),
        "quantization": quantization and plain(_as_dict(quantization)),
        "weights_hash": weights_hash(of_model),
        "adapters": {
            name: {**_settings_of(adapters[name]), "weights_hash": weights_hash(of_adapters[name])} for name in adapters
        },
    }
    return {name: value for name, value in found.items() if value not in (None, {})}


@torch.no_grad()
def weights_hash(tensors: Mapping[str, Tensor]) -> str | None:
    """A hash of the names and shapes of tensors and of up to 4,096 values of each, evenly spaced, as float32.

    So it takes milliseconds also for 70 billion parameters, is the same in float32 and in the number format that the
    weights were saved in, and differs after any update that reaches all weights of a tensor. A change of a few single
    weights it may miss. None if values cannot be read.
    """
    digest = hashlib.sha256()
    num_sampled = max(16, min(_SAMPLED, _MAX_SAMPLED // max(1, len(tensors))))
    try:
        for name in sorted(tensors):
            digest.update(f"{name} {list(tensors[name].shape)}\n".encode())
            digest.update(_sample(tensors[name], num_sampled))
    except (
        RuntimeError,
        NotImplementedError,
        TypeError,
        ValueError,
        AttributeError,
    ):  # on no device, or of a kind of its own
        return None
    return digest.hexdigest()[:_HASH_LENGTH]


def _commit(path: str, is_of_main: bool) -> str | None:
    """The commit on the hub of a model in its client's cache, of which newer versions of Transformers say nothing; None
    if it may be one of several, or is not from there. No network is asked."""
    if found := _SNAPSHOT.search(path):
        return found[1]
    try:
        config = try_to_load_from_cache(path, "config.json")
    except ValueError:  # it is no hub id
        return None
    if not isinstance(config, str) or Path(path).is_dir():
        return None
    snapshot = Path(config).parent
    return snapshot.name if is_of_main or len(list(snapshot.parent.iterdir())) == 1 else None


def _saved_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The parameters and those of the buffers that are saved; the others are made from the configuration."""
    yield from module.named_parameters()
    for prefix, part in module.named_modules():
        for name, buffer in part.named_buffers(prefix, recurse=False):
            if name.rpartition(".")[2] not in part._non_persistent_buffers_set:
                yield name, buffer


def _sample(tensor: Tensor, num_sampled: int) -> bytes:
    if tensor.is_meta:
        raise ValueError("it has no values")
    size = tensor.numel()
    if size > num_sampled:  # by indices, since flattening may copy
        places = torch.arange(num_sampled, device=tensor.device) * size // num_sampled
        tensor = tensor[torch.unravel_index(places, tensor.shape)]
    values = tensor.detach().to(torch.float32 if tensor.is_floating_point() else torch.int64)
    return values.cpu().contiguous().numpy().tobytes()


def _checkpoints_activations(module: Any) -> bool:
    newer = "is_activation_checkpointing"  # the name in newer versions of Transformers
    return bool(getattr(module, newer if hasattr(module, newer) else "is_gradient_checkpointing", False))


def _settings_of(adapter: Any) -> dict[str, Any]:
    """The settings of an adapter that are set."""
    settings: dict[str, Any] = plain(_as_dict(adapter))
    return {name: value for name, value in settings.items() if value not in (None, {}, [])}


def _as_dict(config: Any) -> Mapping[str, Any]:
    return config if isinstance(config, Mapping) else config.to_dict()
