"""The analyst's rights, enforced by the engine itself: what `heliograph migrate` says of that user is said of the engine's one user."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

import pytest
from clickhouse_connect.driver.exceptions import DatabaseError
from pydantic import SecretStr

from runtime.clock import system_clock
from runtime.settings import AnalystSettings, ClickHouseSettings
from sinks import access, schema_files
from sinks.clickhouse import StoreError
from sinks.schema import migrate
from tests.integration.test_clickhouse_schema import Store, request, status
from tests.support.clickhouse import Server as AnyServer
from tests.support.history import NOW, History
from tests.support.worked_queries import questions

pytestmark = pytest.mark.clickhouse

_OWNER = "<owner><password>x</password><profile>default</profile><quota>default</quota></owner>"
_FULL = "<access_management>1</access_management>"


class Server(AnyServer):
    """The embedded engine, whose one user has the rights of a file."""

    users: Path

    def launch(self) -> subprocess.Popen[bytes]:
        command = [
            sys.executable,
            "-m",
            "local.servers.clickhouse",
            "--path",
            str(self.path),
            "--users",
            str(self.users),
        ]
        return subprocess.Popen([*command, "--port", str(self.port)], stderr=subprocess.DEVNULL)

    def start_as(self, rights: str, profile: str = "") -> None:
        self.users = self.path.parent / "users.xml"
        self.users.write_text(
            f"<clickhouse><profiles><default/><theirs>{profile}</theirs></profiles><quotas><default/></quotas><users>{_OWNER}"
            f"<default><password></password><profile>theirs</profile><quota>default</quota>{rights}</default>"
            "</users></clickhouse>"
        )
        self.start()


def as_file(analyst: AnalystSettings) -> tuple[str, str]:
    """The statements that make an analyst, in the words of ClickHouse's users.xml: (rights, profile)."""
    rights = filters = profile = ""
    for statement in access.analyst_statements("heliograph", analyst):
        if granted := re.fullmatch(r"(GRANT .+) TO \S+ WITH REPLACE OPTION", statement):
            rights += f"<grants><query>{escape(granted[1])}</query></grants>"
        if policy := re.fullmatch(r"CREATE ROW POLICY .+? ON (.+) FOR SELECT USING (.+) TO `analyst`", statement):
            for view in re.findall(r"`heliograph`\.(\w+)", policy[1]):
                filters += f"<{view}><filter>{escape(policy[2])}</filter></{view}>"
    for name, value, least, most in re.findall(r"(\w+) = (\d+)(?: MIN (\d+) MAX (\d+))?", access.limits_of(analyst)):
        limit = f"<constraints><{name}><min>{least}</min><max>{most}</max></{name}></constraints>" if most else ""
        profile += f"<{name}>{value}</{name}>{limit}"
    # One element holds all constraints.
    inner = "".join(re.findall(r"<constraints>(.*?)</constraints>", profile))
    profile = re.sub(r"<constraints>.*?</constraints>", "", profile) + f"<constraints>{inner}</constraints>"
    return f"{rights}<databases><heliograph>{filters}</heliograph></databases>", profile


def analyst_of(**more: Any) -> AnalystSettings:
    return AnalystSettings(username="analyst", password=SecretStr("p"), **more)


def ask(client: Any, sql: str) -> list[tuple[Any, ...]]:
    result = client.query(sql.replace("now()", f"fromUnixTimestamp64Milli({NOW}, 'UTC')"))
    return [tuple(row) for row in result.result_rows]


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, list[list[tuple[Any, ...]]]]]:
    """A stopped server whose views are another user's, and what that one is answered to the page's questions."""
    server = Server(tmp_path_factory.mktemp("clickhouse") / "data")
    server.start_as(_FULL)
    history = History(system_clock())
    history.give_up_three(system_clock())
    with pytest.MonkeyPatch.context() as patch:
        # The engine's one user is the analyst later on.
        patch.setattr(schema_files, "_MAKER", "owner")
        store = Store(server)
        assert migrate(store.settings.model_copy(update={"analyst": analyst_of()})), "its views are made again"
        assert migrate(store.settings) == [], "who knows of no analyst leaves it what it has"
    store.insert(history.records)
    for number in range(20):
        nid = f"0197{number:04x}-0000-7000-8000-{number:012x}"
        store.insert([request(nid, "bank"), status(nid, "sms", "routed", tenant="bank")])
    answers = [ask(store.client, question.sql) for question in questions()]
    store.client.close()
    assert server.stop() == 0
    yield server, answers


def test_analyst_reads_every_answer_of_the_page_and_nothing_else(filled: tuple[Server, list[Any]]) -> None:
    server, answers = filled
    server.start_as(*as_file(analyst_of(max_result_rows=50_000)))
    with server.client(database="heliograph") as client:
        public = {view.name for view in schema_files.sql_views() if view.public}
        assert {name for (name,) in ask(client, "SHOW TABLES")} == public
        assert {name for (name,) in ask(client, "SHOW DATABASES")} & {"heliograph", "heliograph_internal"} == {
            "heliograph"
        }
        for question, answer in zip(questions(), answers, strict=True):
            assert ask(client, question.sql) == answer, question.title
        assert ask(client, "SELECT count() FROM dead_letters WHERE stage != ''")[0][0] > 0
        for refused in (
            "SELECT value FROM dead_letters",
            "SELECT key FROM dead_letters",
            "SELECT value FROM dead_letters_raw",
            "SELECT user_id FROM requests_raw",
            "SELECT state FROM heliograph_internal.message_latest",
            "INSERT INTO requests_raw (tenant) VALUES ('x')",
            "TRUNCATE TABLE requests_raw",
        ):
            with pytest.raises(DatabaseError, match=r"ACCESS_DENIED|READONLY"):
                client.command(refused)
        for asked in (
            "max_execution_time = 0",
            "max_execution_time = 61",
            "max_memory_usage = 0",
            "max_result_rows = 0",
        ):
            with pytest.raises(DatabaseError, match="SETTING_CONSTRAINT_VIOLATION"):
                ask(client, f"SELECT 1 SETTINGS {asked}")
        assert ask(client, "SELECT 1 SETTINGS max_execution_time = 5") == [(1,)]
        with pytest.raises(DatabaseError, match="TOO_MANY_ROWS_OR_BYTES"):
            ask(client, "SELECT number FROM numbers(200000)")
    assert server.stop() == 0


def test_analyst_of_a_tenant_reads_its_rows_alone(filled: tuple[Server, list[Any]]) -> None:
    server, _ = filled
    analyst = analyst_of(tenants=("bank",))
    server.start_as(*as_file(analyst))
    with server.client(database="heliograph") as client:
        there = {name for (name,) in ask(client, "SHOW TABLES")}
        assert {"requests", "v_messages", "v_accounting"} < there
        assert not there & {"receipts", "v_provider_scorecard", "v_conditions"}
        for view in there:
            assert {tenant for (tenant,) in ask(client, f"SELECT DISTINCT tenant FROM {view}")} <= {"bank"}, view
        for view in ("requests", "v_messages", "message_state", "notification_state", "v_why"):
            assert ask(client, f"SELECT count() FROM {view}") == [(20,)], view
        assert ask(client, "SELECT sum(accepted) FROM v_accounting") == [(20,)]
    assert server.stop() == 0


def test_engine_without_users_says_what_to_do(tmp_path: Path) -> None:
    server = AnyServer(tmp_path / "data")
    server.process = server.embedded()
    server.launch = lambda: server.process  # type: ignore[method-assign]
    server.start()
    settings = ClickHouseSettings(url=f"http://127.0.0.1:{server.port}", analyst=analyst_of())
    Store(server)
    with pytest.raises(StoreError, match="ANALYST__USERNAME: give default the right"):
        access.make_analyst(settings)
    with server.client() as client:
        for analyst in (analyst_of(), analyst_of(tenants=("it's", "b"))):
            for statement in access.analyst_statements("heliograph", analyst):
                # Reads the statement, and cannot run it.
                assert ask(client, f"EXPLAIN AST {statement}"), statement
    assert server.stop() == 0
