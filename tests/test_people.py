"""Random people: do the further expressions do what their names say, and is what ships made of them?"""

import numpy as np
import pytest
from safetensors import safe_open

from difflistener import toy
from difflistener.basis import LandmarkBasis
from difflistener.shipped import SHIPPED
from difflistener.toy import people
from difflistener.toy.anatomy import EYE_X, EYE_Y, FURTHER, MOUTH_HALF, MOUTH_Y, Head, Shape
from difflistener.toy.face import Renderer

SPEAKER, LISTENER = (157.80876, 52.86604), (162.52227, 49.13786)
"""Mean and deviation of five pictures each."""
BASIS_ID = "landmark:b40d8429836a"


@pytest.fixture(scope="module")
def head():
    return Head(Shape())


def _moved(head, **strengths):
    """Displacement [rows, columns, 3] of the head's own grid from rest with open eyes."""
    rest = head.points(0, 0, 0, (0, 0), 0)
    return (head.points(0, 0, 0, (0, 0), 0, strengths) - rest)[: len(head.t)]


def _near(head, x, y):
    """Grid index of the point of the face nearest to (x, y)."""
    away = (head.x - x) ** 2 + (head.t - y) ** 2 + 100 * (np.abs(head.phi) > 1.5)
    return np.unravel_index(away.argmin(), away.shape)


def _lip(head, x, lower):
    row = head.mouth_row + lower
    return row, np.argmin(np.abs(head.x[row] - x) + 100 * (np.abs(head.phi[row]) > 1.5))


def _lid(head, x, lower):
    row = head.eye_row + lower
    return row, np.argmin(np.abs(head.x[row] - x) + 100 * (np.abs(head.phi[row]) > 1.5))


# Expression -> points (x, y of the grid), axis (0 right, 1 up, 2 to the viewer), sign.
POINTS = {
    "jaw_side": [((0, -7.5), 0, 1)], "jaw_forward": [((0, -7.5), 2, 1)], "chin_raise": [((0, -6.3), 1, 1)],
    "pucker": [((-MOUTH_HALF, MOUTH_Y), 0, 1), ((MOUTH_HALF, MOUTH_Y), 0, -1), ((0, MOUTH_Y), 2, 1)],
    "mouth_side": [((0, MOUTH_Y), 0, 1)], "press": [((0, MOUTH_Y + 0.6), 1, -1), ((0, MOUTH_Y - 0.6), 1, 1)],
    "nose_wrinkle": [((1.3, -1.6), 1, 1), ((-1.3, -1.6), 1, 1)], "flare": [((1.3, -1.6), 0, 1), ((-1.3, -1.6), 0, -1)],
    "frown": [((1.5, 4.4), 0, -1), ((-1.5, 4.4), 0, 1), ((1.5, 4.4), 1, -1)],
    "corner_down_left": [((-MOUTH_HALF, MOUTH_Y), 1, -1)], "corner_up_left": [((-MOUTH_HALF, MOUTH_Y), 1, 1)],
    "stretch_left": [((-MOUTH_HALF, MOUTH_Y), 0, -1)], "stretch_right": [((MOUTH_HALF, MOUTH_Y), 0, 1)],
    "dimple_left": [((-MOUTH_HALF, MOUTH_Y), 2, -1)], "brow_raise_right": [((3, 4.4), 1, 1)],
    "inner_brow_left": [((-1.5, 4.4), 1, 1)], "outer_brow_left": [((-4.3, 4.4), 1, 1)], "brow_lower_left": [((-3, 4.4), 1, -1)],
    "squint_left": [((-EYE_X, 1.0), 1, 1)], "puff_left": [((-3.9, -3.6), 2, 1), ((-4.4, -3.6), 0, -1)],
}  # fmt: skip


@pytest.mark.parametrize("name", POINTS)
def test_an_expression_moves_what_it_names(head, name):
    moved = _moved(head, **{name: 1.0})
    for (x, y), axis, sign in POINTS[name]:
        assert sign * moved[_near(head, x, y)][axis] > 0.1, (x, y)


def test_lips_part_and_lids_narrow(head):
    for name, lower, sign in (("upper_raise_left", 0, 1), ("lower_depress_left", 1, -1)):
        moved = _moved(head, **{name: 1.0})
        assert sign * moved[_lip(head, -1.0, lower)][1] > 0.2
        assert abs(moved[_lip(head, -1.0, 1 - lower)][1]) < 0.02
    funnel = _moved(head, funnel=1.0)
    assert funnel[_lip(head, 0, 0)][1] > 0.1 and funnel[_lip(head, 0, 1)][1] < -0.1
    for name, sign in (("wide_left", 1), ("squint_left", -1)):
        moved = _moved(head, **{name: 1.0})
        opening = moved[_lid(head, -EYE_X, 0)][1] - moved[_lid(head, -EYE_X, 1)][1]
        assert sign * opening > 0.2
    # A shut eye stays shut.
    shut = head.points(0, 0, 0, (1, 1), 0, {"wide_left": 1.0, "squint_right": 1.0})
    for x in (-EYE_X, EYE_X):
        (row, column), (below, _) = _lid(head, x, 0), _lid(head, x, 1)
        assert abs(shut[row, column, 1] - shut[below, column, 1]) < 0.06


def test_sides_are_apart_and_mirror_each_other(head):
    for name in (name.removesuffix("_left") for name in FURTHER if name.endswith("_left")):
        left, right = _moved(head, **{f"{name}_left": 1.0}), _moved(head, **{f"{name}_right": 1.0})
        assert np.abs(left[:, ::-1] * [-1, 1, 1] - right).max() < 1e-4, name
        assert np.abs(left[head.x > 1]).max() < 1e-6, name
        assert np.abs(left).max() > 0.1, name


def test_the_forehead_and_the_back_of_the_head_stay(head):
    for name in FURTHER:
        moved = _moved(head, **{name: 1.0})
        assert np.abs(moved[np.abs(head.phi) > 2.3]).max() < 1e-6, name
        assert np.abs(moved[_near(head, 0, 7.5)]).max() < 0.02, name
        assert np.abs(moved[_near(head, 0, EYE_Y)]).max() < 0.1, name


def test_at_rest_nothing_changes(head):
    asked = 0.4, 0.6, 0.3, (0.2, 0.1), 0.05
    plain = head.points(*asked)
    assert np.array_equal(plain, head.points(*asked, {}))
    assert np.allclose(plain, head.points(*asked, dict.fromkeys(FURTHER, 0.0)), atol=1e-6)
    renderer = Renderer(toy.CHARACTERS["listener"], toy.Camera(64))
    controls = toy.Controls.neutral(1)
    assert np.array_equal(renderer.draw(controls, 0), renderer.draw(controls, 0, {}))
    assert not np.array_equal(renderer.draw(controls, 0), renderer.draw(controls, 0, {"pucker": 1.0}))


def test_pictures_of_the_two_characters_are_what_they_were():
    # Drawn before there were further expressions; bodies and baselines were measured on these pictures.
    pair = toy.make_pair(0.2, 4)
    for role, mean, deviation in (("speaker", *SPEAKER), ("listener", *LISTENER)):
        seen = np.stack(list(toy.render(role, getattr(pair, role), 64)))
        assert (seen.mean(), seen.std()) == pytest.approx((mean, deviation), abs=1e-3), role


def test_people_differ_and_are_drawn_again():
    def draw(seed):
        return people.draw_person(np.random.default_rng(seed))

    assert draw(1) == draw(1)
    many = [draw(seed) for seed in range(40)]
    skins = np.array([person.look.skin for person in many])
    assert np.ptp(skins.mean(1)) > 100 and len({person.look.hair for person in many}) > 30
    assert len({person.shape.long_hair for person in many}) == 2
    assert np.ptp([person.shape.nose for person in many]) > 0.3


def test_a_broad_actor_uses_the_whole_face_and_rests_between():
    acting = people.act_broadly(3000, np.random.default_rng(0))
    assert acting.strengths.shape == (3000, len(FURTHER)) and acting.strengths.dtype == np.float32
    strong = np.abs(acting.strengths).max(0)
    assert (strong > 0.2).mean() > 0.9 and strong.max() <= 1.4
    assert (np.abs(acting.strengths) < 0.05).mean() > 0.4
    controls = acting.controls
    assert controls.mouth_open.max() > 0.6 and controls.smile.max() > 0.6 and (controls.blink.max(0) == 1).all()
    assert 5 < np.rad2deg(controls.rotation[:, 1].std()) < 25
    # Winks: the eyes are not always alike.
    assert np.abs(controls.blink[:, 0] - controls.blink[:, 1]).max() > 0.5
    # Smooth in time, but for lids and a talking mouth.
    assert np.abs(np.diff(acting.strengths, axis=0)).mean() < 0.05
    again = people.act_broadly(3000, np.random.default_rng(0))
    assert np.array_equal(again.strengths, acting.strengths) and np.array_equal(again.controls.gaze, controls.gaze)


def test_doings_are_independent_and_still_first():
    acting, doings = people.do_doings(12_000, 500, people.draw_manner(np.random.default_rng(1)), np.random.default_rng(0))
    assert doings.shape == (12_000, 6) and not doings[:500].any() and not acting.strengths[:500].any()
    assert acting.controls.rotation[:500].std(0).min() > np.deg2rad(0.5)
    together = np.corrcoef(doings[500:].T) - np.eye(6)
    assert np.abs(together).max() < 0.12 and (doings[500:].std(0) > 0.05).all()
    assert np.allclose(doings[:, 0], acting.controls.smile) and np.allclose(doings[:, 3:5], acting.controls.gaze)


def test_a_film_shows_the_person():
    generator = np.random.default_rng(3)
    person = people.draw_person(generator)
    frames = list(people.film(person, people.act_broadly(3, generator), 64, generator))
    again = np.random.default_rng(3)
    same = list(people.film(people.draw_person(again), people.act_broadly(3, again), 64, again))
    assert all(frame.shape == (64, 64, 3) and frame.dtype == np.uint8 for frame in frames)
    assert np.array_equal(frames, same)


def test_the_shipped_basis_is_the_recorded_one():
    basis = LandmarkBasis.load(SHIPPED / "basis.safetensors")
    with safe_open(SHIPPED / "basis.safetensors", "numpy") as file:
        assert file.metadata()["id"] == basis.id == BASIS_ID
    weight = np.repeat(basis.weights, 3)
    assert np.allclose((basis.components * weight**2) @ basis.components.T, np.eye(44), atol=1e-3)
    assert (basis.posture_std > 0.005).all() and (basis.posture_std < 0.5).all()


def test_the_shipped_doings_belong_to_the_shipped_basis():
    with safe_open(SHIPPED / "doings.safetensors", "numpy") as file:
        assert file.metadata()["basis"] == BASIS_ID
        directions, rest, spread = (file.get_tensor(name) for name in ("directions", "rest", "spread"))
    assert len(directions) >= 25 and directions.shape[1:] == (50, 6)
    assert rest.shape == spread.shape == directions.shape[:2]
    assert not directions[:, 44:].any() and np.isfinite(directions).all() and (np.abs(rest) < 3).all() and (spread >= 0).all()
