"""Optimizers over the runs of one network, each run with its own learning rate."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim.adam import adam
from torch.optim.sgd import sgd

from normbook import models


class SGD:
    """``torch.optim.SGD`` (heavy ball, fused) over the runs of one network, each with its own learning rate.

    The step is linear in gradient and weight decay, so run m's learning rate is the largest one times the factor
    ``loss_scale[m]`` on its loss and on its weight decay. Weight decay acts on the weights of convolutions and linear
    layers. Fixup's scalars take a tenth of the learning rate, as in its authors' code.
    """

    def __init__(self, net: nn.Module, lrs: Sequence[float], momentum: float, weight_decay: float) -> None:
        parameters = [p for p in net.parameters() if p.requires_grad]
        decayed: list[Tensor] = [m.weight for m in net.modules() if isinstance(m, nn.Conv2d | models.Linear)]
        scalars: list[Tensor] = [m.weight for m in net.modules() if isinstance(m, models.Scalar) and m.fixup]
        rest: list[Tensor] = [p for p in parameters if not any(p is q for q in (*decayed, *scalars))]
        self.lr, self.momentum, self.weight_decay = max(lrs), momentum, weight_decay
        self.loss_scale = torch.tensor([lr / self.lr for lr in lrs], device=parameters[0].device)
        self.equal = min(lrs) == max(lrs)
        # (parameters, weight decay, factor on the learning rate)
        self.groups: list[tuple[list[Tensor], float, float]] = [
            (decayed, weight_decay if self.equal else 0.0, 1.0),
            (rest, 0.0, 1.0),
            (scalars, 0.0, 0.1),
        ]
        self.buffers: dict[Tensor, Tensor] = {p: torch.zeros_like(p) for p in parameters}

    def step(self, losses: Tensor, scale: float | Tensor) -> None:
        """Take one step of all runs down their own ``losses`` [M], at ``scale`` times their learning rates.

        A scale that is a tensor is read on the device: so a step that is recorded once follows a schedule.
        """
        for p in self.buffers:
            p.grad = None
        (losses.sum() if self.equal else (losses * self.loss_scale).sum()).backward()
        if not self.equal and self.weight_decay:
            decay = self.weight_decay * self.loss_scale
            with torch.no_grad():
                for p in self.groups[0][0]:
                    assert p.grad is not None
                    per_run = decay.repeat_interleave(len(p) // len(decay)).view(-1, *[1] * (p.dim() - 1))
                    p.grad.addcmul_(p, per_run)
        for parameters, weight_decay, factor in self.groups:
            used = [p for p in parameters if p.grad is not None]
            if used:
                # the function behind torch.optim.SGD: the class imports the compiler, 2.6 s a worker process
                sgd(
                    used, [p.grad for p in used if p.grad is not None], [self.buffers[p] for p in used],
                    fused=True, foreach=False, weight_decay=weight_decay, momentum=self.momentum,
                    lr=self.lr * scale * factor, dampening=0.0, nesterov=False, maximize=False,
                )  # fmt: skip


class Adam:
    """``torch.optim.Adam`` (Kingma & Ba 2015, fused) over the runs of one network, each with its own learning rate.

    Adam's step is a learning rate times a direction that does not depend on it. So the fused step computes the
    directions of all runs at learning rate 1, and each run goes its own multiple of it.
    """

    def __init__(self, net: nn.Module, lrs: Sequence[float]) -> None:
        self.parameters: list[Tensor] = [p for p in net.parameters() if p.requires_grad]
        each = torch.tensor(lrs, dtype=torch.float64)
        per_row = [each.repeat_interleave(len(p) // len(lrs)) for p in self.parameters]
        self.lrs = [lr.view(-1, *[1] * (p.dim() - 1)).to(p) for p, lr in zip(self.parameters, per_row, strict=True)]
        self.directions = [torch.zeros_like(p) for p in self.parameters]
        self.averages = [torch.zeros_like(p) for p in self.parameters]
        self.squares = [torch.zeros_like(p) for p in self.parameters]
        self.steps = [torch.zeros((), device=p.device) for p in self.parameters]

    def step(self, losses: Tensor, scale: float | Tensor) -> None:
        """As `SGD.step`."""
        for p in self.parameters:
            p.grad = None
        losses.sum().backward()
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in self.parameters]
        with torch.no_grad():
            torch._foreach_zero_(self.directions)
            adam(
                self.directions, gradients, self.averages, self.squares, [], self.steps, foreach=False, fused=True,
                amsgrad=False, beta1=0.9, beta2=0.999, lr=1.0, weight_decay=0.0, eps=1e-8, maximize=False,
            )  # fmt: skip
            for p, direction, lr in zip(self.parameters, self.directions, self.lrs, strict=True):
                if isinstance(scale, Tensor):
                    p.addcmul_(direction, lr * scale)
                else:
                    p.addcmul_(direction, lr, value=scale)
