"""Drives a headless Chromium over its DevTools protocol: opens a page, runs JavaScript in it, takes pictures of it.

Knows nothing of the page. The browser has a profile and a process group of its own; both are gone after `close`.
"""

import asyncio
import base64
import itertools
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections import deque
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import aiohttp

from difflistener.errors import UserError

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome",
         "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome", "/Applications/Chromium.app/Contents/MacOS/Chromium")
"""Programs looked for, the first wins."""
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-dev-shm-usage", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-breakpad", "--mute-audio",
         "--remote-debugging-port=0")
"""The sandbox does not start for root, and only our own page is opened."""
ALLOW = "--use-fake-ui-for-media-stream"
START_S, CLOSE_S, ANSWER_S = 30.0, 5.0, 30.0
"""Seconds that the browser has to start, to close by itself, and to answer a command."""
KEPT_MESSAGES = 1000


class Message(NamedTuple):
    """What a page wrote to its console, or an exception it did not catch."""

    level: str
    """debug, log, info, warning, error, or exception."""
    text: str


class PageError(Exception):
    """JavaScript raised an exception, or Chromium refused a command."""


def find_browser() -> str:
    """Path of the browser. Raises `UserError` where none is installed."""
    for name in NAMES:
        path = shutil.which(name)
        if path:
            return path
    raise UserError("No Chromium was found.", "Install one, for example with: apt install chromium (or Google Chrome).")


@asynccontextmanager
async def launch(url: str = "about:blank", *, camera: Path | None = None, microphone: Path | None = None,
                 allowed: bool = True, size: tuple[int, int] = (1280, 800), dark: bool = False, phone: bool = False,
                 script: str | None = None, flags: tuple[str, ...] = ()):
    """A `Browser` that shows `url`; closed on the way out.

    Args:
        camera: .mjpeg or .y4m film that the page sees as its camera, over and over; an .mjpeg plays at 30 fps.
        microphone: 16-bit .wav that the page hears as its microphone, over and over. Without either, Chromium's test
            picture and its beep are there.
        allowed: whether the person lets the page use camera and microphone.
        size: width and height of the page in pixels.
        dark: the page is told that dark colours are preferred.
        phone: the page is laid out as on a phone.
        script: JavaScript that runs in every page before its own.
        flags: more flags of Chromium; `--use-fake-device-for-media-stream=device-count=0` leaves it without a camera.

    Raises:
        UserError: no browser, or one that does not start.
    """
    browser = Browser()
    try:
        await browser.start(camera, microphone, (*flags, f"--window-size={size[0]},{size[1]}", *([ALLOW] if allowed else [])))
        if not allowed:
            for device in ("camera", "microphone"):
                await browser.command("Browser.setPermission", permission={"name": device}, setting="denied")
        await browser.lay_out(size, dark, phone)
        if script:
            await browser.command("Page.addScriptToEvaluateOnNewDocument", source=script)
        await browser.navigate(url)
        yield browser
    finally:
        await browser.close()


class Browser:
    """One page in a headless Chromium of its own. Made by `launch`."""

    def __init__(self):
        self.messages: deque[Message] = deque(maxlen=KEPT_MESSAGES)
        """Console of the page, oldest first."""
        self.pid: int | None = None
        """Process id of the browser, also the id of its process group."""
        self._profile: Path | None = None
        self._process = self._http = self._socket = self._reader = self._session = None
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future] = {}
        self._loaded = asyncio.Event()

    async def start(self, camera: Path | None, microphone: Path | None, flags: tuple[str, ...]) -> None:
        """Start Chromium and attach to its page."""
        program = find_browser()
        self._profile = Path(tempfile.mkdtemp(prefix="difflistener-browser-"))
        media = [f"--use-file-for-fake-video-capture={camera}"] if camera else []
        media += [f"--use-file-for-fake-audio-capture={microphone}"] if microphone else []
        if not any(flag.startswith("--use-fake-device-for-media-stream") for flag in flags):
            media.append("--use-fake-device-for-media-stream")
        log = self._profile / "log.txt"
        with log.open("wb") as errors:
            self._process = await asyncio.create_subprocess_exec(
                program, *FLAGS, *media, *flags, f"--user-data-dir={self._profile}", "about:blank",
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors, start_new_session=True)
        self.pid = self._process.pid
        address = await self._address(program, log)
        self._http = aiohttp.ClientSession()
        self._socket = await self._http.ws_connect(address, max_msg_size=0)
        self._reader = asyncio.create_task(self._read(), name="browser-reader")
        targets = (await self.command("Target.getTargets"))["targetInfos"]
        page = next(target["targetId"] for target in targets if target["type"] == "page")
        self._session = (await self.command("Target.attachToTarget", targetId=page, flatten=True))["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            await self.command(f"{domain}.enable")

    async def _address(self, program: str, log: Path) -> str:
        """Where Chromium listens, once it does: it writes port and path into its profile."""
        file, end = self._profile / "DevToolsActivePort", time.monotonic() + START_S
        while time.monotonic() < end and self._process.returncode is None:
            lines = file.read_text().split() if file.is_file() else []
            if len(lines) == 2:
                return f"ws://127.0.0.1:{lines[0]}{lines[1]}"
            await asyncio.sleep(0.05)
        tail = log.read_text(errors="replace").strip().splitlines()[-1:] or ["it said nothing"]
        raise UserError(f"{program} did not start ({tail[0]}).", f"Try: {program} --headless --no-sandbox --dump-dom about:blank")

    async def command(self, method: str, **parameters) -> dict:
        """Result of a command of the DevTools protocol. Raises `PageError` with Chromium's words."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        self._waiting[number] = answer = asyncio.get_running_loop().create_future()
        try:
            await self._socket.send_json(message)
            return await asyncio.wait_for(answer, ANSWER_S)
        except (ConnectionError, TimeoutError) as error:
            raise PageError(f"{method} was not answered ({type(error).__name__}).") from error
        finally:
            del self._waiting[number]

    async def _read(self) -> None:
        async for message in self._socket:
            self._take(message.json())
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(PageError("The browser is gone."))

    def _take(self, message: dict) -> None:
        """Sort one message: an answer to a command, or news of the page."""
        news = message.get("params", {})
        match message.get("method"):
            case None:
                answer = self._waiting.get(message["id"])
                if answer is None or answer.done():
                    return
                if "error" in message:
                    answer.set_exception(PageError(message["error"]["message"]))
                else:
                    answer.set_result(message["result"])
            case "Runtime.consoleAPICalled":
                words = (str(one.get("value", one.get("description", one["type"]))) for one in news["args"])
                self.messages.append(Message(news["type"], " ".join(words)))
            case "Runtime.exceptionThrown":
                self.messages.append(Message("exception", _describe(news["exceptionDetails"])))
            case "Log.entryAdded":
                entry = news["entry"]
                self.messages.append(Message(entry["level"], f"{entry['text']} {entry.get('url', '')}".strip()))
            case "Page.loadEventFired":
                self._loaded.set()

    async def lay_out(self, size: tuple[int, int], dark: bool = False, phone: bool = False) -> None:
        """Size of the page, its colours, and whether it is a phone."""
        await self.command("Emulation.setDeviceMetricsOverride", width=size[0], height=size[1], deviceScaleFactor=1, mobile=phone)
        await self.command("Emulation.setTouchEmulationEnabled", enabled=phone)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self.command("Emulation.setEmulatedMedia", features=[scheme])

    async def navigate(self, url: str) -> None:
        """Open `url` and wait until it is loaded. Raises `PageError` where it cannot be reached."""
        self._loaded.clear()
        result = await self.command("Page.navigate", url=url)
        if result.get("errorText"):
            raise PageError(f"{url}: {result['errorText']}")
        await asyncio.wait_for(self._loaded.wait(), ANSWER_S)

    async def reload(self) -> None:
        """Load the page again and wait until it is loaded."""
        self._loaded.clear()
        await self.command("Page.reload")
        await asyncio.wait_for(self._loaded.wait(), ANSWER_S)

    async def evaluate(self, javascript: str):
        """Value of an expression in the page, as JSON has it, as if a person had just clicked; a promise is awaited.

        Raises:
            PageError: it raised an exception.
        """
        result = await self.command("Runtime.evaluate", expression=javascript, awaitPromise=True, returnByValue=True,
                                    userGesture=True)
        if "exceptionDetails" in result:
            raise PageError(_describe(result["exceptionDetails"]))
        return result["result"].get("value")

    async def wait_for(self, javascript: str, timeout_s: float = 10.0):
        """Value of an expression once it is true. Raises `TimeoutError` that says what the page last wrote."""
        end = time.monotonic() + timeout_s
        while not (value := await self.evaluate(javascript)):
            if time.monotonic() > end:
                raise TimeoutError(f"{javascript} is {value!r} after {timeout_s:g} s. The page wrote: {list(self.messages)[-10:]}")
            await asyncio.sleep(0.05)
        return value

    async def screenshot(self, path: Path) -> None:
        """A picture of the page, .png."""
        picture = await self.command("Page.captureScreenshot", format="png")
        Path(path).write_bytes(base64.b64decode(picture["data"]))

    async def set_network(self, offline: bool = False, latency_ms: float = 0.0, bytes_per_s: float = -1) -> None:
        """What the page's requests and WebSockets meet, not WebRTC. Without arguments the network is as it is."""
        await self.command("Network.emulateNetworkConditions", offline=offline, latency=latency_ms,
                           downloadThroughput=bytes_per_s, uploadThroughput=bytes_per_s)

    async def close(self) -> None:
        """End the browser and remove its profile. May be called again."""
        try:
            if self._socket is not None and self._process.returncode is None:
                self._session = None
                await asyncio.wait_for(self.command("Browser.close"), CLOSE_S)
                await asyncio.wait_for(self._process.wait(), CLOSE_S)
        except (PageError, TimeoutError):
            pass  # It is killed below.
        finally:
            await self._end()

    async def _end(self) -> None:
        if self._process is not None:
            # The group may outlive its leader for a moment, and the profile may only go when all have gone.
            await _end_group(self._process.pid)
            await self._process.wait()
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)
        if self._http is not None:
            await self._http.close()
        if self._profile is not None:
            shutil.rmtree(self._profile, ignore_errors=True)


async def _end_group(group: int) -> None:
    """Kill what is left of a process group and wait until it is gone."""
    end = time.monotonic() + CLOSE_S
    while time.monotonic() < end:
        try:
            os.killpg(group, signal.SIGKILL)
        except ProcessLookupError:
            return
        await asyncio.sleep(0.02)


def _describe(details: dict) -> str:
    thrown = details.get("exception", {})
    return str(thrown.get("description", thrown.get("value", details.get("text", "an exception"))))
