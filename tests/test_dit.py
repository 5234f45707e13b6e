"""The diffusion transformer: who sees whom, its noise levels and steps against plain references, and its training."""

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from test_brain import DIM, make_brain, speaker, train, write_clip

import difflistener
from difflistener.brain.config import BrainTraining
from difflistener.brain.diffusion import keyed_generator
from difflistener.brain.distil import Distillation
from difflistener.brain.dit import Innovations, Scene
from difflistener.brain.forcing import (
    NUM_LEVELS, SCHEDULE, Noise, balance, clean_estimate, forcing_loss, innovations_of, sampling_steps, shares, solve,
)
from difflistener.brain.model import Brain, Factors
from difflistener.brain.stream import Sampler, branches
from difflistener.clip import Clip
from difflistener.errors import UserError

BLOCK, FRAMES = 4, 32  # A history of 8 frames is two blocks: FRAMES is four times that.

pytestmark = pytest.mark.usefixtures("one_thread")


def scene(frames=FRAMES, size=1, context=12, seed=0) -> Scene:
    rows = frames + context - 1
    make = torch.Generator().manual_seed(seed)
    return Scene(torch.randn(size, rows, DIM, generator=make), torch.ones(size, rows),
                 torch.randn(size, rows, 50, generator=make), torch.ones(size, rows), torch.zeros(size, dtype=torch.long), torch.zeros(size, 56), torch.zeros(size))


def sequence(size=1, seed=1):
    make = torch.Generator().manual_seed(seed)
    return torch.randn(size, FRAMES, 56, generator=make), torch.randn(size, FRAMES, 56, generator=make)


@torch.no_grad()
def predict(network, clean, noisy, given=None, remembers=None, level=600.0):
    size = len(clean)
    return network(clean, noisy, torch.tensor([0, level]), torch.ones(size, FRAMES, dtype=torch.long), given or scene(size=size),
                   torch.ones(size, FRAMES // BLOCK, dtype=torch.bool) if remembers is None else remembers)


def known_innovations() -> Innovations:
    innovations = Innovations(BLOCK)
    innovations.persistence.copy_(torch.linspace(0.2, 1, BLOCK)[:, None])
    innovations.spread.copy_(torch.linspace(0.1, 2, 56))
    return innovations


def changed_frames(one, other) -> list[int]:
    return torch.nonzero((one != other).any(-1).any(0)).flatten().tolist()


def test_a_block_sees_itself_and_the_clean_past():
    network = make_brain(layers=1).network
    clean, noisy = sequence()
    plain = predict(network, clean, noisy)
    touched = noisy.clone()
    touched[:, 13] += 1
    assert changed_frames(plain, predict(network, clean, touched)) == [12, 13, 14, 15]
    past = clean.clone()
    past[:, 13] += 1
    # Two blocks of history, not its own block, and nothing after that.
    assert changed_frames(plain, predict(network, past, noisy)) == list(range(16, 24))
    alone = torch.zeros(1, FRAMES // BLOCK, dtype=torch.bool)
    assert changed_frames(predict(network, clean, noisy, remembers=alone), predict(network, past, noisy, remembers=alone)) == []


@pytest.mark.parametrize("face", [False, True])
def test_a_frame_perceives_its_window(face):
    network = make_brain(uses_face=True).network
    clean, noisy = sequence()
    plain, other = scene(), scene()
    # Row 20 is in the windows of frames 9 to 20.
    (other.expression if face else other.audio)[:, 20] += 1
    told = [network.perceive(one)[0] for one in (plain, other)]
    assert changed_frames(*told) == list(range(9, 21))
    assert predict(network, clean, noisy, plain).ne(predict(network, clean, noisy, other)).any()


def test_remembered_keys_and_values_are_those_of_training():
    """The plain reference of streaming: every block at once, without any memory, over twice the length of the ring."""
    brain = make_brain(uses_face=True, layers=3)
    network = brain.network
    clean, noisy = sequence()
    given = scene()
    with_past = torch.arange(FRAMES // BLOCK)[None] > 0
    whole = predict(network, clean, noisy, given, with_past, level=float(sampling_steps(1)[0].level))
    sampler = Sampler(network, 1, [(True, True, 1.0)], 1, "x0", 1e9)
    context = brain.config.context
    with torch.inference_mode():
        for first in range(0, FRAMES, BLOCK):
            rows = slice(first, first + BLOCK + context - 1)
            part = Scene(given.audio[:, rows], given.audio_present[:, rows], given.expression[:, rows],
                         given.expression_present[:, rows], given.attitude, given.anchor, given.anchor_present)
            block = slice(first, first + BLOCK)
            told = sampler._told(part)
            output = sampler._denoise(noisy[:, block], told, sampler._modulations[NUM_LEVELS], sampler._turns())
            assert torch.allclose(output, whole[:, block], atol=2e-4), first
            sampler.remember(part, clean[:, block])


def test_levels_are_those_of_diffusers():
    levels = torch.arange(1, NUM_LEVELS + 1)
    assert torch.allclose(shares(levels)[0] ** 2, DDIMScheduler(**SCHEDULE).alphas_cumprod, atol=1e-6)
    assert shares(torch.tensor([0, NUM_LEVELS]))[0].tolist() == pytest.approx([1, 0], abs=1e-6)
    for num_steps in (1, 2, 15, 50):
        steps = sampling_steps(num_steps)
        assert len(steps) == num_steps and steps[0].level == NUM_LEVELS and steps[-1].turn == 0
        assert all(one.level > other.level and one.turn > 0 for one, other in zip(steps, steps[1:]))
        landed = [math.atan2(step.sigma, step.alpha) - step.turn for step in steps[:-1]]
        assert landed == pytest.approx([math.atan2(step.sigma, step.alpha) for step in steps[1:]], abs=1e-5)


@pytest.mark.parametrize("prediction", ["v", "x0"])
@pytest.mark.parametrize("num_steps", [1, 15, 50])
@pytest.mark.parametrize("one_by_one", [False, True])
def test_generation_finds_a_known_answer(prediction, num_steps, one_by_one):
    """With the exact output for one point, the steps must arrive at that point."""
    target = torch.full((4, 56), 0.7)

    def network(state, step):
        noise = (state - step.alpha * target) / step.sigma
        return step.alpha * noise - step.sigma * target if prediction == "v" else target

    found = solve(network, torch.randn(4, 56, generator=keyed_generator(0)), sampling_steps(num_steps), prediction,
                    one_by_one=one_by_one)
    assert torch.allclose(found, target, atol=1e-3)


def test_one_by_one_is_ddim():
    torch.manual_seed(0)
    noise = torch.randn(3, 4, 56)
    steps = sampling_steps(6)
    state = noise
    for step, after in zip(steps, [*steps[1:], None]):
        estimate = clean_estimate(torch.sin(state), state, step.alpha, step.sigma, "v").clamp(-3, 3)
        epsilon = (state - step.alpha * estimate) / step.sigma
        state = estimate if after is None else after.alpha * estimate + after.sigma * epsilon
    ours = solve(lambda state, step: torch.sin(state), noise, steps, "v", -3, 3, one_by_one=True)
    assert torch.allclose(ours, state, atol=1e-4)


@pytest.mark.parametrize("weights, means, spreads", [
    ((1,), (0,), (1,)), ((1,), (0.3,), (0.5,)), ((0.5, 0.5), (-0.95, 0.95), (0.3, 0.3)), ((0.95, 0.05), (-0.2, 3.8), (0.3, 0.5))])
def test_fifteen_steps_keep_the_spread(weights, means, spreads):
    """Exact outputs for mixtures of Gaussians; plain DDIM shrinks all of them."""
    weights, means, spreads = (torch.tensor(values, dtype=torch.float64) for values in (weights, means, spreads))

    def network(state, step):
        variance = (step.alpha * spreads) ** 2 + step.sigma**2
        away = state[:, None] - step.alpha * means
        likely = (weights.log() - 0.5 * variance.log() - 0.5 * away**2 / variance).softmax(1)
        clean = (likely * (means + step.alpha * spreads**2 / variance * away)).sum(1)
        return (step.alpha * state - clean) / step.sigma

    noise = torch.randn(40_000, generator=keyed_generator(0), dtype=torch.float64)
    variance = float((weights * (spreads**2 + means**2)).sum() - (weights * means).sum() ** 2)
    made, plain = (float(solve(network, noise, sampling_steps(15), "v", one_by_one=one_by_one).var()) / variance
                   for one_by_one in (False, True))
    assert 0.94 < made < 1.06 and plain < made - 0.05


def test_expression_has_half_of_the_loss():
    moves = torch.ones(56, dtype=torch.bool)
    weights = balance(moves, has_posture=False)
    assert [weights[part].sum().item() for part in (slice(0, 50), slice(50, 53), slice(53, 56))] == pytest.approx([1 / 2, 1 / 4, 1 / 4])
    moves[53:] = moves[10:20] = False
    weights = balance(moves, has_posture=True)
    parts = slice(0, 44), slice(44, 50), slice(50, 53), slice(53, 56)
    assert [weights[part].sum().item() for part in parts] == pytest.approx([1 / 3] * 3 + [0])
    assert (weights[10:20] == 0).all() and balance(torch.zeros(56, dtype=torch.bool), False).sum() == 0


def test_factors_are_uncorrelated_and_go_from_slow_to_fast():
    """Twelve slow and twenty fast sources, mixed into 56 numbers of which six never move."""
    make = torch.Generator().manual_seed(0)
    slow = torch.randn(4, 3000, 12, generator=make, dtype=torch.float64).cumsum(1).diff(n=1, dim=1)
    for _ in range(20):
        slow = (slow[:, 1:] + slow[:, :-1]) / 2
    slow = slow / slow.std((0, 1))
    fast = torch.randn(4, slow.shape[1], 20, generator=make, dtype=torch.float64)
    mixed = torch.cat([slow, fast], 2) @ torch.randn(32, 50, generator=make, dtype=torch.float64)
    motion = torch.cat([mixed - mixed.mean((0, 1)), torch.zeros(4, slow.shape[1], 6)], 2).float()
    factors = Factors()
    factors.set(motion)
    states = factors(motion)
    assert torch.allclose(factors.inverse(states), motion, atol=1e-3)
    rows = states.flatten(0, 1).double()
    moving = rows.var(0) > 0.5
    covariance = rows[:, moving].T @ rows[:, moving] / len(rows)
    assert moving.sum() == 32 and torch.allclose(covariance, torch.eye(32, dtype=torch.float64), atol=1e-3)
    change = states.diff(dim=1).flatten(0, 1).var(0)[moving]
    assert (change.diff() > -1e-4).all() and change[11] < 0.2 and change[12] > 1
    found = torch.linalg.lstsq(rows[:, moving][:, :12], slow.flatten(0, 1)).residuals
    assert (found / len(rows) < 0.02).all(), "the slow factors span the slow sources"


def test_a_factor_weighs_what_it_moves():
    brain = make_brain()
    motion = torch.randn(2, 500, 56, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.1, 3, 56)
    brain.factors.set(motion)
    error = torch.randn(1000, 56, generator=torch.Generator().manual_seed(1))
    parameters = balance(brain.motion.std > 0, brain.landmark_basis is not None)
    in_parameters = (brain.factors.inverse(error) ** 2 @ parameters).mean()
    in_factors = (error**2 @ brain.loss_weights()).mean()
    scale = (brain.factors.back**2 @ parameters).sum()
    assert in_factors * scale == pytest.approx(in_parameters.item(), rel=0.05)


@pytest.mark.parametrize("prediction", ["v", "x0"])
def test_the_loss_of_the_right_answer_is_zero(prediction):
    states, _ = sequence(3)
    drawn = Noise.draw(3, FRAMES, BLOCK, keyed_generator(0), 0.1, 0.3)
    alpha, sigma = (share[..., None] for share in shares(drawn.levels[drawn.which]))

    innovations = known_innovations()
    clean, _ = innovations_of(innovations, states, drawn.remembers)

    def right(past, noisy, *_):
        return alpha * drawn.noise - sigma * clean if prediction == "v" else clean

    weights, counts = balance(torch.ones(56, dtype=torch.bool), False), torch.ones(3, FRAMES)

    def loss(network):
        return forcing_loss(network, innovations, states, scene(size=3), counts, drawn, weights, prediction, 1.0).item()

    assert loss(right) < 1e-8
    assert loss(lambda *given: right(*given) + 0.1) > 5e-3
    assert {0.0} < set(drawn.levels[drawn.which].flatten().tolist()), "no frame is given"
    assert 0.4 < drawn.remembers.float().mean() < 0.95


def test_innovations_are_found_and_undone():
    """x[t + 1] = 0.9 x[t] + 0.1 e: two frames ahead that is 0.81 x[t] with a spread of 0.1 sqrt(1 + 0.81)."""
    make = torch.Generator().manual_seed(0)
    states = torch.zeros(64, 200, 56)
    for frame in range(1, 200):
        states[:, frame] = 0.9 * states[:, frame - 1] + 0.1 * torch.randn(64, 56, generator=make)
    states[..., 55] = 0
    innovations = Innovations(BLOCK)
    innovations.set(states)
    assert innovations.persistence[:2, 0].tolist() == pytest.approx([0.9, 0.81], abs=0.02)
    assert innovations.spread[:2, 0].tolist() == pytest.approx([0.1, 0.1 * 1.81**0.5], rel=0.05)
    assert (innovations.spread[:, 55] == 1).all()
    remembers = torch.rand(64, 50, generator=make) < 0.5
    clean, unit = innovations_of(innovations, states, remembers)
    assert 0.9 < clean[:, BLOCK:, 0][remembers[:, 1:].repeat_interleave(BLOCK, 1)].std() < 1.1
    block = slice(8, 12)
    assert torch.allclose(clean[:, block] * unit[:, block] + torch.where(
        remembers[:, 2, None, None], innovations.prediction(states[:, 7]), 0.0), states[:, block], atol=1e-5)
    assert (unit[:, block][~remembers[:, 2]] == 1).all()


def test_two_halves_are_the_whole_batch():
    drawn = Noise.draw(4, FRAMES, BLOCK, keyed_generator(0), 0.1, 0.1)
    network = make_brain(uses_face=True).network
    states, _ = sequence(4)
    weights, counts = balance(torch.ones(56, dtype=torch.bool), False), torch.ones(4, FRAMES)
    counts[3, 20:] = 0

    def loss(rows):
        return forcing_loss(network, known_innovations(), states[rows], scene(size=4)[rows], counts[rows],
                            drawn.part(rows), weights, "v", 1.0)

    halves = (loss(slice(0, None, 2)) + loss(slice(1, None, 2))) / 2
    assert halves.item() == pytest.approx(loss(slice(None)).item(), rel=1e-5)


def test_guidance_is_one_batch_of_passes():
    assert branches(1.0, 1.0, True) == [(True, True, 1.0)] and branches(1.0, 1.0, False) == [(True, False, 1.0)]
    passes = branches(1.5, 1.2, True)
    assert [(hear, see) for hear, see, _ in passes] == [(False, False), (True, False), (True, True)]
    assert [weight for *_, weight in passes] == pytest.approx([-0.5, 0.3, 1.2])
    network, noise, given = make_brain(uses_face=True).network, torch.randn(1, BLOCK, 56), scene(BLOCK)
    with torch.inference_mode():
        alone = [Sampler(network, 1, [(hear, see, 1.0)], 1, "x0", 1e9).block(given, noise) for hear, see, _ in passes]
        guided = Sampler(network, 1, passes, 1, "x0", 1e9).block(given, noise)
    assert torch.allclose(guided, -0.5 * alone[0] + 0.3 * alone[1] + 1.2 * alone[2], atol=1e-4)
    assert not torch.allclose(alone[1], alone[2], atol=1e-2) and not torch.allclose(alone[0], alone[1], atol=1e-2)


def test_given_frames_are_kept_and_heeded():
    brain = make_brain()
    audio, fixed = speaker(16), torch.full((16, 56), torch.nan)
    plain = brain.generate(audio, num_steps=3)
    fixed[5] = plain[5] + brain.motion.std / 2
    motion = brain.generate(audio, num_steps=3, fixed=fixed)
    assert torch.allclose(motion[5], fixed[5], atol=1e-5)
    assert torch.equal(motion[:4], plain[:4])
    assert not torch.allclose(motion[4], plain[4]) and not torch.allclose(motion[12:], plain[12:])


def test_anchor_and_attitude_are_heeded():
    brain = make_brain()
    audio = speaker(8)
    plain = brain.generate(audio, num_steps=3)
    clip = torch.randn(5, 56)
    styled = brain.generate(audio, num_steps=3, anchor=clip)
    assert not torch.allclose(styled, plain)
    assert torch.allclose(styled, brain.generate(audio, num_steps=3, anchor=clip.mean(0, keepdim=True)), atol=1e-4)
    assert not torch.allclose(brain.generate(audio, num_steps=3, attitude="negative"), plain)
    with pytest.raises(UserError, match="no attitude 'cross'"):
        brain.generate(audio, attitude="cross")
    with pytest.raises(UserError, match=r"style clip has shape \(2, 50\)"):
        brain.generate(audio, anchor=torch.zeros(2, 50))
    with pytest.raises(UserError, match="network mlp has no attitude"):
        make_brain("mlp").generate(audio, attitude="negative")


def test_overfit_gives_the_clip_back(tmp_path):
    clip, out = write_clip(tmp_path / "clip", num_frames=60), tmp_path / "out"
    report = train([clip], out, overfit=True, steps=300, batch_size=4, learning_rate=3e-3, ema=0.98, width=64, context=20,
                   audio_dropout=0.0, face_dropout=0.0, anchor_dropout=1.0)["overfit"]
    assert report["free-running"]["all"]["correlation"] > 0.9
    assert report["second seed"]["all"]["correlation"] > 0.9
    assert json.loads((out / "overfit.json").read_text()) == report


def test_clips_shorter_than_a_sequence_and_with_an_attitude(tmp_path):
    clip = write_clip(tmp_path / "clip", num_frames=50)
    meta = json.loads((clip / "clip.json").read_text())
    (clip / "clip.json").write_text(json.dumps(meta | {"attitude": "positive"}))
    assert Clip.open(clip).meta["attitude"] == "positive"
    train([clip], tmp_path / "out", steps=2, attitude_dropout=0.0, look_ahead=1)
    brain = Brain.from_pretrained(tmp_path / "out")
    assert brain.network.attitude.weight[1].abs().sum() > 0 and (brain.network.attitude.weight[[0, 2, 3]] == 0).all()
    (clip / "clip.json").write_text(json.dumps(meta | {"attitude": "cross"}))
    with pytest.raises(UserError, match="has the attitude 'cross'"):
        train([clip], tmp_path / "other")


def test_two_processes_train_as_one(tmp_path):
    """torchrun on two CPU processes against one, with the same global batch."""
    clip = write_clip(tmp_path / "clip")
    small = ["--steps", 4, "--batch-size", 4, "--block", 4, "--history", 8, "--context", 12, "--width", 32, "--layers", 2,
             "--sequence", 24, "--device", "cpu"]
    words = ["-m", "difflistener", "train", "brain", clip, *small]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(difflistener.__file__).parents[1])}
    for launcher, out in (([], "one"), (["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2], "two")):
        run = subprocess.run([str(word) for word in (sys.executable, *launcher, *words, "--out", tmp_path / out)],
                             env=environment, capture_output=True, text=True, timeout=120)
        assert run.returncode == 0, run.stderr[-2000:]
    one, two = (json.loads((tmp_path / out / "metrics.jsonl").read_text()) for out in ("one", "two"))
    assert two["loss"] == pytest.approx(one["loss"], abs=1e-5)
    assert two["validation_loss"] == pytest.approx(one["validation_loss"], abs=1e-5)
    weights = [Brain.from_pretrained(tmp_path / out).state_dict() for out in ("one", "two")]
    assert max((weights[0][name] - weights[1][name]).abs().max().item() for name in weights[0]) < 1e-4


def test_a_student_is_taught_what_its_teacher_generates():
    """One step is to give what the teacher's guided sampler makes of the same noise after the same past."""
    teacher = make_brain(uses_face=True, audio_guidance=1.5, face_guidance=1.2)
    teacher.network.innovations.load_state_dict(known_innovations().state_dict())
    states, _ = sequence(2)
    drawn = Noise.draw(2, FRAMES, BLOCK, keyed_generator(0), 0.0, 0.0)
    drawn = replace(drawn, which=drawn.which.clamp(min=1))  # No frame is given.
    drawn.remembers[:, 0] = False
    lessons = Distillation.__new__(Distillation)
    lessons.teacher, lessons.branches = teacher, branches(1.5, 1.2, True)
    given = scene(size=2)
    sampler = Sampler(teacher.network, 15, lessons.branches, 2, teacher.config.prediction, teacher.config.state_limit)
    for steps in (1, 3):
        lessons.config = BrainTraining((), Path("student"), distil_steps=steps)
        noisy, clean, levels, which = lessons.trajectory(states, given, drawn)
        assert levels.tolist() == [0.0, *(step.level for step in sampling_steps(steps))] and which.unique().tolist() == list(range(1, steps + 1))
        assert torch.equal(noisy[which == 1], drawn.noise[which == 1])
    last = which == 3
    true, unit = innovations_of(teacher.network.innovations, states, drawn.remembers)
    expected = states - unit * true
    with torch.inference_mode():
        for first in range(0, FRAMES, BLOCK):
            rows, block = slice(first, first + BLOCK + teacher.config.context - 1), slice(first, first + BLOCK)
            part = Scene(given.audio[:, rows], given.audio_present[:, rows], given.expression[:, rows],
                         given.expression_present[:, rows], given.attitude, given.anchor, given.anchor_present)
            before = sampler._number, sampler._last, sampler._ring.clone()
            made = sampler.block(part, drawn.noise[:, block])
            ended = expected[:, block] + unit[:, block] * clean[:, block]
            assert torch.allclose(made[last[:, block]], ended[last[:, block]], atol=2e-3), first
            sampler._number, sampler._last, sampler._ring = before
            sampler.remember(part, states[:, block])


def test_a_student_needs_one_step(tmp_path):
    clip = write_clip(tmp_path / "clip")
    shape = {"width": 48, "layers": 2, "context": 20, "sequence": 16, "batch_size": 4, "learning_rate": 3e-3, "ema": 0.98}
    train([clip], tmp_path / "teacher", steps=100, audio_guidance=1.3, **shape)
    summary = train([clip], tmp_path / "student", distil=tmp_path / "teacher", distil_steps=1, **shape | {"steps": 60, "context": 9})
    assert summary["recipe"]["distil"] == str(tmp_path / "teacher")
    teacher, student = (Brain.from_pretrained(tmp_path / name) for name in ("teacher", "student"))
    assert student.config.context == 20 and student.config.audio_guidance == 1 and student.config.num_steps == 1
    audio, start = speaker(BLOCK), torch.from_numpy(np.load(clip / "listener/motion.npy")[:16])

    def made(brain, num_steps=None):
        return torch.stack([brain.motion(brain.generate(audio, start=start, seed=seed, num_steps=num_steps)) for seed in range(24)])

    wanted, got, untaught = made(teacher), made(student), made(teacher, 1)
    assert (got - wanted).square().mean() < 0.5 * (untaught - wanted).square().mean()
    with pytest.raises(UserError, match="distilled to 1"):
        student.generate(audio, num_steps=15)
    with pytest.raises(UserError, match="Guidance is fixed"):
        student.generate(audio, audio_guidance=2.0)
    with pytest.raises(UserError, match="itself distilled"):
        train([clip], tmp_path / "other", distil=tmp_path / "student")
    with pytest.raises(UserError, match="distil-steps is 5"):
        train([clip], tmp_path / "other", distil=tmp_path / "teacher", distil_steps=5)


def test_training_needs_rows_for_every_process(tmp_path, monkeypatch):
    monkeypatch.setattr("difflistener.brain.parallel.distributed.is_initialized", lambda: True)
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(UserError, match="A batch of 16 cannot be shared evenly by 3 processes"):
        train([write_clip(tmp_path / "clip")], tmp_path / "out")
    assert np.isfinite(np.load(tmp_path / "clip/listener/motion.npy")).all()
