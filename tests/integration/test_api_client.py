"""The client of the HTTP API against a server that answers as it is told."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from aiohttp import web

from local.ports import LOOPBACK
from runtime.errors import UnavailableError
from runtime.http import client as module
from runtime.http.client import ApiClient, ApiError

Serve = Callable[..., Any]


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """Starts a server that gives these responses in turn; returns its URL and the requests it gets."""
    runners: list[web.AppRunner] = []

    async def start(*responses: web.Response) -> tuple[str, list[tuple[str, str, str | None, Any]]]:
        seen: list[tuple[str, str, str | None, Any]] = []
        left = list(responses)

        async def handle(request: web.Request) -> web.Response:
            body = await request.json() if request.body_exists else None
            seen.append((request.method, request.path_qs, request.headers.get("Authorization"), body))
            return left.pop(0)

        app = web.Application()
        app.router.add_route("*", "/{path:.*}", handle)
        runner = web.AppRunner(app)
        runners.append(runner)
        await runner.setup()
        site = web.TCPSite(runner, LOOPBACK, 0)
        await site.start()
        return f"http://{LOOPBACK}:{runner.addresses[0][1]}", seen

    yield start
    for runner in runners:
        await runner.cleanup()


async def test_call_carries_the_key_and_the_body_and_returns_the_json_value(serve: Serve) -> None:
    url, seen = await serve(web.json_response({"id": "u1"}, status=201), web.Response(status=204))
    async with ApiClient(f"{url}/", "hg_1") as api:
        assert await api.call("POST", "/v1/users?x=1", {"id": "u1"}) == (201, {"id": "u1"})
        assert await api.call("DELETE", "/v1/users/u1") == (204, None)
    assert seen == [
        ("POST", "/v1/users?x=1", "Bearer hg_1", {"id": "u1"}),
        ("DELETE", "/v1/users/u1", "Bearer hg_1", None),
    ]


@pytest.mark.parametrize(
    ("response", "words"),
    [
        (web.json_response({"detail": "there is no such user"}, status=404), "there is no such user"),
        (web.json_response({"title": "Not Found"}, status=404), "Not Found"),
        (web.Response(text="<h1>a proxy</h1>", status=404), "<h1>a proxy</h1>"),
        (web.Response(status=404), "without a reason"),
    ],
    ids=["problem", "title", "no JSON", "nothing"],
)
async def test_unexpected_status_is_an_error_in_the_words_of_the_api(
    serve: Serve, response: web.Response, words: str
) -> None:
    url, _ = await serve(response)
    async with ApiClient(url) as api:
        with pytest.raises(ApiError) as refused:
            await api.call("GET", "/v1/users/u1")
    assert (refused.value.status, refused.value.words) == (404, words)
    assert str(refused.value) == f"GET {url}/v1/users/u1 answered 404: {words}"


async def test_expected_status_is_no_error(serve: Serve) -> None:
    url, _ = await serve(web.json_response({"code": "exists"}, status=409))
    async with ApiClient(url) as api:
        assert (await api.call("POST", "/v1/users", {}, expect=(201, 409))).status == 409


async def test_503_is_tried_again_as_often_as_asked(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RETRY_AFTER_S", 0)
    busy = [web.json_response({"detail": "the relay is late"}, status=503) for _ in range(5)]
    url, seen = await serve(*busy[:2], web.json_response({}), *busy[2:])
    async with ApiClient(url, tries=3) as api:
        assert (await api.call("PUT", "/v1/users/u1", {})).status == 200
        assert len(seen) == 3
        with pytest.raises(ApiError, match="answered 503: the relay is late"):
            await api.call("PUT", "/v1/users/u1", {})
    assert len(seen) == 6


async def test_answer_that_is_too_large_is_not_kept(serve: Serve) -> None:
    url, _ = await serve(web.Response(body=bytes(1 << 20)), web.Response(body=bytes((1 << 20) + 1)))
    async with ApiClient(url, max_response_bytes=1 << 20) as api:
        assert (await api.call("GET", "/")).body is None
        with pytest.raises(UnavailableError, match="more than 1 MiB"):
            await api.call("GET", "/")


async def test_api_that_does_not_listen_is_named(serve: Serve) -> None:
    async with ApiClient(f"http://{LOOPBACK}:9", "k") as api:
        with pytest.raises(UnavailableError, match=rf"^cannot reach http://{LOOPBACK}:9: .*is it running\?$"):
            await api.call("GET", "/v1/users")
