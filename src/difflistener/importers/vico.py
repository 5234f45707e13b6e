"""ViCo (Zhou et al. 2022): speaker and listener of 483 clips, with the listener's attitude. 30 fps.

    vico            RLD_data.csv (or the one .csv), videos/<name>.mp4, audios/<audio>.wav
    vico-emoca      the same table and audios/, emoca/<name>/EMOCA_v2_lr_mse_20/<frame>/{exp,pose}.npy
    vico-challenge  <split>.csv with video_id, uuid, speaker_id, listener_id; videos/[<split>/]<uuid>.{listener,speaker}.mp4,
                    audios/[<split>/]<uuid>.wav (recons/*.mat is left: its 64 expressions are not FLAME's)

Columns of the table are found by their names; where these are not as in `COLUMNS`, by their order. A clip is named after its
sound.
"""

import csv
from collections.abc import Iterator
from pathlib import Path

from difflistener.brain.config import ATTITUDES
from difflistener.errors import UserError
from difflistener.importers.results import find_frames
from difflistener.importers.source import Job, Layout, Track, make_job, read_exp_pose, read_frames

COLUMNS = ("attitude", "audio", "listener", "speaker", "listener_id", "speaker_id", "data_split")
"""In the order of the published table."""
SPLITS = ("train", "test", "ood")
CHALLENGE_COLUMNS = ("video_id", "uuid", "speaker_id", "listener_id")
LICENCE = "ViCo data set (Zhou et al. 2022): see its terms"


def _read_csv(path: Path) -> list[list[str]]:
    """Rows that are not empty."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            return [row for row in ([cell.strip() for cell in line] for line in csv.reader(file)) if any(row)]
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} is not a table in UTF-8 ({error}).", "Fetch it again.") from error


def _header(path: Path) -> list[str]:
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        return [cell.strip().lower() for cell in file.readline().split(",")]


# ----------------------------------------------------------------------------------------------------- one table


def _table(folder: Path) -> Path | None:
    if (folder / "RLD_data.csv").is_file():
        return folder / "RLD_data.csv"
    tables = sorted(path for path in folder.glob("*.csv") if "uuid" not in _header(path))
    return tables[0] if len(tables) == 1 else None


def _rows(folder: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """(number of the row, cells by the names in `COLUMNS`). `UserError` where there is no such table."""
    path = _table(folder)
    if path is None:
        raise UserError(f"{folder} holds no RLD_data.csv, nor one other .csv.", "Put the table of ViCo there.")
    rows = _read_csv(path)
    names = [cell.lower() for cell in rows[0]] if rows else []
    if set(COLUMNS[1:]) <= set(names):
        place = {name: names.index(name) for name in COLUMNS[1:]}
        place["attitude"] = next((names.index(name) for name in ("attitude", "sentiment") if name in names), 0)
        body = rows[1:]
    else:
        place = {name: index for index, name in enumerate(COLUMNS)}
        headless = bool(rows) and len(rows[0]) == len(COLUMNS) and names[-1] in SPLITS
        body = rows if headless else rows[1:]
    if not body:
        raise UserError(f"{path} holds no clip.", f"It should have one line per clip: {', '.join(COLUMNS)}.")
    if all(len(row) <= max(place.values()) for row in body):
        raise UserError(f"{path} has {len(body[0])} columns, expected {len(COLUMNS)}.", f"They should be {', '.join(COLUMNS)}.")
    for number, row in enumerate(body, 1):
        yield number, {name: row[index] if index < len(row) else "" for name, index in place.items()}


def _jobs(folder: Path, files_of) -> Iterator[Job]:
    """files_of(cells) -> files of a job."""
    for number, cells in _rows(folder):
        split, attitude = cells["data_split"].lower(), cells["attitude"].lower()
        lacking = [name for name in ("audio", "listener", "speaker", "data_split") if not cells[name]]
        if lacking:
            yield Job(f"row {number}", problem=f"Row {number} of the table lacks {', '.join(lacking)}.")
            continue
        # The sound's name is the recording's with start and end.
        job = make_job(split, cells["audio"], files_of(cells), attitude=attitude, conversation=cells["audio"].rsplit("_", 2)[0],
                       speaker_id=cells["speaker_id"], listener_id=cells["listener_id"])
        if attitude not in ATTITUDES:
            job = Job(job.name, problem=f"Row {number} of the table has the attitude {cells['attitude']!r}, none of "
                                        f"{', '.join(ATTITUDES)}.")
        yield job


def _video_jobs(folder: Path) -> Iterator[Job]:
    if not (folder / "videos").is_dir():
        raise UserError(f"{folder} holds no videos/.", "Unpack the videos of ViCo there.")
    return _jobs(folder, lambda cells: {"listener": folder / "videos" / f"{cells['listener']}.mp4",
                                        "speaker": folder / "videos" / f"{cells['speaker']}.mp4",
                                        "sound": folder / "audios" / f"{cells['audio']}.wav"})


def _emoca_jobs(folder: Path) -> Iterator[Job]:
    if not (folder / "emoca").is_dir():
        raise UserError(f"{folder} holds no emoca/.", "Put the folders that EMOCA made of ViCo there.")
    return _jobs(folder, lambda cells: {"listener": folder / "emoca" / cells["listener"],
                                        "speaker": folder / "emoca" / cells["speaker"],
                                        "sound": folder / "audios" / f"{cells['audio']}.wav"})


def _read_emoca(job: Job) -> dict[str, Track]:
    return {role: read_frames(find_frames(job.files[role]) or job.files[role], read_exp_pose) for role in ("listener", "speaker")}


# ----------------------------------------------------------------------------------------------------- challenge


def _challenge_tables(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.csv") if "uuid" in _header(path))


def _challenge_jobs(folder: Path) -> Iterator[Job]:
    tables = _challenge_tables(folder)
    if not tables:
        raise UserError(f"{folder} holds no <split>.csv with the columns {', '.join(CHALLENGE_COLUMNS)}.",
                        "Put the tables of the challenge there.")
    if not (folder / "videos").is_dir():
        raise UserError(f"{folder} holds no videos/.", "Unpack the videos of the challenge there.")
    found = False
    for path in tables:
        names, *rows = _read_csv(path)
        names = [name.lower() for name in names]
        lacking = [name for name in CHALLENGE_COLUMNS if name not in names]
        if lacking:
            raise UserError(f"{path} lacks the column {', '.join(lacking)}.", f"It should have {', '.join(CHALLENGE_COLUMNS)}.")
        for number, row in enumerate(rows, 1):
            found = True
            cells = dict(zip(names, row))
            if not cells.get("uuid"):
                yield Job(f"{path.stem} row {number}", problem=f"Row {number} of {path.name} lacks uuid.")
                continue
            split, name = path.stem, cells["uuid"]
            files = {role: _inside(folder / "videos", split, f"{name}.{role}.mp4") for role in ("listener", "speaker")}
            files["sound"] = _inside(folder / "audios", split, f"{name}.wav")
            yield make_job(split, name, files, conversation=cells.get("video_id", ""), speaker_id=cells.get("speaker_id", ""),
                           listener_id=cells.get("listener_id", ""))
    if not found:
        raise UserError(f"{' and '.join(path.name for path in tables)} in {folder} hold no clip.", "Fetch the tables again.")


def _inside(folder: Path, split: str, name: str) -> Path:
    return folder / split / name if (folder / split / name).is_file() else folder / name


LAYOUTS = {
    "vico-emoca": Layout("RLD_data.csv, audios/<audio>.wav, emoca/<name>/EMOCA_v2_lr_mse_20/<frame>/{exp,pose}.npy",
                         lambda folder: (folder / "emoca").is_dir() and _table(folder) is not None,
                         _emoca_jobs, _read_emoca, fps=30,
                         licence="ViCo data set (Zhou et al. 2022), EMOCA tracks: see its terms and those of EMOCA and FLAME"),
    "vico-challenge": Layout("<split>.csv, videos/<uuid>.{listener,speaker}.mp4, audios/<uuid>.wav",
                             lambda folder: bool(_challenge_tables(folder)), _challenge_jobs, None, LICENCE, None, None),
    "vico": Layout("RLD_data.csv, videos/<name>.mp4, audios/<audio>.wav",
                   lambda folder: (folder / "videos").is_dir() and _table(folder) is not None,
                   _video_jobs, None, LICENCE, None, None),
}
