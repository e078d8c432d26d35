"""The optimizer: AdamW, clipping by the global norm, and what happens to a gradient that is not a number."""

from __future__ import annotations

from math import isfinite

import torch
from torch import nn

from descant.errors import NonFiniteError


class Optimizer:
    """AdamW (arXiv:1711.05101; betas 0.9 and 0.999, eps 1e-8) over all trainable parameters of a model.

    Weight decay applies to matrices and embeddings, not to vectors (norms and biases).
    """

    def __init__(self, model: nn.Module) -> None:
        self.named_parameters = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        parameters = [parameter for _, parameter in self.named_parameters]
        matrices, vectors = [p for p in parameters if p.ndim >= 2], [p for p in parameters if p.ndim < 2]
        groups = [{"params": group} for group in (matrices, vectors) if group]
        self.adamw = torch.optim.AdamW(groups, lr=0.0, weight_decay=0.0)
        self.num_steps = 0
        """Calls of ``step`` so far, skipped updates included."""

    def step(
        self, *, denominator: float, lr: float, weight_decay: float, max_grad_norm: float, skip_nan_gradients: bool
    ) -> tuple[float, bool]:
        """Divide the accumulated gradient by ``denominator``, clip it, update, and clear it.

        Returns the global norm before clipping, and whether the update was skipped because that is not finite.

        Raises:
            NonFiniteError: the gradient is not finite and ``skip_nan_gradients`` is off. Weights and optimizer state
                are as before; the gradient is cleared.
        """
        gradients = [p.grad for _, p in self.named_parameters if p.grad is not None]
        torch._foreach_div_(gradients, denominator)
        norm = float(torch.nn.utils.get_total_norm(gradients))
        self.num_steps += 1
        if not isfinite(norm):
            broken = [n for n, p in self.named_parameters if p.grad is not None and not p.grad.isfinite().all()]
            self.clear_gradient()
            if skip_nan_gradients:
                return norm, True
            raise NonFiniteError(
                f"the gradient is not finite, first in {broken[0] if broken else 'its norm'}; "
                "the weights are unchanged. Lower the learning rate, look for broken data in this batch, or leave such "
                "updates out with skip_nan_gradients=True"
            )
        torch.nn.utils.clip_grads_with_norm_(
            [p for _, p in self.named_parameters],
            max_grad_norm,
            torch.tensor(norm, dtype=torch.float32, device=gradients[0].device),
        )
        for group in self.adamw.param_groups:
            group["lr"] = lr
            group["weight_decay"] = weight_decay if group["params"][0].ndim >= 2 else 0.0
        self.adamw.step()
        self.clear_gradient()
        return norm, False

    def clear_gradient(self) -> None:
        """Forget what was accumulated."""
        self.adamw.zero_grad(set_to_none=True)
