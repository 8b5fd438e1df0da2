"""Senders with one promise broken on purpose: `python -m tests.faults.mutants NAME run sender --channel sms`.

The tests that guard a promise must fail on its mutant: test_mutants.py holds that with processes on a real broker, and
tests/unit/test_order.py with a sender in memory.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

from senders import claims, worker
from senders.outcomes import Outcome
from senders.stage import SendCompletion
from vendors.http import HttpResponse, HttpTransport, ResponseLostError

Patch = Callable[[Any, str, Any], None]
"""Sets an attribute, as `setattr` does; a test takes it back afterwards."""


def commit_before_send(patch: Patch) -> None:
    """Every claimed offset counts as finished at once: a crash between claim and send loses the message."""
    claim, finish = claims.ClaimTracker.claim, claims.ClaimTracker.finish

    def claim_and_finish(self: claims.ClaimTracker, offset: int) -> None:
        claim(self, offset)
        if self.current.in_doubt(offset):
            finish(self, offset)

    patch(claims.ClaimTracker, "claim", claim_and_finish)
    patch(claims.ClaimTracker, "finish", lambda self, offset: None)


def commit_past_in_flight(patch: Patch) -> None:
    """The committed offset is the highest one read, whatever is still unfinished below it."""
    current = claims.ClaimTracker.current

    def past(self: claims.ClaimTracker) -> claims.Claim:
        hi = current.fget(self).hi  # type: ignore[attr-defined]
        return claims.Claim(hi, hi)

    patch(claims.ClaimTracker, "current", property(past))


def missing_outcome(patch: Patch) -> None:
    """What a provider answered is never told."""
    outcome_of = worker.Worker._outcome_of

    def silent(self: worker.Worker, ended: SendCompletion) -> Outcome:
        made = outcome_of(self, ended)
        return Outcome(made.state, made.next_attempt, (), made.ledger_record)

    patch(worker.Worker, "_outcome_of", silent)


def ledger_before_facts(patch: Patch) -> None:
    """The ledger knows of an outcome before its status is acknowledged: a crash in between, and nobody ever tells it."""
    outcome_of = worker.Worker._outcome_of

    def swapped(self: worker.Worker, ended: SendCompletion) -> Outcome:
        made = outcome_of(self, ended)
        return Outcome(made.state, made.next_attempt, (made.ledger_record,), made.records[-1])

    patch(worker.Worker, "_outcome_of", swapped)


def retry_in_the_client(patch: Patch) -> None:
    """The HTTP client tries again by itself when an answer is lost, as some vendors' SDKs do."""
    post = HttpTransport.post

    async def twice(self: HttpTransport, url: str, **request: Any) -> HttpResponse:
        try:
            return await post(self, url, **request)
        except ResponseLostError:
            return await post(self, url, **request)

    patch(HttpTransport, "post", twice)


def unchanged(patch: Patch) -> None:
    """No mutant: what the others are compared with."""


MUTANTS: Mapping[str, Callable[[Patch], None]] = {
    mutant.__name__: mutant
    for mutant in (
        unchanged,
        commit_before_send,
        commit_past_in_flight,
        missing_outcome,
        ledger_before_facts,
        retry_in_the_client,
    )
}

if __name__ == "__main__":
    MUTANTS[sys.argv[1]](setattr)
    from console.cli import main

    sys.argv = ["heliograph", *sys.argv[2:]]
    main()
