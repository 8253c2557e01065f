"""Build the network of a bundle of runs, take its steps, and measure how it ends."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normbook import data, models, norms
from normbook.errors import InputError
from normbook.probes import inference
from normbook.train.capture import graphed
from normbook.train.config import Config, lr_scale, streams
from normbook.train.machine import describe_device, peak_memory_mb
from normbook.train.optimizers import SGD, Adam

DIVERGED = 1e3  # nats
FLAG_EVERY = 50  # steps between two reads of the divergence flag
CURVE_POINTS = 50
EVALUATION_BATCH = 250  # images; no number depends on it


def build(configs: Sequence[Config], dataset: data.Dataset, device: str) -> models.Net:
    """The network of a bundle of runs, initialized, on ``device``."""
    config, members = configs[0], len(configs)
    arm = config.arm_parts()
    space = norms.namespace(config.norm, needed_norms(config))
    channels, height, width = dataset.shape
    net: models.Net
    if config.model == "mlp":
        inputs = channels * height * width
        net = models.MLP(
            config.depth, int(config.width), inputs, dataset.classes, arm, space, members, config.activation
        )
    else:
        kinds: dict[str, type[models.WideResNet | models.ResNet | models.CNN]]
        kinds = {"wrn": models.WideResNet, "resnet": models.ResNet, "cnn": models.CNN}
        net = kinds[config.model](config.depth, config.width, channels, dataset.classes, arm, space, members)
    models.initialize(net, arm, [torch.Generator().manual_seed(streams(c.seed)[0]) for c in configs], config.init_std)
    # a stream of its own for noise: the augmentation's seed with its last bit flipped
    noise = [torch.Generator(device).manual_seed(streams(c.seed)[2] ^ 1) for c in configs]
    for layer in net.modules():
        if isinstance(layer, models.Random):
            layer.generators = noise
    net.to(device)
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    norms.fuse(net)
    _freeze(net, config, configs)
    return net


def needed_norms(config: Config) -> tuple[str, ...]:
    """The classes that a run takes from its norm namespace."""
    arm = models.ARMS[config.arm]
    flat = config.model == "mlp"
    names = {"batch": "BatchNorm1d" if flat else "BatchNorm2d", "layer": "LayerNorm" if flat else "GroupNorm"}
    needs = [names[arm.norm]] if arm.norm in names else ["RMSNorm"] if arm.norm == "rms" else []
    needs += ["BatchNorm2d"] if arm.norm_features and not flat else []
    needs += ["BatchNorm1d"] if arm.norm_logits else []
    return tuple(dict.fromkeys(needs))


def _freeze(net: models.Net, config: Config, configs: Sequence[Config]) -> None:
    """Let only gamma and beta learn, or as many random weights of other layers in each run (Frankle et al. 2021)."""
    if config.trainable == "all":
        return
    ordinary = [m for m in net.modules() if isinstance(m, nn.Conv2d | models.Linear | models.Scalar)]
    others = [p for m in ordinary for p in m.parameters(recurse=False)]
    affine = [p for p in net.parameters() if not any(p is q for q in others)]
    for p in others if config.trainable == "norm" else affine:
        p.requires_grad_(False)
    if config.trainable == "norm":
        return
    weights = [m.weight for m in ordinary]
    sizes = [w.numel() // len(configs) for w in weights]
    count = sum(p.numel() for p in affine) // len(configs)
    masks = torch.zeros(len(configs), sum(sizes))
    for mask, c in zip(masks, configs, strict=True):
        generator = torch.Generator().manual_seed(streams(c.seed)[0] ^ 1)
        mask[torch.randperm(sum(sizes), generator=generator)[:count]] = 1
    for p in others:
        p.requires_grad_(any(p is w for w in weights))
    for weight, part in zip(weights, masks.split(sizes, 1), strict=True):
        keep = part.reshape(weight.shape).to(weight.device)
        weight.register_hook(lambda gradient, keep=keep: gradient * keep)


class Training:
    """A bundle of runs in training. Iterating takes its steps; between two of them everything can be looked at.

    ``net`` is the network of all M runs, ``images`` [batch, M, channels, height, width] and ``labels`` [batch, M] are
    those of the last step, ``losses`` [steps, M] (nats) are filled step by step. The iterator gives the number of steps
    taken, and stops early where all runs have diverged.

    Raises:
        InputError: runs that do not belong in one bundle, a run without a learning rate, or a batch that the training
            images cannot fill.
    """

    images: Tensor
    labels: Tensor

    def __init__(self, configs: Sequence[Config], device: str = "cpu") -> None:
        self.configs, self.config, self.device = list(configs), configs[0], device
        config = self.config
        if len({c.kind() for c in configs}) != 1:
            raise InputError("runs trained side by side may differ in seed and learning rate only")
        lrs = [c.lr for c in configs if c.lr is not None]
        if len(lrs) != len(configs):
            raise InputError("a run has no learning rate: choose one on the validation split first")
        self.dataset = data.load(config.data, device)
        train = self.dataset.train
        n = len(train) if config.n_train is None else config.n_train
        if not config.batch_size <= n <= len(train):
            raise InputError(f"{n} training images: not between batch_size {config.batch_size} and {len(train)}")
        labels = data.relabel(
            train.labels[:n], self.dataset.classes, config.label_noise, [streams(c.seed)[1] ^ 1 for c in configs]
        )
        self.train = replace(train, pixels=train.pixels[:n], labels=labels)
        self.steps = config.steps or n // config.batch_size * (config.epochs or 0)
        self.net = build(configs, self.dataset, device)
        self.net.train()
        self.optimizer = (
            Adam(self.net, lrs)
            if config.optimizer == "adam"
            else SGD(self.net, lrs, config.momentum, config.weight_decay)
        )
        self.losses = torch.zeros(self.steps, len(configs), device=device)

    def _step(self, images: Tensor, labels: Tensor, scale: float | Tensor) -> Tensor:
        """Take one step of all runs at ``scale`` times their learning rates; return their losses before it, [M]."""
        losses = batch_losses(self.net, images, labels, self.config.precision)
        self.optimizer.step(losses, scale)
        return losses.detach()

    @property
    def first_bad(self) -> Tensor:
        """Each run's first bad step or -1, [M]; on the device, so only who looks at it waits."""
        bad = ~(self.losses <= DIVERGED)  # true for nan too
        return torch.where(bad.any(0), bad.int().argmax(0), -1)

    def __iter__(self) -> Iterator[int]:
        config, dataset, step = self.config, self.dataset, 0
        noise = dict.fromkeys(g for m in self.net.modules() if isinstance(m, models.Random) for g in m.generators)
        take = graphed(self._step, list(noise), self.device)
        order = [torch.Generator(self.device).manual_seed(streams(c.seed)[1]) for c in self.configs]
        augmentation = [torch.Generator(self.device).manual_seed(streams(c.seed)[2]) for c in self.configs]
        while step < self.steps:
            epoch = data.batches(
                self.train, config.batch_size, order, augmentation if config.augment else None, dataset.pad,
                dataset.flip,
            )  # fmt: skip
            begin = step
            for self.images, self.labels in epoch:
                self.losses[step] = take(self.images, self.labels, lr_scale(config, step, self.steps))
                step += 1
                yield step
                if step == self.steps or (step % FLAG_EVERY == 0 and bool((self.first_bad >= 0).all())):
                    break
            norms.count_batches(self.net, step - begin)
            if bool((self.first_bad >= 0).all()):
                break


def run(configs: Sequence[Config], device: str = "cpu") -> list[dict[str, Any]]:
    """Train a bundle of runs; return one result a run: outcome, final values, curve, and where and how long it ran.

    ``final`` holds loss (nats) and accuracy (share) of each evaluated split in inference mode, as ``test_loss`` with
    running statistics and ``test_loss_batch`` and ``test_loss_reestimated`` with others, and ``step_loss``, the mean
    minibatch loss of the last tenth of the steps (nats). It is empty for a run that diverged. ``curves`` has the
    training loss and, where asked for, ``variance_shift``: [norm, moving variance, real variance]. ``seconds`` is a
    run's share of the bundle's time.

    Raises:
        InputError: as `Training`.
    """
    started, clock = time.time(), time.perf_counter()
    training = Training(configs, device)
    for _ in training:
        pass
    config, steps = training.config, training.steps
    losses, first_bad = training.losses.cpu().numpy(), training.first_bad.cpu().numpy()
    moving = real = None
    if "variance_shift" in config.measure:
        shown = _chunks(training, config.batch_size, config.augment)  # as in training: else its lack is a shift too
        moving, real = inference.variance_shift(training.net, shown, len(configs))
    final = _evaluate(training)
    seconds = (time.perf_counter() - clock) / len(configs)
    results = []
    for m, one in enumerate(configs):
        bad = int(first_bad[m])
        values = {name: float(value[m]) for name, value in final.items()} if bad < 0 else {}
        if not np.isfinite(list(values.values())).all():  # the last step itself destroyed the net
            bad, values = steps, {}
        outcome = {"diverged_at": bad} if bad >= 0 else {"finished": True}
        curve = losses[:, m][: bad if bad >= 0 else steps]
        curves = {"train_loss": _thin(curve)}
        if bad < 0:
            values["step_loss"] = float(curve[-max(1, steps // 10) :].mean())
            if moving is not None and real is not None:
                pairs = zip(moving[:, m], real[:, m], strict=True)
                curves["variance_shift"] = [[i, float(a), float(b)] for i, (a, b) in enumerate(pairs)]
        results.append(
            {
                "config": asdict(one),
                "data_hash": training.dataset.content_hash,
                "outcome": outcome,
                "final": values,
                "curves": curves,
                "device": describe_device(device),
                "threads": torch.get_num_threads(),
                "members": len(configs),
                "compiled": False,
                "versions": {"python": platform.python_version(), "torch": torch.__version__},
                "seconds": seconds,
                "peak_memory_mb": peak_memory_mb(device),
                "start": started,
                "end": time.time(),
            }
        )
    return results


def net_input(images: Tensor) -> Tensor:
    """[batch, M, c, h, w] -> [batch, M * c, h, w], channels last: never read slower here on CPU."""
    return images.flatten(1, 2).contiguous(memory_format=torch.channels_last)


def batch_losses(net: nn.Module, images: Tensor, labels: Tensor, precision: str = "fp32") -> Tensor:
    """Mean cross-entropy of each run on its own batch, [M], in nats and fp32."""
    with torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bf16"):
        logits = net(net_input(images))
    batch, members, classes = logits.shape
    loss = F.cross_entropy(logits.float().reshape(-1, classes), labels.reshape(-1), reduction="none")
    return loss.view(batch, members).mean(0)


def _chunks(training: Training, size: int, augment: bool = False) -> Iterator[Tensor]:
    """The training images in full batches of ``size``, the same for all runs, as the network takes them."""
    random = torch.Generator(training.device).manual_seed(0)
    for start in range(0, len(training.train) // size * size, size):
        images = training.train.take(slice(start, start + size))[:, None]
        if augment:
            images = data.augmented(images, [random], training.dataset.pad, training.dataset.flip)
        yield net_input(images.expand(-1, training.net.members, -1, -1, -1))


def _evaluate(training: Training) -> dict[str, Tensor]:
    """Loss (nats) and accuracy (share) of each run, [M] each, in inference mode, by split and kind of statistics."""
    config, net = training.config, training.net
    values: dict[str, Tensor] = {}
    for kind in [k for k in ("running", "batch", "reestimated") if k in config.statistics]:
        suffix = "" if kind == "running" else f"_{kind}"
        if kind == "batch":
            with inference.batch_statistics(net):
                found = _evaluate_splits(training, config.batch_size)
        else:
            net.eval()
            if kind == "reestimated":
                inference.reestimate(net, _chunks(training, config.batch_size))
            found = _evaluate_splits(training, None)
        values |= {name + suffix: value for name, value in found.items()}
    return values


@torch.no_grad()
def _evaluate_splits(training: Training, batch_size: int | None) -> dict[str, Tensor]:
    """Evaluate ``net`` as it is; with a batch size on full batches only, since there the batch's size matters."""
    config, net, dataset = training.config, training.net, training.dataset
    splits = {"train": training.train, "validation": dataset.validation, "test": dataset.test}
    values: dict[str, Tensor] = {}
    for name in config.evaluate:
        split, count = splits[name], 0
        loss = right = torch.zeros(net.members, device=split.labels.device)
        n = len(split) if batch_size is None else len(split) // batch_size * batch_size
        size = batch_size or EVALUATION_BATCH
        for start in range(0, n, size):
            part = slice(start, min(start + size, n))
            images, labels = split.take(part), split.labels[part]
            everyone = images[:, None].expand(-1, net.members, -1, -1, -1)
            labels = labels if labels.dim() == 2 else labels[:, None].expand(-1, net.members)
            with torch.autocast(images.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
                logits = net(net_input(everyone)).float()
            loss = loss + F.cross_entropy(logits.transpose(1, 2), labels, reduction="none").sum(0)
            right = right + (logits.argmax(2) == labels).sum(0)
            count += len(images)
        if count:
            values |= {f"{name}_loss": loss / count, f"{name}_accuracy": right / count}
    return values


def _thin(curve: np.ndarray) -> list[list[float]]:
    """At most 50 points [step, mean loss of the steps since the last point]; what is not finite is left out."""
    edges = np.unique(np.linspace(0, len(curve), CURVE_POINTS + 1).astype(int))
    points = [[int(b), float(curve[a:b].mean())] for a, b in zip(edges, edges[1:], strict=False)]
    return [point for point in points if np.isfinite(point[1])]
