"""One page and the listener it talks to, from the page's hello until either goes.

Text goes over the session's WebSocket, sound and pictures over WebRTC or, where that finds no way, over the same socket.
Nothing waits in line for the page: a frame that cannot go out at once is skipped and counted. Knows nothing of HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from aiohttp import WSCloseCode, WSMsgType, web

from difflistener.errors import UserError
from difflistener.live import protocol
from difflistener.live.choices import Choices, Settings
from difflistener.live.protocol import Bucket, Refused
from difflistener.live.record import Recorder
from difflistener.live.rtc import Peer
from difflistener.live.window import Fineness, Newest, Window



@dataclass
class House:
    """What all sessions of a server share."""

    choices: Choices
    threads: Executor
    ice: list[dict] = field(default_factory=list)
    record: Path | None = None
    refused: Counter = field(default_factory=Counter)
    """Kind -> how often something was refused."""
    sessions: dict[str, Session] = field(default_factory=dict)
    """Page -> its session."""


class Session:
    """A conversation. `run` returns when it is over, with nothing left behind."""

    def __init__(self, house: House, socket: web.WebSocketResponse, hello: dict):
        self.house, self.socket = house, socket
        self.begun = time.monotonic()
        self.closed = asyncio.Event()
        self.settings = house.choices.first()
        self._wanted = house.choices.known(hello.get("settings", {}))
        self.path = "socket" if hello["media"] == "socket" else None  # how media go, None as long as that is not settled
        self.listener = None
        self._recorder: Recorder | None = None
        self._peer: Peer | None = None
        self._loop = asyncio.get_running_loop()
        self._end = self._loop.create_future()  # why the session ends
        self._switching = asyncio.Lock()  # held while one listener takes over from another
        self._outbox: asyncio.Queue[dict] = asyncio.Queue()
        self._buckets = {kind: Bucket(*rate) for kind, rate in protocol.RATES.items()}
        self._patience = Bucket(*protocol.REFUSALS)
        self._told: set[str] = set()
        self._frames = Newest()  # (number, frame) for the socket
        self._camera = Newest()  # (time, JPEG) from the socket
        self._window = Window()
        self._number = 0  # of the next frame, over all listeners of the session
        self._fineness = Fineness()
        self._again = self._sees = False
        self._media_at = self.begun  # when sound or pictures last came
        self._shown: dict = {}
        self._shown_at = self.begun

    # Life

    async def run(self) -> None:
        """Talk until the page goes, or `end`."""
        work = []
        why = "failed"
        try:
            async with self._switching:
                await self._listen(self.house.choices.fitting(self._wanted, self.settings))
            self._welcome()
            jobs = (self._receive, self._speak, self._show, self._send_frames, self._look, self._watch)
            work = [asyncio.create_task(job(), name=f"live-{job.__name__.strip('_')}") for job in jobs]
            done, _ = await asyncio.wait([*work, self._end], return_when=asyncio.FIRST_COMPLETED)
            for task in done - {self._end}:
                task.result()
            why = self._end.result() if self._end.done() else "gone"
        except UserError as error:
            self.say("problem", problem=error.problem, remedy=error.remedy, fatal=True)
        except ConnectionError:
            why = "gone"
        except Exception:
            # One conversation's mishap must not end the others, but it must be seen.
            print(traceback.format_exc(), file=sys.stderr, flush=True)
            self.say("problem", problem="The listener has stopped: something went wrong on the server.",
                     remedy="Start again. What went wrong stands in the server's window.", fatal=True)
        finally:
            try:
                await self._leave(work, why)
            finally:
                self.closed.set()

    def end(self, why: str) -> None:
        """Let `run` come to its end. `why` is a key of `protocol.CLOSED`."""
        if not self._end.done():
            self._end.set_result(why)

    async def _leave(self, work: list[asyncio.Task], why: str) -> None:
        async with self._switching:
            for task in work:
                task.cancel()
        await asyncio.gather(*work, return_exceptions=True)
        with contextlib.suppress(ConnectionError, TimeoutError):
            async with asyncio.timeout(protocol.CLOSE_S):
                while not self._outbox.empty():
                    await self.socket.send_json(self._outbox.get_nowait())
        if self._peer is not None:
            await self._peer.close()
        if self.listener is not None:
            await self._close(self.listener, self._recorder)
        await self.socket.close(code=protocol.CLOSED.get(why, WSCloseCode.OK), message=why.encode())

    async def _listen(self, settings: Settings) -> None:
        """Let a new listener take over."""
        recorder = None
        if self.house.record is not None:
            recorder = await self._run(self._make_recorder, settings)
        try:
            listener = await self._run(self.house.choices.listener, settings, recorder and recorder.write)
            await listener.__aenter__()
        except BaseException:
            if recorder is not None:
                await self._run(recorder.close)
            raise
        before = self.listener, self._recorder
        self.listener, self._recorder, self.settings = listener, recorder, settings
        self._sees = listener.sees
        if before[0] is not None:
            await self._close(*before)

    async def _close(self, listener, recorder: Recorder | None) -> None:
        await listener.close()
        if recorder is not None:
            await self._run(recorder.close)

    def _make_recorder(self, settings: Settings) -> Recorder | None:
        stopped = lambda reason: self._loop.call_soon_threadsafe(self._recording_stopped, reason)
        try:
            return Recorder(self.house.record, *self.house.choices.basis(settings), vars(settings), stopped)
        except OSError as error:
            stopped(error.strerror)
            return None

    def _recording_stopped(self, reason: str) -> None:
        text = f"Recording has stopped: {reason}. The conversation goes on."
        print(f"{self.house.record}: {text}", file=sys.stderr, flush=True)
        self.say("note", text=text, recording=False)

    def _run(self, act: Callable, *arguments):
        return self._loop.run_in_executor(self.house.threads, act, *arguments)

    # What the page says

    async def _receive(self) -> None:
        async for message in self.socket:
            try:
                if message.type == WSMsgType.TEXT:
                    await self._obey(protocol.read_text(message.data))
                elif message.type == WSMsgType.BINARY:
                    self._take(protocol.read_binary(message.data))
                elif message.type == WSMsgType.ERROR:
                    raise_as_refused(message.data)
            except Refused as error:
                self._refuse(error)
            except UserError as error:
                self.say("problem", problem=error.problem, remedy=error.remedy)

    def _refuse(self, error: Refused) -> None:
        self.house.refused[error.kind] += 1
        if error.kind not in self._told:
            self._told.add(error.kind)
            self.say("problem", problem=f"The server refused something that this page sent: {error}.", remedy="Reload the page.")
        if not self._patience.take():
            self.end("flood")

    def _afford(self, kind: str, amount: float = 1.0) -> None:
        if not self._buckets[kind].take(amount):
            raise Refused("flood", f"too much of {kind}")

    async def _obey(self, message: dict) -> None:
        kind = message.pop("type")
        if kind == "bye":
            return self.end("gone")
        if kind == "hello":
            raise Refused("message", "hello comes once")
        self._afford(kind)
        match kind:
            case "offer":
                await self._answer(message["sdp"])
            case "use":
                await self._use_socket()
            case "set":
                await self._set(message)
            case "again":
                self.listener.react_again()
            case "clear":
                self.listener.clear()
                self.say("note", text="Forgotten. The conversation begins anew.")
            case "shown":
                self._shown, self._shown_at = message, time.monotonic()

    def _take(self, message: protocol.Sound | protocol.Picture | protocol.Seen) -> None:
        """A binary message. Media that WebRTC has overtaken are left aside."""
        match message:
            case protocol.Seen(number):
                self._afford("seen")
                self._window.seen(number)
            case protocol.Sound(when, samples):
                self._afford("sound", len(samples) / 16_000)
                if self.path == "socket":
                    self._hear(samples, when)
            case protocol.Picture():
                self._afford("picture")
                if self.path == "socket":
                    self._media_at = time.monotonic()
                    self._camera.put(message)

    def _hear(self, samples: np.ndarray, when: float) -> None:
        self._media_at = time.monotonic()
        self.listener.push_audio(samples, when)

    def _see(self, picture: np.ndarray, when: float | None = None) -> None:
        """Show a camera picture to the listener, from any thread."""
        self._media_at = time.monotonic()
        if self._sees:
            try:
                self.listener.push_video(picture, when)
            except UserError as error:
                self._sees = False
                self._loop.call_soon_threadsafe(self._cannot_see, error)

    def _cannot_see(self, error: UserError) -> None:
        self.say("problem", problem=f"The listener does not see you. {error.problem}", remedy=error.remedy)
        self.say("note", text="", sees=False)

    async def _look(self) -> None:
        """Decode what the socket's camera sends, always the newest."""
        while True:
            picture = await self._camera.get()
            try:
                await self._run(lambda picture=picture: self._see(protocol.decode_picture(picture.jpeg), picture.time))
            except Refused as error:
                self._refuse(error)

    async def _set(self, wanted: dict) -> None:
        settings = self.house.choices.fitting(wanted, self.settings)
        if (settings.body, settings.brain) == (self.settings.body, self.settings.brain):
            self.listener.change(**{name: value for name, value in settings.manner().items() if name in wanted})
            self.settings = settings
            self.say("note", text="", settings=vars(settings))
            return
        async with self._switching:
            await self._listen(settings)
        self.say("note", text="Somebody else listens now. The conversation begins anew.", settings=vars(settings),
                 size=self.house.choices.size(settings.body), sees=self._sees)

    # Media paths

    async def _answer(self, sdp: str) -> None:
        if self._peer is not None:
            await self._peer.close()
        hear = lambda *sound: peer is self._peer and self._hear(*sound)
        self._peer = peer = Peer(self.house.ice, self.house.threads, hear, self._see, lambda state: self._peer_is(peer, state))
        self.say("answer", sdp=await peer.answer(sdp))

    def _peer_is(self, peer: Peer, state: str) -> None:
        if peer is self._peer:
            self.path = "rtc" if state == "connected" else None
            self.say("media", path=self.path)

    async def _use_socket(self) -> None:
        peer, self._peer, self.path = self._peer, None, "socket"
        self.say("media", path="socket")
        if peer is not None:
            await peer.close()

    # What the page is told and shown

    def say(self, kind: str, **fields) -> None:
        """Send a text message, in turn."""
        self._outbox.put_nowait({"type": kind, **fields})

    async def _speak(self) -> None:
        while True:
            await self.socket.send_json(await self._outbox.get())

    def _welcome(self) -> None:
        house = self.house
        limits = {"picture_bytes": protocol.PICTURE_BYTES, "picture_side": protocol.PICTURE_SIDE[1], "idle_s": protocol.IDLE_S}
        self.say("welcome", choices=house.choices.describe(), settings=vars(self.settings), recording=self.is_recording,
                 ice=house.ice, size=house.choices.size(self.settings.body), sees=self._sees, limits=limits)
        if self.path is not None:
            self.say("media", path=self.path)

    @property
    def is_recording(self) -> bool:
        return self._recorder is not None and self._recorder.is_recording

    async def _show(self) -> None:
        """Hand the listener's frames to whatever way there is."""
        while True:
            listener, first = self.listener, self._number
            async for frame in listener.frames():
                self._number = first + frame.number + 1
                if self.path == "rtc":
                    self._peer.track.show(first + frame.number, frame.picture)
                elif self.path == "socket":
                    self._frames.put((first + frame.number, frame))
                if frame.again != self._again:
                    self._again = frame.again
                    text = "Another reaction to the last seconds." if frame.again else "Live again."
                    self.say("note", text=text, again=frame.again)
            if listener is self.listener:
                return

    async def _send_frames(self) -> None:
        """Frames over the socket, as many as the way to the page takes without a queue."""
        while True:
            number, frame = await self._frames.get()
            if not self._window.has_room():
                self._frames.skipped += 1
                self._fineness.skipped()
                continue
            jpeg = await self._run(protocol.encode_picture, frame.picture, round(self._fineness.quality), self._fineness.is_half)
            self._window.sent(number)
            await self.socket.send_bytes(protocol.frame_message(number, frame.age_ms, jpeg))
            self._fineness.sent()

    async def _watch(self) -> None:
        """How it goes, and whether anybody is still there."""
        while True:
            await asyncio.sleep(protocol.STATS_S)
            if time.monotonic() - self._media_at > protocol.IDLE_S:
                return self.end("idle")
            self.say("stats", **self.stats())

    def stats(self) -> dict:
        """The listener's, and how its pictures get to the page."""
        overtaken = self._frames.skipped + (self._peer.track.skipped if self._peer else 0)
        return {**self.listener.stats(), "path": self.path, "skipped": overtaken, "again": self._again,
                "recording": self.is_recording, "at": self._shown.get("at"),
                "held_ms": 1000 * (time.monotonic() - self._shown_at), "shown": self._shown}


def raise_as_refused(error: BaseException) -> None:
    """What aiohttp made of a message that is none, as `Refused`."""
    raise Refused("size" if getattr(error, "code", None) == WSCloseCode.MESSAGE_TOO_BIG else "message", str(error))
