"""`difflistener export body`: a posed head as 3D Gaussian splatting .ply files, for other viewers and renderers.

One vertex a Gaussian, little-endian float32, INRIA's attribute order without higher spherical harmonics:

    x y z nx ny nz f_dc_0..2 opacity scale_0..2 rot_0..3

f_dc = (colour - 0.5) / 0.28209479177387814 (Kerbl et al. 2023, degree 0), opacity as logit, scale as natural logarithm,
rot as unit quaternion wxyz, normals zero. Axes are the camera's (OpenCV: x right, y down, z away), which is what such
files hold by custom; the unit is the person's inter-ocular distance; the head's origin lies at 0, so that viewers
orbit about it. Header comments say where the filming camera then stands and how it sees. The background plate is no
part of the head and is left out; colours that depend on the view are those that the filming camera sees.
Knows nothing of brains or videos. Axes: T frames, B frames a chunk, N Gaussians.
"""

import errno
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro

from difflistener.errors import UserError

SH_DEGREE_0 = 0.28209479177387814
"""The constant spherical harmonic, 1 / (2 sqrt(pi))."""
ATTRIBUTES = ("x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2", "opacity",
              "scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3")
MIN_OPACITY = 1e-6
"""Opacities are held this far from 0 and 1, where a logit is infinite."""
CHUNK = 16
FORMAT = 1
MARKER = "sequence.json"


@dataclass(frozen=True)
class ExportBody:
    """Write a body's posed Gaussians as .ply, which SuperSplat, gsplat and other 3D Gaussian splatting viewers open.

    Example: difflistener export body bodies/ben --to ply --out head.ply
    """

    body: Annotated[Path, tyro.conf.Positional]
    """Folder of the body."""
    out: Path
    """File to write (.ply); for ply-sequence the folder for frame_00000.ply, frame_00001.ply and so on."""
    to: Literal["ply", "ply-sequence"] = "ply"
    """One posed frame, or a file for every frame of --motion."""
    motion: Path | None = None
    """What poses the head: a .npy [T,56], an .npz with exp [T,50] and pose [T,6], or a clip (its listener). Without it:
    the body's reference pose with a neutral expression."""
    frame: int | None = None
    """Which frame of --motion to write with --to ply. Default: the first."""
    resume: bool = False
    """Go on with a sequence that was interrupted: whole frames are kept."""
    overwrite: bool = False
    """Replace what stands at --out."""


def export_body(config: ExportBody) -> dict:
    """Write the file or the files; returns what was written."""
    from difflistener.body.model import Body

    _check(config)
    body = Body.from_pretrained(config.body)
    if config.to == "ply-sequence":
        return _write_sequence(body, config)
    if config.out.exists() and not config.overwrite:
        raise UserError(f"{config.out} exists.", "Give --overwrite to replace it, or another --out.")
    (content,) = ply_files(body, _pose(body, config)[None])
    _write(config.out, content)
    return {"file": str(config.out), "gaussians": body.config.num_gaussians, "bytes": len(content)}


def reference_pose(body):
    """Motion [56] of the pose that the body was started from, with a neutral expression."""
    import torch

    from difflistener.motion import NUM_MOTION, ROTATION

    motion = torch.zeros(NUM_MOTION, device=body.device)
    motion[ROTATION] = body.reference_rotation
    return motion


def ply_files(body, motion):
    """Yield one .ply, as bytes, for every row of motion [B, 56]; translation, torso and eyes follow from the motion."""
    import torch

    with torch.no_grad():
        translation, torso, eyes = body.follow(motion)
        posed = body.gaussians(motion, translation, torso, eyes)
    centred = posed._replace(means=posed.means - translation[:, None], scales=posed.scales.expand_as(posed.means))
    camera = [*(f"{-value:.6g}" for value in translation.flatten().tolist())]
    for row in range(len(motion)):
        one = [values[row].cpu().numpy() for values in centred]
        yield encode_ply(*one, [
            "axes: x right, y down, z away from the camera; unit: inter-ocular distance; the head lies at 0",
            f"filmed by a camera at {' '.join(camera[3 * row : 3 * row + 3])} that looks along z",
            f"K {' '.join(f'{value:.6g}' for value in body.K.flatten().tolist())}",
            f"size {body.config.width} {body.config.height}",
        ])


def encode_ply(means: np.ndarray, quats: np.ndarray, scales: np.ndarray, opacities: np.ndarray, colors: np.ndarray,
               comments: list[str]) -> bytes:
    """The bytes of a .ply of N Gaussians.

    Args:
        means, scales, colors: [N, 3]; standard deviations above zero; colours of any range, as they are rendered.
        quats: [N, 4], wxyz, of any length above zero.
        opacities: [N], 0..1.
        comments: lines for the header, plain ASCII.
    """
    held = np.clip(opacities.astype(np.float64), MIN_OPACITY, 1 - MIN_OPACITY)
    columns = [means, np.zeros_like(means), (colors - 0.5) / SH_DEGREE_0, np.log(held / (1 - held))[:, None],
               np.log(scales), quats / np.linalg.norm(quats, axis=1, keepdims=True)]
    table = np.concatenate(columns, 1).astype("<f4")
    header = ["ply", "format binary_little_endian 1.0", *(f"comment {line}" for line in comments),
              f"element vertex {len(table)}", *(f"property float {name}" for name in ATTRIBUTES), "end_header", ""]
    return "\n".join(header).encode("ascii") + table.tobytes()


def _check(config: ExportBody) -> None:
    """Raise `UserError` where settings do not go together."""
    if config.to == "ply":
        if config.out.suffix.lower() != ".ply":
            raise UserError(f"--out {config.out} is not a .ply file.",
                            "Give it a name that ends in .ply, or use --to ply-sequence.")
        if config.frame is not None and config.motion is None:
            raise UserError(f"--frame {config.frame} was given without --motion.", "Name the motion that it is a frame of.")
        if config.resume:
            raise UserError("--resume goes with --to ply-sequence.",
                            "Leave it out: a single file is written whole or not at all.")
        return
    if config.motion is None:
        raise UserError("--to ply-sequence needs a motion.", "Name one with --motion: a .npy [T,56], an .npz or a clip.")
    if config.frame is not None:
        raise UserError("--frame goes with --to ply.", "Leave it out: a sequence holds all frames of --motion.")
    if config.resume and config.overwrite:
        raise UserError("--overwrite and --resume exclude each other.", "Give one of them.")


def _pose(body, config: ExportBody):
    """Motion [56] of the one frame to write."""
    import torch

    from difflistener.stored_motion import load_motion

    if config.motion is None:
        return reference_pose(body)
    motion = load_motion(config.motion, body.config.basis)
    frame = config.frame or 0
    if not 0 <= frame < len(motion):
        raise UserError(f"--frame is {frame}; {config.motion} has frames 0 to {len(motion) - 1}.", "Choose one of them.")
    return torch.from_numpy(motion[frame])


def _write_sequence(body, config: ExportBody) -> dict:
    import torch

    from difflistener.progress import progress
    from difflistener.stored_motion import load_motion

    motion = torch.from_numpy(load_motion(config.motion, body.config.basis))
    _open_folder(config, body, motion)
    missing = [frame for frame in range(len(motion)) if not _frame_path(config.out, frame).is_file()]
    done = len(motion) - len(missing)
    for (frame, content), _ in progress(_in_chunks(body, motion, missing), "export", total=len(motion), start=done):
        _write(_frame_path(config.out, frame), content)
    return {"folder": str(config.out), "frames": len(motion), "written": len(missing), "gaussians": body.config.num_gaussians}


def _frame_path(folder: Path, frame: int) -> Path:
    return folder / f"frame_{frame:05d}.ply"


def _in_chunks(body, motion, frames: list[int]):
    """Yield (frame, .ply bytes) for the named frames of motion [T, 56]."""
    for start in range(0, len(frames), CHUNK):
        chunk = frames[start : start + CHUNK]
        yield from zip(chunk, ply_files(body, motion[chunk]))


def _open_folder(config: ExportBody, body, motion) -> None:
    """Make the folder ready; sequence.json says what its frames are of, so that two sequences never mix."""
    import hashlib

    from difflistener.clip import sha256, write_json

    out = config.out
    settings = {"library": "difflistener", "type": "ply-sequence", "format": FORMAT, "frames": len(motion),
                "body": sha256(config.body / "model.safetensors"), "motion": hashlib.sha256(motion.numpy().tobytes()).hexdigest()}
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file, not a folder.", "Name another --out.")
    before = _read_marker(out) if out.is_dir() and any(out.iterdir()) else None
    if before is None and config.resume:
        raise UserError(f"{out} holds no sequence to resume.", "Leave --resume out.")
    if before is not None and not (config.resume or config.overwrite):
        raise UserError(f"{out} already holds a sequence.",
                        "Give --resume to go on with it, --overwrite to replace it, or another --out.")
    if config.resume and before != settings:
        changed = next(name for name in settings if before.get(name) != settings[name])
        raise UserError(f"The sequence in {out} was written with another {changed}.",
                        "Resume with the same body and motion, or start over with --overwrite.")
    out.mkdir(parents=True, exist_ok=True)
    if config.overwrite:
        for path in out.glob("frame_*.ply"):
            path.unlink()
    missing = sum(not _frame_path(out, frame).is_file() for frame in range(len(motion)))
    needed, free = missing * body.config.num_gaussians * len(ATTRIBUTES) * 4, shutil.disk_usage(out).free
    if needed > free:
        raise UserError(f"{missing} frames need {needed / 1e9:.1f} GB, {out} has {free / 1e9:.1f} GB free.",
                        "Free some space, choose another --out, or export a shorter motion.")
    write_json(out / MARKER, settings)


def _read_marker(folder: Path) -> dict:
    try:
        marker = json.loads((folder / MARKER).read_text())
        if marker["type"] == "ply-sequence":
            return marker
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise UserError(f"{folder} holds files that are not a sequence of difflistener; they are left alone.", "Name another --out.")


def _write(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all."""
    from difflistener.clip import replacing

    try:
        with replacing(path) as temporary:
            temporary.write_bytes(content)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(f"The disk is full: {path} could not be written.",
                        "Free some space, then run the same command again (a sequence with --resume); whole files are kept."
                        ) from error
