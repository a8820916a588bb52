"""How every Kafka client of ours connects: one place for servers, SASL and TLS."""

import asyncio
import ssl
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

import structlog
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.conn import collect_hosts, create_conn
from aiokafka.errors import (
    AuthenticationFailedError,
    AuthenticationMethodNotSupported,
    KafkaError,
    SaslAuthenticationFailed,
    UnsupportedSaslMechanismError,
)

from order_service.errors import KafkaAwayError
from order_service.settings import Settings

log = structlog.get_logger()
_T = TypeVar("_T")

REFUSALS: Final = (
    AuthenticationFailedError,
    AuthenticationMethodNotSupported,
    SaslAuthenticationFailed,
    UnsupportedSaslMechanismError,
    ssl.SSLCertVerificationError,
)
"""What no patience mends: a server is there, and it does not trust us, or we do not trust it."""


def connection(settings: Settings) -> dict[str, Any]:
    """Give the arguments that every aiokafka client needs to reach and trust the brokers."""
    arguments: dict[str, Any] = {
        "bootstrap_servers": settings.kafka_bootstrap_servers or f"127.0.0.1:{settings.kafka_port}",
        "security_protocol": settings.kafka_security_protocol,
        "ssl_context": tls(settings),
    }
    if settings.kafka_security_protocol.startswith("SASL"):
        arguments |= {
            "sasl_mechanism": settings.kafka_sasl_mechanism,
            "sasl_plain_username": settings.kafka_sasl_username,
            "sasl_plain_password": settings.kafka_sasl_password.get_secret_value(),
        }
    return arguments


def tls(settings: Settings) -> ssl.SSLContext | None:
    """Make the context for TLS: the system's authorities, or those of `ORDERS_KAFKA_SSL_CAFILE`."""
    if not settings.kafka_security_protocol.endswith("SSL"):
        return None
    return ssl.create_default_context(cafile=settings.kafka_ssl_cafile)


async def ask_admin(
    settings: Settings, ask: Callable[[AIOKafkaAdminClient], Awaitable[_T]], *, patience_s: float = 60.0
) -> _T:
    """Let `ask` have an admin client; wait for a Kafka that is not up yet, and ask again where it goes away meanwhile.

    Raises KafkaAwayError when patience is over, and at once where a server is there and refuses us, or what we ask.
    """
    arguments = connection(settings)
    servers = arguments["bootstrap_servers"]
    give_up_at = time.monotonic() + patience_s
    while True:
        admin = AIOKafkaAdminClient(**arguments, request_timeout_ms=10_000)
        try:
            await admin.start()
            return await ask(admin)
        except (KafkaError, TimeoutError) as error:
            if refusal := await _refusal(arguments):
                raise KafkaAwayError(
                    f"Kafka at {servers} cannot be used with these ORDERS_KAFKA_… settings: {refusal}"
                ) from error
            if isinstance(error, KafkaError) and not error.retriable:
                raise KafkaAwayError(f"Kafka at {servers} refuses what it was asked: {error!r}") from error
            if time.monotonic() > give_up_at:
                raise KafkaAwayError(f"no Kafka answers at {servers} within {patience_s:.0f} s: {error!r}") from error
            log.warning("Kafka does not answer yet; trying again.", servers=servers)
        finally:
            await admin.close()
        await asyncio.sleep(1.0)


async def _refusal(arguments: dict[str, Any]) -> str | None:
    """Tell why a server that is there cannot be used, if so: aiokafka says of all of them only that none serves."""
    options = {name: value for name, value in arguments.items() if name != "bootstrap_servers"}
    for host, port, _ in collect_hosts(arguments["bootstrap_servers"]):
        try:
            connected = await create_conn(host, port, **options, request_timeout_ms=5_000)
        except REFUSALS as error:
            return str(error)
        except (OSError, KafkaError, TimeoutError):  # it is away
            continue
        connected.close()
    return None
