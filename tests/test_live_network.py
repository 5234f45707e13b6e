"""`difflistener live` over a bad network: 5 % of the packets lost and 80 ms, give or take 20, each way, and a cut of 5 s.

The server is in one network namespace, who talks to it in another; nothing else is touched.
"""

import contextlib
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from live_checkpoints import write_checkpoints
from lossy_link import ADDRESSES, LossyLink, works

pytest.importorskip("aiohttp")
pytest.importorskip("aiortc")

import difflistener  # noqa: E402
from difflistener.live.browser import NAMES  # noqa: E402

pytestmark = pytest.mark.skipif(not works(), reason="needs root, ip netns and /dev/net/tun")

TOKEN = "sesame-open"
ORIGIN = f"http://{ADDRESSES[0]}:8080"
TESTS = Path(__file__).parent
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(difflistener.__file__).parents[1])}
CUT_S, RECOVERY_S, FORGOTTEN_S = 5.0, 15.0, 15.0
"""Seconds without a network, then until there are new frames, and until the server has forgotten who does not come back."""


class Process:
    """A process in a namespace, in a group of its own; `next` gives the JSON lines that it prints."""

    def __init__(self, command: list[str]):
        self.process = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True, start_new_session=True)
        self._lines: queue.Queue = queue.Queue()
        threading.Thread(target=lambda: [self._lines.put(line) for line in self.process.stdout], daemon=True).start()

    def until(self, reached, seconds: float) -> dict:
        """The first line for which `reached(line)` holds."""
        end, line = time.monotonic() + seconds, None
        while time.monotonic() < end:
            assert self.process.poll() is None, f"it has ended: {line}"
            with contextlib.suppress(queue.Empty):
                line = json.loads(self._lines.get(timeout=0.2))
                if reached(line):
                    return line
        raise AssertionError(f"not reached within {seconds:g} s; the last line was {line}")

    def end(self, how: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid, how)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(15)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture(scope="module")
def link(tmp_path_factory):
    """The link, with a server at its first end."""
    body, brain = write_checkpoints(tmp_path_factory.mktemp("checkpoints"))
    with LossyLink(f"dlt{os.getpid()}", loss=0.05, delay=(0.08, 0.02)) as link:
        server = Process(link.command(0, sys.executable, "-m", "difflistener", "live", "--host", ADDRESSES[0], "--token", TOKEN,
                                      "--body-checkpoint", body, "--brain-checkpoint", brain))
        try:
            end = time.monotonic() + 60
            while stats(link) is None and server.process.poll() is None and time.monotonic() < end:
                time.sleep(0.2)
            yield link
            assert server.process.poll() is None
        finally:
            server.end(signal.SIGINT)


def stats(link) -> dict | None:
    """/stats of the server, asked for beside it."""
    ask = f"import urllib.request; print(urllib.request.urlopen('{ORIGIN}/stats?token={TOKEN}', timeout=5).read().decode())"
    answer = subprocess.run(link.command(0, sys.executable, "-c", ask), capture_output=True, text=True)
    return json.loads(answer.stdout) if answer.returncode == 0 else None


def sockets(link) -> list[str]:
    """What the server holds, but for the socket it listens at. A connection without an inode is the kernel's, who waits for the
    other side's goodbye."""
    found, listens = [], "0A"
    for kind in ("udp", "tcp"):
        table = subprocess.run(link.command(0, "cat", f"/proc/net/{kind}"), capture_output=True, text=True).stdout
        rows = [line.split() for line in table.splitlines()[1:]]
        found += [row[1] for row in rows if row[3] != listens and row[9] != "0"]
    return found


def is_forgotten(link) -> None:
    """Nothing of the last visitor is left in the server."""
    end = time.monotonic() + FORGOTTEN_S
    while (stats(link)["sessions"] or sockets(link)) and time.monotonic() < end:
        time.sleep(0.2)
    left = stats(link)
    assert left["sessions"] == [] and left["waiting"] == 0 and left["refused"].get("flood", 0) == 0 and sockets(link) == []


def lose_for_a_while(link) -> None:
    link.cut(True)
    time.sleep(CUT_S)
    link.cut(False)


def hears(line: dict, since: dict | None = None) -> bool:
    """Whether the listener has answered sound of the visitor's, of a session begun after `since`."""
    now = line["stats"]
    return now is not None and now["delay_ms"]["p50"] is not None and (since is None or now["frames"] < since["stats"]["frames"])


def test_webrtc_survives_loss_and_comes_back_after_a_cut(link):
    client = Process(link.command(1, sys.executable, TESTS / "lossy_client.py", ORIGIN, TOKEN))
    try:
        first = client.until(lambda line: line["frames"] > 30, 20)
        before = client.until(lambda line: line["at"] > first["at"] + 4, 10)
        rate = (before["frames"] - first["frames"]) / (before["at"] - first["at"])
        assert before["path"] == "rtc" and before["sessions"] == 1 and rate > 15, before
        assert hears(before) and before["stats"]["silence_filled_s"] < 2.5, before["stats"]
        lose_for_a_while(link)
        back = client.until(lambda line: line["frames"] > before["frames"] + 60, RECOVERY_S)
        after = client.until(lambda line: hears(line, before if back["sessions"] > 1 else None), 5)
        assert after["path"] == "rtc" and after["sessions"] <= 2 and len(stats(link)["sessions"]) == 1
        # A lid is closed: nothing more comes, not even a goodbye.
        link.cut(True)
    finally:
        client.end(signal.SIGKILL)
    try:
        is_forgotten(link)
    finally:
        link.cut(False)


@pytest.mark.skipif(not any(map(shutil.which, NAMES)), reason="needs Chromium (apt install chromium)")
def test_a_page_on_the_socket_survives_loss_and_comes_back_after_a_cut(link):
    page = Process(link.command(1, sys.executable, TESTS / "lossy_page.py", ORIGIN, f"token={TOKEN}&media=socket"))
    try:
        first = page.until(lambda line: line["state"] == "listening" and line["frames"] > 5, 30)
        before = page.until(lambda line: line["at"] > first["at"] + 4, 10)
        rate = (before["frames"] - first["frames"]) / (before["at"] - first["at"])
        assert before["media"] == "socket" and rate > 2 and hears(before), before
        lose_for_a_while(link)
        back = page.until(lambda line: line["state"] == "listening" and line["frames"] > before["frames"] + 10, RECOVERY_S)
        assert back["problem"] is None and len(stats(link)["sessions"]) == 1
    finally:
        page.end(signal.SIGTERM)
    is_forgotten(link)
