"""Procedural faces in a landmark basis, microphones, and the corpus that is drawn with both."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from difflistener.basis import NUM_FACE, NUM_LANDMARKS, LandmarkBasis
from difflistener.clip import Clip
from difflistener.corpus import Corpus, write_corpus
from difflistener.errors import UserError
from difflistener.motion import NUM_EXPRESSION
from difflistener.toy.conversation import draw_listener, draw_speaker
from difflistener.toy.detect import detect
from difflistener.toy.faces import DOINGS, Faces
from difflistener.toy.microphone import hear
from difflistener.toy.reactions import Law

PEOPLE = 5


def write_faces(folder, **changes):
    """Faces whose basis is made up; every person does things in directions of its own, the listener in the first codes."""
    generator = np.random.default_rng(3)
    components = np.linalg.qr(generator.standard_normal((NUM_LANDMARKS * 3, NUM_FACE)))[0].T
    basis = LandmarkBasis(*(np.float32(array) for array in (
        np.zeros(NUM_LANDMARKS * 3), components, np.ones(NUM_FACE), np.ones(NUM_LANDMARKS), np.ones(6))))
    folder.mkdir(exist_ok=True)
    basis.save(folder / "basis.safetensors")
    directions = 0.8 * generator.standard_normal((PEOPLE, NUM_EXPRESSION, len(DOINGS)))  # All at once stay within MAX_CODE.
    directions[:, NUM_FACE:] = 0
    arrays = {"directions": directions, "rest": 0.1 * generator.standard_normal((PEOPLE, NUM_EXPRESSION)),
              "spread": np.full((PEOPLE, NUM_EXPRESSION), 0.2)} | changes
    save_file({name: np.float32(array) for name, array in arrays.items()}, folder / "doings.safetensors")
    return folder


@pytest.fixture
def faces(tmp_path):
    return Faces.load(write_faces(tmp_path / "faces"))


def test_what_the_listener_does_is_read_back(faces):
    generator = np.random.default_rng(0)
    doings = {name: generator.uniform(0, 1, 200) for name in (*DOINGS, "lean", "turn")}
    found = faces.read(faces.listen(doings, generator))
    for name in DOINGS:
        assert np.abs(found[name] - doings[name]).max() < 0.15, name


def test_the_listener_acts_by_the_law(faces):
    found = asked = 0
    for seed in range(6):
        speaker = draw_speaker(60, (1, seed), faces)
        listener = draw_listener(speaker.script, "positive", Law(), (2, seed), faces)
        assert (listener.motion[:, 53:] == 0).all()
        starts = detect(listener.motion, faces.read)["smile"]
        for event in listener.events:
            if event.kind == "smile" and event.answered and event.strength > 0.5 and event.start < 58:
                asked, found = asked + 1, found + bool((np.abs(starts - event.start) < 0.25).any())
    assert asked > 10 and found >= 0.9 * asked


def test_speakers_are_different_people_and_make_the_same_sound(faces):
    first, second = (draw_speaker(30, (7, seed), faces) for seed in (1, 2))
    plain = draw_speaker(30, (7, 1))
    assert (plain.sound == first.sound).all() and first.expression.shape == plain.expression.shape == (750, 50)
    apart = np.abs(first.expression.mean(0) - second.expression.mean(0))[:NUM_FACE]
    assert apart.mean() > 0.3


def test_a_speakers_smile_is_in_its_codes(faces):
    generator = np.random.default_rng(1)
    smile = np.zeros(800)
    smile[200:400] = smile[600:] = 1.0
    doings = {name: np.zeros(800) for name in (*DOINGS, "lean", "turn")} | {"smile": smile}
    for _ in range(4):
        codes = faces.speak(doings, generator)[:, :NUM_FACE]
        moved = codes[smile > 0].mean(0) - codes[smile == 0].mean(0)
        match = faces.directions[1:, :NUM_FACE, 0] @ moved / np.linalg.norm(faces.directions[1:, :NUM_FACE, 0], axis=1) / np.linalg.norm(moved)
        assert match.max() > 0.8


@pytest.mark.parametrize("change, said", [({"rest": np.zeros((PEOPLE, 44))}, "44"), ({"more": np.zeros((PEOPLE, 2))}, "more")])
def test_files_that_are_no_faces_are_refused(tmp_path, change, said):
    with pytest.raises(UserError) as error:
        Faces.load(write_faces(tmp_path / "faces", **change))
    assert said in error.value.problem
    with pytest.raises(UserError, match="no procedural faces"):
        Faces.load(tmp_path)
    for content in (b"", b"no tensors at all"):
        (tmp_path / "faces" / "doings.safetensors").write_bytes(content)
        with pytest.raises(UserError, match="is damaged"):
            Faces.load(tmp_path / "faces")


def test_a_microphone_changes_level_and_adds_noise():
    voice = draw_speaker(20, 4, hiss=0.0).sound
    heard = [hear(voice, np.random.default_rng(seed)) for seed in range(12)]
    levels = [20 * np.log10(np.percentile(np.abs(sound), 99)) for sound in heard]
    quiet = voice.reshape(-1, 320).std(1) < 1e-3
    floors = [np.median(sound.reshape(-1, 320).std(1)[quiet]) / sound.std() for sound in heard]
    assert max(levels) - min(levels) > 12 and max(floors) > 20 * min(floors)
    assert all(sound.shape == voice.shape and sound.dtype == np.float32 and np.abs(sound).max() <= 1 for sound in heard)
    assert (hear(voice, np.random.default_rng(3)) == heard[3]).all()
    # The voice stays where it was: nothing is heard later, nor before it begins.
    best = np.argmax(np.correlate(heard[0][16_000:48_000], voice[16_200:47_800], "valid"))
    assert abs(best - 200) <= 2


def test_a_corpus_of_faces(tmp_path):
    folder, out = write_faces(tmp_path / "faces"), tmp_path / "corpus"
    corpus = Corpus(out, hours=20 / 3600, test_hours=20 / 3600, clip_seconds=20, faces=folder, microphones=True)
    write_corpus(corpus)
    clip = Clip.open(out / "train" / "0000")
    assert clip.basis == Faces.load(folder).basis.id == LandmarkBasis.load(clip.path).id
    with pytest.raises(UserError, match="faces"):
        write_corpus(Corpus(out, hours=40 / 3600, test_hours=20 / 3600, clip_seconds=20, resume=True))
