"""Where a head's Gaussians start: on the face mesh, behind the lips, on the skull and hair, on the torso.

Turns a tracked template, one reference picture and its labels into parameters. Knows nothing of training or files.
Axes: N Gaussians, P = 478 landmarks, K motion bases; head frame (OpenCV axes, inter-ocular distance = 1).
"""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.spatial import Delaunay, cKDTree

from difflistener.prepare.face_points import CHIN, EARS, FOREHEAD, INNER_LIPS, LIP_TOP

GROUPS = {"face": 0, "mouth": 1, "hair": 2, "torso": 3}
HAIR_ENDS = 0.98
"""Share of the hair's pixels, from the top, that say how far down it hangs: the rest are strays."""
SHARES = {"face": 0.42, "mouth": 0.05, "hair": 0.25}
"""Share of the budget by group; the torso takes the rest."""


@dataclass(frozen=True)
class Seeds:
    """Starting points: positions in the head frame (torso: at the reference pose), their bases and colours."""

    means: torch.Tensor  # [N, 3]
    bases: torch.Tensor  # [N, K, 3] displacement for one unit of each of the first K codes
    colors: torch.Tensor  # [N, 3] 0..1
    group: torch.Tensor  # [N] int64, see GROUPS
    rigid: torch.Tensor  # [N] weight logit: head above 0, torso below


@dataclass(frozen=True)
class Reference:
    """One frame of the person, looking as straight ahead as the clip has it."""

    image: np.ndarray  # [H, W, 3] 0..1
    labels: np.ndarray  # [H, W] uint8, see clip.MASK_LABELS
    rotation: np.ndarray  # [3, 3] head to camera
    translation: np.ndarray  # [3] inter-ocular distances
    K: np.ndarray  # [3, 3] pixels


def seed_gaussians(
    count: int, template: np.ndarray, code_displacements: np.ndarray, reference: Reference, labels: dict[str, int],
    generator: np.random.Generator,
) -> Seeds:
    """Place `count` Gaussians.

    Args:
        template: landmarks of the face at its mean motion [P, 3].
        code_displacements: landmark displacement for one unit of each code, [K, P, 3].
        reference: the picture that gives colours and silhouettes.
        labels: meaning of the label image.
    """
    num_face, num_mouth, num_hair = (int(count * SHARES[g]) for g in ("face", "mouth", "hair"))
    face, face_bases = _on_face(num_face, template, code_displacements, generator)
    mouth, mouth_bases = _in_mouth(num_mouth, template, code_displacements, generator)
    hair = _on_skull(num_hair, template, reference, labels, generator)
    torso = _on_torso(count - num_face - num_mouth - len(hair), template, reference, labels, generator)

    still = np.zeros((len(hair) + len(torso), len(code_displacements), 3))
    means = np.concatenate([face, mouth, hair, torso])
    group = np.repeat(list(GROUPS.values()), [len(face), len(mouth), len(hair), len(torso)])
    rigid = np.where(group == GROUPS["torso"], -4.0, 4.0)
    rigid[group == GROUPS["torso"]] += 8 * _neck_ramp(torso, template)
    return Seeds(
        means=torch.tensor(means, dtype=torch.float32),
        bases=torch.tensor(np.concatenate([face_bases, mouth_bases, still]), dtype=torch.float32),
        colors=torch.tensor(_colors(means, group, template, reference, labels), dtype=torch.float32),
        group=torch.tensor(group),
        rigid=torch.tensor(rigid, dtype=torch.float32),
    )


def neighbour_distance(points: np.ndarray) -> np.ndarray:
    """Mean distance [N] to the three nearest other points."""
    distance, _ = cKDTree(points).query(points, k=4)
    return distance[:, 1:].mean(1)


def _triangles(template: np.ndarray) -> np.ndarray:
    return Delaunay(template[:, :2]).simplices


def _sample(triangles: np.ndarray, count: int, template: np.ndarray, fields: np.ndarray, generator):
    """`count` points spread evenly over the triangles' area, with `fields` [K, P, 3] interpolated to them."""
    corner = template[triangles]
    area = np.linalg.norm(np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0]), axis=1)
    chosen = triangles[generator.choice(len(triangles), count, p=area / area.sum())]
    weight = generator.dirichlet(np.ones(3), count)
    points = np.einsum("nc,nci->ni", weight, template[chosen])
    return points, np.einsum("nc,knci->nki", weight, fields[:, chosen])


def _on_face(count, template, fields, generator):
    return _sample(_triangles(template), count, template, fields, generator)


def _in_mouth(count, template, fields, generator):
    """Points behind the lips, on two sheets, moving with the lips at first."""
    triangles = _triangles(template)
    opening = triangles[np.isin(triangles, INNER_LIPS).all(1)]
    points, bases = _sample(opening, count, template, fields, generator)
    points[:, 2] += np.where(generator.random(count) < 0.5, 0.05, 0.15)
    points[:, 1] += generator.normal(0, 0.04, count)
    return points, bases


def _on_skull(count, template, reference, labels, generator):
    """Points on an ellipsoid around the skull whose projection falls on head or hair."""
    chin, forehead = template[CHIN], template[FOREHEAD]
    width = np.linalg.norm(template[EARS[0]] - template[EARS[1]]) / 2
    height = np.linalg.norm(chin - forehead) / 2
    middle = (template[EARS[0]] + template[EARS[1]]) / 2
    centre = np.array([middle[0], (chin[1] + forehead[1]) / 2 - 0.35 * height, middle[2] + 0.35 * width])
    is_head = np.isin(reference.labels, [labels["head"], labels["hair"]])
    kept = []
    for _ in range(8):
        direction = generator.normal(size=(4 * count, 3))
        direction /= np.linalg.norm(direction, axis=1, keepdims=True)
        shell = generator.uniform(1.0, 1.25, (len(direction), 1))
        points = centre + shell * direction * np.array([1.05 * width, 1.25 * height, 1.3 * width])
        inside_face = (points[:, 2] < template[:, 2].max()) & _inside(points, template)
        kept.append(points[_lands_on(points, reference, is_head) & ~inside_face])
        if sum(len(k) for k in kept) >= count:
            break
    return np.concatenate(kept)[:count]


def _inside(points: np.ndarray, template: np.ndarray) -> np.ndarray:
    return Delaunay(template[:, :2]).find_simplex(points[:, :2]) >= 0


def _on_torso(count, template, reference, labels, generator):
    """Torso pixels of the reference picture at the depth of the neck, in the reference head frame."""
    rows, columns = np.nonzero(reference.labels == labels["torso"])
    if len(rows) == 0:
        rows, columns = np.nonzero(reference.labels != labels["background"])
    if len(rows) == 0:
        rows, columns = np.indices(reference.labels.shape).reshape(2, -1)
    pick = generator.integers(0, len(rows), count)
    pixels = np.stack([columns[pick], rows[pick]], 1) + generator.random((count, 2))
    depth = (reference.rotation @ template[CHIN] + reference.translation)[2] + 0.45
    rays = np.concatenate([(pixels - reference.K[:2, 2]) / reference.K[[0, 1], [0, 1]], np.ones((count, 1))], 1)
    return (rays * depth - reference.translation) @ reference.rotation


def _neck_ramp(torso: np.ndarray, template: np.ndarray) -> np.ndarray:
    """How much torso points near the jaw go with the head: 1 at the jaw line, 0 well below the chin."""
    half = np.linalg.norm(template[EARS[0]] - template[EARS[1]]) / 2
    below = torso[:, 1] - (template[CHIN, 1] - 0.3 * half)
    beside = np.maximum(np.abs(torso[:, 0] - template[CHIN, 0]) - half, 0)
    return np.clip(1 - below / (0.9 * half), 0, 1) * np.exp(-((beside / half) ** 2))


def _project(points: np.ndarray, reference: Reference) -> np.ndarray:
    camera = points @ reference.rotation.T + reference.translation
    return camera[:, :2] / camera[:, 2:] * reference.K[[0, 1], [0, 1]] + reference.K[:2, 2]


def _pixel(points, reference):
    height, width = reference.labels.shape
    uv = np.floor(_project(points, reference)).astype(int)
    seen = (uv >= 0).all(1) & (uv[:, 0] < width) & (uv[:, 1] < height)
    return np.clip(uv, 0, [width - 1, height - 1]), seen


def _lands_on(points, reference, mask):
    uv, seen = _pixel(points, reference)
    return seen & mask[uv[:, 1], uv[:, 0]]


def _colors(points, group, template, reference, labels):
    """Colours of the pixels that points fall on. The back of the skull, which no pixel shows, has that of hair down to the
    lips, or as far down as hair is seen, and of skin below."""
    uv, _ = _pixel(points, reference)
    colors = reference.image[uv[:, 1], uv[:, 0]]
    hair, head = (reference.labels == labels[name] for name in ("hair", "head"))
    back = (group == GROUPS["hair"]) & (points[:, 2] > template[EARS, 2].mean())
    if hair.any() and head.any():
        is_hair = (points[:, 1] < template[LIP_TOP, 1]) | (uv[:, 1] <= np.quantile(np.nonzero(hair)[0], HAIR_ENDS))
        colors[back] = np.where(is_hair[back, None], np.median(reference.image[hair], 0), np.median(reference.image[head], 0))
    return colors
