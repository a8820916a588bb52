"""The public keys that verify tokens, as documents have them: JWKS (RFC 7517) or PEM."""

from __future__ import annotations

import base64
import codecs
import zlib
from collections.abc import Collection
from typing import Any, Final, Literal

import jwt
import msgspec
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, SECP384R1, SECP521R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from cryptography.x509 import load_der_x509_certificate
from jwt.algorithms import AllowedPublicKeys
from msgspec import MsgspecError, Struct

from order_service.errors import KeysAway

KEYS_MAX: Final = 256 * 1024
KEYS_TRIED_MAX: Final = 16
"""The maximum number of keys that a token without a key id is tried with; issuers publish two or three."""
RSA_BITS_MIN: Final = 2048
"""Minimum size of an RSA key. Source: RFC 7518, 3.3."""
GZIP: Final = b"\x1f\x8b"


class Key(Struct, frozen=True):
    """A public key, and the algorithms it may verify: those that the settings allow and that fit its type."""

    public: AllowedPublicKeys
    algorithms: list[str]
    kid: str | None = None


class KeySet(Struct, frozen=True):
    """The keys of an issuer. A key id (`kid`) is optional in a key and in a token."""

    keys: tuple[Key, ...] = ()

    def find(self, kid: str | None, algorithm: str) -> tuple[Key, ...]:
        """Return the keys that may verify a token: those with its key id, otherwise those that an id cannot exclude."""
        named = [key for key in self.keys if kid is not None and key.kid == kid]
        candidates = named or [key for key in self.keys if kid is None or key.kid is None]
        return tuple(key for key in candidates if algorithm in key.algorithms)[:KEYS_TRIED_MAX]


class Jwk(Struct):
    """A usable JSON Web Key; others are skipped, such as symmetric keys and encryption keys."""

    kty: Literal["RSA", "EC", "OKP"]
    kid: str | None = None
    use: Literal["sig"] | None = None
    alg: str | None = None
    key_ops: list[str] | None = None
    x5c: list[str] | None = None


class Jwks(Struct):
    """A JWKS document; the discovery document of an issuer has `jwks_uri` instead of `keys`."""

    keys: list[Any] | None = None
    jwks_uri: Any = None


PARSED_AS: Final = {"RSA": "RS256", "EC": "ES256", "OKP": "EdDSA"}
"""The algorithm under which PyJWT parses each key type; `_signatures` returns those that the key can verify."""


def read_jwks(data: bytes, algorithms: Collection[str]) -> KeySet:
    """Return the usable keys of a JWKS document. Raises KeysAway if it holds no usable key."""
    jwks = members_of(data)
    keys = tuple(key for jwk in jwks if (key := _of_jwk(jwk, algorithms)) is not None)
    if not keys:
        raise KeysAway(
            f"none of the {len(jwks)} keys of the JWKS document can verify an algorithm of ORDERS_JWT_ALGORITHMS"
        )
    return KeySet(keys)


def members_of(data: bytes) -> list[Any]:
    """Return the keys of a JWKS document as they are. Raises KeysAway, which says what another document is."""
    text = _uncompressed(data).removeprefix(codecs.BOM_UTF8).lstrip()
    if len(text) > KEYS_MAX:
        raise KeysAway(f"the JWKS document is longer than {KEYS_MAX} bytes")
    if text.startswith(b"<"):
        raise KeysAway("an HTML page, not a JWKS document")
    try:
        document = msgspec.json.decode(text, type=Jwks)
    except (MsgspecError, UnicodeError, RecursionError) as error:  # every error that msgspec raises for bytes
        raise KeysAway("not a JWKS document") from error
    if document.keys is None and document.jwks_uri is not None:
        raise KeysAway("the issuer's discovery document: its jwks_uri is the URL of the JWKS document")
    if document.keys is None:
        raise KeysAway("not a JWKS document: it has no `keys`")
    return document.keys


def read_pem(data: bytes, algorithms: Collection[str]) -> KeySet:
    """Return the single public key of a PEM file. Raises KeysAway if it is not usable."""
    if data.count(b"-----BEGIN") > 1:  # only the first would be read
        raise KeysAway("more than one key: use a JWKS document")
    try:
        key = _key(load_pem_public_key(data), algorithms)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise KeysAway("neither a public key in PEM nor a JWKS document") from error
    if not key.algorithms:
        raise KeysAway("the key cannot verify an algorithm of ORDERS_JWT_ALGORITHMS")
    return KeySet((key,))


def read_keys(data: bytes, algorithms: Collection[str]) -> KeySet:
    """Return the keys of a file, which is a JWKS document or in PEM. Raises KeysAway if none is usable."""
    is_jwks = data.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"{")
    return read_jwks(data, algorithms) if is_jwks else read_pem(data, algorithms)


def _uncompressed(data: bytes) -> bytes:
    """Undo a compression that a server applied without being asked for it."""
    if not data.startswith(GZIP):
        return data
    try:
        return zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(data, KEYS_MAX + 1)
    except zlib.error as error:
        raise KeysAway("not a JWKS document") from error


def _of_jwk(jwk: Any, algorithms: Collection[str]) -> Key | None:
    """Return the key, or None: an unusable key must not affect the others (RFC 7517, 5)."""
    try:
        parsed = msgspec.convert(jwk, Jwk)
        public = _public(jwk, parsed)
    except (msgspec.ValidationError, jwt.PyJWTError, UnsupportedAlgorithm, ValueError):
        return None
    allowed = [name for name in algorithms if parsed.alg in (None, name)]
    key = _key(public, allowed, parsed.kid or None)
    can_verify = parsed.key_ops is None or "verify" in parsed.key_ops
    return key if can_verify and key.algorithms else None


def _public(jwk: dict[str, Any], parsed: Jwk) -> Any:
    """Return the public key of a JWK: from its members, or from its certificate if it has nothing else."""
    if parsed.x5c and "n" not in jwk and "x" not in jwk:
        return load_der_x509_certificate(base64.b64decode(parsed.x5c[0])).public_key()
    return jwt.PyJWK(jwk, PARSED_AS[parsed.kty]).key


def _key(public: Any, algorithms: Collection[str], kid: str | None = None) -> Key:
    return Key(public, [name for name in _signatures(public) if name in algorithms], kid)


def _signatures(public: object) -> tuple[str, ...]:
    """Return the algorithms that fit a public key (RFC 7518, 3.1); none for a private key, which must stay secret."""
    match public:
        case RSAPublicKey(key_size=bits) if bits >= RSA_BITS_MIN:
            return ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
        case EllipticCurvePublicKey(curve=SECP256R1()):
            return ("ES256",)
        case EllipticCurvePublicKey(curve=SECP384R1()):
            return ("ES384",)
        case EllipticCurvePublicKey(curve=SECP521R1()):
            return ("ES512",)
        case Ed25519PublicKey() | Ed448PublicKey():
            return ("EdDSA",)
        case _:
            return ()
