"""What every command begins with: the settings, or one line for each that is wrong."""

from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import typer
from pydantic import AliasChoices, SecretStr, ValidationError

from order_service.settings import Settings

LOCAL_PARTITIONS = 4
"""A machine of one's own needs no 12 partitions, and starts faster with fewer."""


def read_settings() -> Settings:
    """Read the settings from the environment; on a fault say it, one line each, and exit with 2."""
    try:
        return for_the_kafka_in_use(Settings())
    except ValidationError as error:
        for line in fault_lines(error):
            typer.echo(line, err=True)
        raise typer.Exit(2) from error


def fault_lines(error: ValidationError) -> Iterator[str]:
    """Name the variable of each fault, and never its value: it may be a secret."""
    for fault in error.errors():
        name = str(fault["loc"][0]) if fault["loc"] else ""
        yield f"{variable(name)}: {fault['msg']}"


def for_the_kafka_in_use(settings: Settings) -> Settings:
    """Fill in what depends on which Kafka is meant, so that all commands in all terminals mean the same.

    A local Kafka has 4 partitions unless ORDERS_PARTITIONS says otherwise; ORDERS_KAFKA means the local one even where
    KAFKA_BOOTSTRAP_SERVERS names another.
    """
    if settings.kafka_bootstrap_servers and not settings.kafka:
        return settings
    changes: dict[str, Any] = {"kafka_bootstrap_servers": ""}
    if "partitions" not in settings.model_fields_set:
        changes["partitions"] = LOCAL_PARTITIONS
    return settings.model_copy(update=changes)


def variable(field: str) -> str:
    """Give the environment variable of a setting."""
    known = Settings.model_fields.get(field)
    if known is None:
        return field
    alias = known.validation_alias
    return str(alias.choices[0]) if isinstance(alias, AliasChoices) else f"ORDERS_{field.upper()}"


def redacted(settings: Settings) -> dict[str, str | int | float | None]:
    """Give each variable and its value, without what is secret."""
    return {variable(field): _shown(getattr(settings, field)) for field in Settings.model_fields}


def _shown(value: object) -> str | int | float | None:
    match value:
        case SecretStr():
            return "**********" if value.get_secret_value() else ""
        case int() | float() | None:
            return value
        case _:
            return _without_password(str(value))


def _without_password(text: str) -> str:
    if "://" not in text or "@" not in text:
        return text
    parts = urlsplit(text)
    return urlunsplit(parts._replace(netloc="**********@" + parts.netloc.rpartition("@")[2]))
