"""Metric presets: how one paper's public code scores generated listeners, by name, its defects included.

The same word (FD, SID, Var, rPCC) means another number in every paper; a number without the preset's name means nothing.
`honest` is ours. Each preset streams over sequences; what it must hold is said with it. Knows nothing of files.
Groups of columns: expression (50), rotation (3), jaw (3), pose (rotation and jaw, 6), all (56).
Axes: T frames at 25 fps, D = columns of a group.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np

from difflistener.errors import UserError
from difflistener.metrics.honest import WINDOW, honest
from difflistener.metrics.motion import frechet
from difflistener.metrics.published import (
    EPSILON, Correlation, PooledSid, Scores, Sequence, StandardisedL2, Steps, Tally, Variance, diversity, sid,
)
from difflistener.motion import EXPRESSION, JAW, NUM_MOTION, ROTATION

COLUMNS = {"expression": EXPRESSION, "rotation": ROTATION, "jaw": JAW, "pose": slice(50, 56), "all": slice(0, NUM_MOTION)}
BIG_GROUPS = ("expression", "pose")
SMALL_GROUPS = ("expression", "rotation", "jaw")


@dataclass(frozen=True)
class Preset:
    """A way to score, and what it needs."""

    name: str
    definition: str
    """One sentence for the report: what is computed, over what, and what is peculiar about it."""
    function: Callable[[Iterable[Sequence], dict, int], Scores]
    settings: dict = field(default_factory=dict)
    """Numbers of the definition."""
    least: int = 2
    """Frames that a sequence must have."""
    most: int | None = None
    """Frames that it may have."""
    skips: bool = False
    """Sequences outside these limits are left out, as the source does; otherwise they are an error."""
    pads: bool = False
    """Predictions are brought to the length of the truth, by their last frame; otherwise all is cut to the shortest."""
    uses_all_samples: bool = False
    """Otherwise the first sample of each sequence is scored."""

    def admits(self, name: str, frames: int) -> bool:
        """Whether a sequence is scored. Raises `UserError` naming it where it is too short or too long to be."""
        if self.least <= frames <= (self.most or frames):
            return True
        if self.skips:
            return False
        raise UserError(f"{name} has {frames} frames; preset {self.name} needs at least {self.least}.",
                        "Leave it out, or choose a preset that takes shorter sequences.")

    def score(self, sequences: Iterable[Sequence], seed: int = 0) -> Scores:
        """Metrics by name and group; P-FD, rPCC and what else looks at the speaker only where the speaker is known.

        Args:
            sequences: read once, one at a time.
            seed: of what is drawn; K-means always has its own.

        Raises:
            UserError: a sequence too short, or none left to score.
        """
        any_left = False

        def admitted():
            nonlocal any_left
            for sequence in sequences:
                if self.admits(sequence.name, len(sequence.truth)):
                    any_left = True
                    yield sequence

        scores = self.function(admitted(), self.settings, seed)
        if not any_left:
            limits = f"{self.least} to {self.most}" if self.most else f"at least {self.least}"
            raise UserError(f"No sequence is left to score: preset {self.name} takes those of {limits} frames.",
                            "Give longer sequences, or cut long ones into pieces.")
        return scores


def dim(sequences: Iterable[Sequence], settings: dict, seed: int) -> Scores:
    """Dyadic Interaction Modeling (Boese0601/Dyadic-Interaction-Modeling, mymetrics.py, main path x_engine_pt.py).

    FD, P-FD, MSE: each clip over its frames, mean over clips. SID, Var, rPCC, STS: all clips pooled. Defects kept: the
    listener is one frame late (frames 1.. against the speaker's 0.., setting `lag`); Var counts differences between
    columns; rPCC is that of flattened arrays; STS crosses the borders of clips; SID has 1e-6 in its logarithm. Not kept:
    choosing the best of ten samples by the truth. Holds all frames for SID.
    """
    tally, variance, synchrony, steps, shannon = Tally(), {}, {}, {}, {}
    for sequence in sequences:
        for group in (*BIG_GROUPS, "all"):
            pred, truth, speaker = _columns(sequence, group, settings["lag"])
            _compare(tally, group, pred, truth, speaker)
            variance.setdefault(group, Variance()).add(pred)
            if group == "all":
                continue
            shannon.setdefault(group, PooledSid(settings[f"clusters_{group}"])).add(pred, truth)
            steps.setdefault(group, Steps()).add(pred, truth)
            if speaker is not None:
                synchrony.setdefault(group, Correlation()).add(pred, truth, speaker)
    return tally.means() | _values({"SID": shannon, "Var": variance, "rPCC": synchrony, "STS": steps})


def lm_listener(sequences: Iterable[Sequence], settings: dict, seed: int) -> Scores:
    """Can Language Models Learn to Listen? (sanjayss34/lm-listener, evaluate_listener.py): all 56 columns together.

    Each clip alone, mean over clips. Its L2 is here MSE. Diversity has 30 pairs where T > 30, else 10, and no clip of
    up to 10 frames passes; the source never seeds it. Taken as ddof 0: its temporal variance. Left out: windowed
    valence, which needs EMOCA's emotion network.
    """
    tally = Tally()
    for sequence in sequences:
        pred, truth = sequence.first, sequence.truth
        _compare(tally, "all", pred, truth, sequence.heard(COLUMNS["all"]))
        tally.add("Var", "all", pred.var(0).mean())
        pairs = settings["pairs"] if len(pred) > settings["pairs"] else settings["pairs_of_short"]
        tally.add("diversity", "all", diversity(pred, pairs, sequence.generator(seed)))
    return tally.means()


def dualtalk(sequences: Iterable[Sequence], settings: dict, seed: int) -> Scores:
    """DualTalk (metric/metric.py) and, with `fit_on` "truth", TIMAR (towards-seamless-interaction, util/metrics.py).

    Each clip alone, mean over clips. Its `pose` is our rotation. Defects kept: DualTalk calls SID with its arguments
    reversed, so that K-means is fitted on the prediction and scores the truth; TIMAR has SID the right way round and
    the other as `reverse SID`, and prints some metrics times the settings `scale`, as given here; rPCC is that of
    flattened arrays; STS is a sum, which grows with the clip.
    """
    tally = Tally()
    for sequence in sequences:
        generator = sequence.generator(seed)
        for group in SMALL_GROUPS:
            pred, truth, speaker = _columns(sequence, group)
            _compare(tally, group, pred, truth, speaker)
            clusters = settings[f"clusters_{group}"]
            if settings["fit_on"] == "truth":
                tally.add("SID", group, sid(truth, pred, clusters))
                tally.add("reverse SID", group, sid(pred, truth, clusters))
            else:
                tally.add("SID", group, sid(pred, truth, clusters))
            tally.add("Var", group, pred.var(0).mean())
            if speaker is not None:
                tally.add("rPCC", group, Correlation().add(pred, truth, speaker).value())
            tally.add("STS", group, Steps().add(pred, truth).value())
            tally.add("diversity", group, diversity(pred, settings["pairs"], generator))
    scale = settings.get("scale", {})
    return {metric: {group: value * scale.get(metric, {}).get(group, 1) for group, value in groups.items()}
            for metric, groups in tally.means().items()}


def avatar_forcing(sequences: Iterable[Sequence], settings: dict, seed: int) -> Scores:
    """Avatar Forcing (arXiv 2601.00664, appendix D.5; no code was published).

    The text fixes: SPECTRE's 50 + 6 columns, rPCC = |PCC(truth) - PCC(pred)|, SID with 15 and 9 clusters "following L2L",
    Var over time, then over features. Chosen here: FD with the squared norm of the means' difference (the text prints the
    norm, probably a slip) for each clip, mean over clips; rPCC and SID pooled and flattened as in `dim` (its table inherits
    rows from there), SID in bits with 1e-6, fitted on the truth. Its printed Var has the size of a flattened one: `Var flat`
    is that, `Var` is the text's. Holds all frames for SID.
    """
    tally, flat, synchrony, shannon = Tally(), {}, {}, {}
    for sequence in sequences:
        for group in BIG_GROUPS:
            pred, truth, speaker = _columns(sequence, group)
            tally.add("FD", group, frechet(pred, truth))
            tally.add("Var", group, pred.var(0).mean())
            flat.setdefault(group, Variance()).add(pred)
            shannon.setdefault(group, PooledSid(settings[f"clusters_{group}"])).add(pred, truth)
            if speaker is not None:
                synchrony.setdefault(group, Correlation()).add(pred, truth, speaker)
    return tally.means() | _values({"SID": shannon, "Var flat": flat, "rPCC": synchrony})


def vico_l1(sequences: Iterable[Sequence], settings: dict, seed: int) -> Scores:
    """ViCo challenge (vico_challenge_baseline, issues #1 and #15): mean |pred - truth| over all frames and columns pooled.

    The source calls it FD, "feature distance", on Deep3DFaceRecon coefficients re-extracted from rendered video (expression
    64, angle 3, translation 3); here it is taken of our expression and rotation. We have no translation. Long clips weigh
    more than short ones.
    """
    totals = {group: np.zeros(2) for group in ("expression", "rotation")}
    for sequence in sequences:
        for group, total in totals.items():
            off = np.abs(sequence.first[:, COLUMNS[group]] - sequence.truth[:, COLUMNS[group]])
            total += off.sum(), off.size
    return {"L1": {group: float(total / size) for group, (total, size) in totals.items() if size}}


def l2l(sequences: Iterable[Sequence], settings: dict, seed: int) -> Scores:
    """Learning2Listen (evonneng/learning2listen): what its public code prints, and what its tables are said to hold.

    L2 is what src/test_vq_decoder.py prints as "overall l2": Euclidean distance over all 56 columns, mean over frames of all
    clips but for the first 32, which it starts from; the truth smoothed first (utils/load_utils.py). Defect kept: the unit of
    a column is the deviation between clips of its deviation over time (of the clips given; the source has those of its
    training set), so that L2 needs two clips. No code of its other metrics was published. SID with 15 clusters for expression
    and 9 for pose is stated by others; taken as the code of its successors has it: FD, P-FD and MSE of each clip, mean over
    clips; Var over time, then columns, then clips; SID in bits, pooled, fitted on the truth. Holds all frames.
    """
    tally, shannon, distance = Tally(), {}, StandardisedL2(settings["skip"])
    for sequence in sequences:
        distance.add(sequence.first, sequence.truth)
        for group in BIG_GROUPS:
            pred, truth, speaker = _columns(sequence, group)
            _compare(tally, group, pred, truth, speaker)
            tally.add("Var", group, pred.var(0).mean())
            shannon.setdefault(group, PooledSid(settings[f"clusters_{group}"])).add(pred, truth)
    l2 = distance.value()
    return ({} if l2 is None else {"L2": {"all": l2}}) | tally.means() | _values({"SID": shannon})


def _columns(sequence: Sequence, group: str, lag: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Prediction, truth and speaker [T - lag, D] of a group, the listener's frame t + lag beside the speaker's t."""
    columns = COLUMNS[group]
    speaker = sequence.heard(columns)
    if speaker is not None:
        speaker = speaker[: len(speaker) - lag]
    return sequence.first[lag:, columns], sequence.truth[lag:, columns], speaker


def _compare(tally: Tally, group: str, pred: np.ndarray, truth: np.ndarray, speaker: np.ndarray | None) -> None:
    """FD, MSE and, of speaker and listener side by side, P-FD of one clip [T, D]."""
    tally.add("FD", group, frechet(pred, truth))
    if speaker is not None:
        tally.add("P-FD", group, frechet(np.hstack([speaker, pred]), np.hstack([speaker, truth])))
    tally.add("MSE", group, ((pred - truth) ** 2).mean())


def _values(pooled: dict[str, dict]) -> Scores:
    return {metric: {group: entry.value() for group, entry in groups.items()} for metric, groups in pooled.items() if groups}


_DUALTALK = {"clusters_expression": 40, "clusters_rotation": 10, "clusters_jaw": 10, "pairs": 100}
_TIMAR_SCALE = {"FD": {"jaw": 1e3, "rotation": 1e2}, "P-FD": {"jaw": 1e3, "rotation": 1e2},
                "MSE": {"expression": 10, "jaw": 1e3, "rotation": 1e2}, "rPCC": {"expression": 1e2, "jaw": 10, "rotation": 10}}

PRESETS = {preset.name: preset for preset in (
    Preset("dim", "Dyadic Interaction Modeling: FD, P-FD and MSE of each clip, mean over clips; SID, Var (of all numbers "
           "flattened), rPCC (flattened) and STS (across the borders of clips) of all clips pooled; the listener one frame "
           "after the speaker; one sample, where its released test picks the best of ten by the truth.",
           dim, {"lag": 1, "source_fps": 30, "clusters_expression": 40, "clusters_pose": 20, "epsilon": EPSILON},
           least=5, most=1024, skips=True),
    Preset("lm-listener", "Can Language Models Learn to Listen: FD, P-FD, MSE (its L2), variance over time and diversity of all "
           "56 numbers, of each clip, mean over clips; no valence, which needs pictures.",
           lm_listener, {"source_fps": 30, "pairs": 30, "pairs_of_short": 10}, least=11),
    Preset("dualtalk", "DualTalk: every metric of each clip, mean over clips, unscaled; SID has its arguments reversed, as "
           "published: K-means is fitted on the prediction and scores the truth.",
           dualtalk, _DUALTALK | {"fit_on": "prediction", "epsilon": EPSILON}, least=101),
    Preset("timar", "TIMAR: every metric of each clip, mean over clips, times the printed scale; SID fitted on the truth, "
           "reverse SID on the prediction; a prediction with NaN is refused here, where the source drops it.",
           dualtalk, _DUALTALK | {"fit_on": "truth", "epsilon": EPSILON, "scale": _TIMAR_SCALE}, least=100),
    Preset("avatar-forcing", "Avatar Forcing, appendix D.5: FD of each clip, mean over clips, and Var over time, then features, "
           "then clips; our choice where the text is silent: FD with the squared mean difference, SID (15 and 9 clusters, bits, "
           "fitted on the truth) and rPCC pooled and flattened, no lag; Var flat, of all numbers, is of the printed size.",
           avatar_forcing, {"clusters_expression": 15, "clusters_pose": 9, "epsilon": EPSILON}),
    Preset("vico-l1", "ViCo challenge: mean absolute difference over all frames and numbers pooled (its \"FD\" is this feature "
           "distance), predictions padded by their last frame or cut to the truth; on our expression and rotation, not on "
           "Deep3DFaceRecon coefficients, and without translation.", vico_l1, least=1, pads=True),
    Preset("l2l", "Learning2Listen: L2 as its public code prints it (standardised by the deviation between clips of the deviation "
           "over time, truth smoothed, without the first 32 frames); its other metrics as others describe them, for no code was "
           "published: SID with 15 and 9 clusters, pooled; FD, P-FD, MSE and Var over time of each clip, mean over clips.",
           l2l, {"skip": 32, "clusters_expression": 15, "clusters_pose": 9, "epsilon": EPSILON}, least=33),
    Preset("honest", "Ours: rPCC and variance ratio of each clip and dimension without their means, Frechet distances of "
           "velocities and of 1 s windows, correlation with the speaker by lag, spectra, jerk, energy score and best of K "
           "of 2 s windows over all samples, and the p-value that the motion fits its own moment no better than another.",
           honest, {"window": WINDOW, "fd_window": 25, "fd_stride": 12, "most_lag": 49, "shifts": 200}, least=WINDOW,
           uses_all_samples=True),
)}
"""Every preset by name."""
