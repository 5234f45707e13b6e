"""Bodies shown rather than learned from: motion in, finished pictures out, as fast as the device allows.

The same pictures as `Body.forward`, to rounding. On a GPU a frame is hundreds of small kernels and launching them takes
longer than running them: from the second batch of a size on, the whole frame is replayed as one CUDA graph. On the CPU
the pixels take most of the time; the rasteriser composes and rounds them as it goes.
Knows nothing of videos. Axes: B frames, H, W.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from difflistener.body.model import Body
from difflistener.body.raster import fixed_room, paint, to_bytes

SPARE = 1.25
"""Room in a graph for (tile, Gaussian) pairs, as a multiple of what its first batch needed."""


class Renderer:
    """Renders a body that does not change any more. Not for two threads at once."""

    def __init__(self, body: Body):
        self.body = body
        self._graphs: dict[tuple, _Graph | None] = {}

    @torch.no_grad()
    def __call__(
        self, motion: torch.Tensor, translation: torch.Tensor | None = None, torso: torch.Tensor | None = None,
        eyes: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Pictures [B, H, W, 3] uint8, finished, on the body's device; arguments as in `Body.forward`, on any device."""
        given = (motion, translation, torso, eyes)
        device = self.body.device
        if device.type != "cuda":
            with _one_torch_thread():
                return self._draw(*given)
        kind = tuple(None if values is None else len(values) for values in given)
        if kind not in self._graphs:  # A size that is seen once is not worth a graph.
            self._graphs[kind] = None
            pictures = self._draw(*given)
            torch.cuda.synchronize(device)
            return pictures
        graph, pictures = self._graphs[kind], None
        if graph is not None:
            pictures = graph(given)
        if pictures is None:
            graph = self._graphs[kind] = _Graph(self._draw, given, device)
            pictures = graph(given)
            assert pictures is not None
        return pictures

    def _draw(self, *given: torch.Tensor | None) -> torch.Tensor:
        body = self.body
        given = tuple(None if values is None else values.to(body.device) for values in given)
        if type(body).forward is not Body.forward:  # It composes its pictures from several.
            return to_bytes(body(*given)[0])
        motion = given[0]
        gaussians = body.gaussians(motion, *body.fill(*given))
        batch = len(motion)
        return paint(*gaussians, torch.eye(4, device=body.device).expand(batch, 4, 4), body.K.expand(batch, 3, 3),
                     body.config.width, body.config.height, body.background)


class _Graph:
    """A recorded batch: inputs are copied in, the graph is replayed, pictures are copied out."""

    def __init__(self, draw, given: tuple, device: torch.device):
        self.inputs = tuple(None if values is None else values.to(device, copy=True) for values in given)
        self.graph = torch.cuda.CUDAGraph()
        stream = torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            with fixed_room(1) as room:
                draw(*self.inputs)
            self.room = int(SPARE * max(map(int, room.needed))) + 1
            with fixed_room(self.room):
                draw(*self.inputs)
        torch.cuda.current_stream(device).wait_stream(stream)
        with torch.cuda.graph(self.graph), fixed_room(self.room) as room:
            self.pictures = draw(*self.inputs)
            self.needed = torch.stack(room.needed).max()

    def __call__(self, given: tuple) -> torch.Tensor | None:
        """Pictures, or None where the batch needed more room than there is."""
        for values, into in zip(given, self.inputs):
            if into is not None:
                into.copy_(values)
        self.graph.replay()
        pictures = self.pictures.clone()
        return pictures if int(self.needed) <= self.room else None  # Reading the number waits for the pictures, too.


@contextmanager
def _one_torch_thread() -> Iterator[None]:
    """The rasteriser has threads of its own; torch's wait for work in a busy loop and would take its processors."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
