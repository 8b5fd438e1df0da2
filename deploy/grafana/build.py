"""Grafana's dashboards, written from short lists: `python deploy/grafana/build.py` after an edit here; commit what it writes.

Grafana reads dashboards/*.json alone. `$__fromTime` and `$__toTime` are macros of the ClickHouse data source, `tenant` and
`notification` variables of the dashboard.
May import nothing of the project. Never: thresholds that page an engineer (deploy/prometheus/rules.yml).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "dashboards"
PROMETHEUS = {"type": "prometheus", "uid": "prometheus"}
CLICKHOUSE = {"type": "grafana-clickhouse-datasource", "uid": "clickhouse"}
WIDTH = 24

Panel = dict[str, Any]

# The hour in which the time range begins counts as a whole: the views have one row per hour.
_IN_RANGE = "tenant IN (${tenant:sqlstring}) AND hour >= toStartOfHour($__fromTime) AND hour <= $__toTime"
_NOTIFICATION = "toUUIDOrZero('${notification}')"
# With the hour, which the id has, the sort key finds it; without tenant all tenants' hours are looked at.
_THIS_ONE = f"notification_id = {_NOTIFICATION} AND hour = toStartOfHour(UUIDv7ToDateTime({_NOTIFICATION}, 'UTC'))"


def _panel(kind: str, title: str, size: tuple[int, int], source: dict[str, str], about: str = "") -> Panel:
    panel: Panel = {
        "type": kind,
        "title": title,
        "datasource": source,
        "gridPos": {"w": size[0], "h": size[1]},
        "fieldConfig": {"defaults": {}, "overrides": []},
        "targets": [],
    }
    if about:
        panel["description"] = about
    return panel


def graph(
    title: str, *lines: tuple[str, str], unit: str = "short", about: str = "", size: tuple[int, int] = (8, 7)
) -> Panel:
    """PromQL over time; each line is (expression, legend)."""
    panel = _panel("timeseries", title, size, PROMETHEUS, about)
    panel["fieldConfig"]["defaults"] = {"unit": unit, "min": 0}
    panel["targets"] = [
        {"refId": chr(ord("A") + at), "expr": expression, "legendFormat": legend}
        for at, (expression, legend) in enumerate(lines)
    ]
    return panel


def states(
    title: str,
    expression: str,
    legend: str,
    words: dict[int, tuple[str, str]],
    about: str = "",
    size: tuple[int, int] = (8, 7),
) -> Panel:
    """A gauge of few values over time, each with a word and a colour."""
    panel = graph(title, (expression, legend), about=about, size=size)
    panel["type"] = "state-timeline"
    options = {str(value): {"text": text, "color": color} for value, (text, color) in words.items()}
    panel["fieldConfig"]["defaults"] = {"mappings": [{"type": "value", "options": options}]}
    panel["options"] = {"mergeValues": True, "showValue": "auto"}
    return panel


def _sql(panel: Panel, query: str, *, over_time: bool = False) -> Panel:
    panel["targets"] = [
        {
            "refId": "A",
            "editorType": "sql",
            "queryType": "timeseries" if over_time else "table",
            "format": 0 if over_time else 1,
            "rawSql": query,
        }
    ]
    return panel


def table(title: str, query: str, size: tuple[int, int], about: str = "") -> Panel:
    """The rows as they are; a notification's id leads to its own rows at the end of the dashboard."""
    panel = _sql(_panel("table", title, size, CLICKHOUSE, about), query)
    if "notification_id" in query.split("FROM")[0]:
        link = {
            "title": "Outcome",
            "url": "/d/heliograph-delivery?${tenant:queryparam}&${__url_time_range}&var-notification=${__value.raw}",
        }
        panel["fieldConfig"]["overrides"] = [
            {
                "matcher": {"id": "byRegexp", "options": ".*notification_id"},
                "properties": [{"id": "links", "value": [link]}],
            }
        ]
    return panel


def bars(
    title: str, query: str, size: tuple[int, int], about: str = "", unit: str = "short", stack: bool = True
) -> Panel:
    """SQL over time: the first column is `time`, each other one a series, or one text column names the series."""
    panel = _sql(_panel("timeseries", title, size, CLICKHOUSE, about), query, over_time=True)
    custom = (
        {"drawStyle": "bars", "fillOpacity": 70, "stacking": {"mode": "normal"}} if stack else {"spanNulls": 7_200_000}
    )
    panel["fieldConfig"]["defaults"] = {"unit": unit, "min": 0, "custom": custom}
    return panel


def figures(title: str, query: str, size: tuple[int, int], red: tuple[str, ...] = (), about: str = "") -> Panel:
    """One row of SQL as large numbers; the columns of `red` are red above 0."""
    panel = _sql(_panel("stat", title, size, CLICKHOUSE, about), query)
    panel["options"] = {
        "colorMode": "value",
        "graphMode": "none",
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "/.*/"},
    }
    panel["fieldConfig"]["defaults"] = {"thresholds": {"mode": "absolute", "steps": [{"color": "text", "value": None}]}}
    steps = [{"color": "green", "value": None}, {"color": "red", "value": 1}]
    panel["fieldConfig"]["overrides"] = [
        {
            "matcher": {"id": "byName", "options": name},
            "properties": [{"id": "thresholds", "value": {"mode": "absolute", "steps": steps}}],
        }
        for name in red
    ]
    return panel


def _quantile(q: float, metric: str, by: str, window: str = "5m", where: str = "") -> str:
    return f"histogram_quantile({q}, sum by (le, {by}) (rate({metric}_bucket{where}[{window}])))".replace(
        "(le, )", "(le)"
    )


def pipeline() -> list[Panel]:
    """What the processes say of themselves."""
    return [
        graph(
            "Alerts",
            ('sum by (alertname, severity) (ALERTS{alertstate="firing"})', "{{severity}} {{alertname}}"),
            size=(16, 5),
            about="What to do about each: docs/operations.md, Dashboards and alerts.",
        ),
        graph("Roles that do not answer", ('count(up{job=~"heliograph.*"} == 0) or vector(0)', "down"), size=(8, 5)),
        graph(
            "Accepted per second",
            ("sum by (lane, door) (rate(heliograph_requests_accepted_total[1m]))", "{{lane}} {{door}}"),
            unit="reqps",
        ),
        graph(
            "Refused per second",
            ("sum by (code) (rate(heliograph_requests_refused_total[1m]))", "{{code}}"),
            unit="reqps",
        ),
        graph(
            "Decisions of the router per second",
            ("sum by (lane, state) (rate(heliograph_router_decisions_total[1m]))", "{{lane}} {{state}}"),
            unit="ops",
        ),
        graph(
            "Records that wait, by group",
            ("sum by (group) (max by (group, topic) (heliograph_consumer_lag_records))", "{{group}}"),
            about="Every process of a group measures the whole group.",
        ),
        graph(
            "Seconds stuck, by group",
            ("max by (group) (heliograph_consumer_stuck_seconds)", "{{group}}"),
            unit="s",
            about="Work waits and nothing is committed.",
        ),
        graph(
            "Acceptance to sender, p50 and p99",
            (_quantile(0.5, "heliograph_stage_delay_seconds", "stage, lane"), "p50 {{stage}} {{lane}}"),
            (_quantile(0.99, "heliograph_stage_delay_seconds", "stage, lane"), "p99 {{stage}} {{lane}}"),
            unit="s",
            about="With send_at the wait that was asked for is in it. The largest bucket is 60 s.",
        ),
        graph(
            "Outcomes per second",
            (
                "sum by (channel, provider, outcome) (rate(heliograph_sender_results_total[1m]))",
                "{{provider}} {{outcome}}",
            ),
            unit="ops",
        ),
        graph(
            "Retries, of all outcomes",
            (
                'sum by (channel, provider) (rate(heliograph_sender_results_total{outcome="retry"}[5m]))'
                " / sum by (channel, provider) (rate(heliograph_sender_results_total[5m]))",
                "{{channel}} {{provider}}",
            ),
            unit="percentunit",
        ),
        graph(
            "Provider requests, p50 and p99",
            (_quantile(0.5, "heliograph_provider_request_seconds", "channel, provider"), "p50 {{provider}}"),
            (_quantile(0.99, "heliograph_provider_request_seconds", "channel, provider"), "p99 {{provider}}"),
            unit="s",
        ),
        graph(
            "In flight and parked",
            ("sum by (channel) (heliograph_sender_in_flight)", "{{channel}} in flight"),
            ("sum by (channel) (heliograph_sender_parked)", "{{channel}} parked"),
        ),
        states(
            "Breakers",
            "max by (channel, provider) (heliograph_provider_breaker_state)",
            "{{channel}} {{provider}}",
            {0: ("closed", "green"), 1: ("half-open", "yellow"), 2: ("open", "red")},
        ),
        graph(
            "In doubt, duplicates, guard",
            ("sum by (channel) (increase(heliograph_sender_in_doubt_total[5m]))", "{{channel}} in doubt"),
            (
                "sum by (channel, cause) (increase(heliograph_sender_duplicates_dropped_total[5m]))",
                "{{channel}} duplicate {{cause}}",
            ),
            ("sum by (channel) (heliograph_sender_request_guard_total)", "{{channel}} guard"),
            about="In doubt and duplicates in five minutes; the guard since its process started, anything above 0 is our own fault.",
        ),
        graph("Timers that wait", ("sum(heliograph_timers_pending)", "pending")),
        graph(
            "Timers fired late, p99", (_quantile(0.99, "heliograph_timer_lateness_seconds", ""), "lateness"), unit="s"
        ),
        graph(
            "Timers fired per second",
            ("sum by (purpose) (rate(heliograph_timers_fired_total[1m]))", "{{purpose}}"),
            unit="ops",
        ),
        graph(
            "Dead letters in five minutes",
            ("sum by (stage, reason) (increase(heliograph_dead_letters_total[5m]))", "{{stage}} {{reason}}"),
        ),
        states(
            "Brakes",
            'label_join(max by (stage) (heliograph_dead_letter_brake), "brake", " ", "stage")'
            ' or label_join(max by (provider) (heliograph_dead_devices_brake), "brake", " ", "provider")',
            "{{brake}}",
            {0: ("free", "green"), 1: ("holds", "red")},
            about="Of a stage: a flood of unusable records. Of an account: too many recipients called invalid.",
        ),
        graph(
            "Dead devices and bounced addresses in five minutes",
            ("sum by (outcome) (increase(heliograph_dead_devices_total[5m]))", "device {{outcome}}"),
            ("sum by (channel, outcome) (increase(heliograph_bounced_addresses_total[5m]))", "{{channel}} {{outcome}}"),
        ),
        states(
            "Feedback",
            "max(heliograph_feedback_running)",
            "reads",
            {0: ("does not read", "red"), 1: ("reads", "green")},
            about="Of the relay: while it does not read, dead devices and bounced addresses are sent to.",
        ),
        graph(
            "Feedback skipped in an hour",
            ("sum by (cause) (increase(heliograph_feedback_passed_over_total[1h]))", "{{cause}}"),
        ),
        graph(
            "Age of the views",
            ("max by (topic) (heliograph_view_age_seconds)", "{{topic}}"),
            unit="s",
            about="Above 60 a process decides by what was.",
        ),
        graph(
            "Outbox rows that wait",
            ("max(heliograph_relay_outbox_pending)", "pending"),
            ("max(heliograph_relay_outbox_set_aside)", "set aside: Kafka refuses their size"),
        ),
        graph(
            "Rows stored per second", ("sum by (table) (rate(heliograph_sink_rows_total[1m]))", "{{table}}"), unit="ops"
        ),
        graph(
            "Inserts, p50 and p99",
            (_quantile(0.5, "heliograph_sink_insert_seconds", "table"), "p50 {{table}}"),
            (_quantile(0.99, "heliograph_sink_insert_seconds", "table"), "p99 {{table}}"),
            unit="s",
        ),
        graph(
            "Residual",
            ("max by (finding) (heliograph_accounting_residual)", "{{finding}}"),
            about="Of the last two days; the Delivery dashboard names the notifications.",
        ),
        graph("HTTP answers, p99", (_quantile(0.99, "heliograph_ingest_seconds", "route"), "{{route}}"), unit="s"),
        graph(
            "Live status: streams and frames dropped",
            ("sum(heliograph_live_watchers)", "streams"),
            ("sum(rate(heliograph_live_dropped_total[1m]))", "dropped per second"),
        ),
        graph(
            "Live status: broker to watcher, p50 and p99",
            (_quantile(0.5, "heliograph_live_delay_seconds", ""), "p50"),
            (_quantile(0.99, "heliograph_live_delay_seconds", ""), "p99"),
            unit="s",
        ),
        graph(
            "Callbacks per second",
            ("sum by (vendor, outcome) (rate(heliograph_callbacks_total[5m]))", "{{vendor}} {{outcome}}"),
            unit="ops",
        ),
        graph(
            "Webhooks: requests to customers' endpoints",
            ("sum by (outcome) (rate(heliograph_hook_requests_total[5m]))", "{{outcome}}"),
            unit="ops",
        ),
        graph(
            "Webhooks: offsets behind, and dropped before they were told",
            ("max by (condition) (heliograph_hook_lag_records)", "{{condition}}"),
            ("sum(increase(heliograph_hook_dropped_total[5m]))", "dropped"),
        ),
        graph(
            "Mails that came back",
            ("sum by (outcome) (increase(heliograph_bounce_mails_total[5m]))", "{{outcome}}"),
            ("sum by (provider) (heliograph_bounce_mails_waiting)", "waiting: {{provider}}"),
        ),
    ]


def delivery() -> list[Panel]:
    """Outcomes of accepted notifications, from ClickHouse; docs/analytics.md says what each column means."""
    return [
        figures(
            "Accepted in the time shown",
            'SELECT sum(accepted) AS accepted, sum(sent + delivered) AS "sent or delivered", sum(in_flight) AS "in flight",\n'
            '    sum(skipped + suppressed + expired + cancelled) AS "not wanted", sum(simulated) AS simulated,\n'
            '    sum(rejected + failed + undelivered + bounced + unknown + dead_lettered) AS "went wrong", sum(residual) AS residual\n'
            f"FROM v_accounting\nWHERE {_IN_RANGE}",
            (24, 4),
            red=("residual",),
            about="Notifications, by the hour of acceptance. Residual must be 0.",
        ),
        bars(
            "Accepted per hour, by outcome",
            'SELECT hour AS time, sum(delivered) AS delivered, sum(sent) AS sent, sum(in_flight) AS "in flight",\n'
            '    sum(skipped + suppressed + expired + cancelled) AS "not wanted", sum(simulated) AS simulated,\n'
            "    sum(rejected) AS rejected, sum(failed + dead_lettered) AS failed, sum(bounced + undelivered) AS bounced,\n"
            "    sum(unknown) AS unknown\n"
            f"FROM v_accounting\nWHERE {_IN_RANGE}\nGROUP BY hour\nORDER BY hour",
            (12, 9),
        ),
        bars(
            "Acceptance to sent, p95 by channel",
            "SELECT hour AS time, channel, max(sent_ms_p95) AS p95\n"
            f"FROM v_latency\nWHERE {_IN_RANGE} AND sent > 0\nGROUP BY hour, channel\nORDER BY hour, channel",
            (12, 9),
            unit="ms",
            stack=False,
            about="Of the slowest tenant and lane. With send_at, from then on.",
        ),
        table(
            "Funnel, from requests",
            "SELECT template_id, channel, sum(f.requests) AS requests, sum(f.messages) AS messages, sum(f.routed) AS routed,\n"
            "    sum(f.sent) AS sent, sum(f.delivered) AS delivered, sum(f.opened) AS opened, sum(f.clicked) AS clicked,\n"
            '    sum(f.failed) AS failed, sum(f.unknown) AS unknown, sum(f.not_wanted) AS "not wanted", sum(f.in_flight) AS "in flight"\n'
            f"FROM v_funnel AS f\nWHERE {_IN_RANGE}\nGROUP BY template_id, channel\n"
            "ORDER BY requests + messages DESC, channel\nLIMIT 100",
            (12, 9),
            about="Without a channel: the requests, and what became of those without a message. Empty: not reported.",
        ),
        table(
            "Latency",
            'SELECT channel, lane, sum(l.sent) AS sent, max(sent_ms_p50) AS "sent p50 ms", max(sent_ms_p95) AS "p95",\n'
            '    max(sent_ms_p99) AS "p99", sum(l.delivered) AS delivered, max(delivered_ms_p50) AS "delivered p50 ms",\n'
            '    max(delivered_ms_p95) AS "delivered p95"\n'
            f"FROM v_latency AS l\nWHERE {_IN_RANGE}\nGROUP BY channel, lane\nORDER BY channel, lane",
            (12, 9),
            about="The worst hour of the slowest tenant. Empty: no account of the channel reports it.",
        ),
        table(
            "Failures by reason",
            "SELECT channel, provider, state, reason, sum(f.failures) AS failures, max(f.last_at) AS last_at,\n"
            "    argMax(f.example_detail, f.last_at) AS example, argMax(f.example_notification_id, f.last_at) AS example_notification_id\n"
            f"FROM v_failures AS f\nWHERE {_IN_RANGE}\nGROUP BY channel, provider, state, reason\nORDER BY failures DESC\nLIMIT 100",
            (24, 9),
            about="What to do about each: docs/operations.md, Outcome of a message.",
        ),
        bars(
            "Failures per hour, by reason",
            "SELECT hour AS time, if(reason = '', state, reason) AS reason, sum(f.failures) AS failures\n"
            f"FROM v_failures AS f\nWHERE {_IN_RANGE}\nGROUP BY hour, f.state, f.reason\nORDER BY hour",
            (12, 9),
        ),
        table(
            "Providers",
            'SELECT provider, channel, sum(s.attempts) AS attempts, round(sum(s.sent) / greatest(1, sum(s.attempts)), 4) AS "sent share",\n'
            '    sum(s.retried) AS retried, sum(s.failed_over) AS "failed over", sum(s.refused) AS refused, sum(s.in_doubt) AS "in doubt",\n'
            "    sum(s.delivered) AS delivered, sum(s.undelivered) AS undelivered, sum(s.bounced) AS bounced,\n"
            '    max(s.latency_ms_p95) AS "p95 ms, worst hour"\n'
            "FROM v_provider_scorecard AS s\nWHERE hour >= toStartOfHour($__fromTime) AND hour <= $__toTime\n"
            "GROUP BY provider, channel\nORDER BY attempts DESC",
            (12, 9),
            about="All tenants, by the hour of the event.",
        ),
        bars(
            "Requests that came to nothing, per minute and account",
            "SELECT minute AS time, provider, sum(m.retried + m.failed_over + m.refused + m.unknown) AS failures\n"
            "FROM v_minutes AS m\nWHERE tenant IN (${tenant:sqlstring}) AND minute >= $__fromTime AND minute <= $__toTime AND provider != ''\n"
            "GROUP BY minute, provider\nORDER BY minute",
            (24, 8),
            about="By the time of the event, whenever it was accepted.",
        ),
        table(
            "Residual: what does not add up",
            "SELECT finding, tenant, state, due_at, last_event_at, notification_id\n"
            f"FROM v_residual\nWHERE {_IN_RANGE}\nORDER BY last_event_at DESC\nLIMIT 100",
            (12, 8),
            about="Empty when all is well.",
        ),
        table(
            "Dead letters",
            "SELECT occurred_at, stage, reason, topic, partition, offset, detail, notification_id\n"
            "FROM dead_letters\nWHERE occurred_at >= $__fromTime AND occurred_at <= $__toTime\nORDER BY occurred_at DESC\nLIMIT 100",
            (12, 8),
            about="Of all tenants: what cannot be read has none.",
        ),
        table(
            "Why: one notification, in words",
            f"SELECT channel, state, why, provider, attempts, accepted_at, last_event_at\nFROM v_why\nWHERE {_THIS_ONE}\nORDER BY channel",
            (24, 6),
            about="Put its id above, or click one in a table.",
        ),
        table(
            "Every event of it",
            "SELECT occurred_at, channel, state, reason, detail, attempt, provider, provider_message_id, possible_duplicate, latency_ms\n"
            f"FROM delivery_events\nWHERE {_THIS_ONE}\nORDER BY occurred_at, rank",
            (24, 8),
        ),
    ]


TENANT = {
    "name": "tenant",
    "label": "Tenant",
    "type": "query",
    "datasource": CLICKHOUSE,
    "refresh": 2,
    "multi": True,
    "includeAll": True,
    "current": {"text": ["All"], "value": ["$__all"]},
    "query": "SELECT DISTINCT tenant FROM v_accounting WHERE hour >= now() - INTERVAL 30 DAY ORDER BY tenant",
}
NOTIFICATION = {
    "name": "notification",
    "label": "Notification",
    "type": "textbox",
    "query": "",
    "current": {"text": "", "value": ""},
}


def dashboard(
    uid: str, title: str, panels: list[Panel], variables: list[dict[str, Any]], *, since: str, refresh: str
) -> dict[str, Any]:
    """Panels from left to right, a new line where one does not fit."""
    x = y = line = 0
    for number, panel in enumerate(panels, 1):
        w, h = panel["gridPos"]["w"], panel["gridPos"]["h"]
        if x + w > WIDTH:
            x, y, line = 0, y + line, 0
        panel["id"], panel["gridPos"] = number, {"x": x, "y": y, "w": w, "h": h}
        x, line = x + w, max(line, h)
    return {
        "uid": uid,
        "title": title,
        "tags": ["heliograph"],
        "schemaVersion": 41,
        "timezone": "browser",
        "refresh": refresh,
        "time": {"from": since, "to": "now"},
        "links": [{"type": "dashboards", "tags": ["heliograph"], "title": "Heliograph", "keepTime": True}],
        "templating": {"list": variables},
        "panels": panels,
    }


def dashboards() -> dict[str, dict[str, Any]]:
    """File name to dashboard."""
    return {
        "delivery.json": dashboard(
            "heliograph-delivery",
            "Heliograph: Delivery",
            delivery(),
            [TENANT, NOTIFICATION],
            since="now-24h",
            refresh="1m",
        ),
        "pipeline.json": dashboard(
            "heliograph-pipeline", "Heliograph: Pipeline", pipeline(), [], since="now-1h", refresh="15s"
        ),
    }


def text(content: dict[str, Any]) -> str:
    """As it is committed: short things on one line, so that a panel fits on a screen."""
    return _text(content, 0) + "\n"


def _text(value: Any, depth: int) -> str:
    flat = json.dumps(value, ensure_ascii=False)
    pad = "  " * (depth + 1)
    if not isinstance(value, dict | list) or len(flat) + len(pad) <= 118:
        return flat
    if isinstance(value, dict):
        inside = [f"{json.dumps(key)}: {_text(item, depth + 1)}" for key, item in value.items()]
    else:
        inside = [_text(item, depth + 1) for item in value]
    opening, closing = "{}" if isinstance(value, dict) else "[]"
    return f"{opening}\n{pad}" + f",\n{pad}".join(inside) + "\n" + "  " * depth + closing


if __name__ == "__main__":
    for name, content in dashboards().items():
        (FOLDER / name).write_text(text(content), "utf-8")
