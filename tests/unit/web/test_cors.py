"""Pages of listed origins may call the API from a browser, those of all others may not."""

import json

import pytest
from aiohttp.test_utils import TestClient, TestServer

from order_service.settings import Settings
from order_service.web.access.cors import ALLOWED_HEADERS, EXPOSED_HEADERS
from order_service.web.api.operations import OPERATIONS
from order_service.web.docs.openapi import FILE
from tests.support.alone import application_alone

SHOP, OTHER = "https://shop.example", "https://evil.example"


@pytest.fixture
async def client(tmp_path):
    settings = Settings(http_cors_origins=f"{SHOP}, http://localhost:3000")
    with application_alone(tmp_path, settings) as application:
        async with TestClient(TestServer(application)) as client:
            yield client


async def preflight(client, path, origin, method="POST"):
    headers = {"Origin": origin, "Access-Control-Request-Method": method}
    return await client.options(path, headers=headers)


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
async def test_a_browser_may_ask_for_a_listed_origin_what_it_may_send(client, operation):
    path = operation.path.format(order_id="order-1", command_id="command-1", id="order-1")
    answer = await preflight(client, path, SHOP, operation.method)
    assert answer.status == 204
    assert answer.headers["Access-Control-Allow-Origin"] == SHOP
    assert operation.method in answer.headers["Access-Control-Allow-Methods"].split(", ")
    assert answer.headers["Vary"] == "Origin"
    assert "Access-Control-Allow-Credentials" not in answer.headers


@pytest.mark.parametrize("origin", [OTHER, "null", "", f"{SHOP}.evil.example", f"{SHOP}:8443", "http://shop.example"])
async def test_no_other_origin_may(client, origin):
    answer = await preflight(client, "/v1/orders", origin)
    assert answer.status == 405
    assert not [name for name in answer.headers if name.lower().startswith("access-control")]
    answer = await client.get("/openapi.json", headers={"Origin": origin})
    assert "Access-Control-Allow-Origin" not in answer.headers
    assert answer.headers["Vary"] == "Origin"


async def test_options_that_are_no_preflight_and_paths_that_do_not_exist_are_answered_as_ever(client):
    assert (await client.options("/v1/orders", headers={"Origin": SHOP})).status == 405
    assert (await preflight(client, "/v1/nothing", SHOP)).status == 404


async def test_a_page_of_a_listed_origin_reads_responses_and_errors(client):
    for origin in (SHOP, "HTTP://LOCALHOST:3000"):
        for path, status in (("/v1/orders", 200), ("/v1/orders/none", 404), ("/v1/orders?limit=x", 400)):
            answer = await client.get(path, headers={"Origin": origin, "Sec-Fetch-Site": "cross-site"})
            assert answer.status == status
            assert answer.headers["Access-Control-Allow-Origin"] == origin
            assert "ETag" in answer.headers["Access-Control-Expose-Headers"]


async def test_without_authentication_the_pages_of_all_others_are_refused(client):
    for headers in ({"Origin": OTHER}, {"Origin": OTHER, "Sec-Fetch-Site": "cross-site"}, {"Host": "evil.example"}):
        assert (await client.get("/v1/orders", headers=headers)).status == 403
    assert (await client.get("/v1/orders", headers={"Host": "evil.example", "Origin": SHOP})).status == 403


async def test_without_the_setting_nothing_is_said_of_origins(tmp_path):
    with application_alone(tmp_path) as application:
        async with TestClient(TestServer(application)) as client:
            answer = await client.get("/openapi.json", headers={"Origin": SHOP})
            assert "Vary" not in answer.headers
            assert (await preflight(client, "/v1/orders", SHOP)).status == 405


def test_all_headers_of_the_api_are_allowed_and_exposed():
    document = json.loads(FILE.read_text(encoding="utf-8"))["components"]
    sent = {each["name"] for each in document["parameters"].values() if each["in"] == "header"}
    assert set(ALLOWED_HEADERS) == sent | {"Authorization", "Content-Type"}
    assert set(EXPOSED_HEADERS) == set(document["headers"])
