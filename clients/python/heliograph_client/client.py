"""The client.

    with Client(url, key) as heliograph:
        accepted = heliograph.send({"to": {"user_id": "ada"}, "template": {"id": "parcel"}})
        outcome = heliograph.wait(accepted["id"])

May import httpx2. Never: a rule of what is repeated, which is in calls.py.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any

import httpx2

from heliograph_client import calls, live
from heliograph_client.calls import PATH, Call, Patience, UnavailableError, segment
from heliograph_client.live import LiveEvent, Place
from heliograph_client.types import (
    Accepted,
    Cancelled,
    Event,
    Explanation,
    NewSuppression,
    NewTemplate,
    NewUser,
    NewVersion,
    Notification,
    NotificationEntry,
    NotificationStatus,
    Preferences,
    ReplacedUser,
    Resent,
    Result,
    StoredPreferences,
    StreamToken,
    Suppression,
    Template,
    TemplateEntry,
    TemplateWritten,
    User,
)


class Client:
    """One API with one key; a context, or `close` ends it. Errors: ApiError, UnavailableError."""

    def __init__(self, url: str, api_key: str, *, timeout_s: float = 30.0, retry_for_s: float = 60.0) -> None:
        """`timeout_s` of one try; `retry_for_s` of all tries of a call: 429, 503, lost answers."""
        headers = {"Authorization": f"Bearer {api_key}"}
        self._http = httpx2.Client(base_url=url.rstrip("/"), headers=headers, timeout=timeout_s)
        self._timeout_s, self._retry_for_s = timeout_s, retry_for_s

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End its connections."""
        self._http.close()

    def send(self, notification: Notification, *, key: str | None = None) -> Accepted:
        """Send one. Without a key or a `request_id` one is made: however often the call is repeated, it is one notification."""
        answer: Accepted = self._ask(calls.send(notification, key))
        return answer

    def get(self, notification_id: str) -> NotificationStatus:
        """What became of it."""
        answer: NotificationStatus = self._ask(Call("GET", f"{PATH}/{segment(notification_id)}"))
        return answer

    def explain(self, notification_id: str) -> Explanation:
        """Its whole story."""
        answer: Explanation = self._ask(Call("GET", f"{PATH}/{segment(notification_id)}/explain"))
        return answer

    def cancel(self, notification_id: str) -> Cancelled:
        """Cancel what is not sent yet. ApiError 409 when it is settled."""
        answer: Cancelled = self._ask(Call("POST", f"{PATH}/{segment(notification_id)}/cancel"))
        return answer

    def resend(self, notification_id: str) -> Resent:
        """Send a settled one again, decided anew: whoever got it gets it twice."""
        answer: Resent = self._ask(Call("POST", f"{PATH}/{segment(notification_id)}/resend", again=False))
        return answer

    def create_user(self, user: NewUser) -> User:
        """A new recipient. ApiError 409 when there is one of this id."""
        answer: User = self._ask(Call("POST", "/v1/users", user, again=False))
        return answer

    def get_user(self, user_id: str) -> User:
        """A recipient."""
        answer: User = self._ask(Call("GET", f"/v1/users/{segment(user_id)}"))
        return answer

    def put_user(self, user_id: str, user: ReplacedUser) -> User:
        """Replace a recipient."""
        answer: User = self._ask(Call("PUT", f"/v1/users/{segment(user_id)}", user))
        return answer

    def change_user(self, user_id: str, change: Mapping[str, Any]) -> User:
        """Change some fields (JSON Merge Patch: null removes)."""
        answer: User = self._ask(Call("PATCH", f"/v1/users/{segment(user_id)}", dict(change)))
        return answer

    def delete_user(self, user_id: str) -> None:
        """Delete a recipient."""
        self._ask(Call("DELETE", f"/v1/users/{segment(user_id)}"))

    def get_preferences(self, user_id: str) -> StoredPreferences:
        """What a recipient wants."""
        answer: StoredPreferences = self._ask(Call("GET", f"/v1/users/{segment(user_id)}/preferences"))
        return answer

    def put_preferences(self, user_id: str, preferences: Preferences) -> StoredPreferences:
        """Replace what a recipient wants."""
        answer: StoredPreferences = self._ask(Call("PUT", f"/v1/users/{segment(user_id)}/preferences", preferences))
        return answer

    def create_template(self, template: NewTemplate) -> TemplateWritten:
        """A template with its first version."""
        answer: TemplateWritten = self._ask(Call("POST", "/v1/templates", template, again=False))
        return answer

    def add_version(self, template_id: str, version: NewVersion) -> TemplateWritten:
        """A further version of a template."""
        answer: TemplateWritten = self._ask(
            Call("POST", f"/v1/templates/{segment(template_id)}/versions", version, again=False)
        )
        return answer

    def get_template(self, template_id: str, version: int | None = None) -> Template:
        """A template, in its published version unless one is named."""
        answer: Template = self._ask(calls.page(f"/v1/templates/{segment(template_id)}", {"version": version}, None))
        return answer

    def publish_template(self, template_id: str, version: int) -> TemplateWritten:
        """Publish a version."""
        answer: TemplateWritten = self._ask(
            Call("POST", f"/v1/templates/{segment(template_id)}/publish", {"version": version})
        )
        return answer

    def suppress(self, suppression: NewSuppression) -> Suppression:
        """An address that nothing is sent to from now on."""
        answer: Suppression = self._ask(Call("POST", "/v1/suppressions", suppression))
        return answer

    def unsuppress(self, suppression_id: str) -> None:
        """Remove a suppression."""
        self._ask(Call("DELETE", f"/v1/suppressions/{segment(suppression_id)}"))

    def stream_token(
        self, notification_ids: Sequence[str] = (), *, user_id: str | None = None, ttl_s: int = 600
    ) -> StreamToken:
        """What a browser may watch with, for so long."""
        answer: StreamToken = self._ask(
            Call(
                "POST",
                "/v1/stream-tokens",
                {
                    "ttl_s": ttl_s,
                    **({"notification_ids": list(notification_ids)} if notification_ids else {}),
                    **({"user_id": user_id} if user_id else {}),
                },
            )
        )
        return answer

    def events(self, notification_id: str) -> Iterator[Event]:
        """Every fact about a notification, in order."""
        return self._listed(f"{PATH}/{segment(notification_id)}/events", {})

    def list_notifications(self, **filters: str | None) -> Iterator[NotificationEntry]:
        """The newest first; filters are those of GET /v1/notifications."""
        return self._listed(PATH, filters)

    def list_users(self) -> Iterator[User]:
        """All recipients."""
        return self._listed("/v1/users", {})

    def list_templates(self) -> Iterator[TemplateEntry]:
        """All templates."""
        return self._listed("/v1/templates", {})

    def list_suppressions(self, **filters: str | None) -> Iterator[Suppression]:
        """All suppressions; filters are those of GET /v1/suppressions."""
        return self._listed("/v1/suppressions", filters)

    def send_many(self, notifications: Sequence[Notification]) -> list[Result]:
        """Send any number; each is accepted or refused for itself, in their order. Those without a `request_id` get one."""
        return calls.in_order([self._ask(call) for call in calls.send_many(notifications)])

    def wait(self, notification_id: str) -> NotificationStatus:
        """What became of it, once it is settled: watched, not asked for again and again."""
        outcome: NotificationStatus | None = None
        while outcome is None:
            for event in self.watch(notification_id):
                if event.kind == "snapshot":
                    outcome = event.data["notification"]
                elif event.kind == "status":
                    outcome = None  # the snapshot of before is not all: a new stream begins with one of now
                elif event.data["reason"] == "not_found":
                    raise calls.ApiError(404, {"code": "not_found", "detail": "there is no such notification"})
        return outcome

    def watch(
        self, *notification_ids: str, until_settled: bool = True, after: str | None = None, **filters: str
    ) -> Iterator[LiveEvent]:
        """Events as they happen, through lost connections: of notifications, else of all of the tenant's (docs/live.md).

        Raises ApiError for what is refused, UnavailableError when nothing answers for `retry_for_s`.
        """
        place = Place(notification_ids, until_settled, filters, after)
        call = Call("GET", live.PATH)
        patience: Patience | None = None
        timeout = httpx2.Timeout(self._timeout_s, read=live.SILENCE_S)
        while not place.over:
            wait: float | None = live.BACK_AFTER_S
            patience = patience or Patience(call, time.monotonic(), self._retry_for_s)
            try:
                request = self._http.build_request(
                    "GET", live.PATH, params=place.query, headers=place.headers, timeout=timeout
                )
                response = self._http.send(request, stream=True)
                try:
                    if response.status_code == 204:
                        return
                    if response.status_code != 200:
                        retry_after = response.headers.get("Retry-After")
                        wait = patience.after_status(response.status_code, retry_after, time.monotonic())
                        if wait is None:
                            calls.value_of(response.status_code, response.read())
                    else:
                        for sent in httpx2.EventSource(response, live.MAX_EVENT_BYTES):
                            patience = None
                            event = place.take(sent.event, sent.id, sent.data)
                            if event is not None:
                                yield event
                finally:
                    response.close()
            except httpx2.TransportError as exc:
                patience = patience or Patience(call, time.monotonic(), self._retry_for_s)
                wait = patience.after_loss(time.monotonic(), was_sent=True)
                if wait is None:
                    raise UnavailableError(f"{self._http.base_url} does not answer: {exc}") from exc
            if not place.over and wait is not None:
                time.sleep(wait)

    def _listed(self, path: str, filters: Mapping[str, Any]) -> Iterator[Any]:
        cursor: str | None = None
        while True:
            found = self._ask(calls.page(path, filters, cursor))
            yield from found["entries"]
            cursor = found["next_cursor"]
            if not cursor:
                return

    def _ask(self, call: Call) -> Any:
        patience = Patience(call, time.monotonic(), self._retry_for_s)
        while True:
            try:
                response = self._http.request(
                    call.method, call.path, params=call.query, headers=call.headers, json=call.body
                )
            except httpx2.TransportError as exc:
                was_sent = not isinstance(exc, (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout))
                wait = patience.after_loss(time.monotonic(), was_sent=was_sent)
                if wait is None:
                    raise UnavailableError(f"{self._http.base_url} does not answer: {exc}") from exc
            else:
                retry_after = response.headers.get("Retry-After")
                wait = patience.after_status(response.status_code, retry_after, time.monotonic())
                if wait is None:
                    return calls.value_of(response.status_code, response.content)
            time.sleep(wait)
