"""Sound and pictures over WebRTC: what the page sends goes to a listener's ears and eyes, what the listener shows to the page.

Nothing waits for its turn here: of the listener's frames only the newest is kept for the encoder, of the camera's only the
newest for the tracker, and a packet of sound is passed on when it comes. Knows nothing of listeners, sessions or messages.
"""

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import Executor
from fractions import Fraction

import av
import numpy as np
from aiortc import MediaStreamError, MediaStreamTrack, RTCConfiguration, RTCIceServer, RTCPeerConnection, RTCSessionDescription
from aiortc.codecs import vpx
from aiortc.jitterbuffer import JitterFrame

from difflistener.errors import UserError
from difflistener.live.protocol import Refused, check_sdp
from difflistener.motion import FPS

SAMPLE_RATE = 16_000
VIDEO_CLOCK = 90_000
MAX_PICTURE_SIDE = 1280
"""Of a camera's picture; a larger one is not looked at."""
SOUND_JUMP = 0.01
"""Seconds that timestamps may be off before the sound is taken up anew."""

# aiortc has no settings for its encoder. Its own, half a megabit to begin with, blur a face for the first seconds.
vpx.DEFAULT_BITRATE, vpx.MAX_BITRATE = 1_200_000, 2_500_000


def read_ice(servers: tuple[str, ...]) -> list[dict]:
    """ICE servers as browsers want them, from stun:HOST:PORT and turn:USER:PASSWORD@HOST:PORT. Raises `UserError`."""
    read = []
    for server in servers:
        scheme, _, rest = server.partition(":")
        who, at, where = rest.rpartition("@")
        name, colon, password = who.partition(":")
        is_turn = scheme in ("turn", "turns")
        if not where or scheme not in ("stun", "turn", "turns") or is_turn != bool(at and colon and name and password):
            raise UserError(f"--ice {server} is no STUN or TURN server.", "Write stun:HOST:PORT or turn:USER:PASSWORD@HOST:PORT.")
        read.append({"urls": f"{scheme}:{where}"} | ({"username": name, "credential": password} if is_turn else {}))
    return read


class ListenerTrack(MediaStreamTrack):
    """The listener's frames for the encoder: always the newest, and none twice."""

    kind = "video"

    def __init__(self):
        super().__init__()
        self.skipped = 0  # frames that were overtaken before they were sent
        self._frame: tuple[int, np.ndarray] | None = None
        self._new = asyncio.Event()

    def show(self, number: int, picture: np.ndarray) -> None:
        """`picture` [H, W, 3] is due at frame `number`, which only grows."""
        self.skipped += self._frame is not None
        self._frame = number, picture
        self._new.set()

    async def recv(self) -> av.VideoFrame:
        """The next frame, for aiortc."""
        await self._new.wait()
        if self.readyState != "live":
            raise MediaStreamError
        (number, picture), self._frame = self._frame, None
        self._new.clear()
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
        frame.pts, frame.time_base = number * VIDEO_CLOCK // FPS, Fraction(1, VIDEO_CLOCK)
        return frame

    def stop(self) -> None:
        super().stop()
        self._new.set()


class Peer:
    """One WebRTC connection.

    Args:
        ice: servers from `read_ice`.
        on_sound: takes (samples [n] float32 of 16 kHz, seconds by the sender's clock).
        on_picture: takes a camera picture [H, W, 3] uint8, in a thread of `threads`.
        on_state: takes "connected", "failed" or "closed".
    """

    def __init__(self, ice: list[dict], threads: Executor, on_sound: Callable, on_picture: Callable, on_state: Callable):
        self.track = ListenerTrack()
        self._threads, self._on_sound, self._on_picture, self._on_state = threads, on_sound, on_picture, on_state
        self._tasks: set[asyncio.Task] = set()
        # Without a list aiortc asks a public STUN server.
        self._connection = RTCPeerConnection(RTCConfiguration(iceServers=[RTCIceServer(**server) for server in ice]))
        self._connection.addTrack(self.track)
        self._connection.on("track", self._receive)
        self._connection.on("connectionstatechange", self._tell_state)

    async def answer(self, sdp: str) -> str:
        """The answer to an offer. Raises `Refused`."""
        check_sdp(sdp)
        try:
            await self._connection.setRemoteDescription(RTCSessionDescription(sdp, "offer"))
            self._pass_sound_on_at_once()
            await self._connection.setLocalDescription(await self._connection.createAnswer())
        except Exception as error:  # aiortc raises whatever a damaged description leads it to.
            raise Refused("sdp", f"the offer cannot be answered ({type(error).__name__}: {error})"[:200]) from error
        return self._connection.localDescription.sdp

    async def close(self) -> None:
        """End the connection, its tasks and its threads."""
        self._connection.remove_all_listeners()
        self.track.stop()
        await self._connection.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _tell_state(self) -> None:
        if self._connection.connectionState in ("connected", "failed", "closed"):
            self._on_state(self._connection.connectionState)

    def _receive(self, track: MediaStreamTrack) -> None:
        task = asyncio.create_task(self._hear(track) if track.kind == "audio" else self._see(track))
        self._tasks.add(task)

    def _pass_sound_on_at_once(self) -> None:
        for transceiver in self._connection.getTransceivers():
            if transceiver.kind == "audio":
                transceiver.receiver._RTCRtpReceiver__jitter_buffer = NoJitterBuffer()

    async def _hear(self, track: MediaStreamTrack) -> None:
        ear = Ear()
        with contextlib.suppress(MediaStreamError):
            while True:
                samples, seconds = ear.hear(await track.recv())
                if len(samples):
                    self._on_sound(samples, seconds)

    async def _see(self, track: MediaStreamTrack) -> None:
        newest, new = None, asyncio.Event()

        async def look() -> None:
            while True:
                await new.wait()
                new.clear()
                await asyncio.get_running_loop().run_in_executor(self._threads, self._look_at, newest)

        looking = asyncio.create_task(look())
        try:
            while True:
                frame = await track.recv()
                if max(frame.width, frame.height) <= MAX_PICTURE_SIDE:
                    newest = frame
                    new.set()
        except MediaStreamError:
            pass
        finally:
            looking.cancel()
            await asyncio.gather(looking, return_exceptions=True)

    def _look_at(self, frame: av.VideoFrame) -> None:
        self._on_picture(frame.to_ndarray(format="rgb24"))


class NoJitterBuffer:
    """Passes each packet of sound on as it comes; one that another has overtaken is lost.

    aiortc's own holds four packets back (80 ms), and after each lost one up to sixteen for good. A listener does not mind
    20 ms of silence, but does mind being late.
    """

    def __init__(self):
        self._last: int | None = None

    def add(self, packet) -> tuple[bool, JitterFrame | None]:
        """Whether a whole picture is wanted (never), and what is complete now."""
        ahead = 1 if self._last is None else (packet.sequence_number - self._last) % 65536
        if not 0 < ahead < 32768:
            return False, None
        self._last = packet.sequence_number
        return False, JitterFrame(packet._data, packet.timestamp)


class Ear:
    """Decoded sound of any rate, with timestamps, to 16 kHz mono."""

    def __init__(self):
        self._resampler = None
        self._form = None
        self._first = 0.0  # seconds of the sender's clock at which the resampler was begun
        self._samples = 0  # what it has given since
        self._end = 0.0  # of what it was given

    def hear(self, frame: av.AudioFrame) -> tuple[np.ndarray, float]:
        """Samples [n] float32, and when by the sender's clock, in seconds, the first of them was heard."""
        form, start = (frame.format.name, frame.layout.name, frame.sample_rate), float(frame.pts * frame.time_base)
        if form != self._form or abs(start - self._end) > SOUND_JUMP:
            # Integers, as from files: of floats, FFmpeg's mix of two channels is louder than each.
            self._resampler = av.AudioResampler(format="s16", layout="mono", rate=SAMPLE_RATE)
            self._form, self._first, self._samples, self._end = form, start, 0, start
        self._end += frame.samples / frame.sample_rate
        frame.pts = None  # The resampler is one unbroken run.
        pieces = [piece.to_ndarray()[0] for piece in self._resampler.resample(frame)]
        samples = np.concatenate([np.zeros(0, np.int16), *pieces]).astype(np.float32) / np.float32(32768)
        begun = self._first + self._samples / SAMPLE_RATE
        self._samples += len(samples)
        return samples, begun
