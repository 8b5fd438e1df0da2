"""The least that posts to a provider: `python -m bench.rivals.posts sms|push URL COUNT`.

aiohttp, 64 requests in flight, a body that differs in its recipient. No queue, no retry, no record. Prints what bench.rivals.mails prints.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from urllib.parse import urlencode

import aiohttp

IN_FLIGHT = 64


def push(number: int) -> tuple[str, bytes]:
    """Path and body of FCM's messages:send."""
    message = {
        "token": f"token-{number}",
        "notification": {"title": "On its way 📦", "body": f"A-{number:07} has 2 item(s)"},
        "android": {"collapse_key": f"{number:032x}"},
        "data": {"order": f"A-{number:07}", "id": f"{number:032x}"},
    }
    return "/v1/projects/bench/messages:send", json.dumps({"message": message}).encode()


def sms(number: int) -> tuple[str, bytes]:
    """Path and body of Twilio's Messages.json."""
    text = f"A-{number:07} is on its way: https://shop.example/t/A-{number:07}"
    fields = {"To": f"+4915{number:09d}", "From": "+15005550006", "Body": text}
    return "/2010-04-01/Accounts/AC0/Messages.json", urlencode(fields).encode()


async def run(kind: str, url: str, count: int) -> None:
    make, numbers, sent = {"sms": sms, "push": push}[kind], iter(range(count)), 0
    content = "application/json" if kind == "push" else "application/x-www-form-urlencoded"
    headers = {"Authorization": "Bearer bench", "Content-Type": content}
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=IN_FLIGHT)) as session:

        async def one() -> None:
            nonlocal sent
            for number in numbers:
                path, body = make(number)
                async with session.post(url + path, data=body, headers=headers) as response:
                    await response.read()
                    sent += response.status == 200

        began, cpu = time.perf_counter(), time.process_time()
        await asyncio.gather(*(one() for _ in range(IN_FLIGHT)))
        used = {"seconds": time.perf_counter() - began, "cpu_s": time.process_time() - cpu, "sent": sent}
    sys.stdout.write(json.dumps(used) + "\n")


if __name__ == "__main__":
    asyncio.run(run(sys.argv[1], sys.argv[2], int(sys.argv[3])))
