"""The client for programs on an event loop: as `Client`, each method to be awaited.

    async with AsyncClient(url, key) as heliograph:
        accepted = await heliograph.send({"to": {"user_id": "ada"}, "template": {"id": "parcel"}})
        outcome = await heliograph.wait(accepted["id"])

May import httpx2. Never: a rule of what is repeated, which is in calls.py.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
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


class AsyncClient:
    """One API with one key; an async context, or `aclose` ends it. Errors: ApiError, UnavailableError."""

    def __init__(self, url: str, api_key: str, *, timeout_s: float = 30.0, retry_for_s: float = 60.0) -> None:
        """`timeout_s` of one try; `retry_for_s` of all tries of a call: 429, 503, lost answers."""
        headers = {"Authorization": f"Bearer {api_key}"}
        self._http = httpx2.AsyncClient(base_url=url.rstrip("/"), headers=headers, timeout=timeout_s)
        self._timeout_s, self._retry_for_s = timeout_s, retry_for_s

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """End its connections."""
        await self._http.aclose()

    async def send(self, notification: Notification, *, key: str | None = None) -> Accepted:
        """Send one. Without a key or a `request_id` one is made: however often the call is repeated, it is one notification."""
        answer: Accepted = await self._ask(calls.send(notification, key))
        return answer

    async def get(self, notification_id: str) -> NotificationStatus:
        """What became of it."""
        answer: NotificationStatus = await self._ask(Call("GET", f"{PATH}/{segment(notification_id)}"))
        return answer

    async def explain(self, notification_id: str) -> Explanation:
        """Its whole story."""
        answer: Explanation = await self._ask(Call("GET", f"{PATH}/{segment(notification_id)}/explain"))
        return answer

    async def cancel(self, notification_id: str) -> Cancelled:
        """Cancel what is not sent yet. ApiError 409 when it is settled."""
        answer: Cancelled = await self._ask(Call("POST", f"{PATH}/{segment(notification_id)}/cancel"))
        return answer

    async def resend(self, notification_id: str) -> Resent:
        """Send a settled one again, decided anew: whoever got it gets it twice."""
        answer: Resent = await self._ask(Call("POST", f"{PATH}/{segment(notification_id)}/resend", again=False))
        return answer

    async def create_user(self, user: NewUser) -> User:
        """A new recipient. ApiError 409 when there is one of this id."""
        answer: User = await self._ask(Call("POST", "/v1/users", user, again=False))
        return answer

    async def get_user(self, user_id: str) -> User:
        """A recipient."""
        answer: User = await self._ask(Call("GET", f"/v1/users/{segment(user_id)}"))
        return answer

    async def put_user(self, user_id: str, user: ReplacedUser) -> User:
        """Replace a recipient."""
        answer: User = await self._ask(Call("PUT", f"/v1/users/{segment(user_id)}", user))
        return answer

    async def change_user(self, user_id: str, change: Mapping[str, Any]) -> User:
        """Change some fields (JSON Merge Patch: null removes)."""
        answer: User = await self._ask(Call("PATCH", f"/v1/users/{segment(user_id)}", dict(change)))
        return answer

    async def delete_user(self, user_id: str) -> None:
        """Delete a recipient."""
        await self._ask(Call("DELETE", f"/v1/users/{segment(user_id)}"))

    async def get_preferences(self, user_id: str) -> StoredPreferences:
        """What a recipient wants."""
        answer: StoredPreferences = await self._ask(Call("GET", f"/v1/users/{segment(user_id)}/preferences"))
        return answer

    async def put_preferences(self, user_id: str, preferences: Preferences) -> StoredPreferences:
        """Replace what a recipient wants."""
        answer: StoredPreferences = await self._ask(
            Call("PUT", f"/v1/users/{segment(user_id)}/preferences", preferences)
        )
        return answer

    async def create_template(self, template: NewTemplate) -> TemplateWritten:
        """A template with its first version."""
        answer: TemplateWritten = await self._ask(Call("POST", "/v1/templates", template, again=False))
        return answer

    async def add_version(self, template_id: str, version: NewVersion) -> TemplateWritten:
        """A further version of a template."""
        answer: TemplateWritten = await self._ask(
            Call("POST", f"/v1/templates/{segment(template_id)}/versions", version, again=False)
        )
        return answer

    async def get_template(self, template_id: str, version: int | None = None) -> Template:
        """A template, in its published version unless one is named."""
        answer: Template = await self._ask(
            calls.page(f"/v1/templates/{segment(template_id)}", {"version": version}, None)
        )
        return answer

    async def publish_template(self, template_id: str, version: int) -> TemplateWritten:
        """Publish a version."""
        answer: TemplateWritten = await self._ask(
            Call("POST", f"/v1/templates/{segment(template_id)}/publish", {"version": version})
        )
        return answer

    async def suppress(self, suppression: NewSuppression) -> Suppression:
        """An address that nothing is sent to from now on."""
        answer: Suppression = await self._ask(Call("POST", "/v1/suppressions", suppression))
        return answer

    async def unsuppress(self, suppression_id: str) -> None:
        """Remove a suppression."""
        await self._ask(Call("DELETE", f"/v1/suppressions/{segment(suppression_id)}"))

    async def stream_token(
        self, notification_ids: Sequence[str] = (), *, user_id: str | None = None, ttl_s: int = 600
    ) -> StreamToken:
        """What a browser may watch with, for so long."""
        answer: StreamToken = await self._ask(
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

    def events(self, notification_id: str) -> AsyncIterator[Event]:
        """Every fact about a notification, in order."""
        return self._listed(f"{PATH}/{segment(notification_id)}/events", {})

    def list_notifications(self, **filters: str | None) -> AsyncIterator[NotificationEntry]:
        """The newest first; filters are those of GET /v1/notifications."""
        return self._listed(PATH, filters)

    def list_users(self) -> AsyncIterator[User]:
        """All recipients."""
        return self._listed("/v1/users", {})

    def list_templates(self) -> AsyncIterator[TemplateEntry]:
        """All templates."""
        return self._listed("/v1/templates", {})

    def list_suppressions(self, **filters: str | None) -> AsyncIterator[Suppression]:
        """All suppressions; filters are those of GET /v1/suppressions."""
        return self._listed("/v1/suppressions", filters)

    async def send_many(self, notifications: Sequence[Notification]) -> list[Result]:
        """Send any number; each is accepted or refused for itself, in their order. Those without a `request_id` get one."""
        return calls.in_order([await self._ask(call) for call in calls.send_many(notifications)])

    async def wait(self, notification_id: str) -> NotificationStatus:
        """What became of it, once it is settled: watched, not asked for again and again."""
        outcome: NotificationStatus | None = None
        while outcome is None:
            async for event in self.watch(notification_id):
                if event.kind == "snapshot":
                    outcome = event.data["notification"]
                elif event.kind == "status":
                    outcome = None  # the snapshot of before is not all: a new stream begins with one of now
                elif event.data["reason"] == "not_found":
                    raise calls.ApiError(404, {"code": "not_found", "detail": "there is no such notification"})
        return outcome

    async def watch(
        self, *notification_ids: str, until_settled: bool = True, after: str | None = None, **filters: str
    ) -> AsyncIterator[LiveEvent]:
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
                response = await self._http.send(request, stream=True)
                try:
                    if response.status_code == 204:
                        return
                    if response.status_code != 200:
                        retry_after = response.headers.get("Retry-After")
                        wait = patience.after_status(response.status_code, retry_after, time.monotonic())
                        if wait is None:
                            calls.value_of(response.status_code, await response.aread())
                    else:
                        async for sent in httpx2.EventSource(response, live.MAX_EVENT_BYTES):
                            patience = None
                            event = place.take(sent.event, sent.id, sent.data)
                            if event is not None:
                                yield event
                finally:
                    await response.aclose()
            except httpx2.TransportError as exc:
                patience = patience or Patience(call, time.monotonic(), self._retry_for_s)
                wait = patience.after_loss(time.monotonic(), was_sent=True)
                if wait is None:
                    raise UnavailableError(f"{self._http.base_url} does not answer: {exc}") from exc
            if not place.over and wait is not None:
                await asyncio.sleep(wait)

    async def _listed(self, path: str, filters: Mapping[str, Any]) -> AsyncIterator[Any]:
        cursor: str | None = None
        while True:
            found = await self._ask(calls.page(path, filters, cursor))
            for entry in found["entries"]:
                yield entry
            cursor = found["next_cursor"]
            if not cursor:
                return

    async def _ask(self, call: Call) -> Any:
        patience = Patience(call, time.monotonic(), self._retry_for_s)
        while True:
            try:
                response = await self._http.request(
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
            await asyncio.sleep(wait)
