"""A diffusion transformer over motion: every frame has its own noise level, and what is past is frames at level zero.

Blocks of K frames are denoised together; a block sees itself and the clean blocks of the last `history` frames
(block-causal attention), and each frame sees the speaker in a window of `context` frames that ends `look_ahead`
frames after it. DiT: Peebles & Xie 2023 (adaLN-zero); a noise level per frame: Chen et al. 2024 (Diffusion Forcing);
rotary positions: Su et al. 2021; norm of queries and keys: Dehghani et al. 2023.

What is denoised of a block are its innovations: how it departs from its linear prediction from the last frame, in units
of how far motion usually does. Most motion changes little in a frame; as whole states, all that is undecided about the
next frames would lie below the noise of the last denoising step, and be lost as their mean.

Noise levels are whole numbers: 0 is clean, 1000 is noise alone. States are normalised. Knows nothing of noise
schedules, files or real units.
Axes: B sequences, N frames, K of a block, C of context, A audio feature, D = 56 motion, W width, L layers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from difflistener.brain.config import ATTITUDES, BrainConfig
from difflistener.brain.networks import timestep_embedding
from difflistener.motion import NUM_EXPRESSION, NUM_MOTION

FRAME_WIDTH = 64
LEAST_SPREAD = 1e-4


@dataclass(frozen=True)
class Scene:
    """What listeners perceive around N frames, normalised. Frame n sees rows n to n + C - 1 of the speaker."""

    audio: Tensor  # [B, N + C - 1, A]
    audio_present: Tensor  # [B, N + C - 1] 0 or 1
    expression: Tensor  # [B, N + C - 1, 50]
    expression_present: Tensor  # [B, N + C - 1] 0 or 1
    attitude: Tensor  # [B] 0 for none, else 1 + index into ATTITUDES
    anchor: Tensor  # [B, 56] mean state of the listener's style clip, from which states count; zero where unknown
    anchor_present: Tensor  # [B] 0 or 1

    def __getitem__(self, rows) -> Scene:
        return Scene(**{name: value[rows] for name, value in vars(self).items()})

    def without(self, audio: bool = False, face: bool = False) -> Scene:
        """The same scene with the speaker unheard or unseen: a dropped condition is one that is absent."""
        return replace(self, audio_present=self.audio_present * (not audio),
                       expression_present=self.expression_present * (not face))

    @staticmethod
    def stack(scenes: list[Scene]) -> Scene:
        return Scene(**{name: torch.cat([getattr(scene, name) for scene in scenes]) for name in vars(scenes[0])})


@dataclass(frozen=True)
class Modulation:
    """What a noise level does to the network: for every layer six vectors [..., W], for the output three."""

    layers: list[tuple[Tensor, ...]]
    shift: Tensor  # [..., W]
    scale: Tensor  # [..., W]
    gain: Tensor  # [..., 56]


ByFrame = Callable[[Tensor], Tensor]
"""Vectors [M, n] of M noise levels -> those of the frames at these levels."""

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""(layer, queries, keys, values [B, heads, N, W / heads]) -> what was attended to, of the same shape."""


class Innovations(nn.Module):
    """States [B, K, 56] of a block <-> their innovations, given the frame before the block, or none.

    innovation = (state - persistence * last) / spread; without a frame before, the state itself.
    """

    def __init__(self, block: int):
        super().__init__()
        self.register_buffer("persistence", torch.ones(block, NUM_MOTION))
        self.register_buffer("spread", torch.ones(block, NUM_MOTION))

    def set(self, states: Tensor) -> None:
        """Least squares over states [B, N, 56], N more than a block. What never moves keeps a spread of one."""
        for ahead in range(len(self.spread)):
            last, after = (part.flatten(0, 1).double() for part in (states[:, : -ahead - 1], states[:, ahead + 1 :]))
            persistence = (last * after).mean(0) / (last**2).mean(0).clamp(min=1e-12)
            spread = ((after - persistence * last) ** 2).mean(0).sqrt()
            self.persistence[ahead] = persistence
            self.spread[ahead] = torch.where(spread > LEAST_SPREAD, spread, 1.0)

    def prediction(self, last: Tensor) -> Tensor:
        """[..., K, 56] after states [..., 56]."""
        return self.persistence * last[..., None, :]


class Window(nn.Module):
    """One stream of the speaker -> [B, N, W]: a causal convolution over C frames, with weights for every delay."""

    def __init__(self, width_in: int, context: int, width: int):
        super().__init__()
        self.context = context
        self.frame = nn.Linear(width_in + 1, FRAME_WIDTH)
        self.delays = nn.Linear(FRAME_WIDTH * context, width)

    def forward(self, rows: Tensor, present: Tensor) -> Tensor:
        present = present[..., None]
        encoded = functional.silu(self.frame(torch.cat([rows * present, present], -1)))
        return self.delays(encoded.unfold(1, self.context, 1).flatten(2))


class Layer(nn.Module):
    """Attention, then an MLP, both modulated by the noise level; the scene is added before."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.width, self.heads = width, heads
        self.level = nn.Linear(width, 6 * width)
        self.told = nn.Linear(width, width, bias=False)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.sharpness = nn.Parameter(torch.ones(heads))
        self.attended = nn.Linear(width, width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)
        nn.init.zeros_(self.level.weight)
        nn.init.zeros_(self.level.bias)

    def modulation(self, level: Tensor, by_frame: ByFrame) -> tuple[Tensor, ...]:
        shift, scale, gate, shift2, scale2, gate2 = by_frame(self.level(level)).chunk(6, -1)
        return shift, 1 + scale, gate, shift2, 1 + scale2, gate2

    def turns(self, positions: Tensor) -> Tensor:
        """Rotary factors of queries and keys, [N, 2, heads, W / heads / 2] complex."""
        half = self.width // self.heads // 2
        # In float64: a conversation may be a million frames long.
        frequency = 10_000.0 ** (-torch.arange(half, dtype=torch.float64, device=positions.device) / half)
        angle = positions.double()[:, None] * frequency
        turn = torch.complex(angle.cos().float(), angle.sin().float())[:, None].expand(-1, self.heads, -1)
        return torch.stack([turn * self.sharpness[:, None], turn], 1)

    def forward(self, x: Tensor, told: Tensor, modulation: tuple[Tensor, ...], turns: Tensor,
                attend: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Tensor:
        shift, scale, gate, shift2, scale2, gate2 = modulation
        x = x + told
        qkv = self.qkv(torch.addcmul(shift, functional.layer_norm(x, (self.width,)), scale)).unflatten(-1, (3, self.heads, -1))
        pair, v = qkv[:, :, :2].float(), qkv[:, :, 2].transpose(1, 2)
        pair = functional.layer_norm(pair, pair.shape[-1:])
        pair = torch.view_as_real(torch.view_as_complex(pair.unflatten(-1, (-1, 2))) * turns).flatten(-2).to(v.dtype)
        q, k = pair.permute(2, 0, 3, 1, 4).unbind()
        x = torch.addcmul(x, gate, self.attended(attend(q, k, v).transpose(1, 2).flatten(2)))
        hidden = self.up(torch.addcmul(shift2, functional.layer_norm(x, (self.width,)), scale2))
        return torch.addcmul(x, gate2, self.down(functional.silu(hidden)))


class DiT(nn.Module):
    """Noisy motion, its noise levels and a scene -> v or the clean motion, as `config.prediction` says."""

    is_diffusion = True

    def __init__(self, config: BrainConfig):
        super().__init__()
        width = config.width
        self.width, self.block, self.memory = width, config.block, config.history // config.block
        self.hear = Window(config.audio_dim, config.context, width)
        self.see = Window(NUM_EXPRESSION, config.context, width) if config.uses_face else None
        self.attitude = nn.Embedding(1 + len(ATTITUDES), width)
        self.anchor = nn.Linear(NUM_MOTION + 1, width, bias=False)
        self.merge = nn.Linear(width, width)
        self.level = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.innovations = Innovations(config.block)
        self.past = nn.Linear(2 * NUM_MOTION, width)
        self.into = nn.Linear(NUM_MOTION, width)
        self.without_past = nn.Parameter(torch.zeros(width))
        self.layers = nn.ModuleList(Layer(width, config.heads) for _ in range(config.layers))
        self.last = nn.Linear(width, 2 * width + NUM_MOTION)
        self.head = nn.Linear(width, NUM_MOTION)
        for parameter in (self.attitude.weight, self.last.weight, self.last.bias):
            nn.init.zeros_(parameter)

    def hidden(self) -> list[nn.Parameter]:
        """Matrices from hidden to hidden numbers."""
        linear = [self.merge, *(part for part in self.level if isinstance(part, nn.Linear)), self.hear.delays]
        linear += [] if self.see is None else [self.see.delays]
        linear += [part for layer in self.layers for part in (layer.told, layer.qkv, layer.attended, layer.up, layer.down)]
        return [part.weight for part in linear]

    def perceive(self, scene: Scene) -> list[Tensor]:
        """What each layer is told of the scene, L times [B, N, W]."""
        told = self.hear(scene.audio, scene.audio_present)
        if self.see is not None:
            told = told + self.see(scene.expression, scene.expression_present)
        present = scene.anchor_present[:, None]
        steady = self.attitude(scene.attitude) + self.anchor(torch.cat([scene.anchor * present, present], 1))
        told = functional.silu(self.merge(functional.silu(told + steady[:, None])))
        return [layer.told(told) for layer in self.layers]

    def modulation(self, levels: Tensor, which: Tensor | None = None) -> Modulation:
        """Of noise levels [...]; or of frames [B, N], each at one of a few `levels` [M], `which` [B, N]."""
        def by_frame(table: Tensor) -> Tensor:
            # Not table[which]: on a GPU, adding up its gradient took ten times as long as all the rest.
            return table if which is None else functional.embedding(which, table)

        level = self.level(timestep_embedding(levels.flatten(), self.width).unflatten(0, levels.shape))
        shift, scale, gain = by_frame(self.last(level)).split([self.width, self.width, NUM_MOTION], -1)
        return Modulation([layer.modulation(level, by_frame) for layer in self.layers], shift, 1 + scale, gain)

    def turns(self, positions: Tensor) -> list[Tensor]:
        """Each layer's rotary factors at frames `positions` [N]."""
        return [layer.turns(positions) for layer in self.layers]

    def embed_past(self, states: Tensor, before: Tensor) -> Tensor:
        """Clean states [B, N, 56] -> [B, N, W]; `before` [B, N, 56] are those one frame earlier."""
        return self.past(torch.cat([states, (states - before) / self.innovations.spread[0]], -1))

    def embed_noisy(self, noisy: Tensor, has_past: Tensor | None) -> Tensor:
        """Noisy innovations [B, N, 56] -> [B, N, W]; `has_past` [B, N] bool, None where all frames have one."""
        x = self.into(noisy)
        return x if has_past is None else x + self.without_past * ~has_past[..., None]

    def denoise(self, x: Tensor, noisy: Tensor, told: list[Tensor], modulation: Modulation, turns: list[Tensor],
                attend: Attend) -> Tensor:
        """One pass over embedded frames [B, N, W]. `turns` are each layer's rotary factors of the N frames; `noisy` [B, N, 56]
        is what reaches the output directly."""
        for index, layer in enumerate(self.layers):
            x = layer(x, told[index], modulation.layers[index], turns[index],
                      lambda q, k, v, index=index: attend(index, q, k, v))
        x = torch.addcmul(modulation.shift, functional.layer_norm(x, (self.width,)), modulation.scale)
        # Noise reaches the output directly: it need not be carried through the layers.
        return torch.addcmul(self.head(x), modulation.gain, noisy)

    def forward(self, clean: Tensor, noisy: Tensor, levels: Tensor, which: Tensor, scene: Scene, remembers: Tensor) -> Tensor:
        """All blocks of sequences at once, for training: each noisy block sees the clean blocks before it.

        Args:
            clean: states [B, N, 56], N a multiple of K.
            noisy: innovations [B, N, 56] of the blocks, with noise.
            levels: [M], the first is 0.
            which: [B, N] index into `levels` of each noisy frame.
            remembers: [B, N / K] bool, whether a block sees its past at all.

        Returns:
            [B, N, 56] for the noisy frames.
        """
        num = clean.shape[1]
        modulation = self.modulation(levels, torch.cat([torch.zeros_like(which), which], 1))
        positions = torch.arange(num, device=clean.device).repeat(2)
        mask = self._mask(num, remembers)

        def attend(layer, q, k, v):
            return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)

        told = [torch.cat([part, part], 1) for part in self.perceive(scene)]
        before = torch.cat([clean[:, :1], clean[:, :-1]], 1)
        x = torch.cat([self.embed_past(clean, before), self.embed_noisy(noisy, remembers.repeat_interleave(self.block, 1))], 1)
        skipped = torch.cat([torch.zeros_like(noisy), noisy], 1)
        return self.denoise(x, skipped, told, modulation, self.turns(positions), attend)[:, num:]

    def _mask(self, num: int, remembers: Tensor) -> Tensor:
        """Who sees whom among N clean and N noisy frames: [B, 1, 2N, 2N] bool, rows see columns."""
        block = torch.arange(num, device=remembers.device) // self.block
        age = block[:, None] - block
        of_clean = ((age >= 0) & (age <= self.memory)).expand(len(remembers), -1, -1)
        of_noisy = ((age >= 1) & (age <= self.memory)) & remembers.repeat_interleave(self.block, 1)[:, :, None]
        itself = (age == 0).expand_as(of_clean)
        nothing = torch.zeros_like(of_clean)
        return torch.cat([torch.cat([of_clean, nothing], 2), torch.cat([of_noisy, itself], 2)], 1)[:, None]
