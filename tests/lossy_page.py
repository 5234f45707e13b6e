"""A real browser at a server of `difflistener live`; prints the page's state as a JSON line twice a second, until it is ended.

    python lossy_page.py ORIGIN QUERY
"""

import asyncio
import json
import signal
import sys

from difflistener.live.browser import launch

LOOK = "(({ state, media, frames, stats, problem }) => ({ state, media, frames, stats, problem }))(window.difflistener)"


async def main(origin: str, query: str) -> None:
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, asyncio.current_task().cancel)
    # Browsers give the microphone only to https and localhost; there is neither between two namespaces.
    async with launch(f"{origin}/?{query}", flags=(f"--unsafely-treat-insecure-origin-as-secure={origin}",)) as browser:
        await browser.wait_for("!!window.difflistener")
        await browser.evaluate("void window.difflistener.start()")
        while True:
            look = await browser.evaluate(LOOK)
            print(json.dumps({"at": asyncio.get_running_loop().time(), **look}), flush=True)
            await asyncio.sleep(0.5)


if __name__ == "__main__":
    try:
        asyncio.run(main(*sys.argv[1:]))
    except asyncio.CancelledError:
        pass
