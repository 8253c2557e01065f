"""What the norms of a trained network do at inference: running, batch and re-estimated statistics, variance shift."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn


def stored(net: nn.Module) -> list[nn.Module]:
    """The norms that keep running statistics, in the order of the network."""
    return [m for m in net.modules() if isinstance(getattr(m, "running_var", None), Tensor)]


@contextlib.contextmanager
def batch_statistics(net: nn.Module) -> Iterator[None]:
    """Within: the norms use the statistics of each batch, dropout is off. After: all is as it was before."""
    norms = stored(net)
    before = [(m, m.training, {k: v.clone() for k, v in m.named_buffers()}) for m in net.modules() if m in norms]
    training = net.training
    net.eval()
    for m in net.modules():
        if m in norms or hasattr(m, "norm"):  # a wrapper of a norm, as that of ghost batches
            m.training = True
    try:
        yield
    finally:
        net.train(training)
        for m, mode, buffers in before:
            m.training = mode
            for name, value in buffers.items():
                getattr(m, name).copy_(value)


@torch.no_grad()
def reestimate(net: nn.Module, batches: Iterable[Tensor]) -> None:
    """Replace the running statistics by the mean of those of ``batches``, with weights fixed and dropout off.

    Inputs are [batch, M * channels, h, w]. Source: Li et al. 2018, section 4.2 (without augmentation).
    """
    training = net.training
    net.eval()
    momenta: list[tuple[Any, Any]] = [(m, m.momentum) for m in stored(net)]
    for m, _ in momenta:
        m.reset_running_stats()
        m.momentum = None  # the plain mean over batches
        m.training = True
    for batch in batches:
        net(batch)
    for m, momentum in momenta:
        m.momentum = momentum
    net.train(training)


@torch.no_grad()
def variance_shift(net: nn.Module, batches: Iterable[Tensor], members: int) -> tuple[Tensor, Tensor]:
    """(moving, real) variance at the input of each norm, each [norms, M], averaged over channels.

    ``moving`` is the running variance; ``real`` the variance of the norm's input over ``batches`` in inference mode
    (biased, over examples and pixels). Source: Li et al. 2018, section 4.1.
    """
    norms, training = stored(net), net.training
    sums: dict[nn.Module, list[Tensor]] = {m: [] for m in norms}

    def watch(m: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0].detach().double()
        dims = (0, *range(2, x.dim()))
        n = torch.tensor(x.numel() / x.shape[1])
        sums[m].append(torch.stack([x.sum(dims), x.square().sum(dims), n.to(x).expand(x.shape[1])]))

    handles = [m.register_forward_pre_hook(watch) for m in norms]
    net.eval()
    try:
        for batch in batches:
            net(batch)
    finally:
        for handle in handles:
            handle.remove()
        net.train(training)
    moving, real = [], []
    for m in norms:
        total, square, n = torch.stack(sums[m]).sum(0)
        real.append((square / n - (total / n).square()).view(members, -1).mean(1))
        moving.append(m.running_var.double().view(members, -1).mean(1))  # type: ignore[operator, union-attr]
    if not norms:
        return torch.zeros(0, members), torch.zeros(0, members)
    return torch.stack(moving), torch.stack(real)
