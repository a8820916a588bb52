"""How every Kafka client of ours connects: one place for servers, SASL and TLS."""

import asyncio
import ssl
import time
from typing import Any

import structlog
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaConnectionError, KafkaError

from order_service.errors import KafkaAwayError
from order_service.settings import Settings

log = structlog.get_logger()


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


async def connect_admin(settings: Settings, *, patience_s: float = 60.0) -> AIOKafkaAdminClient:
    """Start an admin client, waiting for a Kafka that is not up yet; KafkaAwayError when patience is over."""
    arguments = connection(settings)
    give_up_at = time.monotonic() + patience_s
    while True:
        admin = AIOKafkaAdminClient(**arguments, request_timeout_ms=10_000)
        try:
            await admin.start()
        except (KafkaConnectionError, KafkaError) as error:
            await admin.close()
            servers = arguments["bootstrap_servers"]
            if time.monotonic() > give_up_at:
                raise KafkaAwayError(f"no Kafka answers at {servers} within {patience_s:.0f} s: {error}") from error
            log.warning("Kafka does not answer yet; trying again.", servers=servers)
            await asyncio.sleep(1.0)
        else:
            return admin
