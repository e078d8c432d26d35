"""Writes train.jsonl and validation.jsonl: all sums of two two-digit numbers, 300 of them held out.

python examples/addition/generate_data.py
"""

import json
import random
from pathlib import Path

NUM_VALIDATION = 300


def main() -> None:
    sums = [(a, b) for a in range(10, 100) for b in range(10, 100)]
    random.Random(0).shuffle(sums)
    splits = {"validation": sums[:NUM_VALIDATION], "train": sums[NUM_VALIDATION:]}
    for name, rows in splits.items():
        path = Path(__file__).parent / f"{name}.jsonl"
        lines = [json.dumps({"prompt": f"{a}+{b}=", "completion": str(a + b)}) for a, b in rows]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        print(f"{path}: {len(rows):,} sums")


if __name__ == "__main__":
    main()
