"""LPIPS: the networks against a plain reading of the paper on seeded weights; published files named, checked, fetched whole."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F

from difflistener.clip import sha256
from difflistener.errors import UserError
from difflistener.metrics import lpips
from difflistener.metrics.lpips import Lpips, Weights

SIZES = {"alex": [(0, 3, 64, 11), (3, 64, 192, 5), (6, 192, 384, 3), (8, 384, 256, 3), (10, 256, 256, 3)],
         "vgg": [(0, 3, 64, 3), (2, 64, 64, 3), (5, 64, 128, 3), (7, 128, 128, 3), (10, 128, 256, 3), (12, 256, 256, 3),
                 (14, 256, 256, 3), (17, 256, 512, 3), (19, 512, 512, 3), (21, 512, 512, 3), (24, 512, 512, 3), (26, 512, 512, 3),
                 (28, 512, 512, 3)]}
"""Published convolutions: number, channels in and out, kernel."""
HEADS = {"alex": (64, 192, 384, 256, 256), "vgg": (64, 128, 256, 512, 512)}
NETWORKS = ("alex", "vgg")


pytestmark = pytest.mark.usefixtures("one_thread")


def seeded(network):
    """Files as published, backbone and heads, with seeded numbers."""
    generator = torch.Generator().manual_seed(3)
    backbone = {"classifier.6.bias": torch.zeros(5)}
    for number, before, after, kernel in SIZES[network]:
        spread = (2 / (before * kernel**2)) ** 0.5
        backbone[f"features.{number}.weight"] = torch.randn(after, before, kernel, kernel, generator=generator) * spread
        backbone[f"features.{number}.bias"] = torch.randn(after, generator=generator) * 0.1
    heads = {f"lin{k}.model.1.weight": torch.rand(1, n, 1, 1, generator=generator) for k, n in enumerate(HEADS[network])}
    return backbone, heads


def pictures(count=2, size=(64, 48), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return F.interpolate(torch.rand(count, 3, 9, 7, generator=generator), size).permute(0, 2, 3, 1)


@pytest.fixture(scope="module", params=NETWORKS)
def measure(request):
    made = Lpips(request.param)
    made.load_published(*seeded(request.param))
    return made.requires_grad_(False)


def plain(network, image, truth):
    """The distance of one pair, written out with functions alone."""
    backbone, heads = seeded(network)

    def w(n):
        return backbone[f"features.{n}.weight"], backbone[f"features.{n}.bias"]

    def features(picture):
        mean, std = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
        x = (((picture * 2 - 1) - mean) / std).movedim(-1, 0)[None]
        if network == "alex":
            x = F.relu(F.conv2d(x, *w(0), stride=4, padding=2))
            yield x
            x = F.relu(F.conv2d(F.max_pool2d(x, 3, 2), *w(3), padding=2))
            yield x
            x = F.relu(F.conv2d(F.max_pool2d(x, 3, 2), *w(6), padding=1))
            yield x
            for number in (8, 10):
                x = F.relu(F.conv2d(x, *w(number), padding=1))
                yield x
        else:
            for block in ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28)):
                x = F.max_pool2d(x, 2) if block[0] else x
                for number in block:
                    x = F.relu(F.conv2d(x, *w(number), padding=1))
                yield x

    total = 0.0
    for layer, (a, b) in enumerate(zip(features(image), features(truth))):
        a, b = a / a.pow(2).sum(1, keepdim=True).sqrt(), b / b.pow(2).sum(1, keepdim=True).sqrt()
        total += F.conv2d((a - b) ** 2, heads[f"lin{layer}.model.1.weight"]).mean()
    return total


def test_the_distance_is_that_of_a_plain_reading(measure):
    image, truth = pictures(), pictures(seed=1)
    found = measure(image, truth)
    assert found.shape == (2,) and (found > 0.01).all()
    assert torch.allclose(found, torch.stack([plain(measure.network, a, b) for a, b in zip(image, truth)]), rtol=1e-4)


def test_equal_pictures_are_at_no_distance_and_order_does_not_matter(measure):
    image, truth = pictures(), pictures(seed=1)
    assert torch.equal(measure(image, image), torch.zeros(2))
    assert torch.allclose(measure(image, truth), measure(truth, image))
    near = image + 0.05 * (truth - image)
    assert (measure(image, near) < measure(image, truth)).all()


def test_the_smallest_picture_is_known(measure):
    least = lpips.MIN_SIZE[measure.network]
    assert torch.isfinite(measure(pictures(1, (least, least)), pictures(1, (least, least), 1))).all()
    with pytest.raises(ValueError, match=f"at least {least} pixels"):
        measure(pictures(1, (least, least - 1)), pictures(1, (least, least - 1)))


def test_a_black_picture_gives_no_nan(measure):
    measure = copy.deepcopy(measure)
    measure.features[0].bias.zero_()
    grey = torch.tensor([(s + 1) / 2 for s in lpips.SHIFT]).expand(1, 40, 40, 3)
    assert torch.isfinite(measure(grey, pictures(1, (40, 40)))).all()


@pytest.mark.parametrize("network", NETWORKS)
def test_names_and_shapes_are_the_published_ones(network):
    state = Lpips(network).features.state_dict()
    published = {name: tensor.shape for name, tensor in seeded(network)[0].items() if name.startswith("features.")}
    assert {f"features.{name}": tensor.shape for name, tensor in state.items()} == published
    assert lpips.BACKBONES[network].url.endswith(f"-{lpips.BACKBONES[network].sha256[:8]}.pth")


@pytest.mark.parametrize("damage, message", [
    ("negative", "negative weight"), ("missing", "features.0.bias .* is missing"), ("extra", "unknown features.77.weight"),
    ("shape", r"lin1.model.1.weight .* has shape \(1, 7, 1, 1\)")])
def test_weights_that_are_not_the_published_ones_are_refused(damage, message):
    backbone, heads = seeded("alex")
    if damage == "negative":
        heads["lin0.model.1.weight"][0, 5] = -1e-3
    elif damage == "missing":
        del backbone["features.0.bias"]
    elif damage == "shape":
        heads["lin1.model.1.weight"] = torch.ones(1, 7, 1, 1)
    else:
        backbone["features.77.weight"] = torch.ones(1)
    with pytest.raises(UserError, match=message):
        Lpips("alex").load_published(backbone, heads)


# -------------------------------------------------------------------------------------------------- the files


@pytest.fixture
def source(tmp_path, monkeypatch):
    """Seeded files to be "published" by a folder, an empty cache, and the two `Weights` that name them."""
    monkeypatch.setenv("DIFFLISTENER_CACHE", str(tmp_path / "cache"))
    served = []
    for name, tensors in zip(("backbone.pth", "heads.pth"), seeded("alex")):
        file = tmp_path / name
        torch.save(tensors, file)
        served.append(Weights(file.as_uri(), sha256(file)))
    monkeypatch.setitem(lpips.BACKBONES, "alex", served[0])
    monkeypatch.setitem(lpips.HEADS, "alex", served[1])
    return served


def in_cache(tmp_path):
    return sorted(path.name for path in (tmp_path / "cache").rglob("*") if path.is_file())


def test_weights_are_fetched_once(source, tmp_path):
    assert not lpips.is_present("alex")
    fetched = Lpips.published("alex")
    assert in_cache(tmp_path) == ["backbone.pth", "heads.pth"] and lpips.is_present("alex")
    for weights in source:
        (tmp_path / weights.url.rsplit("/", 1)[1]).unlink()
    again = Lpips.published("alex", fetch=False)
    image, truth = pictures(1), pictures(1, seed=1)
    assert torch.equal(again(image, truth), fetched(image, truth))
    assert torch.allclose(again(image, truth)[0], plain("alex", image[0], truth[0]), rtol=1e-4)


def test_missing_weights_name_the_address_and_the_folder(source, tmp_path):
    with pytest.raises(UserError) as error:
        Lpips.published("alex", fetch=False)
    assert source[0].url in error.value.remedy and str(tmp_path / "cache" / "lpips") in error.value.remedy
    assert all(weights.url in lpips.how_to_get("alex") for weights in source)


def test_an_address_that_does_not_answer_is_named(source, tmp_path):
    (tmp_path / "heads.pth").unlink()
    with pytest.raises(UserError, match="heads.pth could not be fetched") as error:
        Lpips.published("alex")
    assert str(tmp_path / "cache" / "lpips") in error.value.remedy and in_cache(tmp_path) == ["backbone.pth"]


def test_another_file_is_refused_and_not_kept(source, tmp_path):
    (tmp_path / "heads.pth").write_bytes(b"not the weights")
    with pytest.raises(UserError, match="expected " + source[1].sha256):
        lpips.fetch_file(source[1])
    assert in_cache(tmp_path) == []


def test_a_file_changed_in_the_cache_is_refused(source, tmp_path):
    Lpips.published("alex")
    with source[1].path.open("ab") as file:
        file.write(b"x")
    with pytest.raises(UserError, match="expected " + source[1].sha256):
        Lpips.published("alex")


@pytest.mark.parametrize("reason", [KeyboardInterrupt, ConnectionResetError])
def test_an_interrupted_download_leaves_nothing(source, tmp_path, monkeypatch, reason):
    class Broken:
        headers = {"Content-Length": str(1 << 22)}

        def __init__(self):
            self.reads = 0

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def read(self, size):
            self.reads += 1
            if self.reads > 2:
                raise reason
            return b"x" * size

    monkeypatch.setattr(lpips.urllib.request, "urlopen", lambda *_, **__: Broken())
    with pytest.raises(UserError if reason is ConnectionResetError else reason):
        lpips.fetch_file(source[0])
    assert in_cache(tmp_path) == []


def test_code_in_a_file_of_weights_is_not_run(source, tmp_path, monkeypatch):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    file = tmp_path / "trap.pth"
    file.write_bytes(pickle.dumps(Trap(), protocol=2))
    monkeypatch.setitem(lpips.HEADS, "alex", Weights(file.as_uri(), sha256(file)))
    with pytest.raises(UserError, match="is not a file of weights"):
        Lpips.published("alex")
    assert not (tmp_path / "ran").exists()
