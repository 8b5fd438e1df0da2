"""SES's events, posted by an SNS topic: event publishing (`eventType`), or the feedback of an identity (`notificationType`).

    | event                                | state, reason                      | status made of it |
    |--------------------------------------|------------------------------------|-------------------|
    | Send                                 | sent                               | yes: it may end an unknown |
    | Delivery                             | delivered                          | yes               |
    | Bounce, Permanent                    | bounced / hard_bounce              | yes               |
    | Bounce, Transient or Undetermined    | bounced / soft_bounce              | yes               |
    | Reject, Rendering Failure            | undelivered / carrier              | yes               |
    | Complaint                            | complained                         | yes               |
    | Open, Click, Subscription            | opened, clicked, unsubscribed      | yes               |
    | DeliveryDelay, a Complaint that says not-spam | sending                   | no                |
    | a word not known yet                 | unknown                            | no                |

Feedback of an identity has no tags, so no token: it is kept, and counted as `no_message`. Where both are switched on the same event
comes twice under other ids of SNS, so its id is made of SES's own.
docs.aws.amazon.com/ses/latest/dg/event-publishing-retrieving-sns-contents.html, .../notification-contents.html
May import the shared modules of vendors. Never: another vendor.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from runtime.callbacks import TOKEN_FIELD, subject_of_token
from runtime.logs import get_logger
from runtime.settings import ProviderSettings
from vendors.reports import (
    LOST,
    MAX_ID,
    NEW_WORD,
    NOTED,
    DeliveryReport,
    Intake,
    Meaning,
    Reports,
    Request,
    UnknownAccountError,
    account_of,
    iso_time,
    parse_json,
    word,
)
from vendors.ses.keys import SesKeys
from vendors.ses.sns_messages import CONFIRMATION, NOTIFICATION, Fetch, SnsMessages, Topic, fetch
from vendors.settings import parse_keys

log = get_logger("callbacks")
_VALIDATED = "Successfully validated SNS topic"
"""How the plain text begins that SES sends when a topic is made its destination."""
_SOFT = Meaning("bounced", "soft_bounce")
_PLAIN: Mapping[str, Meaning] = {
    "Send": Meaning("sent"),
    "Delivery": Meaning("delivered"),
    "Reject": LOST,
    "Rendering Failure": LOST,
    "Open": Meaning("opened"),
    "Click": Meaning("clicked"),
    "Subscription": Meaning("unsubscribed"),
    "DeliveryDelay": NOTED,
}
_DETAILS = {"Rendering Failure": "failure", "DeliveryDelay": "deliveryDelay"}
"""Names of an event's own object where it is not the event's in lower case."""


def meaning(name: str, own: Mapping[str, Any]) -> Meaning:
    """The table above, of an event and its own object; total."""
    if name == "Bounce":
        kind, subtype = word(own.get("bounceType")), word(own.get("bounceSubType"))
        detail = " ".join(part for part in (kind, subtype) if part) or None
        return (Meaning("bounced", "hard_bounce") if kind == "Permanent" else _SOFT)._replace(detail=detail)
    if name == "Complaint":
        return NOTED if own.get("complaintFeedbackType") == "not-spam" else Meaning("complained")
    return _PLAIN.get(name, NEW_WORD)


class SesReports:
    """Every account that has `topic_arns`."""

    # SNS repeats for an hour at most, whatever the subscription's policy says.
    intake = Intake(frozenset({"text/plain", "application/json"}), retry_window_s=3_600, max_body=256 * 1024)

    def __init__(self, accounts: Mapping[Topic, Sequence[str]], fetch: Fetch) -> None:
        """`accounts`: names of accounts by their topic."""
        self._accounts = {topic.arn: names for topic, names in accounts.items()}
        self._messages = SnsMessages(accounts, self.intake, fetch)

    async def read(self, request: Request) -> Reports:
        """See ReportReader. A subscription of a listed topic is confirmed."""
        if not self._accounts:
            raise UnknownAccountError
        message = await self._messages.genuine(request)
        if message["Type"] == CONFIRMATION:
            await self._messages.confirm(message)
            log.info("subscription confirmed", topic=message["TopicArn"])
        if message["Type"] != NOTIFICATION or message["Message"].startswith(_VALIDATED):
            return Reports([])
        report = _report(message["Message"], self._accounts[message["TopicArn"]], request.received_at)
        return Reports([report] if report else [], 0 if report else 1)


def _report(text: str, speakers: Sequence[str], received_at: int) -> DeliveryReport | None:
    """The report of an event, None for what is none."""
    raw = text.encode()
    event = parse_json(raw)
    if not isinstance(event, Mapping):
        return None
    name = word(event.get("eventType")) or word(event.get("notificationType"))
    mail = _object(event, "mail")
    mail_id = word(mail.get("messageId"), MAX_ID)
    if name is None or mail_id is None:
        return None
    own = _object(event, _DETAILS.get(name, name.lower()))
    said = meaning(name, own)
    token = _first(_object(mail, "tags").get(TOKEN_FIELD))
    subject = subject_of_token(token)
    at = own.get("timestamp") or mail.get("timestamp")
    return DeliveryReport(
        account_of(subject, speakers),
        mail_id,
        f"{name}:{word(own.get('feedbackId'), MAX_ID) or word(at) or ''}",
        "email",
        said.state,
        said.reason,
        name if said is NEW_WORD else said.detail,
        said.detail,
        said.final,
        _first(mail.get("destination")),
        said.opted_out,
        subject,
        iso_time(at, received_at),
        raw,
    )


def _object(value: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = value.get(name)
    return found if isinstance(found, Mapping) else {}


def _first(values: object) -> str | None:
    """The first text of a list."""
    return values[0] if isinstance(values, list) and values and isinstance(values[0], str) else None


def create(providers: Iterable[ProviderSettings]) -> SesReports:
    """The reports of the accounts of this kind. Raises SettingsError."""
    accounts: dict[Topic, list[str]] = {}
    for provider in providers:
        keys = parse_keys(SesKeys, provider)
        double = keys.host(provider) if keys.base_url and keys.base_url != keys.vendor_url else None
        for arn in keys.topic_arns:
            accounts.setdefault(Topic(arn, double), []).append(provider.name)
    return SesReports(accounts, fetch)
