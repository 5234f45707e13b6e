"""`difflistener bench live`: a real server in a process of its own, talked to by a real browser with a made-up person before it.

Measures what the page receives, how late it is and where the time goes, what it costs, and whether the listener moves otherwise
in speech than in silence. Prints a table and, last, one JSON line. Whatever ends it, server, browser and files are gone then.
"""

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from pathlib import Path

import numpy as np

from difflistener.errors import UserError, require
from difflistener.live.bench_config import LiveBench

for package in ("aiohttp", "aiortc"):
    require(package)

from difflistener.live.bench_media import PERIOD_S, draw_person, write_media  # noqa: E402
from difflistener.live.bench_processes import cpu_seconds, machine_seconds, memory_mb  # noqa: E402
from difflistener.live.bench_report import evaluate, read_record, show, time_encoder, unmet  # noqa: E402
from difflistener.live.browser import Browser, PageError, find_browser, launch  # noqa: E402
from difflistener.motion import FPS  # noqa: E402
from difflistener.progress import progress  # noqa: E402
from difflistener.shipped import named  # noqa: E402

START_S, LISTEN_S, STOP_S = 120.0, 30.0, 20.0
"""Seconds that the server has to start, the page to hear and show, and the server to end."""
WARM_UP_S = 5.0
"""Seconds after the first frame that are not counted: the browser settles its bit rate."""
SHORTEST_S = 5.0

PROBE = (Path(__file__).parent / "bench_probe.js").read_text()
LOOK = """(() => {
  const { state, media, frames, fps, dropped, age_ms, rtt_ms, problem, stats } = window.difflistener;
  const rows = window.__probe.rows.splice(0);
  return { now: performance.now(), state, media, frames, fps, dropped, age_ms, rtt_ms, problem, stats, rows };
})()"""


def bench_live(config: LiveBench) -> dict:
    """Run it, print the table and return the figures.

    Raises:
        UserError: no browser, a server that does not start or ends, a page that cannot listen.
    """
    from difflistener.checkpoint import read_header
    from difflistener.clip import write_json

    if config.seconds < SHORTEST_S:
        raise UserError(f"--seconds is {config.seconds:g}.", f"Talk for at least {SHORTEST_S:g}.")
    if config.json and config.json.is_dir():
        raise UserError(f"--json {config.json} is a folder.", "Name a file.")
    find_browser()
    body, brain = named(config.body_checkpoint or "shipped", "body"), named(config.brain_checkpoint or "shipped", "brain")
    read_header(body)  # Before a film is drawn for a checkpoint that is none.
    hop_ms = 1000 * read_header(brain).get("block", 1) / FPS
    person = draw_person(min(PERIOD_S, config.seconds))
    with tempfile.TemporaryDirectory(prefix="difflistener-bench-") as folder:
        run = Run(config, Path(folder), write_media(person, Path(folder)))
        asyncio.run(_until_told(run))
        record = read_record(Path(folder) / "clips")
    course = run.course()
    encode_ms, side = time_encoder(body, record.motion, course["seconds"][-1]["media"])
    measured = {"cores": os.cpu_count(), **evaluate(course, person, record, hop_ms, encode_ms), "picture_side": side}
    show(measured)
    if config.json:
        write_json(config.json, {"figures": measured, "course": course})
    return {"bench": "live", **measured, "unmet": unmet(measured)}


async def _until_told(run) -> None:
    """SIGTERM ends it as Ctrl-C does, so that nothing is left."""
    task = asyncio.current_task()
    with contextlib.suppress(NotImplementedError):
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    try:
        await run()
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None


class Server:
    """`difflistener live` in a process group of its own. Use as an asynchronous context manager.

    Raises:
        UserError: it does not start, in its own words.
    """

    def __init__(self, *arguments):
        self._arguments = [str(argument) for argument in arguments]
        self.lines: deque[str] = deque(maxlen=50)
        """What it wrote last."""
        self.address = None

    async def __aenter__(self):
        source = str(Path(__file__).parents[2])
        paths = os.pathsep.join([source, *filter(None, [os.environ.get("PYTHONPATH")])])
        self.process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "difflistener", "live", "--port", "0", *self._arguments, stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=os.environ | {"PYTHONPATH": paths}, start_new_session=True)
        self._reader = asyncio.create_task(self._read())
        try:
            end = time.monotonic() + START_S
            while self.address is None:
                self.check()
                if time.monotonic() > end:
                    raise UserError(f"The server did not start within {START_S:g} s.",
                                    f"It wrote: {' '.join(self.lines) or 'nothing'}")
                await asyncio.sleep(0.05)
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def _read(self) -> None:
        while line := (await self.process.stderr.readline()).decode(errors="replace"):
            self.lines.append(line.rstrip())
            if found := re.search(r"http://\S+", line):
                self.address = self.address or found[0]

    def check(self) -> None:
        """Raise `UserError` if it has ended."""
        if self.process.returncode is not None:
            said = [line.removeprefix("error: ") for line in list(self.lines)[-2:]] or ["it said nothing"]
            raise UserError(f"The server has ended: {said[0]}", said[-1])

    async def __aexit__(self, *_) -> None:
        """Ctrl-C, and a kill where that does not help."""
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGINT)
        try:
            await asyncio.wait_for(asyncio.shield(self.process.wait()), STOP_S)
        except TimeoutError:
            self.lines.append(f"The server had to be killed {STOP_S:g} s after Ctrl-C.")
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            await self.process.wait()
            await asyncio.gather(self._reader, return_exceptions=True)


class Run:
    """One conversation; called, it runs, and `course` then says what was seen each second."""

    def __init__(self, config: LiveBench, folder: Path, media: tuple[Path, Path]):
        self._config, self._folder, self._media = config, folder, media
        self._seconds: list[dict] = []
        self._rows: list[list] = []
        self._probe: dict = {}
        self._wrote: list[str] = []

    async def __call__(self) -> None:
        config, (wave, film) = self._config, self._media
        named = [words for name in ("body", "brain") if (path := getattr(config, f"{name}_checkpoint"))
                 for words in (f"--{name}-checkpoint", path)]
        async with Server("--record", self._folder / "clips", *named) as server:
            query = "" if config.media == "auto" else f"?media={config.media}"
            try:
                async with launch(server.address + query, camera=film, microphone=wave, size=config.size, script=PROBE) as browser:
                    await self._begin(browser, server)
                    await self._watch(browser, server)
                    self._probe = await browser.evaluate("window.__probe.report()")
            except (PageError, TimeoutError) as error:
                raise UserError(f"The page does not answer: {error}", f"The server wrote: {list(server.lines)[-3:]}") from error
        self._wrote = list(server.lines)

    async def _begin(self, browser: Browser, server: Server) -> None:
        """Press the button, and wait until the listener is seen."""
        await browser.wait_for("!!window.difflistener", LISTEN_S)
        await browser.evaluate("void window.difflistener.start()")
        end = time.monotonic() + LISTEN_S
        while True:
            server.check()
            look = await browser.evaluate(LOOK)
            if look["state"] == "listening" and look["frames"] > 0:
                break
            if look["state"] in ("failed", "busy") or time.monotonic() > end:
                wrote = [message.text for message in browser.messages][-3:]
                raise UserError(f"The page does not listen: {look['problem'] or look['state']}",
                                f"The page wrote: {wrote}, the server: {list(server.lines)[-3:]}")
            await asyncio.sleep(0.1)
        await browser.evaluate("window.__probe.start()")

    async def _watch(self, browser: Browser, server: Server) -> None:
        await asyncio.sleep(WARM_UP_S)
        begun = time.monotonic()
        groups = server.process.pid, browser.pid
        cpu = lambda: np.array([machine_seconds() or np.nan, *(cpu_seconds(group) or np.nan for group in groups)])
        before = cpu()
        for second, _ in progress(range(int(self._config.seconds) + 1), "listening (s)"):
            await asyncio.sleep(max(begun + second - time.monotonic(), 0))
            server.check()
            look = await browser.evaluate(LOOK)
            self._rows += look.pop("rows")
            used = [None if np.isnan(spent) else float(spent) for spent in cpu() - before]
            self._seconds.append({"at": time.monotonic() - begun, "memory_mb": memory_mb(server.process.pid),
                                  **dict(zip(("machine_cpu_s", "server_cpu_s", "browser_cpu_s"), used)), **look})

    def course(self) -> dict:
        """What was seen, ready for JSON: `seconds` (the page and the processes), `rows` (time in ms by the page's clock, level of
        the microphone, change of the picture or None), `probe` (WebRTC's own statistics), `server` (what it wrote last)."""
        return {"seconds": self._seconds, "rows": self._rows, "probe": self._probe, "server": self._wrote}
