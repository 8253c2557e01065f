"""The machine a run is computed on: device, precision, threads, memory."""

from __future__ import annotations

import platform
import resource
from functools import cache

import torch
from torch import nn

from normbook.errors import InputError, choose

PRECISIONS = ("auto", "fp32", "bf16")
DEVICES = ("auto", "cpu", "cuda")


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


# what a CPU that multiplies bf16 numbers itself calls that: x86 (AVX-512, AMX) and Arm
BF16_FEATURES = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")


def bf16_pays(device: str) -> bool:
    """Whether bf16 is faster than fp32: a CPU that only emulates it takes three times as long.

    The processor's features decide, not a clock: the same machine always computes the same numbers.
    """
    if device != "cpu":
        return True
    known: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()  # older torch does not know: fp32
    return any(known.get(feature) for feature in BF16_FEATURES)


def resolve_precision(name: str, scale: str, device: str) -> str:
    """``auto`` is fp32 at scale quick, and beyond it bf16 where it is faster and its backward pass works.

    Raises:
        InputError: an unknown name, or ``bf16`` asked for where it does not train.
    """
    choose("precision", name, PRECISIONS)
    if name == "auto":
        beyond = scale not in ("quick", "tiny")
        return "bf16" if beyond and bf16_pays(device) and bf16_trains(device) else "fp32"
    if name == "bf16" and not bf16_trains(device):
        raise InputError(f"precision 'bf16' asked for, but a bf16 convolution has no backward pass on this {device}")
    return name


def prepare_process(threads: int = 1) -> None:
    """Set threads and denormals; call it before the first operation of a worker process.

    Denormal weights make a convolution some 40 times slower, and one thread makes sums independent of the core count.
    """
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)


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


def peak_memory_mb(device: str) -> float:
    """Peak memory of the GPU, or of this process, in MiB."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    unit = 2**20 if platform.system() == "Darwin" else 2**10  # ru_maxrss: bytes on macOS, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
