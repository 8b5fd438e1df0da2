"""Proxies of the environment are for the world outside: a call to this machine never goes through one; pure.

Libraries read HTTP_PROXY and its like by themselves, each in its own way, but all of them heed NO_PROXY.
May import the standard library. Never: a client.
"""

from __future__ import annotations

from collections.abc import MutableMapping

LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "::1")
_NAMES = ("NO_PROXY", "no_proxy")


def spare_loopback(environment: MutableMapping[str, str]) -> None:
    """Add this machine to NO_PROXY and no_proxy, in place."""
    known = [host.strip() for name in _NAMES for host in environment.get(name, "").split(",") if host.strip()]
    hosts = ",".join(dict.fromkeys([*known, *LOOPBACK_HOSTS]))
    for name in _NAMES:
        environment[name] = hosts
