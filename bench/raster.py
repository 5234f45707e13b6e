"""How fast the rasteriser is on this machine: forward, and a training step (forward + L1 + backward through autograd).

    python bench/raster.py [--repeats 30] [--threads 2] [--device cpu]

The scene is a head as splatting sees one: an ellipsoid shell over neck and shoulders, flat splats along the surface
of a size that falls with 1/sqrt(N), about half of the picture covered. Prints a table, the plain torch reference of
the tests as the baseline (at a size it can do), and last one JSON line. Times are medians in milliseconds, with the
least in brackets: on a busy machine the least is the better estimate.
"""

import argparse
import json
import math
import os
import platform
import statistics
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from difflistener.body.raster import cpu, rasterize  # noqa: E402

SCENES = [(size, count) for size in (256, 512) for count in (5_000, 20_000, 60_000)]
BASELINE = (64, 2_000)


def head(count: int, size: int, device: str = "cpu") -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
    """Means, quats, scales, opacities, colors with a leading batch of 1; w2c [1, 4, 4]; K [1, 3, 3]."""
    g = torch.Generator().manual_seed(0)
    normal = torch.nn.functional.normalize(torch.randn(count, 3, generator=g), dim=1)
    part = torch.rand(count, generator=g)[:, None]
    is_head, is_neck = part < 0.5, part > 0.9
    radii = torch.where(is_head, torch.tensor([1.0, 1.35, 1.1]), torch.where(is_neck, torch.tensor([0.5, 0.9, 0.5]), torch.tensor([2.2, 0.8, 0.7])))
    centre = torch.where(is_head, torch.tensor([0, -0.35, 0]), torch.where(is_neck, torch.tensor([0, 1.2, 0.1]), torch.tensor([0, 2.2, 0.2])))
    means = centre + radii * normal
    normal = torch.nn.functional.normalize(normal / radii, dim=1)
    # The rotation that takes z to the surface normal, after a random turn about z.
    tilt = torch.nn.functional.normalize(torch.stack([1 + normal[:, 2], -normal[:, 1], normal[:, 0], torch.zeros(count)], 1), dim=1)
    turn = torch.rand(count, generator=g) * math.pi
    c, s = turn.cos(), turn.sin()
    a, b, d = tilt[:, 0], tilt[:, 1], tilt[:, 2]
    quats = torch.stack([a * c, b * c + d * s, d * c - b * s, a * s], 1)
    along = 3.4 / count**0.5 * torch.exp(0.35 * torch.randn(count, 2, generator=g))
    scales = torch.cat([along, 0.15 * along.amin(1, keepdim=True)], 1)
    gaussians = [means, quats, scales, 0.15 + 0.8 * torch.rand(count, generator=g), torch.rand(count, 3, generator=g)]
    w2c = torch.eye(4)[None].clone()
    w2c[0, 2, 3] = 10.0
    K = torch.tensor([[[2.9 * size, 0, size / 2], [0, 2.9 * size, size / 2], [0, 0, 1]]])
    return [x[None].to(device) for x in gaussians], w2c.to(device), K.to(device)


def timed(run, repeats: int, device: str) -> tuple[float, float]:
    """Median and least milliseconds of a call."""
    times = []
    for index in range(repeats + 2):
        begun = time.perf_counter()
        run()
        if device == "cuda":
            torch.cuda.synchronize()
        if index >= 2:
            times.append(1e3 * (time.perf_counter() - begun))
    return statistics.median(times), min(times)


def measure(render, size: int, count: int, repeats: int, device: str) -> dict:
    """Figures of one scene; `render` takes the five inputs, w2c, K and the size and gives rgb and alpha."""
    inputs, w2c, K = head(count, size, device)
    with torch.no_grad():
        forward = timed(lambda: render(*inputs, w2c, K, size, size), repeats, device)
        rgb, alpha = render(*inputs, w2c, K, size, size)
    target = torch.zeros_like(rgb)
    leaves = [x.clone().requires_grad_() for x in inputs]

    def step():
        rgb, _ = render(*leaves, w2c, K, size, size)
        torch.nn.functional.l1_loss(rgb, target).backward()
        for leaf in leaves:
            leaf.grad = None

    step_time = timed(step, repeats, device)
    return {"size": size, "gaussians": count, "covered": round(float((alpha > 0.5).float().mean()), 2),
            "forward_ms": round(forward[0], 2), "forward_least_ms": round(forward[1], 2),
            "step_ms": round(step_time[0], 2), "step_least_ms": round(step_time[1], 2)}


def reference(means, quats, scales, opacities, colors, w2c, K, width, height):
    import raster_reference

    rgb, alpha = raster_reference.rasterize(*(x[0] for x in (means, quats, scales, opacities, colors, w2c, K)), width, height)
    return rgb[None], alpha[None]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    cpu.set_threads(options.threads)

    rows = []
    print(f"{'':<10}{'size':>6}{'N':>8}{'covered':>9}{'forward ms':>20}{'step ms':>20}{'fps':>7}")
    for engine in ["gsplat"] if options.device == "cuda" else cpu.instruction_sets():
        if engine != "gsplat":
            cpu.use_instruction_set(engine)
        for size, count in SCENES + ([BASELINE] if engine == cpu.instruction_sets()[0] else []):
            rows.append({"engine": engine, **measure(rasterize, size, count, options.repeats, options.device)})
            show(rows[-1])
    cpu.use_instruction_set(None)
    if options.device == "cpu":
        rows.append({"engine": "torch", **measure(reference, *BASELINE, 3, "cpu")})
        show(rows[-1])
        ours = next(r for r in rows if (r["size"], r["gaussians"]) == BASELINE)
        ratio = {name: round(rows[-1][f"{name}_least_ms"] / ours[f"{name}_least_ms"]) for name in ("forward", "step")}
        print(f"plain torch takes {ratio['forward']} times as long forward, {ratio['step']} times a step")
    print(json.dumps({"bench": "raster", "machine": machine(), "threads": options.threads, "rows": rows}))


def machine() -> str:
    """Name of the processor, where the system tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")] if cpuinfo.exists() else []
    return f"{names[0]} ({os.cpu_count()} processors)" if names else platform.processor() or platform.machine()


def show(row: dict):
    forward = f"{row['forward_ms']:.2f} ({row['forward_least_ms']:.2f})"
    step = f"{row['step_ms']:.2f} ({row['step_least_ms']:.2f})"
    print(f"{row['engine']:<10}{row['size']:>6}{row['gaussians']:>8}{row['covered']:>9}{forward:>20}{step:>20}{1e3 / row['forward_ms']:>7.0f}", flush=True)


if __name__ == "__main__":
    main()
