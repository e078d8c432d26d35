"""ModelBuilder: from a path or hub id to a model that is ready to train or to generate."""

from __future__ import annotations

import os
from typing import Never, TypeVar, get_args

from descant.arguments import argument_names, as_model_path, check_one_of, refuse_unknown
from descant.engine.checkpoint import read_model, read_tokenizer
from descant.engine.hf import HFEngine
from descant.engine.jobs import Sampling
from descant.engine.precision import Precision, default_precision, weights_dtype
from descant.errors import ConfigurationError
from descant.models.chat_template import Renderer
from descant.models.generation_config import stop_ids_of, warn_of_settings_not_applied
from descant.models.inference import InferenceModel
from descant.models.training import TrainingModel
from descant.models.workers.worker_thread import WorkerThread

ModelT = TypeVar("ModelT", bound=InferenceModel)
_INFERENCE_BATCH_TOKENS = 16_384


class ModelBuilder:
    """The model to load; ``spawn_train`` and ``spawn_inference`` load it.

    >>> model = await ModelBuilder("path/or/hub-id").spawn_train("policy", max_batch_size=4096)  # doctest: +SKIP

    Args:
        path: a directory that Transformers has saved, or the id of a model on the Hugging Face hub. Code that comes
            with a model is never run, nor what pickled weights (``.bin``) would run.
        kv_cache_len: tokens that generation may hold in its key-value cache at a time.
        tokens_to_generate: the longest completion, in tokens, unless a view says otherwise (``max_gen_len``). The
            model's context bounds it too.
        precision: "float32" (the default on a CPU), "mixed" (float32 weights and optimizer, bfloat16 matrix products;
            the default on a GPU), or "bfloat16" (weights and optimizer too: half the memory, but updates smaller than
            1/256 of a weight are rounded away).
        gradient_checkpointing: keep only the inputs of each layer for the backward pass and compute the rest again
            (arXiv:1604.06174): less memory, about a third more time, the same gradient.
        attn_implementation: how Transformers computes attention: "sdpa", "eager", "flash_attention_2", ...; by default
            its own choice for the model.

    Raises:
        ConfigurationError: a budget that is not a whole number of at least 1, an unknown precision, or an argument that
            does not exist, with the one that was meant.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        kv_cache_len: int = 131_072,
        tokens_to_generate: int = 2048,
        *,
        precision: Precision | None = None,
        gradient_checkpointing: bool = False,
        attn_implementation: str | None = None,
        **unknown: Never,
    ) -> None:
        refuse_unknown("ModelBuilder", unknown, argument_names(ModelBuilder))
        self.path = as_model_path(path)
        self.kv_cache_len = _positive("kv_cache_len", kv_cache_len)
        self.tokens_to_generate = _positive("tokens_to_generate", tokens_to_generate)
        check_one_of("precision", precision, allowed=(*get_args(Precision), None))
        self.precision = precision
        self.gradient_checkpointing = gradient_checkpointing
        self.attn_implementation = attn_implementation

    async def spawn_train(self, name: str, max_batch_size: int = 4096) -> TrainingModel:
        """Load the model for training.

        Args:
            name: what the model is called in messages.
            max_batch_size: tokens of a micro-batch, padding included, in training and scoring. It is also the longest
                sequence that can be trained. It bounds memory and does not change results.

        Raises:
            ModelLoadError: no such directory or hub id, no tokenizer or chat template, an adapter (LoRA), quantized
                weights, or not a causal language model that can be driven (docs/models.md).
        """
        return await self._spawn(TrainingModel, name, _positive("max_batch_size", max_batch_size))

    async def spawn_inference(self, name: str) -> InferenceModel:
        """Load the model for generation and scoring only.

        Raises:
            ModelLoadError: as for ``spawn_train``.
        """
        return await self._spawn(InferenceModel, name, _INFERENCE_BATCH_TOKENS)

    async def _spawn(self, kind: type[ModelT], name: str, max_batch_tokens: int) -> ModelT:
        """Load in the thread that will run the engine, off the event loop."""
        parts: list[tuple[HFEngine, Renderer]] = []

        def load() -> HFEngine:
            parts.append(self._load(max_batch_tokens, issubclass(kind, TrainingModel)))
            return parts[0][0]

        worker = WorkerThread(name, load)
        await worker.ready()
        engine, renderer = parts.pop()
        sampling = Sampling(max_gen_len=self.tokens_to_generate)
        return kind(name, engine.describe(), worker, renderer, sampling, engine.limits)

    def _load(self, max_batch_tokens: int, trainable: bool) -> tuple[HFEngine, Renderer]:
        tokenizer = read_tokenizer(self.path)
        renderer = Renderer(tokenizer, self.path)  # before the weights: it is quick to fail
        precision = self.precision or default_precision()
        model = read_model(self.path, weights_dtype(precision), self.attn_implementation, trainable=trainable)
        renderer.check_fits(model, stop_ids_of(model))
        warn_of_settings_not_applied(model, repr(self.path))
        engine = HFEngine(
            model,
            renderer.tokenizer,
            stop_ids=renderer.stop_ids | stop_ids_of(model),
            max_batch_tokens=max_batch_tokens,
            max_cached_tokens=self.kv_cache_len,
            trainable=trainable,
            precision=precision,
            gradient_checkpointing=self.gradient_checkpointing,
        )
        return engine, renderer


def _positive(name: str, value: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigurationError(f"{name}={value!r} must be a whole number of tokens, at least 1")
    return value
