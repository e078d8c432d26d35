"""HFEngine: a causal language model of Transformers, run job by job."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from math import isfinite
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from descant.engine.batching import plan_batches
from descant.engine.checkpoint import copy_weights, read_model, write_model
from descant.engine.generate import GenerationSettings, generate
from descant.engine.jobs import (
    Accumulate,
    AttachWeights,
    DescribeEngine,
    DetachWeights,
    DiscardGradient,
    ExportWeights,
    Generate,
    GeneratedTokens,
    Job,
    KeepReference,
    Load,
    Logprobs,
    OptimStep,
    ReleaseSnapshot,
    Save,
    TakeSnapshot,
    UnmapWeights,
    WeightedSequence,
    YieldPoint,
)
from descant.engine.optim import Optimizer
from descant.engine.precision import Precision, computes_in, default_precision, device_type, forget_casts, weights_dtype
from descant.engine.randomness import PrivateRandomness, draws_random_numbers
from descant.engine.replication import EngineSpec, check_importable, check_same_logits, check_same_modules
from descant.engine.score import TokenScorer
from descant.engine.shared_weights import SharedWeights, WeightLayout
from descant.engine.weights import WeightStore
from descant.errors import (
    DescantError,
    ModelLoadError,
    NonFiniteSequenceError,
    NoTrainedTokensError,
    RequestError,
    SequenceTooLongError,
)
from descant.losses.sft import language_modelling
from descant.process_state import NUM_THREADS, compute_settings, num_cores, restored
from descant.seeds import derive_seed

ResultT = TypeVar("ResultT")
LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"language_modelling": language_modelling}
OVERHEAD_TOKENS = {"cpu": 96, "cuda": 1024}
"""What starting a forward and backward pass takes, as tokens: where a micro-batch is worth cutting. Measured on CPUs (a
half or twice as much costs 5 %); on a GPU estimated from kernel launches. It does not change results."""


class HFEngine:
    """A model on one device, with its live weights and copies of earlier ones.

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
        precision: number formats; the weights are in theirs already.
        gradient_checkpointing: compute activations again in the backward pass instead of keeping them.
        owns_model: whether nobody else uses the module. If other code trains it, its device, modes and gradients are
            left alone, and its weights may change without the engine being told.
        replica_of: what the engine repeats, if it has no weights but those that are attached.

    When a GPU is out of memory, both budgets are halved, once, with a warning, and the job begins again.
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
        precision: Precision | None = None,
        gradient_checkpointing: bool = False,
        owns_model: bool = True,
        replica_of: EngineSpec | None = None,
    ) -> None:
        self.precision = precision or default_precision()
        may_move = owns_model and replica_of is None
        self.model = model.eval().requires_grad_(trainable).to(device_type()) if may_move else model
        self.tokenizer = tokenizer
        self.stop_ids = stop_ids
        self.max_batch_tokens = max_batch_tokens
        self.max_sequence_tokens = max_batch_tokens
        self.max_cached_tokens = max_cached_tokens
        self.budgets_are_halved = False
        self.weights = WeightStore(self.model, counts_changes=owns_model)
        with _module_mode(self.model, training=False):
            self.scorer = TokenScorer(self.model, None if replica_of is None else replica_of.head_gives_logits)
        self.optimizer = Optimizer(self.model) if trainable else None
        self.draws_random_numbers = draws_random_numbers(self.model)
        self.randomness: PrivateRandomness | None = None
        """What the training job that runs at present draws from."""
        if gradient_checkpointing:
            self._enable_gradient_checkpointing()
        self.settings = [(read, write, read()) for read, write in compute_settings()]
        self.replica_of = replica_of
        self.files: dict[int, SharedWeights] = {}
        """The files of weights that are mapped, by descriptor."""
        self._start_step()

    @classmethod
    def replica(cls, spec: EngineSpec) -> HFEngine:
        """An engine that computes as another one does, with weights that are attached."""
        spec.apply_to_thread()
        return cls(
            spec.empty_model(),
            spec.tokenizer,
            stop_ids=spec.stop_ids,
            max_batch_tokens=spec.max_batch_tokens,
            max_cached_tokens=spec.max_cached_tokens,
            trainable=False,
            precision=spec.precision,
            replica_of=spec,
        )

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return cast("torch.device", next(self.model.parameters()).device)

    def run(self, job: Job[ResultT], yield_point: YieldPoint) -> ResultT:
        """Run one job to its end, calling ``yield_point`` between decode steps and micro-batches."""
        with self._own_settings(), self.weights.active(job.weights):
            may_retry = not (isinstance(job, Accumulate) and self.num_micro_batches > 0)  # its gradient would be lost
            while True:
                try:
                    return cast("ResultT", self._dispatch(job, yield_point))
                except torch.OutOfMemoryError as error:
                    if self.budgets_are_halved or not may_retry:
                        raise DescantError(self._describe_out_of_memory(job)) from error
                self._halve_budgets()  # outside of the except, which holds on to the tensors of the failed pass

    def _dispatch(self, job: Job[Any], yield_point: YieldPoint) -> Any:  # noqa: PLR0911, PLR0912
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
            case TakeSnapshot():
                return self.weights.take_snapshot()
            case ReleaseSnapshot():
                return self.weights.release_snapshot(job.snapshot)
            case KeepReference():
                return self.weights.keep_reference()
            case DescribeEngine():
                return self._describe_replica(job)
            case ExportWeights():
                return self._mapped(job.fd, job.layout).copy_from(self.model)
            case AttachWeights():
                return self._attach(job)
            case DetachWeights():
                return self.weights.detach(job.name)
            case UnmapWeights():
                self.files.pop(job.fd, None)
                return None
            case Save():
                return write_model(self.model, self.tokenizer, job.path, job.max_shard_bytes)
            case Load():
                return self._load(job.path)
            case _:
                raise DescantError(f"this engine cannot run a {type(job).__name__}")

    @contextmanager
    def _own_settings(self) -> Iterator[None]:
        """The process-wide settings that the engine was built under: a callback may have changed them since, and
        another number of threads, precision or kernel gives other bits.

        A replica works while other code of its process does, and so leaves them alone.
        """
        if self.replica_of is not None:
            self.replica_of.check_process()
        own = self.settings if self.replica_of is None else ()
        with restored(compute_settings()) if own else nullcontext():
            for read, write, value in own:
                if read() != value:
                    write(value)
            forget_casts()  # the job may run within another one, on other weights
            try:
                yield
            finally:
                forget_casts()

    def describe(self) -> str:
        """Architecture, size, device and precision, in a few words."""
        num_parameters = sum(parameter.numel() for parameter in self.model.parameters())
        return (
            f"{type(self.model).__name__}, {num_parameters / 1e6:,.1f}M parameters, {self.device.type}, "
            f"{_PRECISION_NAMES[self.precision]}"
        )

    def _generate(self, job: Generate, yield_point: YieldPoint) -> list[GeneratedTokens | RequestError]:
        decode = partial(self.tokenizer.decode, clean_up_tokenization_spaces=False)  # as the renderer does
        settings = GenerationSettings(self.stop_ids, self.max_cached_tokens, self.max_batch_tokens, decode)
        with _module_mode(self.model, training=False), computes_in(self.precision, self.device.type):
            return generate(self.model, job.requests, job.sampling, settings, yield_point)

    def _logprobs(self, job: Logprobs, yield_point: YieldPoint) -> list[list[float] | RequestError]:
        results: list[Any] = [self._refusal(sequence) for sequence in job.sequences]
        with _module_mode(self.model, training=False), computes_in(self.precision, self.device.type), torch.no_grad():
            for indices in self._batches(job.sequences, results):
                yield_point()
                logprobs_N, _ = self.scorer.logprobs([job.sequences[i] for i in indices])
                for index, values in zip(indices, _split(logprobs_N, job.sequences, indices), strict=True):
                    results[index] = values.tolist() if values.isfinite().all() else _not_finite()
        return results

    def _accumulate(self, job: Accumulate, yield_point: YieldPoint) -> list[RequestError | None]:
        self._trainable_optimizer()
        results = [self._refusal(sequence, self.max_sequence_tokens) for sequence in job.sequences]
        try:
            for indices in self._batches(job.sequences, results):
                yield_point()
                accepted = indices
                while bad := self._accumulate_micro_batch(job, accepted):  # then none of it entered the gradient
                    for index in bad:
                        results[index] = _not_finite()
                    accepted = [index for index in accepted if index not in bad]
        except BaseException:  # half a step's gradient must not leak into the next step
            self._discard_gradient()
            raise
        return results

    def _accumulate_micro_batch(self, job: Accumulate, indices: Sequence[int]) -> Collection[int]:
        """Add the gradient of these sequences, or, if the loss of some is not finite, nothing; returns those."""
        if not indices:
            return ()
        seed = derive_seed(job.seed, self._trainable_optimizer().num_steps, self.num_micro_batches)
        mode = _module_mode(self.model, training=True)
        with torch.enable_grad(), mode, self._private_randomness(seed):  # it may run within an evaluation job
            with computes_in(self.precision, self.device.type):
                logprobs_N, weights_N = self.scorer.logprobs([job.sequences[i] for i in indices])
                loss = LOSSES[job.loss](logprobs_N, weights_N)
            loss_sum = float(loss.detach())
            if not isfinite(loss_sum):
                parts = _split((logprobs_N * weights_N).detach(), job.sequences, indices)
                bad = {index for index, part in zip(indices, parts, strict=True) if not part.isfinite().all()}
                return bad or set(indices)
            loss.backward()  # type: ignore[no-untyped-call]
        self.num_micro_batches += 1
        self.loss_sum += loss_sum
        self.weight_sum += float(weights_N.double().sum())
        self.num_tokens += len(weights_N)
        self.num_samples += len(indices)
        return ()

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
        if not skipped:
            self.weights.changed()
        return {**metrics, "grad_norm": norm, "skipped_update": float(skipped)}

    def _discard_gradient(self) -> None:
        self._trainable_optimizer().clear_gradient()
        self._start_step()

    def _load(self, path: str) -> None:
        copy_weights(read_model(path, weights_dtype(self.precision)), self.model, path)
        self.weights.changed()
        if self.optimizer is not None:
            self.optimizer = Optimizer(self.model)
            self._discard_gradient()

    def _describe_replica(self, job: DescribeEngine) -> EngineSpec:
        if job.importable:
            check_importable(type(self.model))
        settings = [value for _, _, value in self.settings]
        settings[NUM_THREADS] = job.num_threads or max(1, num_cores() - settings[NUM_THREADS])
        spec = EngineSpec(
            model_class=type(self.model),
            config=self.model.config,
            generation_config=self.model.generation_config,
            tokenizer=self.tokenizer,
            layout=WeightLayout.of(self.model),
            stop_ids=self.stop_ids,
            max_batch_tokens=self.max_batch_tokens,
            max_cached_tokens=self.max_cached_tokens,
            precision=self.precision,
            head_gives_logits=self.scorer.head is not None,
            settings=settings,
            device=job.device or str(self.device),
        )
        made = replace(spec, device=str(self.device)).empty_model()
        check_same_modules(made, self.model)
        with _module_mode(self.model, training=False), computes_in(self.precision, self.device.type):
            check_same_logits(made, self.model)
        return spec

    def _mapped(self, fd: int, layout: WeightLayout) -> SharedWeights:
        if fd not in self.files:
            self.files[fd] = SharedWeights(fd, layout)
        return self.files[fd]

    def _attach(self, job: AttachWeights) -> None:
        tensors = self._mapped(job.fd, job.layout).tensors
        if self.device.type != "cpu":
            tensors = {name: tensor.to(self.device) for name, tensor in tensors.items()}
        self.weights.attach(job.name, tensors)

    def _start_step(self) -> None:
        """Raw sums over the micro-batches of one step; the mean is taken once, when the step is applied."""
        self.loss_sum = self.weight_sum = 0.0
        self.num_tokens = self.num_samples = self.num_micro_batches = 0

    def _refusal(self, sequence: WeightedSequence, longest: int | None = None) -> RequestError | None:
        """Why a sequence cannot be scored, or trained with at most ``longest`` tokens; None if it can."""
        length = len(sequence.token_ids)
        vocabulary = self.model.get_input_embeddings().num_embeddings
        if unknown := [token for token in sequence.token_ids if not 0 <= token < vocabulary]:
            return RequestError(f"token {unknown[0]} is not in the model's vocabulary of {vocabulary}")
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
        lengths = [len(sequences[index].token_ids) for index in accepted]
        batches = plan_batches(lengths, self.max_batch_tokens, OVERHEAD_TOKENS[self.device.type])
        return [[accepted[i] for i in batch] for batch in batches]

    def _trainable_optimizer(self) -> Optimizer:
        if self.optimizer is None:
            raise DescantError("this model was spawned for inference; use ModelBuilder.spawn_train to train it")
        return self.optimizer

    def _private_randomness(self, seed: int) -> AbstractContextManager[Any]:
        if not self.draws_random_numbers:
            return nullcontext()
        self.randomness = PrivateRandomness(torch.Generator(self.device).manual_seed(seed))
        return self.randomness

    def _enable_gradient_checkpointing(self) -> None:
        """Layers are computed again with the random numbers of their first pass, and nothing global is touched."""

        def contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
            return nullcontext(), nullcontext() if self.randomness is None else self.randomness.replay()

        options = {"use_reentrant": False, "preserve_rng_state": False, "context_fn": contexts}
        try:
            if hasattr(self.model, "activation_checkpointing_enable"):  # the name since Transformers 5.23
                self.model.activation_checkpointing_enable(activation_checkpointing_kwargs=options)
            else:
                self.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
        except ValueError as error:
            raise ModelLoadError(f"gradient_checkpointing=True: {error}") from error

    def _halve_budgets(self) -> None:
        before = (self.max_batch_tokens, self.max_cached_tokens)
        self.budgets_are_halved = True
        self.max_batch_tokens, self.max_cached_tokens = (max(1, tokens // 2) for tokens in before)
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        warnings.warn(
            f"out of memory on {self.device}: micro-batches now have {self.max_batch_tokens:,} tokens (max_batch_size "
            f"is {before[0]:,}), the key-value cache {self.max_cached_tokens:,} (kv_cache_len is {before[1]:,}); "
            "results are the same up to rounding",
            stacklevel=2,
        )

    def _describe_out_of_memory(self, job: Job[Any]) -> str:
        halved = ", halved already" if self.budgets_are_halved else ""
        return (
            f"{type(job).__name__} is out of memory on {self.device} with {self.max_batch_tokens:,} tokens per "
            f"micro-batch and {self.max_cached_tokens:,} in the key-value cache{halved}; lower max_batch_size or "
            "kv_cache_len, or use gradient_checkpointing=True or precision='bfloat16'"
        )


_PRECISION_NAMES = {"float32": "float32", "mixed": "float32 with bfloat16 products", "bfloat16": "bfloat16"}


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


def _not_finite() -> NonFiniteSequenceError:
    return NonFiniteSequenceError("the log-probabilities of the sequence are not finite")
