"""EngineSpec: the description of an engine, from which another one is made that computes the same."""

from __future__ import annotations

import copy
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from descant.engine.checkpoint import LOADING
from descant.engine.driving import Driving
from descant.engine.forward import ForwardPass
from descant.engine.jobs import DescribeEngine, Host
from descant.engine.precision import Precision
from descant.engine.shared_weights import WeightLayout, named_tensors
from descant.errors import ConfigurationError, DescantError
from descant.process_state import NUM_THREADS, apply_settings, compute_settings, num_cores

if TYPE_CHECKING:
    from descant.engine.hf import HFEngine


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """An engine without weights, as plain data; an engine made of it computes with the same batches and bits.

    Attributes:
        model_class, config, generation_config, layout: of the module and its weights.
        driving: the result of the engine's probe, which needs weights.
        products: the number format of matrix products, if it is not that of the weights.
        settings: values of ``compute_settings``, in order; the number of threads is the other engine's, as its device.
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
    driving: Driving
    products: torch.dtype | None
    settings: Sequence[Any]
    device: str

    @classmethod
    def of(cls, engine: HFEngine, job: DescribeEngine) -> EngineSpec:
        """The description of an engine; ConfigurationError if another engine would not compute the same."""
        if job.importable:
            _check_importable(type(engine.model))
        settings = list(engine.settings)
        settings[NUM_THREADS] = job.num_threads or max(1, num_cores() - settings[NUM_THREADS])
        spec = cls(
            model_class=type(engine.model),
            config=engine.model.config,
            generation_config=engine.model.generation_config,
            tokenizer=engine.tokenizer,
            layout=WeightLayout.of(engine.model),
            stop_ids=engine.stop_ids,
            max_batch_tokens=engine.budgets.max_batch_tokens,
            max_cached_tokens=engine.budgets.max_cached_tokens,
            precision=engine.precision,
            driving=engine.driving,
            products=engine.products,
            settings=settings,
            device=job.device or str(engine.model.device),
        )
        made = replace(spec, device=str(engine.model.device)).empty_model()
        _check_same_modules(made, engine.model)
        with engine.evaluating():
            _check_same_logits(made, engine.model)
        return spec

    def empty_model(self) -> Any:
        """The module with empty tensors; ConfigurationError if its configuration describes other layers."""
        with LOADING, torch.device("meta"):
            model = self.model_class(copy.deepcopy(self.config))
        if differences := self.layout.differences(WeightLayout.of(model)):
            raise ConfigurationError(
                f"{self.model_class.__name__} cannot be evaluated in the background: layers that its configuration "
                f"describes are not those that it has ({differences}), as after adding LoRA; use mode='overlap' or "
                "mode='inline'"
            )
        tensors = named_tensors(model)
        for entry in self.layout.entries:
            tensor, empty = tensors[entry.name], torch.empty(0, dtype=entry.dtype, device=self.device)
            if isinstance(tensor, nn.Parameter):
                empty = nn.Parameter(empty, entry.requires_grad)
            torch.utils.swap_tensors(tensor, empty)  # type: ignore[no-untyped-call]  # which keeps ties
        model.generation_config = self.generation_config
        return model.eval()

    def apply_to_process(self) -> None:
        """Have all of this process compute with the precision and kernels of the described engine."""
        apply_settings(compute_settings(), self.settings)

    def apply_to_thread(self) -> None:
        """Use the other engine's number of torch threads on this thread."""
        before, own = torch.get_num_threads(), self.settings[NUM_THREADS]
        if before != own:
            torch.set_num_threads(own)
            # New threads of the process begin with the number that was set last: restore it, from another thread.
            other = threading.Thread(target=torch.set_num_threads, args=(before,))
            other.start()
            other.join()

    def check_process(self) -> None:
        """Raises DescantError if other code has changed a setting of this process: the numbers would differ, and to
        restore it would change the numbers of that code."""
        for number, ((read, _), value) in enumerate(zip(compute_settings(), self.settings, strict=True)):
            if number != NUM_THREADS and read() != value:
                raise DescantError(
                    f"a setting of torch for the whole process is {read()} now and was {value} when the run began, so "
                    "the numbers would be others; evaluate in a process of its own (EvaluationPlacement('process'))"
                )


def describe_host(engine: HFEngine) -> Host:
    """Where an engine computes, and whether there is a second accelerator like its own."""
    device, spare, free = engine.model.device, None, 0
    if device.type == "cuda":
        name, others = torch.cuda.get_device_name(device), set(range(torch.cuda.device_count())) - {device.index or 0}
        alike = [index for index in sorted(others) if torch.cuda.get_device_name(index) == name]
        if alike:
            free, spare = max((torch.cuda.mem_get_info(index)[0], f"cuda:{index}") for index in alike)
    is_shared = torch.distributed.is_available() and torch.distributed.is_initialized()
    return Host(
        device=str(device),
        num_threads=engine.settings[NUM_THREADS],
        num_bytes=WeightLayout.of(engine.model).num_bytes,
        spare_device=spare,
        spare_bytes=free,
        num_processes=torch.distributed.get_world_size() if is_shared else 1,
    )


def _check_same_modules(made: nn.Module, model: nn.Module) -> None:
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
def _check_same_logits(made: nn.Module, model: nn.Module) -> None:
    """Raises ConfigurationError if a module that was made from the configuration computes other logits than the model,
    with the model's own weights: because of a replaced forward or a hook.
    """
    live = named_tensors(model)
    for name, tensor in named_tensors(made).items():
        tensor.data = live[name].data
    probe = torch.arange(8, device=next(model.parameters()).device).unsqueeze(0)
    expected, found = (ForwardPass(module)(probe).logits.float() for module in (model, made))
    is_same = torch.equal if probe.device.type == "cpu" else torch.allclose
    if not is_same(expected, found):
        raise ConfigurationError(
            f"{type(model).__name__} cannot be evaluated in the background: something has changed what it computes "
            "(a replaced forward, a hook), and its configuration does not say so; use "
            "mode='overlap' or mode='inline'"
        )


def _check_importable(model_class: type[Any]) -> None:
    """Raises ConfigurationError if another process could not find the class."""
    module, name = model_class.__module__, model_class.__qualname__
    if module == "__main__" or "<locals>" in name or module.startswith("transformers_modules"):
        raise ConfigurationError(
            f"{module}.{name} cannot be evaluated in a process of its own, which has to import it: define it in a "
            "module, or use callback_placement=EvaluationPlacement('thread')"
        )
