"""A page for tests of the live server: what it says and hears on its WebSocket, and a listener that only notes down."""

import asyncio
import contextlib
import io
import json
import os
import struct
import threading
import time
from collections import Counter
from types import SimpleNamespace

import aiohttp
import numpy as np
import pytest
from aiohttp.test_utils import TestClient, TestServer
from PIL import Image

from difflistener.errors import UserError
from difflistener.live import protocol, server
from difflistener.live.choices import Choices

SIZE = 64


@pytest.fixture
def quick_stats(monkeypatch):
    """Five times as many messages of how it goes."""
    monkeypatch.setattr(protocol, "STATS_S", 0.2)


class FakeListener:
    """Shows grey pictures at 25 frames a second; remembers all that it is told."""

    def __init__(self, settings, record=None):
        self.settings, self.record = settings, record
        self.heard, self.seen, self.told = [], [], []
        self.sees, self.again, self.is_open = True, False, False
        self.failure = None

    async def __aenter__(self):
        self.is_open = True
        return self

    async def close(self):
        self.is_open = False

    def push_audio(self, samples, time=None):
        self.heard.append((time, samples))
        if self.record:
            rows = len(samples) // 640
            hop = {"samples": samples[: rows * 640], "expression": np.ones((rows, 50), np.float32), "seen": np.ones(rows, bool),
                   "motion": np.zeros((rows, 56), np.float32)}
            self.record(SimpleNamespace(**hop))

    def push_video(self, frame, time=None):
        if not self.sees:
            raise UserError("mediapipe is missing.", "Install it.")
        self.seen.append((time, frame))

    async def frames(self):
        number = 0
        while self.is_open:
            await asyncio.sleep(0.04)
            if self.failure:
                raise self.failure
            picture = np.full((SIZE, SIZE, 3), 40 + number % 150, np.uint8)
            yield SimpleNamespace(picture=picture, motion=np.zeros(56), number=number, heard=0.0, age_ms=12.0, again=self.again)
            number += 1

    def react_again(self):
        if not self.heard:
            raise UserError("There is nothing to react to again yet.", "Talk first.")
        self.again = True

    def change(self, **manner):
        self.told.append(manner)

    def clear(self):
        self.told.append("clear")

    def stats(self):
        return {"frames": 0, "delay_ms": {"p50": None, "p95": None}}


class FakeChoices(Choices):
    """Two bodies and a brain without weights."""

    def __init__(self):
        config = SimpleNamespace(distilled=False, audio_guidance=1.0, face_guidance=1.0)
        self.bodies = {name: SimpleNamespace(config=SimpleNamespace(basis="x", width=SIZE, height=SIZE)) for name in ("ann", "bob")}
        self.brains = {"brain": SimpleNamespace(basis="x", config=config, landmark_basis=None, sees=False)}
        self.made = []

    def listener(self, settings, record=None):
        if settings.body not in self.bodies:
            raise UserError(f"There is no body {settings.body!r} here.", "Choose another.")
        self.made.append(FakeListener(settings, record))
        return self.made[-1]

    def still(self, body):
        return np.zeros((SIZE, SIZE, 3), np.uint8)


def left_behind():
    """Threads and sockets of this process, by name."""
    threads = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
    sockets = []
    if os.path.isdir("/proc/self/fd"):
        for number in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):
                target = os.readlink(f"/proc/self/fd/{number}")
                sockets += ["socket"] if target.startswith("socket:") else []
    return Counter(threads) + Counter(sockets)


def run(conversation, timeout=25.0):
    """Run a coroutine; afterwards no task, thread or socket is there that was not before."""
    before = left_behind()

    async def whole():
        await asyncio.wait_for(conversation, timeout)
        end = time.monotonic() + 5
        while (tasks := asyncio.all_tasks() - {asyncio.current_task()}) and time.monotonic() < end:
            await asyncio.sleep(0.01)
        assert not tasks

    asyncio.run(whole())
    end = time.monotonic() + 5
    while (extra := left_behind() - before) and time.monotonic() < end:
        time.sleep(0.01)
    assert not extra


@contextlib.asynccontextmanager
async def serving(choices=None, **options):
    """A client of a running server; `client.house` is what its sessions share."""
    app = server.make_app(choices or FakeChoices(), **options)
    house = app.on_shutdown[0].__self__.house
    async with TestClient(TestServer(app)) as client:
        client.house = house
        yield client
    assert not house.sessions


class Page:
    """What the page does, on a WebSocket."""

    def __init__(self, client, **hello):
        self.client, self.hello = client, {"type": "hello", "media": "socket", **hello}
        self.frames, self.said = [], []

    async def __aenter__(self):
        self.socket = await self.client.ws_connect("/session", max_msg_size=0)
        await self.send(**self.hello)
        return self

    async def __aexit__(self, *_):
        await self.socket.close()

    async def send(self, **message):
        await self.socket.send_json(message)

    async def receive(self, timeout=5.0):
        """The next message: a dict, a frame (number, age, jpeg), or None at the end."""
        message = await self.socket.receive(timeout)
        if message.type == aiohttp.WSMsgType.TEXT:
            self.said.append(json.loads(message.data))
            return self.said[-1]
        if message.type == aiohttp.WSMsgType.BINARY:
            kind, number, age = struct.unpack_from("<BIf", message.data)
            assert kind == 3
            self.frames.append((number, age, message.data[9:]))
            await self.socket.send_bytes(struct.pack("<BI", 4, number))
            return self.frames[-1]
        return None

    async def hears(self, kind, timeout=5.0):
        """The next text message of this type."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            message = await self.receive(end - time.monotonic())
            assert message is not None, f"closed with {self.socket.close_code} before {kind}"
            if isinstance(message, dict) and message["type"] == kind:
                return message
        raise TimeoutError(kind)

    async def watch(self, seconds):
        """Receive for so long, or to the end. Returns whether it is still open."""
        end = time.monotonic() + seconds
        with contextlib.suppress(TimeoutError):
            while (left := end - time.monotonic()) > 0:
                if await self.receive(left) is None:
                    return False
        return True

    async def closes(self, timeout=5.0):
        """The code that the server ends with."""
        async with asyncio.timeout(timeout):
            while await self.receive() is not None:
                pass
        return self.socket.close_code

    def sound(self, samples, when=0.0):
        return self.socket.send_bytes(struct.pack("<Bd", 1, when) + (np.asarray(samples) * 32768).astype("<i2").tobytes())

    def picture(self, jpeg, when=0.0):
        return self.socket.send_bytes(struct.pack("<Bd", 2, when) + jpeg)


def jpeg(width=SIZE, height=48, **options):
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (height // 8, width // 8, 3), np.uint8)
    Image.fromarray(noise).resize((width, height)).save(buffer, "JPEG", **options)
    return buffer.getvalue()


async def status_of(client, path):
    """Status of a request for exactly this path, as no client library would ask."""
    reader, writer = await asyncio.open_connection("127.0.0.1", client.port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return int(answer.split()[1])


async def until(happened, seconds=5.0):
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, "it did not happen"
        await asyncio.sleep(0.01)
