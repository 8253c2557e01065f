"""What one arm of an experiment puts into a network, as data."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Arm:
    """The parts that may differ between the arms of an experiment; everything else about their networks is equal.

    ``norm`` stands before each nonlinearity: "" (none), "batch", "layer", "rms", "layer_detached" (layer norm
    with no gradient through its mean and variance; Xu et al. 2019). ``affine``: with
    gamma and beta. ``noisy``: after each norm (or in its place) the moving noise of Santurkar et al. 2018, section 2.1.
    ``norm_features`` and ``norm_logits`` put a batch norm behind the last block and behind the classifier.
    ``ghost_batch_size`` is the number of examples whose statistics batch norm shares (None: the whole batch).
    ``borrowed_noise``: batch norm over the whole batch, with the noise of ghost batches of that size (`BorrowedNoise`).

    A residual block computes ``(skip(x) + alpha * f(x)) / divide`` with f = ReLU-Conv-ReLU-Conv (norm before each
    ReLU). ``alpha`` is SkipInit's learnable scalar (De & Smith 2020, section 3), a number or ``"1/sqrt(d)"`` with d the
    number of residual blocks; None leaves it out. ``zero_last`` to ``biases`` are the parts of Fixup (Zhang et al.
    2019, section 3): zero the last layer of each branch and the classifier; scale the other layer of the branch by
    d^(-1/2); a scalar multiplier on each branch; a scalar bias before each convolution, activation and the classifier.

    ``dropout`` is the probability to drop, or for ``dropout_kind`` "uniform" the half width beta of Uout's noise (Li et
    al. 2018). ``dropout_at``: "head" (before the classifier, behind all norms), "before_norm" (directly before the last
    norm of each block) or "before_conv" (directly before the last convolution of each block).
    """

    norm: str = ""
    affine: bool = True
    noisy: bool = False
    norm_logits: bool = False
    norm_features: bool = False
    ghost_batch_size: int | None = None
    borrowed_noise: bool = False
    skip: bool = True
    alpha: float | str | None = None
    alpha_learned: bool = True
    divide: float = 1.0
    conv_bias: bool = False
    zero_last: bool = False
    depth_scale: bool = False
    multiplier: bool = False
    biases: bool = False
    dropout: float = 0.0
    dropout_at: str = "head"
    dropout_kind: str = "bernoulli"

    @property
    def residual(self) -> bool:
        """Whether the arm has parts that only a wide residual network has."""
        names = ("skip", "alpha", "divide", "conv_bias", "zero_last", "depth_scale", "multiplier", "biases")
        return any(getattr(self, name) != getattr(Arm, name) for name in names)


ARMS = {
    "batch_norm": Arm(norm="batch", norm_features=True),
    "none": Arm(),
    "skipinit_0": Arm(alpha=0.0),
    "skipinit_rsqrt_d": Arm(alpha="1/sqrt(d)"),
    "skipinit_rsqrt_d_fixed": Arm(alpha="1/sqrt(d)", alpha_learned=False),
    "skipinit_1": Arm(alpha=1.0),
    "skipinit_0_biases": Arm(alpha=0.0, conv_bias=True),
    "divide_sqrt2": Arm(divide=math.sqrt(2)),
    "fixup": Arm(zero_last=True, depth_scale=True, multiplier=True, biases=True),
    "fixup_zero_last": Arm(zero_last=True),
    "fixup_depth_scale": Arm(depth_scale=True),
    "batch_norm_logits": Arm(norm_logits=True),
    "batch_norm_features": Arm(norm_features=True),
    "batch_norm_no_skip": Arm(norm="batch", norm_features=True, skip=False),
    "no_skip": Arm(skip=False),
    "batch_norm_all": Arm(norm="batch", norm_features=True, norm_logits=True),
    "batch_norm_no_affine": Arm(norm="batch", norm_features=True, affine=False),
    "batch_norm_noisy": Arm(norm="batch", norm_features=True, noisy=True),
    "batch_norm_borrowed": Arm(norm="batch", norm_features=True, borrowed_noise=True),
    "noisy": Arm(noisy=True),
    "layer_norm": Arm(norm="layer"),
    "layer_norm_simple": Arm(norm="layer", affine=False),
    "layer_norm_detached": Arm(norm="layer_detached"),
    "rms_norm": Arm(norm="rms"),
}
