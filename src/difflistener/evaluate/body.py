"""`difflistener evaluate body`: a body's pictures against the film, on frames that it has not learned from.

Rows, at the body's size:
    contract  the 56 numbers alone; translation, torso and eyes follow from them, as for a generated listener
    tracked   with the clip's tracked translation, torso and eyes
    refined   all numbers of each frame fitted to that frame by gradient steps through the frozen body: test images used
    mean frame, nearest frame, warp    baselines that learn nothing, see body/baselines.py (the warp has the tracked translation)

Columns, means over the frames: PSNR and SSIM of the full frame; PSNR of the head (head, hair and mouth of the film, widened);
LPIPS; LMD of mouth and face, and jitter, by re-tracking (metrics/retrack.py); frames in which no face was found any more.
Axes: B frames, H, W.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import binary_dilation

from difflistener.body.baselines import LandmarkWarp
from difflistener.body.data import BodyData, check_clip, load_body_data
from difflistener.body.model import Body
from difflistener.clip import MASK_LABELS, Clip, write_json
from difflistener.device import resolve_device
from difflistener.errors import UserError
from difflistener.evaluate.config import BodyEvaluation
from difflistener.evaluate.large_poses import headings, score_large_poses
from difflistener.evaluate.report import check_output, plain, print_tables, write_sheet
from difflistener.evaluate.rows import Render, make_rows
from difflistener.metrics import lpips
from difflistener.metrics.image import psnr, ssim
from difflistener.metrics.retrack import compare, retrack
from difflistener.progress import progress

CHUNK = 8
HEAD_MARGIN = 9 / 512
"""How far the head region reaches beyond its mask, as a share of the picture's longer side."""
HEAD = [MASK_LABELS[name] for name in ("head", "hair", "mouth")]
SHOWN = 4
"""Frames of strip.png, spread over the block; the worst one comes last."""

def evaluate_body(config: BodyEvaluation) -> dict:
    """Score a body; prints the tables, writes evaluation.json, strip.png and large_poses.png, returns the figures."""
    _check(config)
    device = resolve_device(config.device)
    clip = Clip.open(config.clip)
    check_clip(clip)
    body = Body.from_pretrained(config.body, device)
    first, end = _block(config, clip, body)
    network = config.lpips or ("alex" if lpips.is_present("alex") else None)
    distance = lpips.Lpips.published(network, device) if network else None
    config.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=config.out, prefix=".pictures-") as cache:
        data, labels = load_body_data(clip, max(body.config.width, body.config.height), Path(cache))
        if data.size != (body.config.height, body.config.width):
            raise UserError(f"The body {config.body} has pictures of {body.config.width}x{body.config.height}, the clip "
                            f"{config.clip} gives {data.size[1]}x{data.size[0]}.", "Evaluate it on the clip it was trained on.")
        test = np.flatnonzero(data.valid[first:end]) + first
        train = np.setdiff1d(data.train, test)
        figures = {"body": str(config.body), "clip": str(config.clip), "frames": [first, end], "scored": len(test),
                   "learned_from": int(np.isin(test, data.train).sum()), "size": f"{data.size[1]}x{data.size[0]}",
                   "lpips_network": network, "refine_steps": config.refine_steps}
        film = _in_block(first, end, test, *retrack(data.frames[index] for index in test)) if config.retrack else None
        warp = LandmarkWarp(data, train)
        rows = make_rows(body, data, train, warp, config.refine_steps)
        figures["rows"] = {name: _score(name, render, data, labels, test, (first, end), film, distance)
                           for name, render in rows.items()}
        write_sheet(config.out / "strip.png", *_strip(rows, data, test))
        if config.large_poses and config.retrack:
            figures["large_poses"], pictures = score_large_poses(body, data, labels, warp, train)
            write_sheet(config.out / "large_poses.png", headings(), list(pictures.values()))
        else:
            (config.out / "large_poses.png").unlink(missing_ok=True)  # Of an evaluation that this one replaces.
    figures = plain(figures)
    write_json(config.out / "evaluation.json", figures)
    print_tables(figures)
    return figures


def _check(config: BodyEvaluation) -> None:
    check_output(config.out, config.overwrite)
    if config.refine_steps < 0:
        raise UserError(f"--refine-steps is {config.refine_steps}.", "Give at least 0.")


def _block(config: BodyEvaluation, clip: Clip, body: Body) -> tuple[int, int]:
    """First and end of the frames to score."""
    if body.config.basis != clip.basis:
        raise UserError(f"The body {config.body} speaks basis {body.config.basis}, the clip {config.clip} basis {clip.basis}.",
                        "Evaluate it on the clip it was trained on, or prepare the clip with --basis naming the body's clip.")
    first, end = config.frames or clip.meta["test_frames"]
    if not 0 <= first < end <= clip.num_frames:
        raise UserError(f"--frames {first} {end} are no frames of {config.clip}, which has {clip.num_frames}.",
                        "Give a first frame and an end after it.")
    valid = np.array(clip.read("listener", "valid"))
    if not valid[first:end].any():
        raise UserError(f"No face was tracked in frames {first} to {end - 1} of {config.clip}.",
                        "Choose others with --frames FIRST END.")
    left = valid & ~clip.is_test()
    left[first:end] = False
    if left.sum() < 2:
        raise UserError(f"Frames {first} to {end - 1} leave none of {config.clip} to the baselines.",
                        "Choose fewer with --frames FIRST END.")
    return first, end


def _score(
    name: str, render: Render, data: BodyData, labels: np.ndarray, test: np.ndarray, block: tuple[int, int],
    film: tuple[np.ndarray, np.ndarray] | None, distance: lpips.Lpips | None,
) -> dict[str, float]:
    """Means over the frames `test` of one row; `film` holds the film's landmarks over the block, and where they were found.

    None leaves out what needs them.

    Frames go through a few at a time: memory does not grow with their number.
    """
    scores: list[dict[str, float]] = []

    def pictures() -> Iterator[np.ndarray]:
        chunks = [test[start : start + CHUNK] for start in range(0, len(test), CHUNK)]
        for chunk, _ in progress(chunks, f"score {name}"):
            for index, picture in zip(chunk, render(chunk)):
                scores.append(_image_scores(picture, data, labels, index, distance))
                yield picture

    compared = {}
    if film is None:
        for _ in pictures():
            pass
    else:
        compared = compare(*_in_block(*block, test, *retrack(pictures())), *film)
    return {key: float(np.nanmean([score[key] for score in scores])) for key in scores[0]} | compared


def _image_scores(
    picture: np.ndarray, data: BodyData, labels: np.ndarray, index: int, distance: lpips.Lpips | None
) -> dict[str, float]:
    image, truth = torch.from_numpy(picture)[None].float() / 255, data.picture([index])
    head = torch.from_numpy(_head_region(labels[index]))[None]
    scores = {"psnr": psnr(image, truth), "ssim": ssim(image, truth), "psnr_head": psnr(image, truth, head)}
    if distance is not None:
        device = distance.shift.device
        scores["lpips"] = distance(image.to(device), truth.to(device))
    return {name: float(value) for name, value in scores.items()}


def _head_region(labels: np.ndarray) -> np.ndarray:
    """Head, hair and mouth of a label image [H, W], widened."""
    reach = max(1, round(HEAD_MARGIN * max(labels.shape)))
    rows, columns = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    return binary_dilation(np.isin(labels, HEAD), rows**2 + columns**2 <= reach**2)


def _in_block(
    first: int, end: int, index: np.ndarray, points: np.ndarray, found: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Landmarks and found of frames `index` as a series over every frame from `first` to `end`."""
    series, valid = np.zeros((end - first, *points.shape[1:]), points.dtype), np.zeros(end - first, bool)
    series[index - first], valid[index - first] = points, found
    return series, valid


def _strip(rows: dict[str, Render], data: BodyData, test: np.ndarray) -> tuple[list[str], list[np.ndarray]]:
    """Titles and rows of strip.png."""
    errors = [((rows["tracked"](chunk).astype(np.float32) - data.frames[chunk]) ** 2).mean((1, 2, 3))
              for chunk in np.array_split(test, -(-len(test) // CHUNK))]
    spread = test[np.linspace(0, len(test) - 1, min(SHOWN, len(test))).round().astype(int)]
    shown = np.append(spread, test[int(np.concatenate(errors).argmax())])
    columns = {"film": data.frames[shown]} | {name: rows[name](shown) for name in ("tracked", "contract", "warp")}
    difference = np.abs(columns["tracked"].astype(np.int16) - columns["film"])
    columns["film - tracked, x4"] = np.clip(difference * 4, 0, 255).astype(np.uint8)
    return list(columns), list(np.stack(list(columns.values()), 1))
