"""Live tracking: near to what `prepare` finds with the whole film at hand, from the past alone, for any length of time."""

import itertools

import numpy as np
import pytest
from synthetic_face import pictures, poses, see, template

pytest.importorskip("mediapipe")

from difflistener.live import tracker as tracking  # noqa: E402
from difflistener.live.texture import MAX_KEYFRAMES, Texture  # noqa: E402
from difflistener.live.tracker import FIRST_FRAMES, LOST, SpeakerTracker  # noqa: E402
from difflistener.prepare.bundle import Camera  # noqa: E402

SIZE, SECONDS = 128, 7.0
CAMERA = Camera(11 * 48.0, SIZE / 2, SIZE / 2)
GREY = np.full((SIZE, SIZE, 3), 128, np.uint8)


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    """Frames of a toy speaker, their landmarks, a basis of that face, and the codes that `prepare` finds."""
    from difflistener.basis import fit_basis
    from difflistener.media import VideoWriter, read_frames
    from difflistener.prepare.expression import landmark_weights
    from difflistener.prepare.landmarks import FaceTracker
    from difflistener.prepare.pipeline import track_speaker
    from difflistener.prepare.pose import displacements, fit_head
    from difflistener.toy import make_pair, render

    path = tmp_path_factory.mktemp("film") / "speaker.mp4"
    with VideoWriter(path, SIZE, SIZE) as video:
        for frame in render("speaker", make_pair(SECONDS, 3).speaker, SIZE):
            video.write_frame(frame)
    frames = list(read_frames(path))
    with FaceTracker() as faces:
        landmarks = np.stack([faces.push(frame) for frame in frames])
    all_valid = np.ones(len(frames), bool)
    head = fit_head(landmarks, all_valid, SIZE, SIZE)
    sway = np.full((len(frames), 6), np.nan)
    sway[:, :3] = head.translation - head.translation.mean(0)
    basis = fit_basis([displacements(head, landmarks, all_valid)], landmark_weights(), [sway])
    return {"frames": frames, "landmarks": landmarks, "basis": basis, "offline": track_speaker(path, basis)}


@pytest.fixture
def track(film, monkeypatch):
    """Codes of frames whose landmarks are known: [T] arrays or None."""

    def run(landmarks, frames=None):
        known = iter(landmarks)

        class Known:
            push = staticmethod(lambda frame: next(known))
            close = staticmethod(lambda: None)

        monkeypatch.setattr(tracking, "FaceTracker", Known)
        with SpeakerTracker(film["basis"]) as tracker:
            run.tracker = tracker
            return [tracker.push(GREY if frame is None else frame)
                    for frame in itertools.islice(itertools.repeat(None) if frames is None else frames, len(landmarks))]

    return run


def test_codes_are_near_those_of_the_whole_film(film):
    with SpeakerTracker(film["basis"]) as tracker:
        codes = [tracker.push(frame) for frame in film["frames"]]
    assert all(code is None for code in codes[: FIRST_FRAMES - 1])
    live = np.stack(codes[75:])
    assert live.dtype == np.float32 and live.shape[1] == 50
    agreement = [np.corrcoef(live[:, k], film["offline"][75:, k])[0, 1] for k in range(10)]
    assert np.mean(agreement) > 0.85, agreement


def test_codes_do_not_depend_on_what_comes_later(film, track):
    whole = track(film["landmarks"], film["frames"])
    part = track(film["landmarks"][:70], film["frames"])
    assert all(np.array_equal(a, b) for a, b in zip(whole[FIRST_FRAMES:70], part[FIRST_FRAMES:]))


def test_a_nod_is_no_expression(film, track):
    """A rigid head that nods by 0.1 radians: what moves its codes is all leakage."""
    time = np.arange(100) / 25
    rotation, translation = poses(len(time), swing=(0.02, 0.02, 0.01))
    rotation[:, 0] += 0.1 * np.sin(2 * np.pi * 1.5 * time) * (time > 1)
    landmarks = see(CAMERA, rotation, translation, template(), noise_px=0.3)
    live = np.stack(track(landmarks, pictures(CAMERA, rotation, translation, SIZE, SIZE))[40:])
    pitch = rotation[40:, 0]
    leakage = np.abs([np.cov(pitch, code)[0, 1] / pitch.var() * 0.1 for code in live[:, :44].T])
    assert leakage.mean() < 0.25, leakage


def test_texture_steadies_landmarks_that_slide():
    rotation, translation = poses(80, swing=(0.15, 0.2, 0.05))
    slide = np.random.default_rng(0).normal(size=(9, 2)) * 0.02
    slide = np.stack([np.interp(np.arange(80), np.arange(9) * 10, slide[:, k]) for k in range(2)], 1)
    guessed = rotation + np.pad(slide, ((0, 0), (0, 1)))
    landmarks = see(CAMERA, guessed, translation, template())
    texture = Texture(CAMERA, template(), 48.0)
    found = np.stack([texture.refine(frame, *given)[0] for frame, *given in
                      zip(pictures(CAMERA, rotation, translation, SIZE, SIZE), landmarks, guessed, translation)])
    error = lambda track: (track - rotation - (track - rotation).mean(0)).std()  # noqa: E731
    assert error(found) < 0.5 * error(guessed)
    assert 1 <= len(texture.poses[0]) <= MAX_KEYFRAMES


def test_without_texture_the_landmarks_are_believed():
    rotation, translation = poses(5)
    texture = Texture(CAMERA, template(), 48.0)
    for landmarks, *pose in zip(see(CAMERA, rotation, translation, template()), rotation, translation):
        assert all(np.array_equal(*pair) for pair in zip(texture.refine(GREY, landmarks, *pose), pose))


def test_nobody_is_not_tracked(film, track):
    with SpeakerTracker(film["basis"]) as tracker:
        assert all(tracker.push(GREY) is None for _ in range(12))
    landmarks = [*film["landmarks"][:30], None, None, *film["landmarks"][32:40]]
    codes = track(landmarks, film["frames"])
    assert codes[30] is None and codes[31] is None and codes[32] is not None


@pytest.mark.parametrize(("stranger", "gap", "is_new"), [
    ("same", LOST + 1, False), ("wide", LOST + 1, True), ("near", LOST + 1, True), ("wide", LOST, False),
])  # fmt: skip
def test_another_person_is_learned_anew(stranger, gap, is_new, film, track):
    came = film["landmarks"][100:130].copy()
    centre = came.mean(1, keepdims=True)
    came = centre + (came - centre) * np.float32({"same": 1, "wide": (1.2, 1, 1), "near": 1.8}[stranger])
    codes = track([*film["landmarks"][:60], *[None] * gap, *came], itertools.repeat(film["frames"][0]))[60 + gap :]
    assert [code is None for code in codes] == [is_new] * (FIRST_FRAMES - 1) + [False] * (31 - FIRST_FRAMES)


def test_another_picture_size_starts_anew(film, track):
    frames = [*film["frames"][:40], *(np.ascontiguousarray(frame[:, 4:]) for frame in film["frames"][40:60])]
    codes = track(film["landmarks"][:60], frames)
    assert codes[39] is not None and codes[40] is None and codes[40 + FIRST_FRAMES] is not None


def test_memory_is_bounded_and_spread_out(film, track, monkeypatch):
    monkeypatch.setattr(tracking, "MEMORY", 16)
    landmarks = np.tile(film["landmarks"], (3, 1, 1))
    landmarks = landmarks + 1e-3 * np.arange(len(landmarks), dtype=np.float32)[:, None, None]  # tells them apart
    track(landmarks)
    person = track.tracker._person
    when = [int(np.abs(landmarks[:, 0, 0] - sight.landmarks[0, 0]).argmin()) for sight in person._memory]
    assert len(person._memory) <= 16 and len(person._texture.poses[0]) <= MAX_KEYFRAMES
    assert when[0] < 60 and when[-1] > 500 and np.diff(sorted(when)).max() <= 64


def test_codes_glide_to_a_new_template(film, track, monkeypatch):
    """The template is derived again at 16, 32, 64 frames and so on: that must not look like a face that moves."""
    landmarks = [*film["landmarks"][: 2 * FIRST_FRAMES - 1], *np.repeat(film["landmarks"][:1], 80, 0)]
    gliding = np.stack(track(landmarks)[2 * FIRST_FRAMES :])
    monkeypatch.setattr(tracking, "GLIDE", 1)
    abrupt = np.stack(track(landmarks)[2 * FIRST_FRAMES :])
    assert np.abs(np.diff(gliding, axis=0)).max() < 0.2 * np.abs(np.diff(abrupt, axis=0)).max()
    assert np.allclose(gliding[-1], abrupt[-1], atol=1e-5)
