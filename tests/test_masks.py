"""Masks, background plate and report on synthetic pictures; the one test with the real network is skipped without it."""

import numpy as np
import pytest

from difflistener.clip import MASK_LABELS, MaskWriter, read_masks

cv2 = pytest.importorskip("cv2")

from difflistener.prepare.face_points import CHIN, FACE_OVAL, FOREHEAD, INNER_LIPS  # noqa: E402
from difflistener.prepare.masks import SKIN, Plate, fill_smooth, label_frames, sharpen  # noqa: E402

SIZE = 192
CENTRE = np.array([96.0, 80.0])
HALF = np.array([32.0, 42.0])
HAIR, FACE, SHIRT, WALL = (60, 40, 30), (220, 170, 150), (40, 60, 140), (200, 205, 210)


def face_landmarks(mouth_open: float = 8.0) -> np.ndarray:
    """[478, 3] of an elliptic face: only the points that the labels read are in their place."""
    points = np.zeros((478, 3), np.float32)
    points[:, :2] = CENTRE
    angle = -np.pi / 2 + 2 * np.pi * np.arange(len(FACE_OVAL)) / len(FACE_OVAL)
    points[FACE_OVAL, :2] = CENTRE + HALF * np.stack([np.cos(angle), np.sin(angle)], 1)
    skin_angle = np.arange(len(SKIN)) * 2.4
    points[SKIN, :2] = CENTRE + 0.5 * np.stack([np.cos(skin_angle), np.sin(skin_angle)], 1) * HALF
    turn = np.pi + 2 * np.pi * np.arange(len(INNER_LIPS)) / len(INNER_LIPS)
    points[INNER_LIPS, :2] = CENTRE + [0, 20] + np.stack([10 * np.cos(turn), mouth_open / 2 * np.sin(turn)], 1)
    points[[13, 14], :2] = CENTRE + [[0, 20 - mouth_open / 2], [0, 20 + mouth_open / 2]]
    return points


def scene(hair=HAIR) -> tuple[np.ndarray, np.ndarray]:
    """A frame and its person probability: hair over an elliptic face with ears, neck and shirt."""
    frame = np.full((SIZE, SIZE, 3), WALL, np.uint8)
    person = np.zeros((SIZE, SIZE), np.uint8)
    x, y = (int(v) for v in CENTRE)
    for canvas, colours in ((frame, (SHIRT, FACE, hair, FACE, FACE, FACE)), (person, (255,) * 6)):
        cv2.ellipse(canvas, (x, 192), (80, 45), 0, 0, 360, colours[0], -1)
        cv2.rectangle(canvas, (x - 16, y), (x + 16, 160), colours[1], -1)
        cv2.ellipse(canvas, (x, y - 14), (40, 46), 0, 180, 360, colours[2], -1)
        cv2.ellipse(canvas, (x, y), (32, 42), 0, 0, 360, colours[3], -1)
        for ear in (x - 35, x + 35):
            cv2.ellipse(canvas, (ear, y + 4), (6, 9), 0, 0, 360, colours[4], -1)
    return frame, person


def label_once(frame, person, landmarks) -> np.ndarray:
    valid = np.array([landmarks is not None])
    points = np.zeros((1, 478, 3), np.float32) if landmarks is None else landmarks[None]
    ((_, labels, _),) = label_frames([frame], points, valid, lambda _: person)
    return labels


def test_each_part_gets_its_label():
    frame, person = scene()
    labels = label_once(frame, person, face_landmarks())
    x, y = (int(v) for v in CENTRE)
    expected = {"hair": [(x, y - 52), (x - 36, y - 22), (x + 36, y - 22)], "head": [(x, y), (x - 37, y + 4), (x + 37, y + 4)],
                "mouth": [(x, y + 20)], "torso": [(x, y + 60), (x - 60, 180)], "background": [(4, 4), (180, 60)]}
    for name, pixels in expected.items():
        for column, row in pixels:
            assert labels[row, column] == MASK_LABELS[name], (name, column, row)
    assert labels.dtype == np.uint8
    wrong = (labels > 0) != (person > 0)
    assert wrong.mean() < 0.01


def test_a_bald_head_has_no_hair():
    frame, person = scene(hair=FACE)
    labels = label_once(frame, person, face_landmarks())
    assert (labels == MASK_LABELS["hair"]).sum() < 0.02 * (labels == MASK_LABELS["head"]).sum()


def test_a_shut_mouth_has_no_inside():
    frame, person = scene()
    assert not (label_once(frame, person, face_landmarks(mouth_open=0.2)) == MASK_LABELS["mouth"]).any()


def test_without_a_face_there_is_only_the_person():
    frame, person = scene()
    labels = label_once(frame, person, None)
    assert set(np.unique(labels)) == {MASK_LABELS["background"], MASK_LABELS["torso"]}
    assert ((labels > 0) == (person > 0)).mean() > 0.99


def test_the_face_stands_where_the_segmentation_failed():
    frame, person = scene()
    labels = label_once(frame, np.zeros_like(person), face_landmarks())
    assert labels[int(CENTRE[1]), int(CENTRE[0])] == MASK_LABELS["head"]
    assert labels[4, 4] == 0


def test_a_flicker_of_one_frame_disappears():
    frame, person = scene()
    answers = iter([person, person, np.zeros_like(person), person, person])
    valid = np.zeros(5, bool)
    results = list(label_frames([frame] * 5, np.zeros((5, 478, 3)), valid, lambda _: next(answers)))
    assert len(results) == 5
    for _, labels, _ in results:
        assert np.array_equal(labels, results[0][1])


def test_a_person_elsewhere_is_left_out_of_the_labels():
    frame, person = scene()
    person[10:40, 2:24] = 255
    frame[10:40, 2:24] = SHIRT
    labels = label_once(frame, person, face_landmarks())
    assert not labels[12:38, 4:22].any()


def test_label_frames_streams():
    frame, person = scene()
    taken = []

    def frames():
        for index in range(6):
            taken.append(index)
            yield frame

    stream = label_frames(frames(), np.zeros((6, 478, 3)), np.zeros(6, bool), lambda _: person)
    next(stream)
    assert len(taken) == 2
    assert sum(1 for _ in stream) == 5


def test_sharpen_moves_a_rough_edge_to_the_true_one():
    truth = np.zeros((256, 256), np.uint8)
    cv2.circle(truth, (128, 128), 70, 255, -1)
    noise = np.random.default_rng(0).normal(0, 3, (256, 256, 3))
    frame = np.where(truth[..., None] > 0, HAIR, WALL) + noise
    frame = np.clip(frame, 0, 255).astype(np.uint8)
    rough = np.zeros_like(truth)
    cv2.circle(rough, (129, 127), 72, 255, -1)
    before = ((rough >= 128) != (truth > 0)).sum()
    after = ((sharpen(frame, rough) >= 128) != (truth > 0)).sum()
    assert after < 0.25 * before
    flat = np.full_like(frame, 128)
    assert np.array_equal(sharpen(flat, rough) >= 128, rough >= 128)


def gradient(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([90 + x / 4, 120 + y / 4, 200 - (x + y) / 8], 2).astype(np.float32)


def test_plate_removes_a_moving_disc_without_a_halo():
    wall = gradient(160, 240)
    plate = Plate()
    for step in range(40):
        person = np.zeros((160, 240), np.uint8)
        cv2.circle(person, (60 + 3 * step, 80), 26, 255, -1)
        # A soft rim outside the mask, as hair and blur leave it.
        glow = cv2.GaussianBlur(cv2.dilate(person, np.ones((5, 5))).astype(np.float32), (0, 0), 1.5)[..., None] / 255
        plate.add((wall * (1 - glow) + np.array([20, 10, 5]) * glow).round().astype(np.uint8), person)
    image = plate.image()
    assert image.shape == (160, 240, 3) and image.dtype == np.uint8
    assert np.abs(image - wall).max() < 2.5
    assert plate.seen > 0.99


def test_plate_fills_what_was_never_seen_smoothly():
    wall = gradient(160, 240)
    person = np.zeros((160, 240), np.uint8)
    cv2.ellipse(person, (120, 160), (60, 120), 0, 0, 360, 255, -1)
    frame = np.where(person[..., None] > 0, (20, 10, 5), wall.round()).astype(np.uint8)
    plate = Plate()
    for _ in range(5):
        plate.add(frame, person)
    assert np.abs(plate.image() - wall).max() < 16
    assert np.abs(np.diff(plate.image().astype(int), axis=1)).max() <= 4


def test_plate_of_a_person_who_fills_the_frame_is_none():
    plate = Plate()
    assert plate.image() is None
    plate.add(np.zeros((40, 60, 3), np.uint8), np.full((40, 60), 255, np.uint8))
    assert plate.image() is None and plate.seen == 0


def test_fill_smooth_solves_laplace_between_two_walls():
    image = np.zeros((33, 65, 3), np.float32)
    image[:, 0], image[:, -1] = 10, 90
    known = np.zeros((33, 65), bool)
    known[:, [0, -1]] = True
    filled = fill_smooth(image, known)
    assert np.abs(filled[16, :, 0] - np.linspace(10, 90, 65)).max() < 4
    assert np.array_equal(filled[known], image[known])


def test_masks_survive_the_file(tmp_path):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 5, (MaskWriter.BLOCK + 9, 12, 14)).astype(np.uint8)
    writer = MaskWriter(tmp_path / "mask.npz")
    for row in labels:
        writer.write(row)
    writer.close()
    stream = read_masks(tmp_path / "mask.npz")
    assert np.array_equal(next(stream), labels[0])
    assert np.array_equal(np.stack(list(stream)), labels[1:])


@pytest.mark.parametrize("role", ["speaker", "listener"])
def test_report_is_a_picture(tmp_path, role):
    from PIL import Image

    from difflistener.prepare.report import write_report

    frame, person = scene()
    labels = (person > 0).astype(np.uint8) if role == "listener" else None
    valid = np.ones(50, bool)
    valid[20:31] = False
    samples = [(0, frame, face_landmarks(), labels), (25, frame, None, None), (49, frame, face_landmarks(), labels)]
    rng = np.random.default_rng(0)
    curves = {"rotation (degrees)": rng.normal(size=(50, 3)), "loudness": rng.normal(size=50),
              "log-mel": rng.normal(size=(50, 80)), "waveform": rng.normal(size=(32000, 1))}
    path = tmp_path / "report.png"
    write_report(path, role, samples, frame if role == "listener" else None, curves, valid, {"valid": "39 $ of 50 $"})
    picture = np.asarray(Image.open(path).convert("RGB"))
    assert picture.shape[1] == 1650 and picture.shape[0] > 600
    assert picture.std() > 10
    assert list(tmp_path.iterdir()) == [path]


def test_landmark_indices_are_those_of_an_upright_face():
    points = face_landmarks()
    assert points[CHIN, 1] > points[FOREHEAD, 1]
    assert points[361, 0] > points[132, 0]


def test_the_real_network_answers():
    pytest.importorskip("mediapipe")
    from difflistener.prepare.masks import PersonSegmenter

    segmenter = PersonSegmenter()
    for height, width in ((120, 160), (600, 1000)):
        answer = segmenter(np.full((height, width, 3), 90, np.uint8))
        assert answer.shape == (height, width) and answer.dtype == np.uint8
        assert answer.mean() < 128
    segmenter.close()
