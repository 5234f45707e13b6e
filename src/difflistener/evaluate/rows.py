"""The rows of an evaluation: ways to make the picture of a frame, from a body in three states of knowledge and from baselines.

Knows nothing of scores or files. Axes: B frames, H, W.
"""

from collections.abc import Callable

import numpy as np
import torch

from difflistener.body.baselines import LandmarkWarp, mean_frame, nearest_frames
from difflistener.body.data import BodyData
from difflistener.body.model import Body
from difflistener.metrics.image import ssim
from difflistener.motion import ROTATION

REFINE_RATES = {"motion": 0.03, "rotation": 2e-3, "translation": 4e-3, "torso": 6e-4, "eyes": 0.02}
"""Adam's first rates: motion in standard deviations of training, but rotation in radians; translation in inter-ocular
distances; torso in picture widths and radians; eyes as they are. They fall to a tenth."""
SSIM_WEIGHT = 0.2

Render = Callable[[np.ndarray], np.ndarray]
"""Frame indices [B] -> pictures [B, H, W, 3] uint8."""


def make_rows(body: Body, data: BodyData, train: np.ndarray, warp: LandmarkWarp, refine_steps: int) -> dict[str, Render]:
    """The rows by name; see evaluate/body.py for what each knows. No `refined` where `refine_steps` is 0."""
    average = mean_frame(data, train)
    spread = data.motion[train].std(0)
    rows: dict[str, Render] = {
        "contract": lambda index: body.render(data.motion[index].to(body.device)).numpy(),
        "tracked": lambda index: body.render(*data.inputs(index, body.device)).numpy(),
        "refined": lambda index: body.render(*refine(body, data, index, spread, refine_steps)).numpy(),
        "mean frame": lambda index: np.repeat(average[None], len(index), 0),
        "nearest frame": lambda index: data.frames[nearest_frames(data.motion[index], data, train)],
        "warp": lambda index: warp.render(data.motion[index], data.translation[index]),
    }
    if not refine_steps:
        del rows["refined"]
    return rows


def refine(body: Body, data: BodyData, index: np.ndarray, spread: torch.Tensor, steps: int) -> list[torch.Tensor]:
    """Motion, translation, torso and eyes of frames `index` [B], fitted to their pictures. `spread` [56] scales the motion."""
    start = data.inputs(index, body.device)
    truth = data.picture(index).to(body.device)
    scales = [spread.to(body.device).clone(), *(torch.tensor(1.0, device=body.device) for _ in start[1:])]
    scales[0][ROTATION] = REFINE_RATES["rotation"] / REFINE_RATES["motion"]
    moves = [torch.zeros_like(values, requires_grad=True) for values in start]
    rates = [REFINE_RATES[name] for name in ("motion", "translation", "torso", "eyes")]
    optimizer = torch.optim.Adam([{"params": [move], "lr": rate} for move, rate in zip(moves, rates)], eps=1e-15)
    fade = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.1 ** (step / steps))

    def moved():
        return [values + move * scale for values, move, scale in zip(start, moves, scales)]

    for _ in range(steps):
        pictures, _ = body(*moved())
        # Summed over frames: each is fitted for itself.
        loss = (pictures - truth).abs().flatten(1).mean(1) + SSIM_WEIGHT * (1 - ssim(pictures, truth))
        optimizer.zero_grad()
        loss.sum().backward()
        optimizer.step()
        fade.step()
    return [values.detach() for values in moved()]
