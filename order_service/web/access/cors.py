"""Cross-origin requests: pages of the listed origins may call the API and read its responses.

Callers send their token in a header that a script sets, so browsers need not send credentials of their own.
Source: Fetch standard, "CORS protocol".
"""

from collections.abc import Iterable, Mapping
from typing import Final

from aiohttp import web
from msgspec import Struct

ALLOWED_HEADERS: Final = (
    "Authorization",
    "Content-Type",
    "Idempotency-Key",
    "If-Match",
    "If-None-Match",
    "Last-Event-ID",
    "Prefer",
    "traceparent",
    "tracestate",
    "X-Correlation-Id",
    "X-Decide-By",
    "X-Request-Id",
)
EXPOSED_HEADERS: Final = (
    "ETag",
    "Idempotency-Replayed",
    "Link",
    "Location",
    "Preference-Applied",
    "Retry-After",
    "WWW-Authenticate",
    "X-Request-Id",
)
PREFLIGHT_S: Final = 600
"""How long a browser may remember the response to a preflight request."""


class CrossOrigin(Struct, frozen=True):
    """The origins, in lower case, whose pages may call the API."""

    origins: frozenset[str]

    def allow(self, request: web.BaseRequest, response: web.StreamResponse) -> None:
        """Allow the page that sent the request to read the response, if its origin is listed."""
        if not self.origins:
            return
        response.headers.add("Vary", "Origin")
        if self._is_listed(request.headers):
            response.headers["Access-Control-Allow-Origin"] = request.headers["Origin"]
            response.headers["Access-Control-Expose-Headers"] = ", ".join(EXPOSED_HEADERS)

    def is_preflight(self, request: web.BaseRequest) -> bool:
        """Return whether a browser asks if a page of a listed origin may send a request."""
        is_asked = request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers
        return is_asked and self._is_listed(request.headers)

    def _is_listed(self, headers: Mapping[str, str]) -> bool:
        return headers.get("Origin", "").lower() in self.origins


def preflight_response(methods: Iterable[str]) -> web.Response:
    """Return the response that allows these methods."""
    return web.Response(
        status=204,
        headers={
            "Access-Control-Allow-Methods": ", ".join(sorted(methods)),
            "Access-Control-Allow-Headers": ", ".join(ALLOWED_HEADERS),
            "Access-Control-Max-Age": str(PREFLIGHT_S),
        },
    )
