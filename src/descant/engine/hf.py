"""HFEngine: a causal language model of Transformers, run job by job."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from descant.engine.batching import plan_batches
from descant.engine.generate import GenerationSettings, generate
from descant.engine.jobs import (
    LIVE,
    Accumulate,
    DiscardGradient,
    Generate,
    GeneratedTokens,
    Job,
    Logprobs,
    OptimStep,
    Save,
    WeightedSequence,
    YieldPoint,
)
from descant.engine.optim import Optimizer
from descant.engine.randomness import PrivateRandomness, draws_random_numbers
from descant.engine.score import TokenScorer
from descant.errors import DescantError, NoTrainedTokensError, RequestError, SequenceTooLongError
from descant.losses.sft import language_modelling
from descant.seeds import derive_seed

ResultT = TypeVar("ResultT")
_SETTINGS: list[tuple[Callable[[], Any], Callable[[Any], Any]]] = [
    (torch.get_num_threads, torch.set_num_threads),
    (torch.get_default_dtype, torch.set_default_dtype),
    (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    (torch.backends.cuda.flash_sdp_enabled, torch.backends.cuda.enable_flash_sdp),
    (torch.backends.cuda.mem_efficient_sdp_enabled, torch.backends.cuda.enable_mem_efficient_sdp),
    (torch.backends.cuda.math_sdp_enabled, torch.backends.cuda.enable_math_sdp),
    (torch.backends.cuda.cudnn_sdp_enabled, torch.backends.cuda.enable_cudnn_sdp),
]
"""Settings of the whole process that change the bits of a computation: how to read and how to write each."""
LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"language_modelling": language_modelling}


class HFEngine:
    """A model on one device: float32 on a CPU; on a GPU float32 weights with bfloat16 autocast.

    Evaluation jobs put the model into evaluation mode and training jobs into training mode, each for itself. Training
    draws every random number from (run seed, step, micro-batch), so nothing that runs in between can change it.

    Args:
        model: a causal language model of Transformers.
        tokenizer: saved beside the weights.
        stop_ids: tokens that end a turn.
        max_batch_tokens: padded tokens of a micro-batch in scoring and training. In training it is also the longest
            sequence; in scoring a longer one gets a batch of its own, so that no result depends on the budget.
        max_cached_tokens: tokens in the key-value cache in generation.
        trainable: build an optimizer.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        stop_ids: frozenset[int],
        max_batch_tokens: int,
        max_cached_tokens: int,
        trainable: bool,
    ) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = model.eval().requires_grad_(trainable).to(self.device)
        self.tokenizer = tokenizer
        self.stop_ids = stop_ids
        self.max_batch_tokens = max_batch_tokens
        self.max_cached_tokens = max_cached_tokens
        self.scorer = TokenScorer(self.model)
        self.optimizer = Optimizer(self.model) if trainable else None
        self.draws_random_numbers = draws_random_numbers(self.model)
        self.settings = [read() for read, _ in _SETTINGS]
        self._start_step()

    def run(self, job: Job[ResultT], yield_point: YieldPoint) -> ResultT:
        """Run one job to its end, calling ``yield_point`` between decode steps and micro-batches."""
        weights = getattr(job, "weights", LIVE)
        if weights != LIVE:
            raise DescantError(f"this engine holds the weights {LIVE!r} only, not {weights!r}")
        with self._own_settings():
            return cast("ResultT", self._dispatch(job, yield_point))

    def _dispatch(self, job: Job[Any], yield_point: YieldPoint) -> Any:
        match job:
            case Generate():
                return self._generate(job, yield_point)
            case Logprobs():
                return self._logprobs(job, yield_point)
            case Accumulate():
                return self._accumulate(job, yield_point)
            case OptimStep():
                return self._optim_step(job)
            case DiscardGradient():
                return self._discard_gradient()
            case Save():
                return self._save(job.path)
            case _:
                raise DescantError(f"this engine cannot run a {type(job).__name__}")

    @contextmanager
    def _own_settings(self) -> Iterator[None]:
        """The process-wide settings that the engine was built under: a callback may have changed them since, and
        another number of threads, precision or kernel gives other bits."""
        found = [read() for read, _ in _SETTINGS]
        for (_, write), own in zip(_SETTINGS, self.settings, strict=True):
            write(own)
        try:
            yield
        finally:
            for (_, write), value in zip(_SETTINGS, found, strict=True):
                write(value)

    def describe(self) -> str:
        """Architecture, size, device and precision, in a few words."""
        num_parameters = sum(parameter.numel() for parameter in self.model.parameters())
        precision = "bfloat16 autocast" if self.device.type == "cuda" else "float32"
        return f"{type(self.model).__name__}, {num_parameters / 1e6:,.1f}M parameters, {self.device.type}, {precision}"

    def _generate(self, job: Generate, yield_point: YieldPoint) -> list[GeneratedTokens | RequestError]:
        decode = partial(self.tokenizer.decode, clean_up_tokenization_spaces=False)  # as the renderer does
        settings = GenerationSettings(self.stop_ids, self.max_cached_tokens, self.max_batch_tokens, decode)
        with _module_mode(self.model, training=False), self._autocast():
            return generate(self.model, job.requests, job.sampling, settings, yield_point)

    def _logprobs(self, job: Logprobs, yield_point: YieldPoint) -> list[list[float] | RequestError]:
        results: list[Any] = [self._refusal(sequence) for sequence in job.sequences]
        with _module_mode(self.model, training=False), self._autocast(), torch.no_grad():
            for indices in self._batches(job.sequences, results):
                yield_point()
                logprobs_N, _ = self.scorer.logprobs([job.sequences[i] for i in indices])
                for index, values in zip(indices, _split(logprobs_N, job.sequences, indices), strict=True):
                    results[index] = values.tolist()
        return results

    def _accumulate(self, job: Accumulate, yield_point: YieldPoint) -> list[RequestError | None]:
        optimizer = self._trainable_optimizer()
        results = [self._refusal(sequence, self.max_batch_tokens) for sequence in job.sequences]
        try:
            for indices in self._batches(job.sequences, results):
                yield_point()
                seed = derive_seed(job.seed, optimizer.num_steps, self.num_micro_batches)
                mode = _module_mode(self.model, training=True)
                with torch.enable_grad(), mode, self._private_randomness(seed):  # it may run within an evaluation job
                    with self._autocast():
                        logprobs_N, weights_N = self.scorer.logprobs([job.sequences[i] for i in indices])
                        loss = LOSSES[job.loss](logprobs_N, weights_N)
                    loss.backward()  # type: ignore[no-untyped-call]
                self.num_micro_batches += 1
                self.loss_sum += float(loss.detach())
                self.weight_sum += float(weights_N.double().sum())
                self.num_tokens += len(weights_N)
                self.num_samples += len(indices)
        except BaseException:  # half a step's gradient must not leak into the next step
            self._discard_gradient()
            raise
        return results

    def _optim_step(self, job: OptimStep) -> dict[str, float]:
        optimizer = self._trainable_optimizer()
        if self.weight_sum == 0:
            raise DescantError("optim_step without a gradient: call a train_... method first")
        metrics = {
            "loss": self.loss_sum / self.weight_sum,
            "num_tokens": self.num_tokens,
            "num_samples": self.num_samples,
        }
        denominator = self.weight_sum
        self._start_step()
        norm, skipped = optimizer.step(
            denominator=denominator,
            lr=job.lr,
            weight_decay=job.weight_decay,
            max_grad_norm=job.max_grad_norm,
            skip_nan_gradients=job.skip_nan_gradients,
        )
        return {**metrics, "grad_norm": norm, "skipped_update": float(skipped)}

    def _discard_gradient(self) -> None:
        self._trainable_optimizer().clear_gradient()
        self._start_step()

    def _start_step(self) -> None:
        """Raw sums over the micro-batches of one step; the mean is taken once, when the step is applied."""
        self.loss_sum = self.weight_sum = 0.0
        self.num_tokens = self.num_samples = self.num_micro_batches = 0

    def _refusal(self, sequence: WeightedSequence, longest: int | None = None) -> RequestError | None:
        """Why a sequence cannot be scored, or trained with at most ``longest`` tokens; None if it can."""
        length = len(sequence.token_ids)
        if not any(sequence.weights):
            return NoTrainedTokensError("no token of the sequence carries weight")
        if longest is not None and length > longest:
            return SequenceTooLongError(
                f"the sequence has {length} tokens, more than max_batch_size={longest} (tokens)"
            )
        context = getattr(self.model.config.get_text_config(), "max_position_embeddings", None) or length
        if length > context:
            return SequenceTooLongError(f"the sequence has {length} tokens; the model's context is {context}")
        return None

    def _batches(self, sequences: Sequence[WeightedSequence], refusals: Sequence[object]) -> list[list[int]]:
        accepted = [index for index, refusal in enumerate(refusals) if refusal is None]
        batches = plan_batches([len(sequences[i].token_ids) for i in accepted], self.max_batch_tokens)
        return [[accepted[i] for i in batch] for batch in batches]

    def _save(self, path: Path) -> Path:
        """Write beside the target, then swap it in: a kill leaves a whole directory, old or new, never a mixture."""
        path = path.absolute()
        path.parent.mkdir(parents=True, exist_ok=True)
        written = path.with_name(f".{path.name}-{uuid.uuid4().hex[:8]}")
        try:
            self.model.save_pretrained(written)
            self.tokenizer.save_pretrained(written)
            if path.exists():
                replaced = written.with_name(written.name + "-replaced")
                path.rename(replaced)
                written.rename(path)
                shutil.rmtree(replaced)
            else:
                written.rename(path)
        finally:
            shutil.rmtree(written, ignore_errors=True)
        return path

    def _trainable_optimizer(self) -> Optimizer:
        if self.optimizer is None:
            raise DescantError("this model was spawned for inference; use ModelBuilder.spawn_train to train it")
        return self.optimizer

    def _private_randomness(self, seed: int) -> AbstractContextManager[Any]:
        if not self.draws_random_numbers:
            return nullcontext()
        return PrivateRandomness(torch.Generator(self.device).manual_seed(seed))

    def _autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast("cuda", torch.bfloat16) if self.device.type == "cuda" else nullcontext()


@contextmanager
def _module_mode(model: nn.Module, *, training: bool) -> Iterator[None]:
    """Training or evaluation mode for one job; each module gets its own mode back, also after a failure."""
    modes = [(module, module.training) for module in model.modules()]
    model.train(training)
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _split(values_N: Tensor, sequences: Sequence[WeightedSequence], indices: Sequence[int]) -> list[Tensor]:
    """Per-token values of a batch, cut into those of each sequence."""
    counts = [sum(weight > 0 for weight in sequences[index].weights) for index in indices]
    return list(torch.split(values_N, counts))
