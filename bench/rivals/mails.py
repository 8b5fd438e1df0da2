"""A mailer as tutorials show it: `python -m bench.rivals.mails PORT COUNT TEMPLATES`.

jinja2, EmailMessage, aiosmtplib on ten kept connections. No queue, no record of what was sent. Prints seconds, CPU seconds and how many
were taken, as JSON. TEMPLATES is the file with the demo's templates.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import aiosmtplib
import jinja2

CONNECTIONS = 10
ORDER: dict[str, Any] = {
    "name": "Ada",
    "items": [{"title": "éclair tin", "quantity": 5}, {"title": "折り紙セット", "quantity": 3}],
    "total": 243.4,
    "currency": "GBP",
}


def templates(path: Path) -> dict[str, jinja2.Template]:
    """Subject, text and HTML, compiled once."""
    environment = jinja2.Environment(autoescape=True)
    environment.filters["number"] = lambda value, digits: f"{value:,.{digits}f}"
    found = next(it for it in json.loads(path.read_text("utf-8")) if it["id"] == "order-shipped")
    return {name: environment.from_string(source) for name, source in found["channels"]["email"].items()}


def mail(parts: dict[str, jinja2.Template], number: int) -> EmailMessage:
    order = {**ORDER, "order": f"A-{number:07}"}
    made = EmailMessage()
    made["From"], made["To"] = "Shop <shop@example.org>", f"u{number}@example.org"
    made["Subject"] = parts["subject"].render(order)
    made["Message-ID"] = f"<{number}@example.org>"
    made.set_content(parts["text"].render(order))
    made.add_alternative(parts["html"].render(order), subtype="html")
    return made


async def run(port: int, count: int, path: Path) -> None:
    parts, numbers, sent = templates(path), iter(range(count)), 0

    async def connection() -> None:
        nonlocal sent
        client = aiosmtplib.SMTP(hostname="127.0.0.1", port=port, start_tls=False)
        await client.connect()
        for number in numbers:
            await client.send_message(mail(parts, number))
            sent += 1
        await client.quit()

    began, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(connection() for _ in range(CONNECTIONS)))
    used = {"seconds": time.perf_counter() - began, "cpu_s": time.process_time() - cpu, "sent": sent}
    sys.stdout.write(json.dumps(used) + "\n")


if __name__ == "__main__":
    asyncio.run(run(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])))
