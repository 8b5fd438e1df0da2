"""The condition of `--where`: a strict grammar over an allow-list of columns becomes SQL with bound values; pure.

    condition  = clause {"OR" clause}            clause = factor {"AND" factor}
    factor     = "NOT" factor | "(" condition ")" | comparison
    comparison = column ("=" | "!=" | "<>" | "<" | "<=" | ">" | ">=") value
               | column ["NOT"] "IN" "(" value {"," value} ")"
               | column ["NOT"] "LIKE" text | column "IS" ["NOT"] "NULL"

There are no functions, no subqueries, no arithmetic; every value is a parameter of the query, so nothing an operator writes
is ever SQL. May import schemas (the closed lists of states and reasons). Never: a query, a store.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple
from uuid import UUID

from replay.times import UsageError, parse_time
from schemas.channels import CHANNELS
from schemas.events import LANES, states

Kind = Literal["text", "int", "bool", "time", "id"]

MESSAGE_COLUMNS: Mapping[str, Kind] = {
    "notification_id": "id",
    "message_id": "id",
    "tenant": "text",
    "channel": "text",
    "lane": "text",
    "state": "text",
    "reason": "text",
    "detail": "text",
    "provider": "text",
    "template_id": "text",
    "template_version": "int",
    "attempts": "int",
    "possible_duplicate": "bool",
    "accepted_at": "time",
    "settled_at": "time",
    "last_event_at": "time",
}
DEAD_LETTER_COLUMNS: Mapping[str, Kind] = {
    "dead_letter_id": "id",
    "letter_state": "text",
    "notification_id": "id",
    "message_id": "id",
    "topic": "text",
    "partition": "int",
    "offset": "int",
    "stage": "text",
    "reason": "text",
    "error_class": "text",
    "detail": "text",
    "attempts": "int",
    "tenant": "text",
    "occurred_at": "time",
}
LETTER_STATES = frozenset({"open", "redriven", "sent_since", "failed_again", "dismissed"})
"""What became of a dead letter, as the view dead_letter_states names it."""
_CLOSED = {
    "state": frozenset(states().rank),
    "reason": frozenset({"", *(reason for reasons in states().reasons.values() for reason in reasons)}),
    "channel": frozenset({"", *CHANNELS}),
    "lane": frozenset(LANES),
    "letter_state": LETTER_STATES,
}
MAX_LENGTH = 4_000
MAX_DEPTH = 20
_TOKEN = re.compile(
    r"\s*(?:(?P<text>'(?:[^']|'')*')|(?P<int>-?\d{1,18}(?![\w.]))|(?P<word>[A-Za-z_]\w*)|(?P<op><=|>=|<>|!=|=|<|>|\(|\)|,))"
)
_KEYWORDS = frozenset({"AND", "OR", "NOT", "IN", "LIKE", "IS", "NULL", "TRUE", "FALSE"})
_COMPARISONS = frozenset({"=", "!=", "<>", "<", "<=", ">", ">="})
_TYPES: Mapping[Kind, str] = {
    "text": "{%s:String}",
    "int": "{%s:Int64}",
    "bool": "{%s:Bool}",
    "id": "toUUID({%s:String})",
    "time": "fromUnixTimestamp64Milli({%s:Int64}, 'UTC')",
}


@dataclass(frozen=True, slots=True)
class Condition:
    """SQL over the columns it may name, and the values of its parameters."""

    sql: str = "true"
    parameters: Mapping[str, Any] = field(default_factory=dict)


class _Token(NamedTuple):
    kind: str
    text: str
    at: int


def compile_where(text: str | None, columns: Mapping[str, Kind], now: int) -> Condition:
    """The condition as SQL; None selects everything. Raises UsageError that names the place."""
    if text is None:
        return Condition()
    if len(text) > MAX_LENGTH:
        raise UsageError(f"--where is longer than {MAX_LENGTH} characters")
    return _Parser(_tokens(text), columns, now).whole()


def _tokens(text: str) -> list[_Token]:
    tokens, at = [], 0
    stripped = text.rstrip()
    while at < len(stripped):
        match = _TOKEN.match(stripped, at)
        if match is None or match.lastgroup is None:
            rest = stripped[at:].strip()
            raise UsageError(f"--where: cannot read {rest[:30]!r}; text stands in single quotes, times and ids too")
        kind, word = match.lastgroup, match[match.lastgroup]
        if kind == "word" and word.upper() in _KEYWORDS:
            kind, word = "keyword", word.upper()
        tokens.append(_Token(kind, word, match.start(match.lastgroup) + 1))
        at = match.end()
    return tokens


class _Parser:
    def __init__(self, tokens: list[_Token], columns: Mapping[str, Kind], now: int) -> None:
        self._tokens, self._columns, self._now = tokens, columns, now
        self._at = self._depth = 0
        self._parameters: dict[str, Any] = {}

    def whole(self) -> Condition:
        sql = self._condition()
        if self._at < len(self._tokens):
            self._refuse("AND, OR or the end")
        return Condition(sql, self._parameters)

    # -- tokens -----------------------------------------------------------------------------------------------------

    def _refuse(self, wanted: str) -> None:
        if self._at >= len(self._tokens):
            raise UsageError(f"--where ends where {wanted} should stand")
        token = self._tokens[self._at]
        raise UsageError(f"--where, character {token.at}: {token.text!r} stands where {wanted} should")

    def _take(self, kind: str, *words: str) -> str | None:
        if self._at < len(self._tokens):
            token = self._tokens[self._at]
            if token.kind == kind and (not words or token.text in words):
                self._at += 1
                return token.text
        return None

    def _need(self, wanted: str, kind: str, *words: str) -> str:
        found = self._take(kind, *words)
        if found is None:
            self._refuse(wanted)
            raise AssertionError
        return found

    # -- grammar ----------------------------------------------------------------------------------------------------

    def _condition(self) -> str:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise UsageError(f"--where is nested deeper than {MAX_DEPTH}")
        parts = [self._clause()]
        while self._take("keyword", "OR"):
            parts.append(self._clause())
        self._depth -= 1
        return f"({' OR '.join(parts)})"

    def _clause(self) -> str:
        parts = [self._factor()]
        while self._take("keyword", "AND"):
            parts.append(self._factor())
        return f"({' AND '.join(parts)})"

    def _factor(self) -> str:
        negations = 0
        while self._take("keyword", "NOT"):
            negations += 1
        if self._take("op", "("):
            sql = self._condition()
            self._need(")", "op", ")")
        else:
            sql = self._comparison()
        return f"NOT {sql}" if negations % 2 else sql

    def _comparison(self) -> str:
        column = self._column()
        kind = self._columns[column]
        quoted = f"`{column}`"
        if self._take("keyword", "IS"):
            negated = self._take("keyword", "NOT")
            self._need("NULL", "keyword", "NULL")
            return (
                f"({quoted} {'!=' if negated else '='} '')"
                if kind == "text"
                else (f"({quoted} IS {'NOT ' if negated else ''}NULL)")
            )
        negated = self._take("keyword", "NOT")
        if self._take("keyword", "IN"):
            self._need("(", "op", "(")
            values = [self._value(column, kind)]
            while self._take("op", ","):
                values.append(self._value(column, kind))
            self._need(", or )", "op", ")")
            return f"({quoted} {'NOT ' if negated else ''}IN ({', '.join(values)}))"
        if self._take("keyword", "LIKE"):
            if kind != "text":
                raise UsageError(f"--where: LIKE is for text, and {column} is not")
            return f"({quoted} {'NOT ' if negated else ''}LIKE {self._parameter(kind, self._text())})"
        if negated:
            self._refuse("IN or LIKE")
        operator = self._need("a comparison (=, !=, <, <=, >, >=, IN, LIKE, IS NULL)", "op", *sorted(_COMPARISONS))
        if operator not in ("=", "!=", "<>") and kind in ("bool", "id"):
            raise UsageError(f"--where: {column} can only be compared with = and !=")
        return f"({quoted} {operator} {self._value(column, kind)})"

    def _column(self) -> str:
        at = self._at
        word = self._need("a column", "word")
        if word not in self._columns:
            self._at = at
            raise UsageError(f"--where: there is no column {word!r}; there are {', '.join(sorted(self._columns))}")
        return word

    def _text(self) -> str:
        return self._need("text in single quotes", "text")[1:-1].replace("''", "'")

    def _value(self, column: str, kind: Kind) -> str:
        if kind == "int":
            return self._parameter(kind, int(self._need(f"a number ({column} is one)", "int")))
        if kind == "bool":
            return self._parameter(kind, self._need("true or false", "keyword", "TRUE", "FALSE") == "TRUE")
        text = self._text()
        if kind == "time":
            return self._parameter(kind, parse_time(text, self._now))
        if kind == "id":
            try:
                return self._parameter(kind, str(UUID(text)))
            except ValueError as exc:
                raise UsageError(f"--where: {text!r} is not an id: {column} is a UUID") from exc
        allowed = _CLOSED.get(column)
        if allowed is not None and text not in allowed:
            raise UsageError(
                f"--where: {text!r} is no {column}; there are {', '.join(sorted(word for word in allowed if word))}"
            )
        return self._parameter(kind, text)

    def _parameter(self, kind: Kind, value: Any) -> str:
        name = f"w{len(self._parameters)}"
        self._parameters[name] = value
        return _TYPES[kind] % name
