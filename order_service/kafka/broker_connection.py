"""A connection to one broker, without creation of topics, and with sessions that end."""

import asyncio
import math
import time
from collections.abc import Awaitable
from typing import Any, Final

from aiokafka.conn import AIOKafkaConnection, OAuthAuthenticator
from aiokafka.errors import SaslAuthenticationFailed
from aiokafka.protocol.admin import SaslAuthenticateRequest
from aiokafka.protocol.metadata import MetadataRequest

SESSION_SHARE: Final = 0.75
"""The part of a session in which requests are sent. The rest is for those that are on their way."""
CLOSE_WITHIN_S: Final = 1.0
TRY_AGAIN_S: Final = 1.0
"""How long a connection is kept whose successor could not be opened."""


class BrokerConnection(AIOKafkaConnection):  # type: ignore[misc] # aiokafka has no types
    """A connection whose metadata requests create no topics, and which knows when another one must take its place.

    A broker with `connections.max.reauth.ms` ends a session with the token, or earlier, by closing the connection at
    the next request (KIP-368). aiokafka 0.14 cannot authenticate again: the request fails. If it was the commit of a
    transaction, its outcome is unknown.
    """

    _renew_at = math.inf

    @property
    def is_expiring(self) -> bool:
        """Whether no more requests should be sent."""
        return time.monotonic() >= self._renew_at

    def try_again_later(self) -> None:
        """Send more requests for `TRY_AGAIN_S`: no other connection could be opened."""
        self._renew_at = time.monotonic() + TRY_AGAIN_S

    def send(self, request: Any, expect_response: bool = True) -> Awaitable[Any]:
        """Send a request, and return its response when it is awaited."""
        if isinstance(request, MetadataRequest):
            request._allow_auto_topic_creation = False  # noqa: SLF001
        if isinstance(request, SaslAuthenticateRequest):
            return self._authenticate(request)
        response: Awaitable[Any] = super().send(request, expect_response)
        return response

    async def _authenticate(self, request: SaslAuthenticateRequest) -> Any:
        sent_at = time.monotonic()
        response = await super().send(request)
        if (lifetime_ms := getattr(response, "session_lifetime_ms", 0)) > 0:  # 0: it does not end
            self._renew_at = sent_at + SESSION_SHARE * lifetime_ms / 1000
        return response

    def authenticator_oauth(self) -> OAuthAuthenticator:
        """Return the steps of OAUTHBEARER."""
        return _OAuthAuthenticator(sasl_oauth_token_provider=self._sasl_oauth_token_provider)

    async def close_fully(self) -> None:
        """Close the connection if it is open, and wait until the transport is closed, 1 s at most."""
        closed = self.close()
        if self._protocol is not None:  # else it was never open, and `closed` is never done
            await asyncio.wait((closed,), timeout=CLOSE_WITHIN_S)

    async def close_when_idle(self) -> None:
        """Wait for the responses to the requests that were sent, and close the connection."""
        while pending := [future for _, _, future in self._requests if not future.done()]:
            await asyncio.wait(pending)
        self.close()


class _OAuthAuthenticator(OAuthAuthenticator):  # type: ignore[misc]
    """The steps of OAUTHBEARER. aiokafka 0.14 takes every answer of the broker as a success."""

    _token = ""

    async def step(self, payload: bytes | None) -> tuple[bytes, bool] | None:
        """Return the next message, or None at the end. A broker refuses a token in JSON (RFC 7628, 3.2.2)."""
        if payload:
            self._sasl_oauth_token_provider.refused(self._token)
            raise SaslAuthenticationFailed(f"the access token is refused: {payload[:500].decode(errors='replace')}")
        step: tuple[bytes, bool] | None = await super().step(payload)
        return step

    def _build_oauth_client_request(self, token: str, token_extensions: str) -> str:
        self._token = token
        return str(super()._build_oauth_client_request(token, token_extensions))
