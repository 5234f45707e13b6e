"""From what `bench live` has noted to its figures and its table. Knows nothing of processes and browsers.

Axes: T rows of 40 ms, D = 56 motion.
"""

import time
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import numpy as np

from difflistener.errors import UserError
from difflistener.live import bench_figures as figures
from difflistener.live.bench_media import Person
from difflistener.motion import FPS, ROTATION

ANALYSER_S = 0.011
"""Half of the sound that the page's level is taken from."""
LONGEST_WAY_S = 5.0
"""No sound takes longer than this to become motion on the page."""
LEAST_MATCH, LEAST_LIKENESS = 0.4, 0.3
"""Correlation below which two courses of sound are not taken for the same, and one of motion and one of changing pixels; that of
others is at most 0.2 somewhere in a minute."""
ENCODED = 150

ROWS = {
    "cores": "processor cores",
    "path": "media go over",
    "seconds": "measured for, s",
    "picture_side": "shorter side of the pictures, pixels",
    "away_s": "seconds in which the page was not connected",
    "received_fps": "frames a second that the page shows",
    "longest_gap_s": "longest time without a new frame, s",
    "dropped_percent": "frames dropped by the server, %",
    "eased_frames": "frames shown without motion",
    "sound_lost_s": "sound that did not come, or came too late, s",
    "delay_p50_ms": "server: sound arrives -> frame that used it, median, ms",
    "delay_p95_ms": "  its 95th percentile in the worst minute",
    "total_ms": "page: sound at the microphone -> its motion shown, ms",
    "rest_ms": "  of it: capture, buffers and pages, ms",
    "hop_ms": "  of it: sound that the brain takes at once, ms",
    "features_p50_ms": "  of it: audio features, ms",
    "brain_p50_ms": "  of it: brain, ms",
    "wait_ms": "  of it: motion waits to be shown, ms",
    "body_p50_ms": "  of it: body, ms",
    "encode_ms": "  of it: encoder (measured alone), ms",
    "network_ms": "  of it: network, ms",
    "jitter_buffer_ms": "  of it: jitter buffer of the page, ms",
    "decode_ms": "  of it: decoder, ms",
    "track_p50_ms": "face tracking, beside it, ms",
    "face_seen": "share of time that the face is seen",
    "server_cpu_percent": "server's processor time, % of a core",
    "browser_cpu_percent": "browser's processor time, % of a core",
    "others_cpu_percent": "everything else's (0 on a quiet machine), % of a core",
    "memory_mb": "server's memory at the end, MB",
    "memory_growth_mb": "  its growth after the first minute, MB",
    "speech_silence_p": "motion in speech = motion in silence, p",
    "speech_silence_ratio": "  motion in speech over that in silence",
    "reaction_s": "end of a phrase -> fastest nodding, s",
    "reaction_90": "  90 % interval",
    "longest_still_s": "longest time the head is still, s",
    "schedule_match": "recorded sound against what was said, correlation",
}
"""Figure -> what it is, in the order of the table."""

LEAST_FPS = {"rtc": 24, "socket": 15}
ASKED = {
    "away_s": ("0", lambda value, path: value == 0),
    "received_fps": ("at least {}", lambda value, path: value >= LEAST_FPS.get(path, 24)),
    "dropped_percent": ("less than 1", lambda value, path: value < 1),
    "delay_p95_ms": ("at most 200", lambda value, path: value <= 200),
    "memory_growth_mb": ("less than 20", lambda value, path: value < 20),
    "speech_silence_p": ("less than .01", lambda value, path: value < 0.01),
    "longest_still_s": ("at most 2", lambda value, path: value <= 2),
    "picture_side": ("at least 256", lambda value, path: value >= 256),
}
"""Figure -> what is asked of it, in words and as a test."""


class Record(NamedTuple):
    """What the server recorded of the longest conversation, row by row."""

    sound: np.ndarray  # [T * 640] float32
    motion: np.ndarray  # [T, 56]


def read_record(folder: Path) -> Record:
    """The longest of the clips in `folder`. Raises `UserError` where there is none."""
    from difflistener.clip import Clip
    from difflistener.media import load_audio

    clips = [Clip.open(path.parent) for path in folder.glob("*/clip.json")]
    if not clips:
        raise UserError("The server has recorded nothing.", "Look at what it writes: difflistener live --record DIR")
    clip = max(clips, key=lambda one: one.num_frames)
    return Record(load_audio(clip.file("speaker", "audio.wav"))[: clip.num_frames * 640], np.array(clip.read("listener", "motion")))


def evaluate(course: dict, person: Person, record: Record, hop_ms: float, encode_ms: float) -> dict:
    """Figures of a run.

    Args:
        course: `Run.course`.
        hop_ms: sound that the brain takes at once.
        encode_ms: of one picture, alone (`time_encoder`).
    """
    seconds = course["seconds"]
    first, last = seconds[0], seconds[-1]
    span = (last["now"] - first["now"]) / 1000
    paths = sorted({str(one["media"]) for one in seconds})
    away = sum(one["state"] != "listening" for one in seconds)
    shown = np.array([time for time, _, change in course["rows"] if change is not None]) / 1000
    found = {"path": " and ".join(paths), "seconds": span, "away_s": away, "longest_gap_s": figures.longest_gap(shown),
             "received_fps": (last["frames"] - first["frames"]) / span}
    found |= _server(seconds) | _way(course, record, hop_ms, encode_ms) | _costs(seconds, span) | _behaviour(record, person)
    parts = [found[name] or 0.0 for name in ("delay_p50_ms", "encode_ms", "network_ms", "jitter_buffer_ms", "decode_ms")]
    stages = [found[name] or 0.0 for name in ("hop_ms", "features_p50_ms", "brain_p50_ms", "body_p50_ms")]
    found["wait_ms"] = None if found["delay_p50_ms"] is None else found["delay_p50_ms"] - sum(stages)
    found["rest_ms"] = None if found["total_ms"] is None else found["total_ms"] - sum(parts)
    return {name: float(f"{value:.4g}") if isinstance(value, float) else value for name, value in found.items()}


def _server(seconds: list[dict]) -> dict:
    """Frames and delays as the server counts them; of what it knows of the last minute, every minute's."""
    stats = [one["stats"] for one in seconds if one["stats"]]
    # A page that was cut off begins anew, and so do the counts.
    grown = lambda name: sum(max(after[name] - before[name], 0) for before, after in zip(stats, stats[1:]))
    lost = grown("dropped") + grown("skipped")
    found = {"dropped_percent": 100 * lost / max(grown("frames") + grown("dropped"), 1), "eased_frames": grown("eased"),
             "sound_lost_s": grown("silence_filled_s") + grown("audio_dropped_s"),
             "face_seen": stats[-1]["face_seen"]}
    minutes = stats[len(stats) - 1 :: -60]
    for stage in ("delay", "track", "features", "brain", "body"):
        for part, combine in (("p50", np.median), ("p95", np.max)):
            values = [value for one in minutes if (value := one[f"{stage}_ms"][part]) is not None]
            found[f"{stage}_{part}_ms"] = float(combine(values)) if values else None
    return found


def _way(course: dict, record: Record, hop_ms: float, encode_ms: float) -> dict:
    """Where the time goes from a sound at the page's microphone to the picture of the motion that answers it."""
    found = {"total_ms": _total(course["rows"], record), "hop_ms": hop_ms, "encode_ms": encode_ms}
    probe, video, pair = course["probe"], course["probe"]["video"], course["probe"]["pair"]
    per = lambda total, count: 1000 * video[total] / max(video[count], 1) if video else None
    found["jitter_buffer_ms"] = per("jitterBufferDelay", "jitterBufferEmittedCount")
    found["decode_ms"] = per("totalDecodeTime", "framesDecoded") if video else probe["decode_ms"]
    trips = [one["rtt_ms"] for one in course["seconds"] if one["rtt_ms"] is not None]
    found["network_ms"] = 500 * pair["currentRoundTripTime"] if pair else float(np.median(trips)) / 2 if trips else None
    return found


def _total(rows: list[list], record: Record) -> float | None:
    """Milliseconds from a sound at the microphone to its motion on the page, the median of all minutes.

    The record says which sound and which motion belong together. What the page heard is laid on the recorded sound, the changes
    of what it showed on the recorded motion: the difference is how long the one took to become the other.
    """
    # The head's turning is what changes most pixels.
    turning = (np.diff(record.motion[:, ROTATION], axis=0) ** 2).sum(1)
    moves = np.arange(1, len(turning) + 1) / FPS, turning
    levels = figures.level(record.sound, 160)
    sounds = (np.arange(len(levels)) + 0.5) / 100, levels
    table = np.array([[np.nan if value is None else value for value in row] for row in rows], float).reshape(-1, 3)
    times = table[:, 0] / 1000
    delays = []
    for start in np.arange(times[0], times[-1] - 15, 60.0):
        piece = (times >= start) & (times < start + 60)
        new = piece & ~np.isnan(table[:, 2])
        shown = figures.lag(*moves, times[new], table[new, 2])
        if shown is None or shown[1] < LEAST_LIKENESS:
            continue
        # The same is said again and again: of its places, only those before the motion can be meant.
        heard = figures.lag(*sounds, times[piece] - ANALYSER_S, table[piece, 1], within=(shown[0] - LONGEST_WAY_S, shown[0]))
        if heard and heard[1] > LEAST_MATCH:
            delays.append(1000 * (shown[0] - heard[0]))
    return float(np.median(delays)) if delays else None


def _costs(seconds: list[dict], span: float) -> dict:
    """Processor time, 100 being one core, and memory."""
    last = seconds[-1]
    share = lambda name: None if last[name] is None else 100 * (last[name] - seconds[0][name]) / span
    found = {"server_cpu_percent": share("server_cpu_s"), "browser_cpu_percent": share("browser_cpu_s"),
             "others_cpu_percent": None, "memory_mb": last["memory_mb"], "memory_growth_mb": None}
    if last["machine_cpu_s"] is not None:
        ours = found["server_cpu_percent"] + found["browser_cpu_percent"]
        found["others_cpu_percent"] = max(share("machine_cpu_s") - ours, 0.0)  # The machine counts ticks: a few per cent are nothing.
    if last["memory_mb"] is not None:
        times, held = (np.array([one[name] for one in seconds]) for name in ("at", "memory_mb"))
        found["memory_growth_mb"] = figures.growth(times, held)
    return found


def _behaviour(record: Record, person: Person) -> dict:
    """Whether the listener moves otherwise in speech than in silence, when it reacts, and how long it is still."""
    generator = np.random.default_rng(0)
    said = figures.level(person.sound)
    places, match = figures.align(figures.level(record.sound), said)
    found = {"schedule_match": match,
             **dict.fromkeys(("speech_silence_p", "speech_silence_ratio", "reaction_s", "reaction_90"))}
    if match > LEAST_MATCH:
        moved, nodding = figures.energy(record.motion), np.diff(record.motion[:, ROTATION.start]) ** 2
        contrast = figures.contrast(moved, figures.is_speech(person.turns, len(said))[places[1:]], generator)
        ends = np.flatnonzero(np.isin(places, (person.phrase_ends * FPS).round().astype(int) % len(said)))
        reaction = figures.reaction(nodding, ends, generator)
        if contrast:
            found |= {"speech_silence_p": contrast.p, "speech_silence_ratio": contrast.ratio}
        if reaction:
            found |= {"reaction_s": reaction[0], "reaction_90": f"{reaction[1]:.2f} to {reaction[2]:.2f}"}
    return found | {"longest_still_s": figures.longest_still(record.motion[:, ROTATION])}


def time_encoder(body: Path, motion: np.ndarray, path: str) -> tuple[float, int]:
    """Milliseconds to encode one picture of `motion` as the server does, alone, and the shorter side of the pictures."""
    import av
    import torch
    from aiortc.codecs.vpx import Vp8Encoder

    from difflistener.body.model import Body
    from difflistener.body.render import Renderer
    from difflistener.live.protocol import encode_picture
    from difflistener.synthesize import render_motion

    times, encoder = [], Vp8Encoder()
    for number, picture in enumerate(render_motion(Renderer(Body.from_pretrained(body)), torch.from_numpy(motion[:ENCODED]))):
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
        frame.pts, frame.time_base = number * 3600, Fraction(1, 90_000)
        begun = time.perf_counter()
        encoder.encode(frame) if path == "rtc" else encode_picture(picture, 85)
        times.append(1000 * (time.perf_counter() - begun))
    return float(np.median(times)), min(picture.shape[:2])


def show(measured: dict) -> None:
    """The table."""
    print(f"{'':<60}{'asked':<16}is")
    missed = unmet(measured)
    for name, words in ROWS.items():
        asked = ASKED[name][0].format(LEAST_FPS.get(measured["path"], 24)) if name in ASKED else ""
        value = "not measured" if measured[name] is None else measured[name]
        print(f"{words:<60}{asked:<16}{value}{'   NOT MET' if name in missed else ''}")


def unmet(measured: dict) -> list[str]:
    """Names of the figures that fall short of what is asked."""
    return [name for name, (_, is_met) in ASKED.items()
            if measured[name] is not None and not is_met(measured[name], measured["path"])]
