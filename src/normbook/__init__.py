"""Normalization, reproduced: claims about batch normalization, run, measured and judged."""

__version__ = "0.1.0"
