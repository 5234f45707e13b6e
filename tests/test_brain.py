"""The brain: generation is a function of its inputs and seed; checkpoints, resuming and the overfit check hold."""

import json
import os
import signal

import numpy as np
import pytest
import torch

from difflistener.basis import LandmarkBasis
from difflistener.brain import train as training
from difflistener.brain.config import BrainConfig, BrainTraining
from difflistener.brain.diffusion import TRAIN_TIMESTEPS, ddim_sample, keyed_generator, predict_epsilon
from difflistener.brain.model import NETWORKS, Brain
from difflistener.brain.overfit import agreement
from difflistener.brain.train import train_brain
from difflistener.checkpoint import save_checkpoint
from difflistener.clip import Clip
from difflistener.errors import UserError

DIM = 6
SMALL = {"block": 4, "history": 3, "context": 12, "width": 32, "layers": 2}
SEQUENCES = {"history": 8}
BLOCKWISE = ("mlp", "regression")
DIFFUSION = ("dit", "mlp")


pytestmark = pytest.mark.usefixtures("one_thread")


def make_brain(network="dit", uses_face=False, landmark_basis=None, **changes) -> Brain:
    """An untrained brain whose output layers are not zero."""
    torch.manual_seed(0)
    changes = (SEQUENCES if network == "dit" else {}) | changes
    brain = Brain(BrainConfig(network, "flame2020", "logmel", DIM, uses_face, {"dim": DIM}, **(SMALL | changes)), landmark_basis)
    for parameter in brain.network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    brain.motion.mean.copy_(torch.linspace(-1, 1, 56))
    brain.motion.std.copy_(torch.linspace(0.01, 2, 56))
    return brain.eval()


def speaker(num_frames=30, dim=DIM, seed=0):
    return torch.randn(num_frames, dim, generator=torch.Generator().manual_seed(seed))


def write_clip(path, num_frames=120, face=True, constant_jaw=True):
    """A listener who answers the speaker's sounds after a while, smoothly, with no jaw of his own."""
    random = np.random.default_rng(0)
    smooth = np.stack([np.convolve(row, np.hanning(9) / 4, "same") for row in random.normal(size=(DIM + 56, num_frames))], 1)
    motion = np.roll(smooth[:, :DIM], 5, 0) @ random.normal(size=(DIM, 56)) * 0.5 + 0.2 * smooth[:, DIM:]
    if constant_jaw:
        motion[:, 53:] = 0
    clip = Clip.create(path, num_frames)
    clip.set(basis="flame2020", licences=["made up"])
    clip.write("listener", "motion", motion.astype(np.float32), "test", {})
    clip.write("listener", "valid", np.ones(num_frames, bool), "test", {})
    clip.write("speaker", "logmel", smooth[:, :DIM].astype(np.float32), "test", {"encoder": {"dim": DIM}})
    if face:
        clip.write("speaker", "expression", random.normal(size=(num_frames, 50)).astype(np.float32), "test", {})
    return path


def train(clips, out, overwrite=False, resume=False, **changes):
    """A few steps of a small brain, or what `changes` says."""
    small = SMALL | (SEQUENCES if changes.get("network", "dit") == "dit" else {})
    settings = {"steps": 12, "batch_size": 16, "save_every": 5, "device": "cpu"} | small | changes
    return train_brain(BrainTraining(tuple(clips), out, overwrite=overwrite, resume=resume, **settings))


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("num_frames", [1, 3, 4, 8, 30])
def test_any_length(network, num_frames):
    motion = make_brain(network).generate(speaker(num_frames), num_steps=2)
    assert motion.shape == (num_frames, 56) and motion.dtype == torch.float32 and torch.isfinite(motion).all()


@pytest.mark.parametrize("network", DIFFUSION)
@pytest.mark.parametrize("num_steps", [1, 15, 50])
def test_ddim_steps_stay_in_range(network, num_steps):
    brain = make_brain(network, state_limit=3.0)
    state = (brain.generate(speaker(), num_steps=num_steps) - brain.motion.mean) / brain.motion.std
    assert state.abs().max() <= 3.0 + 1e-3


@pytest.mark.parametrize("num_steps", [0, 51])
def test_ddim_steps_out_of_range(num_steps):
    with pytest.raises(UserError, match=f"{num_steps} DDIM steps"):
        make_brain().generate(speaker(), num_steps=num_steps)


@pytest.mark.parametrize("network", DIFFUSION)
def test_the_seed_decides(network):
    brain = make_brain(network)
    first = brain.generate(speaker(), num_steps=3, seed=5, sample=1)
    assert torch.equal(first, brain.generate(speaker(), num_steps=3, seed=5, sample=1))
    assert not torch.allclose(first, brain.generate(speaker(), num_steps=3, seed=6, sample=1))
    assert not torch.allclose(first, brain.generate(speaker(), num_steps=3, seed=5, sample=2))
    regression = make_brain("regression")
    assert torch.equal(regression.generate(speaker(), seed=5), regression.generate(speaker(), seed=6))


@pytest.mark.parametrize("network", NETWORKS)
def test_the_future_is_not_heard(network):
    brain = make_brain(network)
    audio = speaker(32)
    changed = torch.cat([audio[:16], speaker(16, seed=1)])
    one, other = (brain.generate(a, num_steps=3) for a in (audio, changed))
    assert torch.equal(one[:16], other[:16]) and not torch.allclose(one[16:20], other[16:20])


@pytest.mark.parametrize("network", NETWORKS)
def test_audio_face_and_start_are_heeded(network):
    brain = make_brain(network, uses_face=True)
    audio, face, start = speaker(8), speaker(8, 50), torch.ones(1, 56)
    plain = brain.generate(audio, num_steps=3)
    seen = brain.generate(audio, face, num_steps=3)
    assert not torch.allclose(plain, seen)
    assert not torch.allclose(plain, brain.generate(audio, start=start, num_steps=3))
    assert not torch.allclose(plain, brain.generate(audio + 1, num_steps=3))
    assert torch.equal(plain, brain.generate(audio, face, num_steps=3, expression_valid=torch.zeros(8, dtype=torch.bool)))
    if network != "dit":  # To a dit, a listener who was seen to keep still is not one who was seen once.
        held = brain.generate(audio, start=start.expand(9, 56), num_steps=3)
        assert torch.equal(brain.generate(audio, start=start, num_steps=3), held)


def test_an_ignored_face_warns():
    with pytest.warns(UserWarning, match="without speaker expression"):
        make_brain().generate(speaker(8), speaker(8, 50), num_steps=1)


def test_dimensions_that_never_move_stay():
    brain = make_brain()
    brain.motion.std[53:] = 0
    motion = brain.generate(speaker(), start=torch.full((1, 56), 1e6), num_steps=3)
    assert torch.equal(motion[:, 53:], brain.motion.mean[53:].expand(30, 3))
    assert torch.isfinite(motion).all()


@pytest.mark.parametrize(("arguments", "message"), [
    ({"audio": speaker(8, 4)}, "have 4 numbers a frame; the brain was trained on logmel of 6"),
    ({"audio": torch.zeros(8)}, r"have shape \(8,\)"),
    ({"audio": torch.zeros(0, DIM)}, "The audio has no frame"),
    ({"audio": speaker(8).index_fill(0, torch.tensor([3]), float("nan"))}, "audio features are not finite at frame 3"),
    ({"audio": speaker(8), "expression": speaker(7, 50)}, "expression has 7 frames, the audio features have 8"),
    ({"audio": speaker(8), "expression": speaker(8, 56)}, r"expression has shape \(8, 56\)"),
    ({"audio": speaker(8), "start": torch.zeros(2, 50)}, r"start motion has shape \(2, 50\)"),
    ({"audio": speaker(8), "start": torch.zeros(0, 56)}, "start motion has no frame"),
])
def test_wrong_input_is_named(arguments, message):
    with pytest.raises(UserError, match=message):
        make_brain(uses_face=True).generate(**arguments)


@pytest.mark.parametrize("network", NETWORKS)
def test_save_and_load_generate_the_same(tmp_path, network):
    random = np.random.default_rng(0)
    basis = LandmarkBasis(*(random.normal(size=shape).astype(np.float32) for shape in ((1434,), (44, 1434), (44,), (478,), (6,))))
    brain = make_brain(network, uses_face=True, landmark_basis=basis)
    brain.save_pretrained(tmp_path, {"steps": 3})
    again = Brain.from_pretrained(tmp_path)
    assert again.config == brain.config and again.basis == "flame2020" and again.landmark_basis.id == basis.id
    given = speaker(), speaker(30, 50), torch.ones(2, 56)
    assert torch.equal(brain.generate(*given), again.generate(*given))
    assert "logmel" in (tmp_path / "README.md").read_text()


def test_a_body_or_other_weights_are_refused(tmp_path):
    save_checkpoint(tmp_path / "body", "body.linear", {"basis": "flame2020"}, {"w": torch.zeros(1)}, "")
    with pytest.raises(UserError, match="body.linear checkpoint where a brain is wanted"):
        Brain.from_pretrained(tmp_path / "body")
    make_brain().save_pretrained(tmp_path / "brain")
    config = tmp_path / "brain" / "config.json"
    header = json.loads(config.read_text())
    config.write_text(json.dumps(header | {"width": 64}))
    with pytest.raises(UserError, match="does not fit its config.json"):
        Brain.from_pretrained(tmp_path / "brain")
    config.write_text(json.dumps(header | {"widths": 64}))
    with pytest.raises(UserError, match="'widths'; the nearest known one is 'width'"):
        Brain.from_pretrained(tmp_path / "brain")
    config.write_text(json.dumps(header | {"network": "gan"}))
    with pytest.raises(UserError, match="no brain network 'gan'"):
        Brain.from_pretrained(tmp_path / "brain")


def test_ddim_finds_a_known_answer():
    """With the exact noise predictor of one point, DDIM must arrive at that point."""
    target = torch.full((2, 4, 56), 0.7)
    condition = None

    def exact(noisy, timestep, condition):
        # The output for which epsilon = (noisy - alpha * target) / sigma.
        from difflistener.brain.diffusion import levels

        alpha, sigma = levels(timestep)
        return ((noisy - alpha * target) / sigma - sigma * noisy) / alpha

    for num_steps in (1, 15, 50):
        noise = torch.randn(2, 4, 56, generator=keyed_generator(0))
        assert torch.allclose(ddim_sample(exact, noise, condition, num_steps, 6.0), target, atol=1e-3)
    middle = torch.full((2,), TRAIN_TIMESTEPS // 2)
    assert predict_epsilon(exact, noise, middle, condition).shape == noise.shape


def test_keyed_noise():
    first = torch.rand(3, generator=keyed_generator(1, 2))
    assert torch.equal(first, torch.rand(3, generator=keyed_generator(1, 2)))
    for other in ((2, 1), (1, 3), (1, 2, 0), (12,)):
        assert not torch.equal(first, torch.rand(3, generator=keyed_generator(*other)))


@pytest.mark.parametrize("network", BLOCKWISE)
def test_one_window_does_not_depend_on_its_batch(network):
    brain = make_brain(network, uses_face=True)
    random = torch.Generator().manual_seed(0)
    shapes = {"audio": (3, 12, DIM), "audio_present": (3, 12), "expression": (3, 12, 50), "expression_present": (3, 12),
              "history": (3, 3, 56), "history_present": (3,)}
    parts = {name: torch.rand(shape, generator=random) for name, shape in shapes.items()}
    noise = torch.randn(3, 4, 56, generator=random)
    whole = brain.react(brain.condition(**parts), noise, 3)
    alone = brain.react(brain.condition(**{name: part[1:2] for name, part in parts.items()}), noise[1:2], 3)
    assert torch.allclose(whole[1:2], alone, atol=1e-5)


def test_agreement():
    random = np.random.default_rng(0)
    truth = random.normal(size=(200, 56)) * np.linspace(0.1, 1, 56)
    truth[:, 53:] = 0
    perfect = agreement(truth * 2 + 3, truth)
    assert perfect["all"]["correlation"] == pytest.approx(1) and "jaw" not in perfect
    assert agreement(truth + 0.5, truth)["all"]["rmse"] == pytest.approx(0.5)
    assert agreement(-truth, truth)["rotation"]["correlation"] == pytest.approx(-1)
    assert agreement(np.zeros_like(truth), truth)["all"]["correlation"] == 0
    mixed = truth.copy()
    mixed[:, 25:] *= -1
    variance = truth.var(0)
    assert agreement(mixed, truth)["all"]["correlation"] == pytest.approx((variance[:25].sum() - variance[25:].sum()) / variance.sum())


def lines(out):
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("network", NETWORKS)
def test_resuming_continues_to_the_same_loss(tmp_path, monkeypatch, network):
    """Stopped by Ctrl-C in the middle of a step, killed, and resumed each time, against an unbroken run: equal bits."""
    clip, broken = write_clip(tmp_path / "clip"), tmp_path / "broken"
    train([clip], tmp_path / "whole", network=network)
    update = training.Trainer._update

    def interrupted(self, step):
        if step == 6:
            os.kill(os.getpid(), signal.SIGINT)
        return update(self, step)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(training.Trainer, "_update", interrupted)
        train([clip], broken, network=network)
    assert json.loads((broken / "config.json").read_text())["training"]["steps"] == 7

    def killed(self, step):
        if step == 11:
            raise SystemExit
        return update(self, step)

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(training.Trainer, "_update", killed)
        train([clip], broken, network=network, resume=True)
    with (broken / "metrics.jsonl").open("a") as file:
        file.write('{"step": 11, "loss": 0.0}\n')
    train([clip], broken, network=network, resume=True)
    assert lines(broken) == lines(tmp_path / "whole") != []
    assert "validation_loss" in lines(broken)[-1]
    assert (broken / "model.safetensors").read_bytes() == (tmp_path / "whole" / "model.safetensors").read_bytes()

    with pytest.raises(UserError, match="has done all of its 12 steps"):
        train([clip], broken, network=network, resume=True)
    with pytest.raises(UserError, match="started with width = 32, not 48"):
        train([clip], broken, network=network, resume=True, width=48)
    with pytest.raises(UserError, match="started on other clips"):
        train([write_clip(tmp_path / "other", num_frames=100)], broken, network=network, resume=True)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    with pytest.raises(UserError, match="The loss became (nan|inf) by step"):
        train([write_clip(tmp_path / "clip")], tmp_path / "out", network="regression", learning_rate=1e30)


def test_a_trained_brain_knows_its_clip(tmp_path):
    clip, out = write_clip(tmp_path / "clip", face=False), tmp_path / "out"
    summary = train([clip], out, network="regression", steps=2)
    brain = Brain.from_pretrained(out)
    assert not brain.config.uses_face and brain.config.audio_settings == {"dim": DIM}
    assert (brain.motion.std[53:] == 0).all() and (brain.motion.std[:53] > 0).all()
    assert summary["clips"][0]["licences"] == ["made up"] and "made up" in (out / "README.md").read_text()
    assert json.loads(json.dumps(summary)) == summary
    with pytest.raises(UserError, match="already holds a training run"):
        train([clip], out)
    train([clip], out, steps=2, overwrite=True)
    assert Brain.from_pretrained(out).config.network == "dit"


@pytest.mark.parametrize("network", BLOCKWISE)
def test_overfit_gives_the_clip_back(tmp_path, network):
    clip, out = write_clip(tmp_path / "clip", num_frames=60), tmp_path / "out"
    report = train([clip], out, network=network, overfit=True, steps=300, batch_size=32, learning_rate=3e-3, ema=0.98,
                   width=128, block=8, context=20)["overfit"]
    assert report["free-running"]["all"]["correlation"] > 0.96
    assert report["second seed"]["all"]["correlation"] > 0.96
    assert json.loads((out / "overfit.json").read_text()) == report
    assert (out / "overfit.png").stat().st_size > 20_000


def test_settings_that_do_not_fit(tmp_path):
    clip, out = write_clip(tmp_path / "clip"), tmp_path / "out"
    for change, message in (({"network": "mlp", "context": 3}, "does not hold a block of 4"),
                            ({"heads": 3}, "not a multiple of twice 3"),
                            ({"block": 9}, "longer than the history of 8"), ({"look_ahead": 12}, "--look-ahead is 12"),
                            ({"steps": 0}, "--steps is 0"), ({"seed": -1}, "--seed is -1")):
        with pytest.raises(UserError, match=message):
            train([clip], out, **change)
    with pytest.raises(UserError, match="learns one clip by heart; 2 were given"):
        train([clip, clip], out, overfit=True)
    with pytest.raises(UserError, match="No clip was given"):
        train([], out)
    assert not out.exists()
