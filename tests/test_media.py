"""Sync, ranges, memory, round trips and bad inputs. Every file is made here: flashes and clicks at known times."""

import bisect
import math
import tracemalloc
import warnings
from fractions import Fraction

import av
import numpy as np
import pytest

from difflistener import media
from difflistener.errors import UserError

HALF_FRAME = 0.02
FLASH = Fraction(1, 4)


def steady(rate, seconds, start=0):
    return [Fraction(start) + k / Fraction(rate) for k in range(round(seconds * Fraction(rate)))]


def variable(seconds, seed=0):
    """Timestamps 15 to 60 times a second, on a millisecond grid as webm and mkv store them."""
    rng = np.random.default_rng(seed)
    times = np.concatenate([[0], np.cumsum(rng.integers(16, 67, size=int(seconds * 60)))])
    return [Fraction(int(t), 1000) for t in times[times < seconds * 1000]]


def make(path, times, codec="libx264", sound="aac", sound_rate=16_000, sound_start=0, layout="mono",
         shade=None, gap=None):
    """A black video that turns white once a second, off the 25 fps grid, with a click at each flash.

    Returns the flash times: the timestamps of the first white pictures. shade(k) replaces the flashes.
    gap = (from, to) seconds without sound packets.
    """
    rate = Fraction(len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 else Fraction(25)
    seconds = math.ceil(times[-1] + Fraction(1, 60))
    wanted = [second + Fraction(second * 37 % 100, 250) for second in range(max(1, math.ceil(times[0])), seconds)]
    flashes = [times[bisect.bisect_left(times, moment)] for moment in wanted if moment <= times[-1]]
    with av.open(str(path), "w") as container:
        video = container.add_stream(codec, rate=rate.limit_denominator(1001))
        video.width, video.height = 64, 48
        video.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        tick = Fraction(1, 1000) if codec == "mpeg4" else Fraction(1, 90_000)
        video.codec_context.time_base = 1 / rate if str(path).endswith("avi") else tick
        if codec == "libx264":
            video.options = {"preset": "ultrafast", "bf": "2", "g": "50"}
        if codec.startswith("libvpx"):
            video.options = {"deadline": "realtime", "cpu-used": "8", "lag-in-frames": "0"}
        audio = container.add_stream(sound, rate=sound_rate, layout=layout) if sound else None
        clicks = np.zeros(seconds * sound_rate, np.float32)
        for flash in flashes:
            clicks[round(flash * sound_rate) :][: sound_rate // 200] = 0.9
        written = round(sound_start * sound_rate)

        def write_sound(until):
            nonlocal written
            while written < min(until * sound_rate, len(clicks)):
                block = clicks[written : written + sound_rate // 20]
                if gap is None or not gap[0] <= written / sound_rate < gap[1]:
                    frame = av.AudioFrame.from_ndarray(
                        np.repeat(block[None], 2 if layout == "stereo" else 1, 0), format="fltp", layout=layout)
                    frame.sample_rate, frame.pts, frame.time_base = sound_rate, written, Fraction(1, sound_rate)
                    if sound.startswith("pcm"):
                        frame = av.AudioResampler(format="s16", layout=layout, rate=sound_rate).resample(frame)[0]
                    container.mux(audio.encode(frame))
                written += len(block)

        ready = {}
        for k, time in enumerate(times):
            if shade:
                value = shade(k)
            else:
                second = max(0, math.floor(time) - max(1, math.ceil(times[0])))
                value = 255 * any(f <= time < f + FLASH for f in flashes[max(0, second - 1) : second + 1])
            if value not in ready:
                picture = np.full((48, 64, 3), value, np.uint8)
                ready[value] = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=video.pix_fmt)
            frame = ready[value]
            base = video.codec_context.time_base
            frame.pts, frame.time_base = round(time / base), base
            container.mux(video.encode(frame))
            if audio:
                write_sound(time)
        if audio:
            write_sound(seconds)
        for stream in container.streams:
            container.mux(stream.encode(None))
    return flashes


def onsets(path):
    """Seconds at which the picture turns white and at which the sound starts, as our readers see them."""
    white = np.array([frame.mean() > 128 for frame in media.read_frames(path)])
    loud = np.abs(np.concatenate(list(media.read_audio(path)))) > 0.3
    clicks = np.flatnonzero(loud)
    clicks = clicks[np.diff(clicks, prepend=-10_000) > 8000]
    return (np.flatnonzero(white[1:] & ~white[:-1]) + 1) / 25, clicks / 16_000


def assert_in_sync(path, flashes, zero=0.0):
    pictures, clicks = onsets(path)
    truth = np.array([float(f) for f in flashes]) - zero
    assert len(pictures) == len(clicks) == len(truth)
    assert np.abs(pictures - truth).max() <= HALF_FRAME + 0.001  # a millisecond for containers that round to it
    assert np.abs(clicks - truth).max() <= 0.004


TEN_MINUTES = {
    "29.97": (Fraction(30000, 1001), "mkv"),
    "variable": (None, "mkv"),
}


@pytest.mark.parametrize("name", TEN_MINUTES)
def test_sync_over_ten_minutes(tmp_path, name):
    rate, extension = TEN_MINUTES[name]
    path = tmp_path / f"long.{extension}"
    times = steady(rate, 600) if rate else variable(600)
    flashes = make(path, times)
    assert len(flashes) >= 598
    assert_in_sync(path, flashes)


CASES = {
    "23.976 h264 mp4": (Fraction(24000, 1001), "mp4", "libx264", "aac", 48_000),
    "24 h264 mp4": (24, "mp4", "libx264", "aac", 16_000),
    "25 h264 ts": (25, "ts", "libx264", "aac", 48_000),
    "30 vp8 webm": (30, "webm", "libvpx", "libopus", 48_000),
    "30 vp9 webm": (30, "webm", "libvpx-vp9", "libopus", 48_000),
    "29.97 mjpeg mov": (Fraction(30000, 1001), "mov", "mjpeg", "pcm_s16le", 44_100),
    "60 h264 mov": (60, "mov", "libx264", "aac", 48_000),
    "50 mpeg4 mp4": (50, "mp4", "mpeg4", "aac", 44_100),
    "25 mpeg4 avi": (25, "avi", "mpeg4", "pcm_s16le", 44_100),
    "variable vp8 webm": (None, "webm", "libvpx", "libopus", 48_000),
}


@pytest.mark.parametrize("name", CASES)
def test_sync_and_seeks_of_containers_and_codecs(tmp_path, name):
    rate, extension, codec, sound, sound_rate = CASES[name]
    path = tmp_path / f"a.{extension}"
    times = steady(rate, 12) if rate else variable(12)
    flashes = make(path, times, codec, sound, sound_rate=sound_rate)
    assert_in_sync(path, flashes)
    whole = list(media.read_frames(path))
    assert abs(len(whole) - 300) <= (0 if rate else 2)
    for start in (0.04, 0.2, 4.96, 8.0, 11.0):
        part = list(media.read_frames(path, start, 0.4))
        assert len(part) == 10
        first = round(start * 25)
        assert all(np.array_equal(a, b) for a, b in zip(part, whole[first : first + 10], strict=True)), start
    sound = media.load_audio(path)
    assert abs(len(sound) - 192_000) <= 1100  # AAC pads its last block where the container does not say so
    assert np.array_equal(media.load_audio(path, 4.9, 0.3), sound[78_400:83_200])
    info = media.probe(path)
    assert info.has_video and info.has_audio and (info.width, info.height) == (64, 48)
    assert abs(info.duration_s - 12) < 0.1
    assert rate is None or abs(info.fps - float(rate)) < 0.1


def test_frame_numbers_survive_unchanged_at_25_fps_and_are_the_nearest_at_others(tmp_path):
    path = tmp_path / "a.mp4"
    shades = [int(20 + 200 * ((k * 37) % 11) / 10) for k in range(100)]
    make(path, steady(25, 4), sound=None, shade=lambda k: shades[k])
    assert [round(f.mean()) for f in media.read_frames(path)] == pytest.approx(shades, abs=2)
    make(path, steady(50, 4), sound=None, shade=lambda k: shades[k // 2])
    assert [round(f.mean()) for f in media.read_frames(path)] == pytest.approx(shades, abs=2)
    make(path, steady(Fraction(25, 2), 4), sound=None, shade=lambda k: shades[k])
    assert [round(f.mean()) for f in media.read_frames(path)] == pytest.approx(np.repeat(shades[:50], 2), abs=2)


def test_start_between_frames_and_a_duration_beyond_the_end(tmp_path):
    path = tmp_path / "a.mp4"
    make(path, steady(25, 2), shade=lambda k: 5 * k)
    assert [round(f.mean() / 5) for f in media.read_frames(path, 1.03, 0.12)] == [26, 27, 28]
    assert len(list(media.read_frames(path, 1.0, 60.0))) == 25
    assert len(media.load_audio(path, 1.0, 60.0)) == 16_000


@pytest.mark.parametrize("late", [0.5, 2.25])
def test_sound_that_starts_later_is_preceded_by_silence(tmp_path, late):
    path = tmp_path / "a.mkv"
    flashes = make(path, steady(30, 6), sound_start=late)
    pictures, clicks = onsets(path)
    heard = [float(f) for f in flashes if f > late]
    assert np.abs(pictures - [float(f) for f in flashes]).max() <= HALF_FRAME + 0.001
    assert np.abs(clicks - heard).max() <= 0.004
    assert not media.load_audio(path)[: int(late * 16_000) - 200].any()


def test_pictures_that_start_later_show_the_first_one_until_then(tmp_path):
    path = tmp_path / "a.mkv"
    flashes = make(path, steady(25, 5, start=Fraction(3, 2)))
    assert_in_sync(path, flashes)
    assert len(list(media.read_frames(path))) == media.num_frames(6.5)


def test_a_gap_in_the_sound_is_silence(tmp_path):
    path = tmp_path / "a.mkv"
    flashes = make(path, steady(25, 8), gap=(3.2, 4.8), sound="pcm_s16le")
    _, clicks = onsets(path)
    kept = [float(f) for f in flashes if not 3.2 <= f < 4.8]
    assert len(clicks) == len(kept) and np.abs(clicks - kept).max() <= 0.004


def test_stereo_is_mixed_without_gaining_level(tmp_path):
    for layout in ("mono", "stereo"):
        (flash,) = make(tmp_path / "a.mkv", steady(25, 2), sound="pcm_s16le", layout=layout, sound_rate=48_000)
        click = round(flash * 16_000)
        assert np.abs(media.load_audio(tmp_path / "a.mkv")[click + 20 : click + 60]).mean() == pytest.approx(0.9, abs=0.05)


@pytest.mark.parametrize("hflip", [False, True])
@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_rotated_and_mirrored_pictures_are_upright(tmp_path, degrees, hflip):
    path = tmp_path / "phone.mp4"
    stored = np.zeros((48, 64, 3), np.uint8)
    stored[:24, :32], stored[:24, 32:], stored[24:, :32] = (250, 0, 0), (0, 250, 0), (0, 0, 250)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.set_display_rotation(degrees, hflip=hflip)
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(stored, format="rgb24")))
        container.mux(stream.encode(None))
    shown = np.rot90(stored, degrees // 90)
    shown = shown[:, ::-1] if hflip else shown
    frame = next(media.read_frames(path))
    assert frame.shape == shown.shape and frame.flags.c_contiguous
    # Chroma is stored at half resolution: compare the middle of each quarter.
    h, w = shown.shape[0] // 4, shown.shape[1] // 4
    for y in (h, 3 * h):
        for x in (w, 3 * w):
            assert np.abs(frame[y, x].astype(int) - shown[y, x]).max() < 12
    info = media.probe(path)
    assert (info.height, info.width) == shown.shape[:2]
    if not hflip:
        assert info.rotation == -degrees % 360


def test_pixels_that_are_not_square_are_stretched(tmp_path):
    path = tmp_path / "dv.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(3, 2)
        container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")))
        container.mux(stream.encode(None))
    assert next(media.read_frames(path)).shape == (48, 96, 3)
    assert media.probe(path).width == 96


def write_talk(path, frames, width=64, height=48):
    """A flash and a click every second, written in step."""
    with media.VideoWriter(path, width, height, audio=True) as writer:
        for k in range(frames):
            writer.write_frame(np.full((height, width, 3), 255 if k % 25 == 12 else 10, np.uint8))
            block = np.zeros(640, np.float32)
            block[: 80 if k % 25 == 12 else 0] = 0.9
            writer.write_audio(block)


def test_writer_round_trip_is_in_sync(tmp_path):
    path = tmp_path / "out.mp4"
    write_talk(path, 250)
    pictures, clicks = onsets(path)
    assert np.array_equal(pictures, (np.arange(10) * 25 + 12) / 25)
    assert np.abs(clicks - pictures).max() <= 1 / 16_000
    assert len(list(media.read_frames(path))) == 250 and len(media.load_audio(path)) == 160_000
    assert [p.name for p in tmp_path.iterdir()] == ["out.mp4"]
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")  # faststart
    with av.open(str(path)) as container:
        order = [(p.pos, p.stream.type, float(p.pts * p.time_base)) for p in container.demux() if p.pts is not None]
    order.sort()
    seen = {"video": 0.0, "audio": 0.0}
    for _, kind, time in order:
        seen[kind] = time
        assert abs(seen["video"] - seen["audio"]) < 1.5  # x264 looks ahead 40 frames


def test_writer_keeps_colours_and_makes_odd_sizes_even(tmp_path):
    path = tmp_path / "out.mp4"
    frame = np.zeros((47, 61, 3), np.uint8)
    frame[:, :20], frame[:, 20:40], frame[:, 40:] = (200, 30, 30), (30, 200, 30), (30, 30, 200)
    with media.VideoWriter(path, 61, 47, crf=1) as writer:
        for _ in range(5):
            writer.write_frame(frame)
    back = list(media.read_frames(path))
    assert len(back) == 5 and back[0].shape == (48, 62, 3)
    for x in (10, 30, 50, 61):
        assert np.abs(back[0][[24, 47], x].astype(int) - frame[24, min(x, 60)]).max() <= 4
    assert not media.probe(path).has_audio


@pytest.mark.parametrize("sound_s, message", [(0.5, "0.50 s shorter"), (2.0, "1.00 s longer")])
def test_writer_gives_the_sound_the_length_of_the_pictures(tmp_path, sound_s, message):
    path = tmp_path / "out.mp4"
    with pytest.warns(UserWarning, match=message):
        with media.VideoWriter(path, 64, 48, audio=True) as writer:
            writer.write_audio(np.zeros(int(sound_s * 16_000), np.float32))
            for _ in range(25):
                writer.write_frame(np.zeros((48, 64, 3), np.uint8))
    assert len(media.load_audio(path)) == 16_000


def test_writer_falls_back_to_another_encoder(tmp_path, monkeypatch):
    monkeypatch.setattr(media, "VIDEO_ENCODERS", ("an-encoder-nobody-has", "mpeg4"))
    with pytest.warns(UserWarning, match="encoded by mpeg4"):
        write_talk(tmp_path / "out.mp4", 25)
    assert media.probe(tmp_path / "out.mp4").codec == "mpeg4"
    assert len(list(media.read_frames(tmp_path / "out.mp4"))) == 25


def test_an_exception_leaves_the_old_file_and_no_temporary(tmp_path):
    path = tmp_path / "out.mp4"
    path.write_bytes(b"the old one")
    with pytest.raises(KeyboardInterrupt):
        with media.VideoWriter(path, 64, 48, audio=True) as writer:
            writer.write_frame(np.zeros((48, 64, 3), np.uint8))
            raise KeyboardInterrupt
    assert path.read_bytes() == b"the old one" and len(list(tmp_path.iterdir())) == 1


def test_a_full_disk_is_a_user_error_and_leaves_the_old_file(tmp_path):
    import resource
    import signal

    path = tmp_path / "out.mp4"
    path.write_bytes(b"the old one")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))  # the kernel then refuses to write, as when full
    noise = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    try:
        with pytest.raises(UserError, match="disk is full"):
            with media.VideoWriter(path, 64, 48, crf=1) as writer:
                for k in range(200):
                    writer.write_frame(np.roll(noise, k * 7, 1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == b"the old one" and len(list(tmp_path.iterdir())) == 1


def test_writer_refuses_what_it_cannot_write(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        media.VideoWriter(tmp_path / "no" / "out.mp4", 64, 48)
    with pytest.raises(ValueError, match="frame 0"):
        with media.VideoWriter(tmp_path / "out.mp4", 64, 48) as writer:
            writer.write_frame(np.zeros((64, 48, 3), np.uint8))
    with pytest.raises(ValueError, match="0.040 s is nan"):
        with media.VideoWriter(tmp_path / "out.mp4", 64, 48, audio=True) as writer:
            writer.write_audio(np.zeros(640))
            writer.write_audio(np.array([np.nan]))
    with pytest.raises(ValueError, match="no frame"):
        with media.VideoWriter(tmp_path / "out.mp4", 64, 48):
            pass
    assert not list(tmp_path.iterdir())


def resident_mib():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * 4096 / 2**20


def test_memory_does_not_grow_with_length(tmp_path):
    def copy(seconds):
        path, out = tmp_path / f"{seconds}.mp4", tmp_path / f"{seconds}.out.mp4"
        make(path, steady(25, seconds))
        before = resident_mib()
        tracemalloc.start()
        highest = before
        with media.VideoWriter(out, 64, 48, audio=True) as writer:
            sound = media.read_audio(path)
            for k, frame in enumerate(media.read_frames(path)):
                writer.write_frame(frame)
                while writer._samples + len(writer._waiting) < writer.num_frames * 640:
                    writer.write_audio(next(sound))
                if k % 500 == 0:
                    highest = max(highest, resident_mib())
        python = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return python, highest - before

    copy(10)  # code and pools that are loaded once
    short_python, _ = copy(30)
    long_python, long_resident = copy(180)
    assert long_python < short_python + 200_000  # the frames of 180 s would be 41 MB
    assert long_resident < 20


def test_a_still_image_is_one_frame_and_sound_alone_has_none(tmp_path):
    from PIL import Image

    Image.new("RGB", (33, 21), (200, 100, 50)).save(tmp_path / "face.png")
    frames = list(media.read_frames(tmp_path / "face.png"))
    assert len(frames) == 1 and frames[0].shape == (21, 33, 3) and tuple(frames[0][0, 0]) == (200, 100, 50)
    make(tmp_path / "a.mp4", steady(25, 2), sound=None)
    with pytest.raises(UserError, match="has no sound"):
        media.read_audio(tmp_path / "a.mp4")


def test_bad_inputs_are_user_errors(tmp_path):
    def raises(match, path, **kwargs):
        for read in (media.read_frames, media.read_audio, lambda p: media.probe(p)):
            with pytest.raises(UserError, match=match):
                read(path, **kwargs)

    raises("does not exist", tmp_path / "nothing.mp4")
    raises("is a folder", tmp_path)
    (tmp_path / "empty.mp4").write_bytes(b"")
    raises("is empty", tmp_path / "empty.mp4")
    (tmp_path / "text.mp4").write_text("This is not a video.\n" * 200)
    raises("cannot be read", tmp_path / "text.mp4")
    path = tmp_path / "a.mp4"
    make(path, steady(25, 4))
    (tmp_path / "headless.mp4").write_bytes(path.read_bytes()[: path.stat().st_size // 2])  # its index is at the end
    raises("cannot be read", tmp_path / "headless.mp4")
    with pytest.raises(UserError, match="nothing to read from 9.00 s"):
        next(media.read_frames(path, 9.0))
    with pytest.raises(UserError, match="nothing to read from 9.00 s"):
        next(media.read_audio(path, 9.0))
    with pytest.raises(ValueError, match="start_s"):
        media.read_frames(path, -1.0)
    wav = tmp_path / "a.wav"
    with av.open(str(wav), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.full((1, 8000), 8192, np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(UserError, match="no pictures"):
        media.read_frames(wav)
    assert len(media.load_audio(wav)) == 16_000 and media.load_audio(wav)[8000] == 0.25
    info = media.probe(wav)
    assert (info.has_video, info.width, info.codec, info.duration_s) == (False, 0, "pcm_s16le", 1.0)


def test_a_truncated_file_gives_what_is_there_with_a_warning(tmp_path):
    path = tmp_path / "a.mp4"
    write_talk(path, 250)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 6 // 10])
    with pytest.warns(UserWarning, match="looks cut off"):
        frames = list(media.read_frames(path))
    assert 50 < len(frames) < 225
    with pytest.warns(UserWarning, match="looks cut off"):
        sound = media.load_audio(path)
    assert 32_000 < len(sound) < 144_000
    path.write_bytes(data[: data.index(b"mdat") + 8])
    with pytest.raises(UserError, match="none of its pictures"):
        media.read_frames(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(UserError, match="none of its sound"):
            media.load_audio(path)


def test_num_frames_rounds_halves_up():
    assert [media.num_frames(s) for s in (0, 0.0199, 0.02, 0.04, 1, 10.0, 59.99)] == [0, 0, 1, 1, 25, 250, 1500]
