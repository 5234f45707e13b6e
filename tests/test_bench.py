import json

import pytest
import torch

from difflistener.bench import synthetic_body
from difflistener.bench_body import BodyBench, bench_body
from difflistener.errors import UserError


def test_bodies_are_measured_side_by_side(tmp_path, capsys):
    for name, gaussians in (("small", 200), ("large", 400)):
        synthetic_body(gaussians, 32).save_pretrained(tmp_path / name, {"images_per_s": 1200.0} if name == "small" else {})
    report = bench_body(BodyBench((tmp_path / "small", tmp_path / "large"), batch=(1, 3), seconds=0.02, device="cpu"))
    small, large = report["bodies"].values()
    assert list(report["bodies"]) == [str(tmp_path / "small"), str(tmp_path / "large")]
    assert small["gaussians"] == 200 and small["training_images_per_s"] == 1200.0 and large["training_images_per_s"] is None
    for size in (1, 3):
        for name in (f"fps_{size}", f"plain_fps_{size}", f"encoded_fps_{size}", f"times_plain_{size}"):
            assert large[name] > 0
    assert large["checkpoint_mb"] > small["checkpoint_mb"] > 0 and small["load_s"] > 0 and small["peak_memory_mb"] > 0
    table = capsys.readouterr().out
    assert "small" in table and "large" in table and str(small["fps_3"]) in table
    json.dumps(report)


def test_without_a_body_a_synthetic_head_is_measured():
    report = bench_body(BodyBench(batch=(2,), seconds=0.02, size=32, gaussians=300, device="cpu"))
    assert report["bodies"]["synthetic"]["gaussians"] == 300 and report["bodies"]["synthetic"]["size"] == "32x32"


@pytest.mark.parametrize("wrong", [{"batch": (0,)}, {"batch": ()}, {"batch": (10_000,)}, {"seconds": 0.0}, {"gaussians": 0}])
def test_settings_that_measure_nothing_are_refused(wrong):
    with pytest.raises(UserError):
        bench_body(BodyBench(device="cpu", **wrong))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU and gsplat")
def test_a_frame_replayed_is_faster_than_a_plain_one():
    figures = bench_body(BodyBench(batch=(1,), seconds=0.5, size=256, gaussians=5_000, device="cuda"))["bodies"]["synthetic"]
    assert figures["times_plain_1"] > 1
