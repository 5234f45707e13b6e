"""A listening face in a Pipecat pipeline: a processor that hears and sees the user, and gives pictures of the listener.

It passes every frame on, so it stands anywhere between the transport's input and its output. LISTENER_BODY and
LISTENER_BRAIN name another body and brain than those that come with the package. To try it:

    pip install difflistener "pipecat-ai[runner,webrtc]"
    python examples/pipecat_listener.py -t webrtc
"""

import os

import numpy as np
from PIL import Image
from pipecat.audio.utils import create_stream_resampler
from pipecat.frames.frames import (
    CancelFrame, EndFrame, Frame, InputAudioRawFrame, InputImageRawFrame, OutputImageRawFrame, StartFrame,
)
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor

from difflistener.body.model import Body
from difflistener.brain.model import Brain
from difflistener.live.listener import Listener

BODY, BRAIN = os.environ.get("LISTENER_BODY", "shipped"), os.environ.get("LISTENER_BRAIN", "shipped")


class ListeningFace(FrameProcessor):
    """Feeds the user's sound and pictures to `listener`, which it opens and closes, and pushes its frames downstream."""

    def __init__(self, listener: Listener, **options):
        super().__init__(**options)
        self._listener, self._resampler, self._showing = listener, create_stream_resampler(), None

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        if isinstance(frame, InputAudioRawFrame):
            samples = np.frombuffer(frame.audio, np.int16).reshape(-1, frame.num_channels).mean(1).astype(np.int16)
            sound = await self._resampler.resample(samples.tobytes(), frame.sample_rate, 16_000)
            self._listener.push_audio(np.frombuffer(sound, np.int16) / np.float32(32768))
        elif isinstance(frame, InputImageRawFrame) and self._listener.sees:
            picture = Image.frombytes(frame.format, frame.size, frame.image).convert("RGB")
            self._listener.push_video(np.array(picture))
        elif isinstance(frame, (EndFrame, CancelFrame)):
            await self._stop()
        await self.push_frame(frame, direction)
        if isinstance(frame, StartFrame):
            await self._listener.__aenter__()
            self._showing = self.create_task(self._show())

    async def _show(self) -> None:
        async for frame in self._listener.frames():
            height, width = frame.picture.shape[:2]
            await self.push_frame(OutputImageRawFrame(frame.picture.tobytes(), (width, height), "RGB"))

    async def _stop(self) -> None:
        if self._showing:
            showing, self._showing = self._showing, None
            await self.cancel_task(showing)
        await self._listener.close()

    async def cleanup(self) -> None:
        await self._stop()
        await super().cleanup()


async def bot(runner_args) -> None:
    """Called by Pipecat's runner for every visitor."""
    from pipecat.pipeline.pipeline import Pipeline
    from pipecat.pipeline.worker import PipelineWorker
    from pipecat.runner.utils import create_transport
    from pipecat.transports.base_transport import TransportParams
    from pipecat.workers.runner import WorkerRunner

    body, brain = Body.from_pretrained(BODY), Brain.from_pretrained(BRAIN)
    parameters = TransportParams(audio_in_enabled=True, video_in_enabled=True, video_out_enabled=True, video_out_is_live=True,
                                 video_out_width=body.config.width, video_out_height=body.config.height, video_out_framerate=25)
    transport = await create_transport(runner_args, {"webrtc": lambda: parameters})
    worker = PipelineWorker(Pipeline([transport.input(), ListeningFace(Listener(brain, body)), transport.output()]))

    @transport.event_handler("on_client_disconnected")
    async def end(transport, client):
        await worker.cancel()

    runner = WorkerRunner(handle_sigint=False)
    await runner.add_workers(worker)
    await runner.run()


if __name__ == "__main__":
    from pipecat.runner.run import main

    main()
