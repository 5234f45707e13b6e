"""Motion metrics on cases whose answer is known: by formula, by counting, or by what a score must prefer."""

import itertools

import numpy as np
import pytest
from scipy.linalg import sqrtm

from difflistener.metrics.motion import (
    balanced, best_of, cut_windows, distances, drift, energy_score, frechet, jerk, paired_test, seam_ratios, shift_test, spectrum,
    spectrum_distance, spread, variance_ratio,
)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def smooth(frames, channels, seed=0):
    noise = normal(frames + 40, channels, seed=seed)
    return np.stack([np.convolve(row, np.hanning(41) / 4, "valid") for row in noise.T], 1)[:frames]


def test_energy_score_by_hand():
    samples, truth = np.array([[[0.0, 0.0]], [[3.0, 4.0]]]), np.array([[3.0, 4.0]])
    # Distances (5, 0) / sqrt 2 with mean 2.5 / sqrt 2; the one pair is 5 / sqrt 2 apart.
    assert energy_score(samples, truth) == pytest.approx([0.0])
    assert spread(samples) == pytest.approx([5 / np.sqrt(2)])
    assert energy_score(samples[:1], truth) == pytest.approx([5 / np.sqrt(2)])


def test_energy_score_prefers_the_truth_to_noise_mean_and_shrunk():
    windows, channels, num = 600, 8, 6
    truth = normal(windows, channels)
    score = {}
    for name, scale, shift in (("right", 1, 0), ("wide", 1.8, 0), ("narrow", 0.4, 0), ("mean", 0, 0), ("off", 1, 0.7)):
        score[name] = energy_score(shift + scale * normal(num, windows, channels, seed=1), truth).mean()
    assert all(score["right"] < score[name] - 0.01 for name in score if name != "right")
    # Unbiased in the number of samples.
    many = energy_score(normal(24, windows, channels, seed=2), truth).mean()
    assert abs(many - score["right"]) < 0.03


def test_distances_are_those_of_a_loop():
    samples, truth = normal(2, 3, 5), normal(4, 5, seed=1)
    each = distances(samples, truth)
    for k, w, v in itertools.product(range(2), range(3), range(4)):
        assert each[k, w, v] == pytest.approx(np.sqrt(np.mean((samples[k, w] - truth[v]) ** 2)))


def test_windows_and_balance():
    motion = np.arange(2 * 6 * 3.0).reshape(2, 6, 3)
    cut = cut_windows(motion, np.array([0, 2]), 2)
    assert cut.shape == (2, 2, 6) and np.array_equal(cut[1, 1], motion[1, 2:4].ravel())
    std = np.linspace(0.1, 2, 56)
    for part, share in ((slice(0, 50), 0.5), (slice(50, 56), 0.5)):
        step = np.zeros((1, 56))
        step[:, part] = std[part]
        assert (balanced(step, std) ** 2).mean() == pytest.approx(share)
    assert not balanced(np.ones((1, 56)), np.zeros(56)).any()


def test_best_of_counts_all_choices():
    errors = normal(6, 3) ** 2
    for num in range(1, 7):
        counted = np.mean([errors[list(chosen)].min(0).mean() for chosen in itertools.combinations(range(6), num)])
        assert best_of(errors)[num - 1] == pytest.approx(counted)


def test_frechet_is_the_formula_and_zero_for_equals():
    first, second = normal(300, 6) * [1, 2, 3, 1, 1, 1], normal(200, 6, seed=1) + 0.5
    covariances = [np.cov(frames, rowvar=False) for frames in (first, second)]
    root = sqrtm(covariances[0] @ covariances[1]).real
    plain = ((first.mean(0) - second.mean(0)) ** 2).sum() + np.trace(covariances[0] + covariances[1] - 2 * root)
    assert frechet(first, second) == pytest.approx(plain, rel=1e-6)
    assert abs(frechet(first, first)) < 1e-9
    shifted = first + np.array([2.0, 0, 0, 0, 0, 0])
    assert frechet(first, shifted) == pytest.approx(4.0)
    assert frechet(first, 3 * (first - first.mean(0)) + first.mean(0)) == pytest.approx(4 * np.trace(covariances[0]))


def test_frechet_is_sound_where_covariances_are_singular():
    short, held = normal(10, 50), np.repeat(normal(1, 50), 20, 0)
    assert abs(frechet(short, short)) < 1e-9 and frechet(short, short[::-1]) == pytest.approx(0, abs=1e-9)
    assert frechet(held, short) == pytest.approx(((held[0] - short.mean(0)) ** 2).sum() + short.var(0, ddof=1).sum())


def test_variance_ratio_ignores_offsets_between_clips():
    truth = [normal(500, 3, seed=k) for k in range(4)]
    made = [0.5 * clip + 10 * k for k, clip in enumerate(truth)]
    assert variance_ratio(made, truth) == pytest.approx([0.25] * 3)
    still = [np.concatenate([clip, np.zeros((500, 1))], 1) for clip in truth]
    assert np.isnan(variance_ratio(still, still)[3])


def test_jerk_of_a_cubic_and_spectrum_of_a_wave():
    t = np.arange(200) / 25
    assert jerk(t[:, None] ** 3) == pytest.approx([6.0], rel=1e-6)
    wave = np.sin(2 * np.pi * 3.125 * np.arange(1000) / 25)[:, None]
    density = spectrum(wave)
    assert density[:, 0].argmax() == 15  # 3.125 Hz = line 16, and line 0 is left out.
    assert density.sum() * 25 / 128 == pytest.approx(0.5, rel=0.02)
    noise = normal(20_000, 3)
    assert spectrum_distance(4 * spectrum(noise), spectrum(noise)) == pytest.approx(10 * np.log10(4))
    assert spectrum_distance(spectrum(noise), spectrum(normal(20_000, 3, seed=5))) < 1
    assert spectrum_distance(spectrum(np.zeros((500, 3))), spectrum(noise)) == 60


def test_seams_are_seen_only_at_block_edges():
    motion = smooth(1000, 5)
    mean, largest = seam_ratios(motion, 10)
    assert mean == pytest.approx(1, abs=0.1) and largest < 1.3
    jumping = motion + 0.5 * np.repeat(normal(100, 5, seed=3), 10, 0)
    mean, largest = seam_ratios(jumping, 10)
    assert mean > 2 and largest > 2
    assert seam_ratios(jumping[5:], 10)[1] < 1  # Looked for in the wrong place, jumps count as inside.
    assert np.isnan(seam_ratios(np.zeros((50, 3)), 10)).all() and np.isnan(seam_ratios(motion, 1)).all()


def test_drift_of_means_and_spreads():
    first = normal(5000, 4)
    std = np.ones(4)
    assert drift(first, first, std) == pytest.approx((0, 1))
    shift, ratio = drift(first, 0.8 * first + 0.3, std)
    assert shift == pytest.approx(0.3, abs=0.02) and ratio == pytest.approx(0.8)
    still = [np.concatenate([first, np.full((5000, 1), value)], 1) for value in (0, 1)]
    assert drift(*still, np.append(std, 0)) == pytest.approx((0, 1))


def reactions(share, seed=0, clips=3, windows=40):
    """Costs of clips in which `share` of the generated motion follows the speaker as the truth does."""
    costs = []
    for clip in range(clips):
        cause = normal(windows, 20, seed=seed + clip)
        truth = cause + normal(windows, 20, seed=seed + 100 + clip)
        made = share * cause + np.sqrt(2 - share**2) * normal(4, windows, 20, seed=seed + 200 + clip)
        costs.append(distances(made, truth).mean(0))
    return costs


def test_shift_test_finds_who_listens():
    result = shift_test(reactions(1.0), 199, np.random.default_rng(0))
    assert result.p == 1 / 200 and result.aligned < result.shifted


def test_shift_test_is_a_fair_coin_for_who_does_not():
    p = np.array([shift_test(reactions(0.0, seed=1000 * k), 100, np.random.default_rng(k)).p for k in range(60)])
    assert 0.3 < p.mean() < 0.7 and (p < 0.1).mean() < 0.25


def test_shift_test_of_a_frozen_face_and_of_too_little():
    frozen = [np.repeat(cost[:1], len(cost), 0) for cost in reactions(1.0)]
    assert shift_test(frozen, 100, np.random.default_rng(0)).p == 1
    assert np.isnan(shift_test([np.zeros((3, 3))], 100, np.random.default_rng(0)).p)


def test_shift_test_never_compares_with_the_next_window():
    """Only windows two or more away are other moments: a cost that is low on both diagonals beside the main one is no null."""
    cost = np.ones((12, 12)) - np.eye(12) * 0.5 - 0.9 * (np.eye(12, k=1) + np.eye(12, k=-1))
    cost[0, -1] = cost[-1, 0] = 0.1
    assert shift_test([cost], 300, np.random.default_rng(0)).p == 1 / 10, "nine ways to shift, and none"
    assert shift_test([cost] * 3, 300, np.random.default_rng(0)).p == 1 / 301


def test_shift_test_of_one_short_clip_is_fair():
    p = np.array([shift_test(reactions(0.0, seed=1000 * k, clips=1, windows=12), 200, np.random.default_rng(k)).p for k in range(200)])
    assert 0.05 < (p <= 0.1).mean() < 0.16 and p.min() >= 0.1


def test_paired_test_sees_a_difference_and_no_difference():
    base = normal(80)
    better, p = paired_test(base - 0.2 + 0.1 * normal(80, seed=1), base, 999, np.random.default_rng(0))
    assert better == pytest.approx(-0.2, abs=0.05) and p == 0.001
    assert paired_test(base, base + normal(80, seed=2) * 0.1, 999, np.random.default_rng(0))[1] > 0.02
    assert paired_test(base + 1, base, 999, np.random.default_rng(0))[1] == 1
