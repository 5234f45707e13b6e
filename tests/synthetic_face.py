"""A made-up face on an ellipsoid, with known poses, its landmarks and its pictures."""

import numpy as np

from difflistener.prepare import face_points as fp
from difflistener.prepare.bundle import Camera, rotation_matrices

RADII = np.array([0.85, 1.15, 1.0])


def on_head(xy: np.ndarray) -> np.ndarray:
    """Points [P, 3] of the front of the ellipsoid at `xy` [P, 2]."""
    inside = np.clip(1 - ((xy / RADII[:2]) ** 2).sum(1), 0, None)
    return np.column_stack([xy, -RADII[2] * np.sqrt(inside)])


EAR = np.array([(0.8 * np.sin(8 * np.pi / 18), -1.08 * np.cos(8 * np.pi / 18))])
CENTRE = on_head(EAR)[0] * (0, 1, 1)
UNIT = 1.0
"""Origin of the head frame and inter-ocular distance, in the ellipsoid's own frame."""


def ring(upper: np.ndarray, lower: np.ndarray, centre, half_width: float, half_height: float) -> dict:
    across = np.linspace(-1, 1, len(upper))
    bow = half_height * np.sqrt(np.clip(1 - across**2, 0, None))
    places = {int(p): (centre[0] + half_width * a, centre[1] - b) for p, a, b in zip(upper, across, bow)}
    return places | {int(p): (centre[0] + half_width * a, centre[1] + b) for p, a, b in zip(lower, across, bow)}


def template(seed: int = 0, lid_height: float = 0.06, mouth_height: float = 0.0) -> np.ndarray:
    """A symmetrical face [478, 3] in the head frame: inter-ocular distance 1, origin between the ears."""
    rng = np.random.default_rng(seed)
    radius, angle = np.sqrt(rng.random(fp.NUM_POINTS)), 2 * np.pi * rng.random(fp.NUM_POINTS)
    xy = 0.9 * radius[:, None] * np.column_stack([RADII[0] * np.cos(angle), RADII[1] * np.sin(angle)])
    places = {int(p): (0.8 * np.sin(a), -1.08 * np.cos(a))
              for p, a in zip(fp.FACE_OVAL, np.linspace(0, 2 * np.pi, len(fp.FACE_OVAL), endpoint=False))}
    places |= ring(fp.RIGHT_LID_UPPER, fp.RIGHT_LID_LOWER, (-0.33, -0.2), 0.17, lid_height)
    places |= ring(fp.UPPER_LIP_TOP, fp.LOWER_LIP_BOTTOM, (0, 0.55), 0.3, 0.12)
    places |= ring(fp.UPPER_LIP_INNER, fp.LOWER_LIP_INNER, (0, 0.55), 0.24, 0.01 + mouth_height)
    places |= ring(fp.RIGHT_BROW[:5], fp.RIGHT_BROW[5:][::-1], (-0.33, -0.42), 0.2, 0.04)
    places |= {int(p): (-0.33, -0.2) for p in fp.RIGHT_IRIS}
    places |= {168: (0, -0.25), 6: (0, -0.15), 197: (0, -0.05), 195: (0, 0.03), 5: (0, 0.1), 4: (0, 0.17), 1: (0, 0.22)}
    for point, place in places.items():
        xy[point] = place
        if place[0] < -1e-9:
            xy[fp.MIRROR[point]] = (-place[0], place[1])
    for point in range(fp.NUM_POINTS):
        if fp.MIRROR[point] > point and point not in places:
            xy[fp.MIRROR[point]] = xy[point] * (-1, 1)
        elif fp.MIRROR[point] == point:
            xy[point, 0] = 0
    return (on_head(xy) - CENTRE) / UNIT


def poses(num_frames: int, seed: int = 0, swing=(0.25, 0.35, 0.1), distance: float = 11.0):
    """A smooth head: rotation and translation [T, 3] each."""
    rng = np.random.default_rng(seed)
    time = np.arange(num_frames) / 25
    phase = rng.random((6, 1)) * 2 * np.pi
    waves = np.sin(2 * np.pi * np.array([0.4, 0.31, 0.5, 0.2, 0.27, 0.15])[:, None] * time + phase).T
    return waves[:, :3] * swing, waves[:, 3:] * (0.3, 0.2, 0.3) + (0.1, -0.1, distance)


def see(camera: Camera, rotation: np.ndarray, translation: np.ndarray, faces: np.ndarray, noise_px: float = 0.0,
        seed: int = 1) -> np.ndarray:
    """Landmarks [T, 478, 3] px of `faces` [478, 3] or [T, 478, 3], depth scaled like x."""
    placed = faces @ rotation_matrices(rotation).transpose(0, 2, 1) + translation[:, None]
    depth = (placed[..., 2] - translation[:, None, 2]) * camera.focal / translation[:, None, 2]
    landmarks = np.concatenate([camera.project(placed), depth[..., None]], -1)
    noise = np.random.default_rng(seed).normal(0, 1, landmarks.shape) * noise_px
    return (landmarks + noise).astype(np.float32)


def pictures(camera: Camera, rotation: np.ndarray, translation: np.ndarray, width: int, height: int, seed: int = 0):
    """Yield uint8 [H, W, 3] of the textured ellipsoid that the template lies on."""
    rng = np.random.default_rng(seed)
    waves = rng.normal(0, 9, (40, 3))
    phases = rng.random(40) * 6.28
    y, x = np.mgrid[:height, :width]
    rays = np.stack([(x - camera.cx) / camera.focal, (y - camera.cy) / camera.focal, np.ones(x.shape)], -1)
    for matrix, shift in zip(rotation_matrices(rotation), translation):
        direction = rays @ matrix / RADII
        start = (CENTRE - shift @ matrix) / RADII
        a, b, c = (direction**2).sum(-1), direction @ start, start @ start - 1
        hit = b * b - a * c
        distance = (-b - np.sqrt(np.clip(hit, 0, None))) / a
        surface = (start + distance[..., None] * direction) * RADII
        texture = np.sin(surface @ waves.T + phases).sum(-1)
        grey = np.where(hit > 0, np.clip(128 + 14 * texture, 0, 255), 60).astype(np.uint8)
        yield np.repeat(grey[..., None], 3, -1)
