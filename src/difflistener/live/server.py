"""`difflistener live`: the page, and the door to sessions. Who may come in, how many, and what they are told if they may not.

Serves files of `web/`, a picture of each body, /about, /healthz, /stats and the WebSocket /session; knows nothing of media.
Everything that is refused is counted by kind in /stats.
"""

import asyncio
import contextlib
import hmac
import ipaddress
import secrets
import signal
import sys
import time
import urllib.parse
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from socket import gethostname

from difflistener.errors import UserError, require
from difflistener.live.config import Live

for package in ("aiohttp", "aiortc"):
    require(package)

from aiohttp import WSMsgType, web  # noqa: E402

from difflistener.live import protocol  # noqa: E402
from difflistener.live.choices import Choices, load_choices  # noqa: E402
from difflistener.live.protocol import Refused  # noqa: E402
from difflistener.live.record import check_folder  # noqa: E402
from difflistener.live.rtc import read_ice  # noqa: E402
from difflistener.live.session import House, Session, raise_as_refused  # noqa: E402

WEB = Path(__file__).parent / "web"
KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
MIN_TOKEN = 8
STILL_QUALITY = 90

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
                               "media-src 'self' blob:; connect-src 'self'; worker-src 'self'; base-uri 'none'; "
                               "form-action 'none'; frame-ancestors 'none'",
    "Permissions-Policy": "camera=(self), microphone=(self)",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
    "Server": "difflistener",
}


def live(config: Live) -> None:
    """Serve until Ctrl-C.

    Raises:
        UserError: settings that do not go together, checkpoints that do not load, or an address that cannot be served at.
    """
    from difflistener.device import resolve_device

    is_local = _is_loopback(config.host)
    _check(config, is_local)
    ice = read_ice(config.ice)
    if config.record is not None:
        check_folder(config.record)
    choices = load_choices(config.body_checkpoint, config.brain_checkpoint, resolve_device(config.device))
    if any(brain["sees"] for brain in choices.describe()["brains"]):
        _load_tracker()
    app = make_app(choices, token=config.token, is_local=is_local, sessions=config.sessions, ice=ice, record=config.record)
    try:
        asyncio.run(_serve(app, config))
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("\nstopped.", file=sys.stderr)


def _check(config: Live, is_local: bool) -> None:
    if not is_local and config.token is None:
        raise UserError(f"--host {config.host} lets everybody who reaches this machine talk to the listener.",
                        f"Give a secret as well, such as --token {secrets.token_urlsafe(12)}")
    if config.token is not None and not MIN_TOKEN <= len(config.token) <= protocol.NAME_LENGTH:
        raise UserError(f"--token has {len(config.token)} characters.",
                        f"Use {MIN_TOKEN} to {protocol.NAME_LENGTH}, such as {secrets.token_urlsafe(12)}")
    if config.sessions < 1:
        raise UserError(f"--sessions is {config.sessions}.", "Allow at least one.")


def _load_tracker() -> None:
    """Now, because at the first picture it would hold up a conversation. Where its package is missing, the page says so then."""
    from difflistener.prepare.landmarks import FaceTracker

    with contextlib.suppress(UserError):
        FaceTracker().close()


async def _serve(app: web.Application, config: Live) -> None:
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, config.host, config.port).start()
        except (OSError, OverflowError) as error:
            raise UserError(f"{config.host}:{config.port} cannot be served at ({error}).",
                            "Give another --port, or an address of this machine as --host.") from error
        print(_invitation(config, runner.addresses[0][1]), file=sys.stderr, flush=True)
        with contextlib.suppress(NotImplementedError):  # Windows has no handlers; there Ctrl-C alone ends it.
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, asyncio.current_task().cancel)
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()


def _invitation(config: Live, port: int) -> str:
    """Where to go, and what to know."""
    host = config.host
    if host in ("0.0.0.0", "::"):
        host = gethostname()
    name = f"[{host}]" if ":" in host else host
    query = "" if config.token is None else "?token=" + urllib.parse.quote(config.token, safe="")
    lines = [f"The listener is at http://{name}:{port}/{query} (Ctrl-C ends it)."]
    if not _is_loopback(config.host):
        lines.append("Browsers give camera and microphone only to https pages and to localhost: put https in front, or "
                     f"forward the port (ssh -L {port}:localhost:{port} HOST) and open http://localhost:{port}/{query}")
    if config.record is not None:
        lines.append(f"Conversations are recorded in {config.record}; the page says so.")
    return "\n".join(lines)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower().rstrip(".") == "localhost"


class Server:
    """Handlers of one app."""

    def __init__(self, choices: Choices, token: str | None, is_local: bool, limit: int, ice: list[dict], record: Path | None):
        threads = ThreadPoolExecutor(2 + 2 * limit, thread_name_prefix="live")
        self.house = House(choices, threads, ice, record)
        self._token, self._is_local, self._limit = token, is_local, limit
        self._files = {path.name: path.read_bytes() for path in sorted(WEB.iterdir()) if path.suffix in KINDS}
        self._stills: dict[str, bytes] = {}
        self._waiting = self._served = 0
        self._begun = time.monotonic()

    # Who may come in

    @web.middleware
    async def guard(self, request: web.Request, handler) -> web.StreamResponse:
        """Refuse what comes from other pages, under other names, and without the token."""
        if request.path == "/healthz":
            return await handler(request)
        if not self._is_our_name(request.headers.get("Host", "")):
            return self._refuse("host", 403, "This server answers to localhost only. Open it by that name.")
        origin = request.headers.get("Origin")
        if origin is not None and origin.partition("://")[2] != request.headers["Host"]:
            return self._refuse("origin", 403, "Other pages may not come in here.")
        if request.path != "/session" and not self._has_token(request):
            return self._refuse("token", 401, "A token is missing: open the address that difflistener live has printed.")
        try:
            return await handler(request)
        except web.HTTPNotFound:
            return self._refuse("path", 404, "There is nothing here.")
        except web.HTTPMethodNotAllowed:
            return self._refuse("path", 405, "There is nothing here.")

    def _is_our_name(self, host: str) -> bool:
        """A name that another page's server has made to point here reads that other name."""
        if self._token is not None:
            return host != ""
        try:
            name = urllib.parse.urlsplit(f"//{host}").hostname
        except ValueError:
            return False
        return name is not None and (not self._is_local or _is_loopback(name))

    def _has_token(self, request: web.Request, said: str = "") -> bool:
        if self._token is None:
            return True
        given = (said, request.query.get("token", ""), request.cookies.get(_cookie(request), ""))
        return any([hmac.compare_digest(one.encode(errors="replace"), self._token.encode()) for one in given])

    def _refuse(self, kind: str, status: int, text: str) -> web.Response:
        self.house.refused[kind] += 1
        return web.Response(status=status, text=text + "\n")

    @staticmethod
    async def add_headers(request: web.Request, response: web.StreamResponse) -> None:
        """Headers of every response."""
        response.headers.update(HEADERS)

    # What there is

    async def page(self, request: web.Request) -> web.Response:
        response = self._file("index.html")
        if self._token is not None:
            response.set_cookie(_cookie(request), self._token, httponly=True, samesite="Strict")
        return response

    async def file(self, request: web.Request) -> web.Response:
        if request.match_info["name"] not in self._files:
            raise web.HTTPNotFound
        return self._file(request.match_info["name"])

    def _file(self, name: str) -> web.Response:
        return web.Response(body=self._files[name], content_type=KINDS[Path(name).suffix], charset="utf-8")

    async def still(self, request: web.Request) -> web.Response:
        """A body at rest; asked for by its place among the choices."""
        names, place = list(self.house.choices.bodies), request.match_info["place"]
        if not place.isascii() or not place.isdigit() or len(place) > 4 or int(place) >= len(names):
            raise web.HTTPNotFound
        name = names[int(place)]
        if name not in self._stills:
            draw = lambda: protocol.encode_picture(self.house.choices.still(name), STILL_QUALITY)
            self._stills[name] = await asyncio.get_running_loop().run_in_executor(self.house.threads, draw)
        return web.Response(body=self._stills[name], content_type="image/jpeg")

    async def about(self, request: web.Request) -> web.Response:
        """What the page shows before a session begins."""
        choices = self.house.choices
        return web.json_response({"choices": choices.describe(), "settings": vars(choices.first()),
                                  "recording": self.house.record is not None})

    async def health(self, request: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def stats(self, request: web.Request) -> web.Response:
        """How it goes: every session, and what was refused."""
        now = time.monotonic()
        running = [session for session in self.house.sessions.values() if session.listener is not None]
        return web.json_response({
            "uptime_s": round(now - self._begun, 1), "served": self._served, "limit": self._limit, "waiting": self._waiting,
            "refused": dict(self.house.refused),
            "sessions": [{"seconds": round(now - session.begun, 1), **session.stats()} for session in running]})

    # Sessions

    async def session(self, request: web.Request) -> web.StreamResponse:
        if self._waiting >= protocol.WAITING:
            return self._refuse("busy", 503, "Too many are at the door.")
        socket = web.WebSocketResponse(heartbeat=protocol.HEARTBEAT_S, max_msg_size=protocol.MESSAGE_BYTES, compress=False,
                                       timeout=protocol.CLOSE_S)
        await socket.prepare(request)
        self._waiting += 1
        try:
            hello = await asyncio.wait_for(_hello(socket), protocol.HELLO_S)
        except (Refused, TimeoutError) as error:
            self.house.refused[error.kind if isinstance(error, Refused) else "hello"] += 1
            await socket.close(code=protocol.CLOSED["hello"], message=b"hello")
            return socket
        finally:
            self._waiting -= 1
        try:
            await self._admit(request, socket, hello)
        except ConnectionError:
            pass  # It went while it was being answered.
        return socket

    async def _admit(self, request: web.Request, socket: web.WebSocketResponse, hello: dict) -> None:
        if not self._has_token(request, hello.get("token", "")):
            return await self._turn_away(socket, "token", "The token is missing or wrong.",
                                         "Open the address that difflistener live has printed.")
        page, sessions = hello.get("page") or secrets.token_hex(), self.house.sessions
        while (before := sessions.get(page)) is not None:
            before.end("moved")
            await before.closed.wait()
        if len(sessions) >= self._limit:
            return await self._turn_away(socket, "busy", "Somebody else is talking with the listener.",
                                         "This page waits, and begins as soon as the listener is free.")
        self._served += 1
        sessions[page] = Session(self.house, socket, hello)
        try:
            await sessions[page].run()
        finally:
            del sessions[page]

    async def _turn_away(self, socket: web.WebSocketResponse, kind: str, problem: str, remedy: str) -> None:
        self.house.refused[kind] += 1
        message = {"type": "busy"} if kind == "busy" else {"type": "problem", "fatal": True}
        await socket.send_json({**message, "problem": problem, "remedy": remedy})
        await socket.close(code=protocol.CLOSED[kind], message=kind.encode())

    async def shut_down(self, app: web.Application) -> None:
        """End all sessions."""
        sessions = list(self.house.sessions.values())
        for session in sessions:
            session.end("stopped")
        await asyncio.gather(*(session.closed.wait() for session in sessions))

    async def clean_up(self, app: web.Application) -> None:
        """End the threads."""
        await asyncio.to_thread(self.house.threads.shutdown)


def _cookie(request: web.Request) -> str:
    """Its name tells servers on one machine apart: cookies belong to a host, not to its port."""
    return f"difflistener-{request.url.port}"


async def _hello(socket: web.WebSocketResponse) -> dict:
    """The first message, which must be a hello. Raises `Refused`."""
    message = await socket.receive()
    if message.type == WSMsgType.ERROR:
        raise_as_refused(message.data)
    if message.type != WSMsgType.TEXT:
        raise Refused("hello", "the first message is no hello")
    said = protocol.read_text(message.data)
    if said["type"] != "hello":
        raise Refused("hello", "the first message is no hello")
    return said


def make_app(choices: Choices, *, token: str | None = None, is_local: bool = True, sessions: int = 1,
             ice: list[dict] | None = None, record: Path | None = None) -> web.Application:
    """The whole server.

    Args:
        is_local: it is bound to this machine's own address: without a token, only that name is answered to.
        sessions: how many may talk at once.
        ice: servers from `rtc.read_ice`.
    """
    server = Server(choices, token, is_local, sessions, ice or [], record)
    app = web.Application(middlewares=[server.guard], client_max_size=1024)
    app.add_routes([
        web.get("/", server.page), web.get("/web/{name}", server.file), web.get("/still/{place}", server.still),
        web.get("/about", server.about), web.get("/healthz", server.health), web.get("/stats", server.stats),
        web.get("/session", server.session)])
    app.on_response_prepare.append(server.add_headers)
    app.on_shutdown.append(server.shut_down)
    app.on_cleanup.append(server.clean_up)
    return app
