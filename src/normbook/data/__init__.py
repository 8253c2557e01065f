"""Datasets as tensors on the device, and the order and augmentation in which a run sees them.

A dataset is three pairs of tensors (training, validation, test): scikit-learn's digits, CIFAR-10, or any folder of
images. Images are decoded once and kept, checked, as uint8.
"""

from normbook.data.dataset import SPLIT_SEED, Dataset, Split
from normbook.data.sampling import augmented, batches, relabel
from normbook.data.sources import fetch, is_name, load, locate, places, present, sized, use

__all__ = [
    "SPLIT_SEED", "Dataset", "Split", "augmented", "batches", "fetch", "is_name", "load", "locate", "places", "present",
    "relabel", "sized", "use",
]  # fmt: skip
