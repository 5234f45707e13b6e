"""The brain: speaker audio and expression in, listener motion out. Real units outside, normalised inside.

Knows nothing of files but its own checkpoint, and nothing of bodies or pixels.
Axes: B windows, T frames at 25 fps, K frames of a block, H of history, C of context, A audio feature, D = 56 motion.
"""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from difflistener.basis import LandmarkBasis
from difflistener.brain.config import BrainConfig
from difflistener.brain.diffusion import ddim_sample, diffusion_loss
from difflistener.brain.dit import DiT, Scene
from difflistener.brain.forcing import Noise, balance, forcing_loss
from difflistener.brain.networks import MLP, Condition, Regression
from difflistener.brain.stream import Streams, block_noise, check_sampling
from difflistener.checkpoint import config_from_dict, load_checkpoint, load_tensors_into, save_checkpoint
from difflistener.dataset import Statistics
from difflistener.errors import UserError
from difflistener.motion import NUM_EXPRESSION, NUM_MOTION

NETWORKS = {"dit": DiT, "mlp": MLP, "regression": Regression}


class Normaliser(nn.Module):
    """(x - mean) / std, with a zero std for dimensions that never move: those stay at the mean both ways."""

    def __init__(self, width: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("std", torch.ones(width))

    def set(self, statistics: Statistics) -> None:
        self.mean.copy_(torch.from_numpy(statistics.mean))
        self.std.copy_(torch.from_numpy(statistics.std))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) * torch.where(self.std > 0, 1 / self.std, 0)

    def inverse(self, x: Tensor) -> Tensor:
        return x * self.std + self.mean


class Factors(nn.Module):
    """Normalised motion <-> factors: uncorrelated, of unit variance, from slow to fast.

    Linear slow feature analysis (Wiskott & Sejnowski 2002). A code of a face mixes what is done, which lasts, with noise,
    which does not; among factors the two are apart, and only what lasts can be expected, and is worth getting right.
    """

    LEAST_VARIANCE = 1e-6
    """Of a direction of normalised motion; below it, nothing moves there."""

    def __init__(self):
        super().__init__()
        self.register_buffer("into", torch.eye(NUM_MOTION))
        self.register_buffer("back", torch.eye(NUM_MOTION))

    def set(self, motion: Tensor) -> None:
        """Learn from normalised motion [B, N, 56], N > 1."""
        motion = motion.double()
        variance, directions = torch.linalg.eigh(_covariance(motion))
        scale = torch.where(variance > self.LEAST_VARIANCE, variance, 0).sqrt()
        whiten = directions * torch.where(scale > 0, 1 / scale, 0)
        turn = torch.linalg.eigh(whiten.mT @ _covariance(motion.diff(dim=1)) @ whiten)[1]
        self.into.copy_(whiten @ turn)
        self.back.copy_(turn.mT @ (directions * scale).mT)

    def forward(self, motion: Tensor) -> Tensor:
        return motion @ self.into

    def inverse(self, factors: Tensor) -> Tensor:
        return factors @ self.back


def _covariance(rows: Tensor) -> Tensor:
    rows = rows.flatten(0, -2)
    return rows.mT @ rows / len(rows)


class Continuity(nn.Module):
    """What a person's own past says of the next frames, and the block of a network made to agree with it.

    Each dimension's next K frames are, given its last H, Gaussian: a linear prediction (ridge regression) with a
    covariance C. A network's block y is the motion with an error of variance e in every frame, so the motion is
    expected at prediction + C (C + e)^-1 (y - prediction) (Wiener 1949). Dimensions that move smoothly go on from
    where they were without a shake; those that jump from frame to frame by nature are left as they are.
    """

    RIDGE = 1e-3
    NETWORK_ERROR = 0.05
    """Share of a dimension's variance that a network gets wrong in each frame."""

    def __init__(self, num_frames: int, history: int):
        super().__init__()
        self.register_buffer("predictor", torch.zeros(NUM_MOTION, num_frames, history))
        self.register_buffer("trust", torch.eye(num_frames).repeat(NUM_MOTION, 1, 1))

    def set(self, block: Tensor, history: Tensor) -> None:
        """Learn from states: blocks [N, K, 56] after histories [N, H, 56]."""
        past, future = history.permute(2, 0, 1).double(), block.permute(2, 0, 1).double()
        gram = past.mT @ past / past.shape[1]
        gram = gram + self.RIDGE * torch.eye(gram.shape[1], dtype=gram.dtype, device=gram.device)
        predictor = torch.linalg.solve(gram, past.mT @ future / past.shape[1]).mT
        left = future - past @ predictor.mT
        covariance = left.mT @ left / past.shape[1]
        error = self.NETWORK_ERROR * torch.eye(covariance.shape[1], dtype=gram.dtype, device=gram.device)
        self.predictor.copy_(predictor)
        self.trust.copy_(torch.linalg.solve(covariance + error, covariance).mT)

    def forward(self, block: Tensor, history: Tensor) -> Tensor:
        """States [B, K, 56] after states [B, H, 56]."""
        predicted = torch.einsum("dkh,bhd->bkd", self.predictor, history)
        return predicted + torch.einsum("dkj,bjd->bkd", self.trust, block - predicted)


class Brain(nn.Module):
    """A trained or untrained brain. `Brain.from_pretrained(folder).generate(audio)` is all that most need.

    Args:
        landmark_basis: the basis that `config.basis` names, carried along (None for FLAME).
    """

    def __init__(self, config: BrainConfig, landmark_basis: LandmarkBasis | None = None):
        super().__init__()
        if config.network not in NETWORKS:
            raise UserError(f"There is no brain network {config.network!r}.", f"Known networks: {', '.join(NETWORKS)}.")
        self.config = config
        self.landmark_basis = landmark_basis
        self.motion = Normaliser(NUM_MOTION)
        self.audio = Normaliser(config.audio_dim)
        self.expression = Normaliser(NUM_EXPRESSION)
        self.network = NETWORKS[config.network](config)
        # A dit sees its past frame by frame and goes on from it by itself.
        is_dit = config.network == "dit"
        self.continuity = None if is_dit else Continuity(config.block, config.history)
        self.factors = Factors() if is_dit else None

    @property
    def basis(self) -> str:
        return self.config.basis

    @property
    def sees(self) -> bool:
        """Whether a picture of the speaker is of use: it looks at faces, in a landmark basis."""
        return self.config.uses_face and self.landmark_basis is not None

    # Checkpoints

    @classmethod
    def from_pretrained(cls, directory: Path, device: str = "cpu") -> Brain:
        """Load a folder that `save_pretrained` wrote. Raises `UserError` where it is none, or damaged."""
        values, tensors = load_checkpoint(directory, "brain")
        config = config_from_dict(BrainConfig, values, Path(directory) / "config.json")
        carried = {name.removeprefix(BASIS): tensors.pop(name).numpy() for name in list(tensors) if name.startswith(BASIS)}
        brain = cls(config, LandmarkBasis(**carried) if carried else None)
        load_tensors_into(brain, tensors, Path(directory))
        return brain.to(device).eval()

    def save_pretrained(self, directory: Path, training: dict[str, Any] | None = None) -> None:
        """Write a checkpoint folder. `training` is a summary of how it was trained, shown in the card."""
        tensors = self.state_dict()
        if self.landmark_basis is not None:
            tensors |= {BASIS + name: torch.from_numpy(array) for name, array in self.landmark_basis.to_tensors().items()}
        save_checkpoint(directory, f"brain.{self.config.network}", dataclasses.asdict(self.config), tensors,
                        _card(self.config, training or {}), training)

    # Generation

    @torch.no_grad()
    def generate(
        self,
        audio: Tensor,  # [T, A]
        expression: Tensor | None = None,  # [T, 50]
        start: Tensor | None = None,  # [n, 56]
        num_steps: int | None = None,
        seed: int = 0,
        sample: int = 0,
        expression_valid: Tensor | None = None,  # [T] bool
        **manner,
    ) -> Tensor:  # [T, 56]
        """One reaction to a speaker, block after block from its own past. Any T from 1 frame up.

        Args:
            audio: the feature that `config.audio` and `config.audio_settings` name.
            expression: of the speaker, in basis `config.basis`; None if only heard.
            start: listener motion just before the first frame, at least one frame; None to begin anywhere.
            num_steps: DDIM steps, 1 to 50, 15 by default; a distilled brain has its own, a regression brain needs none.
            seed, sample: reaction number `sample` under `seed`; each is one of many plausible ones.
            expression_valid: frames of `expression` in which the speaker was seen; all by default.
            manner: only for a dit. anchor [n, 56]: a style clip of the listener, from whose mean motion counts;
                attitude: "positive", "neutral" or "negative"; audio_guidance, face_guidance: other weights than
                those of the config; fixed [T, 56]: motion to keep, NaN in frames that are free.

        Returns:
            Motion in real units on the device of `audio`. Bit for bit the same for the same input, seed and sample.

        Raises:
            UserError: a wrong number of dimensions or frames, NaN, or steps out of range.
        """
        batch = {name: None if value is None else value[None]
                 for name, value in {"start": start, "expression": expression, "expression_valid": expression_valid}.items()}
        manner = {name: value[None] if isinstance(value, Tensor) else value for name, value in manner.items()}
        return self.generate_many(audio[None], samples=[sample], num_steps=num_steps, seed=seed, **batch, **manner)[0]

    @torch.no_grad()
    def generate_many(
        self,
        audio: Tensor,  # [B, T, A]
        expression: Tensor | None = None,  # [B, T, 50]
        start: Tensor | None = None,  # [B, n, 56]
        num_steps: int | None = None,
        seed: int | Sequence[int] = 0,
        samples: Sequence[int] | None = None,
        expression_valid: Tensor | None = None,  # [B, T]
        **manner,
    ) -> Tensor:  # [B, T, 56]
        """B reactions side by side, all else as in `generate`; row b is reaction number `samples[b]` (0..B-1).

        Each is the same as alone but for rounding. `seed`, and the attitude, may be one for all or B of them.
        """
        num_steps = self.num_steps(num_steps)
        samples = list(range(len(audio)) if samples is None else samples)
        check_sampling(num_steps, seed, samples)
        for b in range(len(audio)):
            self.check_speaker(audio[b], *(None if x is None else x[b] for x in (expression, expression_valid)))
        for name, motion in (("start motion", start), ("style clip", manner.get("anchor"))):
            for one in () if motion is None else motion:
                self._check_motion(one, name)
        if self.config.network == "dit":
            fixed = manner.pop("fixed", None)
            streams = Streams(self, seed, samples, num_steps, start, **manner)
            return torch.cat([streams.push(audio, expression, expression_valid, fixed), streams.finish()], 1).to(audio.device)
        if manner:
            raise UserError(f"A brain of network {self.config.network} has no {' and no '.join(manner)}.",
                            "Train one with --network dit.")
        return self._generate_blocks(audio, expression, start, num_steps, seed, samples, expression_valid)

    def _generate_blocks(self, audio: Tensor, expression: Tensor | None, start: Tensor | None, num_steps: int,
                         seed: int | Sequence[int], samples: list[int], expression_valid: Tensor | None) -> Tensor:
        """`generate_many` of a network that makes one block after another from the last frames of its own."""
        config, home, device = self.config, audio.device, self.motion.mean.device
        size, num_frames = audio.shape[:2]
        seeds = [seed] * size if isinstance(seed, int) else list(seed)
        audio = audio.float().cpu()
        if expression is None:
            expression, seen = torch.zeros(size, num_frames, NUM_EXPRESSION), torch.zeros(size, num_frames)
        else:
            seen = torch.ones(size, num_frames) if expression_valid is None else expression_valid.float().cpu()
            expression = expression.float().cpu()
        motion = torch.empty(size, num_frames, NUM_MOTION)
        past = torch.zeros(size, 0, NUM_MOTION) if start is None else start[:, -config.history :].float().cpu()
        for first in range(0, num_frames, config.block):
            rows = torch.arange(first + config.block - config.context, first + config.block)
            inside = ((rows >= 0) & (rows < num_frames)).float()
            condition = self.condition(
                audio=_rows(audio, rows).to(device), audio_present=inside.expand(size, -1).to(device),
                expression=_rows(expression, rows).to(device), expression_present=_rows(seen, rows).to(device),
                history=_recent(past, config.history).to(device),
                history_present=torch.full((size,), float(past.shape[1] > 0), device=device),
            )
            noise = torch.cat([self.block_noise(*key, first // config.block) for key in zip(seeds, samples)]).to(device)
            block = self.react(condition, noise, num_steps).cpu()
            motion[:, first : first + config.block] = block[:, : num_frames - first]
            past = torch.cat([past, block], 1)[:, -config.history :]
        return motion.to(home)

    def num_steps(self, given: int | None) -> int:
        """Steps of generation, the brain's own where none are `given`. Raises `UserError` for others of a distilled brain."""
        own = self.config.num_steps
        if self.config.distilled and given not in (None, own):
            raise UserError(f"{given} steps were asked for of a brain that was distilled to {own}.",
                            "Leave the number out, or use the brain it was distilled from.")
        return own if given is None else given

    def block_noise(self, seed: int, sample: int, number: int) -> Tensor:
        """The noise [1, K, 56] that block `number` of a reaction starts from."""
        return block_noise(self.config.block, seed, sample, number)

    def react(self, condition: Condition, noise: Tensor, num_steps: int) -> Tensor:
        """Motion [B, K, 56], real units, of one block each; `noise` [B, K, 56] is not used by a regression."""
        limit = self.config.state_limit
        if self.network.is_diffusion:
            state = ddim_sample(self.network, noise, condition, num_steps, limit)
        else:
            state = self.network(condition).clamp(-limit, limit)
        # Without a past the history is zero: the listener comes from the usual posture.
        return self.motion.inverse(self.continuity(state, condition.history))

    def condition(self, audio: Tensor, audio_present: Tensor, expression: Tensor, expression_present: Tensor,
                  history: Tensor, history_present: Tensor) -> Condition:
        """What is perceived in windows [B, ...] of real units, normalised; absent rows become zero."""
        limit = self.config.state_limit
        return Condition(
            audio=self.audio(audio) * audio_present[..., None], audio_present=audio_present,
            expression=self.expression(expression) * expression_present[..., None], expression_present=expression_present,
            history=self.motion(history).clamp(-limit, limit) * history_present[:, None, None],
            history_present=history_present,
        )

    def block_loss(self, network: nn.Module, block: Tensor, condition: Condition, generator: torch.Generator,
                   rows: slice = slice(None)) -> Tensor:
        """Training loss of `rows` of true motion `block` [B, K, 56], real units: mean squared error in parameter space.

        Args:
            network: `self.network`, or what shares its weights with other processes.
        """
        state = self.motion(block)
        if self.network.is_diffusion:
            return diffusion_loss(network, state, condition, generator, rows)
        return functional.mse_loss(network(condition[rows]), state[rows])

    # States of a dit are factors of motion, counted from the listener's anchor

    def anchor_state(self, clip: Tensor | None, size: int) -> Tensor:
        """Anchors [B, 56] of style clips [B, n, 56] in real units, normalised; zero without any."""
        if clip is None:
            return torch.zeros(size, NUM_MOTION, device=self.motion.mean.device)
        return self.motion(clip.float().mean(1).to(self.motion.mean.device))

    def state(self, motion: Tensor, anchor: Tensor) -> Tensor:
        """States of motion [B, N, 56], real units, after `anchor` [B, 56]."""
        limit = self.config.state_limit
        return self.factors(self.motion(motion) - anchor[:, None]).clamp(-limit, limit)

    def motion_of(self, state: Tensor, anchor: Tensor) -> Tensor:
        """Motion [B, N, 56] in real units of states, the inverse of `state`."""
        return self.motion.inverse(self.factors.inverse(state) + anchor[:, None])

    def scene(self, audio: Tensor, audio_present: Tensor, expression: Tensor, expression_present: Tensor, attitude: Tensor,
              anchor: Tensor, anchor_present: Tensor) -> Scene:
        """A `Scene` of a speaker in real units."""
        return Scene(self.audio(audio), audio_present, self.expression(expression), expression_present, attitude, anchor,
                     anchor_present)

    def sequence_loss(self, network: nn.Module, states: Tensor, scene: Scene, counts: Tensor, drawn: Noise,
                      velocity_weight: float) -> Tensor:
        """Training loss of a dit over `states` [B, N, 56]; the arguments are those of `forcing.forcing_loss`."""
        return forcing_loss(network, self.network.innovations, states, scene, counts, drawn, self.loss_weights(),
                            self.config.prediction, velocity_weight)

    def loss_weights(self) -> Tensor:
        """Weight [56] of each factor in the loss: what it moves of the balanced parameters. Innovations have unit variance and
        errors persist as the factor does, so this is the squared error in parameter space."""
        parameters = balance(self.motion.std > 0, self.landmark_basis is not None)
        weights = self.factors.back**2 @ parameters
        return weights / weights.sum().clamp(min=1e-9)

    # Checks

    def check_speaker(self, audio: Tensor, expression: Tensor | None, expression_valid: Tensor | None) -> None:
        """Raises `UserError` for features that this brain was not trained on, of unequal length, or with NaN."""
        config = self.config
        remedy = "Prepare the input with the settings in the brain's config.json."
        if audio.ndim != 2 or audio.shape[1] != config.audio_dim:
            got = f"{audio.shape[1]} numbers a frame" if audio.ndim == 2 else f"shape {tuple(audio.shape)}"
            raise UserError(f"The audio features have {got}; the brain was trained on {config.audio} of {config.audio_dim}.", remedy)
        if expression is not None and (expression.ndim != 2 or expression.shape[1] != NUM_EXPRESSION):
            raise UserError(f"The speaker expression has shape {tuple(expression.shape)}; [frames, {NUM_EXPRESSION}] is wanted.",
                            remedy)
        for name, value in (("speaker expression", expression), ("list of seen frames", expression_valid)):
            if value is not None and len(value) != len(audio):
                raise UserError(f"The {name} has {len(value)} frames, the audio features have {len(audio)}.", remedy)
        if len(audio) == 0:
            raise UserError("The audio has no frame.", "Give at least one frame.")
        for name, value in (("audio features", audio), ("speaker expression", expression)):
            if value is not None:
                _check_finite(value, name)
        if expression is not None and not config.uses_face:
            warnings.warn("This brain was trained without speaker expression; the one given is ignored.", stacklevel=3)

    def _check_motion(self, motion: Tensor | None, name: str) -> None:
        if motion is None:
            return
        if motion.ndim != 2 or motion.shape[1] != NUM_MOTION:
            raise UserError(f"The {name} has shape {tuple(motion.shape)}; [frames, {NUM_MOTION}] is wanted.",
                            "Prepare the input with the settings in the brain's config.json.")
        if len(motion) == 0:
            raise UserError(f"The {name} has no frame.", "Give at least one frame.")
        _check_finite(motion, name)


BASIS = "landmark_basis."


def _check_finite(value: Tensor, name: str) -> None:
    if not torch.isfinite(value).all():
        frame = int(torch.nonzero(~torch.isfinite(value).all(1))[0])
        raise UserError(f"The {name} are not finite at frame {frame}.", "Prepare the input again.")


def _rows(array: Tensor, rows: Tensor) -> Tensor:
    """`array[:, rows]` of [B, T, ...], zero where a row lies outside."""
    taken = array[:, rows.clamp(0, array.shape[1] - 1)]
    taken[:, (rows < 0) | (rows >= array.shape[1])] = 0
    return taken


def _recent(past: Tensor, history: int) -> Tensor:
    """The last `history` rows of `past` [B, n, 56], the earliest repeated where there are fewer; zeros where none."""
    if past.shape[1] == 0:
        return torch.zeros(len(past), history, NUM_MOTION)
    return torch.cat([past[:, :1].expand(-1, max(history - past.shape[1], 0), -1), past[:, -history:]], 1)


def _card(config: BrainConfig, training: dict[str, Any]) -> str:
    told = dict(training)
    if clips := told.get("clips"):
        terms = sorted({licence for clip in clips for licence in clip.get("licences", ())})
        frames = sum(clip.get("frames", 0) for clip in clips)
        told["clips"] = f"{len(clips)}, {frames} frames; {'; '.join(terms) or 'no licence noted'}"
    lines = "\n".join(f"- {key.replace('_', ' ')}: {json.dumps(value, ensure_ascii=False)}" for key, value in told.items())
    return f"""---
library_name: difflistener
license: other
tags: [listening-head, motion-generation, {config.network}]
---

# Diff-Listener brain ({config.network})

Generates the motion of a listener (56 numbers a frame, 25 fps, basis `{config.basis}`) from what a speaker says
(`{config.audio}`, {config.audio_dim} numbers a frame){" and how the speaker's face moves" if config.uses_face else ""}.

```python
from difflistener.brain.model import Brain
motion = Brain.from_pretrained("THIS_FOLDER").generate(audio)  # [T, {config.audio_dim}] -> [T, 56]
```

## Provenance

{lines or "- not recorded"}

## Licence

The weights are bound by the terms of the clips named above; the code is Apache-2.0. Reactions are generated: they
are nobody's opinion and must not be presented as a real person's.
"""
