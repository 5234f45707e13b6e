"""A made-up FLAME model of 200 vertices in the published format, its embedding, and a clip of known parameters."""

import sys
import types
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csc_matrix
from scipy.spatial.transform import Rotation
from synthetic_face import poses

from difflistener.flame import Flame, FlameLandmarks
from difflistener.flame_file import embedding_arrays, model_arrays
from difflistener.motion import unwrap_rotation
from difflistener.prepare.bundle import Camera, rotation_matrices
from difflistener.prepare.pose import HeadTrack

V = 200
F = 380
FLIP = np.array([1.0, -1.0, -1.0])
METRE = 11.0
"""Inter-ocular distances in a metre."""
CAMERA = Camera(1100.0, 256.0, 256.0)


def published(seed: int = 0) -> dict:
    """What the pickle of a model holds: 200 vertices on the front of a head, the lower ones hung on the jaw."""
    rng = np.random.default_rng(seed)
    x, y = rng.uniform(-0.07, 0.07, V), rng.uniform(-0.09, 0.09, V)
    template = np.column_stack([x, y, 0.1 * np.sqrt(np.clip(1 - (x / 0.09) ** 2 - (y / 0.12) ** 2, 0.05, None))])
    smooth = np.cos(template @ rng.normal(0, 25, (3, 1200)) + rng.random(1200) * 6.28).reshape(V, 3, 400)
    # Scans are aligned before a model is learned: no direction moves the head as a whole.
    turned = np.cross(template[:, None], np.eye(3)).transpose(0, 2, 1).reshape(-1, 3)
    whole = np.concatenate([np.tile(np.eye(3), (V, 1)), turned, template.reshape(-1, 1)], 1)
    flat = smooth.reshape(V * 3, 400)
    smooth = (flat - whole @ np.linalg.lstsq(whole, flat, rcond=None)[0]).reshape(V, 3, 400)
    falling = np.concatenate([0.004 / np.sqrt(1 + np.arange(300)), 0.003 / np.sqrt(1 + np.arange(100))])
    corrective = np.cos(template @ rng.normal(0, 25, (3, 108)) + rng.random(108) * 6.28).reshape(V, 3, 36) * 0.002
    weights = np.zeros((V, 5))
    weights[:, 2] = 1 / (1 + np.exp((template[:, 1] + 0.03) / 0.008))
    weights[:10, 3], weights[10:20, 4] = 1, 1
    weights[:20, 2] = 0
    weights[:, 1] = 1 - weights.sum(1)
    regressor = rng.random((5, V)) * (rng.random((5, V)) < 0.1)
    triangles = np.array([rng.choice(V, 3, replace=False) for _ in range(F)])
    return {"v_template": template, "shapedirs": smooth * falling, "posedirs": corrective,
            "J_regressor": csc_matrix(regressor / regressor.sum(1, keepdims=True)),
            "kintree_table": np.array([[2**32 - 1, 0, 1, 1, 1], [0, 1, 2, 3, 4]], np.uint32), "weights": weights,
            "f": triangles.astype(np.uint32), "bs_style": "lbs", "bs_type": "lrotmin", "J": np.zeros((5, 3))}


def embedding(seed: int = 0, count: int = 105) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    weights = rng.dirichlet(np.ones(3) * 2, count)
    return {"lmk_face_idx": rng.choice(F, count, replace=False).astype(np.uint32), "lmk_b_coords": weights,
            "landmark_indices": np.sort(rng.choice(468, count, replace=False)).astype(np.int64)}


def arrays(seed: int = 0) -> dict[str, np.ndarray]:
    content = published(seed)
    return model_arrays(content | {"J_regressor": content["J_regressor"].toarray()}, "synthetic")


def with_chumpy(content: dict, monkeypatch) -> dict:
    """`content` with its shape directions in a chumpy array, as FLAME 2020 and 2023 store them; pickle it at once."""
    kind = type("Ch", (), {"__module__": "chumpy.ch",
                           "__getstate__": lambda self: {"x": self.x, "_dirty_vars": {"x"}, "_itr": None}})
    for name in ("chumpy", "chumpy.ch"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    sys.modules["chumpy.ch"].Ch = kind
    stored = kind()
    stored.x = content["shapedirs"]
    return content | {"shapedirs": stored}


def landmark_model(seed: int = 0) -> FlameLandmarks:
    return FlameLandmarks(Flame(arrays(seed)), embedding_arrays(embedding(seed), "synthetic"))


@dataclass
class Scene:
    """A clip with all that is true of it."""

    model: FlameLandmarks
    landmarks: np.ndarray  # [T, 478, 3] px
    valid: np.ndarray
    track: HeadTrack
    gaze: np.ndarray
    shape: np.ndarray
    expression: np.ndarray
    jaw: np.ndarray
    rotation: np.ndarray
    translation: np.ndarray


def scene(num_frames: int, noise_px: float = 0.0, seed: int = 0) -> Scene:
    """FLAME of known shape, expression, jaw and pose before a camera, and a head track that is off by a little."""
    import torch

    rng = np.random.default_rng(seed)
    model = landmark_model()
    time = np.arange(num_frames)[:, None] / 25
    shape = np.zeros(100)
    shape[:10] = rng.normal(size=10)
    expression = np.zeros((num_frames, 50))
    expression[:, :12] = 1.2 * np.sin(2 * np.pi * rng.uniform(0.2, 1.5, 12) * time + rng.random(12) * 6.28)
    jaw = np.column_stack([0.15 * (1 - np.cos(2 * np.pi * 0.8 * time[:, 0])), 0.12 * np.sin(3 * time[:, 0]), np.zeros(num_frames)])
    rotation, translation = poses(num_frames, seed)
    gaze = 0.15 * np.sin(2 * np.pi * np.array([0.3, 0.2]) * time)
    eyes = np.column_stack([gaze[:, 1], -gaze[:, 0], 0 * gaze[:, 0]])
    rest = np.zeros((num_frames, 3))
    pose = np.stack([rest, rest, jaw, eyes, eyes], 1)
    points = model(*(torch.as_tensor(part, dtype=torch.float32) for part in (shape[None], expression, pose)))[0]
    points = points.double().numpy() * FLIP * METRE
    placed = points @ rotation_matrices(rotation).transpose(0, 2, 1) + translation[:, None]
    landmarks = np.tile(rng.uniform(200, 300, (478, 3)), (num_frames, 1, 1)).astype(np.float32)
    landmarks[:, model.indices, :2] = CAMERA.project(placed) + rng.normal(size=placed[..., :2].shape) * noise_px
    # The tracker's head stands askew in FLAME's axes, and wanders off by half a degree.
    askew = Rotation.from_rotvec([0.1, 0.02, -0.01])
    wandering = 0.01 * np.sin(2 * np.pi * 0.2 * time + np.arange(3))
    tracked = (Rotation.from_rotvec(rotation) * Rotation.from_rotvec(wandering) * askew.inv()).as_rotvec()
    template = np.zeros((478, 3))
    template[model.indices] = askew.apply(points.mean(0))
    track = HeadTrack(CAMERA.focal, CAMERA.cx, CAMERA.cy, unwrap_rotation(tracked), translation + wandering, template,
                      np.zeros(num_frames, bool), 0.0)
    return Scene(model, landmarks, np.ones(num_frames, bool), track, gaze, shape, expression, jaw, rotation, translation)
