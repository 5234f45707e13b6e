"""Image quality in torch, differentiable where it serves as a loss. Axes: B images, H, W, C colours in 0..1."""

import functools

import torch

SSIM_WINDOW = 11
SSIM_SIGMA = 1.5


def psnr(image: torch.Tensor, truth: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Peak signal-to-noise ratio in dB of each image, [B], for peak 1. Equal images give 100 dB.

    With `mask` [B, H, W] bool only its true pixels count; an empty mask gives NaN.
    """
    error = ((image - truth) ** 2).mean(-1)
    mse = error.flatten(1).mean(1) if mask is None else (error * mask).flatten(1).sum(1) / mask.flatten(1).sum(1)
    return -10 * torch.log10(mse.clamp_min(1e-10))


def ssim(image: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Structural similarity [B] of images [B, H, W, C]: Gaussian window of 11 pixels, sigma 1.5, K1 .01, K2 .03.

    Source: Wang et al. 2004, equation 13, on windows that lie wholly inside the image. Images smaller than the
    window raise `ValueError`.
    """
    return ssim_map(image, truth).flatten(1).mean(1)


def ssim_map(image: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """The local structural similarity [B, C, H-10, W-10]."""
    batch, height, width, channels = image.shape
    if min(height, width) < SSIM_WINDOW:
        raise ValueError(f"SSIM needs images of at least {SSIM_WINDOW} pixels, got {width}x{height}")
    x, y = image.permute(0, 3, 1, 2), truth.permute(0, 3, 1, 2)
    moments = _blur(torch.cat([x, y, x * x, y * y, x * y], 1))
    mu_x, mu_y, xx, yy, xy = moments.split(channels, 1)
    var_x, var_y, cov = xx - mu_x**2, yy - mu_y**2, xy - mu_x * mu_y
    c1, c2 = 0.01**2, 0.03**2
    return ((2 * mu_x * mu_y + c1) * (2 * cov + c2)) / ((mu_x**2 + mu_y**2 + c1) * (var_x + var_y + c2))


def _blur(maps: torch.Tensor) -> torch.Tensor:
    """Separable Gaussian over [B, C, H, W], valid region only, as two banded matrix products (several times
    faster than a convolution with one channel a group, on CPU and CUDA)."""
    rows, columns = (_band(size, maps.dtype, maps.device) for size in maps.shape[-2:])
    return rows @ maps @ columns.T


@functools.lru_cache(maxsize=16)
def _band(size: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    offsets = torch.arange(SSIM_WINDOW, dtype=dtype, device=device) - (SSIM_WINDOW - 1) / 2
    taps = torch.exp(-0.5 * (offsets / SSIM_SIGMA) ** 2)
    band = torch.zeros(size - SSIM_WINDOW + 1, size, dtype=dtype, device=device)
    for row in range(len(band)):
        band[row, row : row + SSIM_WINDOW] = taps / taps.sum()
    return band
