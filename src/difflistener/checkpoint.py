"""Folder checkpoints in the Hugging Face manner, and the output folders that training writes them to.

    config.json         library, type ("brain.mlp"), format number, the fields of the config, training summary
    model.safetensors   weights and buffers
    README.md           model card: provenance and licences
    training_state/     what `--resume` needs: one safetensors file whose header carries the numbers as JSON

Every file is written to a temporary name and renamed; nothing is ever pickled. Knows nothing of networks.
"""

import difflib
import json
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from difflistener.clip import replacing, write_json
from difflistener.errors import UserError
from difflistener.shipped import named

FORMAT = 1
LIBRARY = "difflistener"
HEADER = ("library", "type", "format", "training")
"""Keys of config.json that are not fields of the config."""

Config = TypeVar("Config")


def save_checkpoint(directory: Path, type: str, config: dict[str, Any], tensors: dict[str, Tensor], card: str,
                    training: dict[str, Any] | None = None) -> None:
    """Write a checkpoint folder, file by file, config.json last.

    Args:
        type: kind and network, as in "brain.mlp" or "body.linear".
        config: fields of the config dataclass, JSON values only; `basis` among them.
        tensors: weights and buffers by name.
        card: the model card, Markdown.
        training: summary of how the weights came about (steps, losses, clips, seconds).
    """
    assert "basis" in config and not set(HEADER) & set(config), f"bad config keys: {sorted(config)}"
    directory = Path(directory)
    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with replacing(directory / "model.safetensors") as temporary:
        save_file(stored, temporary, metadata={"format": "pt"})
    with replacing(directory / "README.md") as temporary:
        temporary.write_text(card)
    write_json(directory / "config.json",
               {"library": LIBRARY, "type": type, "format": FORMAT, **config, "training": training or {}})


def read_header(directory: Path) -> dict[str, Any]:
    """All of config.json. Raises `UserError` where `directory` is not a checkpoint of this format."""
    directory = Path(directory)
    file = directory / "config.json"
    remedy = "Name a folder that difflistener train or save_pretrained wrote."
    if not file.is_file():
        raise UserError(f"{directory} is not a checkpoint: it has no config.json.", remedy)
    try:
        header = json.loads(file.read_text())
    except ValueError as error:
        raise UserError(f"{file} is damaged ({error}).", "Train again, or copy the folder again.") from error
    if not isinstance(header, dict) or header.get("library") != LIBRARY or not isinstance(header.get("type"), str):
        raise UserError(f"{file} was not written by difflistener.", remedy)
    if header.get("format") != FORMAT:
        raise UserError(f"{file} has format {header.get('format')}; this version reads format {FORMAT}.",
                        "Install the version of difflistener that wrote it, or train again.")
    return header


def load_checkpoint(directory: Path, kind: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The config's fields and the tensors (on CPU) of a checkpoint of `kind` "brain" or "body"; `shipped` is the package's own.

    Raises:
        UserError: not a checkpoint, another kind, another format, a damaged or missing model.safetensors.
    """
    directory = named(directory, kind)
    header = read_header(directory)
    if header["type"].split(".")[0] != kind:
        raise UserError(f"{directory} is a {header['type']} checkpoint where a {kind} is wanted.",
                        f"Name the folder of a {kind}.")
    file = directory / "model.safetensors"
    if not file.is_file():
        raise UserError(f"The checkpoint {directory} has no model.safetensors.", "Copy the whole folder, or train again.")
    tensors = _load_safetensors(file)
    return {key: value for key, value in header.items() if key not in HEADER}, tensors


def load_tensors_into(module: torch.nn.Module, tensors: dict[str, Tensor], directory: Path) -> None:
    """`load_state_dict` that names the checkpoint where names or shapes disagree with its config.json."""
    try:
        module.load_state_dict(tensors)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{directory}/model.safetensors does not fit its config.json ({reason}).",
                        "Copy the whole folder again, or train again.") from error


def config_from_dict(cls: type[Config], values: dict[str, Any], where: Path | str) -> Config:
    """Make the config dataclass `cls` of JSON `values`. Raises `UserError` on an unknown or a missing key."""
    known = {field.name: field for field in fields(cls)}
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
            raise UserError(f"{where} has an unknown key {key!r}; the nearest known one is {near[0]!r}.",
                            f"Known keys: {', '.join(known)}.")
    for name, field in known.items():
        if name not in values and field.default is MISSING and field.default_factory is MISSING:
            raise UserError(f"{where} lacks the key {name!r}.", "Add it, or write the file again.")
    return cls(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})


# Output folders


def prepare_output(out: Path, overwrite: bool, resume: bool, byproducts: tuple[str, ...] = ("metrics.jsonl",)) -> None:
    """Make `out` ready for a run; call `claim_output` next, so that an interrupted run is known as ours.

    A folder that is not empty needs `overwrite` or `resume`. Overwriting removes the old run's training state and
    `byproducts` (file names); the old model stays until the new one takes its place, other files stay for good.

    Raises:
        UserError: not empty and neither flag; both flags; nothing to resume; a folder that is not ours; a file.
    """
    out = Path(out)
    if overwrite and resume:
        raise UserError("--overwrite and --resume exclude each other.", "Give one of them.")
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file, not a folder.", "Name another output folder.")
    if resume:
        if not (out / "training_state" / "state.safetensors").is_file():
            raise UserError(f"{out} holds no training state to resume.", "Train from the start: leave --resume out, or give --overwrite instead.")
        return
    if not out.is_dir() or not any(out.iterdir()):
        out.mkdir(parents=True, exist_ok=True)
        return
    if not _is_ours(out):
        raise UserError(f"{out} holds files that are not a difflistener training run; they are left alone.",
                        "Name another output folder.")
    if not overwrite:
        raise UserError(f"{out} already holds a training run.",
                        "Give --resume to continue it, --overwrite to replace it, or another output folder.")
    if (out / "training_state").is_dir():
        shutil.rmtree(out / "training_state")
    for name in byproducts:
        (out / name).unlink(missing_ok=True)


def claim_output(out: Path, type: str, recipe: dict[str, Any]) -> None:
    """Write run.json: what this run is (`type` as in checkpoints) and the complete settings it was started with."""
    write_json(Path(out) / "run.json", {"library": LIBRARY, "type": type, "format": FORMAT, **recipe})


def _is_ours(out: Path) -> bool:
    for name in ("config.json", "run.json"):
        try:
            value = json.loads((out / name).read_text())
        except (OSError, ValueError):
            continue
        if isinstance(value, dict) and value.get("library") == LIBRARY:
            return True
    return False


# Training state


def how_to_go_on(directory: Path) -> dict[str, bool]:
    """`resume` and `overwrite` for a training into `directory` that an interrupted run may have begun: what has no state
    to go on from is replaced."""
    begun = (directory / "training_state" / "state.safetensors").is_file()
    return {"resume": begun, "overwrite": directory.exists() and not begun}


def save_training_state(directory: Path, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
    """Write directory/training_state/state.safetensors; `state` (JSON values: step, seed, config) goes in its header.

    One file, so that a killed run never leaves weights of one step with the numbers of another.
    """
    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with replacing(Path(directory) / "training_state" / "state.safetensors") as temporary:
        save_file(stored, temporary, metadata={"format": "pt", "library": LIBRARY, "state": json.dumps(state)})


def load_training_state(directory: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `save_training_state` wrote. Raises `UserError` where it is damaged."""
    file = Path(directory) / "training_state" / "state.safetensors"
    tensors = _load_safetensors(file)
    with safe_open(file, "pt") as opened:
        state = (opened.metadata() or {}).get("state")
    if state is None:
        raise UserError(f"{file} is not a training state.", "Start over with --overwrite.")
    return tensors, json.loads(state)


@contextmanager
def delayed_interrupt() -> Iterator[threading.Event]:
    """Inside, the first Ctrl-C only sets the event, so that a training step is whole when it is saved.

    The second Ctrl-C raises KeyboardInterrupt at once. Outside the main thread nothing changes.
    """
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def handle(number, frame):
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)


def optimizer_tensors(optimizer: torch.optim.Optimizer, prefix: str = "optimizer") -> dict[str, Tensor]:
    """The optimiser's tensors as `<prefix>.<parameter number>.<name>`."""
    return {f"{prefix}.{index}.{name}": torch.as_tensor(value)
            for index, entries in optimizer.state_dict()["state"].items() for name, value in entries.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], prefix: str = "optimizer") -> None:
    """Put `optimizer_tensors` back; other names in `tensors` are left alone."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        if key.startswith(f"{prefix}."):
            _, index, name = key.split(".", 2)
            state.setdefault(int(index), {})[name] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def restore_schedule(schedule: torch.optim.lr_scheduler.LambdaLR, step: int) -> None:
    """Set the optimiser's rates as they stand before `step`."""
    schedule.last_epoch = step
    for group, rate, factor in zip(schedule.optimizer.param_groups, schedule.base_lrs, schedule.lr_lambdas):
        group["lr"] = rate * factor(step)


def _load_safetensors(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{file} is damaged ({error}).", "Copy the checkpoint folder again, or train again.") from error
