"""EngineSpec: what another process must know to compute with copies of a model's weights."""

from __future__ import annotations

import copy
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from descant.engine.precision import Precision
from descant.engine.shared_weights import WeightLayout, named_tensors
from descant.errors import ConfigurationError, DescantError
from descant.process_state import NUM_THREADS, compute_settings


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """An engine without weights, as plain data.

    Attributes:
        model_class, config, generation_config: the module's, from which the same layers are made.
        tokenizer: the model's.
        layout: of its weights.
        stop_ids, max_batch_tokens, max_cached_tokens, precision: the engine's, so that batches and bits are the same.
        head_gives_logits: what the engine has found out by looking at its weights.
        settings: values of ``compute_settings``, in order.
        device: where it will compute.
    """

    model_class: type[Any]
    config: Any
    generation_config: Any
    tokenizer: Any
    layout: WeightLayout
    stop_ids: frozenset[int]
    max_batch_tokens: int
    max_cached_tokens: int
    precision: Precision
    head_gives_logits: bool
    settings: Sequence[Any]
    device: str

    def empty_model(self) -> Any:
        """The module with tensors that hold nothing yet.

        Raises:
            ConfigurationError: the layers that the configuration describes are not those of the model.
        """
        with torch.device("meta"):
            model = self.model_class(copy.deepcopy(self.config))
        if differences := self.layout.differences(WeightLayout.of(model)):
            raise ConfigurationError(
                f"{self.model_class.__name__} cannot be evaluated in the background: layers that its configuration "
                f"describes are not those that it has ({differences}), as after adding LoRA; use mode='overlap' or "
                "mode='inline'"
            )
        empty = {p.name: torch.empty(0, dtype=p.dtype, device=self.device) for p in self.layout.places}
        for place in self.layout.places:
            empty[place.name].requires_grad_(place.requires_grad)
        _replace_tensors(model, empty)
        model.generation_config = self.generation_config
        return model.eval()

    def apply_to_process(self) -> None:
        """Compute as the model's own engine does, in all of this process: precision, kernels."""
        for (read, write), value in zip(compute_settings(), self.settings, strict=True):
            if read() != value:
                write(value)

    def apply_to_thread(self) -> None:
        """Use the replica's number of threads on this one."""
        before, own = torch.get_num_threads(), self.settings[NUM_THREADS]
        if before != own:
            torch.set_num_threads(own)
            # What a thread sets is also what new threads of the process begin with: let that be what it was.
            other = threading.Thread(target=torch.set_num_threads, args=(before,))
            other.start()
            other.join()

    def check_process(self) -> None:
        """Raises DescantError if code of others has switched this process to compute otherwise: the numbers would be
        others, and to switch it back would change what the others do."""
        for number, ((read, _), value) in enumerate(zip(compute_settings(), self.settings, strict=True)):
            if number != NUM_THREADS and read() != value:
                raise DescantError(
                    f"a setting of torch for the whole process is {read()} now and was {value} when the run began, so "
                    "the numbers would be others; evaluate in a process of its own (EvaluationPlacement('process'))"
                )


def check_same_modules(made: nn.Module, model: nn.Module) -> None:
    """Raises ConfigurationError if a module that was made from the configuration has other parts than the model."""
    kinds = dict(made.named_modules())
    for name, module in model.named_modules():
        if type(kinds.get(name)) is not type(module):
            raise ConfigurationError(
                f"{type(model).__name__} cannot be evaluated in the background: its part {name!r} is a "
                f"{type(module).__name__}, and its configuration describes a {type(kinds.get(name)).__name__}; use "
                "mode='overlap' or mode='inline'"
            )


@torch.no_grad()
def check_same_logits(made: nn.Module, model: nn.Module) -> None:
    """Raises ConfigurationError if a module that was made from the configuration computes otherwise than the model,
    with the model's own weights: whatever was done to it (mixed precision of accelerate, a replaced forward, hooks).
    """
    live = named_tensors(model)
    for name, tensor in named_tensors(made).items():
        tensor.data = live[name].data
    probe = torch.arange(8, device=next(model.parameters()).device).unsqueeze(0)
    expected, found = (module(input_ids=probe, use_cache=False).logits for module in (model, made))
    is_same = torch.equal if probe.device.type == "cpu" else torch.allclose
    if not is_same(expected, found):
        raise ConfigurationError(
            f"{type(model).__name__} cannot be evaluated in the background: something has changed what it computes "
            "(mixed precision of accelerate, a replaced forward, a hook), which is not known elsewhere; use "
            "mode='overlap' or mode='inline'"
        )


def check_importable(model_class: type[Any]) -> None:
    """Raises ConfigurationError if another process could not find the class."""
    module, name = model_class.__module__, model_class.__qualname__
    if module == "__main__" or "<locals>" in name or module.startswith("transformers_modules"):
        raise ConfigurationError(
            f"{module}.{name} cannot be evaluated in a process of its own, which has to import it: define it in a "
            "module, or use callback_placement=EvaluationPlacement('thread')"
        )


def _replace_tensors(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Put tensors in the place of those with these names, wherever these are tied to."""
    old = named_tensors(model)
    parameters = {id(old[name]): nn.Parameter(new, new.requires_grad) for name, new in tensors.items()}
    buffers = {id(old[name]): new for name, new in tensors.items()}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = parameters[id(parameter)]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = buffers[id(buffer)]
