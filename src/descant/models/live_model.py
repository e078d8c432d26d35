"""live_model: a handle on a module that other code trains."""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel

from descant.engine.hf import HFEngine
from descant.engine.jobs import LookAgain, Sampling, SequenceLimits
from descant.engine.score import context_length
from descant.errors import ConfigurationError, ModelLoadError
from descant.models.chat_template import Renderer
from descant.models.generation_config import stop_ids_of, warn_of_settings_not_applied
from descant.models.inference import InferenceModel
from descant.models.workers.worker_thread import WorkerThread


def live_model(
    module: Any,
    tokenizer: Any,
    *,
    name: str = "policy",
    max_batch_size: int = 16_384,
    kv_cache_len: int = 131_072,
    tokens_to_generate: int = 2048,
) -> InferenceModel:
    """A model that generates and scores with the weights of ``module`` as they are at the moment of a call.

    The module is not copied, moved or switched, and keeps its gradients; evaluation mode is set for the time of a call
    and each submodule's own mode restored. It must not be trained while a call runs: for calls of callbacks a
    ``CallbackRunner`` ensures that.

    >>> module = AutoModelForCausalLM.from_pretrained("path/or/hub-id")  # doctest: +SKIP
    >>> model = live_model(module, AutoTokenizer.from_pretrained("path/or/hub-id"))  # doctest: +SKIP

    Args:
        module: a causal language model of Transformers; one that PEFT, DistributedDataParallel or ``torch.compile``
            has wrapped is unwrapped.
        tokenizer: its fast tokenizer, with a chat template, or a processor that has one. It is copied as it is now.
        name: what the model is called in messages.
        max_batch_size: tokens of a batch in scoring, padding included.
        kv_cache_len: tokens that generation may hold in its key-value cache at a time.
        tokens_to_generate: the longest completion, unless a view says otherwise (``max_gen_len``).

    Raises:
        ConfigurationError: something that is not a causal language model of Transformers with its weights.
        ModelLoadError: a tokenizer that is not the model's or has no chat template, or a model that cannot be driven
            (docs/models.md).
    """
    inner = _unwrapped(module)
    adapted = inner if hasattr(inner, "get_base_model") else None
    causal_lm = inner if adapted is None else adapted.get_base_model()
    if not isinstance(causal_lm, PreTrainedModel) or cast("Any", causal_lm).get_output_embeddings() is None:
        raise ConfigurationError(
            f"module is a {type(module).__name__}; a causal language model of Transformers is needed, as "
            "AutoModelForCausalLM loads it"
        )
    if causal_lm.config.is_encoder_decoder:
        raise ConfigurationError(
            f"module is a {type(causal_lm).__name__}, which has an encoder; a causal language model of Transformers is "
            "needed, as AutoModelForCausalLM loads it"
        )
    if adapted is None and hasattr(causal_lm, "peft_config") and not causal_lm._hf_peft_config_loaded:
        raise ConfigurationError("module is the inside of a PeftModel and could not be saved: give the PeftModel")
    renderer = Renderer(_copied(tokenizer), type(causal_lm).__name__)
    renderer.check_fits(causal_lm, stop_ids_of(causal_lm))
    warn_of_settings_not_applied(causal_lm, type(causal_lm).__name__)
    num_threads = torch.get_num_threads()

    def load() -> HFEngine:
        torch.set_num_threads(num_threads)  # a new thread would have torch's default
        return HFEngine(
            causal_lm,
            renderer.tokenizer,
            stop_ids=renderer.stop_ids | stop_ids_of(causal_lm),
            max_batch_tokens=max_batch_size,
            max_cached_tokens=kv_cache_len,
            trainable=False,
            precision="float32" if causal_lm.dtype == torch.float32 else "bfloat16",
            owns_model=False,
            adapted=adapted,
        )

    worker = WorkerThread(name, load)
    worker.wait_until_loaded()
    worker.is_trained_by_others = True
    description = worker.submit(LookAgain()).future.result()
    limits = SequenceLimits(context_length(causal_lm), max_batch_size)
    return InferenceModel(name, description, worker, renderer, Sampling(max_gen_len=tokens_to_generate), limits)


def _copied(tokenizer: Any) -> Any:
    """A tokenizer of our own: what other code sets to pad and truncate, in another thread too, is not set on it."""
    if tokenizer is None:
        raise ConfigurationError("tokenizer=None: give the one that belongs to the module, to render threads")
    inner = getattr(tokenizer, "tokenizer", tokenizer)
    try:
        copied = copy.deepcopy(inner)
    except Exception as error:  # parts that are written in Python; the library raises bare exceptions
        raise ModelLoadError(f"the tokenizer ({type(inner).__name__}) cannot be copied: {error}") from error
    if not getattr(copied, "chat_template", None) and inner is not tokenizer:
        copied.chat_template = getattr(tokenizer, "chat_template", None)
    return copied


def _unwrapped(module: Any) -> Any:
    """The module, or the ``PeftModel`` around it, inside of wrappers that share its weights, however nested."""
    if hasattr(module, "get_base_model"):
        if any(getattr(config, "is_prompt_learning", False) for config in module.peft_config.values()):
            raise ConfigurationError(
                "module has learned prompts (PEFT), which are not part of the model inside; use LoRA"
            )
        return module
    for attribute in ("_orig_mod", "module"):
        if not isinstance(module, PreTrainedModel) and isinstance(inner := getattr(module, attribute, None), nn.Module):
            return _unwrapped(inner)
    return module
