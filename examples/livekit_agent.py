"""A listening face in a LiveKit room: it hears and sees the first participant and is published as a camera.

It needs no language model and stands beside whatever else the agent does. LISTENER_BODY and
LISTENER_BRAIN name another body and brain than those that come with the package. To try it:

    pip install difflistener livekit-agents
    export LIVEKIT_URL=wss://... LIVEKIT_API_KEY=... LIVEKIT_API_SECRET=...
    python examples/livekit_agent.py dev
"""

import asyncio
import os
from contextlib import AsyncExitStack

import numpy as np
from livekit import rtc
from livekit.agents import AgentServer, JobContext, cli

from difflistener.body.model import Body
from difflistener.brain.model import Brain
from difflistener.live.listener import Listener

BODY, BRAIN = os.environ.get("LISTENER_BODY", "shipped"), os.environ.get("LISTENER_BRAIN", "shipped")


class ListeningFace:
    """Feeds the tracks of one person to an open `listener`; its frames go to `source`, a camera of `width` by `height`."""

    def __init__(self, listener: Listener, width: int, height: int):
        self.listener, self.source = listener, rtc.VideoSource(width, height)
        self._tasks = [asyncio.create_task(self._show())]

    def take(self, track: rtc.Track) -> None:
        """Hear or see `track` until it ends."""
        follow = self._hear if track.kind == rtc.TrackKind.KIND_AUDIO else self._see
        self._tasks.append(asyncio.create_task(follow(track)))

    async def _hear(self, track: rtc.Track) -> None:
        async for event in rtc.AudioStream(track, sample_rate=16_000, num_channels=1):
            self.listener.push_audio(np.array(event.frame.data, np.float32) / 32768)

    async def _see(self, track: rtc.Track) -> None:
        if self.listener.sees:
            async for event in rtc.VideoStream(track, capacity=1, format=rtc.VideoBufferType.RGB24):
                picture = np.frombuffer(event.frame.data, np.uint8)
                self.listener.push_video(picture.reshape(event.frame.height, event.frame.width, 3))

    async def _show(self) -> None:
        async for frame in self.listener.frames():
            height, width = frame.picture.shape[:2]
            self.source.capture_frame(rtc.VideoFrame(width, height, rtc.VideoBufferType.RGB24, frame.picture.tobytes()))

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.source.aclose()


server = AgentServer()


@server.rtc_session()
async def entrypoint(job: JobContext) -> None:
    body, brain = Body.from_pretrained(BODY), Brain.from_pretrained(BRAIN)
    stack = AsyncExitStack()
    job.add_shutdown_callback(stack.aclose)
    listener = await stack.enter_async_context(Listener(brain, body))
    face = ListeningFace(listener, body.config.width, body.config.height)
    stack.push_async_callback(face.close)
    job.room.on("track_subscribed", lambda track, publication, participant: face.take(track))
    await job.connect()
    camera = rtc.LocalVideoTrack.create_video_track("listener", face.source)
    await job.room.local_participant.publish_track(camera, rtc.TrackPublishOptions(source=rtc.TrackSource.SOURCE_CAMERA))


if __name__ == "__main__":
    cli.run_app(server)
