"""The page of a body: posing, names of sliders, state; then the real server on a free port."""

import socket
import sys
import threading
import time
import urllib.request
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from difflistener.bench import synthetic_body, synthetic_motion
from difflistener.body.linear import LinearBody
from difflistener.body.model import BodyConfig
from difflistener.body.triplane import TriplaneBody, TriplaneConfig
from difflistener.errors import UserError
from difflistener.motion import ROTATION
from difflistener.view import (
    REGIONS, Page, Puppet, View, covariances, filming_camera, motion_range, name_codes, pose, rest_pose, view,
)

SIZE, COUNT = 64, 300
YAW = ROTATION.start + 1


@pytest.fixture
def body():
    body = synthetic_body(COUNT, SIZE)
    body.torso_map[1, 0] = 0.3
    body.reference_rotation[2] = 0.1
    return body


def test_covariances_are_those_of_the_rotated_axes():
    generator = torch.Generator().manual_seed(0)
    quats, scales = torch.randn(20, 4, generator=generator), torch.rand(20, 3, generator=generator)
    rotation = Rotation.from_quat(quats.numpy(), scalar_first=True).as_matrix()
    expected = rotation @ (np.eye(3) * scales.numpy()[:, None] ** 2) @ rotation.transpose(0, 2, 1)
    assert np.allclose(covariances(quats, scales).numpy(), expected, atol=1e-5)


def test_a_pose_is_what_the_body_renders(body):
    motion = synthetic_motion(3)
    translation, torso, eyes = body.follow(motion[2:])
    truth = body.gaussians(motion[2:], translation, torso, eyes)
    splats = pose(body, motion[2].numpy())
    assert np.allclose(splats.centers, truth.means[0]) and np.allclose(splats.opacities[:, 0], truth.opacities[0])
    assert splats.covariances.shape == (COUNT, 3, 3) and splats.rgbs.min() >= 0 and splats.rgbs.max() <= 1


def test_the_torso_follows_or_rests(body):
    turned = rest_pose(body)
    turned[YAW] += 0.4
    is_torso = (body.rigid_logits < 0).numpy()
    far = lambda follows: np.linalg.norm(
        pose(body, turned, follows).centers - pose(body, rest_pose(body), follows).centers, axis=1)[is_torso].mean()
    assert far(True) > 5 * far(False)


@pytest.mark.parametrize("kind", ["linear", "triplane"])
def test_every_kind_of_body_can_be_posed_and_named(kind, body):
    if kind == "triplane":
        body = TriplaneBody(TriplaneConfig("x", SIZE, SIZE, COUNT, num_face=100, num_mouth=50)).eval().requires_grad_(False)
    low, high = motion_range(body)
    assert low.shape == high.shape == (56,) and (low < high).all()
    assert pose(body, rest_pose(body)).centers.shape == (COUNT, 3) and len(name_codes(body)) == 8


def face_with_codes(*moves):
    """A body with one Gaussian in each part of the face; code k moves parts as moves[k] says: part -> path [3]."""
    body = LinearBody(BodyConfig("x", SIZE, SIZE, len(REGIONS), 8))
    with torch.no_grad():
        body.means.copy_(torch.tensor([[np.mean(x), np.mean(y), -0.7] for x, y in REGIONS.values()]))
        body.rigid_logits.fill_(20)
        body.deformation.mix.weight.zero_()
        for code, parts in enumerate(moves):
            body.deformation.mix.weight[code, code] = 1
            for name, path in parts.items():
                body.deformation.position[code, list(REGIONS).index(name)] = torch.tensor(path)
    body.reference_rotation.copy_(torch.tensor([0.2, 0.4, 0.0]))
    return body.eval().requires_grad_(False)


def test_codes_are_named_by_what_they_move():
    body = face_with_codes(
        {"brows": [0, -0.1, 0], "jaw": [0, 0.01, 0]},
        {"lower lip": [0, 0.2, 0], "upper lip": [0, -0.05, 0]},
        {"lower lip": [0, 0.05, 0], "upper lip": [0, 0.05, 0], "mouth corners": [0.1, 0, 0]},
        {"eyes": [0, 0.02, 0], "jaw": [0.0, 0.1, 0.0]},
    )
    assert name_codes(body, 4) == ["brows", "mouth opening", "mouth corners", "eyes + jaw"]


def test_the_filming_camera_sees_what_was_filmed(body):
    body.K.copy_(torch.tensor([[100, 0, 40], [0, 110, 20], [0, 0, 1.0]]))
    point, angle = filming_camera(body, 7.0)
    assert np.allclose(body.K.numpy() @ point / 7, [SIZE / 2, SIZE / 2, 1]) and np.tan(angle / 2) == pytest.approx(32 / 110)


def test_the_state_is_edited_sought_and_reset(body):
    motion = synthetic_motion(10).numpy()
    puppet = Puppet(body, motion)
    puppet.edit(YAW, 0.5)
    assert puppet.now[YAW] == np.float32(0.5) and puppet.rest[YAW] == 0 and (puppet.now != puppet.rest).sum() == 1
    puppet.seek(13.7)
    assert np.array_equal(puppet.now, motion[3]) and puppet.frame == pytest.approx(3.7)
    puppet.edit(0, 9.0)
    assert motion[3, 0] != 9
    puppet.reset()
    assert np.array_equal(puppet.now, rest_pose(body)) and puppet.frame == 0


# ------------------------------------------------------------------------------------------------- the page


@pytest.fixture
def page(body):
    pytest.importorskip("viser", reason="needs viser (pip install 'difflistener[view]')")
    page = Page(body, synthetic_motion(50).numpy(), port=0)
    runner = threading.Thread(target=page.run)
    runner.start()
    yield page
    page.close()
    runner.join(5)
    assert not runner.is_alive()


def wait_until(happened, seconds=5.0):
    end = time.monotonic() + seconds
    while not happened() and time.monotonic() < end:
        time.sleep(0.02)
    assert happened()


def shows(page, motion, torso_follows=True):
    return np.allclose(page.splats.centers, pose(page.puppet.body, motion, torso_follows).centers, atol=1e-5)


def by_hand(slider, value):
    """What viser does when a person moves a slider."""
    slider.value = value
    for callback in slider._impl.update_cb:
        callback(SimpleNamespace(client=object(), target=slider))


def test_the_page_answers_on_this_machine_only(page):
    with urllib.request.urlopen(page.address, timeout=5) as answer:
        assert answer.status == 200 and b"<html" in answer.read(2000).lower()
    assert page.address.startswith("http://127.0.0.1:")
    port = page.server.get_port()
    with pytest.raises(UserError, match=f"127.0.0.1:{port} cannot be served at"):
        Page(page.puppet.body, None, port=port)
    with socket.socket() as other, pytest.raises(OSError):
        other.settimeout(1)
        other.connect(("127.0.0.2", port))


def test_sliders_pose_the_head(page):
    rest = page.puppet.rest
    assert shows(page, rest)
    slider, _ = page.sliders[YAW]
    by_hand(slider, 15.0)
    turned = rest.copy()
    turned[YAW] = np.radians(15)
    wait_until(lambda: shows(page, turned))
    by_hand(page.sliders[0][0], page.sliders[0][0].max)
    turned[0] = page.sliders[0][0].max
    wait_until(lambda: shows(page, turned))
    page._hold_torso(True)
    wait_until(lambda: shows(page, turned, torso_follows=False))
    page._hold_torso(False)
    page._reset()
    wait_until(lambda: shows(page, rest))
    assert slider.value == pytest.approx(0, abs=0.01)


def test_a_motion_is_sought_and_played(page):
    motion = page.puppet.motion
    by_hand(page.time, 0.4)
    wait_until(lambda: shows(page, motion[10]))
    assert page.sliders[YAW][0].value == pytest.approx(np.degrees(motion[10, YAW]), abs=0.01)
    begun, page.play.value = time.monotonic(), True
    time.sleep(0.5)
    by_hand(page.sliders[YAW][0], 5.0)
    assert not page.play.value
    played, elapsed = page.puppet.frame - 10, time.monotonic() - begun
    assert 0.4 * 25 * elapsed < played < 1.3 * 25 * elapsed + 1


def test_a_head_without_a_motion_has_a_page_too(body):
    pytest.importorskip("viser", reason="needs viser (pip install 'difflistener[view]')")
    page = Page(body, None, port=0)
    page._edit(YAW, 0.2)
    page._reset()
    page.close()
    page.run()


def test_an_address_of_another_machine_is_refused(body):
    pytest.importorskip("viser", reason="needs viser (pip install 'difflistener[view]')")
    with pytest.raises(UserError, match="192.0.2.1:8080 cannot be served at"):
        Page(body, None, host="192.0.2.1")


def test_a_missing_viser_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "viser", None)
    with pytest.raises(UserError) as error:
        view(View(tmp_path))
    assert 'pip install "difflistener[view]"' in error.value.remedy
