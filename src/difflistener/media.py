"""Reads and writes pictures and sound, all through PyAV. Arrays in, arrays out.

Knows nothing of faces, features or clips. Axes: T frames at 25 fps, H, W; sound is float32 [n], mono, 16 kHz.

One clock for both streams of a file: time zero is the first picture or the first sample, whichever is
presented first. Sound that precedes the first picture by at most 0.1 s is encoder run-in and is cut, so that
picture 0 of a 25 fps file is frame 0. Before its first picture a file shows that picture; before its first
sample it is silent.

Frame k of a read is the source picture whose timestamp, rounded to the 25 fps grid, is the last one at or
before k: every change of picture lands within half a frame (20 ms) of its timestamp, and a 25 fps file is
passed through unchanged whatever the jitter of its timestamps.
"""

import contextlib
import errno
import math
import os
import struct
import warnings
import wave
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.sidedata.sidedata import Type as SideDataType
from av.video.reformatter import Interpolation, VideoReformatter

from difflistener.errors import UserError
from difflistener.motion import FPS

SAMPLE_RATE = 16_000
SAMPLES_PER_FRAME = SAMPLE_RATE // FPS

VIDEO_ENCODERS = ("libx264", "libopenh264", "mpeg4")
"""Best first; PyAV's own wheels carry libx264, a system FFmpeg may not."""

_RUN_IN = Fraction(1, 10)
_SOUND_TOLERANCE = Fraction(1, 2 * FPS)
_EXACT = Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
_ITU709 = 1
_UNSPECIFIED = 2


def num_frames(duration_s: float) -> int:
    """How many 25 fps frames a duration in seconds has: the nearest whole number, halves up."""
    return math.floor(Fraction(duration_s) * FPS + Fraction(1, 2))


# ---------------------------------------------------------------------------------------------------- opening


@dataclass(frozen=True)
class MediaInfo:
    path: Path
    width: int
    """Pixels as shown: after rotation and with square pixels. 0 without pictures."""
    height: int
    duration_s: float
    """As the container states it, from time zero; scanned where it states nothing. What a read gives is exact."""
    fps: float
    """Nominal rate of the source. 0 without pictures or where it is not known."""
    has_video: bool
    has_audio: bool
    rotation: int
    """Degrees clockwise by which the stored pictures are turned to be upright: 0, 90, 180 or 270."""
    codec: str
    """FFmpeg's name of the picture codec, of the sound codec where there are no pictures."""


@dataclass(frozen=True)
class _Source:
    path: Path
    zero: Fraction
    video: int | None
    """Stream index; None without pictures (a cover image is none)."""
    audio: int | None
    first_picture: Fraction | None
    """Container time. None where no picture can be decoded."""
    stored_size: tuple[int, int]
    """Width, height with square pixels, before `matrix`."""
    matrix: tuple[int, int, int, int]
    """Signs a, b, c, d of the display matrix: shown x = a x + c y, shown y = b x + d y."""


def probe(path: str | Path) -> MediaInfo:
    """What a media file holds. UserError for anything that is not one."""
    source = _inspect(path)
    with _open(source.path) as container:
        index = source.video if source.video is not None else source.audio
        stream = container.streams[index]
        if container.duration is None:
            end = max(
                ((packet.pts + (packet.duration or 0)) * packet.time_base
                 for packet in container.demux(stream) if packet.pts is not None),
                default=source.zero,
            )
        else:
            end = Fraction((container.start_time or 0) + container.duration, av.time_base)
        fps = (stream.average_rate or stream.guessed_rate or 0) if source.video is not None else 0
        width, height = source.stored_size
        a, b, c, d = source.matrix
        return MediaInfo(
            path=source.path,
            width=height if a == 0 else width,
            height=width if a == 0 else height,
            duration_s=float(max(end - source.zero, 0)),
            fps=float(fps),
            has_video=source.video is not None,
            has_audio=source.audio is not None,
            rotation=round(math.degrees(math.atan2(b, a))) % 360,
            codec=stream.codec_context.name,
        )


def _open(path: Path):
    if not path.exists():
        raise UserError(f"{path} does not exist.", "Check the name and the folder.")
    if path.is_dir():
        raise UserError(f"{path} is a folder, not a media file.", "Name one video or sound file.")
    if path.stat().st_size == 0:
        raise UserError(f"{path} is empty (0 bytes).", "Copy or record it again.")
    try:
        # Tags in old encodings are common and irrelevant here.
        return av.open(str(path), metadata_errors="replace")
    except av.error.FFmpegError as error:
        raise UserError(
            f"{path} cannot be read as video or sound ({error.strerror}).",
            "Check that it plays in a media player. A recording that was cut off may have lost its index: "
            "record it again, or repair it.",
        ) from error


def _inspect(path: str | Path) -> _Source:
    """Finds the streams and decodes the first picture and the first sound, which alone say when they start."""
    path = Path(path)
    with _open(path) as container:
        cover = av.stream.Disposition.attached_pic
        videos = [s for s in container.streams.video if not s.disposition & cover]
        video = container.streams.best("video")
        if video is None or video.disposition & cover:
            video = videos[0] if videos else None
        audio = container.streams.best("audio")
        if video is None and audio is None:
            raise UserError(f"{path} holds neither pictures nor sound.", "Name a video or a sound file.")
        first: dict[int, tuple[Fraction, object]] = {}
        wanted = [s for s in (video, audio) if s is not None]
        with contextlib.suppress(av.error.FFmpegError):
            for packet in container.demux(wanted):
                if packet.stream.index not in first:
                    with contextlib.suppress(av.error.FFmpegError):
                        for frame in packet.decode()[:1]:
                            pts = frame.pts if frame.pts is not None else frame.dts
                            first[packet.stream.index] = ((pts or 0) * packet.stream.time_base, frame)
                if len(first) == len(wanted):
                    break
                # Sound that is not there a second after the first picture does not decide where zero is.
                if video is not None and video.index in first and packet.pts is not None:
                    if packet.pts * packet.time_base > first[video.index][0] + 1:
                        break
        first_picture, size, matrix = None, (0, 0), (1, 0, 0, 1)
        if video is not None:
            size = (video.codec_context.width, video.codec_context.height)
            if video.index in first:
                first_picture, frame = first[video.index]
                size, matrix = (frame.width, frame.height), _display_matrix(frame)
            aspect = video.sample_aspect_ratio or 1
            size = (max(1, round(size[0] * aspect)), size[1])
        zero = first_picture
        if audio is not None and audio.index in first:
            first_sound = first[audio.index][0]
            if zero is None or first_sound < zero - _RUN_IN:
                zero = first_sound
        return _Source(
            path=path,
            zero=Fraction(zero or 0),
            video=None if video is None else video.index,
            audio=None if audio is None else audio.index,
            first_picture=first_picture,
            stored_size=size,
            matrix=matrix,
        )


def _display_matrix(frame) -> tuple[int, int, int, int]:
    """The quarter turn (and mirror) nearest to FFmpeg's 3x3 fixed-point matrix."""
    data = frame.side_data.get(SideDataType.DISPLAYMATRIX)
    if data is None:
        return 1, 0, 0, 1
    a, b, _, c, d, *_ = struct.unpack("=9i", bytes(data))
    sign = lambda value: 1 if value >= 0 else -1  # noqa: E731
    return (sign(a), 0, 0, sign(d)) if abs(a) >= abs(b) else (0, sign(b), sign(c), 0)


def _decode(container, stream, path: Path) -> Iterator[tuple[object, Fraction, Fraction]]:
    """(frame, start, end) in container time. Damaged pieces and a missing tail are left out, with a warning."""
    kind = "pictures" if stream.type == "video" else "sound"
    damaged, reason = 0, ""
    end = Fraction(0)
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
            if packet is None:
                break
            frames = packet.decode()
        except av.error.FFmpegError as error:
            damaged, reason = damaged + 1, error.strerror
            continue
        for frame in frames:
            pts = frame.pts if frame.pts is not None else frame.dts
            start = end if pts is None else pts * stream.time_base
            if stream.type == "audio":
                length = Fraction(frame.samples, frame.sample_rate)
            elif frame.duration:
                length = frame.duration * stream.time_base
            else:
                length = 1 / Fraction(stream.average_rate or FPS)
            end = start + length
            yield frame, start, end
    if damaged:
        warnings.warn(f"{path}: {damaged} damaged pieces of the {kind} were left out ({reason}).", stacklevel=2)
    stated = _stated_end(stream)
    if 0 < end < stated - 1:
        warnings.warn(
            f"{path}: the {kind} end at {float(end):.2f} s where the file states {float(stated):.2f} s; "
            "it looks cut off. What is there is used.",
            stacklevel=2,
        )


def _stated_end(stream) -> Fraction:
    """Container time at which a stream says it ends; 0 where it does not say."""
    start = (stream.start_time or 0) * stream.time_base
    if stream.duration is not None:
        return start + stream.duration * stream.time_base
    hours, minutes, seconds = stream.metadata.get("DURATION", "0:0:0").split(":")  # how Matroska says it
    return (int(hours) * 60 + int(minutes)) * 60 + Fraction(seconds)


def _check_range(start_s: float, duration_s: float | None) -> None:
    if not (math.isfinite(start_s) and start_s >= 0):
        raise ValueError(f"start_s must be 0 or more seconds, not {start_s}")
    if duration_s is not None and not (math.isfinite(duration_s) and duration_s > 0):
        raise ValueError(f"duration_s must be more than 0 seconds, not {duration_s}")


def _beyond_end(path: Path, start_s: float, what: str, end: Fraction) -> UserError:
    return UserError(
        f"{path}: nothing to read from {start_s:.2f} s on: its {what} at {float(end):.2f} s.",
        "Choose an earlier start.",
    )


# --------------------------------------------------------------------------------------------------- pictures


def read_frames(
    path: str | Path, start_s: float = 0.0, duration_s: float | None = None
) -> Iterator[np.ndarray]:
    """Yields uint8 [H,W,3] RGB, upright, at exactly 25 fps: frame k is what is shown at start_s + k/25.

    Any rate (constant or not), size, codec, quarter turn and pixel shape. Gives `num_frames(duration_s)`
    frames, fewer where the pictures end earlier. Memory does not grow with length. A file that cannot be
    read, or has no pictures, is a UserError at the call; a start beyond the end is one at the first frame.
    """
    _check_range(start_s, duration_s)
    source = _inspect(path)
    if source.video is None:
        raise UserError(f"{source.path} has no pictures, only sound.", "Name a video file.")
    if source.first_picture is None:
        raise UserError(
            f"{source.path}: none of its pictures can be decoded.",
            "Check that it plays in a media player; convert it to H.264 in mp4.",
        )
    return _frames(source, start_s, duration_s)


def _frames(source: _Source, start_s: float, duration_s: float | None) -> Iterator[np.ndarray]:
    origin = source.zero + _seconds(start_s)
    limit = math.inf if duration_s is None else num_frames(duration_s)
    to_picture = _PictureConverter(source)
    held = picture = None
    count, end = 0, origin
    for frame, start, end in _decode_video_from(source, origin):
        first = _grid(start - origin)
        while held is not None and count < min(first, limit):
            picture = to_picture(held) if picture is None else picture.copy()
            yield picture
            count += 1
        if count >= limit:
            return
        held, picture = frame, None
    # A picture that ends on the same grid point where it starts still counts: a still image is one frame.
    last = max(_grid(end - origin), 1 if start_s == 0 else 0)
    if last <= 0:
        raise _beyond_end(source.path, start_s, "pictures end", end - source.zero)
    while held is not None and count < min(last, limit):
        picture = to_picture(held) if picture is None else picture.copy()
        yield picture
        count += 1


def _seconds(value: float) -> Fraction:
    # 0.04 is meant as 1/25, not as its binary neighbour, which would fall on the other side of a grid point.
    return Fraction(value).limit_denominator(1_000_000)


def _grid(seconds: Fraction) -> int:
    return math.floor(seconds * FPS + Fraction(1, 2))


def _decode_video_from(source: _Source, origin: Fraction) -> Iterator[tuple[object, Fraction, Fraction]]:
    """All pictures from the one shown at `origin` or an earlier one on."""
    seeks = [] if origin <= source.first_picture else [0, 5, 30]
    for back in [*seeks, None]:
        with _open(source.path) as container:
            stream = container.streams[source.video]
            stream.thread_type = "AUTO"
            if back is not None:
                try:
                    container.seek(math.floor((origin - back) / stream.time_base), stream=stream)
                except av.error.FFmpegError:
                    continue
            pictures = _decode(container, stream, source.path)
            # Indices are approximate in some containers: a seek that lands too late is tried further back.
            first = next(pictures, None)
            if back is not None and (first is None or _grid(first[1] - origin) > 0):
                pictures.close()
                continue
            if first is not None:
                yield first
                yield from pictures
            return


class _PictureConverter:
    """PyAV frame -> uint8 [H,W,3] RGB, upright, in the size of the first picture (live recordings change it)."""

    def __init__(self, source: _Source):
        self._size = source.stored_size
        self._matrix = source.matrix
        self._reformatter = VideoReformatter()

    def __call__(self, frame) -> np.ndarray:
        width, height = self._size
        # Untagged video is BT.601 below 720 lines and BT.709 from there on, as players assume.
        untagged_hd = frame.colorspace == _UNSPECIFIED and frame.height >= 720 and "yuv" in frame.format.name
        image = self._reformatter.reformat(
            frame, width, height, "rgb24",
            src_colorspace="itu709" if untagged_hd else None, interpolation=_EXACT,
        ).to_ndarray()
        a, b, c, d = self._matrix
        if a == 0:
            image = image.transpose(1, 0, 2)
        x, y = (a, d) if a else (c, b)
        return np.ascontiguousarray(image[::y, ::x])


# ------------------------------------------------------------------------------------------------------ sound


def read_audio(
    path: str | Path, start_s: float = 0.0, duration_s: float | None = None
) -> Iterator[np.ndarray]:
    """Yields float32 [n] pieces, mono, 16 kHz, within -1..1: sample i is what sounds at start_s + i/16000.

    Channels are mixed without gaining level. Values are whole multiples of 2**-15, so that a 16-bit wav holds
    them exactly. Silence is inserted where the stream starts late or has a gap and an overlap is cut, as soon
    as the sound would be more than 20 ms off its timestamps. Always decoded from the beginning, which is
    cheap: any part equals the same part of the whole, bit for bit. Stops where the sound stops. A file that
    cannot be read, or has no sound, is a UserError at the call; a start beyond the end is one at the first
    piece.
    """
    _check_range(start_s, duration_s)
    source = _inspect(path)
    if source.audio is None:
        raise UserError(f"{source.path} has no sound.", "Name a file with a sound track.")
    return _sound(source, start_s, duration_s)


def load_audio(path: str | Path, start_s: float = 0.0, duration_s: float | None = None) -> np.ndarray:
    """`read_audio` in one array float32 [n]."""
    return np.concatenate(list(read_audio(path, start_s, duration_s)))


def write_wav(path: Path, samples: np.ndarray) -> None:
    """Write samples [N] within -1..1 (beyond, they are clipped) as a 16 kHz mono wave file of 16 bits."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes((np.clip(samples, -1, 1) * 32767).round().astype("<i2").tobytes())


def _sound(source: _Source, start_s: float, duration_s: float | None) -> Iterator[np.ndarray]:
    start = position = round(_seconds(start_s) * SAMPLE_RATE)
    stop = math.inf if duration_s is None else start + round(_seconds(duration_s) * SAMPLE_RATE)
    end = 0
    for at, samples in _placed_sound(source):
        if len(samples) == 0:
            continue
        end = at + len(samples)
        if end <= position:
            continue
        while position < min(at, stop):
            silence = np.zeros(min(at - position, stop - position, SAMPLE_RATE), np.float32)
            yield silence
            position += len(silence)
        piece = samples[max(position - at, 0) : max(min(stop, end) - at, 0)]
        if len(piece):
            yield piece.astype(np.float32) / np.float32(32768)
            position += len(piece)
        if position >= stop:
            return
    if position == start:
        if end == 0:
            raise UserError(
                f"{source.path}: none of its sound can be decoded.",
                "Check that it plays in a media player; convert it to wav.",
            )
        raise _beyond_end(source.path, start_s, "sound ends", Fraction(end, SAMPLE_RATE))


def _placed_sound(source: _Source) -> Iterator[tuple[int, np.ndarray]]:
    """(position in samples from time zero, int16 [n]): unbroken runs, each placed by its first timestamp."""
    with _open(source.path) as container:
        stream = container.streams[source.audio]
        # The mp4 family alone states to the sample where the sound ends and the encoder's padding begins.
        stated_end = math.inf
        if "mp4" in container.format.name and stream.duration:
            stated_end = round((_stated_end(stream) - source.zero) * SAMPLE_RATE)
        resampler = form = None
        run_end = Fraction(0)
        at = 0
        for frame, start, end in _decode(container, stream, source.path):
            this_form = (frame.format.name, frame.layout.name, frame.sample_rate)
            if form != this_form or abs(start - run_end) > _SOUND_TOLERANCE:
                if resampler is not None:
                    yield at, _int16(resampler.resample(None))
                resampler = av.AudioResampler(format="s16", layout="mono", rate=SAMPLE_RATE)
                form, run_end = this_form, start
                at = round((start - source.zero) * SAMPLE_RATE)
            run_end += end - start
            frame.pts = None  # the run is placed as a whole
            samples = _int16(resampler.resample(frame))
            yield at, samples[: max(min(len(samples), stated_end - at), 0)]
            at += len(samples)
        if resampler is not None:
            samples = _int16(resampler.resample(None))
            yield at, samples[: max(min(len(samples), stated_end - at), 0)]


def _int16(frames) -> np.ndarray:
    return np.concatenate([np.zeros(0, np.int16), *(frame.to_ndarray()[0] for frame in frames)])


# ---------------------------------------------------------------------------------------------------- writing


class VideoWriter:
    """Writes H.264 (yuv420p, BT.709) and AAC into an mp4 that can be played while it loads. A context manager.

    Frames go straight to the encoder: memory does not grow with length as long as sound and pictures are
    written in step. An odd width or height is made even by repeating the last column or row. The sound gets
    exactly the length of the pictures: missing sound is silence, sound beyond the last frame is dropped, both
    with a warning from one frame on. The file is written under a temporary name beside `path` and renamed at
    the end; after an exception the temporary is removed and whatever was at `path` is untouched.

    crf: constant rate factor of x264, 0 (lossless) to 51; 18 looks like the original.
    """

    def __init__(
        self, path: str | Path, width: int, height: int, audio: bool = False, fps: float = FPS, crf: int = 18
    ):
        self.path = Path(path)
        self.width, self.height = width, height
        self.num_frames = 0
        self._fps = _seconds(fps)
        self._audio = None
        self._waiting = np.zeros(0, np.float32)
        self._samples = 0
        if self.path.is_dir():
            raise UserError(f"{self.path} is a folder.", "Name the mp4 file to write.")
        if not self.path.parent.is_dir():
            raise UserError(f"The folder {self.path.parent} does not exist.", "Create it, or choose another.")
        self._temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.part")
        self._reformatter = VideoReformatter()
        with self._errors():
            self._container = av.open(
                str(self._temporary), "w", format="mp4", options={"movflags": "+faststart"}
            )
        self._open_video(crf)
        if audio:
            self._audio = self._container.add_stream("aac", rate=SAMPLE_RATE, layout="mono")
            self._audio.bit_rate = 64_000

    def _open_video(self, crf: int) -> None:
        available = [name for name in VIDEO_ENCODERS if name in av.codecs_available]
        if not available:
            self._discard()
            raise UserError(
                "This PyAV has no H.264 or MPEG-4 encoder.",
                "Reinstall PyAV from its wheel: pip install --force-reinstall av",
            )
        name = available[0]
        stream = self._video = self._container.add_stream(name, rate=self._fps)
        stream.width, stream.height = self.width + self.width % 2, self.height + self.height % 2
        stream.pix_fmt = "yuv420p"
        context = stream.codec_context
        context.colorspace = context.color_primaries = context.color_trc = _ITU709
        context.color_range = 1
        if name == "libx264":
            stream.options = {"crf": str(crf)}
        else:
            stream.bit_rate = int(stream.width * stream.height * self._fps / 5)
            warnings.warn(
                f"libx264 is missing: {self.path.name} is encoded by {name}, crf is ignored.", stacklevel=3
            )

    def write_frame(self, frame: np.ndarray) -> None:
        """frame: uint8 [H,W,3] RGB."""
        if frame.shape != (self.height, self.width, 3) or frame.dtype != np.uint8:
            raise ValueError(
                f"frame {self.num_frames} is {frame.dtype} {list(frame.shape)}, "
                f"expected uint8 {[self.height, self.width, 3]}"
            )
        if self.width % 2 or self.height % 2:
            frame = np.pad(frame, ((0, self.height % 2), (0, self.width % 2), (0, 0)), mode="edge")
        picture = self._reformatter.reformat(
            av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24"),
            format="yuv420p", dst_colorspace="itu709", interpolation=_EXACT,
        )
        picture.pts, picture.time_base = self.num_frames, 1 / self._fps
        with self._errors():
            self._container.mux(self._video.encode(picture))
        self.num_frames += 1
        self._encode_sound()

    def write_audio(self, samples: np.ndarray) -> None:
        """samples: float32 [n], mono, 16 kHz, clipped to -1..1. What runs ahead of the pictures waits."""
        if self._audio is None:
            raise ValueError("this VideoWriter was opened without audio=True")
        samples = np.asarray(samples, np.float32)
        if samples.ndim != 1:
            raise ValueError(f"samples is {list(samples.shape)}, expected [n]")
        bad = np.flatnonzero(~np.isfinite(samples))
        if len(bad):
            time = (self._samples + len(self._waiting) + bad[0]) / SAMPLE_RATE
            raise ValueError(f"the sound at {time:.3f} s is {samples[bad[0]]}")
        self._waiting = np.concatenate([self._waiting, samples])
        self._encode_sound()

    def _encode_sound(self) -> None:
        if self._audio is None:
            return
        ready = self._sound_length() - self._samples
        samples, self._waiting = self._waiting[:ready], self._waiting[ready:]
        if len(samples) == 0:
            return
        sound = av.AudioFrame.from_ndarray(np.clip(samples, -1, 1)[None], format="fltp", layout="mono")
        sound.sample_rate = SAMPLE_RATE
        sound.pts, sound.time_base = self._samples, Fraction(1, SAMPLE_RATE)
        with self._errors():
            self._container.mux(self._audio.encode(sound))
        self._samples += len(samples)

    def _sound_length(self) -> int:
        return round(self.num_frames * SAMPLE_RATE / self._fps)

    def __enter__(self) -> "VideoWriter":
        return self

    def __exit__(self, kind, error, trace) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            self._discard()

    def _finish(self) -> None:
        if self.num_frames == 0:
            raise ValueError(f"no frame was written to {self.path}")
        if self._audio is not None:
            missing = self._sound_length() - self._samples
            frame = SAMPLE_RATE / self._fps
            if missing >= frame or len(self._waiting) >= frame:
                what = f"is {missing / SAMPLE_RATE:.2f} s shorter" if missing else (
                    f"was {len(self._waiting) / SAMPLE_RATE:.2f} s longer")
                warnings.warn(f"{self.path}: the sound {what} than the pictures; made equal.", stacklevel=3)
            self._waiting = np.zeros(missing, np.float32)
            self._encode_sound()
        with self._errors():
            for stream in self._container.streams:
                self._container.mux(stream.encode(None))
            self._container.close()
            os.replace(self._temporary, self.path)

    def _discard(self) -> None:
        # After a failure closing writes a trailer that may fail as well; the file is thrown away anyhow.
        with contextlib.suppress(OSError, ValueError, av.error.FFmpegError):
            self._container.close()
        self._temporary.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _errors(self):
        try:
            yield
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise UserError(
                    f"The disk is full: {self.path} was not written ({error.strerror}).",
                    "Free some space, or write to another disk, and run it again.",
                ) from error
            raise UserError(
                f"{self.path} cannot be written ({error.strerror}).", "Choose another place."
            ) from error
