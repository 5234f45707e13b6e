"""`difflistener view`: a body in the browser, with sliders for the numbers that matter and a motion to play.

viser serves the page and the browser draws the Gaussians (WebGL); this process only poses them, on the CPU. What is
shown is always the latest state: a pose that a newer one has overtaken is never computed or sent. The background plate
is not drawn, so that one can look at the head from any side.
Axes: N Gaussians, D = 56 motion; the page's world is the filming camera's space (OpenCV axes, inter-ocular distances).
"""

import math
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import tyro

from difflistener.basis import POSTURE
from difflistener.errors import UserError, require
from difflistener.motion import FPS, ROTATION

NUM_CODES = 8
"""Expression codes with a slider: the basis sorts them by how much they move."""
HEAD_REACH = 1.5
"""How far the head's sliders go, in multiples of the largest turn that training showed."""
MIN_HEAD_DEGREES = 20.0
HEAD_SLIDERS = {
    "pitch (degrees)": "above 0 the head nods down",
    "yaw (degrees)": "above 0 it turns to the left of the picture",
    "roll (degrees)": "above 0 it tilts clockwise",
}
"""Name and hint of the axis-angle components x, y, z of the head's rotation."""
POSTURE_SLIDERS = ("head right", "head down", "head away", "torso right", "torso down", "torso turn")
"""Names of the posture codes, in standard deviations."""

REGIONS = {
    "brows": ((0.0, 0.7), (-0.55, -0.33)),
    "eyes": ((0.1, 0.55), (-0.33, -0.15)),
    "mouth corners": ((0.2, 0.4), (0.4, 0.62)),
    "upper lip": ((0.0, 0.18), (0.38, 0.51)),
    "lower lip": ((0.0, 0.18), (0.51, 0.66)),
    "jaw": ((0.0, 0.45), (0.72, 1.05)),
}
"""Part of the face -> where it lies in the head frame: range of |x| and range of y, in inter-ocular distances."""
LIPS = {"upper lip", "lower lip"}
"""Parts that count by how far they part: "mouth opening"."""
FRONT = -0.35
"""Depth in the head frame that the face lies before."""
LEADING = 0.75
"""A second part of the face is named where it stands out at least this much as clearly as the first."""


@dataclass(frozen=True)
class View:
    """Look at a body in the browser: turn it, move its face with sliders, play a motion. Needs no GPU.

    Example: difflistener view bodies/ben --motion listener.npy, then open http://127.0.0.1:8080
    """

    body: Annotated[Path, tyro.conf.Positional]
    """Folder of the body."""
    motion: Path | None = None
    """What to play: a .npy [T,56], an .npz with exp [T,50] and pose [T,6], or a clip (its listener)."""
    host: str = "127.0.0.1"
    """Address to serve at. Another than 127.0.0.1 shows the head to everybody who reaches this machine."""
    port: int = 8080
    """Port to serve at."""


def view(config: View) -> None:
    """Serve the page until Ctrl-C."""
    require("viser")
    from difflistener.body.model import Body
    from difflistener.stored_motion import load_motion

    body = Body.from_pretrained(config.body)
    motion = load_motion(config.motion, body.config.basis) if config.motion else None
    page = Page(body, motion, config.host, config.port)
    print(f"The head is at {page.address} (Ctrl-C ends it).", file=sys.stderr, flush=True)
    try:
        page.run()
    except KeyboardInterrupt:
        print("\nstopped.", file=sys.stderr)
    finally:
        page.close()


# Posing: knows nothing of the page


class Splats(NamedTuple):
    """Posed Gaussians as the browser draws them, float32 on the CPU."""

    centers: np.ndarray  # [N, 3]
    covariances: np.ndarray  # [N, 3, 3]
    rgbs: np.ndarray  # [N, 3] 0..1
    opacities: np.ndarray  # [N, 1] 0..1


def pose(body, motion: np.ndarray, torso_follows: bool = True) -> Splats:
    """Gaussians of motion [56]; translation and eyes follow from it, and so does the torso unless it is held at rest."""
    import torch

    with torch.no_grad():
        row = torch.from_numpy(motion.astype(np.float32))[None]
        translation, torso, eyes = body.follow(row)
        posed = body.gaussians(row, translation, torso if torso_follows else torch.zeros_like(torso), eyes)
        spread = covariances(posed.quats[0], posed.scales[0])
    rgbs = posed.colors[0].clamp(0, 1)
    return Splats(posed.means[0].numpy(), spread.numpy(), rgbs.numpy(), posed.opacities[0, :, None].numpy())


def covariances(quats, scales):
    """Covariance matrices [N, 3, 3] of Gaussians with quaternions [N, 4] (wxyz, of any length) and scales [N, 3]."""
    import torch

    from difflistener.body.geometry import matrix_from_quaternion

    axes = matrix_from_quaternion(torch.nn.functional.normalize(quats, dim=1)) * scales[:, None]
    return axes @ axes.mT


def motion_range(body) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest motion [56] that the body saw in training; beyond, its face is held back."""
    seen = body.motion_range
    return tuple((seen.mean + seen.std * edge).numpy() for edge in (seen.low, seen.high))


def name_codes(body, count: int = NUM_CODES) -> list[str]:
    """What each of the first `count` expression codes moves more than the others do: "brows", or "mouth opening + jaw".

    Each code goes from zero to the far edge of its training range; the Gaussians' paths are averaged over each part of
    the face, by opacity, and compared over the codes.
    """
    rest, (low, high) = rest_pose(body), motion_range(body)
    at_rest = pose(body, rest)
    parts = _parts(body, rest, at_rest)
    strength = []
    for code in range(count):
        moved = rest.copy()
        moved[code] = max(low[code], high[code], key=abs)
        path = pose(body, moved).centers - at_rest.centers
        row = {name: float(weight @ np.linalg.norm(path, axis=1)) for name, weight in parts.items() if name not in LIPS}
        if parts.keys() >= LIPS:
            row["mouth opening"] = float(np.linalg.norm((parts["lower lip"] - parts["upper lip"]) @ path))
        strength.append(row)
    names = list(strength[0])
    table = np.array([[row[name] for name in names] for row in strength])
    table /= np.sqrt((table**2).mean(0)) + 1e-9
    return [_leading(names, row) for row in table]


def _parts(body, rest: np.ndarray, at_rest: Splats) -> dict[str, np.ndarray]:
    """Weights [N] that average over each part of the face; parts without Gaussians are left out."""
    from scipy.spatial.transform import Rotation

    local = (at_rest.centers - head_position(body, rest)) @ Rotation.from_rotvec(rest[ROTATION]).as_matrix()
    across, down, depth = np.abs(local[:, 0]), local[:, 1], local[:, 2]
    parts = {}
    for name, (x, y) in REGIONS.items():
        weight = at_rest.opacities[:, 0] * ((across >= x[0]) & (across < x[1]) & (down >= y[0]) & (down < y[1]) & (depth < FRONT))
        if weight.sum() > 0:
            parts[name] = weight / weight.sum()
    return parts


def _leading(names: list[str], strength: np.ndarray) -> str:
    if not names:
        return "face"
    order = np.argsort(-strength)[:2]
    return " + ".join(names[i] for i in order if strength[i] >= LEADING * strength[order[0]])


def rest_pose(body) -> np.ndarray:
    """Motion [56] that the page starts with: the pose the body was started from, with a neutral expression."""
    from difflistener.export import reference_pose

    return reference_pose(body).numpy()


def head_position(body, motion: np.ndarray) -> np.ndarray:
    """Camera-space position [3] of the head at motion [56]."""
    import torch

    return body.follow(torch.from_numpy(motion)[None])[0][0].numpy()


def filming_camera(body, distance: float) -> tuple[np.ndarray, float]:
    """The point [3] at depth `distance` in the middle of the filmed picture, and the vertical field of view in radians."""
    K = body.K.numpy()
    middle = np.array([(body.config.width / 2 - K[0, 2]) / K[0, 0], (body.config.height / 2 - K[1, 2]) / K[1, 1], 1.0])
    return middle * distance, 2 * math.atan(body.config.height / 2 / float(K[1, 1]))


# State: what is shown now


class Puppet:
    """The head's 56 numbers and its place in the motion. Safe to call from several threads."""

    def __init__(self, body, motion: np.ndarray | None):
        self.body, self.motion = body, motion
        self.rest = rest_pose(body)
        self.now = self.rest  # [56], replaced and never changed in place
        self.frame = 0.0
        self.torso_follows = True
        self._lock = threading.Lock()

    def edit(self, entry: int, value: float) -> None:
        """Set one of the 56 numbers."""
        with self._lock:
            self.now = np.where(np.arange(len(self.now)) == entry, np.float32(value), self.now)

    def reset(self) -> None:
        """Back to the pose at rest."""
        with self._lock:
            self.now, self.frame = self.rest, 0.0

    def seek(self, frame: float) -> None:
        """Take the pose of the frame that `frame` falls in; behind the last the motion starts over."""
        with self._lock:
            self.frame = frame % len(self.motion)
            self.now = self.motion[int(self.frame)].astype(np.float32)

    def splats(self) -> Splats:
        return pose(self.body, self.now, self.torso_follows)


# The page


class Page:
    """Sliders before, Gaussians behind. `run` poses until `close`.

    Raises:
        UserError: the address cannot be served at.
    """

    def __init__(self, body, motion: np.ndarray | None, host: str = "127.0.0.1", port: int = 8080):
        self.puppet = Puppet(body, motion)
        self.changed, self.closing = threading.Event(), threading.Event()
        self.server = _serve(host, port)
        self.address = f"http://{host}:{self.server.get_port()}"
        self._set_scene()
        self._add_controls()

    def run(self) -> None:
        """Play, and pose whenever something changed, until `close` is called."""
        last = time.monotonic()
        while True:
            playing = self.puppet.motion is not None and self.play.value
            self.changed.wait(1 / FPS if playing else 0.5)
            if self.closing.is_set():
                return
            elapsed, last = time.monotonic() - last, time.monotonic()
            if playing:
                self.puppet.seek(self.puppet.frame + elapsed * FPS * self.speed.value)
                self._move_sliders()
            if playing or self.changed.is_set():
                self.changed.clear()
                self.splats.set_gaussians(*self.puppet.splats())

    def close(self) -> None:
        """End `run` and the server."""
        self.closing.set()
        self.changed.set()
        self.server.stop()

    def _set_scene(self) -> None:
        server, puppet = self.server, self.puppet
        server.gui.configure_theme(control_width="large", dark_mode=True, show_share_button=False)
        server.gui.main_panel.dock_right()
        server.scene.set_up_direction("-y")
        # The silhouette was learned before the plate: against any other colour its soft edge looks like a halo.
        wall = puppet.body.background.flatten(0, 1).median(0).values
        server.scene.set_background_image((wall.clamp(0, 1) * 255).byte().numpy().reshape(1, 1, 3))
        camera = server.initial_camera
        camera.position, camera.up = (0.0, 0.0, 0.0), (0.0, -1.0, 0.0)
        camera.look_at, camera.fov = filming_camera(puppet.body, float(head_position(puppet.body, puppet.rest)[2]))
        centers, spread, rgbs, opacities = puppet.splats()
        self.splats = server.scene.add_gaussian_splats("/head", centers, spread, rgbs, opacities)

    def _add_controls(self) -> None:
        gui, puppet = self.server.gui, self.puppet
        low, high = motion_range(puppet.body)
        self.sliders = {}  # entry of the motion -> slider and how many of its units make one of the motion's
        gui.add_button("Reset", hint="back to the pose that the page began with").on_click(lambda _: self._reset())
        if puppet.motion is not None:
            with gui.add_folder("Motion"):
                self.play = gui.add_checkbox("play", False)
                self.time = gui.add_slider("time (s)", 0.0, max(1, len(puppet.motion) - 1) / FPS, 1 / FPS, 0.0)
                self.speed = gui.add_slider("speed", 0.1, 2.0, 0.1, 1.0)
            self.play.on_update(lambda _: self.changed.set())
            self.time.on_update(self._by_hand(self._seek))
        with gui.add_folder("Head"):
            for axis, (name, hint) in enumerate(HEAD_SLIDERS.items()):
                entry = ROTATION.start + axis
                reach = max(MIN_HEAD_DEGREES, HEAD_REACH * math.degrees(max(-low[entry], high[entry])))
                self._add_slider(name, entry, -reach, reach, math.degrees(1), 0, hint)
            follows = gui.add_checkbox("torso follows", True, hint="off: the torso rests while the head turns")
            follows.on_update(lambda event: self._hold_torso(not event.target.value))
        if puppet.body.posture_std.any():
            with gui.add_folder("Posture"):
                for entry, name in enumerate(POSTURE_SLIDERS, POSTURE.start):
                    self._add_slider(name, entry, low[entry], high[entry], 1.0, 2, "beyond what the head's turn brings with it")
        with gui.add_folder("Expression"):
            for code, name in enumerate(name_codes(puppet.body)):
                hint = f"expression code {code}, over the range that training showed"
                self._add_slider(f"{code} {name}", code, low[code], high[code], 1.0, 2, hint)

    def _add_slider(self, label: str, entry: int, low: float, high: float, unit: float, digits: int, hint: str) -> None:
        """A slider for one of the 56 numbers, shown in `unit` with so many digits."""
        low, high = round(min(float(low), 0.0), digits), round(max(float(high), 0.0), digits)
        value = min(max(round(float(self.puppet.now[entry]) * unit, digits), low), high)
        slider = self.server.gui.add_slider(label, low, max(high, low + 1.0), 10.0**-digits, value, hint=hint)
        slider.on_update(self._by_hand(lambda: self._edit(entry, slider.value / unit)))
        self.sliders[entry] = slider, unit

    def _by_hand(self, act):
        """A callback for moves that a person made: viser also reports those that this process makes."""
        return lambda event: act() if event.client is not None else None

    def _edit(self, entry: int, value: float) -> None:
        self._pause()
        self.puppet.edit(entry, value)
        self.changed.set()

    def _seek(self) -> None:
        self.puppet.seek(round(self.time.value * FPS))
        self._move_sliders()
        self.changed.set()

    def _hold_torso(self, held: bool) -> None:
        self.puppet.torso_follows = not held
        self.changed.set()

    def _reset(self) -> None:
        self._pause()
        self.puppet.reset()
        self._move_sliders()
        self.changed.set()

    def _pause(self) -> None:
        if self.puppet.motion is not None:
            self.play.value = False

    def _move_sliders(self) -> None:
        """Let the sliders show the state, as far as they reach."""
        now = self.puppet.now
        for entry, (slider, unit) in self.sliders.items():
            shown = round(float(now[entry]) * unit, 2) + 0.0  # Without the sum -0.0 is shown as "-0".
            slider.value = min(max(shown, slider.min), slider.max)
        if self.puppet.motion is not None:
            self.time.value = min(int(self.puppet.frame) / FPS, self.time.max)


def _serve(host: str, port: int):
    """A viser server at exactly this address; left to itself it would take the next free port."""
    import socket

    import viser

    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except (OSError, OverflowError) as error:
        raise UserError(f"{host}:{port} cannot be served at ({error}).",
                        "Give another --port, or an address of this machine as --host.") from error
    return viser.ViserServer(host, port, label="Diff-Listener", verbose=False)
