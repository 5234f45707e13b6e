"""Which Gaussians touch which tile of a picture, front to back, in tensors whose sizes do not depend on the answer.

gsplat's own binning reads the number of (tile, Gaussian) pairs back to size its tensors; here the caller says how many
pairs there is room for, so nothing waits for the GPU and a CUDA graph can hold the whole frame. Plain torch, any
device. Knows nothing of colours or pixels.
Axes: B scenes, N Gaussians; tiles in rows and columns; P pairs there is room for.
"""

import functools

import torch

TILE = 16


def bin_pairs(
    means2d: torch.Tensor,  # [B, N, 2]
    radii: torch.Tensor,  # [B, N, 2]
    depths: torch.Tensor,  # [B, N]
    width: int,
    height: int,
    room: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # [P] int32, [B, rows + 1, columns] int32, [] int32
    """Sort (tile, Gaussian) pairs by scene, tile and depth, Gaussians of equal depth in their order, as gsplat does.

    Args:
        means2d: centres in pixels.
        radii: half sizes of the bounding boxes in pixels; 0 where a Gaussian is out of sight, and then its other
            numbers may be anything, NaN too.
        room: P, how many pairs there is room for.

    Returns:
        ids: the pairs' Gaussians, as numbers 0 .. B * N - 1. Slots left over come last.
        starts: where each tile's pairs start; they end where the next tile's start. The row below the picture has no
            pairs of its own but takes the slots left over: gsplat looks at none of them, no pixel lying there.
        needed: how many pairs there are. Where that is more than P, pairs are missing and the picture is wrong.
    """
    batch, count = depths.shape
    columns, rows = -(-width // TILE), -(-height // TILE)
    tiles = (rows + 1) * columns
    device = depths.device
    least, most = _limits(columns, rows, device)
    low = ((means2d - radii) / TILE).floor().clamp(least, most).int()
    high = ((means2d + radii) / TILE).ceil().clamp(least, most).int()
    size = (high - low) * (radii > 0)
    scene = torch.arange(0, batch * tiles, tiles, dtype=torch.int32, device=device)[:, None]
    first = torch.add(low[..., 0], low[..., 1], alpha=columns) + scene
    # Two sorts that keep ties in order do what one by (tile, depth) would: few Gaussians by depth, many pairs by a
    # tile number of 16 bits, a quarter of the passes that gsplat's 64 bits take.
    order = depths.flatten().argsort(stable=True)
    box = torch.stack([first, size[..., 0].clamp_min(1), size[..., 0] * size[..., 1]], -1).view(-1, 3)[order]
    ends = box[:, 2].cumsum(0, dtype=torch.int32)
    needed = ends[-1]
    box[:, 2] = ends - box[:, 2]
    slot = torch.arange(room, dtype=torch.int32, device=device)
    rank = torch.searchsorted(ends, slot, right=True).clamp_max(batch * count - 1)
    first, across, start = box[rank].unbind(-1)
    place = slot - start
    tile = torch.add(first, place // across, alpha=columns) + place % across
    tile = torch.where(slot < needed, tile, batch * tiles - 1)
    tile, by_tile = tile.to(torch.int16 if batch * tiles < 2**15 else torch.int32).sort(stable=True)
    ids = order[rank[by_tile]].int()
    starts = torch.searchsorted(tile, torch.arange(batch * tiles, dtype=tile.dtype, device=device), out_int32=True)
    return ids, starts.view(batch, rows + 1, columns), needed


@functools.cache
def _limits(columns: int, rows: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Least and most column and row of a tile's edge. Kept: a graph cannot fetch them from the host."""
    most = torch.tensor([columns, rows], dtype=torch.float32, device=device)
    return torch.zeros_like(most), most
