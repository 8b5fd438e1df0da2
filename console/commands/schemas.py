"""Commands over the schemas: register them, compare a registry with them, describe the topics.

May import typer, runtime, schemas. Never: how a registry is talked to, what a document says.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from console.commands.output import show
from runtime.settings import load_settings

schemas_app = typer.Typer(
    no_args_is_help=True, help="Avro schemas: a Schema Registry in line with them, their document."
)

_Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@schemas_app.command("register")
def register_schemas(as_json: _Json = False) -> None:
    """Register what the Schema Registry lacks and set the subjects' compatibility; may run at any time."""
    from runtime.registry import connect, register

    with connect(load_settings().schema_registry) as client:
        done = register(client)
    show([asdict(difference) for difference in done], as_json, empty="nothing to do")


@schemas_app.command("check")
def check_schemas(as_json: _Json = False) -> None:
    """How the Schema Registry differs from the schemas; exit status 1 when it does."""
    from runtime.registry import connect, diff

    with connect(load_settings().schema_registry) as client:
        differences = diff(client)
    show([asdict(difference) for difference in differences], as_json, empty="the registry is as it should be")
    raise typer.Exit(1 if differences else 0)


@schemas_app.command("asyncapi")
def describe_topics() -> None:
    """The topics as an AsyncAPI 3 document."""
    from schemas.asyncapi import text

    typer.echo(text(), nl=False)
