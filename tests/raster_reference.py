"""Gaussian splatting in plain torch, any dtype, straight from the equations: the oracle of the rasteriser's tests.

Sources: Zwicker et al. 2001 (projection of a Gaussian), Kerbl et al. 2023 (blending), with gsplat 1.5's constants.
Every Gaussian meets every pixel: small scenes only.
"""

import torch


def rasterize(means, quats, scales, opacities, colors, w2c, K, width, height, tap=None):
    """One scene: means [N, 3], quats [N, 4], scales [N, 3], opacities [N], colors [N, 3], w2c [4, 4], K [3, 3].

    `tap` is a tensor of zeros added to the projected means, [N, 2] or for each pixel [H * W, N, 2], to read their
    gradient. Returns rgb [H, W, 3] and alpha [H, W, 1].
    """
    p = means @ w2c[:3, :3].T + w2c[:3, 3]
    z = p[:, 2]
    fx, fy, cx, cy = K[0, 0], K[1, 1], K[0, 2], K[1, 2]
    margin_x, margin_y = 0.15 * width / fx, 0.15 * height / fy
    tx = (p[:, 0] / z).clamp(-cx / fx - margin_x, (width - cx) / fx + margin_x)
    ty = (p[:, 1] / z).clamp(-cy / fy - margin_y, (height - cy) / fy + margin_y)
    zero = torch.zeros_like(z)
    J = torch.stack([torch.stack([fx / z, zero, -fx * tx / z], -1), torch.stack([zero, fy / z, -fy * ty / z], -1)], -2)
    M = J @ w2c[:3, :3] @ rotation(quats) * scales[:, None, :]
    cov = M @ M.transpose(1, 2) + 0.3 * torch.eye(2, dtype=means.dtype)
    inverse = torch.linalg.inv(cov)
    centre = torch.stack([fx * p[:, 0] / z + cx, fy * p[:, 1] / z + cy], -1)
    if tap is not None:
        centre = centre + tap

    y, x = torch.meshgrid(torch.arange(height, dtype=means.dtype) + 0.5, torch.arange(width, dtype=means.dtype) + 0.5, indexing="ij")
    d = torch.stack([x, y], -1).reshape(-1, 1, 2) - centre
    sigma = 0.5 * torch.einsum("pni,nij,pnj->pn", d, inverse, d)
    alpha = (opacities * torch.exp(-sigma)).clamp_max(0.999)
    alpha = torch.where((alpha >= 1 / 255) & (z >= 0.01), alpha, torch.zeros_like(alpha))
    order = torch.argsort(z, stable=True)
    alpha = alpha[:, order]
    after = torch.cumprod(1 - alpha, 1)
    before = torch.cat([torch.ones_like(after[:, :1]), after[:, :-1]], 1)
    weight = torch.where(after > 1e-4, alpha * before, torch.zeros_like(alpha))
    return (weight @ colors[order]).reshape(height, width, 3), weight.sum(1).reshape(height, width, 1)


def rotation(quats):
    w, x, y, z = torch.nn.functional.normalize(quats, dim=-1).unbind(-1)
    rows = [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
            2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
            2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)]
    return torch.stack(rows, -1).reshape(*quats.shape[:-1], 3, 3)
