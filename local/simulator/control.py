"""The simulator's own HTTP interface: the ground truth, the counts, the faults.

    GET  /accepted?kind=&since_seq=&limit=   accepts with seq > since_seq, a JSON array
    GET  /accepted/count?kind=               {"count": n}
    GET  /requests                           provider requests seen per kind, refused ones too
    POST /faults   GET /faults   DELETE /faults

May import the simulator's state, faults and aiohttp. Never: a way to change the log of accepts.
"""

from __future__ import annotations

import asyncio
import itertools
import json

from aiohttp import web

from local.simulator.faults import FaultError
from local.simulator.ground_truth import presentable
from local.simulator.state import SimulatorState

_CHUNK_LINES = 500


def _problem(text: str) -> web.Response:
    return web.json_response({"error": text}, status=400)


def _number(request: web.Request, name: str) -> int | None:
    value = request.query.get(name)
    if value is None or value == "":
        return None
    if not value.isascii() or not value.isdigit():
        raise web.HTTPBadRequest(text=json.dumps({"error": f"{name} must be a whole number"}))
    return int(value)


def add_control_routes(app: web.Application, state: SimulatorState) -> None:
    """Serve the control interface."""

    async def accepted(request: web.Request) -> web.StreamResponse:
        since = _number(request, "since_seq")
        limit = _number(request, "limit")
        lines = state.truth.lines(request.query.get("kind") or None, since or 0, limit)
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)

        def chunk() -> bytes:
            return b",\n".join(presentable(line) for line in itertools.islice(lines, _CHUNK_LINES))

        separator = b"["
        while piece := await asyncio.to_thread(chunk):
            await response.write(separator + piece)
            separator = b",\n"
        await response.write_eof(b"[]" if separator == b"[" else b"]")
        return response

    async def count(request: web.Request) -> web.Response:
        return web.json_response({"count": state.truth.count(request.query.get("kind") or None)})

    async def requests(_: web.Request) -> web.Response:
        return web.json_response(
            {kind: state.requests[kind] for kind in sorted({*state.faults.kinds, *state.requests})}
        )

    async def add_fault(request: web.Request) -> web.Response:
        try:
            fault = state.faults.add(json.loads(await request.read()))
        except FaultError as error:
            return _problem(str(error))
        except ValueError:
            return _problem("the body is not JSON")
        return web.json_response(fault.as_json(), status=201)

    async def list_faults(_: web.Request) -> web.Response:
        return web.json_response([fault.as_json() for fault in state.faults.faults])

    async def clear_faults(_: web.Request) -> web.Response:
        return web.json_response({"cleared": state.faults.clear()})

    app.router.add_get("/accepted", accepted)
    app.router.add_get("/accepted/count", count)
    app.router.add_get("/requests", requests)
    app.router.add_post("/faults", add_fault)
    app.router.add_get("/faults", list_faults)
    app.router.add_delete("/faults", clear_faults)
