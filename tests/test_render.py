import pytest
import torch
from test_raster import NAMES, isa, scene  # noqa: F401

from difflistener.bench import synthetic_body, synthetic_motion
from difflistener.body.model import Body
from difflistener.body.raster import fixed_room, paint, rasterize, to_bytes
from difflistener.body.raster.bins import TILE, bin_pairs
from difflistener.body.render import Renderer

needs_gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU and gsplat")]


def boxes(batch=2, count=60, width=100, height=70, seed=0):
    """Boxes on, across and beyond the picture's border; some of equal depth; every seventh out of sight."""
    g = torch.Generator().manual_seed(seed)
    means2d = torch.rand(batch, count, 2, generator=g) * torch.tensor([width * 1.6, height * 1.6]) - 0.3 * max(width, height)
    radii = torch.randint(1, 40, (batch, count, 2), generator=g, dtype=torch.int32)
    depths = torch.randint(1, 12, (batch, count), generator=g).float()
    radii[:, ::7, 1] = 0
    means2d[:, ::7] = float("nan")
    depths[:, ::7] = float("nan")
    return means2d, radii, depths, width, height


def brute_force(means2d, radii, depths, width, height):
    """For each scene and tile: the numbers of the Gaussians whose box meets it, by depth and number."""
    batch, count = depths.shape
    means2d, radii, depths = means2d.tolist(), radii.tolist(), depths.tolist()
    tiles = {}
    for b in range(batch):
        for row in range(-(-height // TILE)):
            for column in range(-(-width // TILE)):
                met = []
                for n in range(count):
                    (x, y), (rx, ry) = means2d[b][n], radii[b][n]
                    across = x - rx < (column + 1) * TILE and x + rx > column * TILE
                    down = y - ry < (row + 1) * TILE and y + ry > row * TILE
                    if rx > 0 and ry > 0 and across and down:
                        met.append((depths[b][n], b * count + n))
                tiles[b, row, column] = [number for _, number in sorted(met)]
    return tiles


@pytest.mark.parametrize("size", [(100, 70), (96, 64), (5, 3)])
@pytest.mark.parametrize("spare", [0, 37])
def test_binning_finds_the_pairs_of_brute_force_in_its_order(size, spare):
    data = boxes(width=size[0], height=size[1])
    tiles = brute_force(*data)
    wanted = sum(map(len, tiles.values()))
    ids, starts, needed = bin_pairs(*data, room=wanted + spare)
    assert int(needed) == wanted and len(ids) == wanted + spare
    assert starts.shape == (2, -(-size[1] // TILE) + 1, -(-size[0] // TILE))
    ends = torch.cat([starts.flatten()[1:], torch.tensor([len(ids)])]).view_as(starts)
    for (b, row, column), numbers in tiles.items():
        assert ids[starts[b, row, column] : ends[b, row, column]].tolist() == numbers
    assert (ends - starts)[:, -1].sum() == spare and ids.min() >= 0 and ids.max() < 2 * 60


def test_binning_says_when_there_is_no_room():
    data = boxes()
    wanted = sum(map(len, brute_force(*data).values()))
    ids, starts, needed = bin_pairs(*data, room=wanted - 1)
    assert int(needed) == wanted > len(ids) and starts.max() <= len(ids)
    assert int(bin_pairs(*data, room=1)[2]) == wanted


def test_binning_of_more_tiles_than_16_bits_can_name():
    data = boxes(batch=1, count=12, width=16 * 200, height=16 * 200)
    tiles = {place: numbers for place, numbers in brute_force(*data).items() if numbers}
    ids, starts, needed = bin_pairs(*data, room=500)
    for (_, row, column), numbers in tiles.items():
        start = int(starts[0, row, column])
        assert ids[start : start + len(numbers)].tolist() == numbers
    assert int(needed) == sum(map(len, tiles.values()))


def test_binning_where_nothing_is_seen():
    means2d, radii, depths, width, height = boxes()
    ids, starts, needed = bin_pairs(means2d, radii * 0, depths, width, height, room=8)
    assert int(needed) == 0 and (starts == 0).all()


def test_painting_is_rasterising_composing_and_rounding(isa):  # noqa: F811
    inputs, w2c, K, width, height = scene(batch=2, count=400, width=70, height=55)
    gaussians = [inputs[name].float() * (1.5 if name == "colors" else 1) for name in NAMES]
    background = torch.rand(height, width, 3, generator=torch.Generator().manual_seed(1)) * 1.2 - 0.1
    camera = (w2c.float(), K.float(), width, height)
    rgb, alpha = rasterize(*gaussians, *camera)
    wanted = to_bytes(rgb + (1 - alpha) * background)
    pictures = paint(*gaussians, *camera, background)
    assert wanted.min() == 0 and wanted.max() == 255
    assert (pictures.int() - wanted.int()).abs().max() <= 1 and (pictures != wanted).float().mean() < 1e-3
    assert torch.equal(paint(*[x[:, :0] for x in gaussians], *camera, background)[1], to_bytes(background))
    gaussians[0][1, 17, 0] = float("nan")
    with pytest.raises(ValueError, match="means of scene 1 is not finite at Gaussian 17"):
        paint(*gaussians, *camera, background)


class Layered(Body):
    """A body of two layers, which it composes itself."""

    def __init__(self, body):
        super().__init__(body.config)
        self.body = body
        self.K, self.background = body.K, body.background

    def forward(self, motion, translation=None, torso=None, eyes=None):
        front, alpha = self.body.draw(self.body.gaussians(motion, *self.body.fill(motion, translation, torso, eyes)))
        back, _ = self.body(motion * 0.5, translation, torso, eyes)
        return front + (1 - alpha) * back, alpha


def head(device="cpu", gaussians=1500, size=64):
    body = synthetic_body(gaussians, size).to(device)
    body.background.copy_(torch.rand(body.background.shape, generator=torch.Generator().manual_seed(2)))
    return body


def tracked(count, depth=10.0):
    g = torch.Generator().manual_seed(3)
    return (torch.tensor([0.1, 0, depth]) + 0.1 * torch.randn(count, 3, generator=g), 0.02 * torch.randn(count, 3, generator=g),
            torch.rand(count, 4, generator=g))


def plain(body, *given):
    with torch.no_grad():
        return to_bytes(body(*(None if x is None else x.to(body.device) for x in given))[0])


def assert_same(pictures, wanted):
    assert pictures.dtype == torch.uint8 and pictures.device == wanted.device
    assert (pictures.int() - wanted.int()).abs().max() <= 1
    assert wanted.float().std() > 10


@pytest.mark.parametrize("make", [head, lambda: Layered(head())])
def test_a_renderer_gives_the_pictures_of_forward(make):
    body, motion = make(), synthetic_motion(4)
    renderer = Renderer(body)
    threads = torch.get_num_threads()
    for given in [(motion,), (motion, *tracked(4)), (motion[:1], None, tracked(1)[1])]:
        assert_same(renderer(*given), plain(body, *given))
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("make", [head, lambda device: Layered(head(device))])
class TestOnTheGpu:
    pytestmark = needs_gpu

    def test_frames_replayed_are_those_of_forward(self, make):
        body = make("cuda")
        renderer = Renderer(body)
        motion = synthetic_motion(30)
        for size in (1, 5):
            kept = []
            for start in range(0, 30, size):
                batch = motion[start : start + size]
                kept.append((renderer(batch), plain(body, batch)))
            for pictures, wanted in kept:  # after the last replay: no picture may share memory with the next
                assert_same(pictures, wanted)
        given = (motion[:4], *tracked(4))
        for _ in range(3):
            assert_same(renderer(*given), plain(body, *given))

    def test_no_gaussian_is_lost_when_a_batch_needs_more_room(self, make):
        body = make("cuda")
        renderer = Renderer(body)
        motion = synthetic_motion(2)
        for depth in (40.0, 40.0, 40.0, 8.0, 3.0, 40.0):
            given = (motion, *tracked(2, depth))
            pictures = renderer(*given)
            wanted = plain(body, *given)
            assert (pictures.int() - wanted.int()).abs().max() <= 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU and gsplat")
def test_a_fixed_room_changes_no_bit():
    inputs, w2c, K, width, height = scene(count=2000, width=150, height=130, batch=2, seed=8)
    given = [inputs[name].float().cuda() for name in NAMES] + [w2c.float().cuda(), K.float().cuda(), width, height]
    rgb, alpha = rasterize(*given)
    with fixed_room(200_000) as room:
        fixed_rgb, fixed_alpha = rasterize(*given)
    assert torch.equal(rgb, fixed_rgb) and torch.equal(alpha, fixed_alpha) and int(room.needed[0]) <= 200_000
    with fixed_room(100) as room:
        rasterize(*given)
    assert int(room.needed[0]) > 100
