"""`difflistener import`: a data set -> clips, many at once, one bad clip never stopping the others.

    OUT/import.json          layout and settings that decide the numbers
    OUT/<split>/<name>/      clips, as `prepare --listener-motion` makes them
    OUT/index.csv            split, attitude, conversation and people of each clip, written at the end
    OUT/skipped.csv          what could not be imported, and why; absent if nothing was left out

A clip appears whole or not at all. Knows nothing of any one data set.
"""

import csv
import hashlib
import json
import math
import shutil
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np

from difflistener.clip import Clip, replacing, write_json
from difflistener.errors import UserError
from difflistener.importers.config import Import
from difflistener.importers.layouts import LAYOUTS, choose
from difflistener.importers.source import Job, Layout, common_length, resample
from difflistener.importers.videos import is_prepared, ready, write_script
from difflistener.media import num_frames, probe
from difflistener.motion import EXPRESSION, FLAME_BASES, FPS, ROTATION
from difflistener.prepare.pipeline import audio_stage, make_chosen_encoder
from difflistener.prepare.sources import Source
from difflistener.progress import progress

FORMAT = 1
FACTS = ("split", "attitude", "conversation", "speaker_id", "listener_id")
SAME = ("format", "layout", "audio", "wav2vec2_model", "basis", "fps")
"""What must agree for an import to go on."""
LISTS = ("import.json", "index.csv", "skipped.csv")


def import_folder(config: Import) -> dict:
    """Import what is not there yet and return how many clips there are of each split.

    Raises:
        UserError: a folder that is no known data set, settings that do not fit, output in use, or no clip that can be imported.
    """
    _check(config)
    name = choose(config.layout, config.folder)
    layout = LAYOUTS[name]
    if layout.fps is not None or layout.read is None:
        for flag, value in (("--fps", config.fps), ("--motion-basis", config.motion_basis)):
            if value is not None:
                warnings.warn(f"{flag} is ignored: {name} has its own.", stacklevel=2)
    jobs = _named_once(layout.jobs(config.folder))
    if not jobs:
        raise UserError(f"{config.folder} holds nothing to import as {name}.", f"It should hold {layout.tree}.")
    possible = [job for job in jobs if not job.problem][: config.limit]
    if layout.read is not None and any("sound" in job.files for job in possible):
        _encoders(config)  # That weights are missing is said before the work.
    _claim(config, name)
    left = [job for job in possible if layout.read is None or not (config.out / job.name / "clip.json").is_file()]
    done = len(possible) - len(left)
    known = [(job.name, job.problem) for job in jobs if job.problem]
    tried = progress(_run([(config, name, job) for job in left], config.workers), f"import {name} (clips)", len(possible), done)
    failed = _list_skipped(config.out / "skipped.csv", known, (result for result, _ in tried))
    made = [job for job in possible if job.name not in failed]
    skipped = len(known) + len(failed)
    first = next(iter([*(reason for _, reason in known[:1]), *failed.values()]), "")
    if not made:
        raise UserError(f"None of the {len(jobs)} clips in {config.folder} could be imported. The first: {first}",
                        f"{config.out / 'skipped.csv'} lists the reason of each.")
    _write_index(config.out, made)
    if skipped:
        warnings.warn(f"{skipped} of {len(jobs)} clips could not be imported; {config.out / 'skipped.csv'} says why. "
                      f"The first: {first}", stacklevel=2)
    if layout.warning:
        warnings.warn(layout.warning, stacklevel=2)
    summary = {"clips": str(config.out), "layout": name, "skipped": skipped,
               "splits": Counter(job.facts.get("split", "none") for job in made)}
    if layout.read is not None:
        return summary | {"imported": len(made) - done, "before": done}
    script = write_script(config, name, made)
    prepared = sum(is_prepared(config.out / job.name) for job in made)
    print(f"{name} holds videos only, which are not tracked here: {script} prepares them ({prepared} of {len(made)} are done); "
          f"splits are in {config.out / 'index.csv'}.", file=sys.stderr)
    return summary | {"listed": len(made), "prepared": prepared, "script": str(script)}


def write_clip(config: Import, layout_name: str, job: Job) -> None:
    """Make one clip and put it in its place. Raises `UserError` for input that cannot be imported; nothing is left of it."""
    layout = LAYOUTS[layout_name]
    found = layout.read(job)
    fps = _fps(config, layout)
    settings = {role: {"source": job.files.get(role, job.files["listener"]).name, "row": job.row, "fps": fps,
                       "sha256": hashlib.sha256(track.values.tobytes()).hexdigest()} for role, track in found.items()}
    tracks = {role: resample(track, fps) for role, track in found.items()}
    lengths = {str(job.files.get(role, f"the {role}")): len(track) for role, track in tracks.items()}
    sound = job.files.get("sound")
    if sound is not None:
        lengths[str(sound)] = num_frames(probe(sound).duration_s)
    count = common_length(lengths)
    if count < 1:
        raise UserError(f"{min(lengths, key=lengths.get)} holds no frame.", "Leave it out.")
    with tempfile.TemporaryDirectory(dir=config.out, prefix=".clip-") as folder:
        clip = Clip.create(Path(folder) / "clip", count)
        clip.set(basis=_basis(config, layout), licences=[layout.licence], **job.facts)
        for role, track in tracks.items():
            values = np.ascontiguousarray(track.values[:count])
            arrays = {"motion": values}
            if role == "speaker":
                arrays = {"expression": values[:, EXPRESSION], "rotation": values[:, ROTATION]}
            for name, array in (arrays | {"valid": track.valid[:count]}).items():
                clip.write(role, name, array, "import", {"layout": layout_name, **settings[role], "frames": count})
        if sound is not None:
            audio_stage(clip, Source("speaker", sound, None, 0.0, False), _encoders(config))
        clip.check()
        place = config.out / job.name
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            clip.path.rename(place)
        except OSError:
            if not (place / "clip.json").is_file():  # Else another process was first.
                raise


def _basis(config: Import, layout: Layout) -> str:
    return layout.basis or config.motion_basis or "flame2020"


def _fps(config: Import, layout: Layout) -> float:
    return layout.fps or config.fps or FPS


def _encoders(config: Import) -> list:
    encoders = _loaded(config.audio, config.wav2vec2_model)
    assert all(encoder.dim > 0 for encoder in encoders)
    return encoders


@lru_cache(maxsize=1)
def _loaded(audio: tuple[str, ...], wav2vec2_model: str) -> list:
    return [make_chosen_encoder(name, Import(Path(), Path(), wav2vec2_model=wav2vec2_model)) for name in audio]


def _attempt(task: tuple[Import, str, Job]) -> tuple[str, str]:
    """(clip, why it could not be imported or nothing)."""
    config, layout, job = task
    try:
        if LAYOUTS[layout].read is None:
            ready(config.out, job, LAYOUTS[layout])
        else:
            write_clip(config, layout, job)
    except UserError as error:
        return job.name, error.problem
    return job.name, ""


def _run(tasks: list[tuple], workers: int) -> Iterator[tuple[str, str]]:
    if workers == 1 or len(tasks) < 2:
        yield from map(_attempt, tasks)
        return
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor, as_completed

    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        try:
            for future in as_completed([pool.submit(_attempt, task) for task in tasks]):
                yield future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _list_skipped(path: Path, known: list[tuple[str, str]], results: Iterator[tuple[str, str]]) -> dict[str, str]:
    """Go through (clip, reason or nothing), listing those with a reason, after the `known` ones, as they come; return them.

    There is no list where there is nothing to say.
    """
    failed = {}
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerows([("clip", "reason"), *known])
        for clip, reason in results:
            if reason:
                table.writerow((clip, reason))
                file.flush()
                failed[clip] = reason
    if not known and not failed:
        path.unlink()
    return failed


def _named_once(jobs: Iterable[Job]) -> list[Job]:
    """All jobs; a second one of the same name is a problem."""
    seen: set[str] = set()
    checked = []
    for job in jobs:
        again = job.name in seen and not job.problem
        checked.append(Job(job.name, problem=f"There are several clips called {job.name}; the first is taken.") if again else job)
        seen.add(job.name)
    return checked


def _write_index(out: Path, jobs: Iterable[Job]) -> None:
    """One line per clip; `frames` is empty for one that is still to be prepared."""
    with replacing(out / "index.csv") as temporary, temporary.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("clip", *FACTS, "frames"))
        for job in jobs:
            there = (out / job.name / "clip.json").is_file()
            frames = (Clip.open(out / job.name, check=False).num_frames or "") if there else ""
            table.writerow((job.name, *(job.facts.get(fact, "") for fact in FACTS), frames))


# ------------------------------------------------------------------------------------------------- settings


def _check(config: Import) -> None:
    if config.workers < 1 or (config.limit is not None and config.limit < 1):
        raise UserError(f"--workers is {config.workers}, --limit is {config.limit}.", "Give at least one of each.")
    if config.fps is not None and not (math.isfinite(config.fps) and config.fps > 0):
        raise UserError(f"--fps is {config.fps:g}.", "Give the frames per second of the recording, such as 30.")
    if config.motion_basis is not None and config.motion_basis not in FLAME_BASES:
        raise UserError(f"--motion-basis {config.motion_basis} is not known.", f"Known: {', '.join(FLAME_BASES)}.")
    if config.resume and config.overwrite:
        raise UserError("--overwrite and --resume exclude each other.", "Give one of them.")
    if config.out.exists() and not config.out.is_dir():
        raise UserError(f"{config.out} is a file, not a folder.", "Name another --out.")


def _claim(config: Import, layout: str) -> None:
    """Make OUT ready and write import.json. Files that are not of an import are left alone."""
    out, file = config.out, config.out / "import.json"
    known = LAYOUTS[layout]
    settings = {"library": "difflistener", "format": FORMAT, "layout": layout, "folder": config.folder.resolve().name,
                "audio": list(config.audio), "wav2vec2_model": config.wav2vec2_model if "wav2vec2" in config.audio else None,
                "basis": _basis(config, known) if known.read else None, "fps": _fps(config, known) if known.read else None}
    if out.is_dir() and any(out.iterdir()):
        try:
            before = json.loads(file.read_text())
            before["layout"], before["library"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{out} holds files that are not an import; they are left alone.", "Name another --out.") from error
        used = any(path.name not in LISTS and not path.name.startswith(".clip-") for path in out.iterdir())
        if used and not (config.resume or config.overwrite):
            raise UserError(f"{out} already holds an import.",
                            "Give --resume to go on with it, --overwrite to replace it, or another --out.")
        for name in SAME if config.resume and used else ():
            if before.get(name) != settings[name]:
                raise UserError(f"The import in {out} was started with {name} = {before.get(name)}, not {settings[name]}.",
                                "Resume with the same settings, or start over with --overwrite.")
        if config.overwrite:
            _clear(out)
    out.mkdir(parents=True, exist_ok=True)
    write_json(file, settings)


def _clear(out: Path) -> None:
    """Remove what an import writes, and clips that its script prepared."""
    for path in [*out.glob("*/clip.json"), *out.glob("*/*/clip.json")]:
        shutil.rmtree(path.parent)
    for path in (*out.glob(".clip-*"), out / "speakers"):  # The former are of killed runs.
        shutil.rmtree(path, ignore_errors=True)
    for name in ("prepare.sh", "basis.safetensors"):
        (out / name).unlink(missing_ok=True)
