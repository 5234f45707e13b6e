"""`difflistener prepare`: videos of a speaker and a listener -> clip, in stages that can each be run again alone.

    landmarks   frames -> landmarks, valid, crop          video     the crop, re-encoded at 25 fps
    masks       frames -> labels, plate, torso motion     motion    landmarks, torso -> pose, template, codes
    audio       sound -> audio.wav, features              report    what a person should look at

A stage whose files stand in the clip with the same settings is skipped. Knows nothing of brains and bodies.
"""

import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from difflistener.assets import choose_flame, load_asset, read_header
from difflistener.basis import LandmarkBasis, fit_basis
from difflistener.clip import Clip, MaskWriter, sha256
from difflistener.errors import UserError
from difflistener.media import SAMPLES_PER_FRAME, VideoWriter, load_audio, num_frames, probe, read_frames, write_wav
from difflistener.motion import FLIP, FPS, NUM_MOTION, fill_gaps, runs
from difflistener.prepare.config import FitBasis, Prepare
from difflistener.prepare.sources import Crop, Source, choose_crop, find_sources, read_motion, test_frames
from difflistener.progress import progress

VIDEO_CRF = 8
"""Nearly lossless: the stored video is what a body learns from."""
FLAME_MISFIT = 0.05
"""Mean error of FLAME's landmarks, in inter-ocular distances, that is no fit."""
TRACK_FILES = {"speaker": ("expression.npy", "rotation.npy", "eyes.npy", "translation.npy", "camera.json"),
               "listener": ("motion.npy", "eyes.npy", "translation.npy", "camera.json")}
"""What the motion stage makes of each role."""


def prepare(config: Prepare) -> dict:
    """Make the clip and return what it holds."""
    sources, planned = find_sources(config)
    basis = LandmarkBasis.load(config.basis) if config.basis else None
    encoders = [make_chosen_encoder(name, config) for name in config.audio]
    if not config.resume and any(source.role == "speaker" for source in sources):
        # Asking for the width loads the weights: that they are missing is said before hours of tracking.
        assert all(encoder.dim > 0 for encoder in encoders)
    flame = choose_flame(config.tracker) if config.tracker != "landmarks" else None
    if flame and (basis or config.listener_motion):
        raise UserError(f"--tracker {config.tracker} does not go with --basis or --listener-motion.", "Leave one of them out.")
    if basis and config.listener_motion:
        warnings.warn("--basis is ignored: stored motion is in the basis that --motion-basis names.", stacklevel=2)
    with output_clip(config) as clip:
        if config.listener_motion is not None:
            _store_motion(clip, config, planned)
        else:
            for source in sources:
                if source.has_video:
                    _landmark_stage(clip, source, planned, config)
            _settle_length(clip, planned)
            clip.set(test_frames=test_frames(config, clip.num_frames))
            for source in sources:
                if source.has_video:
                    _video_stage(clip, source)
            if clip.has("listener", "landmarks.npy"):
                _mask_stage(clip)
            _motion_stage(clip, basis) if flame is None else _flame_stage(clip, flame)
        for source in sources:
            if source.role == "speaker":
                audio_stage(clip, source, encoders)
        _report_stage(clip)
        clip.check()
        summary = {"clip": str(config.out), "frames": clip.num_frames, "basis": clip.basis}
        for role in clip.roles():
            if clip.has(role, "valid.npy"):
                summary[f"{role}_valid"] = int(clip.read(role, "valid").sum())
        if clip.has("listener", "camera.json"):
            summary["reprojection_px"] = clip.read_json("listener", "camera.json")["reprojection_px"]
    return summary


@contextmanager
def output_clip(config: Prepare) -> Iterator[Clip]:
    """The clip to fill. With --overwrite the old one stays until the new one is whole."""
    out = config.out
    if config.overwrite and config.resume:
        raise UserError("--overwrite and --resume exclude each other.", "Give one of them.")
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file, not a folder.", "Name another --out.")
    occupied = out.is_dir() and any(out.iterdir())
    if occupied and not (out / "clip.json").is_file():
        raise UserError(f"{out} holds files that are not a clip; they are left alone.", "Name another --out.")
    if occupied and not (config.overwrite or config.resume):
        raise UserError(f"{out} already holds a clip.", "Give --resume to go on with it, --overwrite to replace it, or another --out.")
    folder = out.with_name(f".{out.name}.new") if occupied and config.overwrite else out
    clip = Clip.open(folder, check=False) if (folder / "clip.json").is_file() else Clip.create(folder)
    try:
        yield clip
    except UserError:
        if folder != out or not occupied:
            shutil.rmtree(folder)
        raise
    if folder != out:
        old = out.with_name(f".{out.name}.old.{os.getpid()}")
        out.rename(old)
        folder.rename(out)
        shutil.rmtree(old)
        clip.path = out


# ------------------------------------------------------------------------------------------------------- stages


def _store_motion(clip: Clip, config: Prepare, count: int) -> None:
    motion = read_motion(config)
    settings = {"source": config.listener_motion.name, "sha256": sha256(config.listener_motion), "start": config.start, "frames": count}
    clip.set(num_frames=count, test_frames=test_frames(config, count), basis=config.motion_basis)
    if all(clip.is_current("listener", name, settings) for name in ("motion.npy", "valid.npy")):
        return
    clip.write("listener", "motion", motion[:count], "import", settings)
    clip.write("listener", "valid", np.ones(count, bool), "import", settings)
    add_licence(clip, f"{config.motion_basis} motion from {config.listener_motion.name}: see the terms of its data set and of FLAME")


def _landmark_stage(clip: Clip, source: Source, planned: int, config: Prepare) -> None:
    from difflistener.prepare.landmarks import track_landmarks

    settings = source.settings(planned) | {"size": config.size}
    if all(clip.is_current(source.role, name, settings) for name in ("landmarks.npy", "valid.npy", "crop.json")):
        return
    info = probe(source.path)
    frames = (frame for frame, _ in progress(source.frames(planned), f"track {source.role}", total=planned))
    points, valid = track_landmarks(frames, f"{source.path}{f' ({source.side} half)' if source.side else ''}")
    _warn_of_gaps(source, valid)
    points = fill_gaps(points, valid)
    crop = choose_crop(points[valid], source.width(info.width), info.height, config.size)
    clip.set(num_frames=None)
    clip.write(source.role, "landmarks", crop.landmarks(points), "mediapipe face mesh", settings)
    clip.write(source.role, "valid", valid, "mediapipe face mesh", settings)
    with clip.adding(source.role, "crop.json", "prepare", settings) as temporary:
        _dump(temporary, vars(crop))


def _warn_of_gaps(source: Source, valid: np.ndarray) -> None:
    missing = runs(~valid)
    if missing:
        spans = ", ".join(f"{a / FPS:.2f}-{b / FPS:.2f} s" for a, b in missing[:6]) + (" and more" if len(missing) > 6 else "")
        warnings.warn(f"{source.path.name}: no face in {int((~valid).sum())} of {len(valid)} frames ({spans}); they are marked invalid.", stacklevel=2)


def _settle_length(clip: Clip, planned: int) -> None:
    """Give every role the number of frames that all have."""
    lengths = {role: len(np.load(clip.file(role, "landmarks.npy"), mmap_mode="r")) for role in clip.roles() if clip.has(role, "landmarks.npy")}
    count = min([planned, *lengths.values()])
    if clip.num_frames is None or not lengths:
        clip.set(num_frames=count)
    for role, length in lengths.items():
        if length > count:
            for name in ("landmarks", "valid"):
                entry = clip.meta["roles"][role][f"{name}.npy"]
                clip.write(role, name, np.array(clip.read(role, name)[:count]), entry["producer"], entry["settings"])


def _video_stage(clip: Clip, source: Source) -> None:
    crop = Crop(**clip.read_json(source.role, "crop.json"))
    settings = {"crop": vars(crop), "landmarks": clip.meta["roles"][source.role]["landmarks.npy"]["sha256"], "crf": VIDEO_CRF}
    if clip.is_current(source.role, "video.mp4", settings):
        return
    with clip.adding(source.role, "video.mp4", "x264", settings) as temporary:
        with VideoWriter(temporary, crop.size, crop.size, crf=VIDEO_CRF) as writer:
            for frame, _ in progress(source.frames(clip.num_frames), f"store {source.role}", total=clip.num_frames):
                writer.write_frame(crop(frame))


def _motion_stage(clip: Clip, given: LandmarkBasis | None) -> None:
    from difflistener.prepare.expression import encode, landmark_weights, reprojection_error
    from difflistener.prepare.pose import displacements
    from difflistener.prepare.posture import find_posture, fit_follow

    roles = [role for role in clip.roles() if clip.has(role, "landmarks.npy")]
    if not roles:
        return
    settings = {"basis": given.id if given else "own", "test_frames": clip.meta["test_frames"],
                "torso": clip.meta["roles"]["listener"]["torso.npy"]["sha256"] if clip.has("listener", "torso.npy") else None,
                "landmarks": {role: clip.meta["roles"][role]["landmarks.npy"]["sha256"] for role in roles}}
    has_basis = (clip.path / "basis.safetensors").is_file()
    if has_basis and all(clip.is_current(role, name, settings) for role in roles for name in TRACK_FILES[role]):
        return
    tracks = {role: _fit_pose(clip, role) for role in roles}
    learned = {role: clip.read(role, "valid") & ~clip.is_test() for role in roles}
    follows = {role: fit_follow(*_placed(clip, role, tracks[role], learned[role])) for role in roles}
    postures = {role: find_posture(follows[role], *_placed(clip, role, tracks[role])) for role in roles}
    basis = given
    if basis is None:
        moved, swayed = [], []
        for role in roles:
            points, valid = np.array(clip.read(role, "landmarks")), np.array(clip.read(role, "valid"))
            if learned[role].any():
                moved.append(displacements(tracks[role], points, valid)[learned[role]])
                swayed.append(postures[role][learned[role]])
        basis = fit_basis(moved, landmark_weights(), swayed)
    basis.save(clip.path / "basis.safetensors")
    clip.set(basis=basis.id)
    for role in roles:
        points, valid, track = np.array(clip.read(role, "landmarks")), np.array(clip.read(role, "valid")), tracks[role]
        codes = encode(track, points, valid, basis, postures[role])
        error = float(np.mean(reprojection_error(track, points, valid, basis, codes)[valid]))
        _store_track(clip, role, track, points, valid, codes, settings,
                     {"reprojection_px": round(error, 3), "neck": follows[role].neck.tolist(), "torso_map": follows[role].torso_map.tolist()})


def _flame_stage(clip: Clip, edition: str) -> None:
    """Motion in FLAME's codes instead of the landmark basis; `rotation`, `translation` and camera.json's template in its axes."""
    from dataclasses import replace

    from difflistener.assets import EMBEDDING
    from difflistener.flame import Flame, FlameLandmarks
    from difflistener.prepare.face_points import gaze
    from difflistener.prepare.flame_fit import fit_flame
    from difflistener.prepare.posture import fit_follow

    headers = {name: read_header(name) for name in (edition, EMBEDDING)}
    model = None
    clip.set(basis=edition)
    (clip.path / "basis.safetensors").unlink(missing_ok=True)
    add_licence(clip, f"{edition} codes: {headers[edition]['licence']}")
    for role in clip.roles():
        if not clip.has(role, "landmarks.npy"):
            continue
        settings = {"basis": edition, "assets": {name: header["source_sha256"] for name, header in headers.items()},
                    "test_frames": clip.meta["test_frames"], "landmarks": clip.meta["roles"][role]["landmarks.npy"]["sha256"]}
        if all(clip.is_current(role, name, settings) for name in (*TRACK_FILES[role], "neck.npy")):
            continue
        model = model or FlameLandmarks(Flame(load_asset(edition)), load_asset(EMBEDDING))
        points, valid = np.array(clip.read(role, "landmarks")), np.array(clip.read(role, "valid"))
        head = _fit_pose(clip, role)
        track = fit_flame(model, points, valid, head, gaze(points, valid))
        error = float(np.nanmean(track.reprojection_px))
        if error > FLAME_MISFIT * head.pixels_per_unit:
            warnings.warn(f"{role}: {edition} fits the landmarks badly, {error:.1f} px on average. Does the landmark embedding "
                          "belong to this model?", stacklevel=2)
        learned = valid & ~clip.is_test()
        torso = np.array(clip.read(role, "torso"), np.float64)[learned] if clip.has(role, "torso.npy") else None
        follow = fit_follow(track.rotation[learned], track.translation[learned], torso)
        clip.write(role, "neck", track.neck.astype(np.float32), "flame fit", settings)
        if role == "speaker":
            clip.write(role, "jaw", (FLIP * track.jaw).astype(np.float32), "flame fit", settings)
        fitted = {"reprojection_px": round(error, 3), "neck": follow.neck.tolist(), "torso_map": follow.torso_map.tolist(),
                  "flame": {"shape": np.round(track.shape, 4).tolist(), "scale": track.scale, "origin": track.origin.tolist()}}
        placed = replace(head, rotation=track.rotation, translation=track.translation, template=track.template)
        _store_track(clip, role, placed, points, valid, track.expression.astype(np.float32), settings, fitted, FLIP * track.jaw, "flame fit")


def _placed(clip: Clip, role: str, track, frames=slice(None)):
    """Tracked rotation, translation and torso motion (None for a speaker) of some frames."""
    torso = np.array(clip.read(role, "torso"), np.float64)[frames] if clip.has(role, "torso.npy") else None
    return track.rotation[frames], track.translation[frames], torso


def _fit_pose(clip: Clip, role: str):
    from difflistener.prepare.flow import refine_with_flow
    from difflistener.prepare.pose import fit_head

    points, valid = np.array(clip.read(role, "landmarks")), np.array(clip.read(role, "valid"))
    path = clip.file(role, "video.mp4")
    info = probe(path)
    track = fit_head(points, valid, info.width, info.height)
    frames = (frame for frame, _ in progress(read_frames(path), f"follow {role}", total=clip.num_frames))
    return refine_with_flow(frames, track, points, valid)


def _store_track(clip: Clip, role: str, track, points, valid, codes, settings: dict, fitted: dict,
                 jaw: np.ndarray | None = None, producer: str = "landmark and flow fit") -> None:
    from difflistener.prepare.face_points import eye_closure, gaze

    rotation = fill_gaps(track.rotation.astype(np.float32), valid, is_rotation=True)
    translation = fill_gaps(track.translation.astype(np.float32), valid)
    codes = fill_gaps(codes, valid)
    eyes = np.concatenate([eye_closure(points, valid), gaze(points, valid)], 1).astype(np.float32)
    if role == "listener":
        motion = np.concatenate([codes, rotation, np.zeros_like(rotation) if jaw is None else jaw.astype(np.float32)], 1)
        assert motion.shape[1] == NUM_MOTION
        clip.write(role, "motion", motion, producer, settings)
    else:
        clip.write(role, "expression", codes, producer, settings)
        clip.write(role, "rotation", rotation, producer, settings)
    clip.write(role, "eyes", eyes, producer, settings)
    clip.write(role, "translation", translation, producer, settings)
    info = probe(clip.file(role, "video.mp4"))
    camera = {"width": info.width, "height": info.height, "focal": float(track.focal), "cx": float(track.cx), "cy": float(track.cy),
              "template": np.round(track.template, 5).tolist()} | fitted
    with clip.adding(role, "camera.json", producer, settings) as temporary:
        _dump(temporary, camera)


def _mask_stage(clip: Clip) -> None:
    from PIL import Image

    from difflistener.prepare.masks import PersonSegmenter, Plate, label_frames
    from difflistener.prepare.torso import TorsoTracker

    settings = {"video": clip.meta["roles"]["listener"]["video.mp4"]["sha256"], "test_frames": clip.meta["test_frames"]}
    names = ("mask.npz", "background.png", "torso.npy")
    if all(clip.is_current("listener", name, settings) for name in names):
        return
    points, valid = np.array(clip.read("listener", "landmarks")), np.array(clip.read("listener", "valid"))
    shows_plate = valid & ~clip.is_test()
    plate, torso, segmenter = Plate(), TorsoTracker(), PersonSegmenter()
    frames = read_frames(clip.file("listener", "video.mp4"))
    with clip.adding("listener", "mask.npz", "mediapipe selfie segmentation", settings) as temporary:
        writer = MaskWriter(temporary)
        labelled = label_frames(frames, points, valid, segmenter)
        for index, ((frame, labels, person), _) in enumerate(progress(labelled, "mask listener", total=clip.num_frames)):
            writer.write(labels)
            torso.add(frame, labels, points[index] if valid[index] else None)
            if shows_plate[index]:
                plate.add(frame, person)
            last = frame
        writer.close()
    segmenter.close()
    image = plate.image()
    if image is None:
        warnings.warn("The listener fills every frame: the background plate is plain grey.", stacklevel=2)
        image = np.full_like(last, 128)
    with clip.adding("listener", "background.png", "prepare", settings) as temporary:
        Image.fromarray(image).save(temporary, format="PNG")
    motion, _, note = torso.result()
    if note:
        warnings.warn(f"listener: {note}.", stacklevel=2)
    clip.write("listener", "torso", motion, "prepare", settings)


def make_chosen_encoder(name: str, config: Prepare):
    from difflistener.prepare.audio import make_encoder

    return make_encoder(name, **({"model": config.wav2vec2_model} if name == "wav2vec2" else {}))


def audio_stage(clip: Clip, source: Source, encoders: list) -> None:
    settings = source.settings(clip.num_frames)
    samples = None
    if not clip.is_current("speaker", "audio.wav", settings):
        samples = _sound(source, clip.num_frames)
        with clip.adding("speaker", "audio.wav", "PyAV", settings) as temporary:
            write_wav(temporary, samples)
    for encoder in encoders:
        name = encoder.name
        feature_settings = {"source": settings, "encoder": encoder.settings()}
        if clip.is_current("speaker", f"{name}.npy", feature_settings):
            continue
        samples = _sound(source, clip.num_frames) if samples is None else samples
        clip.write("speaker", name, encoder.encode(samples, clip.num_frames), name, feature_settings)


def _sound(source: Source, count: int) -> np.ndarray:
    """Exactly count * 640 samples: cut, or padded with silence."""
    samples = load_audio(source.path, source.start, count / FPS)[: count * SAMPLES_PER_FRAME]
    return np.pad(samples, (0, count * SAMPLES_PER_FRAME - len(samples)))


def _report_stage(clip: Clip) -> None:
    from difflistener.prepare.report import write_report

    for role in clip.roles():
        if not clip.has(role, "landmarks.npy"):
            continue
        settings = {name: entry["sha256"] for name, entry in sorted(clip.meta["roles"][role].items()) if name != "report.png"}
        if not clip.is_current(role, "report.png", settings):
            with clip.adding(role, "report.png", "prepare", settings) as temporary:
                write_report(temporary, role, **_report_inputs(clip, role))


def _report_inputs(clip: Clip, role: str) -> dict:
    from PIL import Image

    from difflistener.clip import read_masks

    valid, points = np.array(clip.read(role, "valid")), np.array(clip.read(role, "landmarks"))
    shown = set(np.linspace(0, clip.num_frames - 1, 8).round().astype(int).tolist())
    frames = {i: frame for i, frame in enumerate(read_frames(clip.file(role, "video.mp4"))) if i in shown}
    labels = {}
    if clip.has(role, "mask.npz"):
        labels = {i: label for i, label in enumerate(read_masks(clip.file(role, "mask.npz"))) if i in shown}
    camera = clip.read_json(role, "camera.json")
    motion = np.array(clip.read(role, "motion")) if role == "listener" else None
    rotation = motion[:, 50:53] if role == "listener" else np.array(clip.read(role, "rotation"))
    codes = motion[:, :50] if role == "listener" else np.array(clip.read(role, "expression"))
    curves = {"rotation (degrees)": np.degrees(rotation), "translation (inter-ocular)": np.array(clip.read(role, "translation")),
              "expression codes 1-5": codes[:, :5], "eyelid closure": np.array(clip.read(role, "eyes"))[:, :2]}
    if role == "speaker" and clip.has(role, "logmel.npy"):
        curves["loudness (log-mel mean)"] = np.array(clip.read(role, "logmel")).mean(1, keepdims=True)
    background = np.array(Image.open(clip.file(role, "background.png")).convert("RGB")) if clip.has(role, "background.png") else None
    facts = {"frames": str(clip.num_frames), "valid": f"{valid.sum()} ({100 * valid.mean():.1f} %)", "basis": clip.basis,
             "reprojection": f"{camera['reprojection_px']:.2f} px", "focal": f"{camera['focal']:.0f} px",
             "size": f"{camera['width']}x{camera['height']}"}
    samples = [(i, frames[i], points[i] if valid[i] else None, labels.get(i)) for i in sorted(frames)]
    return {"samples": samples, "background": background, "curves": curves, "valid": valid, "facts": facts}


def _dump(path: Path, value: dict) -> None:
    import json

    path.write_text(json.dumps(value) + "\n")


def add_licence(clip: Clip, entry: str) -> None:
    if entry not in clip.meta["licences"]:
        clip.set(licences=[*clip.meta["licences"], entry])


# -------------------------------------------------------------------------------------------------- other verbs


def fit_shared_basis(config: FitBasis) -> dict:
    """Fit one basis on all tracked people of several clips and write it."""
    from difflistener.prepare.expression import landmark_weights
    from difflistener.prepare.pose import HeadTrack, displacements
    from difflistener.prepare.posture import Follow, find_posture

    if config.out.exists() and not config.overwrite:
        raise UserError(f"{config.out} exists.", "Give --overwrite to replace it, or another --out.")
    moved, swayed = [], []
    for path in config.clips:
        clip = Clip.open(path)
        for role in clip.roles():
            if not clip.has(role, "landmarks.npy"):
                continue
            camera = clip.read_json(role, "camera.json")
            rotation = clip.motion().rotation if role == "listener" else np.array(clip.read(role, "rotation"))
            track = HeadTrack(camera["focal"], camera["cx"], camera["cy"], rotation, np.array(clip.read(role, "translation")),
                              np.array(camera["template"]), np.zeros(clip.num_frames, bool), camera["reprojection_px"])
            points, valid = np.array(clip.read(role, "landmarks")), np.array(clip.read(role, "valid"))
            learned = valid & ~clip.is_test()
            moved.append(displacements(track, points, valid)[learned])
            follow = Follow(np.array(camera["neck"]), np.array(camera["torso_map"]))
            swayed.append(find_posture(follow, *_placed(clip, role, track, learned)))
    if not moved:
        raise UserError("None of these clips holds a tracked face.", "Prepare clips from videos first.")
    basis = fit_basis(moved, landmark_weights(), swayed)
    basis.save(config.out)
    return {"basis": basis.id, "file": str(config.out), "people": len(moved), "frames": sum(map(len, moved))}


def track_speaker(video: Path, basis: LandmarkBasis) -> np.ndarray:
    """Expression codes [T, 50] of the face in a video, in `basis`, as `prepare` would store them."""
    from difflistener.prepare.landmarks import track_landmarks
    from difflistener.prepare.expression import encode
    from difflistener.prepare.flow import refine_with_flow
    from difflistener.prepare.pose import fit_head
    from difflistener.prepare.posture import find_posture, fit_follow

    info = probe(video)
    frames = (frame for frame, _ in progress(read_frames(video), "track speaker", total=num_frames(info.duration_s)))
    points, valid = track_landmarks(frames, str(video))
    points = fill_gaps(points, valid)
    frames = (frame for frame, _ in progress(read_frames(video), "follow speaker", total=len(points)))
    track = refine_with_flow(frames, fit_head(points, valid, info.width, info.height), points, valid)
    posture = find_posture(fit_follow(track.rotation[valid], track.translation[valid], None), track.rotation, track.translation, None)
    return fill_gaps(encode(track, points, valid, basis, posture), valid)
