"""Where callers find the server: which names, paths and origins the settings accept."""

import pytest
from aiohttp.test_utils import TestClient, TestServer
from pydantic import ValidationError

from order_service.settings import Settings
from tests.support.alone import application_alone


@pytest.mark.parametrize(
    ("field", "given", "meant"),
    [
        ("http_base_path", "", ""),
        ("http_base_path", "/", ""),
        ("http_base_path", "/orders-api", "/orders-api"),
        ("http_base_path", "/shop/v1.2/orders_api~x/", "/shop/v1.2/orders_api~x"),
        ("admin_addresses", " worker:9100, [::1]:9101,", "worker:9100,[::1]:9101"),
        ("runbook_base_url", "https://docs.example/orders/", "https://docs.example/orders"),
        ("http_hosts", "Shop.Example, orders , 10.0.0.1,", "shop.example,orders,10.0.0.1"),
        (
            "http_cors_origins",
            "https://Shop.Example, http://localhost:3000",
            "https://shop.example,http://localhost:3000",
        ),
    ],
)
def test_an_accepted_value(field, given, meant):
    assert getattr(Settings(**{field: given}), field) == meant


@pytest.mark.parametrize(
    ("field", "given"),
    [
        ("http_base_path", "orders-api"),
        ("http_base_path", "//evil.example"),
        ("http_base_path", "/a//b"),
        ("http_base_path", "/a/../b"),
        ("http_base_path", "/."),
        ("http_base_path", "/{id}"),
        ("http_base_path", '/a"b'),
        ("http_base_path", "/a?b"),
        ("http_base_path", "https://shop.example/orders-api"),
        ("admin_addresses", "worker"),
        ("admin_addresses", "http://worker:9100"),
        ("admin_addresses", "user@worker:9100"),
        ("admin_addresses", "worker:9100/lanes"),
        ("admin_addresses", "worker:0"),
        ("runbook_base_url", "javascript:alert(1)"),
        ("runbook_base_url", "docs"),
        ("http_hosts", "shop.example:443"),
        ("http_hosts", "https://shop.example"),
        ("http_hosts", "*"),
        ("http_cors_origins", "*"),
        ("http_cors_origins", "null"),
        ("http_cors_origins", "shop.example"),
        ("http_cors_origins", "https://shop.example/"),
        ("http_cors_origins", "https://*.shop.example"),
        ("http_cors_origins", "https://shop.example https://other.example"),
        ("http_keep_alive_s", 0),
        ("http_keep_alive_s", -1),
    ],
)
def test_a_refused_value(field, given):
    with pytest.raises(ValidationError, match=field):
        Settings(**{field: given})


@pytest.mark.parametrize("base_path", ["", "/orders-api", "/v1", "/static", "/problems", "/shop/orders"])
async def test_any_base_path_serves_the_same_with_it_and_without(tmp_path, base_path):
    with application_alone(tmp_path, Settings(http_base_path=base_path)) as application:
        async with TestClient(TestServer(application)) as client:
            for prefix in ("", base_path):
                for path in ("/", "/docs", "/v1/orders", "/problems/not_found", "/static/orders.js", "/openapi.json"):
                    assert (await client.get(prefix + path)).status == 200, prefix + path
                problem = await (await client.get(f"{prefix}/v1/orders/none")).json()
                assert problem["type"] == f"{base_path}/problems/order_not_found"
                assert (await client.head(f"{prefix}/v1/orders")).status == 200
                assert (await client.head(f"{prefix}/v1/events")).status == 405
