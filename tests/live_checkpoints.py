"""A small body and a small untrained brain that fit each other, for tests of `difflistener live` with a server of its own."""

from dataclasses import replace
from pathlib import Path


def write_checkpoints(folder: Path) -> tuple[Path, Path]:
    """Folders of the body and the brain. The brain hears, and does not look at faces."""
    import torch

    from difflistener.bench import synthetic_body
    from difflistener.brain.config import BrainConfig
    from difflistener.brain.model import Brain
    from difflistener.prepare.audio import LogMel

    torch.manual_seed(0)
    encoder, basis = LogMel(), "landmark:live-test"
    body = synthetic_body(500, 256)
    body.config = replace(body.config, basis=basis)
    brain = Brain(BrainConfig("dit", basis, "logmel", encoder.dim, False, encoder.settings(), block=2, history=16, context=10, width=32,
                              layers=1, heads=2, num_steps=1)).eval()
    for parameter in brain.network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    brain.motion.std.fill_(0.1)
    body.save_pretrained(folder / "body")
    brain.save_pretrained(folder / "brain")
    return folder / "body", folder / "brain"
