import pytest
import raster_reference
import torch

from difflistener.body import raster
from difflistener.body.raster import cpu, rasterize

NAMES = cpu.NAMES


def scene(count=300, width=72, height=56, seed=0, batch=1):
    """Splats of mixed size in front of two or three cameras, some behind, some outside."""
    g = torch.Generator().manual_seed(seed)
    uniform = lambda *shape: torch.rand(*shape, generator=g, dtype=torch.float64)
    means = (uniform(batch, count, 3) - 0.5) * torch.tensor([4.0, 3.0, 2.0], dtype=torch.float64)
    means[:, :5, 2] = -9.0
    means[:, 5:10, 0] += 20.0
    quats = torch.randn(batch, count, 4, generator=g, dtype=torch.float64)
    scales = torch.exp(torch.randn(batch, count, 3, generator=g, dtype=torch.float64) * 0.6 - 2.0)
    inputs = {"means": means, "quats": quats, "scales": scales, "opacities": uniform(batch, count), "colors": uniform(batch, count, 3)}
    w2c = torch.eye(4, dtype=torch.float64).repeat(batch, 1, 1)
    w2c[:, :3, :3] = raster_reference.rotation(torch.tensor([[1.0, 0.05, -0.1, 0.02]], dtype=torch.float64))
    w2c[:, 2, 3] = 5.0
    K = torch.tensor([[90.0, 0, width / 2 + 1.5], [0, 95.0, height / 2 - 2], [0, 0, 1]], dtype=torch.float64).repeat(batch, 1, 1)
    return inputs, w2c, K, width, height


def render(inputs, w2c, K, width, height, **options):
    return rasterize(*[inputs[name].float() for name in NAMES], w2c.float(), K.float(), width, height, **options)


def oracle(inputs, w2c, K, width, height, index=0):
    return raster_reference.rasterize(*[inputs[name][index] for name in NAMES], w2c[index], K[index], width, height)


@pytest.fixture(params=["avx512", "avx2", "portable"])
def isa(request):
    if request.param not in cpu.instruction_sets():
        pytest.skip(f"this processor has no {request.param}")
    cpu.use_instruction_set(request.param)
    yield request.param
    cpu.use_instruction_set(None)


def test_the_image_is_that_of_the_reference(isa):
    data = scene()
    rgb, alpha = render(*data)
    true_rgb, true_alpha = oracle(*data)
    # Where rounding flips one of the two threshold tests a pixel may be off by up to 4e-3.
    off = ((rgb[0] - true_rgb).abs().amax(-1) > 1e-3) | ((alpha[0] - true_alpha).abs()[..., 0] > 1e-3)
    assert off.sum() <= 2
    assert (rgb[0] - true_rgb).abs().median() < 1e-6 and alpha.max() > 0.9


def test_the_gradients_are_those_of_the_reference(isa):
    inputs, *camera = scene(count=200, seed=1)
    single = {name: value.float().requires_grad_() for name, value in inputs.items()}
    exact = {name: value.clone().requires_grad_() for name, value in inputs.items()}
    weight = torch.randn(camera[3], camera[2], 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    (torch.cat([x[0] for x in render(single, *camera)], -1) * weight.float()).sum().backward()
    (torch.cat(oracle(exact, *camera), -1) * weight).sum().backward()
    for name in NAMES:
        error = (single[name].grad - exact[name].grad).norm() / exact[name].grad.norm()
        assert error < 1e-3, f"{name}: {error:.1e}"
        assert single[name].grad[:, :10].abs().max() == 0, f"{name}: splats out of sight have a gradient"


def test_the_oracle_is_right_by_finite_differences():
    inputs, *camera = scene(count=12, width=24, height=20, seed=3)
    inputs = {name: value.requires_grad_() for name, value in inputs.items()}

    def loss():
        rgb, alpha = oracle(inputs, *camera)
        return (rgb**2).sum() + (alpha * 0.7).sum()

    gradients = torch.autograd.grad(loss(), list(inputs.values()))
    for value, gradient in zip(inputs.values(), gradients):
        index = int(gradient.flatten().abs().argmax())
        with torch.no_grad():
            flat, step = value.view(-1), 1e-6
            flat[index] += step
            high = loss()
            flat[index] -= 2 * step
            low = loss()
            flat[index] += step
        assert (high - low) / (2 * step) == pytest.approx(float(gradient.flatten()[index]), rel=1e-4)


def test_the_same_bits_for_any_number_of_threads_and_in_two_runs(isa):
    inputs, *camera = scene(count=3000, width=200, height=150, seed=4)
    results = []
    try:
        for threads in (1, 2, 4, 4):
            cpu.set_threads(threads)
            leaves = {name: value.float().requires_grad_() for name, value in inputs.items()}
            rgb, alpha = render(leaves, *camera)
            (rgb.square().sum() + alpha.sum()).backward()
            results.append([rgb, alpha, *[leaves[name].grad for name in NAMES]])
    finally:
        cpu.set_threads(0)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other))


def test_a_batch_is_its_scenes_one_by_one():
    inputs, w2c, K, width, height = scene(batch=3, seed=5)
    rgb, alpha = render(inputs, w2c, K, width, height)
    for b in range(3):
        one = render({name: value[b : b + 1] for name, value in inputs.items()}, w2c[b : b + 1], K[b : b + 1], width, height)
        assert torch.equal(rgb[b], one[0][0]) and torch.equal(alpha[b], one[1][0])


def test_shared_inputs_gather_the_gradients_of_all_scenes():
    inputs, w2c, K, width, height = scene(batch=3, seed=6)
    inputs |= {name: inputs[name][:1] for name in ("scales", "colors", "quats")}
    shared = {name: value.float().requires_grad_() for name, value in inputs.items()}
    full = {name: value.float().expand(3, *value.shape[1:]).clone().requires_grad_() for name, value in inputs.items()}
    for leaves in (shared, full):
        rgb, _ = render(leaves, w2c, K, width, height)
        rgb.square().sum().backward()
    for name in NAMES:
        wanted = full[name].grad.sum(0, keepdim=True) if len(shared[name]) == 1 else full[name].grad
        assert torch.allclose(shared[name].grad, wanted, rtol=1e-4, atol=1e-5), name


def test_absgrad_sums_absolute_gradients_over_pixels():
    inputs, *camera = scene(count=40, width=32, height=24, seed=7)
    w2c, K, width, height = camera
    leaves = {name: value.float().requires_grad_() for name, value in inputs.items()}
    buffer = torch.full((1, 40), 0.5)
    rgb, _ = render(leaves, *camera, absgrad=buffer)
    rgb.sum().backward()
    tap = torch.zeros(width * height, 40, 2, dtype=torch.float64, requires_grad=True)  # a displacement for each pixel
    image, _ = raster_reference.rasterize(*[inputs[name][0] for name in NAMES], w2c[0], K[0], width, height, tap)
    exact = torch.autograd.grad(image.sum(), tap)[0].abs().sum(0)
    assert torch.allclose(buffer[0] - 0.5, exact.norm(dim=-1).float(), rtol=1e-3, atol=1e-4)


def test_an_empty_scene_is_empty_and_a_bare_one_works():
    inputs, *camera = scene()
    empty = {name: value[:, :0] for name, value in inputs.items()}
    rgb, alpha = render(empty, *camera)
    assert rgb.shape == (1, 56, 72, 3) and alpha.max() == 0 and rgb.max() == 0
    leaves = {name: value.float().requires_grad_() for name, value in empty.items()}
    render(leaves, *camera)[0].sum().backward()
    assert all(leaf.grad.shape == leaf.shape for leaf in leaves.values())
    behind = {name: value[:, :5] for name, value in inputs.items()}
    assert render(behind, *camera)[1].max() == 0


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_refused_and_named(name, value):
    inputs, *camera = scene(count=50, batch=2)
    inputs[name][1, 17] = value
    with pytest.raises(ValueError, match=f"{name} of scene 1 is not finite at Gaussian 17"):
        render(inputs, *camera)


@pytest.mark.parametrize("name", ["w2c", "K"])
def test_a_camera_that_is_not_finite_is_refused_and_named(name):
    inputs, w2c, K, width, height = scene(count=50, batch=2)
    {"w2c": w2c, "K": K}[name][1, 0, 2] = float("nan")
    with pytest.raises(ValueError, match=f"{name} of scene 1 is not finite"):
        render(inputs, w2c, K, width, height)


def test_wrong_shapes_are_refused_and_named():
    inputs, *camera = scene(count=50)
    with pytest.raises(ValueError, match="quats has shape"):
        render(inputs | {"quats": inputs["quats"][..., :3]}, *camera)
    with pytest.raises(ValueError, match="colors has shape"):
        render(inputs | {"colors": inputs["colors"][:, :49]}, *camera)


def test_an_unknown_instruction_set_is_refused():
    with pytest.raises(ValueError, match="quantum"):
        cpu.use_instruction_set("quantum")
    assert raster.instruction_set() == cpu.instruction_sets()[0]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU and gsplat")
def test_gsplat_agrees_with_the_cpu():
    inputs, w2c, K, width, height = scene(count=2000, width=160, height=120, batch=2, seed=8)
    inputs["colors"] = inputs["colors"][:1]
    results = []
    for device in ("cpu", "cuda"):
        leaves = {name: value.float().to(device).requires_grad_() for name, value in inputs.items()}
        absgrad = torch.zeros(2, 2000, device=device)
        rgb, alpha = rasterize(*leaves.values(), w2c.float().to(device), K.float().to(device), width, height, absgrad=absgrad)
        (rgb.square().sum() + alpha.sum()).backward()
        results.append([rgb.cpu(), alpha.cpu(), absgrad.cpu(), *[leaves[name].grad.cpu() for name in NAMES]])
    for name, ours, theirs in zip(["rgb", "alpha", "absgrad", *NAMES], *results):
        error = (ours - theirs).norm() / ours.norm()
        assert error < 5e-3, f"{name}: {error:.1e}"
