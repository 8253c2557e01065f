"""A training step as a CUDA graph: its kernels are recorded once and then launched together, step after step.

A small net's step on a GPU is hundreds of kernels of a few microseconds each, and launching them one by one takes
longer than they do. A graph replays what the host did once. So whatever the host decides is frozen: tensors stay where
they were, and a number that the host reads, as a learning rate, keeps its value. What changes from step to step is
therefore copied into tensors that the graph reads. On a CPU, and where a step cannot be recorded, it is taken plainly.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

WARM_UP = 3  # plain steps first: cuDNN chooses its kernels and the allocator settles, neither of which can be recorded

Step = Callable[[Tensor, Tensor, float | Tensor], Tensor]
Record = Callable[[Callable[[], Tensor], Sequence[torch.Generator]], tuple[Tensor, Callable[[], None]]]


def record(function: Callable[[], Tensor], generators: Sequence[torch.Generator]) -> tuple[Tensor, Callable[[], None]]:
    """Record what ``function`` launches on the GPU, without doing it; return the tensor it gives and how to replay.

    ``generators`` are those that it draws from: a graph advances them as plain calls would.

    Raises:
        RuntimeError: ``function`` does what cannot be recorded, as waiting for the GPU to read a number.
    """
    graph = torch.cuda.CUDAGraph()
    for generator in generators:
        graph.register_generator_state(generator)
    with torch.cuda.graph(graph):
        result = function()
    return result, graph.replay


def beside(function: Callable[[], Tensor], on_gpu: bool) -> Tensor:
    """Call it on a stream of its own, on a GPU: autograd must not tie parameters to the stream that is never recorded.

    Source: PyTorch's documentation, "CUDA semantics", whole-network capture.
    """
    if not on_gpu:
        return function()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        result = function()
    torch.cuda.current_stream().wait_stream(stream)
    return result


def graphed(step: Step, generators: Sequence[torch.Generator], device: str) -> Step | Graphed:
    """The step as it is taken on this device: as a graph on a GPU, else plainly."""
    return Graphed(step, generators) if device == "cuda" else step


class Graphed:
    """``step(images, labels, scale)`` of tensors whose shapes never change, recorded after `WARM_UP` calls.

    ``scale``, the factor on the learning rates, comes as a number and reaches ``step`` as a tensor on the device. The
    tensor returned is the same one at every call. A step that cannot be recorded is taken plainly ever after, with a
    warning that says why. ``records`` is how it is recorded: tests put a stand-in in its place that needs no GPU.
    """

    def __init__(self, step: Step, generators: Sequence[torch.Generator], records: Record = record) -> None:
        self.step, self.generators, self.records = step, generators, records
        self.calls = 0
        self.replay: Callable[[], None] | None = None
        self.plain = False

    def __call__(self, images: Tensor, labels: Tensor, scale: float) -> Tensor:
        if not self.calls:
            self.images, self.labels = torch.empty_like(images), torch.empty_like(labels)
            self.scale = torch.empty((), device=images.device)
        self.calls += 1
        self.images.copy_(images)
        self.labels.copy_(labels)
        self.scale.fill_(scale)
        if self.calls > WARM_UP and self.replay is None and not self.plain:
            self._record()
        if self.replay is None:
            return beside(self._take, images.is_cuda)
        self.replay()
        return self.losses

    def _take(self) -> Tensor:
        return self.step(self.images, self.labels, self.scale)

    def _record(self) -> None:
        try:
            self.losses, self.replay = self.records(self._take, self.generators)
        except RuntimeError as error:
            self.plain = True
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            warnings.warn(f"the training step is taken without a CUDA graph: {reason}", stacklevel=2)
