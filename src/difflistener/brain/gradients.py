"""Loss and gradients of one training step; on a GPU all its kernels are recorded once and launched together.

A dit's step is a thousand kernels of a few microseconds each: launching them one by one from Python takes several
times as long as running them. Knows nothing of brains, batches and optimisers.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from difflistener.brain.diffusion import keyed_generator, keyed_seed

WARM_UP = 3
"""Passes before recording, in which libraries choose their kernels and caches are filled."""


class Gradients:
    """Gives `parameters` their gradients.

    Args:
        loss: windows [N] int and a generator of their device -> []. To be recorded, it must do the same for any windows,
            and neither wait for the GPU nor bring it new numbers from the CPU.
        record: record on the first call. All calls then need windows of the same number.
    """

    def __init__(self, loss: Callable[[Tensor, torch.Generator], Tensor], parameters: Iterable[nn.Parameter], record: bool):
        self._loss, self._parameters, self._record = loss, list(parameters), record
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, which: Tensor, *key: int) -> Tensor:
        """The loss [] of windows `which`, with all that is random in it drawn from `key`."""
        if not self._record:
            return self._pass(which, keyed_generator(*key, device=which.device))
        if self._graph is None:
            self._capture(which)
        self._which.copy_(which)
        self._generator.manual_seed(keyed_seed(*key))
        self._graph.replay()
        return self._value

    def _pass(self, which: Tensor, generator: torch.Generator) -> Tensor:
        for parameter in self._parameters:
            parameter.grad = None
        loss = self._loss(which, generator)
        loss.backward()
        return loss.detach()

    def _capture(self, which: Tensor) -> None:
        self._which, self._generator = which.clone(), torch.Generator(which.device)
        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(self._generator)
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(WARM_UP):
                self._pass(self._which, self._generator)
        torch.cuda.current_stream().wait_stream(aside)
        with torch.cuda.graph(graph):
            self._value = self._pass(self._which, self._generator)
        self._graph = graph
