"""The time of ``import descant``, above an interpreter that imports nothing: median of 15 processes, in turn."""

import statistics
import subprocess
import sys
import time


def seconds(code):
    started_at = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.perf_counter() - started_at


def main():
    measured = [(seconds("import descant") - seconds("pass")) for _ in range(16)][1:]
    print(f"\n`import descant` takes {1000 * statistics.median(measured):.0f} ms")


if __name__ == "__main__":
    main()
