"""Loading a million rows and searching them for contamination: seconds and memory.

python benchmarks/data.py --num-rows 1000000

Each file is read in a process of its own. The baseline, in the same process, is ``json.loads`` of every line.
"""

import argparse
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

FILES = ("prompt.jsonl", "prompt.parquet", "messages.jsonl", "messages.parquet")
CHUNK = 50_000


def rows(shape, start, stop):
    for i in range(start, stop):
        a, b = i, i * 7919 % 1_000_003
        if shape == "prompt":
            yield {"prompt": f"What is {a} + {b}?", "completion": f"{a} + {b} = {a + b}."}
        else:
            yield {
                "messages": [
                    {"role": "system", "content": "You add numbers. Answer with the sum and nothing else."},
                    {"role": "user", "content": f"What is {a} + {b}?"},
                    {"role": "assistant", "content": f"{a} + {b} = {a + b}."},
                ]
            }


def generate(path, num_rows):
    shape = path.stem
    chunks = [(start, min(start + CHUNK, num_rows)) for start in range(0, num_rows, CHUNK)]
    if path.suffix == ".jsonl":
        with path.open("w") as file:
            for start, stop in chunks:
                file.writelines(json.dumps(row) + "\n" for row in rows(shape, start, stop))
        return
    import pyarrow as pa
    import pyarrow.parquet as pq

    writer = None
    for start, stop in chunks:
        table = pa.Table.from_pylist(list(rows(shape, start, stop)))
        writer = writer or pq.ParquetWriter(path, table.schema)
        writer.write_table(table)
    writer.close()


def peak_bytes():
    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def timed(function):
    start = time.perf_counter()
    result = function()
    return result, time.perf_counter() - start


def parse_lines(path):
    with path.open("rb") as file:
        for line in file:
            json.loads(line)


def measure(path):
    from descant.data.contamination import find_contamination
    from descant.data.datasets import load_threads
    from descant.data.split import train_validation_split

    measured = {}
    if path.suffix == ".jsonl":
        measured["json_s"] = timed(lambda: parse_lines(path))[1]
    else:
        import pyarrow.parquet  # noqa: F401  its import is not the reader's time
    before = peak_bytes()
    threads, measured["load_s"] = timed(lambda: load_threads(path))
    measured["bytes_per_row"] = (peak_bytes() - before) / len(threads)
    measured["text_bytes_per_row"] = sum(len(turn.content) for thread in threads for turn in thread.get_turns()) / len(
        threads
    )
    sample = threads[:: max(1, len(threads) // 1000)][:1000]
    reports, measured["contamination_s"] = timed(lambda: find_contamination(threads, {"validation": sample}))
    assert reports[0].num_exact == len(sample)
    measured["split_s"] = timed(lambda: train_validation_split(threads, 0.01))[1]
    print(json.dumps(measured))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num-rows", type=int, default=1_000_000)
    parser.add_argument("--generate", type=Path)
    parser.add_argument("--measure", type=Path)
    arguments = parser.parse_args()
    if arguments.generate:
        return generate(arguments.generate, arguments.num_rows)
    if arguments.measure:
        return measure(arguments.measure)
    print(f"\n{arguments.num_rows:,} rows, {platform.machine()}, Python {platform.python_version()}\n")
    print("| file | load, s | rows/s | `json.loads` of every line, s | memory, bytes/row | its text, bytes/row |")
    print("|---|---|---|---|---|---|", flush=True)
    others = []
    with tempfile.TemporaryDirectory() as folder:
        for name in FILES:
            path = Path(folder) / name
            run("--generate", path, arguments.num_rows)
            measured = json.loads(run("--measure", path, arguments.num_rows))
            path.unlink()
            baseline = f"{measured['json_s']:.1f}" if "json_s" in measured else "–"
            print(
                f"| {name} | {measured['load_s']:.1f} | {arguments.num_rows / measured['load_s']:,.0f} | {baseline} | "
                f"{measured['bytes_per_row']:.0f} | {measured['text_bytes_per_row']:.0f} |",
                flush=True,
            )
            others.append((name, measured))
    print("\n| threads of | `find_contamination` against 1,000 prompts, s | `train_validation_split`, s |")
    print("|---|---|---|")
    for name, measured in others:
        print(f"| {name} | {measured['contamination_s']:.1f} | {measured['split_s']:.1f} |")
    return None


def run(task, path, num_rows):
    command = [sys.executable, __file__, task, str(path), "--num-rows", str(num_rows)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    main()
