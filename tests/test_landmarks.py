import os
from pathlib import Path

import numpy as np
import pytest
from synthetic_face import see, template

from difflistener.errors import UserError
from difflistener.prepare import face_points as fp
from difflistener.prepare.bundle import Camera
from difflistener.prepare.landmarks import FaceTracker, track_landmarks

CLIPS = Path(os.environ.get("DIFFLISTENER_CLIPS", Path(__file__).parents[2] / "shared" / "clips"))


def real_clip(name: str) -> Path:
    path = CLIPS / name
    if not path.is_file():
        pytest.skip(f"{name} is not in {CLIPS}; set DIFFLISTENER_CLIPS")
    return path


def frontal(faces: np.ndarray) -> np.ndarray:
    """Landmarks [T, 478, 3] of faces [T, 478, 3] seen from the front."""
    rotation, translation = np.zeros((len(faces), 3)), np.tile([0, 0, 11.0], (len(faces), 1))
    return see(Camera(1100.0, 256.0, 256.0), rotation, translation, faces)


def test_index_sets_are_mediapipes():
    pytest.importorskip("mediapipe")
    from mediapipe.python.solutions import face_mesh_connections as connections

    def points(edges):
        return {point for edge in edges for point in edge}

    assert set(fp.LIPS) == points(connections.FACEMESH_LIPS)
    assert set(fp.FACE_OVAL) == points(connections.FACEMESH_FACE_OVAL)
    assert set(fp.LEFT_EYE) == points(connections.FACEMESH_LEFT_EYE)
    assert set(fp.RIGHT_EYE) == points(connections.FACEMESH_RIGHT_EYE)
    assert set(fp.LEFT_BROW) == points(connections.FACEMESH_LEFT_EYEBROW)
    assert set(fp.RIGHT_BROW) == points(connections.FACEMESH_RIGHT_EYEBROW)
    assert set(fp.LEFT_IRIS[1:]) == points(connections.FACEMESH_LEFT_IRIS)
    assert set(fp.RIGHT_IRIS[1:]) == points(connections.FACEMESH_RIGHT_IRIS)
    edges = {tuple(sorted(edge)) for edge in connections.FACEMESH_TESSELATION}
    kept = [tuple(sorted((fp.MIRROR[a], fp.MIRROR[b]))) in edges for a, b in edges]
    assert np.mean(kept) > 0.99  # the mesh itself splits three quads another way on the other side
    assert (fp.MIRROR[fp.MIRROR] == np.arange(fp.NUM_POINTS)).all()


def test_eye_closure_runs_from_open_to_shut():
    heights = np.concatenate([np.full(80, 0.06), [0.04, 0.005, 0.005, 0.04], np.full(80, 0.06)])
    landmarks = frontal(np.stack([template(lid_height=h) for h in heights]))
    closure = fp.eye_closure(landmarks)
    assert closure.shape == (len(heights), 2) and closure.dtype == np.float32
    assert closure[:70].max() < 0.05 and closure[81:83].min() > 0.95
    assert 0.2 < closure[80].mean() < 0.8
    levels = fp.eye_levels(landmarks)
    assert np.array_equal(fp.eye_closure(landmarks[81:82], levels=levels), closure[81:82])
    valid = np.ones(len(heights), bool)
    valid[81] = False
    landmarks[81] = 0
    assert np.isfinite(fp.eye_closure(landmarks, valid)).all()


def test_open_eyes_alone_are_not_taken_for_blinks():
    rng = np.random.default_rng(0)
    landmarks = frontal(np.stack([template(lid_height=0.06 + 0.003 * n) for n in rng.normal(size=100)]))
    assert fp.eye_closure(landmarks).max() < 0.35


def test_gaze_has_the_signs_of_head_rotation():
    face = template()
    looks = {"ahead": (0, 0), "down": (0, 0.05), "left of the picture": (-0.05, 0)}
    faces = []
    for x, y in looks.values():
        moved = face.copy()
        moved[fp.IRISES] += (x, y, 0)
        faces.append(moved)
    ahead, down, left = fp.gaze(frontal(np.stack(faces)))
    assert np.abs(ahead).max() < 0.03
    assert down[1] > 0.2 and abs(down[0]) < 0.03
    assert left[0] > 0.2 and abs(left[1]) < 0.03


def test_frames_without_a_face_are_a_user_error():
    pytest.importorskip("mediapipe")
    noise = np.random.default_rng(0).integers(0, 255, (12, 96, 128, 3), dtype=np.uint8)
    with pytest.raises(UserError) as error:
        track_landmarks(iter(noise), "street.mp4")
    assert "street.mp4" in error.value.problem and "12" in error.value.problem


def test_the_tracker_keeps_to_its_face(monkeypatch):
    """Two faces: the larger first, then the nearest; a face that jumps in one shot is not believed."""
    pytest.importorskip("mediapipe")
    from difflistener.prepare import landmarks as module

    face = see(Camera(800.0, 160.0, 160.0), np.zeros((1, 3)), np.array([[0, 0, 11.0]]), template())[0]
    small = face * 0.6 + (230, 40, 0)
    script = [[small, face], [small + (2, 0, 0), face + (2, 0, 0)], [small], [small, face + (4, 0, 0)]]
    monkeypatch.setattr(module, "_faces", lambda mesh, frame: script[int(frame[0, 0, 0])])
    monkeypatch.setattr(FaceTracker, "_search", lambda self, frame: [])
    frame = np.zeros((400, 480, 3), np.uint8)
    with FaceTracker() as tracker:
        found = [tracker.push(np.full_like(frame, k)) for k in range(4)]
    assert np.array_equal(found[0], face) and np.array_equal(found[1], face + (2, 0, 0))
    assert found[2] is None
    assert np.array_equal(found[3], face + (4, 0, 0))


def test_implausible_faces_are_refused():
    from difflistener.prepare.landmarks import _is_plausible

    face = see(Camera(800.0, 160.0, 160.0), np.zeros((1, 3)), np.array([[0, 0, 11.0]]), template())[0]
    assert _is_plausible(face, 320, 320)
    assert not _is_plausible(face + (150, 0, 0), 320, 320)
    assert not _is_plausible(face * 0.05, 320, 320)
    assert not _is_plausible(face * (1, 0.3, 0.3), 320, 320)
    assert not _is_plausible(face * np.nan, 320, 320)


@pytest.mark.clips
def test_a_face_that_leaves_is_not_valid():
    pytest.importorskip("mediapipe")
    from difflistener.media import read_frames

    landmarks, valid = track_landmarks(read_frames(real_clip("face_noface.mov")), "face_noface.mov")
    assert valid[:55].all() and not valid[62:].any()
    assert landmarks.shape == (len(valid), 478, 3) and np.isfinite(landmarks).all()


@pytest.mark.clips
def test_wojtek_is_tracked_whole():
    pytest.importorskip("mediapipe")
    from difflistener.basis import fit_basis
    from difflistener.media import read_frames
    from difflistener.prepare.expression import encode, landmark_weights, reprojection_error
    from difflistener.prepare.flow import refine_with_flow
    from difflistener.prepare.pose import displacements, fit_head

    path = real_clip("wojtek.mp4")
    landmarks, valid = track_landmarks(read_frames(path, 0, 2.4), path.name)
    assert valid.all() and len(valid) == 60
    track = refine_with_flow(read_frames(path, 0, 2.4), fit_head(landmarks, valid, 512, 512), landmarks, valid)
    basis = fit_basis([displacements(track, landmarks, valid)], landmark_weights(), [np.zeros((1, 6))])
    codes = encode(track, landmarks, valid, basis, np.zeros((60, 6)))
    assert track.residual_px < 0.8
    assert reprojection_error(track, landmarks, valid, basis, codes).mean() < 1.5
