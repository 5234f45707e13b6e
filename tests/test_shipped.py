"""What comes with the package fits together, and does what a listener does."""

import numpy as np
import torch

from difflistener.basis import LandmarkBasis
from difflistener.body.model import Body
from difflistener.brain.model import Brain
from difflistener.prepare.audio import encoder_from_settings
from difflistener.shipped import SHIPPED, named
from difflistener.toy.conversation import draw_speaker
from difflistener.toy.detect import answers, detect
from difflistener.toy.faces import Faces

MEGABYTES = 10


def test_all_speak_one_basis():
    faces, brain, body = Faces.load("shipped"), Brain.from_pretrained("shipped"), Body.from_pretrained("shipped")
    assert LandmarkBasis.load("shipped").id == faces.basis.id == brain.basis == brain.landmark_basis.id == body.config.basis
    assert min(body.config.width, body.config.height) >= 256


def test_it_is_small():
    assert sum(file.stat().st_size for file in SHIPPED.rglob("*") if file.is_file() and file.suffix != ".pyc") < MEGABYTES * 1e6


def test_a_folder_of_that_name_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert named("shipped", "body") == SHIPPED / "body" and named("other", "body").name == "other"
    (tmp_path / "shipped").mkdir()
    assert str(named("shipped", "body")) == "shipped"


def test_the_brain_answers_a_voice_and_a_face():
    faces, brain = Faces.load("shipped"), Brain.from_pretrained("shipped")
    encoder = encoder_from_settings(brain.config.audio, brain.config.audio_settings)
    nods, smiles = {True: [], False: []}, []
    for seed in range(3):
        speaker = draw_speaker(100, (40, seed), faces)
        audio = torch.from_numpy(encoder.encode(speaker.sound, len(speaker.expression)))
        motion = brain.generate(audio, torch.from_numpy(speaker.expression), attitude="positive", seed=seed).numpy()
        found, script = detect(motion, faces.read), speaker.script
        nods[True] += list(np.isfinite(answers(found["nod"], script.phrase_ends, 0.0, 1.1)))
        nods[False] += list(np.isfinite(answers(found["nod"], script.inner_pauses, 0.0, 0.8)))
        smiles += list(np.isfinite(answers(found["smile"], script.smiles[:, 0], 0.0, 1.1)))
    # The law: .75, 0 and .85.
    assert np.mean(nods[True]) > 0.55 and np.mean(nods[False]) < 0.2 and np.mean(smiles) > 0.65


def test_the_body_shows_what_the_brain_says():
    faces, body = Faces.load("shipped"), Body.from_pretrained("shipped")
    still = {name: np.zeros(1) for name in ("smile", "brow", "blink", "gaze_yaw", "gaze_pitch", "mouth")}
    codes = lambda **done: faces.rest[0] + np.stack([(still | {k: np.array([v]) for k, v in done.items()})[n][0] for n in still]) @ faces.directions[0].T
    motion = np.zeros((3, 56), np.float32)
    motion[:, :50] = [codes(), codes(smile=1.0), codes(blink=1.0)]
    motion[:, 44:50] = 0
    rest, smile, blink = body.render(torch.from_numpy(motion)).numpy().astype(float)
    moved = [np.abs(picture - rest).mean(-1) for picture in (smile, blink)]
    height = [(one.sum(1) @ np.arange(len(one))) / one.sum() for one in moved]
    # A smile changes the lower face, a blink the eyes above it.
    assert min(one.max() for one in moved) > 25 and height[0] > height[1] + 15
