"""Models and data of all benchmarks: fixed seeds, nothing downloaded."""

import random
import sys
import tempfile
from pathlib import Path

from transformers import Qwen3Config

sys.path.insert(0, str(Path(__file__).parent.parent / "examples" / "addition"))
from tiny_model import byte_tokenizer, save_model

from descant import StringThread

VOCABULARY = 1024
TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% if m['role'] == 'assistant' %}<|im_end|>{% endif %}{% endfor %}"
SIZES = {
    "0.9M": {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 3, "num_attention_heads": 4},
    "5.2M": {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 5, "num_attention_heads": 8},
}


def saved_model(size, vocabulary=VOCABULARY):
    """The directory of an untrained Qwen3 with a byte-level tokenizer, whose template only ends assistant turns."""
    config = Qwen3Config(
        **SIZES[size],
        num_key_value_heads=SIZES[size]["num_attention_heads"] // 2,
        head_dim=32,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
    )
    return saved(Path(tempfile.mkdtemp()) / size, config, vocabulary)


def saved(path, config, vocabulary=VOCABULARY):
    """The directory of an untrained model of this configuration, with the same tokenizer."""
    save_model(path, config, vocab_size=vocabulary)
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(path)
    return str(path)


def ragged_threads(count, shortest=8, longest=256):
    """One exchange each, evenly distributed between these lengths in tokens; a quarter is the prompt."""
    numbers = random.Random(0)
    threads = []
    for _ in range(count):
        length = numbers.randint(shortest, longest)
        text = "".join(numbers.choices("abcdefghijklmnopqrstuvwxyz ", k=length - 1))
        threads.append(StringThread().user(text[: length // 4]).assistant(text[length // 4 :]))
    return threads


def encoded(threads):
    """Threads as token ids and labels (-100 where nothing is trained), for other libraries."""
    tokenizer = byte_tokenizer()
    rows = []
    for thread in threads:
        prompt, completion = (tokenizer(turn.content)["input_ids"] for turn in thread.get_turns())
        completion.append(tokenizer.eos_token_id)
        rows.append({"input_ids": prompt + completion, "labels": [-100] * len(prompt) + completion})
    return rows


def padded(rows):
    """A batch of tensors as a data collator makes it: ids, mask and labels, padded on the right."""
    import torch

    longest = max(len(row["input_ids"]) for row in rows)
    batch = {
        "input_ids": torch.zeros(len(rows), longest, dtype=torch.long),
        "attention_mask": torch.zeros(len(rows), longest, dtype=torch.long),
        "labels": torch.full((len(rows), longest), -100),
    }
    for number, row in enumerate(rows):
        length = len(row["input_ids"])
        batch["input_ids"][number, :length] = torch.tensor(row["input_ids"])
        batch["attention_mask"][number, :length] = 1
        batch["labels"][number, :length] = torch.tensor(row["labels"])
    return batch
