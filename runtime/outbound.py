"""Requests to URLs that users give: to public addresses alone, and the address that was checked is the one dialled.

    | host of the URL                                      | what is checked                                              |
    |------------------------------------------------------|--------------------------------------------------------------|
    | an address as it is written (1.2.3.4, [2606::1])     | the address, by `check_url`: aiohttp resolves no literal     |
    | an address in any other form (0177.1, 2130706433)    | nothing: it is refused                                       |
    | a name                                               | what it resolves to, by `CheckedResolver`; aiohttp dials that|

A name that resolves to something else a moment later changes nothing: what the check let through is what is dialled.
`HELIOGRAPH_OUTBOUND__ALLOW` opens hosts and networks that are not public, for tests and the local stack; plain http goes to
this machine alone, where that is open. Redirects are not followed: whoever makes the request says so (`allow_redirects=False`).
May import aiohttp and yarl. Never: a URL, a host or an address in an error, a log or a label.
"""

from __future__ import annotations

import asyncio
import re
import socket
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network

from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from runtime.settings import OutboundSettings

MAX_URL_CHARS = 2048
KEPT_URLS = 4_096
"""Checked URLs that are remembered: a receiver gets more than one message."""
MAX_ANSWER_BYTES = 64 << 10
"""Of an answer that is read; the rest is left unread."""
MAX_LOOKUPS = 32
"""Names that are looked up at once by an account's connections; a further one waits, as long as its request may."""
MAX_S = 15.0
"""For a request in all, from the resolver to the last byte of the answer."""

# The IANA registries of special-purpose addresses, but for those that are reachable for everybody; and what clouds put on a
# public address for their own machines.
_NOT_PUBLIC_4 = tuple(
    ip_network(network)
    for network in (
        "0.0.0.0/8",  # this network
        "10.0.0.0/8",  # private
        "100.64.0.0/10",  # carriers' NAT; a cloud's metadata
        "127.0.0.0/8",  # loopback
        "168.63.129.16/32",  # a cloud's metadata
        "169.254.0.0/16",  # link-local; clouds' metadata
        "172.16.0.0/12",  # private
        "192.0.0.0/24",  # protocols; a cloud's metadata
        "192.0.2.0/24",  # documentation
        "192.88.99.0/24",  # relays of 6to4
        "192.168.0.0/16",  # private
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved; broadcast
    )
)
_PUBLIC_6 = IPv6Network("2000::/3")
"""All that is given to hosts; loopback, private, link-local, multicast and site-local addresses are outside."""
_NOT_PUBLIC_6 = tuple(
    ip_network(network)
    for network in (
        "2001::/23",  # protocols, among them Teredo, which holds an IPv4 address
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4, which holds an IPv4 address
        "3fff::/20",  # documentation
    )
)
_NAT64 = IPv6Network("64:ff9b::/96")
"""What a network without IPv4 resolves every IPv4 host to; it holds the IPv4 address."""


_URL = re.compile(rf"[\x21-\x7e]{{1,{MAX_URL_CHARS}}}")
_NAME = re.compile(r"[A-Za-z0-9_-]{1,63}(?:\.[A-Za-z0-9_-]{1,63})*\.?")
_ENDS_IN_NUMBER = re.compile(r"(?:^|\.)(?:[0-9]+|0[xX][0-9A-Fa-f]*)\.?$")
_NOT_PUBLIC = "the host is not on a public address; HELIOGRAPH_OUTBOUND__ALLOW opens hosts and networks of your own"


class OutboundRefusedError(OSError):
    """A URL that must not be asked for; says why, and what to do, without quoting it."""


def is_public(address: IPv4Address | IPv6Address) -> bool:
    """Whether everybody reaches the same host there. An IPv4 address within an IPv6 one counts for itself."""
    if isinstance(address, IPv6Address):
        held = address.ipv4_mapped or (IPv4Address(int(address) & 0xFFFFFFFF) if address in _NAT64 else None)
        if held is None:
            return address in _PUBLIC_6 and not any(address in network for network in _NOT_PUBLIC_6)
        address = held
    return not any(address in network for network in _NOT_PUBLIC_4)


class OutboundRules:
    """What may be dialled: all that is public, and what settings allow."""

    def __init__(self, settings: OutboundSettings) -> None:
        self._networks, self._hosts = settings.networks, settings.hosts
        # aiohttp takes a URL apart each time, unless it is the same object.
        self._checked = lru_cache(maxsize=KEPT_URLS)(self._check)

    def may_dial(self, host: str, address: str) -> bool:
        """Whether the host, a name or the address itself, may be dialled at the address."""
        parsed = ip_address(address)
        return (
            is_public(parsed)
            or host.lower().rstrip(".") in self._hosts
            or any(parsed in network for network in self._networks)
        )

    def check_url(self, url: str) -> URL:
        """The URL as it was given; a name's addresses are left to the resolver. Raises OutboundRefusedError."""
        return self._checked(url)

    def _check(self, url: str) -> URL:
        try:
            parsed = URL(url, encoded=True) if _URL.fullmatch(url) else None
            port = parsed.port if parsed is not None else None
        except ValueError:
            parsed = port = None
        if parsed is None or not (host := parsed.raw_host) or not port:
            raise OutboundRefusedError(f"not a URL with a host, of at most {MAX_URL_CHARS} visible ASCII characters")
        if "@" in parsed.raw_authority:
            raise OutboundRefusedError(
                "the URL has a user or password: what the receiver needs goes into path or query"
            )
        literal = _literal(host)
        if parsed.scheme != "https" and not (parsed.scheme == "http" and _is_this_machine(host, literal)):
            raise OutboundRefusedError("the URL must be https://...")
        if literal is not None and not self.may_dial(host, literal):
            raise OutboundRefusedError(_NOT_PUBLIC)
        return parsed


def _literal(host: str) -> str | None:
    """The address that a host is, None when it is a name. Raises OutboundRefusedError for what is neither."""
    try:
        return str(ip_address(host))
    except ValueError:
        pass
    if not _NAME.fullmatch(host):
        raise OutboundRefusedError(
            "the host of the URL is neither a name nor an address as in 192.0.2.1 or [2001:db8::1]"
        )
    if _ENDS_IN_NUMBER.search(host):  # octal, hexadecimal, short: resolvers take all of them for addresses
        raise OutboundRefusedError("an IPv4 address in a URL has four decimal numbers, as in 192.0.2.1")
    return None


def _is_this_machine(host: str, literal: str | None) -> bool:
    return host == "localhost" if literal is None else ip_address(literal).is_loopback


class SystemResolver(AbstractResolver):
    """The system's, in threads of its own: a stranger's name may take as long as it likes, and the loop's threads have other work."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(MAX_LOOKUPS, thread_name_prefix="outbound-resolver")

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Raises OSError."""
        ask = partial(
            socket.getaddrinfo, host, port, family=family, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG
        )
        found = await asyncio.get_running_loop().run_in_executor(self._threads, ask)
        return [
            ResolveResult(
                hostname=host,
                host=str(address[0]),
                port=port,
                family=its_family,
                proto=proto,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for its_family, _, proto, _, address in found
        ]

    async def close(self) -> None:
        """Let lookups that are under way end by themselves."""
        self._threads.shutdown(wait=False, cancel_futures=True)


class CheckedResolver(AbstractResolver):
    """Gives those addresses of a host that may be dialled; every connector to URLs that users give has one.

    `resolver` (default: the system's) says what they are.
    """

    def __init__(self, rules: OutboundRules, resolver: AbstractResolver | None = None) -> None:
        self._rules = rules
        self._resolver = resolver or SystemResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Raises OutboundRefusedError when there are addresses, and none may be dialled; else OSError."""
        found = await self._resolver.resolve(host, port, family)
        allowed = [each for each in found if self._rules.may_dial(host, each["host"])]
        if found and not allowed:
            raise OutboundRefusedError(_NOT_PUBLIC)
        return allowed

    async def close(self) -> None:
        """Close the other one."""
        await self._resolver.close()


def refusal(error: BaseException) -> OutboundRefusedError | None:
    """The refusal behind an error of aiohttp's, which wraps what a resolver raises."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OutboundRefusedError):
        cause = cause.__cause__
    return cause
