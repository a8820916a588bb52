"""All settings, read from the environment: `ORDERS_…`, and three names that are common to many programs."""

from __future__ import annotations

from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pydantic import (
    AliasChoices,
    Field,
    HttpUrl,
    PositiveFloat,
    PositiveInt,
    SecretStr,
    TypeAdapter,
    ValidationInfo,
    field_validator,
)
from pydantic.config import JsonDict
from pydantic_settings import BaseSettings, SettingsConfigDict

Port = int
SIGNATURES = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
"""Signature algorithms for tokens: asymmetric only, so that a process that checks tokens cannot issue one."""

# The processes that use a setting, as docs/reference/settings.md names them.
EVERY_PROCESS = "every process"
WORKER = "`worker`"
WEB = "`web`"
VIEWS = "`projector`, `web` and `views`"
SERVED = "`worker`, `projector` and `web`"
CLIENTS = "`show` and `list`"


def _on_page(used_by: str, *, unit: str = "", default: str = "") -> JsonDict:
    """Return what docs/reference/settings.md shows beside a description; `default` is for one that has no value."""
    return {"used_by": used_by, "unit": unit, "default_text": default}


class Settings(BaseSettings):
    """All settings with their defaults, which suit a run on one machine. Names of times end in `_s` or `_ms`."""

    model_config = SettingsConfigDict(env_prefix="ORDERS_", frozen=True, extra="ignore")

    # Kafka
    kafka_bootstrap_servers: str = Field(
        "",
        validation_alias=AliasChoices("KAFKA_BOOTSTRAP_SERVERS", "kafka_bootstrap_servers"),
        description="The Kafka cluster to use. Without it, a local one is used.",
        json_schema_extra=_on_page(EVERY_PROCESS),
    )
    kafka: Literal["", "embedded", "docker"] = Field(
        "",
        description="Forces a local Kafka, run by Java or by Docker. It overrides `KAFKA_BOOTSTRAP_SERVERS`.",
        json_schema_extra=_on_page(EVERY_PROCESS),
    )
    kafka_security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        "PLAINTEXT",
        description="The security protocol of every Kafka client.",
        json_schema_extra=_on_page(EVERY_PROCESS),
    )
    kafka_sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = Field(
        "SCRAM-SHA-512",
        description="The SASL mechanism of every Kafka client.",
        json_schema_extra=_on_page(EVERY_PROCESS),
    )
    kafka_sasl_username: str = Field(
        "",
        description="The SASL user name for Kafka.",
        json_schema_extra=_on_page(EVERY_PROCESS),
    )
    kafka_sasl_password: SecretStr = Field(
        SecretStr(""),
        description="The SASL password for Kafka.",
        json_schema_extra=_on_page(EVERY_PROCESS),
    )
    kafka_ssl_cafile: Path | None = Field(
        None,
        description="The CA bundle that verifies Kafka's certificates.",
        json_schema_extra=_on_page(EVERY_PROCESS, default="the system's"),
    )
    app_id: str = Field(
        "orders",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$",
        description=(
            "With `ORDERS_TOPIC_PREFIX` before it: the consumer group, and the prefix of the transactional ids."
        ),
        json_schema_extra=_on_page("`worker` and the SDK"),
    )
    instance_id: str = Field(
        "",
        pattern=r"^[A-Za-z0-9._-]{0,200}$",
        description=(
            "The name of a static member: a restarted process is the same member, without a rebalance. On "
            "SIGTERM a worker leaves the group, unless this is set. It must differ on each worker, and so must "
            "the default: of two machines with one host name, the second worker ends (14). A new machine or "
            "container with the host name of a dead one replaces it after the session timeout."
        ),
        json_schema_extra=_on_page(WORKER, default="host name and admin port"),
    )
    session_timeout_s: PositiveFloat = Field(
        15.0,
        description=(
            "The time after which the partitions of a silent worker go to other workers; in the SDK, those of a silent "
            "member of a group. A process whose event loop hangs for that long, at least 10 s, ends with 15."
        ),
        json_schema_extra=_on_page("`worker`, `projector`, `web` and the SDK", unit="s"),
    )

    # Topics
    partitions: PositiveInt = Field(
        12,
        description="The number of partitions of each topic. Do not change it later. A local Kafka has 4 by default.",
        json_schema_extra=_on_page(EVERY_PROCESS, unit="partitions"),
    )
    topic_prefix: str = Field(
        "",
        pattern=r"^[A-Za-z0-9._-]{0,100}$",
        description=(
            "The prefix of the topic names, the group and the transactional ids. It separates services on one "
            "Kafka cluster."
        ),
        json_schema_extra=_on_page(EVERY_PROCESS),
    )

    # Worker
    clock_skew_max_s: PositiveFloat = Field(
        60.0,
        description=(
            "The largest accepted difference between a worker's clock and Kafka's. A worker with a larger one "
            "does not take part."
        ),
        json_schema_extra=_on_page(WORKER, unit="s"),
    )
    turn_ms: PositiveInt = Field(
        20,
        description="The minimum time between the starts of two turns; a quarter of it after a turn of one command.",
        json_schema_extra=_on_page(WORKER, unit="ms"),
    )
    user_deadline_s: PositiveFloat = Field(
        3600.0,
        description="The time after which a create is refused if the User Service has not answered about its user.",
        json_schema_extra=_on_page(WORKER, unit="s"),
    )
    waiting_max: PositiveInt = Field(
        20_000,
        description="How many commands may wait per partition before that partition pauses.",
        json_schema_extra=_on_page(WORKER, unit="commands"),
    )
    payment_due_s: PositiveFloat | None = Field(
        None,
        description="The time after which an unpaid order is cancelled.",
        json_schema_extra=_on_page(WORKER, unit="s", default="off"),
    )

    # User Service
    user_service_url: str = Field(
        "http://127.0.0.1:8090",
        validation_alias=AliasChoices("USER_SERVICE_URL", "user_service_url"),
        description="The base URL of the User Service.",
        json_schema_extra=_on_page(WORKER),
    )
    user_service_path: str = Field(
        "/v1/users/{id}",
        description="The path of a user lookup; it contains `{id}` exactly once.",
        json_schema_extra=_on_page(WORKER),
    )
    user_service_field: str = Field(
        "status",
        description="The field of the User Service's response that tells whether the user is active.",
        json_schema_extra=_on_page(WORKER),
    )
    user_service_token: SecretStr = Field(
        SecretStr(""),
        description="The bearer token for the User Service.",
        json_schema_extra=_on_page(WORKER),
    )
    user_service_concurrency: PositiveInt = Field(
        256,
        description="How many user lookups may run at the same time.",
        json_schema_extra=_on_page(WORKER, unit="lookups"),
    )
    user_cache_s: PositiveFloat = Field(
        60.0,
        description=(
            "How long an active answer is cached, for at most 100,000 users per worker. A deactivated user can "
            "order for that long, plus the time that a command waits for its turn. A lower value causes more "
            "lookups."
        ),
        json_schema_extra=_on_page(WORKER, unit="s"),
    )

    # Schema registry
    schema_registry_url: str = Field(
        "",
        validation_alias=AliasChoices("SCHEMA_REGISTRY_URL", "schema_registry_url"),
        description=(
            "A schema registry with Confluent's API. Records then carry the ids that it assigns: see [evolving a "
            "schema](../guide/evolving-schemas.md)."
        ),
        json_schema_extra=_on_page(EVERY_PROCESS),
    )
    schema_registry_username: str = Field(
        "",
        description="The user name for the schema registry.",
        json_schema_extra=_on_page(EVERY_PROCESS),
    )
    schema_registry_password: SecretStr = Field(
        SecretStr(""),
        description="The password for the schema registry.",
        json_schema_extra=_on_page(EVERY_PROCESS),
    )

    # Views
    database_url: SecretStr = Field(
        SecretStr(""),
        description=(
            "The database of the views: `sqlite:///FILE` or `postgresql://...`. The views can be dropped (the "
            "files `views.db*`, or the tables) and are then rebuilt from the log. The URL must lead to one "
            "server: behind an address that spreads reads over several replicas, `web` can miss an outcome and "
            "answer 202."
        ),
        json_schema_extra=_on_page(VIEWS, default="`views.db` in `ORDERS_DATA_DIR`"),
    )

    # Authentication
    jwt_jwks_url: str = Field(
        "",
        description=(
            "The URL of the JWKS with the keys that verify tokens. Set this or `ORDERS_JWT_KEY_FILE`. Without "
            "both, authentication is off, which is allowed only on loopback."
        ),
        json_schema_extra=_on_page(WEB, default="off"),
    )
    jwt_key_file: Path | None = Field(
        None,
        description="A file with the key that verifies tokens, instead of `ORDERS_JWT_JWKS_URL`.",
        json_schema_extra=_on_page(WEB, default="off"),
    )
    jwt_issuer: str = Field(
        "",
        description="The required issuer (`iss`) of a token.",
        json_schema_extra=_on_page(WEB),
    )
    jwt_audience: str = Field(
        "",
        description="The required audience (`aud`) of a token.",
        json_schema_extra=_on_page(WEB),
    )
    jwt_algorithms: str = Field(
        "RS256,ES256",
        description="The accepted signature algorithms of tokens, separated by commas.",
        json_schema_extra=_on_page(WEB),
    )

    # HTTP
    http_published_on_loopback: bool = Field(
        False,
        description=(
            "Set `true` if the port is published on 127.0.0.1 only, as for a container. `ORDERS_HOST` may then be any "
            "address without authentication."
        ),
        json_schema_extra=_on_page(WEB),
    )
    web_connections_max: PositiveInt = Field(
        5_000,
        description="How many connections may be open.",
        json_schema_extra=_on_page(WEB, unit="connections"),
    )
    web_waiting_max: PositiveInt = Field(
        1_000,
        description="How many requests may be held; a quarter of them for one subject.",
        json_schema_extra=_on_page(WEB, unit="requests"),
    )
    web_streams_max: PositiveInt = Field(
        4_000,
        description="How many streams may be open.",
        json_schema_extra=_on_page(WEB, unit="streams"),
    )
    web_rate_per_s: PositiveFloat = Field(
        50.0,
        description="The request rate allowed for each subject.",
        json_schema_extra=_on_page(WEB, unit="requests/s"),
    )

    # Command line: the HTTP server to call
    url: str = Field(
        "",
        description="The HTTP server to call.",
        json_schema_extra=_on_page(CLIENTS, default="the local one"),
    )
    token: SecretStr = Field(
        SecretStr(""),
        description="The bearer token for that server.",
        json_schema_extra=_on_page(CLIENTS),
    )

    # Addresses, files and logs
    host: str = Field(
        "127.0.0.1",
        description="The address to listen on.",
        json_schema_extra=_on_page(EVERY_PROCESS),
    )
    http_port: Port = Field(
        8080,
        ge=0,
        le=65535,
        description="The port for callers.",
        json_schema_extra=_on_page("`web`, `up`, `show` and `list`"),
    )
    admin_port: Port = Field(
        9100,
        ge=0,
        le=65535,
        description=(
            "The port of `/health/live`, `/health/ready` and `/metrics`. It is not for callers. With `up` it is the "
            "worker's; `projector` and `web` then get free ports."
        ),
        json_schema_extra=_on_page(SERVED),
    )
    users_port: Port = Field(
        8090,
        ge=0,
        le=65535,
        description="The port of the User Service stub.",
        json_schema_extra=_on_page("`up` and `users`"),
    )
    kafka_port: Port = Field(
        9092,
        ge=0,
        le=65535,
        description="The port of the local Kafka.",
        json_schema_extra=_on_page(EVERY_PROCESS),
    )
    data_dir: Path = Field(
        Path(".data"),
        description="The folder of the local Kafka, and of the views if they are in SQLite.",
        json_schema_extra=_on_page("`up`, `projector`, `web` and `views`"),
    )
    log: Literal["", "json", "console"] = Field(
        "",
        description="The format of the log output. By default, it depends on whether the output is a terminal.",
        json_schema_extra=_on_page(EVERY_PROCESS, default="by terminal"),
    )

    @property
    def group_id(self) -> str:
        """The consumer group of the workers and the prefix of their transactional ids, unique for each topic prefix."""
        return f"{self.topic_prefix}{self.app_id}"

    @field_validator("user_service_url", "url", "schema_registry_url")
    @classmethod
    def _http_url(cls, url: str, field: ValidationInfo) -> str:
        if field.field_name != "user_service_url" and not url:
            return url
        TypeAdapter(HttpUrl).validate_python(url)
        if urlsplit(url).query or urlsplit(url).fragment:
            raise ValueError("must not have a query or a fragment")
        return url.rstrip("/")

    @field_validator("schema_registry_url")
    @classmethod
    def _without_a_password(cls, url: str) -> str:
        if urlsplit(url).username is not None:
            raise ValueError("must not contain credentials: set ORDERS_SCHEMA_REGISTRY_USERNAME and …_PASSWORD")
        return url

    @field_validator("jwt_jwks_url")
    @classmethod
    def _http_url_or_none(cls, url: str) -> str:
        """Return the URL unchanged: a query may name a policy, and a trailing slash may lead to another document."""
        if url:
            TypeAdapter(HttpUrl).validate_python(url)
        if urlsplit(url).fragment:
            raise ValueError("must not have a fragment")
        return url

    @field_validator("jwt_key_file", mode="before")
    @classmethod
    def _file_or_none(cls, path: object) -> object:
        return None if path == "" else path

    @field_validator("jwt_algorithms")
    @classmethod
    def _key_pairs_only(cls, names: str) -> str:
        algorithms = [name.strip() for name in names.split(",")]
        if not set(algorithms) <= set(SIGNATURES):
            raise ValueError("must be one or more of " + ",".join(SIGNATURES))
        return ",".join(algorithms)

    @field_validator("user_service_path")
    @classmethod
    def _path_has_id(cls, path: str) -> str:
        if not path.startswith("/") or path.count("{id}") != 1:
            raise ValueError("must start with / and contain {id} exactly once")
        return path


def variable(field: str) -> str:
    """Return the environment variable of a setting; of any other name, the name itself."""
    definition = Settings.model_fields.get(field)
    if definition is None:
        return field
    alias = definition.validation_alias
    return str(alias.choices[0]) if isinstance(alias, AliasChoices) else f"ORDERS_{field.upper()}"
