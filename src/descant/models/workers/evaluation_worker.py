"""start_evaluation_worker: the worker of an engine that evaluates copies of weights."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING

from descant.models.evaluation_placement import Where
from descant.models.workers.child_process import ChildProcess
from descant.models.workers.engine_worker import EngineWorker
from descant.models.workers.worker_thread import WorkerThread

if TYPE_CHECKING:
    from descant.engine.engine_spec import EngineSpec


def start_evaluation_worker(where: Where, name: str, spec: EngineSpec, files: Iterable[str]) -> EngineWorker:
    """Start a worker with an engine as described, which can attach weights from the named files.

    Raises:
        ConfigurationError: the engine cannot run there, with why and what to do.
    """
    if where == "process":
        return ChildProcess(name, spec, files)
    from descant.engine.hf import HFEngine  # noqa: PLC0415 - torch

    return WorkerThread(name, partial(HFEngine.from_spec, spec))
