"""The pure parts of the harness: statistics, data, tables, what makes a round wrong, the pins of rivals."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path

import pytest

from bench import data, figures, load, machine, profiles, report
from bench.__main__ import main
from bench.case import Case, Contender, Counts, Measured, Outcome, Scale, Trial, run
from bench.cases import CASES
from bench.e2e import WrongRunError
from bench.environments import RIVALS, UnavailableRivalError, environment, environment_name, program
from bench.processes import cpu_s, pss_mib, tree
from bench.world import World

ROOT = Path(__file__).resolve().parents[2]


def test_spread_is_the_median_with_its_ends() -> None:
    spread = figures.Spread.of([3.0, 1.0, 2.0])
    assert (spread.median, spread.low, spread.high, spread.share) == (2.0, 1.0, 3.0, 1.0)
    assert str(spread) == "2 (1 to 3)"
    assert str(figures.Spread.of([1763.4])) == "1,763"


def test_no_value_is_refused() -> None:
    for question in (figures.Spread.of, lambda values: figures.quantile(values, 0.5), figures.slope):
        with pytest.raises(ValueError, match="needs one"):
            question([])


@pytest.mark.parametrize(
    ("value", "text"), [(1763.4, "1,763"), (28.44, "28.4"), (1.844, "1.84"), (0.0312, "0.0312"), (0, "0"), (5.0, "5")]
)
def test_numbers_have_the_digits_that_count(value: float, text: str) -> None:
    assert figures.number(value) == text


def test_ratios_are_of_the_same_round() -> None:
    assert figures.ratios([10.0, 40.0], [5.0, 20.0]) == [2.0, 2.0]
    assert figures.ratios([10.0, 40.0], [0.0, 20.0]) == [2.0]


def test_quantile_and_slope() -> None:
    assert figures.quantile(range(100), 0.99) == 99
    assert figures.quantile([7.0], 0.5) == 7.0
    assert figures.slope([(0, 1), (1, 3), (2, 5)]) == pytest.approx(2.0)
    assert figures.slope([(1, 1), (1, 3)]) == 0.0


def test_the_same_numbers_give_the_same_data_and_others_do_not() -> None:
    assert data.digest_of(100) == data.digest_of(100)
    others = [data.digest_of(101), data.digest_of(100, "sms"), data.digest_of(100, users=7)]
    assert len({data.digest_of(100), *others}) == 4


def test_ids_differ_by_mark_alone() -> None:
    first, again, other = (data.requests(5, 5, data.STILL, mark=mark) for mark in ("a", "a", "b"))
    assert [it.value for it in first] == [it.value for it in again]
    assert not {it.value for it in first} & {it.value for it in other}


@pytest.mark.parametrize("channel", ["email", "sms", "push"])
def test_every_request_becomes_one_message_of_its_channel(channel: str) -> None:
    assert len(data.messages(30, channel, data.STILL, users=10)) == 30


RIGHT = Counts(5, 5, 5)


@contextmanager
def _trial(contenders: Sequence[Contender]) -> Iterator[Trial]:
    yield Trial("feed", contenders, "cpu_us", contenders[0].name, {"slow one": "it is not installed"}, ["a note"])


def _case(*contenders: Contender) -> Case:
    return Case("demo", "what it costs", "nothing", lambda scale, world: _trial(contenders))


def _run(case: Case, repeat: int = 2) -> Outcome:
    with World(users=1) as world:
        return run(case, Scale(repeat=repeat), world)


def _contender(name: str, turns: list[str], values: Sequence[float], counts: Counts = RIGHT) -> Contender:
    following = cycle(values)

    def measure() -> Measured:
        turns.append(name)
        return Measured({"cpu_us": next(following)}, counts)

    return Contender(name, measure)


def test_contenders_take_turns_and_are_divided_by_the_first_of_their_round() -> None:
    turns: list[str] = []
    outcome = _run(_case(_contender("ours", turns, [10, 20]), _contender("rival", turns, [30, 60])))
    assert turns == ["ours", "rival", "ours", "rival"]
    ratio = outcome.ratio("rival")
    assert ratio is not None and (ratio.median, ratio.low, ratio.high) == (3, 3, 3)
    assert outcome.ratio("ours") is None


def test_a_contender_may_have_a_baseline_of_its_own() -> None:
    small, large = _contender("ten", [], [2, 4]), _contender("many", [], [3, 6])
    outcome = _run(_case(_contender("ours", [], [1]), small, Contender(large.name, large.measure, "ten")))
    ratio = outcome.ratio("many")
    assert ratio is not None and ratio.median == 1.5
    assert report.as_json(outcome)["contenders"][2]["ratio"]["to"] == "ten"


@pytest.mark.parametrize("counts", [Counts(5, 4, 4), Counts(5, 6, 5), Counts(5, 5, 4)])
def test_a_round_whose_counts_differ_gives_no_figure(counts: Counts) -> None:
    outcome = _run(_case(_contender("ours", [], [1], counts)))
    assert outcome.error is not None and "accepted 5" in outcome.error
    assert outcome.rounds == {"ours": []}
    assert report.rows(outcome)[0]["demo"] == "ours"
    with pytest.raises(WrongRunError):
        counts.check("ours")


def test_the_file_of_a_run_has_every_round_and_what_was_left_out(tmp_path: Path) -> None:
    outcome = _run(_case(_contender("ours", [], [10, 20]), _contender("rival", [], [30, 60])))
    report.write(tmp_path / "made" / "bench.json", {"cores": 2}, {"full": False}, [outcome])
    (case,) = json.loads((tmp_path / "made" / "bench.json").read_text())["cases"]
    assert [it["figures"]["cpu_us"]["rounds"] for it in case["contenders"]] == [[10, 20], [30, 60]]
    assert case["contenders"][1]["ratio"] == {"of": "cpu_us", "to": "ours", "median": 3, "low": 3, "high": 3}
    assert case["left_out"] == {"slow one": "it is not installed"}


def test_a_wide_spread_is_marked_in_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    outcome = _run(_case(_contender("ours", [], [10, 20]), _contender("rival", [], [30, 31])))
    ours, rival = report.rows(outcome)
    assert ours["cpu_us"] == "15 (10 to 20) ~" and rival["cpu_us"] == "30.5 (30 to 31)"
    assert rival["accepted = sent = settled"] == "5"
    report.print_outcome(outcome)
    assert "left out: slow one: it is not installed" in capsys.readouterr().out


def test_sizes_follow_the_scale_and_never_vanish() -> None:
    assert Scale().size(100, 1_000) == 100
    assert Scale(full=True, shrink=10).size(100, 1_000) == 100
    assert Scale(shrink=1_000).size(100, 1_000) == 1


def test_a_profile_is_of_own_time_and_without_folders() -> None:
    raw = "main (/a/b/c/run.py:1);send (/a/b/c/mail.py:7) 30\nmain (/a/b/c/run.py:1) 9\nmain (/a/b/c/run.py:2) 1\n\n"
    assert profiles.top(raw) == ["75.0%  send (b/c/mail.py)", "25.0%  main (b/c/run.py)"]
    assert profiles.top(raw, lines=1) == ["75.0%  send (b/c/mail.py)"]


def test_the_machine_is_described_without_its_name() -> None:
    assert machine.processor("model name\t: Fast One\nmodel name\t: Fast One\n") == "Fast One"
    assert machine.processor("") != ""
    assert machine.describe()["cores"] >= 1  # type: ignore[operator]


def test_processes_are_found_with_what_they_cost() -> None:
    import os

    own = tree(os.getpid())
    assert own[0] == os.getpid() and cpu_s(own) > 0 and pss_mib(own) > 0
    assert cpu_s([2**22 + 1]) == 0


def test_another_pin_or_interpreter_is_another_environment() -> None:
    names = {environment_name("celery", pins, python) for pins in (b"a==1", b"a==2") for python in ("3.11", "3.12")}
    assert len(names) == 4


def test_a_program_that_is_nowhere_is_named() -> None:
    with pytest.raises(UnavailableRivalError, match="no-such-program is not installed"):
        program("no-such-program")


def test_a_rival_has_none_of_our_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HELIOGRAPH_LOG_LEVEL", "debug")
    assert "HELIOGRAPH_LOG_LEVEL" not in environment() and environment({"A": "b"})["A"] == "b"


RIVAL_NAMES = sorted(path.stem for path in RIVALS.glob("*.txt"))


def test_the_lock_target_resolves_every_rival() -> None:
    found = re.search(r"^RIVALS := (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert found is not None and found[1].split() == RIVAL_NAMES


@pytest.mark.parametrize("name", RIVAL_NAMES)
def test_every_package_of_a_rival_is_pinned_with_its_hashes_and_no_host(name: str) -> None:
    text = (RIVALS / f"{name}.txt").read_text()
    assert re.findall(r"^[a-z]", text, re.MULTILINE) and "://" not in text
    for entry in re.split(r"^(?=[a-z0-9])", text, flags=re.MULTILINE):
        if entry and not entry.startswith("#"):
            assert "==" in entry and "--hash=sha256:" in entry, entry


def test_rivals_run_our_function_on_our_versions() -> None:
    def pins(path: Path) -> dict[str, str]:
        return dict(re.findall(r"^([a-z0-9-]+)(?:\[[^]]*\])?==([^ ;\\\n]+)", path.read_text(), re.MULTILINE))

    ours = pins(ROOT / "requirements.lock")
    for name in ("celery", "streams"):
        theirs = pins(RIVALS / f"{name}.txt")
        for package in ("confluent-kafka", "fastavro", "jiter", "minijinja", "phonenumbers", "pydantic"):
            assert theirs[package] == ours[package], (name, package)


def test_the_load_asks_for_another_user_each_time_and_names_its_key() -> None:
    first, second = load.requests("http://127.0.0.1:9/v1/notifications", "secret", 2, "mark")
    head, _, body = first.partition(b"\r\n\r\n")
    assert head.startswith(b"POST /v1/notifications HTTP/1.1\r\nHost: 127.0.0.1:9\r\nAuthorization: Bearer secret\r\n")
    assert b"Idempotency-Key: mark-0\r\n" in head and b"Content-Length: %d" % len(body) in head
    assert json.loads(body)["to"] == {"user_id": "u0"} and b"mark-1" in second
    (plain,) = load.requests("http://127.0.0.1:9/", "", 1, None)
    assert b"Idempotency-Key" not in plain


def test_every_case_has_a_name_of_its_own_and_worlds_are_neighbours() -> None:
    names = [case.name for case in CASES]
    assert len(set(names)) == len(names)
    worlds = [case.needs for case in CASES]
    assert worlds == sorted(worlds), "each world is started once"


def test_an_unknown_case_is_refused_with_the_names(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["nothing"], ["--repeat", "0"]):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 2
    assert "there is no case nothing; the cases are enrich" in capsys.readouterr().err


def test_a_world_that_nobody_asked_anything_starts_nothing() -> None:
    with World(users=1) as world:
        directory = world.directory
        assert directory.is_relative_to(tempfile.gettempdir())
    assert not directory.exists()
