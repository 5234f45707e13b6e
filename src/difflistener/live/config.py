"""Settings of `difflistener live`. Imports nothing heavy, so that help is instant."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class Live:
    """Talk, and a head in the browser listens: it nods, smiles with you and stays attentive. Needs no GPU.

    Example: difflistener live, then open http://127.0.0.1:8080
    From another machine: ssh -L 8080:localhost:8080 HOST, then open http://localhost:8080 there.
    """

    body_checkpoint: tuple[Path, ...] = ()
    """Folders of bodies; the page offers them all, and begins with the first. Default: the one that comes with the package."""
    brain_checkpoint: tuple[Path, ...] = ()
    """Folders of brains, likewise. Only brains of network dit listen live."""
    port: int = 8080
    """Port to serve at."""
    host: str = "127.0.0.1"
    """Address to serve at. Another than this machine's own (127.0.0.1) needs --token, and https in front for the microphone."""
    token: str | None = None
    """Secret that the page's address must carry, as ?token=TOKEN; at least 8 characters."""
    ice: tuple[str, ...] = ()
    """Servers that help WebRTC through firewalls: stun:HOST:PORT or turn:USER:PASSWORD@HOST:PORT. Without any, and where
    WebRTC finds no way, sound and pictures go through the page's own connection."""
    sessions: int = 1
    """How many people may talk at once; each has a listener and takes about one CPU core."""
    record: Path | None = None
    """Folder for a clip of each conversation: the speaker's sound and expression codes, and the listener's motion, no
    pictures. The page says that it is recorded. Without this nothing is stored."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute."""
