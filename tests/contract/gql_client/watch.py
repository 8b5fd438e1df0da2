"""Asks and subscribes with gql, and prints each result as a line of JSON: watch.py URL KEY QUERY VARIABLES MOST."""

from __future__ import annotations

import asyncio
import json
import sys

from gql import Client, gql
from gql.transport.aiohttp import AIOHTTPTransport
from gql.transport.websockets import WebsocketsTransport


async def main(url: str, key: str, query: str, variables: str, most: str) -> None:
    """See the module."""
    headers = {"Authorization": f"Bearer {key}"}
    async with Client(transport=AIOHTTPTransport(url, headers=headers), fetch_schema_from_transport=True) as session:
        found = await session.execute(gql("{ viewer { tenant } }"))
        sys.stdout.write(json.dumps(found) + "\n")
    socket = WebsocketsTransport(url.replace("http", "ws", 1), init_payload=headers)
    async with Client(transport=socket) as session:
        seen = 0
        async for result in session.subscribe(gql(query), variable_values=json.loads(variables)):
            sys.stdout.write(json.dumps(result) + "\n")
            seen += 1
            if seen >= int(most):
                break


asyncio.run(main(*sys.argv[1:]))
