"""LPIPS v0.1: how different two pictures look, by the features of AlexNet or VGG-16.

The networks are written here in plain torch; their published weights are fetched once into a cache folder and believed
only if their sha256 is the known one. Knows nothing of bodies or clips. Axes: B pictures [B, H, W, 3] in 0..1, C channels.

Source: Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", CVPR 2018, equation 1:
    d(x, y) = sum over layers l of mean over pixels of || w_l * (f_l(x) - f_l(y)) ||^2
with f_l the features after a ReLU, made of unit length over their channels, and learned weights that are not negative
(the published `w` stands for the square). The weights are BSD-licensed, by the LPIPS and the torchvision authors.
"""

import hashlib
import os
import pickle
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError

import torch
from torch import nn

from difflistener.clip import replacing, sha256
from difflistener.errors import UserError
from difflistener.progress import progress

SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)
"""Pictures in -1..1 are brought to (x - SHIFT) / SCALE: about zero mean and unit variance over ImageNet."""
SMALLEST = 1e-10
"""Added to a feature vector's length, so that features that are all zero stay so."""
MIN_SIZE = {"alex": 31, "vgg": 16}
"""Least side of a picture in pixels: below, a layer has no pixel left."""
TIMEOUT_S = 30
CHUNK = 1 << 20

AGAIN = "Delete the files in the cache folder and fetch the published ones again."
PUBLISHED = "https://raw.githubusercontent.com/richzhang/PerceptualSimilarity/master/lpips/weights/v0.1"


@dataclass(frozen=True)
class Weights:
    """A published file of weights."""

    url: str
    sha256: str

    @property
    def path(self) -> Path:
        """Where it lies once it is fetched."""
        return cache_folder() / self.url.rsplit("/", 1)[1]


BACKBONES = {
    "alex": Weights("https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
                    "7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02"),
    "vgg": Weights("https://download.pytorch.org/models/vgg16-397923af.pth",
                   "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0"),
}
HEADS = {
    "alex": Weights(f"{PUBLISHED}/alex.pth", "df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0"),
    "vgg": Weights(f"{PUBLISHED}/vgg.pth", "a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868"),
}


def cache_folder() -> Path:
    """Where fetched weights lie: $DIFFLISTENER_CACHE/lpips, or ~/.cache/difflistener/lpips."""
    return Path(os.environ.get("DIFFLISTENER_CACHE") or Path.home() / ".cache" / "difflistener") / "lpips"


def alexnet() -> nn.Sequential:
    """AlexNet's convolutions (Krizhevsky 2014), numbered as torchvision publishes them."""
    return nn.Sequential(
        nn.Conv2d(3, 64, 11, stride=4, padding=2), nn.ReLU(),
        nn.MaxPool2d(3, 2), nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(),
        nn.MaxPool2d(3, 2), nn.Conv2d(192, 384, 3, padding=1), nn.ReLU(),
        nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(),
        nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(),
    )


def vgg16() -> nn.Sequential:
    """VGG-16's convolutions (Simonyan and Zisserman 2015, configuration D), numbered as torchvision publishes them."""
    layers: list[nn.Module] = []
    before = 3
    for width, count in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        layers += [nn.MaxPool2d(2)] if layers else []
        for _ in range(count):
            layers += [nn.Conv2d(before, width, 3, padding=1), nn.ReLU()]
            before = width
    return nn.Sequential(*layers)


NETWORKS = {"alex": (alexnet, {1: 64, 4: 192, 7: 384, 9: 256, 11: 256}),
            "vgg": (vgg16, {3: 64, 8: 128, 15: 256, 22: 512, 29: 512})}
"""Network -> its maker, and the layers whose output is compared with their channels."""


class Lpips(nn.Module):
    """The distance. Lower is more alike, equal pictures give 0. `Lpips.published` has the weights that papers use."""

    def __init__(self, network: str = "alex"):
        super().__init__()
        self.network = network
        make, self.taps = NETWORKS[network]
        self.features = make()
        self.heads = nn.ParameterList(torch.ones(channels) for channels in self.taps.values())
        self.register_buffer("shift", torch.tensor(SHIFT)[:, None, None], persistent=False)
        self.register_buffer("scale", torch.tensor(SCALE)[:, None, None], persistent=False)

    def forward(self, image: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        """Distance [B] of pictures [B, H, W, 3] in 0..1. Raises `ValueError` for pictures too small for the network."""
        if min(image.shape[1:3]) < MIN_SIZE[self.network]:
            least, (height, width) = MIN_SIZE[self.network], image.shape[1:3]
            raise ValueError(f"LPIPS needs pictures of at least {least} pixels, got {width}x{height}")
        pairs = zip(self._layers(image), self._layers(truth), self.heads)
        return sum(torch.einsum("bchw,c->bhw", (a - b) ** 2, head).mean((1, 2)) for a, b, head in pairs)

    def _layers(self, image: torch.Tensor) -> list[torch.Tensor]:
        """Features [B, C, h, w] of each compared layer, of unit length over C."""
        x = (2 * image.permute(0, 3, 1, 2) - 1 - self.shift) / self.scale
        layers = []
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in self.taps:
                layers.append(x / (x.norm(dim=1, keepdim=True) + SMALLEST))
        return layers

    def load_published(self, backbone: dict[str, torch.Tensor], heads: dict[str, torch.Tensor]) -> None:
        """Take over weights named as published: `features.0.weight` and so on, `lin0.model.1.weight` [1, C, 1, 1].

        Raises:
            UserError: a name is missing, a shape is another, or a head has a negative weight.
        """
        wanted = {f"features.{name}": tensor.shape for name, tensor in self.features.state_dict().items()}
        found = {name: tensor for name, tensor in backbone.items() if name.startswith("features.")}
        _check_names(f"the {self.network} backbone", wanted, found)
        names = [f"lin{layer}.model.1.weight" for layer in range(len(self.heads))]
        _check_names(f"the {self.network} heads", {n: (1, len(h), 1, 1) for n, h in zip(names, self.heads)}, heads)
        if any((heads[name] < 0).any() for name in names):
            raise UserError(f"LPIPS weights: the {self.network} heads hold a negative weight.", AGAIN)
        self.features.load_state_dict({name.removeprefix("features."): tensor for name, tensor in found.items()})
        with torch.no_grad():
            for name, head in zip(names, self.heads):
                head.copy_(heads[name].flatten())

    @classmethod
    def published(cls, network: str = "alex", device: str = "cpu", fetch: bool = True) -> "Lpips":
        """The distance with the published weights, from the cache folder; fetched into it first where `fetch` is true.

        Raises:
            UserError: a file is missing or not the published one; it names the address and the folder.
        """
        made = cls(network)
        made.load_published(*(_load(weights, fetch) for weights in (BACKBONES[network], HEADS[network])))
        return made.to(device).eval().requires_grad_(False)


def is_present(network: str) -> bool:
    """Whether the weights of `network` lie in the cache folder (not whether they are whole)."""
    return BACKBONES[network].path.is_file() and HEADS[network].path.is_file()


def how_to_get(network: str) -> str:
    """What a user does to have the weights of `network`."""
    return (f"Put {BACKBONES[network].url} and {HEADS[network].url} into {cache_folder()} "
            f"(or give --lpips {network} on a machine with network).")


def fetch_file(weights: Weights) -> None:
    """Download a file into the cache folder; it appears there whole and with the known sha256, or not at all.

    Raises:
        UserError: it cannot be reached, or is another file.
    """
    digest = hashlib.sha256()
    with replacing(weights.path) as temporary:
        try:
            with urllib.request.urlopen(weights.url, timeout=TIMEOUT_S) as source, temporary.open("wb") as file:
                length = source.headers.get("Content-Length")
                chunks = iter(lambda: source.read(CHUNK), b"")
                total = -(-int(length) // CHUNK) if length else None
                for chunk, _ in progress(chunks, f"fetch {weights.path.name}", total=total):
                    digest.update(chunk)
                    file.write(chunk)
        except (URLError, TimeoutError, ConnectionError) as error:
            raise UserError(f"{weights.url} could not be fetched ({error}).",
                            f"Fetch it on a machine with network and put it into {weights.path.parent}.") from error
        if digest.hexdigest() != weights.sha256:
            raise UserError(f"{weights.url} gave a file with sha256 {digest.hexdigest()}, expected {weights.sha256}.",
                            f"Nothing was kept. Try again, or put the published file into {weights.path.parent} yourself.")


def _load(weights: Weights, fetch: bool) -> dict[str, torch.Tensor]:
    if not weights.path.is_file():
        if not fetch:
            raise UserError(f"LPIPS weights are missing: {weights.path}.",
                            f"Fetch {weights.url} and put it into {weights.path.parent}.")
        fetch_file(weights)
    found = sha256(weights.path)
    if found != weights.sha256:
        raise UserError(f"{weights.path} has sha256 {found}, expected {weights.sha256}.",
                        f"Delete it and put {weights.url} into {weights.path.parent} again.")
    try:
        return torch.load(weights.path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError) as error:
        raise UserError(f"{weights.path} is not a file of weights ({error}).",
                        f"Delete it and put {weights.url} into {weights.path.parent} again.") from error


def _check_names(what: str, wanted: dict, found: dict[str, torch.Tensor]) -> None:
    for name, shape in wanted.items():
        if name not in found or tuple(found[name].shape) != tuple(shape):
            held = f"has shape {tuple(found[name].shape)}" if name in found else "is missing"
            raise UserError(f"LPIPS weights: {name} of {what} {held}, expected {tuple(shape)}.", AGAIN)
    extra = sorted(set(found) - set(wanted))
    if extra:
        raise UserError(f"LPIPS weights: {what} hold the unknown {extra[0]}.", AGAIN)
