"""DualTalk (Peng et al. 2025; HF ZiqiaoPeng/DualTalk_Dataset): conversations of two, each of whom is once the listener.

    FOLDER/{train,test,ood}/<id>_speaker{1,2}.{wav,npz}      or the files of one split in FOLDER itself
        wav 16 kHz mono; npz exp [T, 50], pose [T, 6: rotation, jaw] (shape, tex, cam, light are left); 25 fps

Whole conversations are imported. (The published loader cuts windows and makes all windows of a conversation the last one.)
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from difflistener.errors import UserError
from difflistener.importers.source import Job, Layout, Track, make_job
from difflistener.stored_motion import read_track

SPLITS = ("train", "test", "ood")
FILE = re.compile(r"(.+)_speaker[12]\.(wav|npz)")


def _folders(folder: Path) -> list[tuple[str | None, Path]]:
    inside = [(split, folder / split) for split in SPLITS if (folder / split).is_dir()]
    return inside or [(folder.name if folder.name in SPLITS else None, folder)]


def _fits(folder: Path) -> bool:
    return any(FILE.fullmatch(entry.name) for _, part in _folders(folder) for entry in os.scandir(part))


def _jobs(folder: Path) -> Iterator[Job]:
    if not _fits(folder):
        raise UserError(f"{folder} holds no <id>_speaker1.npz or the like, neither itself nor in {', '.join(SPLITS)}.",
                        "Name the folder of the DualTalk data set.")
    for split, part in _folders(folder):
        there = set(os.listdir(part))
        for talk in sorted({found[1] for found in map(FILE.fullmatch, there) if found}):
            for listener, speaker in ((1, 2), (2, 1)):
                names = {"listener": f"{talk}_speaker{listener}.npz", "sound": f"{talk}_speaker{speaker}.wav",
                         "speaker": f"{talk}_speaker{speaker}.npz"}
                files = {role: part / name for role, name in names.items() if name in there}
                job = make_job(split, f"{talk}_listener{listener}", files, conversation=talk)
                lacking = [name for role, name in names.items() if role != "speaker" and name not in there]
                yield Job(job.name, problem=f"{part} lacks {' and '.join(lacking)}.") if lacking else job


def _read(job: Job) -> dict[str, Track]:
    motion = {role: read_track(job.files[role]) for role in ("listener", "speaker") if role in job.files}
    return {role: Track(values, np.ones(len(values), bool)) for role, values in motion.items()}


LAYOUTS = {"dualtalk": Layout("{train,test,ood}/<id>_speaker{1,2}.{wav,npz}", _fits, _jobs, _read, fps=25,
                              licence="DualTalk data set (card: Apache-2.0; derived from RealTalk): see also the terms of FLAME")}
