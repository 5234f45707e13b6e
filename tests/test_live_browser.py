"""The driver of a headless Chromium, with a real one against a small server of the test's own."""

import asyncio
import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("aiohttp")

from aiohttp import web  # noqa: E402
from PIL import Image  # noqa: E402

from difflistener.errors import UserError  # noqa: E402
from difflistener.live import browser as driver  # noqa: E402
from difflistener.live.bench_processes import members  # noqa: E402
from difflistener.live.browser import PageError, find_browser, launch  # noqa: E402
from difflistener.media import write_wav  # noqa: E402

try:
    find_browser()
    installed = True
except UserError:
    installed = False
needs_chromium = pytest.mark.skipif(not installed, reason="needs Chromium (apt install chromium)")

PAGE = """<!doctype html><meta name=viewport content="width=device-width"><title>test</title>
<style>html{background:#fff} @media (prefers-color-scheme: dark){html{background:#000}}</style>
<script>window.answer = 42; console.warn("ready", 7)</script>"""


def drive(scenario, **options):
    """Run `scenario(browser, url, requests)` with a browser at a page of ours; `requests` counts what the server gave."""

    async def run():
        requests = []

        async def answer(request):
            requests.append(request.path)
            if request.headers.get("Upgrade"):
                socket = web.WebSocketResponse()
                await socket.prepare(request)
                async for message in socket:
                    await socket.send_str(message.data)
                return socket
            return web.Response(text=PAGE, content_type="text/html")

        app = web.Application()
        app.router.add_get("/{path:.*}", answer)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        url = f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}/"
        try:
            async with launch(url, **options) as browser:
                await scenario(browser, url, requests)
        finally:
            await runner.cleanup()

    asyncio.run(run())


@needs_chromium
def test_a_page_is_opened_asked_and_photographed(tmp_path):
    async def scenario(browser, url, requests):
        assert await browser.evaluate("window.answer") == 42 and await browser.evaluate("location.href") == url
        assert await browser.evaluate("new Promise(done => setTimeout(() => done({a: [1, null]}), 20))") == {"a": [1, None]}
        assert await browser.evaluate("navigator.userActivation.isActive") is True
        assert await browser.evaluate("window.early") == "before the page"
        assert ("warning", "ready 7") in browser.messages
        with pytest.raises(PageError, match="ReferenceError: nothing is not defined"):
            await browser.evaluate("nothing")
        await browser.evaluate("setTimeout(() => { throw new Error('later') })")
        await browser.evaluate("new Promise(done => setTimeout(done, 20))")
        assert any(level == "exception" and "Error: later" in text for level, text in browser.messages)
        assert await browser.wait_for("performance.now() > 5 && 'yes'") == "yes"
        with pytest.raises(TimeoutError, match="ready 7"):
            await browser.wait_for("window.answer == 43", timeout_s=0.1)
        before = len(requests)
        await browser.reload()
        assert len(requests) > before and await browser.evaluate("window.answer") == 42
        with pytest.raises(PageError, match="ERR_CONNECTION_REFUSED"):
            await browser.navigate("http://127.0.0.2:40404/")
        await browser.navigate(url)
        await browser.screenshot(tmp_path / "dark.png")
        await browser.lay_out((390, 844), phone=True)
        assert await browser.evaluate("innerWidth") == 390 and await browser.evaluate("navigator.maxTouchPoints") > 0
        await browser.screenshot(tmp_path / "light.png")

    drive(scenario, size=(500, 300), dark=True, script="window.early = 'before the page'")
    for name, size, colour in (("dark.png", (500, 300), 0), ("light.png", (390, 844), 255)):
        with Image.open(tmp_path / name) as picture:
            assert picture.size == size and set(np.unique(np.array(picture.convert("RGB")))) == {colour}


LOUDEST = """(async () => {
    const stream = await navigator.mediaDevices.getUserMedia({audio: {autoGainControl: false, noiseSuppression: false}, video: true});
    const context = new AudioContext(), analyser = context.createAnalyser();
    analyser.fftSize = 8192;
    context.createMediaStreamSource(stream).connect(analyser);
    await new Promise(done => setTimeout(done, 1500));
    const levels = new Float32Array(analyser.frequencyBinCount);
    analyser.getFloatFrequencyData(levels);
    const video = Object.assign(document.createElement("video"), {srcObject: stream, muted: true});
    await video.play();
    const canvas = document.createElement("canvas").getContext("2d");
    canvas.drawImage(video, 0, 0);
    return {pitch: levels.indexOf(Math.max(...levels)) * context.sampleRate / analyser.fftSize,
            width: video.videoWidth, pixel: [...canvas.getImageData(50, 50, 1, 1).data]};
})()"""


@needs_chromium
def test_the_page_hears_our_wave_and_sees_our_film(tmp_path):
    write_wav(tmp_path / "tone.wav", 0.5 * np.sin(2 * np.pi * 1234 * np.arange(32_000) / 16_000).astype(np.float32))
    picture = Image.new("RGB", (320, 240), (200, 40, 30))
    with (tmp_path / "film.mjpeg").open("wb") as film:
        for _ in range(10):
            picture.save(film, "JPEG", quality=95)
    heard = {}

    async def scenario(browser, url, requests):
        heard.update(await browser.evaluate(LOUDEST))

    drive(scenario, camera=tmp_path / "film.mjpeg", microphone=tmp_path / "tone.wav")
    assert heard["pitch"] == pytest.approx(1234, abs=8) and heard["width"] == 320
    assert np.abs(np.array(heard["pixel"][:3]) - (200, 40, 30)).max() < 20  # Chromium takes another matrix.


ASK = "navigator.mediaDevices.getUserMedia({%s: true}).then(() => 'given', error => error.name)"


@needs_chromium
def test_a_person_may_refuse():
    async def scenario(browser, url, requests):
        assert await browser.evaluate(ASK % "video") == "NotAllowedError" == await browser.evaluate(ASK % "audio")

    drive(scenario, allowed=False)


@needs_chromium
def test_a_browser_without_a_camera_and_without_a_network():
    async def scenario(browser, url, requests):
        assert await browser.evaluate(ASK % "video") == "NotFoundError" and await browser.evaluate(ASK % "audio") == "given"
        await browser.set_network(offline=True)
        assert await browser.evaluate("fetch('/a').then(() => 'answered', () => 'cut')") == "cut"
        await browser.set_network(latency_ms=300)
        begun = time.monotonic()
        assert await browser.evaluate("fetch('/b').then(() => 'answered', () => 'cut')") == "answered"
        assert time.monotonic() - begun > 0.3
        await browser.set_network()
        begun = time.monotonic()
        await browser.evaluate("fetch('/c')")
        assert time.monotonic() - begun < 0.3 and "/a" not in requests

    drive(scenario, flags=("--use-fake-device-for-media-stream=device-count=0",))


@needs_chromium
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
@pytest.mark.parametrize("end", ["done", "raised", "killed"])
def test_nothing_is_left_behind(end, tmp_path, monkeypatch):
    monkeypatch.setattr(driver.tempfile, "tempdir", str(tmp_path))
    threads = set(threading.enumerate())
    group = None

    async def scenario(browser, url, requests):
        nonlocal group
        group = browser.pid
        assert len(members(group)) > 1 and list(tmp_path.iterdir())
        if end == "raised":
            raise KeyError("ours")
        if end == "killed":
            os.kill(group, 9)
            with pytest.raises(PageError):
                await browser.wait_for("false")

    if end == "raised":
        with pytest.raises(KeyError):
            drive(scenario)
    else:
        drive(scenario)
    assert members(group) == [] and list(tmp_path.iterdir()) == []
    assert {thread for thread in threading.enumerate() if thread.is_alive()} <= threads


def test_a_browser_that_does_not_start_is_named(tmp_path, monkeypatch):
    program = tmp_path / "chromium"
    program.write_text("#!/bin/sh\necho no display here >&2\nexit 3\n")
    program.chmod(0o755)
    monkeypatch.setattr(driver, "NAMES", (str(program),))
    with pytest.raises(UserError, match="did not start .no display here"):
        drive(None)


def test_a_missing_browser_says_how_to_install_one(monkeypatch):
    monkeypatch.setattr(driver, "NAMES", ("no-such-browser",))
    with pytest.raises(UserError) as error:
        drive(None)
    assert "apt install chromium" in error.value.remedy
