"""A web server whose issuer publishes no keys: it is not ready, says why, and heals without a restart."""

from order_service.local.broker import free_port
from order_service.web.access.caller import Scope
from tests.support import tokens
from tests.support.issuer import answering, jwk, jwks
from tests.support.service import until
from tests.support.shop import Http


def test_a_server_without_keys_is_not_ready_says_why_and_heals(shop):
    answers = [(301, {"Location": "https://login.test/keys"}, b"")]
    with answering(answers) as url:
        port = free_port()
        process = shop.service.start_worker(
            None,
            module=("order_service.cli", "web"),
            ORDERS_HTTP_PORT=str(port),
            ORDERS_LOG="json",
            ORDERS_JWT_JWKS_URL=url,
            ORDERS_JWT_ISSUER=tokens.ISSUER,
            ORDERS_JWT_AUDIENCE=tokens.AUDIENCE,
        )
        why = "status 301, a redirect to login.test: set ORDERS_JWT_JWKS_URL to its target"
        until(lambda: f"no token can be verified: {why}" in process.faults(), "readiness says why")
        http, authorization = Http(port), tokens.bearer("desk", Scope.READ)
        assert http.ask("GET", "/v1/orders", Authorization=authorization).status == 503
        [line] = process.lines("JWKS fetch failed; known keys stay valid for a day.")
        assert line["fault"] == why
        answers.append((200, {"Content-Type": "application/jwk-set+json"}, jwks(jwk(tokens.KEY, None))))
        process.wait_ready()
        assert http.ask("GET", "/v1/orders", Authorization=authorization).status == 200
        assert http.ask("GET", "/v1/orders").status == 401
