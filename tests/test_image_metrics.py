"""Image metrics: SSIM against scikit-image's Gaussian variant, PSNR against its formula, gradients, edges."""

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity

from difflistener.metrics.image import psnr, ssim, ssim_map


def pair(size=(40, 33), noise=0.1, seed=0):
    """A smooth picture and a noisy copy, [1, H, W, 3] each."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[: size[0], : size[1]] / 8
    truth = 0.5 + 0.4 * np.stack([np.sin(rows + c) * np.cos(columns * (c + 1) / 2) for c in range(3)], -1)
    image = np.clip(truth + random.normal(0, noise, truth.shape), 0, 1)
    return torch.from_numpy(image).float()[None], torch.from_numpy(truth).float()[None]


@pytest.mark.parametrize("noise", [0.02, 0.3])
@pytest.mark.parametrize("size", [(11, 11), (40, 33)])
def test_ssim_equals_scikit_image(size, noise):
    image, truth = pair(size, noise)
    _, whole = structural_similarity(image[0].double().numpy(), truth[0].double().numpy(), gaussian_weights=True, sigma=1.5,
                                     use_sample_covariance=False, data_range=1, channel_axis=-1, full=True)
    interior = whole[5:-5, 5:-5]
    assert interior.mean() < 0.99
    assert np.allclose(ssim_map(image.double(), truth.double())[0].permute(1, 2, 0), interior, atol=1e-6)
    assert float(ssim(image, truth)) == pytest.approx(interior.mean(), abs=1e-4)


def test_psnr_is_that_of_the_mean_squared_error():
    truth = torch.zeros(2, 4, 5, 3)
    image = torch.stack([torch.full((4, 5, 3), 0.1), torch.full((4, 5, 3), 0.01)])
    assert torch.allclose(psnr(image, truth), torch.tensor([20.0, 40.0]), atol=1e-4)


def test_a_mask_says_which_pixels_count():
    image, truth = pair()
    mask = torch.zeros(1, 40, 33, dtype=torch.bool)
    mask[:, 5:20, 7:30] = True
    assert torch.allclose(psnr(image, truth, mask), psnr(image[:, 5:20, 7:30], truth[:, 5:20, 7:30]))
    assert torch.allclose(psnr(image, truth, torch.ones_like(mask)), psnr(image, truth))
    assert psnr(image, truth, torch.zeros_like(mask)).isnan().all()


def test_equal_images_have_the_best_scores():
    _, truth = pair()
    assert float(ssim(truth, truth)) == pytest.approx(1, abs=1e-6)
    assert float(psnr(truth, truth)) == pytest.approx(100)


def test_each_image_of_a_batch_is_scored_alone():
    image, truth = pair()
    both = torch.cat([image, truth]), torch.cat([truth, truth])
    for metric in (psnr, ssim):
        assert metric(*both).tolist() == pytest.approx([metric(image, truth).item(), metric(truth, truth).item()], rel=1e-5)


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_gradients_are_those_of_finite_differences(metric):
    image, truth = (picture.double() for picture in pair((12, 13)))
    assert torch.autograd.gradcheck(lambda x: metric(x, truth), image.requires_grad_(True))


def test_gradients_of_equal_images_are_finite():
    _, truth = pair()
    image = truth.clone().requires_grad_(True)
    (psnr(image, truth) + ssim(image, truth)).sum().backward()
    assert torch.isfinite(image.grad).all()


@pytest.mark.parametrize("size", [(10, 20), (20, 10)])
def test_an_image_below_the_window_is_refused(size):
    with pytest.raises(ValueError, match="at least 11 pixels"):
        ssim(torch.zeros(1, *size, 3), torch.zeros(1, *size, 3))
