"""A small model learns to add two-digit numbers, while callbacks watch.

python examples/addition/train.py
python examples/addition/train.py --model path/or/hub-id --train mine.jsonl --validation held-out.jsonl
"""

import argparse
import asyncio
import sqlite3
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
    load_threads,
)

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
    path = arguments.model or save_tiny_qwen3("runs/tiny-qwen3")
    model = await ModelBuilder(path).spawn_train("policy", max_batch_size=8192)
    trainer = SFT(
        dataset=train,
        model=model,
        lr=arguments.lr or (1e-5 if arguments.model else 2e-3),
        samples_per_batch=arguments.samples_per_batch,
        epochs=arguments.epochs,
        run_dir=arguments.run_dir,
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
    """What was learnt, read back from the run log."""
    columns = {
        "exact match": "validation/rewards/score/mean",
        "first character": "characters/first_correct",
        "last character": "characters/last_correct",
        "validation loss": "validation/loss",
    }
    log = sqlite3.connect(result.run_dir / "run.sqlite")
    query = "SELECT step, number FROM metrics WHERE key = ? ORDER BY step"
    series = {name: dict(log.execute(query, (key,)).fetchall()) for name, key in columns.items()}
    answers = dict(
        log.execute(
            "SELECT step, cells ->> 'prompt' || (cells ->> 'response') FROM samples WHERE callback = 'validation' "
            "AND position = 0"
        ).fetchall()
    )
    log.close()
    table = Table("step", "exact match", *list(columns)[1:], "first validation prompt", title="What was learnt")
    for step, score in series["exact match"].items():
        bar = Text(f"{'█' * round(20 * score):<20} {score:.1%}")
        others = [f"{series[name].get(step, float('nan')):.3f}" for name in list(columns)[1:]]
        table.add_row(str(step), bar, *others, Text(repr(answers.get(step, ""))[:40]))
    first, *_, last = series["exact match"].values()
    console = Console()
    console.print(table)
    console.print(
        f"Exact match on held-out prompts went from {first:.1%} to {last:.1%} in {result.num_steps} steps "
        f"({result.seconds:.0f} s, callbacks included).",
        f"model    {saved}",
        f"run log  {result.run_dir / 'run.sqlite'}",
        sep="\n",
        highlight=False,
        soft_wrap=True,
    )


if __name__ == "__main__":
    asyncio.run(main())
