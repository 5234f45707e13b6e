"""Processor time and memory of process groups, as Linux tells them in /proc. Elsewhere they are not measured: None."""

import os
from pathlib import Path

PROC = Path("/proc")


def members(group: int) -> list[int]:
    """Ids of the living processes of a group."""
    found = []
    for stat in PROC.glob("[0-9]*/stat"):
        fields = _fields(stat)
        if fields and int(fields[2]) == group and fields[0] not in "ZX":
            found.append(int(stat.parent.name))
    return found


def cpu_seconds(group: int) -> float | None:
    """Processor time that the living processes of a group have used, and the ended ones that they waited for."""
    if not PROC.is_dir():
        return None
    ticks = 0
    for process in members(group):
        fields = _fields(PROC / str(process) / "stat")
        ticks += sum(map(int, fields[11:15])) if fields else 0
    return ticks / os.sysconf("SC_CLK_TCK")


def memory_mb(group: int) -> float | None:
    """Memory that the processes of a group hold, in millions of bytes; what they share is counted for each."""
    if not PROC.is_dir():
        return None
    pages = 0
    for process in members(group):
        try:
            pages += int((PROC / str(process) / "statm").read_text().split()[1])
        except OSError:
            continue
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def machine_seconds() -> float | None:
    """Processor time that all cores were not idle since the start, what a host took away included."""
    stat = PROC / "stat"
    if not stat.is_file():
        return None
    user, nice, system, _, _, irq, softirq, steal = map(int, stat.read_text().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def _fields(stat: Path) -> list[str]:
    """Fields of a stat file behind the name; none where the process has gone meanwhile."""
    try:
        return stat.read_text().rsplit(")", 1)[1].split()
    except OSError:
        return []
