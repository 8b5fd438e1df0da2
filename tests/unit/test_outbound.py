"""URLs that users give: no connection but to a public address, however the address is written, found or named later.

A socket that is connected here is recorded and refused, so the addresses that would have been dialled are known.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from aiohttp.abc import AbstractResolver, ResolveResult
from pydantic import ValidationError

from runtime.errors import SettingsError
from runtime.outbound import MAX_LOOKUPS, CheckedResolver, OutboundRefusedError, OutboundRules, is_public
from runtime.settings import OutboundSettings, load_settings
from vendors.http import HttpTransport, NotSentError

PUBLIC_4, PUBLIC_6 = "93.184.216.34", "2606:2800:220:1:248:1893:25c8:1946"

NOT_PUBLIC_4 = [
    *("0.0.0.0", "0.255.255.255", "10.0.0.0", "10.255.255.255", "100.64.0.0", "100.100.100.200", "100.127.255.255"),
    *(
        "127.0.0.0",
        "127.0.0.1",
        "127.255.255.255",
        "168.63.129.16",
        "169.254.0.0",
        "169.254.169.254",
        "169.254.255.255",
    ),
    *("172.16.0.0", "172.31.255.255", "192.0.0.0", "192.0.0.192", "192.0.2.1", "192.88.99.1", "192.168.0.0"),
    *("192.168.255.255", "198.18.0.0", "198.19.255.255", "198.51.100.1", "203.0.113.1", "224.0.0.1", "239.255.255.255"),
    *("240.0.0.1", "255.255.255.255"),
]
NOT_PUBLIC_6 = [
    *(
        "::",
        "::1",
        "100::1",
        "64:ff9b:1::1",
        "fc00::1",
        "fd00:ec2::254",
        "fd20:ce::254",
        "fe80::1",
        "febf::1",
        "fec0::1",
    ),
    *("ff02::1", "ff0e::1", "2001::1", "2001:0:4136:e378:8000:63bf:3fff:fdd2", "2001:2::1", "2001:10::1", "2001:20::1"),
    *("2001:db8::1", "2002:7f00:1::", "2002:5db8:d822::1", "3fff::1", "4000::1", "5f00::1", "::127.0.0.1", "::7f00:1"),
    *(f"::ffff:{address}" for address in NOT_PUBLIC_4),
    *(f"64:ff9b::{address}" for address in NOT_PUBLIC_4),
]
PUBLIC = [
    *(
        PUBLIC_4,
        "1.1.1.1",
        "9.255.255.255",
        "11.0.0.0",
        "100.63.255.255",
        "100.128.0.0",
        "126.255.255.255",
        "128.0.0.0",
    ),
    *(
        "168.63.129.15",
        "172.15.255.255",
        "172.32.0.0",
        "192.167.255.255",
        "192.169.0.0",
        "198.17.255.255",
        "198.20.0.0",
    ),
    *("223.255.255.255", PUBLIC_6, "2001:200::1", "2001:4860:4860::8888", "2003::1", "2a00::1", "::ffff:1.1.1.1"),
    "64:ff9b::1.1.1.1",
]
IN_ANOTHER_FORM = [
    *("127.1", "127.0.1", "0177.0.0.1", "0177.1", "017700000001", "0x7f.1", "0x7f.0.0.1", "0x7f000001", "2130706433"),
    *("127.0.0.01", "0x7f.0.0.0x1", "0", "0x0", "00.0.0.0", "127.0.0.1.", "2130706433.", "169.254.43518", "0xa9fea9fe"),
    *("0251.0376.0251.0376", "2852039166", "0xA9.0xFE.0xA9.0xFE", "169.16689662", "4294967295", "10.1", "012.0.0.1"),
    *("192.168.257", "0xc0a80001", "1.1.1.1.1", "1.1.1.256", "999999999999", "300.1.1.1", "8.8", "0x08080808"),
]
NO_HOST = [
    *(
        "",
        "https://",
        "https:///x",
        "https:x",
        "//host/x",
        "/x",
        "host/x",
        "https://[::1/",
        "https://[]/",
        "https://[1]/",
    ),
    *(
        "https://h:0/",
        "https://h:99999/",
        "https://h:x/",
        "https://a b/",
        "https://h\r\nX: y/",
        "https://h/\x00",
        "https://.",
    ),
    *(
        "https://bücher.example/",
        "https://１２７.0.0.1/",
        "https://127。0。0。1/",
        "https://%31%32%37.0.0.1/",
        "https://a..b/",
    ),
    *(
        "https://127.0.0.1\\.example.com/",
        "https://example.com\\@127.0.0.1/",
        "https://*.example.com/",
        "https://-\u202e/",
    ),
    f"https://example.com/{'a' * 2048}",
]
USER = ["https://u@example.com/", "https://u:p@example.com/", "https://:p@example.com/", "https://@example.com/"]
NOT_HTTPS = [
    *(
        "http://example.com/",
        "HTTP://example.com/",
        "ftp://example.com/",
        "file:///etc/passwd",
        "gopher://127.0.0.1:70/_x",
    ),
    *(
        "unix://x/",
        "ws://example.com/",
        "javascript://example.com/",
        "data:text/plain,x",
        "http://localhost.example.com/",
    ),
]
LITERALS = [f"https://{address}/" for address in NOT_PUBLIC_4] + [f"https://[{address}]/" for address in NOT_PUBLIC_6]
TO_NAMES = {f"https://name-{i}.example/": [address] for i, address in enumerate((*NOT_PUBLIC_4, *NOT_PUBLIC_6))}
HOSTILE = [
    *LITERALS,
    *TO_NAMES,
    *(f"https://{host}/" for host in IN_ANOTHER_FORM),
    *(f"http://{host}/" for host in ("127.0.0.1", "[::1]", "localhost", "127.1", PUBLIC_4)),
    *NO_HOST,
    *USER,
    *NOT_HTTPS,
    *(
        "https://127.0.0.1:8443/x",
        "https://[fe80::1%25eth0]/",
        "https://[::ffff:7f00:1]:443/",
        "https://localhost:6379/",
    ),
]


class Names(AbstractResolver):
    """Resolves each name to its addresses, another list each time where it has several."""

    def __init__(self, names: Mapping[str, Sequence[list[str]]]) -> None:
        self._names, self.asked = names, 0

    async def resolve(self, host: str, port: int = 0, family: int = socket.AF_INET) -> list[ResolveResult]:
        answers = self._names[host]
        found = answers[min(self.asked, len(answers) - 1)]
        self.asked += 1
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=0,
                flags=0,
            )
            for address in found
        ]

    async def close(self) -> None:
        """Nothing is open."""


@pytest.fixture
def dialled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The addresses of every socket that is connected; none of them gets there."""
    addresses: list[str] = []

    def refuse(self: socket.socket, address: Any) -> None:
        addresses.append(address[0])
        raise OSError("nothing is connected here")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    return addresses


def rules(*allow: str) -> OutboundRules:
    return OutboundRules(OutboundSettings(allow=allow))


async def ask(url: str, names: Names, *allow: str) -> Exception:
    """What a request to the URL came to; it fails, as nothing can be connected."""
    made = rules(*allow)
    transport = HttpTransport(5, 4, resolver=CheckedResolver(made, names))
    transport.start()
    try:
        with pytest.raises((NotSentError, OutboundRefusedError)) as failed:
            await transport.post(made.check_url(url), headers={}, body=b"{}")
        return failed.value
    finally:
        await transport.close()


def names() -> Names:
    resolved = {url.removeprefix("https://").rstrip("/"): [addresses] for url, addresses in TO_NAMES.items()}
    return Names({**resolved, "localhost": [["127.0.0.1", "::1"]]})


def test_there_are_two_hundred_hostile_urls() -> None:
    assert len(set(HOSTILE)) == len(HOSTILE) >= 200


@pytest.mark.parametrize("url", HOSTILE)
async def test_hostile_url_is_refused_and_nothing_is_dialled(url: str, dialled: list[str]) -> None:
    ended = await ask(url, names())
    assert isinstance(ended, OutboundRefusedError)
    assert dialled == []
    # What it says is for people, and the URL is a secret.
    assert str(ended)
    assert url.removeprefix("https://").rstrip("/") not in str(ended) or len(url) < 12


@pytest.mark.parametrize("address", PUBLIC)
async def test_public_address_is_dialled(address: str, dialled: list[str]) -> None:
    host = f"[{address}]" if ":" in address else address
    for url in (f"https://{host}/", "https://name.example:8443/x?y=z#w"):
        ended = await ask(url, Names({"name.example": [[address]]}))
        assert isinstance(ended, NotSentError)
    assert {ipaddress.ip_address(each) for each in dialled} == {ipaddress.ip_address(address)}


async def test_name_that_resolves_to_something_else_later_is_dialled_at_what_was_checked(dialled: list[str]) -> None:
    rebinding = Names({"name.example": [[PUBLIC_4], ["127.0.0.1"], ["169.254.169.254"], [PUBLIC_4]]})
    ended = [await ask("https://name.example/", rebinding) for _ in range(4)]
    assert [type(each) for each in ended] == [NotSentError, OutboundRefusedError, OutboundRefusedError, NotSentError]
    assert rebinding.asked == 4
    assert dialled == [PUBLIC_4] * len(dialled)


async def test_of_a_name_with_both_kinds_only_public_addresses_are_dialled(dialled: list[str]) -> None:
    both = [*NOT_PUBLIC_4, PUBLIC_4, *NOT_PUBLIC_6, PUBLIC_6]
    ended = await ask("https://name.example/", Names({"name.example": [both]}))
    assert isinstance(ended, NotSentError)
    assert set(dialled) == {PUBLIC_4, PUBLIC_6}


@pytest.mark.parametrize(
    ("url", "allow"),
    [
        ("http://127.0.0.1:80/", "127.0.0.1"),
        ("http://127.0.0.1:80/", "127.0.0.0/8"),
        ("https://127.0.0.1/", "127.0.0.0/8"),
        ("http://[::1]/", "::1"),
        ("http://localhost/", "localhost"),
        ("http://localhost/", "127.0.0.1"),
        ("https://HOOKS.internal./", "hooks.internal"),
        ("https://hooks.internal/", "10.0.0.0/8"),
    ],
)
async def test_what_settings_allow_is_dialled(url: str, allow: str, dialled: list[str]) -> None:
    at = {"localhost": [["127.0.0.1"]], "hooks.internal": [["10.1.2.3"]], "HOOKS.internal.": [["10.1.2.3"]]}
    ended = await ask(url, Names(at), allow)
    assert isinstance(ended, NotSentError)
    assert dialled


@pytest.mark.parametrize(
    ("url", "allow"),
    [
        ("http://10.0.0.1/", "10.0.0.0/8"),  # plain http, to another machine
        ("http://hooks.internal/", "hooks.internal"),
        ("https://127.0.0.1/", "10.0.0.0/8"),
        ("https://localhost/", "hooks.internal"),
        ("https://[::1]/", "127.0.0.0/8"),
        ("https://not-hooks.internal/", "hooks.internal"),
    ],
)
async def test_what_settings_allow_opens_nothing_else(url: str, allow: str, dialled: list[str]) -> None:
    at = {"localhost": [["127.0.0.1"]], "hooks.internal": [["10.1.2.3"]], "not-hooks.internal": [["10.1.2.3"]]}
    ended = await ask(url, Names(at), allow)
    assert isinstance(ended, OutboundRefusedError)
    assert dialled == []


@pytest.mark.parametrize("address", [*NOT_PUBLIC_4, *NOT_PUBLIC_6])
def test_address_is_not_public(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("url", ["https://h.example/a%2Fb?sig=a%2Bb%3D&sp=%2Fx~%7e", "https://h.example:8443/?q='(x)'"])
def test_url_is_asked_for_as_it_was_given(url: str) -> None:
    assert str(rules().check_url(url)) == url


# -- the system's resolver --------------------------------------------------------------------------------------------


def found_at(*addresses: str) -> Any:
    return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 443)) for address in addresses]


async def test_names_are_the_systems_unless_a_test_says_otherwise(
    dialled: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = {"private.example": found_at("10.0.0.1"), "public.example": found_at("10.0.0.1", PUBLIC_4)}
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *_, **__: answers[host])
    transport = HttpTransport(5, 4, resolver=CheckedResolver(rules()))
    transport.start()
    try:
        with pytest.raises(OutboundRefusedError):
            await transport.post("https://private.example/", headers={}, body=b"")
        assert dialled == []
        with pytest.raises(NotSentError):
            await transport.post("https://public.example/", headers={}, body=b"")
        assert set(dialled) == {PUBLIC_4}
    finally:
        await transport.close()


async def test_names_that_never_resolve_hold_up_neither_the_loop_nor_others(monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()

    def look_up(host: str, *_: Any, **__: Any) -> Any:
        if host.startswith("tarpit"):
            over.wait(30)
        return found_at(PUBLIC_4)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    resolver = CheckedResolver(rules())
    stuck = [asyncio.create_task(resolver.resolve(f"tarpit-{n}.example", 443)) for n in range(MAX_LOOKUPS - 1)]
    try:
        async with asyncio.timeout(5):
            await asyncio.to_thread(lambda: None)
            (other,) = await resolver.resolve("other.example", 443)
        assert other["host"] == PUBLIC_4
        assert not any(task.done() for task in stuck)
    finally:
        over.set()
        await asyncio.gather(*stuck)
        await resolver.close()


# -- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "allow"),
    [
        ("127.0.0.0/8", ("127.0.0.0/8",)),
        ("127.0.0.1, ::1,localhost", ("127.0.0.1", "::1", "localhost")),
        ('["10.0.0.0/8", "hooks.internal"]', ("10.0.0.0/8", "hooks.internal")),
        ("", ()),
    ],
)
def test_variable_is_a_list(said: str, allow: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HELIOGRAPH_OUTBOUND__ALLOW", said)
    assert load_settings().outbound.allow == allow


@pytest.mark.parametrize("entry", ["http://h/", "10.0.0.1/8", "300.1.1.1", "[::1]", "h:80", "a b", "*.example", ""])
def test_entry_that_is_no_host_or_network_is_refused(
    entry: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    with pytest.raises(ValidationError):
        OutboundSettings(allow=(entry,))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HELIOGRAPH_OUTBOUND__ALLOW", f'["{entry}"]')
    with pytest.raises(SettingsError, match="OUTBOUND__ALLOW"):
        load_settings()
