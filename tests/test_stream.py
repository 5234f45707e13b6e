"""Streaming: bit for bit what is generated at once, in constant memory, with little delay."""

import pytest
import torch
from test_brain import make_brain, speaker

from difflistener.brain.config import BrainConfig, BrainTraining
from difflistener.brain.stream import Stream
from difflistener.errors import UserError

FRAMES = 61  # Five times the history of 12 frames, and no whole number of hops.

pytestmark = pytest.mark.usefixtures("one_thread")


def small(look_ahead=0, **changes):
    return make_brain(uses_face=True, block=2, history=12, context=9, look_ahead=look_ahead, **changes)


def streamed(stream, pieces, *inputs) -> list[torch.Tensor]:
    """What each push of `pieces` frames gives, and the end."""
    motion, first = [], 0
    while first < FRAMES:
        size = pieces[len(motion) % len(pieces)]
        motion.append(stream.push(*(x[first : first + size] for x in inputs)))
        first += size
    return [*motion, stream.finish()]


@pytest.mark.parametrize("pieces", [(2,), (1,), (5, 3, 0, 1), (FRAMES,)])
@pytest.mark.parametrize("look_ahead", [0, 1])
@pytest.mark.parametrize("guidance", [1.0, 1.4])
def test_streaming_is_generating_bit_for_bit(pieces, look_ahead, guidance):
    brain = small(look_ahead)
    given = speaker(FRAMES), speaker(FRAMES, 50, seed=1), torch.rand(FRAMES) > 0.2
    start = torch.randn(5, 56, generator=torch.Generator().manual_seed(2))
    manner = {"num_steps": 4, "seed": 7, "sample": 2, "start": start, "audio_guidance": guidance, "attitude": "positive"}
    whole = brain.generate(given[0], given[1], expression_valid=given[2], **manner)
    parts = streamed(Stream(brain, **manner), pieces, *given)
    assert whole.shape == (FRAMES, 56) and torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize("look_ahead", [0, 1])
def test_a_hop_is_answered_as_soon_as_it_is_heard(look_ahead):
    brain = small(look_ahead)
    stream = Stream(brain, num_steps=1)
    delay = 2 + look_ahead
    assert len(stream.push(speaker(delay - 1))) == 0 and len(stream.push(speaker(1))) == 2
    assert len(stream.push(speaker(2))) == 2
    assert stream.latency_ms == 40 * delay


def test_the_default_reacts_within_100_ms():
    own = BrainTraining((), "brain").complete()
    assert BrainConfig("dit", "b", "logmel", 84, True, block=own.block, look_ahead=own.look_ahead).latency_ms <= 100


def test_memory_does_not_grow():
    stream = Stream(small(), num_steps=1)

    def size() -> int:
        inner = stream._streams
        tensors = [*inner._rows.values(), inner._fixed, inner._sampler._ring]
        return sum(tensor.untyped_storage().nbytes() for tensor in tensors)

    sizes = set()
    for hop in range(200):
        motion = stream.push(speaker(2, seed=hop), speaker(2, 50, seed=hop))
        sizes.add(size())
    assert len(sizes) == 1 and torch.isfinite(motion).all()


def test_side_by_side_is_as_alone():
    brain = small()
    audio, face = (torch.stack([speaker(9, dim), speaker(9, dim, seed=1)]) for dim in (6, 50))
    start = torch.ones(2, 3, 56)
    both = brain.generate_many(audio, face, start, num_steps=3, seed=5, samples=[4, 0])
    for row, sample in enumerate([4, 0]):
        alone = brain.generate(audio[row], face[row], start[row], num_steps=3, seed=5, sample=sample)
        assert torch.allclose(both[row], alone, atol=1e-3)


def test_wrong_use_is_named():
    with pytest.raises(UserError, match="network mlp does not stream"):
        Stream(make_brain("mlp"))
    with pytest.raises(UserError, match="0 DDIM steps"):
        Stream(small(), num_steps=0)
    with pytest.raises(UserError, match="have 4 numbers a frame"):
        Stream(small()).push(speaker(2, 4))
