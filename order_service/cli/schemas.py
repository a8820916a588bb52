"""The commands that list the released schemas, check them, and register them in a schema registry."""

import asyncio

import typer

from order_service.cli import show
from order_service.cli.environment import read_settings
from order_service.cli.options import AsJson
from order_service.errors import SetupError
from order_service.kafka.registry_client import register, registry_of
from order_service.kafka.topics import topic_names
from order_service.operations.doctor.checks.registry import RegisteredSchema, registered_schemas
from order_service.settings import Settings
from order_service.wire.schemas import files
from order_service.wire.schemas.catalogue import SCHEMAS

schemas = typer.Typer(
    no_args_is_help=True, help="List the Avro schemas, check them, or register them in SCHEMA_REGISTRY_URL."
)


@schemas.command("list")
def schemas_list(as_json: AsJson = False) -> None:
    """List the released schemas, with their ids in a schema registry."""
    listed = asyncio.run(_listed(read_settings()))
    if as_json:
        for schema in listed:
            show.json_line(schema)
        return
    rows = [(schema.file, schema.id, schema.registry_id, schema.subject) for schema in listed]
    show.table(("file", "id", "registry id", "subject"), rows)


@schemas.command("check")
def schemas_check(as_json: AsJson = False) -> None:
    """Check that released files are unchanged, and that a schema registry has all of them; exit with 1 if not.

    A subject whose compatibility is weaker than needed is a warning.
    """
    settings = read_settings()
    faults, risks = files.faults(files.folder()), []
    if settings.schema_registry_url and not faults:
        listed = asyncio.run(_listed(settings))
        faults = [schema.fault for schema in listed if schema.fault]
        risks = sorted({schema.risk for schema in listed if schema.risk})
    if as_json:
        show.json_line({"ok": not faults, "faults": faults, "risks": risks})
        raise typer.Exit(1 if faults else 0)
    for line in [*(f"warning: {risk}" for risk in risks), *faults]:
        typer.echo(f"order-service: {line}", err=True)
    if not faults:
        where = f"; {settings.schema_registry_url} has them" if settings.schema_registry_url else ""
        typer.echo(f"all {len(SCHEMAS.released)} schemas are as expected{where}")
    raise typer.Exit(1 if faults else 0)


@schemas.command("register")
def schemas_register(as_json: AsJson = False) -> None:
    """Register the released schemas that SCHEMA_REGISTRY_URL lacks, and make new subjects refuse breaking versions.

    A level of compatibility that is already set stays.
    """
    for schema in asyncio.run(_registered(read_settings())):
        if as_json:
            show.json_line(schema)
        else:
            typer.echo(f"{schema.registry_id:>10} {schema.subject} version {files.name_and_version(schema.file)[1]}")


async def _listed(settings: Settings) -> list[RegisteredSchema]:
    names = topic_names(settings.topic_prefix)
    registry = registry_of(settings)
    if registry is None:
        return [RegisteredSchema.of(names, schema, None, None) for schema in SCHEMAS.released]
    async with registry:
        return await registered_schemas(registry, names)


async def _registered(settings: Settings) -> list[RegisteredSchema]:
    names = topic_names(settings.topic_prefix)
    registry = registry_of(settings)
    if registry is None:
        raise SetupError("no schema registry is set: set SCHEMA_REGISTRY_URL")
    async with registry:
        for schema in SCHEMAS.released:
            await register(registry, schema, names.of)
        return await registered_schemas(registry, names)
