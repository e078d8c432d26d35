"""ModelWriter: saves a model as a directory that loads again."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging as transformers_logging

from descant.directories import written_whole
from descant.engine.checkpoint import LOADING, loading_problem
from descant.engine.model_files import ADAPTER_CONFIG, check_is_model
from descant.engine.shared_weights import named_tensors, shape_differences
from descant.errors import SaveError


class ModelWriter:
    """Saves a module with its tokenizer: as Transformers does or, if PEFT has added adapters, the active one as PEFT.

    The first directory is tried before it counts: it is loaded on the meta device, which takes neither its memory nor
    the time to read it, and must give the module's tensors. A later one must have the same names, shapes and settings,
    in files that are whole; if it has others (layers were added, say), it is tried like the first.

    Args:
        module: a model of Transformers, or the ``PeftModel`` around it.
    """

    def __init__(self, module: Any, tokenizer: Any) -> None:
        self._module = module
        self._tokenizer = tokenizer
        self._tried: Mapping[str, Any] | None = None

    def write(self, path: Path, max_shard_bytes: int) -> Path:
        """Replace a directory, whole; returns its absolute path.

        Raises:
            SaveError: it must not be replaced, or cannot be written, or would not load again; it is as it was.
        """
        had_progress_bars = transformers_logging.is_progress_bar_enabled()
        transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # within the output of the trainer
        try:
            with written_whole(path, check_is_model) as written:
                try:
                    self._write(written, max_shard_bytes)
                    self._try(written)
                except (SaveError, OSError, MemoryError):
                    raise
                except Exception as error:  # Transformers, PEFT and safetensors raise all kinds
                    raise SaveError(f"{type(self._module).__name__} cannot be saved: {error}") from error
        finally:
            if had_progress_bars:
                transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]
        return path.absolute()

    def _write(self, written: Path, max_shard_bytes: int) -> None:
        if getattr(self._module, "peft_config", None):
            self._write_adapter(written)
        else:
            self._module.save_pretrained(written, max_shard_size=max_shard_bytes)
        self._tokenizer.save_pretrained(written)

    def _write_adapter(self, written: Path) -> None:
        """The active adapter, under no name, as ``PeftModel.from_pretrained(base, path)`` looks for it."""
        is_native = isinstance(self._module, PreTrainedModel)  # adapters were added with Transformers' add_adapter
        if is_native and not self._module._hf_peft_config_loaded:
            raise SaveError("PEFT has wrapped the model since live_model was called: call it with the PeftModel")
        adapter = _active_adapter(self._module)
        _check_nothing_is_lost(self._module, adapter)
        if is_native:
            self._module.save_pretrained(written)
            return
        self._module.save_pretrained(written, selected_adapters=[adapter])
        if (named := written / adapter).is_dir():
            for file in named.iterdir():
                file.rename(written / file.name)
            named.rmdir()

    def _try(self, written: Path) -> None:
        contents = _contents(written)
        if contents == self._tried:
            return
        is_adapter = (written / ADAPTER_CONFIG).exists()
        if problem := (self._adapter_problem if is_adapter else self._model_problem)(written):
            raise SaveError(
                f"what was saved of {type(self._module).__name__} would not load again, so it does not count: {problem}"
            )
        self._tried = contents

    def _model_problem(self, written: Path) -> str:
        module, kind = self._module, type(self._module)
        known: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(module.config), None)
        auto: Any = AutoModelForCausalLM if kind is known else kind
        options: Any = {}
        if not getattr(module, "is_quantized", False):  # what quantizes cannot load to the meta device
            # Transformers makes this the default of the process for the time of a load; others may compute meanwhile.
            options["dtype"] = torch.get_default_dtype()
            options["device_map"] = "meta" if find_spec("accelerate") else None  # which it needs for that
        with LOADING:
            loaded, info = auto.from_pretrained(written, output_loading_info=True, **options)
        problem = loading_problem(loaded, info, "missing_keys", "mismatched_keys", "unexpected_keys")
        return problem or "; ".join(shape_differences(_shapes(named_tensors(loaded)), _shapes(named_tensors(module))))

    def _adapter_problem(self, written: Path) -> str:
        from peft import PeftModel, get_peft_model_state_dict  # noqa: PLC0415  # there is an adapter, so there is PEFT

        base = self._module if isinstance(self._module, PreTrainedModel) else self._module.get_base_model()
        with LOADING, torch.device("meta"):
            empty = type(base)(copy.deepcopy(base.config))
        with torch.random.fork_rng(devices=[]):  # some adapters are drawn before they are loaded
            loaded = PeftModel.from_pretrained(empty, written, low_cpu_mem_usage=True, torch_device="cpu")
        with safe_open(written / "adapter_model.safetensors", framework="pt") as file:
            saved = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        return "; ".join(shape_differences(_shapes(get_peft_model_state_dict(loaded)), saved))


def _active_adapter(module: Any) -> str:
    active = module.active_adapters() if callable(module.active_adapters) else module.active_adapters
    if len(active) != 1:
        raise SaveError(
            f"{len(active)} adapters of the model are active ({', '.join(active)}), and a directory has one: activate "
            "one with set_adapter, or make one of them with add_weighted_adapter or merge_and_unload"
        )
    name: str = active[0]
    return name


def _check_nothing_is_lost(module: Any, adapter: str) -> None:
    """Raises SaveError if weights are trained that are not part of the adapter: its directory would not have them."""
    from peft import get_peft_model_state_dict  # noqa: PLC0415

    saved = {tensor.data_ptr() for tensor in get_peft_model_state_dict(module, adapter_name=adapter).values()}
    lost = [
        name
        for name, parameter in module.named_parameters()
        if parameter.requires_grad
        and parameter.data_ptr() not in saved
        and module.peft_config.keys().isdisjoint(name.split("."))
    ]
    if lost:
        raise SaveError(
            f"{len(lost)} weights of the base model are trained and would not be saved with the adapter {adapter!r}, "
            f"first {lost[0]}: name their modules in modules_to_save= of the adapter's configuration, or freeze them"
        )


def _contents(directory: Path) -> dict[str, Any]:
    """Everything that decides whether a directory loads but the values; raises if a file of weights is cut off."""
    contents: dict[str, Any] = {}
    for path in directory.iterdir():
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
                contents[path.name] = {name: (part.get_dtype(), part.get_shape()) for name, part in slices.items()}
        elif path.suffix == ".json" and not path.name.startswith("tokenizer"):
            contents[path.name] = path.read_bytes()
    return contents


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}
