"""The alert rules: each fires when it should and not before, says what to do, and asks only for what is exported."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.contract.test_dashboards import PROMQL
from tests.support import promql
from tests.support.promql import exported, matched_values, metrics_of, unknown_labels, unknown_metrics, unset_metrics
from tests.support.toolchains import promtool
from vendors.sender import Rejected, Retry, Sent

ROOT = Path(__file__).resolve().parents[2]
PROMETHEUS = ROOT / "deploy" / "prometheus"
RULES: dict[str, dict[str, Any]] = {
    rule["alert"]: rule
    for group in yaml.safe_load((PROMETHEUS / "rules.yml").read_text("utf-8"))["groups"]
    for rule in group["rules"]
}


# ---------------------------------------------------------------- what needs no Prometheus


def test_every_alert_says_how_bad_it_is_what_it_is_and_what_to_do() -> None:
    for name, rule in RULES.items():
        assert name.startswith("Heliograph"), name
        assert rule["labels"]["severity"] in ("critical", "warning"), name
        assert rule["annotations"].keys() == {"summary", "runbook"}, name
        assert rule["annotations"]["runbook"] == f"docs/operations.md#{name.lower()}", name


def test_every_alert_has_its_section_and_every_section_its_alert() -> None:
    text = (ROOT / "docs" / "operations.md").read_text("utf-8")
    section = text.split("## Dashboards and alerts\n", 1)[1].split("\n## ", 1)[0]
    described = dict(re.findall(r"^### (Heliograph\w+)\n\n(.+)", section, re.MULTILINE))
    assert list(described) == list(RULES), "in the order of the rules"
    assert all(len(words) > 80 for words in described.values())


@pytest.mark.parametrize("name", RULES)
def test_what_a_rule_asks_for_is_exported(name: str) -> None:
    expression = RULES[name]["expr"]
    assert metrics_of(expression)
    assert unknown_metrics(expression) == []
    assert unknown_labels(expression) == []
    assert unset_metrics(expression) == []


def test_values_that_rules_and_panels_select_by_are_ones_that_the_code_says() -> None:
    code = "\n".join(path.read_text("utf-8") for folder in promql.CODE for path in (ROOT / folder).rglob("*.py"))
    outcomes = {kind.__name__.lower() for kind in (Sent, Retry, Rejected)}
    for expression in (*(rule["expr"] for rule in RULES.values()), *(expression for _, expression in PROMQL)):
        for label, value in matched_values(expression):
            if label not in ("job", "alertstate"):
                assert value in outcomes or f'"{value}"' in code, (label, value)


def test_prometheus_reads_the_rules() -> None:
    config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text("utf-8"))
    assert [PROMETHEUS / name for name in config["rule_files"]] == [PROMETHEUS / "rules.yml"]
    jobs = {job["job_name"] for job in config["scrape_configs"]}
    pattern = dict(matched_values(RULES["HeliographRoleDown"]["expr"]))["job"]
    assert all(re.fullmatch(pattern, job) for job in jobs)


# ---------------------------------------------------------------- cases: series → what fires, and when


@dataclass(frozen=True)
class Case:
    """Series by the minute in Prometheus's notation, and what of one alert fires at a time."""

    alert: str
    says: str
    series: dict[str, str]
    at: str
    fires: dict[str, str] | None = None
    summary: str = ""


RESULTS = 'heliograph_sender_results_total{channel="sms",provider="a",outcome="%s"}'
BREAKER = 'heliograph_provider_breaker_state{channel="sms",provider="a"}'
DOWN = 'heliograph_provider_down_seconds{channel="sms",provider="a"}'
LAG = 'heliograph_consumer_lag_records{group="g",topic="t"%s}'
OUTBOX = 'heliograph_relay_outbox_pending{instance="%s"}'
ASIDE = 'heliograph_relay_outbox_set_aside{instance="%s"}'
FEEDBACK = 'heliograph_feedback_running{instance="%s"}'
SMS_A = {"channel": "sms", "provider": "a"}
CASES = [
    Case(
        "HeliographRoleDown",
        "one of two",
        {
            'up{job="heliograph",instance="sink:9464"}': "1 1 0x9",
            'up{job="heliograph-api",instance="api:8080"}': "1x12",
        },
        "5m",
        {"job": "heliograph", "instance": "sink:9464"},
        "sink:9464 does not answer",
    ),
    Case("HeliographRoleDown", "a restart", {'up{job="heliograph",instance="sink:9464"}': "1 1 0 1x9"}, "3m"),
    Case("HeliographRoleDown", "somebody else's", {'up{job="node",instance="n"}': "0x9"}, "5m"),
    Case(
        "HeliographViewStale",
        "one process of two",
        {
            'heliograph_view_age_seconds{job="router",topic="t",instance="1"}': "0+60x9",
            'heliograph_view_age_seconds{job="router",topic="t",instance="2"}': "5x9",
        },
        "4m",
        {"job": "router", "topic": "t"},
        "router decides by a t of 4m 0s ago",
    ),
    Case(
        "HeliographViewStale",
        "a quiet topic",
        {'heliograph_view_age_seconds{job="router",topic="t"}': "0 15 30 0 30 15 30"},
        "6m",
    ),
    Case(
        "HeliographConsumerStuck",
        "two processes measure",
        {
            'heliograph_consumer_stuck_seconds{group="g",instance="1"}': "0+60x9",
            'heliograph_consumer_stuck_seconds{group="g",instance="2"}': "0x9",
        },
        "4m",
        {"group": "g"},
        "g has work and has committed nothing for 4m 0s",
    ),
    Case(
        "HeliographConsumerStuck",
        "a slow batch",
        {'heliograph_consumer_stuck_seconds{group="g"}': "0 30 59 0 30 59 0"},
        "6m",
    ),
    Case(
        "HeliographConsumerFallingBehind",
        "longer and longer",
        {LAG % "": "0+100x80"},
        "75m",
        {"group": "g", "topic": "t"},
        "g is 7500 records behind on t and gets slower than what comes",
    ),
    Case("HeliographConsumerFallingBehind", "a bulk that is worked off", {LAG % "": "1000000-10000x80"}, "75m"),
    Case("HeliographConsumerFallingBehind", "a few", {LAG % "": "0+5x80"}, "75m"),
    Case(
        "HeliographIngestUnavailable",
        "no broker",
        {'heliograph_requests_refused_total{code="kafka_unavailable"}': "0+60x20"},
        "15m",
        {},
        "300 requests in five minutes were refused for want of Kafka or PostgreSQL",
    ),
    Case(
        "HeliographIngestUnavailable",
        "callers' mistakes",
        {'heliograph_requests_refused_total{code="invalid_request"}': "0+60x20"},
        "15m",
    ),
    Case(
        "HeliographFailureRate",
        "a fifth",
        {RESULTS % "sent": "0+80x30", RESULTS % "rejected": "0+15x30", RESULTS % "in_doubt": "0+5x30"},
        "20m",
        SMS_A,
        "20% of what goes to a (sms) fails",
    ),
    Case(
        "HeliographFailureRate", "too few to tell", {RESULTS % "sent": "0+1x30", RESULTS % "rejected": "0+5x30"}, "20m"
    ),
    Case(
        "HeliographFailureRate", "one in twenty", {RESULTS % "sent": "0+95x30", RESULTS % "rejected": "0+5x30"}, "20m"
    ),
    Case(
        "HeliographRetryRate",
        "most",
        {RESULTS % "sent": "0+20x30", RESULTS % "retry": "0+80x30"},
        "20m",
        SMS_A,
        "80% of the requests to a (sms) end in a retry",
    ),
    Case("HeliographRetryRate", "some", {RESULTS % "sent": "0+80x30", RESULTS % "retry": "0+20x30"}, "20m"),
    Case(
        "HeliographBreakerOpen",
        "with a probe now and then",
        {BREAKER: "0 2 2 1 2 2 1 2 2 1 2", DOWN: "0 0+60x9"},
        "8m",
        SMS_A,
        "a (sms) has not worked for 7m 0s: its messages wait or fail over",
    ),
    Case(
        "HeliographBreakerOpen",
        "one process of two",
        {
            'heliograph_provider_breaker_state{channel="sms",provider="a",instance="1"}': "0x9",
            'heliograph_provider_breaker_state{channel="sms",provider="a",instance="2"}': "0 2 2 1 2 2 1 2 2 1",
            'heliograph_provider_down_seconds{channel="sms",provider="a",instance="1"}': "0x9",
            'heliograph_provider_down_seconds{channel="sms",provider="a",instance="2"}': "0 0+60x9",
        },
        "8m",
        SMS_A,
        "a (sms) has not worked for 7m 0s: its messages wait or fail over",
    ),
    Case("HeliographBreakerOpen", "closed after a moment", {BREAKER: "0 2 1 0x9", DOWN: "0 60 120 0x9"}, "8m"),
    Case("HeliographBreakerOpen", "half-open, and nobody asks", {BREAKER: "2 1x14", DOWN: "0+60x14"}, "14m"),
    Case(
        "HeliographRequestGuard",
        "its first count",
        {'heliograph_sender_request_guard_total{channel="sms"}': "_x9 1x200"},
        "30m",
        {"channel": "sms"},
        "a message asked sms for more requests than 1 + max_retries and was stopped",
    ),
    Case(
        "HeliographRequestGuard",
        "hours ago",
        {'heliograph_sender_request_guard_total{channel="sms"}': "_x9 1x200"},
        "150m",
    ),
    Case(
        "HeliographResidual",
        "orphans",
        {
            'heliograph_accounting_residual{finding="orphan"}': "0 3x30",
            'heliograph_accounting_residual{finding="overdue"}': "0x30",
        },
        "15m",
        {"finding": "orphan"},
        "3 notifications do not add up (orphan)",
    ),
    Case(
        "HeliographResidual",
        "while the sink catches up",
        {'heliograph_accounting_residual{finding="orphan"}': "0 3x5 0x30"},
        "15m",
    ),
    Case(
        "HeliographResidualUnknown",
        "nobody measures",
        {'up{job="x"}': "1x60"},
        "45m",
        {},
        "no sink has measured the residual for half an hour",
    ),
    Case("HeliographResidualUnknown", "it is 0", {'heliograph_accounting_residual{finding="orphan"}': "0x60"}, "45m"),
    Case(
        "HeliographDeadLetters",
        "the first",
        {'heliograph_dead_letters_total{stage="router",reason="undecodable"}': "_x9 1x60"},
        "12m",
        {"stage": "router", "reason": "undecodable"},
        "router gave records up (undecodable)",
    ),
    Case(
        "HeliographDeadLetters",
        "an hour ago",
        {'heliograph_dead_letters_total{stage="router",reason="undecodable"}': "_x9 1x80"},
        "75m",
    ),
    Case(
        "HeliographDeadLetterBrake",
        "holds",
        {'heliograph_dead_letter_brake{stage="sink"}': "0 1x9"},
        "2m",
        {"stage": "sink"},
        "sink is held: a flood of records that cannot be used",
    ),
    Case("HeliographDeadLetterBrake", "free", {'heliograph_dead_letter_brake{stage="sink"}': "0x9"}, "5m"),
    Case(
        "HeliographMassDropBrake",
        "holds",
        {'heliograph_dead_devices_brake{provider="a"}': "0 1x9"},
        "2m",
        {"provider": "a"},
        "a calls too many recipients invalid: none is dropped or suppressed",
    ),
    Case("HeliographMassDropBrake", "free again", {'heliograph_dead_devices_brake{provider="a"}': "1 0x9"}, "5m"),
    Case(
        "HeliographOutboxGrows",
        "one works, one stands by",
        {OUTBOX % "1": "0+50x30", OUTBOX % "2": "0x30"},
        "20m",
        {},
        "1000 changes of reference data wait and do not get fewer: they reach nobody",
    ),
    Case("HeliographOutboxGrows", "an import that is worked off", {OUTBOX % "1": "9000-100x60"}, "40m"),
    Case(
        "HeliographOutboxSetAside",
        "one works, one stands by",
        {ASIDE % "1": "0 3x9", ASIDE % "2": "0x9"},
        "5m",
        {},
        "3 changes of reference data are larger than their topic takes: they reach nobody",
    ),
    Case("HeliographOutboxSetAside", "a newer row came", {ASIDE % "1": "0 1 0x9"}, "5m"),
    Case(
        "HeliographFeedbackStopped",
        "PostgreSQL is away",
        {FEEDBACK % "relay": "1 0x20", FEEDBACK % "sink": "0x20"},
        "15m",
        {},
        "no relay reads what providers call invalid: dead devices and bounced addresses are sent to",
    ),
    Case(
        "HeliographFeedbackStopped",
        "another relay reads",
        {FEEDBACK % "relay": "1 0x20", FEEDBACK % "other": "1x20"},
        "15m",
    ),
    Case(
        "HeliographTimersLate",
        "most",
        {
            'heliograph_timer_lateness_seconds_bucket{le="1"}': "0x40",
            'heliograph_timer_lateness_seconds_bucket{le="10"}': "0+50x40",
            'heliograph_timer_lateness_seconds_bucket{le="+Inf"}': "0+50x40",
        },
        "30m",
        {},
        "one timer in a hundred fires more than 9.91s late",
    ),
    Case(
        "HeliographTimersLate",
        "in time",
        {
            'heliograph_timer_lateness_seconds_bucket{le="1"}': "0+50x40",
            'heliograph_timer_lateness_seconds_bucket{le="+Inf"}': "0+50x40",
        },
        "30m",
    ),
    Case(
        "HeliographBouncesUnread",
        "no login",
        {'heliograph_bounce_mailbox_down{provider="mail"}': "1x20"},
        "15m",
        {"provider": "mail"},
        "the mailbox of bounces of mail is not read: dead addresses are sent to",
    ),
    Case(
        "HeliographBouncesUnread",
        "once",
        {'heliograph_bounce_mailbox_down{provider="mail"}': "0 1 0x18"},
        "15m",
    ),
    Case(
        "HeliographBouncesForged",
        "many",
        {'heliograph_bounce_mails_total{provider="mail",outcome="forged"}': "0+10x60"},
        "1h",
        {"provider": "mail"},
        "600 mails in an hour bring back a word of mail that we did not make",
    ),
    Case(
        "HeliographBouncesForged",
        "one",
        {'heliograph_bounce_mails_total{provider="mail",outcome="forged"}': "0 1x60"},
        "1h",
    ),
    Case(
        "HeliographCallbacksForged",
        "many",
        {'heliograph_callbacks_total{vendor="twilio",outcome="forged"}': "0+10x20"},
        "15m",
        {"vendor": "twilio"},
        "100 callbacks in ten minutes were not signed by twilio",
    ),
    Case(
        "HeliographCallbacksForged",
        "one",
        {'heliograph_callbacks_total{vendor="twilio",outcome="forged"}': "0 1x20"},
        "15m",
    ),
    Case(
        "HeliographLiveLate",
        "most",
        {
            'heliograph_live_delay_seconds_bucket{le="1"}': "0x40",
            'heliograph_live_delay_seconds_bucket{le="10"}': "0+50x40",
            'heliograph_live_delay_seconds_bucket{le="+Inf"}': "0+50x40",
        },
        "30m",
        {},
        "one live fact in a hundred reaches its watchers more than 9.91s late",
    ),
    Case(
        "HeliographLiveLate",
        "in time",
        {
            'heliograph_live_delay_seconds_bucket{le="1"}': "0+50x40",
            'heliograph_live_delay_seconds_bucket{le="+Inf"}': "0+50x40",
        },
        "30m",
    ),
    Case(
        "HeliographHooksFailing",
        "one for long",
        {'heliograph_hook_endpoints{condition="failing",instance="a"}': "1x90"},
        "80m",
        {},
        "1 endpoints of customers have not answered for an hour: they keep their positions",
    ),
    Case(
        "HeliographHooksFailing",
        "one for a moment",
        {'heliograph_hook_endpoints{condition="failing",instance="a"}': "1x20 0x70"},
        "80m",
    ),
    Case(
        "HeliographHooksBehind",
        "slower than its facts",
        {'heliograph_hook_lag_records{condition="live",instance="a"}': "0+1000x40"},
        "35m",
        {},
        "an endpoint that works is 35000 records behind and does not catch up",
    ),
    Case(
        "HeliographHooksBehind",
        "catching up",
        {'heliograph_hook_lag_records{condition="live",instance="a"}': "90000-1000x40"},
        "35m",
    ),
    Case(
        "HeliographHooksDropped",
        "some",
        {'heliograph_hook_dropped_total{instance="a"}': "0+60x90"},
        "80m",
        {},
        "3.6k offsets were dropped by the topic before an endpoint was told of them",
    ),
    Case("HeliographHooksDropped", "none", {'heliograph_hook_dropped_total{instance="a"}': "7x90"}, "80m"),
]


def test_every_alert_has_a_case_that_fires_and_one_that_does_not() -> None:
    assert {case.alert for case in CASES if case.fires is not None} == set(RULES)
    assert {case.alert for case in CASES if case.fires is None} == set(RULES)


def as_promtool_reads(cases: list[Case]) -> dict[str, Any]:
    tests = []
    for case in cases:
        rule = RULES[case.alert]
        expected = {
            "exp_labels": {"severity": rule["labels"]["severity"], **(case.fires or {})},
            "exp_annotations": {"summary": case.summary, "runbook": rule["annotations"]["runbook"]},
        }
        tests.append(
            {
                "name": f"{case.alert}: {case.says}",
                "interval": "1m",
                "input_series": [{"series": name, "values": values} for name, values in case.series.items()],
                "alert_rule_test": [
                    {
                        "eval_time": case.at,
                        "alertname": case.alert,
                        "exp_alerts": [] if case.fires is None else [expected],
                    }
                ],
            }
        )
    return {"rule_files": [str(PROMETHEUS / "rules.yml")], "evaluation_interval": "1m", "tests": tests}


# ---------------------------------------------------------------- Prometheus itself


@pytest.fixture(scope="module")
def program() -> Path:
    """Skips, with the reason, where promtool is not to be had."""
    return promtool()


def run(program: Path, *arguments: str | Path) -> tuple[int, str]:
    done = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stdout + done.stderr


def unit_test(program: Path, folder: Path, content: dict[str, Any]) -> tuple[int, str]:
    path = folder / "rules.test.yml"
    path.write_text(json.dumps(content), "utf-8")  # which is YAML
    return run(program, "test", "rules", path)


def test_prometheus_takes_the_configuration(program: Path) -> None:
    status, said = run(program, "check", "config", PROMETHEUS / "prometheus.yml")
    assert status == 0 and f"{len(RULES)} rules found" in said, said


def test_every_case_fires_or_does_not(program: Path, tmp_path: Path) -> None:
    status, said = unit_test(program, tmp_path, as_promtool_reads(CASES))
    assert status == 0, said


def test_a_case_that_is_wrong_is_noticed(program: Path, tmp_path: Path) -> None:
    quiet = next(case for case in CASES if case.fires is None)
    for wrong in (replace(CASES[0], fires=None), replace(CASES[0], summary=""), replace(quiet, fires={})):
        status, said = unit_test(program, tmp_path, as_promtool_reads([wrong]))
        assert status != 0 and wrong.alert in said


def series() -> Iterator[dict[str, str]]:
    """An hour of every series, with each value that a query selects by."""
    values: dict[str, set[str]] = {}
    for _, expression in PROMQL:
        for label, value in matched_values(expression):
            values.setdefault(label, set()).add(value)
    values |= {"job": {"heliograph"}, "le": {"1", "5", "+Inf"}}
    for name, (_, labels) in exported().items():
        choices = [[f'{label}="{value}"' for value in sorted(values.get(label, {"x"}))] for label in sorted(labels)]
        for chosen in itertools.product(*choices):
            yield {"series": f"{name}{{{','.join(chosen)}}}", "values": "0x240" if name == "up" else "0+7x240"}


def test_every_panel_of_prometheus_shows_something(program: Path, tmp_path: Path) -> None:
    panels = [
        {"expr": f"count({expression}) > bool 0", "eval_time": "30m", "exp_samples": [{"labels": "{}", "value": 1}]}
        for _, expression in PROMQL
    ]
    # As often as Prometheus asks: a panel over a minute needs two samples within it.
    interval = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text("utf-8"))["global"]["scrape_interval"]
    test = {"interval": interval, "input_series": list(series()), "promql_expr_test": panels}
    status, said = unit_test(program, tmp_path, {"tests": [test]})
    assert status == 0, said
    empty = {**panels[0], "expr": "count(heliograph_nothing_total) > bool 0"}
    status, said = unit_test(program, tmp_path, {"tests": [{**test, "promql_expr_test": [empty]}]})
    assert status != 0 and "heliograph_nothing_total" in said
