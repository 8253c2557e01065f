"""Train one run, or a batch of runs that differ only in seed and learning rate, side by side in one network.

Divergence is an outcome, never an exception: a step's loss is not finite or above 1000 (Bjorck et al. 2018, section
3.2). A device flag keeps each run's first bad step; the host reads it every 50 steps and at the end of an epoch.
"""

from __future__ import annotations

import platform
import resource
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.sgd import sgd

from normbook import data, models, norms
from normbook.errors import InputError, choose

DIVERGED = 1e3  # nats
FLAG_EVERY = 50  # steps between two reads of the divergence flag
CURVE_POINTS = 50
PRECISIONS = ("auto", "fp32", "bf16")
DEVICES = ("auto", "cpu", "cuda")


@dataclass(frozen=True)
class Config:
    """One run, as data. Its length is given in epochs or in steps, exactly one of them.

    ``schedule``: "halve" keeps the learning rate for the first half of the steps, then halves it after every twentieth
    of them (De & Smith 2020: 200 epochs, halved every 10 from epoch 100); "constant" keeps it. ``weight_decay`` (L2)
    acts on the weights of convolutions and linear layers only. ``n_train`` takes the first training images. ``seed`` is
    (base seed, index of the run): base seeds share no run. ``evaluate`` names the splits measured at the end.
    """

    arm: str
    lr: float | None = None
    model: str = "wrn"
    depth: int = 16
    width: float = 1
    activation: str = "relu"
    norm: str = "normbook.norms"
    data: str = "digits"
    n_train: int | None = None
    augment: bool = False
    batch_size: int = 64
    epochs: int | None = None
    steps: int | None = None
    schedule: str = "halve"
    momentum: float = 0.9
    weight_decay: float = 5e-4
    dropout: float = 0.0
    precision: str = "fp32"
    evaluate: tuple[str, ...] = ("train", "validation", "test")
    seed: tuple[int, int] = (0, 0)

    def __post_init__(self) -> None:
        for name in ("width", "lr", "momentum", "weight_decay", "dropout"):  # 1 and 1.0 are one run: one name
            value = getattr(self, name)
            object.__setattr__(self, name, None if value is None else float(value))
        choose("arm", self.arm, models.ARMS)
        choose("data set", self.data, data.DATASETS)
        choose("model", self.model, ("wrn", "mlp"))
        choose("schedule", self.schedule, ("halve", "constant"))
        choose("precision", self.precision, ("fp32", "bf16"))
        for split in self.evaluate:
            choose("split", split, ("train", "validation", "test"))
        if (self.epochs is None) == (self.steps is None):
            raise InputError(f"give epochs or steps, exactly one (epochs={self.epochs}, steps={self.steps})")
        if self.batch_size < 1 or (self.epochs or self.steps or 0) < 1:
            raise InputError("batch_size, epochs and steps are at least 1")
        if self.lr is not None and not 0 < self.lr < float("inf"):
            raise InputError(f"learning rate {self.lr} is not a positive number")

    def bundle(self) -> Config:
        """What runs must share to be trained in one batch: all but seed and learning rate."""
        return replace(self, seed=(0, 0), lr=None)


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

    def step(self, losses: Tensor, scale: float) -> None:
        """Take one step of all runs down their own ``losses`` [M], at ``scale`` times their learning rates."""
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


def lr_scale(config: Config, step: int, steps: int) -> float:
    """The learning rate at ``step`` of ``steps`` as a multiple of ``config.lr``."""
    if config.schedule == "constant":
        return 1.0
    twentieths = (20 * step) // steps
    return 0.5 ** max(0, twentieths - 9)


def streams(seed: tuple[int, int]) -> tuple[int, int, int]:
    """Three independent seeds of one run, for the model, the order and the augmentation.

    Run i of base seed s draws from ``numpy.random.SeedSequence([s, i])``.
    """
    model, order, augmentation = np.random.SeedSequence(seed).generate_state(3, np.uint64)
    return int(model) >> 1, int(order) >> 1, int(augmentation) >> 1  # torch takes 63 bits


def resolve_device(name: str) -> str:
    """``auto`` is the GPU where there is one, else the CPU.

    Raises:
        InputError: an unknown name, or ``cuda`` where there is none.
    """
    choose("device", name, DEVICES)
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("device 'cuda' asked for, but torch sees no GPU here; use --device auto or cpu")
    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name


@cache
def bf16_trains(device: str) -> bool:
    """Whether a bf16 convolution runs backward here: some CPUs lack it, so one tiny convolution is tried."""
    try:
        layer = nn.Conv2d(16, 16, 3, padding=1, device=device)
        with torch.autocast(device, torch.bfloat16):
            loss = layer(torch.ones(2, 16, 8, 8, device=device)).float().sum()
        loss.backward()
        return bool(torch.isfinite(loss))
    except RuntimeError:
        return False


def resolve_precision(name: str, scale: str, device: str) -> str:
    """``auto`` is fp32 at scale quick, and beyond it bf16 where its backward pass works.

    Raises:
        InputError: an unknown name, or ``bf16`` asked for where it does not train.
    """
    choose("precision", name, PRECISIONS)
    if name == "auto":
        return "bf16" if scale not in ("quick", "tiny") and bf16_trains(device) else "fp32"
    if name == "bf16" and not bf16_trains(device):
        raise InputError(f"precision 'bf16' asked for, but a bf16 convolution has no backward pass on this {device}")
    return name


def prepare_process(threads: int = 1) -> None:
    """Set threads and denormals; call it before the first operation of a worker process.

    Denormal weights make a convolution some 40 times slower, and one thread makes sums independent of the core count.
    """
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)


def build(configs: Sequence[Config], dataset: data.Dataset, device: str) -> models.WideResNet | models.MLP:
    """The network of a bundle of runs, initialized, on ``device``."""
    config, members = configs[0], len(configs)
    arm = models.ARMS[config.arm]
    kinds = ("BatchNorm1d", "BatchNorm2d") if arm.norm or arm.norm_logits or arm.norm_features else ()
    space = norms.namespace(config.norm, kinds)
    channels, height, width = dataset.shape
    net: models.WideResNet | models.MLP
    if config.model == "wrn":
        net = models.WideResNet(
            config.depth, config.width, channels, dataset.classes, arm, space, members, config.dropout
        )
    else:
        net = models.MLP(
            config.depth, int(config.width), channels * height * width, dataset.classes, arm, space, members,
            config.dropout, config.activation,
        )  # fmt: skip
    models.initialize(net, arm, [torch.Generator().manual_seed(streams(c.seed)[0]) for c in configs])
    for layer in net.modules():
        if isinstance(layer, models.Dropout):
            # a stream of its own: the augmentation's seed with its last bit flipped
            layer.generators = [torch.Generator(device).manual_seed(streams(c.seed)[2] ^ 1) for c in configs]
    net.to(device)
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return net


def run(configs: Sequence[Config], device: str = "cpu") -> list[dict[str, Any]]:
    """Train a bundle of runs; return one result a run: outcome, final values, curve, and where and how long it ran.

    ``final`` holds loss (nats) and accuracy (share) of each evaluated split in inference mode, and ``step_loss``, the
    mean minibatch loss of the last tenth of the steps (nats). It is empty for a run that diverged. ``seconds`` is a
    run's share of the bundle's time.

    Raises:
        InputError: runs that do not belong in one bundle, or a run without a learning rate.
    """
    config = configs[0]
    if len({c.bundle() for c in configs}) != 1:
        raise InputError("runs trained side by side may differ in seed and learning rate only")
    lrs = [c.lr for c in configs if c.lr is not None]
    if len(lrs) != len(configs):
        raise InputError("a run has no learning rate: choose one on the validation split first")
    started, clock = time.time(), time.perf_counter()
    dataset = data.load(config.data, device)
    train = dataset.train
    n = len(train) if config.n_train is None else config.n_train
    if not config.batch_size <= n <= len(train):
        raise InputError(f"{n} training images: not between batch_size {config.batch_size} and {len(train)}")
    train = data.Split(train.images[:n], train.labels[:n])
    per_epoch = len(train) // config.batch_size
    steps = config.steps or per_epoch * (config.epochs or 0)
    net = build(configs, dataset, device)
    net.train()
    optimizer = SGD(net, lrs, config.momentum, config.weight_decay)
    losses, first_bad = _train(net, optimizer, config, configs, train, dataset, steps, device)
    final = _evaluate(net, config, train, dataset)
    seconds = (time.perf_counter() - clock) / len(configs)
    results = []
    for m, one in enumerate(configs):
        bad = int(first_bad[m])
        values = {name: float(value[m]) for name, value in final.items()} if bad < 0 else {}
        if not np.isfinite(list(values.values())).all():  # the last step itself destroyed the net
            bad, values = steps, {}
        outcome = {"diverged_at": bad} if bad >= 0 else {"finished": True}
        curve = losses[:, m][: bad if bad >= 0 else steps]
        if bad < 0:
            values["step_loss"] = float(curve[-max(1, steps // 10) :].mean())
        results.append(
            {
                "config": asdict(one),
                "data_hash": dataset.content_hash,
                "outcome": outcome,
                "final": values,
                "curves": {"train_loss": _thin(curve)},
                "device": describe_device(device),
                "threads": torch.get_num_threads(),
                "members": len(configs),
                "compiled": False,
                "versions": {"python": platform.python_version(), "torch": torch.__version__},
                "seconds": seconds,
                "peak_memory_mb": _peak_memory_mb(device),
                "start": started,
                "end": time.time(),
            }
        )
    return results


def _train(
    net: nn.Module,
    optimizer: SGD,
    config: Config,
    configs: Sequence[Config],
    train: data.Split,
    dataset: data.Dataset,
    steps: int,
    device: str,
) -> tuple[np.ndarray, np.ndarray]:
    """Take up to ``steps`` steps; return the losses [steps, M] (nats) and each run's first bad step (-1: none)."""
    order = [torch.Generator(device).manual_seed(streams(c.seed)[1]) for c in configs]
    augmentation = [torch.Generator(device).manual_seed(streams(c.seed)[2]) for c in configs]
    losses = torch.zeros(steps, len(configs), device=device)
    first_bad = torch.full((len(configs),), -1, device=device)
    step = 0
    while step < steps:
        epoch = data.batches(
            train, config.batch_size, order, augmentation if config.augment else None, dataset.pad, dataset.flip
        )
        for images, labels in epoch:
            loss = _losses(net, images, labels, config.precision)
            optimizer.step(loss, lr_scale(config, step, steps))
            losses[step] = loss.detach()
            bad = ~(losses[step] <= DIVERGED)  # true for nan too
            first_bad = torch.where(bad & (first_bad < 0), step, first_bad)
            step += 1
            if step == steps or (step % FLAG_EVERY == 0 and bool((first_bad >= 0).all())):
                break
        if bool((first_bad >= 0).all()):
            break
    return losses.cpu().numpy(), first_bad.cpu().numpy()


def _input(images: Tensor) -> Tensor:
    """[batch, M, c, h, w] -> [batch, M * c, h, w], channels last: never read slower here on CPU."""
    return images.flatten(1, 2).contiguous(memory_format=torch.channels_last)


def _losses(net: nn.Module, images: Tensor, labels: Tensor, precision: str) -> Tensor:
    """Mean cross-entropy of each run on its own batch, [M], in nats and fp32."""
    with torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bf16"):
        logits = net(_input(images))
    batch, members, classes = logits.shape
    loss = F.cross_entropy(logits.float().reshape(-1, classes), labels.reshape(-1), reduction="none")
    return loss.view(batch, members).mean(0)


@torch.no_grad()
def _evaluate(net: nn.Module, config: Config, train: data.Split, dataset: data.Dataset) -> dict[str, Tensor]:
    """Loss (nats) and accuracy (share) of each run, [M] each, in inference mode, by split."""
    net.eval()
    splits = {"train": train, "validation": dataset.validation, "test": dataset.test}
    members = net.members
    values: dict[str, Tensor] = {}
    for name in config.evaluate:
        split, loss, right = splits[name], torch.zeros(()), torch.zeros(())
        for images, labels in zip(split.images.split(250), split.labels.split(250), strict=True):
            everyone = images[:, None].expand(-1, members, -1, -1, -1)
            with torch.autocast(images.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
                logits = net(_input(everyone)).float()
            each = F.cross_entropy(logits.transpose(1, 2), labels[:, None].expand(-1, members), reduction="none")
            loss = loss.to(each.device) + each.sum(0)
            right = right.to(each.device) + (logits.argmax(2) == labels[:, None]).sum(0)
        values |= {f"{name}_loss": loss / len(split), f"{name}_accuracy": right / len(split)}
    return values


def _thin(curve: np.ndarray) -> list[list[float]]:
    """At most 50 points [step, mean loss of the steps since the last point]; what is not finite is left out."""
    edges = np.unique(np.linspace(0, len(curve), CURVE_POINTS + 1).astype(int))
    points = [[int(b), float(curve[a:b].mean())] for a, b in zip(edges, edges[1:], strict=False)]
    return [point for point in points if np.isfinite(point[1])]


def describe_device(device: str) -> str:
    """The name of the processor that computes, as records and pages print it."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    try:
        with open("/proc/cpuinfo") as file:
            models_ = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    except OSError:
        models_ = []
    return models_[0] if models_ else platform.processor() or platform.machine()


def _peak_memory_mb(device: str) -> float:
    """Peak memory of the GPU, or of this process, in MiB."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    unit = 2**20 if platform.system() == "Darwin" else 2**10  # ru_maxrss: bytes on macOS, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
