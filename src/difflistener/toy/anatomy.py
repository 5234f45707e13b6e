"""The shape of a toy head by formula: face, eyes' lids, mouth, ears, hair, neck and clothes as grids of points.

Knows nothing of pixels, colour, cameras or time. Axes: centimetres in the head's frame, x to the picture's
right, y up, z towards the viewer; the nose tip is near (0, -0.7, 7.4). Every part is a grid [rows, columns, 3];
rows run from the top down, columns from picture left to right, so that front faces turn the same way.

The eyes and the mouth are slits: two grid rows that lie on one curve while closed. Opening one moves the rows
apart, and the strip of quads between them is where the eyeball or the inside of the mouth shows.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.interpolate import PchipInterpolator

from .law import JAW_OPEN

EYE_X, EYE_Y, EYE_HALF = 3.15, 2.6, 1.42
LID_CENTRE_Z, LID_RADIUS, EYEBALL_RADIUS = 2.0, 1.75, 1.68
MOUTH_Y, MOUTH_HALF = -4.05, 2.45
JAW_HINGE = (0.3, -2.0)
"""y, z of the axis the jaw turns about."""
CROWN = 9.0
"""Height of the skull over the temples, which lie at y = 3."""
_SIDED = ("corner_down", "corner_up", "stretch", "upper_raise", "lower_depress", "dimple", "brow_raise", "inner_brow",
          "outer_brow", "brow_lower", "squint", "wide", "puff")
FURTHER = ("jaw_side", "jaw_forward", "pucker", "funnel", "press", "mouth_side", "chin_raise", "nose_wrinkle", "flare", "frown",
           *(f"{name}_{side}" for name in _SIDED for side in ("left", "right")))
"""What a face can do beyond the controls of a toy conversation, each about 0..1; jaw_side, jaw_forward and mouth_side go
both ways (positive to picture right, and forward). Left and right are the picture's."""


@dataclass(frozen=True)
class Shape:
    """Proportions of one character; 1 is average."""

    width: float = 1.0
    jaw: float = 1.0
    chin: float = 1.0
    nose: float = 1.0
    nose_width: float = 1.0
    lips: float = 1.0
    eyes: float = 1.0
    neck: float = 1.0
    shoulders: float = 1.0
    long_hair: bool = False


def smoothstep(low: float, high: float, x: np.ndarray) -> np.ndarray:
    """0 at `low`, 1 at `high` (which may be the smaller), smooth between."""
    s = np.clip((np.asarray(x) - low) / (high - low), 0, 1)
    return s * s * (3 - 2 * s)


def bump(x, y, centre_x, centre_y, sigma_x, sigma_y):
    """A Gaussian hill of height 1."""
    return np.exp(-0.5 * (((x - centre_x) / sigma_x) ** 2 + ((y - centre_y) / sigma_y) ** 2))


def both(x, y, centre_x, centre_y, sigma_x, sigma_y):
    """`bump` on both sides of the face."""
    return bump(np.abs(x), y, centre_x, centre_y, sigma_x, sigma_y)


def _profile(knots: dict[float, float]):
    heights = sorted(knots)
    curve = PchipInterpolator(heights, [knots[h] for h in heights])
    return lambda t: curve(np.clip(t, heights[0], heights[-1]))


_HALF_WIDTH = _profile(
    {-9.4: 5.5, -8.6: 5.85, -7.2: 6.25, -5.6: 6.6, -4.1: 6.85, -2.5: 7.05, 0.0: 7.25, 3.0: 7.35}
)
_FRONT = _profile(
    {-9.4: 3.0, -8.8: 3.75, -7.8: 4.2, -6.9: 4.2, -6.0: 4.25, -5.0: 4.55, -4.0: 4.8, -2.4: 4.95, 0.0: 4.85,
     2.4: 4.8, 3.6: 5.2, 5.0: 5.2}
)  # fmt: skip
_BACK = _profile({-9.4: 4.5, -5.0: 6.0, 0.0: 9.5, 3.0: 10.7})


def skull(phi: np.ndarray, t: np.ndarray, shape: Shape) -> np.ndarray:
    """The head without features: [...,3] at azimuth phi (0 in front, positive to picture right) and height t."""
    above = np.clip((t - 3.0) / CROWN, 0, 1)
    closing = np.sqrt(1 - above**2)
    jaw = 1 + (shape.jaw - 1) * smoothstep(-1.0, -7.0, t)
    half_width = _HALF_WIDTH(t) * closing * shape.width * jaw
    axis = -2.5 - 1.6 * above**2
    depth = np.where(np.cos(phi) >= 0, (_FRONT(t) + 2.5) * closing ** 0.82, _BACK(t) * closing)
    turned = np.minimum(np.abs(phi), 1.75)
    tilt = (2.2 * (1 - np.cos(1.25 * turned)) + 1.3 * smoothstep(0.5, 1.7, turned)) * smoothstep(-2.2, -9.3, t)
    chin = (shape.chin - 1) * np.minimum(t - MOUTH_Y, 0)
    return np.stack([half_width * np.sin(phi), t + tilt + chin, axis + depth * np.cos(phi)], -1)


def _rows_of_head() -> tuple[np.ndarray, int, int, int]:
    """Heights t of the head's rows, the upper row of the eye and of the mouth slit, and rows under the jaw."""
    crown = 3.0 + CROWN * np.sin(np.linspace(np.pi / 2, 0.55, 9))
    brow = np.linspace(crown[-1] - 0.35, 4.4, 9)
    lid = np.linspace(4.27, EYE_Y, 16)
    below = np.linspace(EYE_Y, EYE_Y - 1.2, 10)
    nose = np.linspace(EYE_Y - 1.4, -2.5, 21)
    upper_lip = np.linspace(-2.63, MOUTH_Y, 12)
    lower_lip = np.linspace(MOUTH_Y, MOUTH_Y - 1.3, 11)
    chin = np.linspace(MOUTH_Y - 1.5, -9.4, 15)
    eye = len(crown) + len(brow) + len(lid) - 1
    mouth = eye + len(below) + len(nose) + len(upper_lip)
    return np.concatenate([crown, brow, lid, below, nose, upper_lip, lower_lip, chin]), eye, mouth, 7


class Head:
    """The face and skull as one grid that opens, smiles and blinks."""

    def __init__(self, shape: Shape, columns: int = 113):
        u = np.linspace(-1, 1, columns)
        phi_of = PchipInterpolator([0, 0.45, 0.8, 1], [0, 0.66, 1.45, np.pi])
        phi = np.sign(u) * phi_of(np.abs(u))
        t, self.eye_row, self.mouth_row, under = _rows_of_head()
        phi_grid, t_grid = np.meshgrid(phi, t)
        base = skull(phi_grid, t_grid, shape)
        x, y, z = base[..., 0].copy(), base[..., 1].copy(), base[..., 2].copy()
        row = np.arange(len(t))[:, None]
        front = smoothstep(0.05, 0.45, np.cos(phi_grid))
        self.x, self.t, self.phi = x, t_grid, phi_grid

        # The closed slits are curves: the lids meet low on the eye, the lips in a shallow bow.
        q = np.clip((np.abs(x) - EYE_X) / (EYE_HALF * shape.eyes), -1, 1)
        arch = 1 - q**2
        tau = t_grid - EYE_Y
        close_curve = -0.34 * shape.eyes * arch**0.9 + 0.10 * q
        y += front * close_curve * np.exp(-np.abs(tau) ** 2 / 1.2)
        x_mouth = np.clip(np.abs(x) / MOUTH_HALF, 0, 1)
        bow = 0.06 * np.cos(x_mouth * np.pi * 1.5) * (1 - x_mouth)
        y += front * bow * np.exp(-((t_grid - MOUTH_Y) ** 2) / 0.8)

        z += front * self._relief(x, t_grid, row, shape)
        # The nose hangs over its base: a height field alone cannot hide the nostrils in a nod.
        y -= front * shape.nose * 0.46 * bump(x, t_grid, 0, -1.35, 1.15 * shape.nose_width, 0.48)
        w = np.hypot((np.abs(x) - EYE_X) / (1.68 * shape.eyes), np.where(tau > 0, tau / 1.35, tau / 0.95))
        self.lid_weight = smoothstep(1.15, 0.70, w) * front
        self.lid_rows = slice(self.eye_row - 15, self.eye_row + 11)

        fold = np.clip(1 - np.maximum(tau, 0) / 1.65, 0, 1) ** 1.3
        above_slit = row <= self.eye_row
        skew = 1 - 0.12 * q
        self.upper_lid = np.where(above_slit, (0.98 * arch**0.75 * skew) * fold, 0) * front * shape.eyes
        sag = np.clip(1 - np.maximum(-tau, 0) / 1.0, 0, 1) ** 1.5
        self.lower_lid = np.where(~above_slit, arch * sag, 0) * front
        rest = np.stack([x, y, z], -1)
        self._lay_on_eyeball(rest)
        self._expressions(rest, front, row)
        self.further = {name: field.astype(np.float32) for name, field in self._further(front, row).items()}
        self.rest, self.under = rest.astype(np.float32), under
        for name in ("smile", "brow", "opening", "jaw", "upper_lid", "lower_lid", "lid_weight", "x"):
            setattr(self, name, getattr(self, name).astype(np.float32))
        self.rows, self.columns = len(t) + under, columns
        self.neck_ring = np.stack(
            [4.6 * shape.neck * np.sin(phi), np.full(columns, -8.2), -3.4 + 4.4 * np.cos(phi)], -1
        ).astype(np.float32)

    def _relief(self, x, t, row, shape):
        """How far features stand out of the skull, in z."""
        ridge = _profile({-2.75: 0.0, -2.35: 0.2, -2.05: 0.75, -1.75: 1.45, -1.3: 2.0, -0.75: 2.3, -0.2: 2.15,
                          0.6: 1.6, 1.6: 1.0, 2.5: 0.55, 3.3: 0.2, 4.2: 0.0})(t)  # fmt: skip
        spread = _profile({-2.6: 0.95, -1.4: 0.98, -0.6: 0.86, 0.4: 0.68, 1.6: 0.60, 2.6: 0.66, 4.0: 1.2})(t)
        spread = spread * shape.nose_width
        z = shape.nose * ridge * np.exp(-0.72 * (np.abs(x) / spread) ** 2.0)
        z += 0.95 * both(x, t, 1.36 * shape.nose_width, -1.5, 0.44, 0.50)
        z -= 0.25 * both(x, t, 0.55 * shape.nose_width, -2.15, 0.25, 0.2)
        z -= 0.80 * both(x, t, EYE_X - 0.2, EYE_Y + 0.1, 1.75, 1.0)
        z -= 0.35 * both(x, t, 1.75, EYE_Y + 0.4, 0.55, 0.7)
        z += 0.36 * both(x, t, 2.9, 4.15, 1.8, 0.55) + 0.12 * bump(x, t, 0, 3.9, 1.2, 0.7)
        z += 0.50 * both(x, t, 4.5, -0.1, 1.6, 1.3)
        z -= 0.10 * both(x, t, 5.0, -4.0, 1.6, 1.8)
        z += 0.30 * both(x, t, 3.0, -1.6, 1.2, 1.2)
        z -= 0.22 * both(x, t, 2.55, -2.6, 0.35, 1.1)
        z += 0.35 * bump(x, t, 0, -4.0, 1.7, 1.5)
        z -= 0.10 * bump(x, t, 0, -3.0, 0.25, 0.5)
        z -= 0.30 * bump(x, t, 0, -5.75, 1.7, 0.45)
        z += 0.45 * bump(x, t, 0, -7.7, 1.3, 0.95)
        taper = np.clip(1 - (x / MOUTH_HALF) ** 2, 0, 1)
        upper, lower = self.lip_heights(x, shape)
        rise = t - MOUTH_Y
        up = np.clip(rise / np.maximum(upper, 0.05), 0, 1.6)
        down = np.clip(-rise / np.maximum(lower, 0.05), 0, 1.6)
        is_upper = row <= self.mouth_row
        roll = np.where(is_upper, 0.42 * np.sin(np.pi * (0.02 + 0.6 * up)) * (up < 1.6), 0.0)
        roll = np.where(is_upper, roll, 0.55 * np.sin(np.pi * (0.02 + 0.6 * down)) * (down < 1.6))
        z += np.maximum(roll, 0) * taper**0.6 * (0.6 + 0.4 * shape.lips)
        # The corners are tucked in.
        z -= 0.30 * both(x, t, MOUTH_HALF + 0.12, MOUTH_Y, 0.42, 0.35)
        z -= 0.30 * both(x, t, MOUTH_HALF + 0.2, MOUTH_Y, 1.0, 1.0)
        return z

    @staticmethod
    def lip_heights(x, shape):
        """Height of the red of the upper and the lower lip over x, cm."""
        s = np.clip(np.abs(x) / MOUTH_HALF, 0, 1)
        cupid = 1 + 0.16 * np.exp(-(((s - 0.22) / 0.14) ** 2)) - 0.12 * np.exp(-((s / 0.1) ** 2))
        upper = 0.70 * (1 - s**1.8) ** 0.9 * cupid
        lower = 0.92 * (1 - s**2.4) ** 0.9
        return upper * shape.lips, lower * shape.lips

    def _lay_on_eyeball(self, points):
        """Let the lids bulge over the eyeball, wherever on it they are; changes `points`."""
        rows = self.lid_rows
        p, w = points[rows], self.lid_weight[rows]
        away = (np.abs(p[..., 0]) - EYE_X) ** 2 + (p[..., 1] - EYE_Y) ** 2
        ball = LID_CENTRE_Z + np.sqrt(np.maximum(LID_RADIUS**2 - away, 0.3))
        p[..., 2] += w * (ball - p[..., 2])

    def _expressions(self, rest, front, row):
        """Displacement fields of the controls, from the closed, neutral face."""
        x, t = self.x, self.t
        side = np.sign(x)
        zero = np.zeros_like(x)
        corner = both(x, t, MOUTH_HALF + 0.15, MOUTH_Y, 1.15, 1.1) + 0.35 * both(x, t, 1.4, MOUTH_Y, 0.7, 0.7)
        cheek = both(x, t, 3.9, -1.3, 1.3, 1.2)
        pouch = both(x, t, 3.4, 0.9, 1.2, 0.6)
        wide = np.clip(np.abs(x) / MOUTH_HALF, 0, 1) ** 1.2
        is_upper = row <= self.mouth_row
        lips = np.exp(-np.abs(t - MOUTH_Y) / 0.9) * np.clip(1 - (x / (MOUTH_HALF - 0.2)) ** 2, 0, 1) ** 0.7
        part = np.where(is_upper, 0.16, -0.14) * lips
        self.smile = front[..., None] * np.stack(
            [side * (0.62 * corner * wide + 0.15 * cheek),
             0.72 * corner * wide**1.5 + 0.34 * cheek + 0.12 * pouch + part,
             -0.28 * corner * wide + 0.42 * cheek + 0.1 * pouch], -1)  # fmt: skip
        along = smoothstep(0.1, 1.4, np.abs(x)) * smoothstep(6.5, 4.5, np.abs(x))
        raised = np.exp(-0.5 * ((t - 4.5) / 0.85) ** 2) * along
        inner = 0.25 * np.exp(-0.5 * ((t - 4.6) / 0.8) ** 2) * np.exp(-((x / 1.0) ** 2))
        self.brow = front[..., None] * np.stack([zero, 0.75 * (raised + inner), 0.05 * raised], -1)

        smooth = smoothstep(-1.6, -6.2, t)
        within = np.clip(1 - (x / MOUTH_HALF) ** 2, 0, 1) ** 0.55
        near = within * np.exp(-np.abs(t - MOUTH_Y) / np.where(is_upper, 0.9, 2.2))
        self.jaw = smooth + near * (np.where(is_upper, 0.0, 1.0) - smooth)
        self.jaw = self.jaw * smoothstep(2.2, 1.2, np.abs(self.phi))
        open_up = np.where(is_upper, 0.10, 0.0) * lips
        self.opening = front[..., None] * np.stack([-side * 0.22 * corner * wide, open_up, zero], -1)

    def _further(self, front, row):
        """Displacement fields of `FURTHER`; `wide` and `squint` move the lids besides, see `points`."""
        x, t, rise = self.x, self.t, self.t - MOUTH_Y
        side, across, zero = np.sign(x), np.abs(x), np.zeros_like(x)
        right = smoothstep(-0.7, 0.7, x)
        is_upper = row <= self.mouth_row
        taper = np.clip(1 - (x / (MOUTH_HALF - 0.1)) ** 2, 0, 1) ** 0.7
        wide = np.clip(across / MOUTH_HALF, 0, 1) ** 1.2
        corner = both(x, t, MOUTH_HALF + 0.15, MOUTH_Y, 1.15, 1.1)
        around = np.exp(-((rise / 1.5) ** 2)) * smoothstep(5.0, 1.8, across)
        near = np.exp(-((rise / 0.7) ** 2)) * taper
        upper = np.where(is_upper, 1.0, 0.0) * np.exp(-np.maximum(rise, 0) / 1.3)
        lower = np.where(is_upper, 0.0, 1.0) * np.exp(-np.maximum(-rise, 0) / 1.2)
        cheek, wing = both(x, t, 3.9, -1.3, 1.3, 1.2), both(x, t, 1.3, -1.6, 0.7, 0.8)
        pouch = both(x, t, 3.3, 1.0, 1.4, 0.6)
        brow_row = np.exp(-0.5 * ((t - 4.4) / 0.85) ** 2)
        along = smoothstep(0.1, 1.4, across) * smoothstep(6.5, 4.5, across)
        inner, outer = brow_row * np.exp(-(((across - 1.5) / 1.1) ** 2)), brow_row * np.exp(-(((across - 4.3) / 1.2) ** 2))
        both_sides = {
            "corner_down": (0.12 * side * corner * wide, -0.60 * corner * wide, -0.1 * corner * wide),
            "corner_up": tuple(np.moveaxis(self.smile, -1, 0)),
            "stretch": (0.60 * side * corner * wide + 0.1 * side * cheek, -0.12 * corner * wide, -0.30 * corner * wide),
            "upper_raise": (zero, 0.50 * upper * taper + 0.22 * wing + 0.15 * cheek, 0.12 * upper * taper + 0.15 * cheek),
            "lower_depress": (zero, -0.50 * lower * taper, 0.06 * lower * taper),
            "dimple": (0.22 * side * corner * wide, 0.08 * corner * wide, -0.45 * corner * wide),
            "brow_raise": (zero, 0.75 * brow_row * along, 0.05 * brow_row * along),
            "inner_brow": (zero, 0.65 * inner, 0.05 * inner),
            "outer_brow": (zero, 0.60 * outer, zero),
            "brow_lower": (zero, -0.55 * brow_row * along, 0.10 * brow_row * along),
            "squint": (zero, 0.22 * pouch + 0.15 * cheek, 0.12 * pouch),
            "wide": (zero, zero, zero),
            "puff": (0.50 * side * both(x, t, 4.4, -3.6, 1.6, 1.6), zero,
                     0.80 * both(x, t, 3.9, -3.6, 1.7, 1.6) + 0.2 * np.where(is_upper, upper, lower) * taper),
        }  # fmt: skip
        jaw = smoothstep(-1.6, -6.2, t) + near * np.where(is_upper, -0.2, 0.4)
        jaw = np.clip(jaw, 0, 1) * smoothstep(2.2, 1.2, np.abs(self.phi))
        mouth = np.exp(-0.5 * (rise / 1.4) ** 2) * np.exp(-0.5 * (x / 2.6) ** 2)
        chin = bump(x, t, 0, -6.3, 1.5, 1.1)
        whole = {
            "jaw_side": (0.75 * jaw, zero, zero),
            "jaw_forward": (zero, zero, 0.70 * jaw),
            "pucker": (-0.36 * x * around, 0.22 * rise * near, 0.60 * mouth),
            "funnel": (-0.22 * x * around, np.where(is_upper, 0.30, -0.42) * np.where(is_upper, upper, lower) * taper, 0.55 * mouth),
            "press": (zero, -0.55 * rise * np.exp(-((rise / 0.9) ** 2)) * taper, -0.32 * near),
            "mouth_side": (0.60 * mouth, zero, zero),
            "chin_raise": (zero, 0.45 * chin + 0.30 * mouth * lower + 0.22 * mouth * upper, 0.12 * chin + 0.1 * mouth * lower),
            "nose_wrinkle": (zero, 0.32 * wing + 0.25 * upper * taper - 0.25 * inner + 0.12 * pouch, 0.1 * wing),
            "flare": (0.22 * side * wing, 0.05 * wing, zero),
            "frown": (-0.42 * side * inner, -0.38 * inner, 0.12 * inner),
        }  # fmt: skip
        for name, field in both_sides.items():
            whole |= {f"{name}_left": tuple(part * (1 - right) for part in field),
                      f"{name}_right": tuple(part * right for part in field)}  # fmt: skip
        return {name: front[..., None] * np.stack(whole[name], -1) for name in FURTHER}

    def points(self, mouth_open: float, smile: float, brow: float, blink: tuple[float, float], gaze_pitch: float,
               further: Mapping[str, float] | None = None):  # fmt: skip
        """[rows, columns, 3]; blink = (picture left eye, picture right eye), gaze_pitch in radians, down positive.

        `further` holds strengths of some of `FURTHER`; the rest is 0.
        """
        p = self.rest.copy()
        rows = self.lid_rows
        shut = np.where(self.x[rows] < 0, blink[0], blink[1])
        lower = 0.10 * shut + 0.05 * smile * (1 - shut)
        openness = np.maximum(1 - 0.05 * smile + 0.04 * brow - 0.3 * gaze_pitch, 0.3) * (1 - shut)
        both_lids = lower * (self.lower_lid[rows] + self.upper_lid[rows])
        if further:
            wide, squint = (np.where(self.x[rows] < 0, *(further.get(f"{name}_{side}", 0.0) for side in ("left", "right")))
                            for name in ("wide", "squint"))  # fmt: skip
            openness = np.maximum(openness + (0.30 * wide - 0.18 * squint) * (1 - shut), 0)
            p[rows, :, 1] += (0.30 * squint - 0.12 * wide) * (1 - shut) * self.lower_lid[rows]
        p[rows, :, 1] += openness * self.upper_lid[rows] + both_lids
        self._lay_on_eyeball(p)
        for name, strength in (further or {}).items():
            p += np.float32(strength) * self.further[name]
        p += smile * self.smile
        p += brow * self.brow
        p += mouth_open * self.opening
        angle = JAW_OPEN * mouth_open
        y, z = p[..., 1] - JAW_HINGE[0], p[..., 2] - JAW_HINGE[1]
        dy = self.jaw * (y * (np.cos(angle) - 1) - z * np.sin(angle))
        dz = self.jaw * (y * np.sin(angle) + z * (np.cos(angle) - 1))
        p[..., 1] += dy
        p[..., 2] += dz
        fraction = (np.arange(1, self.under + 1, dtype=np.float32) / self.under)[:, None, None]
        jawline = p[-1]
        below = jawline + (self.neck_ring - jawline) * fraction
        # The floor of the chin is round, not flat.
        below[..., 1] -= 0.7 * np.sin(np.pi * fraction[..., 0] * 0.9) * (0.3 + 0.7 * np.cos(self.phi[0]).clip(0))
        return np.concatenate([p, below])


def ear(shape: Shape, side: int) -> np.ndarray:
    """[9,25,3]; side -1 is picture left."""
    r = np.linspace(1, 0.04, 9)[:, None]
    psi = np.linspace(0, 2 * np.pi, 25)[None]
    across = r * np.cos(psi) * (1.45 + 0.35 * np.sin(psi)) + 1.1
    up = r * np.sin(psi) * 3.1 + 0.5
    lobe = smoothstep(-0.6, -2.6, up)
    across = across * (1 - 0.35 * lobe)
    helix = 0.42 * np.exp(-(((r - 0.86) / 0.10) ** 2)) - 0.25 * np.exp(-(((r - 0.62) / 0.12) ** 2)) * (1 - lobe)
    helix = helix + 0.25 * np.exp(-(((r - 0.42) / 0.1) ** 2)) - 0.5 * np.exp(-((r / 0.25) ** 2)) + 0 * psi
    flare = 0.46
    outward = 7.0 * shape.width + np.sin(flare) * across + np.cos(flare) * helix
    backward = -2.6 - np.cos(flare) * across + np.sin(flare) * helix - 0.12 * up
    points = np.stack([side * outward, up, backward], -1)
    return points if side > 0 else points[:, ::-1]


def neck(shape: Shape) -> tuple[np.ndarray, np.ndarray]:
    """[14,49,3] and its weight [14,49,1] of following the head."""
    phi = np.linspace(-np.pi, np.pi, 49)[None]
    y = np.linspace(-4.5, -15.5, 14)[:, None]
    flare = smoothstep(-10.5, -15.5, y)
    half = (5.0 + 2.2 * flare) * shape.neck
    depth = (4.9 + 1.3 * flare) * shape.neck
    throat = 0.35 * np.exp(-((phi / 0.35) ** 2)) * np.exp(-(((y + 10.5) / 1.2) ** 2))
    cords = 0.25 * np.exp(-(((np.abs(phi) - 0.55 + 0.05 * (y + 9)) / 0.16) ** 2)) * smoothstep(-8, -12, y)
    z = -3.9 - 0.6 * flare + (depth + throat + cords) * np.cos(phi)
    points = np.stack([half * np.sin(phi), np.broadcast_to(y, z.shape) + 0.0 * phi, z], -1)
    return points, np.broadcast_to(smoothstep(-14.0, -6.5, y)[..., None], (14, 49, 1)).copy()


def torso(shape: Shape) -> np.ndarray:
    """[26,73,3]: from inside the collar over the shoulders down out of the picture."""
    phi = np.linspace(-np.pi, np.pi, 73)[None]
    s = np.linspace(0, 1, 26)[:, None]
    knots = [0, 0.06, 0.12, 0.3, 0.5, 0.66, 0.8, 1.0]
    y = PchipInterpolator(knots, [-12.9, -12.2, -12.6, -14.2, -16.0, -18.6, -23.0, -38.0])(s)
    half = PchipInterpolator(knots, [5.9, 6.35, 6.8, 10.5, 16.5, 20.0, 21.2, 21.5])(s) * shape.shoulders
    depth = PchipInterpolator(knots, [5.6, 6.0, 6.4, 7.2, 8.4, 9.6, 10.4, 10.8])(s)
    dip = 1.5 * np.maximum(np.cos(phi), 0) ** 2 * (1 - smoothstep(0.12, 0.5, s))
    folds = 0.16 * np.sin(7 * phi + 9 * s) * smoothstep(0.2, 0.6, s)
    return np.stack(
        [half * np.sin(phi), y - dip - 1.8 * smoothstep(0.2, 0.5, s) * np.maximum(np.cos(phi), 0),
         -4.3 + (depth + folds) * np.cos(phi)], -1)  # fmt: skip


def hair(shape: Shape, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """[32,121,3] from the crown to the hairline or the tips, and its weight [32,121,1] of following the head."""
    phi = np.linspace(-np.pi, np.pi, 121)
    a = np.abs(phi)
    locks = np.zeros_like(phi)
    for count in (9, 17, 31):
        locks += np.sin(count * phi + generator.uniform(0, 2 * np.pi)) / count**0.6
    v = np.linspace(0, 1, 32)[:, None]
    if shape.long_hair:
        parting = np.interp(phi, [-0.9, -0.28, 0.05, 0.9], [5.6, 7.9, 7.3, 5.4])
        tips = -13.2 + 0.7 * locks + 0.8 * np.cos(phi)
        edge = parting + (tips - parting) * smoothstep(0.86, 1.22, a)
        edge = edge + 0.1 * locks * smoothstep(0.2, 0.6, a)
    else:
        azimuths = [0, 0.35, 0.75, 0.98, 1.12, 1.3, 1.42, 1.6, 2.1, np.pi]
        side = np.interp(a, azimuths, [7.5, 7.7, 6.7, 5.0, 3.6, 1.0, 0.4, 3.4, -2.4, -5.4])
        edge = side + 0.12 * locks
    theta = np.arcsin(np.clip((np.maximum(edge, 3.0) - 3.0) / CROWN, 0, 1))
    length_above = np.pi / 2 - theta
    length_below = np.maximum(3.0 - edge, 0) / CROWN
    along = v * (length_above + length_below)[None]
    beyond = np.maximum(along - np.pi / 2, 0)
    t = 3.0 + CROWN * (np.cos(np.minimum(along, np.pi / 2)) - beyond)
    phi_grid = np.broadcast_to(phi, t.shape)
    base = skull(phi_grid, np.maximum(t, -2.0 if shape.long_hair else -6.0), shape)
    base[..., 1] = np.where(t < base[..., 1], t, base[..., 1]) if shape.long_hair else base[..., 1]
    strands = 0.10 * np.sin(31 * phi_grid + 5 * v) + 0.07 * np.sin(43 * phi_grid - 3 * v)
    if shape.long_hair:
        volume = 1.25 * smoothstep(0, 0.25, 1 - v) * smoothstep(2.6, 1.0, a)[None] + 0.35
        volume = np.where(a[None] > 0.9, 1.35, volume)
        volume = volume + 0.5 * np.exp(-(((phi_grid + 0.5) / 0.5) ** 2)) * smoothstep(1.0, 0.6, v)
        hang = smoothstep(3.0, -4.0, t)
        spread = 0.9 * hang + 0.55 * np.sin(0.9 * t + 1.3 * np.sin(3 * phi_grid)) * hang * 0.5
        spread = spread - 1.5 * smoothstep(-9.0, -13.5, t)
    else:
        volume = 0.18 + (1.25 * smoothstep(5.0, 8.6, t) + 0.45 * smoothstep(1.5, 4.5, t)) * smoothstep(1.0, 0.86, v)
        volume = volume + 0.7 * smoothstep(6.5, 8.5, t) * np.exp(-((phi_grid / 0.8) ** 2)) * smoothstep(1.0, 0.93, v)
        volume = np.where(a[None] > 1.5, np.maximum(volume, 0.5 * smoothstep(1, 0.9, v) + 0.15), volume)
        spread = np.zeros_like(t)
    # All columns meet at the crown.
    volume = 1.25 + (volume - 1.25) * smoothstep(0.0, 0.35, v)
    push = volume + spread + strands * smoothstep(0.1, 0.45, v)
    rise = np.clip((t - 3.0) / CROWN, 0, 1)
    side = np.sqrt(1 - rise**2)
    points = base + push[..., None] * np.stack([np.sin(phi_grid) * side, rise, np.cos(phi_grid) * side], -1)
    weight = smoothstep(-15.0, -5.0, points[..., 1])[..., None]
    return points, weight
