"""The page `/docs` in a browser."""

import pytest
from playwright.sync_api import expect

from tests.support.alone import server_alone
from tests.support.chromium import running_chromium, visit
from tests.support.shop import Http


@pytest.fixture(scope="module")
def http(tmp_path_factory):
    with server_alone(tmp_path_factory.mktemp("alone")) as port:
        yield Http(port)


@pytest.mark.timeout(300)
def test_the_docs_page_works_without_any_other_origin(http):
    origin = f"http://127.0.0.1:{http.port}"
    with running_chromium() as browser, visit(browser, origin) as visited:  # it must not complain: nor must our policy
        page = visited.page
        page.goto("/docs")
        expect(page).to_have_title("Order Service: API")
        page.get_by_role("button", name="Authorize").click()
        expect(page.get_by_role("heading", name="Available authorizations")).to_be_visible()
        page.locator(".close-modal").click()
        operation = page.locator("#operations-Questions-list_orders")
        operation.locator(".opblock-summary-control").click()
        operation.get_by_role("button", name="Try it out").click()
        operation.get_by_role("button", name="Execute").click()
        expect(operation.locator(".live-responses-table")).to_contain_text('"orders": []')
        page.get_by_role("button", name="Schemas").click()
        expect(page.get_by_text("OrderNotFoundProblem").first).to_be_visible()
