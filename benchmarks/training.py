"""SFT against TRL's ``SFTTrainer`` and a bare torch loop: the same steps on the same tokens, samples per second.

Every side makes the same steps of 32 sequences of 8 to 256 tokens in float32 with AdamW, clipping at norm 1; the later
three quarters of each sequence are trained. TRL runs without gradient checkpointing, and is timed without preparing
the data; descant is timed with rendering the text and writing the run log.
"""

import asyncio
import tempfile
import time

from models import SIZES, encoded, padded, ragged_threads, saved_model
from sides import compare, table

BATCH = 32
STEPS = {"0.9M": 10, "5.2M": 4}


def descant(size, path):
    from descant import SFT, ModelBuilder

    threads = ragged_threads(BATCH * STEPS[size])
    loop = asyncio.new_event_loop()
    model = loop.run_until_complete(ModelBuilder(path).spawn_train("policy", max_batch_size=4096))

    def run(_):
        trainer = SFT(dataset=threads, model=model, lr=1e-4, samples_per_batch=BATCH, run_dir=tempfile.mkdtemp())
        started_at = time.perf_counter()
        result = loop.run_until_complete(trainer.run())
        return BATCH * result.num_steps / (time.perf_counter() - started_at), result.num_steps

    return run


def sft_trainer(model, rows, **settings):
    """TRL's trainer for these tokens, without gradient checkpointing and without writing anything."""
    from datasets import Dataset
    from tiny_model import byte_tokenizer
    from trl import SFTConfig, SFTTrainer

    masked = [
        {"input_ids": row["input_ids"], "completion_mask": [int(label >= 0) for label in row["labels"]]} for row in rows
    ]
    config = SFTConfig(
        output_dir=tempfile.mkdtemp(), num_train_epochs=1, learning_rate=1e-4, gradient_checkpointing=False, fp16=False,
        report_to="none", save_strategy="no", disable_tqdm=True, max_length=None, **settings,
    )  # fmt: skip
    return SFTTrainer(
        model=model, args=config, train_dataset=Dataset.from_list(masked), processing_class=byte_tokenizer()
    )


def trl(size, path):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(path)
    rows = encoded(ragged_threads(BATCH * STEPS[size]))

    def run(_):
        trainer = sft_trainer(
            model, rows, per_device_train_batch_size=BATCH, bf16=False, use_cpu=True, dataloader_pin_memory=False
        )
        started_at = time.perf_counter()
        steps = trainer.train().global_step
        return BATCH * steps / (time.perf_counter() - started_at), steps

    return run


def bare_loop(size, path):
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(path).train()
    rows = encoded(ragged_threads(BATCH * STEPS[size]))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.0)

    def run(_):
        started_at = time.perf_counter()
        for start in range(0, len(rows), BATCH):
            model(**padded(rows[start : start + BATCH]), use_cache=False).loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        return len(rows) / (time.perf_counter() - started_at), len(rows) // BATCH

    return run


SIDES = {"descant": descant, "trl": trl, "bare_loop": bare_loop}


def main():
    print("| model | descant, samples/s | TRL `SFTTrainer` | bare torch loop | to TRL | to the bare loop |")
    print("|---|---|---|---|---|---|")
    for size in SIZES:
        medians = compare(__file__, SIDES, size, saved_model(size), ["steps"])["steps"]
        assert {steps for _, steps in medians.values()} == {STEPS[size]}
        ours, theirs, bare = (medians[side][0] for side in SIDES)
        print(f"| {size} | {ours:.0f} | {theirs:.0f} | {bare:.0f} | {ours / theirs:.2f} × | {ours / bare:.2f} × |")


if __name__ == "__main__":
    table(SIDES, SIZES, main)
