"""What a page does, without a browser: talks to a server of `difflistener live` over WebRTC, and begins anew when it hears nothing.

    python lossy_client.py URL TOKEN      (prints a JSON line twice a second, until it is ended)
"""

import asyncio
import fractions
import json
import sys
import time

import aiohttp
import av
import numpy as np
from aiortc import MediaStreamTrack, RTCConfiguration, RTCPeerConnection, RTCSessionDescription
from aiortc.mediastreams import AudioStreamTrack, VideoStreamTrack

SILENT_S = 4.5


class Tone(AudioStreamTrack):
    """A loud voice-like tone, on for a second and off for one."""

    async def recv(self):
        frame = await super().recv()
        times = (frame.pts + np.arange(frame.samples)) / frame.sample_rate
        wave = 8000 * np.sin(2 * np.pi * 180 * times) * (times % 2 < 1)
        tone = av.AudioFrame.from_ndarray(wave.astype(np.int16)[None], layout="mono")
        tone.pts, tone.sample_rate, tone.time_base = frame.pts, frame.sample_rate, fractions.Fraction(1, frame.sample_rate)
        return tone


class Small(VideoStreamTrack):
    """A camera's pictures, plain grey ones."""

    async def recv(self):
        pts, time_base = await self.next_timestamp()
        frame = av.VideoFrame.from_ndarray(np.full((96, 128, 3), 90, np.uint8), format="rgb24")
        frame.pts, frame.time_base = pts, time_base
        return frame


class Page:
    def __init__(self, url: str, token: str):
        self.url, self.token = url, token
        self.state = {"sessions": 0, "frames": 0, "path": None, "connected": False, "stats": None}

    async def talk(self) -> None:
        """One session, until the server is silent or gone."""
        tasks, peer = [], RTCPeerConnection(RTCConfiguration(iceServers=[]))
        try:
            async with aiohttp.ClientSession() as http:
                patience = aiohttp.ClientWSTimeout(ws_close=1)
                async with http.ws_connect(f"{self.url}/session", max_msg_size=0, timeout=patience) as socket:
                    await socket.send_json({"type": "hello", "media": "rtc", "page": "client", "token": self.token})
                    while True:
                        message = await asyncio.wait_for(socket.receive(), SILENT_S)
                        if message.type != aiohttp.WSMsgType.TEXT:
                            return
                        await self.take(json.loads(message.data), socket, peer, tasks)
        except (TimeoutError, OSError, aiohttp.ClientError):
            return
        finally:
            self.state |= {"connected": False, "path": None}
            for task in tasks:
                task.cancel()
            await peer.close()

    async def take(self, message: dict, socket, peer, tasks: list) -> None:
        match message["type"]:
            case "welcome":
                self.state["sessions"] += 1
                self.state["connected"] = True
                peer.addTrack(Tone())
                peer.addTrack(Small())
                peer.on("track", lambda track: tasks.append(asyncio.create_task(self.watch(track))))
                await peer.setLocalDescription(await peer.createOffer())
                await socket.send_json({"type": "offer", "sdp": peer.localDescription.sdp})
            case "answer":
                await peer.setRemoteDescription(RTCSessionDescription(message["sdp"], "answer"))
            case "media":
                self.state["path"] = message["path"]
            case "stats":
                self.state["stats"] = message
            case "problem" | "busy":
                print(json.dumps(message), flush=True)

    async def watch(self, track: MediaStreamTrack) -> None:
        while True:
            await track.recv()
            self.state["frames"] += track.kind == "video"


async def main(url: str, token: str) -> None:
    page = Page(url, token)

    async def tell() -> None:
        while True:
            print(json.dumps({"at": time.monotonic(), **page.state}), flush=True)
            await asyncio.sleep(0.5)

    telling = asyncio.create_task(tell())
    while not telling.done():
        await page.talk()
        await asyncio.sleep(1)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
