"""How the inputs of a network's layers shift while it learns, by three definitions, measured on runs in training.

1. Percentiles (Ioffe & Szegedy 2015, figure 1): how far the {15, 50, 85}th percentiles of a unit's input travel.
2. Distribution (Santurkar et al. 2018, figure 1): Wasserstein distance of a unit's input before and after one step.
3. Gradient (Santurkar et al. 2018, definition 2.1): change of a layer's gradient when the layers before it are updated.

A unit's input is what its nonlinearity takes: after the norm, its gamma and beta and the noise of noisy arms. The first
two are measured on fixed images, so that what changes is the network alone. Measuring never changes the training.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from normbook import models
from normbook.train import Config, Training
from normbook.train.loop import batch_losses, net_input

PERCENTILES = (0.15, 0.50, 0.85)
LOOKED_AT = 1000  # test images, of which each run says whether it is right about them


@dataclass(frozen=True)
class Followed:
    """What was measured on one run, at T times during its training, about U units of its last hidden layer.

    ``steps`` [T]: the steps taken before each time. ``percentiles`` [T, 3, U] of the units' inputs over the validation
    images. ``distance`` [T]: Wasserstein-1 distance of a unit's input before and after one step, in units of its
    standard deviation before, mean over units. ``difference`` and ``cosine`` [(T + 1) // 2, L-1], at every second time
    and for each of the L layers but the first: |G - G'| / |G| and the cosine of G and G', with G the gradient of the
    layer's weight on the step's batch and G' the same after the layers before it took the step. ``losses`` [steps]:
    training loss in nats, of a run that diverged up to that step. ``floor``: distances between batches with the final
    weights, by `batch_floor`, if asked for.
    ``validation_loss`` and ``test_loss`` (nats), ``right`` [test images, at most 1000] and ``right_moved`` (whether
    each test image, and its copy moved right by one pixel, is classified rightly) are in inference mode.
    """

    config: Config
    steps: np.ndarray
    percentiles: np.ndarray
    distance: np.ndarray
    difference: np.ndarray
    cosine: np.ndarray
    losses: np.ndarray
    floor: dict[str, float]
    validation_loss: float
    test_loss: float
    right: np.ndarray
    right_moved: np.ndarray
    diverged: bool

    @property
    def travel(self) -> float:
        """How far the percentiles travel in all, in units of the time-averaged width p85 - p15, mean over units."""
        return float(travel(self.percentiles).mean())

    @property
    def final_loss(self) -> float:
        """Mean training loss of the last tenth of the steps, in nats; inf where the run diverged."""
        return float("inf") if self.diverged else float(self.losses[-max(1, len(self.losses) // 10) :].mean())


def travel(percentiles: np.ndarray) -> np.ndarray:
    """How far each unit's ``percentiles`` [T, 3, U] travel, mean of the three, in its mean width p85 - p15: [U]."""
    path = np.abs(np.diff(percentiles, axis=0)).sum(0).mean(0)
    return path / (percentiles[:, 2] - percentiles[:, 0]).mean(0)


def wasserstein(x: Tensor, y: Tensor) -> Tensor:
    """Wasserstein-1 distance of each column of x [n, U] and y [n, U], in units of x's standard deviation: [U]."""
    return (x.sort(0).values - y.sort(0).values).abs().mean(0) / x.std(0, correction=0).clamp_min(1e-12)


def follow(configs: Sequence[Config], times: int = 20, floor: bool = False) -> list[Followed]:
    """Train a bundle of multilayer perceptrons and measure each run at ``times`` equally spaced steps.

    With ``floor`` the distances between batches are measured too, with the final weights.
    """
    training = Training(configs)
    net, members = training.net, len(configs)
    assert isinstance(net, models.MLP)
    layers, dataset = parameters_by_layer(net), training.dataset
    probe = repeated(dataset.validation.images, members)
    wanted = np.unique(np.linspace(0, training.steps - 1, times).astype(int))
    percentiles: list[Tensor] = []
    distance: list[Tensor] = []
    difference: list[Tensor] = []
    cosine: list[Tensor] = []
    steps = iter(training)
    for step in range(training.steps):
        if step not in wanted:
            if next(steps, None) is None:
                break
            continue
        before = unit_inputs(net, probe)
        old = [[p.detach().clone() for p in layer] for layer in layers]
        if next(steps, None) is None:
            break
        after = unit_inputs(net, probe)
        quantiles = torch.quantile(before, torch.tensor(PERCENTILES), dim=0)
        percentiles.append(quantiles.view(3, members, -1))
        distance.append(wasserstein(before, after).view(members, -1).mean(1))
        if len(distance) % 2 == 1:  # every second time: it takes a forward and backward pass a layer
            for values, found in zip((difference, cosine), gradient_shift(training, layers, old), strict=True):
                values.append(found)
    bad = training.first_bad.tolist()
    between = batch_floor(training) if floor else {}
    validation_loss, _ = evaluate(net, dataset.validation.images, dataset.validation.labels)
    test_loss, right = evaluate(net, dataset.test.images, dataset.test.labels)
    first = dataset.test.take(slice(LOOKED_AT))
    _, right_moved = evaluate(net, moved_right(first), dataset.test.labels[:LOOKED_AT])
    stacked = [torch.stack(each).numpy() for each in (percentiles, distance, difference, cosine)]
    return [
        Followed(
            config=one,
            steps=wanted[: len(stacked[0])],
            percentiles=stacked[0][:, :, m],
            distance=stacked[1][:, m],
            difference=stacked[2][:, m],
            cosine=stacked[3][:, m],
            losses=training.losses[: bad[m] if bad[m] >= 0 else training.steps, m].numpy(),
            floor={name: float(value[m]) for name, value in between.items()},
            validation_loss=float(validation_loss[m]),
            test_loss=float(test_loss[m]),
            right=right[:LOOKED_AT, m].numpy(),
            right_moved=right_moved[:, m].numpy(),
            diverged=bad[m] >= 0,
        )
        for m, one in enumerate(configs)
    ]


@contextlib.contextmanager
def untouched(net: nn.Module) -> Iterator[None]:
    """Within, the net may be called in training mode; after, running statistics and noise streams are as before."""
    buffers = [(b, b.clone()) for b in net.buffers()]
    generators = {g for m in net.modules() if isinstance(m, models.Random) for g in m.generators}
    states = [(g, g.get_state()) for g in generators]
    try:
        yield
    finally:
        for buffer, value in buffers:
            buffer.copy_(value)
        for generator, state in states:
            generator.set_state(state)


def repeated(images: Tensor, members: int) -> Tensor:
    """The same images [n, c, h, w] for all runs, as the network takes them."""
    return net_input(images[:, None].expand(-1, members, -1, -1, -1))


@torch.no_grad()
def unit_inputs(net: models.MLP, images: Tensor) -> Tensor:
    """The inputs [n, M * U] of the last nonlinearity, in training mode: the norms use the statistics of ``images``."""
    last = [m for m in net.layers if isinstance(m, nn.Sigmoid | nn.ReLU)][-1]
    seen: list[Tensor] = []
    handle = last.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach().clone()))
    try:
        with untouched(net):
            net(images)
    finally:
        handle.remove()
    return seen[0]


def parameters_by_layer(net: models.MLP) -> list[list[nn.Parameter]]:
    """The parameters of each layer: weight and bias of its linear map first, then gamma and beta of its norm."""
    layers: list[list[nn.Parameter]] = []
    for module in net.layers:
        if isinstance(module, models.Linear):
            layers.append([])
        layers[-1].extend(module.parameters())
    return layers


def gradient_shift(
    training: Training, layers: Sequence[Sequence[nn.Parameter]], old: Sequence[Sequence[Tensor]]
) -> tuple[Tensor, Tensor]:
    """(|G - G'| / |G|, cosine of G and G'), each [M, L-1], for the step just taken, whose start was ``old``."""
    members = len(training.configs)
    new = [[p.detach().clone() for p in layer] for layer in layers]

    def gradients(updated: int, wanted: Sequence[nn.Parameter]) -> list[Tensor]:
        with torch.no_grad():
            for i, layer in enumerate(layers):
                for p, value in zip(layer, (new if i < updated else old)[i], strict=True):
                    p.copy_(value)
        with untouched(training.net):
            loss = batch_losses(training.net, training.images, training.labels).sum()
            return [g.reshape(members, -1) for g in torch.autograd.grad(loss, wanted)]

    first = gradients(0, [layer[0] for layer in layers])
    difference: list[Tensor] = []
    cosine: list[Tensor] = []
    for i, g in list(enumerate(first))[1:]:
        (moved,) = gradients(i, [layers[i][0]])
        difference.append((g - moved).norm(dim=1) / g.norm(dim=1))
        cosine.append(torch.cosine_similarity(g, moved, dim=1))
    with torch.no_grad():
        for layer, values in zip(layers, new, strict=True):
            for p, value in zip(layer, values, strict=True):
                p.copy_(value)
    return torch.stack(difference, 1), torch.stack(cosine, 1)


def batch_floor(training: Training) -> dict[str, Tensor]:
    """Mean Wasserstein distance of the units' inputs between successive batches, weights as they are, [M] each.

    "same": a batch and itself; "shuffled", "again": batches in two random orders; "sorted": batches sorted by class.
    The labels are those of the data set, one for all runs.
    """
    net, images, members = training.net, training.train.images, len(training.configs)
    assert isinstance(net, models.MLP)
    labels = training.dataset.train.labels[: len(images)]
    size = training.config.batch_size
    generator = torch.Generator().manual_seed(0)
    shuffled, again = (torch.randperm(len(images), generator=generator) for _ in range(2))
    by_class = shuffled[labels[shuffled].sort(stable=True).indices]

    def between(order: Tensor) -> Tensor:
        inputs = [unit_inputs(net, repeated(images[part], members)) for part in order.split(size) if len(part) == size]
        far = torch.stack([wasserstein(a, b) for a, b in zip(inputs, inputs[1:], strict=False)])
        return far.mean(0).view(members, -1).mean(1)

    twice = shuffled[:size].repeat(2)
    return {
        "same": between(twice), "shuffled": between(shuffled), "again": between(again), "sorted": between(by_class),
    }  # fmt: skip


@torch.no_grad()
def evaluate(net: models.MLP, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """(loss in nats [M], whether each image is classified rightly [n, M]) of each run in inference mode."""
    training = net.training
    net.eval()
    logits = net(repeated(images, net.members))
    net.train(training)
    loss = -logits.log_softmax(2).gather(2, labels[:, None, None].expand(-1, net.members, 1))[:, :, 0].mean(0)
    return loss, logits.argmax(2) == labels[:, None]


def moved_right(images: Tensor) -> Tensor:
    """Images [n, c, h, w] moved right by one pixel; background, the darkest pixel, comes in from the left."""
    moved = torch.full_like(images, float(images.min()))
    moved[..., 1:] = images[..., :-1]
    return moved
