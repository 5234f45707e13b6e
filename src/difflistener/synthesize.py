"""Speaker -> motion -> frames -> video. The only place, beside live, that sees both brain and body.

Motion is generated for the whole recording (56 numbers a frame); frames are rendered in small chunks and go straight
to the encoder, so memory does not grow with length. Axes: T frames at 25 fps, B frames a chunk, H, W.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from difflistener.errors import UserError
from difflistener.motion import NUM_EXPRESSION, require_same_basis

CHUNK = 16


@dataclass(frozen=True)
class Synthesis:
    """Generate how a listener reacts to a speaker, and render it as a video.

    Example: difflistener synthesize --audio talk.mp4 --visual talk.mp4 --body-checkpoint bodies/ben
    --brain-checkpoint brains/ben --output listener.mp4
    """

    audio: Path
    """What the speaker says: any audio or video file, or a .npy of audio features [T, A]."""
    body_checkpoint: Path
    """Folder of the body that listens, or the word shipped."""
    brain_checkpoint: Path
    """Folder of the brain, or the word shipped."""
    output: Path
    """Video to write (.mp4). The motion [T, 56] is written beside it as .npy."""
    visual: Path | None = None
    """What the speaker shows: a video, or a .npy of expression codes [T, 50]. Without it the brain only hears."""
    seed: int = 0
    """Seed of the reaction; another seed is another plausible reaction."""
    num_samples: int = 1
    """How many reactions; with more than one, the files are OUTPUT-1.mp4, OUTPUT-2.mp4 and so on."""
    num_steps: int | None = None
    """DDIM steps, 1 to 50. Default: 15, or those that the brain was distilled to."""
    side_by_side: Path | None = None
    """Clip to show beside the result: speaker | true listener | generated, with the speaker's sound."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute."""
    overwrite: bool = False
    """Replace a video that stands at --output."""


def synthesize(config: Synthesis) -> dict:
    """Write the video (or videos) and return their paths, frames and speed."""
    import time

    from difflistener.body.model import Body
    from difflistener.body.render import Renderer
    from difflistener.brain.model import Brain
    from difflistener.clip import Clip, replacing
    from difflistener.device import resolve_device
    from difflistener.media import VideoWriter
    from difflistener.progress import progress

    outputs = _outputs(config)
    device = resolve_device(config.device)
    brain = Brain.from_pretrained(config.brain_checkpoint, device)
    body = Body.from_pretrained(config.body_checkpoint, device)
    require_same_basis(brain.config.basis, body.config.basis, str(config.brain_checkpoint), str(config.body_checkpoint))
    renderer = Renderer(body)
    clip = Clip.open(config.side_by_side) if config.side_by_side else None
    audio, expression, sound = speaker_features(config.audio, config.visual, brain)
    if clip is not None and len(audio) != clip.num_frames:
        raise UserError(f"--audio has {len(audio)} frames, the clip {config.side_by_side} has {clip.num_frames}.",
                        "Give the audio and the expression of that clip (CLIP/speaker/audio.wav).")
    if clip is not None and clip.has("speaker", "audio.wav"):
        sound = clip.file("speaker", "audio.wav")

    begun = time.monotonic()
    frames = 0
    for sample, output in enumerate(outputs):
        motion = brain.generate(audio, expression, num_steps=config.num_steps, seed=config.seed, sample=sample)
        config.output.parent.mkdir(parents=True, exist_ok=True)
        panels = _Panels(clip, body)
        pictures = render_motion(renderer, motion)
        # The motion takes its place after the video: an interrupted run leaves both of the old ones or none.
        with replacing(output.with_suffix(".npy")) as temporary:
            with temporary.open("wb") as file:
                np.save(file, motion.cpu().numpy())
            with VideoWriter(output, panels.width, panels.height, audio=sound is not None) as writer:
                waves = _sound(sound)
                for picture, _ in progress(panels.join(pictures), f"render {output.name}", total=len(motion)):
                    writer.write_frame(picture)
                    if sound is not None:
                        writer.write_audio(next(waves))
                    frames += 1
    seconds = time.monotonic() - begun
    return {"videos": [str(path) for path in outputs], "frames": frames, "frames_per_s": round(frames / seconds, 1)}


def render_motion(render, motion) -> Iterator[np.ndarray]:
    """Pictures [H, W, 3] uint8 of motion [T, 56], a chunk at a time, by a body's `Renderer`."""
    for start in range(0, len(motion), CHUNK):
        yield from render(motion[start : start + CHUNK]).cpu().numpy()


def speaker_features(audio: Path, visual: Path | None, brain):
    """Audio features [T, A], expression [T, 50] or None, and the file with the sound or None.

    Features are computed as the brain was trained on them; stored ones must have the same T.
    """
    import torch

    from difflistener.media import SAMPLES_PER_FRAME, load_audio
    from difflistener.stored_motion import load_stored
    from difflistener.prepare.audio import encoder_from_settings

    stored = audio.suffix == ".npy"
    if stored:
        features = load_stored(audio, brain.config.audio_dim, f"audio features of {brain.config.audio}")
    else:
        samples = load_audio(audio)
        count = max(1, len(samples) // SAMPLES_PER_FRAME)
        features = encoder_from_settings(brain.config.audio, brain.config.audio_settings).encode(samples, count)
    expression = None
    if visual is not None and visual.suffix == ".npy":
        expression = load_stored(visual, NUM_EXPRESSION, "expression codes")
        if len(expression) != len(features):
            raise UserError(f"{audio} has {len(features)} frames, {visual} has {len(expression)}.",
                            "Both must be of the same recording at 25 fps, with equal T.")
    elif visual is not None:
        expression = _track_expression(visual, brain, len(features))
        features = features[: len(expression)]
    as_tensor = lambda array: None if array is None else torch.from_numpy(np.asarray(array, dtype=np.float32))
    return as_tensor(features), as_tensor(expression), None if stored else audio


def _track_expression(visual: Path, brain, count: int) -> np.ndarray:
    from difflistener.prepare.pipeline import track_speaker

    if brain.landmark_basis is None:
        raise UserError(f"The brain speaks basis {brain.config.basis}; a video can only be tracked into a landmark basis.",
                        "Give --visual a .npy of expression codes in that basis, or leave it out.")
    expression = track_speaker(visual, brain.landmark_basis)
    if abs(len(expression) - count) > 2:
        raise UserError(f"{visual} has {len(expression)} frames, the audio has {count}.", "Both must be of the same recording.")
    return expression[:count]


def _outputs(config: Synthesis) -> list[Path]:
    if config.output.suffix.lower() != ".mp4":
        raise UserError(f"--output {config.output} is not an .mp4 file.", "Give it a name that ends in .mp4.")
    if config.num_samples < 1:
        raise UserError(f"--num-samples is {config.num_samples}.", "Ask for at least one.")
    names = [config.output] if config.num_samples == 1 else [
        config.output.with_name(f"{config.output.stem}-{k + 1}.mp4") for k in range(config.num_samples)]
    given = [path.resolve() for path in (config.audio, config.visual) if path is not None]
    for path in (written for name in names for written in (name, name.with_suffix(".npy"))):
        if path.resolve() in given:
            raise UserError(f"--output {config.output} would write over the speaker's {path}.", "Choose another --output.")
        if path.exists() and not config.overwrite:
            raise UserError(f"{path} exists.", "Give --overwrite to replace it, or another --output.")
    return names


def _sound(path: Path | None) -> Iterator[np.ndarray]:
    """The recording in pieces of one frame (640 samples), then silence without end."""
    from difflistener.media import SAMPLES_PER_FRAME, read_audio

    if path is None:
        return
    waiting = np.zeros(0, np.float32)
    for chunk in read_audio(path):
        waiting = np.concatenate([waiting, chunk])
        while len(waiting) >= SAMPLES_PER_FRAME:
            yield waiting[:SAMPLES_PER_FRAME]
            waiting = waiting[SAMPLES_PER_FRAME:]
    yield np.pad(waiting, (0, SAMPLES_PER_FRAME - len(waiting)))
    while True:
        yield np.zeros(SAMPLES_PER_FRAME, np.float32)


class _Panels:
    """Puts the speaker and the true listener of a clip beside the generated pictures, with captions."""

    CAPTION = 24

    def __init__(self, clip, body):
        from difflistener.media import probe, read_frames

        self.height = body.config.height
        self.width = body.config.width
        self.sides = []
        for role, caption in (("speaker", "speaker"), ("listener", "listener (truth)")):
            if clip is None or not clip.has(role, "video.mp4"):
                continue
            path = clip.file(role, "video.mp4")
            info = probe(path)
            width = round(info.width * self.height / info.height / 2) * 2
            self.sides.append((read_frames(path), width, caption))
            self.width += width
        if self.sides:
            self.height += self.CAPTION
            self.caption = self._captions(body.config.width)

    def _captions(self, own_width: int) -> np.ndarray:
        from PIL import Image, ImageDraw

        strip = Image.new("RGB", (self.width, self.CAPTION), "white")
        draw = ImageDraw.Draw(strip)
        left = 0
        for width, text in [*((w, c) for _, w, c in self.sides), (own_width, "listener (generated)")]:
            draw.text((left + width / 2, self.CAPTION / 2), text, fill="black", anchor="mm")
            left += width
        return np.asarray(strip)

    def join(self, pictures: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
        from PIL import Image

        for picture in pictures:
            if not self.sides:
                yield picture
                continue
            row = []
            for frames, width, _ in self.sides:
                row.append(np.asarray(Image.fromarray(next(frames)).resize((width, picture.shape[0]), Image.Resampling.LANCZOS)))
            yield np.concatenate([self.caption, np.concatenate([*row, picture], 1)], 0)
