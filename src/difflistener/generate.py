"""Clips -> generated motion, a file a clip: what `evaluate motion` scores. No body is needed, nothing is rendered.

Axes: K samples, T frames at 25 fps, A audio feature.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from difflistener.errors import UserError


@dataclass(frozen=True)
class Generation:
    """Generate reactions to the speakers of clips, as OUT/NAME.npy: [T, 56], or [K, T, 56] of several samples.

    Example: difflistener generate brains/b clips/test/* --out generated --samples 10;
    then difflistener evaluate motion generated clips/test --preset honest
    """

    brain: Annotated[Path, tyro.conf.Positional]
    """Folder of the brain."""
    clips: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Clips whose speakers are answered."""
    out: Path
    """Folder for the motion."""
    samples: int = 1
    """Reactions to each clip."""
    start_frames: int = 0
    """True frames of the listener that reactions begin from, as protocols allow: declare it. The output repeats them."""
    attitude: bool = True
    """Tell a dit the attitude that a clip is marked with."""
    num_steps: int | None = None
    """DDIM steps, 1 to 50. Default: 15, or those that the brain was distilled to."""
    seed: int = 0
    """Seed of the reactions; each clip has reactions 0 to samples - 1 under it."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute."""
    resume: bool = False
    """Leave files alone that are there already: of an interrupted run."""
    overwrite: bool = False
    """Replace files that are there already."""


def generate(config: Generation) -> dict:
    """Write the motion of every clip and return how many there are and how fast it went.

    Raises:
        UserError: a clip that lacks what the brain hears, of another basis, or of the name of another; output in use.
    """
    import time

    import numpy as np
    import torch

    from difflistener.brain.model import Brain
    from difflistener.clip import Clip, replacing
    from difflistener.device import resolve_device
    from difflistener.progress import progress

    targets = _targets(config)
    brain = Brain.from_pretrained(config.brain, resolve_device(config.device))
    for clip in config.clips:
        _check(clip, brain)
    left = [(clip, target) for clip, target in targets if not (config.resume and target.exists())]
    config.out.mkdir(parents=True, exist_ok=True)
    begun, frames = time.monotonic(), 0
    for (path, target), _ in progress(left, "generate", len(targets), len(targets) - len(left)):
        clip = Clip.open(path, check=False)
        given, fixed = _speaker(clip, brain, config)
        motion = brain.generate_many(**{name: value.expand(config.samples, *value.shape) for name, value in given.items()},
                                     num_steps=config.num_steps, seed=config.seed, **_manner(clip, brain, config))
        motion = torch.cat([fixed.expand(config.samples, -1, -1), motion], 1).cpu().numpy()
        with replacing(target) as temporary, temporary.open("wb") as file:
            np.save(file, motion if config.samples > 1 else motion[0])
        frames += motion.shape[0] * motion.shape[1]
    seconds = max(time.monotonic() - begun, 1e-9)
    return {"out": str(config.out), "clips": len(targets), "samples": config.samples, "frames_per_s": round(frames / seconds, 1)}


def _targets(config: Generation) -> list[tuple[Path, Path]]:
    """Every clip and its file."""
    if not config.clips:
        raise UserError("No clip was given.", "Name at least one clip folder.")
    for name, least in (("samples", 1), ("start_frames", 0), ("seed", 0)):
        if getattr(config, name) < least:
            raise UserError(f"--{name.replace('_', '-')} is {getattr(config, name)}.", f"Give a number from {least} up.")
    if config.resume and config.overwrite:
        raise UserError("--overwrite and --resume exclude each other.", "Give one of them.")
    if config.out.exists() and not config.out.is_dir():
        raise UserError(f"{config.out} is a file, not a folder.", "Name another --out.")
    targets = [(clip, config.out / f"{clip.resolve().name}.npy") for clip in config.clips]
    seen: dict[Path, Path] = {}
    for clip, target in targets:
        if target in seen:
            raise UserError(f"{seen[target]} and {clip} would both be written to {target}.", "Give them --out folders of their own.")
        seen[target] = clip
        if target.exists() and not (config.resume or config.overwrite):
            raise UserError(f"{target} exists.", "Give --resume to keep it, --overwrite to replace it, or another --out.")
    return targets


def _check(path: Path, brain) -> None:
    """Raise `UserError` for a clip that the brain cannot answer."""
    from difflistener.clip import Clip

    clip, feature = Clip.open(path), f"{brain.config.audio}.npy"
    if not clip.has("speaker", feature):
        raise UserError(f"The clip {path} has no speaker feature {brain.config.audio!r}, which the brain hears.",
                        f"Prepare it again with --audio {brain.config.audio}.")
    if clip.meta["roles"]["speaker"][feature]["settings"]["encoder"] != brain.config.audio_settings:
        raise UserError(f"The clip {path} has {brain.config.audio} with other settings than the brain hears.",
                        "Prepare the clip again with the settings in the brain's config.json.")
    if clip.basis != brain.basis:
        raise UserError(f"The clip {path} speaks basis {clip.basis}, the brain basis {brain.basis}.",
                        "Prepare the clip in the basis that the brain was trained in.")


def _speaker(clip, brain, config: Generation):
    """What is perceived, without the frames that are given: arguments of `Brain.generate`; and the given frames [n, 56]."""
    import numpy as np
    import torch

    first = config.start_frames

    def read(role: str, name: str):
        return torch.from_numpy(np.array(clip.read(role, name), np.float32))

    audio, fixed = read("speaker", brain.config.audio), torch.zeros(0, 56)
    if first:
        if not clip.has("listener", "motion.npy") or len(audio) <= first:
            raise UserError(f"The clip {clip.path} has no {first} true frames to begin from.", "Give fewer --start-frames.")
        fixed = read("listener", "motion")[:first]
    given = {"audio": audio[first:]} | ({"start": fixed} if first else {})
    if brain.config.uses_face and clip.has("speaker", "expression.npy"):
        given["expression"] = read("speaker", "expression")[first:]
        if clip.has("speaker", "valid.npy"):
            given["expression_valid"] = read("speaker", "valid")[first:]
    return given, fixed


def _manner(clip, brain, config: Generation) -> dict[str, str]:
    attitude = clip.meta.get("attitude")
    return {"attitude": attitude} if attitude and config.attitude and brain.config.network == "dit" else {}
