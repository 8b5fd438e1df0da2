"""Suppressions over HTTP: one by one, by the thousand, and out again.

May import fastapi. Never: SQL, an address in a log or a problem.
"""

# No postponed annotations here: FastAPI must see the dependency, which is made inside a function.
import asyncio
import csv
import json
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Annotated, Any, NamedTuple
from uuid import UUID

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from api.pagination import DEFAULT_LIMIT, Cursor, Limit, invalid_cursor, page_of, read_cursor, write_cursor
from api.path_ids import PathId
from api.reference.responses import done
from api.requests import Authenticator, check_type, media_type, read_body, read_headers, read_model
from api.strict_json import parse_json
from producers.checking import check_model
from producers.reference.inputs import HashedSuppression, NewSuppression
from producers.reference.keys import Caller
from producers.reference.service import ReferenceService, show_suppression
from producers.reference.store import NewSuppression as Stored
from producers.reference.store import ReferenceStore, Row
from runtime.errors import FieldError, RefusedError
from runtime.http.problems import Problem, problem_of
from schemas.channels import ChannelName

MAX_LINES = 10_000
MAX_IMPORT_BYTES = 4 << 20
MAX_LINE_BYTES = 16_384
"""Of an import: the longest address has 4,096 characters, each written as an escape at most."""
_EXPORT_PAGE = 1_000
_CSV_COLUMNS = ("channel", "address", "address_hash", "reason", "expires_at")
JSONL_TYPES = ("application/x-ndjson", "application/jsonl")
CSV_TYPE = "text/csv"


def _imported(value: Any) -> Stored:
    """Raises RefusedError."""
    hashed = isinstance(value, dict) and "address_hash" in value and "address" not in value
    if hashed:
        return check_model(HashedSuppression, value).stored()
    return check_model(NewSuppression, value).stored()


class Imported(NamedTuple):
    """What an import's text says: suppressions, and what is wrong by line (from 1)."""

    taken: list[Stored]
    refused: list[dict[str, Any]]


def _refusal(line: int, problem: Problem) -> dict[str, Any]:
    first = problem.errors[0] if problem.errors else FieldError("", problem.detail, problem.code)
    return {"line": line, **first._asdict()}


def _too_long(line: str) -> Problem | None:
    if len(line) <= MAX_LINE_BYTES and (line.isascii() or len(line.encode("utf-8", "surrogatepass")) <= MAX_LINE_BYTES):
        return None
    return Problem(400, "line_too_long", f"the line is longer than {MAX_LINE_BYTES} bytes")


def _jsonl(text: str) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                yield number, _too_long(line) or parse_json(line.encode())
            except Problem as problem:
                yield number, problem


def _csv(text: str) -> Iterator[tuple[int, Any]]:
    long: dict[int, Problem] = {}

    def short_lines() -> Iterator[str]:
        for number, line in enumerate(text.splitlines(), 1):
            if (problem := _too_long(line)) is not None:
                long[number] = problem
            yield "" if problem else line

    reader = csv.reader(short_lines(), strict=True)
    columns: list[str] = []
    while True:
        try:
            cells = next(reader, None)
        except csv.Error:
            yield reader.line_num, Problem(400, "invalid_csv", "the line is not CSV")
            continue
        if cells is None:
            return
        if reader.line_num in long:
            yield reader.line_num, long[reader.line_num]
        elif not columns:
            columns = [cell.strip().lower() for cell in cells]
            named = set(columns)
            known = "channel" in named <= set(_CSV_COLUMNS) and named & {"address", "address_hash"}
            if not known or len(named) != len(columns):
                why = (
                    f"the first line names the columns: channel, address, and as you like {', '.join(_CSV_COLUMNS[2:])}"
                )
                raise Problem(400, "invalid_csv", why, errors=[FieldError("", why, "invalid_csv")])
        elif cells and len(cells) != len(columns):
            yield reader.line_num, Problem(400, "invalid_csv", f"the line has {len(cells)} cells, not {len(columns)}")
        elif cells:
            yield reader.line_num, {name: cell for name, cell in zip(columns, cells, strict=True) if cell != ""}


def read_import(raw: bytes, kind: str) -> Imported:
    """The suppressions of a JSONL or CSV text; seconds of work for the largest. Raises Problem for the whole."""
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        raise Problem(400, "invalid_text", "the body is not UTF-8") from exc
    taken: list[Stored] = []
    refused: list[dict[str, Any]] = []
    for count, (line, value) in enumerate(_csv(text) if kind == CSV_TYPE else _jsonl(text), 1):
        if count > MAX_LINES:
            why = f"more than {MAX_LINES} lines: import the rest with another call"
            raise Problem(413, "body_too_large", why, errors=[FieldError("", why, "body_too_large")])
        try:
            if isinstance(value, Problem):
                raise value
            taken.append(_imported(value))
        except (Problem, RefusedError) as exc:
            refused.append(_refusal(line, exc if isinstance(exc, Problem) else problem_of(exc)))
    return Imported(taken, refused)


def cursor_of(row: Row) -> str:
    """Where a page of the list ends."""
    return write_cursor(row["created_at"], str(row["suppression_id"]))


def read_before(cursor: str) -> tuple[int, UUID] | None:
    """Where the next page begins, None for the start. Raises Problem (400)."""
    position = read_cursor(cursor, int, str)
    if position is None:
        return None
    try:
        return int(position[0]), UUID(position[1])
    except ValueError as exc:
        raise invalid_cursor() from exc


def suppressions_router(service: ReferenceService, store: ReferenceStore, authenticate: Authenticator) -> APIRouter:
    """The routes."""
    router = APIRouter(prefix="/v1/suppressions", tags=["suppressions"])
    Who = Annotated[Caller, Depends(authenticate)]
    imports = asyncio.Semaphore(1)

    @router.post("", status_code=201)
    async def suppress(request: Request, caller: Who) -> JSONResponse:
        """Never send to an address, or not until `expires_at`; 200 when it was suppressed already."""
        body = await read_model(request, NewSuppression)
        return done(await service.suppress(caller.tenant, body))

    @router.get("")
    async def list_suppressions(
        caller: Who,
        channel: Annotated[ChannelName | None, Query()] = None,
        reason: Annotated[str | None, Query(max_length=64)] = None,
        address: Annotated[str | None, Query(max_length=4096, description="In any spelling.")] = None,
        cursor: Cursor = "",
        limit: Limit = DEFAULT_LIMIT,
    ) -> JSONResponse:
        """The newest first; an expired one stays in the list until it is deleted."""
        rows, more = await service.list_suppressions(
            caller.tenant, limit, channel=channel, reason=reason, address=address, before=read_before(cursor)
        )
        return JSONResponse(page_of(rows, more, show_suppression, cursor_of))

    @router.post("/import")
    async def import_suppressions(request: Request, caller: Who) -> JSONResponse:
        """JSONL, or CSV with a line of column names. Good lines are taken although others are refused; again is harmless."""
        headers = read_headers(request.scope)
        check_type(headers, (*JSONL_TYPES, CSV_TYPE), MAX_IMPORT_BYTES)
        raw = await read_body(request.receive, MAX_IMPORT_BYTES)
        async with imports:
            read = await asyncio.to_thread(read_import, raw, media_type(headers))
        created = await service.suppress_all(caller.tenant, read.taken)
        return JSONResponse(
            {"imported": len(read.taken), "created": created, "refused": len(read.refused), "errors": read.refused}
        )

    @router.get("/export")
    async def export_suppressions(caller: Who) -> StreamingResponse:
        """Everything, one JSON object per line, in the form that import takes."""
        # Read the first page before the response begins: with ClickHouse or PostgreSQL down it is a 503, not a cut stream.
        first = await store.list_suppressions(caller.tenant, limit=_EXPORT_PAGE)

        async def lines() -> AsyncIterator[str]:
            rows: Sequence[Row] = first
            while rows:
                yield "".join(json.dumps(_exported(row), ensure_ascii=False) + "\n" for row in rows)
                if len(rows) < _EXPORT_PAGE:
                    return
                last = rows[-1]
                before = (last["created_at"], last["suppression_id"])
                rows = await store.list_suppressions(caller.tenant, before=before, limit=_EXPORT_PAGE)

        return StreamingResponse(lines(), media_type=JSONL_TYPES[0])

    @router.delete("/{suppression_id}", status_code=204)
    async def unsuppress(suppression_id: PathId, caller: Who) -> Response:
        """The address may be sent to again."""
        await service.unsuppress(caller.tenant, suppression_id)
        return Response(status_code=204)

    return router


def _exported(row: Row) -> dict[str, Any]:
    shown = show_suppression(row)
    if shown["address"] is not None:
        del shown["address_hash"]
    return {name: shown[name] for name in _CSV_COLUMNS if shown.get(name) is not None}
