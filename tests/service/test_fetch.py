"""Fetching: what the list allows, from public addresses, within limits. Real connections, to this machine only."""

import http.server
import threading
from collections.abc import Iterator

import pytest

from service.audio.fetch import Fetcher, is_public
from service.errors import InvalidRequest, UploadTooLarge

PARAM = "messages[0].content[0].audio_url.url"


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers by path; a redirect's target is its query, and its status, where it is another, the end of its path."""

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        SEEN.append((self.headers["Host"], path))
        if path.startswith("/redirect"):
            self.send_response(int(path.removeprefix("/redirect") or 302))
            self.send_header("Location", query)
            self.end_headers()
        elif path == "/audio":
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"x" * 1000)
        elif path == "/silence":
            GATE.wait(20)
        else:
            self.send_error(404)

    def log_message(self, *_: object) -> None:
        pass


SEEN: list[tuple[str, str]] = []
GATE = threading.Event()


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever).start()
        yield server.server_address[1]
        GATE.set()
        server.shutdown()


@pytest.fixture(autouse=True)
def _forget() -> None:
    SEEN.clear()


def fetcher(port: int, *addresses: str, max_bytes: int = 1000, seconds: float = 20.0, check: bool = False) -> Fetcher:
    """May fetch from audio.example; every name has these addresses; this machine counts as public unless `check`."""

    async def resolve(host: str, _: int) -> list[str]:
        assert host in ("audio.example", "127.0.0.1")
        return list(addresses or ["127.0.0.1"])

    allowed = [f"audio.example:{port}", f"127.0.0.1:{port}"]
    public = is_public if check else lambda _: True
    return Fetcher(allowed, max_bytes=max_bytes, seconds=seconds, resolve=resolve, public=public)


async def test_a_listed_host(port: int) -> None:
    url = f"http://Audio.Example:{port}/audio"
    assert await fetcher(port).fetch(url, PARAM) == b"x" * 1000
    assert [(f"audio.example:{port}", "/audio")] == SEEN


@pytest.mark.parametrize(
    "url",
    [
        "http://other.example/audio",
        "http://audio.example/audio",  # another port
        "http://audio.example.evil.example:{port}/audio",
        "http://someone@audio.example:{port}/audio",
        "http://:secret@audio.example:{port}/audio",
        "http://audio.example:{port}@127.0.0.1:{port}/audio",
        "http://evil.example#@audio.example:{port}/audio",
        "http://evil.example\\@audio.example:{port}/audio",
        "file:///etc/passwd",
        "ftp://audio.example:{port}/audio",
        "//audio.example:{port}/audio",
        "http://audio.example:{port}\r\nX: y/audio",
        "http://",
        "",
        "http://audio.example:99999/",
    ],
)
async def test_what_is_not_listed(port: int, url: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        await fetcher(port).fetch(url.replace("{port}", str(port)), PARAM)
    assert caught.value.param == PARAM
    assert not SEEN


async def test_off_by_default(port: int) -> None:
    with pytest.raises(InvalidRequest, match="off by default"):
        await Fetcher([], max_bytes=1000, seconds=20).fetch(f"http://127.0.0.1:{port}/audio", PARAM)
    assert not SEEN


@pytest.mark.parametrize("addresses", [["127.0.0.1"], ["93.184.216.34", "10.0.0.1"], ["::1"], []])
async def test_names_of_private_addresses(port: int, addresses: list[str]) -> None:
    async def resolve(*_: object) -> list[str]:
        return addresses

    guarded = Fetcher([f"audio.example:{port}"], max_bytes=1000, seconds=20, resolve=resolve)
    with pytest.raises(InvalidRequest, match="could not be fetched"):
        await guarded.fetch(f"http://audio.example:{port}/audio", PARAM)
    assert not SEEN


async def test_a_listed_private_address_is_still_private(port: int) -> None:
    with pytest.raises(InvalidRequest, match="could not be fetched"):
        await fetcher(port, check=True).fetch(f"http://127.0.0.1:{port}/audio", PARAM)
    assert not SEEN


async def test_the_name_is_resolved_once(port: int) -> None:
    """A name that has another address the next time gains nothing."""
    answers = [["127.0.0.1"], ["127.0.0.2"]]

    async def resolve(*_: object) -> list[str]:
        return answers.pop(0)

    rebound = Fetcher([f"audio.example:{port}"], max_bytes=1000, seconds=20, resolve=resolve, public=lambda _: True)
    assert await rebound.fetch(f"http://audio.example:{port}/audio", PARAM)
    assert answers == [["127.0.0.2"]]


async def test_redirects_within_the_list(port: int) -> None:
    url = f"http://audio.example:{port}/redirect?/redirect?http://127.0.0.1:{port}/audio"
    assert await fetcher(port).fetch(url, PARAM) == b"x" * 1000


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirects_of_every_kind(port: int, status: int) -> None:
    url = f"http://audio.example:{port}/redirect{status}?/audio"
    assert await fetcher(port).fetch(url, PARAM) == b"x" * 1000


@pytest.mark.parametrize("target", ["http://other.example/audio", "http://127.0.0.1:1/audio", "file:///etc/passwd"])
async def test_redirects_out_of_the_list(port: int, target: str) -> None:
    with pytest.raises(InvalidRequest):
        await fetcher(port).fetch(f"http://audio.example:{port}/redirect?{target}", PARAM)
    assert [path for _, path in SEEN] == ["/redirect"]


async def test_endless_redirects(port: int) -> None:
    url = f"http://audio.example:{port}/redirect?/redirect?/redirect?/redirect?/redirect?/audio"
    with pytest.raises(InvalidRequest, match="more than 3 times"):
        await fetcher(port).fetch(url, PARAM)


async def test_limits(port: int) -> None:
    with pytest.raises(UploadTooLarge, match="999 bytes"):
        await fetcher(port, max_bytes=999).fetch(f"http://audio.example:{port}/audio", PARAM)
    with pytest.raises(InvalidRequest, match=r"within 0\.2 s"):
        await fetcher(port, seconds=0.2).fetch(f"http://audio.example:{port}/silence", PARAM)
    with pytest.raises(InvalidRequest, match="status 404"):
        await fetcher(port).fetch(f"http://audio.example:{port}/nothing", PARAM)


@pytest.mark.parametrize(
    "address",
    [
        *(
            "127.0.0.1",
            "127.9.9.9",
            "0.0.0.0",
            "10.1.2.3",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
        ),
        *("224.0.0.1", "255.255.255.255", "198.18.0.1", "192.0.2.1", "240.0.0.1"),
        *("::", "::1", "fe80::1", "fe80::1%eth0", "fc00::1", "fd12::1", "ff02::1", "2001:db8::1"),
        *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "2002:7f00:1::", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe"),
    ],
)
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize(
    "address", ["93.184.216.34", "8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"]
)
def test_addresses_that_are_public(address: str) -> None:
    assert is_public(address)
