"""Two network namespaces joined by a link that loses and delays packets, made of two TUN devices and a thread between them.

The kernel's own netem would do, but few virtual machines have it. Needs root and Linux; touches nothing outside the namespaces.
"""

import fcntl
import heapq
import os
import random
import select
import shutil
import struct
import subprocess
import threading
import time

TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
LARGEST = 65536
ADDRESSES = ("10.231.7.1", "10.231.7.2")


def works() -> bool:
    """Whether such a link can be made here."""
    if os.name != "posix" or os.geteuid() != 0 or not shutil.which("ip") or not os.path.exists("/dev/net/tun"):
        return False
    try:
        with LossyLink("dlt-probe"):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


class LossyLink:
    """Namespaces `name`-a and `name`-b with the addresses `ADDRESSES`.

    Args:
        loss: share of packets lost, each way.
        delay: mean and half width of the uniform delay of each packet, seconds, each way. Packets overtake each other, as in netem.
    """

    def __init__(self, name: str, loss: float = 0.0, delay: tuple[float, float] = (0.0, 0.0), seed: int = 0):
        self.spaces = (f"{name}-a", f"{name}-b")
        self.loss, self.delay = loss, delay
        self.passed = self.lost = 0
        self._name, self._random = name, random.Random(seed)
        self._devices: list[int] = []
        self._wake = os.pipe()
        self._thread = threading.Thread(target=self._relay, name="lossy-link", daemon=True)

    def __enter__(self) -> "LossyLink":
        try:
            for space, address in zip(self.spaces, ADDRESSES):
                device = f"dlt{os.getpid() % 10000}{space[-1]}"
                run("ip", "netns", "add", space)
                self._devices.append(os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK))
                fcntl.ioctl(self._devices[-1], TUNSETIFF, struct.pack("16sH", device.encode(), IFF_TUN | IFF_NO_PI))
                run("ip", "link", "set", device, "netns", space, "name", "link0")
                run("ip", "-n", space, "addr", "add", f"{address}/24", "dev", "link0")
                run("ip", "-n", space, "link", "set", "lo", "up")
                run("ip", "-n", space, "link", "set", "link0", "up")
            self._thread.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_) -> None:
        os.write(self._wake[1], b".")
        if self._thread.is_alive():
            self._thread.join()
        for descriptor in (*self._devices, *self._wake):
            os.close(descriptor)
        for space in self.spaces:
            subprocess.run(["ip", "netns", "del", space], capture_output=True)

    def cut(self, is_cut: bool) -> None:
        """Pull the plug at b's side, or put it in again."""
        run("ip", "-n", self.spaces[1], "link", "set", "link0", "down" if is_cut else "up")

    def command(self, side: int, *words) -> list[str]:
        """A command line that runs in a namespace."""
        return ["ip", "netns", "exec", self.spaces[side], *map(str, words)]

    def _relay(self) -> None:
        under_way: list[tuple[float, int, int, bytes]] = []  # (when due, order, device to write to, packet)
        count = 0
        while True:
            wait = max(under_way[0][0] - time.monotonic(), 0) if under_way else None
            ready, _, _ = select.select([*self._devices, self._wake[0]], [], [], wait)
            if self._wake[0] in ready:
                return
            for source in ready:
                packet = _read(source)
                if not packet:
                    continue
                if self._random.random() < self.loss:
                    self.lost += 1
                    continue
                count += 1
                due = time.monotonic() + self.delay[0] + self._random.uniform(-1, 1) * self.delay[1]
                heapq.heappush(under_way, (due, count, self._devices[1 - self._devices.index(source)], packet))
            while under_way and under_way[0][0] <= time.monotonic():
                self.passed += _write(under_way[0][2], heapq.heappop(under_way)[3])


def run(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True)


def _read(device: int) -> bytes:
    try:
        return os.read(device, LARGEST)
    except OSError:
        time.sleep(0.005)  # The device is down, and says all the time that there is something.
        return b""


def _write(device: int, packet: bytes) -> int:
    try:
        return int(os.write(device, packet) > 0)
    except OSError:
        return 0
