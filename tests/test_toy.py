"""The toy pair: does the drawn conversation obey its law, and do its faces show the motion that it claims?"""

import json
from dataclasses import fields

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from difflistener import toy
from difflistener.toy import raster
from difflistener.toy.law import (
    Controls,
    about_neck,
    blink_curve,
    draw_blinks,
    draw_mirrored,
    draw_nods,
    draw_phrases,
    draw_smiles,
)



@pytest.fixture(scope="module")
def conversation():
    return toy.make_pair(300.0, seed=3)


@pytest.fixture(scope="module")
def many():
    """Phrases, nods, smiles, mirrored smiles and blinks of hours, for statistics."""
    seconds, law, generator = 20_000.0, toy.ListenerLaw(), np.random.default_rng(0)
    phrases, smiles = draw_phrases(seconds, generator), draw_smiles(seconds, generator)
    return (phrases, draw_nods(phrases, seconds, law, generator), smiles,
            draw_mirrored(smiles, seconds, law, generator), draw_blinks(seconds, law, generator))  # fmt: skip


def _arrays(pair):
    for part in (pair.speaker, pair.listener, pair.events):
        for f in fields(part):
            yield f.name, getattr(part, f.name)
    yield "audio", pair.audio


def test_same_seed_same_pair():
    one, same, other = toy.make_pair(6, 1), toy.make_pair(6, 1), toy.make_pair(6, 2)
    for (name, a), (_, b) in zip(_arrays(one), _arrays(same), strict=True):
        assert np.array_equal(a, b), name
    assert not np.array_equal(one.audio, other.audio)
    assert not np.array_equal(one.listener.rotation, other.listener.rotation)


def test_shapes_and_ranges():
    pair = toy.make_pair(4.0, 0)
    assert pair.audio.shape == (64_000,) and pair.audio.dtype == np.float32
    assert 0.3 < np.abs(pair.audio).max() < 1
    for controls in (pair.speaker, pair.listener):
        assert len(controls) == 100
        for f in fields(controls):
            assert getattr(controls, f.name).dtype == np.float32, f.name
        for unit in (controls.mouth_open, controls.smile, controls.brow, controls.blink):
            assert unit.min() >= 0 and unit.max() <= 1
    motion = pair.speaker_motion
    assert motion.shape == (100, 56) and motion.dtype == np.float32
    assert np.array_equal(motion[:, 0], pair.speaker.mouth_open)
    assert np.array_equal(motion[:, 50:53], pair.speaker.rotation)
    assert not motion[:, 7:50].any() and motion[:, 53].max() > 0.05 and not motion[:, 54:].any()
    with pytest.raises(ValueError, match="seconds"):
        toy.make_pair(0)


def test_speech_is_heard_in_phrases_and_moves_the_mouth(conversation):
    pair = conversation
    loud = np.sqrt((pair.audio.reshape(-1, 640) ** 2).mean(1))
    t = np.arange(len(loud)) / 25 + 0.02
    talking = np.zeros(len(t), bool)
    for start, end in pair.events.phrases:
        talking |= (t > start) & (t < end)
    assert loud[talking].mean() > 30 * np.median(loud[~talking]) > 0
    assert np.corrcoef(loud, pair.speaker.mouth_open)[0, 1] > 0.6
    # Syllables: the mouth's own rhythm lies between 3 and 6 Hz.
    rest = pair.speaker.mouth_open - pair.speaker.mouth_open.mean()
    power = np.mean(np.abs(np.fft.rfft(rest.reshape(-1, 100) * np.hanning(100), axis=1)) ** 2, 0)
    frequency = np.fft.rfftfreq(100, 1 / 25)
    fast = frequency > 2
    assert 3 < frequency[fast][power[fast].argmax()] < 6


def test_listener_nods_by_the_law(many):
    law, (phrases, nods, *_) = toy.ListenerLaw(), many
    assert abs(len(nods) / len(phrases) - law.nod_probability) < 0.03
    assert abs(nods[:, 1].mean() - law.nod_delay[0]) < 0.01 and abs(nods[:, 1].std() - law.nod_delay[1]) < 0.01
    assert np.allclose(phrases[nods[:, 0].astype(int), 1] + nods[:, 1], nods[:, 2])
    assert nods[:, 3].min() >= law.nod_seconds[0] and nods[:, 3].max() <= law.nod_seconds[1]
    assert np.rad2deg(nods[:, 4]).min() >= law.nod_degrees[0] and np.rad2deg(nods[:, 4]).max() <= law.nod_degrees[1]
    length, pause = phrases[:, 1] - phrases[:, 0], phrases[1:, 0] - phrases[:-1, 1]
    assert length[:-1].min() >= 1 and length.max() <= 3 and pause.min() >= 0.4 and pause.max() <= 1.5


def test_drawn_nods_are_in_the_motion(conversation):
    phrases, nods = conversation.events.phrases, conversation.events.nods
    pitch = conversation.listener.rotation[:, 0]
    start = (nods[:, 2] * 25).astype(int)
    dip = np.array([pitch[s : s + 12].max() - pitch[s] for s in start if s + 12 < len(pitch)])
    assert np.median(dip) > np.deg2rad(8) and (dip > np.deg2rad(4)).mean() > 0.95
    silent = np.setdiff1d(np.arange(len(phrases)), nods[:, 0].astype(int))
    at = (phrases[silent, 1] * 25).astype(int)
    still = np.array([pitch[s : s + 10].max() - pitch[s] for s in at if s + 10 < len(pitch)])
    assert np.median(still) < np.deg2rad(1.5)


def test_listener_mirrors_smiles(many, conversation):
    law, (_, _, given, mirrored, _) = toy.ListenerLaw(), many
    assert abs(len(mirrored) / len(given) - law.smile_probability) < 0.03
    assert abs(mirrored[:, 1].mean() - law.smile_delay[0]) < 0.01
    assert abs(mirrored[:, 1].std() - law.smile_delay[1]) < 0.01
    assert np.allclose(given[mirrored[:, 0].astype(int), 0] + mirrored[:, 1], mirrored[:, 2])
    speaker, listener = conversation.speaker.smile, conversation.listener.smile
    agreement = [np.corrcoef(speaker[:-25], np.roll(listener, -lag)[:-25])[0, 1] for lag in range(25)]
    assert np.argmax(agreement) == pytest.approx(25 * law.smile_delay[0], abs=3) and max(agreement) > 0.6


def test_listener_reacts_to_nothing_else(many, conversation):
    blinks, pair = many[-1], conversation
    assert np.diff(blinks[:, 0]).mean() == pytest.approx(pair.law.blink_interval, rel=0.05)
    assert abs(np.corrcoef(pair.listener.blink[:, 0], pair.speaker.blink[:, 0])[0, 1]) < 0.05
    # A listener under another law hears the same speaker, and moves the same where the law says nothing.
    other = toy.make_pair(30, 3, toy.ListenerLaw(nod_probability=0.0, smile_probability=0.0))
    same = toy.make_pair(30, 3)
    assert np.array_equal(other.audio, same.audio) and np.array_equal(other.speaker.smile, same.speaker.smile)
    assert np.array_equal(other.listener.blink, same.listener.blink)
    assert np.array_equal(other.listener.rotation[:, 1], same.listener.rotation[:, 1])
    assert len(same.events.nods) and not len(other.events.nods) and not other.listener.smile.any()


def test_every_blink_closes_the_eye():
    t = np.arange(2000) / 25
    starts = np.arange(1, 78, 1.013)
    closed = blink_curve(t, np.stack([starts, np.linspace(0.16, 0.2, len(starts))], 1))
    for start in starts:
        assert closed[(t > start - 0.02) & (t < start + 0.2)].max() > 0.8


def test_raster_matches_a_plain_z_order_loop():
    generator = np.random.default_rng(0)
    xy = generator.uniform(-4, 36, (40, 2)).astype(np.float32)
    triangles = generator.integers(0, 40, (25, 3))
    plain = np.full((32, 32), -1)
    for index, (a, b, c) in enumerate(xy[triangles].astype(float)):
        for row in range(32):
            for column in range(32):
                p = np.array([column + 0.5, row + 0.5])
                sides = [np.cross(np.append(v - u, 0), np.append(p - u, 0))[2] for u, v in ((a, b), (b, c), (c, a))]
                if min(sides) > 0 or max(sides) < 0:
                    plain[row, column] = index
    seen = raster.visible_triangles(xy, triangles, 32, 32)
    assert (seen == plain).mean() > 0.998 and (plain >= 0).mean() > 0.5


def test_planes_interpolate_attributes():
    xy = np.array([[0, 0], [10, 0], [0, 10]], np.float32)
    values = np.array([[1.0, 0], [3.0, 0], [1.0, 5]], np.float32)
    rows = raster.planes(xy, np.array([[0, 1, 2]]), values)
    got = raster.evaluate(rows, np.array([5.0]), np.array([2.0]))
    assert np.allclose(got, [[2.0, 1.0]])


@pytest.mark.parametrize("who", ["speaker", "listener"])
def test_frames_show_the_controls(who):
    count = 6
    tails = dict(mouth_open=(), smile=(), blink=(2,), gaze=(2,), rotation=(3,))
    rest = {name: np.zeros((count, *tail)) for name, tail in tails.items()}
    rest["mouth_open"][1] = rest["smile"][2] = 1
    rest["blink"][3] = 1
    rest["gaze"][4, 0] = 0.3
    rest["rotation"][5, 1] = 0.3
    size = 128
    frames = list(toy.render(who, Controls.neutral(count, **rest), size))
    assert all(f.shape == (size, size, 3) and f.dtype == np.uint8 for f in frames)
    picture = np.stack(frames).astype(float)
    K, distance = toy.intrinsics(size)

    def near(x, y, half_width, half_height):
        """The part of the picture around a point of the head, centimetres right of and above its origin."""
        u = K[0, 2] + K[0, 0] * x / (100 * distance - 4)
        v = K[1, 2] + K[1, 1] * (-1.9 - y) / (100 * distance - 4)
        rows = slice(round(v - half_height), round(v + half_height))
        return rows, slice(round(u - half_width), round(u + half_width))

    def change(frame, region):
        return np.abs(picture[frame][region] - picture[0][region]).mean()

    eyes, mouth, corner = near(-3.1, 2.7, 5, 3), near(0, -4.8, 7, 6), (slice(0, 12), slice(0, 12))
    assert change(1, mouth) > 12 and change(2, mouth) > 3 and change(1, eyes) < 1
    assert change(3, eyes) > 10 and change(3, mouth) < 1
    assert change(4, eyes) > 4 and change(4, mouth) < 1
    assert change(5, (slice(None), slice(None))) > 3
    assert all(change(k, corner) == 0 for k in range(count))

    def whites(frame):
        """Bright pixels without the red of skin."""
        red, blue = picture[frame][eyes][..., 0], picture[frame][eyes][..., 2]
        return ((red > 90) & (red - blue < 22)).sum()

    assert whites(0) >= 4 and whites(3) == 0
    # An open mouth is dark inside, below bright teeth.
    assert picture[1][mouth].min() < 60 < picture[0][mouth].min() + 25


def test_rendering_streams_and_is_repeatable():
    controls = Controls.neutral(3)
    stream = toy.render("listener", controls, 64)
    assert iter(stream) is stream
    first = next(stream)
    assert np.array_equal(first, next(toy.render("listener", controls, 64)))
    assert np.array_equal(first, next(stream))


def _similarity_rotation(a, b):
    """Rotation [3,3] that carries points a [P,3] onto b (Kabsch)."""
    u, _, v = np.linalg.svd((b - b.mean(0)).T @ (a - a.mean(0)))
    return u @ np.diag([1, 1, np.linalg.det(u @ v)]) @ v


RIGID = [10, 151, 9, 8, 168, 6, 197, 195, 5, 4, 1, 33, 133, 362, 263, 127, 356, 234, 454, 109, 338, 54, 284, 67, 297,
         103, 332, 21, 251, 93, 323, 98, 327, 116, 345, 117, 346]  # fmt: skip
"""MediaPipe landmarks that expressions hardly move."""


@pytest.mark.parametrize("who", ["speaker", "listener"])
def test_mediapipe_tracks_the_motion(who):
    mediapipe = pytest.importorskip("mediapipe")
    count, size = 60, 256
    t = np.arange(count) / 25
    rotation = np.deg2rad(np.stack([4 * np.sin(5 * t), 14 * np.sin(2.6 * t), 5 * np.sin(3.7 * t + 1)], 1))
    mouth = np.maximum(np.sin(9 * t), 0) * 0.8
    closed = blink_curve(t, np.array([[0.3, 0.2], [0.9, 0.18], [1.5, 0.2], [2.0, 0.16]]))
    controls = Controls.neutral(
        count, rotation=rotation, translation=about_neck(rotation, 0), mouth_open=mouth, blink=np.stack([closed] * 2, 1)
    )
    seen, points = [], []
    with mediapipe.solutions.face_mesh.FaceMesh(refine_landmarks=True) as tracker:
        for index, frame in enumerate(toy.render(who, controls, size)):
            found = tracker.process(frame).multi_face_landmarks
            if found:
                seen.append(index)
                points.append([[p.x, p.y, p.z] for p in found[0].landmark])
    assert len(seen) >= 0.99 * count
    points = np.array(points) * size

    shape = points[:, RIGID].mean(0)
    tracked = Rotation.from_matrix([_similarity_rotation(shape, p[RIGID]) for p in points])
    true = Rotation.from_rotvec(rotation[seen])
    offset = (true.inv() * tracked).mean()
    error = np.rad2deg((tracked * offset.inv() * true.inv()).as_rotvec())
    rms = np.sqrt((error**2).sum(1).mean())
    assert rms < 2.0, f"{rms:.2f} degrees"

    def gap(a, b, c, d):
        p = points[..., :2]
        return np.linalg.norm(p[:, a] - p[:, b], axis=1) / np.linalg.norm(p[:, c] - p[:, d], axis=1)

    assert np.corrcoef(gap(13, 14, 10, 168), mouth[seen])[0, 1] > 0.9
    for eye in ((159, 145, 33, 133), (386, 374, 362, 263)):
        assert np.corrcoef(-gap(*eye), closed[seen])[0, 1] > 0.9


def test_write_pair(tmp_path):
    import av

    pair = toy.write_pair(tmp_path, 1.2, seed=4, size=64)
    truth = np.load(tmp_path / "truth.npz")
    assert np.array_equal(truth["listener_rotation"], pair.listener.rotation)
    assert np.array_equal(truth["events_phrases"], pair.events.phrases)
    assert json.loads(str(truth["law"]))["nod_probability"] == 0.6
    for role, sound in (("speaker", 1), ("listener", 0)):
        with av.open(str(tmp_path / f"{role}.mp4")) as container:
            assert len(container.streams.audio) == sound
            frames = [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]
        assert len(frames) == 30 and frames[0].shape == (64, 64, 3)
    drawn = list(toy.render("listener", pair.listener, 64))
    assert np.abs(frames[-1].astype(float) - drawn[-1]).mean() < 12
