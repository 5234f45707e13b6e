"""`mine`: who is where, who speaks, what is kept, and the clips that come of it."""

import csv
import json
import os
from dataclasses import replace

import numpy as np
import pytest
from synthetic_face import poses, see, template
from toy_clip import fails, interrupt, run, snapshot, write_video

from difflistener.errors import UserError
from difflistener.media import SAMPLES_PER_FRAME, VideoWriter
from difflistener.mine import contact, faces, table, turns
from difflistener.mine.people import Place, link, place_people
from difflistener.mine.pipeline import make_row
from difflistener.mine.reaction import measure_reaction
from difflistener.mine.voice import find_voice, levels
from difflistener.prepare.bundle import Camera

SIZE, SECONDS = 128, 9.2
FIRST, SECOND = ((0.3, 2.2), (2.5, 4.2)), ((4.8, 6.6), (6.9, 8.9))
"""Phrases of the person on the left, who nods at nothing, and of the one on the right, who nods before answering."""
NOD = 2.9


# -------------------------------------------------------------------------------------------------------- people


def boxes(x: float, y: float = 100, count: int = 10, size: float = 80):
    return [np.array([x + k % 3, y, x + size + k % 3, y + 1.3 * size]) for k in range(count)]


def test_faces_are_linked_by_overlap_and_once_a_picture():
    pictures = [[right, left, left + 4] for left, right in zip(boxes(50), boxes(300))]
    pictures[4] = [np.array([500.0, 10, 540, 50])]
    tracks = link(pictures)
    assert sorted(len(track) for track in tracks) == [1, 9, 9]
    assert {round(float(np.median(track[:, 0]))) for track in tracks} == {51, 301, 500}


@pytest.mark.parametrize(("left", "right", "split"), [(100, 460, 0.5), (60, 240, 0.302), (400, 560, 0.812)])
def test_the_picture_is_divided_in_the_middle_or_between_the_faces(left, right, split):
    people = place_people([np.array(boxes(right)), np.array(boxes(left))], 10, 640, 360, "talk.mp4")
    assert people.split == pytest.approx(split, abs=0.01)
    first, second = people.places
    assert first.right <= round(people.split * 640) <= second.left
    for place, x in zip(people.places, (left, right)):
        assert place.left <= x and place.right >= x + 80 and 0 <= place.top < 100 and 204 < place.bottom <= 360
        assert place.face == pytest.approx(104) and place.cut(np.zeros((360, 640, 3))).shape[0] == place.bottom - place.top


@pytest.mark.parametrize(("tracks", "message"), [
    ([], "no steady face"), ([boxes(50)], "one steady face"), ([boxes(50), boxes(200, count=3)], "one steady face"),
    ([boxes(50), boxes(200), boxes(350, count=4)], "3 steady faces"), ([boxes(50, 10), boxes(60, 200)], "not side by side"),
])  # fmt: skip
def test_other_than_two_people_are_refused(tracks, message):
    with pytest.raises(UserError, match=message) as error:
        place_people([np.array(track) for track in tracks], 10, 640, 360, "talk.mp4")
    assert "talk.mp4" in error.value.problem


def test_prepare_divides_a_picture_where_it_is_told(tmp_path, capsys):
    from difflistener.prepare.sources import Source

    frames = [np.tile(np.arange(96, dtype=np.uint8)[:, None] * 2, (48, 1, 3))] * 2
    video = write_video(tmp_path / "a.mp4", frames)
    sides = {side: Source("listener", video, side, 0.0, True, 1 / 3) for side in ("left", "right")}
    widths = [next(source.frames(2)).shape[1] for source in sides.values()]
    assert widths == [source.width(96) for source in sides.values()] == [32, 64]
    assert next(sides["right"].frames(2))[:, 0].mean() == pytest.approx(64, abs=6)
    halved = Source("listener", video, "right", 0.0, True)
    assert halved.width(97) == 48 and "split" not in halved.settings(2) and sides["left"].settings(2)["split"] == 1 / 3
    dyad = ["prepare", "--dyad", video, "--speaker-side", "left", "--out", tmp_path / "clip", "--split"]
    assert "--split is 1" in fails(capsys, *dyad, 1) and not (tmp_path / "clip").exists()


# ---------------------------------------------------------------------------------------------------- who speaks


@pytest.mark.parametrize(("noise", "hum"), [(1e-4, 0), (0.004, 0), (0.001, 0.1)])
def test_a_voice_is_found_over_noise_and_hum(noise, hum):
    from difflistener.toy.speech import speak

    spoken = np.array([[0.8, 2.8], [4.0, 5.2], [7.0, 9.4]])
    rng = np.random.default_rng(0)
    sound, _ = speak(spoken, 10.0, rng)
    sound = sound + noise * rng.standard_normal(len(sound)) + hum * np.sin(2 * np.pi * 50 * np.arange(len(sound)) / 16000)
    pieces = np.split(sound.astype(np.float32), np.sort(rng.integers(0, len(sound), 30)))
    found = find_voice(levels(pieces, 250))
    time = np.arange(250) / 25 + 0.02
    truth = ((time[:, None] >= spoken[:, 0]) & (time[:, None] < spoken[:, 1])).any(1)
    assert (found == truth).mean() > 0.95
    for start, stop in spoken:
        assert found[(time > start + 0.1) & (time < stop - 0.2)].all()


def test_silence_and_steady_noise_are_no_voice_and_missing_sound_is_silence():
    rng = np.random.default_rng(0)
    assert not find_voice(levels([], 200)).any()
    assert find_voice(levels([0.05 * rng.standard_normal(160000)], 250)).mean() < 0.05
    level = levels([0.1 * rng.standard_normal(25 * SAMPLES_PER_FRAME)], 50)
    assert (level[:25] > -30).all() and (level[25:] < -80).all()


def lips_of(*spoken, frames=250, size=0.12, seed=0):
    """Lip distance [frames] of syllables in the (start, stop) frames, and a tracker's noise."""
    time = np.arange(frames)
    is_speech = np.any([(time >= start) & (time < stop) for start, stop in spoken] or [np.zeros(frames)], axis=0)
    rng = np.random.default_rng(seed)
    return 0.03 + size * is_speech * np.abs(np.sin(time * 2.1 / 2 + 0.3 * rng.random(frames))) + rng.normal(0, 0.001, frames)


def voice_of(*spoken, frames=250):
    return np.any([(np.arange(frames) >= start) & (np.arange(frames) < stop) for start, stop in spoken], axis=0)


EVERYWHERE = np.ones((250, 2), bool)


def test_who_moves_the_lips_speaks_and_what_is_unclear_is_nobodys():
    lips = np.stack([lips_of((20, 80), (180, 230)), lips_of((100, 160), (180, 230), seed=1)], 1)
    lips[:, 1] += np.clip((np.arange(250) - 30) / 40, 0, 1) * 0.1  # a smile that opens slowly
    voice = voice_of((20, 80), (100, 160), (180, 230), (234, 250))
    speaker, both = turns.find_speakers(voice, lips, EVERYWHERE)
    assert (speaker[25:75] == 0).all() and (speaker[105:155] == 1).all()
    assert (speaker[~voice] == turns.NOBODY).all() and (speaker[240:] == turns.NOBODY).all()
    assert (speaker[185:225] == turns.NOBODY).mean() > 0.8 and both[185:225].mean() > 0.8 and not both[:170].any()
    valid = EVERYWHERE.copy()
    valid[40:70, 1] = False
    assert (turns.find_speakers(voice, lips, valid)[0][40:70] == turns.NOBODY).all()


def test_one_who_mumbles_is_heard():
    lips = np.stack([lips_of((20, 120)), lips_of((140, 230), size=0.04, seed=1)], 1)
    speaker, _ = turns.find_speakers(voice_of((20, 120), (140, 230)), lips, EVERYWHERE)
    assert (speaker[25:115] == 0).all() and (speaker[145:225] == 1).all()


def test_pauses_are_bridged_and_segments_cut_both_ways():
    lips = np.stack([lips_of((10, 60), (70, 120), (220, 240)), lips_of((130, 170), (190, 215), seed=1)], 1)
    voice = voice_of((10, 60), (70, 120), (130, 170), (190, 215), (220, 240))
    segments, longest = turns.find_segments(voice, lips, EVERYWHERE, 75, 1500, bridge=15)
    assert [segment.speaker for segment in segments] == [0]
    only = segments[0]
    assert only.start == pytest.approx(10, abs=2) and 120 <= only.stop <= only.answered == pytest.approx(130, abs=2)
    assert only.voice == pytest.approx(100 / 120, abs=0.05) and only.overlap == 0 and longest == only.stop - only.start
    wide, _ = turns.find_segments(voice, lips, EVERYWHERE, 75, 1500, bridge=25)
    assert [segment.speaker for segment in wide] == [0, 1] and wide[1].stop <= 220
    narrow, longest = turns.find_segments(voice, lips, EVERYWHERE, 75, 1500, bridge=4)
    assert narrow == [] and 45 <= longest <= 60
    parts, _ = turns.find_segments(voice, lips, EVERYWHERE, 25, 50, bridge=15)
    assert [p.stop for p in parts[:2]] == [p.start for p in parts[1:3]] and all(p.stop - p.start <= 50 for p in parts)
    assert parts[0].answered is None and parts[2].answered is not None
    valid = EVERYWHERE.copy()
    valid[60:100, 0] = False
    assert turns.find_segments(voice, lips, valid, 75, 1500, bridge=15)[0] == []


def test_a_turn_never_reaches_into_overlap_or_missing_faces():
    speaker = np.array([0] * 10 + [-1] * 20)
    seen, both = np.ones(30, bool), np.zeros(30, bool)
    assert turns.find_turns(speaker, both, seen, 8) == [(0, 18, 0)]
    both[14] = True
    assert turns.find_turns(speaker, both, seen, 8) == [(0, 14, 0)]
    seen[12] = False
    assert turns.find_turns(speaker, both, seen, 8) == [(0, 12, 0)]


# ------------------------------------------------------------------------------------------------------- reaction


def test_rotation_lips_and_points_are_measured():
    from difflistener.prepare.bundle import rotation_matrices

    rotation, translation = poses(40)
    seen = see(Camera(9000.0, 160.0, 160.0), rotation, translation * (1, 1, 10), template())
    measured = [faces.measure(face) for face in seen]
    error = rotation_matrices(rotation).transpose(0, 2, 1) @ rotation_matrices(np.array([turn for _, turn, _ in measured]))
    assert np.degrees(np.arccos(np.clip((np.trace(error, axis1=1, axis2=2) - 1) / 2, -1, 1))).max() < 2
    assert np.ptp([points for *_, points in measured], axis=0).max() < 0.03
    smile, opened = template(), template(mouth_height=0.1)
    smile[[61, 291]] += [[-0.1, -0.05, 0], [0.1, -0.05, 0]]
    still, _, rest = faces.measure(template() * 50)
    assert faces.measure(opened * 50)[0] - still == pytest.approx(0.2, abs=0.05)
    np.testing.assert_allclose((faces.measure(smile * 50)[2] - rest)[:2], [[-0.1, -0.05], [0.1, -0.05]], atol=1e-3)


def listening(frames=100):
    rng = np.random.default_rng(0)
    rotation = rng.normal(0, np.radians(0.4), (frames, 3))
    points = rng.normal(0, 0.004, (frames, len(faces.POINTS), 2))
    return rotation, points, np.ones(frames, bool)


def test_a_nod_a_smile_and_nothing_are_told_apart():
    rotation, points, valid = listening()
    still = measure_reaction(rotation, points, valid)
    assert still.score < 2
    drifting = rotation + np.radians(np.linspace(0, 10, 100))[:, None] * (1, 0, 0)
    assert measure_reaction(drifting, points, valid).rotation < 4
    nod = np.zeros((100, 1))
    nod[40:56, 0] = np.radians(9) * np.sin(np.pi * np.arange(16) / 16)
    nodding = measure_reaction(rotation + nod * (1, 0, 0), points, valid)
    assert nodding.rotation == pytest.approx(9, abs=1.5) and nodding.expression < 2 and 44 <= nodding.peak <= 52
    smiling = points.copy()
    smiling[60:, : len(faces.MOUTH), 0] += 0.08
    smile = measure_reaction(rotation, smiling, valid)
    assert smile.expression == pytest.approx(8, abs=1.5) and smile.score == smile.expression
    valid[38:58] = False
    assert measure_reaction(rotation + nod * (1, 0, 0), points, valid).score < 2
    assert measure_reaction(rotation, points, np.zeros(100, bool)).score == 0


def test_the_filter_says_why():
    rotation, points, valid = listening()
    both = faces.Faces(*(np.stack([values, values], 1) for values in (valid, np.zeros(100), rotation, points)))
    segment = turns.Segment(0, 100, 0, 0.9, 0.0, 110)
    kept = make_row(segment, both, 0.5)
    assert kept.kept and kept.reason == "" and (kept.speaker, kept.listener) == ("left", "right")
    assert (kept.stop, kept.answered) == (4.0, 4.4)
    assert kept.name == "left-speaks-0000.00" and kept.reaction == max(kept.rotation, kept.expression)
    refused = make_row(replace(segment, overlap=0.3), both, 5)
    assert not refused.kept and "overlap 30%" in refused.reason and "< 5" in refused.reason


# ---------------------------------------------------------------------------------------------- table and sheet


def rows_of(count: int) -> list[table.Row]:
    return [table.Row(f"left-speaks-{k:04d}.04", k + 0.04, k + 4.08, "left", "right", 0.9, 0.1, 7.0, 3.0, 7.0, k + 2.0,
                      None if k % 2 else k + 5.0, k % 3 > 0, "" if k % 3 else "reaction 1.0 < 5") for k in range(count)]


def test_the_table_comes_back_with_decisions_of_any_spreadsheet(tmp_path):
    rows, file = rows_of(4), tmp_path / "segments.csv"
    table.write_rows(file, rows)
    assert table.read_rows(file) == rows and [row.is_accepted for row in rows] == [False, True, True, False]
    with file.open(newline="") as stream:
        cells = list(csv.reader(stream))
    at = cells[0].index("accept")
    cells[1][at], cells[2][at] = "Yes", "no"
    with file.open("w", newline="", encoding="utf-8-sig") as stream:
        commas = [[cell.replace(".", ",") if cell[:1].isdigit() else cell for cell in row] for row in cells]
        csv.writer(stream, delimiter=";").writerows(commas)
    edited = table.read_rows(file)
    assert [row.accept for row in edited] == [True, False, None, None]
    assert [row.is_accepted for row in edited] == [True, False, True, False]
    assert [replace(row, accept=None) for row in edited] == rows
    assert [row.accept for row in table.carry_decisions(rows[1:], edited)] == [False, None, None]


@pytest.mark.parametrize(("old", "new", "message"), [
    ("voice", "voices", "no column 'voice'"), ("7.000", "many", "line 2: rotation is 'many'"),
    ("0.040,4.080", "4.080,0.040", "starts at"), (",no,reaction", ",maybe,reaction", "kept is"),
    ("< 5,", "< 5,perhaps", "accept is 'perhaps'"), ("0000.04", "0001.04", "two rows named"),
    ("left-speaks-0000.04", "../x", "cannot name a folder"), ("left,right", "left,left", "listener is 'left'"),
])  # fmt: skip
def test_a_damaged_table_is_named_by_line(tmp_path, old, new, message):
    file = tmp_path / "segments.csv"
    table.write_rows(file, rows_of(2))
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new, 1))
    with pytest.raises(UserError, match=message):
        table.read_rows(file)


def test_the_contact_sheet_has_a_line_for_each_row(tmp_path, monkeypatch):
    from PIL import Image

    monkeypatch.setattr(contact, "ROWS", 3)
    (tmp_path / "contact-9.jpg").touch()
    times = []

    def look(time):
        times.append(time)
        return np.full((90, 120, 3), (200, 0, 0), np.uint8), np.full((90, 120, 3), (0, 0, 200), np.uint8)

    paths = contact.write_contact_sheets(tmp_path, rows_of(5), look)
    assert [path.name for path in paths] == ["contact.jpg", "contact-2.jpg"] and len(list(tmp_path.iterdir())) == 2
    sizes = [Image.open(path).size for path in paths]
    assert sizes == [(contact.WIDTH, 3 * contact.ROW_HEIGHT), (contact.WIDTH, 2 * contact.ROW_HEIGHT)]
    sheet = np.asarray(Image.open(paths[0])).astype(int)
    middle = sheet[contact.LABEL + 40]
    assert (abs(middle[20] - (200, 0, 0)) < 40).all() and (abs(middle[contact.WIDTH // 2 + 40] - (0, 0, 200)) < 40).all()
    assert len(times) == 5 * contact.MOMENTS and times[:4] == sorted(times[:4])
    row = rows_of(1)[0]
    assert row.peak in contact.moments(row) and all(row.start < time < row.stop for time in contact.moments(row))


# ------------------------------------------------------------------------------------------------------------ scan


class FakeTracker:
    """Finds a face in every picture but the darkest."""

    pushed = 0
    stop_at = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def push(self, picture):
        type(self).pushed += 1
        if self.pushed == self.stop_at:
            raise KeyboardInterrupt
        return None if picture.mean() < 20 else template().astype(np.float32) * 20 + np.float32([32, 32, 0])


def test_an_interrupted_scan_goes_on_with_its_next_piece(tmp_path, monkeypatch):
    monkeypatch.setattr(faces, "FaceTracker", FakeTracker)
    monkeypatch.setattr(faces, "PIECE", 20)
    video = write_video(tmp_path / "a.mp4", (np.full((64, 128, 3), 0 if 30 <= k < 35 else 120, np.uint8) for k in range(50)))
    places = (Place(0, 0, 64, 64, 50.0), Place(64, 0, 128, 64, 50.0))
    monkeypatch.setattr(FakeTracker, "stop_at", 91)
    with pytest.raises(KeyboardInterrupt):
        faces.scan(video, places, tmp_path / "scan")
    assert sorted(path.name for path in (tmp_path / "scan").iterdir()) == ["00000.npz", "00001.npz"]
    monkeypatch.setattr(FakeTracker, "stop_at", None)
    monkeypatch.setattr(FakeTracker, "pushed", 0)
    found = faces.scan(video, places, tmp_path / "scan")
    assert FakeTracker.pushed == 20 and len(found) == 50
    assert found.valid.tolist() == [[not 30 <= k < 35] * 2 for k in range(50)]
    assert found.points.shape == (50, 2, len(faces.POINTS), 2) and found.points[0].any() and not found.points[32].any()
    FakeTracker.pushed = 0
    assert len(faces.scan(video, places, tmp_path / "scan")) == 50 and FakeTracker.pushed == 0
    far = tuple(replace(place, face=200.0) for place in places)
    assert not faces.scan(video, far, tmp_path / "far").valid.any()


# ------------------------------------------------------------------------------------------------------ end to end


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """A conversation of two procedural heads, and recordings that cannot be mined."""
    pytest.importorskip("mediapipe")
    from difflistener.toy import Controls, render
    from difflistener.toy.law import ListenerLaw, blink_curve, draw_blinks, nod_curve, times
    from difflistener.toy.speech import speak

    folder = tmp_path_factory.mktemp("talk")
    time, people, sound = times(SECONDS), [], 0
    for seed, (name, phrases) in enumerate((("speaker", FIRST), ("listener", SECOND))):
        rng = np.random.default_rng(seed)
        voice, mouth = speak(np.array(phrases), SECONDS, rng)
        rotation = np.radians(0.8) * np.stack([np.sin(2 * np.pi * f * time + seed) for f in (0.3, 0.2, 0.1)], 1)
        rotation[:, 0] += seed * nod_curve(time, np.array([[0, 0, NOD, 0.6, np.radians(12)]]))
        blink = blink_curve(time, draw_blinks(SECONDS, ListenerLaw(), rng))
        controls = Controls.neutral(len(time), mouth_open=mouth, rotation=rotation, blink=np.stack([blink] * 2, 1))
        people.append(render(name, controls, SIZE))
        sound = sound + voice
    still = []
    with VideoWriter(folder / "talk.mp4", 2 * SIZE, SIZE, audio=True) as writer:
        for index, pair in enumerate(zip(*people)):
            writer.write_frame(np.hstack(pair))
            writer.write_audio(sound[index * SAMPLES_PER_FRAME : (index + 1) * SAMPLES_PER_FRAME])
            still = still or list(pair)
    silence = np.zeros(25 * SAMPLES_PER_FRAME, np.float32)
    for name, heads in (("one", still[:1]), ("still", still), ("three", [*still, still[0]])):
        write_video(folder / f"{name}.mp4", [np.hstack(heads)] * 25, silence)
    write_video(folder / "soundless.mp4", [np.hstack(still)] * 5)
    (folder / "empty.mp4").touch()
    (folder / "text.mp4").write_text("not a video\n")
    (folder / "cut.mp4").write_bytes((folder / "talk.mp4").read_bytes()[:4000])
    return folder


@pytest.mark.parametrize(("arguments", "message"), [
    ("missing.mp4", "missing.mp4 does not exist"), ("empty.mp4", "is empty"), ("text.mp4", "text.mp4 cannot be read"),
    ("cut.mp4", "cut.mp4"), ("soundless.mp4", "soundless.mp4 has no sound"),
    ("talk.mp4 --size 8", "--size is 8"), ("one.mp4", "one steady face"), ("three.mp4", "3 steady faces"),
    ("talk.mp4 --min-seconds 1", "--min-seconds is 1"), ("talk.mp4 --reaction nan", "--reaction is nan"),
    ("talk.mp4 --max-seconds 4", "--max-seconds is 4"), ("talk.mp4 --bridge -1", "--bridge is -1"),
    ("talk.mp4 --overwrite --resume", "exclude each other"), ("talk.mp4 --basis missing", "no basis at missing"),
])  # fmt: skip
def test_bad_input_is_two_lines_and_leaves_nothing(arguments, message, videos, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(videos)
    assert message in fails(capsys, "mine", *arguments.split(), "--out", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_two_silent_people_have_no_segment_and_the_scan_stays(videos, tmp_path, capsys):
    words = ["mine", videos / "still.mp4", "--out", tmp_path / "out"]
    assert "longest is 0.00 s" in fails(capsys, *words)
    assert "already holds" in fails(capsys, *words)
    before = snapshot(tmp_path / "out")
    assert "longest is 0.00 s" in fails(capsys, *words, "--resume") and snapshot(tmp_path / "out") == before
    assert "another recording, still.mp4" in fails(capsys, "mine", videos / "talk.mp4", *words[2:], "--resume")
    (tmp_path / "notes.txt").write_text("mine")
    assert "not mined" in fails(capsys, *words[:2], "--out", tmp_path, "--overwrite")
    assert "is a file" in fails(capsys, *words[:2], "--out", tmp_path / "notes.txt")
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.fixture(scope="module")
def mined(videos, tmp_path_factory):
    """The conversation mined; the first attempt got Ctrl-C while it made its clip."""
    out = tmp_path_factory.mktemp("mined") / "out"
    words = ["mine", videos / "talk.mp4", "--out", out, "--size", SIZE]
    # A file is finished once clip.json has it.
    code, errors = interrupt(words, lambda: any("crop.json" in file.read_text() for file in out.glob("clips/*/clip.json")))
    assert code == 130 and "--resume" in errors and "Traceback" not in errors, errors
    assert (out / "contact.jpg").is_file() and not (out / "basis.safetensors").exists()
    before = snapshot(out / "scan") | snapshot(out / "clips")
    assert run(*words, "--resume") == 0
    after = snapshot(out / "scan") | snapshot(out / "clips")
    kept = [name for name in before if name.endswith(("landmarks.npy", ".npz"))]
    assert kept and all(after[name] == before[name] for name in kept)
    return out, words


def test_both_directions_are_found_and_the_one_with_a_nod_is_kept(mined):
    from PIL import Image

    out, _ = mined
    nodded, stony = table.read_rows(out / "segments.csv")
    assert (nodded.speaker, nodded.listener, stony.speaker, stony.listener) == ("left", "right", "right", "left")
    assert nodded.start == pytest.approx(FIRST[0][0], abs=0.2) and FIRST[1][1] - 0.3 < nodded.stop <= nodded.answered
    assert nodded.answered == stony.start == pytest.approx(SECOND[0][0], abs=0.2) and stony.answered is None
    assert nodded.kept and nodded.rotation == pytest.approx(12, abs=3) and NOD < nodded.peak < NOD + 0.6
    assert not stony.kept and stony.reaction < 5 and "reaction" in stony.reason
    assert Image.open(out / "contact.jpg").size == (contact.WIDTH, 2 * contact.ROW_HEIGHT)


def test_the_clip_is_prepared_and_says_where_the_listener_stops(mined):
    from difflistener.basis import LandmarkBasis
    from difflistener.clip import Clip

    out, _ = mined
    row = table.read_rows(out / "segments.csv")[0]
    clip = Clip.open(out / "clips" / row.name)
    assert clip.num_frames == round((row.stop - row.start) * 25)
    assert clip.basis == LandmarkBasis.load(out / "basis.safetensors").id
    assert clip.has("speaker", "logmel.npy") and clip.has("speaker", "audio.wav") and clip.has("listener", "mask.npz")
    loud, nod = clip.read("speaker", "logmel")[:, 80:].mean(1), clip.motion().rotation[:, 0]
    at = round((FIRST[0][1] - row.start) * 25)
    assert loud[at - 20 : at - 4].mean() > loud[at + 3 : at + 6].mean() + 0.5
    assert abs(int(np.argmax(nod)) - round((NOD + 0.3 - row.start) * 25)) <= 4
    last = clip.read_json("listener", "last_motion.json")
    np.testing.assert_allclose(last["motion"], clip.motion().values[-1], atol=1e-6)
    assert len(last["motion"]) == 56 and len(last["eyes"]) == 4
    assert last["frame"] == clip.num_frames - 1 and last["basis"] == clip.basis
    assert last["speaks_after_s"] == pytest.approx(row.answered - row.stop, abs=1e-3)


def test_a_resumed_run_touches_nothing_and_then_does_what_the_table_says(mined, capsys):
    from difflistener.clip import Clip

    out, words = mined
    before = snapshot(out)
    assert run(*words, "--resume") == 0 and snapshot(out) == before
    file = out / "segments.csv"
    rows = table.read_rows(file)
    table.write_rows(file, [replace(rows[0], accept=False), rows[1]])
    assert "(rejected), " in fails(capsys, *words, "--resume") and (out / "clips" / rows[0].name).is_dir()
    table.write_rows(file, [replace(rows[0], accept=False), replace(rows[1], accept=True)])
    assert run(*words, "--resume") == 0
    assert [path.name for path in (out / "clips").iterdir()] == [rows[1].name]
    assert [path.name for path in (out / "rejected").iterdir()] == [rows[0].name]
    other = Clip.open(out / "clips" / rows[1].name)
    assert other.basis == Clip.open(out / "rejected" / rows[0].name).basis
    assert other.read_json("listener", "last_motion.json")["speaks_after_s"] is None
    for name in ("basis.safetensors", "contact.jpg"):
        assert (out / name).stat().st_mtime_ns == before[name][0]
    capsys.readouterr()
    assert run(*words, "--resume", "--reaction", 0.5) == 0
    captured = capsys.readouterr()
    assert "warning: segments are cut again (reaction 5 -> 0.5)" in captured.err and "find faces" not in captured.err
    assert json.loads(captured.out.splitlines()[-1])["kept"] == 2
    assert [row.accept for row in table.read_rows(file)] == [False, True]
    clips = f"clips{os.sep}"
    untouched = {name.removeprefix(clips): entry for name, entry in before.items() if name.startswith(clips)}
    assert snapshot(out / "rejected") == untouched


def test_overwrite_takes_the_place_once_segments_are_found(videos, tmp_path, capsys):
    out = tmp_path / "out"
    words = ["mine", videos / "still.mp4", "--out", out]
    fails(capsys, *words)
    before = snapshot(out)
    (out / "segments.csv").write_text("old")
    assert "one steady face" in fails(capsys, "mine", videos / "one.mp4", *words[2:], "--overwrite")
    assert snapshot(out).keys() == before.keys() | {"segments.csv"} and [path.name for path in tmp_path.iterdir()] == ["out"]
    assert "2 candidates, none is kept" in fails(capsys, "mine", videos / "talk.mp4", *words[2:], "--overwrite", "--reaction", 60)
    assert [path.name for path in tmp_path.iterdir()] == ["out"] and (out / "contact.jpg").is_file()
    assert len(table.read_rows(out / "segments.csv")) == 2
