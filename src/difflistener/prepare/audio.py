"""Turns a mono 16 kHz signal into one feature row per 25 fps frame, the same numbers live and offline.

Causal: row k uses only samples before the end of frame k, that is before (k + 1) * 640. (`Wav2Vec2` can be
told to wait for more.) Before the first sample there is silence. Knows nothing of files or faces.
Axes: n samples, T frames, dim features.
"""

import inspect
import json
from collections.abc import Callable
from typing import Protocol

import numpy as np

from difflistener.errors import UserError, require

SAMPLE_RATE = 16_000
SAMPLES_PER_FRAME = 640
_PIECE = 250 * SAMPLES_PER_FRAME
"""Samples that `encode` hands on at once (10 s), so that memory does not grow with length."""


class AudioEncoder(Protocol):
    name: str
    dim: int
    """Features per frame."""

    def settings(self) -> dict:
        """All that decides the numbers, ready for JSON: the provenance of the features."""
        ...

    def stream(self) -> "AudioStream":
        """A new signal, fed piece by piece."""
        ...

    def encode(self, samples: np.ndarray, num_frames: int) -> np.ndarray:
        """samples float32 [n] -> float32 [num_frames, dim]; the signal is cut, or continued by silence."""
        ...


class AudioStream:
    """Feeds an encoder in pieces of any size: `push` gives a row as soon as its samples are there."""

    def __init__(
        self, dim: int, past: int, ahead: int, step: int, rows: Callable[[np.ndarray, int], np.ndarray]
    ):
        """past, ahead, step: samples. rows(signal [past + m * step + ahead], m) -> [m * step / 640, dim]."""
        self._dim, self._past, self._ahead, self._step, self._rows = dim, past, ahead, step, rows
        self._signal = np.zeros(past, np.float32)
        self._received = 0

    def push(self, samples: np.ndarray) -> np.ndarray:
        """samples [n], mono, 16 kHz, within -1..1 -> float32 [rows, dim]: the rows complete now, often none.

        ValueError for a sample that is not a finite number; it names its time.
        """
        samples = np.asarray(samples, np.float32)
        if samples.ndim != 1:
            raise ValueError(f"samples is {list(samples.shape)}, expected [n]: mix the channels first")
        bad = np.flatnonzero(~np.isfinite(samples))
        if len(bad):
            time = (self._received + bad[0]) / SAMPLE_RATE
            raise ValueError(f"the sound at {time:.4f} s is {samples[bad[0]]}, not a number to work with")
        self._received += len(samples)
        self._signal = np.concatenate([self._signal, samples])
        steps = (len(self._signal) - self._past - self._ahead) // self._step
        if steps <= 0:
            return np.zeros((0, self._dim), np.float32)
        used = steps * self._step
        rows = self._rows(self._signal[: self._past + used + self._ahead], steps)
        self._signal = self._signal[used:].copy()
        return rows


def _encode(stream: AudioStream, samples: np.ndarray, num_frames: int) -> np.ndarray:
    """The offline way is the live way: whatever a stream gives is what training sees."""
    out = np.zeros((num_frames, stream._dim), np.float32)
    needed = -(-num_frames * SAMPLES_PER_FRAME // stream._step) * stream._step + stream._ahead
    done = 0
    for start in range(0, needed, _PIECE):
        piece = np.asarray(samples[start : min(start + _PIECE, needed)], np.float32)
        silence = min(_PIECE, needed - start) - len(piece)
        rows = stream.push(np.pad(piece, (0, silence)) if silence else piece)[: num_frames - done]
        out[done : done + len(rows)] = rows
        done += len(rows)
    assert done == num_frames
    return out


# ---------------------------------------------------------------------------------------------------- log-mel


def mel_filters(bands: int, fft_size: int) -> np.ndarray:
    """float32 [fft_size / 2 + 1, bands]: triangles of height 1, evenly spaced 0 to 8 kHz, on Slaney's mel scale.

    The scale is linear (200/3 Hz a mel) up to 1 kHz and logarithmic above, 27 mels for a factor of 6.4
    (M. Slaney, Auditory Toolbox, 1998). Unlike HTK's it leaves no band between two bins empty here.
    """
    knee, log_step = 15.0, np.log(6.4) / 27
    top = knee + np.log(SAMPLE_RATE / 2 / 1000) / log_step
    mels = np.linspace(0, top, bands + 2)
    edges = np.where(mels < knee, mels * 200 / 3, 1000 * np.exp(log_step * (mels - knee)))
    bins = np.arange(fft_size // 2 + 1)[:, None] * SAMPLE_RATE / fft_size
    rising = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    return np.maximum(0, np.minimum(rising, falling)).astype(np.float32)


class LogMel:
    """84 numbers a frame, no download: what is said (80 mel bands) and exactly when it stops (4 energies).

    A 25 ms Hann window ends every 10 ms, four times a frame. 0:80 is the mean over the four of log10 mel
    power; 80:84 is log10 of the mean square of each 10 ms, so that a pause is placed more finely than a
    frame. Power below -60 dB of a strong voice is floored: silence is one value, whatever the recorder's
    hiss. One fixed shift and scale each brings speech to about unit range; nothing is measured on the clip,
    which would not be causal.
    """

    name = "logmel"
    dim = 84
    window, hop, fft_size, bands = 400, 160, 512, 80
    mel_floor, mel_shift, mel_scale = 1e-4, 2.4, 1.6
    energy_floor, energy_shift, energy_scale = 1e-7, 4.0, 1.7

    def __init__(self):
        self._hann = np.hanning(self.window + 1)[:-1].astype(np.float32)
        self._filters = mel_filters(self.bands, self.fft_size)

    def settings(self) -> dict:
        keys = ("window", "hop", "fft_size", "bands", "mel_floor", "mel_shift", "mel_scale",
                "energy_floor", "energy_shift", "energy_scale")
        return {"mel": "slaney", "rate": SAMPLE_RATE, **{key: getattr(self, key) for key in keys}}

    def stream(self) -> AudioStream:
        return AudioStream(self.dim, self.window - self.hop, 0, SAMPLES_PER_FRAME, self._rows)

    def encode(self, samples: np.ndarray, num_frames: int) -> np.ndarray:
        return _encode(self.stream(), samples, num_frames)

    def _rows(self, signal: np.ndarray, frames: int) -> np.ndarray:
        windows = np.lib.stride_tricks.sliding_window_view(signal, self.window)[:: self.hop]
        power = np.abs(np.fft.rfft(windows * self._hann, self.fft_size)).astype(np.float32) ** 2
        # One small product per frame, however many frames there are: a larger one would round differently.
        mel = power.reshape(frames, -1, power.shape[1]) @ self._filters
        mel = np.log10(np.maximum(mel, self.mel_floor)).mean(1)
        hops = signal[self.window - self.hop :].reshape(frames, -1, self.hop)
        energy = np.log10(np.maximum(np.square(hops).mean(2), self.energy_floor))
        return np.concatenate(
            [(mel + self.mel_shift) / self.mel_scale, (energy + self.energy_shift) / self.energy_scale], 1
        )


# ------------------------------------------------------------------------------------------------ wav2vec 2.0


class Wav2Vec2:
    """Last hidden state of wav2vec 2.0 (Baevski et al., 2020), 768 numbers a frame, two 20 ms tokens averaged.

    The network looks both ways, so that features of a whole recording could never be had live. Here each step
    of `hop` frames is encoded by itself from a window of the past that ends with it: the window is normalised
    to zero mean and unit variance, as the model's own feature extractor does, and the tokens of the step are
    taken.

    The price is one pass of the network for every step. hop=1 is strictly causal and the dearest (on a CPU
    far from real time); hop=5 costs a fifth, but the first of five frames is known 4 frames (160 ms) after
    its end. look_ahead waits for so many frames more, which the network rewards: it was trained with both
    sides.
    """

    name = "wav2vec2"

    def __init__(
        self,
        model: str = "facebook/wav2vec2-base-960h",
        window: int = 50,
        hop: int = 1,
        look_ahead: int = 0,
        batch_size: int = 16,
        device: str = "cpu",
    ):
        """model: name on the Hugging Face Hub or a folder. window, hop, look_ahead: frames of 40 ms.

        The weights are loaded at first use. batch_size and device decide speed and memory, not the numbers
        (to about 1e-5).
        """
        if hop < 1 or look_ahead < 0 or window < hop + look_ahead:
            raise ValueError(
                f"window {window} must hold hop {hop} (1 or more) and look_ahead {look_ahead} (0 or more)"
            )
        self.model, self.window, self.hop, self.look_ahead = str(model), window, hop, look_ahead
        self.batch_size, self.device = batch_size, device
        self._network = None

    @property
    def dim(self) -> int:
        return self._load().config.hidden_size

    def settings(self) -> dict:
        return {"model": self.model, "window": self.window, "hop": self.hop, "look_ahead": self.look_ahead,
                "layer": "last_hidden_state", "rate": SAMPLE_RATE}

    def stream(self) -> AudioStream:
        # A token sees 400 samples every 320: 80 more than its frames make the last token end with the window.
        step, ahead = self.hop * SAMPLES_PER_FRAME, self.look_ahead * SAMPLES_PER_FRAME
        past = self.window * SAMPLES_PER_FRAME + 80 - step - ahead
        return AudioStream(self.dim, past, ahead, step, self._rows)

    def encode(self, samples: np.ndarray, num_frames: int) -> np.ndarray:
        return _encode(self.stream(), samples, num_frames)

    def _rows(self, signal: np.ndarray, steps: int) -> np.ndarray:
        import torch

        network = self._load()
        length = self.window * SAMPLES_PER_FRAME + 80
        windows = np.lib.stride_tricks.sliding_window_view(signal, length)[:: self.hop * SAMPLES_PER_FRAME]
        first = self.window - self.look_ahead - self.hop
        rows = []
        with torch.inference_mode():
            for start in range(0, steps, self.batch_size):
                batch = torch.from_numpy(windows[start : start + self.batch_size].copy()).to(self.device)
                batch = batch - batch.mean(1, keepdim=True)
                batch = batch / torch.sqrt(batch.square().mean(1, keepdim=True) + 1e-7)
                tokens = network(batch).last_hidden_state
                frames = tokens.unflatten(1, (self.window, 2)).mean(2)[:, first : first + self.hop]
                rows.append(frames.flatten(0, 1).float().cpu().numpy())
        return np.concatenate(rows)

    def _load(self):
        if self._network is not None:
            return self._network
        transformers = require("transformers")
        try:
            network = transformers.Wav2Vec2Model.from_pretrained(self.model)
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(
                f"The wav2vec 2.0 weights {self.model} cannot be loaded ({reason}).",
                f"Fetch them once on a machine with network (hf download {self.model} --local-dir FOLDER) and "
                'give that folder as the model, or use the audio encoder "logmel", which needs no download.',
            ) from error
        kernels, strides = network.config.conv_kernel, network.config.conv_stride
        field, stride = 1, 1
        for kernel, by in zip(kernels, strides, strict=True):
            field, stride = field + (kernel - 1) * stride, stride * by
        if (field, stride) != (400, 320):
            raise UserError(
                f"{self.model} gives a token of {field} samples every {stride}, not of 400 every 320.",
                "Use a wav2vec 2.0 model with the usual 20 ms tokens, such as facebook/wav2vec2-base-960h.",
            )
        self._network = network.eval().requires_grad_(False).to(self.device)
        return self._network


AUDIO_ENCODERS = {"logmel": LogMel, "wav2vec2": Wav2Vec2}


def make_encoder(name: str, **settings) -> AudioEncoder:
    """The encoder of that name; `settings` are its constructor's."""
    if name not in AUDIO_ENCODERS:
        raise UserError(f'There is no audio encoder "{name}".', f"Choose one of: {', '.join(AUDIO_ENCODERS)}.")
    return AUDIO_ENCODERS[name](**settings)


def encoder_from_settings(name: str, settings: dict) -> AudioEncoder:
    """The encoder whose `settings()` are these: what a trained brain expects to hear.

    Raises `UserError` where this version makes other numbers.
    """
    parameters = set(inspect.signature(AUDIO_ENCODERS[name].__init__).parameters) if name in AUDIO_ENCODERS else set()
    encoder = make_encoder(name, **{key: value for key, value in settings.items() if key in parameters})
    if json.loads(json.dumps(encoder.settings())) != settings:
        raise UserError(f"The features were made by a {name} encoder with settings {settings}; this version has {encoder.settings()}.",
                        "Prepare the clips and train the brain again, or install the version that made it.")
    return encoder
