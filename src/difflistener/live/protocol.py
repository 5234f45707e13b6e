"""What page and server may say to each other on the session's WebSocket, and how much of it: formats, limits, checks.

Text messages are JSON objects with a "type"; binary ones begin with a byte that says what follows, little-endian.

    page -> server   hello {media, page, token, settings}, offer {sdp}, use {media: "socket"}, set {settings ...}, again, clear,
                     shown {number, at, ...}: what the page has measured, once a second, bye
                     1  float64 time, int16 samples of 16 kHz mono sound        (seconds by the page's clock, of the first sample)
                     2  float64 time, a JPEG of the camera
                     4  uint32 number of a frame that the page has shown
    server -> page   welcome {choices, settings, recording, ice, size, sees, limits}, answer {sdp}, media {path}, stats {...},
                     note {text, and of settings, size, sees, again and recording what has changed}, busy {problem, remedy},
                     problem {problem, remedy, fatal}
                     3  uint32 number, float32 age in ms, a JPEG of the listener

Everything that comes in is hostile until it has passed here. Knows nothing of networks; decoding takes a thread's time.
"""

import io
import json
import math
import struct
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from difflistener.brain.config import ATTITUDES

MESSAGE_BYTES = 256 * 1024
"""Largest WebSocket message; a larger one ends the connection."""
TEXT_BYTES = 64 * 1024
SDP_BYTES = 48 * 1024
PICTURE_BYTES = MESSAGE_BYTES - 16
PICTURE_SIDE = (16, 640)
"""Least and most pixels of a camera picture's width and height."""
SOUND_SAMPLES = 16_000 // 4
NAME_LENGTH = 128
TIME_LIMIT = 1e9
MAX_GUIDANCE = 5.0
MAX_SEED = 2**31 - 1

MAX_MEDIA, MAX_CANDIDATES = 2, 40
"""Most media sections (sound, pictures) and ICE candidates of an offer: each costs the server a socket or a packet."""

RATES = {"sound": (2.0, 6.0), "picture": (31.0, 60.0), "seen": (60.0, 120.0), "set": (5.0, 20.0), "again": (2.0, 5.0),
         "clear": (2.0, 5.0), "shown": (4.0, 10.0), "offer": (0.2, 3.0), "use": (0.2, 3.0)}
"""Of each kind of message: how many a second in the long run, and at once. Of sound: seconds."""
REFUSALS = (1.0, 40.0)
"""Refused messages a second, and at once, until the connection is ended."""

HELLO_S, IDLE_S, HEARTBEAT_S, CLOSE_S = 5.0, 60.0, 5.0, 1.0
"""Seconds that a page has to say hello, may send neither sound nor pictures, between pings, and to agree to the end."""
STATS_S = 1.0
"""Between two messages of how it goes."""
WAITING = 32
"""Connections that have not said hello yet."""

CLOSED = {"busy": 4000, "moved": 4001, "idle": 4002, "token": 4003, "hello": 4008, "flood": 1008, "stopped": 1001, "failed": 1011}
"""Why a session was closed -> code of the WebSocket."""


class Refused(Exception):
    """A message that is not taken. `kind` is counted in /stats."""

    def __init__(self, kind: str, problem: str):
        super().__init__(problem)
        self.kind = kind


class Sound(NamedTuple):
    time: float  # seconds by the page's clock
    samples: np.ndarray  # [n] float32, 16 kHz


class Picture(NamedTuple):
    time: float
    jpeg: bytes


class Seen(NamedTuple):
    number: int  # of a frame sent as message 3


# Checks of single values: value -> value, or `Refused`


def _text(limit: int) -> Callable:
    def check(value):
        if not isinstance(value, str) or len(value) > limit:
            raise Refused("message", f"expected text of at most {limit} characters")
        return value

    return check


def _one_of(*choices) -> Callable:
    def check(value):
        if not any(value is choice or (isinstance(value, str) and value == choice) for choice in choices):
            raise Refused("message", f"expected one of {', '.join(map(str, choices))}")
        return value

    return check


def _number(low: float, high: float, *, whole: bool = False, optional: bool = False) -> Callable:
    def check(value):
        if value is None and optional:
            return None
        right = isinstance(value, int) or (isinstance(value, float) and not whole)
        if not right or isinstance(value, bool) or not low <= value <= high:
            raise Refused("message", f"expected a number from {low:g} to {high:g}")
        return value

    return check


SETTINGS = {"body": _text(NAME_LENGTH), "brain": _text(NAME_LENGTH), "attitude": _one_of(None, *ATTITUDES),
            "audio_guidance": _number(0, MAX_GUIDANCE, optional=True), "face_guidance": _number(0, MAX_GUIDANCE, optional=True),
            "seed": _number(0, MAX_SEED, whole=True)}
"""What the page may choose."""

_MEASURED = _number(-TIME_LIMIT, TIME_LIMIT, optional=True)


def _settings(value):
    return _fields(value, SETTINGS, "settings")


MESSAGES = {
    "hello": {"token": _text(NAME_LENGTH), "media": _one_of("auto", "rtc", "socket"), "page": _text(NAME_LENGTH),
              "settings": _settings},
    "offer": {"sdp": _text(SDP_BYTES)},
    "use": {"media": _one_of("socket")},
    "set": SETTINGS,
    "again": {},
    "clear": {},
    "shown": {"number": _number(0, 2**32 - 1, whole=True),
              **dict.fromkeys(("at", "age_ms", "fps", "dropped", "frames", "rtt_ms"), _MEASURED)},
    "bye": {},
}
"""Type of a text message -> its fields and their checks."""
NEEDED = {"offer": ("sdp",), "use": ("media",), "hello": ("media",)}


def read_text(text: str) -> dict[str, Any]:
    """A checked message with its "type". Raises `Refused`."""
    if len(text) > TEXT_BYTES:
        raise Refused("size", f"a text message has {len(text)} characters")
    try:
        message = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise Refused("message", "a text message is not JSON") from error
    kind = message.pop("type", None) if isinstance(message, dict) else None
    if not isinstance(kind, str) or kind not in MESSAGES:
        raise Refused("message", "a text message is no object of a known type")
    checked = _fields(message, MESSAGES[kind], kind)
    for field in NEEDED.get(kind, ()):
        if field not in checked:
            raise Refused("message", f"{kind} lacks {field}")
    return {"type": kind, **checked}


def _fields(values, checks: dict[str, Callable], where: str) -> dict[str, Any]:
    if not isinstance(values, dict) or not values.keys() <= checks.keys():
        raise Refused("message", f"{where} has fields beyond {', '.join(checks) or 'none'}")
    try:
        return {name: checks[name](value) for name, value in values.items()}
    except Refused as error:
        raise Refused(error.kind, f"{where}: {error}") from error


def _no_constant(name: str):
    raise ValueError(f"{name} is not JSON")


def read_binary(data: bytes) -> Sound | Picture | Seen:
    """What a binary message holds. Raises `Refused`."""
    kind = data[:1]
    if kind == b"\x01" and 9 < len(data) <= 9 + 2 * SOUND_SAMPLES and len(data) % 2 == 1:
        return Sound(_time(data), np.frombuffer(data, "<i2", offset=9).astype(np.float32) / np.float32(32768))
    if kind == b"\x02" and 9 < len(data) <= 9 + PICTURE_BYTES:
        return Picture(_time(data), data[9:])
    if kind == b"\x04" and len(data) == 5:
        return Seen(*struct.unpack_from("<I", data, 1))
    raise Refused("message", "a binary message is of no known kind or length")


def _time(data: bytes) -> float:
    (seconds,) = struct.unpack_from("<d", data, 1)
    if not math.isfinite(seconds) or abs(seconds) > TIME_LIMIT:
        raise Refused("message", "the time of a binary message is no time")
    return seconds


def check_sdp(sdp: str) -> None:
    """Refuse an offer that asks for more than one sound and one picture each way."""
    lines = sdp.splitlines()
    media = [line[2:].split(" ")[0] for line in lines if line.startswith("m=")]
    if not 1 <= len(media) <= MAX_MEDIA or len(set(media)) < len(media) or not set(media) <= {"audio", "video"}:
        raise Refused("sdp", "an offer must hold one audio and one video section at most")
    if sum(line.startswith("a=candidate") for line in lines) > MAX_CANDIDATES:
        raise Refused("sdp", "an offer has too many candidates")


def frame_message(number: int, age_ms: float, jpeg: bytes) -> bytes:
    """Binary message 3."""
    return struct.pack("<BIf", 3, number % 2**32, age_ms) + jpeg


# Pictures: both take milliseconds of a CPU


def decode_picture(jpeg: bytes) -> np.ndarray:
    """RGB [H, W, 3] uint8 of a camera's JPEG. Raises `Refused`; nothing larger than the limits is ever decoded."""
    from PIL import Image

    low, high = PICTURE_SIDE
    try:
        image = Image.open(io.BytesIO(jpeg), formats=("JPEG",))
        # A progressive file may hold thousands of passes over the picture; no browser's canvas writes one.
        if not all(low <= side <= high for side in image.size) or image.info.get("progressive"):
            raise Refused("picture", f"a picture of {image.size[0]}x{image.size[1]} is beyond the limits")
        return np.asarray(image.convert("RGB"))
    except Refused:
        raise
    except Exception as error:  # Pillow raises whatever a damaged file leads it to.
        raise Refused("picture", "a picture is no readable JPEG") from error


def encode_picture(picture: np.ndarray, quality: int, is_half: bool = False) -> bytes:
    """JPEG of RGB [H, W, 3] uint8, at half the size if so wanted."""
    from PIL import Image

    image, buffer = Image.fromarray(picture), io.BytesIO()
    (image.reduce(2) if is_half else image).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


class Bucket:
    """Lets through `rate` a second in the long run, `burst` at once."""

    def __init__(self, rate: float, burst: float, clock: Callable[[], float] = time.monotonic):
        self._rate, self._burst, self._clock = rate, burst, clock
        self._left, self._then = burst, clock()

    def take(self, amount: float = 1.0) -> bool:
        """Whether there was room."""
        now = self._clock()
        self._left = min(self._burst, self._left + (now - self._then) * self._rate)
        self._then = now
        if self._left < amount:
            return False
        self._left -= amount
        return True
