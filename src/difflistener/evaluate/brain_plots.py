"""Pictures of a brain's evaluation: reactions over the truth, delays against the law, and best of K. Writes PNG files."""

from pathlib import Path

import numpy as np

from difflistener.clip import replacing
from difflistener.evaluate.brain_scores import RowScore
from difflistener.motion import FPS
from difflistener.toy.codes import read
from difflistener.toy.reactions import Script

SHOWN_SECONDS = 24
BINS = np.arange(0, 1.21, 0.08)


def plot_fan(path: Path, truth: np.ndarray, rows: dict[str, np.ndarray], script: Script | None = None) -> None:
    """Reactions [K, T, 56] of each row over the truth [T, 56], for `SHOWN_SECONDS`: one column a row. With the speaker's
    script, what may have caused them is dotted."""
    first = min(8 * FPS, max(len(truth) - SHOWN_SECONDS * FPS, 0))
    frames = slice(first, first + SHOWN_SECONDS * FPS)
    t = np.arange(len(truth))[frames] / FPS
    views = {"nose down, degrees": lambda motion: np.rad2deg(motion[..., 50]),
             "smile": lambda motion: read(motion[..., :50])["smile"],
             "brows": lambda motion: read(motion[..., :50])["brow"]}
    causes = (script.phrase_ends, script.smiles[:, 0], script.flashes[:, 0]) if script else ((), (), ())
    with Axes(path, len(views), len(rows), (max(4 * len(rows), 14), 7)) as axes:
        for column, (name, motion) in enumerate(rows.items()):
            for row, ((label, view), times) in enumerate(zip(views.items(), causes)):
                axis = axes[row, column]
                axis.plot(t, view(motion)[:, frames].T, color="tab:blue", alpha=0.35, linewidth=0.8)
                axis.plot(t, view(truth)[frames], color="black", linewidth=1.2)
                for time in times:
                    if t[0] < time < t[-1]:
                        axis.axvline(time, color="tab:red", linewidth=0.8, linestyle=":")
                axis.set_ylabel(label)
                count = "1 sample" if len(motion) == 1 else f"{len(motion)} samples"
                note = ", causes dotted" if script else ""
                axis.set_title(f"{name}: {count}, truth black{note}" if row == 0 else "", fontsize=9)
                axis.set_xlabel("seconds" if row == len(views) - 1 else "")


def plot_events(path: Path, rows: dict[str, tuple[dict, dict[str, np.ndarray]]]) -> None:
    """Answers per cause and second against their delay: histograms of the rows, and the law as a curve.

    Args:
        rows: name -> figures and delays of `brain_scores.event_answers`.
    """
    stated = next(iter(rows.values()))[0]
    asked = [question for question, figures in stated.items() if question != "per_minute" and np.isfinite(_number(figures["law_delay"]))]
    x = np.linspace(BINS[0], BINS[-1], 200)
    with Axes(path, 1, len(asked), (4.2 * len(asked), 3.4)) as axes:
        for axis, question in zip(axes[0], asked):
            for name, (figures, delays) in rows.items():
                counts = np.histogram(delays[question], BINS)[0] / max(figures[question]["causes"], 1) / np.diff(BINS)
                axis.stairs(counts, BINS, label=f"{name}: {figures[question]['probability']:.2f}")
            law, mean, deviation = (stated[question][key] for key in ("law", "law_delay", "law_delay_std"))
            curve = law * np.exp(-0.5 * ((x - mean) / deviation) ** 2) / (deviation * np.sqrt(2 * np.pi))
            axis.plot(x, curve, color="black", linewidth=1, label=f"stated: {law:.2f}")
            axis.set_title(question, fontsize=9)
            axis.set_xlabel("delay, s")
            axis.legend(fontsize=7)
        axes[0, 0].set_ylabel("answers per cause and second")


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


def plot_best_of(path: Path, scores: dict[str, RowScore]) -> None:
    """Expected least error of K samples, for every row."""
    with Axes(path, 1, 1, (7.5, 4)) as axes:
        most = max(len(score.errors) for score in scores.values())
        for name, score in scores.items():
            if name != "truth":
                errors = np.pad(score.errors, (0, most - len(score.errors)), mode="edge")
                axes[0, 0].plot(np.arange(1, most + 1), errors, marker=".", label=name)
        axes[0, 0].set_xlabel("samples")
        axes[0, 0].set_ylabel("least error of 2 s windows, deviations")
        axes[0, 0].set_xticks(np.arange(1, most + 1))
        axes[0, 0].legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))


class Axes:
    """A figure of axes [rows, columns] that is written to `path` when the block ends."""

    def __init__(self, path: Path, rows: int, columns: int, size: tuple[float, float]):
        # Not pyplot: it would keep figures and ask for a display.
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        self.path = path
        self.figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(self.figure)
        self.axes = self.figure.subplots(rows, columns, squeeze=False, sharey="row" if rows > 1 else False)

    def __enter__(self) -> np.ndarray:
        return self.axes

    def __exit__(self, kind, *_) -> None:
        if kind is None:
            with replacing(self.path) as temporary:
                self.figure.savefig(temporary, format="png", dpi=100)
