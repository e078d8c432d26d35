"""Builds a small Qwen3 with random weights, a byte-level tokenizer and a chat template, as a model directory.

    python examples/addition/tiny_model.py tiny-qwen3

The directory loads like any other: with descant, with Transformers, by path.
"""

import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedTokenizerFast, Qwen3Config

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte, and three special tokens."""
    vocabulary = {token: index for index, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"],
        chat_template=CHAT_TEMPLATE,
    )


def save_model(path: str | Path, config: PreTrainedConfig, seed: int = 0, vocab_size: int | None = None) -> Path:
    """Save a randomly initialised model of this configuration, with the byte-level tokenizer, to a directory."""
    tokenizer = byte_tokenizer()
    config.vocab_size = vocab_size or len(tokenizer)
    config.bos_token_id = None
    config.eos_token_id, config.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return Path(path)


def save_tiny_qwen3(path: str | Path) -> Path:
    """A Qwen3 of 0.6M parameters, large enough to learn two-digit addition."""
    config = Qwen3Config(
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=512,
        tie_word_embeddings=True,
    )
    return save_model(path, config)


if __name__ == "__main__":
    print(save_tiny_qwen3(sys.argv[1] if len(sys.argv) > 1 else "tiny-qwen3"))
