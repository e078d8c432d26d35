"""A small model learns to add two-digit numbers, while callbacks watch.

python examples/addition/train.py
python examples/addition/train.py --model path/or/hub-id --train mine.jsonl --validation held-out.jsonl
"""

import argparse
import asyncio
import os
import sqlite3
import sys
import threading
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text
from tiny_model import save_tiny_qwen3

from descant import (
    SFT,
    ExactMatchGrader,
    GenerateSamplesCallback,
    GraderEvalCallback,
    InferenceModel,
    ModelBuilder,
    RecipeCallback,
    StringThread,
    TrainingResult,
    ValidationLossCallback,
    get_prod_logger,
    load_threads,
)
from descant.cli.app import app as descant_command

HERE = Path(__file__).parent


class CharacterAccuracy(RecipeCallback):
    """How often the first and the last character of an answer are right: which part is learnt first?"""

    def __init__(self, validation: list[StringThread], model: InferenceModel, frequency: float = 0.1) -> None:
        super().__init__(frequency=frequency, log_key_prefix="characters")
        self.prompts = [StringThread(thread.messages()) for thread in validation]
        self.references = [thread.completion() or "" for thread in validation]
        self.model = model.temperature(0.0).max_gen_len(64)

    async def callback(self, current_percentage: float) -> dict[str, float]:
        answers = await asyncio.gather(*(self.model.generate(prompt) for prompt in self.prompts))
        pairs = [(answer.last_content(), reference) for answer, reference in zip(answers, self.references, strict=True)]
        return {
            "first_correct": sum(answer[:1] == reference[:1] for answer, reference in pairs) / len(pairs),
            "last_correct": sum(answer[-1:] == reference[-1:] for answer, reference in pairs) / len(pairs),
        }


async def main() -> None:
    arguments = parse_arguments()
    train, validation = load_threads(arguments.train), load_threads(arguments.validation)
    path = arguments.model or build_model("runs/tiny-qwen3")
    model = await ModelBuilder(path).spawn_train("policy", max_batch_size=8192)
    trainer = SFT(
        dataset=train,
        model=model,
        lr=arguments.lr or (1e-5 if arguments.model else 2e-3),
        samples_per_batch=arguments.samples_per_batch,
        epochs=arguments.epochs,
        run_dir=arguments.run_dir,
        logger=get_prod_logger(),  # Trackio, and other trackers that the environment configures
        callbacks=[
            GraderEvalCallback(validation, model, ExactMatchGrader(), frequency=0.1, max_gen_len=64),
            ValidationLossCallback(validation, model, frequency=0.1),
            GenerateSamplesCallback(validation[:8], model, frequency=0.1, temperature=1.0, max_gen_len=64),
            CharacterAccuracy(validation[:100], model, frequency=0.1),
        ],
    )
    result = await trainer.run()
    saved = await model.save(result.run_dir / "model")
    report(result, saved)


def build_model(path: str) -> str:
    # In a thread that ends: OpenMP threads that the main thread keeps would slow down those of the model.
    builder = threading.Thread(target=save_tiny_qwen3, args=(path,))
    builder.start()
    builder.join()
    return path


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="directory or hub id; by default a small Qwen3 is built from scratch")
    parser.add_argument("--train", default=HERE / "train.jsonl", help="JSONL of threads to train on")
    parser.add_argument("--validation", default=HERE / "validation.jsonl", help="JSONL of threads to evaluate on")
    parser.add_argument("--lr", type=float, help="peak learning rate (2e-3 from scratch, else 1e-5)")
    parser.add_argument("--epochs", type=float, default=6)
    parser.add_argument("--samples-per-batch", type=int, default=64)
    parser.add_argument("--run-dir", type=Path, help="by default runs/sft-<date>-<time>")
    return parser.parse_args()


def report(result: TrainingResult, saved: Path) -> None:
    """What was learnt, read back from the run log: any tool that reads SQLite can do the same."""
    log = sqlite3.connect(result.run_dir / "run.sqlite")

    def series(key: str) -> dict[int, float]:
        return dict(log.execute("SELECT step, number FROM metrics WHERE key = ? ORDER BY step", (key,)).fetchall())

    exact = series("validation/rewards/score/mean")
    first, last, loss = map(series, ("characters/first_correct", "characters/last_correct", "validation/loss"))
    query = "SELECT step, cells ->> 'prompt', cells ->> 'response' FROM samples WHERE callback = ? AND position = 0"
    samples = {step: (prompt, response) for step, prompt, response in log.execute(query, ("validation",))}
    log.close()

    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for header in ("step", "exact match", "", "first", "last", "loss", "an answer"):
        table.add_column(header, justify="left" if header in ("exact match", "an answer") else "right", no_wrap=True)
    for step, score in exact.items():
        prompt, response = samples.get(step, ("", ""))
        table.add_row(
            str(step),
            Text("█" * round(11 * score), style="green"),
            f"{score:.1%}",
            *(f"{column[step]:.0%}" if step in column else "" for column in (first, last)),
            f"{loss[step]:.3f}" if step in loss else "",
            Text(f"{prompt[:12]!r} → {response[:12]!r}"),
        )
    console = Console(highlight=False, soft_wrap=True)
    console.print("\n[bold]What was learnt[/bold], on prompts that were held out", end=" ")
    console.print("(first, last: how often that character of the answer is right):\n", table, sep="")
    seconds = f"{result.seconds:.0f} s, of which callbacks {sum(result.callback_seconds.values()):.0f} s"
    if exact:
        scores = list(exact.values())
        console.print(
            f"\nExact match went from {scores[0]:.1%} to {scores[-1]:.1%} in {result.num_steps} steps: {seconds}."
        )
    else:
        console.print(f"\nNothing could be graded in {result.num_steps} steps ({seconds}); the run log says why.")
    model, run_dir = os.path.relpath(saved), os.path.relpath(result.run_dir)
    console.print(f"model    {model}\nrun log  {run_dir}/run.sqlite", markup=False)
    console.print(f"\n$ descant show {run_dir} --samples 2\n", style="bold", markup=False)
    sys.stdout.flush()
    descant_command(["show", str(result.run_dir), "--samples", "2"], standalone_mode=False)


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except KeyboardInterrupt:
        sys.exit("interrupted; everything up to here is in the run log")
