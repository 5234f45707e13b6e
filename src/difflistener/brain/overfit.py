"""The overfit check: a brain that learned one clip by heart must give it back, free-running, from the speaker alone.

Axes: T frames, D = 56 motion.
"""

from pathlib import Path

import numpy as np
import torch

from difflistener.brain.model import Brain
from difflistener.clip import replacing, write_json
from difflistener.dataset import Frames, Pair, Windows
from difflistener.motion import EXPRESSION, FPS, JAW, ROTATION

GROUPS = {"all": slice(0, 56), "expression": EXPRESSION, "rotation": ROTATION, "jaw": JAW}
GOAL = 0.98
"""Free-running correlation over all 56 dimensions from which a clip counts as learned by heart, under any seed."""


def agreement(generated: np.ndarray, truth: np.ndarray) -> dict[str, dict[str, float]]:
    """Variance-weighted Pearson correlation sum(var_d r_d) / sum(var_d) and RMSE of [T, 56], for each of `GROUPS`.

    Dimensions that do not move in the truth have no weight; a group that does not move at all is left out.
    """
    x, y = generated.astype(np.float64), truth.astype(np.float64)
    x0, y0 = x - x.mean(0), y - y.mean(0)
    spread = np.sqrt((x0**2).mean(0) * (y0**2).mean(0))
    correlation = np.where(spread > 1e-12, (x0 * y0).mean(0) / np.maximum(spread, 1e-12), 0)
    variance = y.var(0)
    return {
        name: {"correlation": float((variance[dims] * correlation[dims]).sum() / variance[dims].sum()),
               "rmse": float(np.sqrt(((x - y)[:, dims] ** 2).mean()))}
        for name, dims in GROUPS.items() if variance[dims].sum() > 1e-9
    }


def overfit_report(brain: Brain, pair: Pair, out: Path, num_steps: int = 15) -> dict:
    """Generate the whole of `pair`, all frames valid; write overfit.json and overfit.png into `out`.

    "free-running" and "second seed" get the speaker and the true first frame, then only their own generated past.
    "true past" is not free-running: it gets the true motion before each block, and shows what of the error is drift
    (not with a dit, which remembers more of its past than one window).
    """
    assert pair.valid.all()
    truth = np.array(pair.motion, np.float32)
    curves = {"free-running": _generate(brain, pair, truth, num_steps, seed=0),
              "second seed": _generate(brain, pair, truth, num_steps, seed=1)}
    if brain.config.network != "dit":
        curves["true past"] = _generate_from_true_past(brain, pair, num_steps)
    report = {"frames": len(pair), "ddim_steps": num_steps if brain.network.is_diffusion else None}
    report |= {name: agreement(curve, truth) for name, curve in curves.items()}
    report["fits"] = all(report[name]["all"]["correlation"] >= GOAL for name in ("free-running", "second seed"))
    report["rmse between the two seeds"] = float(np.sqrt(((curves["free-running"] - curves["second seed"]) ** 2).mean()))
    write_json(out / "overfit.json", report)
    with replacing(out / "overfit.png") as temporary:
        _plot(curves, truth, report, brain.config.network, temporary)
    return report


def _generate(brain: Brain, pair: Pair, truth: np.ndarray, num_steps: int, seed: int) -> np.ndarray:
    audio = torch.from_numpy(np.array(pair.audio, np.float32))
    face, seen = None, None
    if brain.config.uses_face and pair.expression is not None:
        face, seen = torch.from_numpy(np.array(pair.expression, np.float32)), torch.from_numpy(pair.expression_valid)
    return brain.generate(audio, face, torch.from_numpy(truth[:1]), num_steps, seed, expression_valid=seen).numpy()


@torch.no_grad()
def _generate_from_true_past(brain: Brain, pair: Pair, num_steps: int) -> np.ndarray:
    """As `_generate`, but all blocks at once, each after the true past."""
    config, device = brain.config, brain.motion.mean.device
    windows = Windows(Frames([pair], device), config.block, config.history, config.context)
    batch = windows.take(torch.arange(0, len(windows), config.block, device=device))
    perceived = {name: value for name, value in vars(batch).items() if name != "block"}
    condition = brain.condition(**perceived, history_present=torch.ones(len(batch.block), device=device))
    noise = torch.cat([brain.block_noise(0, 0, number) for number in range(len(batch.block))])
    return brain.react(condition, noise.to(device), num_steps).flatten(0, 1)[: len(pair)].cpu().numpy()


def _plot(curves: dict[str, np.ndarray], truth: np.ndarray, report: dict, network: str, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    moving = np.argsort(-truth[:, EXPRESSION].var(0), kind="stable")[:4]
    panels = [(f"expression {dim}", dim) for dim in moving]
    panels += [(f"rotation {'xyz'[k]} (rad)", ROTATION.start + k) for k in range(3)]
    jaw = JAW.start + int(truth[:, JAW].var(0).argmax())
    panels.append((f"jaw {'xyz'[jaw - JAW.start]} (rad)", jaw))
    figure, axes = pyplot.subplots(len(panels), 1, figsize=(16, 2.1 * len(panels) + 1.6), sharex=True)
    seconds = np.arange(len(truth)) / FPS
    for axis, (label, dim) in zip(axes, panels):
        axis.plot(seconds, truth[:, dim], color="black", linewidth=2.4, alpha=0.45, label="truth")
        axis.plot(seconds, curves["second seed"][:, dim], color="tab:blue", linewidth=0.8, label="generated, free-running, second seed")
        axis.plot(seconds, curves["free-running"][:, dim], color="tab:red", linewidth=0.9, label="generated, free-running")
        axis.set_ylabel(label)
        axis.margins(x=0)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper center", ncols=3, frameon=False)
    axes[-1].set_xlabel("seconds")
    steps = f", {report['ddim_steps']} DDIM steps" if report["ddim_steps"] else ""
    lines = [f"{network}, {report['frames']} frames{steps}; variance-weighted correlation (RMSE) with the truth"]
    for name in curves:
        note = " (true past before each block: not free-running)" if name == "true past" else " (true first frame, then own past)"
        scores = ", ".join(f"{group} {s['correlation']:.4f} ({s['rmse']:.4f})" for group, s in report[name].items())
        lines.append(f"{name}{note}: {scores}")
    figure.text(0.02, 0.01, "\n".join(lines), family="monospace", fontsize=10, va="bottom")
    figure.tight_layout(rect=(0, 0.06, 1, 0.975))
    figure.savefig(path, dpi=80, format="png")
    pyplot.close(figure)
