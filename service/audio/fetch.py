"""Audio from http(s) URLs that a request names: off unless the operator lists the hosts.

A name is resolved once, refused where any of its addresses is not a public one, and the connection goes to the address that was checked.
Redirects are followed only to listed hosts, by the same rules.
"""

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import Awaitable, Callable, Collection, Iterable

import httpcore
import httpx

from service.errors import InvalidRequest, UploadTooLarge

MAX_REDIRECTS = 3
REDIRECTS = (301, 302, 303, 307, 308)
SCHEMES = ("http", "https")

Resolve = Callable[[str, int], Awaitable[list[str]]]


async def resolve(host: str, port: int) -> list[str]:
    """All addresses of a name."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(address[0]) for *_, address in found]


def is_public(address: str) -> bool:
    """Whether an address is one of the open internet, and not of this machine, its network, or reserved."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if inner is None and ip in _NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
    return ip.is_global and not ip.is_multicast


_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


class Fetcher:
    """Fetches from the hosts that are `allowed` (names, with a port where it is not the scheme's), and from no other.

    `resolve` and `public` are the two questions that are asked about a host.
    """

    def __init__(
        self,
        allowed: Collection[str],
        *,
        max_bytes: int,
        seconds: float,
        resolve: Resolve = resolve,
        public: Callable[[str], bool] = is_public,
    ) -> None:
        self._allowed = {host.lower() for host in allowed}
        self._max_bytes = max_bytes
        self._seconds = seconds
        self._tls = ssl.create_default_context()
        self._backend = _PinnedBackend(resolve, public)

    async def fetch(self, url: str, param: str) -> bytes:
        """The body at a URL.

        Raises InvalidRequest, which names `param`, where the URL may not be fetched or the fetch fails, and UploadTooLarge where the body
        is larger than the limit.
        """
        try:
            async with (
                asyncio.timeout(self._seconds),
                httpcore.AsyncConnectionPool(self._tls, network_backend=self._backend) as pool,
            ):
                return await self._follow(pool, httpx.URL(url), param)
        except TimeoutError as error:
            raise InvalidRequest(f"The URL did not answer within {self._seconds:g} s.", param=param) from error
        except (httpx.InvalidURL, httpcore.NetworkError, httpcore.ProtocolError, OSError) as error:
            raise InvalidRequest("The URL could not be fetched.", param=param) from error

    async def _follow(self, pool: httpcore.AsyncConnectionPool, url: httpx.URL, param: str) -> bytes:
        for _ in range(MAX_REDIRECTS + 1):
            self._check(url, param)
            target = httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)
            # No compression: a small body must not become a large one.
            headers = [(b"Host", url.netloc), (b"Accept-Encoding", b"identity"), (b"Accept", b"*/*")]
            async with pool.stream("GET", target, headers=headers) as response:
                location = {name.lower(): value for name, value in response.headers}.get(b"location")
                if response.status in REDIRECTS and location:
                    url = url.join(location.decode("ascii", "replace"))
                    continue
                if response.status != 200:
                    raise InvalidRequest(f"The URL answered with status {response.status}.", param=param)
                return await self._read(response, param)
        raise InvalidRequest(f"The URL redirects more than {MAX_REDIRECTS} times.", param=param)

    def _check(self, url: httpx.URL, param: str) -> None:
        if url.scheme not in SCHEMES or url.userinfo:
            raise InvalidRequest("Only plain http: and https: URLs can be fetched.", param=param)
        if not self._allowed:
            raise InvalidRequest("Fetching audio over http(s) is off by default; send the audio itself.", param=param)
        if url.netloc.decode().lower() not in self._allowed:
            raise InvalidRequest(f"The server may not fetch from {url.netloc.decode()!r}.", param=param)

    async def _read(self, response: httpcore.Response, param: str) -> bytes:
        data = bytearray()
        async for piece in response.aiter_stream():
            data += piece
            if len(data) > self._max_bytes:
                raise UploadTooLarge(f"The file is larger than the limit of {self._max_bytes} bytes.", param=param)
        return bytes(data)


class _PinnedBackend(httpcore.AsyncNetworkBackend):
    """Resolves a name itself and connects to the very address that it has checked; TLS still asks for the name."""

    def __init__(self, resolve: Resolve, public: Callable[[str], bool]) -> None:
        self._resolve = resolve
        self._public = public
        self._inner = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connects. Raises ConnectError where any of the name's addresses is not public."""
        addresses = await self._resolve(host, port)
        if not addresses or not all(map(self._public, addresses)):
            raise httpcore.ConnectError(f"{host} has no address, or one that is not public")
        return await self._inner.connect_tcp(addresses[0], port, timeout, local_address, socket_options)

    async def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None
    ) -> httpcore.AsyncNetworkStream:
        """Never."""
        raise httpcore.ConnectError("no Unix sockets")

    async def sleep(self, seconds: float) -> None:
        """Waits."""
        await asyncio.sleep(seconds)
