"""Training speed side by side: textbook script, good eager loop, `torch.compile`, two trainers of others, and ours.

``python -m benchmarks`` (or ``make bench``) measures all of them interleaved in one process on one device.
"""
