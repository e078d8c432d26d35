"""BareLoop: a training loop without descant, which draws from the global random generators."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from descant.models.live_model import live_model
from descant.process_state import compute_settings
from descant.runner.callback_runner import CallbackRunner
from descant.testing.generators import generator_states
from descant.testing.runs import quietly
from descant.threads.thread import StringThread

_LR = 1e-3
_MAX_NUM_TOKENS = 48


class BareLoop:
    """A module, one sequence, an optimizer; dropout from torch's generator, learning rates from Python's and numpy's.

    Attributes:
        model: a handle on the module.
        changed: what was changed from outside between two steps, in words.
    """

    def __init__(self, model_path: Path, dataset: Sequence[StringThread]) -> None:
        random.seed(0)
        np.random.seed(0)
        torch.manual_seed(0)
        tokenizer = AutoTokenizer.from_pretrained(model_path)
        self.module = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32).train()
        self.model = live_model(self.module, tokenizer, tokens_to_generate=16)
        text = "\n".join(turn.content for thread in dataset[:2] for turn in thread.messages())
        self._ids = torch.tensor([tokenizer(text).input_ids[:_MAX_NUM_TOKENS]])
        self._optimizer = torch.optim.AdamW(self.module.parameters(), lr=_LR)
        self.changed: list[str] = []
        self._known = self._state()

    async def train(self, runner: CallbackRunner, last_step: int) -> None:
        """Train up to a step, or until the end is requested."""
        for step in range(runner.step + 1, last_step + 1):
            if runner.should_stop:
                break
            self.note_changes(f"{{}} after the call at step {step - 1} is not what it was")
            metrics = self._train_step()
            self._known = self._state()
            await runner.after_step(step, metrics)

    def note_changes(self, message: str) -> None:
        """Note with this message, into which its name is put, what is not what it was after the latest step."""
        state = self._state()
        self.changed += [message.format(name) for name, value in state.items() if value != self._known[name]]
        self._known = state

    def _train_step(self) -> dict[str, Any]:
        for group in self._optimizer.param_groups:
            group["lr"] = _LR * (random.random() + float(np.random.rand()))
        loss = self.module(input_ids=self._ids, labels=self._ids).loss
        loss.backward()
        self._optimizer.step()
        self._optimizer.zero_grad()
        return {"training/loss": loss.item()}

    def _state(self) -> dict[str, Any]:
        return {
            **generator_states(),
            "torch's settings": [read() for read, _ in compute_settings()] + [torch.is_grad_enabled()],
            "training or evaluation mode of a module": [module.training for module in self.module.modules()],
            "requires_grad of a parameter": [parameter.requires_grad for parameter in self.module.parameters()],
        }


@asynccontextmanager
async def bare_loop(model_path: Path, dataset: Sequence[StringThread]) -> AsyncIterator[BareLoop]:
    """A loop; afterwards the process is as it was."""
    with quietly():
        loop = BareLoop(model_path, dataset)
        try:
            yield loop
        finally:
            await loop.model.dealloc()
