"""A prepared toy clip, a body and a brain of a few steps, made once for all tests of a run; and the command line in-process."""

import functools
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

from difflistener import cli

SECONDS, SIZE, FRAMES = 6.0, 128, 150


def run(*arguments) -> int:
    """Exit code of one verb."""
    return cli.main([str(argument) for argument in arguments])


def fails(capsys, *arguments) -> str:
    """The two lines of an expected user error."""
    capsys.readouterr()
    code = run(*arguments)
    lines = [line for line in capsys.readouterr().err.splitlines() if " in " not in line or not line.endswith("/s")]
    assert code == 1 and len(lines) == 2 and lines[0].startswith("error: ") and lines[1], (code, lines)
    return "\n".join(lines)


def interrupt(arguments, when, timeout_s: float = 40.0) -> tuple[int, str]:
    """Exit code and stderr of a verb in its own process that gets Ctrl-C as soon as `when()` holds."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(cli.__file__).parents[1])}
    process = subprocess.Popen([sys.executable, "-m", "difflistener", *map(str, arguments)], env=environment,
                               stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + timeout_s
    while not when() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=timeout_s)
    return process.returncode, errors


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Time of change and content of every file in `folder`."""
    return {str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes())
            for path in sorted(folder.rglob("*")) if path.is_file()}


@functools.cache
def root() -> Path:
    """Folder with videos/ (speaker.mp4, listener.mp4, truth.npz) and clip/."""
    import atexit

    from difflistener.toy import write_pair

    folder = Path(tempfile.mkdtemp(prefix="toy-clip-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    write_pair(folder / "videos", SECONDS, 0, SIZE)
    videos = folder / "videos"
    assert run("prepare", "--speaker", videos / "speaker.mp4", "--listener", videos / "listener.mp4", "--out", folder / "clip") == 0
    return folder


@functools.cache
def body() -> Path:
    assert run("train", "body", root() / "clip", "--out", root() / "body", "--steps", 5, "--resolution", 96, "--gaussians", 1500) == 0
    return root() / "body"


@functools.cache
def brain(network: str) -> Path:
    out = root() / f"brain-{network}"
    assert run("train", "brain", root() / "clip", "--out", out, "--network", network, "--steps", 30, "--width", 64, "--layers", 2) == 0
    return out


def copy(name: str, folder: Path) -> Path:
    """A copy of the clip, or of a checkpoint, to damage."""
    source = {"clip": lambda: root() / "clip", "body": body, "brain": lambda: brain("mlp")}[name]()
    return Path(shutil.copytree(source, folder / name))


def change_json(file: Path, **fields) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def write_video(path: Path, frames, sound: np.ndarray | None = None) -> Path:
    """`frames` of one size, and sound [n] at 16 kHz."""
    from difflistener.media import VideoWriter

    writer = None
    for frame in frames:
        if writer is None:
            writer = VideoWriter(path, frame.shape[1], frame.shape[0], audio=sound is not None)
        writer.write_frame(np.ascontiguousarray(frame))
    if sound is not None:
        writer.write_audio(sound)
    writer.__exit__(None, None, None)
    return path
