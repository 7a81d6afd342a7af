"""What turns gradients into steps: AdamW, and Muon for the matrices inside the networks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..networks.model import RDDM
from ..networks.precision import is_vector
from .recipe import Recipe

LAST_LAYER_SHARE = 1 / 16
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Jordan's coefficients: five iterations bring singular values from 0.01 to 1 to between 0.6 and 1.2."""


class Muon(torch.optim.Optimizer):
    """Momentum whose matrix is orthogonalised before the step (Jordan et al. 2024), scaled to the size of an AdamW step
    (Liu et al. 2025), so that both share a learning rate.

    For convolutions, as matrices [out, in x kernel]. torch.optim.Muon takes plain matrices and iterates in bf16, for
    which a CPU without AVX-512 needs ten times as long; this one iterates in fp32. Of several processes, each
    orthogonalises a share of the matrices and gives the others its results.
    """

    def __init__(self, params: Iterable[Any], lr: float, weight_decay: float, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        moved = [(p, group) for group in self.param_groups for p in group["params"] if p.grad is not None]
        ahead = [self._average(p, group["momentum"]) for p, group in moved]
        for (p, group), update in zip(moved, _orthogonalised_by_all(ahead), strict=True):
            p.mul_(1 - group["lr"] * group["weight_decay"])
            p.add_(update.view(p.shape), alpha=-0.2 * math.sqrt(max(update.shape)) * group["lr"])

    def _average(self, p: Tensor, momentum: float) -> Tensor:
        """The gradient of p, as a matrix, after Nesterov's momentum."""
        gradient, state = cast(Tensor, p.grad), self.state[p]
        if not state:
            state["momentum"] = torch.zeros_like(p)
        average = state["momentum"].lerp_(gradient, 1 - momentum)
        return gradient.lerp(average, momentum).flatten(1)


def _orthogonalised_by_all(matrices: Sequence[Tensor]) -> list[Tensor]:
    """`orthogonalised` of every matrix; all processes must call it with the same ones."""
    processes = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    if processes == 1 or not matrices:
        return [orthogonalised(matrix) for matrix in matrices]
    results = matrices[0].new_zeros(sum(matrix.numel() for matrix in matrices))
    parts = results.split([matrix.numel() for matrix in matrices])
    work = [0] * processes
    for i in sorted(range(len(matrices)), key=lambda i: -_work(matrices[i])):
        process = work.index(min(work))
        work[process] += _work(matrices[i])
        if process == dist.get_rank():
            parts[i].copy_(orthogonalised(matrices[i]).flatten())
    dist.all_reduce(results)  # of every part all but one are zero
    return [part.view_as(matrix) for part, matrix in zip(parts, matrices, strict=True)]


def _work(matrix: Tensor) -> int:
    """Multiplications of an iteration, but for a factor."""
    return min(matrix.shape) ** 2 * (2 * max(matrix.shape) + min(matrix.shape))


def orthogonalised(matrix: Tensor, iterations: int = 5) -> Tensor:
    """The matrix [M, N] with its singular values brought near 1, by Newton-Schulz iterations in fp32."""
    a, b, c = NEWTON_SCHULZ
    x = matrix.float()
    x = x / (x.norm() + 1e-7)
    tall = x.shape[0] > x.shape[1]
    if tall:
        x = x.T
    for _ in range(iterations):
        square = x @ x.T
        x = torch.addmm(x, torch.addmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return (x.T if tall else x).to(matrix.dtype)


def make_optimizers(model: RDDM, parameters: Sequence[nn.Parameter], recipe: Recipe) -> list[torch.optim.Optimizer]:
    """AdamW for `parameters`; with the recipe's `muon`, only for those that are no matrices, and Muon for the rest."""
    matrices = muon_parameters(model, parameters) if recipe.optimizer == "muon" else []
    chosen = {id(p) for p in matrices}
    groups = parameter_groups(model, [p for p in parameters if id(p) not in chosen], recipe)
    adamw = torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.999), fused=True)
    return [adamw, *([Muon(matrices, recipe.learning_rate, recipe.weight_decay)] if matrices else [])]


def muon_parameters(model: RDDM, parameters: Sequence[nn.Parameter]) -> list[nn.Parameter]:
    """The 1x1 and 2x2 convolutions between hidden features, which hold most of the networks' parameters.

    First and last layers are left to AdamW, as Muon's authors advise, and so are depthwise convolutions.
    """
    trained = {id(p) for p in parameters}
    return [
        p
        for name, p in model.named_parameters()
        if id(p) in trained
        and p.ndim == 4
        and p.shape[2] <= 2
        and not is_vector(p)
        and not any(layer in name for layer in ("intro", "outro", "classifier"))
    ]


def parameter_groups(model: RDDM, parameters: Sequence[nn.Parameter], recipe: Recipe) -> list[dict[str, Any]]:
    """Groups of an optimizer; `share` is what its learning rate is multiplied by.

    Vectors do not decay. p answers in units of the image, where residuals are about 16 times smaller than the scaled
    ones of the denoiser: its last layer would move too fast at the same rate.
    """
    last = {id(p) for p in model.pre_deblur.outro.parameters()}
    groups = []
    for share, chosen in (
        (1.0, [p for p in parameters if id(p) not in last]),
        (LAST_LAYER_SHARE, [p for p in parameters if id(p) in last]),
    ):
        weights, rest = [p for p in chosen if not is_vector(p)], [p for p in chosen if is_vector(p)]
        groups += [
            {"params": part, "weight_decay": decay, "share": share}
            for part, decay in ((weights, recipe.weight_decay), (rest, 0.0))
            if part
        ]
    return groups
