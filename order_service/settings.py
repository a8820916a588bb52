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
from pydantic_settings import BaseSettings, SettingsConfigDict

Port = int
SIGNATURES = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
"""Signature algorithms for tokens: asymmetric only, so that a process that checks tokens cannot issue one."""


class Settings(BaseSettings):
    """All settings with their defaults, which suit a run on one machine. Names of times end in `_s` or `_ms`."""

    model_config = SettingsConfigDict(env_prefix="ORDERS_", frozen=True, extra="ignore")

    # Kafka
    kafka_bootstrap_servers: str = Field(
        "", validation_alias=AliasChoices("KAFKA_BOOTSTRAP_SERVERS", "kafka_bootstrap_servers")
    )
    kafka: Literal["", "embedded", "docker"] = ""
    kafka_security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    kafka_sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "SCRAM-SHA-512"
    kafka_sasl_username: str = ""
    kafka_sasl_password: SecretStr = SecretStr("")
    kafka_ssl_cafile: Path | None = None
    app_id: str = Field("orders", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    instance_id: str = Field("", pattern=r"^[A-Za-z0-9._-]{0,200}$")
    session_timeout_s: PositiveFloat = 15.0

    # Topics
    partitions: PositiveInt = 12
    topic_prefix: str = Field("", pattern=r"^[A-Za-z0-9._-]{0,100}$")

    # Worker
    clock_skew_max_s: PositiveFloat = 60.0
    turn_ms: PositiveInt = 20
    user_deadline_s: PositiveFloat = 3600.0
    waiting_max: PositiveInt = 20_000
    payment_due_s: PositiveFloat | None = None

    # User Service
    user_service_url: str = Field(
        "http://127.0.0.1:8090", validation_alias=AliasChoices("USER_SERVICE_URL", "user_service_url")
    )
    user_service_path: str = "/v1/users/{id}"
    user_service_field: str = "status"
    user_service_token: SecretStr = SecretStr("")
    user_service_concurrency: PositiveInt = 256
    user_cache_s: PositiveFloat = 60.0

    # Schema registry
    schema_registry_url: str = Field("", validation_alias=AliasChoices("SCHEMA_REGISTRY_URL", "schema_registry_url"))
    schema_registry_username: str = ""
    schema_registry_password: SecretStr = SecretStr("")

    # Views
    database_url: SecretStr = SecretStr("")

    # Authentication
    jwt_jwks_url: str = ""
    jwt_key_file: Path | None = None
    jwt_issuer: str = ""
    jwt_audience: str = ""
    jwt_algorithms: str = "RS256,ES256"

    # HTTP
    web_is_on_loopback: bool = False
    web_connections_max: PositiveInt = 5_000
    web_waiting_max: PositiveInt = 1_000
    web_streams_max: PositiveInt = 4_000
    web_rate_per_s: PositiveFloat = 50.0

    # Command line: the HTTP server to call
    url: str = ""
    token: SecretStr = SecretStr("")

    # Addresses, files and logs
    host: str = "127.0.0.1"
    http_port: Port = Field(8080, ge=0, le=65535)
    admin_port: Port = Field(9100, ge=0, le=65535)
    users_port: Port = Field(8090, ge=0, le=65535)
    kafka_port: Port = Field(9092, ge=0, le=65535)
    data_dir: Path = Path(".data")
    log: Literal["", "json", "console"] = ""

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
