"""Media of the live server: WebRTC both ways, the socket without a queue, recording, the page's audio thread, a real listener."""

import asyncio
import contextlib
import dataclasses
import io
import json
import shutil
import subprocess
import time
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from difflistener.clip import Clip
from difflistener.errors import UserError


pytest.importorskip("aiortc", reason="needs aiortc (pip install 'difflistener[live]')")
aiohttp = pytest.importorskip("aiohttp", reason="needs aiohttp (pip install 'difflistener[live]')")

import av  # noqa: E402
from aiortc import MediaStreamTrack, RTCConfiguration, RTCPeerConnection, RTCSessionDescription  # noqa: E402
from live_page import SIZE, FakeChoices, Page, quick_stats, run, serving, until  # noqa: E402, F401

from difflistener.live import protocol, record, server  # noqa: E402
from difflistener.live.choices import Choices, Settings  # noqa: E402
from difflistener.live.protocol import decode_picture  # noqa: E402
from difflistener.live.rtc import Ear, NoJitterBuffer  # noqa: E402
from difflistener.live.window import SLACK_S, Fineness, Window  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread", "quick_stats")


# -------------------------------------------------------------------------------------------------------- WebRTC


class Tone(MediaStreamTrack):
    """A page's microphone: 440 Hz, 20 ms at a time, in real time."""

    kind = "audio"

    def __init__(self):
        super().__init__()
        self.count, self.begun = 0, time.monotonic()

    async def recv(self):
        await asyncio.sleep(max(0, self.begun + self.count / 48_000 - time.monotonic()))
        phase = (self.count + np.arange(960)) * 2 * np.pi * 440 / 48_000
        frame = av.AudioFrame.from_ndarray((np.sin(phase) * 12_000).astype(np.int16)[None], layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 48_000, self.count, Fraction(1, 48_000)
        self.count += 960
        return frame


class Film(MediaStreamTrack):
    """A page's camera: 15 frames a second of one colour."""

    kind = "video"

    def __init__(self):
        super().__init__()
        self.count, self.begun = 0, time.monotonic()

    async def recv(self):
        await asyncio.sleep(max(0, self.begun + self.count / 15 - time.monotonic()))
        frame = av.VideoFrame.from_ndarray(np.full((96, 128, 3), (200, 100, 50), np.uint8), format="rgb24")
        frame.pts, frame.time_base = self.count * 6000, Fraction(1, 90_000)
        self.count += 1
        return frame


@contextlib.asynccontextmanager
async def calling(page, tone=True, film=True):
    """A WebRTC connection to the page's session; yields the times and the pictures that came."""
    peer, came = RTCPeerConnection(RTCConfiguration(iceServers=[])), []
    tasks = []

    async def receive(track):
        with contextlib.suppress(Exception):
            while True:
                frame = await track.recv()
                came.append((time.monotonic(), frame.to_ndarray(format="rgb24")))

    peer.on("track", lambda track: tasks.append(asyncio.create_task(receive(track))))
    peer.addTransceiver(Tone() if tone else "audio", "sendonly")
    peer.addTransceiver(Film() if film else "video", "sendrecv")
    await peer.setLocalDescription(await peer.createOffer())
    await page.send(type="offer", sdp=peer.localDescription.sdp)
    answer = await page.hears("answer")
    await peer.setRemoteDescription(RTCSessionDescription(answer["sdp"], "answer"))
    try:
        assert (await page.hears("media"))["path"] == "rtc"
        yield came
    finally:
        await peer.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def test_sound_and_pictures_go_both_ways_over_webrtc():
    async def conversation():
        choices = FakeChoices()
        async with serving(choices) as client, Page(client, media="auto") as page:
            await page.hears("welcome")
            async with calling(page) as came:
                await page.watch(1.7)
                (listener,) = choices.made
                assert not page.frames
                stats = await page.hears("stats")
                assert stats["path"] == "rtc"
                # What the listener hears is the tone, without holes and in time.
                samples = np.concatenate([samples for _, samples in listener.heard])
                times = np.array([when for when, _ in listener.heard])
                lengths = np.array([len(samples) for _, samples in listener.heard])
                assert len(samples) > 16_000 and np.allclose(np.diff(times), lengths[:-1] / 16_000, atol=1e-6)
                middle = samples[8000:16_000] * np.hanning(8000)
                assert abs(np.abs(np.fft.rfft(middle)).argmax() * 2 - 440) <= 2 and 0.2 < np.abs(samples[8000:]).max() < 0.4
                # What it sees is the film; what the page sees are the listener's frames.
                assert len(listener.seen) > 8 and listener.seen[-1][1].shape == (96, 128, 3)
                assert np.abs(listener.seen[-1][1].mean((0, 1)) - (200, 100, 50)).max() < 8
                assert len(came) > 20 and came[-1][1].shape == (SIZE, SIZE, 3) and came[-1][1].mean() > came[5][1].mean()
        assert not listener.is_open

    run(conversation())


def test_a_call_without_devices_still_shows_the_listener_and_may_fall_back():
    async def conversation():
        choices = FakeChoices()
        async with serving(choices) as client, Page(client, media="auto") as page:
            await page.hears("welcome")
            async with calling(page, tone=False, film=False) as came:
                await page.watch(0.8)
                assert len(came) > 3 and not choices.made[0].heard
                await page.send(type="use", media="socket")
                assert (await page.hears("media"))["path"] == "socket"
                await page.sound(np.zeros(320), 3.0)
                await page.watch(0.4)
                assert len(page.frames) > 4 and choices.made[0].heard[0][0] == 3.0

    run(conversation())


def test_a_call_that_is_cut_off_leaves_nothing():
    async def conversation():
        async with serving() as client, Page(client, media="auto") as page:
            await page.hears("welcome")
            async with calling(page):
                await page.watch(0.3)
                await page.socket.close()
                await until(lambda: not client.house.sessions)

    run(conversation())


def test_a_second_offer_takes_the_place_of_the_first():
    async def conversation():
        async with serving() as client, Page(client, media="auto") as page:
            await page.hears("welcome")
            async with calling(page):
                await page.watch(0.3)
                async with calling(page) as came:
                    await page.watch(0.8)
                    assert len(came) > 3

    run(conversation())


def sound_frame(samples, first, rate=48_000, channels=2):
    layout = "stereo" if channels == 2 else "mono"
    frame = av.AudioFrame.from_ndarray(np.repeat((samples * 32767).astype(np.int16), channels)[None], format="s16", layout=layout)
    frame.sample_rate, frame.pts, frame.time_base = rate, first, Fraction(1, rate)
    return frame


def test_sound_of_any_rate_becomes_16_khz_and_keeps_its_time():
    for rate, channels in ((48_000, 2), (16_000, 1), (44_100, 2)):
        ear, out, size = Ear(), [], rate // 50
        for k in range(50):
            wave = 0.5 * np.sin((k * size + np.arange(size)) * 2 * np.pi * 300 / rate)
            samples, begun = ear.hear(sound_frame(wave, 7 * rate + k * size, rate, channels))
            assert begun == pytest.approx(7 + sum(map(len, out)) / 16_000)
            out.append(samples)
        samples = np.concatenate(out)
        assert 15_900 < len(samples) <= 16_000
        truth = 0.5 * np.sin(np.arange(len(samples)) * 2 * np.pi * 300 / 16_000)
        assert np.abs(samples - truth)[200:].max() < 0.02


def test_a_gap_in_the_sound_shows_in_its_time():
    ear, quiet = Ear(), np.zeros(960)
    assert ear.hear(sound_frame(quiet, 0))[1] == 0
    assert ear.hear(sound_frame(quiet, 960))[1] < 0.02
    assert ear.hear(sound_frame(quiet, 48_000))[1] == 1.0


def test_a_lost_packet_delays_no_other():
    buffer = NoJitterBuffer()
    packet = lambda number: SimpleNamespace(sequence_number=number % 65536, timestamp=number * 960, _data=b"%d" % number)
    passed = [buffer.add(packet(number))[1] for number in (65534, 65535, 65536, 65538, 65537, 65538, 65539)]
    assert [frame and frame.data for frame in passed] == [b"65534", b"65535", b"65536", b"65538", None, None, b"65539"]


# ------------------------------------------------------------------------------------------------ never a queue


def shown_late(trip_s, seconds, capacity_fps=25.0):
    """Send at 25 fps to a page that shows `capacity_fps`, each frame no earlier than `trip_s` after it went.

    Returns each frame's age when it was shown.
    """
    now = [0.0]
    window = Window(lambda: now[0])
    under_way, ages, free_at = [], [], 0.0
    for tick in range(int(seconds * 25)):
        now[0] = tick / 25
        while under_way and under_way[0][1] <= now[0]:
            number, at = under_way.pop(0)
            real, now[0] = now[0], at
            window.seen(number)
            now[0] = real
            ages.append(at - number / 25)
        if window.has_room():
            window.sent(tick)
            free_at = max(free_at + 1 / capacity_fps, now[0] + trip_s)
            under_way.append((tick, free_at))
    return ages


def test_no_more_frames_are_under_way_than_the_way_takes():
    for trip_s in (0.02, 0.3):
        ages = shown_late(trip_s, 20)
        assert len(ages) > 0.95 * 500 - 10 and max(ages) < trip_s + 0.05
    ages = shown_late(0.05, 60, capacity_fps=8.0)
    assert len(ages) > 420 and max(ages[20:]) < 0.05 + 2 / 8 + SLACK_S and np.median(ages[-100:]) < 0.4


def test_pictures_become_coarser_where_the_way_is_full_and_fine_again():
    fineness = Fineness()
    seen = []
    for _ in range(60):
        fineness.skipped()
        seen.append((fineness.is_half, fineness.quality))
    assert seen[0] == (False, 85) and seen[-1] == (True, Fineness.HALF[0])
    assert seen == sorted(seen, key=lambda one: (one[0], -one[1]))
    for _ in range(2000):
        fineness.sent()
    assert (fineness.is_half, fineness.quality) == (False, Fineness.FULL[1])
    picture = np.zeros((64, 48, 3), np.uint8)
    assert [decode_picture(protocol.encode_picture(picture, 80, half)).shape for half in (False, True)] == [(64, 48, 3), (32, 24, 3)]


def test_a_page_that_never_tells_is_sent_a_frame_now_and_then():
    now = [0.0]
    window, sent = Window(lambda: now[0]), []
    for tick in range(250):
        now[0] = tick / 25
        if window.has_room():
            window.sent(tick)
            sent.append(tick)
    assert 8 <= len([tick for tick in sent if tick > 25]) <= 10


def test_a_page_that_reads_late_is_shown_the_newest():
    async def conversation():
        async with serving() as client, Page(client) as page:
            await page.hears("media")
            await page.watch(0.4)
            await asyncio.sleep(1.2)
            behind = page.frames[-1][0]
            await page.watch(0.6)
            numbers = [number for number, _, _ in page.frames if number > behind]
            waited = [number for number in numbers if number < behind + 29]
            assert len(waited) < 18 and numbers[-1] > behind + 32
            assert (await page.hears("stats"))["skipped"] > 10

    run(conversation())


# --------------------------------------------------------------------------------------------------- recording


def test_a_conversation_is_recorded_as_a_clip(tmp_path):
    wave = np.round(np.sin(np.arange(64_000) / 9) * 9000) / 32767

    async def conversation():
        async with serving(record=tmp_path) as client, Page(client) as page:
            assert (await page.hears("welcome"))["recording"] and (await (await client.get("/about")).json())["recording"]
            for start in range(0, len(wave), 3200):
                await page.sound(wave[start : start + 3200], start / 16_000)
            assert (await page.hears("stats"))["recording"]

    run(conversation())
    (folder,) = tmp_path.iterdir()
    clip = Clip.open(folder)
    assert clip.num_frames == 100 and clip.basis == "x" and sorted(path.name for path in folder.rglob("*") if path.is_file()) == [
        "audio.wav", "clip.json", "expression.npy", "motion.npy", "valid.npy", "valid.npy"]
    from difflistener.media import load_audio

    assert np.abs(load_audio(clip.file("speaker", "audio.wav")) - wave).max() < 1e-4
    assert clip.read("speaker", "valid").dtype == bool and clip.motion().valid.all()


def test_a_full_disk_ends_the_recording_and_not_the_conversation(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(record.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 90, 10))

    async def conversation():
        async with serving(record=tmp_path) as client, Page(client) as page:
            await page.hears("media")
            await page.sound(np.zeros(3200))
            note = await page.hears("note")
            assert note["recording"] is False and "nearly full" in note["text"]
            assert not (await page.hears("stats"))["recording"] and await page.watch(0.2)
            await page.send(type="bye")

    run(conversation())
    assert "Recording has stopped" in capfd.readouterr().err
    assert Clip.open(next(tmp_path.iterdir())).num_frames == 5


def test_a_disk_that_breaks_and_one_that_is_slow_end_the_recording(tmp_path, monkeypatch):
    hop = SimpleNamespace(samples=np.zeros(640, np.float32), expression=np.zeros((1, 50)), seen=np.zeros(1, bool), motion=np.zeros((1, 56)))
    reasons = []
    recorder = record.Recorder(tmp_path / "slow", "x", None, {}, reasons.append)
    monkeypatch.setattr(record.Recorder, "is_recording", property(lambda self: True))
    monkeypatch.setattr(recorder._hops, "qsize", lambda: record.MAX_WAITING)
    recorder.write(hop)
    recorder.close()
    assert reasons == ["the disk is too slow"]
    monkeypatch.setattr(record, "_stored", lambda name, values: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    recorder = record.Recorder(tmp_path / "broken", "x", None, {}, reasons.append)
    recorder.write(hop)
    recorder.close()
    assert reasons[1:] == ["No space left on device"] and not list((tmp_path / "broken").iterdir())


def test_a_session_that_ends_while_another_body_comes_finishes_both_clips(tmp_path):
    class Slow(FakeChoices):
        def listener(self, settings, record=None):
            time.sleep(0.3 * len(self.made))
            return super().listener(settings, record)

    async def conversation():
        choices = Slow()
        async with serving(choices, record=tmp_path) as client, Page(client) as page:
            await page.hears("media")
            await page.sound(np.zeros(3200))
            await page.send(type="set", body="bob")
            await page.watch(0.15)
            (session,) = client.house.sessions.values()
            assert len(choices.made) == 1
            session.end("moved")
            assert await page.closes() == protocol.CLOSED["moved"]
            await until(session.closed.is_set)
            assert [listener.is_open for listener in choices.made] == [False, False]

    run(conversation())
    assert [Clip.open(folder).num_frames for folder in tmp_path.iterdir()] == [5]


def test_a_conversation_without_a_word_leaves_no_clip(tmp_path):
    async def conversation():
        async with serving(record=tmp_path) as client, Page(client) as page:
            await page.hears("welcome")

    run(conversation())
    assert not list(tmp_path.iterdir())


# -------------------------------------------------------------------------------------------- with a real listener


@pytest.fixture(scope="module")
def real_choices():
    """An untrained brain that hears log-mel, and an egg of 32 pixels."""
    from test_brain import make_brain

    from difflistener.bench import synthetic_body
    from difflistener.brain.model import Brain
    from difflistener.prepare.audio import make_encoder

    encoder = make_encoder("logmel")
    settings = json.loads(json.dumps(encoder.settings()))
    brain = make_brain(block=2, history=12, context=9)
    config = dataclasses.replace(brain.config, audio_dim=encoder.dim, audio_settings=settings, basis="landmark:synthetic", num_steps=2)
    return Choices({"egg": synthetic_body(300, 48)}, {"brain": Brain(config).eval()})


def test_a_real_listener_listens_over_the_socket(real_choices):
    async def conversation():
        async with serving(real_choices) as client, Page(client) as page:
            await page.hears("media")
            noise = np.random.default_rng(0).normal(size=48_000) * 0.1
            begun = time.monotonic()
            for k in range(100):
                await page.sound(noise[k * 320 : k * 320 + 320], k / 50)
                await page.watch(begun + (k + 1) / 50 - time.monotonic())
            stats = await page.hears("stats")
            assert len(page.frames) > 35 and stats["delay_ms"]["p50"] < 300 and stats["talking"] and stats["audio_dropped_s"] == 0
            assert np.asarray(Image.open(io.BytesIO(page.frames[-1][2]))).shape == (48, 48, 3)

    run(conversation())


def test_a_real_listener_listens_over_webrtc(real_choices):
    async def conversation():
        async with serving(real_choices) as client, Page(client, media="auto") as page:
            await page.hears("welcome")
            async with calling(page, film=False) as came:
                await page.watch(2.0)
                stats = await page.hears("stats")
                assert len(came) > 25 and stats["delay_ms"]["p50"] < 400 and stats["talking"]
                assert came[-1][1].shape == (48, 48, 3)

    run(conversation())


def test_choices_must_fit_each_other(real_choices):
    from difflistener.bench import synthetic_body

    other = synthetic_body(50, 16)
    other.config = SimpleNamespace(basis="landmark:other", width=16, height=16)
    with pytest.raises(UserError, match="speaks basis"):
        Choices({**real_choices.bodies, "other": other}, real_choices.brains)
    with pytest.raises(UserError, match="no body 'x'"):
        real_choices.listener(Settings("x", "brain"))
    assert real_choices.still("egg").shape == (48, 48, 3) and real_choices.first() == Settings("egg", "brain")


# ------------------------------------------------------------------------------------------------ the audio thread


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
@pytest.mark.parametrize("rate", [48_000, 44_100, 16_000, 96_000])
def test_the_worklet_makes_packets_of_16_khz(rate, tmp_path):
    script = tmp_path / "drive.mjs"
    script.write_text("""
        const sent = [];
        globalThis.sampleRate = Number(process.argv[2]);
        globalThis.AudioWorkletProcessor = class { constructor() { this.port = { postMessage: (m) => sent.push(m) }; } };
        globalThis.registerProcessor = (_, Ear) => { globalThis.ear = new Ear(); };
        await import(process.argv[3]);
        ear.port.onmessage({ data: { sending: true } });
        for (let k = 0; k * 128 < sampleRate; k++) {
          const block = Float32Array.from({ length: 128 }, (_, i) => Math.sin(2 * Math.PI * 440 * (k * 128 + i) / sampleRate) / 2
            + Math.sin(2 * Math.PI * 9000 * (k * 128 + i) / sampleRate) / 4);
          ear.process([[block, block]]);
        }
        const packets = sent.filter((m) => m.packet);
        const samples = packets.flatMap((m) => [...m.packet]), levels = sent.filter((m) => m.level).map((m) => m.level);
        console.log(JSON.stringify({ times: packets.map((m) => m.seconds), samples, levels }));
    """)
    worklet = tmp_path / "worklet.mjs"
    worklet.write_text((server.WEB / "audio-worklet.js").read_text())
    ran = subprocess.run(["node", script, str(rate), worklet.as_uri()], capture_output=True, text=True, check=True, timeout=20)
    out = json.loads(ran.stdout)
    samples = np.array(out["samples"]) / 32767
    assert len(samples) >= 15_600 and np.allclose(out["times"], np.arange(len(out["times"])) * 0.02)
    assert np.allclose(out["levels"], np.sqrt(0.125 + 0.03125), atol=0.01)
    # The tone comes through, and what lies above 8 kHz is gone rather than folded down.
    part = samples[1000:9000]
    time_s = np.arange(8000) / 16_000
    fit = np.linalg.lstsq(np.stack([np.sin(2 * np.pi * 440 * time_s), np.cos(2 * np.pi * 440 * time_s)], 1), part, rcond=None)
    assert np.hypot(*fit[0]) == pytest.approx(0.5, abs=0.01) and fit[1][0] / 8000 < (1e-4 if rate > 16_000 else 0.04)
