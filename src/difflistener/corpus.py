"""`difflistener corpus`: hours of motion-only conversations whose law is known, written as clips.

    OUT/corpus.json            the settings that decide what is drawn
    OUT/train/0000 ...         clips to learn from, without videos; basis `toy-law`, or that of --faces
    OUT/test/0000 ...          clips of other speakers, to evaluate on
        listener/law.json      what was drawn: law, attitude, script of the speaker, every event with its cause

Each clip is a function of seed, split, number and length, and appears whole or not at all: any number of processes may write
into one folder, and an interrupted run goes on. The law itself is in `toy/reactions.py`.
"""

import dataclasses
import json
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from difflistener.errors import UserError

if TYPE_CHECKING:
    from difflistener.clip import Clip
    from difflistener.toy.conversation import Listener, Speaker
    from difflistener.toy.faces import Faces
    from difflistener.toy.reactions import Event, Law, Script

FORMAT = 1
SPLITS = ("train", "test")
SHORTEST = 20.0
"""Seconds a clip must have for a turn of speech and a silence."""


@dataclass(frozen=True)
class Corpus:
    """Draw conversations in which every cause of a reaction is known, to train and to judge brains.

    Example: difflistener corpus --out corpus --hours 3
    """

    out: Path
    """Folder for the clips."""
    hours: float = 3.0
    """Conversation to learn from."""
    test_hours: float = 0.3
    """Conversation to evaluate on, of other speakers."""
    clip_seconds: float = 120.0
    """Length of each clip."""
    seed: int = 0
    """Seed of everything random."""
    faces: Path | None = None
    """Folder of procedural faces in a landmark basis, or the word shipped: faces as a tracker sees them, for a brain that is to
    watch a camera. By default a made-up basis, in which events are easy to judge."""
    microphones: bool = False
    """Sound as microphones hear it: level, echo, noise and colour, another for each clip."""
    workers: int = 1
    """Processes that draw at once."""
    resume: bool = False
    """Go on with a corpus that was interrupted, or add to one: the hours may grow."""
    overwrite: bool = False
    """Replace a corpus that stands at --out."""


@dataclass(frozen=True)
class Truth:
    """What is known of a drawn clip."""

    law: "Law"
    script: "Script"
    attitude: str
    events: "list[Event]"


def write_corpus(config: Corpus) -> None:
    """Draw the clips that are not there yet. Raises `UserError` for a folder in use or settings that do not fit."""
    from difflistener.progress import progress

    _check(config)
    _claim(config)
    wanted = [(config.out, split, number, config.seed, config.clip_seconds, config.faces, config.microphones)
              for split, hours in zip(SPLITS, (config.hours, config.test_hours))
              for number in range(_count(hours, config.clip_seconds))]
    left = [task for task in wanted if not _path(*task[:3]).is_dir()]
    done = len(wanted) - len(left)
    for _ in progress(_run(left, config.workers), "corpus (clips)", len(wanted), done):
        pass


def write_clip(out: Path, split: str, number: int, seed: int, seconds: float, folder_of_faces: Path | None = None,
               microphones: bool = False) -> None:
    """Draw one clip and put it in its place. A clip that another process has put there meanwhile stays: it is the same."""
    import numpy as np

    from difflistener.clip import Clip
    from difflistener.media import write_wav
    from difflistener.prepare.audio import LogMel
    from difflistener.toy.codes import BASIS
    from difflistener.toy.faces import Faces
    from difflistener.toy.microphone import hear
    from difflistener.toy.reactions import Law

    key = (seed, SPLITS.index(split), number)
    faces = None if folder_of_faces is None else Faces.load(folder_of_faces)
    speaker, listener = draw_pair(seconds, key, faces, quiet=microphones)
    sound = hear(speaker.sound, np.random.default_rng((*key, 3))) if microphones else speaker.sound
    encoder = LogMel()
    settings = {"key": list(key), "seconds": seconds}
    frames = len(listener.motion)
    seen = np.ones(frames, bool)
    with tempfile.TemporaryDirectory(dir=out, prefix=".clip-") as folder:
        clip = Clip.create(Path(folder) / "clip", frames)
        clip.set(basis=faces.basis.id if faces else BASIS, attitude=listener.attitude, licences=["drawn by difflistener corpus; no person"])
        with clip.adding("speaker", "audio.wav", "corpus", settings) as temporary:
            write_wav(temporary, sound)
        clip.write("speaker", "logmel", encoder.encode(sound, frames), "logmel",
                   {"source": settings, "encoder": encoder.settings()})
        for role, name, array in (("speaker", "expression", speaker.expression), ("speaker", "valid", seen),
                                  ("listener", "motion", listener.motion), ("listener", "eyes", listener.eyes),
                                  ("listener", "valid", seen)):
            clip.write(role, name, array, "corpus", settings)
        with clip.adding("listener", "law.json", "corpus", settings) as temporary:
            temporary.write_text(json.dumps(_truth_json(Law(), speaker.script, listener.attitude, listener.events)))
        if faces:
            faces.basis.save(clip.path / "basis.safetensors")
        place = _path(out, split, number)
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            clip.path.rename(place)
        except OSError:
            if not place.is_dir():
                raise


def draw_pair(seconds: float, key: tuple[int, ...], faces: "Faces | None" = None, quiet: bool = False) -> "tuple[Speaker, Listener]":
    """The speaker and the listener of the conversation numbered `key`, as in a clip; `quiet` leaves out the noise behind the voice."""
    import numpy as np

    from difflistener.toy.conversation import draw_attitude, draw_listener, draw_speaker
    from difflistener.toy.reactions import Law
    from difflistener.toy.voice import HISS

    speaker = draw_speaker(seconds, (*key, 0), faces, 0.0 if quiet else HISS)
    attitude = draw_attitude(np.random.default_rng((*key, 1)))
    return speaker, draw_listener(speaker.script, attitude, Law(), (*key, 2), faces)


def read_truth(clip: "Clip") -> Truth:
    """What was drawn for a clip of a corpus. Raises `UserError` for a clip without it."""
    import numpy as np

    from difflistener.toy.reactions import Event, Law, Script

    values = clip.read_json("listener", "law.json")
    if values.get("format") != FORMAT:
        raise UserError(f"{clip.path}/listener/law.json has format {values.get('format')}; this version reads format {FORMAT}.",
                        "Draw the corpus again with --overwrite.")
    law = Law(**{name: tuple(value) if isinstance(value, list) else value for name, value in values["law"].items()})
    arrays = {name: np.array(value, float).reshape(-1, WIDTHS[name]) if name in WIDTHS else value
              for name, value in values["script"].items()}
    return Truth(law, Script(**arrays), values["attitude"], [Event(**event) for event in values["events"]])


def clips_of(corpus: Path, split: str) -> list[Path]:
    """The clip folders of a split, in order. Raises `UserError` where there is none."""
    paths = sorted(path for path in (Path(corpus) / split).glob("*") if (path / "clip.json").is_file())
    if not paths:
        raise UserError(f"{corpus} has no {split} clips.", f"Make a corpus with: difflistener corpus --out {corpus}")
    return paths


WIDTHS = {"segments": 3, "silences": 2, "smiles": 3, "flashes": 4, "blinks": 2}
"""Numbers a row of a script's arrays."""


def _truth_json(law, script, attitude, events) -> dict:
    rows = {name: value.tolist() if name in WIDTHS else value for name, value in dataclasses.asdict(script).items()}
    return {"format": FORMAT, "law": dataclasses.asdict(law), "attitude": attitude, "script": rows,
            "events": [event._asdict() for event in events]}


def _run(tasks: list[tuple], workers: int) -> Iterator[None]:
    if workers == 1 or len(tasks) < 2:
        for task in tasks:
            yield write_clip(*task)
        return
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor, as_completed

    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        try:
            for future in as_completed([pool.submit(write_clip, *task) for task in tasks]):
                yield future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _path(out: Path, split: str, number: int) -> Path:
    return Path(out) / split / f"{number:04d}"


def _count(hours: float, clip_seconds: float) -> int:
    return round(hours * 3600 / clip_seconds)


def _check(config: Corpus) -> None:
    if not config.clip_seconds >= SHORTEST:
        raise UserError(f"--clip-seconds is {config.clip_seconds}.", f"A conversation needs at least {SHORTEST:g} s.")
    for name in ("hours", "test_hours"):
        hours = getattr(config, name)
        if not _count(hours, config.clip_seconds) >= 1:
            raise UserError(f"--{name.replace('_', '-')} is {hours}: less than half a clip of {config.clip_seconds:g} s.",
                            "Give more hours or a shorter --clip-seconds.")
    if config.seed < 0 or config.workers < 1:
        raise UserError(f"--seed is {config.seed}, --workers is {config.workers}.",
                        "Give a seed from 0 up and at least one worker.")
    if config.resume and config.overwrite:
        raise UserError("--overwrite and --resume exclude each other.", "Give one of them.")


def _claim(config: Corpus) -> None:
    """Make OUT ready and write corpus.json."""
    from difflistener.clip import write_json
    from difflistener.toy.faces import Faces

    out, file = config.out, config.out / "corpus.json"
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file, not a folder.", "Name another output folder.")
    settings = {"library": "difflistener", "format": FORMAT, "seed": config.seed, "clip_seconds": config.clip_seconds,
                "hours": config.hours, "test_hours": config.test_hours,
                "faces": None if config.faces is None else Faces.load(config.faces).basis.id, "microphones": config.microphones or None}
    if out.is_dir() and any(out.iterdir()):
        before = _read(file, out)
        if not (config.resume or config.overwrite):
            raise UserError(f"{out} already holds a corpus.",
                            "Give --resume to go on with it, --overwrite to replace it, or another --out.")
        if config.resume:
            for name in ("format", "seed", "clip_seconds", "faces", "microphones"):
                if before.get(name) != settings[name]:
                    raise UserError(f"The corpus in {out} was started with {name} = {before.get(name)}, not {settings[name]}.",
                                    "Resume with the same settings, or start over with --overwrite.")
            for name in ("hours", "test_hours"):
                settings[name] = max(settings[name], before[name])
        else:
            for folder in (*(out / split for split in SPLITS), *out.glob(".clip-*")):  # The latter are of killed runs.
                shutil.rmtree(folder, ignore_errors=True)
    out.mkdir(parents=True, exist_ok=True)
    write_json(file, settings)


def _read(file: Path, out: Path) -> dict:
    try:
        values = json.loads(file.read_text())
        values["library"], values["hours"], values["test_hours"]
        return values
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{out} holds files that are not a corpus; they are left alone.", "Name another --out.") from error
