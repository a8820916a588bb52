"""The released schemas: what there is, whether it is as it must be, and bringing it into a schema registry."""

import asyncio

import typer
from msgspec import Struct

from order_service.cli import show
from order_service.cli.environment import read_settings
from order_service.cli.options import AsJson
from order_service.errors import SetupError
from order_service.kafka.registry_client import COMPATIBILITY, register, registry_of
from order_service.kafka.topics import TopicNames, topic_names
from order_service.settings import Settings
from order_service.wire.schemas import files
from order_service.wire.schemas.catalogue import SCHEMAS, Schema

schemas = typer.Typer(
    no_args_is_help=True, help="List the Avro schemas, check them, or bring them into SCHEMA_REGISTRY_URL."
)


class Listed(Struct, frozen=True):
    """A schema: its own id, and the one that a registry gave it, if there is one and it has it."""

    file: str
    id: int
    subject: str
    registry_id: int | None
    compatibility: str | None


@schemas.command("list")
def schemas_list(as_json: AsJson = False) -> None:
    """List the released schemas, and by which ids a schema registry has them."""
    found = asyncio.run(_listed(read_settings()))
    if as_json:
        for one in found:
            show.json_line(one)
        return
    rows = [("", (one.file, str(one.id), _text(one.registry_id), one.subject)) for one in found]
    show.table(("file", "id", "registry id", "subject"), rows)


@schemas.command("check")
def schemas_check(as_json: AsJson = False) -> None:
    """Check that released files are as they were, and that a schema registry has all of them; exit with 1 if not."""
    settings = read_settings()
    faults = files.faults(files.folder())
    if settings.schema_registry_url and not faults:
        faults = [fault for one in asyncio.run(_listed(settings)) for fault in _faults(one)]
    if as_json:
        show.json_line({"ok": not faults, "faults": faults})
    elif faults:
        for fault in faults:
            typer.echo(f"order-service: {fault}", err=True)
    else:
        where = f"; {settings.schema_registry_url} has them" if settings.schema_registry_url else ""
        typer.echo(f"all {len(SCHEMAS.released)} schemas are as they must be{where}")
    raise typer.Exit(1 if faults else 0)


@schemas.command("register")
def schemas_register(as_json: AsJson = False) -> None:
    """Bring all released schemas into SCHEMA_REGISTRY_URL, and let it refuse what would break them."""
    for one in asyncio.run(_registered(read_settings())):
        if as_json:
            show.json_line(one)
        else:
            typer.echo(f"{one.registry_id:>10} {one.subject} version {files.name_and_version(one.file)[1]}")


def _faults(one: Listed) -> list[str]:
    if one.registry_id is None:
        return [f"the schema registry has no {one.file} in {one.subject}: run `order-service schemas register`"]
    if one.compatibility != COMPATIBILITY:
        return [f"{one.subject} has the compatibility {one.compatibility}, not {COMPATIBILITY}: run `schemas register`"]
    return []


async def _listed(settings: Settings) -> list[Listed]:
    names = topic_names(settings.topic_prefix)
    registry = registry_of(settings)
    if registry is None:
        return [_line(names, schema, None, None) for schema in SCHEMAS.released]
    async with registry:
        return [
            _line(names, schema, await registry.id_of(subject, schema.text), await registry.compatibility(subject))
            for schema, subject in ((schema, schema.subject(names.of(schema.message))) for schema in SCHEMAS.released)
        ]


async def _registered(settings: Settings) -> list[Listed]:
    names = topic_names(settings.topic_prefix)
    registry = registry_of(settings)
    if registry is None:
        raise SetupError("there is no schema registry to bring them into: set SCHEMA_REGISTRY_URL")
    async with registry:
        return [
            _line(names, schema, await register(registry, schema, names.of), COMPATIBILITY)
            for schema in SCHEMAS.released
        ]


def _line(names: TopicNames, schema: Schema, registry_id: int | None, compatibility: str | None) -> Listed:
    return Listed(schema.file, schema.id, schema.subject(names.of(schema.message)), registry_id, compatibility)


def _text(registry_id: int | None) -> str:
    return "" if registry_id is None else str(registry_id)
