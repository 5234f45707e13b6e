"""The adapters in examples/ for LiveKit Agents and Pipecat: with the real packages where they are installed, and always
against small stand-ins that have the same signatures and record what was called."""

import asyncio
import importlib.util
import inspect
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("torch")

EXAMPLES = Path(__file__).parents[1] / "examples"
PICTURES = [np.full((8, 12, 3), shade, np.uint8) for shade in (40, 120, 200)]
SECONDS, LEVEL, HERTZ = 0.4, 0.25, 300.0


class Heard:
    """Stands for the listener: keeps what it is given, and shows three pictures, and then waits."""

    def __init__(self, *_, sees=True):
        self.sees, self.opened, self.closed = sees, 0, 0
        self.samples, self.pictures = [], []

    async def __aenter__(self):
        self.opened += 1
        return self

    async def __aexit__(self, *_):
        await self.close()

    async def close(self):
        self.closed += 1

    def push_audio(self, samples, time=None):
        assert samples.dtype == np.float32 and samples.ndim == 1
        self.samples.append(samples)

    def push_video(self, frame, time=None):
        assert frame.dtype == np.uint8 and frame.ndim == 3
        self.pictures.append(frame.copy())

    async def frames(self):
        for number, picture in enumerate(PICTURES):
            yield SimpleNamespace(picture=picture, number=number)
            await asyncio.sleep(0.02)
        await asyncio.Event().wait()

    @property
    def sound(self):
        return np.concatenate(self.samples)


def test_the_stand_in_is_called_as_the_listener_is():
    from difflistener.live.listener import Frame, Listener

    for name in ("push_audio", "push_video", "frames", "close"):
        assert list(inspect.signature(getattr(Heard, name)).parameters) == list(inspect.signature(getattr(Listener, name)).parameters)
    assert isinstance(inspect.getattr_static(Listener, "sees"), property) and "picture" in Frame._fields


def tone(rate: int, channels: int) -> np.ndarray:
    """A tone [n, channels] int16 at `LEVEL`; a second channel is silent, so that a mono mix has half the level."""
    wave = LEVEL * 32768 * np.sin(2 * np.pi * HERTZ * np.arange(round(SECONDS * rate)) / rate)
    return np.stack([wave if channel == 0 else 0 * wave for channel in range(channels)], 1).astype(np.int16)


def check_sound(listener: Heard, level: float) -> None:
    """What came, but for silence around it, is a tone of HERTZ at 16 kHz and of this level, and hardly any of it is missing."""
    first, last = np.flatnonzero(np.abs(listener.sound) > level / 10)[[0, -1]]
    sound = listener.sound[first : last + 1]
    assert 0.6 * SECONDS * 16_000 < len(sound) <= SECONDS * 16_000 + 1600
    middle = sound[len(sound) // 3 : 2 * len(sound) // 3]
    spectrum = np.abs(np.fft.rfft(middle * np.hanning(len(middle)), 16_000))
    assert abs(spectrum.argmax() - HERTZ) < 12 and np.abs(middle).max() == pytest.approx(level, rel=0.05)


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


async def until(happened, seconds: float = 5.0) -> None:
    for _ in range(round(seconds / 0.01)):
        if happened():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not happen in time")


def camera_picture() -> np.ndarray:
    """[48, 64, 3]: the left half red, the right half blue."""
    picture = np.zeros((48, 64, 3), np.uint8)
    picture[:, :32, 0] = picture[:, 32:, 2] = 220
    return picture


def check_pictures(listener: Heard, least: int) -> None:
    assert len(listener.pictures) >= least
    for picture in listener.pictures:
        assert picture.shape == (48, 64, 3)
        assert np.abs(picture[[24, 24], [5, 60]].astype(int) - [[220, 0, 0], [0, 0, 220]]).max() < 30


# LiveKit


@pytest.mark.skipif(not (installed("livekit") and installed("livekit.agents")), reason="needs livekit-agents (pip install livekit-agents)")
@pytest.mark.parametrize("rate", [48_000, 24_000])
def test_a_livekit_room_with_the_real_package(rate):
    from livekit import rtc

    module = load("livekit_agent")
    listener, shown = Heard(), []

    async def watch(face):
        track = rtc.LocalVideoTrack.create_video_track("listener", face.source)
        async for event in rtc.VideoStream(track, format=rtc.VideoBufferType.RGB24):
            shown.append(np.frombuffer(event.frame.data, np.uint8).reshape(event.frame.height, event.frame.width, 3))

    async def run():
        face = module.ListeningFace(listener, 12, 8)
        watching = asyncio.create_task(watch(face))
        sound, camera = rtc.AudioSource(rate, 2), rtc.VideoSource(64, 48)
        face.take(rtc.LocalAudioTrack.create_audio_track("microphone", sound))
        face.take(rtc.LocalVideoTrack.create_video_track("camera", camera))
        await asyncio.sleep(0.1)
        wave, step = tone(rate, 2), rate // 100
        for start in range(0, len(wave), step):
            await sound.capture_frame(rtc.AudioFrame(wave[start : start + step].tobytes(), rate, 2, step))
            if start % (4 * step) == 0:
                camera.capture_frame(rtc.VideoFrame(64, 48, rtc.VideoBufferType.RGB24, camera_picture().tobytes()))
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.3)
        watching.cancel()
        await face.close()
        assert all(task is asyncio.current_task() or task is watching or "_run" in repr(task) for task in asyncio.all_tasks())

    asyncio.run(run())
    check_sound(listener, LEVEL / 2)
    listener.pictures = [picture for picture in listener.pictures if picture.any()]  # LiveKit begins with black ones.
    check_pictures(listener, 4)
    assert shown and all(frame.shape == (8, 12, 3) for frame in shown)
    assert {min((40, 120, 200), key=lambda shade, frame=frame: abs(frame.mean() - shade)) for frame in shown} >= {120, 200}


class LiveKit:
    """Puts stand-ins for `livekit.rtc` and `livekit.agents` into place; `captured` and `published` keep what was called."""

    def __init__(self, monkeypatch):
        self.captured, self.published = [], []
        outer = self

        class VideoFrame:
            def __init__(self, width: int, height: int, type: str, data: bytes):
                assert type == "RGB24" and len(data) == width * height * 3
                self.width, self.height, self.type, self.data = width, height, type, memoryview(data)

        class VideoSource:
            def __init__(self, width: int, height: int, *, is_screencast: bool = False):
                self.size, self.closed = (width, height), False

            def capture_frame(self, frame, *, timestamp_us=0, rotation=0, metadata=None):
                assert not self.closed and (frame.width, frame.height) == self.size
                outer.captured.append(np.frombuffer(frame.data, np.uint8).reshape(frame.height, frame.width, 3))

            async def aclose(self):
                self.closed = True

        class AudioStream:
            def __init__(self, track, loop=None, capacity=0, sample_rate=48_000, num_channels=1, frame_size_ms=None, **_):
                assert (sample_rate, num_channels) == (16_000, 1)  # The real one resamples; here the tone is made so.
                wave = tone(sample_rate, num_channels)[:, 0]
                self.events = iter([wave[start : start + 160] for start in range(0, len(wave), 160)])

            def __aiter__(self):
                return self

            async def __anext__(self):
                data = next(self.events, None)
                if data is None:
                    raise StopAsyncIteration
                return SimpleNamespace(frame=SimpleNamespace(data=memoryview(data), sample_rate=16_000, num_channels=1))

        class VideoStream:
            def __init__(self, track, loop=None, capacity=0, format=None, **_):
                assert format == "RGB24" and capacity == 1
                self.left = 3

            def __aiter__(self):
                return self

            async def __anext__(self):
                self.left -= 1
                if self.left < 0:
                    raise StopAsyncIteration
                return SimpleNamespace(frame=VideoFrame(64, 48, "RGB24", camera_picture().tobytes()))

        class Room:
            def __init__(self):
                self.handlers = {}
                self.local_participant = SimpleNamespace(publish_track=self.publish)

            def on(self, event: str, callback):
                self.handlers[event] = callback

            async def publish(self, track, options):
                outer.published.append((track, options))

        class JobContext:
            def __init__(self):
                self.room, self.callbacks, self.connected = Room(), [], False

            def add_shutdown_callback(self, callback):
                self.callbacks.append(callback)

            async def connect(self):
                assert "track_subscribed" in self.room.handlers
                self.connected = True

        class AgentServer:
            def rtc_session(self, *, agent_name: str = ""):
                return lambda function: function

        rtc, agents, package = ModuleType("livekit.rtc"), ModuleType("livekit.agents"), ModuleType("livekit")
        rtc.__dict__.update(VideoFrame=VideoFrame, VideoSource=VideoSource, AudioStream=AudioStream, VideoStream=VideoStream, Track=object,
                            VideoBufferType=SimpleNamespace(RGB24="RGB24"), TrackKind=SimpleNamespace(KIND_AUDIO=1, KIND_VIDEO=2),
                            LocalVideoTrack=SimpleNamespace(create_video_track=lambda name, source: (name, source)),
                            TrackSource=SimpleNamespace(SOURCE_CAMERA="camera"), TrackPublishOptions=lambda source: source)
        agents.__dict__.update(AgentServer=AgentServer, JobContext=JobContext, cli=SimpleNamespace(run_app=None))
        package.rtc, package.agents, self.job = rtc, agents, JobContext()
        for name, module in (("livekit", package), ("livekit.rtc", rtc), ("livekit.agents", agents)):
            monkeypatch.setitem(sys.modules, name, module)


@pytest.mark.parametrize("sees", [True, False])
def test_a_livekit_job_publishes_a_camera_and_leaves_nothing(sees, monkeypatch):
    kit = LiveKit(monkeypatch)
    module = load("livekit_agent")
    listener = Heard(sees=sees)
    monkeypatch.setattr(module, "Listener", lambda brain, body: listener)
    for kind in ("Body", "Brain"):
        config = SimpleNamespace(width=12, height=8)
        monkeypatch.setattr(module, kind, SimpleNamespace(from_pretrained=lambda path, config=config: SimpleNamespace(config=config)))

    async def run():
        await module.entrypoint(kit.job)
        assert kit.job.connected and listener.opened == 1
        ((name, source), options), = kit.published
        assert name == "listener" and source.size == (12, 8) and options == "camera"
        subscribed = kit.job.room.handlers["track_subscribed"]
        for kind in (1, 2):
            subscribed(SimpleNamespace(kind=kind), None, None)
        await until(lambda: len(kit.captured) == 3)
        for callback in kit.job.callbacks:
            await callback()
        assert source.closed and listener.closed == 1 and asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(run())
    check_sound(listener, LEVEL)
    check_pictures(listener, 3) if sees else listener.pictures == []
    assert all(np.array_equal(a, b) for a, b in zip(kit.captured, PICTURES))


# Pipecat


@pytest.mark.skipif(not installed("pipecat"), reason="needs pipecat-ai (pip install pipecat-ai)")
@pytest.mark.parametrize(("rate", "channels"), [(16_000, 1), (48_000, 2)])
def test_a_pipecat_pipeline_with_the_real_package(rate, channels):
    from pipecat.frames import frames
    from pipecat.tests.utils import SleepFrame, run_test

    module = load("pipecat_listener")
    listener = Heard()
    wave, step = tone(rate, channels), rate // 50
    sent = [frames.InputAudioRawFrame(wave[start : start + step].tobytes(), rate, channels) for start in range(0, len(wave), step)]
    alpha = np.concatenate([camera_picture(), np.full((48, 64, 1), 255, np.uint8)], 2)
    sent.insert(3, frames.InputImageRawFrame(camera_picture().tobytes(), (64, 48), "RGB"))
    sent.insert(6, frames.UserImageRawFrame(alpha.tobytes(), (64, 48), "RGBA", user_id="somebody"))
    sent += [frames.TranscriptionFrame("hello", "somebody", "now"), SleepFrame(0.5)]

    async def run():
        down, up = await run_test(module.ListeningFace(listener), frames_to_send=sent)
        assert not [task for task in asyncio.all_tasks() if "ListeningFace" in repr(task)]
        return down

    down = asyncio.run(run())
    check_sound(listener, LEVEL / channels)
    check_pictures(listener, 2)
    assert len(listener.pictures) == 2 and listener.opened == 1 and listener.closed >= 1
    shown = [frame for frame in down if isinstance(frame, frames.OutputImageRawFrame)]
    assert len(shown) == 3 and all(frame.size == (12, 8) and frame.format == "RGB" for frame in shown)
    assert all(frame.image == picture.tobytes() for frame, picture in zip(shown, PICTURES))
    passed = [type(frame) for frame in down]
    assert passed.count(frames.InputAudioRawFrame) == len(wave) // step and frames.TranscriptionFrame in passed
    assert frames.UserImageRawFrame in passed and passed.index(frames.TranscriptionFrame) > 0


class Pipecat:
    """Puts stand-ins for the parts of Pipecat that the example imports into place."""

    def __init__(self, monkeypatch):
        class Frame:
            pass

        class Sound(Frame):
            def __init__(self, audio: bytes, sample_rate: int, num_channels: int):
                self.audio, self.sample_rate, self.num_channels = audio, sample_rate, num_channels

        class Picture(Frame):
            def __init__(self, image: bytes, size: tuple[int, int], format: str):
                self.image, self.size, self.format = image, size, format

        class Processor:
            def __init__(self, *, name=None):
                self.pushed, self.cleaned = [], False

            async def process_frame(self, frame, direction):
                assert direction == "down"

            async def push_frame(self, frame, direction="down"):
                self.pushed.append(frame)

            def create_task(self, coroutine, name=None):
                return asyncio.create_task(coroutine)

            async def cancel_task(self, task, timeout=None):
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

            async def cleanup(self):
                self.cleaned = True

        class Resampler:
            async def resample(self, audio: bytes, in_rate: int, out_rate: int) -> bytes:
                samples = np.frombuffer(audio, np.int16)
                return samples[:: in_rate // out_rate].tobytes()

        names = ("CancelFrame", "EndFrame", "StartFrame")
        kinds = {name: type(name, (Frame,), {}) for name in names}
        kinds |= {"Frame": Frame, "InputAudioRawFrame": type("InputAudioRawFrame", (Sound,), {})}
        kinds |= {name: type(name, (Picture,), {}) for name in ("InputImageRawFrame", "OutputImageRawFrame")}
        self.frames = SimpleNamespace(**kinds)
        contents = {
            "pipecat": {}, "pipecat.audio": {}, "pipecat.frames": {}, "pipecat.processors": {},
            "pipecat.audio.utils": {"create_stream_resampler": Resampler}, "pipecat.frames.frames": kinds,
            "pipecat.processors.frame_processor": {"FrameDirection": object, "FrameProcessor": Processor},
        }
        for name, content in contents.items():
            module = ModuleType(name)
            module.__dict__.update(content)
            monkeypatch.setitem(sys.modules, name, module)


@pytest.mark.parametrize("ending", ["EndFrame", "CancelFrame", "cleanup"])
def test_a_pipecat_processor_feeds_the_listener_and_closes_it(ending, monkeypatch):
    frames = Pipecat(monkeypatch).frames
    module = load("pipecat_listener")
    listener = Heard()
    wave = tone(32_000, 2)
    sent = [frames.InputAudioRawFrame(wave[start : start + 640].tobytes(), 32_000, 2) for start in range(0, len(wave), 640)]
    sent.append(frames.InputImageRawFrame(camera_picture().tobytes(), (64, 48), "RGB"))

    async def run():
        face = module.ListeningFace(listener)
        for frame in (frames.StartFrame(), *sent):
            await face.process_frame(frame, "down")
        await until(lambda: len(face.pushed) == len(sent) + 4)
        if ending == "cleanup":
            await face.cleanup()
            assert face.cleaned
        else:
            last = getattr(frames, ending)()
            await face.process_frame(last, "down")
            assert face.pushed[-1] is last
        assert asyncio.all_tasks() == {asyncio.current_task()} and listener.closed >= 1
        return face.pushed

    pushed = asyncio.run(run())
    check_sound(listener, LEVEL / 2)
    check_pictures(listener, 1)
    shown = [frame for frame in pushed if isinstance(frame, frames.OutputImageRawFrame)]
    assert [frame.image for frame in shown] == [picture.tobytes() for picture in PICTURES] and shown[0].size == (12, 8)
    assert isinstance(pushed[0], frames.StartFrame) and all(frame in pushed for frame in sent)


def test_a_picture_is_not_tracked_for_a_listener_that_does_not_see(monkeypatch):
    frames = Pipecat(monkeypatch).frames
    face = load("pipecat_listener").ListeningFace(Heard(sees=False))
    asyncio.run(face.process_frame(frames.InputImageRawFrame(camera_picture().tobytes(), (64, 48), "RGB"), "down"))
    assert face._listener.pictures == [] and len(face.pushed) == 1


def test_a_real_listener_reacts_in_a_pipeline(tmp_path, monkeypatch):
    from live_checkpoints import write_checkpoints

    frames = Pipecat(monkeypatch).frames
    module = load("pipecat_listener")
    body, brain = write_checkpoints(tmp_path)
    wave = tone(16_000, 1)

    async def run():
        listener = module.Listener(module.Brain.from_pretrained(brain), module.Body.from_pretrained(body))
        face = module.ListeningFace(listener)
        await face.process_frame(frames.StartFrame(), "down")
        for start in range(0, len(wave), 320):
            await face.process_frame(frames.InputAudioRawFrame(wave[start : start + 320].tobytes(), 16_000, 1), "down")
            await asyncio.sleep(0.02)
        await until(lambda: listener.stats()["delay_ms"]["p50"] is not None)
        await face.process_frame(frames.EndFrame(), "down")
        assert asyncio.all_tasks() == {asyncio.current_task()}
        return face.pushed

    shown = [frame for frame in asyncio.run(run()) if isinstance(frame, frames.OutputImageRawFrame)]
    assert len(shown) >= 5 and shown[0].size == (256, 256) and len(shown[0].image) == 256 * 256 * 3
    assert shown[-1].image != shown[0].image
