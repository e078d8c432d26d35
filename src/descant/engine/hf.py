"""HFEngine: a causal language model of Transformers, run job by job."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, TypeVar, cast

import torch

from descant.engine import jobs
from descant.engine.budgets import Budgets
from descant.engine.checkpoint import copy_weights, read_model
from descant.engine.driving import Driving
from descant.engine.engine_spec import EngineSpec, describe_host
from descant.engine.foreign_module import alone, check_weights_are_whole, computation, eagerly
from descant.engine.generate import GenerationSettings, generate
from descant.engine.identity import identity
from descant.engine.model_writer import ModelWriter
from descant.engine.precision import (
    Precision,
    computes_in,
    default_precision,
    device_type,
    module_mode,
    own_products_dtype,
    products_dtype,
    weights_dtype,
)
from descant.engine.probe import find_driving
from descant.engine.score import TokenScorer, context_length, not_finite, refused_sequence, split_by_sequence
from descant.engine.training_step import TrainingStep
from descant.engine.weights import WeightStore
from descant.errors import DescantError, RequestError
from descant.process_state import apply_settings, compute_settings, restored

ResultT = TypeVar("ResultT")


class HFEngine:
    """A model on one device, with its live weights and copies of earlier ones.

    Evaluation jobs put the model into evaluation mode and training jobs into training mode, each for itself. Training
    draws every random number from (run seed, step, micro-batch), so nothing that runs in between can change it.

    Args:
        stop_ids: tokens that end a turn.
        max_batch_tokens: padded tokens of a micro-batch in scoring and training. In training it is also the longest
            sequence; in scoring a longer one gets a batch of its own, so that no result depends on the budget.
        max_cached_tokens: tokens in the key-value cache in generation.
        precision: number formats; the weights are in theirs already.
        owns_model: whether no other code uses the module. If other code trains it, its device, modes and gradients are
            left alone, and its weights and what it computes may change without the engine being told.
        adapted: the ``PeftModel`` around the model, if there is one: it knows what an adapter is saved as.
        spec: the description that the engine is made of, if it has attached weights only.

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
        adapted: Any = None,
        spec: EngineSpec | None = None,
    ) -> None:
        self.precision = precision or default_precision()
        may_move = owns_model and spec is None
        self.model = model.eval().requires_grad_(trainable).to(device_type()) if may_move else model
        self.tokenizer = tokenizer
        self.stop_ids = stop_ids
        self.budgets = Budgets(self.model, Driving(), max_batch_tokens, max_cached_tokens)
        self.writer = ModelWriter(self.model if adapted is None else adapted, tokenizer)
        self.weights = WeightStore(self.model, counts_changes=owns_model)
        self.owns_model = owns_model
        self.products = products_dtype(self.precision) if spec is None else spec.products
        self._computation: list[Any] = []
        if spec is not None:
            self._drive(spec.driving)
        elif owns_model:
            self._decide()
        else:
            with self._beside_others():
                pass
        self.training_step: TrainingStep | None = None
        if trainable:
            self.training_step = TrainingStep(
                self.scorer, self.weights, self.budgets, self.precision, gradient_checkpointing=gradient_checkpointing
            )
        self.settings = [read() for read, _ in compute_settings()]
        self.spec = spec

    @classmethod
    def from_spec(cls, spec: EngineSpec) -> HFEngine:
        """An engine that computes as the described one does, with weights that are attached to it."""
        spec.apply_to_thread()
        return cls(
            spec.empty_model(),
            spec.tokenizer,
            stop_ids=spec.stop_ids,
            max_batch_tokens=spec.max_batch_tokens,
            max_cached_tokens=spec.max_cached_tokens,
            trainable=False,
            precision=spec.precision,
            spec=spec,
        )

    @property
    def limits(self) -> jobs.SequenceLimits:
        """The most tokens of a sequence."""
        return jobs.SequenceLimits(context_length(self.model), self.budgets.max_batch_tokens)

    def describe(self) -> str:
        """Architecture, size, device and precision, in a few words."""
        num_parameters = sum(parameter.numel() for parameter in self.model.parameters())
        formats = [str(dtype).removeprefix("torch.") for dtype in (self.model.dtype, self.products) if dtype]
        return (
            f"{type(self.model).__name__}, {num_parameters / 1e6:,.1f}M parameters, {self.model.device.type}, "
            f"{formats[0]}{f' with {formats[1]} products' if formats[1:] else ''}"
            f"{f'; {self.driving}' if self.driving.is_slow else ''}"
        )

    def _settings(self) -> dict[str, Any]:
        return {
            "description": self.describe(),
            **identity(self.model, is_of_main=self.owns_model),
            **({"precision": self.precision} if self.owns_model else {}),
            "max_batch_size": self.budgets.max_batch_tokens,
            "kv_cache_len": self.budgets.max_cached_tokens,
        }

    def run(self, job: jobs.Job[ResultT], yield_point: jobs.YieldPoint) -> ResultT:
        """Run one job to its end, calling ``yield_point`` between decode steps and micro-batches."""
        with self._own_settings(), self._beside_others(), self._own_casts(), self.weights.active(job.weights):
            step = self.training_step if isinstance(job, jobs.Accumulate | jobs.OptimStep) else None
            may_retry = step is None or step.num_micro_batches == 0  # else its gradient would be lost
            while True:
                try:
                    return cast("ResultT", self._dispatch(job, yield_point))
                except torch.OutOfMemoryError as error:
                    if self.budgets.are_halved or not may_retry:
                        raise DescantError(self.budgets.describe_out_of_memory(type(job).__name__)) from error
                self.budgets.halve()  # outside of the except, which holds on to the tensors of the failed pass

    def _dispatch(self, job: jobs.Job[Any], yield_point: jobs.YieldPoint) -> Any:  # noqa: PLR0911, PLR0912
        match job:
            case jobs.Generate():
                return self._generate(job, yield_point)
            case jobs.Logprobs():
                return self._logprobs(job, yield_point)
            case jobs.Accumulate():
                return self._trained().accumulate(job, yield_point)
            case jobs.OptimStep():
                return self._trained().apply(job)
            case jobs.DiscardGradient():
                return self._trained().discard()
            case jobs.TakeSnapshot():
                return self.weights.take_snapshot()
            case jobs.ReleaseSnapshot():
                return self.weights.release_snapshot(job.snapshot)
            case jobs.KeepReference():
                return self.weights.keep_reference()
            case jobs.LookAgain():
                return self.describe()
            case jobs.DescribeModel():
                return self._settings()
            case jobs.DescribeEngine():
                return EngineSpec.of(self, job)
            case jobs.DescribeHost():
                return describe_host(self)
            case jobs.ExportWeights():
                return self.weights.export(job.handle)
            case jobs.AttachWeights():
                return self.weights.attach(job.name, job.handle)
            case jobs.DetachWeights():
                return self.weights.detach(job.name)
            case jobs.Save():
                return self.writer.write(job.path, job.max_shard_bytes)
            case jobs.Load():
                return self._load(job.path)
            case _:
                raise DescantError(f"this engine cannot run a {type(job).__name__}")

    @contextmanager
    def _beside_others(self) -> Iterator[None]:
        """For a job on a module that other code trains, which may have changed it since the last one."""
        if self.owns_model:
            yield
            return
        with alone(self.model), eagerly(self.model):
            self._look_again()
            yield

    def _look_again(self) -> None:
        check_weights_are_whole(self.model)
        if (found := computation(self.model)) != self._computation:
            self._decide()
            self._computation = found

    def _decide(self) -> None:
        """How to drive the model, by what it computes; said if that is slow."""
        before, products = getattr(self, "driving", None), None
        with module_mode(self.model, training=False):
            if not self.owns_model:
                products = self.products = own_products_dtype(self.model)
            elif "flash" in (self.model.config._attn_implementation or ""):
                products = self.products  # kernels that compute in nothing else; float32 tells rounding from errors
            with computes_in(products, self.model.device.type):
                self._drive(find_driving(self.model))
        if self.driving.is_slow and self.driving != before:
            warnings.warn(
                f"{type(self.model).__name__} is driven more slowly than others, since faster ways give other numbers "
                f"than one forward pass on each sequence: {self.driving}",
                stacklevel=2,
            )

    def _drive(self, driving: Driving) -> None:
        self.driving = self.budgets.driving = driving
        self.scorer = TokenScorer(self.model, driving)

    @contextmanager
    def _own_settings(self) -> Iterator[None]:
        """The process-wide settings that the engine was built under: a callback may have changed them since, and
        another number of threads, precision or kernel gives other bits.

        An engine with a spec works while other code of its process does, and so leaves them alone.
        """
        if self.spec is not None:
            self.spec.check_process()
        with restored(compute_settings()) if self.spec is None else nullcontext():
            if self.spec is None:
                apply_settings(compute_settings(), self.settings)
            yield

    @contextmanager
    def _own_casts(self) -> Iterator[None]:
        """The job may run within another one, on other weights or without gradients. (Where nothing is cast, a loop of
        others within ``torch.autocast`` keeps the casts that torch has cached for it.)"""
        if self.products is None:
            yield
            return
        torch.clear_autocast_cache()
        try:
            yield
        finally:
            torch.clear_autocast_cache()

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Evaluation mode and the engine's precision."""
        with module_mode(self.model, training=False), computes_in(self.products, self.model.device.type):
            yield

    def _generate(self, job: jobs.Generate, yield_point: jobs.YieldPoint) -> list[jobs.GeneratedTokens | RequestError]:
        decode = partial(self.tokenizer.decode, clean_up_tokenization_spaces=False)  # as the renderer does
        budgets = self.budgets
        settings = GenerationSettings(self.stop_ids, budgets.max_cached_tokens, budgets.max_batch_tokens, decode)
        with self.evaluating():
            return generate(self.scorer, job.requests, job.sampling, settings, yield_point)

    def _logprobs(self, job: jobs.Logprobs, yield_point: jobs.YieldPoint) -> list[list[float] | RequestError]:
        results: list[Any] = [refused_sequence(self.model, sequence) for sequence in job.sequences]
        num_done = sum(result is not None for result in results)
        with self.evaluating(), torch.no_grad():
            for indices in self.budgets.micro_batches(job.sequences, results):
                yield_point(num_done)
                num_done += len(indices)
                sequences = [job.sequences[index] for index in indices]
                logprobs_N, _ = self.scorer.logprobs(sequences)
                for index, values in zip(indices, split_by_sequence(logprobs_N, sequences), strict=True):
                    results[index] = values.tolist() if values.isfinite().all() else not_finite()
        return results

    def _trained(self) -> TrainingStep:
        if self.training_step is None:
            raise DescantError("this model was spawned for inference; use ModelBuilder.spawn_train to train it")
        return self.training_step

    def _load(self, path: str) -> None:
        copy_weights(read_model(path, weights_dtype(self.precision), trainable=True), self.model, path)
        self.weights.changed()
        if self.training_step is not None:
            self.training_step.restart()
