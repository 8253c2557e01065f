"""The ways to train: each takes a number of steps on one case and returns the seconds they took.

What is built once (net, loader, worker processes) is built outside the clock, in favour of the baselines: a loader's
workers live on between repeats. All have the same net, images, augmentation, batch, loss and SGD.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler

from benchmarks.cases import CLASSES, LIGHTNING, LR, MOMENTUM, OURS, P0, P1, P2, SKORCH, WEIGHT_DECAY, Case, images
from benchmarks.nets import Nothing
from normbook.train import SGD, Training, resolve_precision

LOADER_WORKERS = min(8, os.cpu_count() or 1)
STEPS = 20_000  # more than all repeats take: as the other ways, ours goes on with one net


class Contender:
    """One way to train one case on one device; ``precision`` is "fp32" or "bf16"."""

    precision = "fp32"

    def __init__(self, case: Case, device: str, precision: str = "fp32") -> None:
        self.case, self.device = case, device

    def train(self, steps: int) -> float:
        """Seconds of ``steps`` steps, data loading included; the device has finished before the clock stops."""
        raise NotImplementedError

    def close(self) -> None:
        """End what runs beside: worker processes of a loader."""

    def _clock(self) -> float:
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def _net(self) -> nn.Module:
        torch.manual_seed(0)
        return self.case.net.textbook(images(self.case.size).pixels.shape[1], self.case.size).to(self.device)


def sgd(net: nn.Module, **how: Any) -> torch.optim.SGD:
    """torch.optim.SGD with our settings: weight decay on the weights of convolutions and linear layers only."""
    decayed = [m.weight for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    ids = {id(p) for p in decayed}
    rest = [p for p in net.parameters() if id(p) not in ids]
    groups = [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": rest, "weight_decay": 0.0}]
    return torch.optim.SGD(groups, lr=LR, momentum=MOMENTUM, **how)


class _Pictures(Dataset):
    """A map-style dataset as torchvision's CIFAR10: a picture from an array, through transforms."""

    def __init__(self, size: int) -> None:
        from torchvision import transforms as T

        raw = images(size)
        self.pixels, self.labels = raw.pixels.permute(0, 2, 3, 1).squeeze(-1).contiguous().numpy(), raw.labels.tolist()
        channels = raw.pixels.shape[1]
        steps = [T.RandomCrop(size, padding=raw.pad)]
        steps += [T.RandomHorizontalFlip()] if raw.flip else []
        mean, std = [raw.mean / 255] * channels, [raw.std / 255] * channels
        self.transform = T.Compose([*steps, T.ToTensor(), T.Normalize(mean, std)])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        from PIL import Image

        return self.transform(Image.fromarray(self.pixels[i])), self.labels[i]


class _Batches(Sampler):
    """``steps`` batches of shuffled indices: one pass of the loader is one repeat, so none is prefetched beyond it."""

    def __init__(self, n: int, batch: int) -> None:
        self.n, self.batch, self.steps = n, batch, 1

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[list[int]]:
        per_epoch = self.n // self.batch
        for step in range(self.steps):
            if step % per_epoch == 0:
                order = torch.randperm(self.n)
            start = step % per_epoch * self.batch
            yield order[start : start + self.batch].tolist()


class _Loading(Contender):
    """What uses the textbook's DataLoader."""

    def __init__(self, case: Case, device: str, precision: str = "fp32") -> None:
        super().__init__(case, device)
        pictures = _Pictures(case.size)
        self.batches = _Batches(len(pictures), case.batch)
        self.loader = DataLoader(
            pictures, batch_sampler=self.batches, num_workers=LOADER_WORKERS, persistent_workers=True,
            pin_memory=device == "cuda",
        )  # fmt: skip

    def close(self) -> None:
        iterator = getattr(self.loader, "_iterator", None)
        if iterator is not None:  # its workers would live until the object is collected
            iterator._shutdown_workers()
            self.loader._iterator = None


class Textbook(_Loading):
    """P0: DataLoader with workers and torchvision transforms, fp32, eager, ``loss.item()`` every step."""

    def __init__(self, case: Case, device: str, precision: str = "fp32") -> None:
        super().__init__(case, device)
        self.net, self.loss = self._net().train(), 0.0
        self.optimizer, self.criterion = sgd(self.net), nn.CrossEntropyLoss()

    def train(self, steps: int) -> float:
        self.batches.steps = steps
        start = self._clock()
        for inputs, labels in self.loader:
            inputs, labels = inputs.to(self.device), labels.to(self.device)
            self.optimizer.zero_grad()
            loss = self.criterion(self.net(inputs), labels)
            loss.backward()
            self.optimizer.step()
            self.loss += loss.item()
        return self._clock() - start


class Eager(Contender):
    """P1: images and augmentation on the device, channels_last, autocast where it is bf16, fused SGD, no ``item()``."""

    def __init__(self, case: Case, device: str, precision: str = "fp32") -> None:
        super().__init__(case, device)
        self.precision, self.raw = precision, images(case.size)
        # every crop is a view of the padded images; they stay uint8, so a batch is a quarter of the bytes to gather
        padded = F.pad(self.raw.pixels, [self.raw.pad] * 4, value=0).to(device)
        self.crops = padded.unfold(2, case.size, 1).unfold(3, case.size, 1)  # [n, channels, shift, shift, size, size]
        self.labels, self.shifts = self.raw.labels.to(device), 2 * self.raw.pad + 1
        self.net = self._net().train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = sgd(self.net, fused=True)

    def _batch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        row, column = torch.randint(self.shifts, (2, len(index)), device=self.device)
        x = self.crops[index, :, row, column].float().sub_(self.raw.mean).div_(self.raw.std)
        if self.raw.flip:
            mirror = torch.rand(len(index), 1, 1, 1, device=self.device) < 0.5
            x = torch.where(mirror, x.flip(3), x)
        return x.contiguous(memory_format=torch.channels_last), self.labels[index]

    def train(self, steps: int) -> float:
        batch, per_epoch = self.case.batch, len(self.labels) // self.case.batch
        start = self._clock()
        for step in range(steps):
            if step % per_epoch == 0:
                order = torch.randperm(len(self.labels), device=self.device).split(batch)
            inputs, labels = self._batch(order[step % per_epoch])
            with torch.autocast(self.device, torch.bfloat16, enabled=self.precision == "bf16"):
                logits = self.net(inputs)
            loss = F.cross_entropy(logits.float(), labels)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
        return self._clock() - start


def compiled(net: nn.Module, **how: Any) -> Any:
    """``torch.compile`` of the whole net for one shape, which fails where it would fall back to eager unnoticed."""
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    return torch.compile(net, dynamic=False, **how)


class Compiled(Eager):
    """P2: P1 with ``torch.compile`` on the whole net; the first step compiles."""

    def __init__(self, case: Case, device: str, precision: str = "fp32") -> None:
        super().__init__(case, device, precision)
        torch._dynamo.reset()
        self.net = compiled(self.net)  # type: ignore[assignment]


class Lightning(_Loading):
    """PyTorch Lightning's Trainer with P0's loader; the clock runs from its first step to its last."""

    def __init__(self, case: Case, device: str, precision: str = "fp32") -> None:
        from lightning.pytorch import Callback, LightningModule

        for name in ("lightning.pytorch", "lightning.fabric"):
            logging.getLogger(name).setLevel(logging.ERROR)  # importing it sets INFO
        super().__init__(case, device)
        net, clock = self._net(), self._clock

        class Module(LightningModule):
            def __init__(self) -> None:
                super().__init__()
                self.net = net

            def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
                return F.cross_entropy(self.net(batch[0]), batch[1])

            def configure_optimizers(self) -> torch.optim.Optimizer:
                return sgd(self.net)

        class Clock(Callback):
            start = end = 0.0

            def on_train_start(self, *_: Any) -> None:
                self.start = clock()

            def on_train_end(self, *_: Any) -> None:
                self.end = clock()

        self.module, self.clock = Module(), Clock()

    def train(self, steps: int) -> float:
        from lightning.pytorch import Trainer

        self.batches.steps = steps
        trainer = Trainer(
            accelerator="gpu" if self.device == "cuda" else "cpu", devices=1, max_epochs=1, logger=False,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, callbacks=[self.clock],
        )  # fmt: skip
        trainer.fit(self.module, self.loader)
        assert trainer.global_step == steps
        return self.clock.end - self.clock.start


class Skorch(_Loading):
    """skorch's NeuralNet with P0's loader and no validation; its usual callbacks, without printing."""

    def __init__(self, case: Case, device: str, precision: str = "fp32") -> None:
        from skorch import NeuralNet

        super().__init__(case, device)
        net = self._net()
        self.net = NeuralNet(
            net, nn.CrossEntropyLoss, optimizer=lambda *_, **__: sgd(net), max_epochs=1, train_split=None, verbose=0,
            iterator_train=lambda *_, **__: self.loader, device=device,
        )  # fmt: skip
        self.net.initialize()

    def train(self, steps: int) -> float:
        self.batches.steps = steps
        start = self._clock()
        self.net.partial_fit(self.loader.dataset)
        return self._clock() - start


class Ours(Contender):
    """`normbook.train.Training`, in the precision that ``auto`` picks: fp32 at 8x8 (quick), else what fits (cifar)."""

    def __init__(self, case: Case, device: str, precision: str = "fp32") -> None:
        super().__init__(case, device)
        self.precision = resolve_precision("auto", "quick" if case.size == 8 else "cifar", device)
        self.training = Training([case.config(STEPS, self.precision)], device)
        if case.net.kind == "nothing":
            self.training.net = Nothing(CLASSES, members=True).to(device)  # type: ignore[assignment]
            self.training.optimizer = SGD(self.training.net, [LR], MOMENTUM, WEIGHT_DECAY)
        self.steps = iter(self.training)

    def train(self, steps: int) -> float:
        start = self._clock()
        for _ in range(steps):
            next(self.steps)
        return self._clock() - start


WAYS: dict[str, type[Contender]] = {
    P0: Textbook, P1: Eager, P2: Compiled, LIGHTNING: Lightning, SKORCH: Skorch, OURS: Ours,
}  # fmt: skip
