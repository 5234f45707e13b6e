"""Where to compute: what `--device auto`, `cpu` and `cuda` mean on this machine."""

import torch

from difflistener.errors import UserError


def resolve_device(name: str) -> str:
    """"cpu" or "cuda" for `name` auto, cpu or cuda. Raises `UserError` where cuda is asked for and is not there."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda was asked for, but torch sees no CUDA GPU here.", "Use --device cpu, or see: difflistener doctor")
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return name
