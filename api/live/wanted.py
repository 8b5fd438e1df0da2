"""What a stream is asked for, out of a query or a frame: notifications, or a tenant's with filters.

May import tracking.live. Never: a connection.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import NamedTuple

from api.live.access import MAX_IDS, Access
from producers.addresses import has_control
from runtime.clock import system_clock
from runtime.errors import FieldError, Refusal, RefusedError
from schemas.events import states
from tracking.live.hub import STREAM_S, Hub, Stream
from tracking.live.watchers import Filters, Frame, Watcher

FILTERS = tuple(field.name for field in fields(Filters))
MAX_CHARS = 255


class Wanted(NamedTuple):
    """Notifications, or filters; and whether it is over once all are settled."""

    ids: tuple[str, ...]
    filters: Filters
    until_settled: bool


def wrong(name: str, why: str, code: str = "invalid_parameter") -> RefusedError:
    """A parameter that is refused."""
    return RefusedError(Refusal.INVALID, "invalid_parameter", why, errors=[FieldError("", f"{name}: {why}", code)])


def wanted(given: Mapping[str, Sequence[str]], access: Access) -> Wanted:
    """Values by name, each several times perhaps. Raises RefusedError: what does not exist, or is not this caller's to watch."""
    ids = tuple(dict.fromkeys(one.lower() for one in given.get("notification_id", ())))
    until = _single(given, "until")
    for name in given:
        if name not in ("notification_id", "until", *FILTERS):
            why = f"there is no such parameter; there are notification_id, until, {', '.join(FILTERS)}"
            raise wrong(name[:64], why, "unknown_parameter")
    if len(ids) > MAX_IDS:
        raise wrong("notification_id", f"at most {MAX_IDS} notifications in one stream")
    if until not in ("", "settled"):
        raise wrong("until", "the only value is settled")
    filters = Filters(**{name: _single(given, name) for name in FILTERS})
    if filters.state and filters.state not in states().all:
        raise wrong("state", f"one of {', '.join(sorted(states().all))}")
    if ids and filters != Filters():
        raise wrong("notification_id", "give notifications or filters, not both")
    asked = _within(Wanted(ids, filters, bool(until)), access)
    if until and not asked.ids:
        raise wrong("until", "only a stream of notifications ends when they are settled")
    return asked


async def watch(
    hub: Hub, stream: Stream, asked: Wanted, access: Access, after: str | None
) -> tuple[Watcher, Sequence[Frame]]:
    """The watcher, and what comes before anything it takes. Raises RefusedError, UnavailableError."""
    ends_in_s = STREAM_S
    if access.expires_at is not None:
        ends_in_s = min(ends_in_s, (access.expires_at - system_clock()) / 1_000)
    tenant, key_id = access.tenant, access.key_id
    if asked.ids:
        until = asked.until_settled
        watcher = await hub.watch(
            stream, tenant, key_id, asked.ids, after=after, until_settled=until, ends_in_s=ends_in_s
        )
        return watcher, ()
    of_user = access.user_id is not None
    return await hub.watch_tenant(
        stream, tenant, key_id, asked.filters, of_user=of_user, after=after, ends_in_s=ends_in_s
    )


def _single(given: Mapping[str, Sequence[str]], name: str) -> str:
    values = given.get(name, ())
    if len(values) > 1:
        raise wrong(name, "give it once")
    value = values[0] if values else ""
    if len(value) > MAX_CHARS or has_control(value):
        raise wrong(name, f"at most {MAX_CHARS} characters, no control characters")
    return value


def _within(asked: Wanted, access: Access) -> Wanted:
    """What a token allows of it; all it allows where nothing is asked for."""
    if access.ids is not None:
        if asked.filters != Filters():
            raise _not_allowed()
        ids = asked.ids or tuple(sorted(access.ids))
        if not access.ids.issuperset(ids):
            raise _not_allowed()
        return asked._replace(ids=ids)
    if access.user_id is not None:
        if asked.ids or asked.filters.user_id not in ("", access.user_id):
            raise _not_allowed()
        named = {name: getattr(asked.filters, name) for name in FILTERS}
        return asked._replace(filters=Filters(**{**named, "user_id": access.user_id}))
    return asked


def _not_allowed() -> RefusedError:
    # As for what does not exist: a token says nothing of what it is not for.
    return RefusedError(Refusal.UNKNOWN, "not_found", "there is no such notification")
