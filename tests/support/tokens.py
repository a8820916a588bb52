"""Tokens as an issuer signs them, and a server that takes them."""

import time
from pathlib import Path

import jwt
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from order_service.web.access.caller import Scope

ISSUER = "https://issuer.test"
AUDIENCE = "orders"
KEY = ec.generate_private_key(ec.SECP256R1())


def settings(directory: Path) -> dict[str, str]:
    """Return the settings of a server that takes our tokens."""
    path = directory / "issuer.pem"
    path.write_bytes(KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return {
        "ORDERS_JWT_KEY_FILE": str(path),
        "ORDERS_JWT_ISSUER": ISSUER,
        "ORDERS_JWT_AUDIENCE": AUDIENCE,
    }


def bearer(subject: str, *scopes: Scope) -> str:
    """Return the `Authorization` of a user, or of a service with these scopes."""
    now = int(time.time())
    claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": subject, "iat": now, "exp": now + 600, "scope": " ".join(scopes)}
    return f"Bearer {jwt.encode(claims, KEY, 'ES256')}"
