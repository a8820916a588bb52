"""An issuer of tokens: keys, the documents that it publishes them in, and a server for those."""

import asyncio
import base64
import json
from contextlib import asynccontextmanager, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import jwt
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from tests.support.serving import serving

RSA = rsa.generate_private_key(65537, 2048)
EC = ec.generate_private_key(ec.SECP256R1())
THEIRS = rsa.generate_private_key(65537, 2048)
OCT = base64.urlsafe_b64encode(b"a secret of 32 bytes, all shared").decode().rstrip("=")


def jwk(key, kid, **changes):
    """Make the public JWK of a private key; a change to None leaves a member out."""
    name = {rsa.RSAPrivateKey: "RS256", ec.EllipticCurvePrivateKey: "ES256", ed25519.Ed25519PrivateKey: "EdDSA"}
    [algorithm] = [name[kind] for kind in name if isinstance(key, kind)]
    public = jwt.get_algorithm_by_name(algorithm).to_jwk(key.public_key(), as_dict=True)
    return given({**public, "key_ops": None, "kid": kid, "use": "sig"} | changes)


def pem(key):
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def private_pem(key):
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def given(members):
    return {name: value for name, value in members.items() if value is not None}


def jwks(*keys):
    return json.dumps({"keys": keys}).encode()


class Issuer:
    """Serves its keys, or `answer`; counts who asks."""

    def __init__(self):
        self.keys = [jwk(RSA, "rsa-1"), jwk(EC, "ec-1"), {"kty": "oct", "kid": "oct-1", "k": OCT}]
        self.answer = None
        self.asked = 0
        self.redirected = 0
        self.url = ""
        self._asked = asyncio.Condition()

    async def publish(self, request):
        async with self._asked:
            self.asked += 1
            self._asked.notify_all()
        if self.answer is None:
            return web.Response(body=jwks(*self.keys), content_type="application/json")
        return await self.answer(request)

    async def elsewhere(self, _):
        self.redirected += 1
        return web.Response(body=jwks(jwk(EC, "new")), content_type="application/json")

    async def asked_more(self, times):
        """Wait until that many more requests have come."""
        async with asyncio.timeout(10), self._asked:
            goal = self.asked + times
            await self._asked.wait_for(lambda: self.asked >= goal)


async def hang(_):
    await asyncio.Event().wait()


async def reset(request):
    request.transport.close()
    return web.Response()


async def redirect(_):
    return web.Response(status=302, headers={"Location": "/elsewhere"})


def status(code):
    async def answer(_):
        return web.Response(status=code, body=jwks(jwk(EC, "new")))

    return answer


def body(data):
    async def answer(_):
        return web.Response(body=data)

    return answer


@asynccontextmanager
async def running_issuer(ssl_context=None):
    """Serve an issuer on loopback, over TLS with a context."""
    it = Issuer()
    app = web.Application()
    app.add_routes([web.get("/jwks", it.publish), web.get("/elsewhere", it.elsewhere)])
    async with serving(app, ssl_context) as url:
        it.url = f"{url}/jwks"
        yield it


@contextmanager
def answering(answers):
    """Serve the last answer: a status, headers and a body."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            status, headers, body = answers[-1]
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            """Print nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/jwks"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
