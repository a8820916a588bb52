"""Tokens with the claims that identity providers issue, and the settings of the guide, docs/guide/fit-in.md.

The claims are those of the providers' documents; the tokens are signed with keys of the tests.
"""

import re
import shlex
import time
from pathlib import Path

import jwt
import pytest

from order_service.errors import Unauthorized
from order_service.settings import Settings
from order_service.web.access.auth import authentication
from order_service.web.access.jwks import read_jwks
from order_service.web.access.token_check import explanation
from order_service.web.access.token_rules import TokenRules
from tests.support.issuer import RSA, THEIRS, jwk, jwks

GUIDE = Path(__file__).parents[3] / "docs/guide/fit-in.md"
KEYS = jwks(jwk(THEIRS, "key-of-encryption", use="enc", alg="RSA-OAEP"), jwk(RSA, "key-1", alg=None))
TENANT = "9122040d-6c67-4c5b-b112-36a304b66dad"
NOW = int(time.time())
TIMES = {"iat": NOW, "exp": NOW + 3600}


def settings_of(provider):
    """Return the settings that the guide has for a provider."""
    section = GUIDE.read_text().partition(f"\n### {provider}\n")[2].partition("\n##")[0]
    assert section, provider
    [block] = re.findall(r"```sh\n(ORDERS_JWT_.*?)```", section, re.DOTALL)
    pairs = [shlex.split(line)[0].partition("=") for line in block.splitlines()]
    return {name.removeprefix("ORDERS_").lower(): value for name, _, value in pairs}


AUTH0 = {"iss": "https://shop.eu.auth0.com/", **TIMES, "azp": "web-client-id"}
AUTH0_USER = AUTH0 | {
    "sub": "auth0|5f7c8ec7c33c6c004bbafe82",
    "aud": ["https://orders.example.com", "https://shop.eu.auth0.com/userinfo"],
    "scope": "openid profile email",
    "permissions": [],
}
AUTH0_MACHINE = AUTH0 | {
    "sub": "xyz123@clients",
    "azp": "xyz123",
    "aud": "https://orders.example.com",
    "gty": "client-credentials",
    "scope": "orders:read orders:pay",
    "permissions": ["orders:read", "orders:pay"],
}
OKTA = {
    "ver": 1,
    "jti": "AT.7P4KlczBYVcWLkxduEuKeZfeiNYkZIC9uGJ28Cc-YaI",
    "iss": "https://shop.okta.com/oauth2/default",
}
OKTA |= {"aud": "api://orders", **TIMES}
OKTA_USER = OKTA | {
    "cid": "0oa6fm8j4G1xfrthd4h6",
    "uid": "00uid4BxXw6I6TV4m0g3",
    "scp": ["openid", "profile"],
    "auth_time": NOW - 60,
    "sub": "dana@example.com",
}
OKTA_MACHINE = OKTA | {"cid": "0oabilling", "sub": "0oabilling", "scp": ["orders:pay"]}
ENTRA = {
    "aud": "11112222-bbbb-3333-cccc-4444dddd5555",
    "iss": f"https://login.microsoftonline.com/{TENANT}/v2.0",
    "nbf": NOW,
    **TIMES,
    "aio": "AXQAi/8IAAAA",
    "tid": TENANT,
    "uti": "yIZgvRsMfEmDfnm2CjYUAA",
    "ver": "2.0",
}
ENTRA_USER = ENTRA | {
    "azp": "aaaabbbb-0000-cccc-1111-dddd2222eeee",
    "azpacr": "0",
    "name": "Dana",
    "oid": "aaaaaaaa-0000-1111-2222-bbbbbbbbbbbb",
    "preferred_username": "dana@example.com",
    "scp": "access_as_user",
    "sub": "-7mXb4pQKD8fR_x1c0Yt0kDb1kVZ0o9lW3Jx2bU5abc",
}
ENTRA_APP = ENTRA | {
    "azp": "bbbbcccc-1111-dddd-2222-eeee3333ffff",
    "azpacr": "1",
    "oid": "cccccccc-2222-3333-4444-dddddddddddd",
    "roles": ["Orders.Pay"],
    "sub": "cccccccc-2222-3333-4444-dddddddddddd",
}
KEYCLOAK = {**TIMES, "jti": "onrtac:1", "iss": "https://sso.example.com/realms/shop", "typ": "Bearer", "acr": "1"}
KEYCLOAK |= {"aud": ["orders", "account"], "allowed-origins": ["https://shop.example.com"]}
KEYCLOAK_USER = KEYCLOAK | {
    "auth_time": NOW,
    "sub": "f4e1a3c2-9c1d-4c55-8d0e-0c1d2e3f4a5b",
    "azp": "shop-web",
    "sid": "8a2c",
    "realm_access": {"roles": ["offline_access", "uma_authorization", "default-roles-shop"]},
    "resource_access": {"account": {"roles": ["manage-account", "view-profile"]}},
    "scope": "openid email profile",
    "preferred_username": "dana",
}
KEYCLOAK_MACHINE = KEYCLOAK | {
    "sub": "0b6c1d2e-aaaa-4c55-8d0e-0c1d2e3f4a5b",
    "azp": "billing",
    "client_id": "billing",
    "clientHost": "10.0.0.7",
    "clientAddress": "10.0.0.7",
    "realm_access": {"roles": ["offline_access", "uma_authorization", "default-roles-shop"]},
    "resource_access": {"orders": {"roles": ["pay", "read"]}},
    "scope": "email profile",
    "preferred_username": "service-account-billing",
}
COGNITO = {"iss": "https://cognito-idp.eu-central-1.amazonaws.com/eu-central-1_AbCdEfGhI", "version": 2, **TIMES}
COGNITO |= {"token_use": "access", "jti": "aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee"}
COGNITO_USER = COGNITO | {
    "sub": "a3f4b5c6-1234-4c55-8d0e-0c1d2e3f4a5b",
    "cognito:groups": ["customers"],
    "client_id": "3n4b5webclient",
    "origin_jti": "o",
    "scope": "aws.cognito.signin.user.admin openid",
    "auth_time": NOW,
    "username": "dana",
}
COGNITO_MACHINE = COGNITO | {
    "sub": "7h8k9billingclient",
    "client_id": "7h8k9billingclient",
    "scope": "orders/pay orders/read",
    "auth_time": NOW,
}
COGNITO_ID = {
    **{
        name: value for name, value in COGNITO_USER.items() if name not in {"client_id", "scope", "username", "version"}
    },
    "token_use": "id",
    "aud": "3n4b5webclient",
    "cognito:username": "dana",
    "email": "dana@example.com",
}
GOOGLE = {"iss": "https://accounts.google.com", **TIMES}
GOOGLE_USER = GOOGLE | {
    "azp": "123-web.apps.googleusercontent.com",
    "aud": "123-web.apps.googleusercontent.com",
    "sub": "107691503500061507151",
    "at_hash": "HK6E_P6Dh8Y93mRNtsDB1Q",
    "email": "dana@example.com",
    "email_verified": True,
}
GOOGLE_SERVICE = GOOGLE | {
    "aud": "https://orders.example.com",
    "azp": "113974264512345678901",
    "sub": "113974264512345678901",
    "email": "billing@shop.iam.gserviceaccount.com",
    "email_verified": True,
}
KUBERNETES = {
    "aud": ["orders"],
    **TIMES,
    "nbf": NOW,
    "iss": "https://kubernetes.default.svc.cluster.local",
    "jti": "ea28ed49-2e11-4280-9ec5-bc3d1d84661a",
    "kubernetes.io": {
        "namespace": "shop",
        "node": {"name": "node-1", "uid": "58456cb0-dd00-45ed-b797-5578fdceaced"},
        "pod": {"name": "billing-69cbfb9798-jv9gn", "uid": "778a530c-b3f4-47c0-9cd5-ab018fb64f33"},
        "serviceaccount": {"name": "billing", "uid": "a087d5a0-e1dd-43ec-93ac-f13d89cd13af"},
        "warnafter": NOW + 3000,
    },
    "sub": "system:serviceaccount:shop:billing",
}

ACCEPTED = [
    ("Auth0", "a user", AUTH0_USER, "user:auth0|5f7c8ec7c33c6c004bbafe82", ""),
    ("Auth0", "a user of Google", AUTH0_USER | {"sub": "google-oauth2|1062"}, "user:google-oauth2|1062", ""),
    ("Auth0", "a machine", AUTH0_MACHINE, "service:xyz123@clients", "orders:pay orders:read"),
    (
        "Auth0",
        "a machine whose rights are permissions only",
        AUTH0_MACHINE | {"scope": None},
        "service:xyz123@clients",
        "orders:pay orders:read",
    ),
    ("Okta", "a user", OKTA_USER, "user:00uid4BxXw6I6TV4m0g3", ""),
    ("Okta", "a machine", OKTA_MACHINE, "service:0oabilling", "orders:pay"),
    ("Entra ID", "a user", ENTRA_USER, "user:aaaaaaaa-0000-1111-2222-bbbbbbbbbbbb", ""),
    (
        "Entra ID",
        "an application",
        ENTRA_APP,
        "service:cccccccc-2222-3333-4444-dddddddddddd",
        "orders:pay",
    ),
    (
        "Entra ID",
        "an application with the optional claim idtyp",
        ENTRA_APP | {"idtyp": "app", "roles": ["Orders.Admin", "Other"]},
        "service:cccccccc-2222-3333-4444-dddddddddddd",
        "orders:admin",
    ),
    ("Keycloak", "a user", KEYCLOAK_USER, "user:f4e1a3c2-9c1d-4c55-8d0e-0c1d2e3f4a5b", ""),
    (
        "Keycloak",
        "a service account",
        KEYCLOAK_MACHINE,
        "service:0b6c1d2e-aaaa-4c55-8d0e-0c1d2e3f4a5b",
        "orders:pay orders:read",
    ),
    (
        "Keycloak",
        "a service account of an older version",
        {name.replace("client_id", "clientId"): value for name, value in KEYCLOAK_MACHINE.items()},
        "service:0b6c1d2e-aaaa-4c55-8d0e-0c1d2e3f4a5b",
        "orders:pay orders:read",
    ),
    ("Cognito", "a user", COGNITO_USER, "user:a3f4b5c6-1234-4c55-8d0e-0c1d2e3f4a5b", ""),
    ("Cognito", "a machine", COGNITO_MACHINE, "service:7h8k9billingclient", "orders:pay orders:read"),
    ("Google", "a user", GOOGLE_USER, "user:107691503500061507151", ""),
    ("Google", "a service account", GOOGLE_SERVICE, "service:113974264512345678901", "orders:pay"),
    (
        "Google",
        "a service account without its email",
        {name: value for name, value in GOOGLE_SERVICE.items() if not name.startswith("email")},
        "service:113974264512345678901",
        "orders:pay",
    ),
    ("Kubernetes", "a service account", KUBERNETES, "service:system:serviceaccount:shop:billing", "orders:pay"),
]
NO_SCOPE = "gives a scope"
REFUSED = [
    ("Auth0", "for another API", AUTH0_USER | {"aud": "https://other.example.com"}, "the claim aud is not"),
    ("Auth0", "of another tenant", AUTH0_USER | {"iss": "https://other.eu.auth0.com/"}, "the claim iss is not"),
    ("Auth0", "a machine without rights", AUTH0_MACHINE | {"scope": "", "permissions": []}, NO_SCOPE),
    (
        "Auth0",
        "a user with a right of services",
        AUTH0_USER | {"permissions": ["orders:admin"]},
        "the token is a user's",
    ),
    ("Auth0", "a machine with other rights", AUTH0_MACHINE | {"scope": "read:users", "permissions": None}, NO_SCOPE),
    ("Auth0", "a machine without gty", AUTH0_MACHINE | {"gty": None, "scope": "", "permissions": []}, NO_SCOPE),
    ("Okta", "a machine with other scopes", OKTA_MACHINE | {"scp": ["openid"]}, NO_SCOPE),
    ("Okta", "a user with a scope of services", OKTA_USER | {"scp": ["orders:admin"]}, "the token is a user's"),
    ("Okta", "of the organization's own server", OKTA_USER | {"aud": "https://shop.okta.com"}, "the claim aud is not"),
    ("Entra ID", "an application without a role", ENTRA_APP | {"roles": None}, NO_SCOPE),
    ("Entra ID", "an application with another role", ENTRA_APP | {"roles": ["Orders.Write"]}, NO_SCOPE),
    ("Entra ID", "a user with a role of services", ENTRA_USER | {"roles": ["Orders.Admin"]}, "the token is a user's"),
    ("Entra ID", "of another tenant", ENTRA_APP | {"iss": "https://login.microsoftonline.com/0/v2.0"}, "the claim iss"),
    ("Entra ID", "version 1", ENTRA_APP | {"iss": f"https://sts.windows.net/{TENANT}/"}, "the claim iss is not"),
    ("Keycloak", "no audience mapper", KEYCLOAK_USER | {"aud": "account"}, "the claim aud is not"),
    (
        "Keycloak",
        "roles of another client",
        KEYCLOAK_MACHINE | {"resource_access": {"x": {"roles": ["pay"]}}},
        NO_SCOPE,
    ),
    ("Keycloak", "no subject", KEYCLOAK_USER | {"sub": None}, "the claim sub is missing"),
    ("Cognito", "of another client", COGNITO_USER | {"client_id": "other"}, "the claim client_id is not"),
    ("Cognito", "an ID token", COGNITO_ID, "the claim client_id is missing"),
    ("Cognito", "for another API as well", COGNITO_USER | {"aud": "other"}, "the claim aud is not"),
    ("Cognito", "a machine with other scopes", COGNITO_MACHINE | {"scope": "other/read"}, NO_SCOPE),
    ("Google", "any service account of the world", GOOGLE_SERVICE | {"azp": "9", "sub": "9"}, NO_SCOPE),
    (
        "Google",
        "a user of another application",
        GOOGLE_USER | {"aud": "456-other.apps", "azp": "456-other.apps"},
        "aud",
    ),
    ("Kubernetes", "another service account", KUBERNETES | {"sub": "system:serviceaccount:shop:web"}, NO_SCOPE),
    ("Kubernetes", "for the API server", KUBERNETES | {"aud": [KUBERNETES["iss"]]}, "the claim aud is not"),
    ("Kubernetes", "one that never ends", KUBERNETES | {"exp": None}, "the claim exp is missing"),
]
PROVIDERS = ["Auth0", "Okta", "Entra ID", "Keycloak", "Cognito", "Google", "Kubernetes"]


def signed(claims, key=RSA, **head):
    return jwt.encode({k: v for k, v in claims.items() if v is not None}, key, "RS256", headers={"kid": "key-1"} | head)


def named(cases):
    return [pytest.param(provider, *rest, id=f"{provider}, {name}") for provider, name, *rest in cases]


@pytest.fixture
def door_of(tmp_path):
    """Make a door with the settings that the guide has for a provider, and the keys in a file."""

    def make(provider, **changes):
        path = tmp_path / "keys"
        path.write_bytes(KEYS)
        settings = settings_of(provider) | changes
        settings.pop("jwt_jwks_url", None)
        return authentication(Settings(**(settings | {"jwt_key_file": path})))

    return make


@pytest.mark.parametrize(("provider", "claims", "actor", "scopes"), named(ACCEPTED))
async def test_a_token_of_a_provider_gives_its_caller_with_the_settings_of_the_guide(
    door_of, provider, claims, actor, scopes
):
    caller = await door_of(provider).caller(f"Bearer {signed(claims)}")
    assert caller.actor == actor
    assert sorted(caller.scopes) == scopes.split()
    assert caller.is_service == actor.startswith("service:")


@pytest.mark.parametrize(("provider", "claims", "why"), named(REFUSED))
async def test_its_twin_is_refused_with_a_reason(door_of, provider, claims, why):
    with pytest.raises(Unauthorized, match=why):
        await door_of(provider).caller(f"Bearer {signed(claims)}")


@pytest.mark.parametrize(("provider", "claims", "actor", "scopes"), named(ACCEPTED))
async def test_a_token_that_another_key_signed_or_that_has_ended_is_refused(door_of, provider, claims, actor, scopes):
    door = door_of(provider)
    ended = claims | {"iat": NOW - 7200, "exp": NOW - 3600, **({"nbf": NOW - 7200} if "nbf" in claims else {})}
    for bad in (signed(claims, THEIRS), signed(ended)):
        with pytest.raises(Unauthorized, match=r"the signature does not fit|the token has expired"):
            await door.caller(f"Bearer {bad}")


@pytest.mark.parametrize("provider", PROVIDERS)
def test_the_settings_of_the_guide_are_complete(provider):
    settings = Settings(**settings_of(provider))
    assert settings.jwt_issuer.startswith("https://")
    assert settings.jwt_jwks_url.startswith("https://") or settings.jwt_key_file
    TokenRules.from_settings(settings)


# With the default rule: who has a scope is a service


MACHINES = [(provider, name, claims) for provider, name, claims, actor, _ in ACCEPTED if actor.startswith("service:")]


@pytest.mark.parametrize(("provider", "claims"), named(MACHINES))
async def test_without_settings_no_token_of_a_machine_is_taken_for_a_users(door_of, provider, claims):
    """The settings name issuer and audience only. Those whose rights have our names work; all others are refused."""
    default = Settings()
    kept = {"jwt_issuer", "jwt_audience", "jwt_audience_claim", "jwt_jwks_url", "jwt_key_file"}
    changes = {name: getattr(default, name) for name in Settings.model_fields if name.startswith("jwt_")}
    door = door_of(provider, **{name: value for name, value in changes.items() if name not in kept})
    try:
        caller = await door.caller(f"Bearer {signed(claims)}")
    except Unauthorized as error:
        assert NO_SCOPE in str(error)  # noqa: PT017, the other outcome is allowed, too
    else:
        assert caller.is_service


async def test_staff_with_a_scope_are_services_by_the_default_rule(door_of):
    door = door_of("Auth0", jwt_service_if="")
    caller = await door.caller(f"Bearer {signed(AUTH0_USER | {'permissions': ['orders:admin']})}")
    assert (caller.actor, sorted(caller.scopes)) == ("service:auth0|5f7c8ec7c33c6c004bbafe82", ["orders:admin"])


# Conditions, and claims with dots


@pytest.mark.parametrize(
    ("user_if", "service_if", "claims", "actor"),
    [
        ("uid", "", {"uid": "u"}, "user:dana"),
        ("uid", "", {"scope": "orders:pay"}, "service:dana"),
        ("uid", "", {"uid": None, "scope": "orders:pay"}, "service:dana"),
        ("uid", "", {}, None),
        ("uid", "", {"uid": "u", "scope": "orders:pay"}, None),
        ("", "machine=true", {"machine": True, "scope": "orders:pay"}, "service:dana"),
        ("", "machine=true", {"machine": False}, "user:dana"),
        ("", "machine=true", {"machine": "true"}, None),
        ("", "level=3", {"level": 3}, None),
        ("", "a=1=2, b", {"b": "", "scope": "orders:pay"}, "service:dana"),
        ("", "a=1=2, b", {"a": "1=2", "scope": "orders:pay"}, "service:dana"),
        ("", "a=1=2, b", {"a": "1", "roles": ["x"]}, "user:dana"),
        ("groups=staff", "gty", {"groups": ["staff"]}, "user:dana"),
        ("groups=staff", "gty", {"groups": ["staffs"]}, None),
        ("groups=staff", "gty", {"groups": [["staff"]]}, None),
        ("groups=staff", "gty", {"groups": "staff", "gty": "x", "scope": "orders:pay"}, None),
        ("groups=staff", "gty", {"groups": {"staff": 1}, "gty": "x", "scope": "orders:pay"}, "service:dana"),
    ],
)
async def test_conditions_tell_a_user_from_a_service(door_of, user_if, service_if, claims, actor):
    door = door_of("Auth0", jwt_user_if=user_if, jwt_service_if=service_if)
    usual = {"iss": AUTH0["iss"], "aud": "https://orders.example.com", "sub": "dana", **TIMES}
    token = signed(usual | claims)
    if actor is not None:
        assert (await door.caller(f"Bearer {token}")).actor == actor
        return
    with pytest.raises(Unauthorized):
        await door.caller(f"Bearer {token}")


@pytest.mark.parametrize(
    ("name", "claims", "accepted"),
    [
        ("realm_access.roles", {"realm_access": {"roles": ["r"]}}, True),
        ("https://shop.example.com/roles", {"https://shop.example.com/roles": ["r"]}, True),
        ("resource_access.my.client.roles", {"resource_access": {"my.client": {"roles": ["r"]}}}, True),
        ("a.b", {"a.b": ["r"], "a": {"b": ["x"]}}, True),
        ("a.b", {"a": {"b": None}, "a.b": None}, False),
        ("a.b", {"a": ["r"]}, False),
        ("a.b.c", {"a": {"b": "r"}}, False),
        ("a", {"a": {"b": ["r"]}}, False),
        ("a", {"a": "r x"}, False),
        ("nested.scope", {"nested": {"scope": "x r"}}, True),
    ],
)
async def test_a_dot_leads_into_a_claim_unless_its_own_name_has_it(door_of, name, claims, accepted):
    rules = {"jwt_scope_claims": name, "jwt_scope_values": "orders:ship=r,orders:read=r", "jwt_service_if": "sub"}
    usual = {"iss": AUTH0["iss"], "aud": "https://orders.example.com", "sub": "dana", **TIMES}
    door, token = door_of("Auth0", **rules), signed(usual | claims)
    if accepted:
        assert sorted((await door.caller(f"Bearer {token}")).scopes) == ["orders:read", "orders:ship"]
        return
    with pytest.raises(Unauthorized, match=r"gives a scope|neither a text nor a list"):
        await door.caller(f"Bearer {token}")


async def test_the_first_claim_of_a_subject_that_the_token_has_counts(door_of):
    door = door_of("Okta")
    with pytest.raises(Unauthorized, match="the claim uid cannot be an actor"):
        await door.caller(f"Bearer {signed(OKTA_USER | {'uid': 5})}")
    with pytest.raises(Unauthorized, match="the claim uid or sub is missing"):
        await door.caller(f"Bearer {signed(OKTA_MACHINE | {'sub': None})}")


@pytest.mark.parametrize("leeway_s", [0, 60, 300])
async def test_the_leeway_is_a_setting(door_of, leeway_s):
    door = door_of("Okta", jwt_leeway_s=leeway_s)
    inside, outside = leeway_s - 20, leeway_s + 20
    for claim, sign in (("exp", -1), ("iat", 1), ("nbf", 1)):
        now = int(time.time())
        with pytest.raises(Unauthorized):
            await door.caller(f"Bearer {signed(OKTA_USER | {claim: now + sign * outside})}")
        assert await door.caller(f"Bearer {signed(OKTA_USER | {claim: now + sign * inside})}")


# Explanations


@pytest.mark.parametrize(
    ("provider", "claims"), [*named([case[:3] for case in ACCEPTED]), *named([case[:3] for case in REFUSED])]
)
async def test_an_explanation_comes_to_the_same_result_as_the_server(door_of, provider, claims):
    rules, token = TokenRules.from_settings(Settings(**settings_of(provider))), signed(claims)
    explained = explanation(token, rules, ["RS256"], read_jwks(KEYS, ["RS256"]))
    failed = [check.text for check in explained.checks if not check.passed]
    door = door_of(provider)
    if explained.caller is not None:
        assert not failed
        assert await door.caller(f"Bearer {token}") == explained.caller
        return
    with pytest.raises(Unauthorized) as caught:
        await door.caller(f"Bearer {token}")
    assert any(str(caught.value) in text for text in failed)
    assert token.rpartition(".")[2] not in repr(explained)
