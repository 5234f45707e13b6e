"""`difflistener demo`: draws a toy conversation and takes it all the way to a rendered, generated listener.

Runs the same verbs that a user runs, prints each command, and ends with the video, a picture strip and the numbers.
"""

import json
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from difflistener.errors import UserError


@dataclass(frozen=True)
class Demo:
    """Toy videos -> clip -> body -> brain -> listener video, on a machine with no GPU and nothing downloaded."""

    out: Path
    """Folder for everything the demo makes."""
    seconds: float = 40.0
    """Length of the toy conversation; the last fifth is kept for the result."""
    size: int = 256
    """Picture size of the toy videos."""
    seed: int = 0
    """Seed of the toy conversation and of the listener's reaction."""
    body_steps: int = 900
    """Training steps of the body."""
    brain_steps: int = 1500
    """Training steps of the brain."""
    resume: bool = False
    """Go on with a demo that was interrupted."""
    overwrite: bool = False
    """Replace a demo that stands at --out."""


def demo(config: Demo) -> dict:
    """Run every stage and return the numbers."""
    from difflistener.toy import write_pair

    out, videos, video = config.out, config.out / "videos", config.out / "listener.mp4"
    parts = _Parts(config)
    begun = time.monotonic()
    first = round(config.seconds * 0.8)
    both = ["--speaker", videos / "speaker.mp4", "--listener", videos / "listener.mp4"]
    unseen = out / "unseen" / "speaker"
    parts.do("videos", lambda: write_pair(videos, config.seconds, config.seed, config.size))
    parts.prepare("clip", [*both, "--duration", first])
    parts.prepare("unseen", [*both, "--start", first, "--basis", out / "clip"])
    parts.train("body", config.body_steps)
    parts.train("brain", config.brain_steps, "--network", "mlp")  # The dit takes four times as long.
    parts.do("listener", lambda: _run([
        "synthesize", "--audio", unseen / "audio.wav", "--visual", unseen / "expression.npy", "--body-checkpoint", out / "body",
        "--brain-checkpoint", out / "brain", "--side-by-side", out / "unseen", "--seed", config.seed, "--output", video, "--overwrite"]))
    strip = write_strip(video, out / "strip.png")
    summary = {"finished": True, "video": str(video), "strip": str(strip), "seconds": round(time.monotonic() - begun, 1)}
    summary |= read_numbers(out)
    summary |= law_recovered(videos / "truth.npz", out / "clip")
    parts.note(**summary)
    print(f"\nThe listener's video: {video}\nA strip of its frames: {strip}\nThe numbers:", file=sys.stderr)
    for name, value in summary.items():
        if name not in ("finished", "video", "strip"):
            print(f"  {name:<32}{value}", file=sys.stderr)
    return summary


def _run(arguments: list) -> None:
    """Run one verb as the command line would."""
    from difflistener.cli import TWO_WORDS, VERBS, load, parse

    words = [str(argument) for argument in arguments]
    print(f"\n$ difflistener {shlex.join(words)}", file=sys.stderr, flush=True)
    count = 2 if words[0] in TWO_WORDS else 1
    verb = " ".join(words[:count])
    settings, function, _ = VERBS[verb]
    result = load(function)(parse(load(settings), verb, words[count:]))
    print(json.dumps(result), file=sys.stderr)


class _Parts:
    """What of the demo is done, kept in demo.json. A resumed demo goes on with the part that it stopped in.

    Raises:
        UserError: a folder in use, a resumed demo of other settings.
    """

    def __init__(self, config: Demo):
        from difflistener.prepare.sources import MIN_SIZE

        self.out, self.marker = config.out, config.out / "demo.json"
        settings = {name: getattr(config, name) for name in ("seconds", "size", "seed", "body_steps", "brain_steps")}
        if config.overwrite and config.resume:
            raise UserError("--overwrite and --resume exclude each other.", "Give one of them.")
        if self.out.exists() and not self.out.is_dir():
            raise UserError(f"{self.out} is a file, not a folder.", "Name another --out.")
        if not config.seconds >= 10:
            raise UserError(f"--seconds is {config.seconds}.", "Ten are needed to learn anything.")
        if config.size < MIN_SIZE:
            raise UserError(f"--size is {config.size}.", f"Choose at least {MIN_SIZE} pixels.")
        for name in ("seed", "body_steps", "brain_steps"):
            if getattr(config, name) < (0 if name == "seed" else 1):
                raise UserError(f"--{name.replace('_', '-')} is {getattr(config, name)}.", "Give a larger number.")
        occupied = self.out.is_dir() and any(self.out.iterdir())
        before = self._read() if occupied else None
        if occupied and not (config.resume or config.overwrite):
            raise UserError(f"{self.out} already holds a demo.",
                            "Give --resume to go on with it, --overwrite to replace it, or another --out.")
        if before and config.resume:
            for name, value in settings.items():
                if before["settings"].get(name) != value:
                    raise UserError(f"The demo in {self.out} was started with {name} = {before['settings'].get(name)}, not {value}.",
                                    "Resume with the same settings, or start over with --overwrite.")
            self.state = before
        else:
            # With `replaces`, what stands in the folder is of an older demo until a part is begun.
            self.state = {"finished": False, "settings": settings, "replaces": occupied, "begun": None, "done": []}
        self.note()

    def _read(self) -> dict:
        try:
            state = json.loads(self.marker.read_text())
            state["settings"]["seed"], state["replaces"], state["begun"], state["done"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{self.out} holds files that are not a demo; they are left alone.", "Name another --out.") from error
        return state

    def note(self, **fields) -> None:
        """Change fields of demo.json."""
        self.state |= fields
        from difflistener.clip import write_json

        write_json(self.marker, self.state)

    def do(self, name: str, run: Callable[[], object]) -> None:
        """Do a part unless it is done."""
        if name not in self.state["done"]:
            self.note(begun=name)
            run()
            self.note(done=[*self.state["done"], name])

    def prepare(self, name: str, arguments: list) -> None:
        again = "--overwrite" if self.state["replaces"] else "--resume"
        self.do(name, lambda: _run(["prepare", *arguments, "--out", self.out / name, again]))

    def train(self, name: str, steps: int, *options: str) -> None:
        folder = self.out / name
        if self.state["begun"] == name and (folder / "training_state" / "state.safetensors").is_file():
            again = ["--resume"]
        else:
            again = ["--overwrite"] if folder.exists() else []
        self.do(name, lambda: _run(["train", name, self.out / "clip", "--out", folder, "--steps", steps, *options, *again]))


def write_strip(video: Path, path: Path, count: int = 4) -> Path:
    """A picture of `count` frames of a video, one under the other."""
    import numpy as np
    from PIL import Image

    from difflistener.clip import replacing
    from difflistener.media import probe, read_frames

    total = round(probe(video).duration_s * 25)
    wanted = set(np.linspace(0, total - 1, count + 2).round().astype(int)[1:-1].tolist())
    rows = [frame for index, frame in enumerate(read_frames(video)) if index in wanted]
    with replacing(path) as temporary:
        Image.fromarray(np.concatenate(rows, 0)).save(temporary, format="PNG")
    return path


def read_numbers(out: Path) -> dict:
    """Held-out scores of the body and losses of the brain, as their runs recorded them."""
    numbers = {}
    for name in ("body", "brain"):
        training = json.loads((out / name / "config.json").read_text())["training"]
        numbers |= {f"{name}_{key}": value for key, value in training.items() if isinstance(value, (int, float))}
    return numbers


def law_recovered(truth: Path, clip_path: Path) -> dict:
    """How well the tracked listener explains the motion it was drawn with.

    Rotation error is RMS in degrees after the best constant offset; mouth and eyelid are correlations of the tracked
    opening with the drawn one.
    """
    import numpy as np
    from scipy.spatial.transform import Rotation

    from difflistener.clip import Clip
    from difflistener.prepare.face_points import mouth_opening

    clip = Clip.open(clip_path)
    count = clip.num_frames
    valid = np.array(clip.read("listener", "valid"))
    with np.load(truth) as drawn:
        rotation = drawn["listener_rotation"][:count]
        mouth, blink = drawn["speaker_mouth_open"][:count], drawn["listener_blink"][:count]
    tracked = Rotation.from_rotvec(clip.motion().rotation[valid])
    offset = (Rotation.from_rotvec(rotation[valid]).inv() * tracked).mean()
    error = (Rotation.from_rotvec(rotation[valid]) * offset).inv() * tracked
    points, seen = np.array(clip.read("speaker", "landmarks")), np.array(clip.read("speaker", "valid"))
    eyes = np.array(clip.read("listener", "eyes"))[:, :2].mean(1)
    correlate = lambda a, b: round(float(np.corrcoef(a, b)[0, 1]), 3)
    return {"tracked_share": round(float(valid.mean()), 4),
            "rotation_rms_degrees": round(float(np.degrees(np.sqrt((error.magnitude() ** 2).mean()))), 3),
            "mouth_correlation": correlate(mouth_opening(points[seen]), mouth[seen]),
            "eyelid_correlation": correlate(eyes[valid], blink.reshape(count, -1).mean(1)[valid])}
