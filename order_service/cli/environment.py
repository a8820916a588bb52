"""The settings of every command, or one line for each invalid one."""

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import structlog
import typer
from pydantic import SecretStr, ValidationError

from order_service.runtime import logs
from order_service.sdk.log_index import LogIndex
from order_service.settings import Settings, service_links, variable

log = structlog.get_logger()

LOCAL_PARTITIONS = 4
"""A local machine does not need 12 partitions, and starts faster with fewer."""


def read_settings(*, for_local: bool = True) -> Settings:
    """Read the settings from the environment. On errors print one line for each, and exit with 2.

    With `for_local`, a local Kafka has its own defaults.
    """
    try:
        return with_kafka_defaults(Settings()) if for_local else Settings()
    except ValidationError as error:
        for line in fault_lines(error):
            typer.echo(line, err=True)
        raise typer.Exit(2) from error


def log_index_of(settings: Settings) -> LogIndex | None:
    """Return the views as an index of the log, or None if ORDERS_DATABASE_URL is not set.

    Also None where only the command line is installed: it has no database driver, and reads the log.
    """
    if not settings.database_url.get_secret_value():
        return None
    try:
        from order_service.views.log_index import ViewsIndex  # noqa: PLC0415 - a database driver takes long to import
    except ModuleNotFoundError:
        return None
    return ViewsIndex(settings)


def configure_log(
    settings: Settings,
    role: str,
    *,
    as_json: bool = False,
    style: logs.Style = "",
    levels: Mapping[str, str] = MappingProxyType({}),
    fields: Mapping[str, object] = MappingProxyType({}),
) -> None:
    """Configure the log of a process that keeps running, and warn about settings that it ignores.

    `role` is its command. `style` and `levels` are its defaults, if settings do not name others. With `as_json` the
    format is JSON, in the names that the setting wants. Every line has the `fields`.
    """
    style = settings.log or style
    if as_json and style in {"", "console"}:
        style = "json"
    logs.configure(style, fields=fields, levels={**levels, **settings.level_of_loggers}, role=role)
    if not logs.is_for_people(style):
        logs.log_uncaught_errors()
    if links := service_links():
        log.warning("Variables that Kubernetes sets for Services are ignored as settings.", variables=links)


def fault_lines(error: ValidationError) -> Iterator[str]:
    """Yield the variable and message of each error, but never the value: it may be a secret.

    The message of a fault of several settings names them itself.
    """
    for fault in error.errors():
        message = fault["ctx"]["error"] if fault["type"] == "value_error" else fault["msg"]  # without "Value error, "
        yield f"{variable(str(fault['loc'][0]))}: {message}" if fault["loc"] else str(message)


def with_kafka_defaults(settings: Settings) -> Settings:
    """Return the settings with the defaults for the Kafka in use, so that all commands in all terminals agree.

    A local Kafka has 4 partitions unless ORDERS_PARTITIONS is set. ORDERS_KAFKA selects the local one even if
    KAFKA_BOOTSTRAP_SERVERS is set.
    """
    if settings.kafka_bootstrap_servers and not settings.kafka:
        return settings
    changes: dict[str, Any] = {"kafka_bootstrap_servers": ""}
    if "partitions" not in settings.model_fields_set:
        changes["partitions"] = LOCAL_PARTITIONS
    return settings.model_copy(update=changes)


def redacted(settings: Settings) -> dict[str, str | int | float | None]:
    """Return each variable with its value; secrets are masked."""
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
