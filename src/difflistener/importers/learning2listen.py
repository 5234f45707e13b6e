"""Learning2Listen (Ng et al. 2022) and lm-listener (Ng et al. 2023): one person who listens, 30 fps, no sound.

    learning2listen   [data/]<person>/{train,test}/
                          p{0,1}_{list,speak}_faces_clean_deca.npy    [N, 64, 184: exp 50, pose 6, detail 128]
                          p{0,1}_speak_files_clean_deca.npy           [N, 64, 3: video, side, frame], unless it is pickled
    lm-listener       [dataset/]<person>/segments_{train,val,test}.pth
                          list of {fname, p{0,1}_exp [T, 50], p{0,1}_pose [T, 6]}

p0, on the left, listens and p1 speaks; with fallon of learning2listen it is the other way round. Each sequence of 64
frames, or each segment, is a clip. The recordings' sound is not published: learning2listen's own mel features are none that
this software can compute for a new speaker, so that they are left out. lm-listener keeps all segments of a split in one
file: each worker holds one such file in memory.
"""

import pickle
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np

from difflistener.errors import UserError
from difflistener.importers.source import AGAIN, Job, Layout, Track, make_job, make_track, read_npy

RIGHT_LISTENERS = ("fallon",)
"""People who are p1 where they listen."""
FACE_WIDTH = 184
NO_SOUND = ("{} holds no sound: the clips have the motion of both and no audio features. A brain that hears cannot be trained on "
            "them; they serve as motion of listeners.")


# ---------------------------------------------------------------------------------------------- learning2listen


def _people(folder: Path) -> list[Path]:
    """Folders <person>/<split> that hold faces."""
    root = folder / "data" if (folder / "data").is_dir() else folder
    parts = (path for split in ("train", "test") for path in sorted(root.glob(f"*/{split}")))
    return [part for part in parts if any(part.glob("p?_*_faces_clean_deca.npy"))]


def _windows(folder: Path) -> Iterator[Job]:
    parts = _people(folder)
    if not parts:
        raise UserError(f"{folder} holds no [data/]<person>/train/p0_list_faces_clean_deca.npy or the like.",
                        "Unpack the tars of Learning2Listen and name the folder that holds data/.")
    for part in parts:
        person, split = part.parent.name, part.name
        listener, speaker = (1, 0) if person in RIGHT_LISTENERS else (0, 1)
        files = {"listener": part / f"p{listener}_list_faces_clean_deca.npy",
                 "speaker": part / f"p{speaker}_speak_faces_clean_deca.npy"}
        try:
            counts = {path.name: len(_faces(path)) for path in files.values()}
            if len(set(counts.values())) != 1:
                held = " and ".join(f"{name} holds {count}" for name, count in counts.items())
                raise UserError(f"{part}: {held} sequences.", AGAIN)
        except UserError as error:
            yield Job(f"{split}/{person}", problem=error.problem)
            continue
        count = min(counts.values())
        videos = _videos(part / f"p{speaker}_speak_files_clean_deca.npy", count)
        for row in range(count):
            yield make_job(split, f"{person}-{row:05d}", files, row, conversation=videos(row), listener_id=person)


def _faces(path: Path) -> np.ndarray:
    faces = read_npy(path)
    if faces.ndim != 3 or faces.shape[2] != FACE_WIDTH or 0 in faces.shape or faces.dtype.kind != "f":
        raise UserError(f"{path} has shape {list(faces.shape)}, expected [N, 64, {FACE_WIDTH}].", AGAIN)
    return faces


def _videos(path: Path, count: int):
    """row -> name of the video it is cut from, "" where the file does not say."""
    try:
        names = read_npy(path)
    except UserError:  # Optional, and pickled in some copies.
        return lambda row: ""
    if names.ndim != 3 or len(names) != count or names.dtype.kind != "U":
        return lambda row: ""
    return lambda row: str(names[row, 0, 0])


def _read_window(job: Job) -> dict[str, Track]:
    tracks = {}
    for role, path in job.files.items():
        face = np.array(_faces(path)[job.row])
        tracks[role] = make_track(face[:, :50], face[:, 50:56], f"{path} at sequence {job.row}")
    return tracks


# -------------------------------------------------------------------------------------------------- lm-listener


def _files(folder: Path) -> list[tuple[str, Path]]:
    root = folder / "dataset" if (folder / "dataset").is_dir() else folder
    found = ((split, path) for split in ("train", "val", "test") for path in root.glob(f"*/segments_{split}.pth"))
    own = ((split, root / f"segments_{split}.pth") for split in ("train", "val", "test"))
    return sorted(found, key=lambda pair: pair[1]) or [(split, path) for split, path in own if path.is_file()]


def _segment_jobs(folder: Path) -> Iterator[Job]:
    files = _files(folder)
    if not files:
        raise UserError(f"{folder} holds no segments_train.pth or the like, neither itself nor in [dataset/]<person>/.",
                        "Name the folder of lm-listener, or that of one person.")
    for split, path in files:
        person = path.parent.resolve().name
        try:
            segments = _segments(path)
        except UserError as error:
            yield Job(f"{split}/{person}", problem=f"{error.problem} {error.remedy}")
            continue
        for row, segment in enumerate(segments):
            talk = str(segment.get("fname", "")) if isinstance(segment, dict) else ""
            yield make_job(split, f"{person}-{row:05d}", {"listener": path}, row, conversation=talk, listener_id=person)


@lru_cache(maxsize=1)
def _segments(path: Path) -> list[dict]:
    """The list in a segments_*.pth of numbers, texts, tensors and numpy arrays; code that the file may carry is not run."""
    import torch

    core = np._core.multiarray
    kinds = {type(np.dtype(name)) for name in ("f2", "f4", "f8", "i2", "i4", "i8", "u1", "?", "U1")}
    allowed = [np.ndarray, np.dtype, *kinds, *((getattr(core, name), f"numpy.{home}.multiarray.{name}")
                                               for name in ("_reconstruct", "scalar") for home in ("core", "_core"))]
    try:
        with torch.serialization.safe_globals(allowed):
            segments = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(f"{path} holds objects that only code of its own could build; it is not run.",
                        "Where you trust the file, load it with torch.load(FILE, weights_only=False), turn every entry into "
                        "tensors, numbers and texts, and save it again with torch.save.") from error
    except (RuntimeError, ValueError, EOFError, OSError, KeyError, TypeError, AttributeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path} cannot be read ({reason}).", AGAIN) from error
    if not isinstance(segments, list) or not segments:
        raise UserError(f"{path} holds no list of segments.", AGAIN)
    return segments


def _read_segment(job: Job) -> dict[str, Track]:
    path = job.files["listener"]
    segment, where, tracks = _segments(path)[job.row], f"{path} at segment {job.row}", {}
    for role, side in (("listener", 0), ("speaker", 1)):
        names = (f"p{side}_exp", f"p{side}_pose")
        if not isinstance(segment, dict) or any(name not in segment for name in names):
            raise UserError(f"{where} lacks {' or '.join(names)}.", AGAIN)
        tracks[role] = make_track(*(segment[name] for name in names), where)
    return tracks


LAYOUTS = {
    "learning2listen": Layout("[data/]<person>/{train,test}/p{0,1}_{list,speak}_faces_clean_deca.npy",
                              lambda folder: bool(_people(folder)), _windows, _read_window, fps=30,
                              warning=NO_SOUND.format("Learning2Listen"),
                              licence="Learning2Listen data set, DECA tracks: see its terms and those of DECA and FLAME"),
    "lm-listener": Layout("[dataset/]<person>/segments_{train,val,test}.pth", lambda folder: bool(_files(folder)),
                          _segment_jobs, _read_segment, fps=30, warning=NO_SOUND.format("lm-listener"),
                          licence="lm-listener data set (EMOCA tracks): see its terms and those of EMOCA and FLAME"),
}
