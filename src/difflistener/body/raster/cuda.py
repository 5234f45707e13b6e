"""gsplat behind our contract, and a way to hold it in a CUDA graph.

Knows nothing of the CPU. Axes as in the package's docstring.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

from difflistener.body.raster.bins import TILE, bin_pairs
from difflistener.errors import require

NEAR_PLANE = 0.01


class Room:
    """How many (tile, Gaussian) pairs a call of `rasterize` may fill, and how many each call wanted to."""

    def __init__(self, pairs: int):
        self.pairs = pairs
        self.needed: list[torch.Tensor] = []


_room: ContextVar[Room | None] = ContextVar("room", default=None)


@contextmanager
def fixed_room(pairs: int) -> Iterator[Room]:
    """Within, `rasterize` on CUDA does not wait for the GPU and works in tensors of fixed sizes, so that a CUDA graph can
    hold it; it has no gradient. A call that needed more than `pairs` pairs gave a wrong picture: look at `Room.needed`.
    """
    token = _room.set(Room(pairs))
    try:
        yield _room.get()
    finally:
        _room.reset(token)


def rasterize(means, quats, scales, opacities, colors, w2c, K, width, height, absgrad=None):
    """As `difflistener.body.raster.rasterize`, shapes already checked and N > 0."""
    gsplat = require("gsplat")
    batch, count = len(w2c), means.shape[1]
    means, quats, scales = means.expand(batch, count, 3), quats.expand(batch, count, 4), scales.expand(batch, count, 3)
    opacities, colors = opacities.expand(batch, count), colors.expand(batch, count, 3)
    w2c, K = w2c[:, None], K[:, None]
    room = _room.get()
    if room is not None:
        assert absgrad is None
        radii, means2d, depths, conics, _ = gsplat.fully_fused_projection(
            means, None, quats, scales, w2c, K, width, height, near_plane=NEAR_PLANE, opacities=opacities)
        means2d, conics = means2d[:, 0], conics[:, 0]
        ids, starts, needed = bin_pairs(means2d, radii[:, 0], depths[:, 0], width, height, room.pairs)
        room.needed.append(needed)
        return gsplat.rasterize_to_pixels(means2d, conics, colors, opacities, width, height, TILE, starts, ids)
    rgb, alpha, info = gsplat.rasterization(
        means, quats, scales, opacities, colors, w2c, K, width, height, near_plane=NEAR_PLANE, packed=False,
        absgrad=absgrad is not None,
    )
    if absgrad is not None:
        rgb, alpha = _Record.apply(rgb, alpha, info, absgrad)
    return rgb[:, 0], alpha[:, 0]


class _Record(torch.autograd.Function):
    """Passes gsplat's pictures on; once a backward pass is over, adds what it left in `means2d.absgrad` to a buffer.

    A hook on `means2d` would do the same but hold its own tensor, and so the graph, for ever if backward never ran.
    """

    @staticmethod
    def forward(ctx, rgb, alpha, info, absgrad):
        ctx.info, ctx.absgrad = info, absgrad
        return rgb.view_as(rgb), alpha.view_as(alpha)

    @staticmethod
    def backward(ctx, grad_rgb, grad_alpha):
        def add():
            norm = ctx.info["means2d"].absgrad.norm(dim=-1)
            ctx.absgrad.add_(norm.reshape(ctx.absgrad.shape))

        torch.autograd.Variable._execution_engine.queue_callback(add)
        return grad_rgb, grad_alpha, None, None
