"""A token endpoint of an identity provider, on loopback."""

import asyncio
import json
from base64 import b64decode
from contextlib import asynccontextmanager
from urllib.parse import parse_qs, unquote_plus

from aiohttp import web

from tests.support.serving import serving


class TokenEndpoint:
    """Answers each request with the next token (`token-1`, `token-2`, ...), or with `answer`."""

    def __init__(self):
        self.forms = []
        self.credentials = []
        self.expires_in = 3600
        self.answer = None
        self.waits = None  # an event that an answer waits for

    async def issue(self, request):
        """Record the request, and answer it."""
        self.forms.append({name: value for name, [value] in parse_qs(await request.text()).items()})
        kind, _, value = request.headers.get("Authorization", "").partition(" ")
        pair = b64decode(value).decode().split(":") if kind == "Basic" else []
        self.credentials.append(tuple(unquote_plus(part) for part in pair))
        if self.waits is not None:
            await self.waits.wait()
        if self.answer is not None:
            status, body, headers = self.answer
            return web.Response(status=status, body=body, headers=headers)
        token = {"access_token": f"token-{len(self.forms)}", "token_type": "Bearer", "expires_in": self.expires_in}
        return web.json_response(token)

    def answers(self, status, body, **headers):
        """Answer all requests so from now on."""
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.answer = status, body, {"Content-Type": "application/json"} | headers

    @asynccontextmanager
    async def serving(self, ssl_context=None):
        """Serve on a free port, and yield the URL."""
        app = web.Application()
        app.router.add_post("/oauth2/token", self.issue)
        async with serving(app, ssl_context) as url:
            yield f"{url}/oauth2/token"

    def hang(self):
        """Hold the answers back until the returned event is set."""
        self.waits = asyncio.Event()
        return self.waits
