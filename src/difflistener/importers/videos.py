"""Data sets of videos: a script of `difflistener prepare` commands, one per clip. Tracking them is hours of work of its own.

    OUT/prepare.sh        tracks 40 training clips, fits one basis on them, prepares all clips in it, marks them
    OUT/speakers/*.mkv    videos of speakers whose sound is a file apart, joined with it; pictures are copied as they are

The script may be stopped and started again. Its last command is the import once more, which enters split, attitude, ids and
licence in the clips that are there.
"""

import shlex
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import numpy as np

from difflistener.clip import Clip, replacing
from difflistener.errors import UserError
from difflistener.importers.config import Import
from difflistener.importers.source import AGAIN, Job, Layout
from difflistener.media import SAMPLE_RATE, load_audio, probe
from difflistener.prepare.pipeline import add_licence

BASIS_CLIPS = 40
"""Training clips that the basis is fitted on: enough people, and few enough for memory."""


def ready(out: Path, job: Job, layout: Layout) -> None:
    """See that the videos of `job` can be prepared, and mark its clip if it has been. Raises `UserError`."""
    for role in ("listener", "speaker"):
        if not job.files[role].is_file():
            raise UserError(f"{job.files[role]} is missing.", AGAIN)
        if not probe(job.files[role]).has_video:
            raise UserError(f"{job.files[role]} has no pictures.", AGAIN)
    if not probe(job.files["speaker"]).has_audio and not _joined(out, job).is_file():
        if not job.files["sound"].is_file():
            raise UserError(f"{job.files['speaker']} has no sound, and {job.files['sound']} is missing.", AGAIN)
        join(job.files["speaker"], job.files["sound"], _joined(out, job))
    if is_prepared(out / job.name):
        clip = Clip.open(out / job.name, check=False)
        clip.set(**job.facts)
        add_licence(clip, layout.licence)


def is_prepared(path: Path) -> bool:
    """Whether `prepare` has come far enough with the clip at `path` to train on it."""
    if not (path / "clip.json").is_file():
        return False
    clip = Clip.open(path, check=False)
    return clip.has("listener", "motion.npy") and all(clip.has("speaker", f"{name}.npy") for name in ("expression", "valid"))


def join(video: Path, sound: Path, out: Path) -> None:
    """Write a Matroska file with the pictures of `video` as they are and `sound`, mono 16 kHz, from its first picture on."""
    import av

    samples = (load_audio(sound) * 32768).astype(np.int16)
    with replacing(out) as temporary, av.open(str(video)) as source, av.open(str(temporary), "w", format="matroska") as target:
        pictures = source.streams.video[0]
        shown, heard = target.add_stream_from_template(pictures), target.add_stream("pcm_s16le", rate=SAMPLE_RATE, layout="mono")
        begin = round(float((pictures.start_time or 0) * pictures.time_base) * SAMPLE_RATE)
        for packet in source.demux(pictures):
            if packet.dts is not None:
                packet.stream = shown
                target.mux(packet)
        for start in range(0, len(samples), SAMPLE_RATE):
            frame = av.AudioFrame.from_ndarray(samples[None, start : start + SAMPLE_RATE], "s16", "mono")
            frame.sample_rate, frame.time_base, frame.pts = SAMPLE_RATE, Fraction(1, SAMPLE_RATE), begin + start
            target.mux(heard.encode(frame))
        target.mux(heard.encode(None))


def write_script(config: Import, layout: str, jobs: Iterable[Job]) -> Path:
    """Write OUT/prepare.sh for jobs that are `ready`."""
    out = config.out.resolve()
    jobs = list(jobs)
    first = [job for job in jobs if job.facts.get("split") in (None, "train")][:BASIS_CLIPS] or jobs[:BASIS_CLIPS]
    basis, quoted = shlex.quote(str(out / "basis.safetensors")), " ".join(shlex.quote(str(out / job.name)) for job in first)
    again = ["difflistener", "import", str(config.folder.resolve()), "--layout", layout, "--out", str(out), *_audio(config),
             *(["--limit", str(config.limit)] if config.limit else []), "--resume"]
    lines = ["#!/bin/sh", f"# Prepares the {len(jobs)} clips of {layout}; it may be stopped and started again.",
             "# Every line of the last part stands alone: they can be spread over machines that share the folder.", "",
             f"if [ ! -f {basis} ]; then",
             *(f"  {_command(config, out, job)}" for job in first),
             "  set --", f"  for clip in {quoted}; do", '    if [ -f "$clip/clip.json" ]; then set -- "$@" "$clip"; fi', "  done",
             f'  difflistener basis "$@" --out {basis} || exit 1', "fi", "",
             *(_command(config, out, job, "--basis", str(out / "basis.safetensors")) for job in jobs), "", shlex.join(again), ""]
    path = out / "prepare.sh"
    with replacing(path) as temporary:
        temporary.write_text("\n".join(lines))
        temporary.chmod(0o755)
    return path


def _command(config: Import, out: Path, job: Job, *more: str) -> str:
    speaker = _joined(out, job) if _joined(out, job).is_file() else job.files["speaker"]
    return shlex.join(["difflistener", "prepare", "--speaker", str(speaker.resolve()),
                       "--listener", str(job.files["listener"].resolve()), "--out", str(out / job.name), *_audio(config), *more,
                       "--resume"])


def _audio(config: Import) -> list[str]:
    model = ["--wav2vec2-model", config.wav2vec2_model] if "wav2vec2" in config.audio else []
    return ["--audio", *config.audio, *model]


def _joined(out: Path, job: Job) -> Path:
    return out / "speakers" / f"{job.name.replace('/', '_')}.mkv"
