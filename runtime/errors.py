"""The errors people see.

    HeliographError            one line that says what is wrong and what to do; the CLI prints it and exits 1
    ├── SettingsError          a setting is missing or wrong
    ├── UnavailableError       a store or broker cannot be reached
    ├── PublishError           the broker did not acknowledge; the record may or may not be in Kafka
    │   └── TooLargeError      it refuses some for their size, and has acknowledged all others
    ├── TopicsError            the topics of the cluster differ from schemas/topics.yaml
    ├── RegistryError          the Schema Registry lacks or refuses a schema
    ├── DeadLetterFlood        too many unusable records: the stage halts and dead-letters no more
    └── RefusedError           a request that cannot be met: the kind of refusal, and a code for programs

May import records as types. Never: errors that a module uses only internally.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from runtime.records import ProducerRecord


class HeliographError(Exception):
    """Base of every error meant for people: the message is one line and says what to do."""


class SettingsError(HeliographError):
    """A setting is missing, unknown or wrong."""


class UnavailableError(HeliographError):
    """A store, broker or port cannot be used now."""


class PublishError(HeliographError):
    """The broker did not acknowledge a record in time: it may or may not be stored, publish it again with the same id."""


class TooLargeError(PublishError):
    """Kafka refuses records for their size, and will again: a topic's limit is lower than ours, or a record above both.

    `records` are those that were refused; every other one of the call is acknowledged.
    """

    def __init__(self, message: str, records: Sequence[ProducerRecord]) -> None:
        super().__init__(message)
        self.records = tuple(records)


class TopicsError(HeliographError):
    """A topic is missing, or differs in a way that must not be changed."""


class RegistryError(HeliographError):
    """The Schema Registry lacks a schema, or refuses one."""


class DeadLetterFlood(HeliographError):
    """Too large a share of the records is unusable: a mistake an operator must fix, not an accident."""


class Refusal(StrEnum):
    """The kinds of no."""

    INVALID = "invalid"
    """It can never be met as it was asked."""
    UNKNOWN = "unknown"
    """It does not exist, or not for this caller."""
    CONFLICT = "conflict"
    """The current state forbids it."""
    BROKEN = "broken"
    """An error of ours; the log has it."""
    TOO_MANY = "too_many"
    """The caller has as many as it may."""
    BUSY = "busy"
    """Nothing is promised; the same may be asked again."""


MAX_ERRORS = 20
"""Said of one request."""


class FieldError(NamedTuple):
    """One thing that is wrong, and where: a JSON pointer into the request, "" for the whole of it."""

    pointer: str
    detail: str
    code: str


class RefusedError(HeliographError):
    """A request that is refused. `code` is for programs, the message is for people.

    `errors` are the parts of it that are to blame; `extra` are facts that belong to the response.
    """

    def __init__(
        self,
        kind: Refusal,
        code: str,
        message: str,
        *,
        errors: Sequence[FieldError] = (),
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.code = code
        self.errors = list(errors)
        self.extra = dict(extra or {})
