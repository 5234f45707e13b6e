"""Gradients of a training step: the same pass by pass and, on a GPU, as one recorded graph."""

import pytest
import torch

from difflistener.brain.diffusion import keyed_generator
from difflistener.brain.gradients import Gradients

NUM = 5


def make(device: str, record: bool):
    """A loss that looks at windows and at noise, and its one parameter [NUM]."""
    weight = torch.linspace(-1, 1, NUM, device=device).requires_grad_()
    table = torch.arange(40.0, device=device).reshape(8, NUM)

    def loss(which, generator):
        return ((table[which] * weight + torch.randn(len(which), NUM, generator=generator, device=device)) ** 2).mean()

    return Gradients(loss, [weight], record), weight


def passes(gradients, weight, device):
    """Loss and gradient of four steps, between which the parameter moves and the gradient is scaled as clipping does."""
    found = []
    for step, windows in enumerate(([0, 1, 2], [3, 3, 7], [5, 6, 0], [0, 1, 2])):
        value = gradients(torch.tensor(windows, device=device), 7, step)
        found.append((value.item(), weight.grad.clone()))
        with torch.no_grad():
            weight -= 0.01 * weight.grad
            weight.grad *= 0.5
    return found


def test_a_pass_depends_on_windows_and_key_alone():
    gradients, weight = make("cpu", record=False)
    which = torch.tensor([1, 4])
    first, slope = gradients(which, 3, 9).item(), weight.grad.clone()
    assert gradients(which, 3, 8).item() != first and gradients(torch.tensor([1, 5]), 3, 9).item() != first
    assert gradients(which, 3, 9).item() == first and torch.equal(weight.grad, slope)
    rows, noise = torch.arange(40.0).reshape(8, NUM)[which], torch.randn(2, NUM, generator=keyed_generator(3, 9))
    assert torch.allclose(slope, (2 * (rows * weight + noise) * rows / rows.numel()).sum(0))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_recorded_passes_are_the_plain_ones():
    plain, recorded = (passes(*make("cuda", record), "cuda") for record in (False, True))
    for (value, slope), (again, slope_again) in zip(plain, recorded):
        assert again == pytest.approx(value, rel=1e-6) and torch.allclose(slope_again, slope, rtol=1e-5)
