"""Jobs: what crosses into an engine, as plain data.

A job holds token ids, numbers and names only, never closures, modules or file descriptors, so that it can be pickled
and run by a thread, another process or another machine. Each job says on which weights it runs. Records that come in
large numbers are named tuples, which are pickled without running Python.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, NamedTuple, Protocol, TypeVar

from descant.errors import RequestError

if TYPE_CHECKING:  # they import torch, which code that makes jobs does not need
    from descant.engine.engine_spec import EngineSpec  # noqa: F401
    from descant.engine.shared_weights import WeightLayout

LIVE = "live"
"""The weights that are being trained, as they are when the job runs."""
REFERENCE = "reference"
"""The weights that the model was spawned with, once they are kept (``KeepReference``)."""

FinishReason = Literal["stop", "stop_string", "length"]
LossName = Literal["language_modelling"]
Column = float | tuple[float, ...]  # a number for a sequence, or one for each of its tokens
ResultT = TypeVar("ResultT")


class YieldPoint(Protocol):
    """Called between decode steps and micro-batches, where the worker decides: it returns when the job may continue,
    perhaps after training jobs that have run in between, and raises if the job was cancelled. The engine decides
    nothing of this, so that engines which compute one model together can share each decision.
    """

    def __call__(self, num_done: int = 0) -> None:
        """``num_done``: how many of the job's ``num_items`` have their result, for people who wait."""


class Priority(IntEnum):
    """Which jobs an engine takes first."""

    TRAINING = 0
    EVALUATION = 1


class Job(Generic[ResultT]):
    """Work for an engine; ``ResultT`` is what it returns.

    Training jobs and short ones go first; ``weights`` is ``LIVE`` where a job does not choose.
    """

    priority = Priority.TRAINING
    weights: str = LIVE
    items = ""
    """What it has many of, in a word for people; nothing where it has not."""

    @property
    def num_items(self) -> int:
        """How many of them it has."""
        return 0


class Engine(Protocol):
    """Runs jobs one after another, on the thread that calls it."""

    def run(self, job: Job[ResultT], yield_point: YieldPoint) -> ResultT:
        """The result of the job; calls ``yield_point`` between its decode steps or micro-batches."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to sample."""

    temperature: float = 1.0  # 0 is greedy
    top_p: float = 1.0  # keeps the smallest set of tokens of that probability
    max_gen_len: int = 2048  # the longest completion, in tokens
    min_gen_len: int = 0  # no token ends the turn before this many
    stop_strings: tuple[str, ...] = ()  # text that ends a completion


class GenerationRequest(NamedTuple):
    """A prompt, and the seed of its random numbers: those at position p depend on (seed, p) alone."""

    prompt_ids: tuple[int, ...]
    seed: int


class GeneratedTokens(NamedTuple):
    """What was generated for one request.

    Attributes:
        token_ids: all tokens; with "stop", the last one is the one that ended the turn.
        logprobs: the log-probability of each under the model, in nats, at temperature 1 and without ``top_p``.
        finish_reason: "stop" (end of turn), "stop_string", or "length" (cut off).
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: FinishReason


class SequenceLimits(NamedTuple):
    """The most tokens that one sequence may have.

    Attributes:
        context: that the model can read; very many if its configuration sets no bound.
        max_batch_size: of a micro-batch, and so of a sequence that is trained. (Longer ones are scored on their own.)
    """

    context: int
    max_batch_size: int

    @property
    def trained(self) -> int:
        """Of a sequence that is trained."""
        return min(self)


class WeightedSequence(NamedTuple):
    """Tokens, of which those of weight above 0 are scored or trained; ``columns`` are the other inputs of a loss."""

    token_ids: tuple[int, ...]
    weights: tuple[float, ...]
    columns: Mapping[str, Column] = {}


@dataclass(frozen=True, slots=True)
class Generate(Job[list[GeneratedTokens | RequestError]]):
    """One completion per request, in order."""

    priority = Priority.EVALUATION
    items = "answers"
    requests: tuple[GenerationRequest, ...]
    sampling: Sampling
    weights: str = LIVE

    @property
    def num_items(self) -> int:
        """Completions."""
        return len(self.requests)


@dataclass(frozen=True, slots=True)
class Logprobs(Job[list[list[float] | RequestError]]):
    """The log-probability of every weighted token, in nats, one list per sequence."""

    priority = Priority.EVALUATION
    items = "texts"
    sequences: tuple[WeightedSequence, ...]
    weights: str = LIVE

    @property
    def num_items(self) -> int:
        """Sequences."""
        return len(self.sequences)


@dataclass(frozen=True, slots=True)
class Accumulate(Job[list[RequestError | None]]):
    """Add the gradient of a loss to the step's; returns, per sequence, None or why it was left out.

    All of a step has one loss. ``seed`` is the run's; dropout of micro-batch m of step s draws from (seed, s, m).
    """

    sequences: tuple[WeightedSequence, ...]
    loss: LossName
    seed: int


@dataclass(frozen=True, slots=True)
class OptimStep(Job[dict[str, float]]):
    """Apply the accumulated gradient, divided by the denominator of its loss, and return the step's metrics."""

    lr: float
    weight_decay: float
    max_grad_norm: float
    skip_nan_gradients: bool


@dataclass(frozen=True, slots=True)
class DiscardGradient(Job[None]):
    """Forget the accumulated gradient."""


@dataclass(frozen=True, slots=True)
class TakeSnapshot(Job[str]):
    """Keep a copy of the live weights and return its name. Between two updates all snapshots are one copy."""


@dataclass(frozen=True, slots=True)
class ReleaseSnapshot(Job[None]):
    """Release a snapshot; its memory is freed once it was released as often as it was taken."""

    snapshot: str


@dataclass(frozen=True, slots=True)
class WeightHandle:
    """Memory for one version of the weights, by name: each worker finds it in its own way (``weight_files``)."""

    name: str
    layout: WeightLayout


@dataclass(frozen=True, slots=True)
class LookAgain(Job[str]):
    """Architecture, size, device and precision as they are now; fails if other code, which trains the module, has made
    something of it that cannot be run."""


@dataclass(frozen=True, slots=True)
class DescribeModel(Job[dict[str, Any]]):
    """What the model is, as settings of a run: path, revision, adapters, a hash of the weights, budgets; as it is now,
    and it fails as ``LookAgain``."""

    weights: str = LIVE


@dataclass(frozen=True, slots=True)
class DescribeEngine(Job["EngineSpec"]):
    """A description of the engine, for another one that computes with copies of its weights.

    ``device`` and ``num_threads`` are of the other one; None for the device of this engine and the cores that it
    leaves. ``importable``: whether the other one has to import the class of the model.
    """

    device: str | None
    num_threads: int | None
    importable: bool


@dataclass(frozen=True, slots=True)
class Host:
    """Where an engine computes, and what it leaves there for another one.

    Attributes:
        device: such as "cpu" or "cuda:0".
        num_threads: of torch, on the CPU.
        num_bytes: of the weights.
        spare_device: another accelerator of the same kind, if this process sees one.
        spare_bytes: of its memory that are free.
        num_processes: that train this model together.
    """

    device: str
    num_threads: int
    num_bytes: int
    spare_device: str | None
    spare_bytes: int
    num_processes: int


@dataclass(frozen=True, slots=True)
class DescribeHost(Job[Host]):
    """Where the engine computes."""


@dataclass(frozen=True, slots=True)
class ExportWeights(Job[None]):
    """Copy the live weights into memory that other workers share."""

    handle: WeightHandle


@dataclass(frozen=True, slots=True)
class AttachWeights(Job[None]):
    """Hold the weights in shared memory under a name of their own, until they are detached."""

    name: str
    handle: WeightHandle


@dataclass(frozen=True, slots=True)
class DetachWeights(Job[bool]):
    """Forget weights that were attached; returns False if a job is in the middle of using them."""

    name: str
    priority: Priority = Priority.TRAINING


@dataclass(frozen=True, slots=True)
class KeepReference(Job[None]):
    """Keep a copy of the weights that the model was spawned with, as ``REFERENCE``, as long as the engine lives."""


@dataclass(frozen=True, slots=True)
class Save(Job[Path]):
    """Write weights and tokenizer in Transformers' format into a directory, atomically.

    ``max_shard_bytes`` is the size of a file of weights; larger models are written as several, with an index.
    """

    priority = Priority.EVALUATION
    path: Path
    max_shard_bytes: int
    weights: str = LIVE


@dataclass(frozen=True, slots=True)
class Load(Job[None]):
    """Replace the live weights by those of a directory or hub id, and begin with a fresh optimizer."""

    path: str
