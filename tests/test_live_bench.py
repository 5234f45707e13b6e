"""`bench live`: what it makes of its measurements, with made-up ones whose answer is known, and one short run of everything."""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from live_checkpoints import write_checkpoints

pytest.importorskip("aiohttp")
pytest.importorskip("aiortc")

from difflistener.errors import UserError  # noqa: E402
from difflistener.live import bench_live, bench_media, bench_processes, bench_report  # noqa: E402
from difflistener.live.bench_config import LiveBench  # noqa: E402
from difflistener.live.bench_figures import (  # noqa: E402
    REACTION_S, STILL_DEGREES, align, contrast, energy, growth, is_speech, lag, level, longest_gap, longest_still, reaction,
)
from difflistener.live.bench_media import FILM_FPS, at_rate, draw_person, merge, write_media  # noqa: E402
from difflistener.live.bench_processes import cpu_seconds, machine_seconds, members, memory_mb  # noqa: E402
from difflistener.live.browser import NAMES  # noqa: E402
from difflistener.motion import FPS, ROTATION  # noqa: E402
from difflistener.toy.codes import coloured  # noqa: E402

SECONDS = 600


def noise(*key):
    return np.random.default_rng(key)


# Memory


def test_growth_is_that_of_the_trend_whatever_the_start_and_the_spikes_are():
    times = np.arange(0, 600.0)
    flat = 500 + noise(1).normal(0, 2, 600)
    flat[times < 60] -= 150 * np.exp(-times[times < 60] / 15)
    assert abs(growth(times, flat)) < 1
    flat[::37] += 300
    assert abs(growth(times, flat)) < 1.5
    assert growth(times, flat + 0.05 * times) == pytest.approx(0.05 * 539, abs=1.5)
    assert growth(times, flat - 0.05 * times) == pytest.approx(-0.05 * 539, abs=1.5)


def test_growth_is_not_told_from_less_than_a_minute():
    assert growth(np.arange(110.0), np.arange(110.0)) is None
    assert growth(np.arange(121.0), np.arange(121.0)) == pytest.approx(60)
    assert growth(np.zeros(0), np.zeros(0)) is None


# Schedule


def test_turns_and_silence_are_where_the_person_speaks_and_waits():
    person = draw_person()
    assert person.period == 40 and len(person.sound) == 40 * 16_000 and len(person.controls) == 40 * FPS
    loudness = level(person.sound)
    waits = np.ones(len(loudness), bool)
    for start, end in person.turns:
        waits[int(start * FPS) : round(end * FPS) + 1] = False
    assert loudness[~waits].mean() > 8 * loudness[waits].max() > 0
    assert (person.turns[1:, 0] - person.turns[:-1, 1]).min() >= 2 and len(person.turns) >= 2
    speech = is_speech(person.turns, len(loudness))
    assert 0.3 < speech.mean() < 0.8 and set(person.turns[:, 1]) <= set(person.phrase_ends)
    assert np.array_equal(draw_person().sound, person.sound) and not np.array_equal(draw_person(seed=5).sound, person.sound)
    assert (person.controls.brow == person.controls.brow[0]).all() and person.controls.mouth_open.max() > 0.3


def test_phrases_make_turns():
    assert merge(np.array([[1, 2], [3, 4], [7, 8], [9.9, 10]]), 2.0).tolist() == [[1, 4], [7, 10]]
    assert merge(np.zeros((0, 2)), 2.0).shape == (0, 2)


def test_speech_lasts_until_a_reaction_to_it_is_over():
    speech = is_speech(np.array([[1.0, 2.0], [9.0, 9.5]]), 10 * FPS)
    expected = np.zeros(10 * FPS, bool)
    expected[FPS : round((2 + REACTION_S) * FPS)] = True
    expected[9 * FPS :] = True
    expected[: round((9.5 + REACTION_S - 10) * FPS)] = True
    assert np.array_equal(speech, expected)


def test_what_was_heard_is_laid_on_what_was_said():
    said = level(draw_person().sound)
    heard = np.tile(said, 4)[137:]
    # Half a second is lost and the loudness drifts, as the browser's gain control makes it.
    heard = np.delete(heard, np.arange(1500, 1512)) * np.linspace(0.5, 2, len(heard) - 12) + noise(2).uniform(0, 0.003, len(heard) - 12)
    places, score = align(heard, said)
    true = np.delete((137 + np.arange(4 * 1000 - 137)) % 1000, np.arange(1500, 1512))
    off = np.abs((places - true + 500) % 1000 - 500)
    assert score > 0.85 and np.median(off) <= 1 and off[:1000].max() <= 1 and off[-900:].max() <= 1
    places, score = align(heard[:200], said)
    assert np.abs(places - true[:200]).max() <= 1
    assert align(noise(3).uniform(0, 0.1, 2000), said)[1] < 0.3


def test_a_face_keeps_its_time_at_another_rate():
    controls = draw_person(8.0).controls
    film = at_rate(controls, FILM_FPS)
    assert len(film) == 8 * FILM_FPS and np.allclose(film.rotation[::6], controls.rotation[::5], atol=1e-6)
    assert film.gaze.shape == (8 * FILM_FPS, 2) and np.allclose(film.mouth_open[6:12].mean(), controls.mouth_open[5:10].mean(), atol=0.1)


def test_the_film_shows_a_face_and_the_wave_is_whole(tmp_path):
    from difflistener.media import load_audio

    person = draw_person(1.0)
    wave, film = write_media(person, tmp_path)
    assert np.abs(load_audio(wave) - person.sound).max() < 1e-3
    data = film.read_bytes()
    assert data.count(b"\xff\xd8\xff") == FILM_FPS == data.count(b"\xff\xd9\xff\xd8") + 1
    tracker = pytest.importorskip("difflistener.prepare.landmarks")
    pytest.importorskip("mediapipe")
    import io

    from PIL import Image

    with tracker.FaceTracker() as track:
        assert track.push(np.array(Image.open(io.BytesIO(data)))).shape == (478, 3)


# Motion


def listener_motion(seconds, speech, gain, seed):
    """Motion [T, 56] whose speed is `gain` times as large in speech."""
    steps = coloured(seconds * FPS, 56, 0.3, noise(seed)) * np.where(speech, gain, 1)[:, None]
    return np.cumsum(steps, 0) * 0.01


def schedule(seconds):
    person = draw_person()
    return np.tile(is_speech(person.turns, 1000), seconds // 40)


def test_motion_that_differs_in_speech_is_told_from_motion_that_does_not():
    speech = schedule(SECONDS)
    test = lambda motion, seed: contrast(energy(motion), speech[1:], noise(seed))
    livelier, calmer = (test(listener_motion(SECONDS, speech, gain, 7), 1) for gain in (1.3, 1 / 1.3))
    assert livelier.p < 0.001 > calmer.p and livelier.ratio > 1.4 and calmer.ratio < 0.75
    assert livelier.speech == livelier.silence == 45
    same = [test(listener_motion(SECONDS, speech, 1.0, seed), seed).p for seed in range(40)]
    assert np.mean(np.array(same) < 0.1) < 0.25 and 0.3 < np.mean(same) < 0.7


def test_slow_moods_are_not_taken_for_reactions():
    """Frames of one stretch are alike: a test that took them for independent would find something everywhere."""
    speech = schedule(SECONDS)
    found = []
    for seed in range(20):
        mood = np.exp(coloured(SECONDS * FPS, 1, 2.0, noise(seed, 1))[:, 0])
        found.append(contrast(mood, speech, noise(seed)).p)
    assert np.mean(np.array(found) < 0.01) <= 0.1


def test_a_few_stretches_of_speech_are_no_test():
    speech = schedule(80)
    assert contrast(energy(listener_motion(80, speech, 5.0, 1)), speech[1:], noise(0)) is None
    speech = schedule(160)
    assert contrast(energy(listener_motion(160, speech, 5.0, 1)), speech[1:], noise(0)).p < 0.01
    assert contrast(np.ones(200), np.ones(200, bool), noise(0)) is None


def test_head_and_face_count_alike():
    motion = np.zeros((101, 56))
    motion[:, 0], motion[:, 51] = np.arange(101) * 100, np.arange(101) % 2 * 0.01
    assert energy(motion) == pytest.approx(np.ones(100))
    motion[:, 53:] = noise(1).normal(size=(101, 3))
    assert energy(motion) == pytest.approx(np.ones(100))


def test_a_head_is_still_while_it_stays_in_a_small_range():
    t = np.arange(0, 20, 1 / FPS)
    swaying = np.stack([0.05 * np.sin(t), 0.03 * np.cos(2 * t), 0 * t], 1)
    assert longest_still(swaying) < 1.0
    held = swaying.copy()
    held[100:200] = held[100]
    # Trembling by less than is seen does not make a head lively.
    held += np.radians(STILL_DEGREES) * noise(1).uniform(-0.3, 0.3, held.shape)
    assert 3.9 < longest_still(held) < 4.6
    slow = np.stack([np.radians(0.2) * t, 0 * t, 0 * t], 1)
    assert longest_still(slow) == pytest.approx(STILL_DEGREES / 0.2, abs=0.09)
    assert longest_still(np.zeros((50, 3))) == pytest.approx(49 / FPS) and longest_still(np.zeros((1, 3))) == 0


def test_the_longest_gap_between_frames():
    assert longest_gap(np.array([0, 0.04, 0.5, 0.54])) == pytest.approx(0.46) and longest_gap(np.zeros(1)) == 0


def test_the_time_of_a_reaction_is_found_among_other_motion():
    ends = np.arange(40, SECONDS * FPS - 100, 110)
    course = coloured(SECONDS * FPS, 1, 0.2, noise(4))[:, 0] ** 2
    for end in ends[::2]:
        course[end + 15 : end + 20] += 8
    peak, low, high = reaction(course, ends, noise(5))
    assert peak == pytest.approx(17 / FPS, abs=0.05) and low <= peak <= high < low + 0.3
    assert reaction(course, ends[:4], noise(5)) is None


@pytest.mark.parametrize("delay", [0.0, 0.173, 3.21, -1.4])
def test_two_courses_on_different_clocks_are_laid_over_each_other(delay):
    times = np.arange(0, 60, 1 / FPS)
    values = coloured(len(times), 1, 0.1, noise(6))[:, 0] ** 2
    page = np.sort(noise(7).uniform(5, 55, 50 * 60))
    seen = np.interp(page - delay, times, values) + 0.1 * noise(8).uniform(size=len(page))
    found, score = lag(times, values, page, seen)
    assert found == pytest.approx(delay, abs=0.02) and score > 0.8
    assert lag(times, values, page, noise(9).uniform(size=len(page)))[1] < 0.3
    assert lag(times, values, page, seen, within=(delay + 1, delay + 9))[1] < 0.5
    assert lag(times[:50], values[:50], page, seen) is None


# Processes


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs /proc")
def test_time_and_memory_are_those_of_a_group():
    work = "import time\nheld = bytearray(b'x' * 60_000_000)\nend = time.process_time() + 0.5\nwhile time.process_time() < end: pass\n"
    script = f"import subprocess, sys, time\nchild = subprocess.Popen([sys.executable, '-c', '''{work}time.sleep(60)'''])\ntime.sleep(60)"
    before = machine_seconds()
    process = subprocess.Popen([sys.executable, "-c", script], start_new_session=True)
    try:
        end = time.monotonic() + 20
        while not (cpu_seconds(process.pid) > 0.5 and memory_mb(process.pid) > 60) and time.monotonic() < end:
            time.sleep(0.05)
        assert len(members(process.pid)) == 2
        assert 0.5 < cpu_seconds(process.pid) < 3 and machine_seconds() - before > 0.4 and 65 < memory_mb(process.pid) < 130
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    while members(process.pid) and time.monotonic() < end:
        time.sleep(0.05)
    assert members(process.pid) == [] and cpu_seconds(process.pid) == 0


def test_elsewhere_than_on_linux_nothing_is_measured(monkeypatch, tmp_path):
    monkeypatch.setattr(bench_processes, "PROC", tmp_path / "none")
    assert cpu_seconds(1) is None and memory_mb(1) is None and machine_seconds() is None


# The report


def made_up_run(seconds=300, delay=0.21, kept=0.98, gain=1.5):
    """The course of a run in which each sound takes `delay` to become motion on the page, with a server that drops the rest of
    `kept`, leaks 1 MB a minute and uses half a core; its record, and who spoke."""
    person = draw_person()
    sound = np.tile(person.sound, seconds // 40 + 1)[16_000 * 7 :][: seconds * 16_000]
    speech = is_speech(person.turns, 1000)[(np.arange(seconds * FPS) + 7 * FPS) % 1000]
    motion = listener_motion(seconds, speech, gain, 3).astype(np.float32)
    page = 3.0 + np.arange(0, seconds - 4, 1 / 60)  # seconds by the page's clock, 100 ahead of the record's
    heard = np.interp(page, np.arange(0.005, seconds, 0.01), level(sound, 160))
    shows = np.floor((page - delay) * FPS).astype(int)
    is_new = np.diff(shows, prepend=0) > 0
    turning = (np.diff(motion[:, ROTATION], axis=0) ** 2).sum(1)
    moved = (turning * noise(4).lognormal(0, 1, len(turning)))[np.clip(shows - 1, 0, len(turning) - 1)]
    rows = [[1000 * (100 + t) + 11, h, m if new else None] for t, h, m, new in zip(page, heard, moved, is_new)]
    stage = {"p50": 4.0, "p95": 9.0}
    course = [{"at": float(t), "now": 1000.0 * (103 + t), "state": "listening", "media": "rtc", "frames": 10 + 24 * t, "rtt_ms": 2.0,
               "memory_mb": 400 + t / 60, "server_cpu_s": 0.5 * t, "browser_cpu_s": 0.3 * t, "machine_cpu_s": 1.0 * t,
               "stats": {"frames": round(25 * kept * t), "dropped": round(25 * (1 - kept) * t * 0.75), "skipped": round(25 * (1 - kept) * t / 4),
                         "eased": 0, "silence_filled_s": 0.01 * t, "audio_dropped_s": 0.0, "face_seen": 0.9,
                         "delay_ms": {"p50": 120.0, "p95": 250.0 if t < 70 else 150.0}, "track_ms": {"p50": None, "p95": None},
                         "features_ms": stage, "brain_ms": stage, "body_ms": stage}} for t in range(seconds - 4)]
    video = {"jitterBufferDelay": 50.0, "jitterBufferEmittedCount": 5000, "totalDecodeTime": 10.0, "framesDecoded": 5000}
    probe = {"video": video, "pair": {"currentRoundTripTime": 0.006}, "decode_ms": 0.0}
    return {"seconds": course, "rows": rows, "probe": probe, "server": []}, person, bench_report.Record(sound, motion)


def test_a_run_is_reported_as_it_was(capsys):
    course, person, record = made_up_run()
    found = bench_report.evaluate(course, person, record, hop_ms=80.0, encode_ms=5.0)
    assert found["path"] == "rtc" and found["seconds"] == 295 and found["away_s"] == 0
    assert found["received_fps"] == 24 and found["dropped_percent"] == pytest.approx(2, abs=0.1)
    assert found["delay_p50_ms"] == 120 and found["delay_p95_ms"] == 250 and found["track_p50_ms"] is None
    assert found["total_ms"] == pytest.approx(210 + 20, abs=22)  # Half a frame on average, until it is drawn.
    assert found["jitter_buffer_ms"] == 10 and found["decode_ms"] == 2 and found["network_ms"] == 3
    assert found["rest_ms"] == pytest.approx(found["total_ms"] - 140, abs=0.1) and found["wait_ms"] == 120 - 80 - 12
    assert found["server_cpu_percent"] == 50 and found["browser_cpu_percent"] == 30
    assert found["others_cpu_percent"] == pytest.approx(20) and found["sound_lost_s"] == pytest.approx(2.95)
    assert found["memory_growth_mb"] == pytest.approx(235 / 60, abs=0.1) and found["memory_mb"] == pytest.approx(404.9, abs=0.1)
    assert found["schedule_match"] > 0.99 and found["speech_silence_p"] < 0.01 and found["longest_still_s"] < 2
    assert found["longest_gap_s"] == pytest.approx(0.05, abs=0.01)
    measured = {**found, "cores": 2, "memory_mb": None, "picture_side": 128}
    assert bench_report.unmet(measured) == ["dropped_percent", "delay_p95_ms", "picture_side"]
    bench_report.show(measured)
    lines = capsys.readouterr().out.splitlines()
    assert sum("NOT MET" in line for line in lines) == 3 and len(lines) == len(bench_report.ROWS) + 1


def test_a_page_that_was_away_and_a_deaf_listener_are_seen():
    course, person, record = made_up_run(gain=1.0)
    for one in course["seconds"][100:105]:
        one["state"] = "reconnecting"
    for one in course["seconds"][105:]:
        one["stats"] = {**one["stats"], "frames": one["stats"]["frames"] - 2000, "dropped": 0, "media": "socket"}
    found = bench_report.evaluate(course, person, record, 80.0, 5.0)
    assert found["away_s"] == 5 and 0 < found["dropped_percent"] < 2 and found["speech_silence_p"] > 0.01
    silent = bench_report.evaluate(course, person, record._replace(sound=0 * record.sound), 80.0, 5.0)
    assert silent["speech_silence_p"] is None and silent["total_ms"] is None and silent["rest_ms"] is None


# The whole


needs_browser = pytest.mark.skipif(not any(map(shutil.which, NAMES)), reason="needs Chromium (apt install chromium)")


def with_word(word):
    """Id and command line of the living processes that mention `word`."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if word in line and int(path.parent.name) != os.getpid():
                found[int(path.parent.name)] = line
    return found


@needs_browser
def test_a_conversation_is_held_and_measured(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench_media, "DRAWN_FPS", 5)
    monkeypatch.setattr(bench_live, "WARM_UP_S", 1.0)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    body, brain = write_checkpoints(tmp_path)
    report = bench_live.bench_live(LiveBench(8, "rtc", body, brain, json=tmp_path / "out.json"))
    assert report["path"] == "rtc" and report["away_s"] == 0 and report["picture_side"] == 256
    assert 10 < report["received_fps"] < 27 and 60 < report["delay_p50_ms"] <= report["delay_p95_ms"] < 2000
    assert report["schedule_match"] > 0.8 and report["hop_ms"] == 80
    assert report["memory_mb"] > 100 and report["memory_growth_mb"] is None
    assert report["server_cpu_percent"] > 1 and report["browser_cpu_percent"] > 1 and report["decode_ms"] > 0
    assert report["total_ms"] is None or 80 < report["total_ms"] < 3000
    stored = json.loads((tmp_path / "out.json").read_text())
    assert len(stored["course"]["seconds"]) == 9 and len(stored["course"]["rows"]) > 200
    assert {row[2] is not None for row in stored["course"]["rows"]} == {True, False}
    table = capsys.readouterr().out
    assert all(words in table for words in bench_report.ROWS.values()) and set(report) >= set(bench_report.ROWS)
    assert list(tmp_path.glob("difflistener-*")) == [] and with_word(str(tmp_path)) == {}


@needs_browser
def test_ctrl_c_leaves_nothing(tmp_path):
    body, brain = write_checkpoints(tmp_path)
    environment = os.environ | {"TMPDIR": str(tmp_path), "PYTHONPATH": str(Path(bench_live.__file__).parents[2])}
    command = [sys.executable, "-m", "difflistener", "bench", "live", "--seconds", "5", "--body-checkpoint", body, "--brain-checkpoint", brain]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 60
    is_up = lambda: any("--headless" in line for line in with_word(str(tmp_path)).values())
    while not is_up() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.1)
    groups = {os.getpgid(pid) for pid in with_word(str(tmp_path))} - {os.getpgid(0)}
    assert len(groups) == 2 and all(map(members, groups))  # The server's and the browser's.
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and "interrupted" in errors and "Traceback" not in errors
    assert with_word(str(tmp_path)) == {} and not any(map(members, groups)) and list(tmp_path.glob("difflistener-*")) == []


def test_a_request_to_end_is_ctrl_c():
    ended = []

    async def run():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.sleep(10)
        finally:
            ended.append(True)

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(bench_live._until_told(run))
    assert ended


@needs_browser
def test_a_server_that_does_not_start_says_why(tmp_path, monkeypatch):
    monkeypatch.setattr(bench_media, "DRAWN_FPS", 1)
    body, brain = write_checkpoints(tmp_path)
    (body / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="The server has ended: .*model.safetensors"):
        bench_live.bench_live(LiveBench(seconds=5, body_checkpoint=body, brain_checkpoint=brain))


@pytest.mark.parametrize("wrong", [{"seconds": 1.0}, {"json": Path(".")}])
def test_settings_that_measure_nothing_are_refused(wrong):
    with pytest.raises(UserError):
        bench_live.bench_live(LiveBench(**wrong))
