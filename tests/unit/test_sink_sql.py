"""The numbered SQL against the closed lists it repeats, and the runner's reading of files."""

from __future__ import annotations

import re

import pytest

from schemas.events import states
from sinks.clickhouse import migrations, query_text, split_statements
from sinks.rows import DEAD_LETTERS_TABLE, EVENTS_TABLE, RECEIPTS_TABLE, REQUESTS_TABLE, Table
from vendors.apns import codes as apns_codes
from vendors.fcm import codes as fcm_codes
from vendors.sender import ErrorClass
from vendors.smtp import codes as smtp_codes
from vendors.twilio import codes as twilio_codes

SQL = {f"{m.number:04d}": "\n".join(m.statements) for m in migrations()}
TEXT = "\n".join(SQL.values())
IDEMPOTENT = re.compile(
    r"CREATE (TABLE IF NOT EXISTS|MATERIALIZED VIEW IF NOT EXISTS|OR REPLACE VIEW) "
    r"|ALTER TABLE \w+ (MODIFY COLUMN|MODIFY SETTING|ADD (COLUMN|INDEX|PROJECTION) IF NOT EXISTS|MATERIALIZE PROJECTION) "
)


def list_after(text: str, before: str) -> list[str]:
    """The words of the first [...] after `before`."""
    start = text.index("[", text.index(before))
    return re.findall(r"'([^']*)'", text[start : text.index("]", start)])


def test_best_first_is_the_lists() -> None:
    assert list_after(TEXT, "indexOf(\n                ['delivered'") == list(states().best_first)


def test_every_word_has_its_bit() -> None:
    words = list_after(TEXT, "toUInt32(1)")
    # `replayed` came later and no view asks for it: its bit is 0, as is that of every word outside the list.
    assert sorted(words) == sorted(states().all - {"replayed"})
    assert len(words) < 32
    assert list_after(TEXT, "bitTest(m.seen, indexOf(") == words
    bits = {"routed": 4, "sent": 15, "undelivered": 16, "delivered": 17, "opened": 21, "clicked": 22, "complained": 23,
            "unsubscribed": 24, "read": 25}  # fmt: skip
    assert {word: words.index(word) + 1 for word in bits} == bits
    for word in ("routed", "delivered", "opened", "clicked", "complained", "unsubscribed", "read"):
        assert f"bitTest(m.seen, {bits[word]})) AS {word}" in TEXT


def test_accounting_has_a_column_for_every_settled_state_in_their_order() -> None:
    view = TEXT[TEXT.index("VIEW v_accounting") :]
    columns = re.findall(r"n\.state = '(\w+)'\) AS (\w+)", view[: view.index("GROUP BY")])
    assert columns == [(state, state) for state in states().reasons]


def view(text: str, name: str) -> str:
    """The last definition of a view."""
    found = text[text.rindex(f"CREATE OR REPLACE VIEW {name} AS\n") :]
    return re.split(r"\n(?=CREATE |ALTER )", found)[0].split("AS\n", 1)[1].strip()


@pytest.mark.parametrize("name", ["accounting", "residual", "failures", "funnel", "latency", "slo"])
def test_hours_are_summed_up_by_the_definition_there_was(name: str) -> None:
    before = "\n".join(SQL[number] for number in sorted(SQL) if number < "0007")
    assert view(TEXT, f"v_{name}_live") == view(before, f"v_{name}")


def test_kept_sums_of_the_accounting_are_those_of_the_view() -> None:
    def counts(text: str) -> list[tuple[str, str]]:
        return re.findall(r"countIf\((n\.accepted(?: AND [^()]+?)?)\) AS (\w+)", text)

    assert counts(query_text("hour_sums")) == counts(view(TEXT, "v_accounting_live"))
    assert len(counts(query_text("hour_sums"))) == len(states().reasons) + 2


def test_settled_begins_at_rank_ten() -> None:
    ranks = states().rank
    assert min(ranks[state] for state in states().settled) == 10
    assert max(rank for state, rank in ranks.items() if state not in states().settled) < 10
    assert max(ranks.values()) < 127  # Int8, and packed into one byte


def test_every_state_and_reason_has_words() -> None:
    why = TEXT[TEXT.rindex("VIEW why_latest AS\n") :]
    assert list_after(why, "f.state,") == list(states().rank)
    reasons = list_after(why, "f.reason,\n")
    words = re.findall(r"'([^']*)'", why[why.index("['', ':") : why.index("concat(': ', f.reason)")])
    assert dict(zip(reasons, words, strict=True)) == {"": "", **{r: f": {text}" for r, text in states().words.items()}}


def test_throttled_are_the_codes_that_senders_call_so() -> None:
    view = TEXT[TEXT.rindex("VIEW v_provider_scorecard") :]
    quoted = re.findall(r"'([^']*)'", view[view.index("concat(") : view.index("NOT match")])
    pattern = re.compile("".join(quoted).replace("\\\\", "\\"))
    throttled = {
        code
        for codes in (twilio_codes.CODES, smtp_codes.CODES, apns_codes.CODES, fcm_codes.CODES)
        for code, reaction in codes.rows.items()
        if reaction.error is ErrorClass.THROTTLED
    }
    assert throttled >= {"429", "4.7", "QUOTA_EXCEEDED"}
    for code in throttled:
        # SMTP's details begin with the reply code, its table has the enhanced one alone
        assert pattern.match(f"451 {code}.1" if re.fullmatch(r"\d\.\d", code) else code), code
    assert not any(pattern.match(code) for code in ("450 4.2.1", "421", "4290", "UNAVAILABLE", "20003"))


def test_outcomes_that_exclude_each_other_are_states() -> None:
    outcomes = re.search(r"e\.attempt > 0 AND e\.state IN\s*\(([^)]*)\)", TEXT)
    assert outcomes is not None
    assert set(re.findall(r"'(\w+)'", outcomes[1])) <= states().settled


@pytest.mark.parametrize(
    "table", [REQUESTS_TABLE, EVENTS_TABLE, RECEIPTS_TABLE, DEAD_LETTERS_TABLE], ids=lambda table: table.name
)
def test_columns_of_a_row_have_the_types_of_the_table(table: Table) -> None:
    ddl = TEXT[TEXT.index(f"EXISTS {table.name}\n") :]
    ddl = ddl[: ddl.index("ENGINE")]
    for name, kind in table.columns.items():
        assert re.search(rf"^\s+{name} {re.escape(kind)}[ ,]", ddl, re.MULTILINE), name


def test_statements_end_at_a_line_and_comments_are_dropped() -> None:
    text = "-- a; b\nSELECT ';' AS x;\n\n  -- c\nSELECT 2\n"
    assert split_statements(text) == ("SELECT ';' AS x", "SELECT 2")


def test_migrations_are_idempotent_statements() -> None:
    for migration in migrations():
        for statement in migration.statements:
            assert IDEMPOTENT.match(statement), statement


@pytest.mark.parametrize(
    "name",
    [
        "report",
        "accounting",
        "notification",
        "events",
        "why",
        "why_not_sent",
        "why_user",
        "audit",
        "audit_findings",
        "explain_request",
        "explain_generations",
        "explain_receipts",
        "explain_dead_letters",
        "hours_changed",
        "hour_sums",
    ],
)
def test_query_is_packaged_and_names_its_parameters(name: str) -> None:
    text = query_text(name)
    head = re.split(r"^(?:SELECT|INSERT)", text, flags=re.MULTILINE)[0]
    for parameter in re.findall(r"\{(\w+):", text):
        assert re.search(rf"\b{parameter}\b", head)
