"""Linear against tri-plane body on one clip: the same frames held out, the same tracking, one script.

    python bench/bodies.py CLIP --out FOLDER [--seeds 0 1 2] [--schedule 1.0] [--kinds linear triplane] [-- more options of evaluate body]

Trains each body that does not stand in FOLDER yet (an interrupted one goes on), scores it with `difflistener evaluate
body`, and prints means over the seeds with the spread from least to most, the trivial baselines, training seconds and
images a second. A difference under 0.3 dB is noise. Last comes one JSON line. The tri-plane body is trained with the
first seed only, being twenty times slower.
"""

import argparse
import json
from pathlib import Path

from difflistener import cli
from difflistener.body.config import BodyTraining
from difflistener.body.train import train_body
from difflistener.checkpoint import how_to_go_on, read_header
from difflistener.evaluate.body import evaluate_body
from difflistener.evaluate.config import BodyEvaluation

SHOWN = {"psnr": 2, "ssim": 4, "psnr_head": 2, "lpips": 4, "lmd_mouth": 2, "lmd_face": 2, "jitter": 2}


def train(clip: Path, out: Path, **settings) -> dict:
    """The training summary of the body at `out`, which is trained now if it is not there."""
    if not (out / "config.json").is_file():
        train_body(BodyTraining(clip, out, **how_to_go_on(out), **settings))
    return read_header(out)["training"]


def evaluate(clip: Path, body: Path, options: list[str]) -> dict:
    out = body.with_name(f"{body.name}-scores")
    if not (out / "evaluation.json").is_file():
        evaluate_body(cli.parse(BodyEvaluation, "evaluate body", [str(body), "--clip", str(clip), "--out", str(out), *options]))
    return json.loads((out / "evaluation.json").read_text())


def over_seeds(rows: list[dict]) -> dict[str, list[float]]:
    """Mean, least and most of each figure."""
    return {key: [round(sum(values) / len(values), places), min(values), max(values)]
            for key, places in SHOWN.items() if (values := [row[key] for row in rows if row.get(key) is not None])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clip", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--schedule", type=float, default=1.0)
    parser.add_argument("--kinds", nargs="+", default=["linear", "triplane"])
    arguments, options = parser.parse_known_args()
    options = [option for option in options if option != "--"]
    figures = {"clip": arguments.clip.name, "rows": {}, "training": {}}
    for kind in arguments.kinds:
        seeds = arguments.seeds if kind == "linear" else arguments.seeds[:1]
        extra = {} if kind == "linear" else {"schedule": arguments.schedule}
        bodies = [arguments.out / f"{kind}-{seed}" for seed in seeds]
        figures["training"][kind] = [train(arguments.clip, body, deformation=kind, seed=seed, **extra) for body, seed in zip(bodies, seeds)]
        scores = [evaluate(arguments.clip, body, options)["rows"] for body in bodies]
        for name in scores[0]:
            is_trivial = name in ("mean frame", "nearest frame", "warp")
            figures["rows"][name if is_trivial else f"{kind}, {name}"] = over_seeds([score[name] for score in scores])
    show(figures)
    print(json.dumps(figures))


def show(figures: dict) -> None:
    keys = [key for key in SHOWN if any(key in row for row in figures["rows"].values())]
    print(f"{figures['clip']:<22}" + "".join(f"{key:>26}" for key in keys))
    for name, row in figures["rows"].items():
        cells = ["{} ({}..{})".format(*row[key]) if key in row else "-" for key in keys]
        print(f"{name:<22}" + "".join(f"{cell:>26}" for cell in cells))
    for kind, runs in figures["training"].items():
        seconds = ", ".join(f"{run['train_seconds']:.1f}" for run in runs)
        print(f"training {kind}: {seconds} s, {runs[0]['images_per_s']} images/s, {runs[0]['device']}")
        if "test_psnr_over_filmed_torso" in runs[0]:
            print(f"    over the filmed torso, as the original is scored: {runs[0]['test_psnr_over_filmed_torso']} dB / {runs[0]['test_ssim_over_filmed_torso']}")


if __name__ == "__main__":
    main()
