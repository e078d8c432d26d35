"""BareLoop: a training loop of somebody else's, which draws from the global random generators."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer

from descant.callbacks.base import RecipeCallback
from descant.models.live_model import live_model
from descant.process_state import compute_settings
from descant.runner.callback_runner import CallbackRunner
from descant.testing.runs import copies_of, quietly
from descant.threads.thread import StringThread

_LR = 1e-3
_MAX_NUM_TOKENS = 24


class BareLoop:
    """A module, two sequences, an optimizer; dropout from torch's generator, learning rates from Python's and numpy's.

    Args:
        model_path: the model.
        dataset: its first two threads are trained on.
    """

    def __init__(self, model_path: Path, dataset: Sequence[StringThread]) -> None:
        random.seed(0)
        np.random.seed(0)
        torch.manual_seed(0)
        tokenizer = AutoTokenizer.from_pretrained(model_path)
        self.module = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32).train()
        self.model = live_model(self.module, tokenizer, tokens_to_generate=16)
        texts = ["\n".join(turn.content for turn in thread.messages()) for thread in dataset[:2]]
        token_ids = [tokenizer(text).input_ids[:_MAX_NUM_TOKENS] for text in texts]
        self._ids = torch.tensor([ids[: min(map(len, token_ids))] for ids in token_ids])
        self._optimizer = torch.optim.AdamW(self.module.parameters(), lr=_LR)
        self.losses: list[float] = []
        self.changed: list[str] = []
        """What was not what it had been before, after which step."""

    def train_step(self) -> dict[str, Any]:
        """One update, on batches that draw."""
        for group in self._optimizer.param_groups:
            group["lr"] = _LR * (random.random() + float(np.random.rand()))
        logits_BSV = self.module(input_ids=self._ids).logits
        loss = functional.cross_entropy(logits_BSV[:, :-1].flatten(0, 1), self._ids[:, 1:].flatten())
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        self._optimizer.zero_grad()
        self.losses.append(loss.item())
        return {"training/loss": loss.item()}

    async def run(
        self,
        callbacks: Sequence[RecipeCallback],
        num_steps: int,
        run_dir: Path,
        *,
        first_step: int = 0,
        last_step: int | None = None,
        state: Mapping[str, Any] | None = None,
        wants_state: bool = False,
    ) -> dict[str, Any]:
        """Train to the last step, or until the end is requested; returns the state of the last callback, as JSON.

        Args:
            callbacks: run along.
            num_steps: planned steps.
            run_dir: the directory of the run.
            first_step: where it goes on.
            last_step: where it is left; by default it is not.
            state: of the last callback, from the run before.
            wants_state: whether its state is returned; otherwise that is empty.
        """
        runner = CallbackRunner(callbacks, num_steps=num_steps, run_dir=run_dir, first_step=first_step)
        remembered: dict[str, Any] = {}
        with self._unchanged(first_step):
            await runner.__aenter__()
        try:
            if state is not None:
                callbacks[-1].load_state_dict(state)
            for step in range(first_step + 1, (last_step or num_steps) + 1):
                if runner.should_stop:
                    break
                metrics = self.train_step()
                with self._unchanged(step):
                    await runner.after_step(step, metrics)
            if wants_state:
                remembered = json.loads(json.dumps(callbacks[-1].state_dict()))
        finally:
            with self._unchanged(runner.step):
                await runner.__aexit__(None, None, None)
        return remembered

    def weights(self) -> dict[str, Tensor]:
        """As they are."""
        return copies_of(self.module)

    @contextmanager
    def _unchanged(self, step: int) -> Iterator[None]:
        """Note what is not what it was before."""
        before = self._state()
        yield
        self.changed += [
            f"{name} after the call at step {step}" for name, value in self._state().items() if value != before[name]
        ]

    def _state(self) -> dict[str, Any]:
        return {
            **generator_states(),
            "torch's settings": [read() for read, _ in compute_settings()] + [torch.is_grad_enabled()],
            "training or evaluation mode of a module": [module.training for module in self.module.modules()],
            "requires_grad of a parameter": [parameter.requires_grad for parameter in self.module.parameters()],
        }


def generator_states() -> dict[str, Any]:
    """The global random generators, as what can be compared."""
    kind, key, *rest = np.random.get_state()
    return {
        "Python's random generator": random.getstate(),
        "numpy's random generator": (kind, np.asarray(key).tobytes(), *rest),
        "torch's random generator": torch.get_rng_state().tolist(),
    }


@contextmanager
def bare_loop(model_path: Path, dataset: Sequence[StringThread]) -> Iterator[BareLoop]:
    """A loop, and afterwards the process is as it was."""
    with quietly():
        loop = BareLoop(model_path, dataset)
        try:
            yield loop
        finally:
            loop.model._worker.close()
