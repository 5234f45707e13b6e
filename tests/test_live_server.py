"""The live server: who comes in, what is said, hostile input; and that nothing is left when it is over."""

import asyncio
import contextlib
import io
import json
import os
import random
import shutil
import socket
import struct
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from difflistener import cli
from difflistener.errors import UserError


pytest.importorskip("aiortc", reason="needs aiortc (pip install 'difflistener[live]')")
aiohttp = pytest.importorskip("aiohttp", reason="needs aiohttp (pip install 'difflistener[live]')")

from live_page import SIZE, FakeChoices, Page, jpeg, left_behind, quick_stats, run, serving, status_of, until  # noqa: E402, F401

from difflistener.live import protocol, server  # noqa: E402
from difflistener.live.choices import Settings, load_choices  # noqa: E402
from difflistener.live.config import Live  # noqa: E402
from difflistener.live.protocol import Bucket, Refused, decode_picture, read_binary, read_text  # noqa: E402
from difflistener.live.rtc import read_ice  # noqa: E402
from difflistener.shipped import SHIPPED  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread", "quick_stats")


# ----------------------------------------------------------------------------------------------- pages and doors


def test_the_page_and_its_files_are_served_and_nothing_else():
    async def conversation():
        async with serving() as client:
            for path, kind in (("/", "text/html"), ("/web/app.js", "text/javascript"), ("/web/style.css", "text/css"),
                               ("/web/audio-worklet.js", "text/javascript"), ("/still/1", "image/jpeg"), ("/about", "application/json")):
                answer = await client.get(path)
                assert answer.status == 200 and answer.content_type == kind and await answer.read()
                assert "frame-ancestors 'none'" in answer.headers["Content-Security-Policy"]
                assert "unsafe" not in answer.headers["Content-Security-Policy"] and answer.headers["X-Content-Type-Options"] == "nosniff"
            astray = ["/web/../server.py", "/web/..%2fserver.py", "/web/%2e%2e/%2e%2e/cli.py", "/web//etc/passwd", "/web/", "/web/app.js/x",
                      "/still/2", "/still/-1", "/still/1.5", "/still/%C2%B2", "/etc/passwd", "/..", "/web/..%5cserver.py", "/web/app.js%00"]
            for path in astray:
                assert await status_of(client, path) == 404, path
            assert (await client.post("/about", data=b"x" * 5000)).status == 405
            stats = await (await client.get("/stats")).json()
            assert stats["refused"] == {"path": len(astray) + 1} and stats["sessions"] == []

    run(conversation())


def test_every_file_the_page_names_is_in_the_package():
    text = " ".join(path.read_text() for path in server.WEB.iterdir())
    named = {word.removeprefix("web/").removeprefix("./") for word in text.split('"') if word.startswith(("web/", "./"))}
    assert named | {"index.html"} == {path.name for path in server.WEB.iterdir()} and "audio-worklet.js" in named
    for path in server.WEB.iterdir():
        outside = path.read_text().replace("http://www.w3.org/2000/svg", "").replace("http://localhost:", "")
        assert "http://" not in outside and "https://" not in outside and "@import" not in outside


OURS = ("localhost:8080", "127.0.0.1", "[::1]:99", "LOCALHOST")
OTHERS = ("evil.example", "localhost.evil.example", "127.0.0.1.nip.io:8080", "[", "")


@pytest.mark.parametrize("host", OURS + OTHERS)
def test_only_our_own_name_is_answered_to(host):
    status = 200 if host in OURS else 403

    async def conversation():
        async with serving() as client:
            assert (await client.get("/", headers={"Host": host})).status == status
            assert client.house.refused == ({"host": 1} if status == 403 else {})

    run(conversation())


def test_pages_of_others_are_refused():
    async def conversation():
        async with serving() as client:
            own = f"http://127.0.0.1:{client.port}"
            for origin in ("http://evil.example", "null", "http://127.0.0.1:1", "http://localhost", "http://["):
                with pytest.raises(aiohttp.WSServerHandshakeError) as error:
                    await client.ws_connect("/session", headers={"Origin": origin})
                assert error.value.status == 403
            assert client.house.refused == {"origin": 5}
            assert (await client.get("/about", headers={"Origin": own})).status == 200
            async with await client.ws_connect("/session", headers={"Origin": own}) as socket:
                await socket.send_json({"type": "hello", "media": "socket"})
                assert (await socket.receive_json())["type"] == "welcome"

    run(conversation())


def test_a_token_opens_everything_but_health():
    secret = "correct horse"

    async def conversation():
        async with serving(token=secret, is_local=False) as client:
            away = {"Host": "listener.example"}
            assert await (await client.get("/healthz")).json() == {"status": "ok"}
            for path in ("/", "/stats", "/about", "/web/app.js", "/still/0", "/?token=wrong", "/?token=", "/?token=%FF%F0"):
                assert (await client.get(path, headers=away)).status == 401, path
            async with Page(client, token="wrong") as page:
                assert "token" in (await page.hears("problem"))["problem"] and await page.closes() == protocol.CLOSED["token"]
            assert client.house.refused == {"token": 9}
            async with Page(client, token=secret) as page:
                await page.hears("welcome")
            # The page's own address lets its files and its socket in as well.
            answer = await client.get("/", params={"token": secret}, headers=away)
            (cookie,) = answer.cookies.values()
            assert answer.status == 200 and cookie["httponly"] and cookie["samesite"] == "Strict"
            client.session.cookie_jar.update_cookies({f"difflistener-{client.port}": secret}, client.make_url("/"))
            assert cookie.key == "difflistener-80" and (await client.get("/web/app.js")).status == 200
            async with Page(client) as page:
                await page.hears("welcome")

    run(conversation())


# ------------------------------------------------------------------------------------------------ conversations


def test_sound_and_pictures_go_both_ways_over_the_socket():
    async def conversation():
        choices = FakeChoices()
        async with serving(choices) as client, Page(client) as page:
            welcome = await page.hears("welcome")
            assert [body["name"] for body in welcome["choices"]["bodies"]] == ["ann", "bob"] and welcome["size"] == [SIZE, SIZE]
            assert welcome["settings"]["body"] == "ann" and not welcome["recording"] and welcome["ice"] == []
            assert (await page.hears("media"))["path"] == "socket"
            wave = np.round(np.sin(np.arange(320) / 5) * 16384) / 32768
            await page.sound(wave, 7.25)
            await page.picture(jpeg(320, 240, quality=95), 7.5)
            assert await page.watch(1.3)
            (listener,) = choices.made
            (when, samples), (seen_at, picture) = listener.heard[0], listener.seen[0]
            assert when == 7.25 and samples.dtype == np.float32 and np.array_equal(samples, wave.astype(np.float32))
            assert seen_at == 7.5 and picture.shape == (240, 320, 3)
            assert np.abs(picture.astype(int) - np.asarray(Image.open(io.BytesIO(jpeg(320, 240, quality=95))))).max() == 0
            numbers = [number for number, _, _ in page.frames]
            assert len(numbers) > 20 and numbers == sorted(set(numbers)) and page.frames[0][1] == 12.0
            last = np.asarray(Image.open(io.BytesIO(page.frames[-1][2])))
            assert last.shape == (SIZE, SIZE, 3) and abs(int(last.mean()) - 40 - numbers[-1] % 150) <= 2
            stats = await page.hears("stats")
            assert stats["path"] == "socket" and stats["delay_ms"] == {"p50": None, "p95": None}
            await page.send(type="bye")
            assert await page.closes() == 1000
        assert not listener.is_open

    run(conversation())


def test_what_a_person_does_reaches_the_listener():
    async def conversation():
        choices = FakeChoices()
        async with serving(choices) as client, Page(client, settings={"seed": 5, "body": "bob", "brain": "of another server"}) as page:
            assert (await page.hears("welcome"))["settings"] | {"body": "bob", "seed": 5} == (page.said[-1])["settings"]
            await page.send(type="again")
            assert "nothing to react" in (await page.hears("problem"))["problem"]
            await page.sound(np.zeros(320))
            await page.send(type="again")
            assert (await page.hears("note"))["again"] is True
            choices.made[0].again = False
            assert (await page.hears("note"))["again"] is False
            await page.send(type="set", attitude="positive", audio_guidance=2.5)
            assert (await page.hears("note"))["settings"]["attitude"] == "positive"
            await page.send(type="clear")
            assert "Forgotten" in (await page.hears("note"))["text"]
            assert choices.made[0].told == [{"attitude": "positive", "audio_guidance": 2.5}, "clear"]
            await page.send(type="shown", number=3, at=17.5, age_ms=None)
            await page.hears("stats")
            stats = await page.hears("stats")
            assert stats["at"] == 17.5 and 0 <= stats["held_ms"] < 2500

    run(conversation())


def test_another_body_takes_over_and_the_frames_go_on():
    async def conversation():
        choices = FakeChoices()
        async with serving(choices) as client, Page(client) as page:
            await page.watch(0.3)
            await page.send(type="set", body="nobody")
            assert "nobody" in (await page.hears("problem"))["problem"] and choices.made[0].is_open
            await page.send(type="set", body="bob")
            note = await page.hears("note")
            assert note["settings"]["body"] == "bob" and note["size"] == [SIZE, SIZE]
            assert [listener.is_open for listener in choices.made] == [False, True] and choices.made[1].settings == Settings("bob", "brain")
            before = len(page.frames)
            await page.watch(0.4)
            numbers = [number for number, _, _ in page.frames]
            assert len(numbers) > before + 4 and numbers == sorted(set(numbers))

    run(conversation())


def test_the_second_has_to_wait_and_a_reload_does_not():
    async def conversation():
        async with serving() as client, Page(client, page="one") as first:
            await first.hears("welcome")
            async with Page(client, page="two") as second:
                assert "Somebody else" in (await second.hears("busy"))["problem"] and await second.closes() == protocol.CLOSED["busy"]
            ending = asyncio.create_task(first.closes())
            async with Page(client, page="one") as reloaded:
                await reloaded.hears("welcome")
                assert await ending == protocol.CLOSED["moved"]
                assert await reloaded.watch(0.2) and len(client.house.sessions) == 1
            await until(lambda: not client.house.sessions)
            async with Page(client, page="two") as second:
                await second.hears("welcome")
            stats = await (await client.get("/stats")).json()
            assert stats["refused"] == {"busy": 1} and stats["served"] == 3

    run(conversation())


def test_a_server_that_stops_says_so():
    async def conversation():
        async with serving(sessions=2) as client:
            pages = [await Page(client).__aenter__() for _ in range(2)]
            for page in pages:
                await page.hears("welcome")
            closing = asyncio.create_task(client.server.close())
            assert [await page.closes() for page in pages] == [protocol.CLOSED["stopped"]] * 2
            await closing

    run(conversation())


def test_a_page_that_has_gone_silent_is_found(monkeypatch):
    monkeypatch.setattr(protocol, "HEARTBEAT_S", 0.3)

    async def conversation():
        async with serving() as client:
            socket = await client.ws_connect("/session", autoping=False)
            await socket.send_json({"type": "hello", "media": "socket"})
            await until(lambda: client.house.sessions)
            await until(lambda: not client.house.sessions, 3)
            await socket.close()

    run(conversation())


def test_who_sends_neither_sound_nor_pictures_is_let_go(monkeypatch):
    monkeypatch.setattr(protocol, "IDLE_S", 0.5)

    async def conversation():
        async with serving() as client, Page(client) as page:
            assert await page.closes() == protocol.CLOSED["idle"]

    run(conversation())


def test_a_listener_that_dies_ends_its_session_only(capfd):
    async def conversation():
        choices = FakeChoices()
        async with serving(choices, sessions=2) as client, Page(client) as one, Page(client) as two:
            await one.hears("welcome")
            await two.hears("welcome")
            choices.made[0].failure = RuntimeError("the body broke")
            problem = await one.hears("problem")
            assert problem["fatal"] and await one.closes() == protocol.CLOSED["failed"]
            assert await two.watch(0.3) and len(client.house.sessions) == 1

    run(conversation())
    assert "the body broke" in capfd.readouterr().err


def test_a_listener_that_cannot_track_says_so_once():
    async def conversation():
        choices = FakeChoices()
        async with serving(choices) as client, Page(client) as page:
            await page.hears("media")
            choices.made[0].sees = False
            for _ in range(5):
                await page.picture(jpeg())
                await page.watch(0.05)
            await page.watch(0.2)
            problems = [message["problem"] for message in page.said if message["type"] == "problem"]
            assert problems == ["The listener does not see you. mediapipe is missing."]
            assert any(message.get("sees") is False for message in page.said)

    run(conversation())


# -------------------------------------------------------------------------------------------------- hostile input


def test_who_does_not_say_hello_is_let_go(monkeypatch):
    monkeypatch.setattr(protocol, "HELLO_S", 0.3)

    async def conversation():
        async with serving() as client:
            for first in (None, "", "{", "[]", '{"type": "again"}', "[" * 50_000, b"\x01" + bytes(20), '{"type": "hello"}'):
                async with await client.ws_connect("/session") as socket:
                    if first is not None:
                        await (socket.send_bytes(first) if isinstance(first, bytes) else socket.send_str(first))
                    message = await socket.receive(3)
                    assert message.type == aiohttp.WSMsgType.CLOSE and message.data == protocol.CLOSED["hello"]
            assert sum(client.house.refused.values()) == 8 and not client.house.sessions

    run(conversation())


def test_what_is_no_http_is_turned_away():
    generator = random.Random(0)
    pieces = [b"GET / HTTP/1.1\r\n", b"Host: localhost\r\n", b"Upgrade: websocket\r\nConnection: Upgrade\r\n", b"\x00\xff\r\n",
              b"Sec-WebSocket-Key: x\r\n", b"GET /session HTTP/1.1\r\n", b"Content-Length: -1\r\n", b"Transfer-Encoding: chunked\r\n",
              b"X: " + b"y" * 9000 + b"\r\n", b"\r\n"]

    async def conversation():
        async with serving() as client:
            for _ in range(60):
                reader, writer = await asyncio.open_connection("127.0.0.1", client.port)
                with contextlib.suppress(ConnectionError):
                    writer.write(b"".join(generator.choice(pieces) for _ in range(6)) + b"\r\n\r\n" + generator.randbytes(99))
                    writer.write_eof()
                    status = (await reader.read()).split(b"\r\n")[0]
                    assert not status.startswith(b"HTTP/1.1 5"), status
                writer.close()
                with contextlib.suppress(ConnectionError):
                    await writer.wait_closed()
            assert (await client.get("/healthz")).status == 200 and not client.house.sessions

    run(conversation())


def test_only_so_many_may_stand_at_the_door(monkeypatch):
    monkeypatch.setattr(protocol, "WAITING", 3)

    async def conversation():
        async with serving() as client:
            sockets = [await client.ws_connect("/session") for _ in range(3)]
            with pytest.raises(aiohttp.WSServerHandshakeError) as error:
                await client.ws_connect("/session")
            assert error.value.status == 503 and client.house.refused == {"busy": 1}
            for one in sockets:
                await one.close()

    run(conversation())


def nonsense(generator: random.Random):
    """A message that no page sends: text or bytes."""
    deep = "[" * generator.randrange(1, 30_000)
    values = [None, True, -1, 1e308, "x" * generator.randrange(9000), [], {}, [[]], 2**70, "\u202e\x00", float("nan")]
    lines = ["m=audio 9 UDP/TLS/RTP/SAVPF 111", "m=video x", "a=candidate:1 1 udp 1 1.2.3.4 5 typ host", "a=rtpmap:", "c="]
    known = list(protocol.MESSAGES)
    fields = ["sdp", "media", "seed", "body", "attitude", "number", "at", "page", "token", "settings", "audio_guidance", "__proto__"]
    shapes = [
        lambda: generator.randbytes(generator.randrange(0, 3000)),
        lambda: bytes([generator.randrange(1, 5)]) + generator.randbytes(generator.randrange(0, 40)),
        lambda: struct.pack("<Bd", 2, generator.choice([float("nan"), float("inf"), 1.0])) + generator.randbytes(100),
        lambda: struct.pack("<Bd", 1, 1.0) + bytes(2 * protocol.SOUND_SAMPLES + 2),
        lambda: generator.randbytes(50).decode("latin1"),
        lambda: deep,
        lambda: '{"type":' + deep,
        lambda: json.dumps(generator.choice(values)),
        lambda: json.dumps({"type": generator.choice([*known, *values[:9]]), generator.choice(fields): generator.choice(values)}),
        lambda: json.dumps({"type": "set", generator.choice(fields[2:6]): generator.choice(values)}),
        lambda: json.dumps({"type": "offer", "sdp": "\r\n".join(["v=0", *generator.choices(lines, k=9), ""])}),
        lambda: '{"type": "shown", "number": ' + "9" * 5000 + "}",
        lambda: "y" * (protocol.TEXT_BYTES + 1),
    ]
    return generator.choice(shapes)()


@pytest.mark.parametrize("seed", range(3))
def test_nonsense_is_refused_counted_and_harms_nobody(seed):
    generator = random.Random(seed)

    async def conversation():
        choices = FakeChoices()
        async with serving(choices, sessions=2) as client, Page(client, page="good") as good:
            await good.hears("welcome")
            for round_number in range(3):
                async with Page(client, page=f"bad {round_number}") as bad:
                    await bad.hears("welcome")
                    with contextlib.suppress(ConnectionError):
                        for _ in range(150):
                            message = nonsense(generator)
                            await (bad.socket.send_bytes(message) if isinstance(message, bytes) else bad.socket.send_str(message))
                    assert await bad.closes() == protocol.CLOSED["flood"]
            await until(lambda: len(client.house.sessions) == 1)
            assert sum(client.house.refused.values()) >= 3 * protocol.REFUSALS[1] and client.house.refused["message"] > 50
            before = len(good.frames)
            await good.sound(np.zeros(320), 1.0)
            assert await good.watch(0.5) and len(good.frames) > before + 8
            assert len(choices.made[0].heard) == 1 and choices.made[0].is_open
            assert (await client.get("/healthz")).status == 200

    run(conversation())


def test_a_message_that_is_too_large_ends_the_connection():
    async def conversation():
        async with serving() as client, Page(client) as page:
            await page.hears("welcome")
            await page.socket.send_bytes(bytes(protocol.MESSAGE_BYTES + 1))
            assert await page.closes() == 1009
            await until(lambda: client.house.refused == {"size": 1} and not client.house.sessions)

    run(conversation())


def test_a_flood_is_held_back_then_ended():
    async def conversation():
        choices = FakeChoices()
        async with serving(choices) as client, Page(client) as page:
            await page.hears("media")
            with contextlib.suppress(ConnectionError):
                for _ in range(200):
                    await page.sound(np.zeros(4000))
            assert await page.closes() == protocol.CLOSED["flood"]
            heard_s = sum(len(samples) for _, samples in choices.made[0].heard) / 16_000
            assert heard_s <= sum(protocol.RATES["sound"]) + 4 and client.house.refused["flood"] >= protocol.REFUSALS[1]

    run(conversation())


def bombs():
    good = jpeg()
    size = good.index(b"\xff\xc0") + 5
    huge = good[:size] + struct.pack(">HH", 65_000, 65_000) + good[size + 4 :]
    grey_png = io.BytesIO()
    Image.new("L", (64, 64)).save(grey_png, "PNG")
    return {"huge": huge, "wide": jpeg(1280, 720), "tiny": jpeg(8, 8), "passes": jpeg(progressive=True), "cut": good[:-300],
            "not one": b"\xff\xd8" + bytes(99), "another format": grey_png.getvalue(), "text": b"<svg/>", "header only": good[: size + 9]}


@pytest.mark.parametrize("kind", list(bombs()))
def test_a_picture_that_is_none_or_too_large_is_not_decoded(kind):
    begun = time.monotonic()
    with pytest.raises(Refused) as error:
        decode_picture(bombs()[kind])
    assert error.value.kind == "picture" and time.monotonic() - begun < 0.5


def test_bad_pictures_leave_the_session_unharmed():
    async def conversation():
        choices = FakeChoices()
        async with serving(choices) as client, Page(client) as page:
            await page.hears("media")
            for bomb in bombs().values():
                await page.picture(bomb)
                await page.watch(0.06)
            await page.picture(jpeg())
            await until(lambda: choices.made[0].seen)
            assert client.house.refused == {"picture": len(bombs())} and len(choices.made[0].seen) == 1

    run(conversation())


OFFERS = {
    "empty": "", "bare": "v=0", "zeros": "\x00" * 99, "cut": "v=0\r\nm=audio\r\n", "data": "v=0\r\nm=application 9 DTLS/SCTP 5000\r\n",
    "sections": "v=0\r\n" + "m=audio 9 UDP/TLS/RTP/SAVPF 0\r\n" * 40,
    "candidates": "v=0\r\nm=audio 9 UDP/TLS/RTP/SAVPF 111\r\n" + "a=candidate:1 1 udp 1 1.2.3.4 5 typ host\r\n" * 99,
    "codec": "v=0\r\nm=video 9 UDP/TLS/RTP/SAVPF 96\r\na=rtpmap:96 NONE/90000\r\na=setup:actpass\r\n",
}


@pytest.mark.parametrize("sdp", OFFERS.values(), ids=OFFERS)
def test_an_offer_that_is_none_is_refused_and_the_socket_still_works(sdp):
    async def conversation():
        async with serving() as client, Page(client, media="auto") as page:
            await page.hears("welcome")
            await page.send(type="offer", sdp=sdp)
            assert "refused" in (await page.hears("problem"))["problem"] and client.house.refused == {"sdp": 1}
            await page.send(type="use", media="socket")
            assert (await page.hears("media"))["path"] == "socket"
            await page.watch(0.3)
            assert len(page.frames) > 3

    run(conversation())


def test_messages_are_checked_field_by_field():
    assert read_text('{"type": "set", "seed": 3, "attitude": null}') == {"type": "set", "seed": 3, "attitude": None}
    assert read_text('{"type": "hello", "media": "rtc", "settings": {"body": "a"}}')["settings"] == {"body": "a"}
    for wrong in ('{"type": "set", "seed": true}', '{"type": "set", "seed": 1.5}', '{"type": "set", "seed": -1}',
                  '{"type": "set", "attitude": "angry"}',
                  '{"type": "set", "audio_guidance": 6}', '{"type": "set", "audio_guidance": NaN}', '{"type": "set", "audio_guidance": 1e999}',
                  '{"type": "again", "x": 1}', '{"type": "use"}', '{"type": "use", "media": "rtc"}',
                  '{"type": "hello", "media": "socket", "settings": {"x": 1}}',
                  '{"type": "hello", "media": "socket", "settings": []}', '{"type": ["set"]}', "3", "null", '{"type": "offer", "sdp": 3}'):
        with pytest.raises(Refused):
            read_text(wrong)
    assert read_binary(struct.pack("<BI", 4, 9)) == protocol.Seen(9)
    for wrong in (b"", b"\x01", struct.pack("<Bd", 1, 0), struct.pack("<Bd", 1, 0) + b"x", struct.pack("<Bd", 1, float("nan")) + b"xx",
                  b"\x03" + bytes(20),
                  struct.pack("<Bd", 2, 2e9) + b"x", struct.pack("<BI", 4, 9) + b"x"):
        with pytest.raises(Refused):
            read_binary(wrong)


def test_a_bucket_lets_through_a_burst_and_then_its_rate():
    now = [0.0]
    bucket = Bucket(2.0, 5.0, lambda: now[0])
    assert [bucket.take() for _ in range(7)] == [True] * 5 + [False] * 2
    now[0] = 1.0
    assert [bucket.take() for _ in range(3)] == [True, True, False]
    now[0] = 100.0
    assert sum(bucket.take() for _ in range(9)) == 5


# ------------------------------------------------------------------------------------------------------- the verb


@pytest.mark.parametrize(("words", "said"), [
    (["--host", "0.0.0.0"], "lets everybody"), (["--token", "short"], "5 characters"), (["--sessions", "0"], "--sessions is 0"),
    (["--ice", "http://x"], "no STUN or TURN"), (["--ice", "turn:host:1"], "no STUN or TURN"),
    (["--record", "/proc/nowhere"], "cannot be written"),
    (["--body-checkpoint", "missing", "--brain-checkpoint", "missing"], "missing is not a checkpoint"),
])
def test_wrong_settings_are_two_lines(words, said, capsys):
    assert cli.main(["live", *words]) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 2 and said in lines[0]


def test_the_shipped_ones_are_offered_by_that_name(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    choices = load_choices((), (), "cpu")
    assert list(choices.bodies) == list(choices.brains) == ["shipped"] and choices.describe()["brains"][0]["sees"]
    shutil.copytree(SHIPPED / "body", tmp_path / "ben")
    assert list(load_choices((Path("ben"), Path("shipped")), (), "cpu").bodies) == ["ben", "shipped"]


def test_ice_servers_are_read():
    assert read_ice(("stun:a.example:3478", "turn:me:pass:word@b.example:1")) == [
        {"urls": "stun:a.example:3478"}, {"urls": "turn:b.example:1", "username": "me", "credential": "pass:word"}]


def serve(monkeypatch, config, choices=None):
    monkeypatch.setattr(server, "load_choices", lambda *_: choices or FakeChoices())
    return server.live(config)


def test_a_port_that_is_taken_is_named(monkeypatch):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(UserError, match=f"127.0.0.1:{port} cannot be served at"):
            serve(monkeypatch, Live(port=port))


def test_the_invitation_says_where_to_go_and_ctrl_c_ends_it(monkeypatch, capsys):
    async def interrupt(app):
        asyncio.get_running_loop().call_later(0.1, os.kill, os.getpid(), 2)

    make = server.make_app

    def make_app(*arguments, **options):
        app = make(*arguments, **options)
        app.on_startup.append(interrupt)
        return app

    monkeypatch.setattr(server, "make_app", make_app)
    before = left_behind()
    serve(monkeypatch, Live(port=0, host="0.0.0.0", token="a b&c/defg"))
    said = capsys.readouterr().err
    assert "?token=a%20b%26c%2Fdefg" in said and "ssh -L" in said and "https" in said and said.endswith("stopped.\n")
    assert not left_behind() - before
