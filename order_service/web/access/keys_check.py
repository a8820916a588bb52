"""The check of the keys that verify tokens, for `order-service doctor`."""

import time

from order_service.errors import KeysAway, Unavailable
from order_service.operations.doctor.checks.check import Result, address_of, counted, not_checked, ok, warning
from order_service.settings import Settings
from order_service.web.access.auth import authentication
from order_service.web.access.jwks import members_of, read_jwks
from order_service.web.access.key_sources import fetch_jwks, jwks_client

FIX = "Correct the ORDERS_JWT_… settings, or start the issuer of the tokens."


async def check_keys(settings: Settings) -> list[Result]:
    """Check the key file, or fetch the JWKS. Raises SetupError or KeysAway if no key is usable."""
    if not settings.jwt_jwks_url and settings.jwt_key_file is None:
        return [not_checked("Authentication is off: neither ORDERS_JWT_JWKS_URL nor ORDERS_JWT_KEY_FILE is set.")]
    authentication(settings)
    if settings.jwt_key_file is not None:
        return [ok(f"{settings.jwt_key_file} has a usable key.")]
    http = jwks_client()
    try:
        return [judge_keys(await fetch_jwks(http, settings.jwt_jwks_url), settings, time.time())]
    except Unavailable as error:
        raise KeysAway(f"{address_of(settings.jwt_jwks_url)} returns no keys: {error}") from error
    finally:
        await http.close()


def judge_keys(body: bytes, settings: Settings, now_s: float) -> Result:
    """Return the result for a JWKS document; keys may have an `exp`. Raises KeysAway if it holds no usable key."""
    keys = read_jwks(body, settings.jwt_algorithms.split(","))
    expiries = [jwk.get("exp") for jwk in members_of(body) if isinstance(jwk, dict)]
    expired = sum(isinstance(expiry, int | float) and expiry < now_s for expiry in expiries)
    address = address_of(settings.jwt_jwks_url)
    if expired:
        return warning(f"{counted(expired, 'key')} of {address} expired.", "Let the issuer publish new keys.")
    return ok(f"{address} publishes {counted(len(keys.keys), 'usable key')}.")
