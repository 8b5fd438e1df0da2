"""E-mail through Mailgun's POST /v3/{domain}/messages.mime: our own MIME, one recipient a request.

    | response                                          | result                       |
    |---------------------------------------------------|------------------------------|
    | 200 with an id                                    | sent                         |
    | 200 that is no JSON: the landing page             | account: the URL is wrong    |
    | 200 without an id                                 | in doubt                     |
    | 400 about the address in `to`                     | permanent_recipient          |
    | 404 as JSON                                       | transient, for the account   |
    | any other error                                   | its row in codes.py          |

Tracking is switched off in every mail. The token (runtime/callbacks.py) goes along as a variable (`v:`), which Mailgun repeats in its
events. The body of a mail is base64: what looks like one of Mailgun's variables in a text is not seen by what replaces them, nor could it be by
recipient-variables, as none are given.
May import the shared modules of vendors. Never: another vendor, a retry.
"""

from __future__ import annotations

from urllib.parse import quote, urlencode

from runtime.callbacks import token_fields
from runtime.clock import Clock, system_clock
from runtime.settings import ProviderSettings
from schemas.events import ChannelMessage
from vendors.http import HttpResponse, basic_auth
from vendors.http_account import Answer, HttpRequest, LookUpAccount, by_status, items, member, parsed, said, sent_as
from vendors.mailgun.codes import BAD_RECIPIENT, CODES, NOT_THE_API
from vendors.mailgun.keys import MailgunKeys
from vendors.mime import MailError, build_mail
from vendors.provider import UnsendableError
from vendors.sender import Doubt, InDoubt, Sent
from vendors.settings import checked_from, parse_keys

_OFF = {"o:tracking": "no", "o:tracking-clicks": "no", "o:tracking-opens": "no"}


class MailgunSender(LookUpAccount):
    """One Mailgun domain."""

    channel = "email"
    codes = CODES
    shows_after_s = 30.0

    def __init__(self, provider: ProviderSettings, keys: MailgunKeys, clock: Clock = system_clock) -> None:
        super().__init__(provider, clock)
        self._from = checked_from(provider, keys.from_address)
        domain = f"{keys.host(provider)}/v3/{quote(keys.domain)}"
        self._url, self._events = f"{domain}/messages.mime", f"{domain}/events"
        self._authorization = {"Authorization": basic_auth("api", keys.secret(provider))}

    def prepare(self, message: ChannelMessage) -> HttpRequest:
        """The mail as a file of a form."""
        try:
            mail = build_mail(message, self._from, self._clock())
        except MailError as exc:
            raise UnsendableError(str(exc)) from exc
        variables = {f"v:{name}": value for name, value in token_fields(message, self.name).items()}
        return self._request({"to": message["address"], **_OFF, **variables}, mail, message["message_id"])

    def _request(self, fields: dict[str, str], mail: bytes, mark: str) -> HttpRequest:
        """multipart/form-data (RFC 7578); lines of a mail never begin with two hyphens and our mark."""
        boundary = f"hg-{mark}"
        parts = [
            f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
            for name, value in fields.items()
        ]
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="message"; filename="message.mime"\r\n\r\n'
        body = b"".join(("".join(parts).encode(), head.encode(), mail, f"\r\n--{boundary}--\r\n".encode()))
        headers = {**self._authorization, "Content-Type": f"multipart/form-data; boundary={boundary}"}
        return HttpRequest(self._url, headers, body)

    def read(self, response: HttpResponse) -> Sent | InDoubt | Answer:
        """See the table above."""
        body = parsed(response)
        if response.status == 200:
            if body is None and b"Mailgun" in response.body[:200]:
                return Answer((NOT_THE_API,), said(200, NOT_THE_API))
            given = member(body, "id")
            return sent_as(given)
        return _refused(response)

    def look_up_request(self, doubt: Doubt) -> HttpRequest:
        """The events of a mail with our Message-ID, which Mailgun keeps."""
        query = {
            "message-id": f"{doubt.message_id}@{self._from.domain}",
            "begin": str(max(0, doubt.since // 1000 - 60)),
            "ascending": "yes",
            "limit": "10",
        }
        return HttpRequest(f"{self._events}?{urlencode(query)}", self._authorization, None)

    def read_look_up(self, response: HttpResponse, doubt: Doubt) -> Sent | None:
        """An event with our message id among its variables."""
        for event in items(member(parsed(response), "items")):
            if member(member(event, "user-variables"), "message_id") == doubt.message_id:
                given = member(member(member(event, "message"), "headers"), "message-id")
                return Sent(f"<{given}>" if isinstance(given, str) else None)
        return None

    def probe_request(self) -> HttpRequest:
        """A mail to nobody: it is refused for that alone, also with a key that may do nothing but send."""
        return self._request({"o:testmode": "yes"}, b"", "probe")

    def read_probe(self, response: HttpResponse) -> Answer | None:
        """400 says that all but the mail is right."""
        answer = _refused(response)
        return None if response.status == 400 else answer


def _refused(response: HttpResponse) -> Answer:
    words = member(parsed(response), "message")
    if response.status == 404 and not isinstance(words, str):
        return Answer((NOT_THE_API,), said(404, NOT_THE_API))
    if response.status == 400 and isinstance(words, str) and "'to'" in words and "not a valid address" in words:
        return Answer((BAD_RECIPIENT,), said(400, BAD_RECIPIENT))
    return by_status(response)


def create(provider: ProviderSettings) -> MailgunSender:
    """The sender of a [[providers]] entry. Raises SettingsError."""
    return MailgunSender(provider, parse_keys(MailgunKeys, provider))
