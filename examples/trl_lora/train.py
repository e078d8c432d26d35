"""LoRA in TRL's SFTTrainer, with descant's evaluation inside: one call, add_callbacks.

    python examples/trl_lora/train.py --model path/or/hub-id
    python examples/trl_lora/train.py --model path/or/hub-id --callback-mode overlap

The task is to subtract; after ``make demo``, whose model can add, try --model runs/<the demo's run>/model --lr 5e-3.

Both modes that run on the module that TRL trains are there: "inline", and "overlap", in which training waits for the
model's answers and not for their grades. "background" evaluates a copy of the weights in another process, which does
not know of adapters yet, and is refused before anything trains:

    ConfigurationError: Qwen3ForCausalLM cannot be evaluated in the background: layers that its configuration describes
    are not those that it has (...), as after adding LoRA; use mode='overlap' or mode='inline'
"""

import argparse
from pathlib import Path

from datasets import Dataset
from peft import LoraConfig
from trl import SFTConfig, SFTTrainer

from descant import (
    ExactMatchGrader,
    GenerateSamplesCallback,
    GraderEvalCallback,
    InferenceModel,
    RecipeCallback,
    StringThread,
    ValidationLossCallback,
    get_prod_logger,
)
from descant.integrations.transformers import add_callbacks


def differences() -> list[StringThread]:
    """All differences of two-digit numbers that are at least 0, in a fixed order that is not theirs."""
    pairs = [(a, b) for a in range(10, 100) for b in range(10, a + 1)]
    pairs.sort(key=lambda pair: (pair[0] * 7919 + pair[1] * 104_729) % 99_991)
    return [StringThread().user(f"{a}-{b}=").assistant(str(a - b)) for a, b in pairs]


def main(arguments: argparse.Namespace) -> None:
    threads = differences()  # or of yours: load_threads("train.jsonl")
    validation, train = threads[:200], threads[200:]

    def callbacks(model: InferenceModel) -> list[RecipeCallback]:
        return [
            GraderEvalCallback(validation, model, ExactMatchGrader(), frequency=0.1, max_gen_len=8),
            ValidationLossCallback(validation, model, frequency=0.1),
            GenerateSamplesCallback(validation[:8], model, frequency=0.5, max_gen_len=8),
        ]

    trainer = SFTTrainer(
        arguments.model,
        SFTConfig(
            arguments.output_dir,
            max_steps=arguments.max_steps,
            per_device_train_batch_size=32,
            learning_rate=arguments.lr,
            lr_scheduler_type="cosine",
            logging_steps=5,
            save_strategy="no",
            report_to=[],
            use_cpu=arguments.use_cpu,
            bf16=not arguments.use_cpu,
        ),
        train_dataset=Dataset.from_list([prompt_and_completion(thread) for thread in train]),
        peft_config=LoraConfig(r=arguments.rank, lora_alpha=2 * arguments.rank, target_modules="all-linear"),
    )
    added = add_callbacks(
        trainer,
        callbacks,
        training_set=train,
        callback_mode=arguments.callback_mode,
        run_dir=arguments.run_dir,
        logger=get_prod_logger(),
    )
    trainer.train()
    print(f"Look at it again: descant show {added.runner.run_dir}" if added.runner else "nothing was trained")


def prompt_and_completion(thread: StringThread) -> dict[str, list[dict[str, str]]]:
    """A row of the form of TRL in which loss is on the completion alone."""
    messages = thread.chat_messages()
    return {"prompt": messages[:-1], "completion": messages[-1:]}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a directory or hub id of a chat model")
    parser.add_argument("--rank", type=int, default=16, help="of the adapters")
    parser.add_argument("--lr", type=float, default=2e-4)
    parser.add_argument("--max-steps", type=int, default=300)
    parser.add_argument("--callback-mode", default="inline", help="inline or overlap")
    parser.add_argument("--use-cpu", action="store_true", help="also where there is an accelerator; in float32")
    parser.add_argument("--output-dir", default="out", help="TRL's directory")
    parser.add_argument("--run-dir", type=Path, help="by default runs/sfttrainer-<date>-<time>")
    return parser.parse_args()


if __name__ == "__main__":
    main(parse_arguments())
