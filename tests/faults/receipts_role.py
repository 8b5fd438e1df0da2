"""`heliograph run callbacks` with SNS's certificate out of a file: tests/faults/receipts.py plays SNS, whose certificates are fetched from Amazon.

python -m tests.faults.receipts_role CERTIFICATE.pem
"""

from __future__ import annotations

import sys
from pathlib import Path

from vendors.http import HttpResponse
from vendors.ses import reports


def main(certificate: Path) -> None:
    pem = certificate.read_bytes()

    async def fetch(url: str, form: bytes | None) -> HttpResponse:
        return HttpResponse(200, {}, pem)

    setattr(reports, "fetch", fetch)  # noqa: B010 it is none of the names that the module shows
    from console.cli import main as heliograph

    sys.argv = ["heliograph", "run", "callbacks"]
    heliograph()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
