"""A tiny model with random weights, made in a second and without a network."""

from __future__ import annotations

import atexit
import contextlib
import functools
import io
import os
import shutil
import tempfile
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from descant.threads.thread import StringThread

_CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def save_tiny_model(path: str | os.PathLike[str], *, seed: int = 0) -> Path:
    """Save a GPT-2 of two small layers, with a tokenizer of bytes and a chat template; returns its directory.

    It loads like any other model. It has dropout, which shows when something else draws random numbers of training.

    Args:
        path: the directory.
        seed: of the weights.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"],
        chat_template=_CHAT_TEMPLATE,
    )
    special = {"bos_token_id": None, "eos_token_id": fast.eos_token_id, "pad_token_id": fast.pad_token_id}
    config = GPT2Config(vocab_size=len(fast), n_embd=32, n_layer=2, n_head=4, n_positions=512, **special)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = GPT2LMHeadModel(config)
    model.save_pretrained(path)
    fast.save_pretrained(path)
    return Path(path)


@functools.cache
def tiny_model_path() -> Path:
    """A tiny model in a directory that is deleted when the process ends."""
    folder = tempfile.mkdtemp(prefix="descant-testing-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    with contextlib.redirect_stderr(io.StringIO()):  # a bar of one step
        return save_tiny_model(Path(folder) / "model")


def tiny_dataset() -> list[StringThread]:
    """A few short threads."""
    return [StringThread().user(f"{a}+{9 - a}=").assistant(str(9 * a)) for a in range(8)]
