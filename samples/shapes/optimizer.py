"""Optimizes a bfloat16 model that has float32 weights behind it, and saves the state of training.

Muon moves the hidden matrices and AdamW the rest: embeddings, heads, biases and norms.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Muon, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from samples.shapes.parallel import Part

WARM_STEPS = 100
_OUTSIDE = ("embed", "heads")  # parts of the names of matrices that are not hidden layers


class MixedOptimizer:
    """Trains a module in place for a planned number of steps.

    The module computes in bfloat16. Its weights are kept, averaged over the processes and updated
    in float32, then rounded for the next step.

    Args:
        module: What to train; its weights become bfloat16 until `finish`.
        steps: After how many steps the learning rate is zero.
        rate: The peak learning rate.
        part: This process.
        factors: The share of the rate for weights whose name begins so; 1 for the others.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        steps: int,
        rate: float,
        part: Part,
        factors: Mapping[str, float] | None = None,
    ) -> None:
        self.part, self.step_number = part, 0
        names = [name for name, _ in module.named_parameters()]
        self.rounded = list(module.parameters())
        self.exact = [nn.Parameter(p.detach().float().clone()) for p in self.rounded]
        for rounded in self.rounded:
            rounded.data = rounded.data.bfloat16()
        groups = _groups(names, self.exact, rate, factors or {})
        self.optimizers: tuple[Optimizer, Optimizer] = (
            Muon(groups[True], weight_decay=0.02, adjust_lr_fn="match_rms_adamw"),
            AdamW(groups[False], betas=(0.9, 0.95), weight_decay=0.0),
        )
        self.schedules = [
            LambdaLR(optimizer, lambda step: warm_linear(step, steps))
            for optimizer in self.optimizers
        ]

    def step(self, loss: Tensor) -> None:
        """Update the weights by the gradient of a loss."""
        loss.backward()  # type: ignore[no-untyped-call]
        self._share_gradients()
        nn.utils.clip_grad_norm_(self.exact, 1.0)
        for optimizer, schedule in zip(self.optimizers, self.schedules, strict=True):
            optimizer.step()
            schedule.step()
        with torch.no_grad():
            for rounded, exact in zip(self.rounded, self.exact, strict=True):
                rounded.copy_(exact)
        self.step_number += 1

    def finish(self) -> None:
        """Give the module its float32 weights."""
        for rounded, exact in zip(self.rounded, self.exact, strict=True):
            rounded.data = exact.data

    def save(self, path: Path) -> None:
        """Write all that `resume` needs; the first process does it for all."""
        if self.part.rank == 0:
            parts = [item.state_dict() for item in self._stateful]
            weights = [exact.data for exact in self.exact]
            fresh = path.with_suffix(".new")
            torch.save((self.step_number, weights, parts), fresh)
            fresh.replace(path)

    def resume(self, path: Path) -> None:
        """Go on from a saved state, if there is one."""
        if not path.exists():
            return
        self.step_number, weights, parts = torch.load(path)
        for item, state in zip(self._stateful, parts, strict=True):
            item.load_state_dict(state)
        for rounded, exact, saved in zip(self.rounded, self.exact, weights, strict=True):
            exact.data.copy_(saved)
            rounded.data.copy_(saved)

    @property
    def _stateful(self) -> Sequence[Optimizer | LambdaLR]:
        return (*self.optimizers, *self.schedules)

    def _share_gradients(self) -> None:
        """Move the gradients to the float32 weights, averaged over the processes."""
        parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.rounded]
        flat = torch.cat([part.flatten().float() for part in parts])
        self.part.average(flat)
        pieces = torch.split(flat, [p.numel() for p in self.exact])
        for rounded, exact, piece in zip(self.rounded, self.exact, pieces, strict=True):
            rounded.grad, exact.grad = None, piece.view_as(exact)


def _groups(
    names: list[str], weights: list[nn.Parameter], rate: float, factors: Mapping[str, float]
) -> dict[bool, list[dict[str, object]]]:
    """One group a weight, with its learning rate; by whether it is a hidden matrix."""
    groups: dict[bool, list[dict[str, object]]] = {True: [], False: []}
    for name, weight in zip(names, weights, strict=True):
        factor = next((f for start, f in factors.items() if name.startswith(start)), 1.0)
        hidden = weight.ndim == 2 and not any(part in name for part in _OUTSIDE)
        groups[hidden].append({"params": [weight], "lr": rate * factor})
    return groups


def warm_linear(step: int, steps: int) -> float:
    """The learning rate's factor: up in WARM_STEPS, then linearly down to zero."""
    return min((step + 1) / WARM_STEPS, (steps - step) / max(steps - WARM_STEPS, 1))
