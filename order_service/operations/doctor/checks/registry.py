"""The schema registry: whether each of its URLs answers, and which of the released schemas it has."""

import asyncio

from msgspec import Struct, structs

from order_service.errors import RegistryAwayError, RegistryDeniedError
from order_service.kafka.registry_client import (
    COMPATIBILITY,
    REGISTERS,
    RegistryPolicy,
    SchemaRegistry,
    registry_of,
    visible_level,
)
from order_service.kafka.topics import TopicNames, topic_names
from order_service.operations.doctor.checks.check import (
    Result,
    address_of,
    not_checked,
    ok,
    problem,
    sentence,
    warning,
)
from order_service.settings import Settings
from order_service.wire.schemas.catalogue import SCHEMAS, Schema


class RegisteredSchema(Struct, frozen=True):
    """A released schema with its own id, and its id in a registry if one is set and has the schema.

    `compatibility` is the level in effect for its subject, or None if this account may not see it.
    """

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

    @property
    def fault(self) -> str:
        """What the registry lacks of this schema, or an empty text."""
        if self.registry_id is None:
            return f"the schema registry lacks {self.file} in {self.subject}: run `order-service schemas register`"
        return ""

    @property
    def risk(self) -> str:
        """Why a later version could break readers, or an empty text."""
        if self.registry_id is None or self.compatibility in {None, COMPATIBILITY}:
            return ""
        return f"{self.subject} has the compatibility {self.compatibility}, which is weaker than {COMPATIBILITY}"


async def registered_schemas(registry: SchemaRegistry, names: TopicNames) -> list[RegisteredSchema]:
    """Return the released schemas as the registry has them. Raises RegistryAwayError."""

    async def look_up(schema: Schema) -> RegisteredSchema:
        subject = schema.subject(names.of(schema.message))
        registry_id = await registry.id_of(subject, schema.text)
        return RegisteredSchema.of(names, schema, registry_id, await visible_level(registry, subject))

    return [await look_up(schema) for schema in SCHEMAS.released]


async def check_registry(settings: Settings) -> list[Result]:
    """Check that the schema registry has the released schemas. Raises RegistryAwayError."""
    client = registry_of(settings)
    if client is None:
        return [not_checked("SCHEMA_REGISTRY_URL is not set: records have the ids of the released schemas.")]
    names = topic_names(settings.topic_prefix)
    async with client as registry:
        schemas = await registered_schemas(registry, names)
        address = address_of(registry.url)
    results = await _silent_urls(settings)
    if faults := [schema.fault for schema in schemas if schema.fault]:
        results.append(problem(_first_of(faults), f"Run {REGISTERS} with an account that may register."))
    if risks := sorted({schema.risk for schema in schemas if schema.risk}):
        advice = f"If the level may be changed, set it with `PUT /config/SUBJECT` to {COMPATIBILITY}."
        results.append(warning(_first_of(risks), advice))
    return results or [ok(f"{address} has all {len(schemas)} schemas.")]


def _first_of(texts: list[str]) -> str:
    return sentence(texts[0] + (f", and {len(texts) - 1} more" if len(texts) > 1 else ""))


async def _silent_urls(settings: Settings) -> list[Result]:
    """Return a warning for each of several URLs that does not answer: the others are used."""
    if len(settings.schema_registry_urls) == 1:
        return []
    policy = RegistryPolicy.from_settings(settings)
    reasons = await asyncio.gather(*(_silence(structs.replace(policy, urls=(url,))) for url in policy.urls))
    advice = "Start it. Until then, the other URLs are used."
    return [warning(sentence(reason), advice) for reason in reasons if reason]


async def _silence(policy: RegistryPolicy) -> str:
    """Return why a registry does not answer, or an empty text."""
    try:
        async with SchemaRegistry(policy) as registry:
            await registry.text_of(1)
    except RegistryDeniedError:
        return ""
    except RegistryAwayError as error:
        return str(error)
    return ""
