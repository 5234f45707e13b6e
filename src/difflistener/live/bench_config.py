"""Settings of `difflistener bench live`. Imports nothing heavy, so that help is instant."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class LiveBench:
    """Measure `difflistener live` whole: a real server, and a real browser with a made-up microphone and camera.

    Example: difflistener bench live --seconds 600. Needs Chromium; nothing else should run meanwhile.
    """

    seconds: float = 600.0
    """How long to talk and listen. Growth of memory and the motion need at least two minutes."""
    media: Literal["auto", "rtc", "socket"] = "auto"
    """Way of sound and pictures: WebRTC, the page's WebSocket, or what the page chooses."""
    body_checkpoint: Path | None = None
    """Folder of the body. Default: the one that comes with the package."""
    brain_checkpoint: Path | None = None
    """Folder of the brain. Default: the one that comes with the package."""
    size: tuple[int, int] = (1280, 800)
    """Width and height of the browser's window."""
    json: Path | None = None
    """File for all figures, the course of each second included."""
