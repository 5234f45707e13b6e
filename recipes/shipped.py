"""Make what ships with the package, from nothing but procedural people: basis, doings, body and brain.

    PYTHONPATH=src python recipes/shipped.py --out FOLDER --part basis|doings|body|brain [--device cpu]

Parts build on those before them, in that order. What a killed run has done is found again in --work (default: beside
FOLDER). The same seed makes the same files; a GPU's last digits may differ.

    basis    FOLDER/basis.safetensors    the landmark basis of BASIS_PEOPLE people who do everything faces do
    doings   FOLDER/doings.safetensors   for the toy's listener (index 0) and DOINGS_PEOPLE others, how doings show in tracked codes:
             `directions` [P, 50, 6] codes per unit of smile, brow, blink, gaze yaw, gaze pitch, mouth (units of toy.codes.DOINGS),
             `rest` [P, 50] codes with all at 0, `spread` [P, 50] deviation of the codes of a still face whose head moves
    body     FOLDER/body                 the toy's listener as Gaussians
    brain    FOLDER/brain                one step of diffusion, distilled from a teacher that learned from BRAIN_HOURS of conversation
"""

import argparse
import json
import warnings
from pathlib import Path

import numpy as np

from difflistener.clip import replacing
from difflistener.progress import progress
from difflistener.toy.faces import DOINGS

BASIS_PEOPLE, BASIS_FRAMES = 64, 200
DOINGS_PEOPLE, DOINGS_FRAMES, DOINGS_STILL = 32, 400, 150
SIZE = 256
POSTURE_STD = np.array([0.15, 0.08, 0.30, 0.012, 0.010, 0.025])
"""How far people sway beyond what their head's turning says: head 14, 7 and 27 mm across, up and towards the camera (a tracked
depth is mostly noise); torso 1.2 and 1 % of a picture's width and 1.4 degrees."""
BODY_SIZE, BODY_GAUSSIANS, BODY_STEPS, BODY_BATCH, BODY_SECONDS = 320, 11_000, 1500, 3, 44.0
FILM_CRF = 8
BRAIN_HOURS, BRAIN_TEST_HOURS, BRAIN_STEPS, STUDENT_STEPS = 80.0, 0.3, 9000, 2400


# -------------------------------------------------------------------------------------------------------- basis


def make_basis(given: argparse.Namespace) -> dict:
    from difflistener.basis import fit_basis
    from difflistener.prepare.expression import landmark_weights
    from difflistener.prepare.face_points import MIRROR

    moved, asked, kept = [], 0, 0
    for number, _ in progress(range(BASIS_PEOPLE), "people"):
        landmarks, valid = broad_person(number, given)
        asked, kept = asked + len(valid), kept + int(valid.sum())
        seen = face_of(landmarks, valid)[1]
        moved.append(np.concatenate([seen, seen[:, MIRROR] * np.float32([-1, 1, 1])]))
    # Six rows whose mean square is the spread's.
    basis = fit_basis(moved, landmark_weights(), [np.diag(POSTURE_STD) * np.sqrt(len(POSTURE_STD))])
    basis.save(given.out / "basis.safetensors")
    return {"basis": basis.id, "people": len(moved), "frames": kept, "not_tracked": asked - kept}


def broad_person(number: int, given: argparse.Namespace) -> tuple[np.ndarray, np.ndarray]:
    """Landmarks [T, 478, 3] and valid [T] of one person who acts broadly."""
    from difflistener.toy import people

    def make():
        generator = np.random.default_rng([given.seed, 1, number])
        person = people.draw_person(generator)
        return {}, people.film(person, people.act_broadly(BASIS_FRAMES, generator), SIZE, generator)

    stored = tracked(given.work / f"broad-{number:03}.npz", make)
    return stored["landmarks"], stored["valid"]


def tracked(path: Path, make) -> dict[str, np.ndarray]:
    """What the file holds; if there is none, what `make` says of its film, and the landmarks of the film's frames."""
    from difflistener.prepare.landmarks import track_landmarks

    if not path.is_file():
        about, frames = make()
        landmarks, valid = track_landmarks(frames, path.stem)
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez(file, landmarks=landmarks, valid=valid, **about)
    return dict(np.load(path))


def face_of(landmarks: np.ndarray, valid: np.ndarray):
    """Head track and displacements of the valid frames."""
    from difflistener.prepare.pose import displacements, fit_head

    seen = np.ones(valid.sum(), bool)
    track = fit_head(landmarks[valid], seen, SIZE, SIZE)
    return track, displacements(track, landmarks[valid], seen)


# ------------------------------------------------------------------------------------------------------- doings


def make_doings(given: argparse.Namespace) -> dict:
    from safetensors.numpy import save_file

    from difflistener.basis import LandmarkBasis

    basis = LandmarkBasis.load(given.out / "basis.safetensors")
    people = [doing_person(number, given, basis) for number, _ in progress(range(1 + DOINGS_PEOPLE), "doings")]
    maps = [doings_map(*person) for person in people]
    # A safetensors file takes memory as it lies.
    tensors = {name: np.ascontiguousarray(np.stack([m[k] for m in maps]), np.float32)
               for k, name in enumerate(("directions", "rest", "spread"))}
    header = {"library": "difflistener", "type": "doings", "format": "1", "basis": basis.id, "doings": ",".join(DOINGS)}
    with replacing(given.out / "doings.safetensors") as temporary:
        save_file(tensors, temporary, metadata=header)
    scores = np.array([read_back(people, number) for number in range(len(people))])
    for number, row in enumerate(scores):
        print(f"person {number}: R2 of " + ", ".join(f"{name} {score:.2f}" for name, score in zip(DOINGS, row, strict=True)))
    return {"people": len(maps), "R2": {name: {"listener": round(float(column[0]), 3), "median": round(float(np.median(column)), 3),
                                               "least": round(float(column.min()), 3)}
                                        for name, column in zip(DOINGS, scores.T, strict=True)}}


def doing_person(number: int, given: argparse.Namespace, basis) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Codes [T, 50], doings [T, 6], rotation [T, 3] and whether the face is still [T], of one person's tracked frames; 0 is the
    toy's listener."""
    from difflistener.prepare.expression import encode
    from difflistener.toy import CHARACTERS, people

    def make():
        generator = np.random.default_rng([given.seed, 2, number])
        person, manner = people.draw_person(generator), people.draw_manner(generator)
        if number == 0:
            person, manner = CHARACTERS["listener"], people.Manner({}, {}, {})
        acting, doings = people.do_doings(DOINGS_FRAMES, DOINGS_STILL, manner, generator)
        return {"doings": doings}, people.film(person, acting, SIZE, generator)

    stored = tracked(given.work / f"doing-{number:03}.npz", make)
    valid = stored["valid"]
    track, _ = face_of(stored["landmarks"], valid)
    codes = encode(track, stored["landmarks"][valid], np.ones(len(track), bool), basis, np.zeros((len(track), 6)))
    return codes.astype(np.float64), stored["doings"][valid], track.rotation, np.flatnonzero(valid) < DOINGS_STILL


def doings_map(codes: np.ndarray, doings: np.ndarray, rotation: np.ndarray, still: np.ndarray) -> tuple[np.ndarray, ...]:
    """Directions [50, 6], rest [50] and spread [50] of one person."""
    rows = np.column_stack([doings, np.ones(len(doings)), _pose_terms(rotation)])
    fitted = np.linalg.lstsq(rows, codes, rcond=None)[0]
    return fitted[:6].T, fitted[6], codes[still].std(0)


def _pose_terms(rotation: np.ndarray) -> np.ndarray:
    """[T, 9] first and second order of rotation [T, 3], each of mean 0: what a head's pose leaks into codes is not a doing."""
    turned = (rotation - rotation.mean(0)) / rotation.std(0)
    products = np.stack([turned[:, i] * turned[:, j] for i in range(3) for j in range(i + 1)], 1)
    return np.concatenate([turned, products - products.mean(0)], 1)


def read_back(people: list, unseen: int) -> np.ndarray:
    """R^2 [6] of the doings of one person, read from codes by ridge regression on all others; codes are from each one's rest."""
    def from_rest(codes, _doings, _rotation, still):
        return codes - codes[still].mean(0)

    others = [person for number, person in enumerate(people) if number != unseen]
    codes, doings = np.concatenate([from_rest(*person) for person in others]), np.concatenate([person[1] for person in others])
    centre, usual = codes.mean(0), doings.mean(0)
    gram = (codes - centre).T @ (codes - centre) + 0.1 * len(codes) * np.eye(codes.shape[1])
    reader = np.linalg.solve(gram, (codes - centre).T @ (doings - usual))
    doing = ~people[unseen][3]
    read, wanted = (from_rest(*people[unseen])[doing] - centre) @ reader + usual, people[unseen][1][doing]
    return 1 - ((read - wanted) ** 2).sum(0) / ((wanted - wanted.mean(0)) ** 2).sum(0)


# --------------------------------------------------------------------------------------------------------- body


def make_body(given: argparse.Namespace) -> dict:
    import shutil

    from difflistener.body.config import BodyTraining
    from difflistener.body.train import train_body
    from difflistener.checkpoint import how_to_go_on
    from difflistener.prepare.config import Prepare
    from difflistener.prepare.pipeline import prepare

    film, clip, body = given.work / "listener.mp4", given.work / "clip", given.work / "body"
    if not film.is_file():
        write_listener(film, given.seed)
    prepared = prepare(Prepare(out=clip, listener=film, basis=given.out / "basis.safetensors", size=BODY_SIZE, resume=clip.exists()))
    summary = train_body(BodyTraining(
        clip, body, resolution=BODY_SIZE, gaussians=BODY_GAUSSIANS, steps=BODY_STEPS, batch_size=BODY_BATCH, seed=given.seed, device=given.device,
        consent="Nobody: a procedural character of difflistener.toy.", **how_to_go_on(body)))
    (given.out / "body").mkdir(exist_ok=True)
    for name in ("model.safetensors", "config.json", "README.md"):
        shutil.copyfile(body / name, given.out / "body" / name)
    megabytes = sum(file.stat().st_size for file in (given.out / "body").iterdir()) / 1e6
    return {"basis": prepared["basis"], "reprojection_px": prepared["reprojection_px"], "megabytes": round(megabytes, 2), **summary}


def write_listener(path: Path, seed: int) -> None:
    """A film of the toy's listener who does much of all that a listener does."""
    from dataclasses import replace

    from difflistener import toy
    from difflistener.media import VideoWriter
    from difflistener.motion import FPS
    from difflistener.toy.codes import coloured

    law = toy.ListenerLaw(nod_probability=0.95, nod_degrees=(8, 18), smile_probability=1.0, blink_interval=2.0, blink_seconds=(0.2, 1.0),
                          drift_degrees=(4.0, 6.0, 3.0), turn_interval=5.0, turn_degrees=28.0)
    did = toy.make_pair(BODY_SECONDS, seed, law).listener
    frames, generator = round(BODY_SECONDS * FPS), np.random.default_rng([seed, 3])
    wave = coloured(frames, 5, 0.3, generator)
    brow, mouth = np.clip(0.45 * wave[:, 0] + 0.05, -0.3, 1), np.clip(0.4 * (wave[:, 1] - 0.5), 0, 0.9)
    looks = did.gaze + 0.07 * coloured(frames, 2, 0.3, generator) * [1, 0.5]
    did = replace(did, brow=brow.astype(np.float32), mouth_open=np.maximum(did.mouth_open, mouth).astype(np.float32),
                  gaze=looks.astype(np.float32))
    path.parent.mkdir(parents=True, exist_ok=True)
    with VideoWriter(path, BODY_SIZE, BODY_SIZE, crf=FILM_CRF) as video:
        for frame, _ in progress(toy.render("listener", did, BODY_SIZE), "film", total=frames):
            video.write_frame(frame)


# -------------------------------------------------------------------------------------------------------- brain


def make_brain(given: argparse.Namespace) -> dict:
    from difflistener.brain.config import BrainTraining
    from difflistener.brain.model import Brain
    from difflistener.brain.train import train_brain
    from difflistener.checkpoint import how_to_go_on
    from difflistener.corpus import Corpus, clips_of, write_corpus

    corpus, teacher, student = (given.work / name for name in ("corpus", "teacher", "student"))
    write_corpus(Corpus(corpus, hours=BRAIN_HOURS, test_hours=BRAIN_TEST_HOURS, seed=given.seed + 21, faces=given.out, microphones=True,
                        workers=given.workers, resume=corpus.exists()))
    clips = tuple(clips_of(corpus, "train"))
    for folder, own in ((teacher, {"steps": BRAIN_STEPS, "batch_size": 64, "learning_rate": 2e-3}),
                        (student, {"steps": STUDENT_STEPS, "batch_size": 32, "distil": teacher, "distil_steps": 1})):
        train_brain(BrainTraining(clips, folder, seed=given.seed, device=given.device, **how_to_go_on(folder), **own))
    brain = Brain.from_pretrained(student)
    for weights in brain.network.parameters():
        weights.data = weights.data.half()
    frames = round(BRAIN_HOURS * 3600 * 25)
    brain.save_pretrained(given.out / "brain", {"clips": [{"path": "difflistener corpus --faces --microphones", "frames": frames,
                                                          "licences": ["drawn by difflistener corpus; no person"]}],
                                                "recipe": "recipes/shipped.py"})
    megabytes = sum(file.stat().st_size for file in (given.out / "brain").iterdir()) / 1e6
    return {"megabytes": round(megabytes, 2), "answers": answers_of(given, corpus)}


def answers_of(given: argparse.Namespace, corpus: Path) -> dict[str, dict]:
    """How the shipped brain answers what the speakers of the test conversations do, and how the law did."""
    from difflistener.brain.model import Brain
    from difflistener.corpus import clips_of
    from difflistener.dataset import load_pairs
    from difflistener.evaluate.brain import read_scene
    from difflistener.evaluate.brain_rows import BrainRow, react
    from difflistener.evaluate.brain_scores import event_answers
    from difflistener.evaluate.report import plain
    from difflistener.toy.faces import Faces

    scenes = [read_scene(pair) for pair in load_pairs(clips_of(corpus, "test"), "logmel")]
    brain = BrainRow(Brain.from_pretrained(given.out / "brain"), None, tell=True)
    made = {"brain": react(brain, scenes, 8, given.seed, "answers"), "law": [scene.truth[None] for scene in scenes]}
    return {who: plain(event_answers(scenes, motion, Faces.load(given.out).read)[0]) for who, motion in made.items()}


PARTS = {"basis": make_basis, "doings": make_doings, "body": make_body, "brain": make_brain}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--part", choices=PARTS, required=True)
    parser.add_argument("--work", type=Path, help="folder of what is kept between runs; default: FOLDER.work")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--workers", type=int, default=1, help="processes that draw the brain's conversations")
    given = parser.parse_args()
    given.work = given.work or given.out.with_name(f"{given.out.name}.work")
    given.out.mkdir(parents=True, exist_ok=True)
    print(json.dumps({"part": given.part, **PARTS[given.part](given)}))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
