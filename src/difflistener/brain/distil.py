"""Fewer steps: a dit is taught to do in a few steps what its teacher, guided, does in fifteen.

The teacher's equation is solved from the same noise, after the same true past; each of the student's steps is to land
where the teacher has come to by then (trajectories as targets: Luhman & Luhman 2021, Salimans & Ho 2022). What guidance
adds is learned with it, so the student needs a single pass a step.
Axes: B sequences, N frames, K of a block, D = 56 motion.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from difflistener.brain.config import BrainTraining
from difflistener.brain.dit import Scene
from difflistener.brain.forcing import (
    DISTINCT, Noise, Step, clean_estimate, innovations_of, noisy_past, prediction_loss, sampling_steps, solve,
)
from difflistener.brain.lessons import SequenceLessons
from difflistener.brain.model import Brain
from difflistener.brain.stream import branches
from difflistener.dataset import Frames

TEACHER_STEPS = 15
"""Least number of steps that a teacher takes."""


class Distillation(SequenceLessons):
    """Sequences whose blocks a teacher has generated, each after its true past."""

    sample = 8

    def __init__(self, frames: Frames, config: BrainTraining, spans: list[tuple[int, int]], teacher: Brain):
        super().__init__(frames, config, spans)
        self.teacher = teacher.eval().requires_grad_(False)
        own = teacher.config
        self.branches = branches(own.audio_guidance, own.face_guidance, own.uses_face)

    def prepare(self, brain: Brain) -> None:
        """The student begins as its teacher, which knows how far motion goes."""
        brain.load_state_dict(self.teacher.state_dict())

    def _loss(self, brain: Brain, network: nn.Module, states: Tensor, scene: Scene, counts: Tensor, drawn: Noise) -> Tensor:
        noisy, clean, levels, which = self.trajectory(states, scene, drawn)
        _, unit = innovations_of(brain.network.innovations, states, drawn.remembers)
        past = noisy_past(brain.network.innovations, states, drawn)
        return prediction_loss(network, past, noisy, clean, unit, levels, which, scene, counts, drawn.remembers, brain.loss_weights(),
                               brain.config.prediction, self.config.velocity_weight)

    @torch.no_grad()
    def trajectory(self, states: Tensor, scene: Scene, drawn: Noise) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What the student is to do, one of its steps in each block.

        Frames at level 0 in `drawn` are given, as in in-painting.

        Returns:
            Innovations [B, N, 56] before the step, the clean ones that the step must estimate, the levels [1 + S] and the
            index into them [B, N], as `DiT.forward` takes them.
        """
        teacher, prediction = self.teacher.network, self.teacher.config.prediction
        ratio = -(-TEACHER_STEPS // self.config.distil_steps)
        own = sampling_steps(self.config.distil_steps)
        clean, unit = innovations_of(teacher.innovations, states, drawn.remembers)
        past = noisy_past(teacher.innovations, states, drawn)
        given = (drawn.which == 0)[..., None]
        reached: list[Tensor] = []
        landmarks = {step.level for step in own}

        def network(state: Tensor, step: Step) -> Tensor:
            state = torch.where(given, clean, state)
            if step.level in landmarks:
                reached.append(state)
            levels = functional.pad(torch.full((1,), float(step.level), device=states.device), (1, 0))
            with torch.autocast(states.device.type, torch.bfloat16, enabled=states.is_cuda):
                return sum(weight * teacher(past, state, levels, (~given[..., 0]).long(), scene.without(not hear, not see),
                                            drawn.remembers).float() for hear, see, weight in self.branches)

        expected, limit = states - unit * clean, self.teacher.config.state_limit
        end = solve(network, drawn.noise, sampling_steps(ratio * self.config.distil_steps), prediction,
                    (-limit - expected) / unit, (limit - expected) / unit)
        targets = [*(_estimate_towards(step, here, after) for step, here, after in zip(own[:-1], reached, reached[1:])), end]
        block = drawn.which.unflatten(1, (-1, len(teacher.innovations.spread)))
        stage = ((block.amax(2) - 1).clamp(min=0) * len(own) // DISTINCT).clamp(max=len(own) - 1)
        stage = stage.repeat_interleave(block.shape[2], 1)
        chosen = stage[None, ..., None].expand(1, *states.shape)
        levels = torch.cat([torch.full((1,), float(level), device=states.device) for level in (0, *(step.level for step in own))])
        which = torch.where(given[..., 0], 0, 1 + stage)
        return (torch.stack(reached).gather(0, chosen)[0], torch.stack(targets).gather(0, chosen)[0], levels, which)


def _estimate_towards(step: Step, here: Tensor, after: Tensor) -> Tensor:
    """The clean estimate with which one step of plain DDIM leads from `here` to `after`."""
    v = (math.cos(step.turn) * here - after) / math.sin(step.turn)
    return clean_estimate(v, here, step.alpha, step.sigma, "v")
