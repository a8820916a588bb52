"""The pages behind a real nginx that strips a prefix, and the API as pages of other origins call it."""

import json

import pytest
from playwright.sync_api import expect

from order_service.local.broker import free_port
from tests.support.chromium import visit
from tests.support.proxies import nginx_of_the_guide, running_nginx

PREFIX = "/orders-api"
CALL = """
async ([url, body]) => {
    const headers = { "Content-Type": "application/json", "Idempotency-Key": "basket-1" };
    const response = await fetch(url, { method: "POST", headers, body });
    const exposed = [response.headers.get("ETag"), response.headers.get("Location")];
    return [response.status, ...exposed];
}
"""
PLAIN = {
    "listen 443 ssl": "listen 127.0.0.1:{port}",
    "    ssl_certificate     /etc/ssl/shop.example.crt;\n": "",
    "    ssl_certificate_key /etc/ssl/shop.example.key;\n": "",
}
ORDER = {"user_id": "dana", "currency": "EUR", "lines": [{"sku": "mug-blue", "quantity": 2, "unit_price": 1250}]}


@pytest.fixture(scope="module")
def proxied(shop):
    """Run nginx, without TLS; return its origin and a caller of the server itself."""
    http, port = shop.serve(ORDERS_HTTP_BASE_PATH=PREFIX)[0], free_port()
    changes = {shown: used.format(port=port) for shown, used in PLAIN.items()}
    with running_nginx(nginx_of_the_guide(changes | {"server 127.0.0.1:8080": f"server 127.0.0.1:{http.port}"}), port):
        yield f"http://127.0.0.1:{port}", http


def test_the_pages_work_behind_a_prefix(proxied, browser):
    origin, http = proxied
    order_id = http.create(user_id="anna").body["order_id"]
    with visit(browser, origin) as visited:
        page = visited.page
        page.goto(f"{PREFIX}/")
        expect(page.locator("#live")).to_have_text("live")
        page.get_by_role("link", name=order_id).click()
        expect(page.locator("#timeline li")).to_have_count(1)
        http.ask("POST", f"/v1/orders/{order_id}/cancel")
        expect(page.locator("#timeline li")).to_have_count(2)
        http.ask("POST", f"/v1/orders/{order_id}/deliver")
        page.get_by_role("link", name="order_cancelled").click()
        expect(page).to_have_title("Order cancelled")
        page.goto(f"{PREFIX}/docs")
        operation = page.locator("#operations-Questions-list_orders")
        operation.locator(".opblock-summary-control").click()
        operation.get_by_role("button", name="Try it out").click()
        operation.get_by_role("button", name="Execute").click()
        expect(operation.locator(".live-responses-table")).to_contain_text(order_id)


def test_a_page_of_a_listed_origin_calls_the_api_and_no_other_page(shop, browser):
    http = shop.serve()[0]
    listed = f"http://localhost:{http.port}"
    api = shop.serve(ORDERS_HTTP_CORS_ORIGINS=listed)[0]
    url, body = f"http://127.0.0.1:{api.port}/v1/orders", json.dumps(ORDER)
    with browser.new_context(bypass_csp=True) as context:
        page = context.new_page()
        page.goto(f"{listed}/openapi.json")
        status, etag, location = page.evaluate(CALL, [url, body])
        assert (status, etag) == (201, '"1"')
        assert api.get(location).body["status"] == "created"
        page.goto(f"http://127.0.0.1:{http.port}/openapi.json")
        failed = "url => fetch(url).then(() => 'read', error => error.name)"
        assert page.evaluate(failed, url) == "TypeError"
