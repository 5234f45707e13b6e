"""Progress of long work: a bar on a terminal, a plain line every 10 s in a log. Goes to stderr."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")
LOG_INTERVAL_S = 10.0


class Task:
    """What a line of progress is about."""

    def __init__(self):
        self.note = ""

    def set_note(self, note: str) -> None:
        """Show `note` behind the bar or the line (a loss, a score)."""
        self.note = note


def progress(
    items: Iterable[Item], label: str, total: int | None = None, start: int = 0
) -> Iterator[tuple[Item, Task]]:
    """Yield `(item, task)` for each item and report how far the work is.

    Args:
        items: what to go through.
        label: what is being done, as the user reads it.
        total: number of items over the whole work; taken from `len(items)` plus `start` if it has one.
        start: items already done before (a resumed run).
    """
    if total is None and hasattr(items, "__len__"):
        total = len(items) + start  # type: ignore[arg-type]
    task = Task()
    run = _terminal if sys.stderr.isatty() else _plain
    yield from run(items, label, total, start, task)


def _terminal(items, label, total, start, task):
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
               TimeRemainingColumn(), TextColumn("{task.fields[note]}")]
    with Progress(*columns, console=Console(stderr=True)) as bar:
        handle = bar.add_task(label, total=total, completed=start, note="")
        for item in items:
            yield item, task
            bar.update(handle, advance=1, note=task.note)


def _plain(items, label, total, start, task):
    begun = last = time.monotonic()
    done = start

    def line():
        elapsed = time.monotonic() - begun
        rate = (done - start) / max(elapsed, 1e-9)
        count = f"{done}/{total}" if total else f"{done}"
        left = f", {(total - done) / rate:.0f} s left" if total and rate > 0 and done < total else ""
        print(f"{label}: {count} in {elapsed:.0f} s, {rate:.1f}/s{left} {task.note}".rstrip(), file=sys.stderr, flush=True)

    for item in items:
        yield item, task
        done += 1
        if time.monotonic() - last >= LOG_INTERVAL_S:
            last = time.monotonic()
            line()
    line()
