"""The operator's page with a service: its figures are true, also when a worker is killed; only operators see it."""

import signal
from contextlib import contextmanager
from uuid import uuid4

import pytest
from playwright.sync_api import expect

from order_service.users.stub import Mode
from order_service.web.access.caller import Scope
from tests.support import tokens
from tests.support.chromium import visit
from tests.support.shop import ORDER, PAYMENT, Http


def row(page, body, name):
    return page.locator(f"#{body} tr", has=page.get_by_role("rowheader", name=name, exact=True))


@pytest.fixture(scope="module")
def served(shop):
    """Serve a page that knows the admin ports of the worker and the projector, for those whom a token names."""
    ports = f"127.0.0.1:{shop.worker.admin_port},127.0.0.1:{shop.projector.admin_port}"
    settings = tokens.settings(shop.service.directory)
    return shop.serve(ORDERS_ADMIN_ADDRESSES=ports, **settings)[0]


@contextmanager
def operator_of(browser, served, *scopes):
    """Open the page with the token of a service."""
    with visit(browser, f"http://127.0.0.1:{served.port}") as visited:
        visited.page.goto("/operations")
        visited.page.get_by_label("Bearer token").fill(tokens.bearer("operator", *scopes))
        visited.page.get_by_role("button", name="Use the token").click()
        yield visited
        visited.forgive("status of 401", "status of 403")


@pytest.mark.parametrize("scopes", [[Scope.READ], []], ids=["another scope", "a user"])
def test_only_the_scope_for_operators_sees_the_page(browser, served, scopes):
    with operator_of(browser, served, *scopes) as visited:
        expect(visited.page.get_by_role("alert")).to_contain_text("orders:admin")
        expect(visited.page.locator("#figures")).to_be_hidden()
        visited.page.get_by_role("button", name="Forget the token").click()
        expect(visited.page.get_by_role("heading", level=1)).to_have_text("Authentication required")


def test_the_figures_are_those_of_the_service_also_when_its_worker_is_killed(browser, served, shop):
    service, clerk = shop.service, Http(served.port, Authorization=tokens.bearer("clerk", Scope.ADMIN))
    with operator_of(browser, served, Scope.ADMIN) as visited:
        page = visited.page
        expect(page.locator("#lanes .state")).to_have_text(["running"] * service.partitions)
        expect(page.locator("#processes .state")).to_have_text(["ready"] * 2)
        expect(page.locator("#letters-facts")).to_contain_text("None in the last hour.")

        order_id = clerk.create().body["order_id"]
        for payment in ("payment-1", "payment-2"):
            clerk.ask("POST", f"/v1/orders/{order_id}/pay", {**PAYMENT, "payment_id": payment})
        expect(row(page, "refusals", "already_paid")).to_contain_text("1")
        service.send([(b"o-1", b"not json")])
        expect(page.locator("#letters")).to_contain_text("open")
        expect(page.locator("#findings")).to_contain_text("Dead letters in the last hour")
        user_id = f"slow-{uuid4().hex[:8]}"
        service.users.stub.mode = Mode.ERROR
        try:
            clerk.ask("POST", "/v1/orders", {**ORDER, "user_id": user_id}, Prefer="respond-async")
            expect(row(page, "waiting", user_id)).to_be_visible()
        finally:
            service.users.stub.mode = Mode.OK
        expect(page.locator("#waiting-facts")).to_have_text("No command waits.")

        port = shop.worker.admin_port
        shop.worker.send(signal.SIGKILL)
        shop.worker.wait_ended()
        expect(page.locator("#findings")).to_contain_text(f"No answer from 127.0.0.1:{port}")
        expect(page.locator("#live")).to_have_text("live")
        shop.worker = service.start_worker(ORDERS_ADMIN_PORT=str(port)).wait_lanes(service.partitions)
        expect(page.locator("#lanes .state")).to_have_text(["running"] * service.partitions)
        expect(page.locator("#processes .state")).to_have_text(["ready"] * 2)
