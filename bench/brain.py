"""How fast a brain of the default shape streams: hop by hop, log-mel features included, on this machine.

    PYTHONPATH=src python bench/brain.py [--checkpoint BRAIN | --distilled STEPS] [--seconds 20] [--threads 2] [--batch 512]

A hop is `block` frames of sound and face in, their motion out; real time is 40 ms a frame. Guidance is on (three
passes a step) and off (one); a distilled brain has it built in. On a GPU also frames/s of --batch reactions side by side.
Weights do not change the speed: without --checkpoint they are random. Prints a table and, last, one JSON line.
"""

import argparse
import json
import platform
import time

import numpy as np
import torch

from difflistener.brain.config import BrainConfig, BrainTraining
from difflistener.brain.model import Brain
from difflistener.brain.stream import Stream
from difflistener.motion import FPS, NUM_EXPRESSION
from difflistener.prepare.audio import SAMPLES_PER_FRAME, LogMel

GUIDANCE = {"guided": (1.5, 1.2), "plain": (1.0, 1.0)}


def default_brain(distilled: int | None) -> Brain:
    own = BrainTraining((), "brain").complete()
    torch.manual_seed(0)
    return Brain(BrainConfig("dit", "flame2020", "logmel", LogMel.dim, True, LogMel().settings(), own.block, own.history,
                             own.context, own.width, own.layers, heads=own.heads,
                             **({} if distilled is None else {"num_steps": distilled, "distilled": True}))).eval()


def bench_stream(brain: Brain, guidance: tuple[float, float], seconds: float,
                 num_threads: int = 1) -> dict[str, float]:
    """Times real time (by the median hop) and the slowest hop in ms, features included, of `seconds` of talk."""
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    hop = brain.config.block
    random = np.random.default_rng(0)
    ears = LogMel().stream()
    stream = Stream(brain, audio_guidance=guidance[0], face_guidance=guidance[1])
    times = []
    for number in range(-10, max(int(seconds * FPS) // hop, 1)):
        sound = random.normal(size=hop * SAMPLES_PER_FRAME).astype(np.float32) * 0.1
        face = torch.from_numpy(random.normal(size=(hop, NUM_EXPRESSION)).astype(np.float32))
        begun = time.perf_counter()
        stream.push(torch.from_numpy(ears.push(sound)), face)
        if number >= 0:  # The first hops warm up.
            times.append(time.perf_counter() - begun)
    torch.set_num_threads(before)
    return {"times_real_time": hop / FPS / float(np.median(times)), "slowest_hop_ms": max(times) * 1e3}


def bench_batch(brain: Brain, guidance: tuple[float, float], batch: int, frames: int = 50) -> float:
    """Frames/s of `batch` reactions side by side on the brain's device."""
    audio, face = torch.zeros(batch, frames, brain.config.audio_dim), torch.zeros(batch, frames, NUM_EXPRESSION)
    for _ in range(2):  # The first time warms up.
        begun = time.perf_counter()
        brain.generate_many(audio, face, audio_guidance=guidance[0], face_guidance=guidance[1])
        seconds = time.perf_counter() - begun
    return batch * frames / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint")
    parser.add_argument("--distilled", type=int)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=512)
    given = parser.parse_args()
    brain = Brain.from_pretrained(given.checkpoint) if given.checkpoint else default_brain(given.distilled)
    settings = {"plain": GUIDANCE["plain"]} if brain.config.distilled else GUIDANCE
    figures = {"machine": platform.processor() or platform.machine(), "threads": given.threads, "num_steps": brain.config.num_steps,
               "latency_ms": brain.config.latency_ms,
               "parameters": sum(parameter.numel() for parameter in brain.network.parameters())}
    print(f"{figures['parameters'] / 1e6:.1f} M parameters, {brain.config.num_steps} steps, {figures['latency_ms']} ms algorithmic latency")
    print(f"{'':10}{'x real time':>12}{'slowest hop':>14}")
    for name, weights in settings.items():
        figures[name] = bench_stream(brain, weights, given.seconds, given.threads)
        print(f"{name:10}{figures[name]['times_real_time']:12.1f}{figures[name]['slowest_hop_ms']:11.1f} ms")
    if torch.cuda.is_available():
        brain = brain.to("cuda")
        figures["gpu"] = torch.cuda.get_device_name()
        for name, weights in settings.items():
            figures[f"batch_{name}"] = bench_batch(brain, weights, given.batch)
            print(f"{name:10}{figures[f'batch_{name}']:12.0f} frames/s, {given.batch} reactions on {figures['gpu']}")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
