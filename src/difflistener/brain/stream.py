"""A listener that reacts hop by hop while somebody speaks, for any length of time in constant memory.

A hop is one block of the brain's motion. Of the past, only keys and values of the clean frames are kept, as many as
the network saw in training, so a denoising step touches the block alone. `Brain.generate` runs these very
streams: what is streamed equals what is generated at once, bit for bit on the CPU. Needs a brain of network `dit`.

Axes: B listeners side by side, n and m frames at 25 fps, K of a hop, C of context, A audio feature, D = 56 motion,
G guidance branches.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from difflistener.brain.config import ATTITUDES
from difflistener.brain.diffusion import MAX_STEPS, keyed_generator
from difflistener.brain.dit import DiT, Modulation, Scene
from difflistener.brain.forcing import Step, sampling_steps, solve
from difflistener.errors import UserError
from difflistener.motion import NUM_EXPRESSION, NUM_MOTION

if TYPE_CHECKING:
    from difflistener.brain.model import Brain


class Stream:
    """One reaction, hop by hop.

    >>> stream = Stream(Brain.from_pretrained("brains/ben"), seed=3)
    >>> motion = stream.push(audio, expression)  # [n, A], [n, 50] -> [m, 56]: the hops complete now

    Args and errors as of `Brain.generate`.
    """

    def __init__(self, brain: Brain, seed: int = 0, sample: int = 0, num_steps: int | None = None, start: Tensor | None = None,
                 anchor: Tensor | None = None, attitude: str | None = None, audio_guidance: float | None = None,
                 face_guidance: float | None = None):
        self._brain = brain
        self._streams = Streams(brain, seed, [sample], num_steps, None if start is None else start[None],
                                None if anchor is None else anchor[None], attitude, audio_guidance, face_guidance)

    @property
    def latency_ms(self) -> int:
        """Algorithmic latency: from the first sound of a hop until its motion can be computed."""
        return self._brain.config.latency_ms

    def push(self, audio: Tensor, expression: Tensor | None = None, expression_valid: Tensor | None = None) -> Tensor:
        """Hear and see n frames of the speaker, any number, usually one hop. Returns the motion complete now, [m, 56].

        With look-ahead, motion begins that many frames later than the speaker.
        """
        if len(audio) == 0:
            return torch.empty(0, NUM_MOTION)
        self._brain.check_speaker(audio, expression, expression_valid)
        return self._streams.push(audio[None], *(None if x is None else x[None] for x in (expression, expression_valid)))[0]

    def finish(self) -> Tensor:
        """The motion of the frames that were pushed and not answered yet, [m, 56]: the speaker is gone."""
        return self._streams.finish()[0]


class Streams:
    """B streams side by side; listener b is reaction number `samples[b]` under `seed`.

    The input is trusted: `Stream` and `Brain` check it.

    Args:
        seed, attitude: one for all, or B of them.
        start: [B, n, 56] motion just before the first frame, or None.
        anchor: [B, n, 56] a style clip of each listener, or None; only its mean counts.
    """

    def __init__(self, brain: Brain, seed: int | Sequence[int], samples: Sequence[int], num_steps: int | None,
                 start: Tensor | None = None, anchor: Tensor | None = None,
                 attitude: str | None | Sequence[str | None] = None, audio_guidance: float | None = None,
                 face_guidance: float | None = None):
        if brain.config.network != "dit":
            raise UserError(f"A brain of network {brain.config.network} does not stream.", "Train one with --network dit.")
        num_steps = brain.num_steps(num_steps)
        check_sampling(num_steps, seed, samples)
        config, size = brain.config, len(samples)
        attitudes = [attitude] * size if attitude is None or isinstance(attitude, str) else list(attitude)
        for one in attitudes:
            if one is not None and one not in ATTITUDES:
                raise UserError(f"There is no attitude {one!r}.", f"Use one of {', '.join(ATTITUDES)}, or none.")
        self._brain, self._samples = brain, list(samples)
        self._seeds = [seed] * size if isinstance(seed, int) else list(seed)
        self._device = brain.motion.mean.device
        self._hop, self._context = config.block, config.context
        self._attitude = torch.tensor([0 if one is None else 1 + ATTITUDES.index(one) for one in attitudes], device=self._device)
        self._anchor = brain.anchor_state(anchor, size)
        self._anchor_present = torch.full((size,), float(anchor is not None), device=self._device)
        audio = config.audio_guidance if audio_guidance is None else audio_guidance
        face = config.face_guidance if face_guidance is None else face_guidance
        if config.distilled and (audio, face) != (config.audio_guidance, config.face_guidance):
            raise UserError("Guidance is fixed in a distilled brain.", "Leave it out, or use the brain it was distilled from.")
        self._sampler = Sampler(brain.network, num_steps, branches(audio, face, config.uses_face), size,
                                config.prediction, config.state_limit, config.distilled)
        # Before the conversation there is nobody to hear.
        self._rows = self._absent(config.context - 1 - config.look_ahead)
        self._fixed = torch.empty(size, 0, NUM_MOTION)
        self._pushed = self._given = self._hops = 0
        if start is not None:
            self._continue_from(start)

    def _absent(self, num: int) -> dict[str, Tensor]:
        size = len(self._samples)
        return {"audio": torch.zeros(size, num, self._brain.config.audio_dim), "audio_present": torch.zeros(size, num),
                "expression": torch.zeros(size, num, NUM_EXPRESSION), "expression_present": torch.zeros(size, num)}

    def push(self, audio: Tensor, expression: Tensor | None = None, expression_valid: Tensor | None = None,
             fixed: Tensor | None = None) -> Tensor:
        """[B, n, A], [B, n, 50], [B, n] -> [B, m, 56] on the CPU. `fixed` [B, n, 56] is motion to keep, NaN where free."""
        size, num = audio.shape[:2]
        seen = torch.zeros(size, num) if expression is None else torch.ones(size, num)
        new = {"audio": audio.float().cpu(), "audio_present": torch.ones(size, num),
               "expression": torch.zeros(size, num, NUM_EXPRESSION) if expression is None else expression.float().cpu(),
               "expression_present": seen if expression_valid is None or expression is None else expression_valid.float().cpu()}
        free = torch.full((size, num, NUM_MOTION), torch.nan)
        self._pushed += num
        return self._react(new, free if fixed is None else fixed.float().cpu())

    def finish(self) -> Tensor:
        """[B, m, 56]: what is left to answer."""
        left = self._pushed - self._given
        num = -(-left // self._hop) * self._hop + self._brain.config.look_ahead
        free = torch.full((len(self._samples), num, NUM_MOTION), torch.nan)
        return self._react(self._absent(num), free)[:, :left]

    @torch.inference_mode()
    def _react(self, new: dict[str, Tensor], fixed: Tensor) -> Tensor:
        self._rows = {name: torch.cat([rows, new[name]], 1) for name, rows in self._rows.items()}
        self._fixed = torch.cat([self._fixed, fixed], 1)
        hop, needed = self._hop, self._hop + self._context - 1
        hops = max((self._rows["audio"].shape[1] - needed) // hop + 1, 0)
        motion = torch.empty(len(self._samples), hops * hop, NUM_MOTION)
        for first in range(0, hops * hop, hop):
            scene = self._scene({name: rows[:, first : first + needed] for name, rows in self._rows.items()})
            motion[:, first : first + hop] = self._next(scene, self._fixed[:, first : first + hop])
        self._rows = {name: rows[:, hops * hop :].clone() for name, rows in self._rows.items()}
        self._fixed = self._fixed[:, hops * hop :].clone()
        self._given += hops * hop
        return motion

    def _next(self, scene: Scene, fixed: Tensor) -> Tensor:
        """Motion [B, K, 56], real units, of the next hop."""
        noise = torch.cat([block_noise(self._hop, seed, sample, self._hops) for seed, sample in zip(self._seeds, self._samples)])
        self._hops += 1
        given = ~fixed.isnan().any(-1)
        state = self._brain.state(fixed.nan_to_num().to(self._device), self._anchor) if given.any() else None
        block = self._sampler.block(scene, noise.to(self._device), state, given.to(self._device))
        return self._brain.motion_of(block, self._anchor).cpu()

    def _scene(self, rows: dict[str, Tensor]) -> Scene:
        return self._brain.scene(**{name: value.to(self._device) for name, value in rows.items()}, attitude=self._attitude,
                                 anchor=self._anchor, anchor_present=self._anchor_present)

    @torch.inference_mode()
    def _continue_from(self, start: Tensor) -> None:
        """Remember motion [B, n, 56] as the past; the earliest frame is held where it fills no hop."""
        hop = self._hop
        start = start[:, -(self._sampler.memory * hop) :].float().cpu()
        short = -start.shape[1] % hop
        state = self._brain.state(torch.cat([start[:, :1].expand(-1, short, -1), start], 1).to(self._device), self._anchor)
        scene = self._scene(self._absent(hop + self._context - 1))
        for first in range(0, state.shape[1], hop):
            self._sampler.remember(scene, state[:, first : first + hop])


class Sampler:
    """Denoises one block after another, and remembers each as keys and values. States are normalised.

    Args:
        branches: (hear, see, weight) of every pass over the block; the passes are one batch.
    """

    def __init__(self, network: DiT, num_steps: int, branches: list[tuple[bool, bool, float]], size: int, prediction: str,
                 limit: float, one_by_one: bool = False):
        self._one_by_one = one_by_one
        self._network, self._branches, self._size = network, branches, size
        self._prediction, self._limit = prediction, limit
        self.memory = network.memory
        device = network.into.weight.device
        self._weights = torch.tensor([weight for _, _, weight in branches], device=device)[:, None, None, None]
        self._steps = sampling_steps(num_steps)
        with torch.inference_mode():
            self._clean = network.modulation(torch.zeros(1, device=device))
            self._modulations = {step.level: network.modulation(torch.tensor([float(step.level)], device=device))
                                 for step in self._steps}
        heads = network.layers[0].heads
        # A ring: a block takes the place of the one that has just become too old to be seen.
        slots = (network.memory + 1) * network.block
        shape = (len(network.layers), 2, len(branches) * size, heads, slots, network.width // heads)
        self._ring = torch.zeros(shape, device=device)
        self._number = 0
        self._last = torch.zeros(size, NUM_MOTION, device=device)

    def remember(self, scene: Scene, state: Tensor) -> None:
        """Take clean states [B, K, 56] as the past."""
        self._remember(self._told(scene), state)

    def block(self, scene: Scene, noise: Tensor, given: Tensor | None = None, is_given: Tensor | None = None) -> Tensor:
        """States [B, K, 56] from `noise` of that shape; frames `is_given` [B, K] are those of `given` [B, K, 56]."""
        told, turns = self._told(scene), self._turns()
        expected, unit = self._expected()
        low, high = (-self._limit - expected) / unit, (self._limit - expected) / unit
        clean = None if given is None else (given - expected) / unit

        def network(state: Tensor, step: Step) -> Tensor:
            modulation = self._modulations[step.level]
            if given is not None:
                state = torch.where(is_given[..., None], clean, state)
                levels = torch.where(is_given, 0, step.level).float().repeat(len(self._branches), 1)
                modulation = self._network.modulation(levels)
            return self._guided(self._denoise(state, told, modulation, turns))

        motion = expected + unit * solve(network, noise, self._steps, self._prediction, low, high, self._one_by_one)
        if given is not None:
            motion = torch.where(is_given[..., None], given, motion)
        self._remember(told, motion)
        return motion

    def _expected(self) -> tuple[Tensor, Tensor]:
        """What the last frame says of the next block [B, K, 56], and the unit of its innovations [K, 56]."""
        innovations = self._network.innovations
        if self._number == 0:
            return torch.zeros_like(innovations.spread), torch.ones_like(innovations.spread)
        return innovations.prediction(self._last), innovations.spread

    def _told(self, scene: Scene) -> list[Tensor]:
        return self._network.perceive(Scene.stack([scene.without(not hear, not see) for hear, see, _ in self._branches]))

    def _turns(self) -> list[Tensor]:
        block = self._network.block
        return self._network.turns(torch.arange(self._number * block, (self._number + 1) * block, device=self._ring.device))

    def _remember(self, told: list[Tensor], state: Tensor) -> None:
        first = self._last if self._number else state[:, 0]
        embedded = self._network.embed_past(state, torch.cat([first[:, None], state[:, :-1]], 1))
        self._pass(embedded, torch.zeros_like(state), told, self._clean, self._turns())
        self._last = state[:, -1]
        self._number += 1

    def _denoise(self, noisy: Tensor, told: list[Tensor], modulation: Modulation, turns: list[Tensor]) -> Tensor:
        """Network output [G * B, K, 56] for noisy innovations [B, K, 56]."""
        has_past = None if self._number else torch.zeros(noisy.shape[:2], dtype=torch.bool, device=noisy.device)
        return self._pass(self._network.embed_noisy(noisy, has_past), noisy, told, modulation, turns)

    def _guided(self, outputs: Tensor) -> Tensor:
        if len(self._branches) == 1:
            return outputs
        return (outputs.unflatten(0, (-1, self._size)) * self._weights).sum(0)

    def _pass(self, embedded: Tensor, noisy: Tensor, told: list[Tensor], modulation: Modulation, turns: list[Tensor]) -> Tensor:
        """Network output [G * B, K, 56]; keys and values of the block are left in its place of the ring."""
        block = embedded.shape[1]
        slots = self.memory + 1
        place = self._number % slots * block
        filled = min(self._number + 1, slots) * block

        def attend(layer, q, k, v):
            keys, values = self._ring[layer]
            keys[:, :, place : place + block] = k
            values[:, :, place : place + block] = v
            return functional.scaled_dot_product_attention(q, keys[:, :, :filled], values[:, :, :filled])

        x, noisy = (part.repeat(len(self._branches), 1, 1) for part in (embedded, noisy))
        return self._network.denoise(x, noisy, told, modulation, turns, attend)


def branches(audio_guidance: float, face_guidance: float, uses_face: bool) -> list[tuple[bool, bool, float]]:
    """Passes (hear, see, weight) whose weighted sum is e0 + audio (e_heard - e0) + face (e_both - e_heard).

    e0 neither hears nor sees (Ho & Salimans 2022, with a weight for each condition as in Brooks et al. 2023). Passes
    of weight zero are left out: with both weights 1 only e_both is left.
    """
    if not uses_face:
        face_guidance = 0.0
    passes = [(False, False, 1 - audio_guidance), (True, False, audio_guidance - face_guidance), (True, True, face_guidance)]
    return [one for one in passes if one[2] != 0]


def block_noise(frames: int, seed: int, sample: int, number: int) -> Tensor:
    """The noise [1, frames, 56] that block `number` of a reaction starts from."""
    return torch.randn(1, frames, NUM_MOTION, generator=keyed_generator(seed, sample, number))


def check_sampling(num_steps: int, seed: int | Sequence[int], samples: Sequence[int]) -> None:
    """Raises `UserError` for DDIM steps out of range and negative seeds."""
    if not 1 <= num_steps <= MAX_STEPS:
        raise UserError(f"{num_steps} DDIM steps were asked for.", f"Use 1 to {MAX_STEPS}.")
    least = seed if isinstance(seed, int) else min(seed)
    if least < 0 or min(samples) < 0:
        raise UserError(f"Seed {least} and sample {min(samples)} were asked for.", "Use numbers from 0 up.")
