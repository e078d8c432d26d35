"""Data, loops, callbacks and queries on the run log that many tests share."""

import contextlib
import json
import sqlite3

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from descant import BaseGrader, CallbackRunner, Grade, ModelBuilder, RecipeCallback, StringThread, live_model


def addition_threads(count, offset=10):
    """Sums as one-turn threads, all different."""
    sums = [(10 + i % 80, offset + i // 80) for i in range(count)]
    return [StringThread().user(f"{a}+{b}=").assistant(str(a + b)) for a, b in sums]


def ragged_threads(count):
    """Threads of one to three exchanges and very different lengths."""
    threads = []
    for i in range(count):
        thread = StringThread().system("Count.") if i % 3 == 0 else StringThread()
        for turn in range(1 + i % 3):
            thread = thread.user("x" * (1 + (7 * i + turn) % 30)).assistant("y" * ((5 * i + turn) % 23))
        threads.append(thread)
    return threads


@contextlib.asynccontextmanager
async def training_model(path, max_batch_size=4096, **options):
    model = await ModelBuilder(path, **options).spawn_train("policy", max_batch_size=max_batch_size)
    try:
        yield model
    finally:
        await model.dealloc()


async def check_against_plain_passes(model, module, prompts, max_gen_len, tolerance=2e-4):
    """Check what a model generates against forward passes of its module on the tokens before each, and what it scores
    against one on the whole."""
    generated = await model.max_gen_len(max_gen_len).generate_tokens_many(prompts)
    scored = await model.logprobs_per_token_many(generated)
    for thread, logprobs in zip(generated, scored, strict=True):
        ids, start = thread.token_ids, thread.spans[-1].start
        by_step = [_plain_logprobs(module, ids[:end])[-1, ids[end]] for end in range(start, len(ids))]
        assert thread.logprobs == pytest.approx(torch.stack(by_step).tolist(), abs=tolerance)
        whole = _plain_logprobs(module, ids)
        in_one = [whole[end - 1, ids[end]] for end in range(start, len(ids))]
        assert logprobs == pytest.approx(torch.stack(in_one).tolist(), abs=tolerance)
    return generated


@torch.no_grad()
def _plain_logprobs(module, token_ids):
    return module(input_ids=torch.tensor([token_ids])).logits[0].log_softmax(-1)


def weights_of(model):
    """A copy of the live weights, read from the engine."""
    engine = model._worker._loop._engine
    return {name: parameter.detach().clone() for name, parameter in engine.model.named_parameters()}


class BareLoop:
    """A plain PyTorch training loop without descant: a module, a batch, an optimizer, the global generator."""

    def __init__(self, path):
        torch.manual_seed(0)
        self.module = AutoModelForCausalLM.from_pretrained(path).train()
        self.tokenizer = AutoTokenizer.from_pretrained(path)
        self.optimizer = torch.optim.AdamW(self.module.parameters(), lr=1e-2)
        self.ids = torch.tensor([self.tokenizer("12+34=46").input_ids, self.tokenizer("20+19=39").input_ids])
        self.model = live_model(self.module, self.tokenizer)

    def train_step(self):
        loss = self.module(input_ids=self.ids, labels=self.ids).loss
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return {"training/loss": loss}

    async def run(self, num_steps, callbacks, run_dir, **options):
        async with CallbackRunner(callbacks, num_steps=num_steps, run_dir=run_dir, **options) as runner:
            for step in range(1, num_steps + 1):
                if runner.should_stop:
                    break
                await runner.after_step(step, self.train_step())
        return runner

    def run_synchronously(self, num_steps, callbacks, run_dir, **options):
        runner = CallbackRunner(callbacks, num_steps=num_steps, run_dir=run_dir, **options)
        with runner.synchronous() as waiting:
            for step in range(1, num_steps + 1):
                if waiting.should_stop:
                    break
                waiting.after_step(step, self.train_step())
        return runner

    def weights(self):
        return {name: parameter.detach().clone() for name, parameter in self.module.named_parameters()}


def query(run_dir, sql, *arguments):
    """Rows of a query on the run log of a finished run."""
    with contextlib.closing(sqlite3.connect(run_dir / "run.sqlite")) as connection:
        return connection.execute(sql, arguments).fetchall()


def series(run_dir, key):
    """A metric of a finished run as {step: number}."""
    return dict(query(run_dir, "SELECT step, number FROM metrics WHERE key = ? ORDER BY step", key))


def samples(run_dir, callback):
    """Sample rows of a finished run as {(step, example id): cells}."""
    rows = query(run_dir, "SELECT step, example_id, cells FROM samples WHERE callback = ?", callback)
    return {(step, example_id): json.loads(cells) for step, example_id, cells in rows}


class CountingCallback(RecipeCallback):
    """Records where it was called."""

    def __init__(self, frequency=0.1, prefix="counting", **options):
        super().__init__(frequency, prefix, **options)
        self.steps = []
        self.percentages = []
        self.hooks = []

    async def on_start(self, run):
        self.hooks.append(("start", run.step))

    async def on_end(self, run):
        self.hooks.append(("end", run.step))

    def state_dict(self):
        return {"steps": self.steps}

    def load_state_dict(self, state):
        self.steps = list(state["steps"])

    async def callback(self, current_percentage):
        self.steps.append(self.run.step)
        self.percentages.append(current_percentage)
        return {"calls": len(self.steps)}


class LengthGrader(BaseGrader):
    """The length of the completion; never logs."""

    def __init__(self, grader_key="length"):
        super().__init__(grader_key)

    async def grade(self, sample):
        return Grade(float(len(sample.last_content())), self.grader_key)
