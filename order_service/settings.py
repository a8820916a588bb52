"""All settings, from the environment: `ORDERS_…`, and two names that everybody uses."""

from __future__ import annotations

from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pydantic import AliasChoices, Field, HttpUrl, PositiveFloat, PositiveInt, SecretStr, TypeAdapter, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

Port = int


class Settings(BaseSettings):
    """What can be set. Times end in `_s` or `_ms`; every default is fit for a run on one machine."""

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

    # Deciding
    turn_ms: PositiveInt = 20
    user_deadline_s: PositiveFloat = 3600.0
    waiting_max: PositiveInt = 20_000
    payment_due_s: PositiveFloat | None = None

    # The User Service
    user_service_url: str = Field(
        "http://127.0.0.1:8090", validation_alias=AliasChoices("USER_SERVICE_URL", "user_service_url")
    )
    user_service_path: str = "/v1/users/{id}"
    user_service_field: str = "status"
    user_service_token: SecretStr = SecretStr("")
    user_service_concurrency: PositiveInt = 256

    # The views
    database_url: SecretStr = SecretStr("")

    # Ports and places
    host: str = "127.0.0.1"
    admin_port: Port = Field(9100, ge=0, le=65535)
    users_port: Port = Field(8090, ge=0, le=65535)
    kafka_port: Port = Field(9092, ge=0, le=65535)
    data_dir: Path = Path(".data")
    log: Literal["", "json", "console"] = ""

    @field_validator("user_service_url")
    @classmethod
    def _http_url(cls, url: str) -> str:
        TypeAdapter(HttpUrl).validate_python(url)
        if urlsplit(url).query or urlsplit(url).fragment:
            raise ValueError("must have neither a query nor a fragment")
        return url.rstrip("/")

    @field_validator("user_service_path")
    @classmethod
    def _path_has_id(cls, path: str) -> str:
        if not path.startswith("/") or path.count("{id}") != 1:
            raise ValueError("must start with / and hold {id} exactly once")
        return path
