"""A vendor is a folder and one row: here one from a temporary folder, with delivery reports."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from runtime.settings import ProviderSettings
from tests.support.made import message
from vendors import registry
from vendors.registry import Vendor, create_report_readers, create_senders, platforms_of, probe
from vendors.reports import Request
from vendors.sender import Rejected, Sent

KEYS = "from vendors.settings import ProviderKeys\nclass PigeonKeys(ProviderKeys):\n    loft: str\n"
CODES = """
from vendors.codes import Codes, same
from vendors.sender import ErrorClass
CODES = Codes(source="pigeon.example/codes", rows=same(ErrorClass.PERMANENT_RECIPIENT, {"7": "no such roof"}))
"""
SENDER = """
from runtime.settings import ProviderSettings
from vendors.codes import classify_code, unknown_http
from vendors.provider import ProviderAccount
from vendors.sender import ProbeRefusal, SendResult, Sent
from vendors.settings import parse_keys
from pigeon.codes import CODES
from pigeon.keys import PigeonKeys
class PigeonSender(ProviderAccount[str]):
    channel = "sms"
    async def start(self) -> None: ...
    async def close(self) -> None: ...
    def prepare(self, message) -> str:
        return message["text"] or ""
    async def deliver(self, prepared: str) -> SendResult:
        if prepared == "far":
            return classify_code(self.name, CODES.find("7"), unknown_http(400), "7")
        return Sent("p-1")
    async def probe(self) -> ProbeRefusal | None:
        return None
def create(provider: ProviderSettings) -> PigeonSender:
    parse_keys(PigeonKeys, provider)
    return PigeonSender(provider)
"""
REPORTS = """
from vendors.reports import DeliveryReport, Intake, Reports
from pigeon.codes import CODES
class PigeonReports:
    intake = Intake(frozenset({"text/plain"}), retry_window_s=60)
    async def read(self, request) -> Reports:
        bounced = CODES.find(request.body.decode()) is not None
        return Reports([DeliveryReport("pigeon-1", "p-1", "e-1", "sms", "bounced" if bounced else "delivered")])
def create(providers) -> PigeonReports:
    return PigeonReports()
"""


async def test_a_vendor_is_a_folder_and_one_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "pigeon"
    folder.mkdir()
    files = {"__init__": "", "keys": KEYS, "codes": CODES, "sender": SENDER, "reports": REPORTS}
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(registry, "VENDORS", [*registry.VENDORS, Vendor("sms", "pigeon", "pigeon", has_reports=True)])
    provider = ProviderSettings(name="pigeon-1", channel="sms", kind="pigeon", loft="north")  # type: ignore[call-arg]
    (sender,) = create_senders("sms", [provider])
    assert await sender.send(message(channel="sms", text="near")) == Sent("p-1")
    assert isinstance(await sender.send(message(channel="sms", text="far")), Rejected)
    assert platforms_of(provider) is None
    assert await asyncio.to_thread(probe, provider) is None
    reader = create_report_readers([provider])["pigeon"]
    assert [report.state for report in (await reader.read(Request("https://x", {}, {}, b"7"))).reports] == ["bounced"]
    assert [report.state for report in (await reader.read(Request("https://x", {}, {}, b"ok"))).reports] == [
        "delivered"
    ]
    for name in [name for name in sys.modules if name.partition(".")[0] == "pigeon"]:
        del sys.modules[name]


def test_what_a_code_means_is_the_same_when_sent_and_when_reported() -> None:
    from vendors.sender import ErrorClass
    from vendors.twilio.codes import CODES
    from vendors.twilio.reports import _classify

    for code, row in CODES.rows.items():
        state, reason, _, _ = _classify("failed", code)
        permanent = row.error is ErrorClass.PERMANENT_RECIPIENT
        assert (state, reason) == (("bounced", "invalid_number") if permanent else ("undelivered", "carrier")), code
