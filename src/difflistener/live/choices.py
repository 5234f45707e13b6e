"""The bodies and brains that a page may choose from, and Listeners made of them. Knows nothing of pages or networks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from difflistener.brain.config import ATTITUDES
from difflistener.errors import UserError
from difflistener.motion import require_same_basis
from difflistener.shipped import SHIPPED, named

if TYPE_CHECKING:
    from difflistener.basis import LandmarkBasis
    from difflistener.body.model import Body
    from difflistener.brain.model import Brain
    from difflistener.live.listener import Listener


@dataclass(frozen=True)
class Settings:
    """How a listener is made. None of a guidance is the brain's own."""

    body: str
    brain: str
    attitude: str | None = None
    audio_guidance: float | None = None
    face_guidance: float | None = None
    seed: int = 0

    def manner(self) -> dict:
        """What `Listener.change` takes."""
        return {"attitude": self.attitude, "audio_guidance": self.audio_guidance, "face_guidance": self.face_guidance,
                "seed": self.seed}


class Choices:
    """Bodies and brains by name, the first of each to begin with.

    Raises:
        UserError: a brain that does not stream, or a body or a brain that fits none of the others.
    """

    def __init__(self, bodies: dict[str, Body], brains: dict[str, Brain]):
        from difflistener.brain.stream import Stream

        self.bodies, self.brains = bodies, brains
        for brain in brains.values():
            Stream(brain)
        spoken = {name: brain.basis for name, brain in brains.items()}
        shown = {name: body.config.basis for name, body in bodies.items()}
        for name, basis in spoken.items():
            if basis not in shown.values():
                require_same_basis(basis, next(iter(shown.values())), name, next(iter(shown)))
        for name, basis in shown.items():
            if basis not in spoken.values():
                require_same_basis(next(iter(spoken.values())), basis, next(iter(spoken)), name)

    def listener(self, settings: Settings, record: Callable | None = None) -> Listener:
        """A Listener, not started. Raises `UserError` where the choices do not go together."""
        from difflistener.live.listener import Listener

        for kind, name, known in (("body", settings.body, self.bodies), ("brain", settings.brain, self.brains)):
            if name not in known:
                raise UserError(f"There is no {kind} {name!r} here.", f"Choose one of {', '.join(known)}.")
        brain, body = self.brains[settings.brain], self.bodies[settings.body]
        require_same_basis(brain.basis, body.config.basis, settings.brain, settings.body)
        return Listener(brain, body, **settings.manner(), record=record)

    def first(self) -> Settings:
        """What a conversation begins with where the page wants nothing else."""
        brain_name = next(iter(self.brains))
        return Settings(self._bodies_of(brain_name)[0], brain_name)

    def known(self, wanted: dict) -> dict:
        """`wanted` settings without a body and a brain that are not here: a page may remember those of another server."""
        here = {"body": self.bodies, "brain": self.brains}
        return {name: value for name, value in wanted.items() if value in here.get(name, [value])}

    def fitting(self, wanted: dict, before: Settings) -> Settings:
        """`before` with the `wanted` changes; a brain or body that no longer goes along is replaced by one that does."""
        chosen = Settings(**{**vars(before), **wanted})
        if chosen.body not in self.bodies or chosen.brain not in self.brains:
            return chosen
        bodies = self._bodies_of(chosen.brain)
        if chosen.body in bodies:
            return chosen
        if "brain" in wanted:
            return Settings(**{**vars(chosen), "body": bodies[0]})
        brain = next(name for name in self.brains if chosen.body in self._bodies_of(name))
        return Settings(**{**vars(chosen), "brain": brain})

    def basis(self, settings: Settings) -> tuple[str, LandmarkBasis | None]:
        """The expression basis that the chosen brain and body speak, and its id before it; None for FLAME."""
        brain = self.brains[settings.brain]
        return brain.basis, brain.landmark_basis

    def size(self, body: str) -> list[int]:
        """Width and height of a body's pictures."""
        return [self.bodies[body].config.width, self.bodies[body].config.height]

    def describe(self) -> dict:
        """All choices, ready for JSON."""
        return {"bodies": [{"name": name, "size": self.size(name)} for name in self.bodies],
                "brains": [self._describe(name) for name in self.brains], "attitudes": list(ATTITUDES)}

    def still(self, body: str) -> np.ndarray:
        """Picture [H, W, 3] uint8 of a body at rest."""
        from difflistener.body.render import Renderer
        from difflistener.export import reference_pose

        return Renderer(self.bodies[body])(reference_pose(self.bodies[body])[None])[0].cpu().numpy()

    def _bodies_of(self, brain: str) -> list[str]:
        return [name for name, body in self.bodies.items() if body.config.basis == self.brains[brain].basis]

    def _describe(self, name: str) -> dict:
        brain, config = self.brains[name], self.brains[name].config
        return {"name": name, "bodies": self._bodies_of(name), "sees": brain.sees, "guidance_is_free": not config.distilled,
                "audio_guidance": config.audio_guidance, "face_guidance": config.face_guidance}


def load_choices(bodies: tuple[Path, ...], brains: tuple[Path, ...], device: str) -> Choices:
    """Choices from checkpoint folders; of what is left out, those that come with the package."""
    from difflistener.body.model import Body
    from difflistener.brain.model import Brain

    own = (Path("shipped"),)
    return Choices({name: Body.from_pretrained(path, device) for name, path in _by_name(bodies or own, "body").items()},
                   {name: Brain.from_pretrained(path, device) for name, path in _by_name(brains or own, "brain").items()})


def _by_name(paths: tuple[Path, ...], kind: str) -> dict[str, Path]:
    """Each under the shortest end of its path that no other has."""
    found = tuple(dict.fromkeys(named(path, kind).resolve() for path in paths))
    ends = {path: path.parent.parts if path == SHIPPED / kind else path.parts for path in found}
    length = next(n for n in range(1, 1000) if len({end[-n:] for end in ends.values()}) == len(found))
    return {"/".join(end[-length:]).strip("/"): path for path, end in ends.items()}
