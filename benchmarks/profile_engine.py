"""Shares of torch's operations in the time of a training step and of a validation loss.

python benchmarks/profile_engine.py
"""

from models import encoded, ragged_threads, saved_model

NUM_SHOWN = 8


def weighted(threads):
    from descant.engine.jobs import WeightedSequence

    return tuple(
        WeightedSequence(tuple(row["input_ids"]), tuple(float(label >= 0) for label in row["labels"]))
        for row in encoded(threads)
    )


def shares(work):
    """Operations by their share of the time, with the calls of each."""
    from torch.profiler import ProfilerActivity, profile

    work()  # warm-up
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        work()
    operations = sorted(profiler.key_averages(), key=lambda operation: -operation.self_cpu_time_total)
    total = sum(operation.self_cpu_time_total for operation in operations)
    return [(operation.key, operation.self_cpu_time_total / total, operation.count) for operation in operations]


def main():
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from descant.engine.hf import HFEngine
    from descant.engine.jobs import Accumulate, Logprobs, OptimStep

    path = saved_model("5.2M")
    engine = HFEngine(
        AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path), stop_ids=frozenset(),
        max_batch_tokens=4096, max_cached_tokens=1, trainable=True,
    )  # fmt: skip

    def step():
        engine.run(Accumulate(weighted(ragged_threads(32)), "language_modelling", 0), lambda num_done=0: None)
        engine.run(OptimStep(1e-4, 0.0, 1.0, False), lambda num_done=0: None)

    def evaluation():
        engine.run(Logprobs(weighted(ragged_threads(150))), lambda num_done=0: None)

    for name, work in {"a training step of 32": step, "a validation loss of 150": evaluation}.items():
        print(f"\n| {name} sequences, 5.2M | share | calls |\n|---|---|---|")
        for operation, share, calls in shares(work)[:NUM_SHOWN]:
            print(f"| `{operation.removeprefix('aten::')}` | {share:.0%} | {calls:,} |", flush=True)


if __name__ == "__main__":
    main()
