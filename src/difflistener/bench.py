"""`difflistener bench listener`: how fast a listener is rendered on this machine, end to end and stage by stage.

Stored features go in, an encoded video comes out; each stage is timed alone as well. The baseline in the same run is
the encoder fed with still pictures: no renderer can be faster than that. Prints a table and, last, one JSON line.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class Bench:
    """Measure frames per second on this machine: brain, body, encoder, and all of them together.

    Example: difflistener bench listener --body-checkpoint bodies/ben --brain-checkpoint brains/ben
    """

    body_checkpoint: Path | None = None
    """Body to render. Default: a synthetic head of --gaussians Gaussians at --size."""
    brain_checkpoint: Path | None = None
    """Brain to generate with. Default: the body is driven by synthetic motion."""
    frames: int = 250
    """Frames to render."""
    size: int = 512
    """Picture size of the synthetic head."""
    gaussians: int = 20_000
    """Gaussians of the synthetic head."""
    num_steps: int | None = None
    """DDIM steps, 1 to 50. Default: 15, or those that the brain was distilled to."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute."""


def bench(config: Bench) -> dict:
    """Run the measurements, print the table and return the figures."""
    import tempfile
    import time

    import torch

    from difflistener.body.model import Body
    from difflistener.body.render import Renderer
    from difflistener.device import resolve_device
    from difflistener.errors import UserError
    from difflistener.media import VideoWriter
    from difflistener.synthesize import render_motion

    for name in ("frames", "size", "gaussians"):
        if getattr(config, name) < 1:
            raise UserError(f"--{name} is {getattr(config, name)}.", "Ask for at least one.")
    device = resolve_device(config.device)
    body = Body.from_pretrained(config.body_checkpoint, device) if config.body_checkpoint else synthetic_body(config.gaussians, config.size).to(device)
    brain = None
    if config.brain_checkpoint:
        from difflistener.brain.model import Brain

        brain = Brain.from_pretrained(config.brain_checkpoint, device)
    height, width = body.config.height, body.config.width
    figures = {"device": torch.cuda.get_device_name() if device == "cuda" else f"cpu, {torch.get_num_threads()} threads",
               "size": f"{width}x{height}", "gaussians": body.config.num_gaussians}

    def rate(run) -> float:
        begun = time.perf_counter()
        run()
        if device == "cuda":
            torch.cuda.synchronize()
        return config.frames / (time.perf_counter() - begun)

    def generate():
        if brain is None:
            return synthetic_motion(config.frames)
        face = torch.zeros(config.frames, 50) if brain.config.uses_face else None
        return brain.generate(torch.zeros(config.frames, brain.config.audio_dim), face, num_steps=config.num_steps)

    def write(pictures):
        with tempfile.TemporaryDirectory() as folder, VideoWriter(Path(folder) / "bench.mp4", width, height) as writer:
            for picture in pictures:
                writer.write_frame(picture)

    motion = generate()
    renderer = Renderer(body)
    for _ in render_motion(renderer, motion[:32]):
        pass
    still = next(iter(render_motion(renderer, motion[:1])))
    if brain is not None:
        figures["brain_fps"] = rate(generate)
    figures["body_fps"] = rate(lambda: [None for _ in render_motion(renderer, motion)])
    figures["encoder_fps"] = rate(lambda: write(still for _ in range(config.frames)))
    figures["end_to_end_fps"] = rate(lambda: write(render_motion(renderer, generate())))
    figures = {name: round(value, 1) if isinstance(value, float) else value for name, value in figures.items()}
    figures["times_real_time"] = round(figures["end_to_end_fps"] / 25, 2)
    figures["share_of_encoder_alone"] = round(figures["end_to_end_fps"] / figures["encoder_fps"], 2)
    for name, value in figures.items():
        print(f"{name:<24}{value}")
    return figures


def synthetic_motion(frames: int):
    """Slow head turns [T, 56] with expression codes of unit size."""
    import math

    import torch

    time = torch.arange(frames)[:, None] / 25
    codes = torch.sin(time * torch.linspace(0.5, 3, 50) * 2 * math.pi / 3)
    turn = torch.stack([0.1 * torch.sin(time[:, 0] * 3), 0.3 * torch.sin(time[:, 0]), 0.05 * torch.sin(time[:, 0] * 2)], 1)
    return torch.cat([codes, turn, torch.zeros(frames, 3)], 1)


def synthetic_body(gaussians: int, size: int):
    """A head-like body: an ellipsoid over shoulders that covers about half of the picture."""
    import torch

    from difflistener.body.linear import LinearBody
    from difflistener.body.model import BodyConfig

    generator = torch.Generator().manual_seed(0)
    body = LinearBody(BodyConfig("landmark:synthetic", size, size, gaussians))
    direction = torch.randn(gaussians, 3, generator=generator)
    direction = direction / direction.norm(dim=1, keepdim=True)
    is_torso = torch.arange(gaussians) % 4 == 0
    head = direction * torch.tensor([1.2, 1.6, 1.3])
    torso = torch.tensor([0, 2.6, 0.5]) + direction * torch.tensor([2.6, 1.0, 0.8])
    with torch.no_grad():
        body.means.copy_(torch.where(is_torso[:, None], torso, head))
        body.log_scales.fill_(0.0).add_(torch.log(torch.tensor(3.0 / gaussians**0.5)))
        body.log_scales[:, 2] -= 1.5
        body.opacity_logits.fill_(1.0)
        body.colors.copy_(torch.rand(gaussians, 3, generator=generator))
        body.rigid_logits.copy_(torch.where(is_torso, -4.0, 4.0))
        body.deformation.position.normal_(0, 0.005, generator=generator)
        body.K.copy_(torch.tensor([[2.2 * size, 0, size / 2], [0, 2.2 * size, size / 2], [0, 0, 1.0]]))
        body.neck[0, 2] = 10.0
    return body.eval().requires_grad_(False)
