"""What is measured inside a network: by depth at initialization, and in its norms at inference."""

from normbook.probes.depth import (
    ARMS,
    Profile,
    Stack,
    TransformerProfile,
    batch_variance,
    inputs,
    mean_cosine,
    profile,
    slope,
    transformer,
    weights,
)

__all__ = [
    "ARMS", "Profile", "Stack", "TransformerProfile", "batch_variance", "inputs", "mean_cosine", "profile", "slope",
    "transformer", "weights",
]  # fmt: skip
