"""How Kafka clients authenticate: SASL, access tokens, and why a broker refuses them."""

import asyncio
import ssl
import time
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from importlib import import_module
from pathlib import Path
from typing import Any, Final
from weakref import WeakKeyDictionary

from aiokafka.abc import AbstractTokenProvider
from aiokafka.errors import (
    AuthenticationFailedError,
    AuthenticationMethodNotSupported,
    KafkaConnectionError,
    KafkaError,
    SaslAuthenticationFailed,
    UnsupportedSaslMechanismError,
)

from order_service.access_tokens import ClientCredentials, FileToken
from order_service.errors import NoToken, SetupError
from order_service.http_client import TokenSource, tls_context
from order_service.kafka.broker_connection import BrokerConnection
from order_service.kafka.tls import cause_of, tls
from order_service.settings import Settings, pairs

OAUTHBEARER: Final = "OAUTHBEARER"
REFUSALS: Final = (
    AuthenticationFailedError,
    AuthenticationMethodNotSupported,
    SaslAuthenticationFailed,
    UnsupportedSaslMechanismError,
)
"""Errors that no retry resolves: the server refuses our authentication."""
CONNECT_WITHIN_MS: Final = 5_000
MSK_TOKEN_S: Final = 300.0
"""How long a token for MSK is used."""
MSK_LIBRARY: Final = "aws_msk_iam_sasl_signer.MSKAuthTokenProvider"


def security(settings: Settings) -> dict[str, Any]:
    """Return the arguments by which an aiokafka client authenticates, and by which it verifies the brokers.

    Raises KafkaAwayError if a file cannot be used, and SetupError if the library of the mechanism is missing.
    """
    arguments: dict[str, Any] = {
        "security_protocol": settings.kafka_security_protocol,
        "ssl_context": tls(settings),
    }
    if not settings.kafka_security_protocol.startswith("SASL"):
        return arguments
    if settings.kafka_sasl_mechanism in {OAUTHBEARER, "AWS_MSK_IAM"}:
        return arguments | {"sasl_mechanism": OAUTHBEARER, "sasl_oauth_token_provider": _token_provider(settings)}
    return arguments | {
        "sasl_mechanism": settings.kafka_sasl_mechanism,
        "sasl_plain_username": settings.kafka_sasl_username,
        "sasl_plain_password": settings.kafka_sasl_password.get_secret_value(),
    }


class TokenProvider(AbstractTokenProvider):  # type: ignore[misc] # aiokafka has no types
    """Provides aiokafka with access tokens.

    Each event loop has a source of its own: a worker fetches in a thread, and a process may run several loops.
    """

    def __init__(self, new_source: Callable[[], TokenSource], extensions: Mapping[str, str]) -> None:
        self._new_source = new_source
        self._extensions = dict(extensions)
        self._sources: WeakKeyDictionary[asyncio.AbstractEventLoop, TokenSource] = WeakKeyDictionary()

    async def token(self) -> str:
        """Return a token that is valid now. Raises KafkaConnectionError: to aiokafka, the broker is away."""
        loop = asyncio.get_running_loop()
        source = self._sources.get(loop) or self._sources.setdefault(loop, self._new_source())
        try:
            return await source.token()
        except NoToken as error:
            raise KafkaConnectionError(f"no access token for Kafka: {error}") from error

    def refused(self, token: str) -> None:
        """Replace a token that a broker refused, unless it is new: its issuer may have other keys now."""
        if source := self._sources.get(asyncio.get_running_loop()):
            source.refused(token)

    def extensions(self) -> dict[str, str]:
        """Return the SASL extensions."""
        return self._extensions


class MskToken:
    """Tokens that AWS's library signs for MSK with the AWS credentials of this process, valid for 15 minutes."""

    def __init__(
        self, sign: Callable[[str], tuple[str, int]], region: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._sign = sign
        self._region = region
        self._clock = clock
        self._signing = asyncio.Lock()
        self._token = ""
        self._renew_at = clock()

    async def token(self) -> str:
        """Return a token that was signed less than `MSK_TOKEN_S` ago. Raises NoToken if it cannot be signed.

        The library's own time of expiry is not used: it is wrong in a time zone other than UTC.
        """
        async with self._signing:
            now = self._clock()
            if now >= self._renew_at:
                try:
                    self._token, _ = await asyncio.to_thread(self._sign, self._region)
                except Exception as error:  # of botocore and its plug-ins; without credentials, an AttributeError
                    raise NoToken(f"AWS's library cannot sign one: {type(error).__name__}") from error
                self._renew_at = now + MSK_TOKEN_S
            return self._token

    def refused(self, token: str) -> None:
        """Do nothing: a token is replaced before its end."""

    async def close(self) -> None:
        """Do nothing: there are no resources to close."""


def _token_provider(settings: Settings) -> TokenProvider:
    if settings.kafka_sasl_mechanism == "AWS_MSK_IAM":
        return _msk_provider(settings.kafka_aws_region)
    return _oauth_provider(
        settings.kafka_oauth_token_file,
        settings.kafka_oauth_token_url,
        settings.kafka_oauth_client_id,
        settings.kafka_oauth_client_secret.get_secret_value(),
        settings.kafka_oauth_scope,
        settings.kafka_oauth_audience,
        settings.kafka_oauth_ssl_cafile,
        settings.kafka_oauth_extensions,
    )


@lru_cache  # all clients of a process share their tokens
def _msk_provider(region: str) -> TokenProvider:
    try:
        sign = import_module(MSK_LIBRARY).generate_auth_token
    except ModuleNotFoundError as error:
        package = str(error.name).partition(".")[0]
        raise SetupError(
            f"ORDERS_KAFKA_SASL_MECHANISM=AWS_MSK_IAM needs {package}: pip install 'order-service[aws]'"
        ) from error
    return TokenProvider(partial(MskToken, sign, region), {})


@lru_cache
def _oauth_provider(
    token_file: Path | None,
    token_url: str,
    client_id: str,
    client_secret: str,
    scope: str,
    audience: str,
    cafile: Path | None,
    extensions: str,
) -> TokenProvider:
    listed = pairs(extensions)
    if token_file is not None:
        return TokenProvider(partial(FileToken, token_file), listed)
    context = tls_context("ORDERS_KAFKA_OAUTH_SSL_", cafile, None, None)
    credentials = partial(ClientCredentials, token_url, client_id, client_secret)
    return TokenProvider(partial(credentials, scope=scope, audience=audience, ssl_context=context), listed)


async def refusal_of(host: str, port: int, arguments: Mapping[str, Any]) -> str | None:
    """Return why a reachable server cannot be used with these arguments of a client, if so."""
    connection = BrokerConnection(host, port, **arguments, request_timeout_ms=CONNECT_WITHIN_MS)
    try:
        await connection.connect()
    except REFUSALS as error:
        return str(error)
    except (OSError, KafkaError, TimeoutError) as error:
        return _refusal_in(error)  # else the server is away
    finally:
        await connection.close_fully()
    return None


def _refusal_in(error: Exception) -> str | None:
    """Return the refusal of which an error is the consequence. A server refuses a certificate after the handshake."""
    for each in (error, error.__cause__):
        if isinstance(each, NoToken):
            return f"no access token for Kafka: {each}"
        if isinstance(each, ssl.SSLError) and not isinstance(each, ssl.SSLEOFError):
            return f"TLS failed: {cause_of(each)}"
    return None
