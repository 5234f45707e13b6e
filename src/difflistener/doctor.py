"""Says what works on this machine: each part, whether it loads, and how to get it if it does not."""

import importlib
import importlib.metadata
import importlib.resources
import os
import platform
import sys
from dataclasses import dataclass

from difflistener.errors import OPTIONAL_PACKAGES, UserError

FACE_MODELS = ("face_detection/face_detection_short_range.tflite", "face_landmark/face_landmark_with_attention.tflite",
               "selfie_segmentation/selfie_segmentation.tflite")
"""Models that face tracking and masks use; the mediapipe 0.10.14 wheel carries them, later ones do not."""


@dataclass(frozen=True)
class Doctor:
    """Say what works on this machine and what to install."""

    json: bool = False
    """Print one JSON line instead of a table."""


@dataclass(frozen=True)
class Finding:
    part: str
    works: bool
    detail: str
    needed: bool = True


def doctor(config: Doctor) -> int:
    """Print the findings; exit code 1 if something that every verb needs is broken."""
    findings = examine()
    if config.json:
        import json

        print(json.dumps([vars(finding) for finding in findings]))
    else:
        width = max(len(f.part) for f in findings)
        for f in findings:
            print(f"{'ok ' if f.works else 'NO ' if f.needed else '-  '} {f.part:<{width}}  {f.detail}")
    return 0 if all(f.works for f in findings if f.needed) else 1


def examine() -> list[Finding]:
    """One finding for each part, tried by loading it."""
    findings = [Finding("python", sys.version_info >= (3, 11), f"{platform.python_version()} on {platform.system()} {platform.machine()}, {_cores()} cores")]
    findings += [_torch(), _cuda(), _rasteriser(), _codecs()]
    findings += [_optional(package) for package in OPTIONAL_PACKAGES]
    findings.append(_face_models())
    return findings


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _attempt(part: str, look, remedy: str, needed: bool = True) -> Finding:
    try:
        return Finding(part, True, look(), needed)
    except (ImportError, OSError, RuntimeError, AttributeError, UserError) as error:
        reason = error.problem if isinstance(error, UserError) else str(error)
        if not isinstance(error, (UserError, RuntimeError)):
            reason = f"{type(error).__name__}: {reason}"
        return Finding(part, False, f"{reason.splitlines()[0]}  ->  {remedy}", needed)


def _torch() -> Finding:
    def look():
        import torch

        return f"{torch.__version__}, {torch.get_num_threads()} threads"

    return _attempt("torch", look, "pip install torch")


def _cuda() -> Finding:
    def look():
        import torch

        if not torch.cuda.is_available():
            raise RuntimeError("torch sees no CUDA GPU; everything runs on the CPU")
        return f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}"

    return _attempt("CUDA", look, "a GPU and the CUDA build of torch make training faster", needed=False)


def _rasteriser() -> Finding:
    def look():
        from difflistener.body.raster import instruction_set

        return f"C++, instruction set {instruction_set()}"

    return _attempt("CPU rasteriser", look, "pip install difflistener builds it (needs a C++17 compiler)")


def _codecs() -> Finding:
    def look():
        import av

        from difflistener.media import VIDEO_ENCODERS

        encoder = next((name for name in VIDEO_ENCODERS if name in av.codecs_available), None)
        if encoder is None:
            raise RuntimeError("no H.264 or MPEG-4 encoder")
        decoders = [name for name in ("h264", "hevc", "vp9", "av1", "aac", "opus") if name in av.codecs_available]
        return f"PyAV {av.__version__}: writes {encoder}, reads {', '.join(decoders)}"

    return _attempt("media", look, "pip install --force-reinstall av")


def _optional(package: str) -> Finding:
    extra, purpose = OPTIONAL_PACKAGES[package]

    def look():
        module = importlib.import_module(package)
        version = getattr(module, "__version__", None) or importlib.metadata.version(package)
        return f"{version} ({purpose})"

    return _attempt(package, look, f'for {purpose}: pip install "difflistener[{extra}]"', needed=False)


def _face_models() -> Finding:
    def look():
        folder = importlib.resources.files("mediapipe") / "modules"
        missing = [name for name in FACE_MODELS if not (folder / name).is_file()]
        if missing:
            raise RuntimeError(f"this mediapipe lacks {missing[0]}")
        return ", ".join(name.split("/")[1].removesuffix(".tflite") for name in FACE_MODELS)

    return _attempt("face models", look, 'pip install "difflistener[track]" on Python 3.11 or 3.12 brings them', needed=False)
