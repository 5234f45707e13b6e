"""Row counts, causality, streaming = offline, and the real wav2vec 2.0 class with tiny weights."""

import json
import tracemalloc

import numpy as np
import pytest

from difflistener.errors import UserError
from difflistener.prepare import audio
from difflistener.prepare.audio import AUDIO_ENCODERS, LogMel, Wav2Vec2, make_encoder


def voice(seconds, seed=0):
    """Bursts of a buzzing tone with pauses: float32 [n]."""
    rng = np.random.default_rng(seed)
    t = np.arange(int(seconds * 16_000)) / 16_000
    tone = sum(np.sin(2 * np.pi * 140 * h * t) / h for h in range(1, 12)) * (np.sin(2 * np.pi * 0.7 * t) > -0.3)
    return (0.1 * tone + 0.01 * rng.standard_normal(len(t))).astype(np.float32)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A folder with a real wav2vec 2.0 of 16 dimensions."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("wav2vec2")
    config = transformers.Wav2Vec2Config(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, conv_dim=(8,) * 7,
        num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=2,
    )
    transformers.Wav2Vec2Model(config).save_pretrained(folder)
    return str(folder)


@pytest.fixture(params=["logmel", "wav2vec2", "wav2vec2 hop 3", "wav2vec2 hop 2 look-ahead 2"])
def encoder(request, tiny):
    name, *rest = request.param.split(" ", 1)
    if name == "logmel":
        return make_encoder(name)
    options = {"hop 3": {"hop": 3}, "hop 2 look-ahead 2": {"hop": 2, "look_ahead": 2}}.get(rest[0] if rest else "", {})
    return make_encoder(name, model=tiny, window=10, **options)


def delay(encoder):
    """Frames after its own that a row may look at."""
    return 0 if encoder.name == "logmel" else encoder.hop - 1 + encoder.look_ahead


@pytest.mark.parametrize("samples", [0, 1, 639, 640, 641, 6399, 16_001])
@pytest.mark.parametrize("frames", [0, 1, 7, 25])
def test_exactly_the_rows_asked_for(encoder, samples, frames):
    rows = encoder.encode(voice(1.1)[:samples], frames)
    assert rows.shape == (frames, encoder.dim) and rows.dtype == np.float32
    assert np.isfinite(rows).all()
    assert np.array_equal(rows, encoder.encode(np.pad(voice(1.1)[:samples], (0, 20_000)), frames))


@pytest.mark.parametrize("k", [0, 1, 9, 20])
def test_no_row_depends_on_what_comes_later(encoder, k):
    signal, changed = voice(1.2), voice(1.2)
    changed[(k + 1 + delay(encoder)) * 640 :] = voice(1.2, seed=1)[(k + 1 + delay(encoder)) * 640 :] * 3 + 0.2
    before, after = encoder.encode(signal, 30), encoder.encode(changed, 30)
    assert np.array_equal(before[: k + 1], after[: k + 1])
    assert not np.array_equal(before[k + 1 + delay(encoder) :], after[k + 1 + delay(encoder) :])


def test_the_last_sample_of_a_frame_counts(encoder):
    signal, changed = voice(1.0), voice(1.0)
    changed[10 * 640 - 1] += 0.5
    before, after = encoder.encode(signal, 25), encoder.encode(changed, 25)
    assert not np.array_equal(before[9], after[9])


@pytest.mark.parametrize("seed", range(4))
def test_streaming_in_any_pieces_equals_offline(encoder, seed):
    rng = np.random.default_rng(seed)
    signal = voice(3.0)
    stream, rows, position = encoder.stream(), [], 0
    while position < len(signal):
        piece = int(rng.choice([1, 7, 160, 320, 640, 641, 5000]))
        rows.append(stream.push(signal[position : position + piece]))
        position += piece
        # A row is there as soon as its samples are, never later.
        complete = min(position, len(signal)) // 640 - delay(encoder)
        assert sum(map(len, rows)) >= complete
    live = np.concatenate(rows)
    offline = encoder.encode(signal, 75)[: len(live)]
    assert len(live) >= 75 - delay(encoder)
    if encoder.name == "logmel":
        assert np.array_equal(live, offline)
    else:
        np.testing.assert_allclose(live, offline, atol=1e-5)


def test_settings_and_dim_are_complete(encoder):
    settings = json.loads(json.dumps(encoder.settings()))
    assert settings == encoder.settings() and settings["rate"] == 16_000
    assert encoder.encode(voice(0.2), 5).shape[1] == encoder.dim
    assert AUDIO_ENCODERS[encoder.name] is type(encoder)


def test_a_bad_sample_is_named_by_its_time(encoder):
    signal = voice(1.0)
    signal[8_000] = np.nan
    with pytest.raises(ValueError, match="0.5000 s is nan"):
        encoder.encode(signal, 25)
    stream = encoder.stream()
    stream.push(voice(1.0))
    with pytest.raises(ValueError, match="1.0001 s is inf"):
        stream.push(np.array([0.0, np.inf], np.float32))
    with pytest.raises(ValueError, match="mix the channels"):
        stream.push(np.zeros((2, 640), np.float32))


def test_memory_does_not_grow_with_length():
    encoder = LogMel()
    signal = np.zeros(600 * 16_000, np.float32)

    def peak(seconds):
        tracemalloc.start()
        rows = encoder.encode(signal[: seconds * 16_000], seconds * 25)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak - rows.nbytes

    assert peak(600) < peak(60) + 200_000


def test_logmel_places_tones_and_pauses():
    encoder = LogMel()
    assert (encoder._filters.sum(0) > 0.5).all()  # no band falls between two bins
    t = np.arange(32_000) / 16_000
    peaks = [encoder.encode(0.3 * np.sin(2 * np.pi * f * t), 50)[25, :80].argmax() for f in (300, 1000, 3000, 7000)]
    centres = encoder._filters.argmax(0)[peaks] * 16_000 / 512
    np.testing.assert_allclose(centres, (300, 1000, 3000, 7000), rtol=0.06)
    silence = encoder.encode(np.zeros(6400, np.float32), 10)
    assert np.ptp(silence[:, :80]) == 0 and np.ptp(silence[:, 80:]) == 0
    signal = 0.3 * np.sin(2 * np.pi * 300 * t)
    signal[10 * 640 + 320 :] = 0  # the voice stops in the middle of frame 10
    energy = encoder.encode(signal, 20)[10, 80:]
    assert (energy[:2] > 1).all() and (energy[2:] < -1).all()


def test_logmel_is_about_unit_range_on_a_voice():
    rows = LogMel().encode(voice(20), 500)
    assert abs(rows.mean()) < 1.5 and 0.3 < rows.std() < 2 and np.abs(rows).max() < 5


def test_wav2vec2_equals_the_plain_model_on_each_window(tiny):
    import torch
    import transformers

    encoder = Wav2Vec2(tiny, window=10)
    signal = voice(1.0)
    rows = encoder.encode(signal, 25)
    model = transformers.Wav2Vec2Model.from_pretrained(tiny).eval()
    normalise = transformers.Wav2Vec2FeatureExtractor(do_normalize=True)
    for k in (3, 10, 24):
        past = np.pad(signal, (6480, 0))[(k + 1) * 640 : (k + 1) * 640 + 6480]
        window = normalise(past, sampling_rate=16_000, return_tensors="pt").input_values
        with torch.no_grad():
            tokens = model(window).last_hidden_state[0]
        assert tokens.shape == (20, 16)
        np.testing.assert_allclose(rows[k], tokens[-2:].mean(0).numpy(), atol=1e-5)


def test_wav2vec2_does_not_depend_on_the_batch_size(tiny):
    rows = [Wav2Vec2(tiny, window=10, batch_size=size).encode(voice(2), 50) for size in (1, 7, 64)]
    np.testing.assert_allclose(rows[0], rows[1], atol=1e-5)
    np.testing.assert_allclose(rows[0], rows[2], atol=1e-5)


def test_wav2vec2_that_cannot_be_fetched_says_what_to_do(monkeypatch, tmp_path):
    pytest.importorskip("transformers")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="cannot be loaded") as error:
        make_encoder("wav2vec2", model="difflistener/no-such-model").encode(voice(0.1), 2)
    assert "logmel" in error.value.remedy and "--local-dir" in error.value.remedy
    with pytest.raises(UserError, match="cannot be loaded"):
        make_encoder("wav2vec2", model=str(tmp_path)).stream()


def test_wav2vec2_with_other_tokens_is_refused(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.Wav2Vec2Config(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, conv_dim=(8,) * 6,
        conv_kernel=(10, 3, 3, 3, 3, 2), conv_stride=(5, 2, 2, 2, 2, 2),
        num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=2, num_feat_extract_layers=6,
    )
    transformers.Wav2Vec2Model(config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="every 160"):
        Wav2Vec2(str(tmp_path)).encode(voice(0.1), 2)
    with pytest.raises(ValueError, match="window 4"):
        Wav2Vec2(str(tmp_path), window=4, hop=5)


def test_an_unknown_encoder_names_the_known_ones():
    with pytest.raises(UserError, match="hubert") as error:
        make_encoder("hubert")
    assert "logmel, wav2vec2" in error.value.remedy


def test_the_rate_is_that_of_the_media():
    from difflistener import media

    assert (audio.SAMPLE_RATE, audio.SAMPLES_PER_FRAME) == (media.SAMPLE_RATE, media.SAMPLES_PER_FRAME)
