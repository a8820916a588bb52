"""The check of the keys that verify tokens, for `order-service doctor`."""

import time
from http import HTTPStatus

import msgspec

from order_service.errors import KeysAway, NoResponse
from order_service.http_client import HttpClient
from order_service.operations.doctor.checks.check import Result, address_of, counted, not_checked, ok, warning
from order_service.settings import Settings
from order_service.web.access.auth import authentication
from order_service.web.access.jwks import KEYS_MAX, POLICY, Jwks, read_jwks

FIX = "Correct the ORDERS_JWT_… settings, or start the issuer of the tokens."


async def check_keys(settings: Settings) -> list[Result]:
    """Check the key file, or fetch the JWKS. Raises SetupError or KeysAway if no key is usable."""
    if not settings.jwt_jwks_url and settings.jwt_key_file is None:
        return [not_checked("Authentication is off: neither ORDERS_JWT_JWKS_URL nor ORDERS_JWT_KEY_FILE is set.")]
    authentication(settings)
    if settings.jwt_key_file is not None:
        return [ok(f"{settings.jwt_key_file} has a usable key.")]
    http = HttpClient(timeout_s=POLICY.timeout_s, body_max_bytes=KEYS_MAX, keeps_alive=False)
    try:
        reply = await http.request("GET", settings.jwt_jwks_url)
    except NoResponse as error:
        raise KeysAway(f"{address_of(settings.jwt_jwks_url)} returns no keys: {error}") from error
    finally:
        await http.close()
    if reply.status != HTTPStatus.OK:
        raise KeysAway(f"{address_of(settings.jwt_jwks_url)} returns status {reply.status} for the keys")
    return [judge_keys(reply.body, settings, time.time())]


def judge_keys(body: bytes, settings: Settings, now_s: float) -> Result:
    """Return the result for a JWKS document; keys may have an `exp`. Raises KeysAway if it holds no usable key."""
    keys = read_jwks(body, settings.jwt_algorithms.split(","))
    expiries = [jwk.get("exp") for jwk in msgspec.json.decode(body, type=Jwks).keys]
    expired = sum(isinstance(expiry, int | float) and expiry < now_s for expiry in expiries)
    address = address_of(settings.jwt_jwks_url)
    if expired:
        return warning(f"{counted(expired, 'key')} of {address} expired.", "Let the issuer publish new keys.")
    return ok(f"{address} publishes {counted(len(keys.by_id), 'usable key')}.")
