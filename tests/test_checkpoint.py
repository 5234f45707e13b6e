"""Checkpoint folders: round trips, what is refused and how it is said, what --overwrite may touch."""

import json
import os
import signal
import time
from dataclasses import dataclass

import pytest
import torch

from difflistener.checkpoint import (
    claim_output, config_from_dict, delayed_interrupt, load_checkpoint, load_training_state, optimizer_tensors,
    prepare_output, restore_optimizer, save_checkpoint, save_training_state,
)
from difflistener.errors import UserError


@dataclass(frozen=True)
class Example:
    basis: str
    width: int = 4
    sizes: tuple[int, ...] = (1, 2)


def write(path, type="brain.mlp"):
    save_checkpoint(path, type, {"basis": "flame2020", "width": 8, "sizes": [3, 4]}, {"w": torch.arange(6.0)}, "# card\n",
                    {"steps": 10})
    return path


def test_round_trip(tmp_path):
    config, tensors = load_checkpoint(write(tmp_path / "brain"), "brain")
    assert config_from_dict(Example, config, "here") == Example("flame2020", 8, (3, 4))
    assert torch.equal(tensors["w"], torch.arange(6.0))
    header = json.loads((tmp_path / "brain" / "config.json").read_text())
    assert (header["library"], header["type"], header["format"], header["training"]) == ("difflistener", "brain.mlp", 1, {"steps": 10})
    assert sorted(file.name for file in (tmp_path / "brain").iterdir()) == ["README.md", "config.json", "model.safetensors"]


def test_a_body_is_no_brain(tmp_path):
    with pytest.raises(UserError, match="is a body.linear checkpoint where a brain is wanted"):
        load_checkpoint(write(tmp_path / "body", "body.linear"), "brain")


def test_not_a_checkpoint(tmp_path):
    with pytest.raises(UserError, match="has no config.json"):
        load_checkpoint(tmp_path, "brain")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UserError, match="was not written by difflistener"):
        load_checkpoint(tmp_path, "brain")
    (tmp_path / "config.json").write_text('{"model_')
    with pytest.raises(UserError, match="config.json is damaged"):
        load_checkpoint(tmp_path, "brain")


def test_an_unknown_format(tmp_path):
    header = json.loads((write(tmp_path) / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(header | {"format": 2}))
    with pytest.raises(UserError, match="has format 2; this version reads format 1"):
        load_checkpoint(tmp_path, "brain")


def test_damaged_or_missing_weights(tmp_path):
    file = write(tmp_path) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(UserError, match="model.safetensors is damaged"):
        load_checkpoint(tmp_path, "brain")
    file.unlink()
    with pytest.raises(UserError, match="has no model.safetensors"):
        load_checkpoint(tmp_path, "brain")


def test_config_keys():
    with pytest.raises(UserError, match="unknown key 'widht'; the nearest known one is 'width'"):
        config_from_dict(Example, {"basis": "x", "widht": 3}, "config.json")
    with pytest.raises(UserError, match="lacks the key 'basis'"):
        config_from_dict(Example, {"width": 3}, "config.json")


def test_a_failed_save_leaves_the_old_checkpoint(tmp_path):
    write(tmp_path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(RuntimeError):
        shared = torch.zeros(4)
        save_checkpoint(tmp_path, "brain.mlp", {"basis": "x"}, {"a": shared, "b": shared}, "# other\n")
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_training_state_round_trip(tmp_path):
    def build():
        torch.manual_seed(0)
        layer = torch.nn.Linear(3, 2)
        return layer, torch.optim.AdamW(layer.parameters(), lr=0.1)

    def step(layer, optimizer, k):
        optimizer.zero_grad()
        (layer(torch.full((1, 3), float(k))) ** 2).sum().backward()
        optimizer.step()

    layer, optimizer = build()
    for k in range(3):
        step(layer, optimizer, k)
    save_training_state(tmp_path, layer.state_dict() | optimizer_tensors(optimizer), {"step": 3})
    again, optimizer_again = build()
    tensors, state = load_training_state(tmp_path)
    assert state == {"step": 3}
    again.load_state_dict({name: tensors[name] for name in again.state_dict()})
    restore_optimizer(optimizer_again, tensors)
    step(layer, optimizer, 3)
    step(again, optimizer_again, 3)
    assert torch.equal(layer.weight, again.weight)


def test_an_output_folder_in_use_needs_a_flag(tmp_path):
    out = tmp_path / "out"
    prepare_output(out, overwrite=False, resume=False)
    claim_output(out, "brain.mlp", {"config": {}})
    with pytest.raises(UserError, match="already holds a training run"):
        prepare_output(out, overwrite=False, resume=False)
    with pytest.raises(UserError, match="no training state to resume"):
        prepare_output(out, overwrite=False, resume=True)
    with pytest.raises(UserError, match="exclude each other"):
        prepare_output(out, overwrite=True, resume=True)


def test_overwriting_keeps_the_old_model_and_foreign_files(tmp_path):
    write(tmp_path)
    save_training_state(tmp_path, {"w": torch.zeros(1)}, {})
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    (tmp_path / "notes.txt").write_text("mine")
    prepare_output(tmp_path, overwrite=True, resume=False)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["README.md", "config.json", "model.safetensors", "notes.txt"]


def test_a_foreign_folder_is_never_overwritten(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    (tmp_path / "metrics.jsonl").write_text("theirs")
    with pytest.raises(UserError, match="left alone"):
        prepare_output(tmp_path, overwrite=True, resume=False)
    assert (tmp_path / "metrics.jsonl").read_text() == "theirs"
    with pytest.raises(UserError, match="is a file"):
        prepare_output(tmp_path / "metrics.jsonl", overwrite=True, resume=False)


def test_ctrl_c_waits_for_the_step_and_a_second_one_does_not():
    with delayed_interrupt() as asked:
        os.kill(os.getpid(), signal.SIGINT)
        assert asked.wait(5)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
