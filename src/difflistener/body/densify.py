"""More Gaussians where the pictures pull at them, fewer where they show nothing: growth of a tri-plane branch.

Adaptive density control of Kerbl et al., "3D Gaussian Splatting for Real-Time Radiance Field Rendering", 2023, section 5,
as TalkingGaussian sets it (no opacity reset). Knows nothing of pictures, stages or files.
Axes: N Gaussians; lengths in `HEAD_UNIT`.

Where it is not the published program:
* Sizes and learning rates of positions are in shares of `EXTENT`, a head's width; the program takes how far the camera
  moved about the head, which says how restless the subject was.
* The pull is the gradient of the camera-space mean brought to the picture: what passes through the covariance counts too.
* The limit on the size in pixels is left out: the program clears the sizes just before it looks at them.
"""

import torch
import torch.nn.functional as F
from torch import nn

from difflistener.body.geometry import matrix_from_quaternion
from difflistener.body.triplane import Branch, inverse_softplus

EXTENT = 0.2
SPLIT_ABOVE = 0.005 * EXTENT
"""A Gaussian with a longer axis is split, a smaller one copied."""
LARGEST = 0.1 * EXTENT
"""Longest axis that is kept once the first shapes have settled."""
SHRINK = 1.6
"""Scale of a Gaussian over that of its halves."""


class Pull:
    """Mean gradient of each Gaussian's place in the picture, in half picture sizes, over the frames that saw it."""

    def __init__(self, count: int, K: torch.Tensor, width: int, height: int):
        """K [3, 3] in pixels of a picture of `width` x `height`."""
        half = torch.tensor([width, height], device=K.device) / 2
        self.focal, self.centre = torch.stack([K[0, 0], K[1, 1]]) / half, K[:2, 2] / half - 1
        self.total = torch.zeros(count, device=K.device)
        self.times = torch.zeros(count, device=K.device)

    @torch.no_grad()
    def add(self, means: torch.Tensor, grad: torch.Tensor) -> None:
        """One frame: camera-space means [N, 3], inter-ocular distances, and the loss's gradient by them [N, 3].

        u = f x / z + c, so dL/du = z / f dL/dx.
        """
        depth = means[:, 2:]
        place = means[:, :2] / depth * self.focal + self.centre
        seen = (place.abs() < 1).all(1) & (depth[:, 0] > 0)
        self.total += (grad[:, :2] * depth / self.focal).norm(dim=1) * seen
        self.times += seen

    def mean(self) -> torch.Tensor:
        """[N]; zero for a Gaussian that was never seen."""
        return self.total / self.times.clamp_min(1)


@torch.no_grad()
def densify(branch: Branch, optimizer: torch.optim.Optimizer, pull: torch.Tensor, threshold: float, faintest: float,
            largest: float, generator: torch.Generator) -> None:
    """Copy small and split large Gaussians with a mean pull [N] of at least `threshold`; drop the faint and the large.

    Args:
        faintest: least opacity that is kept.
        largest: longest axis that is kept, `HEAD_UNIT`.
        generator: on the CPU; draws where the halves go.
    """
    hot = pull >= threshold
    wide = branch.scales.amax(1) > SPLIT_ABOVE
    kept, copied, split = ((~(hot & wide)).nonzero()[:, 0], (hot & ~wide).nonzero()[:, 0], (hot & wide).nonzero()[:, 0])
    rows = torch.cat([kept, copied, split, split])
    values = {name: getattr(branch, name).detach()[rows] for name in Branch.PER_GAUSSIAN}
    halves = slice(len(kept) + len(copied), None)
    scales = branch.scales[rows[halves]]
    away = torch.randn(scales.shape, generator=generator).to(scales) * scales
    turn = matrix_from_quaternion(F.normalize(values["quats"][halves], dim=-1))
    values["means"][halves] += (turn @ away[..., None])[..., 0]
    values["raw_scales"][halves] = inverse_softplus(scales / SHRINK)

    stays = torch.sigmoid(values["opacity_logits"]) >= faintest
    stays &= F.softplus(values["raw_scales"]).amax(1) <= largest
    is_old = torch.arange(len(rows), device=rows.device) < len(kept)
    _keep(branch, optimizer, rows, stays, is_old, values)


@torch.no_grad()
def drop(branch: Branch, optimizer: torch.optim.Optimizer, bad: torch.Tensor) -> None:
    """Remove the Gaussians marked in `bad` [N] bool."""
    values = {name: getattr(branch, name).detach() for name in Branch.PER_GAUSSIAN}
    _keep(branch, optimizer, torch.arange(len(branch), device=bad.device), ~bad, torch.ones_like(bad), values)


def _keep(branch: Branch, optimizer: torch.optim.Optimizer, rows, stays, is_old, values: dict[str, torch.Tensor]) -> None:
    """Give the branch those of `values` [M, ...] that stay [M]; each takes over the moments of row `rows` [M] if it is old.

    One Gaussian stays whatever happens: a branch without any has nothing left to grow from.
    """
    stays = stays.clone()
    stays[values["opacity_logits"].argmax()] |= ~stays.any()
    for name in Branch.PER_GAUSSIAN:
        before = getattr(branch, name)
        after = nn.Parameter(values[name][stays])
        state = optimizer.state.pop(before, None)
        for moment in ("exp_avg", "exp_avg_sq") if state else ():
            moved = state[moment][rows[stays]]
            moved[~is_old[stays]] = 0
            state[moment] = moved
        if state:
            optimizer.state[after] = state
        for group in optimizer.param_groups:
            group["params"] = [after if parameter is before else parameter for parameter in group["params"]]
        setattr(branch, name, after)


def is_green(colors: torch.Tensor) -> torch.Tensor:
    """Which colours [N, 3] are those of the painted background."""
    red, green, blue = (colors * 255).unbind(-1)
    return (red < 30) & (green > 225) & (blue < 30)
