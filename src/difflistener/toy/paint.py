"""The colour of a toy head by formula: one picture per part of the anatomy, laid out along the part's grid.

Knows nothing of light, pose or cameras. A texture is [H,W,4] float32: red, green, blue in linear light 0..1
and gloss 0..1. It covers a part's grid from corner to corner, `texels` of them per grid cell.
"""

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter, map_coordinates

from . import anatomy
from .anatomy import both, bump, smoothstep


@dataclass(frozen=True)
class Look:
    """Colours of one character as sRGB 0..255 triples, and how strong its marks are (0..1)."""

    skin: tuple[int, int, int]
    lip: tuple[int, int, int]
    hair: tuple[int, int, int]
    brow: tuple[int, int, int]
    iris: tuple[int, int, int]
    cloth: tuple[int, int, int]
    background: tuple[tuple[int, int, int], tuple[int, int, int]]
    freckles: float = 0.0
    stubble: float = 0.0
    brow_weight: float = 1.0
    lashes: float = 1.0
    stripes: bool = False


def linear(color) -> np.ndarray:
    """sRGB 0..255 to linear light, with the gamma of 2 that the picture is written with."""
    return (np.asarray(color, np.float32) / 255) ** 2


def _mix(image, color, amount):
    image += (color - image) * np.clip(amount, 0, 1)[..., None]


def _noise(shape, sigma, generator):
    """Smooth noise of unit variance."""
    field = gaussian_filter(generator.standard_normal(shape).astype(np.float32), sigma, mode="wrap")
    return field / (field.std() + 1e-9)


def _spread(grid, texels):
    """A per-vertex grid [R,C] as seen by the texture's texels."""
    rows, columns = grid.shape
    height, width = int((rows - 1) * texels) + 1, int((columns - 1) * texels) + 1
    at = np.meshgrid(np.linspace(0, rows - 1, height), np.linspace(0, columns - 1, width), indexing="ij")
    return map_coordinates(grid.astype(np.float32), at, order=1)


class _Grain:
    """Smooth noise of unit variance over a surface, as coarse as asked for in centimetres."""

    def __init__(self, across: np.ndarray, y: np.ndarray, generator: np.random.Generator):
        self.across, self.y, self.generator = across, y, generator

    def __call__(self, sigma: float) -> np.ndarray:
        cell = sigma / 1.5
        size = [int(np.ptp(a) / cell) + 8 for a in (self.y, self.across)]
        field = _noise(size, 1.5, self.generator)
        at = [(a - a.min()) / cell + 4 for a in (self.y, self.across)]
        return map_coordinates(field, at, order=1, mode="nearest")


def skin_tone(grain: _Grain, look: Look) -> np.ndarray:
    """Plain skin with blotches and pores: [H,W,4]."""
    shape = grain.y.shape
    image = np.empty((*shape, 4), np.float32)
    image[..., :3] = linear(look.skin)
    blotch, pores = grain(0.9), grain(0.09)
    image[..., :3] *= (1 + 0.05 * blotch + 0.035 * pores)[..., None]
    image[..., 0] *= 1 + 0.03 * grain(0.5)
    image[..., 3] = 0.30
    return image


def face(head: anatomy.Head, shape: anatomy.Shape, look: Look, texels: float, generator) -> np.ndarray:
    """The whole head's skin, lips, brows, lashes, freckles and the shadow in its hollows."""
    rows = np.concatenate([head.t[:, 0], np.linspace(-9.6, -11.5, head.under)])
    x_grid = np.concatenate([head.x, np.repeat(head.x[-1:], head.under, 0)])
    y_grid = np.concatenate([head.t + 0.0, np.repeat(rows[-head.under :, None], head.columns, 1)])
    phi_grid = np.repeat(head.phi[:1], len(rows), 0)
    x, y, phi = (_spread(g, texels) for g in (x_grid, y_grid, phi_grid))
    front = smoothstep(1.75, 1.2, np.abs(phi))
    size = x.shape
    grain = _Grain(7.2 * phi, y, generator)
    image = skin_tone(grain, look)
    rgb = image[..., :3]
    skin = linear(look.skin)

    rosy = skin * np.array([1.02, 0.66, 0.62], np.float32)
    blush = 0.60 * both(x, y, 4.1, -0.9, 1.5, 1.3) + 0.55 * bump(x, y, 0, -0.9, 0.9, 0.8)
    blush += 0.3 * bump(x, y, 0, -7.8, 1.4, 0.9) + 0.22 * both(x, y, 1.3, -1.5, 0.6, 0.5)
    _mix(rgb, rosy, blush * (1 + 0.15 * grain(0.5)) * front)
    lids = both(x, y, anatomy.EYE_X, anatomy.EYE_Y + 0.2, 1.7, 0.8)
    _mix(rgb, skin * np.array([0.80, 0.58, 0.55], np.float32), 0.42 * lids * front)
    _mix(rgb, skin * np.array([0.80, 0.62, 0.62], np.float32), 0.35 * both(x, y, 2.7, 1.35, 1.1, 0.28) * front)

    # Hollows that daylight does not reach.
    dark = skin * np.array([0.42, 0.24, 0.20], np.float32)
    shade = 0.40 * both(x, y, 1.75, 2.9, 0.55, 0.8) + 0.35 * bump(x, y, 0, -2.62, 1.3, 0.30)
    shade += 0.34 * bump(x, y, 0, -5.45, 1.5, 0.28) + 0.36 * both(x, y, 1.98 * shape.nose_width, -1.6, 0.16, 0.5)
    fold_x = 2.05 + 0.28 * (-1.9 - y)
    fold = np.exp(-(((np.abs(x) - fold_x) / 0.22) ** 2)) * smoothstep(-3.9, -3.0, y) * smoothstep(-1.2, -2.0, y)
    shade += 0.16 * fold + 0.35 * both(x, y, anatomy.MOUTH_HALF + 0.05, anatomy.MOUTH_Y, 0.25, 0.18)
    shade += 0.25 * smoothstep(6.2, 8.6, y) + 0.75 * smoothstep(-9.1, -10.2, y)
    shade += 0.25 * smoothstep(1.0, 1.5, np.abs(phi))
    _mix(rgb, dark, shade)
    nostril = both(x, y, 0.66 * shape.nose_width, -2.05, 0.30 * shape.nose_width, 0.17)
    _mix(rgb, linear((46, 20, 18)), 1.25 * smoothstep(0.25, 0.95, nostril))

    if look.freckles:
        spots = np.zeros(size, np.float32)
        field = both(x, y, 3.0, -0.3, 2.2, 1.3) + 0.7 * bump(x, y, 0, 0.2, 1.4, 1.2) + 0.12
        count = int(1100 * look.freckles)
        for _ in range(count):
            r, c = generator.integers(0, size[0]), generator.integers(0, size[1])
            if generator.random() < field[r, c] * front[r, c] and y[r, c] > -8:
                spots[r, c] += generator.uniform(0.5, 1.0)
        blur = 0.42 * texels
        spots = gaussian_filter(spots, blur) * (2 * np.pi * blur**2)
        _mix(rgb, skin * np.array([0.62, 0.40, 0.28], np.float32), 0.5 * np.minimum(spots, 1))
        # Two moles break the symmetry.
        moles = 0.8 * bump(x, y, 3.9, -3.4, 0.13, 0.11) + 0.6 * bump(x, y, -4.6, 0.4, 0.10, 0.09)
        _mix(rgb, linear((92, 52, 40)), moles)

    if look.stubble:
        beard = smoothstep(-2.7, -4.2, y) * smoothstep(1.65, 1.2, np.abs(phi)) + 0.0 * x
        whiskers = smoothstep(0.8, 1.1, np.abs(phi)) * smoothstep(1.6, 1.3, np.abs(phi))
        beard = np.maximum(beard, smoothstep(0.2, -2.5, y) * whiskers)
        beard *= 1 - 0.75 * both(x, y, 3.4, -2.9, 1.2, 1.0)
        dots = smoothstep(-0.6, 1.4, grain(0.055))
        _mix(rgb, linear(look.hair) * 0.9, look.stubble * beard * (0.34 + 0.42 * dots) * smoothstep(-10.5, -9.0, y))

    upper, lower = anatomy.Head.lip_heights(x, shape)
    rise = y - anatomy.MOUTH_Y
    edge = np.where(rise > 0, (upper - rise) / 0.16, (lower + rise) / 0.22)
    width = smoothstep(anatomy.MOUTH_HALF + 0.08, anatomy.MOUTH_HALF - 0.35, np.abs(x))
    lip = np.clip(edge + 0.4, 0, 1) * width * (front > 0.9)
    wrinkles = 1 + 0.07 * np.sin(26 * x + 1.5 * np.sin(5 * y)) * np.exp(-((rise / 0.6) ** 2))
    lip_color = linear(look.lip) * np.where(rise > 0, 0.80, 1.05)[..., None] * wrinkles[..., None]
    rgb += (lip_color - rgb) * (0.88 * lip)[..., None]
    width = smoothstep(anatomy.MOUTH_HALF + 0.1, anatomy.MOUTH_HALF - 0.2, np.abs(x))
    inner = np.exp(-np.abs(rise) / 0.07) * width * (front > 0.9)
    _mix(rgb, linear((88, 30, 32)), 0.75 * inner)
    image[..., 3] += 0.45 * lip * (rise < 0.1) + 0.10 * bump(x, y, 0, -0.9, 0.6, 0.7)

    q = (np.abs(x) - anatomy.EYE_X) / (anatomy.EYE_HALF * shape.eyes)
    tau = y - anatomy.EYE_Y
    on_eye = smoothstep(1.12, 0.95, np.abs(q)) * (front > 0.5)
    crease = np.exp(-(((tau - 0.62 + 0.18 * q**2) / 0.07) ** 2)) * smoothstep(1.1, 0.6, np.abs(q))
    _mix(rgb, dark, 0.55 * crease * (front > 0.5))
    lash = smoothstep(0.30, 0.10, tau - 0.10 * np.clip(q, 0, 1)) * (tau > -0.01) * on_eye
    _mix(rgb, linear((26, 17, 15)), look.lashes * 0.95 * lash)
    lash_low = smoothstep(-0.10, -0.02, tau) * (tau <= 0) * on_eye
    _mix(rgb, linear((70, 38, 34)), 0.55 * look.lashes * lash_low)

    # Brows: strokes that lean outwards.
    s = (np.abs(x) - 1.35) / 3.55
    centre = 4.18 + 0.62 * np.clip(s, 0, 1) ** 0.8 - 1.05 * np.clip(s - 0.62, 0, 1) ** 1.2
    thick = (0.36 - 0.20 * np.clip(s, 0, 1)) * (0.75 + 0.25 * look.brow_weight)
    body = np.exp(-(((y - centre) / thick) ** 4)) * smoothstep(-0.04, 0.12, s) * smoothstep(1.02, 0.84, s)
    strokes = 0.82 + 0.18 * np.sin(19 * np.abs(x) - 17 * (y - centre) + 1.2 * grain(0.2))
    _mix(rgb, linear(look.brow), look.brow_weight * 1.05 * body * strokes * (front > 0.9))

    scalp = smoothstep(1.2, 1.5, np.abs(phi)) * smoothstep(1.4, 2.2, y) + smoothstep(8.2, 9.0, y)
    _mix(image, np.append(linear(look.hair) * 0.55, 0.05).astype(np.float32), scalp)
    return image


def neck(points: np.ndarray, look: Look, texels: float, generator) -> np.ndarray:
    """Skin, in the shadow of the chin."""
    y, z = _spread(points[..., 1], texels), _spread(points[..., 2], texels)
    around = _spread(np.repeat(np.linspace(-17, 17, points.shape[1])[None], points.shape[0], 0), texels)
    image = skin_tone(_Grain(around, y, generator), look)
    shadow = smoothstep(-13.2, -9.6, y) * 0.75 + 0.3 * smoothstep(0.0, -4.0, z)
    _mix(image[..., :3], linear(look.skin) * np.array([0.40, 0.22, 0.18], np.float32), shadow)
    _mix(image[..., :3], linear(look.skin) * np.array([0.45, 0.25, 0.2], np.float32), 0.5 * smoothstep(-13.2, -14.6, y))
    image[..., 3] = 0.15
    return image


def ear(points: np.ndarray, look: Look, texels: float, generator) -> np.ndarray:
    """Skin, redder and dark in the bowl."""
    rows = _spread(np.repeat(np.linspace(1, 0.04, points.shape[0])[:, None], points.shape[1], 1), texels)
    y, z = _spread(points[..., 1], texels), _spread(points[..., 2], texels)
    image = skin_tone(_Grain(z, y, generator), look)
    _mix(image[..., :3], linear(look.skin) * np.array([0.95, 0.55, 0.5], np.float32), 0.45 + 0 * rows)
    hollow = 0.7 * np.exp(-(((rows - 0.64) / 0.1) ** 2)) + 0.95 * np.exp(-((rows / 0.3) ** 2))
    _mix(image[..., :3], linear(look.skin) * np.array([0.34, 0.17, 0.14], np.float32), 0.8 * hollow)
    return image


def hair(points: np.ndarray, look: Look, texels: float, generator) -> np.ndarray:
    """Strands from the crown to the tips, darker at the roots."""
    v = _spread(np.repeat(np.linspace(0, 1, points.shape[0])[:, None], points.shape[1], 1), texels)
    size = v.shape
    strands = np.zeros(size, np.float32)
    for sigma, strength in ((0.28, 0.5), (0.7, 0.6), (2.0, 0.7)):
        field = generator.standard_normal(size).astype(np.float32)
        field = gaussian_filter(field, (12 * texels * sigma**0.3, sigma * texels), mode="wrap")
        strands += strength * field / field.std()
    image = np.empty((*size, 4), np.float32)
    tone = np.exp(0.26 * strands)
    image[..., :3] = linear(look.hair) * tone[..., None]
    image[..., :3] *= (0.70 + 0.30 * smoothstep(0.0, 0.35, v))[..., None]
    image[..., :3] *= (1 - 0.25 * smoothstep(0.9, 1.0, v))[..., None]
    image[..., 3] = np.clip(0.45 * tone, 0, 1)
    return image


def cloth(points: np.ndarray, look: Look, texels: float, generator) -> np.ndarray:
    """Knitted ribs, a darker collar, and stripes for who wears them."""
    rows, columns = points.shape[:2]
    r = _spread(np.repeat(np.linspace(0, 1, rows)[:, None], columns, 1), texels)
    c = _spread(np.repeat(np.linspace(-1, 1, columns)[None], rows, 0), texels)
    image = np.empty((*r.shape, 4), np.float32)
    image[..., :3] = linear(look.cloth)
    creases, yarn = _noise(r.shape, 2.5 * texels, generator), _noise(r.shape, 0.4 * texels, generator)
    image[..., :3] *= (1 + 0.06 * creases + 0.05 * yarn)[..., None]
    collar = smoothstep(0.165, 0.155, r)
    rib = 1 + 0.16 * np.sin(2 * np.pi * 46 * c)
    image[..., :3] *= (1 + collar * (0.80 * rib - 1))[..., None]
    image[..., :3] *= (1 - 0.55 * np.exp(-(((r - 0.172) / 0.012) ** 2)))[..., None]
    if look.stripes:
        band = smoothstep(0.2, 0.5, np.sin(2 * np.pi * (r - 0.2) * 13)) * (r > 0.2)
        _mix(image[..., :3], linear((236, 232, 222)), 0.85 * band)
    image[..., 3] = 0.04
    return image
