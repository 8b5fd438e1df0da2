"""The SQL of tables, views and queries against the closed lists it repeats, and the reading of its files."""

from __future__ import annotations

import hashlib
import re
from importlib.resources import files
from pathlib import Path

import pytest

from replay.where import LETTER_STATES
from schemas.events import states
from sinks import columns_page
from sinks.clickhouse import query_text
from sinks.rows import (
    DEAD_LETTERS_TABLE,
    EVENTS_TABLE,
    PREFERENCES_TABLE,
    RECEIPTS_TABLE,
    REQUESTS_TABLE,
    STORED_AT,
    Table,
)
from sinks.schema_files import (
    MadeView,
    SqlView,
    checksum_of,
    differences,
    folder_checksum,
    migrations,
    read_views,
    split_statements,
    sql_views,
)
from tests.support.earlier_store import RELEASED

SQL = {f"{m.number:04d}": "\n".join(m.statements) for m in migrations()}
TEXT = "\n".join(SQL.values())
VIEWS = {view.name: view.statement for view in sql_views()}
QUERIES = {
    path.name.removesuffix(".sql"): "\n".join(split_statements(path.read_text("utf-8")))
    for path in files("sinks").joinpath("queries").iterdir()
    if path.name.endswith(".sql")
}
OTHER_WORDS = {
    "millisecond",
    "account",
    "router",
    "message",
    "recipient",
    "transient",
    "default",
    *LETTER_STATES,
    "redrive",
    "dismiss",
    "down",
    "on_its_way",
    "sent_before",
    "full_sorting_merge",
}
"""Words in quotes that are no states and no reasons: a unit of time, classes of errors, states of dead letters, commands, outcomes of replays, the category of who names none, a join."""
IDEMPOTENT = re.compile(
    r"CREATE (TABLE IF NOT EXISTS|MATERIALIZED VIEW IF NOT EXISTS|OR REPLACE VIEW|OR REPLACE TABLE hour_sums)\s"
    r"|ALTER TABLE \w+\s+(MODIFY (COLUMN|SETTING|QUERY)|ADD (COLUMN|INDEX|PROJECTION) IF NOT EXISTS"
    r"|MATERIALIZE (INDEX|PROJECTION))\s"
    # Only into tables of aggregates that a second time does not change.
    r"|INSERT INTO (message_states|notification_states|account_states) \("
    r"|INSERT INTO message_states\n"
)


def list_after(text: str, before: str) -> list[str]:
    """The words of the first [...] after `before`."""
    start = text.index("[", text.index(before))
    return re.findall(r"'([^']*)'", text[start : text.index("]", start)])


def test_best_first_is_the_lists() -> None:
    assert list_after(VIEWS["notification_latest"], "indexOf(\n                ['delivered'") == list(
        states().best_first
    )


def test_every_word_has_its_bit() -> None:
    lists = [list_after(text, "toUInt32(1)") for text in SQL.values() if "toUInt32(1)" in text]
    words = lists[0]
    assert all(each == words for each in lists)
    # `replayed` came later and no view asks for it: its bit is 0, as is that of every word outside the list.
    assert sorted(words) == sorted(states().all - {"replayed"})
    assert len(words) < 32
    assert list_after(VIEWS["message_state"], "bitTest(m.seen, indexOf(") == words
    bits = {
        "routed": 4,
        "sent": 15,
        "undelivered": 16,
        "delivered": 17,
        "opened": 21,
        "clicked": 22,
        "complained": 23,
        "unsubscribed": 24,
        "read": 25,
    }
    assert {word: words.index(word) + 1 for word in bits} == bits
    for word in ("routed", "delivered", "opened", "clicked", "complained", "unsubscribed", "read"):
        assert f"bitTest(m.seen, {bits[word]})) AS {word}" in VIEWS["v_funnel_counts"]


def test_accounting_has_a_column_for_every_settled_state_in_their_order() -> None:
    view = VIEWS["v_accounting_live"]
    columns = re.findall(r"n\.state = '(\w+)'\) AS (\w+)", view[: view.index("GROUP BY")])
    assert columns == [(state, state) for state in states().reasons]


def view(text: str, name: str) -> str:
    """The last definition of a view in migrations."""
    found = text[text.rindex(f"CREATE OR REPLACE VIEW {name} AS\n") :]
    return re.split(r"\n(?=CREATE |ALTER )", found)[0].split("AS\n", 1)[1].strip()


@pytest.mark.parametrize("name", ["accounting", "failures"])
def test_hours_are_summed_up_by_the_definition_there_was(name: str) -> None:
    before = "\n".join(SQL[number] for number in sorted(SQL) if number < "0007")
    assert VIEWS[f"v_{name}_live"].split("AS\n", 1)[1] == view(before, f"v_{name}")


def test_kept_sums_of_the_accounting_are_those_of_the_view() -> None:
    def counts(text: str) -> list[tuple[str, str]]:
        return re.findall(r"countIf\((n\.accepted(?: AND [^()]+?)?)\) AS (\w+)", text)

    assert counts(query_text("hour_sums", "i")) == counts(VIEWS["v_accounting_live"])
    assert len(counts(query_text("hour_sums", "i"))) == len(states().reasons) + 2


def test_letters_have_the_states_that_a_condition_may_name() -> None:
    view = VIEWS["dead_letter_states"]
    branches = view[view.index("multiIf(") : view.index("AS letter_state")]
    assert set(re.findall(r"'(\w+)'(?:,\n|\) $)", branches)) == LETTER_STATES


def test_settled_begins_at_rank_ten() -> None:
    ranks = states().rank
    assert min(ranks[state] for state in states().settled) == 10
    assert max(rank for state, rank in ranks.items() if state not in states().settled) < 10
    assert max(ranks.values()) < 127  # Int8, and packed into one byte


def test_every_state_and_reason_has_words() -> None:
    why = VIEWS["why_latest"]
    assert list_after(why, "f.state,\n") == list(states().rank)
    reasons = list_after(why, "f.reason,\n")
    words = re.findall(r"'([^']*)'", why[why.index("['', ':") : why.index("concat(': ', f.reason)")])
    assert dict(zip(reasons, words, strict=True)) == {"": "", **{r: f": {text}" for r, text in states().words.items()}}


# ---------------------------------------------------------------- words of schemas/reasons.yaml


def wrong_words(text: str) -> list[str]:
    """Words in quotes that are no states and reasons, or stand where only the other are allowed."""
    closed = states()
    reasons = set(closed.words)
    wrong = set(re.findall(r"'([a-z][a-z_]*)'", text)) - closed.all - reasons - OTHER_WORDS
    for column, allowed in (("state", closed.all), ("reason", reasons)):
        for words in re.findall(rf"\b{column} (?:=|!=|IN|NOT IN)\s+(\([^()]*\)|'[^']*')", text):
            wrong.update(set(re.findall(r"'([^']*)'", words)) - allowed)
    return sorted(wrong)


@pytest.mark.parametrize("name", [*VIEWS, *QUERIES])
def test_states_and_reasons_in_sql_are_those_of_the_lists(name: str) -> None:
    assert wrong_words({**VIEWS, **QUERIES}[name]) == []


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("WHERE m.state = 'send'", ["send"]),
        ("WHERE m.state NOT IN ('sent', 'no_address')", ["no_address"]),
        ("WHERE m.reason = 'sent'", ["sent"]),
        ("countIf(e.state IN ('sent', 'retried'))", ["retried"]),
        ("transform(f.state, ['sent', 'skiped'], ['a b', 'c d'])", ["skiped"]),
        ("WHERE m.state = 'sent' AND m.reason = 'no_address'", []),
    ],
)
def test_word_outside_the_lists_is_noticed(text: str, wrong: list[str]) -> None:
    assert wrong_words(text) == wrong


def states_before(text: str, after: str) -> set[str]:
    """The states of the `IN (...)` that stands right before `after`."""
    found = re.search(rf"IN \(([^()]*)\){re.escape(after)}", text)
    assert found is not None, after
    return set(re.findall(r"'(\w+)'", found[1]))


def test_every_settled_state_is_on_one_side_of_the_funnel() -> None:
    failed = states_before(VIEWS["v_funnel_counts"], ") AS failed")
    not_wanted = states_before(VIEWS["v_funnel_counts"], ") AS not_wanted")
    assert not failed & not_wanted
    # the rest went out, may have gone out, or was never meant to
    assert failed | not_wanted | {"sent", "delivered", "simulated", "unknown"} == states().settled
    assert states_before(VIEWS["v_failures_live"], "\n    UNION ALL") == failed | {"unknown"}
    assert states_before(VIEWS["v_slo_counts"], "\n)") == not_wanted - {"expired"} | {"simulated"}


def test_not_sent_is_every_settled_state_but_the_good_ones() -> None:
    flow = states().rank.keys() - states().settled
    assert states_before(QUERIES["why_not_sent"], "\nGROUP BY") == flow | {"sent", "delivered"}


def test_notification_without_messages_fails_by_what_ends_it_as_a_whole() -> None:
    whole = states_before(VIEWS["v_failures_live"], "\n)")
    assert whole <= states_before(VIEWS["v_failures_live"], "\n    UNION ALL")


def test_outcomes_that_exclude_each_other_are_states() -> None:
    outcomes = re.search(r"e\.attempt > 0 AND e\.state IN\s*\(([^)]*)\)", TEXT)
    assert outcomes is not None
    assert set(re.findall(r"'(\w+)'", outcomes[1])) <= states().settled


@pytest.mark.parametrize(
    "table",
    [REQUESTS_TABLE, EVENTS_TABLE, RECEIPTS_TABLE, PREFERENCES_TABLE, DEAD_LETTERS_TABLE],
    ids=lambda table: table.name,
)
def test_columns_of_a_row_have_the_types_of_the_table(table: Table) -> None:
    ddl = TEXT[TEXT.index(f"EXISTS {table.name}\n") :]
    ddl = ddl[: ddl.index("ENGINE")]
    added = "".join(re.findall(rf"ALTER TABLE {table.name}\s+(ADD COLUMN[^;]*?)(?=ALTER|CREATE|INSERT|\Z)", TEXT))
    for name, kind in {**table.columns, **STORED_AT}.items():
        column = rf"(?:^|EXISTS)\s+{name} {re.escape(kind)}(?:[ ,]|$)"
        assert re.search(column, ddl, re.MULTILINE) or re.search(column, added, re.MULTILINE), name


def test_statements_end_at_a_line_and_comments_are_dropped() -> None:
    text = "-- a; b\nSELECT ';' AS x;\n\n  -- c\nSELECT 2\n"
    assert split_statements(text) == ("SELECT ';' AS x", "SELECT 2")


# ---------------------------------------------------------------- files of views


def files_of(**queries: str) -> dict[str, str]:
    return {f"{name}.sql": f"-- says\nCREATE OR REPLACE VIEW {name} AS\n{query};\n" for name, query in queries.items()}


def test_views_come_after_those_they_read() -> None:
    order = [view.name for view in sql_views()]
    for view in sql_views():
        assert all(order.index(other) < order.index(view.name) for other in view.reads)
    reads = {view.name: view.reads for view in sql_views()}
    assert reads["v_why"] == {"why_latest"}
    assert reads["v_accounting"] == {"v_accounting_live", "hours_changed"}


def test_views_read_tables_and_views_that_there_are() -> None:
    there = set(re.findall(r"CREATE TABLE IF NOT EXISTS (\w+)", TEXT)) | VIEWS.keys()
    for name, text in VIEWS.items():
        assert set(re.findall(r"\b(?:FROM|(?<!ARRAY )JOIN)\s+(\w+)", text)) <= there, name


def test_checksum_follows_the_file_what_it_reads_and_the_tables() -> None:
    def checksums(tables: str, **queries: str) -> dict[str, str]:
        return {view.name: view.checksum for view in read_views(files_of(**queries), tables)}

    before = checksums("t", a="SELECT 1 AS x", b="SELECT x FROM a", c="SELECT 2")
    changed = checksums("t", a="SELECT 3 AS x", b="SELECT x FROM a", c="SELECT 2")
    assert {name for name in before if before[name] != changed[name]} == {"a", "b"}
    assert not set(before.values()) & set(checksums("u", a="SELECT 1 AS x", b="SELECT x FROM a", c="SELECT 2").values())


@pytest.mark.parametrize(
    ("texts", "says"),
    [
        ({"a.sql": "CREATE OR REPLACE VIEW b AS SELECT 1;\n"}, "a.sql is not one CREATE OR REPLACE VIEW a"),
        ({"a.sql": "CREATE VIEW a AS SELECT 1;\n"}, "a.sql is not one"),
        ({"a.sql": "CREATE OR REPLACE VIEW a AS SELECT 1;\nDROP TABLE x;\n"}, "a.sql is not one"),
        ({"a.sql": "-- nothing\n"}, "a.sql is not one"),
        (files_of(a="SELECT * FROM b", b="SELECT * FROM a"), "in a circle: "),
    ],
    ids=["another name", "not repeatable", "two statements", "empty", "circle"],
)
def test_file_that_is_not_one_view_is_refused(texts: dict[str, str], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        read_views(texts, "")


def made_of(*views: SqlView) -> dict[str, MadeView]:
    return {view.name: MadeView(view.checksum, f"shown {view.name}") for view in views}


def test_each_difference_of_the_table() -> None:
    a, b = read_views(files_of(a="SELECT 1 AS x", b="SELECT x FROM a"), "t")
    made, shown = made_of(a, b), {"a": "shown a", "b": "shown b"}
    assert differences((a, b), made, shown) == {}
    assert differences((a, b), made, {**shown, "somebodys": "x"}) == {}
    assert differences((a, b), made, {"b": "shown b"}) == {"a": "missing"}
    assert differences((a, b), {**made, "a": MadeView("other", "shown a")}, shown) == {"a": "outdated"}
    assert differences((a, b), {}, shown) == {"a": "outdated", "b": "outdated"}
    assert differences((a, b), made, {**shown, "b": "typed in"}) == {"b": "edited"}
    assert differences((a,), made, shown) == {"b": "removed"}
    assert differences((a,), made, {"a": "shown a"}) == {}
    assert differences((a,), made_of(a), {**shown, "old": "x"}, once={"a", "old", "gone"}) == {"old": "removed"}


def test_folder_is_the_same_in_any_order() -> None:
    a, b = read_views(files_of(a="SELECT 1 AS x", b="SELECT x FROM a"), "t")
    assert folder_checksum((a, b)) == folder_checksum((b, a)) != folder_checksum((a,))


def test_migrations_that_are_not_released_yet_hold_no_views() -> None:
    assert all(not migration.views for migration in migrations()[RELEASED:])


RELEASED_CHECKSUMS = [
    "2db9c9aede3d51f0",
    "6a3e358d8b4f3a6a",
    "3b694bfa79913d15",
    "b0059da57627f35f",
    "9ef8916296875b89",
    "59bedc2ad5826a67",
    "081b64ab86645fbd",
    "ddc9ef7891453f73",
    "eba59ea049987361",
]


def test_released_migrations_are_as_they_were() -> None:
    assert [migration.checksum[:16] for migration in migrations()[:RELEASED]] == RELEASED_CHECKSUMS
    assert checksum_of("x") == hashlib.sha256(b"x").hexdigest()


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
    text = query_text(name, "i")
    head = re.split(r"^(?:SELECT|INSERT)", text, flags=re.MULTILINE)[0]
    for parameter in re.findall(r"\{(\w+):", text):
        assert re.search(rf"\b{parameter}\b", head)


# ---------------------------------------------------------------- texts of columns


def test_every_public_column_has_a_text_and_the_page_is_made_of_them() -> None:
    assert columns_page.problems(VIEWS) == []
    assert (Path(__file__).resolve().parents[2] / columns_page.PAGE).read_text("utf-8") == columns_page.page(VIEWS)


def test_new_column_without_a_text_is_a_problem() -> None:
    new = VIEWS["v_why"].replace("    w.why AS why,", "    w.why AS why,\n    1 AS brand_new,")
    assert columns_page.problems({**VIEWS, "v_why": new}) == ["v_why.brand_new has no text in sinks/columns.yaml"]
    gone = VIEWS["v_why"].replace("    w.why AS why,\n", "")
    assert columns_page.problems({**VIEWS, "v_why": gone}) == ["v_why.why of columns.yaml is no column"]
    others = {name: text for name, text in VIEWS.items() if name != "v_residual"}
    assert "v_residual of columns.yaml is no view" in columns_page.problems(others)
