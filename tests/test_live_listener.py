"""The live listener: the numbers of `generate`, a head that never stops or stutters, honest statistics, nothing left behind."""

import asyncio
import dataclasses
import gc
import itertools
import math
import sys
import threading
import time

import numpy as np
import pytest
import torch

from difflistener.bench import synthetic_body
from difflistener.brain.config import BrainConfig
from difflistener.brain.model import Brain
from difflistener.errors import UserError
from difflistener.live import mind as minds
from difflistener.live.listener import Listener
from difflistener.live.meter import Meter
from difflistener.live.playhead import EASE_FRAMES, PATIENCE, SLACK, Beat, Playhead
from difflistener.live.senses import Senses
from difflistener.prepare.audio import AudioStream, LogMel

pytestmark = pytest.mark.usefixtures("one_thread")

ROW = 640
BASIS = "toy-law"


def make_brain(look_ahead=0, network="dit", **changes) -> Brain:
    """An untrained brain that hears log-mel and sees faces."""
    torch.manual_seed(0)
    shape = {"block": 2, "history": 12, "context": 9, "width": 32, "layers": 2, "num_steps": 1} | changes
    brain = Brain(BrainConfig(network, BASIS, "logmel", LogMel.dim, True, LogMel().settings(),
                              look_ahead=look_ahead, **shape))
    for parameter in brain.network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    brain.motion.mean.copy_(torch.linspace(-0.1, 0.1, 56))
    brain.motion.std.copy_(torch.linspace(0.01, 0.2, 56))
    return brain.eval()


@pytest.fixture(scope="module")
def brain():
    return make_brain()


@pytest.fixture(scope="module")
def body():
    body = synthetic_body(60, 24)
    body.config = dataclasses.replace(body.config, basis=BASIS)
    return body


class Clock:
    """Time that passes when somebody waits for it."""

    def __init__(self):
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds
        await asyncio.sleep(0)


def make_listener(brain, body, **options):
    clock = options.setdefault("clock", Clock())
    listener = Listener(brain, body, **options)
    listener._sleep = clock.sleep
    return listener, clock


async def settle(listener) -> None:
    """Wait until everything that was heard is answered."""
    while not listener._mind.is_idle:
        assert listener._mind.failure is None
        await asyncio.sleep(0.001)


def talk(num_rows: int, seed=0) -> np.ndarray:
    """Sound that comes and goes."""
    noise = np.random.default_rng(seed).normal(size=num_rows * ROW) * 0.1
    return (noise * (np.sin(np.arange(len(noise)) / 3000) > 0)).astype(np.float32)


def faces(num_rows: int, seed=1) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(num_rows, 50)).astype(np.float32)


async def converse(listener, samples, codes=None, sizes=(ROW,), begin=0.0, ahead=2):
    """Frames of a conversation in step with the clock: so many rows are `ahead` of them. `codes` of None are not shown."""
    frames, shown, heard, looked = listener.frames(), [], 0, 0
    sizes = itertools.cycle(sizes)
    for row in range(len(samples) // ROW):
        while heard < (row + 1) * ROW:
            size = next(sizes)
            while codes is not None and looked < len(codes) and looked * ROW < heard + size:
                if codes[looked] is not None:
                    listener.push_expression(codes[looked], begin + looked * 0.04 + 0.01)
                looked += 1
            listener.push_audio(samples[heard : heard + size], begin + heard / 16000)
            heard += size
        await settle(listener)
        if row + 1 >= ahead:
            shown.append(await anext(frames))
    await frames.aclose()
    return shown


# Equality


@pytest.mark.parametrize("look_ahead", [0, 1])
@pytest.mark.parametrize("sizes", [(320,), (441, 1000), (160, 900, 33)])
def test_motion_is_what_generate_makes_bit_for_bit(sizes, look_ahead, body):
    brain = make_brain(look_ahead)
    samples, codes = talk(50), [None if 12 <= k < 24 else code for k, code in enumerate(faces(50))]
    listener, _ = make_listener(brain, body, seed=3, attitude="positive", num_steps=2)

    async def run():
        async with listener:
            return await converse(listener, samples, codes, sizes, begin=7.5, ahead=2 + look_ahead)

    shown = asyncio.run(run())
    # Codes are of use until they are 0.2 s old at the end of a row: those of row 11 until row 15.
    seen = torch.tensor([not 16 <= k < 24 for k in range(50)])
    filled = torch.from_numpy(np.stack([codes[11] if code is None else code for code in codes]))
    features = torch.from_numpy(LogMel().encode(samples, 50))
    wanted = brain.generate(features, filled, expression_valid=seen, seed=3, num_steps=2, attitude="positive").numpy()
    assert len(shown) >= 47
    assert [frame.row for frame in shown] == list(range(len(shown))) == [frame.number for frame in shown]
    assert all(np.array_equal(frame.motion, wanted[frame.row]) for frame in shown)
    assert listener.stats()["face_seen"] == pytest.approx(float(seen[: 50 - 2 * look_ahead].float().mean()), abs=1e-3)


def test_features_that_come_five_rows_at_once_lose_nothing(brain, body, monkeypatch):
    """As those of wav2vec 2.0 with a hop of 5 do: four or six frames at once."""
    step = 5 * ROW
    monkeypatch.setattr(LogMel, "stream", lambda self: AudioStream(
        self.dim, self.window - self.hop, 0, step, lambda signal, steps: self._rows(signal, 5 * steps)))
    listener, _ = make_listener(brain, body)

    async def run():
        async with listener:
            return await converse(listener, talk(60), faces(60), ahead=6)

    shown = asyncio.run(run())
    monkeypatch.undo()
    wanted = brain.generate(torch.from_numpy(LogMel().encode(talk(60), 60)), torch.from_numpy(faces(60))).numpy()
    assert [frame.row for frame in shown] == list(range(55)) and listener.stats()["dropped"] == 0
    assert all(np.array_equal(frame.motion, wanted[frame.row]) for frame in shown)


def test_motion_is_what_synthesize_writes(brain, body, tmp_path):
    from difflistener.media import load_audio, write_wav
    from difflistener.synthesize import Synthesis, synthesize

    brain.save_pretrained(tmp_path / "brain")
    body.save_pretrained(tmp_path / "body")
    write_wav(tmp_path / "talk.wav", talk(40))
    np.save(tmp_path / "face.npy", faces(40))
    synthesize(Synthesis(tmp_path / "talk.wav", tmp_path / "body", tmp_path / "brain", tmp_path / "out.mp4",
                         tmp_path / "face.npy", seed=5, device="cpu"))
    listener, _ = make_listener(brain, body, seed=5)

    async def run():
        async with listener:
            return await converse(listener, load_audio(tmp_path / "talk.wav"), faces(40), (500,))

    shown = asyncio.run(run())
    wanted = np.load(tmp_path / "out.npy")
    assert len(shown) == 39 and all(np.array_equal(frame.motion, wanted[frame.row]) for frame in shown)
    assert shown[0].picture.shape == (24, 24, 3) and shown[0].picture.dtype == np.uint8
    assert np.array_equal(shown[5].picture, body.render(torch.from_numpy(wanted[5:6]))[0].numpy())


def test_clear_begins_anew(brain, body):
    listener, _ = make_listener(brain, body)

    async def run():
        async with listener:
            first = await converse(listener, talk(20), faces(20))
            listener.clear()
            again = await converse(listener, talk(20), faces(20), begin=50.0)
            return first, again

    first, again = asyncio.run(run())
    assert [frame.row for frame in again] == list(range(19))
    # The head comes from another pose, and is where it should be a third of a second later.
    assert not np.array_equal(first[0].motion, again[0].motion)
    assert all(np.array_equal(a.motion, b.motion) for a, b in zip(first[EASE_FRAMES:], again[EASE_FRAMES:]))


def test_another_manner_goes_on_from_the_same_past(brain, body):
    listener, _ = make_listener(brain, body)

    async def run():
        async with listener:
            before = await converse(listener, talk(20), faces(20))
            with pytest.raises(UserError, match="no attitude 'kind'"):
                listener.change(attitude="kind")
            with pytest.raises(TypeError, match="num_steps"):
                listener.change(num_steps=3)
            listener.change(attitude="negative", seed=4)
            return before, await converse(listener, talk(20, 5), faces(20, 5), begin=0.8)

    before, after = asyncio.run(run())
    past = torch.from_numpy(np.stack([frame.motion for frame in before]))
    assert after[0].row == 19  # the last of the frames that were made before
    features = torch.from_numpy(LogMel().encode(np.concatenate([talk(20), talk(20, 5)]), 40)[20:])
    wanted = brain.generate(features, torch.from_numpy(faces(20, 5)),
                            start=torch.cat([past, torch.from_numpy(after[0].motion)[None]]), attitude="negative", seed=4).numpy()
    assert all(np.array_equal(frame.motion, wanted[frame.row - 20]) for frame in after[1:])


def test_what_is_recorded_is_what_was_heard_seen_and_done(brain, body):
    hops = []
    listener, _ = make_listener(brain, body, record=hops.append)
    codes = [None if k < 6 else code for k, code in enumerate(faces(20))]

    async def run():
        async with listener:
            return await converse(listener, talk(20), codes, (441,))

    shown = asyncio.run(run())
    samples, expression, seen, motion = (np.concatenate(part) for part in zip(*hops))
    assert np.array_equal(samples, talk(20)) and seen.tolist() == [False] * 6 + [True] * 14
    assert np.array_equal(expression[6:], faces(20)[6:]) and not expression[:6].any()
    assert np.array_equal(motion[: len(shown)], [frame.motion for frame in shown])


# Another sample


def test_another_sample_of_the_same_seconds(brain, body):
    listener, _ = make_listener(brain, body)
    samples, codes = talk(100), faces(100)

    async def run():
        async with listener:
            with pytest.raises(UserError, match="nothing to react to"):
                listener.react_again()
            shown = await converse(listener, samples[: 60 * ROW], codes[:60])
            listener.react_again(1.2)
            await settle(listener)
            return shown, await converse(listener, samples[60 * ROW :], codes[60:], begin=2.4)

    shown, after = asyncio.run(run())
    again = [frame for frame in after if frame.again]
    assert [frame.again for frame in after] == [True] * 30 + [False] * 9
    assert {frame.row for frame in again} == {-1} and [frame.row for frame in after[30:]] == list(range(59 + 30, 98))
    lead = 12  # as many frames of the past as the brain looks back at, and the hop's worth of rounding
    first = 60 - 30 - lead
    fixed = torch.full((lead + 30, 56), torch.nan)
    fixed[:lead] = torch.from_numpy(np.stack([frame.motion for frame in shown[first : first + lead]]))
    features = torch.from_numpy(LogMel().encode(samples, 100)[first:60])
    wanted = brain.generate(features, torch.from_numpy(codes[first:60]), fixed=fixed, sample=1).numpy()[lead:]
    assert all(np.array_equal(frame.motion, row) for frame, row in zip(again[EASE_FRAMES:], wanted[EASE_FRAMES:]))
    live = [frame.motion for frame in (*shown, *after)]
    steps = np.abs(np.diff(np.stack(live), axis=0)).max(1)
    usual = steps[: len(shown) - 1].max()
    assert steps[len(shown) - 1] < 1.5 * usual and steps[len(shown) + 29] < 1.5 * usual


def test_each_time_another_one_and_never_less_than_a_second(brain, body):
    listener, _ = make_listener(brain, body)
    made = []
    listener._head.put_again = made.append

    async def run():
        async with listener:
            await converse(listener, talk(24), faces(24))
            with pytest.raises(UserError):
                listener.react_again(1.0)
            await converse(listener, talk(20), faces(20), begin=24 * 0.04)
            for seconds in (1.0, 1.0, 9.0, 0.1):
                listener.react_again(seconds)
                await settle(listener)

    asyncio.run(run())
    assert [len(motion) for motion in made] == [24, 24, 44, 24]
    assert not np.array_equal(made[0], made[1])


# Trouble with the sound


@pytest.mark.parametrize(("samples", "message"), [
    (np.zeros((2, 5), np.float32), r"float32 \[2, 5\]"), (np.zeros(5, np.int16), "int16"),
    (np.array([0, np.nan]), "sample 1 .* is nan"),
    (np.array([np.inf]), "sample 0 .* is inf"), (np.array([0.0, 0.0, 9.0]), "sample 2 .* is 9.0"),
])  # fmt: skip
def test_bad_sound_is_refused(samples, message):
    senses = Senses(0.0)
    with pytest.raises(ValueError, match=message):
        senses.hear(samples, 0.0, 0.0)
    with pytest.raises(ValueError, match="time is nan"):
        senses.hear(np.zeros(5, np.float32), math.nan, 0.0)
    assert senses.end == 0.0 and senses.rows_waiting == 0


def test_bad_pictures_and_codes_are_refused_and_the_listener_lives_on(brain, body):
    from difflistener.basis import LandmarkBasis

    seeing = make_brain()
    seeing.landmark_basis = LandmarkBasis(*(np.ones(1, np.float32),) * 5)
    listener, _ = make_listener(seeing, body)

    async def run():
        async with listener:
            for frame in (np.zeros((32, 32), np.uint8), np.zeros((32, 32, 3), np.float32), np.zeros((4, 32, 3), np.uint8),
                          np.zeros((32, 32, 4), np.uint8)):
                with pytest.raises(ValueError, match="picture is"):
                    listener.push_video(frame)
            for codes in (np.zeros(49), np.full(50, np.nan), np.zeros((1, 50))):
                with pytest.raises(ValueError, match="expression codes"):
                    listener.push_expression(codes)
            with pytest.raises(ValueError, match="time is inf"):
                listener.push_expression(np.zeros(50), math.inf)
            with pytest.raises(ValueError):
                listener.push_audio(np.full(9, np.nan))
            return await converse(listener, talk(10))

    assert [frame.row for frame in asyncio.run(run())] == list(range(9))
    with pytest.raises(UserError, match="does not see"):
        Listener(brain, body).push_video(np.zeros((32, 32, 3), np.uint8))
    assert not Listener(seeing, body, track=False).sees and Listener(seeing, body).sees


def hear(pieces, now=0.0) -> tuple[Senses, np.ndarray]:
    """All that is heard of (samples, time) pieces."""
    senses = Senses(now)
    for samples, when in pieces:
        senses.hear(np.asarray(samples, np.float32), when, now)
    rows = senses.take(100)
    return senses, np.concatenate([row.samples for row in rows]) if rows else np.zeros(0)


ONES, TWOS = np.full(ROW, 0.1), np.full(ROW, 0.2)


@pytest.mark.parametrize(("second", "heard", "filled"), [
    (None, [0.1, 0.2], 0), (0.04, [0.1, 0.2], 0), (0.0495, [0.1, 0.2], 0), (0.0305, [0.1, 0.2], 0),
    (0.12, [0.1, 0, 0, 0.2], 0.08), (1.04, [0.1] + [0] * 23 + [0.2], 1.0), (1.05, [0.1, 0.2], 0), (10.0, [0.1, 0.2], 0),
    (0.0, [0.1], 0), (-0.9, [0.1], 0), (-5.0, [0.1, 0.2], 0),
])  # fmt: skip
def test_gaps_are_filled_and_overlaps_are_cut(second, heard, filled):
    pieces = [(ONES, 0.0), (TWOS, second), (np.zeros(0), None)]
    senses, samples = hear(pieces)
    assert np.allclose(samples.reshape(-1, ROW).mean(1), heard) or second == 1.04
    assert senses.silence_filled_s == pytest.approx(filled)


def test_half_an_overlap_is_cut_to_the_sample():
    senses, samples = hear([(ONES, 5.0), (TWOS, 5.02), (TWOS, 5.06)])
    assert np.array_equal(samples, np.concatenate([ONES, TWOS])[:1280].astype(np.float32)) and senses.end == pytest.approx(5.1)


def test_a_clock_that_stands_still_does_not_deafen():
    """Every piece says it is of time zero: most is cut as an overlap, but the listener goes on."""
    senses, rows = Senses(0.0), []
    for k in range(200):
        senses.wait(k * 0.04)
        senses.hear(np.full(ROW, 0.1, np.float32), 0.0, k * 0.04)
        rows += senses.take(100)
    assert len(rows) > 100 and 4 <= sum(row.samples.all() for row in rows) < 20


@pytest.mark.parametrize("late", [0.3, 0.6, 0.9, 1.4, 2.2])
def test_sound_that_is_late_at_first_is_all_heard(late):
    senses, heard = Senses(0.0), 0
    for tick in range(200):
        now = tick * 0.04
        senses.wait(now)
        if now >= late:
            senses.hear(np.full(ROW, 0.1, np.float32), now - late, now)
        heard += sum(row.samples.all() for row in senses.take(100))
    assert heard >= 199 - late * 25


def test_only_a_second_waits():
    senses = Senses(0.0)
    senses.hear(np.arange(40_000, dtype=np.float32) / 40_000, 3.0, 0.0)
    dropped = 38 * ROW  # the fewest whole rows that leave a second or less
    assert senses.rows_waiting == 24 and senses.audio_dropped_s == pytest.approx(dropped / 16000)
    first = senses.take(1)[0]
    assert first.samples[0] == np.float32(dropped / 40_000) and first.end == pytest.approx(3.0 + (dropped + ROW) / 16000)


def test_silence_is_heard_when_nothing_comes():
    senses = Senses(10.0)
    for now, rows in ((10.3, 0), (10.53, 0), (10.55, 1), (10.56, 1), (10.59, 2), (11.01, 12), (11.47, 24)):
        senses.wait(now)
        assert senses.rows_waiting == rows
    assert senses.silence_filled_s == pytest.approx(24 * 0.04)
    assert all(math.isnan(row.newest) and not row.samples.any() for row in senses.take(100))
    senses.hear(ONES.astype(np.float32), 77.0, 12.0)
    assert senses.take(1)[0][1:] == (pytest.approx(77.04), 12.0, 12.0)
    senses.wait(3600.0)  # nobody looked for an hour
    assert senses.rows_waiting == 25
    senses.wait(3600.03)
    assert senses.rows_waiting <= 26


def test_faces_go_with_the_row_they_were_seen_in():
    senses = Senses(0.0)
    senses.hear(np.zeros(16000, np.float32), 20.0, 0.0)
    code = lambda value: np.full(50, value, np.float32)  # noqa: E731
    value = lambda end: None if senses.face_before(end) is None else senses.face_before(end)[0]  # noqa: E731
    senses.see(code(1), 20.04)
    assert value(20.04) is None and value(20.08) == 1 and value(20.24) == 1 and value(20.28) is None
    senses.see(code(3), 20.16)
    senses.see(code(2), 20.10)  # late, and older
    assert value(20.12) == 2 and value(20.20) == 3
    senses.see(code(4), None)
    senses.see(code(5), 900.0)  # of another clock: it is now
    assert value(21.04) == 5 and value(21.0) is None
    for k in range(1000):
        senses.see(code(k), 21.0)
    assert len(senses._codes) < 100


@pytest.mark.parametrize("jump", [10.0, -10.0])
def test_a_clock_that_jumps_is_another_clock(jump, brain, body):
    listener, _ = make_listener(brain, body)

    async def run():
        async with listener:
            return (await converse(listener, talk(20), faces(20), begin=30.0)
                    + await converse(listener, talk(20, 5), faces(20, 5), begin=30.8 + jump))

    shown = asyncio.run(run())
    features = torch.from_numpy(LogMel().encode(np.concatenate([talk(20), talk(20, 5)]), 40))
    seen = torch.arange(40) != 20  # these codes came before the sound that showed the new clock
    wanted = brain.generate(features, torch.from_numpy(np.concatenate([faces(20), faces(20, 5)])), expression_valid=seen).numpy()
    assert [frame.row for frame in shown] == list(range(38)) and listener.stats()["silence_filled_s"] == 0
    assert all(np.array_equal(frame.motion, wanted[frame.row]) for frame in shown)


# The play head


def beats(values, first_row=0, heard=1.0) -> list[Beat]:
    return [Beat(np.full(56, value, np.float32), first_row + k, heard, math.nan) for k, value in enumerate(values)]


def smooth(num):
    return np.sin(np.arange(num) / 6)


def test_motion_in_time_is_shown_as_it_is():
    head, wave, shown = Playhead(np.zeros(56)), smooth(200), []
    for tick in range(200):
        if tick % 2 == 0:
            head.put(beats(wave[tick : tick + 2], tick), tick / 25)
        shown.append(head.take(tick / 25))
    assert [pose.beat.row for pose in shown] == list(range(200)) and head.dropped == head.eased == 0
    assert np.array_equal([pose.motion[0] for pose in shown], wave.astype(np.float32))


def test_without_motion_the_head_eases_out_and_drifts_to_rest():
    head = Playhead(np.full(56, 5.0))
    assert head.take(0.0).motion[0] == 5.0 and head.eased == 1
    head = Playhead(np.full(56, 5.0))
    head.put(beats([0.0, 0.1]), 0.0)
    poses = np.array([head.take(k / 25).motion[0] for k in range(2 + 25)])
    steps = np.diff(poses)
    assert head.eased == 25 and 0 < steps[1] < 0.2 and np.all(np.diff(steps[1:8]) > -0.1)
    assert np.abs(steps[1] - steps[0]) < 0.07 and poses[-1] > 0.8 * 5.0 and poses.max() <= 5.0
    still = np.array([head.take(k / 25).motion[0] for k in range(27, 80)])
    assert abs(still[-1] - 5.0) < 0.02


def largest_step(head, wave, ticks, hops) -> float:
    """Of what is shown while `hops` says how many times two frames of `wave` are made before each tick."""
    shown, made = [], 0
    for tick in range(ticks):
        for _ in range(hops(tick)):
            head.put(beats(wave[made : made + 2], made), tick / 25)
            made += 2
        shown.append(head.take(tick / 25).motion[0])
    return np.abs(np.diff(shown)).max()


def test_a_jump_is_spread_out():
    wave = smooth(400)
    usual = np.abs(np.diff(wave)).max()
    late = Playhead(np.zeros(56))
    assert largest_step(late, wave, 120, lambda tick: tick % 2 == 0 and tick != 40) < 2 * usual and late.eased == 2
    cut = Playhead(np.zeros(56))
    cut.watched = True
    assert largest_step(cut, wave, 120, lambda tick: 7 if tick == 40 else tick % 2 == 0) < 3 * usual
    assert cut.dropped == 12 and cut.eased == 0


def test_the_head_never_lags_more_than_a_batch_and_two_frames():
    head = Playhead(np.zeros(56))
    head.watched = True
    made = 0
    for tick in range(300):
        count = 2 if tick % 2 == 0 else 1 if tick % 10 == 1 else 0
        head.put(beats(np.zeros(count), made), tick / 25)
        made += count
        assert made - 1 - head.take(tick / 25).beat.row <= 2 + SLACK
    assert head.dropped == made - 300 - len(head._queue) > 10


def test_what_waits_for_nothing_is_skipped():
    head = Playhead(np.zeros(56))
    head.watched = True
    head.put(beats([0, 0]), 0.0)
    lags = []
    for tick in range(2 * PATIENCE):
        if tick % 2 == 0:
            head.put(beats([0, 0], tick + 2), tick / 25)
        lags.append(tick + 2 + 1 - head.take(tick / 25).beat.row - tick % 2)
    assert lags[0] == 3 and lags[-1] == 2 and head.dropped == 1 and head.eased == 0
    # What is made at irregular times needs the reserve.
    head = Playhead(np.zeros(56))
    for tick in range(2 * PATIENCE):
        if tick % 2 == 0:
            head.put(beats([0, 0], tick), tick / 25 + (0.03 if tick % 100 else 0))
        head.take(tick / 25 + 0.039)
    assert head.dropped == 0


def test_a_reserve_that_was_needed_is_kept_longer():
    head = Playhead(np.zeros(56))
    head.watched = True
    dropped = []
    for tick in range(5 * PATIENCE):
        hops = {50: 0, 52: 2}.get(tick, tick % 2 == 0)  # one hop comes late
        for _ in range(hops):
            head.put(beats([0, 0], tick), tick / 25)
        head.take(tick / 25)
        dropped.append(head.dropped)
    assert head.eased == 2 and dropped[3 * PATIENCE] == 0 < dropped[-1]


def test_frames_that_nobody_waited_for_are_not_dropped():
    head = Playhead(np.zeros(56))
    for k in range(50):
        head.put(beats([0, 0], 2 * k), 0.0)
    assert head.dropped == 0 and len(head._queue) <= 2 + SLACK


# Statistics


def test_a_slow_consumer_gets_fewer_frames_and_is_told(brain, body):
    listener, clock = make_listener(brain, body)

    async def run():
        async with listener:
            assert listener.stats()["fps"] is None
            numbers, frames = [], listener.frames()
            for _ in range(60):
                listener.push_audio(talk(3))
                await settle(listener)
                numbers.append((await anext(frames)).number)
                clock.now += 0.12
            await frames.aclose()
            return numbers, listener.stats()

    numbers, stats = asyncio.run(run())
    assert numbers == list(range(0, 180, 3))
    assert stats["frames"] == 60 and stats["fps"] == pytest.approx(25 / 3, abs=0.21)
    assert stats["dropped"] >= 2 * 59 and stats["eased"] == 0
    assert sum(np.diff(numbers) - 1) == listener._dropped


def test_sound_that_is_cut_is_eased_then_silence(brain, body):
    listener, _ = make_listener(brain, body)

    async def run():
        async with listener:
            begun = await converse(listener, talk(20))
            frames, after = listener.frames(), []
            for _ in range(50):
                await settle(listener)
                after.append(await anext(frames))
            return begun, after, listener.stats()

    begun, after, stats = asyncio.run(run())
    kinds = [frame.row >= 0 for frame in after]
    quiet = kinds.index(True, 2)
    assert kinds[0] and not any(kinds[1:quiet]) and quiet * 0.04 == pytest.approx(0.5, abs=0.1) and all(kinds[quiet + 2 :])
    assert stats["eased"] == kinds.count(False) and stats["brain_late"] == 0
    assert stats["silence_filled_s"] == pytest.approx(2.0 - 0.5, abs=0.1)
    assert begun[-1].heard <= after[1].heard and after[quiet - 1].age_ms > after[1].age_ms + 300
    assert math.isnan(after[-1].heard) and math.isnan(after[-1].age_ms) and after[-1].row > begun[-1].row
    assert stats["level"] == 0 and not stats["talking"]


def test_nobody_ever_speaks(brain, body):
    listener, _ = make_listener(brain, body)

    async def run():
        async with listener:
            frames, shown = listener.frames(), []
            for _ in range(30):
                await settle(listener)
                shown.append(await anext(frames))
            return shown

    shown = asyncio.run(run())
    assert all(math.isnan(frame.heard) for frame in shown)
    assert np.array_equal(shown[5].motion, brain.motion.mean.numpy()) and shown[-1].row >= 10
    assert all(frame.motion.dtype == np.float32 for frame in shown)


def test_delay_is_counted_from_the_first_sound_of_a_hop(brain, body):
    listener, clock = make_listener(brain, body)

    async def run():
        async with listener:
            frames = listener.frames()
            await anext(frames)
            for k in range(200):  # sound of 40 ms every 40 ms, 30 ms before each frame
                clock.now = 100.0 + 0.04 * k + 0.01
                listener.push_audio(talk(1))
                await settle(listener)
                frame = await anext(frames)
            return frame, listener.stats()

    frame, stats = asyncio.run(run())
    # The first row of a hop waits 40 ms for the second and that 30 ms for a frame.
    assert stats["delay_ms"] == {"p50": pytest.approx(70, abs=0.1), "p95": pytest.approx(70, abs=0.1)}
    assert frame.age_ms == pytest.approx(30 if frame.row % 2 == 0 else 70, abs=0.1)
    assert frame.heard == pytest.approx(clock.now - frame.age_ms / 1000)


def test_delay_is_measured_once_a_hop(brain, body):
    listener, clock = make_listener(brain, body)

    async def run():
        async with listener:
            frames = listener.frames()
            await anext(frames)
            for k in range(0, 100, 2):  # sound of 80 ms every 80 ms: the second frame of a hop is shown 40 ms later, of necessity
                clock.now = 100.0 + 0.04 * k + 0.01
                listener.push_audio(talk(2))
                await settle(listener)
                await anext(frames)
                await anext(frames)
            return listener.stats()

    assert asyncio.run(run())["delay_ms"] == {"p50": pytest.approx(30, abs=0.1), "p95": pytest.approx(30, abs=0.1)}


class Slow:
    """Calls of `method` wait until they are let go."""

    def __init__(self, monkeypatch, owner, method):
        self.open, self.entered = threading.Event(), threading.Event()
        self.open.set()
        inner = getattr(owner, method)

        def slow(*given, **named):
            self.entered.set()
            assert self.open.wait(20)
            return inner(*given, **named)

        monkeypatch.setattr(owner, method, slow)


def test_a_brain_that_is_late_is_eased_over_and_says_so(brain, body, monkeypatch):
    slow = Slow(monkeypatch, minds.Stream, "push")
    listener, clock = make_listener(brain, body)

    async def run():
        async with listener:
            await converse(listener, talk(20), faces(20))
            slow.open.clear()
            slow.entered.clear()
            frames, shown, longest = listener.frames(), [], 0.0
            before = listener.stats()
            for k in range(75):
                begun = time.monotonic()
                listener.push_audio(talk(1), (20 + k) * 0.04)
                listener.push_expression(faces(1)[0], (20 + k) * 0.04)
                listener.stats()
                longest = max(longest, time.monotonic() - begun)
                shown.append(await anext(frames))
                if k > 2:
                    await asyncio.to_thread(slow.entered.wait, 20)
            during = listener.stats()
            slow.open.set()
            await settle(listener)
            for k in range(75, 90):
                listener.push_audio(talk(1), (20 + k) * 0.04)
                await settle(listener)
                shown.append(await anext(frames))
            return before, during, listener.stats(), shown, longest

    before, during, after, shown, longest = asyncio.run(run())
    assert before["eased"] == before["brain_late"] == before["audio_dropped_s"] == 0
    assert 70 <= during["brain_late"] <= during["eased"] <= 75
    assert during["audio_dropped_s"] == pytest.approx(3.0 - 1.0 - 0.08, abs=0.09)
    assert longest < 5.0  # far less than the brain keeps everybody waiting
    assert after["eased"] <= during["eased"] + 2 and shown[-1].row > shown[0].row
    steps = np.abs(np.diff([frame.motion for frame in shown], axis=0))
    assert steps[40:70].max() < 0.02  # at rest


def test_stages_are_timed(brain, body, monkeypatch):
    """Each stage is made slow by another amount."""
    from difflistener.body.render import Renderer
    from difflistener.live import tracker

    def slower(owner, method, seconds):
        inner = getattr(owner, method)
        monkeypatch.setattr(owner, method, lambda *given, **named: (time.sleep(seconds), inner(*given, **named))[1])

    class Tracker:
        def __init__(self, basis):
            pass

        def push(self, frame):
            time.sleep(0.02)
            return np.full(50, frame.mean(), np.float32)

        def close(self):
            pass

    monkeypatch.setattr(tracker, "SpeakerTracker", Tracker)
    slower(LogMel, "_rows", 0.03)
    slower(minds.Stream, "push", 0.04)
    slower(Renderer, "__call__", 0.05)
    seeing = make_brain()
    seeing.landmark_basis = object()
    hops = []
    listener, _ = make_listener(seeing, body, record=hops.append)

    async def run():
        async with listener:
            frames = listener.frames()
            for k in range(3):
                listener.push_video(np.full((20, 20, 3), k, np.uint8), 2 * k * 0.04)
                while len(listener._eyes.track_ms.recent()) <= k:
                    await asyncio.sleep(0.002)
                for row in (2 * k, 2 * k + 1):
                    listener.push_audio(talk(1), row * 0.04)
                await settle(listener)
                await anext(frames)
            return listener.stats()

    stats = asyncio.run(run())
    least = {"track_ms": 20, "features_ms": 30, "brain_ms": 40, "body_ms": 50}
    assert all(least[name] <= stats[name]["p50"] < least[name] + 9 * 10 for name in least), {name: stats[name] for name in least}
    assert stats["track_ms"]["p50"] < stats["features_ms"]["p50"]
    assert np.array_equal(np.concatenate([hop.expression[:, 0] for hop in hops]), [0, 0, 1, 1, 2, 2])
    assert stats["face_seen"] == 1.0 and stats["video_skipped"] == 0


def test_only_the_newest_picture_waits_for_the_tracker(body, monkeypatch):
    from difflistener.live import tracker

    seen, closed = [], []

    class Tracker:
        def __init__(self, basis):
            pass

        def push(self, frame):
            seen.append(int(frame[0, 0, 0]))
            return None

        def close(self):
            closed.append(True)

    monkeypatch.setattr(tracker, "SpeakerTracker", Tracker)
    slow = Slow(monkeypatch, Tracker, "push")
    slow.open.clear()
    seeing = make_brain()
    seeing.landmark_basis = object()
    listener, _ = make_listener(seeing, body)

    async def run():
        async with listener:
            listener.push_video(np.zeros((20, 20, 3), np.uint8))
            await asyncio.to_thread(slow.entered.wait, 20)
            for k in range(1, 6):
                listener.push_video(np.full((20, 20, 3), k, np.uint8))
            slow.open.set()
            while len(seen) < 2:
                await asyncio.sleep(0.002)
            return listener.stats()

    stats = asyncio.run(run())
    assert seen == [0, 5] and stats["video_skipped"] == 4 and stats["face_seen"] is None and closed == [True]


def test_a_tracker_that_cannot_be_had_is_said_and_sound_goes_on(body, monkeypatch):
    from difflistener.live import tracker

    def missing(basis):
        raise UserError("face tracking needs the package mediapipe.", "Install it.")

    monkeypatch.setattr(tracker, "SpeakerTracker", missing)
    seeing = make_brain()
    seeing.landmark_basis = object()
    listener, _ = make_listener(seeing, body)

    async def run():
        async with listener:
            listener.push_video(np.zeros((20, 20, 3), np.uint8))
            while listener._eyes.failure is None:
                await asyncio.sleep(0.002)
            with pytest.raises(UserError, match="mediapipe"):
                listener.push_video(np.zeros((20, 20, 3), np.uint8))
            return await converse(listener, talk(6))

    assert len(asyncio.run(run())) == 5


def test_level_is_of_the_last_half_second(brain, body):
    listener, clock = make_listener(brain, body)

    async def run():
        async with listener:
            quiet = listener.stats()
            listener.push_audio(np.full(8000, 0.5, np.float32))
            listener.push_audio(0.1 * np.sqrt(2) * np.sin(np.arange(8000, dtype=np.float32)))
            loud = listener.stats()
            listener.push_audio(np.full(8000, 0.002, np.float32))
            hiss = listener.stats()
            listener.push_audio(np.full(800, 0.5, np.float32))
            clock.now += 0.6
            return quiet, loud, hiss, listener.stats()

    quiet, loud, hiss, gone = asyncio.run(run())
    assert [stats["talking"] for stats in (quiet, loud, hiss, gone)] == [False, True, False, False]
    assert loud["level"] == pytest.approx(0.1, abs=1e-3) and hiss["level"] == pytest.approx(0.002) and gone["level"] == 0


def test_a_meter_forgets():
    clock = Clock()
    meter = Meter(clock, window_s=10.0)
    assert meter.summary() == {"p50": None, "p95": None}
    for k in range(100):
        meter.add(float(k))
        clock.now += 1.0
    assert meter.recent() == list(range(91, 100))
    assert meter.summary() == {"p50": 95.0, "p95": pytest.approx(98.6)}


# Beginning and end


def leftovers() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("listener-")]


def test_nothing_is_left_after_close(brain, body):
    listener, _ = make_listener(brain, body)
    threads = torch.get_num_threads()

    async def run():
        async with listener:
            assert sorted(leftovers()) == ["listener-body", "listener-brain", "listener-eyes"]
            assert all(thread.daemon for thread in threading.enumerate() if thread.name in leftovers())
            frames = listener.frames()
            waiting = asyncio.create_task(anext(frames, None))
            await waiting
            listener._sleep = lambda seconds: asyncio.sleep(0.05)
            waiting = asyncio.create_task(anext(frames, None))
            await asyncio.sleep(0.01)
            await asyncio.gather(listener.close(), listener.close())
            assert await waiting is None
            listener.push_audio(talk(1))
            listener.push_expression(np.zeros(50))
            listener.change(seed=1)
            listener.clear()
            listener.react_again()
            assert await anext(frames, None) is None
        await listener.close()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(run())
    assert leftovers() == [] and torch.get_num_threads() == threads


def test_closing_waits_for_a_busy_brain_without_blocking(brain, body, monkeypatch):
    slow = Slow(monkeypatch, minds.Stream, "push")
    listener, _ = make_listener(brain, body)

    async def run():
        ticks = 0
        async with listener:
            slow.open.clear()
            slow.entered.clear()
            listener.push_audio(talk(2))
            await asyncio.to_thread(slow.entered.wait, 20)
            closing = asyncio.create_task(listener.close())
            for _ in range(20):
                await asyncio.sleep(0.002)
                ticks += 1
            assert not closing.done() and leftovers() == ["listener-brain"]
            slow.open.set()
            await closing
        return ticks

    assert asyncio.run(run()) == 20 and leftovers() == []


def test_an_error_inside_leaves_nothing(brain, body):
    listener, _ = make_listener(brain, body)

    async def run():
        async with listener:
            raise KeyError("mine")

    with pytest.raises(KeyError):
        asyncio.run(run())
    assert leftovers() == []


@pytest.mark.parametrize("part", ["brain", "body"])
def test_what_a_thread_dies_of_is_raised(part, brain, body, monkeypatch):
    listener, _ = make_listener(brain, body)

    def dies(*_):
        raise RuntimeError("no more")

    async def run():
        async with listener:
            monkeypatch.setattr(*{"brain": (listener._mind, "_react", dies), "body": (listener._painter, "_draw", dies)}[part])
            frames = listener.frames()
            for _ in range(100):
                listener.push_audio(talk(2))
                await anext(frames)
                await asyncio.sleep(0.01)

    with pytest.raises(RuntimeError, match="no more"):
        asyncio.run(run())
    assert leftovers() == []


def test_what_cannot_begin_is_said_and_leaves_nothing(brain, body, monkeypatch):
    with pytest.raises(UserError, match="network mlp does not stream"):
        Listener(make_brain(network="mlp"), body)
    other = synthetic_body(60, 24)
    with pytest.raises(UserError, match="speaks basis landmark:synthetic"):
        Listener(brain, other)
    with pytest.raises(UserError, match="no attitude"):
        Listener(brain, body, attitude="kind")
    listener, _ = make_listener(brain, body)

    def missing(self):
        raise UserError("The weights are missing.", "Fetch them.")

    monkeypatch.setattr(LogMel, "stream", missing)

    async def run():
        async with listener:
            pass

    with pytest.raises(UserError, match="weights are missing"):
        asyncio.run(run())
    assert leftovers() == []


def test_a_second_consumer_takes_over(brain, body):
    listener, _ = make_listener(brain, body)

    async def run():
        async with listener:
            first, second = listener.frames(), listener.frames()
            one = await anext(first)
            two = await anext(second)
            assert await anext(first, None) is None
            three = await anext(second)
            numbers = [one.number, two.number, three.number]
            async for frame in listener.frames():
                numbers.append(frame.number)
                if len(numbers) == 5:
                    break
            return numbers

    assert asyncio.run(run()) == [0, 1, 2, 3, 4]


def test_ten_minutes_in_constant_memory(brain, body, monkeypatch):
    """With a brain and a body that take no time; nothing that is kept may grow."""

    class Fast:
        def __init__(self, brain, *_, **__):
            self.waiting = 0

        def push(self, audio, *_):
            return torch.zeros(len(audio), 56)

    monkeypatch.setattr(minds, "Stream", Fast)
    listener, clock = make_listener(brain, body)
    picture = np.zeros((24, 24, 3), np.uint8)
    monkeypatch.setattr(listener._painter, "_draw", lambda motion: picture)
    sound, code = talk(10), faces(1)[0]

    async def run():
        async with listener:
            frames, blocks = listener.frames(), []
            for step in range(1500):  # 0.4 s each
                if step % 50 < 40:  # sometimes nobody talks
                    listener.push_audio(sound, step * 0.4)
                    listener.push_expression(code, step * 0.4)
                for _ in range(10):
                    await anext(frames)
                await settle(listener)
                if step % 150 == 149:
                    gc.collect()
                    listener.stats()
                    blocks.append(sys.getallocatedblocks())
            return blocks, listener.stats()

    blocks, stats = asyncio.run(run())
    assert stats["frames"] == 15_000 and stats["silence_filled_s"] > 60
    assert max(blocks[2:]) - min(blocks[2:]) < 4000, blocks


def test_the_example_writes_a_video(brain, body, tmp_path, monkeypatch, capsys):
    import runpy
    from pathlib import Path

    from difflistener.media import probe, write_wav

    brain.save_pretrained(tmp_path / "brain")
    body.save_pretrained(tmp_path / "body")
    write_wav(tmp_path / "talk.wav", talk(20))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["listen_to_file.py", "talk.wav", "body", "brain"])
    runpy.run_path(str(Path(__file__).parents[1] / "examples/listen_to_file.py"), run_name="__main__")
    assert "listener.mp4: " in capsys.readouterr().out and leftovers() == []
    assert probe("listener.mp4").has_audio and 0.5 < probe("listener.mp4").duration_s < 0.9
