"""A thread that waits for work, and can be ended from an event loop without blocking it. Knows nothing of the work."""

import asyncio
import threading


class Worker:
    """Base of a named daemon thread. A subclass says what `_prepare` and `_work` do; both run in the thread.

    `wake` is its lock, and is notified when there may be work. `_work` returns soon after `closing` is set.
    """

    def __init__(self, name: str):
        self.wake = threading.Condition()
        self.closing = False
        self.failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=f"listener-{name}", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None

    def _prepare(self) -> None:
        """What takes long and must be there before the first work."""

    def _work(self) -> None:
        raise NotImplementedError

    async def start(self) -> None:
        """Begin, and wait until it is prepared. Raises what `_prepare` raises."""
        self._loop = asyncio.get_running_loop()
        self._ready, self._ended = self._loop.create_future(), self._loop.create_future()
        self._thread.start()
        await self._ready

    def end(self) -> None:
        """Tell the thread to end."""
        with self.wake:
            self.closing = True
            self.wake.notify_all()

    async def ended(self) -> None:
        """Wait until it has ended, if it ever began."""
        if self._loop is not None:
            await asyncio.shield(self._ended)
            self._thread.join()

    def tell(self, future: asyncio.Future, result=None, error: BaseException | None = None) -> None:
        """Settle a future of the event loop from the thread; one that is settled or cancelled stays as it is."""
        self._loop.call_soon_threadsafe(_settle, future, result, error)

    def _run(self) -> None:
        import torch

        # Torch's own threads wait for work in a busy loop and would take the processors from the other parts.
        torch.set_num_threads(1)
        try:
            self._prepare()
            self.tell(self._ready)
            self._work()
        except BaseException as error:  # It is raised where somebody waits for the work.
            self.failure = error
            self.tell(self._ready, error=error)
        finally:
            self.tell(self._ended)


def _settle(future: asyncio.Future, result, error: BaseException | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)
