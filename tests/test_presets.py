"""Metric presets against plain implementations written from the definitions, closed forms, and their defects.

The plain ones follow the text of the definitions as its authors' code has it: np.cov, scipy.linalg.sqrtm, flattened
arrays, concatenated clips. They hold everything at once and fail on singular covariances; the presets stream and do not.
"""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.linalg import sqrtm
from sklearn.cluster import KMeans

from difflistener.errors import UserError
from difflistener.metrics.honest import lagged_correlation
from difflistener.metrics.motion import Moments, frechet, spectrum, variance
from difflistener.metrics.presets import PRESETS
from difflistener.metrics.published import Correlation, Sequence, Steps, Variance, bilateral, diversity, sid

CLIPS = Path(os.environ.get("DIFFLISTENER_CLIPS", Path(__file__).parents[2] / "shared" / "clips"))
EXP, ROT, JAW, POSE = slice(0, 50), slice(50, 53), slice(53, 56), slice(50, 56)
exactly = {"rel": 1e-6, "abs": 1e-12}


def motion(frames, seed, columns=56):
    """Smooth motion with different means and sizes of columns."""
    generator = np.random.default_rng(seed)
    noise = generator.standard_normal((frames + 4, columns))
    smooth = np.stack([np.convolve(row, np.ones(5) / 5, "valid") for row in noise.T], 1)
    smooth += 0.2 * generator.standard_normal((frames, columns))
    return smooth * np.linspace(0.1, 1, columns) + np.random.default_rng(seed + 1000).standard_normal(columns)


def sequence(frames, seed, name=None, **parts):
    made = {"pred": motion(frames, seed), "truth": motion(frames, seed + 1), "speaker": motion(frames, seed + 2)} | parts
    return Sequence(**made, name=name or f"clip {seed}")


@pytest.fixture(scope="module")
def clips():
    return [sequence(260, 10), sequence(200, 20)]


def plain_fd(first, second):
    s1, s2 = np.cov(first, rowvar=False), np.cov(second, rowvar=False)
    return ((first.mean(0) - second.mean(0)) ** 2).sum() + np.trace(s1) + np.trace(s2) - 2 * np.trace(sqrtm(s1 @ s2)).real


def plain_sid(fitted_on, scored, clusters):
    labels = KMeans(n_clusters=clusters, random_state=0, n_init="auto").fit(fitted_on).predict(scored)
    total = 0.0
    for cluster in range(clusters):
        p = (labels == cluster).mean()
        total -= p * np.log2(p + 1e-6)
    return total


def plain_rpcc(pred, truth, speaker):
    return abs(np.corrcoef(truth.flatten(), speaker.flatten())[0, 1] - np.corrcoef(pred.flatten(), speaker.flatten())[0, 1])


def plain_sts(pred, truth):
    return np.sqrt(10 * ((np.diff(truth, axis=0) - np.diff(pred, axis=0)) ** 2).sum())


def agree(scores, expected):
    assert {metric: set(groups) for metric, groups in scores.items()} == {m: set(groups) for m, groups in expected.items()}
    for metric, groups in expected.items():
        assert scores[metric] == pytest.approx(groups, **exactly), metric


def each(clips, groups, figure):
    """{group: mean over clips of figure(pred, truth, speaker)} on the columns of each group."""
    return {name: np.mean([figure(clip.pred[:, columns], clip.truth[:, columns], clip.speaker[:, columns]) for clip in clips])
            for name, columns in groups.items()}


PER_CLIP = {"FD": lambda p, t, s: plain_fd(p, t), "P-FD": lambda p, t, s: plain_fd(np.hstack([s, p]), np.hstack([s, t])),
            "MSE": lambda p, t, s: ((p - t) ** 2).mean()}


def test_dim_is_the_plain_arithmetic(clips):
    """Listener frames 1.. and speaker frames ..-1; FD, P-FD, MSE by clip, the rest of concatenated arrays."""
    late = [Sequence(c.pred[1:], c.truth[1:], c.speaker[:-1]) for c in clips]
    groups = {"expression": EXP, "pose": POSE}
    both = groups | {"all": slice(0, 56)}
    pred, truth, speaker = (np.concatenate([getattr(c, part) for c in late]) for part in ("pred", "truth", "speaker"))
    expected = {metric: each(late, both, figure) for metric, figure in PER_CLIP.items()}
    expected |= {
        "SID": {name: plain_sid(truth[:, g], pred[:, g], {"expression": 40, "pose": 20}[name]) for name, g in groups.items()},
        "Var": {name: np.var(pred[:, g]) for name, g in both.items()},
        "rPCC": {name: plain_rpcc(pred[:, g], truth[:, g], speaker[:, g]) for name, g in groups.items()},
        "STS": {name: plain_sts(pred[:, g], truth[:, g]) for name, g in groups.items()},
    }
    agree(PRESETS["dim"].score(iter(clips)), expected)


def test_lm_listener_is_the_plain_arithmetic(clips):
    group = {"all": slice(0, 56)}
    expected = {metric: each(clips, group, figure) for metric, figure in PER_CLIP.items()}
    expected["Var"] = each(clips, group, lambda p, t, s: np.mean([np.var(column) for column in p.T]))
    far = []
    for clip in clips:
        generator = clip.generator(3)
        first, second = generator.choice(len(clip.pred), 30, replace=False), generator.choice(len(clip.pred), 30, replace=False)
        far.append(np.mean([np.sqrt(((clip.pred[a] - clip.pred[b]) ** 2).sum()) for a, b in zip(first, second)]))
    agree(PRESETS["lm-listener"].score(clips, seed=3), expected | {"diversity": {"all": np.mean(far)}})


SMALL = {"expression": EXP, "rotation": ROT, "jaw": JAW}
CLUSTERS = {"expression": 40, "rotation": 10, "jaw": 10}


def dualtalk_expected(clips):
    expected = {metric: each(clips, SMALL, figure) for metric, figure in PER_CLIP.items()}
    return expected | {
        "Var": each(clips, SMALL, lambda p, t, s: np.mean(np.var(p, axis=0))), "rPCC": each(clips, SMALL, plain_rpcc),
        "STS": each(clips, SMALL, lambda p, t, s: plain_sts(p, t))}


def plain_sids(clips, is_reversed):
    means = {}
    for name, clusters in CLUSTERS.items():
        pairs = [(clip.truth[:, SMALL[name]], clip.pred[:, SMALL[name]]) for clip in clips]
        means[name] = np.mean([plain_sid(*(pair[::-1] if is_reversed else pair), clusters) for pair in pairs])
    return means


def test_dualtalk_is_the_plain_arithmetic_with_sid_reversed(clips):
    scores = PRESETS["dualtalk"].score(clips)
    assert scores.pop("diversity").keys() == SMALL.keys()
    agree(scores, dualtalk_expected(clips) | {"SID": plain_sids(clips, True)})


def test_timar_is_dualtalk_with_sid_put_right_and_the_printed_scale(clips):
    scores = PRESETS["timar"].score(clips)
    expected = dualtalk_expected(clips) | {"SID": plain_sids(clips, False), "reverse SID": plain_sids(clips, True)}
    for metric in ("FD", "P-FD"):
        expected[metric]["jaw"] *= 1000
        expected[metric]["rotation"] *= 100
    for name, factors in (("MSE", (10, 100, 1000)), ("rPCC", (100, 10, 10))):
        expected[name] = {group: value * factor for (group, value), factor in zip(expected[name].items(), factors)}
    del scores["diversity"]
    agree(scores, expected)


def test_the_arguments_of_sid_matter(clips):
    """DualTalk's SID is TIMAR's of the swapped pair, and not TIMAR's of the pair itself."""
    swapped = [Sequence(clip.truth, clip.pred) for clip in clips]
    published, right = PRESETS["dualtalk"].score(clips)["SID"], PRESETS["timar"].score(clips)["SID"]
    assert published == pytest.approx(PRESETS["timar"].score(swapped)["SID"], **exactly)
    assert all(abs(published[group] - right[group]) > 1e-3 for group in SMALL)


def test_the_l2_of_learning2listen_is_what_its_code_prints():
    """np.mean(np.linalg.norm(truth - pred, axis=-1)) without 32 frames, of numbers over `data.std(axis=1).std(axis=0)`, as the
    authors' code has it, the truth through cv2.bilateralFilter(column, 5, 20, 20)."""
    cv2 = pytest.importorskip("cv2")
    clips = [sequence(frames, seed, truth=size * motion(frames, seed)) for frames, seed, size in ((64, 1, 1), (64, 2, 2), (90, 3, 5))]
    smooth = [np.stack([cv2.bilateralFilter(column.astype(np.float32), 5, 20, 20).ravel() for column in c.truth.T], 1) for c in clips]
    std = np.std([part.std(axis=0) for part in smooth], axis=0)
    expected = np.concatenate([np.linalg.norm((part - c.pred)[32:] / std, axis=1) for c, part in zip(clips, smooth)]).mean()
    assert PRESETS["l2l"].score(clips)["L2"]["all"] == pytest.approx(expected, rel=1e-6)


def test_the_l2_of_learning2listen_needs_two_clips(clips):
    """By hand: two clips that sway by deviations of 1 and 3, so that a unit is 1; the prediction is off by 2 in one column from
    frame 32 on, by 100 in all before: 2."""
    sway = np.sqrt(2) * np.sin(np.arange(1000) * 2 * np.pi / 100)  # So slow that smoothing takes nothing from it.
    made = []
    for size in (1, 3):
        truth = np.repeat(size * sway[:, None], 56, 1)
        pred = bilateral(truth)
        pred[:32] += 100
        pred[:, 7] += 2
        made.append(Sequence(pred, truth))
    assert PRESETS["l2l"].score(made)["L2"]["all"] == pytest.approx(2, rel=0.01)
    assert "L2" not in PRESETS["l2l"].score(clips[:1])
    with pytest.raises(UserError, match="at least 33"):
        PRESETS["l2l"].score([sequence(32, 1)])


@pytest.mark.parametrize("name", ["avatar-forcing", "l2l"])
def test_avatar_forcing_and_l2l_are_the_plain_arithmetic(clips, name):
    groups = {"expression": EXP, "pose": POSE}
    pred, truth, speaker = (np.concatenate([getattr(c, part) for c in clips]) for part in ("pred", "truth", "speaker"))
    clusters = {"expression": 15, "pose": 9}
    expected = {"FD": each(clips, groups, PER_CLIP["FD"]), "Var": each(clips, groups, lambda p, t, s: np.mean(np.var(p, axis=0))),
                "SID": {key: plain_sid(truth[:, g], pred[:, g], clusters[key]) for key, g in groups.items()}}
    if name == "l2l":
        expected |= {metric: each(clips, groups, PER_CLIP[metric]) for metric in ("P-FD", "MSE")}
    else:
        expected |= {"Var flat": {key: np.var(pred[:, g]) for key, g in groups.items()},
                     "rPCC": {key: plain_rpcc(pred[:, g], truth[:, g], speaker[:, g]) for key, g in groups.items()}}
    scores = PRESETS[name].score(clips)
    assert ("L2" in scores) == (name == "l2l")
    scores.pop("L2", None)
    agree(scores, expected)


def test_vico_l1_pools_frames_of_all_clips():
    """30 frames off by 1 and 10 off by 3 in expression: (30 + 30) / 40 = 1.5, not the mean over clips, 2; rotation off by
    0.5 in one of three columns of the long clip: 30 x 0.5 / 120 = 0.125."""
    truth = [motion(30, 1), motion(10, 2)]
    pred = [part.copy() for part in truth]
    pred[0][:, EXP] += 1
    pred[1][:, EXP] -= 3
    pred[0][:, 51] += 0.5
    scores = PRESETS["vico-l1"].score(Sequence(*pair) for pair in zip(pred, truth))
    assert scores == {"L1": {"expression": pytest.approx(1.5, **exactly), "rotation": pytest.approx(0.125, **exactly)}}


def test_sid_of_known_shares():
    """Four far points visited 8, 4, 2 and 2 times of 16: 1/2 + 2/4 + 2 x 3/8 = 1.75 bits, but for the 1e-6 in the logarithm;
    one point alone: -log2(1 + 1e-6) = -1.4427e-6."""
    points = np.array([[0.0, 0], [100, 0], [0, 100], [100, 100]])
    frames = np.repeat(points, (8, 4, 2, 2), 0)
    shares = np.array([8, 4, 2, 2]) / 16
    assert sid(frames, frames, 4) == pytest.approx(-(shares * np.log2(shares + 1e-6)).sum(), rel=1e-12)
    assert sid(frames, frames, 4) == pytest.approx(1.75, abs=1e-5)
    assert sid(frames, frames[:8], 4) == pytest.approx(-1.442694e-6, rel=1e-6)
    assert sid(np.zeros((50, 3)), frames[:, [0, 0, 1]], 40) == pytest.approx(-1.442694e-6, rel=1e-6)  # A frozen prediction.


def test_frechet_closed_forms():
    """Zero for equals; for a frozen face the squared distance of means plus the trace of the covariance; (2 - 1)^2 tr S for a
    face that moves twice as much about the same mean. Singular covariances (T <= D) and short clips included."""
    for frames, columns in ((400, 6), (30, 50), (8, 112), (2, 3)):
        truth = motion(frames, 5, columns)
        trace = truth.var(0, ddof=1).sum()
        assert frechet(truth, truth) <= 1e-9 and frechet(truth, truth[::-1]) <= 1e-9
        held = np.repeat(truth.mean(0)[None], frames, 0)
        assert frechet(held, truth) == pytest.approx(trace, **exactly)
        first = np.repeat(truth[:1], frames, 0)
        assert frechet(first, truth) == pytest.approx(trace + ((truth[0] - truth.mean(0)) ** 2).sum(), **exactly)
        assert frechet(truth.mean(0) + 2 * (truth - truth.mean(0)), truth) == pytest.approx(trace, **exactly)


def test_frechet_of_few_frames_is_the_nuclear_norm():
    """tr sqrt(S1 S2) is the sum of the singular values of X1 X2^T / sqrt((T1-1)(T2-1)), here of 20 x 30."""
    first, second = motion(20, 1, 50), motion(30, 2, 50)
    cross = np.linalg.svd((first - first.mean(0)) @ (second - second.mean(0)).T, compute_uv=False).sum() / np.sqrt(19 * 29)
    plain = ((first.mean(0) - second.mean(0)) ** 2).sum() + first.var(0, ddof=1).sum() + second.var(0, ddof=1).sum() - 2 * cross
    assert frechet(first, second) == pytest.approx(plain, **exactly)


def test_moments_in_pieces_are_those_of_the_whole():
    """Far from zero, where a running sum of squares would lose the variance; memory is that of D rows."""
    whole = motion(3000, 3, 7) + 1e6
    cuts = np.split(whole, [1, 2, 50, 900, 901])
    pieces = Moments(*cuts)
    assert pieces.count == 3000 and pieces.mean == pytest.approx(whole.mean(0), rel=1e-12)
    assert pieces.factor.T @ pieces.factor == pytest.approx(np.cov(whole, rowvar=False), **exactly)
    assert sum(map(len, pieces._rows)) <= 21
    other = motion(500, 4, 7) + 1e6
    assert frechet(pieces, Moments(*np.split(other, 5))) == pytest.approx(frechet(whole, other), **exactly)
    with pytest.raises(ValueError, match="two frames"):
        frechet(whole[:1], other)


def test_pooled_metrics_in_pieces_are_those_of_the_whole():
    made, true, heard = motion(300, 1, 6), motion(300, 2, 6), motion(300, 3, 6)
    flat, synchrony, steps = Variance(), Correlation(), Steps()
    for part in np.split(np.arange(300), [1, 7, 120]):
        flat.add(made[part])
        synchrony.add(made[part], true[part], heard[part])
        steps.add(made[part], true[part])
    assert flat.value() == pytest.approx(np.var(made), **exactly)
    assert synchrony.value() == pytest.approx(plain_rpcc(made, true, heard), **exactly)
    assert steps.value() == pytest.approx(plain_sts(made, true), **exactly)


def test_dim_sts_crosses_the_borders_of_clips():
    """Each prediction is off by a constant, 1 and 3: no step differs inside a clip, one between them by 2 in 50 columns:
    sqrt(10 x 50 x 4)."""
    clips = [Sequence(truth + off, truth, name=str(off)) for off, truth in ((1, motion(200, 1)), (3, motion(200, 2)))]
    assert PRESETS["dim"].score(clips)["STS"]["expression"] == pytest.approx(np.sqrt(2000), **exactly)
    assert PRESETS["dualtalk"].score(clips)["STS"]["expression"] == pytest.approx(0, abs=1e-6)


def test_dim_is_one_frame_late():
    """The first frame of the listener is never looked at, and a listener who copies the speaker one frame late is in step."""
    truth = motion(200, 1)
    pred = truth.copy()
    pred[0] += 5
    dim = PRESETS["dim"]
    punctual = replace(dim, settings=dim.settings | {"lag": 0})
    assert dim.score([Sequence(pred, truth)])["FD"]["pose"] <= 1e-9
    assert punctual.score([Sequence(pred, truth)])["FD"]["pose"] > 1e-3
    speaker = motion(200, 2)
    late = np.concatenate([speaker[:1], speaker[:-1]])
    by_lag = [np.corrcoef(truth[lag:, POSE].ravel(), speaker[: 200 - lag, POSE].ravel())[0, 1] for lag in (0, 1)]
    assert dim.score([Sequence(late, truth, speaker)])["rPCC"]["pose"] == pytest.approx(1 - by_lag[1], **exactly)
    assert punctual.score([Sequence(late, truth, speaker)])["rPCC"]["pose"] < 1 - by_lag[0] - 1e-3


def test_dim_var_counts_what_never_moves():
    truth = motion(200, 1)
    held = np.repeat(truth.mean(0)[None], 200, 0)
    clip = [Sequence(held, truth)]
    assert PRESETS["dim"].score(clip)["Var"]["all"] == pytest.approx(np.var(truth.mean(0)), **exactly)
    assert PRESETS["lm-listener"].score(clip)["Var"]["all"] == pytest.approx(0, abs=1e-20)
    assert PRESETS["avatar-forcing"].score(clip)["Var flat"]["pose"] > 0.1


def test_a_constant_prediction_has_paired_distance_equal_to_distance():
    """And with the released ViCo loader's speaker of ones, every prediction has, and rPCC is undefined."""
    held = sequence(200, 4, pred=np.repeat(motion(1, 3), 200, 0))
    scores = PRESETS["dim"].score([held])
    assert scores["P-FD"]["expression"] == pytest.approx(scores["FD"]["expression"], **exactly)
    ones = PRESETS["dim"].score([sequence(200, 4, speaker=np.ones((200, 56)))])
    assert ones["P-FD"] == pytest.approx(ones["FD"], **exactly) and np.isnan(ones["rPCC"]["pose"])
    zero = PRESETS["dualtalk"].score([sequence(200, 4, pred=np.zeros((200, 56)))])
    assert np.isnan(zero["rPCC"]["expression"])


def test_what_the_speaker_lacks_is_not_scored(clips):
    for name in PRESETS:
        without = PRESETS[name].score(Sequence(c.pred, c.truth) for c in clips)
        assert not {"P-FD", "rPCC", "TLCC"} & set(without)
        seen = PRESETS[name].score(Sequence(c.pred, c.truth, c.speaker[:, :50]) for c in clips)
        assert all(set(seen.get(metric, {"expression"})) == {"expression"} for metric in ("P-FD", "rPCC", "TLCC"))


@pytest.mark.parametrize(("name", "least"), [("lm-listener", 11), ("dualtalk", 101), ("timar", 100), ("honest", 50)])
def test_a_sequence_that_is_too_short_is_named(name, least):
    assert PRESETS[name].score([sequence(least, 1)])
    with pytest.raises(UserError, match=f"anna has {least - 1} frames; preset {name} needs at least {least}"):
        PRESETS[name].score([sequence(200, 2), sequence(least - 1, 1, name="anna")])


def test_dim_leaves_out_what_its_loader_leaves_out():
    """5 to 1024 frames; nothing left is an error, and so are fewer frames than clusters."""
    good = sequence(200, 1)
    assert PRESETS["dim"].score([good, sequence(4, 2), sequence(1025, 3)]) == PRESETS["dim"].score([good])
    for none in ([], [sequence(4, 2)]):
        with pytest.raises(UserError, match="No sequence is left"):
            PRESETS["dim"].score(none)
    with pytest.raises(UserError, match="19 frames; SID with 40"):
        PRESETS["dim"].score([sequence(20, 2)])


def test_a_sequence_is_checked():
    good = motion(20, 1)
    bad = good.copy()
    bad[7, 3] = np.nan
    with pytest.raises(ValueError, match="pred is not finite at frame 7"):
        Sequence(np.stack([good, bad]), good)
    with pytest.raises(ValueError, match="truth is not finite at frame 7"):
        Sequence(good, bad)
    for wrong in ({"pred": good[:19]}, {"truth": good[:, :55]}, {"speaker": good[:, :51]}, {"pred": good[None, None]}):
        with pytest.raises(ValueError, match="is not|are not"):
            Sequence(**({"pred": good, "truth": good} | wrong))


def test_draws_depend_on_seed_and_name_only(clips):
    first, again = (PRESETS["lm-listener"].score(order, seed=1)["diversity"]["all"] for order in (clips, clips[::-1]))
    assert first == pytest.approx(again, rel=1e-12)
    assert first != PRESETS["lm-listener"].score(clips, seed=2)["diversity"]["all"]
    alone = [PRESETS["lm-listener"].score([clip], seed=1)["diversity"]["all"] for clip in clips]
    assert first == pytest.approx(np.mean(alone), rel=1e-12)


def test_diversity_of_a_regular_simplex():
    """Any two frames of 40 unit vectors are sqrt 2 apart: the mean falls below it by the share of frames that meet themselves."""
    pairs, generator = 30, np.random.default_rng(5)
    first, second = generator.choice(40, pairs, replace=False), generator.choice(40, pairs, replace=False)
    expected = np.sqrt(2) * (first != second).mean()
    assert diversity(np.eye(40), pairs, np.random.default_rng(5)) == pytest.approx(expected, rel=1e-12)


def test_presets_score_the_first_sample_only(clips):
    many = [Sequence(np.stack([c.pred, c.truth]), c.truth, c.speaker, c.name) for c in clips]
    for name, preset in PRESETS.items():
        same = all(preset.score(clips)[metric] == pytest.approx(groups, nan_ok=True)
                   for metric, groups in preset.score(many).items() if metric in preset.score(clips))
        assert same != preset.uses_all_samples, name


# honest


def honest(*sequences, seed=0):
    return PRESETS["honest"].score(sequences, seed)


def test_honest_of_the_truth(clips):
    scores = honest(*(Sequence(c.truth, c.truth, c.speaker, c.name) for c in clips))
    for group in SMALL:
        expected = {"rPCC": 0, "Var ratio": 1, "Var least": 1, "Var most": 1, "FD velocity": 0, "FD windows": 0, "spectrum dB": 0,
                    "jerk ratio": 1, "energy": 0, "best of 1": 0}
        assert {m: scores[m][group] for m in expected} == pytest.approx(expected, abs=1e-9)
        assert scores["shift p"][group] == pytest.approx(1 / 3), "clips of five and four windows: two times one ways to shift"


def test_honest_by_closed_forms_for_twice_the_motion():
    """pred = m + c + 2 (truth - m): variance x 4, jerk x 2, every line of the spectrum 10 log10 4 dB up, correlations the same;
    velocities (2 - 1)^2 tr S + |mean|^2; the constant c changes none of these."""
    truth, speaker = motion(300, 1), motion(300, 2)
    pred = truth.mean(0) + 7 + 2 * (truth - truth.mean(0))
    scores = honest(Sequence(pred, truth, speaker))
    velocity = np.diff(truth, axis=0)
    for group, columns in SMALL.items():
        assert scores["Var ratio"][group] == pytest.approx(4, **exactly)
        assert scores["jerk ratio"][group] == pytest.approx(2, **exactly)
        assert scores["spectrum dB"][group] == pytest.approx(10 * np.log10(4), **exactly)
        assert scores["rPCC"][group] == pytest.approx(0, abs=1e-9)
        expected = velocity[:, columns].var(0, ddof=1).sum() + (velocity[:, columns].mean(0) ** 2).sum()
        assert scores["FD velocity"][group] == pytest.approx(expected, **exactly)


def test_honest_is_the_plain_arithmetic(clips):
    """rPCC, variance ratio, distances of velocities and windows, energy and best of 2, all by loops on the rotation."""
    samples = [np.stack([c.pred, motion(len(c.pred), 77)]) for c in clips]
    scores = honest(*(Sequence(s, c.truth, c.speaker, c.name) for s, c in zip(samples, clips)))
    rpcc, made_var, true_var, energy, best = [], [], [], [], []
    parts = {"velocity": ([], []), "windows": ([], [])}
    for made, clip in zip(samples, clips):
        truth, speaker = clip.truth[:, ROT], clip.speaker[:, ROT]
        true_var.append(truth.var(0))
        for sample in made[:, :, ROT]:
            made_var.append(sample.var(0))
            to_speaker = [[np.corrcoef(side[:, d], speaker[:, d])[0, 1] for d in range(3)] for side in (truth, sample)]
            rpcc.append(np.abs(np.subtract(*to_speaker)).mean())
        for side, sources in enumerate((made[:, :, ROT], truth[None])):
            for source in sources:
                parts["velocity"][side].append(np.diff(source, axis=0))
                centred = source - truth.mean(0)
                parts["windows"][side].extend(centred[k : k + 25].ravel()[None] for k in range(0, len(source) - 24, 12))
        for k in range(0, len(truth) - 49, 50):
            far = [np.sqrt(np.mean((sample[k : k + 50] - truth[k : k + 50]) ** 2)) for sample in made[:, :, ROT]]
            apart = np.sqrt(np.mean((made[0, k : k + 50, ROT] - made[1, k : k + 50, ROT]) ** 2))
            energy.append(np.mean(far) - apart / 2)
            best.append((np.mean(far), min(far)))
    ratio = np.mean(made_var, 0) / np.mean(true_var, 0)
    windows = [np.concatenate(side) for side in parts["windows"]]
    factors = [(side - side.mean(0)) / np.sqrt(len(side) - 1) for side in windows]
    fd_windows = (((windows[0].mean(0) - windows[1].mean(0)) ** 2).sum() + sum((factor**2).sum() for factor in factors)
                  - 2 * np.linalg.svd(factors[0] @ factors[1].T, compute_uv=False).sum())
    expected = {"rPCC": np.mean(rpcc), "Var ratio": ratio.mean(), "Var least": ratio.min(), "Var most": ratio.max(),
                "FD velocity": plain_fd(*map(np.concatenate, parts["velocity"])), "FD windows": fd_windows,
                "energy": np.mean(energy), "best of 1": np.mean(best, 0)[0], "best of 2": np.mean(best, 0)[1]}
    assert {metric: scores[metric]["rotation"] for metric in expected} == pytest.approx(expected, **exactly)


def test_honest_sees_through_a_frozen_face_and_noise(clips):
    truth = [clip.truth for clip in clips]
    held = honest(*(Sequence(np.repeat(t.mean(0)[None], len(t), 0), t, c.speaker) for t, c in zip(truth, clips)))
    correlation = np.mean([[abs(np.corrcoef(c.truth[:, d], c.speaker[:, d])[0, 1]) for d in range(50)] for c in clips])
    assert held["rPCC"]["expression"] == pytest.approx(correlation, **exactly)
    assert held["Var most"]["jaw"] == 0 and held["jerk ratio"]["jaw"] == 0 and held["spectrum dB"]["jaw"] == 60
    assert held["shift p"]["rotation"] == 1 and held["TLCC"]["rotation"] == 0 and np.isnan(held["TLCC lag s"]["rotation"])
    shuffled = honest(*(Sequence(np.random.default_rng(0).permutation(t), t) for t in truth))
    assert shuffled["Var ratio"]["expression"] == pytest.approx(1) and shuffled["FD velocity"]["expression"] > 1
    assert shuffled["jerk ratio"]["expression"] > 1.2


def test_honest_where_the_truth_does_not_move():
    """Such as the jaw of a landmark basis, also at a value whose mean is rounded."""
    truth, pred = motion(120, 1), motion(120, 2)
    truth[:, JAW] = 0.1
    scores = honest(Sequence(pred, truth, motion(120, 3)))
    assert all(np.isnan(scores[metric]["jaw"]) for metric in ("Var ratio", "Var most", "jerk ratio", "spectrum dB", "shift p"))
    assert "jaw" not in scores["rPCC"] and "jaw" not in scores["TLCC"] and scores["FD velocity"]["jaw"] > 0


def test_honest_finds_the_lag_of_a_late_copy():
    """The listener does what the speaker did 10 frames before, with a sign: correlation -1 at 0.4 s."""
    speaker = motion(400, 1)
    late = -np.concatenate([np.repeat(speaker[:1], 10, 0), speaker[:-10]])
    scores = honest(Sequence(late, motion(400, 2), speaker))
    assert scores["TLCC lag s"]["expression"] == 0.4 and scores["TLCC"]["expression"] == pytest.approx(-1, abs=1e-9)
    curve = lagged_correlation(late[:, :2], speaker[:, :2], 12)
    for lag in (-12, 0, 10):
        a, b = late[max(lag, 0) : 400 + min(lag, 0), 1], speaker[max(-lag, 0) : 400 - max(lag, 0), 1]
        assert curve[lag + 12, 1] == pytest.approx(np.corrcoef(a, b)[0, 1], **exactly)
    assert "TLCC" not in honest(sequence(100, 1)) and "TLCC" in honest(sequence(101, 1))


def test_honest_wants_equally_many_samples():
    good = motion(60, 1)
    with pytest.raises(UserError, match="b has 1 samples, those before have 2"):
        honest(Sequence(np.stack([good, good]), good, name="a"), Sequence(good, good, name="b"))


def test_spectra_of_all_lengths_have_the_same_lines_and_constants_no_variance():
    assert len(spectrum(motion(60, 1))) == len(spectrum(motion(500, 1)))
    assert variance(np.full((587, 2), 0.1)) == pytest.approx(0, abs=0)


@pytest.mark.skipif(not (CLIPS / "dualtalk").is_dir(), reason=f"dualtalk is not in {CLIPS} (DIFFLISTENER_CLIPS)")
def test_the_frozen_mean_of_real_clips_scores_what_was_measured():
    found = {}
    for path in sorted((CLIPS / "dualtalk").glob("*.npz")):
        with np.load(path) as archive:
            truth = np.concatenate([archive["exp"], archive["pose"]], 1).astype(np.float64)
        held = np.repeat(truth.mean(0)[None], len(truth), 0)
        scores = PRESETS["dim"].score([Sequence(held, truth, name=path.stem)])
        found[path.stem[:4]] = scores["FD"]["expression"]
        assert PRESETS["dim"].score([Sequence(truth, truth)])["FD"]["expression"] < 1e-9
    assert found == pytest.approx({"xkHw": 9.4, "UbjU": 16.7}, abs=0.06)
