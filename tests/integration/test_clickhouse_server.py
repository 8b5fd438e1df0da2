"""The embedded ClickHouse server, as clickhouse-connect's default client sees it."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import clickhouse_connect
import pytest
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import DatabaseError, StreamFailureError
from clickhouse_connect.driver.external import ExternalData

from tests.support.clickhouse import Server as AnyServer
from tests.support.clickhouse import free_port

pytestmark = pytest.mark.clickhouse


class Server(AnyServer):
    """The embedded one on every stack: it is what this file is about."""

    def launch(self) -> subprocess.Popen[bytes]:
        return self.embedded()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = Server(tmp_path_factory.mktemp("clickhouse") / "data")
    running.start()
    yield running
    assert running.stop() == 0


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    name = f"t{uuid4().hex[:8]}"
    with server.client() as admin:
        admin.command(f"CREATE DATABASE {name}")
    with server.client(database=name) as connected:
        yield connected


def test_columnar_native_insert_of_ten_columns_reads_back_equal(client: Client) -> None:
    client.command(
        "CREATE TABLE t (a UInt64, b String, c LowCardinality(String), d DateTime64(3, 'UTC'), e Nullable(Int64),"
        " f Array(String), g UUID, h Bool, i UInt8, j Map(String, String)) ENGINE = MergeTree ORDER BY a"
    )
    moment, key = datetime(2026, 1, 2, 3, 4, 5, 6000), uuid4()
    row = (7, "x\n\x00'", "low", moment, None, ["p", "q"], key, True, 9, {"k": "v"})
    summary = client.insert("t", [[value] * 3 for value in row], column_names=list("abcdefghij"), column_oriented=True)
    assert summary.written_rows == 3
    assert client.query("SELECT * FROM t").result_rows == [row] * 3


@pytest.mark.parametrize("compression", ["lz4", "zstd", "gzip", False])
def test_every_compression_inserts_and_reads(client: Client, server: Server, compression: str | bool) -> None:
    with server.client(database=client.database, compress=compression) as packed:
        packed.command("CREATE OR REPLACE TABLE t (a UInt64, b String) ENGINE = MergeTree ORDER BY a")
        packed.insert("t", [list(range(50_000)), ["text"] * 50_000], column_names=["a", "b"], column_oriented=True)
        assert len(packed.query("SELECT * FROM t").result_rows) == 50_000


def test_settings_of_one_query_do_not_reach_the_next(client: Client) -> None:
    default = client.query("SELECT getSetting('max_threads')").result_rows
    assert client.query("SELECT getSetting('max_threads')", settings={"max_threads": 7}).result_rows == [(7,)]
    assert client.query("SELECT getSetting('max_threads')").result_rows == default


def test_session_keeps_its_settings_and_temporary_tables(client: Client, server: Server) -> None:
    client.command("SET max_threads = 5")
    client.command("CREATE TEMPORARY TABLE mine (a UInt8)")
    client.command("INSERT INTO mine VALUES", data="(1), (2)")
    assert client.query("SELECT getSetting('max_threads')", settings={"max_threads": 6}).result_rows == [(6,)]
    assert client.query("SELECT getSetting('max_threads'), count() FROM mine").result_rows == [(5, 2)]
    with server.client(database=client.database) as other, pytest.raises(DatabaseError, match="UNKNOWN_TABLE"):
        other.query("SELECT * FROM mine")


def test_bound_parameters_arrive_unchanged(client: Client) -> None:
    text = "a'b\t\\c\n{x}ü"
    rows = client.query("SELECT {n:UInt32} + 1, {s:String}", parameters={"n": 3, "s": text}).result_rows
    assert rows == [(4, text)]
    with server_form(client) as forms:
        assert forms.query("SELECT {s:String}", parameters={"s": text * 1000}).result_rows == [(text * 1000,)]


def server_form(client: Client) -> Client:
    port = int(client.uri.rsplit(":", 1)[1])
    return clickhouse_connect.get_client(host="127.0.0.1", port=port, form_encode_query_params=True)


def test_external_table_is_readable_by_its_query_only(client: Client) -> None:
    data = ExternalData(file_name="ext.csv", data=b"1,x\n2,y\n", fmt="CSV", structure=["a UInt8", "b String"])
    assert client.query("SELECT b FROM ext WHERE a > 1", external_data=data).result_rows == [("y",)]
    with pytest.raises(DatabaseError, match="UNKNOWN_TABLE"):
        client.query("SELECT b FROM ext")


@pytest.mark.parametrize(
    ("sql", "code", "status"),
    [("SELEC 1", 62, 400), ("SELECT nope", 47, 404), ("SELECT * FROM nope", 60, 404), ("SELECT throwIf(1)", 395, 500)],
)
def test_errors_carry_code_status_and_text(server: Server, sql: str, code: int, status: int) -> None:
    got, headers, body = server.get("/", sql.encode())
    assert got == status
    assert headers["X-ClickHouse-Exception-Code"] == str(code)
    assert body.startswith(f"Code: {code}. DB::Exception:".encode())


def test_unknown_setting_and_database_are_refused(client: Client, server: Server) -> None:
    with pytest.raises(DatabaseError, match="115"):
        client.query("SELECT 1", settings={"no_such_setting": 1})
    with pytest.raises(DatabaseError, match="81"):
        server.client(database="no_such_database").query("SELECT 1")


def test_get_request_cannot_write(server: Server) -> None:
    status, headers, _ = server.get("/?query=CREATE+DATABASE+by_get")
    assert (status, headers["X-ClickHouse-Exception-Code"]) == (400, "164")
    assert server.get("/?query=SELECT+1")[2] == b"1\n"


def test_answer_carries_the_headers_of_a_server(server: Server) -> None:
    _, headers, body = server.get("/?query_id=q1&default_format=JSONEachRow&wait_end_of_query=1", b"SELECT 1 AS a")
    assert (headers["X-ClickHouse-Query-Id"], headers["X-ClickHouse-Format"]) == ("q1", "JSONEachRow")
    assert headers["X-ClickHouse-Timezone"] == "UTC"
    assert json.loads(headers["X-ClickHouse-Summary"])["result_rows"] == "1"
    assert json.loads(body) == {"a": 1}


def test_large_result_is_streamed_and_a_late_error_is_reported(client: Client) -> None:
    with client.query_row_block_stream("SELECT number FROM numbers(300000)") as stream:
        assert sum(len(block) for block in stream) == 300_000
    with (
        pytest.raises(StreamFailureError, match="395"),
        # one thread: another could come to the failing row before the first block is out
        client.query_row_block_stream(
            "SELECT throwIf(number = 250000) FROM numbers(300000)",
            settings={"max_threads": 1, "max_block_size": 10_000},
        ) as stream,
    ):
        for _ in stream:
            pass


def test_abandoned_stream_leaves_the_server_usable(server: Server) -> None:
    for _ in range(10):  # more than there are connections
        with socket.create_connection(("127.0.0.1", server.port)) as plain:
            plain.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 33\r\n\r\nSELECT number FROM system.numbers ")
            plain.recv(1000)
    assert server.get("/", b"SELECT 1")[2] == b"1\n"


def test_one_session_runs_one_query_at_a_time(server: Server) -> None:
    answers: list[int] = []

    def ask() -> None:
        answers.append(server.get("/?session_id=shared", b"SELECT sleep(0.5)")[0])

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == [200, 500]  # SESSION_IS_LOCKED


async def test_eight_queries_run_side_by_side(server: Server) -> None:
    started = time.monotonic()
    await asyncio.gather(*(asyncio.to_thread(server.get, "/", b"SELECT sleep(1)") for _ in range(8)))
    assert time.monotonic() - started < 4


def test_bad_row_of_an_insert_stores_nothing(client: Client) -> None:
    client.command("CREATE TABLE t (a UInt64) ENGINE = MergeTree ORDER BY a")
    with pytest.raises(DatabaseError, match="27"):
        client.raw_insert("t", ["a"], insert_block=b"1\nbogus\n", fmt="TSV")
    assert client.query("SELECT count() FROM t").result_rows == [(0,)]


def test_repeated_deduplication_token_stores_once(client: Client) -> None:
    client.command(
        "CREATE TABLE t (a UInt64) ENGINE = MergeTree ORDER BY a SETTINGS non_replicated_deduplication_window = 100"
    )
    for _ in range(2):
        client.insert("t", [[1]], column_names=["a"], settings={"insert_deduplication_token": "t-0-10"})
    assert client.query("SELECT count() FROM t").result_rows == [(1,)]


def test_replacing_and_aggregating_tables_and_views_work(client: Client) -> None:
    client.command(
        "CREATE TABLE raw (id UInt64, rank UInt8, at DateTime64(3, 'UTC')) ENGINE = ReplacingMergeTree ORDER BY (id, rank)"
    )
    client.command(
        "CREATE TABLE state (id UInt64, best AggregateFunction(max, UInt8)) ENGINE = AggregatingMergeTree ORDER BY id"
    )
    client.command(
        "CREATE MATERIALIZED VIEW feed TO state AS SELECT r.id, maxState(r.rank) AS best FROM raw AS r GROUP BY r.id"
    )
    client.command(
        "CREATE MATERIALIZED VIEW hourly REFRESH EVERY 1 SECOND ENGINE = MergeTree ORDER BY n AS SELECT count() AS n FROM raw"
    )
    rows = [[1, rank, datetime(2026, 1, 1, tzinfo=UTC)] for rank in (1, 3, 2, 3)]
    client.insert("raw", rows, column_names=["id", "rank", "at"])
    assert client.query("SELECT count() FROM raw FINAL").result_rows == [(3,)]
    assert client.query("SELECT id, maxMerge(best) FROM state GROUP BY id").result_rows == [(1, 3)]
    wait_until(lambda: client.query("SELECT max(n) > 0 FROM hourly").result_rows == [(1,)])


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_health_and_metrics_are_served(server: Server) -> None:
    assert server.get("/ping")[2] == b"Ok.\n"
    assert [server.get(path)[0] for path in ("/livez", "/readyz", "/health")] == [200, 200, 200]
    assert b"heliograph_local_clickhouse_queries_total" in server.get("/metrics")[2]


def test_rows_survive_kill_9_and_a_second_owner_is_refused(tmp_path: Path) -> None:
    running = Server(tmp_path / "data")
    running.start()
    with running.client() as client:
        client.command("CREATE TABLE kept (a UInt64) ENGINE = MergeTree ORDER BY a")
        for start in range(5):
            client.insert("kept", [[start * 1000 + row] for row in range(1000)], column_names=["a"])
    second = subprocess.run(
        [sys.executable, "-m", "local.servers.clickhouse", "--path", str(running.path), "--port", str(free_port())],
        capture_output=True,
        timeout=60,
    )
    assert second.returncode == 1
    assert b"cannot serve" in second.stderr
    running.stop(signal.SIGKILL)
    running.start()
    with running.client() as client:
        assert client.query("SELECT count(), sum(a) FROM kept").result_rows == [(5000, sum(range(5000)))]
    assert running.stop() == 0


def test_other_than_loopback_is_refused(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "local.servers.clickhouse", "--path", str(tmp_path), "--port", "1"]
    refused = subprocess.run([*command, "--host", "0.0.0.0"], capture_output=True, timeout=60)
    assert refused.returncode == 2
    assert b"loopback" in refused.stderr


# ---------------------------------------------------------------- the analyst


def test_analyst_reads_and_writes_nothing(server: Server, client: Client) -> None:
    client.command("CREATE TABLE t (x UInt8) ENGINE = MergeTree ORDER BY x")
    client.command("INSERT INTO t VALUES (1)")
    with server.client(database=client.database, username="analyst", password="secret") as analyst:
        assert analyst.query("SELECT x FROM t").result_rows == [(1,)]
        list_of_theirs = ExternalData(file_name="l", fmt="CSV", structure="y UInt8", data=b"1\n2\n")
        assert analyst.query("SELECT count() FROM l", external_data=list_of_theirs).result_rows == [(2,)]
        for refused in ("INSERT INTO t VALUES (2)", "DROP TABLE t", "CREATE TABLE u (x UInt8) ENGINE = Memory"):
            with pytest.raises(DatabaseError, match="readonly"):
                analyst.command(refused)
        with pytest.raises(DatabaseError, match="readonly"):
            analyst.insert("t", [[3]], column_names=["x"])
    assert client.query("SELECT x FROM t").result_rows == [(1,)]


@pytest.mark.parametrize("way", ["user=analyst", "user=analyst&session_id=s&readonly=1"])
def test_analyst_of_a_plain_request_reads_only(server: Server, way: str) -> None:
    code, _, body = server.get(f"/?{way}", b"SELECT 1")
    assert (code, body) == (200, b"1\n")
    code, _, body = server.get(f"/?{way}", b"CREATE DATABASE theirs")
    assert code != 200 and b"readonly" in body
