"""What went wrong as every face answers it: one table from exceptions to problems.

May import producers and runtime. Never: a route, a logger.
"""

from __future__ import annotations

from producers.reference.database import InputRefused
from runtime.errors import RefusedError, UnavailableError
from runtime.http.problems import Problem, problem_of, unavailable
from schemas.codec import RecordTooLarge


def problem_for(exc: BaseException | None) -> Problem | None:
    """The problem, None for an exception that is a fault of ours."""
    if isinstance(exc, Problem):
        return exc
    if isinstance(exc, RefusedError):
        return problem_of(exc)
    if isinstance(exc, UnavailableError):
        return unavailable("store_unavailable", str(exc))
    if isinstance(exc, InputRefused):
        # Services give better messages; this is the fallback.
        return Problem(400, "invalid_request", "a text holds a NUL, or is too long for what it names")
    if isinstance(exc, RecordTooLarge):
        return Problem(400, "invalid_request", f"{exc}: make it smaller")
    return None
