"""Every query of every panel runs: SQL on the real engine and our schema; PromQL names only what our processes export."""

from __future__ import annotations

import json
import re
import runpy
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from runtime.errors import UnavailableError
from runtime.metrics import RESIDUAL
from runtime.settings import ClickHouseSettings
from sinks import clickhouse
from sinks.residual import Residual
from tests.integration.test_clickhouse_schema import Store, dead_letter, many, notification, request, status
from tests.support.clickhouse import Server, free_port
from tests.support.promql import metrics_of, unknown_labels, unknown_metrics, unset_metrics

GRAFANA = Path(__file__).resolve().parents[2] / "deploy" / "grafana"
DASHBOARDS = {
    path.name: json.loads(path.read_text("utf-8")) for path in sorted((GRAFANA / "dashboards").glob("*.json"))
}
PANELS = [(name, panel) for name, dashboard in DASHBOARDS.items() for panel in dashboard["panels"]]
SOURCES = {
    source["uid"]: source
    for path in (GRAFANA / "provisioning" / "datasources").glob("*.yml")
    for source in yaml.safe_load(path.read_text("utf-8"))["datasources"]
}

Expression = tuple[str, str]


def of_source(kind: str, key: str) -> list[Expression]:
    """(panel, query) of all panels of a data source."""
    return [
        (panel["title"], target[key])
        for _, panel in PANELS
        if panel["datasource"]["type"] == kind
        for target in panel["targets"]
    ]


SQL = of_source("grafana-clickhouse-datasource", "rawSql")
PROMQL = of_source("prometheus", "expr")


# ---------------------------------------------------------------- files


def test_the_files_are_what_the_script_writes() -> None:
    script = runpy.run_path(str(GRAFANA / "build.py"))
    assert {name: script["text"](content) for name, content in script["dashboards"]().items()} == {
        name: (GRAFANA / "dashboards" / name).read_text("utf-8") for name in DASHBOARDS
    }, "run `python deploy/grafana/build.py`"


def test_every_panel_asks_a_data_source_that_is_provisioned() -> None:
    for _, panel in PANELS:
        source = panel["datasource"]
        assert SOURCES[source["uid"]]["type"] == source["type"], panel["title"]
        refs = [target["refId"] for target in panel["targets"]]
        assert refs and len(set(refs)) == len(refs), panel["title"]
    assert SQL and PROMQL and len(SQL) + len(PROMQL) == sum(len(panel["targets"]) for _, panel in PANELS)


def test_panels_have_names_of_their_own_and_do_not_overlap() -> None:
    for name, dashboard in DASHBOARDS.items():
        assert len({panel["title"] for panel in dashboard["panels"]}) == len(dashboard["panels"]), name
        taken: set[tuple[int, int]] = set()
        for panel in dashboard["panels"]:
            at = panel["gridPos"]
            cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
            assert not cells & taken and at["x"] + at["w"] <= 24, panel["title"]
            taken |= cells


def test_grafana_has_what_its_data_sources_need() -> None:
    compose = yaml.safe_load((GRAFANA.parents[1] / "docker-compose.yml").read_text("utf-8"))["services"]
    environment = compose["grafana"]["environment"]
    assert re.fullmatch(r"grafana-clickhouse-datasource@\d+\.\d+\.\d+", environment["GF_PLUGINS_PREINSTALL_SYNC"])
    store = SOURCES["clickhouse"]
    assert store["jsonData"]["host"] in compose and store["jsonData"]["defaultDatabase"] == "heliograph"
    assert store["jsonData"]["username"] == compose["clickhouse"]["environment"]["CLICKHOUSE_USER"]
    variable = store["secureJsonData"]["password"].removeprefix("$")
    assert environment[variable] == compose["clickhouse"]["environment"]["CLICKHOUSE_PASSWORD"]


# ---------------------------------------------------------------- Prometheus


@pytest.mark.parametrize(("title", "expression"), PROMQL)
def test_what_a_panel_asks_of_prometheus_is_exported(title: str, expression: str) -> None:
    assert unknown_metrics(expression) == []
    assert unknown_labels(expression) == []
    assert unset_metrics(expression) == []


def test_what_does_not_exist_is_noticed() -> None:
    assert unknown_metrics("rate(heliograph_nothing_total[1m])") == ["heliograph_nothing_total"]
    assert unknown_metrics("heliograph_sender_results") == ["heliograph_sender_results"], "it is exported with _total"
    assert unknown_labels('sum by (tenant) (heliograph_sender_parked{colour="red"})') == ["colour", "tenant"]


def test_the_pipeline_board_shows_every_metric_that_says_look() -> None:
    operations = (GRAFANA.parents[1] / "docs" / "operations.md").read_text("utf-8")
    important = set(re.findall(r"^\| `(heliograph_\w+)` \|.*\*\*", operations, re.MULTILINE))
    assert len(important) > 5
    assert important <= {name for _, expression in PROMQL for name in metrics_of(expression)}


# ---------------------------------------------------------------- ClickHouse


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = Server(tmp_path_factory.mktemp("clickhouse") / "data").start()
    yield running
    assert running.stop() == 0


@pytest.fixture(scope="module")
def store(server: Server) -> Store:
    """A day of notifications, one of them with what no sound pipeline has."""
    filled = Store(server)
    orphan = notification(3_600_000)
    filled.insert([*many(120, seed=3), dead_letter(1), status(orphan, "sms", "sent", attempt=1, provider="p1")])
    return filled


def as_sent(sql: str, *, tenants: tuple[str, ...] = ("t",), notification_id: str = "") -> str:
    """What Grafana and its data source put in for macros and variables."""
    now = int(time.time())
    sql = sql.replace("$__fromTime", f"toDateTime({now - 86_400})").replace("$__toTime", f"toDateTime({now + 60})")
    sql = sql.replace("${tenant:sqlstring}", ",".join(f"'{tenant}'" for tenant in tenants))
    sql = sql.replace("${notification}", notification_id)
    assert "$" not in sql, "a macro or variable that this test does not know"
    return sql


@pytest.mark.clickhouse
@pytest.mark.parametrize(("title", "sql"), SQL)
def test_every_panel_of_clickhouse_has_rows(store: Store, title: str, sql: str) -> None:
    ((example,),) = store.rows("SELECT toString(any(notification_id)) FROM notification_state WHERE state = 'sent'")
    result = store.client.query(as_sent(sql, notification_id=example))
    assert result.result_rows, "a panel that stays empty whatever happens"
    (panel,) = [panel for _, panel in PANELS if panel["title"] == title]
    if panel["targets"][0]["queryType"] == "timeseries":
        assert result.column_names[0] == "time" and result.column_types[0].name.startswith("DateTime")
        numbers = [kind for kind in result.column_types[1:] if kind.name not in ("String", "LowCardinality(String)")]
        assert numbers and len(result.column_types) - 1 - len(numbers) <= 1, "times, one name of a series, numbers"
    # An installation without a notification, and nobody looked up.
    store.client.query(as_sent(sql, tenants=()))


@pytest.mark.clickhouse
def test_a_wrong_column_is_noticed(store: Store) -> None:
    sql = SQL[0][1].replace("in_flight", "in_fligt")
    with pytest.raises(Exception, match="in_fligt"):
        store.client.query(as_sent(sql))


@pytest.mark.clickhouse
def test_variables_offer_what_there_is(store: Store) -> None:
    (variable,) = [v for v in DASHBOARDS["delivery.json"]["templating"]["list"] if v["type"] == "query"]
    assert store.rows(as_sent(variable["query"])) == [("t",)]


# ---------------------------------------------------------------- the residual as a metric


def residual() -> dict[str, float]:
    return {sample.labels["finding"]: sample.value for metric in RESIDUAL.collect() for sample in metric.samples}


@pytest.mark.clickhouse
def test_the_gauge_is_the_residual_of_the_last_two_days(store: Store) -> None:
    measuring = Residual(store.settings)
    measuring.measure()
    before = residual()
    assert before.keys() == {"overdue", "orphan", "conflict"}
    hour = 3_600_000
    late, twice, old = notification(3 * hour), notification(4 * hour), notification(80 * hour)
    store.insert(
        [
            request(late),
            request(twice),
            request(old),
            status(twice, "sms", "sent", attempt=1),
            status(twice, "sms", "failed", attempt=1, after=2_000),
            status(notification(5 * hour), "sms", "sent", attempt=1),
            status(notification(6 * hour), "push", "routed"),
        ]
    )
    measuring.measure()
    measuring.close()
    # The one that only has `routed` is overdue and an orphan; overdue counts what was accepted.
    assert {finding: count - before[finding] for finding, count in residual().items()} == {
        "overdue": 1,
        "orphan": 2,
        "conflict": 1,
    }
    ((recent, all_of_it),) = store.rows(
        "SELECT sumIf(residual, hour >= now() - INTERVAL 2 DAY), sum(residual) FROM v_accounting"
    )
    assert sum(residual().values()) == recent == all_of_it - 1, "the old one is no longer told"


def test_unavailable_store_leaves_no_value() -> None:
    RESIDUAL.labels("orphan").set(0)
    settings = ClickHouseSettings(url=f"http://127.0.0.1:{free_port()}")
    Residual(settings).measure()
    assert residual() == {}, "not known is not 0"
    with pytest.raises(UnavailableError):
        clickhouse.connect(settings)
