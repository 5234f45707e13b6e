"""The torso's rigid motion is found on synthetic pictures whose motion is known."""

import numpy as np
import pytest

from difflistener.clip import MASK_LABELS

cv2 = pytest.importorskip("cv2")

from difflistener.prepare.align import compose, inverse  # noqa: E402
from difflistener.prepare.torso import CHIN, FOREHEAD, TorsoTracker, _Graph, relative_to  # noqa: E402

WIDTH, HEIGHT = 512, 384
CENTRE = np.array([(WIDTH - 1) / 2, (HEIGHT - 1) / 2])


def rigid(row: np.ndarray) -> np.ndarray:
    """2 x 3 matrix of the documented convention: reference pixel -> pixel of the frame."""
    cos, sin = np.cos(row[2]), np.sin(row[2])
    turn = np.array([[cos, -sin], [sin, cos]])
    return np.concatenate([turn, (CENTRE - turn @ CENTRE + WIDTH * row[:2])[:, None]], 1)


def landmarks() -> np.ndarray:
    points = np.full((478, 3), 100, np.float32)
    points[CHIN], points[FOREHEAD] = (256, 170, 0), (256, 60, 0)
    return points


def texture(seed: int = 0, strength: float = 1.0) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=(HEIGHT, WIDTH)).astype(np.float32)
    cloth = cv2.GaussianBlur(noise, (0, 0), 3)
    return 120 + strength * 35 * cloth / cloth.std()


def body(strength: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Grey picture of a textured torso on a plain wall, and its mask, both [H, W]."""
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    cv2.ellipse(mask, (256, 420), (210, 190), 0, 0, 360, 1, -1)
    return np.where(mask > 0, texture(strength=strength), 200).astype(np.float32), mask


def track(rows: np.ndarray, strength: float = 1.0, spoil=None, pictures=None):
    """Track the motion `rows`; `pictures` are the torso's looks in turn, each for an equal share of the frames."""
    picture, mask = body(strength)
    looks = pictures or [picture]
    tracker = TorsoTracker()
    rng = np.random.default_rng(1)
    for index, row in enumerate(rows):
        matrix = rigid(row)
        picture = looks[index * len(looks) // len(rows)]
        grey = cv2.warpAffine(picture, matrix, (WIDTH, HEIGHT), flags=cv2.INTER_CUBIC, borderValue=200)
        # The bottom edge must not show the wall: shoulders leave the picture, they do not end in it.
        labels = cv2.warpAffine(mask, matrix, (WIDTH, HEIGHT), flags=cv2.INTER_NEAREST) * np.uint8(MASK_LABELS["torso"])
        frame = np.repeat(np.clip(grey + rng.normal(0, 2, grey.shape), 0, 255).astype(np.uint8)[..., None], 3, 2)
        cv2.circle(frame, (256 + 9 * (index % 5), 115), 60, (220, 170, 150), -1)
        if spoil is not None:
            spoil(index, frame)
        tracker.add(frame, labels, landmarks())
    return tracker.result()


def sway(count: int) -> np.ndarray:
    time = np.arange(count) / 12
    return np.stack([0.02 * np.sin(time), 0.008 * np.cos(1.7 * time) - 0.008, np.radians(2.0) * np.sin(0.8 * time)], 1)


def as_pixels(rows):
    return rows * [WIDTH, WIDTH, np.degrees(1)]


def test_known_motion_is_recovered():
    rows = sway(40)
    found, tracked, note = track(rows)
    assert found.shape == (40, 3) and found.dtype == np.float32 and tracked.all() and note is None
    error = np.abs(as_pixels(found) - as_pixels(relative_to(rows, np.median(rows, 0))))
    assert error[:, :2].max() < 0.2, error.max(0)
    assert error[:, 2].max() < 0.1, error.max(0)


def test_the_documented_mapping_holds_for_a_point():
    rows = sway(25)
    found, _, _ = track(rows)
    reference = np.median(rows, 0)
    point = np.array([200.0, 330.0, 1.0])
    for t in (3, 11, 24):
        at_reference = rigid(reference) @ point
        assert np.abs(rigid(found[t].astype(float)) @ [*at_reference, 1] - rigid(rows[t]) @ point).max() < 0.25


def test_nothing_drifts_over_a_return():
    rows = np.concatenate([sway(30), np.zeros((1, 3))])
    rows[0] = 0
    found, _, _ = track(rows)
    assert np.abs(as_pixels(found[0] - found[-1]))[:2].max() < 0.1


def test_an_occluded_stretch_is_interpolated():
    rows = sway(24)

    def hand(index, frame):
        if 10 <= index < 14:
            frame[230:] = np.random.default_rng(index).integers(0, 255, frame[230:].shape)

    found, tracked, _ = track(rows, spoil=hand)
    assert not tracked[10:14].any() and tracked[:10].all() and tracked[14:].all()
    error = np.abs(as_pixels(found) - as_pixels(relative_to(rows, np.median(rows[tracked], 0))))
    assert error[tracked, :2].max() < 0.2
    assert error[:, :2].max() < 2


def test_a_torso_that_moved_far_behind_a_hand_is_found_again():
    rows = sway(30)
    rows[15:, :2] += [0.09, -0.03]

    def hand(index, frame):
        if 12 <= index < 15:
            frame[200:] = np.random.default_rng(index).integers(0, 255, frame[200:].shape)

    found, tracked, _ = track(rows, spoil=hand)
    assert not tracked[12:15].any() and tracked[:12].all() and tracked[15:].all()
    error = np.abs(as_pixels(found) - as_pixels(relative_to(rows, np.median(rows[tracked], 0))))[tracked]
    assert error[:, :2].max() < 0.2 and error[:, 2].max() < 0.1, error.max(0)


def test_a_torso_that_looks_different_is_not_lost():
    mask = body()[1]
    rows = sway(45)
    looks = [np.where(mask > 0, texture(seed), 200).astype(np.float32) for seed in range(3)]
    found, tracked, note = track(rows, pictures=looks)
    assert tracked.all() and note is None
    for first in (0, 15, 30):
        part = slice(first, first + 15)
        error = as_pixels(relative_to(found[part], found[first]) - relative_to(rows[part], rows[first]))
        assert np.abs(error[:, :2]).max() < 0.5 and np.abs(error[:, 2]).max() < 0.1, np.abs(error).max(0)
    # Only the outline is left to say how one look lies to the next.
    error = np.abs(as_pixels(found) - as_pixels(relative_to(rows, np.median(rows, 0))))
    assert error[:, :2].max() < 10 and error[:, 2].max() < 2.5, error.max(0)


def test_key_frames_are_placed_by_the_alignments_that_agree():
    graph = _Graph(anchor=np.array([10.0, 60.0]))
    rng = np.random.default_rng(0)
    poses = [np.zeros(3)] + [np.array([*rng.normal(0, 8, 2), rng.normal(0, 0.05)]) for _ in range(5)]
    for a in range(6):
        for b in range(6):
            if a != b:
                motion = compose(inverse(poses[a]), poses[b])
                wrong = (a, b) in ((0, 4), (3, 1), (5, 2))
                graph.edges.append((a, b, motion + [20, -9, 0.2] if wrong else motion, 2.0))
        graph.poses.append(poses[a])
    solved = graph.solve()
    for a in range(1, 6):
        error = compose(inverse(solved[0]), solved[a]) - compose(inverse(poses[0]), poses[a])
        assert np.abs(error[:2]).max() < 0.3 and abs(error[2]) < 0.003, (a, error)


def test_no_torso_gives_zeros_and_a_note():
    tracker = TorsoTracker()
    frame = np.full((HEIGHT, WIDTH, 3), 128, np.uint8)
    for index in range(5):
        tracker.add(frame, np.zeros((HEIGHT, WIDTH), np.uint8), landmarks() if index != 2 else None)
    found, tracked, note = tracker.result()
    assert found.shape == (5, 3) and not found.any() and not tracked.any() and "still" in note


def test_a_plain_torso_without_outline_gives_zeros():
    tracker = TorsoTracker()
    frame = np.full((HEIGHT, WIDTH, 3), 128, np.uint8)
    labels = np.zeros((HEIGHT, WIDTH), np.uint8)
    labels[250:] = MASK_LABELS["torso"]
    for _ in range(3):
        tracker.add(frame, labels, landmarks())
    found, _, note = tracker.result()
    assert not found.any() and note is not None


def test_frames_without_a_face_hold_their_neighbours():
    picture, mask = body()
    frame = np.repeat(picture.astype(np.uint8)[..., None], 3, 2)
    tracker = TorsoTracker()
    for index in range(4):
        tracker.add(frame, mask * np.uint8(MASK_LABELS["torso"]), None if index in (0, 2) else landmarks())
    found, tracked, note = tracker.result()
    assert tracked.tolist() == [False, True, False, True] and np.abs(found).max() < 1e-3 and "2 of 4" in note
