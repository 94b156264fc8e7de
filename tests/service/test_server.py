"""What uvicorn lacks, over raw connections to a small application; all of it is red where uvicorn's internals have moved."""

import json
import select
import socket
from collections.abc import Iterator

import httpx
import pytest
from prometheus_client import REGISTRY
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send
from websockets.frames import Frame, Opcode
from websockets.sync.client import connect as connect_websocket

from service.http.server import Socket
from tests.service.test_door import FLOODED, deadlines, refusals, running

GET = b"GET /echo HTTP/1.1\r\nHost: x\r\n"
TOO_MUCH = 10 << 20  # of what nobody should take


@pytest.fixture(scope="module")
def strict() -> Iterator[httpx.URL]:
    """A server whose requests may take half a second to begin."""
    with running(lambda app: app, head_seconds=0.5) as url:
        yield url


def connect(url: httpx.URL) -> socket.socket:
    return socket.create_connection((url.host, url.port or 0), timeout=20)


def rest(client: socket.socket) -> bytes:
    """All that still comes until the server closes."""
    received = b""
    try:
        while piece := client.recv(100_000):
            received += piece
    except ConnectionResetError:  # it closed with more of ours to read
        pass
    return received


def answer(client: socket.socket) -> bytes:
    """The body of one answer, of which the connection stays open."""
    file = client.makefile("rb")
    assert file.readline().startswith(b"HTTP/1.1 200 ")
    length = 0
    while (line := file.readline().lower()) != b"\r\n":
        if line.startswith(b"content-length:"):
            length = int(line.partition(b":")[2])
    return file.read(length)


@pytest.mark.parametrize("begin", [b"", b"GET", GET], ids=["nothing", "method", "header"])
def test_a_head_that_does_not_come_ends_its_connection(strict: httpx.URL, begin: bytes) -> None:
    with connect(strict) as client:
        client.sendall(begin)
        assert rest(client) == b""


def test_a_head_that_comes_byte_by_byte_does_too(strict: httpx.URL) -> None:
    with connect(strict) as client:
        client.sendall(GET + b"X: ")
        for _ in range(1000):
            if select.select([client], [], [], 0.02)[0]:
                break
            client.sendall(b"x")
        else:
            pytest.fail("it is still open")
        assert rest(client) == b""


@pytest.mark.parametrize("begin", [b"G", b"\r\n"], ids=["method", "line"])
def test_so_does_the_second_of_a_connection(strict: httpx.URL, begin: bytes) -> None:
    with connect(strict) as client:
        client.sendall(GET + b"\r\n")
        assert answer(client) == b"0"
        client.sendall(begin)
        assert rest(client) == b""


def test_what_a_request_has_begun_with_does_not_count_for_it(strict: httpx.URL) -> None:
    """Neither a body that takes longer than a head may, nor any number of heads, nor a large body."""
    with connect(strict) as client:
        client.sendall(b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 300001\r\n\r\n")
        assert select.select([client], [], [], 1.0)[0] == []
        client.sendall(b"x" * 300_001)
        assert answer(client) == b"300001"
        for _ in range(100):
            client.sendall(GET + b"X: " + b"x" * 2000 + b"\r\n\r\n")
            assert answer(client) == b"0"


CHUNKED = b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1"


@pytest.mark.parametrize(
    ("begin", "status"),
    [
        (b"GET /", 431),
        (GET, 431),
        (GET + b"X: ", 431),
        (CHUNKED + b"\r\nx\r\n0\r\nX: ", None),
        (CHUNKED + b";", None),
    ],
    ids=["path", "name", "value", "trailer", "extension"],
)
def test_a_head_without_end_is_refused(begin: bytes, status: int | None) -> None:
    before = refusals("head_too_large")
    with running(lambda app: app) as url, connect(url) as client:
        client.sendall(begin)
        sent = 0
        try:
            while not select.select([client], [], [], 0)[0] and sent < TOO_MUCH:
                sent += client.send(b"x" * 8192)
        except OSError:
            pass
        assert sent < TOO_MUCH
        received = rest(client)
    assert refusals("head_too_large") == before + 1
    if status is None:
        assert received == b""
    else:
        head, _, body = received.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 431 ")
        assert json.loads(body)["error"]["code"] == "head_too_large"


def test_more_connections_than_the_maximum_are_refused() -> None:
    def connections() -> float | None:
        return REGISTRY.get_sample_value("blsp_connections")

    with running(lambda app: app, max_connections=2) as url:
        with connect(url) as first, connect(url) as second, connect(url) as third:
            head, _, body = rest(third).partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 429 ")
            assert b"\r\nretry-after: 1" in head
            assert json.loads(body)["error"]["code"] == "connections"
            for client in (first, second):
                client.sendall(GET + b"\r\n")
                assert answer(client) == b"0"
            assert connections() == 2
        while (response := httpx.get(url.join("/echo"))).status_code == 429:
            pass
        assert response.status_code == 200


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_the_connection_of_a_client_that_does_not_read_ends(method: str) -> None:
    """With a deadline (POST) or without (GET); else the end of the server would wait a minute for it."""
    FLOODED.clear()
    with running(deadlines(60, 1.0), send_seconds=1, drain_seconds=60) as url, connect(url) as client:
        client.sendall(f"{method} /v1/flood HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n".encode())
        assert FLOODED.wait(20)


def test_an_upgrade_is_none_of_its_business(strict: httpx.URL) -> None:
    upgrade = b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: x\r\n\r\n"
    with connect(strict) as client:
        client.sendall(GET + upgrade)
        assert rest(client).startswith(b"HTTP/1.1 4")
    assert httpx.get(strict.join("/echo")).status_code == 200


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Sends back the messages of a socket."""
    assert (await receive())["type"] == "websocket.connect"
    await send({"type": "websocket.accept"})
    while (event := await receive())["type"] == "websocket.receive":
        await send({**event, "type": "websocket.send"})


@pytest.mark.parametrize("message", ["é" * 500, bytes(range(256))])
def test_a_message_in_many_frames_is_one(message: str | bytes) -> None:
    pieces = [message[i : i + 1] for i in range(len(message))]
    with running(lambda app: echo) as url, connect_websocket(f"ws://{url.host}:{url.port}/") as client:
        for begun in (pieces, [message], [message[:0], *pieces, message[:0]]):
            client.send(begun)
            assert client.recv() == message


def test_frames_without_end_cost_nothing() -> None:
    socket = Socket.__new__(Socket)
    socket.frames, socket._further = [], bytearray()
    socket.handle_text(Frame(Opcode.TEXT, b"{", fin=False))
    for _ in range(1000):
        socket.handle_cont(Frame(Opcode.CONT, b"", fin=False))
    assert len(socket.frames) == 1
    assert not socket._further


async def who_asks(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers with the client's address."""
    await PlainTextResponse(scope["client"][0])(scope, receive, send)


@pytest.mark.parametrize(
    ("proxies", "client"), [([], "127.0.0.1"), (["10.0.0.0/8"], "127.0.0.1"), (["127.0.0.0/8"], "192.0.2.7")]
)
def test_only_proxies_that_are_named_say_who_asks(proxies: list[str], client: str) -> None:
    with running(lambda app: who_asks, trusted_proxies=proxies) as url:
        answer = httpx.get(url, headers={"X-Forwarded-For": "192.0.2.7"})
    assert answer.text == client
