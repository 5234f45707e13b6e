"""`difflistener bench body`: how fast bodies render from motion on this machine, and how large they are.

Motion lies on the CPU; a frame is done when its picture is finished on the body's device. The baseline in the same run
is the plain way, `Body.forward` and rounding. Prints a table, bodies side by side, and, last, one JSON line.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

NUM_FRAMES = 256
WARM_UP = 3
CHECKPOINT = ("model.safetensors", "config.json", "README.md")
"""Files that a body needs; a training run leaves pictures and scores beside them."""


@dataclass(frozen=True)
class BodyBench:
    """Measure bodies side by side: frames per second, memory, size, time to load.

    Example: difflistener bench body bodies/ben bodies/ben-triplane
    """

    bodies: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    """Bodies to measure. Default: a synthetic head of --gaussians Gaussians at --size."""
    batch: tuple[int, ...] = (1, 16)
    """Frames rendered at once."""
    seconds: float = 2.0
    """How long to measure each figure."""
    size: int = 512
    """Picture size of the synthetic head."""
    gaussians: int = 20_000
    """Gaussians of the synthetic head."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute."""


def bench_body(config: BodyBench) -> dict:
    """Run the measurements, print the table and return the figures."""
    import tempfile

    import torch

    from difflistener.bench import synthetic_body
    from difflistener.device import resolve_device
    from difflistener.errors import UserError

    for name, value in (("batch", min(config.batch, default=0)), ("size", config.size), ("gaussians", config.gaussians)):
        if value < 1:
            raise UserError(f"--{name} is {value}.", "Ask for at least one.")
    if max(config.batch) > NUM_FRAMES or config.seconds <= 0:
        raise UserError(f"--batch is {max(config.batch)}, --seconds {config.seconds:g}.",
                        f"Ask for batches of at most {NUM_FRAMES} and for more than 0 s.")
    device = resolve_device(config.device)
    with tempfile.TemporaryDirectory() as folder:
        bodies = config.bodies
        if not bodies:
            bodies = (Path(folder) / "synthetic",)
            synthetic_body(config.gaussians, config.size).save_pretrained(bodies[0])
        measured = {str(path) if config.bodies else path.name: _measure(path, config, device) for path in bodies}
    name = torch.cuda.get_device_name() if device == "cuda" else f"cpu, {torch.get_num_threads()} threads"
    _show(name, measured)
    return {"bench": "body", "device": name, "bodies": measured}


def _measure(path: Path, config: BodyBench, device: str) -> dict:
    import tempfile
    import time

    import torch

    from difflistener.bench import synthetic_motion
    from difflistener.body.model import Body
    from difflistener.body.raster import to_bytes
    from difflistener.body.render import Renderer
    from difflistener.checkpoint import read_header
    from difflistener.media import VideoWriter

    torch.zeros(1, device=device)  # Starting CUDA is not a part of loading.
    begun = time.perf_counter()
    body = Body.from_pretrained(path, device)
    figures = {"load_s": round(time.perf_counter() - begun, 3)}
    figures["checkpoint_mb"] = round(sum((path / name).stat().st_size for name in CHECKPOINT) / 1e6, 2)
    figures |= {"deformation": body.config.deformation, "gaussians": body.config.num_gaussians,
                "size": f"{body.config.width}x{body.config.height}"}
    figures["training_images_per_s"] = read_header(path)["training"].get("images_per_s")
    motion = synthetic_motion(NUM_FRAMES)
    renderer = Renderer(body)

    @torch.no_grad()
    def plain(batch):
        pictures = to_bytes(body(batch.to(device))[0])
        if device == "cuda":
            torch.cuda.synchronize()
        return pictures

    plain(motion[:1])
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    for size in config.batch:
        figures[f"fps_{size}"] = _rate(renderer, motion, size, config.seconds)
        figures[f"plain_fps_{size}"] = _rate(plain, motion, size, config.seconds)
        figures[f"times_plain_{size}"] = round(figures[f"fps_{size}"] / figures[f"plain_fps_{size}"], 2)
        with (tempfile.TemporaryDirectory() as folder,
              VideoWriter(Path(folder) / "bench.mp4", body.config.width, body.config.height) as writer):

            def write(batch, writer=writer):
                for picture in renderer(batch).cpu().numpy():
                    writer.write_frame(picture)

            figures[f"encoded_fps_{size}"] = _rate(write, motion, size, config.seconds)
    figures["peak_memory_mb"] = round(_peak_memory(device) / 1e6)
    return figures


def _rate(run: Callable, motion, size: int, seconds: float) -> float:
    """Frames per second of `run(batch)`, the median over `seconds` of batches."""
    import statistics
    import time

    times = []
    end = None
    for step in range(10**9):
        start = step * size % (len(motion) - size + 1)
        begun = time.perf_counter()
        run(motion[start : start + size])
        now = time.perf_counter()
        if step >= WARM_UP:
            end = end or begun + seconds
            times.append(now - begun)
            if now >= end:
                break
    return round(size / statistics.median(times), 1)


def _peak_memory(device: str) -> float:
    """Bytes: what torch held on the GPU while rendering, or what the whole process has held on the CPU."""
    import sys

    import torch

    if device == "cuda":
        return torch.cuda.max_memory_reserved()
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _show(device: str, measured: dict[str, dict]) -> None:
    print(device)
    print(f"{'':<24}" + "".join(f"{Path(name).name[:20]:>22}" for name in measured))
    for figure in next(iter(measured.values())):
        cells = ("-" if row[figure] is None else str(row[figure]) for row in measured.values())
        print(f"{figure:<24}" + "".join(f"{cell:>22}" for cell in cells))
