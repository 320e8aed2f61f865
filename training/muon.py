"""Muon for the weight matrices and convolutions, AdamW for everything else, as one optimizer.

References:
    Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024,
    https://kellerjordan.github.io/posts/muon/
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def orthogonalized(matrix: Tensor, *, steps: int = 5) -> Tensor:
    """The nearest (semi-)orthogonal matrix of (m, n), by the quintic Newton-Schulz iteration."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix.bfloat16()
    tall = x.shape[0] > x.shape[1]
    x = x.t() if tall else x
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        gram = x @ x.t()
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.t() if tall else x).to(matrix.dtype)


class MuonAdamW(torch.optim.Optimizer):
    """Orthogonalised Nesterov momentum for parameters of two and more dimensions.

    Both rules share one learning rate: Muon's update is scaled to the RMS that AdamW's has
    (Liu et al. 2025, https://arxiv.org/abs/2502.16982), so a schedule tuned for AdamW carries over.

    Arguments:
        adam: Parameters that stay with AdamW although they are matrices (first and last layers).
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        lr: float,
        *,
        adam: Iterable[Tensor] = (),
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.01,
    ) -> None:
        kept = {id(p) for p in adam}
        matrices, rest = list[Tensor](), list[Tensor]()
        for p in parameters:
            (matrices if p.ndim >= 2 and id(p) not in kept else rest).append(p)
        defaults = {"lr": lr, "momentum": momentum, "betas": betas, "weight_decay": weight_decay}
        groups = [{"params": matrices, "muon": True}, {"params": rest, "muon": False}]
        super().__init__([g for g in groups if g["params"]], defaults)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            rule = self._muon if group["muon"] else self._adamw
            for p in group["params"]:
                if p.grad is not None:
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                    p.add_(rule(p, p.grad, group), alpha=-group["lr"])

    def _muon(self, p: Tensor, grad: Tensor, group: dict[str, float]) -> Tensor:
        state = self.state[p]
        if not state:
            state["momentum"] = torch.zeros_like(p)
        momentum = state["momentum"].lerp_(grad, 1 - group["momentum"])
        update = torch.lerp(grad, momentum, group["momentum"]).flatten(1)
        return 0.2 * max(update.shape) ** 0.5 * orthogonalized(update).view_as(p)

    def _adamw(self, p: Tensor, grad: Tensor, group: dict[str, tuple[float, float]]) -> Tensor:
        state, (beta1, beta2) = self.state[p], group["betas"]
        if not state:
            state["step"] = torch.zeros(())
            state["mean"], state["square"] = torch.zeros_like(p), torch.zeros_like(p)
        state["step"] += 1
        n = float(state["step"])
        mean = state["mean"].lerp_(grad, 1 - beta1) / (1 - beta1**n)
        square = state["square"].lerp_(grad.square(), 1 - beta2) / (1 - beta2**n)
        return mean / (square.sqrt() + 1e-8)
