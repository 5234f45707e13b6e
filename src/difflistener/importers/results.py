"""Results of face trackers for single people: each becomes a clip with a listener's motion alone. Nothing is unpickled.

    frames   FOLDER/<clip>/[<method>/]<frame>/{exp,pose}.npy     EMOCA, and DECA saved alike: exp 50, pose 6 (rotation, jaw)
    tracks   FOLDER/<clip>.npz     exp [T, 50], pose [T, 6]                                               EMOCA, DECA
                                   expression_params [T, 50], pose_params [T, 3], jaw_params [T, 3]       SMIRK
                                   expr [T, 50+], rotation, neck_pose, jaw_pose [T, 3]                    VHAP
    vhap     FOLDER/<clip>/flame_param/<frame>.npz               the same names, one frame each

<frame> begins with the frame's number. Of VHAP the first 50 coefficients are kept, and rotation and neck become one rotation.
The frame rate and the basis are not in the files: --fps and --motion-basis say them. SMIRK's eyelids and VHAP's eyes and
translation are left.
"""

import os
import zipfile
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

from difflistener.errors import UserError
from difflistener.importers.source import AGAIN, Job, Layout, Track, make_job, make_track, read_exp_pose, read_frames
from difflistener.motion import NUM_EXPRESSION

NAMES = (("exp", "pose"), ("expression_params", "pose_params", "jaw_params"), ("expr", "rotation", "neck_pose", "jaw_pose"))
"""Arrays of one tracker each; the first set that is whole is read."""
PICKLES = (".pkl", ".pickle")
UNSAFE = "Where you trust them, load them with pickle and save exp [T,50] and pose [T,6] of each with numpy.savez."


def read_results(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """exp [T, 50] and pose [T, 6] of an .npz with one of the sets in `NAMES`. `UserError` names what lacks or does not fit."""
    if not path.is_file():
        raise UserError(f"{path} is missing.", AGAIN)
    try:
        with np.load(path, allow_pickle=False) as archive:
            names = next((names for names in NAMES if set(names) <= set(archive.files)), None)
            if names is None:
                raise UserError(f"{path} holds {', '.join(archive.files) or 'nothing'}.",
                                f"It should hold {', or '.join(' + '.join(names) for names in NAMES)}.")
            arrays = [archive[name].astype(np.float64) for name in names]
    except (ValueError, TypeError, EOFError, OSError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path} is not a readable .npz file ({error}).", AGAIN) from error
    shapes = f"{path} holds {', '.join(f'{name} {list(array.shape)}' for name, array in zip(names, arrays))}."
    arrays = [array[None] if array.ndim == 1 else array for array in arrays]
    if any(array.ndim != 2 or len(array) != len(arrays[0]) for array in arrays) or arrays[0].shape[1] < NUM_EXPRESSION:
        raise UserError(shapes, "All must have one row per frame, and 50 coefficients of expression.")
    exp, *turns = arrays
    if len(turns) == 1:
        return exp, turns[0]
    if any(turn.shape[1] != 3 for turn in turns):
        raise UserError(shapes, "A rotation has three numbers, axis-angle in radians.")
    if len(turns) == 3:
        rotation, neck, jaw = turns
        turns = [(Rotation.from_rotvec(rotation) * Rotation.from_rotvec(neck)).as_rotvec(), jaw]
        exp = exp[:, :NUM_EXPRESSION]
    return exp, np.concatenate(turns, 1)


def find_frames(clip: Path) -> Path | None:
    """`clip` itself, or the first folder in it, that holds folders named by frame numbers; None without one."""
    if not clip.is_dir():
        return None
    inside = sorted(entry.name for entry in os.scandir(clip) if entry.is_dir())
    if any(name[0].isdigit() for name in inside):
        return clip
    return next((clip / name for name in inside
                 if any(entry.is_dir() and entry.name[0].isdigit() for entry in os.scandir(clip / name))), None)


def _clips(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _fits_frames(folder: Path) -> bool:
    return any((frames := find_frames(clip)) and any(frames.glob("*/exp.npy")) for clip in _clips(folder))


def _frame_jobs(folder: Path) -> Iterator[Job]:
    for clip in _clips(folder):
        frames = find_frames(clip)
        job = make_job(None, clip.name, {"listener": frames or clip})
        yield job if frames else Job(job.name, problem=f"{clip} holds no <frame>/exp.npy.")


def _read_frames(job: Job) -> dict[str, Track]:
    return {"listener": read_frames(job.files["listener"], read_exp_pose)}


def _fits_tracks(folder: Path) -> bool:
    return any(path.suffix in (".npz", *PICKLES) for path in folder.iterdir())


def _track_jobs(folder: Path) -> Iterator[Job]:
    files = sorted(path for path in folder.iterdir() if path.suffix in (".npz", *PICKLES))
    if files and all(path.suffix in PICKLES for path in files):
        raise UserError(f"{folder} holds only pickles such as {files[0].name}: reading them can run code that they carry.",
                        UNSAFE)
    for path in files:
        job = make_job(None, path.stem, {"listener": path})
        yield Job(job.name, problem=f"{path} is a pickle. {UNSAFE}") if path.suffix in PICKLES else job


def _read_track(job: Job) -> dict[str, Track]:
    path = job.files["listener"]
    return {"listener": make_track(*read_results(path), str(path))}


def _vhap_jobs(folder: Path) -> Iterator[Job]:
    for clip in _clips(folder):
        yield make_job(None, clip.name, {"listener": clip / "flame_param"})


def _read_one(path: Path) -> tuple[np.ndarray, np.ndarray]:
    exp, pose = read_results(path)
    if exp.shape != (1, NUM_EXPRESSION) or pose.shape != (1, 6):
        raise UserError(f"{path} holds exp {list(exp.shape)} and pose {list(pose.shape)}, expected [1, 50] and [1, 6].", AGAIN)
    return exp[0], pose[0]


def _read_vhap(job: Job) -> dict[str, Track]:
    return {"listener": read_frames(job.files["listener"], _read_one)}


_single = partial(Layout, fps=None, basis=None)
LAYOUTS = {
    "vhap": _single("<clip>/flame_param/<frame>.npz",
                    lambda folder: any((clip / "flame_param").is_dir() for clip in _clips(folder)), _vhap_jobs, _read_vhap,
                    licence="VHAP tracks: see the terms of VHAP, of FLAME and of the video"),
    "frames": _single("<clip>/[<method>/]<frame>/{exp,pose}.npy", _fits_frames, _frame_jobs, _read_frames,
                      licence="EMOCA or DECA tracks: see the terms of the tracker, of FLAME and of the video"),
    "tracks": _single("<clip>.npz with exp and pose, or with the names of SMIRK or VHAP", _fits_tracks, _track_jobs, _read_track,
                      licence="FLAME tracks: see the terms of the tracker, of FLAME and of the video"),
}
