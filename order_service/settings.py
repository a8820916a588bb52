"""All settings, read from the environment: `ORDERS_…`, and three names that are common to many programs."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self, TypeVar, get_args
from urllib.parse import urlsplit

from pydantic import (
    AliasChoices,
    Field,
    HttpUrl,
    PositiveInt,
    SecretStr,
    TypeAdapter,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.config import JsonDict
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

_T = TypeVar("_T")

MAX_FLOAT: Final = 1e9
"""The upper limit of settings and options that accept fractions; for seconds, about 31 years."""
Positive = Annotated[float, Field(gt=0, le=MAX_FLOAT)]
SessionTimeout = Annotated[float, Field(gt=0, le=86_400)]
Leeway = Annotated[float, Field(ge=0, le=3600)]
Port = Annotated[int, Field(ge=0, le=65535)]
SIGNATURES = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
"""Signature algorithms for tokens: asymmetric only, so that a process that checks tokens cannot issue one."""
SECRET_MAX_BYTES: Final = 64 * 1024
"""The largest file that is read for a secret."""
_SERVICE_LINK: Final = re.compile(r"(tcp|udp|sctp)://")
"""The beginning of what Kubernetes sets as `ORDERS_KAFKA_PORT` for a Service that is called `orders-kafka`."""

NOT_FOUND_STATUSES: Final = frozenset({"204", *map(str, range(400, 500))} - {"401", "403", "407", "408", "429"})
"""Statuses that may mean that a user does not exist; the others concern the service, or our request."""
HOST_NAME: Final = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,251}[a-z0-9])?", re.ASCII)
ADDRESS: Final = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]{1,253}):[1-9][0-9]{0,4}", re.ASCII)
ORIGIN: Final = re.compile(rf"https?://{HOST_NAME.pattern}(?::[0-9]{{1,5}})?", re.ASCII)
LEVELS: Final = ("debug", "info", "warning", "error", "critical")
LOGGER_LEVEL: Final = re.compile(r"([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)\s*=\s*([A-Za-z]+)", re.ASCII)
HEADERS: Final = re.compile(r"([A-Za-z0-9-]+=[\x21-\x2b\x2d-\x7e]+(,|$))*")
DEFAULT_PORT: Final = re.compile(r"https:.*:443|http:.*:80")
BASE_PATH: Final = re.compile(r"(?:/(?!\.{1,2}(?:/|$))[A-Za-z0-9._~-]+)+", re.ASCII)
SCHEMA_BYTES_MAX: Final = 63
"""PostgreSQL cuts longer names off."""

# The processes that use a setting, as docs/reference/settings.md names them.
EVERY_PROCESS = "every process"
WORKER = "`worker`"
WEB = "`web`"
VIEWS = "`projector`, `web` and `views`"
SERVED = "`worker`, `projector` and `web`"
CLIENTS = "`show` and `list`"


def _setting(
    default: _T,
    used_by: str,
    description: str,
    *,
    unit: str = "",
    shown: str = "",
    pattern: str | None = None,
    validation_alias: AliasChoices | None = None,
) -> _T:
    """Return the field of a setting, with its row of docs/reference/settings.md, where `shown` replaces the default."""
    row: JsonDict = {"used_by": used_by, "unit": unit, "default_text": shown}
    return Field(
        default,
        description=description,
        pattern=pattern,
        validation_alias=validation_alias,
        json_schema_extra=row,
    )


class _Environment(EnvSettingsSource):
    """The environment. A secret can also be in a file, whose path is in `…_FILE`; links of Kubernetes are ignored."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """Return the value, or in its place the error that `Settings` raises."""
        value, key, is_complex = super().get_field_value(field, field_name)
        name = variable(field_name)
        if value and _is_service_link(name, value):
            return None, key, is_complex
        if self._has_twin(field, field_name) and (path := self.env_vars.get(f"{name}_FILE".lower())):
            value = ValueError(f"set it or {name}_FILE, not both") if value else _secret(Path(path), f"{name}_FILE")
        return value, key, is_complex

    def _has_twin(self, field: FieldInfo, field_name: str) -> bool:
        """Return whether a setting is a secret whose file is not a setting of its own."""
        is_secret = SecretStr in (field.annotation, *get_args(field.annotation))
        return is_secret and f"{field_name}_file" not in self.settings_cls.model_fields


class Settings(BaseSettings):
    """All settings with their defaults, which suit a run on one machine. Names of times end in `_s` or `_ms`."""

    # Without the input: it may be a secret.
    model_config = SettingsConfigDict(env_prefix="ORDERS_", frozen=True, extra="ignore", hide_input_in_errors=True)

    # Kafka
    kafka_bootstrap_servers: str = _setting(
        "",
        EVERY_PROCESS,
        "The Kafka cluster to use. Without it, a local one is used.",
        validation_alias=AliasChoices("KAFKA_BOOTSTRAP_SERVERS", "kafka_bootstrap_servers"),
    )
    kafka: Literal["", "embedded", "docker"] = _setting(
        "", EVERY_PROCESS, "Forces a local Kafka, run by Java or by Docker. It overrides `KAFKA_BOOTSTRAP_SERVERS`."
    )
    kafka_security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = _setting(
        "PLAINTEXT", EVERY_PROCESS, "The security protocol of every Kafka client."
    )
    kafka_sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER", "AWS_MSK_IAM"] = _setting(
        "SCRAM-SHA-512",
        EVERY_PROCESS,
        "The SASL mechanism of every Kafka client: see [Kafka](../guide/fit-in.md#kafka). `AWS_MSK_IAM` needs the "
        "extra `aws`.",
    )
    kafka_sasl_username: str = _setting("", EVERY_PROCESS, "The user name for `PLAIN` and `SCRAM-...`.")
    kafka_sasl_password: SecretStr = _setting(SecretStr(""), EVERY_PROCESS, "The password for `PLAIN` and `SCRAM-...`.")
    kafka_oauth_token_url: str = _setting(
        "",
        EVERY_PROCESS,
        "For `OAUTHBEARER`: the token endpoint, for client credentials. Set this or `ORDERS_KAFKA_OAUTH_TOKEN_FILE`.",
    )
    kafka_oauth_client_id: str = _setting("", EVERY_PROCESS, "The client id at the token endpoint.")
    kafka_oauth_client_secret: SecretStr = _setting(
        SecretStr(""), EVERY_PROCESS, "The client secret at the token endpoint."
    )
    kafka_oauth_scope: str = _setting("", EVERY_PROCESS, "The scopes to request, separated by spaces.")
    kafka_oauth_audience: str = _setting("", EVERY_PROCESS, "The audience to request, for providers that need one.")
    kafka_oauth_ssl_cafile: Path | None = _setting(
        None, EVERY_PROCESS, "The CA bundle that verifies the token endpoint.", shown="the system's"
    )
    kafka_oauth_token_file: Path | None = _setting(
        None, EVERY_PROCESS, "For `OAUTHBEARER`: a file with the access token. It is read again when it changes."
    )
    kafka_oauth_extensions: str = _setting(
        "",
        EVERY_PROCESS,
        "For `OAUTHBEARER`: SASL extensions as `name=value`, separated by commas. Confluent Cloud needs "
        "`logicalCluster` and `identityPoolId`.",
        pattern=r"^([A-Za-z]+=[\x21-\x2b\x2d-\x7e]+(,|$))*$",
    )
    kafka_aws_region: str = _setting(
        "", EVERY_PROCESS, "For `AWS_MSK_IAM`: the AWS region of the cluster.", pattern=r"^[a-z0-9-]*$"
    )
    kafka_ssl_cafile: Path | None = _setting(
        None, EVERY_PROCESS, "The CA bundle that verifies Kafka's certificates.", shown="the system's"
    )
    kafka_ssl_certfile: Path | None = _setting(
        None, EVERY_PROCESS, "The client certificate for mutual TLS, with its chain, in PEM."
    )
    kafka_ssl_keyfile: Path | None = _setting(
        None, EVERY_PROCESS, "The private key of the client certificate, in PEM. Both may be in one file."
    )
    kafka_ssl_key_password: SecretStr = _setting(
        SecretStr(""), EVERY_PROCESS, "The password of the private key, if it is encrypted."
    )
    app_id: str = _setting(
        "orders",
        "`worker`, `web` and the SDK",
        "With `ORDERS_TOPIC_PREFIX` before it: the consumer group, and the prefix of the transactional ids.",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$",
    )
    instance_id: str = _setting(
        "",
        WORKER,
        "The name of a static member: a restarted process is the same member, without a rebalance. On "
        "SIGTERM a worker leaves the group, unless this is set. It must differ on each worker, and so must "
        "the default: of two machines with one host name, the second worker ends (14). A new machine or "
        "container with the host name of a dead one replaces it after the session timeout.",
        shown="host name and admin port",
        pattern=r"^[A-Za-z0-9._-]{0,200}$",
    )
    session_timeout_s: SessionTimeout = _setting(
        15.0,
        "`worker`, `projector`, `web` and the SDK",
        "The time after which the partitions of a silent worker go to other workers; in the SDK, those of a silent "
        "member of a group. A process whose event loop hangs for that long, at least 10 s, ends with 15.",
        unit="s",
    )

    # Topics
    partitions: PositiveInt = _setting(
        12,
        EVERY_PROCESS,
        "The number of partitions of each topic. Do not change it later. A local Kafka has 4 by default.",
        unit="partitions",
    )
    topic_prefix: str = _setting(
        "",
        EVERY_PROCESS,
        "The prefix of the topic names, the group and the transactional ids. It separates services on one "
        "Kafka cluster.",
        pattern=r"^[A-Za-z0-9._-]{0,100}$",
    )

    # Worker
    workers: PositiveInt = _setting(
        1,
        "`worker` and `up`",
        "The number of processes of a worker, since one process uses one core: see [several "
        "processes](command-line.md#several-processes). Limits of a worker hold for each process. By default, `up` "
        "runs one for two cores, and not more than there are partitions.",
        unit="processes",
    )
    clock_skew_max_s: Positive = _setting(
        60.0,
        WORKER,
        "The largest accepted difference between a worker's clock and Kafka's. A worker with a larger one "
        "does not take part.",
        unit="s",
    )
    table: Literal["memory", "rocksdb"] = _setting(
        "memory",
        WORKER,
        "Where a worker keeps its orders: in memory, or in RocksDB on disk, which excludes `ORDERS_STANDBYS`. See "
        "[tables on disk](../operations/table-on-disk.md).",
    )
    table_dir: Path = _setting(
        Path(".data/table"),
        WORKER,
        "For `ORDERS_TABLE=rocksdb`: the directory of the tables. Each worker needs one of its own.",
    )
    table_cache_mb: Annotated[int, Field(ge=8, le=1_000_000)] = _setting(
        256,
        WORKER,
        "For `ORDERS_TABLE=rocksdb`: the memory for blocks, filters and unwritten changes, of all partitions of a "
        "process.",
        unit="MiB",
    )
    turn_ms: Annotated[int, Field(ge=1, le=1000)] = _setting(
        14,
        WORKER,
        "The minimum time between the starts of two turns; a quarter of it after a turn of one command.",
        unit="ms",
    )
    user_deadline_s: Positive = _setting(
        3600.0,
        WORKER,
        "The time after which a create is refused if the User Service has not answered about its user.",
        unit="s",
    )
    waiting_max: PositiveInt = _setting(
        20_000,
        WORKER,
        "How many commands may wait per partition before that partition pauses. With 128 MiB of them it pauses, too. "
        "If all partitions of a process have 256 MiB, those with the most pause.",
        unit="commands",
    )
    payment_due_s: Positive | None = _setting(
        None, WORKER, "The time after which an unpaid order is cancelled.", unit="s", shown="off"
    )
    remember_closed_days: Annotated[float, Field(gt=0, le=36_500)] | None = _setting(
        None,
        WORKER,
        "How long a delivered or cancelled order remembers its commands. Afterwards it takes less than half of the "
        "memory, and a repeat of one of its commands is refused: see [closed orders](../operations/closed-orders.md). "
        "With less than the retention of the commands topic, `topics check` and `doctor` warn.",
        unit="days",
        shown="for ever",
    )
    standbys: Annotated[int, Field(ge=0, le=1)] = _setting(
        0,
        WORKER,
        "With 1, a second worker follows the changelogs of each partition, and takes the partition over without "
        "restoring its table. It doubles the memory for tables, and needs `ORDERS_TABLE=memory`: see [Standbys]"
        "(../operations/standbys.md).",
    )

    # User Service
    user_service_url: str = _setting(
        "http://127.0.0.1:8090",
        WORKER,
        "The base URL of the User Service.",
        validation_alias=AliasChoices("USER_SERVICE_URL", "user_service_url"),
    )
    user_service_path: str = _setting(
        "/v1/users/{id}", WORKER, "The path of a user lookup; it contains `{id}` exactly once."
    )
    user_service_field: str = _setting(
        "status",
        WORKER,
        "The field of the User Service's response that tells whether the user is active. `user.status` is the field "
        "`status` of the object `user`.",
    )
    user_service_active: str = _setting(
        "active,true",
        WORKER,
        "The values of that field that mean an active user, separated by commas, in any letter case; `true` and "
        "`false` are JSON's, too. A user with any other text or boolean may not order.",
    )
    user_service_not_found: str = _setting(
        "404,410",
        WORKER,
        "The statuses that mean that the user does not exist, separated by commas: 204, or from 400 to 499 without "
        "401, 403, 407, 408 and 429.",
    )
    user_service_token: SecretStr = _setting(SecretStr(""), WORKER, "The bearer token for the User Service.")
    user_service_token_file: Path | None = _setting(
        None, WORKER, "A file with that token. It is read again when it has changed.", shown="off"
    )
    user_service_oauth_token_url: str = _setting(
        "",
        WORKER,
        "The token endpoint that issues access tokens for the User Service (OAuth 2.0 client credentials).",
        shown="off",
    )
    user_service_oauth_client_id: str = _setting("", WORKER, "The client id at the token endpoint.")
    user_service_oauth_client_secret: SecretStr = _setting(
        SecretStr(""), WORKER, "The client secret at the token endpoint."
    )
    user_service_oauth_client_auth: Literal["basic", "post"] = _setting(
        "basic", WORKER, "How client id and secret are sent: in the `Authorization` header, or in the body."
    )
    user_service_oauth_scope: str = _setting("", WORKER, "The scopes to request, separated by spaces.")
    user_service_oauth_audience: str = _setting("", WORKER, "The audience to request, as Auth0 requires it.")
    user_service_ssl_cafile: Path | None = _setting(
        None,
        WORKER,
        "CA certificates in PEM that are trusted beside the system's, for the User Service and the token endpoint.",
        shown="off",
    )
    user_service_ssl_certfile: Path | None = _setting(
        None, WORKER, "The client certificate in PEM for the User Service and the token endpoint.", shown="off"
    )
    user_service_ssl_keyfile: Path | None = _setting(
        None, WORKER, "The unencrypted key of the client certificate.", shown="in the certificate's file"
    )
    user_service_concurrency: PositiveInt = _setting(
        256, WORKER, "How many user lookups may run at the same time.", unit="lookups"
    )
    user_cache_s: Positive = _setting(
        60.0,
        WORKER,
        "How long an active answer is cached, for at most 100,000 users per worker. A deactivated user can "
        "order for that long, plus the time that a command waits for its turn. A lower value causes more "
        "lookups.",
        unit="s",
    )

    # Schema registry
    schema_registry_url: str = _setting(
        "",
        EVERY_PROCESS,
        "A schema registry with Confluent's API, or several URLs of it, separated by commas. Records then carry the "
        "ids that it assigns: see [fit in](../guide/fit-in.md#schema-registry). `ORDERS_SCHEMA_REGISTRY_URL` is the "
        "same setting.",
        validation_alias=AliasChoices("SCHEMA_REGISTRY_URL", "ORDERS_SCHEMA_REGISTRY_URL", "schema_registry_url"),
    )
    schema_registry_register: bool = _setting(
        True,
        EVERY_PROCESS,
        "Whether `worker` and `web` register the schemas that the registry lacks. With `false`, nothing is written to "
        "it: a worker waits until the schemas are there, and `web` uses the ids of `schemas/` until then.",
    )
    schema_registry_username: str = _setting("", EVERY_PROCESS, "The user name for the schema registry.")
    schema_registry_password: SecretStr = _setting(
        SecretStr(""), EVERY_PROCESS, "The password for the schema registry."
    )
    schema_registry_token: SecretStr = _setting(
        SecretStr(""), EVERY_PROCESS, "The bearer token for the schema registry, instead of a user name."
    )
    schema_registry_token_file: Path | None = _setting(
        None, EVERY_PROCESS, "A file with the bearer token. It is read again when it changes."
    )
    schema_registry_oauth_token_url: str = _setting(
        "", EVERY_PROCESS, "The token endpoint for the schema registry (OAuth2 client credentials)."
    )
    schema_registry_oauth_client_id: str = _setting("", EVERY_PROCESS, "The client id at the token endpoint.")
    schema_registry_oauth_client_secret: SecretStr = _setting(
        SecretStr(""), EVERY_PROCESS, "The client secret at the token endpoint."
    )
    schema_registry_oauth_client_auth: Literal["basic", "post"] = _setting(
        "basic",
        EVERY_PROCESS,
        "How the client credentials are sent: in the `Authorization` header, or with `post` in the body.",
    )
    schema_registry_oauth_scope: str = _setting("", EVERY_PROCESS, "The scopes to request, separated by spaces.")
    schema_registry_oauth_audience: str = _setting(
        "", EVERY_PROCESS, "The audience to request, for providers that need one."
    )
    schema_registry_headers: SecretStr = _setting(
        SecretStr(""),
        EVERY_PROCESS,
        "More headers of each request, as `name=value`, separated by commas. Confluent Cloud needs `target-sr-cluster` "
        "and `Confluent-Identity-Pool-Id` with OAuth.",
    )
    schema_registry_ssl_cafile: Path | None = _setting(
        None,
        EVERY_PROCESS,
        "A file with the CAs of the schema registry and its token endpoint, trusted beside the system's.",
    )
    schema_registry_ssl_certfile: Path | None = _setting(
        None, EVERY_PROCESS, "The client certificate for the schema registry, in PEM, with its chain."
    )
    schema_registry_ssl_keyfile: Path | None = _setting(
        None, EVERY_PROCESS, "The unencrypted key of that certificate, unless it is in the same file."
    )

    # Views
    database_url: SecretStr = _setting(
        SecretStr(""),
        VIEWS,
        "The database of the views: `sqlite:///FILE` or `postgresql://...`. The views can be dropped (the "
        "files `views.db*`, or the tables) and are then rebuilt from the log. The URL must lead to one "
        "server: behind an address that spreads reads over several replicas, `web` can miss an outcome and "
        "answer 202. If it is set, `timeline` and the commands that send find the records of an order by "
        "these views, instead of reading its partition from the start.",
        shown="`views.db` in `ORDERS_DATA_DIR`",
    )
    database_schema: str = _setting(
        "",
        VIEWS,
        "The PostgreSQL schema of the views. The projector creates it if the role may do that.",
        shown="by `search_path`",
    )
    projectors: PositiveInt = _setting(
        1,
        "`projector` and `up`",
        "The number of projectors that share the partitions: see [several projectors]"
        "(../guide/fit-in.md#several-projectors). With more than one, the views must be in PostgreSQL.",
        unit="projectors",
    )
    projector_index: Annotated[int, Field(ge=0, le=9999)] | None = _setting(
        None,
        "`projector`",
        "With several projectors: which one this is, from 0. It reads the partitions whose number modulo "
        "`ORDERS_PROJECTORS` is this index.",
        shown="0 if `ORDERS_PROJECTORS` is 1",
    )

    # Authentication
    jwt_jwks_url: str = _setting(
        "",
        WEB,
        "The URL of the JWKS with the keys that verify tokens. Set this or `ORDERS_JWT_KEY_FILE`. Without "
        "both, authentication is off, which is allowed only on loopback.",
        shown="off",
    )
    jwt_key_file: Path | None = _setting(
        None, WEB, "A file with the key that verifies tokens, instead of `ORDERS_JWT_JWKS_URL`.", shown="off"
    )
    jwt_issuer: str = _setting("", WEB, "The required issuer (`iss`) of a token.")
    jwt_audience: str = _setting(
        "",
        WEB,
        "The accepted audiences (`aud`) of a token, separated by commas. See [identity providers](../guide/fit-in.md"
        "#identity-providers) for this and the following settings.",
    )
    jwt_audience_claim: Literal["aud", "client_id", "azp", "cid", "appid"] = _setting(
        "aud",
        WEB,
        "The claim that has the audience, for an issuer whose tokens have no `aud`. A token that has `aud` must "
        "fulfil both.",
    )
    jwt_algorithms: str = _setting(
        "RS256,ES256", WEB, "The accepted signature algorithms of tokens, separated by commas."
    )
    jwt_leeway_s: Leeway = _setting(
        60.0,
        WEB,
        "The tolerated difference between our clock and the issuer's. A token stays valid for this time after it "
        "expires.",
        unit="s",
    )
    jwt_subject_claims: str = _setting(
        "sub",
        WEB,
        "The claims that can hold the id of the caller, separated by commas. The first that a token has counts, so ids "
        "in one must never be ids in another.",
    )
    jwt_scope_claims: str = _setting(
        "scope,scp,roles,permissions",
        WEB,
        "The claims that carry rights, separated by commas: a text or a list of texts. `scope` and `scp` may be words "
        "in one text. A dot leads into an object, as in `realm_access.roles`.",
    )
    jwt_scope_values: str = _setting(
        "",
        WEB,
        "Which value of those claims gives which scope: `orders:admin=Orders.Admin,orders:read=Orders.Read`. Once set, "
        "no other value gives a scope.",
        shown="the names of the scopes",
    )
    jwt_user_if: str = _setting(
        "",
        WEB,
        "A token is a user's if it fulfils one of these conditions, otherwise a service's: `CLAIM` or `CLAIM=VALUE`, "
        "separated by commas.",
        shown="a token without a scope",
    )
    jwt_service_if: str = _setting(
        "",
        WEB,
        "A token is a service's if it fulfils one of these conditions, otherwise a user's; one that its provider marks "
        "as a machine's is then refused. With both settings, a token that fulfils both or neither is refused.",
        shown="a token with a scope",
    )

    # HTTP
    http_published_on_loopback: bool = _setting(
        False,
        WEB,
        "Set `true` if the port is published on 127.0.0.1 only, as for a container. `ORDERS_HOST` may then be any "
        "address without authentication.",
    )
    http_hosts: str = _setting(
        "",
        WEB,
        "Names by which callers reach the server, separated by commas, for example the host name of a proxy. Without "
        "authentication, the server refuses requests for any other name but `localhost` and loopback addresses.",
    )
    http_base_path: str = _setting(
        "",
        WEB,
        "The path under which a proxy publishes the server, such as `/orders-api`. It is part of every URL that the "
        "server sends. The proxy may strip it from requests or not.",
    )
    http_cors_origins: str = _setting(
        "",
        WEB,
        "The origins whose pages may call the API from a browser, separated by commas: `https://shop.example`.",
        shown="off",
    )
    http_keep_alive_s: Positive = _setting(
        75.0,
        WEB,
        "How long an idle connection stays open after a response. It must be longer than a proxy keeps connections.",
        unit="s",
    )
    web_connections_max: PositiveInt = _setting(5_000, WEB, "How many connections may be open.", unit="connections")
    web_waiting_max: PositiveInt = _setting(
        1_000, WEB, "How many requests may be held; a quarter of them for one subject.", unit="requests"
    )
    web_streams_max: PositiveInt = _setting(4_000, WEB, "How many streams may be open.", unit="streams")
    web_rate_per_s: Positive = _setting(50.0, WEB, "The request rate allowed for each subject.", unit="requests/s")
    admin_addresses: str = _setting(
        "",
        WEB,
        "The admin ports of all processes, as `HOST:PORT` separated by commas, for [the operator's page](../operations/"
        "operators-page.md). A host name that has several addresses stands for a process at each of them.",
        shown="those of the workers in the group",
    )
    runbook_base_url: str = _setting(
        "",
        WEB,
        "Where you publish these documents. The links of [the operator's page](../operations/operators-page.md) begin "
        "with it.",
        shown="no links",
    )

    # Command line: the HTTP server to call
    url: str = _setting("", CLIENTS, "The HTTP server to call.", shown="the local one")
    token: SecretStr = _setting(SecretStr(""), CLIENTS, "The bearer token for that server.")

    # Addresses, files and logs
    host: str = _setting("127.0.0.1", EVERY_PROCESS, "The address to listen on.")
    admin_host: str = _setting(
        "",
        SERVED,
        "The address to listen on with `ORDERS_ADMIN_PORT`, if it differs from `ORDERS_HOST`: `0.0.0.0` opens health "
        "and metrics, and leaves the port for callers on loopback.",
        shown="`ORDERS_HOST`",
    )
    http_port: Port = _setting(8080, "`web`, `up`, `show` and `list`", "The port for callers.")
    admin_port: Port = _setting(
        9100,
        SERVED,
        "The port of `/health/live`, `/health/ready` and `/metrics`, and of a worker's `/lanes`. It is not for callers."
        " With `up` it is the worker's; `projector` and `web` then get free ports.",
    )
    users_port: Port = _setting(8090, "`up` and `users`", "The port of the User Service stub.")
    kafka_port: Port = _setting(9092, EVERY_PROCESS, "The port of the local Kafka.")
    data_dir: Path = _setting(
        Path(".data"),
        "`up`, `projector`, `web` and `views`",
        "The folder of the local Kafka, and of the views if they are in SQLite.",
    )
    log: Literal["", "json", "console", "ecs", "otel"] = _setting(
        "",
        EVERY_PROCESS,
        "The format of the [log](logs.md). By default, it depends on whether the output is a terminal.",
        shown="by terminal",
    )
    log_levels: str = _setting(
        "",
        EVERY_PROCESS,
        "The level of single loggers and of those below them, as `name=level`, separated by commas: "
        "`aiokafka=error,order_service.worker=debug`. See [levels](logs.md#levels).",
        shown="`info`; `warning` for libraries that say much",
    )

    @property
    def level_of_loggers(self) -> dict[str, str]:
        """The level of each logger that `log_levels` names."""
        return pairs(self.log_levels)

    @property
    def group_id(self) -> str:
        """The consumer group of the workers and the prefix of their transactional ids, unique for each topic prefix."""
        return f"{self.topic_prefix}{self.app_id}"

    @property
    def remember_closed_s(self) -> float | None:
        """How long a closed order remembers its commands, in seconds; None for ever."""
        return None if self.remember_closed_days is None else self.remember_closed_days * 86_400

    @property
    def admin_address(self) -> str:
        """The address on which health and metrics are served."""
        return self.admin_host or self.host

    @property
    def schema_registry_urls(self) -> tuple[str, ...]:
        """The URLs of the schema registry, or none."""
        return tuple(self.schema_registry_url.split(",")) if self.schema_registry_url else ()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003, pydantic's signature
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Return where settings come from: arguments, then the environment."""
        return init_settings, _Environment(settings_cls)

    @field_validator("*", mode="before")
    @classmethod
    def _raise_error(cls, value: object) -> object:
        """Raise the error that the environment has in place of a value."""
        if isinstance(value, ValueError):
            raise value
        return value

    @field_validator("user_service_url", "url")
    @classmethod
    def _http_url(cls, url: str, field: ValidationInfo) -> str:
        if field.field_name == "user_service_url" and "{id}" in url:
            raise ValueError("must not contain {id}: the path of a lookup is in ORDERS_USER_SERVICE_PATH")
        return _base_url(url) if url or field.field_name == "user_service_url" else url

    @field_validator("schema_registry_url")
    @classmethod
    def _http_urls_without_credentials(cls, text: str) -> str:
        urls = [_base_url(url.strip()) for url in text.split(",")] if text else []
        if any(urlsplit(url).username is not None for url in urls):
            raise ValueError("must not contain credentials: set ORDERS_SCHEMA_REGISTRY_USERNAME and …_PASSWORD")
        return ",".join(dict.fromkeys(urls))

    @field_validator("schema_registry_headers")
    @classmethod
    def _header_pairs(cls, headers: SecretStr) -> SecretStr:
        if not HEADERS.fullmatch(headers.get_secret_value()):
            raise ValueError("must be name=value, separated by commas: visible ASCII without blanks")
        return headers

    @field_validator("schema_registry_oauth_token_url", "user_service_oauth_token_url", "kafka_oauth_token_url")
    @classmethod
    def _without_credentials(cls, url: str) -> str:
        if urlsplit(url).username is not None:
            raise ValueError("must not contain credentials: set …_OAUTH_CLIENT_ID and …_OAUTH_CLIENT_SECRET")
        return url

    @field_validator(
        "jwt_jwks_url", "schema_registry_oauth_token_url", "user_service_oauth_token_url", "kafka_oauth_token_url"
    )
    @classmethod
    def _http_url_or_none(cls, url: str) -> str:
        """Return the URL unchanged: a query may name a policy, and a trailing slash may lead to another document."""
        if url:
            TypeAdapter(HttpUrl).validate_python(url)
        if urlsplit(url).fragment:
            raise ValueError("must not have a fragment")
        return url

    @field_validator(
        "jwt_key_file",
        "schema_registry_token_file",
        "schema_registry_ssl_cafile",
        "schema_registry_ssl_certfile",
        "schema_registry_ssl_keyfile",
        "user_service_token_file",
        "user_service_ssl_cafile",
        "user_service_ssl_certfile",
        "user_service_ssl_keyfile",
        "kafka_ssl_cafile",
        "kafka_ssl_certfile",
        "kafka_ssl_keyfile",
        "kafka_oauth_ssl_cafile",
        "kafka_oauth_token_file",
        mode="before",
    )
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

    @field_validator("log_levels")
    @classmethod
    def _levels(cls, text: str) -> str:
        levels: dict[str, str] = {}
        for entry in filter(None, map(str.strip, text.split(","))):
            match = LOGGER_LEVEL.fullmatch(entry)
            if match is None:
                raise ValueError("must be name=level, separated by commas, as in aiokafka=error,order_service=debug")
            name, level = match[1], match[2].lower()
            if level not in LEVELS:
                raise ValueError(f"the level of {name} must be one of {', '.join(LEVELS)}")
            if level == "debug" and name.partition(".")[0] != "order_service":
                raise ValueError(
                    f"the level of {name} must be info or higher: at debug, libraries log records and credentials"
                )
            if levels.setdefault(name, level) != level:
                raise ValueError(f"sets the level of {name} twice")
        return ",".join(f"{name}={level}" for name, level in levels.items())

    @field_validator("user_service_active")
    @classmethod
    def _values(cls, values: str) -> str:
        listed = [value.strip() for value in values.split(",")]
        if not all(listed):
            raise ValueError("must be one or more values, separated by commas")
        return ",".join(listed)

    @field_validator("user_service_not_found")
    @classmethod
    def _statuses_of_a_user(cls, statuses: str) -> str:
        listed = [status.strip() for status in statuses.split(",")]
        if not set(listed) <= NOT_FOUND_STATUSES:
            raise ValueError("must be 204 or statuses from 400 to 499 without 401, 403, 407, 408 and 429")
        return ",".join(listed)

    @field_validator("database_schema")
    @classmethod
    def _schema_name(cls, name: str) -> str:
        if len(name.encode()) > SCHEMA_BYTES_MAX or not name.isprintable() or name.startswith(("pg_", "$")):
            raise ValueError(
                f"must be the name of a schema: {SCHEMA_BYTES_MAX} bytes at most, not starting with pg_ or $"
            )
        return name

    @field_validator("http_base_path")
    @classmethod
    def _base_path(cls, path: str) -> str:
        path = path.rstrip("/")
        if path and not BASE_PATH.fullmatch(path):
            raise ValueError("must start with / and have only letters, digits and - . _ ~ between slashes")
        return path

    @field_validator("http_hosts")
    @classmethod
    def _host_names(cls, names: str) -> str:
        hosts = [name.strip().lower() for name in names.split(",") if name.strip()]
        if not all(map(HOST_NAME.fullmatch, hosts)):
            raise ValueError("must be host names or IPv4 addresses without a port, separated by commas")
        return ",".join(hosts)

    @field_validator("admin_addresses")
    @classmethod
    def _addresses(cls, text: str) -> str:
        addresses = [address.strip() for address in text.split(",") if address.strip()]
        if not all(map(ADDRESS.fullmatch, addresses)):
            raise ValueError("must be HOST:PORT, separated by commas; an IPv6 address in brackets")
        return ",".join(addresses)

    @field_validator("runbook_base_url")
    @classmethod
    def _document_url(cls, url: str) -> str:
        return _base_url(url) if url else url

    @field_validator("http_cors_origins")
    @classmethod
    def _origins(cls, text: str) -> str:
        origins = [origin.strip().lower() for origin in text.split(",") if origin.strip()]
        if not all(map(ORIGIN.fullmatch, origins)):
            raise ValueError("must be origins such as https://shop.example, separated by commas: no path and no *")
        if any(map(DEFAULT_PORT.fullmatch, origins)):
            raise ValueError("must not have the ports 443 of https and 80 of http: browsers leave them out")
        return ",".join(origins)

    @field_validator("user_service_path")
    @classmethod
    def _path_has_id(cls, path: str) -> str:
        if not path.startswith("/") or path.count("{id}") != 1:
            raise ValueError("must start with / and contain {id} exactly once")
        return path

    @model_validator(mode="after")
    def _standbys_fit(self) -> Self:
        if self.standbys and self.table != "memory":
            raise ValueError("ORDERS_STANDBYS needs ORDERS_TABLE=memory: a standby keeps its tables in memory")
        return self

    @model_validator(mode="after")
    def _one_credential_for_the_registry(self) -> Self:
        if fault := _registry_fault(self):
            raise ValueError(fault)
        return self

    @model_validator(mode="after")
    def _projector_exists(self) -> Self:
        if self.projector_index is not None and self.projector_index >= self.projectors:
            raise ValueError(
                f"ORDERS_PROJECTOR_INDEX is {self.projector_index}, expected less than ORDERS_PROJECTORS, which is "
                f"{self.projectors}"
            )
        return self

    @model_validator(mode="after")
    def _kafka_security_fits(self) -> Self:
        if fault := _kafka_security_fault(self):
            raise ValueError(fault)
        return self


def _base_url(url: str) -> str:
    TypeAdapter(HttpUrl).validate_python(url)
    if urlsplit(url).query or urlsplit(url).fragment:
        raise ValueError("must not have a query or a fragment")
    return url.rstrip("/")


def _registry_fault(settings: Settings) -> str:
    """Return why the credentials for the schema registry do not fit together or into a header, or an empty text."""
    of_oauth = ("oauth_token_url", "oauth_client_id", "oauth_client_secret")
    used = {
        name: f"ORDERS_SCHEMA_REGISTRY_{name.upper()}"
        for name in ("username", "password", "token", "token_file", *of_oauth, "oauth_scope", "oauth_audience")
        if getattr(settings, f"schema_registry_{name}") not in {"", None, SecretStr("")}
    }
    ways = list(dict.fromkeys("oauth" if name.startswith("oauth") else name for name in used if name != "password"))
    if len(ways) > 1:
        return f"set only one credential for the schema registry, not {' and '.join(used.values())}"
    if not re.fullmatch(r"[\x21-\x7e]*", settings.schema_registry_token.get_secret_value()):
        return f"{used['token']} must be printable ASCII without blanks"
    if ":" in settings.schema_registry_username:  # RFC 7617, 2
        return f"{used['username']} must not contain a colon"
    if "password" in used and ways != ["username"]:
        return f"{used['password']} needs ORDERS_SCHEMA_REGISTRY_USERNAME"
    missing = [f"ORDERS_SCHEMA_REGISTRY_{name.upper()}" for name in of_oauth if name not in used]
    return f"{next(iter(used.values()))} needs {' and '.join(missing)}" if ways == ["oauth"] and missing else ""


def pairs(text: str) -> dict[str, str]:
    """Return the pairs of a setting that lists `name=value`, separated by commas."""
    return dict(pair.split("=", 1) for pair in text.split(",") if pair)


def variable(field: str) -> str:
    """Return the environment variable of a setting; of any other name, the name itself."""
    definition = Settings.model_fields.get(field)
    if definition is None:
        return field
    alias = definition.validation_alias
    return str(alias.choices[0]) if isinstance(alias, AliasChoices) else f"ORDERS_{field.upper()}"


_SASL_SETTINGS: Final = {
    "PLAIN": ("kafka_sasl_username", "kafka_sasl_password"),
    "SCRAM-SHA-256": ("kafka_sasl_username", "kafka_sasl_password"),
    "SCRAM-SHA-512": ("kafka_sasl_username", "kafka_sasl_password"),
    "OAUTHBEARER": (),
    "AWS_MSK_IAM": ("kafka_aws_region",),
}
"""What each mechanism needs, and no other mechanism uses."""
_CLIENT_CREDENTIALS: Final = ("kafka_oauth_token_url", "kafka_oauth_client_id", "kafka_oauth_client_secret")
_OAUTH_SETTINGS: Final = (
    *_CLIENT_CREDENTIALS,
    "kafka_oauth_token_file",
    "kafka_oauth_scope",
    "kafka_oauth_audience",
    "kafka_oauth_ssl_cafile",
    "kafka_oauth_extensions",
)
_TLS_SETTINGS: Final = ("kafka_ssl_cafile", "kafka_ssl_certfile", "kafka_ssl_keyfile", "kafka_ssl_key_password")


def _kafka_security_fault(settings: Settings) -> str:
    """Return why the settings of Kafka's security do not fit together, which names a setting, or an empty text."""
    protocol = settings.kafka_security_protocol
    if not protocol.endswith("SSL") and (names := _set_of(settings, _TLS_SETTINGS)):
        return f"{names[0]} needs TLS: set ORDERS_KAFKA_SECURITY_PROTOCOL to SSL or SASL_SSL, not {protocol}"
    if (settings.kafka_ssl_certfile is None) != (settings.kafka_ssl_keyfile is None):
        return "set ORDERS_KAFKA_SSL_CERTFILE and ORDERS_KAFKA_SSL_KEYFILE, not one of them"
    if settings.kafka_ssl_keyfile is None and settings.kafka_ssl_key_password.get_secret_value():
        return "ORDERS_KAFKA_SSL_KEY_PASSWORD needs ORDERS_KAFKA_SSL_KEYFILE"
    if protocol.startswith("SASL"):
        return _sasl_fault(settings)
    all_names = [name for names in _SASL_SETTINGS.values() for name in names]
    if names := _set_of(settings, ("kafka_sasl_mechanism", *all_names, *_OAUTH_SETTINGS)):
        return f"{names[0]} needs SASL: set ORDERS_KAFKA_SECURITY_PROTOCOL to SASL_SSL, not {protocol}"
    return ""


def _sasl_fault(settings: Settings) -> str:
    mechanism = settings.kafka_sasl_mechanism
    needed = _SASL_SETTINGS[mechanism]
    others = {name: other for other, names in _SASL_SETTINGS.items() for name in names if name not in needed}
    if mechanism != "OAUTHBEARER":
        others |= dict.fromkeys(_OAUTH_SETTINGS, "OAUTHBEARER")
    if names := _set_of(settings, others):
        return f"{names[0]} is not for ORDERS_KAFKA_SASL_MECHANISM={mechanism}"
    if missing := [variable(name) for name in needed if variable(name) not in _set_of(settings, needed)]:
        return f"ORDERS_KAFKA_SASL_MECHANISM={mechanism} needs {' and '.join(missing)}"
    if mechanism == "AWS_MSK_IAM" and settings.kafka_security_protocol != "SASL_SSL":
        return "ORDERS_KAFKA_SASL_MECHANISM=AWS_MSK_IAM needs ORDERS_KAFKA_SECURITY_PROTOCOL=SASL_SSL"
    return _oauth_fault(settings) if mechanism == "OAUTHBEARER" else ""


def _oauth_fault(settings: Settings) -> str:
    of_endpoint = (*_CLIENT_CREDENTIALS, "kafka_oauth_scope", "kafka_oauth_audience", "kafka_oauth_ssl_cafile")
    names = _set_of(settings, of_endpoint)
    if settings.kafka_oauth_token_file is not None:
        return f"set ORDERS_KAFKA_OAUTH_TOKEN_FILE or {names[0]}, not both" if names else ""
    missing = [variable(name) for name in _CLIENT_CREDENTIALS if variable(name) not in names]
    if len(missing) == len(_CLIENT_CREDENTIALS):
        return (
            "ORDERS_KAFKA_SASL_MECHANISM=OAUTHBEARER needs ORDERS_KAFKA_OAUTH_TOKEN_URL or "
            "ORDERS_KAFKA_OAUTH_TOKEN_FILE"
        )
    return f"the client credentials for Kafka need {' and '.join(missing)}" if missing else ""


def _set_of(settings: Settings, fields: Iterable[str]) -> list[str]:
    """Return the variables of those settings that differ from their default."""
    definitions = Settings.model_fields
    return [variable(field) for field in fields if getattr(settings, field) != definitions[field].default]


def service_links(environment: Mapping[str, str] = os.environ) -> list[str]:
    """Return the variables of settings that Kubernetes has set for a Service of that name. They are ignored."""
    names = [variable(field) for field in Settings.model_fields]
    return [name for name in names if _is_service_link(name, environment.get(name, ""))]


def _is_service_link(name: str, value: str) -> bool:
    return name.endswith("_PORT") and _SERVICE_LINK.match(value) is not None


def _secret(path: Path, name: str) -> str | ValueError:
    """Return the secret in a file without its trailing newline, or the error that the setting has."""
    try:
        with path.open("rb") as file:
            content = file.read(SECRET_MAX_BYTES + 1)
        secret = content.decode().rstrip("\r\n")
    except OSError as error:
        return ValueError(f"the file {path} of {name} cannot be read: {error.strerror}")
    except UnicodeDecodeError:
        return ValueError(f"the file {path} of {name} is not text in UTF-8")
    if len(content) > SECRET_MAX_BYTES:
        return ValueError(f"the file {path} of {name} has more than {SECRET_MAX_BYTES} bytes")
    return secret or ValueError(f"the file {path} of {name} is empty")
