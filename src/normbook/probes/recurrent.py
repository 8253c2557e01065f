"""A recurrent network on digits read row by row, with sequences of different lengths: where has batch norm its batch?

Time step t reads pixel row t of an 8x8 digit. A sequence of length L ends after L rows; what stands behind its end is
padding, which no statistic and no state may see.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normbook import data, norms
from normbook.errors import InputError, choose
from normbook.models.layers import Linear
from normbook.train.config import streams
from normbook.train.optimizers import Adam

ARMS = ("none", "batch_norm", "layer_norm")
LENGTHS = (3, 4, 5, 6, 7, 8)  # rows; every batch has as many sequences of each


@dataclass(frozen=True)
class Reader:
    """One run, as data: ``arm`` of ``ARMS``, ``batch_size`` a multiple of 6 (as many sequences of each length)."""

    arm: str
    lr: float
    batch_size: int
    epochs: int
    width: int = 32
    n_train: int | None = None
    norm: str = "normbook.norms"

    def __post_init__(self) -> None:
        choose("arm", self.arm, ARMS)
        if self.batch_size < 1 or self.batch_size % len(LENGTHS) or self.epochs < 1:
            raise InputError(f"batch_size {self.batch_size} is not a multiple of {len(LENGTHS)}, or epochs is below 1")


class Elman(nn.Module):
    """M Elman networks side by side: ``h_t = tanh(gamma * norm(W_x x_t + W_h h_{t-1}) + beta)`` and a linear read-out.

    The norm stands directly before the nonlinearity, on the sum of both terms (Ba, Kiros & Hinton 2016, section 3.1).
    Batch norm keeps statistics of its own for each time step and shares gamma and beta between them (Cooijmans et al.
    2017, section 3). At time step t its batch are the sequences that are still running. Where that is one sequence, its
    output is beta, as the formula has it; torch.nn refuses. ``masked=False`` lets padding into its statistics.
    """

    def __init__(
        self, arm: str, width: int, space: ModuleType, members: int = 1, inputs: int = 8, steps: int = 8,
        classes: int = 10, masked: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        self.arm, self.width, self.members, self.masked = arm, width, members, masked
        self.input, self.hidden = Linear(inputs, width, members), Linear(width, width, members)
        self.output = Linear(width, classes, members)
        self.gamma = nn.Parameter(torch.ones(members * width), requires_grad=arm != "none")
        self.beta = nn.Parameter(torch.zeros(members * width))
        self.input.bias.requires_grad_(False)  # beta is the bias
        self.hidden.bias.requires_grad_(False)
        if arm == "batch_norm":
            self.norms = nn.ModuleList(space.BatchNorm1d(members * width, affine=False) for _ in range(steps))
        elif arm == "layer_norm":
            self.norms = nn.ModuleList([space.LayerNorm(width, elementwise_affine=False)])

    def initialize(self, generators: Sequence[torch.Generator]) -> None:
        """Draw the weights of each network from its own generator: variance 1 / fan-in, the same in every arm."""
        for layer in (self.input, self.hidden, self.output):
            n = layer.weight.numel() // self.members
            draws = torch.cat([torch.randn(n, generator=g) for g in generators])
            with torch.no_grad():
                layer.weight.copy_(draws.view_as(layer.weight) / math.sqrt(layer.weight.shape[1]))

    def states(self, rows: Tensor, lengths: Tensor) -> Iterator[Tensor]:
        """The state [batch, M * width] after each row of ``rows`` [batch, M, steps, inputs].

        The state of a sequence that has ended (``lengths`` [batch], in rows) stays as it is.
        """
        h = rows.new_zeros(len(rows), self.members * self.width)
        for t in range(rows.shape[2]):
            alive = lengths > t
            a = self.input(rows[:, :, t].flatten(1)) + self.hidden(h)
            h = torch.where(alive[:, None], torch.tanh(self._normalize(a, t, alive)), h)
            yield h

    def _normalize(self, a: Tensor, t: int, alive: Tensor) -> Tensor:
        if self.arm == "layer_norm":
            a = self.norms[0](a.view(len(a), self.members, -1)).flatten(1)
        elif self.arm == "batch_norm":
            batch = alive if self.masked else torch.ones_like(alive)
            if self.training and int(batch.sum()) <= 1:
                a = a * 0  # one value: it is its own mean
            else:
                a = torch.zeros_like(a).masked_scatter(batch[:, None], self.norms[t](a[batch]))
        return a * self.gamma + self.beta

    def forward(self, rows: Tensor, lengths: Tensor) -> Tensor:
        """Logits [batch, M, classes] at the end of each sequence."""
        *_, h = self.states(rows, lengths)
        return self.output(h).view(len(rows), self.members, -1)


def lengths_of(batch_size: int) -> Tensor:
    """The lengths in a batch: as many sequences of 3, 4, ... 8 rows each."""
    return torch.tensor(LENGTHS).repeat_interleave(batch_size // len(LENGTHS))


def read(config: Reader, seeds: Sequence[tuple[int, int]]) -> list[dict[str, object]]:
    """Train one network a seed, side by side with Adam, and measure each on all test digits, cut off at each length.

    Each result: ``train_loss``, the mean minibatch loss (nats) of the last tenth of the steps, ``curve``, the minibatch
    losses [steps], ``validation_loss`` (nats, mean over the lengths) and ``test_loss``, one number (nats) a length of
    ``LENGTHS``, in inference mode.
    """
    space = norms.namespace(config.norm, ("BatchNorm1d", "LayerNorm"))
    dataset = data.load()
    train = data.Split(dataset.train.images[: config.n_train], dataset.train.labels[: config.n_train])
    net = Elman(config.arm, config.width, space, len(seeds))
    net.initialize([torch.Generator().manual_seed(streams(seed)[0]) for seed in seeds])
    order = [torch.Generator().manual_seed(streams(seed)[1]) for seed in seeds]
    optimizer, lengths, curve = Adam(net, [config.lr] * len(seeds)), lengths_of(config.batch_size), []
    for _ in range(config.epochs):
        for images, labels in data.batches(train, config.batch_size, order):
            losses = _losses(net(images[:, :, 0], lengths), labels)
            optimizer.step(losses, 1.0)
            curve.append(losses.detach())
    found = torch.stack(curve, 1)
    net.eval()
    with torch.no_grad():
        validation, test = (_by_length(net, split).T for split in (dataset.validation, dataset.test))
    last = max(1, found.shape[1] // 10)
    return [
        {
            "train_loss": float(found[m, -last:].mean()), "curve": found[m].tolist(),
            "validation_loss": float(validation[m].mean()), "test_loss": test[m].tolist(),
        }
        for m in range(len(seeds))
    ]  # fmt: skip


def _by_length(net: Elman, split: data.Split) -> Tensor:
    """Loss [lengths, M] in nats on all images of ``split``, cut off after each number of rows."""
    rows = split.images.expand(-1, net.members, -1, -1)
    labels = split.labels[:, None].expand(-1, net.members)
    states = list(net.states(rows, torch.full((len(rows),), max(LENGTHS))))
    logits = (net.output(states[length - 1]).view(len(rows), net.members, -1) for length in LENGTHS)
    return torch.stack([_losses(each, labels) for each in logits])


def _losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of each network, [M], of logits [batch, M, classes]."""
    return F.cross_entropy(logits.transpose(1, 2), labels, reduction="none").mean(0)


def leak(arm: str, norm: str = "normbook.norms", masked: bool = True) -> float:
    """Largest change of a logit, in training mode, when what stands behind the ends of the sequences is replaced."""
    net = Elman(arm, 16, norms.namespace(norm, ("BatchNorm1d", "LayerNorm")), masked=masked).double()
    generator = torch.Generator().manual_seed(0)
    net.initialize([generator])
    lengths = lengths_of(12)
    rows = torch.randn(12, 1, 8, 8, generator=generator, dtype=torch.float64)
    other = rows + 3 * (torch.arange(8) >= lengths[:, None])[:, None, :, None]
    with torch.no_grad():
        return float((net(rows, lengths) - net(other, lengths)).abs().max())
