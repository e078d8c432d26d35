"""Validation loss against Transformers' ``Trainer.evaluate``: 600 sequences of 8 to 256 tokens, tokens per second.

descant is timed as ``ValidationLossCallback`` runs it, from text to metrics; the peer on tokens, with the batch size
that is best for it.
"""

import asyncio
import tempfile
import time

from models import SIZES, encoded, padded, ragged_threads, saved_model
from sides import compare, table

NUM_SEQUENCES = 600
BATCH_SIZES = ["4", "8", "16"]


def count_tokens():
    return sum(len(row["input_ids"]) for row in encoded(ragged_threads(NUM_SEQUENCES)))


def descant(_, path):
    from descant import ModelBuilder, ValidationLossCallback

    loop = asyncio.new_event_loop()
    model = loop.run_until_complete(ModelBuilder(path).spawn_train("policy", max_batch_size=4096))
    callback = ValidationLossCallback(ragged_threads(NUM_SEQUENCES), model)
    num_tokens = count_tokens()

    def run(_):
        started_at = time.perf_counter()
        metrics = loop.run_until_complete(callback.callback(0.0))
        return num_tokens / (time.perf_counter() - started_at), metrics["loss"]

    return run


def evaluating_trainer(model, rows, batch_size, **settings):
    """Transformers' ``Trainer`` for the loss of these tokens."""
    from transformers import Trainer, TrainingArguments

    arguments = TrainingArguments(
        output_dir=tempfile.mkdtemp(), per_device_eval_batch_size=batch_size, prediction_loss_only=True,
        report_to="none", disable_tqdm=True, remove_unused_columns=False, **settings,
    )  # fmt: skip
    return Trainer(model=model, args=arguments, eval_dataset=rows, data_collator=padded)


def transformers(_, path):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(path)
    rows, num_tokens = encoded(ragged_threads(NUM_SEQUENCES)), count_tokens()
    trainers = {
        batch_size: evaluating_trainer(model, rows, int(batch_size), use_cpu=True, dataloader_pin_memory=False)
        for batch_size in BATCH_SIZES
    }

    def run(batch_size):
        started_at = time.perf_counter()
        loss = trainers[batch_size].evaluate()["eval_loss"]
        return num_tokens / (time.perf_counter() - started_at), loss

    return run


SIDES = {"descant": descant, "transformers": transformers}


def main():
    print(
        "| model | descant, tokens/s | `Trainer.evaluate` | its batch size | ratio | loss |\n|---|---|---|---|---|---|"
    )
    for size in SIZES:
        medians = compare(__file__, SIDES, size, saved_model(size), BATCH_SIZES)
        best = max(BATCH_SIZES, key=lambda batch_size: medians[batch_size]["transformers"][0])
        (ours, loss), (theirs, _) = medians[best]["descant"], medians[best]["transformers"]
        print(f"| {size} | {ours:,.0f} | {theirs:,.0f} | {best} | {ours / theirs:.2f} × | {loss:.4f} |")


if __name__ == "__main__":
    table(SIDES, SIZES, main)
