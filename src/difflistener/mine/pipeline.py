"""`difflistener mine`: a recording of two people -> segments.csv, contact.jpg, and clips of what is kept.

    people     pictures all over the recording -> where both are         mine.json
    faces      all pictures -> lips, head and face of both, per frame    scan/, in pieces
    segments   sound, lips -> who speaks; the listener's reaction        segments.csv, contact.jpg
    basis      clips of at most ten minutes -> one expression basis      basis.safetensors
    clips      accepted rows -> `prepare`, all in that basis             clips/NAME; rejected ones move to rejected/

Each stage whose result stands in the folder is skipped. Knows nothing of brains and bodies.
"""

import json
import math
import os
import shutil
import sys
import warnings
from dataclasses import asdict
from pathlib import Path

import numpy as np

from difflistener.basis import LandmarkBasis
from difflistener.clip import Clip, sha256, write_json
from difflistener.errors import UserError
from difflistener.media import probe, read_audio, read_frames
from difflistener.mine.config import Mine
from difflistener.mine.contact import write_contact_sheets
from difflistener.mine.faces import Faces, scan
from difflistener.mine.people import People, Place, find_people
from difflistener.mine.reaction import measure_reaction
from difflistener.mine.table import SIDES, Row, carry_decisions, read_rows, write_rows
from difflistener.mine.turns import Segment, find_segments
from difflistener.mine.voice import find_voice, levels
from difflistener.motion import FPS
from difflistener.prepare.config import FitBasis, Prepare
from difflistener.prepare.sources import MIN_SIZE

FORMAT = 1
LEAST_SECONDS = 2.0
"""A shorter clip has too few frames to fit a basis on."""
MAX_OVERLAP = 0.15
"""Share of the voice under which a listener may seem to speak: an "mm-hm" now and then."""
BASIS_SECONDS = 600.0
"""Of clips that the basis is fitted on, at most; they are spread over the recording."""


def mine(config: Mine) -> dict:
    """Find the segments, make the clips, and return how many there are.

    Raises:
        UserError: a recording that cannot be used, not two people, nothing found, nothing above the thresholds.
    """
    info = _check(config)
    digest = sha256(config.video)
    folder, state = _open_folder(config, digest)
    if state is None:
        people = find_people(config.video, info)
        state = {"library": "difflistener", "type": "mined recording", "format": FORMAT, "recording": config.video.name,
                 "sha256": digest, "people": asdict(people), "cut": None}
        write_json(folder / "mine.json", state)
    people = People(tuple(Place(**place) for place in state["people"]["places"]), state["people"]["split"])
    rows = _find_rows(config, folder, people, state)
    if folder != config.out:
        _take_place(folder, config.out)
    accepted = [row for row in rows if row.is_accepted]
    if not accepted:
        best = sorted(rows, key=lambda row: -row.reaction)[:4]
        best = ", ".join(f"{row.reaction:.1f} ({row.reason or 'rejected'})" for row in best)
        raise UserError(
            f"{config.video}: {len(rows)} candidate{'s' * (len(rows) > 1)}, none is kept; the best reactions are {best}.",
            f"Look at {config.out / 'contact.jpg'}; write yes into the column accept of {config.out / 'segments.csv'}, or lower "
            "--reaction; then --resume.")
    clips = _make_clips(config, people, accepted)
    return {"out": str(config.out), "candidates": len(rows), "kept": sum(row.kept for row in rows), "clips": len(clips),
            "seconds": round(sum(row.stop - row.start for row in accepted), 2), "basis": clips[0].basis}


def _check(config: Mine):
    """What the recording holds, once it and the settings are fit for work."""
    limits = {"min_seconds": LEAST_SECONDS, "max_seconds": 2 * config.min_seconds, "bridge": 0, "reaction": 0, "size": MIN_SIZE}
    for name, least in limits.items():
        value = getattr(config, name)
        if not (math.isfinite(value) and value >= least):
            raise UserError(f"--{name.replace('_', '-')} is {value:g}.", f"Give a number from {least:g} up.")
    if config.overwrite and config.resume:
        raise UserError("--overwrite and --resume exclude each other.", "Give one of them.")
    info = probe(config.video)
    if not info.has_video:
        raise UserError(f"{config.video} has no pictures.", "Name a video of two people.")
    if not info.has_audio:
        raise UserError(f"{config.video} has no sound; who speaks is told by sound and lips.", "Name a video with its sound.")
    if config.basis is not None:
        LandmarkBasis.load(config.basis)
    if "wav2vec2" in config.audio:
        from difflistener.prepare.audio import make_encoder

        # Asking for the width loads the weights: that they are missing is said before hours of work.
        assert make_encoder("wav2vec2", model=config.wav2vec2_model).dim > 0
    return info


def _open_folder(config: Mine, digest: str) -> tuple[Path, dict | None]:
    """The folder to work in, and its state if there is one. Nothing is made before two people are found."""
    out = config.out
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file, not a folder.", "Name another --out.")
    if not (out.is_dir() and any(out.iterdir())):
        return out, None
    if not (out / "mine.json").is_file():
        raise UserError(f"{out} holds files that were not mined; they are left alone.", "Name another --out.")
    if config.overwrite:
        # What stands in --out stays until the segments are found anew.
        fresh = out.with_name(f".{out.name}.new")
        state = _read_state(fresh) if (fresh / "mine.json").is_file() else None
        if state and state["sha256"] != digest:
            shutil.rmtree(fresh)
            state = None
        return fresh, state
    if not config.resume:
        raise UserError(f"{out} already holds a mined recording.",
                        "Give --resume to go on with it, --overwrite to replace it, or another --out.")
    state = _read_state(out)
    if state["sha256"] != digest:
        raise UserError(f"{out} was mined from another recording, {state['recording']}.", "Name another --out, or --overwrite.")
    return out, state


def _read_state(folder: Path) -> dict:
    file = folder / "mine.json"
    try:
        state = json.loads(file.read_text())
        state["sha256"], state["recording"], state["people"]["places"], state["people"]["split"], state["cut"], state["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} is damaged ({error}).", "Start over with --overwrite.") from error
    if state["format"] != FORMAT:
        raise UserError(f"{file} has format {state['format']}; this version reads {FORMAT}.", "Start over with --overwrite.")
    return state


def _take_place(folder: Path, out: Path) -> None:
    old = out.with_name(f".{out.name}.old.{os.getpid()}")
    out.rename(old)
    folder.rename(out)
    shutil.rmtree(old)


# ----------------------------------------------------------------------------------------------------- segments


def _find_rows(config: Mine, folder: Path, people: People, state: dict) -> list[Row]:
    """The rows of segments.csv: as they stand, or cut from what the scan found."""
    file = folder / "segments.csv"
    cut = {name: getattr(config, name) for name in ("min_seconds", "max_seconds", "bridge", "reaction")}
    before = read_rows(file) if file.is_file() else []
    if state["cut"] == cut and before:
        return before
    if state["cut"] and state["cut"] != cut:
        changes = ", ".join(f"{name} {old:g} -> {cut[name]:g}" for name, old in state["cut"].items() if cut[name] != old)
        warnings.warn(f"segments are cut again ({changes}); decisions in segments.csv are kept.", stacklevel=2)
    faces = scan(config.video, people.places, folder / "scan")
    voice = find_voice(levels(read_audio(config.video), len(faces)))
    segments, longest = find_segments(voice, faces.lips, faces.valid, round(config.min_seconds * FPS),
                                      round(config.max_seconds * FPS), round(config.bridge * FPS))
    if not segments:
        raise UserError(
            f"{config.video}: no segment of {config.min_seconds:g} s in which one speaks and the other listens; the longest is "
            f"{longest / FPS:.2f} s (a voice in {voice.mean():.0%} of the frames, two faces in {faces.valid.all(1).mean():.0%}).",
            f"Lower --min-seconds or raise --bridge, with {'--overwrite' if config.overwrite else '--resume'}; or use a "
            "recording in which both people are seen and heard.")
    rows = carry_decisions([make_row(segment, faces, config.reaction) for segment in segments], before)

    def look(time: float) -> tuple[np.ndarray, np.ndarray]:
        frame = next(read_frames(config.video, time, 1 / FPS))
        return tuple(place.cut(frame) for place in people.places)

    write_rows(file, rows)
    write_contact_sheets(folder, rows, look)
    state["cut"] = cut
    write_json(folder / "mine.json", state)
    return rows


def make_row(segment: Segment, faces: Faces, least_reaction: float) -> Row:
    """A segment with its listener's reaction, and whether the filter keeps it."""
    frames, listener = slice(segment.start, segment.stop), 1 - segment.speaker
    reaction = measure_reaction(faces.rotation[frames, listener], faces.points[frames, listener], faces.valid[frames, listener])
    reasons = []
    if segment.overlap > MAX_OVERLAP:
        reasons.append(f"overlap {segment.overlap:.0%} > {MAX_OVERLAP:.0%}")
    if reaction.score < least_reaction:
        reasons.append(f"reaction {reaction.score:.1f} < {least_reaction:g}")
    start, speaker = segment.start / FPS, SIDES[segment.speaker]
    return Row(f"{speaker}-speaks-{start:07.2f}", start, segment.stop / FPS, speaker, SIDES[listener],
               round(segment.voice, 3), round(segment.overlap, 3), round(reaction.rotation, 3), round(reaction.expression, 3),
               round(reaction.score, 3), (segment.start + reaction.peak) / FPS,
               None if segment.answered is None else segment.answered / FPS, not reasons, "; ".join(reasons))


# -------------------------------------------------------------------------------------------------------- clips


def _make_clips(config: Mine, people: People, rows: list[Row]) -> list[Clip]:
    """A clip of each row, all in one basis; clips of other rows are put aside."""
    clips, rejected = config.out / "clips", config.out / "rejected"
    names = {row.name for row in rows}
    for here, there, belongs in ((clips, rejected, False), (rejected, clips, True)):
        for path in sorted(here.iterdir()) if here.is_dir() else ():
            if (path.name in names) == belongs and not path.name.startswith("."):
                there.mkdir(exist_ok=True)
                path.rename(there / path.name)
    file = config.out / "basis.safetensors"
    if not file.is_file():
        if config.basis is not None:
            LandmarkBasis.load(config.basis).save(file)
        else:
            _fit_basis(config, people, rows, file)
    basis = LandmarkBasis.load(file).id
    if config.basis is not None and LandmarkBasis.load(config.basis).id != basis:
        raise UserError(f"{config.out} was mined in the basis {basis}, not in that of --basis.",
                        "Leave --basis out, or name another --out.")
    return [_make_clip(config, people, row, file, basis, f"clip {number} of {len(rows)}") for number, row in enumerate(rows, 1)]


def _fit_basis(config: Mine, people: People, rows: list[Row], file: Path) -> None:
    """One basis for the recording, fitted on clips that are first made in bases of their own."""
    from difflistener.prepare.pipeline import fit_shared_basis

    step = math.ceil(sum(row.stop - row.start for row in rows) / BASIS_SECONDS)
    chosen = [row for side in SIDES for row in [row for row in rows if row.speaker == side][::step]]
    for number, row in enumerate(chosen, 1):
        _prepare(config, people, row, None, f"for the basis, clip {number} of {len(chosen)}")
    fit_shared_basis(FitBasis(tuple(config.out / "clips" / row.name for row in chosen), file))


def _prepare(config: Mine, people: People, row: Row, basis: Path | None, label: str) -> None:
    from difflistener.prepare.pipeline import prepare

    print(f"{label}: {row.name}, {row.stop - row.start:.1f} s", file=sys.stderr, flush=True)
    try:
        prepare(Prepare(config.out / "clips" / row.name, dyad=config.video, speaker_side=row.speaker, split=people.split,
                        start=row.start, duration=row.stop - row.start, basis=basis, audio=config.audio,
                        wav2vec2_model=config.wav2vec2_model, size=config.size, resume=True))
    except UserError as error:
        raise UserError(f"{row.name}: {error.problem}",
                        f"{error.remedy} Or reject it in {config.out / 'segments.csv'} (accept: no), then --resume.") from error


def _make_clip(config: Mine, people: People, row: Row, basis: Path, basis_id: str, label: str) -> Clip:
    """The clip of a row, finished by last_motion.json: from where a talking head of the listener goes on."""
    path = config.out / "clips" / row.name
    made = {"start": row.start, "stop": row.stop, "answered": row.answered, "split": people.split, "basis": basis_id,
            "audio": config.audio, "wav2vec2_model": config.wav2vec2_model, "size": config.size}
    if (path / "clip.json").is_file() and Clip.open(path, check=False).is_current("listener", "last_motion.json", made):
        return Clip.open(path)
    _prepare(config, people, row, basis, label)
    clip = Clip.open(path)
    motion = clip.motion()
    last = {"frame": len(motion) - 1, "motion": motion.values[-1].tolist(), "eyes": motion.eyes[-1].tolist(),
            "translation": motion.translation[-1].tolist(), "basis": clip.basis, "recording_s": row.stop,
            "speaks_after_s": None if row.answered is None else round(row.answered - row.stop, 3)}
    with clip.adding("listener", "last_motion.json", "mine", made) as temporary:
        temporary.write_text(json.dumps(last) + "\n")
    return clip
