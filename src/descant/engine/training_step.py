"""TrainingStep: the gradient of a step, summed over its micro-batches, and the update that is made of it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from descant.engine.budgets import Budgets
from descant.engine.jobs import Accumulate, LossName, OptimStep, WeightedSequence, YieldPoint
from descant.engine.precision import Precision, computes_in, module_mode, products_dtype
from descant.engine.randomness import PrivateRandomness, draws_random_numbers
from descant.engine.score import TokenScorer, not_finite, refused_sequence, split_by_sequence
from descant.engine.weights import WeightStore
from descant.errors import DescantError, ModelLoadError, NonFiniteError, RequestError
from descant.losses.loss import Columns, Loss
from descant.losses.sft import language_modelling
from descant.seeds import derive_seed

LOSSES: Mapping[LossName, Loss] = {"language_modelling": language_modelling}


class TrainingStep:
    """The step that a model is being trained on, and the optimizer, which stays from one step to the next.

    Micro-batches add raw sums and their gradients; the step divides them once, by the sum of their denominators. The
    optimizer is AdamW (arXiv:1711.05101; betas 0.9 and 0.999, eps 1e-8) over all trainable parameters; weight decay
    applies to matrices and embeddings, not to vectors (norms and biases).
    """

    def __init__(
        self,
        scorer: TokenScorer,
        weights: WeightStore,
        budgets: Budgets,
        precision: Precision,
        *,
        gradient_checkpointing: bool,
    ) -> None:
        self._model, self._scorer, self._weights = scorer.model, scorer, weights
        self._budgets, self._precision = budgets, precision
        self._max_sequence_tokens = budgets.max_batch_tokens
        self.randomness: PrivateRandomness | None = None
        if draws_random_numbers(self._model):
            self.randomness = PrivateRandomness(torch.Generator(self._model.device))
        if gradient_checkpointing:
            self._enable_gradient_checkpointing()
        self.restart()

    def restart(self) -> None:
        """Begin with a fresh optimizer and no gradient."""
        self._parameters = {name: p for name, p in self._model.named_parameters() if p.requires_grad}
        parameters = self._parameters.values()
        matrices, vectors = [p for p in parameters if p.ndim >= 2], [p for p in parameters if p.ndim < 2]
        groups = [{"params": group} for group in (matrices, vectors) if group]
        self._adamw = torch.optim.AdamW(groups, lr=0.0, weight_decay=0.0)
        self._num_steps = 0  # skipped updates included
        self.discard()

    def discard(self) -> None:
        """Forget the gradient and its sums."""
        self._adamw.zero_grad(set_to_none=True)
        self.loss: LossName | None = None
        self.denominator = 0.0
        self.sums: defaultdict[str, float] = defaultdict(float)  # of the loss and its statistics
        self.num_tokens = self.num_samples = self.num_micro_batches = 0

    def accumulate(self, job: Accumulate, yield_point: YieldPoint) -> list[RequestError | None]:
        """Add the gradient of a job's sequences, with the loss that the step has; returns why some were left out."""
        if job.loss not in LOSSES:
            raise DescantError(f"there is no loss {job.loss!r}; there are {', '.join(LOSSES)}")
        if self.loss not in (None, job.loss):
            raise DescantError(f"this step has the loss {self.loss!r} already, so {job.loss!r} cannot be added to it")
        results = [refused_sequence(self._model, s, self._max_sequence_tokens) for s in job.sequences]
        try:
            for indices in self._budgets.micro_batches(job.sequences, results):
                yield_point()
                accepted = indices
                while bad := self._accumulate_micro_batch(job, accepted):  # then none of it entered the gradient
                    for index in bad:
                        results[index] = not_finite()
                    accepted = [index for index in accepted if index not in bad]
        except BaseException:  # half a step's gradient must not leak into the next step
            self.discard()
            raise
        return results

    def _accumulate_micro_batch(self, job: Accumulate, indices: Sequence[int]) -> Collection[int]:
        """Add the gradient of these sequences, or, if the loss of some is not finite, nothing; returns those."""
        if not indices:
            return ()
        sequences = [job.sequences[index] for index in indices]
        if self.randomness is not None:
            self.randomness.generator.manual_seed(derive_seed(job.seed, self._num_steps, self.num_micro_batches))
        # It may run within an evaluation job, at one of its yield points.
        with torch.enable_grad(), module_mode(self._model, training=True), self.randomness or nullcontext():
            with computes_in(products_dtype(self._precision), self._model.device.type):
                logprobs_N, weights_N = self._scorer.logprobs(sequences)
                sums = LOSSES[job.loss](logprobs_N, _columns(sequences, weights_N))
            loss_sum = float(sums.loss.detach())
            if not isfinite(loss_sum):
                parts = split_by_sequence((logprobs_N * weights_N).detach(), sequences)
                bad = {index for index, part in zip(indices, parts, strict=True) if not part.isfinite().all()}
                return bad or set(indices)
            sums.loss.backward()  # type: ignore[no-untyped-call]
        self.loss = job.loss
        self.denominator += float(sums.denominator)
        self.sums["loss"] += loss_sum
        for name, value in sums.statistics.items():
            self.sums[name] += float(value)
        self.num_tokens += len(weights_N)
        self.num_samples += len(indices)
        self.num_micro_batches += 1
        return ()

    def apply(self, job: OptimStep) -> dict[str, float]:
        """Divide the gradient by the denominator, clip it by its global norm, update the weights, and clear it.

        Returns the step's metrics: its loss and statistics, counts, the norm before clipping, and whether the update
        was skipped because that is not finite.

        Raises:
            DescantError: there is no gradient.
            NonFiniteError: the gradient is not finite and ``skip_nan_gradients`` is off. Weights and optimizer state
                are as before; the gradient is cleared.
        """
        if self.denominator == 0:
            raise DescantError("optim_step without a gradient: call a train_... method first")
        metrics = {
            **{name: value / self.denominator for name, value in self.sums.items()},
            "num_tokens": self.num_tokens,
            "num_samples": self.num_samples,
        }
        gradients = {name: p.grad for name, p in self._parameters.items() if p.grad is not None}
        torch._foreach_div_(list(gradients.values()), self.denominator)
        norm = float(torch.nn.utils.get_total_norm(gradients.values()))
        self._num_steps += 1
        try:
            if isfinite(norm):
                self._update(job, norm)
            elif not job.skip_nan_gradients:
                broken = [name for name, gradient in gradients.items() if not gradient.isfinite().all()]
                raise NonFiniteError(
                    f"the gradient is not finite, first in {broken[0] if broken else 'its norm'}; the weights are "
                    "unchanged. Lower the learning rate, look for broken data in this batch, or leave such updates out "
                    "with skip_nan_gradients=True"
                )
        finally:
            self.discard()
        return {**metrics, "grad_norm": norm, "skipped_update": float(not isfinite(norm))}

    def _update(self, job: OptimStep, norm: float) -> None:
        total_norm = torch.tensor(norm, dtype=torch.float32, device=self._model.device)
        torch.nn.utils.clip_grads_with_norm_(self._parameters.values(), job.max_grad_norm, total_norm)
        for group in self._adamw.param_groups:
            group["lr"] = job.lr
            group["weight_decay"] = job.weight_decay if group["params"][0].ndim >= 2 else 0.0
        self._adamw.step()
        self._weights.changed()

    def _enable_gradient_checkpointing(self) -> None:
        """Layers are computed again with the random numbers of their first pass, and nothing global is touched."""

        def contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
            return nullcontext(), nullcontext() if self.randomness is None else self.randomness.replay()

        options = {"use_reentrant": False, "preserve_rng_state": False, "context_fn": contexts}
        try:
            if hasattr(self._model, "activation_checkpointing_enable"):  # the name since Transformers 5.23
                self._model.activation_checkpointing_enable(activation_checkpointing_kwargs=options)
            else:
                self._model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
        except ValueError as error:
            raise ModelLoadError(f"gradient_checkpointing=True: {error}") from error


def _columns(sequences: Sequence[WeightedSequence], weights_N: Tensor) -> Columns:
    """The columns of a micro-batch, on its device."""
    trained = [[position for position, weight in enumerate(s.weights) if weight > 0] for s in sequences]
    of_token = [number for number, positions in enumerate(trained) for _ in positions]
    columns = {"weight": weights_N, "sequence": torch.tensor(of_token, device=weights_N.device)}
    for name in sequences[0].columns:
        values: list[float] = []
        for sequence, positions in zip(sequences, trained, strict=True):
            column = sequence.columns[name]
            values += [column[position] for position in positions] if isinstance(column, tuple) else [column]
        columns[name] = torch.tensor(values, dtype=torch.float64, device=weights_N.device)
    return columns
