"""Jobs: what crosses into an engine, as plain data.

A job holds token ids, numbers and names only, never closures or module handles, so that it can be pickled and run
by a thread, another process or a machine. Each job says on which weights it runs. What there are many of is a named
tuple, which is pickled without running Python.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Generic, Literal, NamedTuple, Protocol, TypeVar

from descant.errors import RequestError

if TYPE_CHECKING:  # torch, which whoever makes jobs does not need
    from descant.engine.replication import EngineSpec  # noqa: F401
    from descant.engine.shared_weights import WeightLayout

LIVE = "live"
"""The weights that are being trained, as they are when the job runs."""
REFERENCE = "reference"
"""The weights that the model was spawned with, once they are kept (``KeepReference``)."""

FinishReason = Literal["stop", "stop_string", "length"]
ResultT = TypeVar("ResultT")
YieldPoint = Callable[[], None]
"""Called between decode steps and micro-batches; raises if the job was cancelled."""


class Priority(IntEnum):
    """Which jobs an engine takes first."""

    TRAINING = 0
    EVALUATION = 1


class Job(Generic[ResultT]):
    """Work for an engine; ``ResultT`` is what it returns. ``weights`` is ``LIVE`` where a job does not choose."""

    priority = Priority.EVALUATION
    weights: str = LIVE


class Engine(Protocol):
    """Runs jobs one after another, on the thread that calls it."""

    def run(self, job: Job[ResultT], yield_point: YieldPoint) -> ResultT:
        """The result of the job; calls ``yield_point`` wherever it can be cancelled."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to sample.

    Attributes:
        temperature: 0 is greedy.
        top_p: keeps the smallest set of tokens of that probability.
        max_gen_len: the longest completion, in tokens.
        min_gen_len: no token ends the turn before this many.
        stop_strings: text that ends a completion.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    max_gen_len: int = 2048
    min_gen_len: int = 0
    stop_strings: tuple[str, ...] = ()


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


class WeightedSequence(NamedTuple):
    """Token ids and one weight per token; tokens of weight above 0 are scored or trained."""

    token_ids: tuple[int, ...]
    weights: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Generate(Job[list[GeneratedTokens | RequestError]]):
    """One completion per request, in order."""

    requests: tuple[GenerationRequest, ...]
    sampling: Sampling
    weights: str = LIVE


@dataclass(frozen=True, slots=True)
class Logprobs(Job[list[list[float] | RequestError]]):
    """The log-probability of every weighted token, in nats, one list per sequence."""

    sequences: tuple[WeightedSequence, ...]
    weights: str = LIVE


@dataclass(frozen=True, slots=True)
class Accumulate(Job[list[RequestError | None]]):
    """Add the gradient of a named loss to the step's; returns, per sequence, None or why it was left out.

    ``seed`` is the run's; dropout of micro-batch m of step s draws from (seed, s, m).
    """

    priority = Priority.TRAINING
    sequences: tuple[WeightedSequence, ...]
    loss: Literal["language_modelling"]
    seed: int


@dataclass(frozen=True, slots=True)
class OptimStep(Job[dict[str, float]]):
    """Apply the accumulated gradient, averaged over the step's trained tokens, and return its metrics."""

    priority = Priority.TRAINING
    lr: float
    weight_decay: float
    max_grad_norm: float
    skip_nan_gradients: bool


@dataclass(frozen=True, slots=True)
class DiscardGradient(Job[None]):
    """Forget the accumulated gradient."""

    priority = Priority.TRAINING


@dataclass(frozen=True, slots=True)
class TakeSnapshot(Job[str]):
    """Keep a copy of the live weights and return its identity. Between two updates all snapshots are one copy.

    It goes before evaluation, as training does: it is short, and whoever asks wants the weights as they are now.
    """

    priority = Priority.TRAINING


@dataclass(frozen=True, slots=True)
class ReleaseSnapshot(Job[None]):
    """Give a snapshot back; its memory is freed when all who took it have done so."""

    priority = Priority.TRAINING
    snapshot: str


@dataclass(frozen=True, slots=True)
class DescribeEngine(Job["EngineSpec"]):
    """What an engine elsewhere must know to compute with copies of these weights.

    ``device`` and ``num_threads`` are its own; None for the device of this engine, and the cores that it leaves. If the
    other one has to import the class of the model, it is ``importable``.
    """

    priority = Priority.TRAINING
    device: str | None
    num_threads: int | None
    importable: bool


@dataclass(frozen=True, slots=True)
class ExportWeights(Job[None]):
    """Copy the live weights into a file that other processes map, named by its descriptor."""

    priority = Priority.TRAINING
    fd: int
    layout: WeightLayout


@dataclass(frozen=True, slots=True)
class AttachWeights(Job[None]):
    """Compute with the weights in a file under this name, until they are detached."""

    priority = Priority.TRAINING
    name: str
    fd: int
    layout: WeightLayout


@dataclass(frozen=True, slots=True)
class DetachWeights(Job[bool]):
    """Forget weights that were attached; returns False if a job is in the middle of using them.

    With the priority of an evaluation it comes after that.
    """

    name: str
    priority: Priority = Priority.TRAINING


@dataclass(frozen=True, slots=True)
class UnmapWeights(Job[None]):
    """Let go of a file of weights."""

    priority = Priority.TRAINING
    fd: int


@dataclass(frozen=True, slots=True)
class KeepReference(Job[None]):
    """Keep a copy of the weights that the model was spawned with, as ``REFERENCE``, as long as the engine lives."""

    priority = Priority.TRAINING


@dataclass(frozen=True, slots=True)
class Save(Job[Path]):
    """Write weights and tokenizer in Transformers' format into a directory, atomically.

    ``max_shard_bytes`` is the size of a file of weights; larger models are written as several, with an index.
    """

    path: Path
    max_shard_bytes: int
    weights: str = LIVE


@dataclass(frozen=True, slots=True)
class Load(Job[None]):
    """Replace the live weights by those of a directory or hub id, and begin with a fresh optimizer."""

    priority = Priority.TRAINING
    path: str
