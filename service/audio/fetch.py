"""Audio from http(s) URLs that a request names: off unless the operator lists the hosts.

A name is resolved once, refused where any of its addresses is not a public one, and the connection goes to the address that was checked.
Redirects are followed only to listed hosts, by the same rules.
"""

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Collection

from aiohttp import ClientError, ClientResponse, ClientSession, DummyCookieJar, TCPConnector
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.helpers import is_ip_address
from yarl import URL

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
        self._resolver = _PublicResolver(resolve, public)

    async def fetch(self, url: str, param: str) -> bytes:
        """The body at a URL.

        Raises InvalidRequest, which names `param`, where the URL may not be fetched or the fetch fails, and UploadTooLarge where the body
        is larger than the limit.
        """
        try:
            async with (
                asyncio.timeout(self._seconds),
                ClientSession(
                    connector=TCPConnector(resolver=self._resolver, use_dns_cache=False),
                    cookie_jar=DummyCookieJar(),
                    # No compression: a small body must not become a large one.
                    auto_decompress=False,
                    headers={"Accept-Encoding": "identity"},
                ) as session,
            ):
                return await self._follow(session, URL(url), param)
        except TimeoutError as error:
            raise InvalidRequest(f"The URL did not answer within {self._seconds:g} s.", param=param) from error
        except (ClientError, ValueError, OSError) as error:
            raise InvalidRequest("The URL could not be fetched.", param=param) from error

    async def _follow(self, session: ClientSession, url: URL, param: str) -> bytes:
        for _ in range(MAX_REDIRECTS + 1):
            self._check(url, param)
            async with session.get(url, allow_redirects=False) as response:
                location = response.headers.get("location")
                if response.status in REDIRECTS and location:
                    url = url.join(URL(location))
                    continue
                if response.status != 200:
                    raise InvalidRequest(f"The URL answered with status {response.status}.", param=param)
                return await self._read(response, param)
        raise InvalidRequest(f"The URL redirects more than {MAX_REDIRECTS} times.", param=param)

    def _check(self, url: URL, param: str) -> None:
        if url.scheme not in SCHEMES or url.user is not None or url.password is not None:
            raise InvalidRequest("Only plain http: and https: URLs can be fetched.", param=param)
        if not self._allowed:
            raise InvalidRequest("Fetching audio over http(s) is off by default; send the audio itself.", param=param)
        host = url.host_port_subcomponent or ""
        if host.lower() not in self._allowed:
            raise InvalidRequest(f"The server may not fetch from {host!r}.", param=param)
        if is_ip_address(url.host) and not self._resolver.public(str(url.host)):  # aiohttp asks no resolver about it
            raise InvalidRequest("The URL could not be fetched.", param=param)

    async def _read(self, response: ClientResponse, param: str) -> bytes:
        data = bytearray()
        async for piece in response.content.iter_any():
            data += piece
            if len(data) > self._max_bytes:
                raise UploadTooLarge(f"The file is larger than the limit of {self._max_bytes} bytes.", param=param)
        return bytes(data)


class _PublicResolver(AbstractResolver):
    """Resolves a name to addresses that are all public; the connection goes to one of those, and TLS still asks for the name."""

    def __init__(self, resolve: Resolve, public: Callable[[str], bool]) -> None:
        self._resolve = resolve
        self.public = public

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """The addresses; raises OSError where there is none, or one that is not public."""
        addresses = await self._resolve(host, port)
        if not addresses or not all(map(self.public, addresses)):
            raise OSError(f"{host} has no address, or one that is not public")
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=0,
                flags=socket.AI_NUMERICHOST,
            )
            for address in addresses
        ]

    async def close(self) -> None:
        """Holds nothing."""
