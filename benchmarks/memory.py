"""Peak memory of scoring 64 sequences of 512 tokens with a vocabulary of 150,000, against full float32 logits."""

import resource
import subprocess
import sys

from models import saved_model

ROWS, LENGTH, VOCABULARY = 64, 512, 150_000


def measure(path):
    """In a process of its own: by how many bytes scoring raises the peak of resident memory."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from descant.engine.hf import HFEngine
    from descant.engine.jobs import Logprobs, WeightedSequence

    engine = HFEngine(
        AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path), stop_ids=frozenset(),
        max_batch_tokens=ROWS * LENGTH, max_cached_tokens=1, trainable=False,
    )  # fmt: skip
    sequence = WeightedSequence(tuple(range(1, LENGTH + 1)), (0.0, *[1.0] * (LENGTH - 1)))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    engine.run(Logprobs((sequence,) * ROWS), lambda num_done=0: None)
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)


def main():
    path = saved_model("0.9M", VOCABULARY)
    logits = 4 * ROWS * LENGTH * VOCABULARY
    print("\n| 64 × 512 tokens, vocabulary 150,000 | peak, GB | full float32 logits, GB | share |\n|---|---|---|---|")
    run = subprocess.run([sys.executable, __file__, path], capture_output=True, text=True, check=True)
    peak = int(run.stdout.split()[-1])
    print(f"| scoring | {peak / 1e9:.2f} | {logits / 1e9:.2f} | 1/{logits / peak:.0f} |")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        measure(sys.argv[1])
    else:
        main()
