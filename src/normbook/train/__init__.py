"""Train one run, or a batch of runs that differ only in seed and learning rate, side by side in one network.

Divergence is an outcome, never an exception: a step's loss is not finite or above 1000 (Bjorck et al. 2018, section
3.2). The losses of all steps stay on the device; the host looks at them every 50 steps and at the end of an epoch.
"""

from normbook.train.config import Config, lr_scale, streams
from normbook.train.loop import Training, build, run
from normbook.train.machine import (
    bf16_trains,
    describe_device,
    prepare_process,
    resolve_device,
    resolve_precision,
)
from normbook.train.optimizers import SGD, Adam

__all__ = [
    "SGD", "Adam", "Config", "Training", "bf16_trains", "build", "describe_device", "lr_scale", "prepare_process",
    "resolve_device", "resolve_precision", "run", "streams",
]  # fmt: skip
