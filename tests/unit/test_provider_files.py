"""Settings of accounts that change under a running process: callbacks take former tokens for a day, senders the new client."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from twilio.request_validator import RequestValidator

from producers.callbacks.accounts import KEPT_S, ReportAccounts
from runtime.errors import SettingsError
from runtime.health import Health
from runtime.provider_files import fingerprint, follow
from runtime.settings import OutboundSettings, ProviderSettings, load_settings
from senders import renewal
from senders.accounts import Account, Accounts
from senders.renewal import AccountRenewal
from vendors.registry import create_senders
from vendors.reports import ForgedError, Request, UnknownAccountError

SID = "AC" + "0" * 32
URL = "https://notify.example/callbacks/twilio"


def account(name: str = "sms-1", **keys: Any) -> ProviderSettings:
    given = {"account_sid": SID, "auth_token": "old", "from": "+15005550006", **keys}
    return ProviderSettings(name=name, channel="sms", kind="twilio", **given)


def signed(token: str, sid: str = SID) -> Request:
    form = {"AccountSid": sid, "MessageSid": "SM1", "MessageStatus": "delivered"}
    body = "&".join(f"{name}={value}" for name, value in form.items()).encode()
    return Request(URL, {}, {"x-twilio-signature": RequestValidator(token).compute_signature(URL, form)}, body)


async def test_report_under_a_token_of_the_last_day_is_taken_and_under_an_older_one_is_forged() -> None:
    now = [0.0]
    accounts = ReportAccounts([account()], lambda: now[0])
    reader = accounts.readers()["twilio"]
    accounts.replace([account(auth_token="new")])
    for token in ("new", "old"):
        assert [report.state for report in (await reader.read(signed(token))).reports] == ["delivered"]
    with pytest.raises(ForgedError):
        await reader.read(signed("strange"))
    accounts.replace([])  # the account is gone, its messages are not
    assert [report.provider for report in (await reader.read(signed("new"))).reports] == ["sms-1"]
    with pytest.raises(UnknownAccountError):
        await reader.read(signed("new", "AC" + "1" * 32))
    now[0] = KEPT_S
    with pytest.raises(UnknownAccountError):
        await reader.read(signed("old"))


async def test_report_under_the_token_of_a_file_that_changed_a_moment_ago_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, token = tmp_path / "heliograph.toml", tmp_path / "token"
    token.write_text("old")
    config.write_text(
        f'[[providers]]\nname = "sms-1"\nchannel = "sms"\nkind = "twilio"\naccount_sid = "{SID}"\nauth_token_file = "token"\nfrom = "+15005550006"\n'
    )
    monkeypatch.setenv("HELIOGRAPH_CONFIG", str(config))
    reader = ReportAccounts(load_settings().providers).readers()["twilio"]
    with pytest.raises(ForgedError):
        await reader.read(signed("newer"))
    token.write_text("newer")
    assert [report.state for report in (await reader.read(signed("newer"))).reports] == ["delivered"]
    assert [report.state for report in (await reader.read(signed("old"))).reports] == ["delivered"]
    config.write_text("[[providers]\n")
    with pytest.raises(ForgedError):
        await reader.read(signed("strange"))
    assert [report.state for report in (await reader.read(signed("newer"))).reports] == ["delivered"]


async def test_settings_that_make_no_reader_change_nothing(tmp_path: Path) -> None:
    accounts = ReportAccounts([account()])
    with pytest.raises(SettingsError):
        accounts.replace([account(auth_token=None, auth_token_file=str(tmp_path / "none"))])
    assert [report.state for report in (await accounts.readers()["twilio"].read(signed("old"))).reports] == [
        "delivered"
    ]


def test_fingerprint_is_of_the_settings_and_of_what_their_files_hold(tmp_path: Path) -> None:
    file = tmp_path / "token"
    by_file = account(auth_token=None, auth_token_file=str(file))
    seen = {fingerprint(account()), fingerprint(account(auth_token="new")), fingerprint(by_file)}
    for text in ("a", "b"):
        file.write_text(text)
        seen.add(fingerprint(by_file))
    assert len(seen) == 5
    assert fingerprint(account()) == fingerprint(account())


async def test_changed_file_is_read_again_and_a_broken_one_is_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, token = tmp_path / "heliograph.toml", tmp_path / "token"
    token.write_text("one")
    config.write_text(
        f'[[providers]]\nname = "sms-1"\nchannel = "sms"\nkind = "twilio"\naccount_sid = "{SID}"\nauth_token_file = "token"\nfrom = "+15005550006"\n'
    )
    monkeypatch.setenv("HELIOGRAPH_CONFIG", str(config))
    taken: list[Sequence[ProviderSettings]] = []

    async def take(providers: Sequence[ProviderSettings]) -> str | None:
        taken.append(providers)
        return None

    async def until(condition: Any) -> None:
        for _ in range(1_000):
            if condition():
                return
            await asyncio.sleep(0.01)
        raise AssertionError("it did not come true")

    health = Health()
    following = asyncio.create_task(follow(load_settings().providers, take, health, look_s=0.01))
    await asyncio.sleep(0.1)
    assert taken == []
    token.write_text("another")  # the file that the account names
    await until(lambda: len(taken) == 1)
    text = config.read_text()
    config.write_text("[[providers]\n")
    await until(lambda: "not used" in health.degraded().get("providers", ""))
    config.write_text(text.replace("sms-1", "sms-2"))
    await until(lambda: len(taken) == 2)
    assert [provider.name for provider in taken[1]] == ["sms-2"]
    assert health.degraded() == {}
    following.cancel()


async def test_sender_gets_a_new_client_and_says_what_takes_a_restart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(renewal, "_GRACE_S", 0.0)
    before = [account("a", timeout_s=0.01), account("b", timeout_s=0.01)]
    senders = create_senders("sms", before)
    accounts = Accounts([Account(sender, before[0].breaker) for sender in senders])
    made = AccountRenewal("sms", accounts, before, OutboundSettings())

    def clients() -> list[Any]:
        return [accounts[i].sender for i in range(len(accounts))]

    assert await made.apply([account("a", timeout_s=0.01), account("b", timeout_s=0.01, auth_token="new")]) is None
    assert clients()[0] is senders[0]
    assert clients()[1] is not senders[1]
    assert clients()[1].name == "b"
    limits = await made.apply([account("a", timeout_s=0.01, rate_per_second=5), account("b", timeout_s=0.01)])
    assert limits == "limits and breakers of a count from the next start"
    others = clients()
    assert "restart this sender" in (await made.apply([account("b"), account("a")]) or "")
    with pytest.raises(SettingsError):
        await made.apply([account("a", auth_token=None), account("b")])
    assert clients() == others
    await made.close()
