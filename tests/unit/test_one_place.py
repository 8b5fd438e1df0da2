"""What is said in one place is said nowhere else: channels, a vendor's codes, the system's clock; and prose is not parsed."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path

import pytest

from schemas.channels import CHANNELS
from vendors.codes import Codes
from vendors.registry import VENDORS

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = (
    "schemas",
    "runtime",
    "vendors",
    "producers",
    "processors",
    "senders",
    "sinks",
    "tracking",
    "replay",
    "api",
    "local",
    "console",
)
Finder = Callable[[str], list[str]]


def files(pattern: str, *folders: str, but: tuple[str, ...] = ()) -> Iterator[Path]:
    """Files of these folders, relative to the root, without those that match one of `but`."""
    for folder in folders:
        for path in sorted((ROOT / folder).rglob(pattern)):
            relative = path.relative_to(ROOT)
            if not any(relative.match(excluded) for excluded in but):
                yield relative


def found(finder: Finder, paths: Iterator[Path]) -> dict[str, list[str]]:
    """What the finder finds in each file that has any of it."""
    return {str(path): names for path in paths if (names := finder((ROOT / path).read_text("utf-8")))}


def literals(source: str) -> list[str]:
    """The string literals of a module, docstrings aside."""
    tree = ast.parse(source)
    docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    return [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs
    ]


# -- channels ---------------------------------------------------------------------------------------------------------

# A vendor says which channel it serves; the simulator plays the vendors.
MAY_NAME_CHANNELS = ("schemas/channels.py", "vendors/registry.py", "vendors/*/*.py", "local/simulator/*.py")
# One word without spaces: a name, a key, a topic. Prose, SQL (users.email is a column) and headers of a vendor are none.
_NAMES_A_CHANNEL = re.compile(rf"[\w.,:/{{}}-]*\b({'|'.join(CHANNELS)})\b[\w.,:/{{}}-]*")


def named_channels(source: str) -> list[str]:
    return [text for text in literals(source) if _NAMES_A_CHANNEL.fullmatch(text)]


@pytest.mark.parametrize("source", ['A = {"email": 1}', 'B = f"sender-sms"', 'if c == "push": pass', 'T = "a.email.b"'])
def test_channel_that_is_named_is_found(source: str) -> None:
    assert named_channels(source)


@pytest.mark.parametrize("source", ['"""email"""', "import email", "f(email=1)", 'T = "the email of a user"'])
def test_prose_modules_and_fields_of_a_channels_name_are_left_alone(source: str) -> None:
    assert not named_channels(source)


def test_no_module_names_a_channel_but_the_rows_and_the_vendors() -> None:
    assert found(named_channels, files("*.py", *PACKAGES, but=MAY_NAME_CHANNELS)) == {}


def test_no_other_contract_lists_the_channels() -> None:
    for path in (*ROOT.glob("schemas/*.yaml"), *(ROOT / path for path in files("*.sql", *PACKAGES))):
        assert not re.search(rf"['\"\[]({'|'.join(CHANNELS)})['\",\]]", path.read_text("utf-8")), path


# -- codes of a vendor ------------------------------------------------------------------------------------------------


def codes_of(package: str) -> list[str]:
    """A vendor's own codes: neither a status of HTTP nor a reply of SMTP, which others speak too."""
    table: Codes = import_module(f"vendors.{package}.codes").CODES
    return [code for key in table.rows if not re.fullmatch(r"[\d.]{1,3}", code := key.partition(" ")[0])]


# The view classes errors of events that were stored before a field said it.
MAY_REPEAT_CODES = {"sinks/views/v_provider_scorecard.sql"}


def repeated_codes(codes: list[str]) -> Finder:
    pattern = re.compile(rf"(?<![\w.])({'|'.join(map(re.escape, codes))})(?![\w.])")
    return lambda source: sorted(set(pattern.findall(source)))


@pytest.mark.parametrize(
    "source", ['if code == "21610":', "match(code, '^(20429|21611)')", 'ERRORS = {"21635": "bounced"}']
)
def test_repeated_code_is_found(source: str) -> None:
    assert repeated_codes(codes_of("twilio"))(source)


_PACKAGES_OF_VENDORS = [vendor.package.removeprefix("vendors.") for vendor in VENDORS]


# One whose HTTP status says all has none of its own.
@pytest.mark.parametrize("vendor", [package for package in _PACKAGES_OF_VENDORS if codes_of(package)])
def test_codes_of_a_vendor_are_in_one_file(vendor: str) -> None:
    in_text = repeated_codes(codes_of(vendor))
    # The simulator plays the vendor, and has to say what it says. What AWS says of any service, and SMTP to whoever sends a
    # mail, is in a file of its own, and another vendor's table may use the same word.
    tables = ("vendors/*/codes.py", "vendors/sigv4.py", "vendors/smtp_codes.py")
    modules = files("*.py", *PACKAGES, but=(*tables, "local/simulator/*.py"))
    assert found(lambda source: in_text(" ".join(literals(source))), modules) == {}
    assert set(found(in_text, files("*.sql", *PACKAGES, but=("sinks/migrations/*.sql",)))) <= MAY_REPEAT_CODES


# -- detail is for people ---------------------------------------------------------------------------------------------

_PARSES = frozenset(
    {"startswith", "endswith", "split", "rsplit", "partition", "rpartition", "find", "index", "removeprefix"}
)
_SQL_PARSES = re.compile(
    r"\b(?:startsWith|endsWith|i?like|match|extract\w*|position\w*|substring\w*|splitBy\w*|multi(?:Search|Match)\w*"
    r"|has(?:SubStr|Token)\w*)\(\s*(?:\w+\.)?detail\b|\bdetail\s+(?:NOT\s+)?I?LIKE\b",
    re.IGNORECASE,
)
MAY_PARSE_DETAIL = {
    # A dead letter, not a status: the mark that it is cut is written and read in this file alone.
    "runtime/dead_letters.py",
}


def _is_detail(node: ast.AST) -> bool:
    match node:
        case ast.Subscript(slice=ast.Constant(value="detail")):
            return True
        case ast.Attribute(attr="detail") | ast.Name(id="detail"):
            return True
        case ast.BoolOp(values=values):
            return any(map(_is_detail, values))
        case ast.Call(func=ast.Attribute(attr="get"), args=[ast.Constant(value="detail"), *_]):
            return True
    return False


def parsed_details(source: str) -> list[str]:
    """The expressions of a module that look into a detail."""
    parsed = []
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Call(func=ast.Attribute(value=value, attr=attr)) if attr in _PARSES and _is_detail(value):
                parsed.append(ast.unparse(node))
            case ast.Call(func=ast.Attribute(attr="match" | "search" | "fullmatch" | "findall"), args=args) if any(
                map(_is_detail, args)
            ):
                parsed.append(ast.unparse(node))
            case ast.Compare(left=left, ops=[ast.In() | ast.NotIn() | ast.Eq() | ast.NotEq()], comparators=[right]) if (
                _is_detail(right) or (_is_detail(left) and not isinstance(node.ops[0], ast.In | ast.NotIn))
            ):
                parsed.append(ast.unparse(node))
    return parsed


@pytest.mark.parametrize(
    "source",
    [
        'event["detail"].startswith("in doubt")',
        '(status["detail"] or "").partition(" since ")',
        'if "opted out" in status["detail"]: pass',
        're.search("since (.*)", report.detail)',
        'row.get("detail").split(";")',
        'gone = detail == "410"',
    ],
)
def test_detail_that_is_parsed_is_found(source: str) -> None:
    assert parsed_details(source)


@pytest.mark.parametrize(
    "source", ['say(event["detail"])', 'f"({detail})"', 'status["detail"] or None', "detail[:1000]", "if detail: pass"]
)
def test_detail_that_is_shown_is_left_alone(source: str) -> None:
    assert not parsed_details(source)


@pytest.mark.parametrize(
    "sql", ["startsWith(f.detail, 'in doubt')", "match( f.detail, '^4')", "f.detail LIKE '%since%'"]
)
def test_detail_that_sql_parses_is_found(sql: str) -> None:
    assert _SQL_PARSES.search(sql)


def test_nothing_parses_a_detail() -> None:
    parsed = {
        **found(parsed_details, files("*.py", *PACKAGES)),
        **found(_SQL_PARSES.findall, files("*.sql", *PACKAGES, but=("sinks/migrations/*.sql",))),
    }
    assert set(parsed) - MAY_PARSE_DETAIL == set(), parsed
    assert set(parsed) >= MAY_PARSE_DETAIL, "an exception that nothing needs"


# -- clocks -----------------------------------------------------------------------------------------------------------


def read_clocks(source: str) -> list[str]:
    """Where a module asks the system for the time beside runtime/clock.py's two functions; perf_counter measures only."""
    asked = []
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Attribute(value=ast.Name(id="time"), attr="monotonic" | "monotonic_ns"):
                asked.append(ast.unparse(node))
            case ast.ImportFrom(module="time", names=names) if any("monotonic" in alias.name for alias in names):
                asked.append(ast.unparse(node))
    return asked


@pytest.mark.parametrize("source", ["time.monotonic()", "clock = time.monotonic", "from time import monotonic_ns"])
def test_clock_that_is_read_is_found(source: str) -> None:
    assert read_clocks(source)


def test_monotonic_clock_is_read_in_one_module() -> None:
    assert found(read_clocks, files("*.py", *PACKAGES)) == {"runtime/clock.py": ["time.monotonic"]}


# -- what is dropped first --------------------------------------------------------------------------------------------


def drops_from_the_front_of_a_dict(source: str) -> list[str]:
    """`d.pop(next(iter(d)))` and `del d[next(iter(d))]`: a dict searches its front for what was deleted before, each time further."""
    tree = ast.parse(source)
    keys = [node.args[0] for node in ast.walk(tree) if isinstance(node, ast.Call) and _is_pop(node) and node.args]
    keys += [target.slice for node in ast.walk(tree) if isinstance(node, ast.Delete) for target in _items(node)]
    return [ast.unparse(key) for key in keys if ast.unparse(key).startswith("next(iter(")]


def _is_pop(call: ast.Call) -> bool:
    return isinstance(call.func, ast.Attribute) and call.func.attr == "pop"


def _items(statement: ast.Delete) -> list[ast.Subscript]:
    return [target for target in statement.targets if isinstance(target, ast.Subscript)]


@pytest.mark.parametrize("source", ["d.pop(next(iter(d)))", "del self.d[next(iter(self.d))]"])
def test_dropping_from_the_front_of_a_dict_is_found(source: str) -> None:
    assert drops_from_the_front_of_a_dict(source)


def test_bounded_tables_drop_their_oldest_entry_in_constant_time() -> None:
    assert not found(drops_from_the_front_of_a_dict, files("*.py", *PACKAGES)), "use OrderedDict.popitem(last=False)"
