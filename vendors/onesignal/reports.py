"""OneSignal's Event Streams: one event a request, in a body that we say how to write (docs/receipts.md); nothing is signed.

    {"kind": "message.push.received", "event_id": …, "message_id": …, "subscription_id": …, "timestamp": …}

    | kind, its last word               | state, reason                  | status made of it |
    |-----------------------------------|--------------------------------|-------------------|
    | received                          | delivered                      | yes               |
    | clicked                           | clicked                        | yes               |
    | failed                            | undelivered / carrier          | yes               |
    | unsubscribed                      | bounced / invalid_token        | yes               |
    | sent                              | sending                        | no                |
    | a word not known yet              | unknown                        | no                |

An account is known by the secret in its path. Its events name a message by OneSignal's own id, which is looked up. For how long it
repeats is not documented.
documentation.onesignal.com/docs/event-streams
May import the shared modules of vendors. Never: another vendor.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from runtime.settings import ProviderSettings
from vendors.onesignal.keys import OnesignalKeys
from vendors.reports import (
    LOST,
    MAX_ID,
    NEW_WORD,
    NOTED,
    DeliveryReport,
    Intake,
    MalformedError,
    Meaning,
    Reports,
    Request,
    event_time,
    iso_time,
    known_by,
    parse_json,
    spoken_for,
    word,
)
from vendors.settings import path_secrets

_MEANINGS: Mapping[str, Meaning] = {
    "received": Meaning("delivered"),
    "clicked": Meaning("clicked"),
    "failed": LOST,
    "unsubscribed": Meaning("bounced", "invalid_token"),
    "sent": NOTED,
}


class OnesignalReports:
    """Every account that has a `callback_secret`."""

    intake = Intake(frozenset({"application/json"}), retry_window_s=86_400, takes_secret=True)

    def __init__(self, accounts: Sequence[tuple[str, str]]) -> None:
        """`accounts`: (name, secret in the path)."""
        self._accounts = accounts

    async def read(self, request: Request) -> Reports:
        """See ReportReader."""
        provider = spoken_for(self._accounts, request)[0]
        event = parse_json(request.body)
        if not isinstance(event, Mapping):
            raise MalformedError("the body is no object")
        kind, message_id = word(event.get("kind")), word(event.get("message_id"), MAX_ID)
        if kind is None or message_id is None:
            raise MalformedError("kind or message_id is missing: is the body of the stream that of docs/receipts.md?")
        name, given = kind.rpartition(".")[2], event.get("timestamp")
        said = _MEANINGS.get(name, NEW_WORD)
        at = event_time(given, request.received_at) or iso_time(given, request.received_at)
        subscription = word(event.get("subscription_id"), MAX_ID)
        report = DeliveryReport(
            provider,
            message_id,
            f"{word(event.get('event_id'), MAX_ID) or message_id}:{name}",
            "push",
            said.state,
            said.reason,
            name if said is NEW_WORD else None,
            None,
            said.final,
            subscription,
            occurred_at=at,
            reference=message_id,
            known_by=known_by(at),
        )
        return Reports([report])


def create(providers: Iterable[ProviderSettings]) -> OnesignalReports:
    """The reports of the accounts of this kind. Raises SettingsError when a secret cannot be read or used."""
    return OnesignalReports(path_secrets(OnesignalKeys, providers))
