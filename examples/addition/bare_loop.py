"""descant's callbacks in a plain PyTorch loop: the loop stays yours.

python examples/addition/bare_loop.py
"""

import argparse
import random
from pathlib import Path

import torch
from tiny_model import save_tiny_qwen3
from transformers import AutoModelForCausalLM, AutoTokenizer, get_cosine_schedule_with_warmup

from descant import (
    CallbackRunner,
    EarlyStoppingCallback,
    ExactMatchGrader,
    GraderEvalCallback,
    StringThread,
    ValidationLossCallback,
    live_model,
    load_threads,
)

HERE = Path(__file__).parent


def main(num_steps: int) -> None:
    path = save_tiny_qwen3("runs/tiny-qwen3")
    module, tokenizer = AutoModelForCausalLM.from_pretrained(path).train(), AutoTokenizer.from_pretrained(path)
    train, validation = load_threads(HERE / "train.jsonl"), load_threads(HERE / "validation.jsonl")
    optimizer = torch.optim.AdamW(module.parameters(), lr=2e-3)
    scheduler = get_cosine_schedule_with_warmup(
        optimizer, num_warmup_steps=num_steps // 10, num_training_steps=num_steps
    )

    model = live_model(module, tokenizer)  # what callbacks see: the weights as they are
    runner = CallbackRunner(
        [
            GraderEvalCallback(validation, model, ExactMatchGrader(), frequency=0.1, max_gen_len=8),
            ValidationLossCallback(validation, model, frequency=0.1),
            EarlyStoppingCallback("validation/loss", "min", patience=3),
        ],
        num_steps=num_steps,
        training_set=train,
        title=f"a bare PyTorch loop: Qwen3 on {len(train):,} sums, {num_steps:,} steps",
    )
    with runner.synchronous() as run:  # in async code: async with runner as run, await run.after_step(...)
        for step in range(1, num_steps + 1):
            loss = module(**collate(random.sample(train, 64), tokenizer)).loss
            loss.backward()
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            run.after_step(step, {"training/loss": loss, "training/learning_rate": scheduler.get_last_lr()[0]})
            if run.should_stop:
                break
    print(f"Look at it again: descant show {runner.run_dir}")


def collate(threads: list[StringThread], tokenizer: AutoTokenizer) -> dict[str, torch.Tensor]:
    """Token ids, and labels on the answers alone."""
    rows = []
    for thread in threads:
        messages = thread.chat_messages()
        prompt = tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True, return_dict=False)
        rows.append((len(prompt), tokenizer.apply_chat_template(messages, return_dict=False)[:-1]))
    input_ids = torch.full((len(rows), max(len(ids) for _, ids in rows)), tokenizer.pad_token_id)
    labels = torch.full_like(input_ids, -100)
    for row, (num_prompt_tokens, ids) in enumerate(rows):
        input_ids[row, : len(ids)] = torch.tensor(ids)
        labels[row, num_prompt_tokens : len(ids)] = torch.tensor(ids[num_prompt_tokens:])
    return {"input_ids": input_ids, "attention_mask": (input_ids != tokenizer.pad_token_id).long(), "labels": labels}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-steps", type=int, default=600)
    main(parser.parse_args().num_steps)
