"""The checks of a template, where they may take their time: in a process of their own, and the part that asks it.

    refused, or placed and checked, or the names of partials that are needed first: then it is asked again with them

May import runtime. Never: HTTP, a store.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from pydantic_core import to_json

from runtime.templates.check import check_template
from runtime.templates.language import TemplateRefused
from runtime.templates.layouts import Fetch, Written, fetch_all, missing_partials, place
from runtime.workers import OverBudgetError, Workers

MAX_PARTIALS_BYTES = 4 << 20
_CHECK = "producers.reference.template_work:check"


class Checked(NamedTuple):
    """A template that may be stored."""

    channels: dict[str, Any]
    locales: dict[str, Any]
    variables: list[str]
    is_placed: bool
    """Whether it included anything: then it is not what its author wrote."""


def check(argument: Mapping[str, Any]) -> dict[str, Any]:
    """In the worker: {"needs"}, {"refused"} or the fields of Checked."""
    template = Written(**argument["template"])
    try:
        if needs := missing_partials(template, argument["partials"]):
            return {"needs": needs}
        placed = place(template, argument["partials"])
        channels, locales = placed or (template.channels, template.locales)
        variables = check_template(channels, locales)
        if any("\0" in path for path in variables):
            raise TemplateRefused("a name holds a NUL character", where="channels")
    except TemplateRefused as exc:
        return {"refused": {"reason": exc.reason, "line": exc.line, "where": exc.where}}
    return {"channels": channels, "locales": locales, "variables": variables, "is_placed": placed is not None}


async def place_and_check(template: Written, fetch: Fetch, workers: Workers, owner: str) -> Checked:
    """The template as it is stored. Raises TemplateRefused, and what Workers.run raises when it is busy or broken."""
    partials: dict[str, Mapping[str, Any]] = {}
    size = 0

    async def within(name: str) -> Mapping[str, Any] | None:
        nonlocal size
        found = await fetch(name)
        size += len(to_json(found))
        if size > MAX_PARTIALS_BYTES:
            raise TemplateRefused(f"its partials are larger than {MAX_PARTIALS_BYTES} bytes together", where="channels")
        return found

    while True:
        argument = {"template": template._asdict(), "partials": partials}
        try:
            answer = await workers.run(_CHECK, argument, owner=owner)
        except OverBudgetError as exc:
            raise TemplateRefused(f"to check it takes {exc}: make it simpler", where="channels") from exc
        if "refused" in answer:
            raise TemplateRefused(**answer["refused"])
        if "needs" not in answer:
            return Checked(**answer)
        partials |= await fetch_all(template, answer["needs"], within)
