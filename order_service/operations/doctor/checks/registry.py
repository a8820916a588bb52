"""The schema registry: which of the released schemas it has."""

from msgspec import Struct

from order_service.kafka.registry_client import COMPATIBILITY, SchemaRegistry, registry_of
from order_service.kafka.topics import TopicNames, topic_names
from order_service.operations.doctor.checks.check import Result, address_of, not_checked, ok, problem, sentence
from order_service.settings import Settings
from order_service.wire.schemas.catalogue import SCHEMAS, Schema


class RegisteredSchema(Struct, frozen=True):
    """A released schema with its own id, and its id in a registry if one is set and has the schema."""

    file: str
    id: int
    subject: str
    registry_id: int | None
    compatibility: str | None

    @classmethod
    def of(
        cls, names: TopicNames, schema: Schema, registry_id: int | None, compatibility: str | None
    ) -> "RegisteredSchema":
        """Return a schema with what a registry has of it."""
        subject = schema.subject(names.of(schema.message))
        return cls(schema.file, schema.id, subject, registry_id, compatibility)

    def faults(self) -> list[str]:
        """Return what the registry lacks of this schema."""
        if self.registry_id is None:
            return [f"the schema registry lacks {self.file} in {self.subject}: run `order-service schemas register`"]
        if self.compatibility != COMPATIBILITY:
            level = f"the compatibility {self.compatibility}, not {COMPATIBILITY}"
            return [f"{self.subject} has {level}: run `schemas register`"]
        return []


async def registered_schemas(registry: SchemaRegistry, names: TopicNames) -> list[RegisteredSchema]:
    """Return the released schemas as the registry has them. Raises RegistryAwayError."""

    async def look_up(schema: Schema) -> RegisteredSchema:
        subject = schema.subject(names.of(schema.message))
        registry_id = await registry.id_of(subject, schema.text)
        return RegisteredSchema.of(names, schema, registry_id, await registry.compatibility(subject))

    return [await look_up(schema) for schema in SCHEMAS.released]


async def check_registry(settings: Settings) -> list[Result]:
    """Check that the schema registry has the released schemas. Raises RegistryAwayError."""
    client = registry_of(settings)
    if client is None:
        return [not_checked("SCHEMA_REGISTRY_URL is not set: records have the ids of the released schemas.")]
    async with client as registry:
        schemas = await registered_schemas(registry, topic_names(settings.topic_prefix))
    faults = [fault for schema in schemas for fault in schema.faults()]
    if faults:
        more = f", and {len(faults) - 1} more" if len(faults) > 1 else ""
        return [problem(sentence(faults[0] + more), "Run `order-service schemas register`.")]
    return [ok(f"{address_of(settings.schema_registry_url)} has all {len(schemas)} schemas.")]
