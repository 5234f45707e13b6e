"""Draws a toy character: controls in, pictures out. Independent of the project's Gaussian body.

Knows nothing of time, speech or files. Axes: OpenCV camera (x right, y down, z forward), metres outside,
centimetres inside; a face that looks at the camera looks along -z. "Left" eye means the picture's left.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from . import anatomy, paint, raster
from .anatomy import Shape
from .law import NECK_PIVOT, Controls
from .paint import Look

HEAD_DISTANCE = 0.86
"""Metres from the camera to the head's origin at rest."""
REST = np.array([0.0, -1.9, 100 * HEAD_DISTANCE], np.float32)
"""Head's origin at rest, camera axes, centimetres."""
FLIP = np.array([1, -1, -1], np.float32)
"""Anatomy axes (y up, z to the viewer) to OpenCV axes; it is its own inverse."""
SKIN, NECK, EAR, HAIR, CLOTH, EYE, MOUTH = range(7)
NEARER = {SKIN: 0.0, NECK: -2.5, EAR: -0.4, HAIR: 0.7, CLOTH: 0.6, EYE: -0.6, MOUTH: -0.6}
"""Centimetres by which a kind of part wins over its surroundings in drawing order."""
_unit = lambda *v: (np.array(v) / np.linalg.norm(v)).astype(np.float32)  # noqa: E731
KEY_LIGHT = _unit(-0.50, -0.62, -0.75)
FILL_LIGHT = _unit(0.85, -0.10, -0.45)
KEY_COLOR = np.array([0.98, 0.92, 0.85], np.float32)
FILL_COLOR = np.array([0.26, 0.29, 0.34], np.float32)
AMBIENT = np.array([0.245, 0.235, 0.245], np.float32)


@dataclass(frozen=True)
class Camera:
    """Square picture, principal point in its centre."""

    size: int = 256
    """Width and height in pixels."""
    focal: float = 2.2
    """Focal length as a multiple of `size`."""

    @property
    def K(self) -> np.ndarray:
        """[3,3] float64 intrinsics."""
        f, c = self.focal * self.size, self.size / 2
        return np.array([[f, 0, c], [0, f, c], [0, 0, 1.0]])


def intrinsics(size: int) -> tuple[np.ndarray, float]:
    """K [3,3] of the default camera at this picture size, and the head's distance at rest in metres."""
    return Camera(size).K, HEAD_DISTANCE


@dataclass(frozen=True)
class Character:
    """Who is drawn: proportions, colours, and the seed of the skin's and hair's details."""

    name: str
    shape: Shape
    look: Look
    seed: int = 0


CHARACTERS = {
    "speaker": Character(
        "speaker",
        Shape(width=0.955, jaw=0.95, chin=0.97, nose=0.90, nose_width=0.90, lips=1.12, eyes=1.07, neck=0.84,
              shoulders=0.88, long_hair=True),
        Look(skin=(243, 205, 183), lip=(203, 96, 98), hair=(108, 58, 36), brow=(98, 58, 42), iris=(86, 122, 92),
             cloth=(38, 112, 118), background=((206, 214, 214), (150, 164, 170)), freckles=1.0, brow_weight=0.72,
             lashes=1.0),
        seed=11,
    ),
    "listener": Character(
        "listener",
        Shape(width=1.0, jaw=1.04, chin=1.05, nose=1.06, nose_width=1.06, lips=0.92, eyes=0.98, neck=1.0),
        Look(skin=(216, 164, 130), lip=(176, 98, 88), hair=(42, 32, 28), brow=(36, 27, 24), iris=(84, 54, 34),
             cloth=(52, 66, 104), background=((222, 212, 196), (172, 156, 140)), stubble=0.55, brow_weight=0.95,
             lashes=0.75, stripes=True),
        seed=5,
    ),
}  # fmt: skip


def rotation_matrix(axis_angle: np.ndarray) -> np.ndarray:
    """Rodrigues: axis-angle [3] radians -> [3,3]."""
    angle = float(np.linalg.norm(axis_angle))
    if angle < 1e-9:
        return np.eye(3)
    x, y, z = np.asarray(axis_angle, float) / angle
    skew = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * skew + (1 - np.cos(angle)) * skew @ skew


@dataclass
class _Part:
    kind: int
    points: np.ndarray
    follow: np.ndarray | float
    texture: np.ndarray
    two_sided: bool = False
    first: int = 0
    """Its first vertex in the list of all."""


class Renderer:
    """One character at one picture size; everything that does not move is made once."""

    def __init__(self, character: Character, camera: Camera):
        import torch

        self.character, self.camera = character, camera
        shape, look = character.shape, character.look
        generator = np.random.default_rng(character.seed)
        texels = float(np.clip(camera.size / 100, 2.5, 6))
        self.head = anatomy.Head(shape)
        neutral = self.head.points(0, 0, 0, (0, 0), 0)
        neck_points, neck_follow = anatomy.neck(shape)
        hair_points, hair_follow = anatomy.hair(shape, generator)
        cloth_points = anatomy.torso(shape)
        # Long hair covers the ears.
        ears = [] if shape.long_hair else [anatomy.ear(shape, side) for side in (-1, 1)]
        self.parts = [
            _Part(SKIN, neutral, 1.0, paint.face(self.head, shape, look, texels, generator)),
            _Part(NECK, neck_points, neck_follow, paint.neck(neck_points, look, texels, generator)),
            *(_Part(EAR, e, 1.0, paint.ear(e, look, texels, generator), two_sided=True) for e in ears),
            _Part(CLOTH, cloth_points, 0.0, paint.cloth(cloth_points, look, texels, generator)),
            _Part(HAIR, hair_points, hair_follow, paint.hair(hair_points, look, texels, generator), shape.long_hair),
        ]
        self._lay_out(texels)
        self.atlas = torch.from_numpy(np.ascontiguousarray(self.atlas_image.transpose(2, 0, 1)))[None]
        self.background = self._backdrop(look, generator)
        self.iris = paint.linear(look.iris)

    def _lay_out(self, texels):
        """Textures into one atlas; grids into one list of vertices and triangles."""
        width = max(p.texture.shape[1] for p in self.parts) + 2
        height = sum(p.texture.shape[0] + 2 for p in self.parts)
        self.atlas_image = np.zeros((height, width, 4), np.float32)
        top, first, triangles, kinds, two_sided, atlas_at = 0, 0, [], [], [], []
        for part in self.parts:
            h, w = part.texture.shape[:2]
            padded = np.pad(part.texture, ((1, 1), (1, 1), (0, 0)), mode="edge")
            self.atlas_image[top : top + h + 2, : w + 2] = padded
            rows, columns = part.points.shape[:2]
            v = top + 1 + np.linspace(0, h - 1, rows)
            u = 1 + np.linspace(0, w - 1, columns)
            at = np.stack(np.broadcast_arrays(u[None], v[:, None]), -1).reshape(-1, 2)
            # To the -1..1 of grid_sample with align_corners=False.
            atlas_at.append((at + 0.5) / np.array([width, height]) * 2 - 1)
            index = first + np.arange(rows * columns).reshape(rows, columns)
            a, b, c, d = index[:-1, :-1], index[:-1, 1:], index[1:, :-1], index[1:, 1:]
            kind = np.full(a.shape, part.kind)
            if part.kind == SKIN:
                self._mark_slits(kind)
            faces = np.stack([np.stack([a, b, c], -1), np.stack([b, d, c], -1)], -2)
            faces, kind = faces[self._ever_seen(part)], kind[self._ever_seen(part)]
            triangles.append(faces.reshape(-1, 3))
            kinds.append(np.repeat(kind.reshape(-1), 2))
            two_sided.append(np.full(faces.size // 3, part.two_sided))
            part.first = first
            first += rows * columns
            top += h + 2
        self.triangles = np.concatenate(triangles).astype(np.int32)
        self.kinds = np.concatenate(kinds)
        self.two_sided = np.concatenate(two_sided)
        self.atlas_at = np.concatenate(atlas_at).astype(np.float32)
        self.nearer = np.array([NEARER[k] for k in range(7)], np.float32)[self.kinds]
        self.follow = np.concatenate(
            [np.broadcast_to(p.follow, (*p.points.shape[:2], 1)).reshape(-1, 1) for p in self.parts]
        ).astype(np.float32)
        self.local = np.concatenate([p.points.reshape(-1, 3) for p in self.parts]).astype(np.float32)
        self.slit_across = np.zeros(len(self.local), np.float32)
        columns = self.head.columns
        for row in (self.head.eye_row, self.head.mouth_row):
            self.slit_across[(row + 1) * columns : (row + 2) * columns] = 1.0

    def _ever_seen(self, part):
        """[rows-1, columns-1] bool: quads that some pose of a conversation may turn to the camera."""
        middle = part.points[:-1, :-1]
        if part.kind == SKIN:
            head = self.head
            under_hair = (np.abs(head.phi[0, :-1]) > 1.95)[None] | (middle[..., 1] > 9.2)
            return ~under_hair
        if part.kind in (NECK, CLOTH) or (part.kind == HAIR and not part.two_sided):
            return middle[..., 2] > -9.0
        return np.ones(middle.shape[:2], bool)

    def _mark_slits(self, kind):
        x = self.head.x
        eye, mouth = self.head.eye_row, self.head.mouth_row
        middle = 0.5 * (x[eye, :-1] + x[eye, 1:])
        half = anatomy.EYE_HALF * self.character.shape.eyes
        front = np.abs(self.head.phi[0, :-1]) < 1.5
        kind[eye, (np.abs(np.abs(middle) - anatomy.EYE_X) < half + 0.2) & front] = EYE
        middle = 0.5 * (x[mouth, :-1] + x[mouth, 1:])
        kind[mouth, (np.abs(middle) < anatomy.MOUTH_HALF + 0.2) & front] = MOUTH

    def _backdrop(self, look, generator):
        """[size,size,3] linear: a soft gradient with out-of-focus lights."""
        n = self.camera.size
        y, x = np.mgrid[0:n, 0:n].astype(np.float32) / n
        inner, outer = (paint.linear(c) for c in look.background)
        away = np.clip(np.hypot(x - 0.42, (y - 0.38) * 0.9) / 0.75, 0, 1)[..., None]
        image = inner + (outer - inner) * anatomy.smoothstep(0, 1, away)
        for _ in range(7):
            cx, cy, r = generator.uniform(0, 1), generator.uniform(0, 0.9), generator.uniform(0.05, 0.12)
            disc = anatomy.smoothstep(r, r * 0.72, np.hypot(x - cx, y - cy))
            image *= 1 + generator.uniform(0.03, 0.08) * disc[..., None]
        return image.astype(np.float32)

    def _normals(self, points):
        """[V,3] unit vertex normals in anatomy axes turned to the camera, one grid at a time."""
        normals = np.empty_like(points)
        for part in self.parts:
            rows, columns = part.points.shape[:2]
            where = slice(part.first, part.first + rows * columns)
            grid = points[where].reshape(rows, columns, 3)
            step_u = np.empty_like(grid)
            step_v = np.empty_like(grid)
            step_u[:, 1:-1] = grid[:, 2:] - grid[:, :-2]
            # Grids that go all the way round meet at the back.
            step_u[:, 0] = step_u[:, -1] = grid[:, 1] - grid[:, -2]
            step_v[1:-1] = grid[2:] - grid[:-2]
            step_v[0], step_v[-1] = grid[1] - grid[0], grid[-1] - grid[-2]
            if part.kind == SKIN:
                for row in (self.head.eye_row, self.head.mouth_row):
                    # Across an open slit the two sides know nothing of each other.
                    above, below = grid[row] - grid[row - 1], grid[row + 2] - grid[row + 1]
                    open_ = np.clip(4 * np.linalg.norm(grid[row + 1] - grid[row], axis=-1, keepdims=True), 0, 1)
                    step_v[row] = above + (1 - open_) * below
                    step_v[row + 1] = below + (1 - open_) * above
            normal = np.cross(step_u.reshape(-1, 3), step_v.reshape(-1, 3))
            normals[where] = normal / (np.linalg.norm(normal, axis=1, keepdims=True) + 1e-6)
        return -normals

    def draw(self, controls: Controls, index: int, further: Mapping[str, float] | None = None) -> np.ndarray:
        """Frame `index` of the controls: [size,size,3] uint8 RGB; `further` are strengths of some of `anatomy.FURTHER`."""
        camera, c = self.camera, controls
        size, focal, centre = camera.size, camera.focal * camera.size, camera.size / 2
        blink = c.blink[index]
        local = self.local
        face = self.head.points(
            float(c.mouth_open[index]), float(c.smile[index]), float(c.brow[index]),
            (float(blink[0]), float(blink[1])), float(c.gaze[index, 1]), further,
        )  # fmt: skip
        local[: face.size // 3] = face.reshape(-1, 3)

        turn = rotation_matrix(c.rotation[index]).astype(np.float32)
        shift = 100 * c.translation[index].astype(np.float32)
        flipped = local * FLIP
        turned = flipped @ turn.T + shift + REST
        pivot = 100 * np.array(NECK_PIVOT, np.float32)
        carried = flipped + REST + (turn @ pivot + shift - pivot)
        points = carried + self.follow * (turned - carried)
        xy = focal * points[:, :2] / points[:, 2:] + centre

        tri = self.triangles
        corners = xy[tri]
        e1, e2 = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
        area = e1[:, 0] * e2[:, 1] - e1[:, 1] * e2[:, 0]
        kept = np.flatnonzero((area > 1e-6) | (self.two_sided & (np.abs(area) > 1e-6)))
        depth = points[:, 2][tri[kept]].mean(1)
        kept = kept[np.argsort(self.nearer[kept] - depth, kind="stable")]
        tri, behind, kind = tri[kept], area[kept] < 0, self.kinds[kept]

        seen = raster.visible_triangles(2 * xy, tri, 2 * size, 2 * size)
        used, seen = _compact(seen, len(tri))
        tri, behind, kind = tri[used], behind[used], kind[used]
        light = self._light(points)
        attributes = np.concatenate([self.atlas_at, light, self.slit_across[:, None]], 1)
        rows = raster.planes(xy, tri, attributes).astype(np.float32, copy=False)
        for first in (4, 10, 16):
            rows[behind, first : first + 3] *= 0.35
        pose = (turn, shift + REST, c.gaze[index], c.mouth_open[index])
        return self._resolve(seen, rows, kind, points[:, 2][tri].mean(1), pose)

    def _light(self, points):
        """[V,3]: key, fill and gloss at each vertex."""
        normal = self._normals(points)
        to_eye = -points / np.linalg.norm(points, axis=1, keepdims=True)
        key = normal @ KEY_LIGHT
        half = to_eye + KEY_LIGHT
        half /= np.linalg.norm(half, axis=1, keepdims=True)
        gloss = np.maximum((normal * half).sum(1), 0) ** 22
        rim = (1 - np.maximum((normal * to_eye).sum(1), 0)) ** 3
        wrapped = np.clip((key + 0.30) / 1.30, 0, 1) ** 1.25
        fill = np.clip((normal @ FILL_LIGHT + 0.5) / 1.5, 0, 1) + 0.55 * rim
        return np.stack([wrapped, fill, gloss], 1)

    def _resolve(self, seen, rows, kind, depth, pose):
        """Shade a pixel once where its four samples agree, else each of them."""
        size = self.camera.size
        blocks = seen.reshape(size, 2, size, 2)
        label = np.append(depth + 100 * np.where(kind < EYE, kind, 10 + kind), -1000).astype(np.float32)
        of = label[seen].reshape(size, 2, size, 2)
        low = np.minimum(np.minimum(of[:, 0, :, 0], of[:, 0, :, 1]), np.minimum(of[:, 1, :, 0], of[:, 1, :, 1]))
        high = np.maximum(np.maximum(of[:, 0, :, 0], of[:, 0, :, 1]), np.maximum(of[:, 1, :, 0], of[:, 1, :, 1]))
        edge = high - low > 1.0
        picture = self.background.copy()
        one = blocks[:, 0, :, 0]
        y, x = np.nonzero(~edge & (one >= 0))
        inside = one[y, x]
        ey, ex = np.nonzero(edge)
        ids, xs, ys = [inside], [x + np.float32(0.5)], [y + np.float32(0.5)]
        for j in (0, 1):
            for i in (0, 1):
                ids.append(blocks[ey, j, ex, i])
                xs.append(ex + np.float32(0.25 + 0.5 * i))
                ys.append(ey + np.float32(0.25 + 0.5 * j))
        ids, xs, ys = np.concatenate(ids), np.concatenate(xs), np.concatenate(ys)
        color = self._shade(ids, xs.astype(np.float32), ys.astype(np.float32), rows, kind, pose)
        picture[y, x] = color[: len(y)]
        if len(ey):
            samples = color[len(y) :].reshape(4, -1, 3)
            empty = ids[len(y) :].reshape(4, -1, 1) < 0
            samples = np.where(empty, self.background[ey, ex], samples)
            picture[ey, ex] = samples.mean(0)
        np.clip(picture, 0, 1, out=picture)
        return (255 * np.sqrt(picture) + 0.5).astype(np.uint8)

    def _shade(self, ids, x, y, rows, kind, pose):
        """Linear colour [N,3] of the triangles `ids` at picture points x, y; rubbish where an id is -1."""
        import torch

        value = raster.evaluate(rows[ids], x, y)
        at = torch.from_numpy(np.ascontiguousarray(value[:, :2]))[None, None]
        texture = torch.nn.functional.grid_sample(
            self.atlas, at, mode="bilinear", padding_mode="border", align_corners=False
        )[0, :, 0].numpy().T  # fmt: skip
        light = np.clip(value[:, 2:5], 0, 1.6)
        kinds = kind[ids]
        color = np.empty((len(ids), 3), np.float32)
        shine = light[:, 2] * texture[:, 3] * 0.30
        # Light that falls off into shadow on skin comes out redder: it has been below the surface.
        bleed = np.where(kinds <= EAR, 0.10 * light[:, 0] * (1 - light[:, 0]), 0)
        for k in range(3):
            lit = AMBIENT[k] + KEY_COLOR[k] * light[:, 0] + FILL_COLOR[k] * light[:, 1]
            if k == 0:
                lit = lit + 2.2 * bleed
            color[:, k] = texture[:, k] * lit + shine
        for which, shader in ((EYE, self._eye), (MOUTH, self._mouth)):
            some = np.flatnonzero((kinds == which) & (ids >= 0))
            if len(some):
                color[some] = shader(x[some], y[some], value[some], pose)
        return color

    def _rays(self, x, y, pose):
        """Origin [3] and directions [N,3] of pixels' rays in anatomy axes."""
        turn, shift = pose[:2]
        focal, centre = self.camera.focal * self.camera.size, self.camera.size / 2
        ray = np.stack([(x - centre) / focal, (y - centre) / focal, np.ones_like(x)], 1)
        return (-shift @ turn) * FLIP, (ray @ turn) * FLIP

    def _eye(self, x, y, value, pose):
        """Eyeball colour [N,3]: sclera, iris, pupil, and the light's reflection."""
        origin, ray = self._rays(x, y, pose)
        side = np.sign(origin[0] + ray[:, 0] / ray[:, 2] * (3.5 - origin[2]))
        eye_y, eye_z = np.full_like(side, anatomy.EYE_Y), np.full_like(side, anatomy.LID_CENTRE_Z)
        centre = np.stack([side * anatomy.EYE_X, eye_y, eye_z], 1)
        ray = ray / np.linalg.norm(ray, axis=1, keepdims=True)
        to = origin - centre
        b = (to * ray).sum(1)
        reach = b**2 - (to**2).sum(1) + anatomy.EYEBALL_RADIUS**2
        normal = (to + (-b - np.sqrt(np.maximum(reach, 0)))[:, None] * ray) / anatomy.EYEBALL_RADIUS
        yaw, pitch = pose[2]
        # Into the eye's own frame, which looks along +z; both eyes converge a little on the camera.
        aim = rotation_matrix(np.array([0, yaw, 0.0])) @ rotation_matrix(np.array([pitch, 0, 0.0]))
        local = (normal * FLIP) @ aim.astype(np.float32) * FLIP
        dx, dy = local[:, 0] * anatomy.EYEBALL_RADIUS + 0.05 * side, local[:, 1] * anatomy.EYEBALL_RADIUS - 0.06
        radius, angle = np.hypot(dx, dy), np.arctan2(dy, dx)
        pixel = self._pixel()
        soft = 0.6 * pixel
        color = np.tile(np.array([0.80, 0.77, 0.75], np.float32), (len(x), 1))
        corner = np.clip((np.abs(local[:, 0]) * anatomy.EYEBALL_RADIUS - 0.75) / 0.6, 0, 1)[:, None]
        color += (np.array([0.62, 0.40, 0.38], np.float32) - color) * 0.6 * corner
        fibre = 1 + 0.12 * np.sin(17 * angle + 3 * np.sin(4 * angle)) + 0.10 * np.sin(41 * angle)
        ring = np.clip(radius / 0.60, 0, 1)
        rim = 0.5 * np.clip((ring - 0.78) / 0.22, 0, 1)
        iris = self.iris * (fibre * (0.85 + 0.75 * ring * (ring < 0.82) - rim))[:, None]
        # The lower half of an iris glows with the light that came in above.
        iris = iris * (1 - 0.45 * dy / 0.6)[:, None]
        inside = np.clip((0.60 - radius) / soft + 0.5, 0, 1)[:, None]
        color += (iris - color) * inside
        pupil = np.clip((0.25 - radius) / soft + 0.5, 0, 1)[:, None]
        color += (np.float32(0.006) - color) * pupil
        lit = np.clip(0.62 + 0.40 * ((normal * FLIP) @ pose[0].T @ KEY_LIGHT), 0.2, 1.1)
        # The upper lid and its lashes shade the ball.
        opening = np.clip(value[:, 5], 0, 1)
        shadow = 0.42 + 0.58 * np.clip(opening / 0.45, 0, 1)
        line = np.clip(1 - opening / 0.10, 0, 1)
        color *= (lit * shadow * (1 - 0.7 * self.character.look.lashes * line))[:, None]
        wet = np.clip((opening - 0.90) / 0.1, 0, 1)[:, None]
        color += (np.array([0.50, 0.26, 0.24], np.float32) - color) * 0.5 * wet
        glint = np.hypot(local[:, 0] * anatomy.EYEBALL_RADIUS + 0.22, local[:, 1] * anatomy.EYEBALL_RADIUS - 0.26)
        color += 0.95 * np.clip((0.13 - glint) / max(soft, 0.08) + 0.5, 0, 1)[:, None] * (opening > 0.03)[:, None]
        return color

    def _mouth(self, x, y, value, pose):
        """Colour [N,3] inside the mouth: upper teeth, tongue, dark."""
        origin, ray = self._rays(x, y, pose)
        depth = np.full(len(x), 4.0, np.float32)
        for _ in range(2):
            reach = (depth - origin[2]) / ray[:, 2]
            px = origin[0] + reach * ray[:, 0]
            depth = 4.1 - 0.17 * px**2
        py = origin[1] + (depth - origin[2]) / ray[:, 2] * ray[:, 1]
        pixel = self._pixel()
        soft = 0.8 * pixel
        color = np.tile(np.array([0.030, 0.008, 0.008], np.float32), (len(x), 1))
        opening = np.clip(value[:, 5], 0, 1)
        mouth_open = float(pose[3])
        tongue_top = anatomy.MOUTH_Y - 0.55 - 2.1 * mouth_open + 0.25 * np.exp(-((np.abs(px) - 0.5) / 0.5) ** 2)
        tongue = np.clip((tongue_top - py) / 0.35, 0, 1) * np.clip((1.8 - np.abs(px)) / 0.5, 0, 1)
        color += (np.array([0.36, 0.105, 0.10], np.float32) - color) * (0.75 * tongue)[:, None]
        s = np.abs(px)
        tooth = np.where(s < 0.86, s / 0.86, 1 + (s - 0.86) / 0.70)
        within = np.abs(tooth - np.floor(tooth) - 0.5) * 2
        bottom = anatomy.MOUTH_Y - 0.46 + 0.05 * px**2 + 0.10 * within**4 + 0.05 * ((tooth >= 1) & (tooth < 2))
        is_tooth = np.clip((py - bottom) / soft + 0.5, 0, 1) * np.clip((2.5 - s) / 0.4, 0, 1)
        enamel = np.array([0.80, 0.75, 0.67], np.float32) * (
            (1 - 0.16 * s / 2.2) * (1 - 0.30 * np.clip((within - 0.86) / 0.14, 0, 1) * min(1.0, 0.1 / pixel))
        )[:, None]
        shade = np.clip(0.62 + 1.2 * opening * max(mouth_open, 0.15) + 0.3 * mouth_open, 0.3, 0.95)
        shade = shade * (1 - 0.22 * s / 2.2)
        color += (enamel * shade[:, None] - color) * is_tooth[:, None]
        return color * (0.45 + 0.55 * np.clip((anatomy.MOUTH_HALF - np.abs(px)) / 0.7, 0, 1))[:, None]

    def _pixel(self):
        """Centimetres that one pixel covers on the face."""
        return 100 * HEAD_DISTANCE / (self.camera.focal * self.camera.size)


def _compact(seen: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Which of `count` triangles are seen at all, and `seen` renumbered among them."""
    present = np.zeros(count + 1, bool)
    present[seen] = True
    number = np.cumsum(present, dtype=np.int32) - 1
    number[-1] = -1
    return np.flatnonzero(present[:-1]), number[seen]


def render(
    character: Character | str, controls: Controls, size: int = 256, camera: Camera | None = None
) -> Iterator[np.ndarray]:
    """Frames of a character that moves as `controls` say: [size,size,3] uint8 RGB, one at a time.

    Args:
        character: a `Character` or its name in `CHARACTERS`.
        controls: known motion, T frames.
        size: picture width and height in pixels, unless `camera` gives it.
        camera: where it is seen from; by default `Camera(size)`.
    """
    if isinstance(character, str):
        character = CHARACTERS[character]
    renderer = Renderer(character, camera or Camera(size))
    for index in range(len(controls)):
        yield renderer.draw(controls, index)
