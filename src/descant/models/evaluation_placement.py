"""EvaluationPlacement: the setting that says where background evaluations run, and the workers that it stands for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal, get_args

from descant.arguments import check_whole_number
from descant.errors import ConfigurationError
from descant.models.workers.child_process import ChildProcess
from descant.models.workers.engine_worker import EngineWorker
from descant.models.workers.worker_thread import WorkerThread

if TYPE_CHECKING:
    from descant.engine.engine_spec import EngineSpec

Where = Literal["process", "thread"]


@dataclass(frozen=True, slots=True)
class EvaluationPlacement:
    """Where the mode "background" evaluates copies of the weights.

    Attributes:
        where: "process": one of its own, started once; "thread": a thread of this process.
        device: such as "cuda:1"; by default that of the model.
        num_threads: of torch on the CPU; by default as many as there are cores that training leaves, at least one.
        num_buffers: copies of the weights that may be evaluated at a time; each costs the memory of the weights.

    Raises:
        ConfigurationError: an argument that cannot work.
    """

    where: Where = "process"
    device: str | None = None
    num_threads: int | None = None
    num_buffers: int = 2

    def __post_init__(self) -> None:
        if self.where not in get_args(Where):
            raise ConfigurationError(f"where={self.where!r} must be 'process' or 'thread'")
        if self.device is not None and not isinstance(self.device, str):
            raise ConfigurationError(f"device={self.device!r} must be a name such as 'cpu' or 'cuda:1', or None")
        check_whole_number("num_threads", self.num_threads, or_none=True)
        check_whole_number("num_buffers", self.num_buffers)


def start_evaluation_worker(where: Where, name: str, spec: EngineSpec, files: Iterable[str]) -> EngineWorker:
    """Start a worker with an engine as described, which can attach weights from the named files."""
    if where == "process":
        return ChildProcess(name, spec, files)
    from descant.engine.hf import HFEngine  # noqa: PLC0415 - torch

    return WorkerThread(name, partial(HFEngine.from_spec, spec))
